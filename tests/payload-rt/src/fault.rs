//! Faults that a test provokes on purpose.
//!
//! [`catch`] runs a closure; the first synchronous exception in it is recorded and execution continues after the instruction that
//! raised it (after the call, when the fetch itself failed). An exception outside of `catch` ends the payload.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::vectors::Frame;
use crate::{MAX_CPUS, cpu, sysreg};

/// ESR_ELx.EC: an instruction that is not known, or not allowed, here.
pub const EC_UNKNOWN: u64 = 0x00;
/// ESR_ELx.EC: illegal execution state.
pub const EC_ILLEGAL_STATE: u64 = 0x0e;
/// ESR_ELx.EC: SVC.
pub const EC_SVC: u64 = 0x15;
/// ESR_ELx.EC: instruction abort without a change of exception level.
pub const EC_INSTRUCTION_ABORT: u64 = 0x21;
/// ESR_ELx.EC: misaligned program counter.
pub const EC_PC_ALIGNMENT: u64 = 0x22;
/// ESR_ELx.EC: data abort without a change of exception level.
pub const EC_DATA_ABORT: u64 = 0x25;
/// ESR_ELx.EC: hardware breakpoint without a change of exception level.
pub const EC_BREAKPOINT: u64 = 0x31;
/// ESR_ELx.EC: software step without a change of exception level.
pub const EC_STEP: u64 = 0x33;
/// ESR_ELx.EC: watchpoint without a change of exception level.
pub const EC_WATCHPOINT: u64 = 0x35;
/// ESR_ELx.EC: BRK.
pub const EC_BRK: u64 = 0x3c;

/// DFSC/IFSC: synchronous external abort, not on a table walk.
pub const FSC_EXTERNAL: u64 = 0x10;
/// DFSC: alignment fault.
pub const FSC_ALIGNMENT: u64 = 0x21;
/// Fault status: the memory there cannot do this exclusive or atomic access.
pub const FSC_UNSUPPORTED_ATOMIC: u64 = 0x35;

/// A synchronous exception as EL1 saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// ELR_EL1: the preferred return address.
    pub elr: u64,
    /// FAR_EL1; meaningful for aborts and watchpoints only.
    pub far: u64,
}

impl Fault {
    /// The exception class, ESR_EL1.EC.
    #[must_use]
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// The fault status code of an abort, bits 5:0 of ESR_EL1.ISS.
    #[must_use]
    pub fn status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// Whether this is what an UNDEFINED instruction raises.
    #[must_use]
    pub fn is_undefined(&self) -> bool {
        self.class() == EC_UNKNOWN
    }
}

/// How many exceptions the running `catch` has seen, plus one; 0 when none is running.
static ARMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static ESR: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static ELR: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static FAR: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Runs `body`; the first synchronous exception in it comes back as the error. Does not nest.
pub fn catch<R>(body: impl FnOnce() -> R) -> Result<R, Fault> {
    let me = cpu::index();
    assert!(ARMED[me].load(Ordering::Relaxed) == 0, "fault::catch does not nest");
    ARMED[me].store(1, Ordering::SeqCst);
    let value = body();
    let seen = ARMED[me].swap(0, Ordering::SeqCst);
    if seen == 1 {
        return Ok(value);
    }
    Err(Fault {
        esr: ESR[me].load(Ordering::Relaxed),
        elr: ELR[me].load(Ordering::Relaxed),
        far: FAR[me].load(Ordering::Relaxed),
    })
}

/// Records the exception if it is expected and decides where execution goes on.
pub(crate) fn on_synchronous(frame: &mut Frame, vector: u64) {
    let (esr, far, me) = (sysreg::esr_el1::read(), sysreg::far_el1::read(), cpu::index());
    let fault = Fault { esr, elr: frame.elr, far };
    let seen = ARMED[me].load(Ordering::Relaxed);
    if seen == 0 || vector != 4 {
        panic!(
            "unexpected exception, vector {vector}: ESR {esr:#x} ELR {:#x} FAR {far:#x} LR {:#x}",
            frame.elr, frame.x[30]
        );
    }
    if seen == 1 {
        ESR[me].store(fault.esr, Ordering::Relaxed);
        ELR[me].store(fault.elr, Ordering::Relaxed);
        FAR[me].store(fault.far, Ordering::Relaxed);
    }
    ARMED[me].store(seen + 1, Ordering::Relaxed);
    match fault.class() {
        EC_SVC => {}
        EC_INSTRUCTION_ABORT | EC_PC_ALIGNMENT => frame.elr = frame.x[30],
        EC_ILLEGAL_STATE => frame.spsr &= !(1 << 20),
        // Once seen, the debug events are switched off, so that the instruction can go on.
        EC_BREAKPOINT | EC_WATCHPOINT | EC_STEP => {
            frame.spsr &= !(1 << 21);
            sysreg::mdscr_el1::write(0);
        }
        _ => frame.elr = frame.elr.wrapping_add(4),
    }
}
