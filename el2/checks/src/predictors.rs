//! What a CPU's exits do against its predictors is what its model needs, and what was asked for last. That the vectors themselves do it,
//! `cargo xtask test` sees in their code (`tools/xtask/src/predictors.rs`).

use alloc::format;
use alloc::string::String;

use cpu::id::HostIds;
use cpu::speculation::{Firmware, Offer, Plan, VectorTable};
use hw::selftest::{history_is_foreign, means};
use hw::speculation::{Means, apply, defer, forget, settle};
use hw::sync::without_irqs;
use hw::sysreg;

/// A number that no firmware knows: nothing exits meanwhile.
const FUNCTION: u32 = 0x8000_7fff;

/// This machine's firmware offers nothing, so the model decides.
fn planned() -> Means {
    let silent =
        Firmware { branch_targets: Offer::Unknown, store_bypass: Offer::Unknown, branch_history: Offer::Unknown };
    match Plan::new(sysreg::midr_el1(), &HostIds(hw::ids::read_all()), &silent).vectors() {
        VectorTable::Plain => Means::Nothing,
        VectorTable::Clearing(rounds) => Means::Clear(rounds),
        VectorTable::Calling(function) => Means::Call(function),
    }
}

pub(crate) fn check() -> Result<(), String> {
    let planned = planned();
    without_irqs(|| {
        let at_first = means();
        if at_first != Some(planned) {
            return Err(format!("{at_first:?} is in force, and {planned:?} is needed"));
        }
        for asked in [Means::Clear(8), Means::Call(FUNCTION), Means::Clear(0), Means::Nothing, planned] {
            apply(asked);
            let found = means();
            if found != Some(asked) {
                apply(planned);
                return Err(format!("{found:?} is in force after {asked:?} was asked for"));
            }
        }
        for clear in [settle, forget] {
            defer();
            let noted = history_is_foreign();
            clear();
            if !noted || history_is_foreign() {
                return Err(format!("a note of a foreign history: left {noted}, and there behind it"));
            }
        }
        Ok(())
    })
}
