//! Where interrupts come from: devices' lines, edges, SGIs (GIC IHI 0069H 4.1 and 12.2.21), and a trapped ICC_DIR_EL1.

use crate::bank_registers::Place;
use crate::{Group, Line, Vgic, position};
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
