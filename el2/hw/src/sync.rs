//! Locks that say what they disable.
//!
//! An [`IrqLock`] masks IRQs on its CPU while it is held, so it may be taken by interrupt handlers and by threads
//! alike, and its holder is neither interrupted nor moved. Sections are short: nothing that waits, and no loop whose
//! length a guest chooses, runs under one.
//!
//! Who waits is not served in the order of arrival. A queue of waiters moves only as fast as each of them notices that it
//! is its turn; on an emulated or nested machine, whose CPUs do not all run at the same time, one contended lock then
//! holds everybody up for milliseconds, and the next one too, since all arrive there together. As sections are short and
//! the waiters few, being overtaken costs less ([decision 0014](../../../docs/decisions/0014-unfair-locks.md)).

use core::ops::{Deref, DerefMut};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;

/// PSTATE.I, the IRQ mask, in the `daif` register.
const DAIF_I: u64 = 1 << 7;

/// Whether IRQs were masked at some point, to be put back by [`restore_irqs`].
#[derive(Clone, Copy, Debug)]
pub struct IrqState(u64);

/// Masks IRQs on this CPU; returns what was before.
#[inline(always)]
#[must_use]
pub fn mask_irqs() -> IrqState {
    let daif: u64;
    // SAFETY: masking interrupts only delays them. No `nomem`: memory accesses must not move out of the section.
    unsafe { core::arch::asm!("mrs {0}, daif", "msr daifset, #2", out(reg) daif, options(nostack, preserves_flags)) };
    IrqState(daif)
}

/// Puts the IRQ mask back to what it was.
#[inline(always)]
pub fn restore_irqs(state: IrqState) {
    if state.0 & DAIF_I == 0 {
        unmask_irqs();
    }
}

/// Lets IRQs in. Only for code that holds no lock: threads at their outermost level.
#[inline(always)]
pub fn unmask_irqs() {
    // SAFETY: IRQ handlers preserve every register of what they interrupt and take only locks that mask IRQs, none of
    // which this CPU holds here, since holding one means IRQs stay masked.
    unsafe { core::arch::asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Runs `work` with IRQs let in, and masks them again. The thread may be preempted, and move, inside.
pub fn with_irqs<R>(work: impl FnOnce() -> R) -> R {
    unmask_irqs();
    let result = work();
    let _ = mask_irqs();
    result
}

/// Runs `work` with IRQs masked: on one CPU, without being preempted.
#[inline(always)]
pub fn without_irqs<R>(work: impl FnOnce() -> R) -> R {
    let before = mask_irqs();
    let result = work();
    restore_irqs(before);
    result
}

/// What to do between two looks at something that another CPU is about to change.
///
/// YIELD tells cores with several threads, and an emulator that runs one CPU at a time, that somebody else has better use
/// for the time; ISB makes other cores wait a little before they ask for the line again.
#[inline(always)]
pub fn relax() {
    // SAFETY: neither changes a register or memory.
    unsafe { core::arch::asm!("yield", "isb", options(nomem, nostack, preserves_flags)) };
}

/// [`relax`], as `spin` wants it.
enum Relax {}

impl RelaxStrategy for Relax {
    #[inline(always)]
    fn relax() {
        relax();
    }
}

/// A spin lock that masks IRQs while it is held.
pub struct IrqLock<T> {
    inner: SpinMutex<T, Relax>,
}

impl<T> IrqLock<T> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { inner: SpinMutex::new(value) }
    }

    /// Takes the lock as soon as it is free.
    #[inline(always)]
    pub fn lock(&self) -> IrqGuard<'_, T> {
        let irqs = mask_irqs();
        IrqGuard { inner: Some(self.inner.lock()), irqs }
    }

    /// The value behind the lock, whoever holds it: only for a CPU that has stopped all others and is about to die.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T>> {
        let irqs = mask_irqs();
        match self.inner.try_lock() {
            Some(inner) => Some(IrqGuard { inner: Some(inner), irqs }),
            None => {
                restore_irqs(irqs);
                None
            }
        }
    }
}

/// Holds an [`IrqLock`]; the IRQ mask goes back when it is dropped, after the lock is free.
pub struct IrqGuard<'a, T> {
    inner: Option<SpinMutexGuard<'a, T, Relax>>,
    irqs: IrqState,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        match &self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds its lock until it is dropped"),
        }
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds its lock until it is dropped"),
        }
    }
}

impl<T> Drop for IrqGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        drop(self.inner.take());
        restore_irqs(self.irqs);
    }
}
