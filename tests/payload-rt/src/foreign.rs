//! One instruction at EL1 while its data, or its tables as well, are big-endian (SCTLR_EL1.EE).
//!
//! Rust's own data is little-endian, so nothing is loaded or stored in between but by that instruction, and registers take
//! everything there and back. With the MMU off only data is concerned. With it on, the tables are a copy of the payload's
//! in the other byte order ([`Tables`]).

use core::arch::global_asm;

use crate::{instruction, memory, mmu, sysreg};

/// What translates while the instruction is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// Nothing: the MMU is off.
    None,
    /// A big-endian copy of the identity map, with this entry for its first free slot.
    BigEndian(u64),
}

/// The registers of the routine below.
#[repr(C)]
struct Run {
    x: [u64; 8],
    sctlr: u64,
    ttbr0: u64,
    code: u64,
    esr: u64,
    far: u64,
}

/// Executes `opcode` with `x` in X0 to X7, and takes them back with ESR_EL1 and FAR_EL1 of the exception that it raised, or
/// zeroes.
pub fn execute(opcode: u32, x: &mut [u64; 8], tables: Tables) -> (u64, u64) {
    const RET: u32 = 0xd65f_03c0;
    const MMU: u64 = 1;
    const CACHES: u64 = 1 << 2 | 1 << 12;
    const EE: u64 = 1 << 25;
    instruction::check(opcode, x[0]);
    let pages = memory::pages(2);
    memory::write32(pages, opcode);
    memory::write32(pages + 4, RET);
    instruction::publish(pages);
    instruction::publish(pages + 4);
    let own = sysreg::sctlr_el1::read();
    let sctlr = match tables {
        Tables::None => own & !(MMU | CACHES) | EE,
        Tables::BigEndian(free) => {
            for slot in 0..512 {
                let entry = if slot == mmu::FREE_SLOT { free } else { mmu::default_entry(slot) };
                memory::write64(pages + 4096 + 8 * slot as u64, entry.swap_bytes());
            }
            own | EE
        }
    };
    let mut run = Run { x: *x, sctlr, ttbr0: pages + 4096, code: pages, esr: 0, far: 0 };
    sysreg::dsb();
    // SAFETY: the routine changes translation and byte order for one instruction, whose effects stay outside of Rust's
    // state by `check`, and puts everything back.
    unsafe { foreign_run(&raw mut run) };
    *x = run.x;
    (run.esr, run.far)
}

unsafe extern "C" {
    fn foreign_run(run: *mut Run);
}

global_asm!(
    r#"
    .section .text.foreign, "ax"
    .balign 0x800
foreign_vectors:
    .space  0x200
    mrs     x9, esr_el1                     // EL1 on SP_EL1, synchronous
    mrs     x10, far_el1
    b       foreign_back
    .balign 0x80
    b       .
    .balign 0x800

foreign_run:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x19, x0
    ldp     x20, x21, [x19, #64]
    ldr     x25, [x19, #80]
    bic     x28, x20, #1
    mrs     x22, sctlr_el1
    mrs     x23, ttbr0_el1
    mrs     x24, vbar_el1
    mrs     x27, daif
    msr     daifset, #0xf
    adrp    x26, foreign_vectors
    add     x26, x26, :lo12:foreign_vectors
    msr     vbar_el1, x26
    ldp     x0, x1, [x19]
    ldp     x2, x3, [x19, #16]
    ldp     x4, x5, [x19, #32]
    ldp     x6, x7, [x19, #48]
    mov     x9, xzr
    mov     x10, xzr
    msr     sctlr_el1, x28
    isb
    msr     ttbr0_el1, x21
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, x20
    isb
    blr     x25
foreign_back:
    msr     sctlr_el1, x28
    isb
    msr     ttbr0_el1, x23
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, x22
    isb
    msr     vbar_el1, x24
    msr     daif, x27
    stp     x0, x1, [x19]
    stp     x2, x3, [x19, #16]
    stp     x4, x5, [x19, #32]
    stp     x6, x7, [x19, #48]
    stp     x9, x10, [x19, #88]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
"#
);

const _: () = {
    assert!(core::mem::offset_of!(Run, sctlr) == 64);
    assert!(core::mem::offset_of!(Run, code) == 80);
    assert!(core::mem::offset_of!(Run, esr) == 88);
};
