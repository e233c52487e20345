//! What this host's CPUs need so that a guest learns nothing, and steers nothing, through their predictors: determined
//! for each CPU when it joins ([`cpu::speculation`]), done by its vectors ([`hw::speculation`]), and reported to
//! guests.

use core::sync::atomic::{AtomicU8, Ordering};

use abi::calls::arm::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3};
use cpu::id::HostIds;
use cpu::speculation::{Firmware, Offer, Plan, StoreBypass, VectorTable, translates_out_of_context};
use hw::firmware::{self, architecture_feature};
use hw::speculation::{Means, apply, forget};
use hw::sysreg;
use services::{Need, Workarounds};

/// What guests are told of the three workarounds: the least of what any CPU can promise.
static TOLD: [AtomicU8; 3] = [const { AtomicU8::new(NOT_REQUIRED) }; 3];
const NOT_REQUIRED: u8 = 0;
const REQUIRED: u8 = 1;
const UNKNOWN: u8 = 2;

/// Finds out what this CPU needs, and sees to it from its next exception on, by the means that `choose` makes of those. IRQs are masked.
pub(crate) fn init_cpu(choose: impl FnOnce(Means) -> Means) -> Plan {
    let offer = |function| Offer::from_answer(architecture_feature(function));
    let firmware = Firmware {
        branch_targets: offer(SMCCC_ARCH_WORKAROUND_1),
        store_bypass: offer(SMCCC_ARCH_WORKAROUND_2),
        branch_history: offer(SMCCC_ARCH_WORKAROUND_3),
    };
    let plan = Plan::new(sysreg::midr_el1(), &HostIds(hw::ids::read_all()), &firmware);
    if translates_out_of_context(sysreg::midr_el1()) {
        hw::stage1::close_between_guests();
    }
    // Once, for good: guests' own calls of it do not reach firmware.
    if plan.store_bypass == StoreBypass::Firmware {
        firmware::call(SMCCC_ARCH_WORKAROUND_2, 1);
    }
    apply(choose(match plan.vectors() {
        VectorTable::Plain => Means::Nothing,
        VectorTable::Clearing(rounds) => Means::Clear(rounds),
        VectorTable::Calling(function) => Means::Call(function),
    }));
    // The least of all CPUs, so each adds to it, and all that start have done so before there are guests: a guest that asked sooner would
    // be told what its next CPU does not keep.
    for (told, offer) in TOLD.iter().zip(plan.for_guests()) {
        let value = match offer {
            Offer::NotRequired => NOT_REQUIRED,
            Offer::Required => REQUIRED,
            Offer::Unknown => UNKNOWN,
        };
        told.fetch_max(value, Ordering::Relaxed);
    }
    plan
}

/// What guests are told.
#[must_use]
pub(crate) fn workarounds() -> Workarounds {
    let [branch_target, store_bypass, branch_history] =
        TOLD.each_ref().map(|told| match told.load(Ordering::Relaxed) {
            NOT_REQUIRED => Need::NotRequired,
            REQUIRED => Need::Required,
            _ => Need::Unknown,
        });
    Workarounds { branch_target, store_bypass, branch_history }
}

/// Carries out `function` for a guest, if that is a workaround of which guests are told that they need it. Says whether it
/// was one.
///
/// The exit has made firmware do it already, where it is firmware's; the history is cleared here, since on the short path
/// nobody else does.
#[inline(never)]
pub(crate) fn work_around(function: u32) -> bool {
    let told = match function {
        SMCCC_ARCH_WORKAROUND_1 => &TOLD[0],
        SMCCC_ARCH_WORKAROUND_3 => &TOLD[2],
        _ => return false,
    };
    if told.load(Ordering::Relaxed) != REQUIRED {
        return false;
    }
    forget();
    true
}
