//! The enclave device: one set of commands for a guest, whatever mechanism of the host guards its enclaves (docs/spec/2-enclave.md).
//!
//! A guest writes a command into a ring in its own memory, and then a register of the device: that access traps, and is what inserts
//! the command. [`device`] emulates the queue: it copies a command once, and looks at nothing but the copy. [`parse`] finds out which
//! operation it describes; [`table`] has the enclaves with their states, in which an operation is allowed or not. What is then to be done is
//! said to a [`backend`] in universal steps, each of a bounded amount of work; the backend translates each of them into the commands of
//! its own mechanism, and has these carried out.
//!
//! [`isolation`] is the mechanism of this hypervisor: the enclave's memory leaves the guest, and the enclave runs at EL0 in tables of its
//! own. [`models`] translate for SGX, SEV and TrustZone. What stands below those three is a recorder that plays the mechanism: they show
//! that the guest's side does not change, and **isolate nothing**; no image that ships has them.
//!
//! Nothing here touches a register or a table. Memory, and what isolates it, is reached through the bus's `Outside`. All limits are in
//! `abi::enclave`. Enclaves are not part of a saved VM: one that goes on from its saved state is told that they are gone
//! ([`saved`]).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod backend;
pub mod device;
pub mod isolation;
pub mod measure;
pub mod models;
pub mod parse;
pub mod saved;
pub mod table;
pub mod trace;

mod rings;

pub use backend::{EnclaveBackend, Entered, Leave, NoMechanism, NotCarriedOut, Universal};
pub use device::{EnclaveDevice, EnclaveRun};
pub use isolation::ByIsolation;
pub use saved::SavedEnclaveDevice;
pub use table::EnclaveThread;
pub use trace::{EnclaveTrace, NoTrace, Traced};
