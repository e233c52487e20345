//! Code that must finish on the CPU where it began: deferred preemption.
//!
//! Most per-CPU data needs nothing of the kind: it is one load or store through the alias (`percpu`), or one atomic
//! instruction. What is left are short leaves that read and write several words of the area, which no atomic covers.
//! They are *listed*: their code lies in the section `.text.nopreempt`, each with its start and end in a table, and the
//! interrupt entry compares the address it will return to with that table. The interrupt itself is handled at once. If it
//! asks for a preemption and the address is listed, the preemption is only noted, in the CPU's own area
//! ([`crate::percpu::Area::preempt_pending`]).
//!
//! A listed leaf ends with a branch to `nopreempt_leave`, which is not listed and looks at the note: one load when
//! there is none. As the range ends before that look, an interrupt that comes after the leaf's last instruction
//! preempts at once, and nothing can be noted that nobody reads. The code that preempts also clears the note; so there
//! is exactly one preemption, in either case.
//!
//! Listed code calls nothing, has no loop, and all of it together is short: the linker checks its length (`image.ld`).

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use crate::percpu::{ALIAS, Area, this_cpu};
use crate::sync::{are_irqs_masked, without_irqs};

global_asm!(
    r#"
    // The one listed leaf, an instruction at a time, so that the self-test can begin it anywhere.
    // x0, x1 = what is added to the two words. x9 = the alias at the end, for nopreempt_leave.
    .macro add_pair_step step
    .if \step == 0
    movz    x9, #{alias}, lsl #32
    .elseif \step == 1
    ldp     x10, x11, [x9, #{pair}]
    .elseif \step == 2
    add     x10, x10, x0
    .elseif \step == 3
    add     x11, x11, x1
    .elseif \step == 4
    stp     x10, x11, [x9, #{pair}]
    .endif
    .endm

    // The self-test has a neighbour on both sides: a range that is one instruction too long, at either end, lists one of them.
    // The one before has a section of its own, which only the image with checks keeps.
    .pushsection .text.before_nopreempt, "ax"
    .global before_add_pair
before_add_pair:
    nop
    .popsection

    .pushsection .text.nopreempt, "ax"
    .global nopreempt_add_pair
nopreempt_add_pair:
    add_pair_step 0
    add_pair_step 1
    add_pair_step 2
    add_pair_step 3
    add_pair_step 4
    b       nopreempt_leave
nopreempt_add_pair_end:
    .global nopreempt_leave
nopreempt_leave:
    ldr     w10, [x9, #{pending}]
    cbnz    w10, 1f
    ret
    dsb     nsh
    isb
1:  b       {deferred}
    .popsection

    // Start and end of each listed range, as offsets from the table's entries.
    .pushsection .rodata.nopreempt, "a"
    .balign 4
    .word   nopreempt_add_pair - .
    .word   nopreempt_add_pair_end - .
    .popsection

    .pushsection .text.forced, "ax"
    // Self-test: begins the leaf with its first x2 instructions, IRQs masked, and goes on in the listed leaf itself with
    // IRQs let in by the very jump, so that a pending interrupt is taken there. x2 = 6 goes on in nopreempt_leave, 7 just
    // before the leaf.
    .global forced_add_pair
forced_add_pair:
    adr     x16, 2f
    add     x16, x16, x2, lsl #6
    br      x16
    dsb     nsh
    isb

    .macro forced_variant steps, target, offset
    .balign 64
    .if \steps > 0
    add_pair_step 0
    .endif
    .if \steps > 1
    add_pair_step 1
    .endif
    .if \steps > 2
    add_pair_step 2
    .endif
    .if \steps > 3
    add_pair_step 3
    .endif
    .if \steps > 4
    add_pair_step 4
    .endif
    adrp    x16, \target
    add     x16, x16, :lo12:\target
    add     x16, x16, #\offset
    b       forced_entry
    .endm

    .balign 64
2:
    forced_variant 0, nopreempt_add_pair, 0
    forced_variant 1, nopreempt_add_pair, 4
    forced_variant 2, nopreempt_add_pair, 8
    forced_variant 3, nopreempt_add_pair, 12
    forced_variant 4, nopreempt_add_pair, 16
    forced_variant 5, nopreempt_add_pair, 20
    forced_variant 5, nopreempt_leave, 0
    forced_variant 0, before_add_pair, 0
forced_entry:
    mrs     x17, daif
    bic     x17, x17, #0x80                 // IRQs let in
    add     x17, x17, #0b1001               // EL2h
    msr     elr_el2, x16
    msr     spsr_el2, x17
    eret
    dsb     nsh
    isb
    .popsection
    "#,
    alias = const ALIAS >> 32,
    pair = const offset_of!(Area, zeroed),
    pending = const offset_of!(Area, preempt_pending),
    deferred = sym deferred,
);

/// Instructions of the listed leaf; a self-test can begin it at each ([`add_pair_from`]).
pub const STEPS: u64 = 6;

unsafe extern "C" {
    static __nopreempt_table_start: [i32; 2];
    static __nopreempt_table_end: [i32; 2];
    fn nopreempt_add_pair(first: u64, second: u64);
    fn nopreempt_leave();
    fn before_add_pair();
    fn forced_add_pair(first: u64, second: u64, from: u64);
}

/// Whether the instruction at `address` is listed.
#[must_use]
pub fn is_listed(address: u64) -> bool {
    let start = &raw const __nopreempt_table_start;
    let end = &raw const __nopreempt_table_end;
    let count = (end.addr() - start.addr()) / size_of::<[i32; 2]>();
    // SAFETY: the linker lays the table out between the two symbols, in the image's constants.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().any(|entry| {
        let place = core::ptr::from_ref(entry).addr() as u64;
        let [from, to] = *entry;
        let from = place.wrapping_add_signed(i64::from(from));
        let to = (place + 4).wrapping_add_signed(i64::from(to));
        (from..to).contains(&address)
    })
}

/// Adds to this CPU's count of zeroed bytes and to the time that it took, both or none: the rate of a CPU is their
/// quotient. The caller may be preempted and moved before and after, not in between.
pub fn add_zeroed(bytes: u64, ticks: u64) {
    // SAFETY: the leaf adds to two words of this CPU's area that nothing else writes, and keeps to the C convention.
    unsafe { nopreempt_add_pair(bytes, ticks) };
}

/// For the self-test: as [`add_zeroed`], IRQs masked until instruction `from` of the leaf and let in exactly there;
/// [`STEPS`] means the first instruction behind it, [`STEPS`] + 1 the one before it. IRQs are let in when it returns.
pub fn add_pair_from(from: u64, first: u64, second: u64) {
    // SAFETY: as in `add_zeroed`; the number is brought into the range that the assembly knows.
    unsafe { forced_add_pair(first, second, from.min(STEPS + 1)) };
}

/// The instruction at which [`add_pair_from`] lets IRQs in.
#[must_use]
pub fn address_of(from: u64) -> u64 {
    let address = match from {
        0..STEPS => (nopreempt_add_pair as *const ()).addr() + 4 * from as usize,
        STEPS => (nopreempt_leave as *const ()).addr(),
        _ => (before_add_pair as *const ()).addr(),
    };
    address as u64
}

/// A listed leaf found the note: the preemption happens now, unless another interrupt saw to it in between.
extern "C" fn deferred() {
    preempt_now();
}

/// The preemption that was noted happens now, unless another interrupt saw to it in between. Not while IRQs are masked:
/// then whoever let the thread mask them holds more than it may be moved with, and the CPU's request to look at its queue
/// ([`Area::reschedule`]) stays until it does.
#[cold]
pub(crate) fn preempt_now() {
    if are_irqs_masked() {
        return;
    }
    without_irqs(|| {
        let area = this_cpu();
        if area.preempt_pending.load(Ordering::Relaxed) != 0
            && let Some(preempt) = area.preempt_hook()
        {
            preempt();
        }
    });
}
