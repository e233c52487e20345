//! Self-hosted debug at EL1 (Arm ARM D2): a hardware breakpoint, a watchpoint and a single step, each raised and caught here.

use core::arch::asm;

use crate::fault::{self, Fault};
use crate::{memory, sysreg};

/// MDSCR_EL1: monitor debug events on.
const MDE: u64 = 1 << 15;
/// MDSCR_EL1: debug exceptions from EL1 to itself.
const KDE: u64 = 1 << 13;
/// MDSCR_EL1: software step.
const SS: u64 = 1;

fn with_debug_exceptions<R>(control: u64, body: impl FnOnce() -> R) -> Result<R, Fault> {
    sysreg::oslar_el1::write(0);
    let outcome = fault::catch(|| {
        sysreg::mdscr_el1::write(control);
        // SAFETY: debug exceptions are caught like all others while `catch` runs.
        unsafe { asm!("msr daifclr, #8", "isb", options(nostack)) };
        body()
    });
    // SAFETY: fewer exceptions break nothing.
    unsafe { asm!("msr daifset, #8", options(nostack)) };
    sysreg::mdscr_el1::write(0);
    outcome
}

/// Calls the code at `address` (no part of the image) with breakpoint 0 on it.
///
/// # Errors
/// The breakpoint exception, as it should be.
pub fn breakpoint(address: u64) -> Result<(), Fault> {
    sysreg::dbgbvr0_el1::write(address);
    sysreg::dbgbcr0_el1::write(1 | 1 << 1 | 0xf << 5);
    let outcome = with_debug_exceptions(MDE | KDE, || memory::call(address));
    sysreg::dbgbcr0_el1::write(0);
    outcome
}

/// Runs `body` with watchpoint 0 on the eight bytes at `address`.
///
/// # Errors
/// The watchpoint exception, if `body` touches them.
pub fn watchpoint(address: u64, body: impl FnOnce()) -> Result<(), Fault> {
    sysreg::dbgwvr0_el1::write(address);
    sysreg::dbgwcr0_el1::write(1 | 1 << 1 | 3 << 3 | 0xff << 5);
    let outcome = with_debug_exceptions(MDE | KDE, body);
    sysreg::dbgwcr0_el1::write(0);
    outcome
}

/// Steps over one instruction. The step exception, its `elr` counted from that instruction; none if it did not come.
pub fn step() -> Option<Fault> {
    sysreg::oslar_el1::write(0);
    let mut start = 0;
    let outcome = fault::catch(|| {
        // SAFETY: an exception return to the label two lines down, in the same state but for debug exceptions and one step.
        unsafe {
            asm!(
                "msr mdscr_el1, {control}", "isb",
                "mrs {state}, daif", "bic {state}, {state}, #0x200", "orr {state}, {state}, #4", "orr {state}, {state}, #1",
                "orr {state}, {state}, #(1 << 21)",
                "msr spsr_el1, {state}", "adr {at}, 2f", "msr elr_el1, {at}", "isb", "eret",
                "2:", "nop", "nop", "nop",
                "msr daifset, #8",
                control = in(reg) KDE | SS, state = out(reg) _, at = out(reg) start, options(nostack)
            );
        }
    });
    sysreg::mdscr_el1::write(0);
    outcome.err().map(|fault| Fault { elr: fault.elr.wrapping_sub(start), ..fault })
}
