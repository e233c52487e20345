//! One instruction, given as a number, with its operands in X0 to X7: for encodings that only become known at run time.
//!
//! The instruction is written after a small frame in memory, made visible to the instruction side, and called inside
//! [`fault::catch`]. Only classes whose effect is known to stay outside of Rust's own state are let through.

use core::arch::asm;

use crate::fault::{self, Fault};
use crate::{MAX_CPUS, cpu, memory};

/// Per CPU: room for one instruction and two `RET`, the second for a fault that claims to come from behind the instruction.
#[repr(C, align(64))]
struct Slots([[u32; 16]; MAX_CPUS]);

/// Written through its address only, by the CPU that the slot belongs to.
static mut SLOTS: Slots = Slots([[0; 16]; MAX_CPUS]);

const RET: u32 = 0xd65f_03c0;

/// The encoding of `MRS X0, S<op0>_<op1>_C<crn>_C<crm>_<op2>`; `op0` is 2 or 3.
#[must_use]
pub fn mrs(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    0xd530_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// The encoding of `MSR S<op0>_..., X0`.
#[must_use]
pub fn msr(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    mrs(op0, op1, crn, crm, op2) & !(1 << 21)
}

/// The encoding of `SYS #op1, Ccrn, Ccrm, #op2, X0`.
#[must_use]
pub fn sys(op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    0xd508_0000 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// The encoding of `HVC #immediate`.
#[must_use]
pub fn hvc(immediate: u16) -> u32 {
    0xd400_0002 | u32::from(immediate) << 5
}

/// The encoding of `SMC #immediate`.
#[must_use]
pub fn smc(immediate: u16) -> u32 {
    0xd400_0003 | u32::from(immediate) << 5
}

/// Panics unless `opcode` is a load or store with base X0 well outside of the image (and outside of a large neighbourhood of it), a
/// system instruction, an exception-generating instruction, `PACGA`, or
/// SIMD arithmetic.
pub(crate) fn check(opcode: u32, base: u64) {
    let (class, top) = (opcode >> 25 & 0xf, opcode >> 24);
    if class & 0b0101 == 0b0100 {
        let literal = opcode >> 27 & 0b111 == 0b011 && opcode >> 24 & 0b11 == 0;
        assert!(opcode >> 5 & 0x1f == 0 && !literal, "{opcode:#x}: loads and stores must use base X0");
        memory::outside_image(base.saturating_sub(0x1_0000), 0x2_0000);
        return;
    }
    // PACGA: a computation on general registers.
    let code = opcode & 0xffe0_fc00 == 0x9ac0_3000;
    let simd = class & 0b0111 == 0b0111 || class == 0b0010 || class == 0;
    assert!(top == 0xd4 || top == 0xd5 || simd || code, "{opcode:#x} is not of a class that may be executed");
}

/// Executes `opcode` with `x` in X0 to X7 and takes them back. The fault, if there was one.
///
/// # Errors
/// The exception that the instruction raised, its `elr` counted from the instruction: 0 for everything but calls and debug events.
pub fn execute(opcode: u32, x: &mut [u64; 8]) -> Result<(), Fault> {
    check(opcode, x[0]);
    let slot = (&raw mut SLOTS) as u64 + 64 * cpu::index() as u64;
    let pair = u64::from(opcode) | u64::from(RET) << 32;
    fault::catch(|| {
        // SAFETY: the slot is this CPU's own and no reference to it exists; the cache maintenance makes it executable. What the
        // instruction does stays outside of Rust's state, by `check`; registers that SMCCC may change are all declared.
        unsafe {
            asm!(
                "str {pair}, [x30]", "str {ret:w}, [x30, #8]", "dc cvau, x30", "dsb ish", "ic ivau, x30", "dsb ish", "isb",
                "blr x30",
                pair = in(reg) pair, ret = in(reg) RET,
                inout("x30") slot => _,
                inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
                inout("x4") x[4], inout("x5") x[5], inout("x6") x[6], inout("x7") x[7],
                out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                out("x16") _, out("x17") _, options(nostack)
            );
        }
    })
    .map_err(|fault| Fault { elr: fault.elr.wrapping_sub(slot), ..fault })
}

/// Reads the system register with this encoding (`op0`, `op1`, `CRn`, `CRm`, `op2`).
///
/// # Errors
/// The exception that the read raised.
pub fn read_register(encoding: [u32; 5]) -> Result<u64, Fault> {
    let [op0, op1, crn, crm, op2] = encoding;
    let mut x = [0; 8];
    execute(mrs(op0, op1, crn, crm, op2), &mut x)?;
    Ok(x[0])
}

/// Writes the system register with this encoding.
///
/// # Errors
/// The exception that the write raised.
pub fn write_register(encoding: [u32; 5], value: u64) -> Result<(), Fault> {
    let [op0, op1, crn, crm, op2] = encoding;
    execute(msr(op0, op1, crn, crm, op2), &mut [value, 0, 0, 0, 0, 0, 0, 0])
}

/// Makes the instruction at `address`, which is no part of the payload's image, visible to instruction fetch.
pub fn publish(address: u64) {
    memory::outside_image(address, 4);
    // SAFETY: cache maintenance by address changes no contents.
    unsafe { asm!("dc cvau, {a}", "dsb ish", "ic ivau, {a}", "dsb ish", "isb", a = in(reg) address, options(nostack)) };
}
