//! The model against a naive second one, under random guests, devices and owners.
//!
//! Both are driven by the same operations; a simulated CPU interface works on the list registers that the real model
//! fills. With a *prompt* owner, who syncs and flushes at once whomever the model names, the guest must see exactly
//! what an ideal interrupt controller would show it: the same INTID at each acknowledge, the same value in each
//! register. With a *slow* owner, who lets kicks wait, an acknowledge may be as stale as the kick is late, but
//! nothing may be lost, nothing may be delivered twice, and registers must agree again once everyone has been kicked.

mod cpu_interface;
mod naive;
mod scenario;

use cpu_interface::{CpuInterface, Running};
use naive::Naive;
use proptest::prelude::*;
use scenario::{Operation, Setting, scenario};
use units::{IntId, VcpuId, VcpuSet};
use vgic::{
    AccessSize, Config, Direction, Group, Line, ListRegisters, Power, Vgic, list_register as field,
    virtual_control as control, virtual_interface as interface,
};

struct Machine {
    setting: Setting,
    vgic: Vgic,
    naive: Naive,
    cpus: Vec<CpuInterface>,
    lrs: Vec<ListRegisters>,
    /// Whose physical interrupt has fired since the last sync.
    fired: VcpuSet,
    owed: VcpuSet,
}

fn id(index: usize) -> VcpuId {
    VcpuId(index as u8)
}

impl Machine {
    fn new(setting: Setting) -> Self {
        let Setting { vcpus, list_registers, priority_bits, .. } = setting;
        let preemption_bits = priority_bits.min(7);
        let split_end = if setting.split_end { interface::SPLIT_END } else { 0 };
        let vmcr = 0xFF << interface::MASK_SHIFT | setting.binary_points | split_end | interface::GROUPS;
        let tells_of_group_0 = !setting.confuses_groups;
        let config = Config {
            vcpus,
            list_registers,
            priority_bits,
            preemption_bits,
            tells_of_group_0,
            traps_deactivation: true,
        };
        let mut vgic = Vgic::new(config);
        for vcpu in 0..vcpus {
            assert_eq!(vgic.set_power(id(vcpu), Power::On), VcpuSet::EMPTY);
        }
        let interface = CpuInterface::new(&setting, preemption_bits, vmcr);
        Self {
            setting,
            vgic,
            naive: Naive::new(vcpus, priority_bits),
            cpus: (0..vcpus).map(|_| interface.clone()).collect(),
            lrs: vec![ListRegisters::new(); vcpus],
            fired: VcpuSet::EMPTY,
            owed: VcpuSet::EMPTY,
        }
    }

    fn sync(&mut self, vcpu: usize) {
        self.cpus[vcpu].save(&mut self.lrs[vcpu]);
        for interrupt in 0..128 {
            if self.cpus[vcpu].shows(interrupt, field::STATE) {
                self.naive.get(vcpu, interrupt).fresh = false;
            }
        }
        let others = self.vgic.sync(id(vcpu), &mut self.lrs[vcpu]);
        assert!(!others.contains(id(vcpu)));
        self.fired.remove(id(vcpu));
        self.owed = self.owed.union(others);
    }

    fn flush(&mut self, vcpu: usize) {
        self.vgic.flush(id(vcpu), &mut self.lrs[vcpu]);
        if self.lrs[vcpu].hcr & control::LRENPIE != 0 {
            self.vgic.note_running(id(vcpu), self.cpus[vcpu].vmcr, self.cpus[vcpu].active_priorities());
        }
        assert_eq!(u32::from(self.lrs[vcpu].used) >> self.setting.list_registers, 0);
        self.cpus[vcpu].load(&mut self.lrs[vcpu]);
        assert!(!self.cpus[vcpu].maintenance(), "a maintenance interrupt that the flush cannot satisfy");
        self.owed.remove(id(vcpu));
    }

    fn settle(&mut self, vcpu: usize) {
        self.sync(vcpu);
        self.flush(vcpu);
    }

    fn settle_all(&mut self) {
        while let Some(vcpu) = self.owed.iter().next() {
            if self.naive.on[vcpu.index()] {
                self.settle(vcpu.index());
            } else {
                // It does so when it is switched on.
                self.owed.remove(vcpu);
            }
        }
    }

    /// The model asks for these to be kicked; `here` is the vCPU whose exit this is.
    fn kick(&mut self, set: VcpuSet, here: Option<usize>) {
        self.owed = self.owed.union(set);
        assert!(usize::from(self.owed.0) < 1 << self.setting.vcpus);
        if self.setting.prompt {
            self.settle_all();
        } else if let Some(vcpu) = here
            && self.owed.contains(id(vcpu))
        {
            self.settle(vcpu);
        }
    }

    /// `interrupt` was latched: if a list register still shows it pending, the guest may take it twice.
    fn note_latch(&mut self, vcpu: usize, interrupt: u32) {
        let shown = if interrupt < 32 {
            self.cpus[vcpu].shows(interrupt, field::PENDING)
        } else {
            self.cpus.iter().any(|cpu| cpu.shows(interrupt, field::PENDING))
        };
        self.naive.get(vcpu, interrupt).fresh |= shown;
    }

    fn run(&mut self, operation: &Operation) {
        if operation.actor().is_some_and(|vcpu| !self.naive.on[vcpu]) {
            return;
        }
        match *operation {
            Operation::Access { vcpu, frame, offset, size, write: None } => self.read(vcpu, frame, offset, size),
            Operation::Access { vcpu, frame, offset, size, write: Some(value) } => {
                self.write(vcpu, frame, offset, size, value);
            }
            Operation::Line { vcpu, id: interrupt, high } => self.line(vcpu, interrupt, high),
            Operation::Pulse { id: interrupt } => {
                if self.naive.get(0, interrupt).edge {
                    self.note_latch(0, interrupt);
                    self.naive.get(0, interrupt).latch = true;
                }
                let set = self.vgic.pulse_spi(IntId(interrupt));
                self.kick(set, None);
            }
            Operation::Sgi { vcpu, value, group1 } => {
                for target in self.naive.send_sgi(vcpu, value, group1) {
                    self.note_latch(target, (value >> 24 & 15) as u32);
                }
                if group1 && self.short_sgi(vcpu, value) {
                    return;
                }
                let group = if group1 { Group::One } else { Group::Zero };
                let set = self.vgic.send_sgi(id(vcpu), value, group);
                self.kick(set, Some(vcpu));
            }
            Operation::Acknowledge { vcpu } => {
                self.acknowledge(vcpu);
            }
            Operation::End { vcpu } => self.end(vcpu),
            Operation::Deactivate { vcpu, which } => self.deactivate(vcpu, which),
            Operation::Fire { vcpu, id: interrupt, ready_made } => self.fire(vcpu, interrupt, ready_made),
            Operation::Withdraw { vcpu, id: interrupt } => {
                self.sync(vcpu);
                if self.vgic.lower_hardware(id(vcpu), IntId(interrupt)) {
                    self.cpus[vcpu].physical_active &= !(1 << (interrupt - 1));
                    assert!(self.naive.get(vcpu, interrupt).fired);
                    self.naive.get(vcpu, interrupt).fired = false;
                } else {
                    assert!(!self.naive.get(vcpu, interrupt).fired);
                }
                self.flush(vcpu);
                self.kick(VcpuSet::EMPTY, None);
            }
            Operation::Move { vcpu } if self.lrs[vcpu].at_rest && !self.fired.contains(id(vcpu)) => {
                // The registers of the CPU that it comes to are empty, and those that it leaves must be.
                let cpu = &mut self.cpus[vcpu];
                assert!(cpu.lr.iter().all(|lr| lr & field::STATE == 0) && cpu.physical_active == 0);
                cpu.lr.fill(0);
                if self.owed.contains(id(vcpu)) {
                    self.settle(vcpu);
                }
                self.kick(VcpuSet::EMPTY, None);
            }
            Operation::Move { vcpu } => {
                self.take_back(vcpu);
                self.flush(vcpu);
                self.kick(VcpuSet::EMPTY, None);
            }
            Operation::Interface { vcpu, groups, mask, split_end } => self.set_interface(vcpu, groups, mask, split_end),
            Operation::Power { vcpu } => self.power(vcpu),
            Operation::Restore { list_registers } => self.restore(list_registers),
            Operation::Settle { vcpu } => {
                self.sync(vcpu);
                if self.owed.is_empty() {
                    let due = self.naive.best(vcpu).is_some_and(|(_, _, priority)| priority < 0x80);
                    let vmcr = self.cpus[vcpu].vmcr & !(0xFF << interface::MASK_SHIFT) | 0x80 << interface::MASK_SHIFT;
                    assert_eq!(self.vgic.has_deliverable(id(vcpu), vmcr), due);
                }
                self.flush(vcpu);
                self.kick(VcpuSet::EMPTY, None);
            }
        }
        self.check_physical();
    }

    /// Empties the list registers of `vcpu`, which leaves its CPU.
    fn take_back(&mut self, vcpu: usize) {
        self.sync(vcpu);
        let physical = self.vgic.detach_hardware(id(vcpu));
        assert_eq!(physical & !self.cpus[vcpu].physical_active, 0);
        self.cpus[vcpu].physical_active &= !physical;
        for interrupt in 16..32 {
            self.naive.get(vcpu, interrupt).fired = false;
        }
    }

    /// The VM is saved, and goes on at a host with other list registers; the guest must not see it.
    fn restore(&mut self, list_registers: usize) {
        for vcpu in 0..self.setting.vcpus {
            if self.naive.on[vcpu] {
                self.take_back(vcpu);
            }
        }
        let saved = self.vgic.save().expect("all vCPUs are settled");
        let saved = pack::testing::through_bytes(&saved).expect("it was just written");
        let Setting { vcpus, priority_bits, .. } = self.setting;
        self.setting.list_registers = list_registers;
        // That its CPUs have the defect, or not, is the host's too.
        self.setting.confuses_groups ^= list_registers.is_multiple_of(2);
        let tells_of_group_0 = !self.setting.confuses_groups;
        let preemption_bits = priority_bits.min(7);
        let config = Config {
            vcpus,
            list_registers,
            priority_bits: 8,
            preemption_bits,
            tells_of_group_0,
            traps_deactivation: true,
        };
        self.vgic = Vgic::restore(config, &saved).expect("it fits");
        assert_eq!(self.vgic.save().as_ref(), Ok(&saved));
        for vcpu in 0..vcpus {
            self.lrs[vcpu].forget(self.vgic.usual_control());
            // The new CPU's own; what the guest has set up in its CPU interface comes with the vCPU.
            self.cpus[vcpu].lr = vec![0; list_registers];
            self.cpus[vcpu].hcr = control::EN | control::TDIR;
            self.cpus[vcpu].confuses_groups = self.setting.confuses_groups;
            assert_eq!(self.cpus[vcpu].physical_active, 0);
            if self.naive.on[vcpu] {
                self.flush(vcpu);
            }
        }
        self.kick(VcpuSet::EMPTY, None);
    }

    /// The guest sets its CPU interface up anew, without an exit; only a maintenance interrupt may tell of it, or that it
    /// wrote a register of Group 0.
    fn set_interface(&mut self, vcpu: usize, groups: u64, mask: u64, split_end: bool) {
        let cpu = &mut self.cpus[vcpu];
        cpu.vmcr = cpu.vmcr & 0x00FF_FFFC | mask << interface::MASK_SHIFT | groups;
        if self.setting.changes_mode {
            cpu.vmcr = cpu.vmcr & !interface::SPLIT_END | if split_end { interface::SPLIT_END } else { 0 };
        }
        self.naive.enables[vcpu] = [groups & 1 != 0, groups & 2 != 0];
        if self.cpus[vcpu].traps_group_0() {
            self.settle(vcpu);
            self.kick(VcpuSet::EMPTY, None);
        }
        self.maintain(vcpu);
    }

    /// Switches a vCPU off by its own request, or on again by somebody else's.
    fn power(&mut self, vcpu: usize) {
        let on = !self.naive.on[vcpu];
        if on {
            self.cpus[vcpu].reset();
            self.naive.enables[vcpu] = [false; 2];
        } else {
            self.take_back(vcpu);
            self.cpus[vcpu].reset();
            self.lrs[vcpu].forget(self.vgic.usual_control());
        }
        self.naive.on[vcpu] = on;
        let set = self.vgic.set_power(id(vcpu), if on { Power::On } else { Power::Off });
        if on {
            self.settle(vcpu);
        }
        self.kick(set, None);
    }

    fn read(&mut self, vcpu: usize, frame: Option<usize>, offset: u64, size: u64) {
        self.settle_all();
        let access = AccessSize::from_bytes(size).expect("the generator draws 1, 2, 4 and 8");
        let needs = self.sync_for(frame, offset, Direction::Read);
        let value = match frame {
            None => self.vgic.distributor_read(offset, access),
            Some(frame) => self.vgic.redistributor_read(id(frame), offset, access),
        };
        let expected = self.naive.read(frame, offset, size);
        assert_eq!(value, expected, "vCPU {vcpu} reads {size} bytes at {offset:#x} of {frame:?}");
        for needed in needs.iter() {
            self.flush(needed.index());
        }
        self.kick(VcpuSet::EMPTY, None);
    }

    fn write(&mut self, vcpu: usize, frame: Option<usize>, offset: u64, size: u64, mut value: u64) {
        let access = AccessSize::from_bytes(size).expect("the generator draws 1, 2, 4 and 8");
        let bank = if frame.is_some() { offset.wrapping_sub(0x1_0000) } else { offset };
        if matches!(bank, 0x300..0x400) {
            // When such a write meets a kick that waits, several outcomes are right; only the prompt one is compared.
            self.settle_all();
            value &= self.may_change_active(frame, bank);
        }
        if matches!(bank, 0x400..0x800) {
            // Priority 0xFF is below any mask: the guest could not finish.
            value &= !0x0101_0101_0101_0101;
        }
        let before: Vec<u32> = (0..128).filter(|&interrupt| self.shown_pending(frame, interrupt)).collect();
        for latched in self.naive.write(frame, offset, size, value) {
            if before.contains(&latched) {
                self.naive.get(frame.unwrap_or(0), latched).fresh = true;
            }
        }
        let needs = self.sync_for(frame, offset, Direction::Write);
        let set = match frame {
            None => self.vgic.distributor_write(offset, access, value),
            Some(frame) => self.vgic.redistributor_write(id(frame), offset, access, value),
        };
        for needed in needs.iter() {
            self.flush(needed.index());
        }
        self.kick(set, Some(vcpu));
    }

    /// Syncs whom this access depends on; the caller flushes them.
    fn sync_for(&mut self, frame: Option<usize>, offset: u64, direction: Direction) -> VcpuSet {
        let mut needs = match frame {
            None => self.vgic.distributor_needs(offset, direction),
            Some(frame) => self.vgic.redistributor_needs(id(frame), offset, direction),
        };
        // Of those that are off the model knows all.
        for vcpu in (0..self.setting.vcpus).filter(|&vcpu| !self.naive.on[vcpu]) {
            needs.remove(id(vcpu));
        }
        for needed in needs.iter() {
            self.sync(needed.index());
        }
        needs
    }

    fn shown_pending(&self, frame: Option<usize>, interrupt: u32) -> bool {
        match frame {
            Some(frame) if interrupt < 32 => self.cpus[frame].shows(interrupt, field::PENDING),
            _ => self.cpus.iter().any(|cpu| cpu.shows(interrupt, field::PENDING)),
        }
    }

    /// Which bits of ISACTIVER or ICACTIVER the guest may touch. The end of an interrupt that has no list register is
    /// only counted by the hardware, so a guest that changes active state behind the back of its own handlers, and
    /// has more of them nested than there are list registers, may see another one deactivated. That is not compared.
    fn may_change_active(&mut self, frame: Option<usize>, bank: u64) -> u64 {
        if (self.setting.split_end && !self.setting.changes_mode) || bank < 0x380 {
            return u64::MAX;
        }
        let mut mask = 0;
        for bit in 0..32 {
            let interrupt = (bank & 0x7F) as u32 * 8 + bit;
            let nested = |cpu: &CpuInterface| cpu.stack.iter().any(|running| running.id == interrupt);
            let handled = match frame {
                Some(frame) => nested(&self.cpus[frame]),
                None => self.cpus.iter().any(nested),
            };
            mask |= u64::from(!handled) << bit;
        }
        mask
    }

    /// Whether any of these interrupts is active.
    fn line(&mut self, vcpu: usize, interrupt: u32, high: bool) {
        if self.naive.set_line(vcpu, interrupt, high) {
            self.note_latch(vcpu, interrupt);
        }
        let line = if high { Line::High } else { Line::Low };
        let set = if interrupt < 32 {
            self.vgic.set_ppi_level(id(vcpu), IntId(interrupt), line)
        } else {
            self.vgic.set_spi_level(IntId(interrupt), line)
        };
        self.kick(set, None);
    }

    fn acknowledge(&mut self, vcpu: usize) -> bool {
        let best = self.naive.best(vcpu);
        let expected = best.filter(|&(_, group, priority)| self.cpus[vcpu].lets_through(group, priority));
        let taken = self.acknowledge_trapped(vcpu).or_else(|| self.cpus[vcpu].acknowledge());
        if self.owed.is_empty() {
            assert_eq!(taken, expected.map(|(interrupt, ..)| interrupt), "vCPU {vcpu} acknowledges");
        } else if let Some(interrupt) = taken {
            let legal = self.naive.deliverable(vcpu, interrupt) || self.owed.contains(id(vcpu));
            assert!(legal, "vCPU {vcpu} acknowledges {interrupt}, which is not due");
        }
        if let Some(interrupt) = taken {
            self.naive.acknowledge(vcpu, interrupt);
        }
        self.maintain(vcpu);
        if self.setting.changes_mode && taken.is_some() {
            // Of two that were acknowledged at the same priority between two syncs, only the guest knows which came first, and
            // so which one its end means once EOImode is zero. That is not compared.
            self.settle(vcpu);
            self.kick(VcpuSet::EMPTY, None);
        }
        taken.is_some()
    }

    /// Reads ICC_IAR0_EL1, if that traps.
    fn acknowledge_trapped(&mut self, vcpu: usize) -> Option<u32> {
        if !self.cpus[vcpu].traps_group_0() {
            return None;
        }
        self.sync(vcpu);
        let vmcr = self.cpus[vcpu].vmcr;
        let mut priorities = self.cpus[vcpu].active_priorities();
        let highest = self.vgic.highest_pending_in_group_0(id(vcpu), vmcr);
        let interrupt = self.vgic.acknowledge_group_0(id(vcpu), vmcr, &mut priorities);
        let taken = (interrupt < 1020).then_some(interrupt);
        if let Some(interrupt) = taken {
            assert_eq!(highest, interrupt);
            let group_priority = self.naive.get(vcpu, interrupt).priority & self.cpus[vcpu].group_priority_mask(0);
            self.cpus[vcpu].stack.push(Running { id: interrupt, group: 0, group_priority });
        }
        assert_eq!(priorities, self.cpus[vcpu].active_priorities());
        self.flush(vcpu);
        taken
    }

    /// Writes ICC_EOIR0_EL1, if that traps and the innermost interrupt is of Group 0. Returns whether it did.
    fn end_trapped(&mut self, vcpu: usize) -> bool {
        let cpu = &mut self.cpus[vcpu];
        let Some(&Running { id: interrupt, group: 0, .. }) = cpu.stack.last().filter(|_| cpu.traps_group_0()) else {
            return false;
        };
        self.sync(vcpu);
        let cpu = &mut self.cpus[vcpu];
        let mut priorities = cpu.active_priorities();
        cpu.stack.pop();
        let set = self.vgic.end_group_0(id(vcpu), IntId(interrupt), cpu.vmcr, &mut priorities);
        assert_eq!(priorities, cpu.active_priorities());
        if cpu.vmcr & interface::SPLIT_END != 0 {
            cpu.dropped.push(interrupt);
        } else {
            self.naive.get(vcpu, interrupt).active = false;
        }
        self.flush(vcpu);
        self.kick(set, Some(vcpu));
        true
    }

    fn maintain(&mut self, vcpu: usize) {
        if self.cpus[vcpu].maintenance() {
            self.settle(vcpu);
            self.kick(VcpuSet::EMPTY, None);
        }
    }

    fn end(&mut self, vcpu: usize) {
        if self.end_trapped(vcpu) {
            return;
        }
        if let Some(interrupt) = self.cpus[vcpu].end() {
            self.naive.get(vcpu, interrupt).active = false;
        }
        self.maintain(vcpu);
    }

    /// A write of ICC_DIR_EL1, for an SPI perhaps on another vCPU.
    fn deactivate(&mut self, vcpu: usize, which: usize) {
        if self.cpus[vcpu].vmcr & interface::SPLIT_END == 0 {
            // ICC_DIR_EL1 is for EOImode one.
            return;
        }
        let holder = if which.is_multiple_of(3) { which / 3 % self.setting.vcpus } else { vcpu };
        let candidates: Vec<u32> =
            self.cpus[holder].dropped.iter().copied().filter(|&dropped| holder == vcpu || dropped >= 32).collect();
        if candidates.is_empty() {
            return;
        }
        let interrupt = candidates[which % candidates.len()];
        if interrupt >= 32 {
            self.settle_all();
        }
        self.cpus[holder].dropped.retain(|&dropped| dropped != interrupt);
        self.naive.get(vcpu, interrupt).active = false;
        self.sync(vcpu);
        let set = self.vgic.deactivate(id(vcpu), IntId(interrupt));
        self.flush(vcpu);
        self.kick(set, Some(vcpu));
        self.settle_all();
    }

    /// The physical timer behind `interrupt` fires on the CPU of `vcpu`, unless its last interrupt is still active.
    fn fire(&mut self, vcpu: usize, interrupt: u32, ready_made: bool) {
        let physical = interrupt - 1;
        if self.cpus[vcpu].physical_active >> physical & 1 != 0 {
            return;
        }
        self.cpus[vcpu].physical_active |= 1 << physical;
        self.naive.get(vcpu, interrupt).fired = true;
        self.fired.insert(id(vcpu));
        let free = self.cpus[vcpu].lr.iter().position(|lr| lr & (field::STATE | field::EOI) == 0);
        if let (true, Some(number)) = (ready_made, free)
            && let Some(value) = self.vgic.hardware_list_register(id(vcpu), IntId(interrupt), IntId(physical))
        {
            self.cpus[vcpu].lr[number] = value;
            self.lrs[vcpu].lr[number] = value;
            self.lrs[vcpu].used |= 1 << number;
            return;
        }
        let set = self.vgic.raise_hardware(id(vcpu), IntId(interrupt), IntId(physical));
        self.kick(set, Some(vcpu));
    }

    /// The short way for an SGI to oneself. Says whether it was one.
    fn short_sgi(&mut self, vcpu: usize, value: u64) -> bool {
        let empty = |lr: &u64| lr & field::STATE == 0 && lr & (field::HARDWARE | field::EOI) != field::EOI;
        let free = self.cpus[vcpu].lr.iter().enumerate().fold(0, |set, (n, lr)| set | u16::from(empty(lr)) << n);
        let Some(number) = self.vgic.sgi_list_register(id(vcpu), value, &mut self.lrs[vcpu], free) else {
            return false;
        };
        self.cpus[vcpu].lr[number] = self.lrs[vcpu].lr[number];
        true
    }

    /// A physical interrupt stays active exactly as long as the guest has not done with it.
    fn check_physical(&mut self) {
        if !self.owed.is_empty() {
            return;
        }
        for vcpu in 0..self.setting.vcpus {
            for interrupt in [27, 30] {
                let active = self.cpus[vcpu].physical_active >> (interrupt - 1) & 1 != 0;
                let wanted = self.naive.get(vcpu, interrupt);
                let (fired, handled) = (wanted.fired, wanted.active);
                assert!(
                    !fired || active,
                    "PPI {interrupt} of vCPU {vcpu} has fired, but nothing physical stands behind it"
                );
                assert!(
                    !active || fired || handled,
                    "PPI {interrupt} of vCPU {vcpu} is over, its physical one still active"
                );
            }
        }
    }

    /// Lets the guest handle everything, and checks that both models agree that nothing is left.
    fn finish(&mut self) {
        self.settle_all();
        for vcpu in 0..self.setting.vcpus {
            if !self.naive.on[vcpu] {
                self.power(vcpu);
            }
            self.set_interface(vcpu, interface::GROUPS, 0xFF, true);
            self.settle_all();
        }
        for vcpu in 0..self.setting.vcpus {
            for offset in (0..0x1_0E00).step_by(4) {
                self.read(0, Some(vcpu), offset, 4);
            }
            self.write(vcpu, Some(vcpu), 0x14, 4, 0);
            self.write(vcpu, Some(vcpu), 0x1_0100, 4, 0xFFFF_FFFF);
        }
        for offset in (0..0xE00).step_by(4) {
            self.read(0, None, offset, 4);
        }
        self.write(0, None, 0, 4, 3);
        for interrupt in 16..128 {
            for vcpu in 0..self.setting.vcpus {
                self.line(vcpu, interrupt, false);
            }
        }
        for word in 1..4 {
            self.write(0, None, 0x100 + word * 4, 4, 0xFFFF_FFFF);
        }
        self.settle_all();
        for vcpu in 0..self.setting.vcpus {
            while !self.cpus[vcpu].stack.is_empty() {
                self.end(vcpu);
            }
            while !self.cpus[vcpu].dropped.is_empty() {
                self.deactivate(vcpu, 1);
            }
        }
        for vcpu in 0..self.setting.vcpus {
            self.write(vcpu, Some(vcpu), 0x1_0380, 4, 0xFFFF_FFFF);
        }
        for word in 1..4 {
            self.write(0, None, 0x380 + word * 4, 4, 0xFFFF_FFFF);
        }
        self.drain();
    }

    fn drain(&mut self) {
        self.settle_all();
        for _round in 0..3 {
            for vcpu in 0..self.setting.vcpus {
                while self.acknowledge(vcpu) {
                    self.end(vcpu);
                    self.deactivate(vcpu, 1);
                }
            }
        }
        self.settle_all();
        for vcpu in 0..self.setting.vcpus {
            self.settle(vcpu);
            // What is routed nowhere, or has priority 0xFF at the lowest, cannot be here any more.
            assert_eq!(self.naive.best(vcpu).filter(|&(_, _, priority)| priority < 0xFF), None);
            assert!(self.vgic.is_quiet(id(vcpu)), "vCPU {vcpu} holds something that the naive model does not");
            assert_eq!(self.lrs[vcpu].used, 0);
            assert!(!self.vgic.has_deliverable(id(vcpu), 0xFF00_0003));
        }
        self.check_physical();
    }
}

/// Most guests set the controller up before they use it: all enabled, random priorities, groups and triggers.
fn set_up(machine: &mut Machine, mut seed: u64) {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 32
    };
    if next() & 7 == 0 {
        return;
    }
    machine.write(0, None, 0, 4, 3);
    let vcpus = machine.setting.vcpus;
    for frame in (0..vcpus).map(Some).chain([None]) {
        let (base, words) = if frame.is_some() { (0x1_0000, 0..1) } else { (0, 1..4) };
        for word in words {
            machine.write(0, frame, base + 0x80 + word * 4, 4, next() | next());
            machine.write(0, frame, base + 0x100 + word * 4, 4, 0xFFFF_FFFF);
            machine.write(0, frame, base + 0xC00 + word * 8, 4, next());
            for part in 0..8 {
                machine.write(0, frame, base + 0x400 + word * 32 + part * 4, 4, next());
            }
        }
    }
    for spi in 0..96 {
        machine.write(0, None, 0x6100 + spi * 8, 8, next() % vcpus as u64);
    }
}

/// 300 cases, a few seconds; PROPTEST_CASES asks for another number.
fn configuration() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 300 };
    ProptestConfig { cases, max_shrink_iters: 4000, failure_persistence: None, ..asked }
}

proptest! {
    #![proptest_config(configuration())]

    #[test]
    fn guests_see_what_the_naive_model_shows((setting, seed, operations) in scenario()) {
        let mut machine = Machine::new(setting);
        set_up(&mut machine, seed);
        for operation in &operations {
            machine.run(operation);
        }
        machine.finish();
    }
}
