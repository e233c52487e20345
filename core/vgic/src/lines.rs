//! Where interrupts come from: devices' lines, edges, SGIs (GIC IHI 0069H 4.1 and 12.2.21), and a trapped ICC_DIR_EL1.

use crate::bank_registers::Place;
use crate::list_registers::{compose, list_register};
use crate::{Group, Line, ListRegisters, Vgic, position};
use units::{IntId, VcpuId, VcpuSet};

/// Fields of ICC_SGI<x>R_EL1.
mod sgi_register {
    /// The affinity fields above 0, and RS: all zero for the only cluster there is.
    pub(crate) const CLUSTER: u64 = 0xFF << 48 | 0xF << 44 | 0xFF << 32 | 0xFF << 16;
    /// To all vCPUs but the sender.
    pub(crate) const IRM: u64 = 1 << 40;
    /// Where the INTID starts.
    pub(crate) const INTID_SHIFT: u32 = 24;
}

impl Vgic {
    /// The line of the SPI `interrupt` is at `line`. Levels stay until the next call; edges are latched as they rise.
    /// Returns the vCPUs that must sync and flush. Not an SPI: no effect.
    pub fn set_spi_level(&mut self, interrupt: IntId, line: Line) -> VcpuSet {
        if interrupt.is_private() { VcpuSet::EMPTY } else { self.set_line(0, interrupt, line) }
    }

    /// The line of the PPI `interrupt` of `vcpu` is at `line`. Not a PPI: no effect.
    pub fn set_ppi_level(&mut self, vcpu: VcpuId, interrupt: IntId, line: Line) -> VcpuSet {
        if (IntId::PPI_BASE..IntId::SPI_BASE).contains(&interrupt.0) && vcpu.index() < self.vcpu_count {
            self.set_line(vcpu.index(), interrupt, line)
        } else {
            VcpuSet::EMPTY
        }
    }

    /// The line of the SPI `interrupt` rises and falls at once. That means something only for an edge-triggered one.
    pub fn pulse_spi(&mut self, interrupt: IntId) -> VcpuSet {
        let Some((word, bit)) = position(interrupt).filter(|_| !interrupt.is_private()) else { return VcpuSet::EMPTY };
        let Some(bank) = self.bank_mut(word, 0) else { return VcpuSet::EMPTY };
        let newly = bit & bank.edge & !bank.latched;
        bank.latched |= newly;
        self.concerned(word, 0, newly)
    }

    fn set_line(&mut self, vcpu: usize, interrupt: IntId, line: Line) -> VcpuSet {
        let Some((word, bit)) = position(interrupt) else { return VcpuSet::EMPTY };
        let Some(bank) = self.bank_mut(word, vcpu) else { return VcpuSet::EMPTY };
        let old = bank.level;
        bank.level = if line == Line::High { old | bit } else { old & !bit };
        let moved = old ^ bank.level;
        let mut changed = moved & !bank.edge;
        if line == Line::High {
            let newly = moved & bank.edge & !bank.latched;
            bank.latched |= newly;
            changed |= newly;
        }
        self.concerned(word, vcpu, changed)
    }

    /// `source` writes `value` to the SGI register of `group`. Returns the vCPUs that must sync and flush, the sender
    /// among them if it is a target.
    ///
    /// Group 0 registers make only SGIs pending that the target has in Group 0; ICC_SGI1R_EL1 reaches both, as there
    /// is one security state.
    pub fn send_sgi(&mut self, source: VcpuId, value: u64, group: Group) -> VcpuSet {
        let all = ((1_u32 << self.vcpu_count) - 1) as u8;
        let targets = if value & sgi_register::IRM != 0 {
            let mut others = VcpuSet(all);
            others.remove(source);
            others
        } else if value & sgi_register::CLUSTER == 0 {
            VcpuSet(value as u8 & all)
        } else {
            VcpuSet::EMPTY
        };
        let bit = 1 << (value >> sgi_register::INTID_SHIFT & 0xF);
        let mut set = VcpuSet::EMPTY;
        let mut rest = targets.0;
        while rest != 0 {
            let index = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some(target) = self.vcpus.get_mut(index) else { break };
            let bank = &mut target.private;
            if bank.latched & bit != 0 || (group == Group::Zero && bank.group & bit != 0) {
                continue;
            }
            bank.latched |= bit;
            set = set.union(self.concerned(0, index, bit));
        }
        set
    }

    /// The short way for the commonest SGI, one that `vcpu` sends to itself alone by writing `value` to ICC_SGI1R_EL1:
    /// enters it into a list register of `free` (the empty ones, by ICH_ELRSR_EL2) and returns which, to be written to
    /// the hardware. No sync is needed before it and no flush after it. `None` if anything about it is uncommon; then
    /// nothing has changed, and [`Self::send_sgi`] is the way. `lrs.lr` must hold what was last written to each list
    /// register of `lrs.used`.
    pub fn sgi_list_register(&mut self, vcpu: VcpuId, value: u64, lrs: &mut ListRegisters, free: u16) -> Option<usize> {
        let groups = (self.group0, self.group1);
        let target = self.vcpus.get_mut(vcpu.index())?;
        if value & (sgi_register::IRM | sgi_register::CLUSTER | 0xFFFF) != 1 << vcpu.0 {
            return None;
        }
        let interrupt = (value >> sgi_register::INTID_SHIFT & 0xF) as u32;
        let bit = 1 << interrupt;
        let bank = &target.private;
        if bank.enabled & bank.in_groups(groups) & !bank.latched & bit == 0 || target.overflow || target.asleep {
            return None;
        }
        let held = &mut target.held[0];
        // SGIs whose list registers are empty again have been handled: that closes their part of the ledger.
        let mut done = lrs.used & free;
        while done != 0 {
            let number = done.trailing_zeros() as usize;
            done &= done - 1;
            let over = lrs.lr.get(number).copied().unwrap_or(0) & list_register::VIRTUAL;
            if over < 16 {
                let over = 1_u32 << over;
                held.loaded &= !over;
                held.carried_latch &= !over;
                held.carried_active &= !over;
                held.cancel_active &= !over;
                lrs.used &= !(1 << number);
            }
        }
        if (held.loaded | held.active) & bit != 0 {
            return None;
        }
        let number = (free & !lrs.used).trailing_zeros() as usize;
        let slot = lrs.lr.get_mut(number)?;
        let priority = bank.priority.get(interrupt as usize)?;
        *slot = compose(interrupt, *priority, bank.group & bit != 0) | list_register::PENDING;
        held.loaded |= bit;
        held.carried_latch |= bit;
        lrs.used |= 1 << number;
        lrs.at_rest = false;
        Some(number)
    }

    /// `vcpu`, just synced, writes `interrupt` to ICC_DIR_EL1: deactivates it, on whichever vCPU it is active.
    /// Returns the vCPUs that must sync and flush; `vcpu` must flush in any case.
    pub fn deactivate(&mut self, vcpu: VcpuId, interrupt: IntId) -> VcpuSet {
        match position(interrupt) {
            Some((word, bit)) if vcpu.index() < self.vcpu_count => {
                self.clear_active(Place { word, vcpu: vcpu.index() }, bit)
            }
            _ => VcpuSet::EMPTY,
        }
    }
}
