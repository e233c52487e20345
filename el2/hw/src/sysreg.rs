//! System registers by the Arm manual's names.
//!
//! Three groups, told apart by what a wrong value can break. Registers that only affect what a guest sees (EL1 and EL0
//! state, the virtual interrupt interface, the timers) are written by safe functions: no value harms EL2's own memory.
//! Registers that EL2 itself lives by (its tables, its vectors, its stack) are written in this crate alone, by `unsafe`
//! functions. Registers with bits of both kinds are written through a filter that leaves EL2's own bits as EL2 needs
//! them.
//!
//! Names that the assembler only knows with an architecture extension are given by encoding
//! (`S<op0>_<op1>_C<n>_C<m>_<op2>`), DDI 0487 chapter D24.

macro_rules! registers {
    ($($name:ident = $asm:literal;)*) => {$(
        #[doc = concat!("`", $asm, "`, named `", stringify!($name), "` in the manual.")]
        pub mod $name {
            /// Reads the register.
            #[inline(always)]
            #[must_use]
            pub fn read() -> u64 {
                let value: u64;
                // SAFETY: an MRS of a register that exists at EL2 changes nothing. It is not marked `pure` or
                // `nomem`, so it stays where it is relative to memory accesses and other register accesses.
                unsafe { core::arch::asm!(concat!("mrs {}, ", $asm), out(reg) value, options(nostack, preserves_flags)) };
                value
            }

            /// Writes the register; takes effect after the next context synchronisation (`isb` or `eret`).
            #[inline(always)]
            pub fn write(value: u64) {
                // SAFETY: this register holds state of the guest or of an interrupt or timer interface; no value
                // changes which memory EL2 reaches or where it executes.
                unsafe { core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
            }
        }
    )*};
}

macro_rules! read_only {
    ($($name:ident = $asm:literal;)*) => {$(
        #[doc = concat!("Reads `", $asm, "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: an MRS of an identification or status register changes nothing.
            unsafe { core::arch::asm!(concat!("mrs {}, ", $asm), out(reg) value, options(nostack, preserves_flags)) };
            value
        }
    )*};
}

macro_rules! own {
    ($($name:ident = $asm:literal;)*) => {$(
        #[doc = concat!("Writes `", $asm, "`, which EL2 lives by.")]
        ///
        /// # Safety
        /// The value must keep EL2's code, stack and data reachable where they are.
        #[inline(always)]
        pub(crate) unsafe fn $name(value: u64) {
            // SAFETY: the caller vouches for the value.
            unsafe { core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

registers! {
    sctlr_el1 = "sctlr_el1";
    actlr_el1 = "actlr_el1";
    cpacr_el1 = "cpacr_el1";
    ttbr0_el1 = "ttbr0_el1";
    ttbr1_el1 = "ttbr1_el1";
    tcr_el1 = "tcr_el1";
    esr_el1 = "esr_el1";
    far_el1 = "far_el1";
    afsr0_el1 = "afsr0_el1";
    afsr1_el1 = "afsr1_el1";
    mair_el1 = "mair_el1";
    amair_el1 = "amair_el1";
    vbar_el1 = "vbar_el1";
    contextidr_el1 = "contextidr_el1";
    tpidr_el0 = "tpidr_el0";
    tpidrro_el0 = "tpidrro_el0";
    tpidr_el1 = "tpidr_el1";
    cntkctl_el1 = "cntkctl_el1";
    elr_el1 = "elr_el1";
    spsr_el1 = "spsr_el1";
    sp_el0 = "sp_el0";
    sp_el1 = "sp_el1";
    par_el1 = "par_el1";
    csselr_el1 = "csselr_el1";
    mdscr_el1 = "mdscr_el1";
    mdccint_el1 = "mdccint_el1";
    pmuserenr_el0 = "pmuserenr_el0";
    amuserenr_el0 = "S3_3_C13_C2_3";
    gcscre0_el1 = "S3_0_C2_C5_2";
    osdlr_el1 = "osdlr_el1";
    cntv_ctl_el0 = "cntv_ctl_el0";
    cntv_cval_el0 = "cntv_cval_el0";
    cntvoff_el2 = "cntvoff_el2";
    cntpoff_el2 = "S3_4_C14_C0_6";
    cnthp_ctl_el2 = "cnthp_ctl_el2";
    cnthp_cval_el2 = "cnthp_cval_el2";
    cnthctl_el2 = "cnthctl_el2";
    hcrx_el2 = "S3_4_C1_C2_2";
    hfgrtr_el2 = "S3_4_C1_C1_4";
    hfgwtr_el2 = "S3_4_C1_C1_5";
    hfgitr_el2 = "S3_4_C1_C1_6";
    hdfgrtr_el2 = "S3_4_C3_C1_4";
    hdfgwtr_el2 = "S3_4_C3_C1_5";
    hafgrtr_el2 = "S3_4_C3_C1_6";
    hstr_el2 = "hstr_el2";
    vttbr_el2 = "vttbr_el2";
    vtcr_el2 = "vtcr_el2";
    vmpidr_el2 = "vmpidr_el2";
    vpidr_el2 = "vpidr_el2";
    vdisr_el2 = "S3_4_C12_C1_1";
    vsesr_el2 = "S3_4_C5_C2_3";
    mpam2_el2 = "S3_4_C10_C5_0";
    ich_hcr_el2 = "ich_hcr_el2";
    ich_vmcr_el2 = "ich_vmcr_el2";
    ich_ap0r0_el2 = "ich_ap0r0_el2";
    ich_ap1r0_el2 = "ich_ap1r0_el2";
    icc_ap0r0_el1 = "S3_0_C12_C8_4";
    icc_ap0r1_el1 = "S3_0_C12_C8_5";
    icc_ap0r2_el1 = "S3_0_C12_C8_6";
    icc_ap0r3_el1 = "S3_0_C12_C8_7";
    icc_ap1r0_el1 = "S3_0_C12_C9_0";
    icc_ap1r1_el1 = "S3_0_C12_C9_1";
    icc_ap1r2_el1 = "S3_0_C12_C9_2";
    icc_ap1r3_el1 = "S3_0_C12_C9_3";
    icc_sre_el2 = "icc_sre_el2";
    icc_ctlr_el1 = "icc_ctlr_el1";
    icc_pmr_el1 = "icc_pmr_el1";
    icc_bpr1_el1 = "icc_bpr1_el1";
    icc_igrpen1_el1 = "icc_igrpen1_el1";
}

read_only! {
    current_el = "CurrentEL";
    midr_el1 = "midr_el1";
    mpidr_el1 = "mpidr_el1";
    ctr_el0 = "ctr_el0";
    clidr_el1 = "clidr_el1";
    ccsidr_el1 = "ccsidr_el1";
    id_aa64dfr0_el1 = "id_aa64dfr0_el1";
    id_aa64mmfr2_el1 = "S3_0_C0_C7_2";
    dczid_el0 = "dczid_el0";
    cntfrq_el0 = "cntfrq_el0";
    cntpct_el0 = "cntpct_el0";
    cntvct_el0 = "cntvct_el0";
    esr_el2 = "esr_el2";
    far_el2 = "far_el2";
    hpfar_el2 = "hpfar_el2";
    elr_el2 = "elr_el2";
    spsr_el2 = "spsr_el2";
    ich_vtr_el2 = "ich_vtr_el2";
    ich_misr_el2 = "ich_misr_el2";
    ich_elrsr_el2 = "ich_elrsr_el2";
    id_aa64isar0_el1 = "id_aa64isar0_el1";
    id_aa64mmfr0_el1 = "id_aa64mmfr0_el1";
    tpidr_el2 = "tpidr_el2";
    vbar_el2 = "vbar_el2";
    ttbr0_el2 = "ttbr0_el2";
    icc_iar1_el1 = "icc_iar1_el1";
}

own! {
    write_ttbr0_el2 = "ttbr0_el2";
    write_tcr_el2 = "tcr_el2";
    write_mair_el2 = "mair_el2";
    write_sctlr_el2 = "sctlr_el2";
    write_vbar_el2 = "vbar_el2";
    write_hcr_el2 = "hcr_el2";
    write_tpidr_el2 = "tpidr_el2";
}

/// Writes CNTFRQ_EL0, which tells a frequency and changes none. EL2 is the highest exception level.
#[inline(always)]
pub fn write_cntfrq_el0(hertz: u32) {
    // SAFETY: no code of EL2 goes by it while guests run: it is what the loaded guest is told. Where EL2 is not the highest
    // level this is undefined, and EL2 gets an exception that ends it: nobody can be harmed.
    unsafe { core::arch::asm!("msr cntfrq_el0, {:x}", in(reg) u64::from(hertz), options(nostack, preserves_flags)) };
}

/// A register of EL2 that has bits for guests and bits for EL2 itself.
macro_rules! shared {
    ($($(#[$doc:meta])* $name:ident = $asm:literal, by $filter:path;)*) => {$(
        $(#[$doc])*
        pub mod $name {
            /// Reads the register.
            #[inline(always)]
            #[must_use]
            pub fn read() -> u64 {
                let value: u64;
                // SAFETY: an MRS of a register that exists at EL2 changes nothing.
                unsafe { core::arch::asm!(concat!("mrs {}, ", $asm), out(reg) value, options(nostack, preserves_flags)) };
                value
            }

            /// Writes the register, but for the bits that EL2 lives by.
            #[inline(always)]
            pub fn write(value: u64) {
                let value = $filter(value);
                // SAFETY: what is left acts on guests only.
                unsafe { core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
            }
        }
    )*};
}

shared! {
    /// `HCR_EL2`: never without stage 2 and EL2's interrupts, nor with E2H, TGE or NV.
    hcr_el2 = "hcr_el2", by cpu::controls::guest_hcr;
    /// `MDCR_EL2`: debug exceptions never come to EL2.
    mdcr_el2 = "mdcr_el2", by cpu::controls::guest_mdcr;
}

/// Writes `CPTR_EL2`. Its traps hold for EL2's own FP/SIMD code too, so it is the business of `state`, which has all of that.
#[inline(always)]
pub(crate) fn write_cptr_el2(value: u64) {
    // SAFETY: no value changes which memory EL2 reaches or where it executes; EL2 is built without FP.
    unsafe { core::arch::asm!("msr cptr_el2, {}", in(reg) value, options(nostack, preserves_flags)) };
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $asm:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(value: u64) {
            // SAFETY: a command to the interrupt interface; it moves interrupt state and no memory.
            unsafe { core::arch::asm!(concat!("msr ", $asm, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

commands! {
    /// Drops the running priority of a group 1 interrupt (EOImode 1: without deactivating it).
    icc_eoir1_el1 = "icc_eoir1_el1";
    /// Deactivates an interrupt.
    icc_dir_el1 = "icc_dir_el1";
    /// Sends an SGI of group 1.
    icc_sgi1r_el1 = "icc_sgi1r_el1";
    /// The OS lock of self-hosted debug.
    oslar_el1 = "oslar_el1";
}

/// Waits until everything before it is architecturally visible to what follows.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier has no effect but order.
    unsafe { core::arch::asm!("isb", options(nostack, preserves_flags)) };
}

/// Completes all earlier memory accesses and maintenance, in the inner shareable domain.
#[inline(always)]
pub fn dsb_ish() {
    // SAFETY: a barrier has no effect but order.
    unsafe { core::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
}

/// Completes all earlier memory accesses and maintenance, in the whole system.
#[inline(always)]
pub fn dsb_sy() {
    // SAFETY: a barrier has no effect but order.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Sleeps until an interrupt is pending, masked or not.
#[inline(always)]
pub fn wfi() {
    // SAFETY: waiting changes no state; a pending interrupt ends it even while PSTATE.I masks it.
    unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Wakes every CPU that waits for an event, once what was written before is seen.
pub fn sev() {
    // SAFETY: an event ends a wait, which may end for no reason at any time.
    unsafe { core::arch::asm!("dsb sy", "sev", options(nostack, preserves_flags)) };
}
