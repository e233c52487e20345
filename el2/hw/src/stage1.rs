//! Keeping one guest's stage 1 from being walked under another guest's VMID, on CPUs that would.
//!
//! Some CPUs translate addresses speculatively while EL2 switches from guest to guest, with the EL1 registers of one and the VMID
//! of the other, and the result stays in the TLB as the other's (errata of Cortex-A55, A57, A72 and A76,
//! `cpu::speculation::translates_out_of_context`). There, stage 1 is *closed* before VTTBR_EL2 changes: it is on (SCTLR_EL1.M),
//! so that no address is translated to itself, and must not walk (TCR_EL1.EPD0 and EPD1), so that no translation is found. It
//! opens after the change, in the reverse order, with a context synchronisation after each step.
//!
//! From `GuestState::save` until the next `GuestState::load` it stays closed.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::sysreg::{isb, sctlr_el1, tcr_el1};

/// TCR_EL1.EPD0 and EPD1: a TLB miss is a fault.
pub const TCR_NO_WALKS: u64 = 1 << 7 | 1 << 23;
/// SCTLR_EL1.M.
pub const SCTLR_ON: u64 = 1;

/// Some CPU of this host needs it. All do it then: which CPU a vCPU comes to is open, and few hosts have unlike ones.
static NEEDED: AtomicBool = AtomicBool::new(false);

/// From now on stage 1 is closed between guests. Called on each CPU that needs it, before it runs a guest.
pub fn close_between_guests() {
    NEEDED.store(true, Ordering::Relaxed);
    close();
    // Nothing of before stays: no guest has run here yet, and what firmware left in these registers was open.
    crate::tlb::invalidate_vmid();
}

#[inline(always)]
pub(crate) fn is_closed_between_guests() -> bool {
    NEEDED.load(Ordering::Relaxed)
}

/// SCTLR_EL1 and TCR_EL1 as the guest has them.
#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) sctlr: u64,
    pub(crate) tcr: u64,
}

/// Closes stage 1. Returns what it was.
#[cold]
#[inline(never)]
pub(crate) fn close() -> Open {
    let open = Open { sctlr: sctlr_el1::read(), tcr: tcr_el1::read() };
    tcr_el1::write(open.tcr | TCR_NO_WALKS);
    isb();
    sctlr_el1::write(open.sctlr | SCTLR_ON);
    isb();
    open
}

impl Open {
    /// Opens stage 1, after VTTBR_EL2 was written.
    #[cold]
    #[inline(never)]
    pub(crate) fn restore(self) {
        isb();
        sctlr_el1::write(self.sctlr);
        isb();
        tcr_el1::write(self.tcr);
        isb();
    }
}
