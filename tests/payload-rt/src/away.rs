//! A CPU that switches itself off in the middle of its work, and goes on with it when another CPU switches it on.

use core::arch::global_asm;
use core::sync::atomic::AtomicU64;

use crate::{MAX_CPUS, cpu, gic, psci};

/// X19 to X30, SP and TPIDR_EL1 of a CPU that is away. Whole cache lines: it is read with the caches off.
#[repr(C, align(64))]
struct Kept([AtomicU64; 16]);

static KEPT: [Kept; MAX_CPUS] = [const { Kept([const { AtomicU64::new(0) }; 16]) }; MAX_CPUS];

global_asm!(
    r#"
    .section .text.away, "ax"
// In: x0 = where to keep registers. Out: x0 = 0 once it was off and is on again, or what CPU_OFF has answered.
away_go:
    stp     x19, x20, [x0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #80]
    mov     x1, sp
    mrs     x2, tpidr_el1
    stp     x1, x2, [x0, #96]
    add     x1, x0, #64
    dsb     sy
    dc      civac, x0
    dc      civac, x1
    dsb     sy
    mov     x0, #{off_low}
    movk    x0, #{off_high}, lsl #16
    hvc     #0
    ret

// In: x0 = where they were kept. Out of PSCI CPU_ON.
away_back:
    msr     daifset, #0xf
    mov     x19, x0
    bl      switch_mmu_on
    mov     x0, x19
    ldp     x1, x2, [x0, #96]
    mov     sp, x1
    msr     tpidr_el1, x2
    ldp     x19, x20, [x0]
    ldp     x21, x22, [x0, #16]
    ldp     x23, x24, [x0, #32]
    ldp     x25, x26, [x0, #48]
    ldp     x27, x28, [x0, #64]
    ldp     x29, x30, [x0, #80]
    mov     x0, xzr
    ret
"#,
    off_low = const psci::CPU_OFF & 0xffff,
    off_high = const psci::CPU_OFF >> 16,
);

unsafe extern "C" {
    fn away_go(kept: *const Kept) -> i64;
    static away_back: u8;
}

/// Switches this CPU off, until another CPU calls it back ([`call_back`]): 0 then, or what `CPU_OFF` has answered. Interrupts must
/// be masked, and are; its interface to interrupts is as at its start.
#[must_use]
pub fn switch_off() -> i64 {
    // SAFETY: it comes back with all registers that a function must keep, and the same stack, tables and vectors.
    let answer = unsafe { away_go(&raw const KEPT[cpu::index()]) };
    gic::initialise_cpu();
    answer
}

/// Switches CPU `index` on, where it has switched itself off by [`switch_off`]. PSCI's answer.
#[must_use]
pub fn call_back(index: usize) -> i64 {
    psci::cpu_on(cpu::affinity(index), (&raw const away_back) as u64, (&raw const KEPT[index]) as u64)
}
