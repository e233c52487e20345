//! A host that does not tell when its guest disables Group 0.
//!
//! ICH_MISR_EL2.VGrp0D is to be set while ICH_VMCR_EL2.VENG0 is zero; QEMU's GIC (up to 11.1) looks at VENG1 instead. While
//! a guest has both groups enabled, it can then disable Group 0 and nothing tells, and what `choice` has loaded of that
//! group stays pending in the list registers, where it hides everything that was left out. While it has Group 0 alone
//! enabled, VGrp0DIE would fire without end.
//!
//! On such a host the *access* tells: where elsewhere VGrp0DIE is set, and only there, ICH_HCR_EL2.TALL0 is. It traps
//! ICC_IGRPEN0_EL1, which is what is wanted, and with it all other registers of Group 0 (GIC IHI 0069H 12.2): what the
//! guest acknowledges and ends through them is done here, on the model, which knows everything of a vCPU that was synced.
//! The active priorities (ICH_AP0R<n>_EL2, ICH_AP1R<n>_EL2) are the hardware's still: they are given to these functions,
//! and what comes of them is written back before the flush.

use crate::bank_registers::Place;
use crate::ends::subpriority_bits;
use crate::list_registers::{virtual_control, virtual_interface};
use crate::{Vgic, WORDS, position};
use units::{IntId, VcpuId, VcpuSet};

/// What the CPU interface reads as when there is nothing.
const NOTHING: u32 = 1023;

impl Vgic {
    /// What tells when a CPU interface disables `group`, which it has enabled.
    pub(crate) const fn closing_of(&self, group: usize) -> u64 {
        match group {
            0 if !self.tells_of_group_0 => virtual_control::TRAP_GROUP_0,
            0 => virtual_control::GROUP_DISABLED[0],
            _ => virtual_control::GROUP_DISABLED[1],
        }
    }

    /// `vcpu`, just synced, reads ICC_HPPIR0_EL1. `vmcr` is ICH_VMCR_EL2.
    #[must_use]
    pub fn highest_pending_in_group_0(&self, vcpu: VcpuId, vmcr: u64) -> u32 {
        self.best_in_group_0(vcpu.index(), vmcr).map_or(NOTHING, |(interrupt, _)| u32::from(interrupt))
    }

    /// `vcpu`, just synced, reads ICC_IAR0_EL1: what it acknowledges is active from now on. `active_priorities` are as in
    /// [`Self::note_running`], and to be written back.
    pub fn acknowledge_group_0(&mut self, vcpu: VcpuId, vmcr: u64, active_priorities: &mut [u128; 2]) -> u32 {
        let index = vcpu.index();
        let Some((interrupt, priority)) = self.best_in_group_0(index, vmcr) else { return NOTHING };
        let (word, number) = (usize::from(interrupt / 32), u32::from(interrupt % 32));
        let Some((group, active)) = self.active_priority(word, index, number, vmcr) else { return NOTHING };
        // An active priority is a group priority: its highest bits, as many as decide about preemption.
        let running = (active_priorities[0] | active_priorities[1]).trailing_zeros();
        let running = running << (8 - u32::from(self.preemption_bits));
        let subpriority = subpriority_bits(group, vmcr);
        let is_masked = priority >= (vmcr >> virtual_interface::MASK_SHIFT) as u8;
        if is_masked || u32::from(priority) >> subpriority >= running >> subpriority {
            return NOTHING;
        }
        active_priorities[group] |= active;
        let bit = 1 << number;
        if let Some(bank) = self.bank_mut(word, index) {
            bank.latched &= !bit;
            bank.kept &= !bit;
        }
        if let Some(target) = self.vcpus.get_mut(index)
            && let Some(held) = target.held.get_mut(word)
        {
            held.active |= bit;
            held.set_aside &= !bit;
            if word == 0 {
                target.hardware_pending &= !bit;
            }
        }
        let mut acknowledged = [0; WORDS];
        acknowledged[word] = bit;
        self.set_aside_overtaken(index, vmcr, &acknowledged);
        u32::from(interrupt)
    }

    /// `vcpu`, just synced, writes `interrupt` to ICC_EOIR0_EL1: drops the running priority, and with EOImode zero deactivates
    /// the interrupt. Returns the vCPUs that must sync and flush.
    pub fn end_group_0(
        &mut self,
        vcpu: VcpuId,
        interrupt: IntId,
        vmcr: u64,
        active_priorities: &mut [u128; 2],
    ) -> VcpuSet {
        let Some((word, bit)) = position(interrupt) else { return VcpuSet::EMPTY };
        let [zero, one] = active_priorities;
        let highest = if zero.trailing_zeros() <= one.trailing_zeros() { zero } else { one };
        *highest &= highest.wrapping_sub(1);
        let index = vcpu.index();
        let held = self.vcpus.get(index).and_then(|vcpu| vcpu.held.get(word));
        let is_active = held.is_some_and(|held| held.active & bit != 0);
        if vmcr & virtual_interface::SPLIT_END != 0 || !is_active {
            return VcpuSet::EMPTY;
        }
        self.clear_active(Place { word, vcpu: index }, bit)
    }

    /// What the CPU interface offers, if it is in Group 0, and its priority.
    fn best_in_group_0(&self, index: usize, vmcr: u64) -> Option<(u8, u8)> {
        let best = self.best_open(index, vmcr)?;
        let bank = self.bank(usize::from(best.0 / 32), index)?;
        (bank.group >> (best.0 % 32) & 1 == 0).then_some(best)
    }
}
