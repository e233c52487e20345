//! Which of a guest's accesses trap because of its doors, and which bits of MDSCR_EL1 do not reach the hardware.

use abi::bundle::Doors as Policy;
use cpu::controls;
use cpu::debug::MDSCR_TDCC;
use hw::state::{Controls, DebugPolicy};

use crate::host;

/// HDFGRTR_EL2 and HDFGWTR_EL2: MDSCR_EL1 traps.
const TRAP_MDSCR: u64 = 1 << 4;

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
    registers.mdscr_withheld = if policy.vmware { MDSCR_TDCC } else { 0 };
    registers.debug = match (host.controls.fine_grained, policy.vmware) {
        (None, _) => DebugPolicy::TrapAll,
        (Some(_), false) => DebugPolicy::Natural,
        (Some(_), true) => {
            registers.debug_traps = [traps.hdfgrtr | TRAP_MDSCR, traps.hdfgwtr | TRAP_MDSCR];
            DebugPolicy::TrapStatus
        }
    };
}
