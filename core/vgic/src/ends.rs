//! The end of an interrupt that has no list register (GIC IHI 0069H 6.3.2, and ICH_HCR_EL2.EOIcount in 12.4.8).
//!
//! With EOImode zero a write of ICC_EOIR drops the priority and deactivates. If no list register holds the interrupt, the
//! hardware counts the write in EOIcount, and LRENPIE reports it at once. It does not say which one it was, and need not:
//! ends are nested, so it was the most important of those that run and were left out.
//!
//! *Running* is what has an active priority (ICH_AP0R<n>_EL2, ICH_AP1R<n>_EL2): acknowledged, and its priority not dropped
//! yet. An activation without one is *set aside*, and no end of interrupt will ever mean it: it was made through ISACTIVER,
//! or acknowledged and dropped while EOImode was one. There a write of ICC_EOIR only drops the priority, and says
//! nothing of the state; ICC_DIR deactivates, which traps. The hardware may count such a write too, so what it counts is
//! looked at only with EOImode zero. The guest may change EOImode in the middle of its handlers; that is why, whenever
//! something active is left out, [`Vgic::note_running`] has a look at the active priorities.

use crate::bank::bits;
use crate::hardware::physical_set;
use crate::list_registers::{virtual_control, virtual_interface};
use crate::{ListRegisters, Vgic, WORDS};
use units::VcpuId;

impl Vgic {
    /// After a flush that left something active without a list register ([`virtual_control::LRENPIE`] in its `hcr`): tells
    /// which activations the guest is going to end by ICC_EOIR. `active_priorities` are ICH_AP0R<n>_EL2 and
    /// ICH_AP1R<n>_EL2, the registers of each group one after the other, 32 bits each; `vmcr` is ICH_VMCR_EL2.
    pub fn note_running(&mut self, vcpu: VcpuId, vmcr: u64, active_priorities: [u128; 2]) {
        let index = vcpu.index();
        let Some(target) = self.vcpus.get(index) else { return };
        let held = target.held;
        let mut running = [0_u32; WORDS];
        let mut found = [0_u128; 2];
        // Several may stand for one active priority: take those that already ran; else one that was set aside.
        for was_set_aside in [false, true] {
            for (word, held) in held.iter().enumerate() {
                let candidates = if was_set_aside { held.set_aside } else { !held.set_aside };
                for number in bits(held.active_or_carried() & candidates) {
                    let Some((group, priority)) = self.active_priority(word, index, number, vmcr) else { continue };
                    if active_priorities[group] & priority != 0 && !(was_set_aside && found[group] & priority != 0) {
                        found[group] |= priority;
                        running[word] |= 1 << number;
                    }
                }
            }
        }
        let Some(target) = self.vcpus.get_mut(index) else { return };
        // An active priority that no interrupt has may belong to one that was acknowledged with another binary point: then
        // whichever ran keeps running.
        let all_found = active_priorities == found;
        for (held, running) in target.held.iter_mut().zip(running) {
            let set_aside = if all_found { u32::MAX } else { held.set_aside };
            held.set_aside = held.active_or_carried() & set_aside & !running;
        }
    }

    /// Sets aside what was active before the guest acknowledged `acknowledged`, if one of those has the same active priority:
    /// that can be had only once, so the older one's must have been dropped.
    #[inline(always)]
    pub(crate) fn set_aside_overtaken(&mut self, index: usize, vmcr: u64, acknowledged: &[u32; WORDS]) {
        let Some(target) = self.vcpus.get(index) else { return };
        let older = |held: u32, acknowledged: u32| held & !acknowledged != 0;
        let any_older = target.held.iter().zip(acknowledged).any(|(held, &new)| older(held.active, new));
        if any_older && acknowledged.iter().any(|&new| new != 0) {
            self.compare_with_older(index, vmcr, acknowledged);
        }
    }

    #[cold]
    fn compare_with_older(&mut self, index: usize, vmcr: u64, acknowledged: &[u32; WORDS]) {
        let mut taken = [0_u128; 2];
        for (word, &new) in acknowledged.iter().enumerate() {
            for number in bits(new) {
                if let Some((group, priority)) = self.active_priority(word, index, number, vmcr) {
                    taken[group] |= priority;
                }
            }
        }
        for (word, &new) in acknowledged.iter().enumerate() {
            let active = self.vcpus.get(index).and_then(|vcpu| vcpu.held.get(word)).map_or(0, |held| held.active);
            for number in bits(active & !new) {
                let overtaken = self
                    .active_priority(word, index, number, vmcr)
                    .is_some_and(|(group, priority)| taken[group] & priority != 0);
                if overtaken && let Some(held) = self.vcpus.get_mut(index).and_then(|vcpu| vcpu.held.get_mut(word)) {
                    held.set_aside |= 1 << number;
                }
            }
        }
    }

    /// The group of interrupt `number` of `word`, and the bit of its active priority among those of the group: its group
    /// priority, as the binary point cuts it off.
    pub(crate) fn active_priority(&self, word: usize, vcpu: usize, number: u32, vmcr: u64) -> Option<(usize, u128)> {
        let active = self.vcpus.get(vcpu)?.held.get(word)?.active_or_carried();
        let (priority, group) = self.bank(word, vcpu)?.fields(number, active);
        let group = group as usize;
        let subpriority = subpriority_bits(group, vmcr);
        let priority = u32::from(priority) >> subpriority << subpriority;
        Some((group, 1 << (priority >> (8 - u32::from(self.preemption_bits)) & 0x7F)))
    }

    /// Ends the activations that had no list register when the guest ended them; returns which.
    pub(crate) fn count_ends(&mut self, index: usize, lrs: &mut ListRegisters) -> [u32; WORDS] {
        let mut freed = [0; WORDS];
        let mut ends = (lrs.hcr & virtual_control::EOI_COUNT) >> virtual_control::EOI_COUNT_SHIFT;
        if ends != 0 {
            // It must start from zero again, or the same ends would be counted at each sync.
            lrs.hcr &= !virtual_control::EOI_COUNT;
            lrs.hcr_dirty = true;
        }
        if lrs.vmcr & virtual_interface::SPLIT_END != 0 {
            ends = 0;
        }
        for _ in 0..ends {
            let Some(target) = self.vcpus.get(index) else { break };
            let running = target.held.map(|held| held.active & !held.set_aside & !held.loaded);
            let Some(interrupt) = self.most_important(index, &running) else { break };
            let (word, bit) = (usize::from(interrupt / 32), 1_u32 << (interrupt % 32));
            let Some(target) = self.vcpus.get_mut(index) else { break };
            if let (Some(held), Some(freed)) = (target.held.get_mut(word), freed.get_mut(word)) {
                held.active &= !bit;
                *freed |= bit;
            }
            if word == 0 && target.hardware & !target.hardware_pending & bit != 0 {
                target.hardware &= !bit;
                target.deactivate |= physical_set(bit, &target.physical);
            }
        }
        freed
    }
}

/// How many bits of a priority, from the lowest on, do not decide about preemption in `group`.
pub(crate) const fn subpriority_bits(group: usize, vmcr: u64) -> u32 {
    if group == 0 || vmcr & virtual_interface::COMMON_BINARY_POINT != 0 {
        (vmcr >> virtual_interface::BINARY_POINT_0_SHIFT & 7) as u32 + 1
    } else {
        (vmcr >> virtual_interface::BINARY_POINT_1_SHIFT & 7) as u32
    }
}
