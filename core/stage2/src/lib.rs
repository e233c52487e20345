//! A guest's stage 2 translation tables.
//!
//! Stage 2 turns what a guest takes for physical addresses ([`Ipa`]) into the host's ([`Pa`]).
//! The tables use the 4 KiB granule and 40 bits of IPA, which is what every supported CPU offers: translation starts at
//! level 1 with two concatenated tables (Arm ARM DDI 0487, section D8.2, "concatenated translation tables"), so a walk
//! has at most three steps: 1 GiB, 2 MiB, 4 KiB.
//!
//! Hardware walks these tables at any moment on any CPU and may keep what it saw. Three rules follow, and this crate is
//! built so that its callers cannot forget them:
//!
//! * **Break before make** (section D8.16): a live entry never turns into another one with a different address, size or
//!   memory type. It is cleared, the clearing is made known to every CPU, and only then the new entry is written. The
//!   order is not left to the caller: every changing operation takes a [`TlbOps`] and calls it in between.
//! * **No table page is freed while a walker may still hold a pointer to it**: pages are returned to the
//!   [`TableMemory`] only after the invalidation that covers them.
//! * **A new table is complete before it is linked**: [`TlbOps::publish`] stands between the two.
//!
//! Permission changes need no break, only an invalidation afterwards, so making one page executable at its first fetch
//! costs a split of its block at most once, and later one store and one invalidation. Which pages a guest may execute,
//! and the maintenance of caches before it may, is in `coherency.rs`.
//!
//! While an entry is broken other vCPUs of the VM may take a translation fault on it. All operations on one VM's tables
//! must be under one lock, and a fault handler that gets the lock must first [`Stage2::translate`]: if the access is
//! now allowed, another vCPU has already resolved the fault, and the instruction is simply executed again.
//!
//! This crate only computes. It reads and writes tables through [`TableMemory`], so the same code runs in a test
//! against a model of a TLB that remembers everything it is allowed to remember.
#![no_std]
#![forbid(unsafe_code)]

mod coherency;
mod control;
mod descriptor;
mod edit;
mod hold;
#[cfg(test)]
mod incoherent;
mod maintenance;
mod memory;
#[cfg(test)]
mod model;
mod tables;
#[cfg(test)]
mod tests;

pub use coherency::{Allowed, Effects, Hardware, MOST, Policy, Promotion, Rules, Writable};
pub use control::{IPA_SIZE, vtcr_el2, vttbr_el2};
pub use descriptor::{Attributes, Level, MemoryType, Permissions, Software};
pub use maintenance::{CacheKind, Caches, Point, Step, steps};
pub use memory::{Invalidation, TableMemory, TlbOps};
pub use tables::{Mapping, Stage2};

use units::{Ipa, Pa};

/// What can go wrong with a guest's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stage2Error {
    /// An address or a size that is no multiple of 4 KiB, or a size of zero.
    #[error("stage 2 range at {0} is not made of whole 4 KiB pages; align its start and size, and make it non-empty")]
    Unaligned(Ipa),
    /// The range does not fit into the 40 bits of a guest's address space.
    #[error("stage 2 range at {0} leaves the 40-bit guest address space; it must end at or below 0x100_0000_0000")]
    OutOfSpace(Ipa),
    /// The output address is unaligned or does not fit into the 48 bits of a descriptor.
    #[error("stage 2 output address {0} must be a multiple of 4 KiB below 2^48, and so must the end of its range")]
    BadOutput(Pa),
    /// Something is mapped there already.
    #[error("guest address {0} is mapped already; unmap it first or change its attributes instead")]
    AlreadyMapped(Ipa),
    /// The hypervisor is to store into guest memory that is not mapped, or not in one piece.
    #[error("guest address {0} is not mapped in one piece with what is before it; store up to there")]
    Apart(Ipa),
    /// No memory for another table.
    #[error("no memory left for a stage 2 table; give the VM's table account more frames")]
    OutOfTables,
    /// The host's physical address range is too small.
    #[error("ID_AA64MMFR0_EL1.PARange is {0}; stage 2 needs a CPU with at least 40 physical address bits (PARange 2)")]
    PhysicalRange(u64),
}
