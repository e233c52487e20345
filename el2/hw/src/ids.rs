//! All identification registers of this CPU, and a few registers that exist only with some features.

use core::arch::asm;

macro_rules! read_group {
    ($values:ident, $crm:literal: $($op2:literal)*) => {$(
        // SAFETY: every encoding of the identification space (op0 = 3, op1 = 0, CRn = 0, CRm = 1 to 7) can be read at
        // EL2; those without a register read as zero (DDI 0487 D24.1, "ID registers").
        unsafe {
            asm!(concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2), out(reg) $values[($crm - 1) * 8 + $op2],
                options(nostack, preserves_flags));
        }
    )*};
}

/// All 56, indexed by (CRm - 1) * 8 + op2. Not inlined: it is long, and called three times.
#[must_use]
#[inline(never)]
pub fn read_all() -> [u64; 56] {
    let mut values = [0_u64; 56];
    read_group!(values, 1: 0 1 2 3 4 5 6 7);
    read_group!(values, 2: 0 1 2 3 4 5 6 7);
    read_group!(values, 3: 0 1 2 3 4 5 6 7);
    read_group!(values, 4: 0 1 2 3 4 5 6 7);
    read_group!(values, 5: 0 1 2 3 4 5 6 7);
    read_group!(values, 6: 0 1 2 3 4 5 6 7);
    read_group!(values, 7: 0 1 2 3 4 5 6 7);
    values
}

/// PMCR_EL0.N, the number of event counters. Only on a CPU with performance monitors.
#[must_use]
pub fn event_counters() -> u8 {
    let value: u64;
    // SAFETY: the caller has checked that the register exists; reading it changes nothing.
    unsafe { asm!("mrs {}, pmcr_el0", out(reg) value, options(nostack, preserves_flags)) };
    (value >> 11 & 0x1f) as u8
}

/// Clears the trap registers of FEAT_FGT2: HFGRTR2_EL2, HFGWTR2_EL2, HFGITR2_EL2, HDFGRTR2_EL2, HDFGWTR2_EL2. Zero bits
/// trap. Only on a CPU that has them.
pub fn clear_fine_grained_2() {
    // SAFETY: these registers act on lower exception levels only.
    unsafe {
        asm!(
            "msr S3_4_C3_C1_2, xzr",
            "msr S3_4_C3_C1_3, xzr",
            "msr S3_4_C3_C1_7, xzr",
            "msr S3_4_C3_C1_0, xzr",
            "msr S3_4_C3_C1_1, xzr",
            options(nostack, preserves_flags)
        );
    }
}
