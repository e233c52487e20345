//! The general registers across one instruction: X0 to X30, SP and the condition flags are set, the instruction is executed,
//! and all of them are looked at afterwards.

use core::arch::global_asm;

/// How many values a [`Registers`] has.
pub const COUNT: usize = 32;

/// X0 to X30, then NZCV (bits 31:28).
pub type Registers = [u64; COUNT];

/// One instruction (or a short loop) between setting all registers and looking at them.
pub type Probe = unsafe extern "C" fn(&mut Registers) -> u64;

// Each probe: the caller's registers and the array's address go to the stack, the array's values into the registers; the
// instruction; all registers to the stack, from there into the array. It returns how far SP is from where it was.
macro_rules! probes {
    ($($name:ident = $code:literal;)*) => {
        $(
            global_asm!(
                ".pushsection .text.general, \"ax\"",
                concat!(".global general_", stringify!($name)),
                concat!("general_", stringify!($name), ":"),
                "stp x29, x30, [sp, #-112]!",
                "stp x27, x28, [sp, #16]", "stp x25, x26, [sp, #32]", "stp x23, x24, [sp, #48]",
                "stp x21, x22, [sp, #64]", "stp x19, x20, [sp, #80]", "mov x1, sp", "stp x0, x1, [sp, #96]",
                "sub sp, sp, #256",
                "ldr x1, [x0, #248]", "msr nzcv, x1", "mov x30, x0",
                "ldp x0, x1, [x30]", "ldp x2, x3, [x30, #16]", "ldp x4, x5, [x30, #32]", "ldp x6, x7, [x30, #48]",
                "ldp x8, x9, [x30, #64]", "ldp x10, x11, [x30, #80]", "ldp x12, x13, [x30, #96]", "ldp x14, x15, [x30, #112]",
                "ldp x16, x17, [x30, #128]", "ldp x18, x19, [x30, #144]", "ldp x20, x21, [x30, #160]", "ldp x22, x23, [x30, #176]",
                "ldp x24, x25, [x30, #192]", "ldp x26, x27, [x30, #208]", "ldp x28, x29, [x30, #224]", "ldr x30, [x30, #240]",
                $code,
                "stp x0, x1, [sp]", "stp x2, x3, [sp, #16]", "stp x4, x5, [sp, #32]", "stp x6, x7, [sp, #48]",
                "stp x8, x9, [sp, #64]", "stp x10, x11, [sp, #80]", "stp x12, x13, [sp, #96]", "stp x14, x15, [sp, #112]",
                "stp x16, x17, [sp, #128]", "stp x18, x19, [sp, #144]", "stp x20, x21, [sp, #160]", "stp x22, x23, [sp, #176]",
                "stp x24, x25, [sp, #192]", "stp x26, x27, [sp, #208]", "stp x28, x29, [sp, #224]",
                "mrs x1, nzcv", "stp x30, x1, [sp, #240]",
                "mov x3, #0", "ldr x0, [sp, #352]",
                "1: ldr x4, [sp, x3]", "str x4, [x0, x3]", "add x3, x3, #8", "cmp x3, #256", "b.ne 1b",
                "add sp, sp, #256", "ldr x1, [sp, #104]", "mov x2, sp", "sub x0, x2, x1",
                "ldp x19, x20, [sp, #80]", "ldp x21, x22, [sp, #64]", "ldp x23, x24, [sp, #48]",
                "ldp x25, x26, [sp, #32]", "ldp x27, x28, [sp, #16]", "ldp x29, x30, [sp], #112",
                "ret",
                ".popsection",
            );
        )*

        unsafe extern "C" {
            $(#[link_name = concat!("general_", stringify!($name))] fn $name(registers: &mut Registers) -> u64;)*
        }

        /// All probes by name.
        pub const PROBES: &[(&str, Probe)] = &[$((stringify!($name), $name)),*];
    };
}

probes! {
    nothing = "nop";
    hvc = "hvc #0";
    hvc_of_nobody = "hvc #0x1234";
    smc = "smc #0";
    identification = "mrs x5, id_aa64pfr0_el1";
    identification_in_link = "mrs x30, id_aa64isar0_el1";
    identification_dropped = "mrs xzr, id_aa64mmfr0_el1";
    debug_channel = "mrs xzr, mdccsr_el0";
    breakpoint = "mrs x28, dbgbvr0_el1";
    physical_count = "mrs x17, cntpct_el0";
    sgi = "msr icc_sgi1r_el1, x9";
    device_word = "ldr w7, [x6]";
    device_pair = "ldp w18, w19, [x6]";
    device_writeback = "ldr w20, [x6], #8";
    device_store = "str wzr, [x6]";
    memory = "ldr x11, [x10]";
    wait_for_interrupt = "wfi";
    wait_for_event = "sevl\n wfe\n wfe";
    time = "2: mrs x12, cntvct_el0\n sub x12, x12, x13\n tbnz x12, #63, 2b";
}

/// Executes the probe `name` with these registers. How far SP has moved.
///
/// Panics if there is no such probe.
pub fn across(name: &str, registers: &mut Registers) -> u64 {
    let probe = PROBES.iter().find(|(known, _)| *known == name);
    let Some((_, probe)) = probe else { panic!("there is no probe {name}") };
    // SAFETY: a probe follows the procedure call standard and writes nothing but the array; its instruction changes
    // registers that it restores, and the device registers that its operands name.
    unsafe { probe(registers) }
}
