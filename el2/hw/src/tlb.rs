//! Invalidating what the CPUs remember of a guest's translations (DDI 0487 D8.14).

use core::sync::atomic::{AtomicU64, Ordering};

use units::Ipa;

use crate::sync::without_irqs;
use crate::sysreg::{self, dsb_ish, isb};

/// How often all CPUs were made to forget translations.
static BROADCASTS: AtomicU64 = AtomicU64::new(0);

/// How often all CPUs were made to forget translations, since the start.
#[must_use]
pub fn broadcasts() -> u64 {
    BROADCASTS.load(Ordering::Relaxed)
}

/// Runs `work` with `vttbr` (a stage 2 base and VMID) in VTTBR_EL2, which the invalidations go by, and IRQs masked.
pub fn with_vttbr(vttbr: u64, work: impl FnOnce()) {
    without_irqs(|| {
        let before = sysreg::vttbr_el2::read();
        if before != vttbr {
            sysreg::vttbr_el2::write(vttbr);
            isb();
        }
        work();
        if before != vttbr {
            sysreg::vttbr_el2::write(before);
            isb();
        }
    });
}

/// Invalidates the current VMID's stage 2 translations of the page at `ipa`, then all that combine both stages, which
/// cannot be found by IPA; on all CPUs.
pub fn invalidate_ipa(ipa: Ipa) {
    BROADCASTS.fetch_add(1, Ordering::Relaxed);
    dsb_ish();
    // SAFETY: forgetting a guest's translations only makes the CPU walk its tables again.
    unsafe { core::arch::asm!("tlbi ipas2e1is, {}", in(reg) ipa.0 >> 12, options(nostack, preserves_flags)) };
    dsb_ish();
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}

/// Invalidates everything of the current VMID, both stages, on all CPUs.
pub fn invalidate_vmid() {
    BROADCASTS.fetch_add(1, Ordering::Relaxed);
    dsb_ish();
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}

/// Translates `va` as the guest's EL1 (or EL0) would read it, through both stages; the page's PAR_EL1 value. The guest's
/// own PAR_EL1 is kept.
#[must_use]
pub fn translate_guest(va: u64, unprivileged: bool) -> u64 {
    let before = sysreg::par_el1::read();
    // SAFETY: an address translation changes PAR_EL1 alone, which is put back.
    unsafe {
        if unprivileged {
            core::arch::asm!("at s12e0r, {}", in(reg) va, options(nostack, preserves_flags));
        } else {
            core::arch::asm!("at s12e1r, {}", in(reg) va, options(nostack, preserves_flags));
        }
    }
    isb();
    let result = sysreg::par_el1::read();
    sysreg::par_el1::write(before);
    result
}

/// Translates `va` as the guest's EL1 (or EL0) would read it, through its own stage 1 only: PAR_EL1 with an IPA. The
/// guest's own PAR_EL1 is kept.
#[must_use]
pub fn translate_stage1(va: u64, unprivileged: bool) -> u64 {
    let before = sysreg::par_el1::read();
    // SAFETY: as above.
    unsafe {
        if unprivileged {
            core::arch::asm!("at s1e0r, {}", in(reg) va, options(nostack, preserves_flags));
        } else {
            core::arch::asm!("at s1e1r, {}", in(reg) va, options(nostack, preserves_flags));
        }
    }
    isb();
    let result = sysreg::par_el1::read();
    sysreg::par_el1::write(before);
    result
}

/// As [`translate_stage1`], for a write.
#[must_use]
pub fn translate_stage1_for_write(va: u64, unprivileged: bool) -> u64 {
    let before = sysreg::par_el1::read();
    // SAFETY: as above.
    unsafe {
        if unprivileged {
            core::arch::asm!("at s1e0w, {}", in(reg) va, options(nostack, preserves_flags));
        } else {
            core::arch::asm!("at s1e1w, {}", in(reg) va, options(nostack, preserves_flags));
        }
    }
    isb();
    let result = sysreg::par_el1::read();
    sysreg::par_el1::write(before);
    result
}

/// As [`invalidate_ipa`] for several pages, with one wait for all.
pub fn invalidate_ipas(pages: impl Iterator<Item = Ipa>) {
    BROADCASTS.fetch_add(1, Ordering::Relaxed);
    dsb_ish();
    for ipa in pages {
        // SAFETY: forgetting a guest's translations only makes the CPU walk its tables again.
        unsafe { core::arch::asm!("tlbi ipas2e1is, {}", in(reg) ipa.0 >> 12, options(nostack, preserves_flags)) };
    }
    dsb_ish();
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}
