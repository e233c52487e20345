//! Invalidating a guest's translations in the CPUs' TLBs (DDI 0487 D8.14).

use core::sync::atomic::{AtomicU64, Ordering};

use units::Ipa;

use crate::stage1;
use crate::sync::without_irqs;
use crate::sysreg::{self, dsb_ish, isb};

/// How often all CPUs were made to forget translations.
static BROADCASTS: AtomicU64 = AtomicU64::new(0);

/// How often all CPUs were made to forget translations, since the start.
#[must_use]
pub fn broadcasts() -> u64 {
    BROADCASTS.load(Ordering::Relaxed)
}

/// Runs `work` with `vttbr` (a stage 2 base and VMID) in VTTBR_EL2, which the invalidations go by, and IRQs masked. It is
/// about invalidations, not translations: stage 1 may be closed.
pub fn with_vttbr(vttbr: u64, work: impl FnOnce()) {
    without_irqs(|| {
        let before = sysreg::vttbr_el2::read();
        if before == vttbr {
            return work();
        }
        // Closed before VTTBR_EL2 changes, and open only when it is as before: in between the CPU could walk the stage 1 of the one
        // guest and keep the result under the VMID of the other.
        let open = stage1::is_closed_between_guests().then(stage1::close);
        sysreg::vttbr_el2::write(vttbr);
        isb();
        work();
        sysreg::vttbr_el2::write(before);
        isb();
        if let Some(open) = open {
            open.restore();
        }
    });
}

/// Invalidates everything of the current VMID, both stages, on all CPUs. The barriers are there as in [`invalidate_ipas`].
pub fn invalidate_vmid() {
    BROADCASTS.fetch_add(1, Ordering::Relaxed);
    dsb_ish();
    // SAFETY: forgetting a guest's translations only makes the CPU walk its tables again.
    unsafe { core::arch::asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}

/// As whom, and for what, the guest's stage 1 is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage1 {
    /// EL1 reads.
    KernelRead,
    /// EL1 writes.
    KernelWrite,
    /// EL1 reads while PSTATE.PAN is set. Only where FEAT_PAN2 is.
    KernelAloneRead,
    /// EL1 writes while PSTATE.PAN is set. Only where FEAT_PAN2 is.
    KernelAloneWrite,
    /// EL0 reads.
    UserRead,
    /// EL0 writes.
    UserWrite,
}

macro_rules! translate {
    ($va:ident, $($instruction:literal),*) => {
        // SAFETY: an address translation changes PAR_EL1 alone, which the caller puts back. PSTATE.PAN, which it may depend
        // on, is clear again behind it; EL2's own regime (E2H = 0) does not know it.
        unsafe { core::arch::asm!($($instruction,)* in(reg) $va, options(nostack, preserves_flags)) }
    };
}

/// Translates `va` through the guest's own stage 1 only: PAR_EL1 with an IPA. The guest's own PAR_EL1 is kept.
#[must_use]
pub fn translate_stage1(va: u64, access: Stage1) -> u64 {
    let before = sysreg::par_el1::read();
    match access {
        Stage1::KernelRead => translate!(va, "at s1e1r, {}"),
        Stage1::KernelWrite => translate!(va, "at s1e1w, {}"),
        // MSR PAN, #1; AT S1E1RP or S1E1WP, which look at this level's PAN; MSR PAN, #0.
        Stage1::KernelAloneRead => translate!(va, ".inst 0xd500419f", "sys #0, c7, c9, #0, {}", ".inst 0xd500409f"),
        Stage1::KernelAloneWrite => translate!(va, ".inst 0xd500419f", "sys #0, c7, c9, #1, {}", ".inst 0xd500409f"),
        Stage1::UserRead => translate!(va, "at s1e0r, {}"),
        Stage1::UserWrite => translate!(va, "at s1e0w, {}"),
    }
    isb();
    let result = sysreg::par_el1::read();
    sysreg::par_el1::write(before);
    result
}

/// Invalidates the current VMID's stage 2 translations of these pages, then all that combine both stages, which cannot be found by IPA;
/// on all CPUs, with one wait for all.
pub fn invalidate_ipas(pages: impl Iterator<Item = Ipa>) {
    BROADCASTS.fetch_add(1, Ordering::Relaxed);
    // The change of the table is visible to all walkers before anything is invalidated, or a walk could bring the old entry back.
    dsb_ish();
    for ipa in pages {
        // SAFETY: forgetting a guest's translations only makes the CPU walk its tables again.
        unsafe { core::arch::asm!("tlbi ipas2e1is, {}", in(reg) ipa.0 >> 12, options(nostack, preserves_flags)) };
    }
    // Stage 2's entries are gone before those that combine both stages, or a walk of stage 1 could make such a one of an old entry.
    dsb_ish();
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi vmalle1is", options(nostack, preserves_flags)) };
    // All CPUs have done so before this returns: then the caller may write another entry, or give the memory to somebody else.
    dsb_ish();
    isb();
}
