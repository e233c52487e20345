//! The exception vectors: every exception stores all general registers, ELR and SPSR on the stack, calls [`exception_main`], and
//! returns to what the frame then says. Nothing here is fast; the bench brings vectors of its own ([`crate::bench`]).

use core::arch::global_asm;

use crate::{fault, interrupt, sysreg};

/// What was interrupted; changes made here take effect on return.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Frame {
    /// X0 to X30.
    pub(crate) x: [u64; 31],
    /// Where execution goes on.
    pub(crate) elr: u64,
    /// The PSTATE it goes on with.
    pub(crate) spsr: u64,
    padding: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

global_asm!(
    r#"
    .macro vector kind
    .balign 0x80
    sub     sp, sp, #272
    stp     x0, x1, [sp]
    mov     x1, #\kind
    b       save_frame
    .endm

    .section .text.vectors, "ax"
    .balign 0x800
    .global exception_vectors
exception_vectors:
    .irp kind, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vector \kind
    .endr

    .balign 0x80
save_frame:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x30, x2, [sp, #240]
    str     x3, [sp, #256]
    mov     x0, sp
    bl      exception_main
    ldp     x30, x2, [sp, #240]
    ldr     x3, [sp, #256]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #272
    eret
"#
);

/// Called by the vectors; `kind` is the vector's number (Arm ARM D1.3.1: 4 is synchronous from this level with SP_EL1, 5 is IRQ).
#[unsafe(no_mangle)]
extern "C" fn exception_main(frame: &mut Frame, kind: u64) {
    match kind & 3 {
        0 => fault::on_synchronous(frame, kind),
        1 => interrupt::dispatch(),
        3 if interrupt::on_serror() => {}
        _ => panic!(
            "unexpected exception, vector {kind}: ESR {:#x} ELR {:#x} FAR {:#x}",
            sysreg::esr_el1::read(),
            frame.elr,
            sysreg::far_el1::read()
        ),
    }
}
