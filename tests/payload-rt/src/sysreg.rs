//! System registers by name: each is a module with `read()` and, where a payload writes it, `write()`.
//!
//! None of these can break Rust's own state: the translation and vector registers are readable only. Other encodings go through
//! [`crate::instruction`], which knows no names.

use core::arch::asm;

macro_rules! registers {
    ($($access:ident $name:ident = $encoding:literal, $about:literal;)*) => { $(
        #[doc = $about]
        pub mod $name {
            use core::arch::asm;
            registers!(@$access $encoding);
        }
    )* };
    (@rw $encoding:literal) => {
        registers!(@ro $encoding);
        /// Writes the register, then synchronises the context.
        #[inline(always)]
        pub fn write(value: u64) {
            // SAFETY: this register does not govern memory, stack or control flow of the payload.
            unsafe { asm!(concat!("msr ", $encoding, ", {}"), "isb", in(reg) value, options(nostack)) };
        }
    };
    (@ro $encoding:literal) => {
        /// Reads the register.
        #[inline(always)]
        #[must_use]
        pub fn read() -> u64 {
            let value: u64;
            // SAFETY: reading this register changes nothing that Rust knows of.
            unsafe { asm!(concat!("mrs {}, ", $encoding), out(reg) value, options(nostack)) };
            value
        }
    };
}

registers! {
    ro mpidr_el1 = "mpidr_el1", "This CPU's affinity.";
    ro midr_el1 = "midr_el1", "Main ID register.";
    ro esr_el1 = "esr_el1", "Exception syndrome.";
    ro far_el1 = "far_el1", "Fault address.";
    ro currentel = "currentel", "The exception level in bits 3:2.";
    ro tpidr_el1 = "tpidr_el1", "The runtime keeps the CPU's index here.";
    ro daif = "daif", "What is masked: IRQs by bit 7.";
    ro ctr_el0 = "ctr_el0", "Cache type.";
    ro sctlr_el1 = "sctlr_el1", "System control.";
    rw tpidr_el0 = "tpidr_el0", "Software thread register.";
    rw par_el1 = "par_el1", "Result of an address translation.";
    rw contextidr_el1 = "contextidr_el1", "Context ID.";
    rw mdscr_el1 = "mdscr_el1", "Monitor debug control.";
    rw oslar_el1 = "S2_0_C1_C0_4", "OS lock access; reads are UNDEFINED.";
    ro oslsr_el1 = "S2_0_C1_C1_4", "OS lock status.";
    rw dbgbvr0_el1 = "S2_0_C0_C0_4", "Breakpoint value 0.";
    rw dbgbcr0_el1 = "S2_0_C0_C0_5", "Breakpoint control 0.";
    rw dbgwvr0_el1 = "S2_0_C0_C0_6", "Watchpoint value 0.";
    rw dbgwcr0_el1 = "S2_0_C0_C0_7", "Watchpoint control 0.";
    ro cntfrq_el0 = "cntfrq_el0", "Counter frequency, Hz.";
    ro cntvct_el0 = "cntvct_el0", "Virtual counter, not ordered; see `timer::now`.";
    ro cntpct_el0 = "cntpct_el0", "Physical counter, not ordered.";
    rw cntv_ctl_el0 = "cntv_ctl_el0", "Virtual timer control.";
    rw cntv_cval_el0 = "cntv_cval_el0", "Virtual timer compare value.";
    rw cntv_tval_el0 = "cntv_tval_el0", "Virtual timer, 32 signed bits from now.";
    rw cntp_ctl_el0 = "cntp_ctl_el0", "Physical timer control.";
    rw cntp_cval_el0 = "cntp_cval_el0", "Physical timer compare value.";
    rw cntp_tval_el0 = "cntp_tval_el0", "Physical timer, 32 signed bits from now.";
    rw cntkctl_el1 = "cntkctl_el1", "Counter access for EL0, event stream.";
    rw icc_sre_el1 = "S3_0_C12_C12_5", "System register interface enable.";
    rw icc_pmr_el1 = "S3_0_C4_C6_0", "Priority mask.";
    rw icc_bpr1_el1 = "S3_0_C12_C12_3", "Binary point of group 1.";
    rw icc_ctlr_el1 = "S3_0_C12_C12_4", "CPU interface control.";
    rw icc_igrpen0_el1 = "S3_0_C12_C12_6", "Group 0 enable.";
    rw icc_igrpen1_el1 = "S3_0_C12_C12_7", "Group 1 enable.";
    ro icc_iar0_el1 = "S3_0_C12_C8_0", "Acknowledge group 0; a read changes state.";
    rw icc_bpr0_el1 = "S3_0_C12_C8_3", "Binary point of group 0.";
    ro icc_hppir0_el1 = "S3_0_C12_C8_2", "Highest priority pending, group 0.";
    rw icc_eoir0_el1 = "S3_0_C12_C8_1", "End of interrupt, group 0.";
    ro icc_iar1_el1 = "S3_0_C12_C12_0", "Acknowledge group 1; a read changes state.";
    rw icc_eoir1_el1 = "S3_0_C12_C12_1", "End of interrupt, group 1.";
    rw icc_dir_el1 = "S3_0_C12_C11_1", "Deactivate.";
    ro icc_hppir1_el1 = "S3_0_C12_C12_2", "Highest priority pending, group 1.";
    ro icc_rpr_el1 = "S3_0_C12_C11_3", "Running priority.";
    rw icc_sgi1r_el1 = "S3_0_C12_C11_5", "Send an SGI of group 1.";
    rw icc_ap0r0_el1 = "S3_0_C12_C8_4", "Active priorities of group 0.";
    rw icc_ap1r0_el1 = "S3_0_C12_C9_0", "Active priorities of group 1.";
    ro id_aa64pfr0_el1 = "S3_0_C0_C4_0", "Processor features 0.";
    ro id_aa64pfr1_el1 = "S3_0_C0_C4_1", "Processor features 1.";
    ro id_aa64zfr0_el1 = "S3_0_C0_C4_4", "SVE features.";
    ro id_aa64smfr0_el1 = "S3_0_C0_C4_5", "SME features.";
    ro id_aa64dfr0_el1 = "S3_0_C0_C5_0", "Debug features 0.";
    ro id_aa64dfr1_el1 = "S3_0_C0_C5_1", "Debug features 1.";
    ro id_aa64isar0_el1 = "S3_0_C0_C6_0", "Instruction set 0.";
    ro id_aa64isar1_el1 = "S3_0_C0_C6_1", "Instruction set 1.";
    ro id_aa64isar2_el1 = "S3_0_C0_C6_2", "Instruction set 2.";
    ro id_aa64mmfr0_el1 = "S3_0_C0_C7_0", "Memory model 0.";
    ro id_aa64mmfr1_el1 = "S3_0_C0_C7_1", "Memory model 1.";
    ro id_aa64mmfr2_el1 = "S3_0_C0_C7_2", "Memory model 2.";
}

/// A four-bit field of an ID register, its lowest bit at `shift`.
#[must_use]
pub fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 0xf
}

/// Waits for all earlier accesses, drops all translations of EL1 and EL0, on all CPUs.
pub fn invalidate_tlb() {
    // SAFETY: the identity map stays what it was; only cached copies go.
    unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// Context synchronisation.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Full data synchronisation.
#[inline(always)]
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
