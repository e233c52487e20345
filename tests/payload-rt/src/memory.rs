//! Memory and device accesses outside of the payload's own image, by plain address.
//!
//! Each access is one instruction with a single general register and no writeback, the form whose abort carries a syndrome. Since the
//! address lies in no Rust object ([`outside_image`]), the functions are safe: at worst they fault, which [`crate::fault::catch`] sees.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::{image, machine};

/// Panics if the `size` bytes at `address` touch the payload's image.
#[inline(always)]
pub fn outside_image(address: u64, size: u64) {
    let own = image();
    let clear = address >= own.end || address.saturating_add(size) <= own.start;
    assert!(clear, "{address:#x} lies in the payload's own image");
}

macro_rules! access {
    ($read:ident $write:ident $type:ty, $load:literal, $store:literal) => {
        /// Loads from `address`; 0 if the load faulted and the fault was caught.
        #[inline(always)]
        #[must_use]
        pub fn $read(address: u64) -> $type {
            outside_image(address, size_of::<$type>() as u64);
            let mut value: u64 = 0;
            // SAFETY: no Rust object lies at this address.
            unsafe { asm!($load, value = inout(reg) value, address = in(reg) address, options(nostack)) };
            value as $type
        }

        /// Stores to `address`.
        #[inline(always)]
        pub fn $write(address: u64, value: $type) {
            outside_image(address, size_of::<$type>() as u64);
            // SAFETY: no Rust object lies at this address.
            unsafe { asm!($store, value = in(reg) u64::from(value), address = in(reg) address, options(nostack)) };
        }
    };
}

access!(read8 write8 u8, "ldrb {value:w}, [{address}]", "strb {value:w}, [{address}]");
access!(read16 write16 u16, "ldrh {value:w}, [{address}]", "strh {value:w}, [{address}]");
access!(read32 write32 u32, "ldr {value:w}, [{address}]", "str {value:w}, [{address}]");
access!(read64 write64 u64, "ldr {value}, [{address}]", "str {value}, [{address}]");

/// The address of the first 32 bytes in `range` (multiples of 32, outside of the image) that are not all zero.
#[must_use]
pub fn first_not_zero(range: core::ops::Range<u64>) -> Option<u64> {
    outside_image(range.start, range.end.saturating_sub(range.start));
    let mut at = range.start;
    // SAFETY: loads from memory that is no Rust object.
    unsafe {
        asm!(
            "2:", "cmp {at}, {end}", "b.hs 3f",
            "ldp {a}, {b}, [{at}]", "ldp {c}, {d}, [{at}, #16]",
            "orr {a}, {a}, {b}", "orr {c}, {c}, {d}", "orr {a}, {a}, {c}",
            "cbnz {a}, 3f", "add {at}, {at}, #32", "b 2b", "3:",
            at = inout(reg) at, end = in(reg) range.end, a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            options(nostack, readonly)
        );
    }
    (at < range.end).then_some(at)
}

/// Calls whatever code is at `address` (`BLR`), expecting the fetch to fault; if there is code it must return as the procedure call
/// standard says.
pub fn call(address: u64) {
    call_with(address, 0);
}

/// The same with a value in X0, and what X0 is then.
pub fn call_with(address: u64, x0: u64) -> u64 {
    outside_image(address, 4);
    let result;
    // SAFETY: outside of the image lies no code that Rust knows of; callers put a `RET` there or expect a fault.
    unsafe { asm!("blr {}", in(reg) address, inlateout("x0") x0 => result, clobber_abi("C")) };
    result
}

/// The next free page of RAM behind the image; 0 before the first use.
static NEXT_PAGE: AtomicU64 = AtomicU64::new(0);

/// Pages behind the image that tests may get: 16 MiB.
pub const ARENA_PAGES: u64 = 4096;

/// The blocks of 2 MiB of RAM in which nothing lies, and which only their receivers from this touch.
pub fn untouched_blocks() -> impl Iterator<Item = u64> {
    let end = arena().end;
    let is_free = |&block: &u64| {
        [&machine().device_tree, &machine().initrd]
            .iter()
            .all(|taken| taken.is_empty() || block + 0x20_0000 <= taken.start || taken.end <= block)
    };
    (end..machine().ram.end - 0x1f_ffff).step_by(0x20_0000).filter(is_free)
}

/// The RAM that [`pages`] hands out.
#[must_use]
pub fn arena() -> core::ops::Range<u64> {
    // Device tree and ramdisk are placed by others; take the first stretch behind the image that touches neither.
    let size = ARENA_PAGES * 4096;
    let mut start = image().end.next_multiple_of(0x20_0000);
    for taken in [&machine().device_tree, &machine().initrd] {
        if start < taken.end && taken.start < start + size {
            start = taken.end.next_multiple_of(0x20_0000);
        }
    }
    start..start + size
}

/// Takes `count` zeroed pages of 4 KiB of RAM, for devices and page tables; they are never given back.
pub fn pages(count: u64) -> u64 {
    let arena = arena();
    // Only the boot CPU allocates, so the first use needs no care.
    if NEXT_PAGE.load(Ordering::SeqCst) == 0 {
        NEXT_PAGE.store(arena.start, Ordering::SeqCst);
    }
    let start = NEXT_PAGE.fetch_add(count * 4096, Ordering::SeqCst);
    assert!(start + count * 4096 <= arena.end, "the arena is used up");
    for address in (start..start + count * 4096).step_by(8) {
        write64(address, 0);
    }
    start
}
