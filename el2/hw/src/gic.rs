//! The host's GICv3 (IHI 0069): interrupts that are ours, SGIs between our CPUs, and the active state of the timer
//! interrupts that guests own.
//!
//! All interrupts are group 1. EOImode is 1: writing EOIR only drops the priority, so that a guest's own end-of-interrupt
//! deactivates what was handed to it (`ICH_LR<n>_EL2.HW`); ours are deactivated with DIR.

use core::sync::atomic::{AtomicU64, Ordering};

use units::{IntId, Pa, Range};

use crate::mmio;
use crate::percpu::this_cpu;
use crate::sysreg::{self, isb};

const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IGROUPR: u64 = 0x0080;
const GICD_ISENABLER: u64 = 0x0100;
const GICD_ICENABLER: u64 = 0x0180;
const GICD_IPRIORITYR: u64 = 0x0400;
const GICD_IROUTER: u64 = 0x6000;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
/// From a Redistributor's first frame to its SGI and PPI frame, whose registers have the Distributor's offsets.
const SGI_FRAME: u64 = 0x1_0000;
const ISACTIVER0: u64 = 0x0300;
const ICACTIVER0: u64 = 0x0380;

const CTLR_ENABLE: u64 = 0b11;
const CTLR_ARE: u64 = 1 << 4;
const CTLR_RWP: u32 = 1 << 31;
const WAKER_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// The priority of all our interrupts, in every byte.
const PRIORITIES: u32 = 0x8080_8080;

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

static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);

/// Sets the Distributor up: everything group 1, disabled, equal priority.
pub fn init_distributor(registers: Range<Pa>) {
    let base = registers.start.0;
    // Pairs with the acquire in `enable_spi`.
    DISTRIBUTOR.store(base, Ordering::Release);
    mmio::write32(base + GICD_CTLR, 0);
    wait_for_writes(base);
    let words = u64::from(mmio::read32(base + GICD_TYPER) & 0x1f) + 1;
    for word in 1..words {
        mmio::write32(base + GICD_ICENABLER + 4 * word, u32::MAX);
        mmio::write32(base + GICD_IGROUPR + 4 * word, u32::MAX);
    }
    mmio::write32(base + GICD_CTLR, (CTLR_ENABLE | CTLR_ARE) as u32);
    wait_for_writes(base);
}

fn wait_for_writes(base: u64) {
    while mmio::read32(base + GICD_CTLR) & CTLR_RWP != 0 {
        core::hint::spin_loop();
    }
}

/// Finds the Redistributor of the CPU with affinity `mpidr` in the regions that the platform describes.
#[must_use]
pub fn find_redistributor(regions: &[Range<Pa>], mpidr: u64) -> Option<Pa> {
    let affinity = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
    for region in regions {
        let mut frame = region.start.0;
        while frame + 2 * SGI_FRAME <= region.end().0 {
            let kind = mmio::read64(frame + GICR_TYPER);
            if kind >> 32 == affinity {
                return Some(Pa(frame));
            }
            // VLPIS: four frames instead of two. Last: the region ends here.
            let frames = if kind & 2 != 0 { 4 } else { 2 };
            if kind & 0x10 != 0 {
                break;
            }
            frame += frames * SGI_FRAME;
        }
    }
    None
}

/// Sets this CPU's Redistributor and interface up, and lets its own interrupts in.
pub fn init_cpu(redistributor: Pa) {
    crate::state::count_list_registers();
    this_cpu().redistributor.store(redistributor.0, Ordering::Relaxed);
    let base = redistributor.0;
    mmio::write32(base + GICR_WAKER, mmio::read32(base + GICR_WAKER) & !WAKER_SLEEP);
    while mmio::read32(base + GICR_WAKER) & WAKER_CHILDREN_ASLEEP != 0 {
        core::hint::spin_loop();
    }
    let private = base + SGI_FRAME;
    mmio::write32(private + GICD_ICENABLER, u32::MAX);
    mmio::write32(private + ICACTIVER0, u32::MAX);
    mmio::write32(private + GICD_IGROUPR, u32::MAX);
    for word in 0..8 {
        mmio::write32(private + GICD_IPRIORITYR + 4 * word, PRIORITIES);
    }
    let ours = [KICK, HALT, HYPERVISOR_TIMER, VIRTUAL_TIMER, MAINTENANCE];
    mmio::write32(private + GICD_ISENABLER, ours.iter().fold(0, |set, id| set | 1 << id.0));

    // System registers on for us; a guest's accesses to ICC_SRE_EL1 trap (Enable = 0): it always reads as on.
    sysreg::icc_sre_el2::write(0b0111);
    isb();
    sysreg::icc_pmr_el1::write(0xff);
    sysreg::icc_bpr1_el1::write(0);
    sysreg::icc_ctlr_el1::write(sysreg::icc_ctlr_el1::read() | 1 << 1);
    sysreg::icc_igrpen1_el1::write(1);
    isb();
}

/// Routes SPI `interrupt` to this CPU and enables it.
pub fn enable_spi(interrupt: IntId) {
    // Pairs with the release in `init_distributor`.
    let base = DISTRIBUTOR.load(Ordering::Acquire);
    let (word, bit) = (u64::from(interrupt.0 / 32), 1 << (interrupt.0 % 32));
    let shift = 8 * (interrupt.0 % 4);
    let priority = base + GICD_IPRIORITYR + u64::from(interrupt.0 & !3);
    mmio::write32(priority, mmio::read32(priority) & !(0xff << shift) | 0x80 << shift);
    mmio::write64(base + GICD_IROUTER + 8 * u64::from(interrupt.0), this_cpu().affinity);
    mmio::write32(base + GICD_ISENABLER + 4 * word, bit);
}

/// Disables SPI `interrupt`: it may be pending, and does not come.
pub fn disable_spi(interrupt: IntId) {
    // Pairs with the release in `init_distributor`.
    let base = DISTRIBUTOR.load(Ordering::Acquire);
    mmio::write32(base + GICD_ICENABLER + 4 * u64::from(interrupt.0 / 32), 1 << (interrupt.0 % 32));
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
    let base = this_cpu().redistributor.load(Ordering::Relaxed) + SGI_FRAME;
    mmio::write32(base + if active { ISACTIVER0 } else { ICACTIVER0 }, 1 << (interrupt.0 & 31));
}

/// Sends SGI `interrupt` to the CPU whose MPIDR affinity is `affinity`.
pub fn send_sgi(affinity: u64, interrupt: IntId) {
    let (aff3, aff2, aff1, aff0) =
        (affinity >> 32 & 0xff, affinity >> 16 & 0xff, affinity >> 8 & 0xff, affinity & 0xff);
    let value =
        aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | u64::from(interrupt.0) << 24 | aff1 << 16 | 1 << (aff0 & 0xf);
    // What the receiver is to see must be visible before the interrupt is.
    sysreg::dsb_ish();
    sysreg::icc_sgi1r_el1(value);
    isb();
}

/// Sends SGI `interrupt` to all CPUs but this one.
pub fn send_sgi_to_others(interrupt: IntId) {
    sysreg::dsb_ish();
    sysreg::icc_sgi1r_el1(1 << 40 | u64::from(interrupt.0) << 24);
    isb();
}
