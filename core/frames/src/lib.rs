//! Who owns each piece of the host's RAM.
//!
//! The unit is the block of 2 MiB, which is also what guests are given, so that stage 2 can map them with blocks. A block
//! costs eight bytes of metadata ([`BlockState`]); nothing here ever looks at every 4 KiB frame of the machine, and adding
//! 64 GiB at boot is one fill of 256 KiB. Blocks of which only parts are used (the hypervisor's own frames, a guest's
//! tables, blocks that firmware or an image occupies in part) are *carved*: they have a record with one bit per frame
//! ([`CarvedBlock`]). A carved block serves one owner at a time, so a VM's tables never share a block with another's.
//!
//! **Scrubbing.** The contents of RAM at reset belong to somebody, and so does what an owner leaves behind: free blocks
//! are dirty unless known to be zero. An allocation says so in its type: it is [`Allocation::Clean`], or
//! [`Allocation::Unscrubbed`], from which the memory comes out only through [`Unscrubbed::scrubbed`], the promise that
//! it was zeroed. A guest's RAM is not zeroed when it is allocated (a guest may never touch most of it) but block by
//! block at the first touch: [`FrameAllocator::first_touch`]. Idle CPUs zero free blocks ahead:
//! [`FrameAllocator::next_dirty_free_block`].
//!
//! The allocator never touches the memory that it hands out. It has no lock: its owner has one.
#![no_std]
#![forbid(unsafe_code)]

mod allocator;
mod audit;
mod blocks;
mod carved;
mod geometry;
mod handles;
mod small;
mod state;
#[cfg(test)]
mod tests;

pub use allocator::{FrameAllocator, MAX_RUNS, MAX_VMS, Release, Run, Runs, metadata_len};
pub use audit::AuditError;
pub use carved::CarvedBlock;
pub use handles::{Allocation, Extent, Unscrubbed};
pub use state::BlockState;

use units::{Pa, VmId};

/// Whose a piece of RAM is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    /// Nobody's: to be had.
    Free,
    /// Firmware's, or an image's or another thing's that was in RAM when the hypervisor started.
    Reserved,
    /// The hypervisor's own.
    Hypervisor,
    /// A guest's RAM.
    Guest(VmId),
    /// The hypervisor's, on the account of a guest: its stage 2 tables and whatever else exists only for it.
    Tables(VmId),
    /// Seen by more than one guest.
    Shared,
    /// Given to an enclave; not even the hypervisor looks at it.
    Enclave,
}

/// RAM by owner, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All RAM that was added; the sum of the others.
    pub total: u64,
    /// In whole free blocks.
    pub free: u64,
    /// Of `free`: known to be zero.
    pub free_clean: u64,
    /// Free blocks that somebody is scrubbing at the moment.
    pub scrubbing: u64,
    /// Free frames in carved blocks: not available as blocks.
    pub spare: u64,
    /// [`Owner::Reserved`].
    pub reserved: u64,
    /// [`Owner::Hypervisor`].
    pub hypervisor: u64,
    /// [`Owner::Guest`], all guests together.
    pub guest: u64,
    /// [`Owner::Tables`], all guests together.
    pub tables: u64,
    /// [`Owner::Shared`].
    pub shared: u64,
    /// [`Owner::Enclave`].
    pub enclave: u64,
}

/// RAM that exists for one VM, in frames of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmUsage {
    /// [`Owner::Guest`].
    pub guest: u64,
    /// [`Owner::Tables`].
    pub tables: u64,
}

/// What can go wrong with frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FramesError {
    /// The metadata is too short for the span.
    #[error("frame metadata has {got} entries, but the RAM spans {needed} blocks of 2 MiB; hand in that many")]
    MetadataTooShort {
        /// Entries handed in.
        got: usize,
        /// Entries needed.
        needed: usize,
    },
    /// Memory outside of the span that the allocator was made for.
    #[error("address {0} lies outside of the RAM that the frame metadata spans")]
    OutsideSpan(Pa),
    /// Memory was added twice.
    #[error("RAM at {0} was added already; the host's memory map must not overlap itself")]
    Overlap(Pa),
    /// Memory to be reserved or scrubbed is in use.
    #[error("RAM at {0} has another owner already; reserve memory before anything is allocated")]
    InUse(Pa),
    /// What is freed or touched is not owned by the one who is said to own it, or is free already.
    #[error("RAM at {0} does not belong to {1:?}")]
    NotOwned(Pa, Owner),
    /// Not as much memory as wanted is free.
    #[error("{wanted} blocks of 2 MiB are wanted and {free} are free; give the VMs less memory or the host more")]
    OutOfBlocks {
        /// Blocks wanted.
        wanted: usize,
        /// Blocks free.
        free: usize,
    },
    /// There is enough memory, but in too many pieces.
    #[error("{0} blocks of 2 MiB are free only in more pieces than one allocation may have")]
    Fragmented(usize),
    /// No frame is left, or no record to carve another block.
    #[error("no 4 KiB frames left: neither a carved block of this owner has room, nor can another block be carved")]
    OutOfFrames,
    /// A number of frames that one call cannot allocate.
    #[error("{0} frames cannot be allocated at once; ask for a power of two from 1 to 64, or for whole blocks")]
    BadCount(usize),
    /// A range that is not made of whole frames.
    #[error("the range at {0} is not made of whole 4 KiB frames")]
    Unaligned(Pa),
    /// A VM number above the limit.
    #[error("VM number {vm} is above the limit of {limit} VMs", vm = .0.0, limit = MAX_VMS)]
    BadVm(VmId),
    /// An owner that cannot be given memory in this way.
    #[error("memory cannot be allocated in this way for {0:?}")]
    BadOwner(Owner),
}
