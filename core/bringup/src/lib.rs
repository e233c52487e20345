//! From whatever firmware offers to the one protocol by which the hypervisor's core starts CPUs: the mailbox
//! (docs/spec/7-mailboxes.md).
//!
//! Machines start their secondary CPUs in many ways: by calls of PSCI, by the parking protocol of ACPI, by spin tables, and by ways of
//! their own. A core that knew them all would carry each machine's way for ever. So a stage runs before it, on the boot CPU, and
//! *converts*: it parses what firmware has described, makes a mailbox for each CPU, brings the CPU by its original way into a loop
//! that waits at that mailbox, and only then changes the description in memory, so that it names the mailbox. Whoever reads it
//! afterwards finds CPUs that wait in one and the same way.
//!
//! The order matters. Were the description changed first, its reader could ring at a mailbox at which nobody waits, for ever; and a
//! CPU that does not come must not have one ([`convert`]).
//!
//! * [`mailbox`]: the page at which a CPU waits, and what lets it go.
//! * [`acpi`]: the tables that name CPUs and their start protocols, read and changed where they are.
//! * [`original`]: by which protocol a CPU waits that nobody has converted yet.
//! * [`tree`]: the device tree, written anew.
//! * [`convert`]: the sequence.
//!
//! This crate decides; it touches memory and CPUs through [`convert::Machine`] alone. Firmware's tables are believed in nothing that
//! could lead out of them: a table that contradicts itself is refused as a whole, with what is wrong and where, and nothing was
//! changed by then.
#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod convert;
pub mod mailbox;
pub mod original;
#[cfg(test)]
mod tests;
pub mod tree;

/// How many CPUs are converted; further ones are left as they are.
pub const MAX_CPUS: usize = 64;
