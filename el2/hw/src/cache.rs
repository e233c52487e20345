//! Cache maintenance, and zeroing of memory that only the caller uses at the time.

use core::sync::atomic::{AtomicU64, Ordering};

use stage2::{CacheKind, Step};
use units::{Pa, Range};

use crate::sysreg::{ccsidr_el1, clidr_el1, csselr_el1, ctr_el0, dczid_el0, dsb_ish, dsb_sy, id_aa64mmfr2_el1, isb};

/// What serves all CPUs that have come up, as a CTR_EL0 ([`CacheKind::as_ctr`]); 0 until the first has.
static KIND: AtomicU64 = AtomicU64::new(0);

/// Takes this CPU's caches into account. Once per CPU, before a guest runs on it.
pub fn join() {
    let mine = CacheKind::of(ctr_el0());
    let with_mine = |all: u64| if all == 0 { mine } else { CacheKind::of(all).with(mine) };
    let update = |all| Some(with_mine(all).as_ctr());
    // The closure always has a value, so the result says nothing.
    let _ = KIND.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
}

/// Leaves nothing out from now on because CTR_EL0 says so. After the first [`join`].
pub fn distrust() {
    let _ =
        KIND.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(CacheKind::of(all).distrusted().as_ctr()));
}

/// What serves all CPUs.
#[must_use]
pub fn kind() -> CacheKind {
    CacheKind::of(KIND.load(Ordering::Relaxed))
}

fn data_line() -> u64 {
    4 << (ctr_el0() >> 16 & 0xf)
}

fn instruction_line() -> u64 {
    4 << (ctr_el0() & 0xf)
}

/// Size, sets and line length in bytes of the first-level instruction and data caches (CLIDR_EL1, CCSIDR_EL1), if they
/// are separate.
#[must_use]
pub fn first_level() -> Option<[(u32, u32, u32); 2]> {
    if clidr_el1() & 7 != 3 {
        return None;
    }
    let before = csselr_el1::read();
    let shape = |select: u64| {
        csselr_el1::write(select);
        isb();
        let value = ccsidr_el1();
        // FEAT_CCIDX has wider fields.
        let (ways, sets) = if id_aa64mmfr2_el1() >> 20 & 0xf == 1 {
            ((value >> 3 & 0x1f_ffff) + 1, (value >> 32 & 0xff_ffff) + 1)
        } else {
            ((value >> 3 & 0x3ff) + 1, (value >> 13 & 0x7fff) + 1)
        };
        let line = 16_u64 << (value & 7);
        ((ways * sets * line) as u32, sets as u32, line as u32)
    };
    let shapes = [shape(1), shape(0)];
    csselr_el1::write(before);
    Some(shapes)
}

fn lines_between(first: u64, behind: u64, line: u64) -> u64 {
    (behind - first) >> line.trailing_zeros()
}

/// Maintains a range line by line, eight a turn where that many are left: it is the whole image at the start, and a page at each
/// first fetch from it. How many lines that were.
macro_rules! by_lines {
    ($range:expr, $line:expr, $instruction:literal) => {{
        let (line, end) = ($line, $range.end().0);
        let first = $range.start.0 & !(line - 1);
        let mut address = first;
        while end.saturating_sub(address) >= 8 * line {
            // SAFETY: maintenance by address of mapped memory; it moves data between caches and memory, changing none.
            unsafe {
                core::arch::asm!(
                    $instruction, "add {a}, {a}, {b}", $instruction, "add {a}, {a}, {b}",
                    $instruction, "add {a}, {a}, {b}", $instruction, "add {a}, {a}, {b}",
                    $instruction, "add {a}, {a}, {b}", $instruction, "add {a}, {a}, {b}",
                    $instruction, "add {a}, {a}, {b}", $instruction, "add {a}, {a}, {b}",
                    a = inout(reg) address, b = in(reg) line, options(nostack, preserves_flags),
                );
            }
        }
        while address < end {
            // SAFETY: as above.
            unsafe { core::arch::asm!($instruction, a = in(reg) address, options(nostack, preserves_flags)) };
            address += line;
        }
        lines_between(first, address, line)
    }};
}

/// Writes dirty lines of `range` back to memory and drops them all, to the point of coherency: for what was, or will be,
/// accessed with caches off.
pub fn clean_and_invalidate(range: Range<Pa>) {
    by_lines!(range, data_line(), "dc civac, {a}");
    dsb_sy();
}

/// Makes instructions of our own in `range` executable at EL1, even with its caches off: data to the point of coherency,
/// instruction caches emptied of it. What guests execute goes by [`carry_out`].
pub fn publish_code(range: Range<Pa>) {
    by_lines!(range, data_line(), "dc cvac, {a}");
    // The instructions are in memory before the instruction caches are emptied, or those could be filled again with what was there.
    dsb_ish();
    // VIPT or VPIPT instruction caches (CTR_EL0.L1Ip) hold lines under virtual addresses that are not ours.
    if ctr_el0() >> 14 & 3 == 3 {
        by_lines!(range, instruction_line(), "ic ivau, {a}");
    } else {
        // SAFETY: emptying instruction caches changes no data.
        unsafe { core::arch::asm!("ic ialluis", options(nostack, preserves_flags)) };
    }
    dsb_ish();
    isb();
}

/// Writes `range` back to memory, where a guest with its caches off looks.
pub fn clean(range: Range<Pa>) {
    by_lines!(range, data_line(), "dc cvac, {a}");
    dsb_ish();
}

/// How often instruction caches were emptied of a guest's memory, a stretch of it or all.
static FORGOTTEN: AtomicU64 = AtomicU64::new(0);

/// How often instruction caches were emptied of a guest's memory, since the start.
#[must_use]
pub fn forgotten_instructions() -> u64 {
    FORGOTTEN.load(Ordering::Relaxed)
}

/// Does one step of what makes instruction and data caches agree. The ranges are RAM, which EL2 maps where it is; so a cache
/// that is found by physical address is found by these addresses too, and for others the step is another one. How many
/// lines it came by; 1 if it was all of a cache.
pub fn carry_out(step: Step) -> u64 {
    match step {
        Step::CleanToUnification { range, line } => by_lines!(range, line, "dc cvau, {a}"),
        Step::CleanToCoherency { range, line } => by_lines!(range, line, "dc cvac, {a}"),
        Step::InvalidateLines { range, line } => {
            FORGOTTEN.fetch_add(1, Ordering::Relaxed);
            by_lines!(range, line, "ic ivau, {a}")
        }
        Step::InvalidateAll => {
            FORGOTTEN.fetch_add(1, Ordering::Relaxed);
            // SAFETY: emptying instruction caches changes no data.
            unsafe { core::arch::asm!("ic ialluis", options(nostack, preserves_flags)) };
            1
        }
        Step::WaitForClean | Step::WaitForInvalidation => {
            dsb_ish();
            0
        }
        Step::Synchronize => {
            isb();
            0
        }
    }
}

/// Writes zeroes over `range`, a multiple of 4 KiB of RAM, and cleans it to the point of coherency, so that a guest with
/// its caches off reads zeroes too.
///
/// The caller owns the memory: it comes from the frame allocator and nobody holds a reference into it.
pub fn zero(range: Range<Pa>) {
    debug_assert!(range.start.is_aligned(units::PAGE_SIZE) && range.size.is_multiple_of(units::PAGE_SIZE));
    let dczid = dczid_el0();
    let block = 4 << (dczid & 0xf);
    if dczid & 0x10 == 0 && block == data_line() && block * 16 <= units::PAGE_SIZE {
        zero_lines(range, block);
        dsb_ish();
        return;
    }
    if dczid & 0x10 == 0 && (64..=units::PAGE_SIZE).contains(&block) {
        zero_blocks(range, block);
    } else {
        let words = (range.size / 8) as usize;
        // SAFETY: the range is RAM that the caller owns, mapped read-write where it is.
        unsafe {
            core::ptr::write_bytes(core::ptr::with_exposed_provenance_mut::<u64>(range.start.0 as usize), 0, words)
        };
    }
    by_lines!(range, data_line(), "dc cvac, {a}");
    dsb_ish();
}

/// Zeroes and cleans line by line, where `DC ZVA` takes just one. The two need no barrier between them: maintenance of an
/// address comes after the accesses to its line that stand before it (DDI 0487, D7.5, "Ordering and completion of data and
/// instruction cache instructions"). Half the instructions of two passes, and a line is cleaned while it is near.
fn zero_lines(range: Range<Pa>, line: u64) {
    let (mut address, end) = (range.start.0, range.end().0);
    while address < end {
        // SAFETY: zeroes and cleans sixteen lines inside a range that the caller owns, mapped read-write where it is: 4 KiB
        // is a multiple of sixteen lines.
        unsafe {
            core::arch::asm!(
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "dc cvac, {a}", "add {a}, {a}, {b}",
                a = inout(reg) address, b = in(reg) line, options(nostack, preserves_flags),
            );
        }
    }
}

fn zero_blocks(range: Range<Pa>, block: u64) {
    let (mut address, end) = (range.start.0, range.end().0);
    // 4 KiB is a multiple of 8 blocks of up to 512 bytes; larger ones go one at a time.
    let unroll = block * 8 <= units::PAGE_SIZE;
    while address < end {
        if unroll {
            // SAFETY: zeroes eight blocks inside a range that the caller owns, mapped read-write where it is.
            unsafe {
                core::arch::asm!(
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    a = inout(reg) address, b = in(reg) block, options(nostack, preserves_flags),
                );
            }
        } else {
            // SAFETY: as above, one block.
            unsafe { core::arch::asm!("dc zva, {}", in(reg) address, options(nostack, preserves_flags)) };
            address += block;
        }
    }
}
