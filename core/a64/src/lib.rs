//! What a load or store does, for the aborts whose syndrome does not say.
//!
//! When a guest touches an emulated device, ESR_EL2 describes the access only for a load or store of one
//! general-purpose register without writeback. The rest (pairs, pre- and post-indexed forms, DC ZVA) leave ISV clear,
//! and the hypervisor has to read the instruction and understand it. That is rare: a compiler may emit such an access
//! to a device, but drivers avoid it. So the decoder covers what can sensibly be emulated and names what it refuses:
//! SIMD registers, exclusives, atomics and the like make no sense on a device, and the guest gets an abort for them.
//!
//! [`decode`] turns an instruction word into an [`Instruction`]; [`Transfer::resolve`] computes the address and the
//! writeback from the registers. The caller performs the accesses, in order, and only then writes registers back, so
//! that a fault on the second access of a pair leaves the guest as it was.
//!
//! The tables are those of DDI 0487 C4.1.94 ("Loads and Stores"). Two disassemblers written by others check this
//! decoder over every class of load and store.
#![no_std]
#![forbid(unsafe_code)]

mod decode;
mod transfer;

pub use decode::decode;
pub use transfer::{Addressing, Base, Extension, Resolved, Transfer};

/// What an instruction word asks of memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Instruction {
    /// One or two general-purpose registers are loaded or stored.
    Transfer(Transfer),
    /// DC ZVA: the block around the address in register `rt` (31 for XZR) becomes zero. The block's size is DCZID_EL0's.
    ZeroBlock {
        /// Number of the register.
        rt: u8,
    },
    /// Another cache maintenance instruction on the address in register `rt`: nothing to do on a device.
    CacheMaintenance {
        /// Number of the register.
        rt: u8,
    },
    /// A prefetch: nothing to do.
    Prefetch,
}

/// Why an instruction is not emulated. The guest gets a data abort.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Unsupported {
    /// SIMD and floating-point registers.
    #[error("a load or store of SIMD registers is not emulated")]
    Simd,
    /// Load-exclusive and store-exclusive.
    #[error("an exclusive load or store is not emulated")]
    Exclusive,
    /// Compare and swap, swap, and the atomic arithmetic; also the 64-byte accesses, which share its class.
    #[error("an atomic access is not emulated")]
    Atomic,
    /// Memory tagging.
    #[error("an access to memory tags is not emulated")]
    Tag,
    /// LDRAA and LDRAB.
    #[error("a load with pointer authentication is not emulated")]
    Authenticated,
    /// The architecture leaves open what happens: the base register of a writeback is also a data register, or both
    /// registers of a loaded pair are the same.
    #[error("a load or store with overlapping registers is unpredictable and not emulated")]
    Unpredictable,
    /// A load or store without a meaning, or newer than this decoder.
    #[error("a load or store of an unknown form is not emulated")]
    Unallocated,
    /// No load, store or cache maintenance at all.
    #[error("the instruction does not access memory")]
    NotMemory,
}
