//! Does this CPU trap WFE? The architecture lets it complete every WFE at once, and emulators have done so; then
//! HCR_EL2.TWE traps nothing and a guest that calls through WFE gets no answer. No register says which it is, so a few
//! instructions at EL1 try it.
//!
//! They run with the MMU off at both stages, with all interrupts masked for EL1 and routed to it, so that there are
//! only two ways back: the trap, or the HVC after the WFEs. `SEVL; WFE` empties the event register, the second WFE has
//! to wait; an event stream of the physical counter ends the wait where nothing traps.

use core::arch::global_asm;

use units::{Pa, Range};

use crate::sysreg::{cnthctl_el2, hcr_el2, isb, sctlr_el1, write_hcr_el2};
use crate::vcpu::{ContextHandle, VcpuContext, enter, exit_kind};
use crate::{cache, tlb};

global_asm!(
    r#"
    .pushsection .text.wfe_probe, "ax"
    .balign 64
    .global wfe_probe
wfe_probe:
    sevl
    wfe
    wfe
    hvc     #0
    b       wfe_probe
    .balign 64
    .popsection
    "#
);

/// HCR_EL2: EL1 is AArch64; WFE traps. No stage 2, no interrupt for EL2.
const HCR: u64 = 1 << 31 | 1 << 14;
/// SCTLR_EL1: the bits that are one where they mean nothing; MMU and caches off.
const SCTLR: u64 = 0x30d0_0800;
/// PSTATE: EL1 with SP_EL1, everything masked.
const PSTATE: u64 = 0x3c5;
/// CNTHCTL_EL2: an event whenever bit 10 of the physical counter rises, some microseconds apart.
const EVENT_STREAM: u64 = 1 << 2 | 10 << 4;
/// ESR_EL2.EC of a trapped WFE (or WFI).
const CLASS_WAIT: u64 = 1;
/// Number of the owner of no vCPU: the exit hook leaves such an exit to us.
const NOBODY: usize = usize::MAX;
/// One WFE may complete early for a reason of its own; not each of these.
const ATTEMPTS: usize = 4;

unsafe extern "C" {
    static wfe_probe: u8;
}

/// Whether a WFE at EL1 that has to wait comes to EL2. On the CPU that this runs on, before it has run any guest; IRQs are
/// masked, vectors and exit hook are in place.
#[must_use]
pub fn traps_wfe() -> bool {
    let code = (&raw const wfe_probe) as u64;
    cache::publish_code(Range { start: Pa(code), size: 64 });
    let (context, handle): (_, ContextHandle) = VcpuContext::create(NOBODY);
    handle.make_current();
    let before = (hcr_el2::read(), cnthctl_el2::read(), sctlr_el1::read());
    // SAFETY: without stage 2 the five instructions above run at EL1, and nothing else; EL2's own bits are zero.
    unsafe { write_hcr_el2(HCR) };
    cnthctl_el2::write(before.1 & !0xff | before.1 & 3 | EVENT_STREAM);
    sctlr_el1::write(SCTLR);
    isb();
    let trapped = (0..ATTEMPTS).any(|_| {
        (context.pc, context.pstate) = (code, PSTATE);
        enter(context) == exit_kind::SYNCHRONOUS && context.syndrome >> 26 == CLASS_WAIT
    });
    // SAFETY: as it was.
    unsafe { write_hcr_el2(before.0) };
    cnthctl_el2::write(before.1);
    sctlr_el1::write(before.2);
    isb();
    // With stage 2 off everything was translated to itself, for the VMID that VTTBR_EL2 holds now: no guest's.
    tlb::invalidate_vmid();
    trapped
}
