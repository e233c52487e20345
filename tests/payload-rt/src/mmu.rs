//! The identity map: one level-1 table of 512 blocks of 1 GiB (4 KiB granule, 39-bit addresses).
//!
//! The first gigabyte is Device memory (the map of the `virt` machine), the next 255 are Normal write-back memory, the rest Device
//! again (high PCIe windows, or nothing). Tests may put an entry of their own into a slot that is not in use, to build tables for the
//! walker to fall over.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sysreg;

/// MAIR_EL1: 0 = Normal write-back, 1 = Device-nGnRE, 2 = Normal non-cacheable.
pub const MAIR: u64 = 0x44_04_ff;
/// TCR_EL1 without IPS: T0SZ = 25, write-back inner-shareable walks, 4 KiB, TTBR1 off.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// SCTLR_EL1: the RES1 bits of Armv8.0, nTWE, nTWI, instruction cache, data cache, MMU.
pub const SCTLR: u64 = 0x30d0_0800 | 1 << 18 | 1 << 16 | 1 << 12 | 1 << 2 | 1;

/// A valid block, access flag set, read-write at EL1 only, never executable at EL0.
const BLOCK: u64 = 1 | 1 << 10 | 1 << 54;
/// Normal memory, inner shareable.
const NORMAL: u64 = 3 << 8;
/// Device-nGnRE, never executable.
const DEVICE: u64 = 1 << 2 | 1 << 53;

/// The first slot that maps nothing a payload needs: 256 GiB.
pub const FREE_SLOT: usize = 256;
/// A slot below 4 GiB behind the RAM of all payloads' machines, for code that has 32 bits only.
pub const LOW_SLOT: usize = 3;
/// Bytes that one slot maps.
pub const SLOT_SIZE: u64 = 1 << 30;

#[repr(C, align(4096))]
struct Tables([AtomicU64; 512]);

#[unsafe(no_mangle)]
static PAYLOAD_TABLES: Tables = Tables([const { AtomicU64::new(0) }; 512]);

/// Called by the entry code with the MMU off.
#[unsafe(no_mangle)]
extern "C" fn fill_tables() {
    for slot in 0..512 {
        PAYLOAD_TABLES.0[slot].store(default_entry(slot), Ordering::Relaxed);
    }
}

/// The entry of `slot` at the start.
#[must_use]
pub(crate) fn default_entry(slot: usize) -> u64 {
    let kind = if (1..FREE_SLOT).contains(&slot) { NORMAL } else { DEVICE };
    (slot as u64 * SLOT_SIZE) | BLOCK | kind
}

/// The descriptor of a block of Normal, executable memory at `address` (level-1 or level-2 alignment is the caller's matter).
#[must_use]
pub fn normal_block(address: u64) -> u64 {
    address | BLOCK | NORMAL
}

/// The descriptor of a table at `address`.
#[must_use]
pub fn table(address: u64) -> u64 {
    address | 3
}

/// Puts `entry` into `slot`, which must be [`FREE_SLOT`] or above, or [`LOW_SLOT`], and returns the virtual address that the slot maps.
pub fn set_slot(slot: usize, entry: u64) -> u64 {
    assert!(slot == LOW_SLOT || (FREE_SLOT..512).contains(&slot), "slot {slot} is in use");
    PAYLOAD_TABLES.0[slot].store(0, Ordering::SeqCst);
    sysreg::invalidate_tlb();
    PAYLOAD_TABLES.0[slot].store(entry, Ordering::SeqCst);
    sysreg::invalidate_tlb();
    slot as u64 * SLOT_SIZE
}

/// Maps `slot` as it was at the start.
pub fn reset_slot(slot: usize) {
    set_slot(slot, default_entry(slot));
}
