//! The scheduler's protocols against all interleavings (loom): the run queue, wake-ups, threads that move, deferred
//! preemption.
//!
//! `parking` is the scheduler's own file, compiled here with loom's atomics; the rest is written down as the assembly
//! and the wiring of `el2/` do it, step for step, with the place named. Each model also exists with a step left out, and
//! must then fail: a model that cannot fail proves nothing.
#![forbid(unsafe_code)]

/// What `parking` synchronises with.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering};
}

#[path = "../../../core/sched/src/parking.rs"]
pub mod parking;

#[cfg(test)]
mod deferral;
#[cfg(test)]
mod handover;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod run_queue;
#[cfg(test)]
mod wake;
