//! The host's GICv3 (IHI 0069): interrupts that are ours, SGIs between our CPUs, and the active state of the timer
//! interrupts that guests own. The registers in memory are `drivers::Distributor`'s and `drivers::Redistributor`'s; those of
//! the CPU interface are here.
//!
//! All interrupts are group 1. EOImode is 1: writing EOIR only drops the priority, so that a guest's own end-of-interrupt
//! deactivates what was handed to it (`ICH_LR<n>_EL2.HW`); ours are deactivated with DIR.

use core::sync::atomic::Ordering;

use drivers::{Distributor, InterruptLine, Redistributor};
use spin::Once;
use units::{IntId, Pa, Range};

use crate::mmio::{Region, RegionError};
use crate::percpu::this_cpu;
use crate::sysreg::{self, isb};

/// The SGI that asks a CPU to look at its run queue and its vCPU's requests.
pub const KICK: IntId = IntId(0);
/// The SGI that stops a CPU for good, when another one crashed.
pub const HALT: IntId = IntId(1);
/// The EL2 physical timer's PPI.
pub const HYPERVISOR_TIMER: IntId = IntId(26);
/// The virtual timer's PPI.
pub const VIRTUAL_TIMER: IntId = IntId(27);
/// The virtual interrupt interface's maintenance PPI.
pub const MAINTENANCE: IntId = IntId(25);
/// What the CPU interface returns when nothing is pending.
pub const SPURIOUS: u32 = 1020;

static DISTRIBUTOR: Once<Distributor<Region>> = Once::new();

/// Sets the Distributor up: everything group 1, disabled, equal priority.
///
/// # Errors
/// When there can be none at `registers`.
pub fn init_distributor(registers: Range<Pa>) -> Result<(), RegionError> {
    let distributor = Distributor::new(Region::open(registers)?)?;
    distributor.init();
    DISTRIBUTOR.call_once(|| distributor);
    Ok(())
}

/// The Distributor, once it is set up.
pub(crate) fn distributor() -> Option<&'static Distributor<Region>> {
    DISTRIBUTOR.get()
}

fn open_redistributor(frame: Pa) -> Result<(Redistributor<Region>, Pa), RegionError> {
    let region = Region::open(Range { start: frame, size: Redistributor::<Region>::SIZE })?;
    let start = region.start();
    Ok((Redistributor::new(region)?, start))
}

/// GICR_TYPER of the Redistributor at `frame`. Where there is none it is that of nobody's, and the last.
#[must_use]
pub fn redistributor_type(frame: Pa) -> u64 {
    open_redistributor(frame).map_or(u64::MAX, |(redistributor, _)| redistributor.kind())
}

/// Sets this CPU's Redistributor, which is at `frame`, and its interface up, and lets in its SGIs that are ours, and the interrupts
/// of `lines`, which are its own.
///
/// # Errors
/// When there can be none.
pub fn init_cpu(frame: Pa, lines: &[InterruptLine]) -> Result<(), RegionError> {
    crate::state::count_list_registers();
    let (redistributor, start) = open_redistributor(frame)?;
    redistributor.init(&[KICK, HALT], lines);
    this_cpu().redistributor.store(start.0, Ordering::Relaxed);

    // System registers on for us; a guest's accesses to ICC_SRE_EL1 trap (Enable = 0): it always reads as on.
    sysreg::icc_sre_el2::write(0b0111);
    isb();
    sysreg::icc_pmr_el1::write(0xff);
    sysreg::icc_bpr1_el1::write(0);
    sysreg::icc_ctlr_el1::write(sysreg::icc_ctlr_el1::read() | 1 << 1);
    forget_interrupts();
    sysreg::icc_igrpen1_el1::write(1);
    isb();
    Ok(())
}

/// Whoever had this CPU before may have started us in the middle of an interrupt, or have had guests: an active priority would keep all
/// other interrupts from us, and what is in list registers would be our first guest's.
#[cold]
#[inline(never)]
fn forget_interrupts() {
    // ICC_CTLR_EL1.PRIbits: priorities of one bit more. Of 5 bits and fewer there is one register for each group, then two, then four.
    let bits = sysreg::icc_ctlr_el1::read() >> 8 & 7;
    if bits > 5 {
        sysreg::icc_ap0r3_el1::write(0);
        sysreg::icc_ap0r2_el1::write(0);
        sysreg::icc_ap1r3_el1::write(0);
        sysreg::icc_ap1r2_el1::write(0);
    }
    if bits > 4 {
        sysreg::icc_ap0r1_el1::write(0);
        sysreg::icc_ap1r1_el1::write(0);
    }
    sysreg::icc_ap0r0_el1::write(0);
    sysreg::icc_ap1r0_el1::write(0);
    sysreg::ich_hcr_el2::write(0);
    crate::state::clear_list_registers();
}

/// Has the SPI of `line` signalled as that says, routes it to this CPU and enables it.
pub fn enable_spi(line: InterruptLine) {
    if let Some(distributor) = distributor() {
        distributor.enable(line, this_cpu().affinity);
    }
}

/// Disables SPI `interrupt`: it may be pending, and does not come.
pub fn disable_spi(interrupt: IntId) {
    if let Some(distributor) = distributor() {
        distributor.disable(interrupt);
    }
}

/// Whether ICH_MISR_EL2.VGrp0D follows ICH_VMCR_EL2.VENG0: QEMU's GIC (up to 11.1) looks at VENG1. Before a guest has run on
/// this CPU; IRQs are masked.
#[must_use]
pub fn tells_of_group_0() -> bool {
    const ENABLE: u64 = 1 << 0;
    const GROUP_0_DISABLED: u64 = 1 << 5;
    let before = (sysreg::ich_hcr_el2::read(), sysreg::ich_vmcr_el2::read());
    sysreg::ich_hcr_el2::write(ENABLE | GROUP_0_DISABLED);
    let told = [0b01, 0b10].map(|groups| {
        sysreg::ich_vmcr_el2::write(groups);
        isb();
        sysreg::ich_misr_el2() & GROUP_0_DISABLED != 0
    });
    sysreg::ich_hcr_el2::write(before.0);
    sysreg::ich_vmcr_el2::write(before.1);
    isb();
    told == [false, true]
}

/// Takes the most important pending interrupt; at least [`SPURIOUS`] if there is none.
#[inline(always)]
#[must_use]
pub fn acknowledge() -> u32 {
    sysreg::icc_iar1_el1() as u32
}

/// Drops the running priority; the interrupt stays active.
#[inline(always)]
pub fn drop_priority(interrupt: u32) {
    sysreg::icc_eoir1_el1(u64::from(interrupt));
}

/// Ends an interrupt of ours: priority and active state.
#[inline(always)]
pub fn end(interrupt: u32) {
    sysreg::icc_eoir1_el1(u64::from(interrupt));
    sysreg::icc_dir_el1(u64::from(interrupt));
}

/// Sets or clears the active state of one of this CPU's private interrupts.
pub fn set_active(interrupt: IntId, active: bool) {
    let start = Pa(this_cpu().redistributor.load(Ordering::Relaxed));
    // Its size is known, so nothing of this is left but one store.
    if let Ok(redistributor) = Redistributor::new(Region::opened_before(start, Redistributor::<Region>::SIZE)) {
        redistributor.set_active(interrupt, active);
    }
}

/// Sends SGI `interrupt` to the CPU whose MPIDR affinity is `affinity`.
pub fn send_sgi(affinity: u64, interrupt: IntId) {
    let (aff3, aff2, aff1, aff0) =
        (affinity >> 32 & 0xff, affinity >> 16 & 0xff, affinity >> 8 & 0xff, affinity & 0xff);
    let value =
        aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | u64::from(interrupt.0) << 24 | aff1 << 16 | 1 << (aff0 & 0xf);
    // What the receiver is to see must be visible before the interrupt is: it looks once, and would not look again.
    sysreg::dsb_ish();
    sysreg::icc_sgi1r_el1(value);
    isb();
}

/// Sends SGI `interrupt` to all CPUs but this one.
pub fn send_sgi_to_others(interrupt: IntId) {
    // As in `send_sgi`.
    sysreg::dsb_ish();
    sysreg::icc_sgi1r_el1(1 << 40 | u64::from(interrupt.0) << 24);
    isb();
}
