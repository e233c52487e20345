//! The watchdogs that a guest sets up by calls, and the words by which it does so with nothing but WFE (the WFE channel).
//!
//! A watchdog is a state machine that its caller's clock drives: armed, patted, expired, with bounds that a site file may set.
//! How a VM uses several of them, and the Generic Watchdog among its devices, is in `core/vm`.
//!
//! WFE is a hint: legal at every level, on every machine, harmless when nobody listens. A guest puts a word into X0 (and
//! arguments into X1 and X2) and executes WFE; where EL2 traps it and the word is one of eight, the answer is in X0 and X1. Any
//! other X0 is an ordinary WFE. The words are neither addresses nor small numbers, so no WFE is taken for a call by chance.
//!
//! * `timer`: the watchdog's states.
//! * [`words`]: [`Request`], what a guest's registers ask.
//!
//! A WFE that finds the event register set does not wait, hence is not trapped: a guest asks with `SEVL; WFE; WFE` and
//! tries a few times before it concludes that nobody is there.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod timer;
pub mod words;

pub use abi::watchdog::{Action, Actions, Refused};
pub use timer::{Bounds, SavedWatchdog, Status, Watchdog};
pub use words::{Request, Scope};
