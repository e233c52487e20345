//! What a VM does, as plain values: events go in, effects come out.
//!
//! * [`Life`]: a VM's life. It is started, runs, is paused, stops, and is reset.
//! * [`exits`]: what a guest's exit leads to, whatever it is: one decision, of which the next three are parts.
//! * [`doors`]: what a guest does at its doors, and where it continues.
//! * [`aborts`]: what an access that stage 2 refused leads to, and [`mmio`]: what it does at a device.
//! * [`progress`]: when a guest that makes no progress may try again.
//! * [`devices`]: its devices, made from the plan of its machine, and what comes to each kind of them from outside.
//! * [`stolen`]: what of its vCPUs' waits is stolen time.
//! * [`Watchdogs`]: who may set up which of a VM's watchdogs, when one acts, and what that leads to; [`Round`]: a look at all of them,
//!   and [`watchdogs::agenda`]: when which VM's are looked at.
//! * [`host_disks`]: which parts of the host's disks its VMs' disks are.
//! * [`machine`]: the plan of its machine, from what the site says of it.
//! * [`Needs`]: how much of the host's memory a site needs, for all that check whether there is enough.
//!
//! Nothing here takes a lock, wakes a thread or writes a line. The hypervisor keeps each value under its own lock,
//! reports what happened, and performs the returned [`Effect`]s, in their order, before it releases the lock. What an exit leads to is
//! decided without a lock, and returned as an [`exits::Effect`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod aborts;
pub mod devices;
pub mod doors;
pub mod exits;
pub mod host_disks;
mod life;
pub mod mmio;
pub mod needs;
mod plan;
pub mod progress;
pub mod stolen;
pub mod watchdogs;
#[cfg(test)]
mod world;

pub use life::saved::{NoState, SavedLife, SavedStart};
pub use life::{Ask, Effect, End, Fate, Life, Saying, Stop, Task};
pub use needs::{DoesNotFit, Needs, Share};
pub use plan::{GuestCounter, machine};
pub use watchdogs::saved::SavedWatchdogs;
pub use watchdogs::{AtExpiry, Bite, Caller, Consequence, Round, RoundStep, Watchdogs, Which};
