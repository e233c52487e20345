//! A vCPU's registers, and entering it.
//!
//! Three groups, by who switches them and when:
//! * [`VcpuContext`]: general registers, PC and PSTATE; stored and loaded at every exit, by the vectors.
//! * [`crate::state::GuestState`]: EL1 system registers, the virtual interrupt interface, timers, FP/SIMD; they stay
//!   in the CPU while the vCPU stays on it and are moved only when another vCPU comes.
//! * what the hypervisor knows about the vCPU beyond its registers, which this crate does not need.

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering};

use cpu::registers::General;

use crate::percpu::this_cpu;

/// A vCPU's general registers. The vectors know this layout.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VcpuContext {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where the guest continues (ELR_EL2).
    pub pc: u64,
    /// The guest's PSTATE, in the layout of SPSR_EL2.
    pub pstate: u64,
    /// ESR_EL2 of the last exit. Meaningful only for a synchronous one.
    pub syndrome: u64,
    /// The address of whatever the hypervisor keeps about this vCPU; this crate carries it and never looks.
    pub owner: usize,
}

impl VcpuContext {
    /// The registers of the guest's in it.
    #[must_use]
    pub fn general(&self) -> General {
        let &Self { x, pc, pstate, syndrome: _, owner: _ } = self;
        General { x, pc, pstate }
    }

    /// Sets them.
    pub fn set_general(&mut self, general: &General) {
        let &General { x, pc, pstate } = general;
        (self.x, self.pc, self.pstate) = (x, pc, pstate);
    }

    /// Register `number` as an instruction's Rt field names it: 31 is XZR and reads as zero.
    #[inline(always)]
    #[must_use]
    pub fn register(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Sets register `number` as an instruction's Rt field names it: 31 is XZR, the write is lost.
    #[inline(always)]
    pub fn set_register(&mut self, number: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    /// Steps over the 4-byte instruction that caused the exit.
    #[inline(always)]
    pub fn skip_instruction(&mut self) {
        self.pc = self.pc.wrapping_add(4);
    }
}

/// Where a vCPU's context is: what makes it a CPU's current one.
#[derive(Debug)]
pub struct ContextHandle(AtomicPtr<VcpuContext>);

impl VcpuContext {
    /// A context that lives for ever, for the thread that runs the vCPU, and the handle by which the scheduler makes it
    /// current.
    #[must_use]
    pub fn create(owner: usize) -> (&'static mut Self, ContextHandle) {
        let context = Box::into_raw(Box::new(Self { owner, ..Self::default() }));
        // SAFETY: freshly leaked, so valid for ever; the thread that gets the reference is stopped in `enter`, which
        // takes it, whenever the vectors write through the handle's pointer.
        (unsafe { &mut *context }, ContextHandle(AtomicPtr::new(context)))
    }
}

impl ContextHandle {
    /// Makes the context the one that exits of this CPU store into.
    #[inline(always)]
    pub fn make_current(&self) {
        this_cpu().vcpu.store(self.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// How an exit came about; the exit hook's `kind`.
pub mod exit_kind {
    /// A synchronous exception: the syndrome says which.
    pub const SYNCHRONOUS: u64 = 1;
    /// A physical interrupt.
    pub const INTERRUPT: u64 = 2;
    /// A physical SError.
    pub const SERROR: u64 = 3;
    /// Anything else, out of AArch32 state: at EL0, since EL1 is in AArch64 state.
    pub const AARCH32: u64 = 4;
}

unsafe extern "C" {
    fn enter_guest(context: *mut VcpuContext) -> u64;
}

/// Runs the guest until an exit that the exit hook does not answer itself; returns what the hook returned.
///
/// IRQs must be masked and stay so until the guest runs; `context` must be this CPU's current one ([`ContextHandle`])
/// with its state loaded.
#[inline(always)]
pub fn enter(context: &mut VcpuContext) -> u64 {
    debug_assert!(core::ptr::eq(this_cpu().vcpu.load(Ordering::Relaxed), context));
    // SAFETY: the guest runs behind stage 2, which maps no memory of ours, and comes back through the vectors, which
    // write to `context` alone and restore every register that the C calling convention preserves.
    unsafe { enter_guest(context) }
}
