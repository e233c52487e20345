//! The pen: the code with which a CPU waits at its mailbox (`core/bringup`), and the hand that reaches into mailboxes.
//!
//! A copy of the code lies in the firmware's half of each mailbox. It finds a mailbox by its own address, and from there, by MPIDR_EL1, the
//! CPU's own, so it can be entered with nothing but that: X0 need not name anything, and where firmware has one word for all CPUs, all
//! may come to the same copy. It uses no stack, and runs with the MMU and caches off, as firmware leaves a CPU;
//! what goes between it and us is therefore cleaned and invalidated to the point of coherency by us.
//!
//! It looks before it sleeps. An SEV between the look and the WFE sets the event register, and the WFE falls through; an SEV that came
//! before the CPU did is not needed then, for the first look finds what it was for. Whatever else ends a WFE leads to another look.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use bringup::mailbox;
use units::{PAGE_SIZE, Pa, Range};

use crate::{cache, memory, sysreg};

global_asm!(
    r#"
    .pushsection .text.pen, "ax"
    .balign 64
    .global __pen_start
__pen_start:
    msr     daifset, #0xf
    adr     x9, __pen_start
    and     x9, x9, #~0xfff                 // the mailbox
    mrs     x10, mpidr_el1
    and     x10, x10, #0xffffff             // Aff2 to Aff0
    mrs     x11, mpidr_el1
    and     x11, x11, #0xff00000000         // Aff3
    orr     x10, x10, x11
    mov     x12, x9
0:  ldr     x11, [x9, #{owner}]
    cmp     x10, x11
    b.eq    5f
    ldr     x9, [x9, #{next}]               // another CPU's: on to the next
    cmp     x9, x12
    b.ne    0b
6:  wfe                                     // nobody's
    b       6b
5:  mrs     x10, CurrentEL
    lsr     x10, x10, #2
    ldr     x11, 3f
    orr     x11, x11, x10, lsl #{level}
    ldr     w12, [x9, #{own}]
    str     x11, [x9, #{announcement}]
    dsb     sy
    sev
1:  ldr     w13, [x9, #{number}]
    cmp     w13, w12
    b.ne    2f
    ldr     x14, [x9, #{address}]
    cbnz    x14, 4f
2:  wfe
    b       1b
    .balign 8
3:  .quad   {announced}
4:  str     xzr, [x9, #{address}]           // it has gone
    dsb     sy
    ic      iallu                           // what is there may have been written since this CPU was last there
    dsb     nsh
    isb
    mov     x0, x9
    br      x14
    dsb     nsh
    isb
    .global __pen_end
__pen_end:
    .popsection
    "#,
    level = const mailbox::LEVEL_SHIFT,
    own = const mailbox::OWN_NUMBER,
    owner = const mailbox::OWNER,
    next = const mailbox::NEXT,
    announcement = const mailbox::ANNOUNCEMENT,
    announced = const mailbox::ANNOUNCED,
    number = const mailbox::NUMBER,
    address = const mailbox::ADDRESS,
);

unsafe extern "C" {
    static __pen_start: u8;
    static __pen_end: u8;
}

/// Where in a mailbox, in the half of whoever starts the CPU, [`let_go`] leaves what the CPU is to find: a 64-bit word.
pub(crate) const GIFT: usize = 16;

/// Puts the code into `mailbox`, a page of the caller's, and makes the page seen by a CPU whose caches are off.
pub fn furnish(mailbox: Pa) {
    let start = (&raw const __pen_start).addr() as u64;
    let size = (&raw const __pen_end).addr() as u64 - start;
    let room = PAGE_SIZE - mailbox::CODE as u64;
    let code = memory::constant(Pa(start), size.min(room));
    memory::claim_unzeroed(entry(mailbox), code.len() as u64).copy_from_slice(code);
    cache::publish_code(Range { start: mailbox, size: PAGE_SIZE });
    cache::clean_and_invalidate(Range { start: mailbox, size: PAGE_SIZE });
}

/// Where a CPU is to be sent that is to wait at `mailbox`.
#[must_use]
pub const fn entry(mailbox: Pa) -> Pa {
    Pa(mailbox.0 + mailbox::CODE as u64)
}

/// What the CPU of `mailbox` has announced; 0 if it has not come.
#[must_use]
pub fn announcement(mailbox: Pa) -> u64 {
    read(mailbox, mailbox::ANNOUNCEMENT)
}

/// What stands in `mailbox` as the address to which its CPU is to go; 0 once it has gone.
#[must_use]
pub fn address(mailbox: Pa) -> u64 {
    read(mailbox, mailbox::ADDRESS)
}

/// Writes `to` where a CPU waits for it that is in a spin table of the firmware's. `at` is RAM that the platform reserves.
pub fn release(at: Pa, to: Pa) {
    write(at, 0, to.0);
    sysreg::sev();
}

/// Lets the CPU of `mailbox`, whose number stands there, go to `to`, where X0 names the mailbox, and `gift` is found there.
pub(crate) fn let_go(mailbox: Pa, to: Pa, gift: u64) {
    write(mailbox, GIFT, gift);
    // After the gift is there: the CPU may look at any time.
    write(mailbox, mailbox::ADDRESS, to.0);
    sysreg::sev();
}

pub(crate) fn read(page: Pa, offset: usize) -> u64 {
    // The line that is dropped is clean: nothing is written to a mailbox but by `write`.
    cache::clean_and_invalidate(Range { start: Pa(page.0 + offset as u64), size: 8 });
    word(page, offset).load(Ordering::Relaxed)
}

pub(crate) fn write(page: Pa, offset: usize, value: u64) {
    word(page, offset).store(value, Ordering::Relaxed);
    cache::clean_and_invalidate(Range { start: Pa(page.0 + offset as u64), size: 8 });
}

fn word(page: Pa, offset: usize) -> &'static AtomicU64 {
    let at = (page.0 as usize + offset) & !7;
    // SAFETY: mailboxes, and spin tables, are RAM that is mapped where it is and reserved for ever; aligned, and reached as whole words
    // by both sides.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicU64>(at) }
}
