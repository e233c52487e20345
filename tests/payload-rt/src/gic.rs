//! GICv3 as software at EL1 sees it (IHI 0069): Distributor, Redistributors by affinity, the CPU interface by system registers.
//!
//! One security state, affinity routing on; everything is in group 1. Addresses are those of the `virt` machine, written down
//! again on purpose, as those of the other devices are: payloads run on the bare machine too, and so bear witness that
//! `core/machine` has its devices where that has them.

use core::ops::Range;

use spin::Mutex;

use crate::machine::machine;
use crate::{memory, sysreg};

/// The Distributor.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// The first Redistributor.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// From one Redistributor to the next: two frames of 64 KiB.
pub const REDISTRIBUTOR_STRIDE: u64 = 0x2_0000;

/// Distributor control.
pub const GICD_CTLR: u64 = 0x0000;
/// Distributor type.
pub const GICD_TYPER: u64 = 0x0004;
/// Distributor implementer.
pub const GICD_IIDR: u64 = 0x0008;
/// Identification of the architecture version.
pub const GICD_PIDR2: u64 = 0xffe8;
/// Interrupt routing, eight bytes each.
pub const GICD_IROUTER: u64 = 0x6000;

/// Redistributor control.
pub const GICR_CTLR: u64 = 0x0000;
/// Redistributor type, eight bytes.
pub const GICR_TYPER: u64 = 0x0008;
/// Redistributor power.
pub const GICR_WAKER: u64 = 0x0014;
/// The frame of SGIs and PPIs; in it the registers are laid out as in the Distributor.
pub const SGI_FRAME: u64 = 0x1_0000;

/// Group, one bit an interrupt.
pub const IGROUPR: u64 = 0x0080;
/// Set-enable.
pub const ISENABLER: u64 = 0x0100;
/// Clear-enable.
pub const ICENABLER: u64 = 0x0180;
/// Set-pending.
pub const ISPENDR: u64 = 0x0200;
/// Clear-pending.
pub const ICPENDR: u64 = 0x0280;
/// Set-active.
pub const ISACTIVER: u64 = 0x0300;
/// Clear-active.
pub const ICACTIVER: u64 = 0x0380;
/// Priority, one byte an interrupt.
pub const IPRIORITYR: u64 = 0x0400;
/// Configuration, two bits an interrupt.
pub const ICFGR: u64 = 0x0c00;

/// Enable group 1 and affinity routing, in [`GICD_CTLR`] with one security state.
pub const CTLR_ENABLE: u32 = 1 << 4 | 1 << 1;

/// What acknowledging returns when nothing is pending.
pub const SPURIOUS: u32 = 1023;
/// The priority that everything gets at the start.
pub const DEFAULT_PRIORITY: u8 = 0xa0;

/// How an interrupt's input is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Asserted as long as the input is.
    Level,
    /// Asserted by a rising edge.
    Edge,
}

/// The redistributor of the CPU with `affinity`, by its GICR_TYPER.
#[must_use]
pub fn redistributor(affinity: u64) -> u64 {
    let packed = affinity >> 32 << 24 | affinity & 0xff_ffff;
    let mut base = REDISTRIBUTORS;
    loop {
        let typer = memory::read64(base + GICR_TYPER);
        if typer >> 32 == packed & 0xffff_ffff {
            return base;
        }
        assert!(typer & 1 << 4 == 0, "no redistributor for affinity {affinity:#x}");
        base += REDISTRIBUTOR_STRIDE;
    }
}

/// This CPU's affinity without the other bits of MPIDR_EL1.
#[must_use]
pub fn own_affinity() -> u64 {
    sysreg::mpidr_el1::read() & 0xff_00ff_ffff
}

/// This CPU's redistributor.
#[must_use]
pub fn own_redistributor() -> u64 {
    redistributor(own_affinity())
}

/// The frame that holds `intid`'s registers, seen from this CPU.
fn frame(intid: u32) -> u64 {
    if intid < 32 { own_redistributor() + SGI_FRAME } else { DISTRIBUTOR }
}

/// The address of the 32-bit word of `bank` (one bit an interrupt) with `intid`, seen from this CPU.
#[must_use]
pub fn bit_register(bank: u64, intid: u32) -> u64 {
    frame(intid) + bank + u64::from(intid / 32) * 4
}

/// Writes the bit of `intid` in a set or clear `bank`.
pub fn write_bit(bank: u64, intid: u32) {
    memory::write32(bit_register(bank, intid), 1 << (intid % 32));
}

/// Reads the bit of `intid` in `bank`.
#[must_use]
pub fn read_bit(bank: u64, intid: u32) -> bool {
    memory::read32(bit_register(bank, intid)) >> (intid % 32) & 1 != 0
}

/// Lets `intid` be delivered.
pub fn enable(intid: u32) {
    write_bit(ISENABLER, intid);
}

/// Keeps `intid` from being delivered, and waits until that holds.
pub fn disable(intid: u32) {
    write_bit(ICENABLER, intid);
    wait_for_writes();
}

/// Sets `intid`'s priority; lower is more urgent.
pub fn set_priority(intid: u32, priority: u8) {
    memory::write8(frame(intid) + IPRIORITYR + u64::from(intid), priority);
}

/// The priority as the GIC stores it.
#[must_use]
pub fn priority(intid: u32) -> u8 {
    memory::read8(frame(intid) + IPRIORITYR + u64::from(intid))
}

/// Sets how `intid`'s input is read.
pub fn set_trigger(intid: u32, trigger: Trigger) {
    let address = frame(intid) + ICFGR + u64::from(intid / 16) * 4;
    let bit = 2 << (intid % 16 * 2);
    let others = memory::read32(address) & !bit;
    memory::write32(address, if trigger == Trigger::Edge { others | bit } else { others });
}

/// Routes an SPI to the CPU with `affinity`.
pub fn route(intid: u32, affinity: u64) {
    memory::write64(DISTRIBUTOR + GICD_IROUTER + u64::from(intid) * 8, affinity);
}

/// Waits until the Distributor and this CPU's Redistributor have taken their writes in (RWP).
pub fn wait_for_writes() {
    while memory::read32(DISTRIBUTOR + GICD_CTLR) >> 31 != 0 {}
    let own = own_redistributor();
    while memory::read32(own + GICR_CTLR) >> 3 & 1 != 0 {}
}

/// The INTIDs of the SPIs that GICD_TYPER states.
#[must_use]
pub fn spis() -> Range<u32> {
    let lines = memory::read32(DISTRIBUTOR + GICD_TYPER) & 0x1f;
    32..(32 * (lines + 1)).min(1020)
}

/// The first thing that is not as a reset leaves it: the address of the register, and what it held. Noted by the entry code.
static INITIAL_STATE: Mutex<Option<(u64, u32)>> = Mutex::new(None);

pub(crate) fn note_initial_state() {
    let control = (DISTRIBUTOR + GICD_CTLR, memory::read32(DISTRIBUTOR + GICD_CTLR) & 3);
    let own = own_redistributor() + SGI_FRAME;
    let frames = [own + ISENABLER, own + ISACTIVER].into_iter();
    let spis = spis().step_by(32).flat_map(|first| [ISENABLER, ISACTIVER].map(|bank| bit_register(bank, first)));
    let registers = frames.chain(spis).map(|address| (address, memory::read32(address)));
    *INITIAL_STATE.lock() = [control].into_iter().chain(registers).find(|&(_, value)| value != 0);
}

/// The first register (address, content) that was not as a reset leaves it when this payload started: the Distributor's group enables, and
/// all that is enabled or active.
#[must_use]
pub fn not_reset() -> Option<(u64, u32)> {
    *INITIAL_STATE.lock()
}

/// All SPIs off, inactive, not pending, level-sensitive, group 1, routed to the boot CPU; the Distributor on.
pub fn initialise_distributor() {
    memory::write32(DISTRIBUTOR + GICD_CTLR, 0);
    wait_for_writes();
    let boot = machine().cpus[0];
    for first in spis().step_by(32) {
        initialise_bank(DISTRIBUTOR, first);
    }
    for intid in spis() {
        route(intid, boot);
    }
    memory::write32(DISTRIBUTOR + GICD_CTLR, CTLR_ENABLE);
    wait_for_writes();
}

fn initialise_bank(frame: u64, first: u32) {
    let word = u64::from(first / 32) * 4;
    for bank in [ICENABLER, ICPENDR, ICACTIVER, IGROUPR] {
        memory::write32(frame + bank + word, u32::MAX);
    }
    for quad in 0..8 {
        memory::write32(frame + IPRIORITYR + u64::from(first) + quad * 4, u32::from_ne_bytes([DEFAULT_PRIORITY; 4]));
    }
    if first >= 32 {
        memory::write32(frame + ICFGR + u64::from(first / 16) * 4, 0);
    }
    // The SGIs' word cannot be written; the PPIs' is this one.
    memory::write32(frame + ICFGR + u64::from(first / 16 + 1) * 4, 0);
}

/// Wakes this CPU's Redistributor, puts its SGIs and PPIs into the same state as the SPIs, and opens the CPU interface.
pub fn initialise_cpu() {
    let own = own_redistributor();
    // Asked for again and again, since a hostile CPU may put it back to sleep in between.
    loop {
        memory::write32(own + GICR_WAKER, memory::read32(own + GICR_WAKER) & !2);
        if memory::read32(own + GICR_WAKER) & 4 == 0 {
            break;
        }
    }
    initialise_bank(own + SGI_FRAME, 0);
    wait_for_writes();
    sysreg::icc_sre_el1::write(7);
    sysreg::icc_ctlr_el1::write(0);
    sysreg::icc_bpr1_el1::write(0);
    sysreg::icc_pmr_el1::write(0xff);
    sysreg::icc_ap0r0_el1::write(0);
    sysreg::icc_ap1r0_el1::write(0);
    sysreg::icc_igrpen1_el1::write(1);
}

/// Acknowledges the most urgent pending interrupt of group 1.
#[inline(always)]
pub fn acknowledge() -> u32 {
    let intid = sysreg::icc_iar1_el1::read() as u32 & 0xff_ffff;
    sysreg::dsb();
    intid
}

/// Ends `intid`: priority drop, and deactivation unless EOImode is 1.
#[inline(always)]
pub fn end(intid: u32) {
    sysreg::icc_eoir1_el1::write(u64::from(intid));
}

/// Deactivates `intid` (EOImode 1).
#[inline(always)]
pub fn deactivate(intid: u32) {
    sysreg::icc_dir_el1::write(u64::from(intid));
}

/// Whom an SGI goes to.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The CPU with this affinity.
    Affinity(u64),
    /// Every CPU but this one.
    Others,
}

/// Sends SGI `intid` (0 to 15).
pub fn send(intid: u32, target: Target) {
    let value = match target {
        Target::Others => 1 << 40,
        Target::Affinity(affinity) => {
            let (aff0, aff1) = (affinity & 0xff, affinity >> 8 & 0xff);
            let (aff2, aff3) = (affinity >> 16 & 0xff, affinity >> 32 & 0xff);
            aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | aff1 << 16 | 1 << (aff0 & 0xf)
        }
    };
    sysreg::dsb();
    sysreg::icc_sgi1r_el1::write(value | u64::from(intid & 0xf) << 24);
}
