//! From the first instruction to Rust.
//!
//! The arm64 `Image` header (Linux, `Documentation/arch/arm64/booting.rst`), then the boot CPU: zero BSS, apply the relative
//! relocations of the static position-independent executable (it is linked at 0 and runs wherever it was put), invalidate what was
//! written with the caches off, switch the MMU on, and call Rust. A secondary CPU comes from PSCI `CPU_ON` with its index as context.

use core::arch::global_asm;

use crate::{MAX_CPUS, cpu, gic, interrupt, machine, mmu, psci, timer, uart};

/// Bytes of stack for each CPU.
pub const STACK_SIZE: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stacks([[u8; STACK_SIZE]; MAX_CPUS]);

/// Only ever used as stacks, through the address: mutable by being written from assembly.
#[unsafe(no_mangle)]
static mut PAYLOAD_STACKS: Stacks = Stacks([[0; STACK_SIZE]; MAX_CPUS]);

global_asm!(
    r#"
    .section .head, "ax"
    .global image_start
image_start:
    b       primary_entry
    .long   0
    .quad   0                       // text_offset
    .quad   image_size              // from the linker script: everything up to the end of BSS
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .section .text.entry, "ax"
// In: x0 = device tree. MMU off, interrupts masked.
primary_entry:
    mrs     x23, cntpct_el0         // how long it took to get here
    msr     daifset, #0xf
    mov     x24, xzr
    mov     x19, x0
    // What stands in registers that the runtime soon writes, or its exceptions.
    .irp register, ttbr0_el1, ttbr1_el1, tcr_el1, mair_el1, vbar_el1, tpidr_el1, sp_el0, elr_el1, spsr_el1, esr_el1, far_el1
    mrs     x0, \register
    orr     x24, x24, x0
    .endr
    adrp    x20, image_start        // the load bias, since the link address is 0
    adrp    x0, bss_start
    add     x0, x0, :lo12:bss_start
    adrp    x1, bss_end
    add     x1, x1, :lo12:bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  adrp    x0, rela_start
    add     x0, x0, :lo12:rela_start
    adrp    x1, rela_end
    add     x1, x1, :lo12:rela_end
3:  cmp     x0, x1
    b.hs    4f
    ldp     x2, x3, [x0], #16       // offset, info
    ldr     x4, [x0], #8            // addend
    cmp     w3, #1027               // R_AARCH64_RELATIVE
    b.ne    3b
    add     x4, x4, x20
    str     x4, [x20, x2]
    b       3b
4:  adrp    x0, PAYLOAD_STACKS
    add     x0, x0, :lo12:PAYLOAD_STACKS
    mov     x1, #{stack_size}
    add     sp, x0, x1
    bl      fill_tables
    // What was written with the caches off must not be hidden by stale lines once they are on.
    dsb     sy
    adrp    x0, image_start
    adrp    x1, image_end
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2              // data cache line, bytes
5:  dc      ivac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    5b
    dsb     sy
    bl      switch_mmu_on
    msr     tpidr_el1, xzr
    mov     x0, x19
    mov     x1, x23
    mov     x2, x24
    mov     x29, xzr
    bl      primary_main
    b       .

// In: x0 = CPU index. Out of PSCI CPU_ON: MMU off, interrupts masked.
    .global secondary_entry
secondary_entry:
    mrs     x21, daif
    mrs     x22, sctlr_el1
    msr     daifset, #0xf
    bic     x1, x22, #1 << 25       // SCTLR_EL1.EE: literals are loaded below
    msr     sctlr_el1, x1
    isb
    mov     x19, x0
    adrp    x0, PAYLOAD_STACKS
    add     x0, x0, :lo12:PAYLOAD_STACKS
    mov     x1, #{stack_size}
    add     x2, x19, #1
    madd    x0, x1, x2, x0
    mov     sp, x0
    bl      switch_mmu_on
    msr     tpidr_el1, x19
    mov     x0, x19
    mov     x1, x21
    mov     x2, x22
    mov     x29, xzr
    bl      secondary_main
    b       .

// Turns on MMU, caches, FP/SIMD and the vectors. Clobbers x0 to x3.
    .global switch_mmu_on
switch_mmu_on:
    adrp    x0, exception_vectors
    add     x0, x0, :lo12:exception_vectors
    msr     vbar_el1, x0
    ldr     x0, =0x3330000          // CPACR_EL1.FPEN, ZEN, SMEN: no traps to this level
    msr     cpacr_el1, x0
    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    mov     x2, #5                  // 48 bits is all that 4 KiB pages can give without LPA2
    cmp     x1, x2
    csel    x1, x1, x2, lo
    bfi     x0, x1, #32, #3         // TCR_EL1.IPS
    msr     tcr_el1, x0
    adrp    x0, PAYLOAD_TABLES
    msr     ttbr0_el1, x0
    dsb     ish
    tlbi    vmalle1
    dsb     ish
    ic      iallu
    dsb     ish
    isb
    ldr     x0, ={sctlr}
    msr     sctlr_el1, x0
    isb
    ret
"#,
    stack_size = const STACK_SIZE,
    mair = const mmu::MAIR,
    tcr = const mmu::TCR,
    sctlr = const mmu::SCTLR,
);

unsafe extern "Rust" {
    /// The payload's own `main`, made by [`entry!`](crate::entry).
    fn payload_main();
}

#[unsafe(no_mangle)]
extern "C" fn primary_main(device_tree: u64, first_count: u64, first_registers: u64) -> ! {
    timer::note_first_count(first_count);
    cpu::note_first_registers(first_registers);
    uart::enable();
    machine::read(device_tree);
    gic::note_initial_state();
    gic::initialise_distributor();
    gic::initialise_cpu();
    interrupt::reset_handler();
    // SAFETY: `entry!` defines this symbol with this very type.
    unsafe { payload_main() };
    psci::system_off()
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(index: usize, daif: u64, sctlr: u64) -> ! {
    cpu::note_initial_state(index, daif, sctlr);
    gic::initialise_cpu();
    cpu::run_job(index);
    psci::cpu_off();
    panic!("CPU_OFF returned on CPU {index}");
}
