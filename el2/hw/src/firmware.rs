//! The calls we make to the firmware below us: PSCI (DEN0022) to switch the machine off, and SMCCC's architecture service (DEN0028), by
//! SMC. CPUs are not started from here: that is the stage's before us (`el2/stage`), and theirs that wait at mailboxes.

use core::sync::atomic::{AtomicU8, Ordering};

use abi::calls::arm::{PSCI_FEATURES, SMCCC_1_1, SMCCC_ARCH_FEATURES, SMCCC_VERSION};
use smccc::{Hvc, Smc, psci};

use crate::sysreg;

/// How the firmware is called; what the platform says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// There is none.
    None = 0,
    /// SMC: the firmware is at EL3.
    Smc = 1,
    /// HVC: another hypervisor is below us, and we are not at EL2. Only to be switched off again.
    Hvc = 2,
}

static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Sets how the firmware is called from now on.
pub fn set_conduit(conduit: Conduit) {
    CONDUIT.store(conduit as u8, Ordering::Relaxed);
}

/// Switches the machine off, or stops this CPU for ever where the firmware cannot.
pub fn power_off() -> ! {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => drop(psci::system_off::<Smc>()),
        2 => drop(psci::system_off::<Hvc>()),
        _ => {}
    }
    loop {
        sysreg::wfi();
    }
}

const NOT_SUPPORTED: i32 = -1;

/// Calls a 32-bit function of the firmware's on this CPU. NOT_SUPPORTED (-1) where there is none to call.
pub fn call(function: u32, argument: u32) -> i32 {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => smccc::smc32(function, [argument, 0, 0, 0, 0, 0, 0])[0] as i32,
        _ => NOT_SUPPORTED,
    }
}

/// What `SMCCC_ARCH_FEATURES` says of `function` on this CPU: negative if it is not known. Firmware that is too old for the
/// question is not asked it (DEN0028 appendix A).
#[must_use]
pub fn architecture_feature(function: u32) -> i32 {
    if call(PSCI_FEATURES, SMCCC_VERSION) < 0 || call(SMCCC_VERSION, 0) < SMCCC_1_1 as i32 {
        return NOT_SUPPORTED;
    }
    call(SMCCC_ARCH_FEATURES, function)
}
