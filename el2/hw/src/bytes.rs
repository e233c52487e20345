//! `memcpy`, `memset` and `memcmp`. The compiler calls them for every value that it does not move by registers, and we call them to copy data of
//! guests.
//!
//! The compiler has its own versions. Where, as here, no FP register may be used and unaligned accesses are allowed, they move one
//! word in each turn of a loop, and single bytes if source and target are aligned differently: 24 instructions for eight bytes. These
//! take 13 for 64 bytes. Its comparison looks at single bytes, 7 instructions for each; this one takes 7 for sixteen.
//!
//! Alignment matters only with the MMU off: all data is Device memory then, where an unaligned access faults (DDI 0487 B2.5.2,
//! "Alignment of data accesses"), and the boot CPU reads the device tree in that state. Unaligned data is moved byte by byte there.
//! Everything else that Rust moves is Normal memory, as SCTLR_EL2.A is 0; devices are accessed by `mmio` alone.

use core::arch::global_asm;

global_asm!(
    r#"
    // Branches to \bytes where memory may be Device memory: below EL2, which the boot path finds out later and must not fault
    // before, and with the MMU off. Uses x4.
    .macro  unless_normal bytes
    mrs     x4, CurrentEL
    tbz     x4, #3, \bytes
    mrs     x4, sctlr_el2
    tbz     x4, #0, \bytes                  // SCTLR_EL2.M
    .endm

    .pushsection .text.bytes, "ax"
    // In: x0 = the target, x1 = the source, x2 = how many bytes. Out: x0 as it was. Reads each byte once.
    .global memcpy
memcpy:
    mov     x3, x0
    orr     x4, x0, x1
    tst     x4, #7
    b.ne    4f
1:  subs    x2, x2, #64
    b.lo    3f
2:  ldp     x4, x5, [x1]
    ldp     x6, x7, [x1, #16]
    ldp     x8, x9, [x1, #32]
    ldp     x10, x11, [x1, #48]
    add     x1, x1, #64
    stp     x4, x5, [x3]
    stp     x6, x7, [x3, #16]
    stp     x8, x9, [x3, #32]
    stp     x10, x11, [x3, #48]
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    2b
    // The rest, largest power of two first, so that what was aligned stays aligned. Bits 0 to 5 of x2 are its length still.
3:  tbz     x2, #5, 30f
    ldp     x4, x5, [x1], #16
    ldp     x6, x7, [x1], #16
    stp     x4, x5, [x3], #16
    stp     x6, x7, [x3], #16
30: tbz     x2, #4, 31f
    ldp     x4, x5, [x1], #16
    stp     x4, x5, [x3], #16
31: tbz     x2, #3, 32f
    ldr     x4, [x1], #8
    str     x4, [x3], #8
32: tbz     x2, #2, 33f
    ldr     w4, [x1], #4
    str     w4, [x3], #4
33: tbz     x2, #1, 34f
    ldrh    w4, [x1], #2
    strh    w4, [x3], #2
34: tbz     x2, #0, 35f
    ldrb    w4, [x1]
    strb    w4, [x3]
35: ret
    dsb     nsh
    isb
4:  unless_normal 5f
    b       1b
5:  cbz     x2, 35b
6:  ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    subs    x2, x2, #1
    b.ne    6b
    b       35b

    // In: x0 = the target, w1 = the byte, x2 = how many. Out: x0 as it was.
    .global memset
memset:
    mov     x3, x0
    and     w1, w1, #0xff
    mov     x4, #0x0101010101010101
    mul     x1, x1, x4
    tst     x0, #7
    b.ne    4f
1:  subs    x2, x2, #64
    b.lo    3f
2:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    2b
3:  tbz     x2, #5, 30f
    stp     x1, x1, [x3], #16
    stp     x1, x1, [x3], #16
30: tbz     x2, #4, 31f
    stp     x1, x1, [x3], #16
31: tbz     x2, #3, 32f
    str     x1, [x3], #8
32: tbz     x2, #2, 33f
    str     w1, [x3], #4
33: tbz     x2, #1, 34f
    strh    w1, [x3], #2
34: tbz     x2, #0, 35f
    strb    w1, [x3]
35: ret
    dsb     nsh
    isb
4:  unless_normal 5f
    b       1b
5:  cbz     x2, 35b
6:  strb    w1, [x3], #1
    subs    x2, x2, #1
    b.ne    6b
    b       35b

    // In: x0 and x1 = what is compared, x2 = how many bytes. Out: w0 is 0 if all are equal, else as the first bytes that differ
    // compare: 1 if that of x0 is higher, -1 if it is lower.
    .global memcmp
    .global bcmp
memcmp:
bcmp:
    orr     x4, x0, x1
    tst     x4, #7
    b.ne    4f
1:  subs    x2, x2, #16
    b.lo    3f
2:  ldp     x4, x5, [x0], #16
    ldp     x6, x7, [x1], #16
    cmp     x4, x6
    ccmp    x5, x7, #0, eq
    b.ne    7f
    subs    x2, x2, #16
    b.hs    2b
3:  add     x2, x2, #16
5:  cbz     x2, 6f
50: ldrb    w4, [x0], #1
    ldrb    w6, [x1], #1
    cmp     w4, w6
    b.ne    8f
    subs    x2, x2, #1
    b.ne    50b
6:  mov     w0, #0
    ret
    dsb     nsh
    isb
    // The first of two words that differs, as a number in which the byte that comes first in memory counts most.
7:  cmp     x4, x6
    csel    x4, x5, x4, eq
    csel    x6, x7, x6, eq
    rev     x4, x4
    rev     x6, x6
    cmp     x4, x6
8:  cset    w0, hi
    csinv   w0, w0, wzr, hs
    ret
    dsb     nsh
    isb
4:  unless_normal 5b
    b       1b
    .popsection
    "#
);
