//! Physical memory seen as bytes: what EL2 copies into and out of guests and tables.
//!
//! Guests change their memory while we look at it, so there is never a Rust reference to it: bytes are copied once into
//! our memory, and only the copy is checked and used. The copy is not made of volatile accesses, which would be one
//! byte each; an empty piece of assembly after it keeps the compiler from reading the original again (docs/unsafe.md).

use core::ptr;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use stage2::Writable;
use units::{Pa, Range};

/// Copies guest memory at `from` into `to`. The caller has checked that the bytes are RAM that a guest owns.
pub fn read(from: Pa, to: &mut [u8]) {
    let source = ptr::with_exposed_provenance::<u8>(from.0 as usize);
    // SAFETY: the frame allocator gave these frames to a guest; EL2 maps all RAM where it is, read-write, and holds no
    // reference into frames of guests.
    unsafe { copy(source, to.as_mut_ptr(), to.len()) };
}

/// Copies `from` into guest memory, as much as there is place: `to` says that no CPU executes what is there.
pub fn write(to: &Writable<'_>, from: &[u8]) {
    let target = ptr::with_exposed_provenance_mut::<u8>(to.range().start.0 as usize);
    let length = from.len().min(to.range().size as usize);
    // SAFETY: as in `read`; a `Writable` is RAM that a guest's tables show to it.
    unsafe { copy(from.as_ptr(), target, length) };
}

/// Copies `from` to `to`, as far as it lies in one frame. The caller has checked that a guest owns it, and that no CPU executes or sees what
/// is there.
pub fn write_frame(to: Pa, from: &[u8]) {
    let target = ptr::with_exposed_provenance_mut::<u8>(to.0 as usize);
    let length = from.len().min(4096 - (to.0 % 4096) as usize);
    // SAFETY: as in `read`; a reference has nothing in common with a guest's frame.
    unsafe { copy(from.as_ptr(), target, length) };
}

/// Copies guest memory at `from` to other guest memory, or the same, as much as there is place: `to` says that no CPU executes what is there.
/// The caller has checked that so many bytes at `from` are RAM that a guest owns.
pub fn pass_on(from: Pa, to: &Writable<'_>) {
    let source = ptr::with_exposed_provenance::<u8>(from.0 as usize);
    let target = ptr::with_exposed_provenance_mut::<u8>(to.range().start.0 as usize);
    // SAFETY: as in `read` and `write`; the two may overlap, and nothing is read that was copied.
    unsafe { ptr::copy(source, target, to.range().size as usize) };
}

/// Copies guest memory at `from` to `to`. The caller has checked that both are whole frames that a guest owns, and that no CPU
/// executes or sees what is at `to`.
pub fn copy_frames(from: Range<Pa>, to: Pa) {
    let source = ptr::with_exposed_provenance::<u8>(from.start.0 as usize);
    let target = ptr::with_exposed_provenance_mut::<u8>(to.0 as usize);
    // SAFETY: as in `read`, on both sides; two frames are one or have nothing in common.
    unsafe { copy(source, target, from.size as usize) };
}

/// Copies `length` bytes.
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`], but that the source may change meanwhile: each byte is read once (`bytes`).
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { ptr::copy_nonoverlapping(from, to, length) };
    // Without this the compiler may take the copy for equal to its source for as long as it sees no store there, and read
    // the source again in its place: a guest could then change what was checked. For all that the compiler knows this
    // writes to both.
    // SAFETY: there is no instruction in it.
    unsafe {
        core::arch::asm!("/* {from} {to} */", from = in(reg) from, to = in(reg) to, options(nostack, preserves_flags))
    };
}

/// Bytes that are summed up at once.
const BLOCK: usize = 64;

/// A 64-bit word of a translation table that the hardware walks, at `table` + 8 × `index`.
#[must_use]
pub fn read_entry(table: Pa, index: usize) -> u64 {
    // SAFETY: tables are whole frames of the caller's; the entry is aligned and only accessed atomically.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(table.0 as usize + 8 * index) }.load(Ordering::Relaxed)
}

/// Stores a 64-bit word of a translation table that the hardware walks; ordered after all earlier stores.
pub fn write_entry(table: Pa, index: usize, value: u64) {
    // SAFETY: as in `read_entry`.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(table.0 as usize + 8 * index) }
        // Pairs with the walk of the hardware, which reads the entry first and then what it leads to.
        .store(value, Ordering::Release);
}

/// Stores a 64-bit word that a guest may read at any time, and neither write nor execute: a record of ours, not the guest's
/// memory. `to` must be a multiple of 8, in frames that the caller owns.
pub fn write_word(to: Pa, value: u64) {
    // SAFETY: RAM of the caller's, mapped where it is; aligned, and accessed as a whole by both sides.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(to.0 as usize & !7) }.store(value, Ordering::Relaxed);
}

/// Stores word `index` of a page of ours that a guest may read at any time, as [`write_word`] does; seen behind all stores before it, also
/// by a guest whose caches are off.
pub fn publish_word(page: Pa, index: usize, value: u64) {
    let to = (page.0 as usize & !7) + 8 * (index & 511);
    // SAFETY: as in `write_word`.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU64>(to) }
        // Pairs with the barriers of the guest's reader, which looks at a count, at what it counts, and at the count again.
        .store(value, Ordering::Release);
    crate::cache::clean(Range { start: Pa(to as u64), size: 8 });
}

/// Reads a 16-bit index that a guest's driver publishes; later reads are not moved before it. `from` must be even.
#[must_use]
pub fn read_index(from: Pa) -> u16 {
    // SAFETY: an even address in guest RAM, as in `read`; a guest's concurrent plain store is atomic for the hardware.
    // Pairs with the barrier by which the guest's driver publishes the index, behind the entries that it counts.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU16>(from.0 as usize & !1) }.load(Ordering::Acquire)
}

/// Publishes a 16-bit index to a guest's driver, after all earlier writes. `to` must be even.
pub fn write_index(to: &Writable<'_>, value: u16) {
    let to = to.range().start.0 as usize & !1;
    // SAFETY: as in `read_index`.
    // Pairs with the barrier behind the driver's look at the index.
    unsafe { &*ptr::with_exposed_provenance::<AtomicU16>(to) }.store(value, Ordering::Release);
}

/// Memory that stays as it is for ever, as a slice: the device tree and the bundle, which lie in RAM that is reserved
/// before anything else can own it.
#[must_use]
pub fn constant(start: Pa, size: u64) -> &'static [u8] {
    // SAFETY: the callers pass what the loader placed and the platform reserves; nothing writes there afterwards.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(start.0 as usize), size as usize) }
}

/// A fresh range of memory as a slice of zeroes for the hypervisor's own use, for ever. The caller passes frames that
/// nothing else owns.
#[must_use]
pub fn claim(start: Pa, size: u64) -> &'static mut [u8] {
    let start = ptr::with_exposed_provenance_mut::<u8>(start.0 as usize);
    // SAFETY: the caller owns the frames and gives them up; they are mapped read-write where they are.
    unsafe {
        ptr::write_bytes(start, 0, size as usize);
        core::slice::from_raw_parts_mut(start, size as usize)
    }
}

/// The CRC-32C of `bytes` continued from `seed`, by the CPU's own instructions (FEAT_CRC32, required at boot).
#[must_use]
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut crc = !seed;
    let is_aligned = bytes.as_ptr().addr() & 7 == 0;
    let (blocks, rest) = if is_aligned { bytes.as_chunks::<BLOCK>() } else { (&[][..], bytes) };
    for block in blocks {
        // SAFETY: reads the block, which is aligned for it, and computes; the host was checked to have the instruction.
        unsafe {
            core::arch::asm!(
                ".arch_extension crc",
                "ldp {a}, {b}, [{block}]",
                "ldp {c}, {d}, [{block}, 16]",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "ldp {a}, {b}, [{block}, 32]",
                "crc32cx {crc:w}, {crc:w}, {c}",
                "crc32cx {crc:w}, {crc:w}, {d}",
                "ldp {c}, {d}, [{block}, 48]",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "crc32cx {crc:w}, {crc:w}, {c}",
                "crc32cx {crc:w}, {crc:w}, {d}",
                block = in(reg) block.as_ptr(), crc = inout(reg) crc,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        // SAFETY: an arithmetic instruction; the host was checked to have it.
        unsafe {
            core::arch::asm!(".arch_extension crc", "crc32cx {0:w}, {0:w}, {1}", inout(reg) crc, in(reg) word,
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    for &byte in rest {
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(".arch_extension crc", "crc32cb {0:w}, {0:w}, {1:w}", inout(reg) crc, in(reg) u32::from(byte),
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    !crc
}

/// As [`claim`], but as it is: for memory whose contents do not matter.
#[must_use]
pub fn claim_unzeroed(start: Pa, size: u64) -> &'static mut [u8] {
    let start = ptr::with_exposed_provenance_mut::<u8>(start.0 as usize);
    // SAFETY: the caller owns the frames and gives them up; they are mapped read-write where they are. Any bytes are
    // valid `u8`s.
    unsafe { core::slice::from_raw_parts_mut(start, size as usize) }
}

/// Two arrays in one fresh range of memory, one behind the other: `(length, value)` each. For the frame allocator's own
/// records, before there is an allocator.
///
/// # Panics
/// If the range is too small: a defect of the caller.
#[must_use]
pub fn claim_metadata<A: Copy, B: Copy>(
    range: Range<Pa>,
    first: (usize, A),
    second: (usize, B),
) -> (&'static mut [A], &'static mut [B]) {
    let start = range.start.0 as usize;
    let middle = (start + first.0 * size_of::<A>()).next_multiple_of(align_of::<B>());
    assert!(
        start.is_multiple_of(align_of::<A>()) && (middle + second.0 * size_of::<B>()) as u64 <= range.end().0,
        "the range for the allocator's records is too small"
    );
    (fill(start, first), fill(middle, second))
}

fn fill<T: Copy>(address: usize, (length, value): (usize, T)) -> &'static mut [T] {
    let pointer = ptr::with_exposed_provenance_mut::<core::mem::MaybeUninit<T>>(address);
    // SAFETY: `claim_metadata` checked alignment and room; the memory is the caller's, given up for ever. Every element
    // is written before the slice of `T` is made.
    unsafe {
        let slice = core::slice::from_raw_parts_mut(pointer, length);
        slice.fill(core::mem::MaybeUninit::new(value));
        core::slice::from_raw_parts_mut(pointer.cast::<T>(), length)
    }
}
