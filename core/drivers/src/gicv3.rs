//! The registers of a GICv3 that are in memory (IHI 0069): the Distributor, which all CPUs share, and each CPU's
//! Redistributor. All interrupts are group 1 and of one priority. The CPU interface is system registers, which `hw`
//! accesses.

use units::{IntId, Trigger};

use crate::{InterruptLine, Registers, TooSmall};

const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IGROUPR: u64 = 0x0080;
const GICD_ISENABLER: u64 = 0x0100;
const GICD_ICENABLER: u64 = 0x0180;
const GICD_ISPENDR: u64 = 0x0200;
const GICD_ICPENDR: u64 = 0x0280;
const GICD_IPRIORITYR: u64 = 0x0400;
const GICD_ICFGR: u64 = 0x0c00;
const GICD_IROUTER: u64 = 0x6000;
const GICR_CTLR: u64 = 0x0000;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
/// From a Redistributor's first frame to its SGI and PPI frame, whose registers have the Distributor's offsets.
const SGI_FRAME: u64 = 0x1_0000;
const ISACTIVER0: u64 = 0x0300;
const ICACTIVER: u64 = 0x0380;

const CTLR_ENABLE: u32 = 0b11;
const CTLR_ARE: u32 = 1 << 4;
const CTLR_RWP: u32 = 1 << 31;
const GICR_CTLR_RWP: u32 = 1 << 3;
const WAKER_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// The priority of all our interrupts, in every byte.
const PRIORITIES: u32 = 0x8080_8080;
const PRIORITY: u32 = 0x80;

/// The Distributor.
#[derive(Debug)]
pub struct Distributor<R>(R);

impl<R: Registers> Distributor<R> {
    /// How many bytes of registers it has.
    pub const SIZE: u64 = 0x1_0000;

    /// The Distributor with these registers.
    ///
    /// # Errors
    /// When they are too few.
    pub fn new(registers: R) -> Result<Self, TooSmall> {
        TooSmall::check(&registers, Self::SIZE)?;
        Ok(Self(registers))
    }

    /// Sets it up: shared interrupts disabled and of group 1, with affinity routing. What an earlier owner left pending or active would
    /// come, or never would.
    pub fn init(&self) {
        self.0.write32(GICD_CTLR, 0);
        self.wait_for_writes();
        let words = u64::from(self.0.read32(GICD_TYPER) & 0x1f) + 1;
        for word in 1..words {
            self.0.write32(GICD_ICENABLER + 4 * word, u32::MAX);
            self.0.write32(GICD_ICPENDR + 4 * word, u32::MAX);
            self.0.write32(ICACTIVER + 4 * word, u32::MAX);
            self.0.write32(GICD_IGROUPR + 4 * word, u32::MAX);
        }
        self.0.write32(GICD_CTLR, CTLR_ENABLE | CTLR_ARE);
        self.wait_for_writes();
    }

    fn wait_for_writes(&self) {
        while self.0.read32(GICD_CTLR) & CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    /// Routes the shared interrupt of `line` to the CPU with this affinity, and enables it. It must be disabled before: how it is
    /// signalled may not change while it is enabled (IHI 0069, GICD_ICFGR<n>).
    pub fn enable(&self, line: InterruptLine, affinity: u64) {
        let interrupt = line.interrupt;
        set_trigger(&self.0, GICD_ICFGR, line);
        let shift = 8 * (interrupt.0 % 4);
        let priority = GICD_IPRIORITYR + u64::from(interrupt.0 & !3);
        self.0.write32(priority, self.0.read32(priority) & !(0xff << shift) | PRIORITY << shift);
        // Last: once it is enabled it may come, and must know where to.
        self.0.write64(GICD_IROUTER + 8 * u64::from(interrupt.0), affinity);
        self.0.write32(GICD_ISENABLER + word(interrupt), bit(interrupt));
    }

    /// Disables `interrupt`: it may be pending, and does not come.
    pub fn disable(&self, interrupt: IntId) {
        self.0.write32(GICD_ICENABLER + word(interrupt), bit(interrupt));
    }

    /// Whether `interrupt` is enabled.
    #[must_use]
    pub fn is_enabled(&self, interrupt: IntId) -> bool {
        self.0.read32(GICD_ISENABLER + word(interrupt)) & bit(interrupt) != 0
    }

    /// How `interrupt` is signalled.
    #[must_use]
    pub fn trigger(&self, interrupt: IntId) -> Trigger {
        let (offset, edge) = configuration(interrupt);
        if self.0.read32(GICD_ICFGR + offset) & edge != 0 { Trigger::Edge } else { Trigger::Level }
    }

    /// Makes `interrupt` pending, as its device would.
    pub fn pend(&self, interrupt: IntId) {
        self.0.write32(GICD_ISPENDR + word(interrupt), bit(interrupt));
    }
}

/// Where the word of a register with a bit for each interrupt is that has `interrupt`'s.
const fn word(interrupt: IntId) -> u64 {
    interrupt.0 as u64 / 32 * 4
}

const fn bit(interrupt: IntId) -> u32 {
    1 << (interrupt.0 % 32)
}

/// Where the word of GICD_ICFGR<n> or GICR_ICFGR<n> is that has two bits for `interrupt`, and the one of them that makes it edge-triggered.
const fn configuration(interrupt: IntId) -> (u64, u32) {
    (interrupt.0 as u64 / 16 * 4, 0b10 << (interrupt.0 % 16 * 2))
}

/// Has the interrupt of `line` signalled as that says; where it says nothing, as before. `base` is where ICFGR0 is.
fn set_trigger(registers: &impl Registers, base: u64, line: InterruptLine) {
    let Some(trigger) = line.trigger else { return };
    let (offset, edge) = configuration(line.interrupt);
    let others = registers.read32(base + offset) & !edge;
    registers.write32(base + offset, if trigger == Trigger::Edge { others | edge } else { others });
}

/// A CPU's Redistributor: the two frames of it that are used.
#[derive(Debug)]
pub struct Redistributor<R>(R);

impl<R: Registers> Redistributor<R> {
    /// How many bytes of registers it has, at least.
    pub const SIZE: u64 = 2 * SGI_FRAME;

    /// The Redistributor with these registers.
    ///
    /// # Errors
    /// When they are too few.
    #[inline(always)]
    pub fn new(registers: R) -> Result<Self, TooSmall> {
        TooSmall::check(&registers, Self::SIZE)?;
        Ok(Self(registers))
    }

    /// GICR_TYPER: whose it is, and what follows it.
    #[must_use]
    pub fn kind(&self) -> u64 {
        self.0.read64(GICR_TYPER)
    }

    /// Wakes it, and lets `sgis` and the interrupts of `lines` in, which are its CPU's own.
    pub fn init(&self, sgis: &[IntId], lines: &[InterruptLine]) {
        self.0.write32(GICR_WAKER, self.0.read32(GICR_WAKER) & !WAKER_SLEEP);
        while self.0.read32(GICR_WAKER) & WAKER_CHILDREN_ASLEEP != 0 {
            core::hint::spin_loop();
        }
        self.0.write32(SGI_FRAME + GICD_ICENABLER, u32::MAX);
        self.0.write32(SGI_FRAME + GICD_ICPENDR, u32::MAX);
        self.0.write32(SGI_FRAME + ICACTIVER, u32::MAX);
        self.0.write32(SGI_FRAME + GICD_IGROUPR, u32::MAX);
        for word in 0..8 {
            self.0.write32(SGI_FRAME + GICD_IPRIORITYR + 4 * word, PRIORITIES);
        }
        // They are disabled when that write has come through, and not before: only then may it change how they are signalled.
        while self.0.read32(GICR_CTLR) & GICR_CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
        for &line in lines {
            set_trigger(&self.0, SGI_FRAME + GICD_ICFGR, line);
        }
        let enabled = sgis.iter().copied().chain(lines.iter().map(|line| line.interrupt));
        self.0.write32(SGI_FRAME + GICD_ISENABLER, enabled.fold(0, |set, interrupt| set | bit(interrupt)));
    }

    /// Sets or clears the active state of one of its CPU's own interrupts.
    #[inline(always)]
    pub fn set_active(&self, interrupt: IntId, active: bool) {
        self.0.write32(SGI_FRAME + if active { ISACTIVER0 } else { ICACTIVER }, bit(interrupt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Access, Fake};

    fn line(interrupt: u32, trigger: Option<Trigger>) -> InterruptLine {
        InterruptLine { interrupt: IntId(interrupt), trigger }
    }

    #[test]
    fn a_line_is_edge_or_level_before_its_interrupt_is_enabled() {
        let fake = Fake::new(0x1_0000);
        let distributor = Distributor::new(&fake).unwrap();
        // SPIs 32 to 47 have the third word, SPI 37 bits 11 and 10 of it. Those of the others, and the lower one, stay.
        fake.set(0xc08, 0xffff_ffff);
        distributor.enable(line(37, Some(Trigger::Level)), 1);
        assert_eq!(fake.log().first(), Some(&Access::Write32(0xc08, !(1 << 11))));
        assert_eq!(distributor.trigger(IntId(37)), Trigger::Level);
        distributor.enable(line(37, Some(Trigger::Edge)), 1);
        let log = fake.log();
        assert_eq!(log.first(), Some(&Access::Write32(0xc08, 0xffff_ffff)));
        assert_eq!(log.last(), Some(&Access::Write32(0x104, 1 << 5)));
        assert_eq!(distributor.trigger(IntId(37)), Trigger::Edge);
        distributor.enable(line(1019, Some(Trigger::Edge)), 1);
        assert_eq!(fake.log().first(), Some(&Access::Write32(0xc00 + 63 * 4, 1 << 23)));
        distributor.enable(line(1018, None), 1);
        assert!(
            fake.log().iter().all(|write| !matches!(write, Access::Write32(0xc00..0xd00, _))),
            "it is left as it is"
        );
    }

    #[test]
    fn shared_interrupts_begin_disabled_and_in_group_1() {
        let fake = Fake::new(0x1_0000);
        fake.freeze(GICD_TYPER, 2);
        // The first write takes two looks, the last one.
        fake.answer(GICD_CTLR, [u64::from(CTLR_RWP), 0, u64::from(CTLR_RWP), 0]);
        Distributor::new(&fake).unwrap().init();
        assert_eq!(
            fake.log(),
            [
                Access::Write32(0, 0),
                Access::Write32(0x184, u32::MAX),
                Access::Write32(0x284, u32::MAX),
                Access::Write32(0x384, u32::MAX),
                Access::Write32(0x84, u32::MAX),
                Access::Write32(0x188, u32::MAX),
                Access::Write32(0x288, u32::MAX),
                Access::Write32(0x388, u32::MAX),
                Access::Write32(0x88, u32::MAX),
                Access::Write32(0, 0x13),
            ]
        );
        assert_eq!(fake.reads_of(GICD_CTLR), 4);
    }

    #[test]
    fn an_interrupt_has_priority_and_route_before_it_is_enabled() {
        let fake = Fake::new(0x1_0000);
        fake.set(0x424, 0x1122_3344);
        let distributor = Distributor::new(&fake).unwrap();
        assert!(!distributor.is_enabled(IntId(37)));
        distributor.enable(line(37, None), 0x1_0000_0203);
        assert_eq!(
            fake.log(),
            [
                Access::Write32(0x424, 0x1122_8044),
                Access::Write64(0x6000 + 8 * 37, 0x1_0000_0203),
                Access::Write32(0x104, 1 << 5),
            ]
        );
        assert!(distributor.is_enabled(IntId(37)));
        distributor.disable(IntId(37));
        distributor.pend(IntId(1019));
        assert_eq!(fake.log(), [Access::Write32(0x184, 1 << 5), Access::Write32(0x27c, 1 << 27)]);
        distributor.enable(line(99, None), 1);
        let enabled =
            [Access::Write32(0x460, 0x8000_0000), Access::Write64(0x6000 + 8 * 99, 1), Access::Write32(0x10c, 1 << 3)];
        assert_eq!(fake.log(), enabled);
    }

    #[test]
    fn a_redistributor_wakes_before_it_is_set_up() {
        let fake = Fake::new(0x2_0000);
        fake.set(GICR_WAKER, 0b111);
        fake.answer(GICR_WAKER, [0b111, 0b101, 0b001]);
        fake.set(GICR_TYPER, 3 << 32 | 0x12);
        // The timer's is edge-triggered, and should not be; what it takes to disable it takes two looks.
        fake.set(0x1_0c04, 0xaaaa_aaaa);
        fake.answer(GICR_CTLR, [8, 8, 0]);
        let redistributor = Redistributor::new(&fake).unwrap();
        assert_eq!(redistributor.kind(), 3 << 32 | 0x12);
        redistributor.init(&[IntId(0)], &[line(27, Some(Trigger::Level)), line(25, None)]);
        let log = fake.log();
        assert_eq!(fake.reads_of(GICR_WAKER), 3);
        assert_eq!(fake.reads_of(GICR_CTLR), 3);
        assert_eq!(log[log.len() - 2], Access::Write32(0x1_0c04, 0xaa2a_aaaa));
        assert_eq!(log.first(), Some(&Access::Write32(GICR_WAKER, 0b101)));
        assert_eq!(log.last(), Some(&Access::Write32(0x1_0100, 1 << 27 | 1 << 25 | 1)));
        let priorities = (0..8).map(|word| Access::Write32(0x1_0400 + 4 * word, PRIORITIES));
        assert!(priorities.into_iter().all(|write| log.contains(&write)));
        // Neither enabled, nor pending, nor active, and of group 1.
        let begins = [0x1_0180, 0x1_0280, 0x1_0380, 0x1_0080].map(|offset| Access::Write32(offset, u32::MAX));
        assert_eq!(log[1..5], begins);
        redistributor.set_active(IntId(27), true);
        redistributor.set_active(IntId(27), false);
        assert_eq!(fake.log(), [Access::Write32(0x1_0300, 1 << 27), Access::Write32(0x1_0380, 1 << 27)]);
    }

    #[test]
    fn an_interrupt_that_is_named_twice_is_enabled() {
        let fake = Fake::new(0x2_0000);
        let twice = [line(27, None), line(27, None)];
        Redistributor::new(&fake).unwrap().init(&[IntId(3), IntId(3)], &twice);
        assert_eq!(fake.log().last(), Some(&Access::Write32(0x1_0100, 1 << 27 | 1 << 3)));
    }

    #[test]
    fn too_few_registers_are_refused() {
        assert!(Distributor::new(&Fake::new(0xfff8)).is_err());
        assert!(Redistributor::new(&Fake::new(0x1_0000)).is_err());
    }
}
