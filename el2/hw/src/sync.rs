//! Locks that say what they disable.
//!
//! An [`IrqLock`] masks IRQs on its CPU while it is held, so it may be taken by interrupt handlers and by threads
//! alike, and its holder is neither interrupted nor moved. Sections are short: nothing that waits, and no loop whose
//! length a guest chooses, runs under one.
//!
//! A [`PreemptLock`] disables preemption alone: interrupts are handled while it is held, and a preemption that one of
//! them asks for waits until the lock is free, as it does for listed code (`nopreempt`). It is for data that only
//! threads use: an interrupt handler that took it could wait for the very thread that it interrupts. Either of the two
//! may be the outer one, as long as they are released in the reverse order.
//!
//! Waiters are not served in the order of arrival. A queue of waiters moves only as fast as each of them notices that
//! it is its turn; on an emulated or nested machine, whose CPUs do not all run at the same time, one contended lock
//! then delays all CPUs for milliseconds, and so does the next one, since all arrive there together. As sections are
//! short and the waiters few, being overtaken costs less ([decision
//! 0014](../../../docs/decisions/0014-unfair-locks.md)).

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{Ordering, compiler_fence};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;

use crate::nopreempt;
use crate::percpu::this_cpu;

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

/// Lets IRQs in. Only for threads that hold no [`IrqLock`].
#[inline(always)]
pub fn unmask_irqs() {
    // SAFETY: IRQ handlers preserve every register of what they interrupt and take only locks that mask IRQs, none of
    // which this CPU holds here, since holding one means IRQs stay masked.
    unsafe { core::arch::asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Whether IRQs are masked on this CPU.
#[inline(always)]
#[must_use]
pub fn are_irqs_masked() -> bool {
    let daif: u64;
    // SAFETY: reading the masks changes nothing.
    unsafe { core::arch::asm!("mrs {0}, daif", out(reg) daif, options(nomem, nostack, preserves_flags)) };
    daif & DAIF_I != 0
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

/// What a lock disables on its CPU while it is held.
pub trait Discipline {
    /// What was before, to be put back.
    type Before: Copy;
    /// Disables it.
    fn disable() -> Self::Before;
    /// Puts back what was before.
    fn restore(before: Self::Before);
}

/// IRQs, and with them preemption.
pub enum Irqs {}

/// Preemption alone.
pub enum Preemption {}

impl Discipline for Irqs {
    type Before = IrqState;

    #[inline(always)]
    fn disable() -> IrqState {
        mask_irqs()
    }

    #[inline(always)]
    fn restore(before: IrqState) {
        restore_irqs(before);
    }
}

impl Discipline for Preemption {
    type Before = ();

    /// One more reason to stay on this CPU.
    ///
    /// Load, addition and store are three instructions, and the thread may be moved between them. That does no harm: it is
    /// moved only from a CPU whose count is 0, to one whose count is 0, or it would not run there.
    #[inline(always)]
    fn disable() {
        let count = &this_cpu().unpreemptible;
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // For the interrupt handler of this CPU, which must see the count before anything of the section happens.
        // Pairs with the handler's look at the count: an interrupt is a point in this CPU's own program, so nothing but the compiler could
        // move the section before it.
        compiler_fence(Ordering::SeqCst);
    }

    /// One reason less. The count falls before the look at the note: an interrupt in between preempts at once.
    #[inline(always)]
    fn restore((): ()) {
        // Pairs with the same look: nothing of the section comes behind the count's fall.
        compiler_fence(Ordering::SeqCst);
        let count = &this_cpu().unpreemptible;
        let left = count.load(Ordering::Relaxed) - 1;
        count.store(left, Ordering::Relaxed);
        // Pairs with the handler's store of the note: the count has fallen before the look at it, or a preemption would be lost.
        compiler_fence(Ordering::SeqCst);
        if left == 0 && this_cpu().preempt_pending.load(Ordering::Relaxed) != 0 {
            nopreempt::preempt_now();
        }
    }
}

/// Whether the running thread must stay on this CPU, because of a [`PreemptLock`] that it holds.
#[inline(always)]
#[must_use]
pub fn is_unpreemptible() -> bool {
    this_cpu().unpreemptible.load(Ordering::Relaxed) != 0
}

/// A spin lock that masks IRQs while it is held.
pub type IrqLock<T> = Lock<T, Irqs>;
/// Holds an [`IrqLock`]; the IRQ mask goes back when it is dropped, after the lock is free.
pub type IrqGuard<'a, T> = Guard<'a, T, Irqs>;
/// A spin lock that keeps its holder on its CPU while it is held: interrupts are handled, preemptions wait. Only for threads.
pub type PreemptLock<T> = Lock<T, Preemption>;
/// Holds a [`PreemptLock`]; whoever was kept waiting runs when it is dropped, after the lock is free.
pub type PreemptGuard<'a, T> = Guard<'a, T, Preemption>;

/// A spin lock that disables what `D` says.
pub struct Lock<T, D> {
    discipline: PhantomData<D>,
    inner: SpinMutex<T, Relax>,
}

impl<T, D: Discipline> Lock<T, D> {
    /// An unlocked lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { discipline: PhantomData, inner: SpinMutex::new(value) }
    }

    /// Takes the lock as soon as it is free.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T, D> {
        let before = D::disable();
        Guard { inner: Some(self.inner.lock()), before }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<Guard<'_, T, D>> {
        let before = D::disable();
        match self.inner.try_lock() {
            Some(inner) => Some(Guard { inner: Some(inner), before }),
            None => {
                D::restore(before);
                None
            }
        }
    }
}

impl<T> Lock<T, Preemption> {
    /// Takes the lock if it is free, for the short path of an exit: IRQs are masked, and stay so for as long as it is held, so
    /// nothing asks for preemption meanwhile, and at its end nobody needs to be let in. (An ordinary guard ends in a switch of threads
    /// if somebody waits, and the short path must not be able to reach that: `cargo xtask test --only build`.)
    #[inline(always)]
    pub fn try_lock_masked(&self) -> Option<impl DerefMut<Target = T> + '_> {
        debug_assert!(are_irqs_masked());
        self.inner.try_lock()
    }
}

impl<T> Lock<T, Irqs> {
    /// Takes the lock as soon as it is free, where IRQs are masked already and stay so for as long as it is held: on the short path of
    /// an exit, in the scheduler, and inside of another such lock. There is nothing to disable or to put back then, which is four
    /// instructions less. With IRQs let in, a handler on this CPU that wants the lock would wait for ever.
    #[inline(always)]
    pub fn lock_masked(&self) -> impl DerefMut<Target = T> + '_ {
        debug_assert!(are_irqs_masked());
        self.inner.lock()
    }
}

/// Holds a [`Lock`]; what was disabled is as it was when it is dropped, after the lock is free.
pub struct Guard<'a, T, D: Discipline> {
    inner: Option<SpinMutexGuard<'a, T, Relax>>,
    before: D::Before,
}

impl<T, D: Discipline> Deref for Guard<'_, T, D> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        match &self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds its lock until it is dropped"),
        }
    }
}

impl<T, D: Discipline> DerefMut for Guard<'_, T, D> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.inner {
            Some(inner) => inner,
            None => unreachable!("the guard holds its lock until it is dropped"),
        }
    }
}

impl<T, D: Discipline> Drop for Guard<'_, T, D> {
    #[inline(always)]
    fn drop(&mut self) {
        drop(self.inner.take());
        D::restore(self.before);
    }
}
