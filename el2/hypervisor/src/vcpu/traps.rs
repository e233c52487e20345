//! What traps of a guest's for the sake of its doors, and what of MDSCR_EL1 does not reach the hardware.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::bundle::Doors as Policy;
use cpu::controls;
use hw::state::{Controls, DebugPolicy};

use crate::host;

/// HDFGRTR_EL2 and HDFGWTR_EL2: MDSCR_EL1 traps.
const TRAP_MDSCR: u64 = 1 << 4;
/// MDSCR_EL1.TDCC: EL0 may not use the debug channel.
pub(crate) const MDSCR_TDCC: u64 = 1 << 12;
/// Guests' TDCC reaches the hardware: see [`leave_tdcc_in_hardware`].
static TDCC_IN_HARDWARE: AtomicBool = AtomicBool::new(false);

/// From now on guests' TDCC reaches the hardware, where it keeps processes from calling: what a hypervisor without a
/// virtual MDSCR_EL1 would do. A test of the tests asks for it, to see that they would notice.
pub(crate) fn leave_tdcc_in_hardware() {
    TDCC_IN_HARDWARE.store(true, Ordering::Relaxed);
    log::warn!("guests' MDSCR_EL1.TDCC reaches the hardware: no process of theirs can call");
}

/// Sets the traps of a vCPU that starts.
pub(crate) fn prepare(policy: &Policy, registers: &mut Controls) {
    let host = host::get();
    registers.hcr &= !controls::HCR_VSE;
    if policy.wfe {
        registers.hcr |= controls::HCR_TWE;
    }
    let traps = host.controls.fine_grained.unwrap_or_default();
    registers.debug_traps = [traps.hdfgrtr, traps.hdfgwtr];
    (registers.mdscr, registers.mdccint, registers.claim) = (0, 0, 0);
    let withholds = policy.vmware && !TDCC_IN_HARDWARE.load(Ordering::Relaxed);
    registers.mdscr_withheld = if withholds { MDSCR_TDCC } else { 0 };
    registers.debug = match (host.controls.fine_grained, policy.vmware) {
        (None, _) => DebugPolicy::TrapAll,
        (Some(_), false) => DebugPolicy::Natural,
        (Some(_), true) => {
            registers.debug_traps = [traps.hdfgrtr | TRAP_MDSCR, traps.hdfgwtr | TRAP_MDSCR];
            DebugPolicy::TrapStatus
        }
    };
}
