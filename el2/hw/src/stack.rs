//! Stacks with guards, and what is known of the image they run.
//!
//! A stack is the upper half of a 64 KiB slot aligned to its size; the lower half is never mapped. A stack pointer that
//! overflowed therefore has bit 15 clear, which the vectors test without a free register, and a store beyond the end
//! faults instead of reaching a neighbour.

use units::{PAGE_SIZE, Pa, Range, Va};

use crate::mmu::{self, Kind, MapError};

/// Bytes of one stack.
pub const SIZE: u64 = 32 << 10;
/// Frames of one stack.
pub const FRAMES: usize = (SIZE / PAGE_SIZE) as usize;
/// Bytes of a stack's slot: guard and stack.
const SLOT: u64 = 2 * SIZE;
/// Where the slots lie: slot 254 of the top-level table, shared by all CPUs.
const BASE: u64 = 0x7f00_0000_0000;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static __boot_stack: u8;
}

/// The parts of the image, as the linker laid them out, at the addresses where they are now.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Header, code.
    pub text: Range<Pa>,
    /// Constants.
    pub rodata: Range<Pa>,
    /// Data, the boot CPU's stack, BSS.
    pub data: Range<Pa>,
    /// The unmapped half of the boot CPU's stack slot, inside `data`.
    pub boot_guard: Range<Pa>,
}

impl Image {
    /// All of it.
    #[must_use]
    pub fn whole(&self) -> Range<Pa> {
        Range { start: self.text.start, size: self.data.end().0 - self.text.start.0 }
    }
}

/// Where the image is.
#[must_use]
pub fn image() -> Image {
    let start = (&raw const __image_start).addr() as u64;
    let text_end = (&raw const __text_end).addr() as u64;
    let rodata_end = (&raw const __rodata_end).addr() as u64;
    let end = (&raw const __image_end).addr() as u64;
    let boot_stack = (&raw const __boot_stack).addr() as u64;
    let part = |from: u64, to: u64| Range { start: Pa(from), size: to - from };
    Image {
        text: part(start, text_end),
        rodata: part(text_end, rodata_end),
        data: part(rodata_end, end),
        boot_guard: part(boot_stack, boot_stack + SIZE),
    }
}

/// The image's first byte: what offsets in crash reports count from.
#[must_use]
pub fn image_base() -> u64 {
    (&raw const __image_start).addr() as u64
}

/// Maps stack number `slot` over its frames and returns its top.
///
/// # Errors
/// When no frame is left for the tables.
pub fn map(slot: u64, frames: [Pa; FRAMES]) -> Result<Va, MapError> {
    let bottom = BASE + slot * SLOT + SIZE;
    for (page, frame) in frames.into_iter().enumerate() {
        mmu::map(Va(bottom + page as u64 * PAGE_SIZE), frame, PAGE_SIZE, Kind::Data)?;
    }
    Ok(Va(bottom + SIZE))
}

/// The frame record (AAPCS64) at `address`: the caller's frame pointer and the return address. `None` where no record
/// can be, which ends a backtrace.
pub(crate) fn frame_record(address: u64) -> Option<(u64, u64)> {
    let image = image();
    let on_boot_stack = image.data.contains(Pa(address));
    let on_a_stack = address >> 39 == BASE >> 39 && address & SIZE != 0;
    if !address.is_multiple_of(8) || !(on_boot_stack || on_a_stack) || (address + 8) & SIZE == 0 && on_a_stack {
        return None;
    }
    // SAFETY: the address lies in the image's data or in the mapped half of a stack slot; should that slot not be in
    // use, the read faults and ends this CPU's report early (a crash inside a crash only stops).
    let record = unsafe { core::ptr::with_exposed_provenance::<[u64; 2]>(address as usize).read_volatile() };
    (record[1] != 0).then_some((record[0], record[1]))
}
