//! PPIs that stand for a physical interrupt of the CPU the guest runs on: its timers.
//!
//! The owner takes the physical interrupt, drops its priority but leaves it active (EOImode one), and hands it on.
//! The list register names it, so that the guest's own end of interrupt deactivates it, without an exit, and it can
//! fire again. While it is linked it cannot become pending a second time; everything here leans on that.

use crate::list_registers::{compose, hardware_fields, list_register};
use crate::{Line, Vgic};
use units::{IntId, VcpuId, VcpuSet};

impl Vgic {
    /// The physical PPI `physical` fired for `vcpu` and is now active: makes the guest's PPI `interrupt` pending.
    ///
    /// No sync is needed before it. Both INTIDs must be private (below 32); anything else changes nothing.
    pub fn raise_hardware(&mut self, vcpu: VcpuId, interrupt: IntId, physical: IntId) -> VcpuSet {
        let Some(target) = self.vcpus.get_mut(vcpu.index()) else { return VcpuSet::EMPTY };
        let Some(bit) = private_bit(interrupt) else { return VcpuSet::EMPTY };
        if !physical.is_private() {
            return VcpuSet::EMPTY;
        }
        target.hardware |= bit;
        target.hardware_pending |= bit;
        if let Some(slot) = target.physical.get_mut(interrupt.0 as usize) {
            *slot = physical.0 as u8;
        }
        self.concerned(0, vcpu.index(), bit)
    }

    /// The cause of the hardware-linked `interrupt` is gone before the guest took it: withdraws it. Sync `vcpu` first.
    ///
    /// Returns whether it was still pending, in which case the caller must deactivate the physical interrupt itself.
    pub fn lower_hardware(&mut self, vcpu: VcpuId, interrupt: IntId) -> bool {
        let Some(target) = self.vcpus.get_mut(vcpu.index()) else { return false };
        let Some(bit) = private_bit(interrupt) else { return false };
        let withdrawn = target.hardware_pending & bit != 0;
        if withdrawn {
            target.hardware_pending &= !bit;
            target.hardware &= !bit;
        }
        withdrawn
    }

    /// The ready-made list register for a hardware-linked `interrupt` that has just fired: `Some` if it is enabled, its
    /// group is enabled, and the last flush of `vcpu` left nothing waiting for a list register.
    ///
    /// The caller writes it to an empty list register (ICH_ELRSR_EL2) and sets its bit in
    /// [`crate::ListRegisters::used`]; it calls neither [`Self::raise_hardware`] nor flush. The model has it in its
    /// ledger of loaded interrupts, so a guest that disables or deactivates it before it is taken is obeyed; if the
    /// list register cannot be written after all, [`Self::raise_hardware`] takes it back. What other events have made
    /// pending since the last flush is the caller's own business: it has been told by a [`VcpuSet`], and the hardware
    /// picks the most important of the list registers whoever filled them.
    #[must_use]
    pub fn hardware_list_register(&mut self, vcpu: VcpuId, interrupt: IntId, physical: IntId) -> Option<u64> {
        let groups = (self.group0, self.group1);
        let target = self.vcpus.get_mut(vcpu.index())?;
        let bit = private_bit(interrupt)?;
        let bank = &target.private;
        let deliverable = bank.enabled & bank.in_groups(groups) & bit != 0;
        // That it fired shows that an earlier link has ended, whatever the ledger still says; but a software activation
        // or latch of the same INTID would be mixed up with it.
        let held = &mut target.held[0];
        let software = held.active | held.carried_latch | (held.carried_active & !target.hardware);
        let clashes = (software | target.hardware_pending | bank.latched) & bit != 0;
        if !deliverable || clashes || target.overflow || target.asleep || !physical.is_private() {
            return None;
        }
        let priority = bank.priority.get(interrupt.0 as usize)?;
        held.loaded |= bit;
        held.carried_active &= !bit;
        target.hardware |= bit;
        target.hardware_carried |= bit;
        let common = compose(interrupt.0, *priority, bank.group & bit != 0);
        Some(common | hardware_fields(physical) | list_register::PENDING)
    }

    /// The cause of the hardware-linked `interrupt` is there while `vcpu` sleeps, and may leave its CPU with it: its line stands in for
    /// the physical interrupt, so that whoever lets the guest have it wakes the guest. `None` if it cannot, since it is edge-triggered.
    /// An interrupt that the guest handles need not. It is to be lowered before the guest runs again. Sync first.
    pub fn raise_stand_in(&mut self, vcpu: VcpuId, interrupt: IntId) -> Option<VcpuSet> {
        let target = self.vcpus.get(vcpu.index())?;
        let bit = private_bit(interrupt)?;
        if target.private.edge & bit != 0 {
            return None;
        }
        let is_handled = target.held[0].active & bit != 0;
        Some(if is_handled { VcpuSet::EMPTY } else { self.set_ppi_level(vcpu, interrupt, Line::High) })
    }

    /// Which PPIs of `vcpu` (bit *n* is INTID *n*) are linked to a physical interrupt that is active on its CPU. Sync
    /// first.
    #[must_use]
    pub fn hardware_linked(&self, vcpu: VcpuId) -> u32 {
        self.vcpus.get(vcpu.index()).map_or(0, |target| target.hardware)
    }

    /// Unties all hardware-linked PPIs of `vcpu`, so that it can move to another CPU. Sync first.
    ///
    /// Returns the physical PPIs (bit *n* is INTID *n*) that the caller must deactivate on the CPU it leaves. One
    /// that was pending is withdrawn, since its cause will fire again where the vCPU goes; one that was active ends
    /// as a software interrupt.
    pub fn detach_hardware(&mut self, vcpu: VcpuId) -> u32 {
        let Some(target) = self.vcpus.get_mut(vcpu.index()) else { return 0 };
        let physical = physical_set(target.hardware, &target.physical);
        target.hardware = 0;
        target.hardware_pending = 0;
        physical
    }
}

/// The physical PPIs behind the interrupts `linked`, as a bitmap.
pub(crate) fn physical_set(linked: u32, physical: &[u8; 32]) -> u32 {
    let mut set = 0;
    let mut rest = linked;
    while rest != 0 {
        set |= physical.get(rest.trailing_zeros() as usize).map_or(0, |number| 1 << (number & 31));
        rest &= rest - 1;
    }
    set
}

/// The bit of a private interrupt in word 0.
fn private_bit(interrupt: IntId) -> Option<u32> {
    interrupt.is_private().then(|| 1 << interrupt.0)
}
