//! The code of the enclaves: a page of words.

/// What the enclave does, by its first argument.
pub(crate) const COMPUTE: u64 = 0;
pub(crate) const CALL_OUTSIDE: u64 = 1;
pub(crate) const SPIN: u64 = 2;
pub(crate) const LOAD: u64 = 3;
pub(crate) const STORE: u64 = 4;
pub(crate) const REGISTERS: u64 = 5;
pub(crate) const COUNTER: u64 = 6;
pub(crate) const FLOAT: u64 = 7;
pub(crate) const UNKNOWN: u64 = 8;
pub(crate) const COUNT: u64 = 9;

/// ```text
///     nop; nop
///     cmp x0, #0; b.eq 10f; cmp x0, #1; b.eq 11f; ... cmp x0, #7; b.eq 17f
///     b 18f
/// 10: madd x0, x1, x1, x2; svc #0
/// 11: add x0, x1, #1; svc #1; lsl x0, x0, #1; svc #0
/// 12: b .
/// 13: ldr x0, [x1]; svc #0
/// 14: str x2, [x1]; ldr x0, [x1]; svc #0
/// 15: mov x0, sp; orr x0, x0, x3; ... x4, x19, x29, x30; mrs x1, tpidr_el0; orr x0, x0, x1;
///     mrs x1, tpidrro_el0; orr x0, x0, x1; msr tpidr_el0, x2; svc #0
/// 16: mrs x0, cntvct_el0; svc #0
/// 17: fmov d0, x1; svc #0
/// 18: cmp x0, #9; b.eq 19f
///     svc #0x33
/// 19: add x4, x4, #1; ldr x5, [x2]; add x5, x5, #1; str x5, [x2]; cmp x4, x1; b.ne 19b; mov x0, x5; svc #0
/// ```
pub(crate) const PROGRAM: [u32; 58] = [
    0xd503_201f,
    0xd503_201f,
    0xf100_001f,
    0x5400_0200,
    0xf100_041f,
    0x5400_0200,
    0xf100_081f,
    0x5400_0240,
    0xf100_0c1f,
    0x5400_0220,
    0xf100_101f,
    0x5400_0220,
    0xf100_141f,
    0x5400_0240,
    0xf100_181f,
    0x5400_0380,
    0xf100_1c1f,
    0x5400_0380,
    0x1400_001d,
    0x9b01_0820,
    0xd400_0001,
    0x9100_0420,
    0xd400_0021,
    0xd37f_f800,
    0xd400_0001,
    0x1400_0000,
    0xf940_0020,
    0xd400_0001,
    0xf900_0022,
    0xf940_0020,
    0xd400_0001,
    0x9100_03e0,
    0xaa03_0000,
    0xaa04_0000,
    0xaa13_0000,
    0xaa1d_0000,
    0xaa1e_0000,
    0xd53b_d041,
    0xaa01_0000,
    0xd53b_d061,
    0xaa01_0000,
    0xd51b_d042,
    0xd400_0001,
    0xd53b_e040,
    0xd400_0001,
    0x9e67_0020,
    0xd400_0001,
    0xf100_241f,
    0x5400_0040,
    0xd400_0661,
    0x9100_0484,
    0xf940_0045,
    0x9100_04a5,
    0xf900_0045,
    0xeb01_009f,
    0x54ff_ff61,
    0xaa05_03e0,
    0xd400_0001,
];
