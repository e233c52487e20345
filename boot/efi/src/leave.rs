//! The last instructions before the hypervisor's first (Linux, "Booting AArch64 Linux", section 4): MMU and caches off, what was written
//! in memory, interrupts masked.

use core::arch::asm;
use units::{Pa, Range};

/// The exception level at which this runs.
pub(crate) fn exception_level() -> u64 {
    let level: u64;
    // SAFETY: reads a register that every level has, and nothing else.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
    level >> 2 & 3
}

/// Bytes in the shortest line of a data cache (CTR_EL0.DminLine: the logarithm of its words).
fn line() -> u64 {
    let ctr: u64;
    // SAFETY: as above.
    unsafe { asm!("mrs {}, CTR_EL0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    4 << (ctr >> 16 & 0xf)
}

/// Writes what the caches have of `range` to memory, where a CPU finds it whose caches are off.
fn clean(range: Range<Pa>) {
    let line = line();
    let mut at = range.start.0 & !(line - 1);
    while at < range.end().0 {
        // SAFETY: the memory is RAM that firmware has mapped where it is; cleaning and invalidating changes no data.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    // SAFETY: waits, and nothing else.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Enters the image that begins at `image`, with the device tree at `tree`. All of `written` is cleaned before: the image, the bundle, the
/// tree, and this program, which runs on with its caches off.
pub(crate) fn enter(written: &[Range<Pa>], image: Pa, tree: Pa) -> ! {
    written.iter().for_each(|&range| clean(range));
    // SAFETY: we are at EL2 (`start` has looked), in code that lies where it is mapped and is in memory, so that it goes on without the
    // MMU. From the first instruction on no memory is touched: all is in registers. `image` begins with an image's first instruction.
    unsafe {
        asm!(
            "msr daifset, #15",
            "mrs x9, sctlr_el2",
            "bic x9, x9, x10",
            "dsb sy",
            "msr sctlr_el2, x9",
            "isb",
            "tlbi alle2",
            "ic iallu",
            "dsb nsh",
            "isb",
            "mov x1, xzr",
            "mov x2, xzr",
            "mov x3, xzr",
            "br x11",
            // M, C and I.
            in("x10") 1_u64 | 1 << 2 | 1 << 12,
            in("x11") image.0,
            in("x0") tree.0,
            options(noreturn, nostack)
        );
    }
}
