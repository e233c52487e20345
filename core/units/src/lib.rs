//! The units everything else counts in.
//!
//! A hypervisor juggles three address spaces and half a dozen kinds of small integer, all of them `u64` to the
//! machine. Mixing two of them up is the classic defect of the trade, so each is a type of its own here and raw
//! integers stop at the edge: a register is read, wrapped once, and from then on the compiler knows what it is.
//!
//! * [`Pa`]: a physical address of the host; [`Ipa`]: an intermediate physical address, what a guest takes for
//!   physical; [`Va`]: a virtual address, of EL2 or of a guest.
//! * [`Range`]: a half-open range of any of them, whose arithmetic never wraps.
//! * [`CpuId`], [`VmId`], [`VcpuId`], [`IntId`]: names of things. [`VcpuSet`]: some of a VM's virtual CPUs. [`Line`]: an
//!   interrupt line's level. [`Trigger`]: what of it is an interrupt.
//! * [`Direction`], [`AccessSize`], [`RegisterAccess`]: which way a load or store goes, how wide it is, and what it does with
//!   a register.
//! * [`DiskRequest`], [`DiskOutcome`]: what is asked of a disk, and how that ends.
//! * [`Hz`], [`Ticks`]: a counter's frequency and its value. [`Times`]: how often something happened, in words.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod access;
mod address;
mod disk;
mod names;
mod time;
mod times;

pub use access::{AccessSize, ByteOrder, Direction, RegisterAccess};
pub use address::{Address, Ipa, Pa, Range, Va};
pub use disk::{DiskOutcome, DiskRequest, SECTOR};
pub use names::{CpuId, IntId, Line, MAX_VCPUS, Trigger, VcpuId, VcpuSet, VmId};
pub use time::{Hz, Patience, Scale, Ticks};
pub use times::Times;

/// Bytes in the smallest page that stage 2 and EL2's own tables use (the 4 KiB granule).
pub const PAGE_SIZE: u64 = 4 << 10;
/// Bytes mapped by one level 2 block of the 4 KiB granule.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Bytes mapped by one level 1 block of the 4 KiB granule.
pub const GIGABYTE: u64 = 1 << 30;
/// Bits of a guest's physical address, on every host.
pub const IPA_BITS: u32 = 40;

#[cfg(test)]
mod tests {
    use super::{BLOCK_SIZE, GIGABYTE, PAGE_SIZE};

    /// The 4 KiB granule: a table is a page of entries of 8 bytes, each of which has what a whole table of the next level has.
    #[test]
    fn each_level_has_as_much_as_a_table_of_the_next() {
        let entries = PAGE_SIZE / 8;
        assert_eq!((PAGE_SIZE, BLOCK_SIZE, GIGABYTE), (0x1000, entries * PAGE_SIZE, entries * BLOCK_SIZE));
    }
}
