//! The CPU's own random number generator (FEAT_RNG, RNDR).

/// 64 random bits, if the CPU has a generator and it has some to give right now.
#[must_use]
pub fn random() -> Option<u64> {
    let isar0: u64;
    // SAFETY: reading an identification register changes nothing.
    unsafe { core::arch::asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nostack, preserves_flags)) };
    if isar0 >> 60 == 0 {
        return None;
    }
    let failed: u64;
    let value: u64;
    // SAFETY: the register exists; reading it sets the flags, Z for failure.
    unsafe {
        core::arch::asm!("mrs {}, S3_3_C2_C4_0", "cset {}, eq", out(reg) value, out(reg) failed, options(nostack))
    };
    (failed == 0).then_some(value)
}
