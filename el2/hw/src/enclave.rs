//! Running an enclave: code at EL0 behind tables of its own, with no EL1 above it (docs/decisions/0039-enclaves.md).
//!
//! HCR_EL2.TGE sends every exception of EL0 to EL2 and switches stage 1 off; DC makes what EL0 accesses ordinary memory then. So an enclave
//! has stage 2 alone. Whatever EL0 could reach of the vCPU's registers is put aside: its thread registers and stack pointer are zero, its
//! counters, debug exceptions and FP/SIMD trap. All exceptions come by a table of vectors of its own, which is VBAR_EL2's for as long as
//! the enclave runs: the way of a guest's exit is not touched by any of this.
//!
//! It is one call with IRQs masked: an interrupt ends it, and is taken when the caller lets IRQs in.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::speculation;
use crate::stage1;
use crate::sync::are_irqs_masked;
use crate::sysreg::{self, isb};

/// HCR_EL2: stage 2 (VM); physical interrupts and SErrors to EL2 (FMO, IMO, AMO); DC; WFI and WFE trap; implementation defined registers
/// trap (TIDCP); TGE; EL1 is in AArch64 state (RW).
const HCR: u64 = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 20 | 1 << 27 | 1 << 31;
/// CPTR_EL2 (E2H = 0): everything that can trap does.
const CPTR: u64 = 1 << 31 | 1 << 30 | 1 << 20 | 1 << 12 | 1 << 10 | 1 << 8 | 0x32ff;
/// PSTATE: EL0, debug exceptions masked; interrupts come to EL2 whatever it says of them.
const PSTATE: u64 = 0x3c0;
/// NZCV.
const FLAGS: u64 = 0xf000_0000;

/// An enclave's registers. The assembly knows this layout.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct EnclaveContext {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL0.
    pub sp: u64,
    /// PC.
    pub pc: u64,
    /// NZCV; the rest is ours.
    pub flags: u64,
}

/// Why it has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnclaveExit {
    /// A synchronous exception, with ESR_EL2.
    Synchronous(u64),
    /// A physical interrupt, still pending.
    Interrupt,
    /// A physical SError.
    SystemError,
}

unsafe extern "C" {
    fn enter_enclave(context: *mut EnclaveContext) -> u64;
}

/// Runs the enclave until its next exception, by the tables of `vttbr`. IRQs are masked; a vCPU is loaded, and has all of its registers
/// again afterwards.
pub fn run(context: &mut EnclaveContext, vttbr: u64) -> EnclaveExit {
    debug_assert!(are_irqs_masked());
    context.flags = context.flags & FLAGS | PSTATE;
    let open = stage1::is_closed_between_guests().then(stage1::close);
    let (hcr, tables) = (sysreg::hcr_el2::read(), sysreg::vttbr_el2::read());
    sysreg::vttbr_el2::write(vttbr);
    // SAFETY: by these controls EL0 runs behind stage 2, whose tables the frame allocator's owner made, as for a guest; every exception
    // comes back through the vectors of this file, which write to `context` alone and keep what the C calling convention preserves.
    let (kind, guest) = unsafe {
        sysreg::write_hcr_el2(HCR);
        // Stage 1 is off from here on, whatever SCTLR_EL1 says, and the VMID is the enclave's: no walk of the guest's is made.
        isb();
        let guest = Guest::put_aside();
        (enter_enclave(context), guest)
    };
    let syndrome = sysreg::esr_el2();
    guest.bring_back();
    isb();
    sysreg::hcr_el2::write(hcr);
    sysreg::vttbr_el2::write(tables);
    if let Some(open) = open {
        open.restore();
    }
    isb();
    // It has trained predictors as a guest has, and its exit has not called firmware.
    speculation::forget_all();
    context.flags &= FLAGS;
    match kind {
        1 => EnclaveExit::Synchronous(syndrome),
        2 => EnclaveExit::Interrupt,
        _ => EnclaveExit::SystemError,
    }
}

macro_rules! guest {
    ($($name:ident = $asm:literal, $meanwhile:expr;)*) => {
        /// What of the loaded vCPU an enclave would see, or what would act on it.
        struct Guest { $($name: u64,)* }

        impl Guest {
            #[inline(always)]
            fn put_aside() -> Self {
                $(
                    let $name: u64;
                    let meanwhile: u64 = $meanwhile;
                    // SAFETY: these registers act on EL0 and EL1 alone, and on FP/SIMD, which EL2 does not use.
                    unsafe {
                        core::arch::asm!(concat!("mrs {}, ", $asm), out(reg) $name, options(nomem, nostack, preserves_flags));
                        core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) meanwhile, options(nostack, preserves_flags));
                    }
                )*
                Self { $($name,)* }
            }

            #[inline(always)]
            fn bring_back(self) {
                let Self { $($name,)* } = self;
                // SAFETY: what was there before.
                unsafe {
                    $(core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) $name, options(nostack, preserves_flags));)*
                }
            }
        }
    };
}

guest! {
    tpidr_el0 = "tpidr_el0", 0;
    tpidrro_el0 = "tpidrro_el0", 0;
    sp_el0 = "sp_el0", 0;
    sctlr_el1 = "sctlr_el1", cpu::reset::SCTLR_EL1;
    cntkctl_el1 = "cntkctl_el1", 0;
    mdscr_el1 = "mdscr_el1", 0;
    cptr_el2 = "cptr_el2", CPTR;
}

global_asm!(
    r#"
    .macro enclave_exit kind
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    ldr     x0, [sp, #16]
    mov     x1, #\kind
    b       enclave_left
    .endm

    .pushsection .text.vectors, "ax"
    .balign 0x800
enclave_vectors:
    // Our own exceptions, of which there are none but by our own fault while IRQs are masked: as anywhere else.
    .set offset, 0
    .rept 8
    .balign 0x80
    b       exception_vectors + offset
    .set offset, offset + 0x80
    .endr
    .rept 2
    enclave_exit 1
    enclave_exit 2
    enclave_exit 2
    enclave_exit 3
    .endr
    .balign 0x80

    // In: x0 = context, x1 = kind, the enclave's x0 and x1 on the stack, the rest its own.
enclave_left:
    stp     x2, x3, [x0, #16]
    ldp     x2, x3, [sp], #16
    stp     x4, x5, [x0, #32]
    stp     x2, x3, [x0]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    mrs     x2, sp_el0
    mrs     x3, elr_el2
    mrs     x4, spsr_el2
    stp     x30, x2, [x0, #240]
    stp     x3, x4, [x0, #256]
    ldr     x2, [sp, #8]
    msr     vbar_el2, x2
    isb
    mov     x0, x1
    add     sp, sp, #16
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    dsb     nsh
    isb

    // u64 enter_enclave(EnclaveContext *): IRQs masked, EL0's controls set. Returns the kind of its exception.
    .global enter_enclave
enter_enclave:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x1, vbar_el2
    stp     x0, x1, [sp, #-16]!
    adr     x2, enclave_vectors
    msr     vbar_el2, x2
    isb
    ldp     x30, x2, [x0, #240]
    ldp     x3, x4, [x0, #256]
    msr     sp_el0, x2
    msr     elr_el2, x3
    msr     spsr_el2, x4
    ldp     x28, x29, [x0, #224]
    ldp     x26, x27, [x0, #208]
    ldp     x24, x25, [x0, #192]
    ldp     x22, x23, [x0, #176]
    ldp     x20, x21, [x0, #160]
    ldp     x18, x19, [x0, #144]
    ldp     x16, x17, [x0, #128]
    ldp     x14, x15, [x0, #112]
    ldp     x12, x13, [x0, #96]
    ldp     x10, x11, [x0, #80]
    ldp     x8, x9, [x0, #64]
    ldp     x6, x7, [x0, #48]
    ldp     x4, x5, [x0, #32]
    ldp     x2, x3, [x0, #16]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh
    isb
    .popsection
    "#
);

const _: () = {
    assert!(offset_of!(EnclaveContext, x) == 0);
    assert!(offset_of!(EnclaveContext, sp) == 248);
    assert!(offset_of!(EnclaveContext, pc) == 256);
    assert!(offset_of!(EnclaveContext, flags) == 264);
};
