//! Which thread a CPU runs next, and for how long.
//!
//! Each CPU has a [`RunQueue`] of the threads that could run there. Every thread has a *virtual run time*: the time that it
//! has run, divided by its weight. The one with the least runs next, for a slice; so over time each gets the CPU in
//! proportion to its weight, and none is forgotten. This is the idea of weighted fair queueing.
//!
//! A sleeping thread does not save up run time while it sleeps (but for what those around it give way to one that comes from
//! another queue): when it wakes, it is placed at most a shortest slice of its own before the queue's floor, the least virtual
//! run time there is. That is enough for it to run soon (it is then the first, and [`RunQueue::should_preempt`] says so), and
//! not enough to shut the others out.
//!
//! Between queues a virtual run time means nothing by itself. `balance` has the scale common to all, by which queues are compared
//! ([`RunQueue::standing`]), threads go from where they fall behind to where others are ahead ([`RunQueue::give`]), and a thread
//! that changes queues keeps its claim ([`RunQueue::detach`], [`Arrival::Moved`]). This happens every few milliseconds, and never
//! when threads take turns on one CPU.
//!
//! The queue is a binary heap: no lock, all operations in O(log n), except those that look for a particular thread or let one
//! come from another queue, and no allocation once [`RunQueue::reserve`] has been told how many threads there are. Virtual run
//! times are compared by their difference, so they may wrap; one that has slept for so long that this would not tell is as one
//! that has run little.
//!
//! Beside the queue there are [`Slice`], when the running thread is to let others run, [`Alarms`], the deadlines that a CPU's timer
//! serves, [`Parking`], a thread's state and the protocol by which no wake-up is lost, and [`Meter`], what the running thread is to
//! be charged. [`has_cpu_of_its_own`] says who may keep its CPU while it waits.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod alarms;
mod balance;
#[cfg(test)]
mod balance_simulation;
mod heap;
mod meter;
mod parking;
mod queue;
mod room;
#[cfg(test)]
mod simulation;
mod slice;

/// What `parking` synchronises with; the models put their own in its place.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
}

/// Bytes that a thread takes on each CPU: a place in its queue, and two among its alarms.
pub const BYTES_OF_A_PLACE: usize = heap::BYTES_OF_A_PLACE + 2 * (size_of::<Alarm>() + size_of::<u32>());

pub use alarms::{Alarm, Alarms};
pub use balance::{Given, Standing};
pub use meter::Meter;
pub use parking::Parking;
pub use queue::{Affinity, Arrival, Entity, RunQueue, ThreadId, Timing, Weight};
pub use room::has_cpu_of_its_own;
pub use slice::Slice;
