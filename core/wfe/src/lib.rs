//! The WFE channel: a guest finds out whether there is a hypervisor, and sets up a watchdog, with nothing but WFE.
//!
//! WFE is a hint: legal at every level, on every machine, harmless when nobody listens. A guest puts a word into X0 (and
//! arguments into X1 and X2) and executes WFE; where EL2 traps it and the word is one of eight, the answer is in X0 and
//! X1. Any other X0 is an ordinary WFE. The words are neither addresses nor small numbers, so that never happens by
//! chance.
//!
//! * [`words`]: [`Request`], what a guest's registers ask.
//! * [`watchdog`]: the watchdog's states, driven by somebody else's clock.
//!
//! A WFE that finds the event register set does not wait, hence is not trapped: a guest asks with `SEVL; WFE; WFE` and
//! tries a few times before it concludes that nobody is there.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod watchdog;
pub mod words;

pub use abi::watchdog::{Action, Actions, Refused};
pub use watchdog::{Bounds, SavedWatchdog, Status, Watchdog};
pub use words::{Request, Scope};
