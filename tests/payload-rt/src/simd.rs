//! The SIMD and floating-point registers as a place to keep patterns: the payloads are built without FP, so nothing else touches them.

use core::arch::{asm, global_asm};

use crate::sysreg;

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .section .text.simd, "ax"
// In: x0 = seed. Vn = seed + n in the lower half, its complement in the upper one. Clobbers x0 to x2.
simd_fill:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    mvn     x2, x1
    mov     v\n\().d[0], x1
    mov     v\n\().d[1], x2
    .endr
    ret
// In: x0 = seed. Out: x0 = 0 if all registers hold what simd_fill put there. Clobbers x1 to x3.
simd_compare:
    mov     x3, xzr
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    mov     x2, v\n\().d[0]
    eor     x2, x2, x1
    orr     x3, x3, x2
    mov     x2, v\n\().d[1]
    eor     x2, x2, x1
    mvn     x2, x2
    orr     x3, x3, x2
    .endr
    mov     x0, x3
    ret
// Out: x0 = the bits that are set in any of them. Clobbers x1.
simd_bits:
    mov     x0, xzr
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x1, v\n\().d[0]
    orr     x0, x0, x1
    mov     x1, v\n\().d[1]
    orr     x0, x0, x1
    .endr
    ret
"#
);

/// Fills V0 to V31 with a pattern made from `seed`.
pub fn fill(seed: u64) {
    // SAFETY: Rust code of this target uses no SIMD register; the function keeps to the registers named.
    unsafe { asm!("bl simd_fill", inout("x0") seed => _, out("x1") _, out("x2") _, out("x30") _, options(nostack)) };
}

/// The bits in which V0 to V31 differ from what [`fill`] with the same seed put there.
#[must_use]
pub fn difference(seed: u64) -> u64 {
    let mut x0 = seed;
    // SAFETY: reads registers that Rust does not use.
    unsafe {
        asm!("bl simd_compare", inout("x0") x0, out("x1") _, out("x2") _, out("x3") _, out("x30") _, options(nostack))
    };
    x0
}

/// The bits that are set in any half of V0 to V31.
#[must_use]
pub fn bits() -> u64 {
    let x0: u64;
    // SAFETY: reads registers that Rust does not use.
    unsafe { asm!("bl simd_bits", out("x0") x0, out("x1") _, out("x30") _, options(nostack)) };
    x0
}

/// Sets FPCR and FPSR.
pub fn set_control(fpcr: u64, fpsr: u64) {
    // SAFETY: they govern only floating-point instructions, of which Rust code of this target has none.
    unsafe { asm!("msr S3_3_C4_C4_0, {}", "msr S3_3_C4_C4_1, {}", in(reg) fpcr, in(reg) fpsr, options(nostack)) };
}

/// FPCR and FPSR.
#[must_use]
pub fn control() -> (u64, u64) {
    let (fpcr, fpsr): (u64, u64);
    // SAFETY: a read.
    unsafe { asm!("mrs {}, S3_3_C4_C4_0", "mrs {}, S3_3_C4_C4_1", out(reg) fpcr, out(reg) fpsr, options(nostack)) };
    (fpcr, fpsr)
}

/// CPACR_EL1.FPEN: whether FP/SIMD instructions are trapped to EL1 (they are not, at the start).
pub fn set_trap(trap: bool) {
    let value: u64 = if trap { 0 } else { 0x333_0000 };
    // SAFETY: as above: Rust code has no such instructions.
    unsafe { asm!("msr cpacr_el1, {}", in(reg) value, options(nostack)) };
    sysreg::isb();
}
