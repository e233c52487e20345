//! Which vCPU an SPI goes to (GICD_IROUTER; GIC IHI 0069H 2.4 and 12.9.22).
//!
//! An affinity names one vCPU, or none. With Interrupt_Routing_Mode set it is a *1-of-N* interrupt, which any vCPU may
//! take that participates in its group: it is switched on, its Redistributor is awake (GICR_WAKER.ProcessorSleep), it
//! does not decline (GICR_CTLR.DPG0, DPG1NS), and its CPU interface has the group enabled (ICC_IGRPEN<n>_EL1). The
//! architecture leaves open which of them. Here it is the first, at any time exactly one, so that such an interrupt is
//! routed like all others, by a bit in [`crate::Vcpu::routed`], and moves when the participants change.
//!
//! The model learns of three of these conditions directly. The guest enables a group at its CPU interface without an
//! exit; while there are 1-of-N interrupts, each vCPU therefore has the maintenance interrupt set that tells of a
//! change (ICH_HCR_EL2.VGrp<n>EIE and VGrp<n>DIE; see [`crate::group_zero`] for a host that lacks one of them), and the
//! sync that follows looks at ICH_VMCR_EL2. If no vCPU
//! participates, it is the first vCPU that is on and does not decline: the interrupt waits there, and is a reason to
//! wake it from a power-down.

use crate::list_registers::virtual_control;
use crate::{Power, Vgic, WORDS};
use units::{VcpuId, VcpuSet};

impl Vgic {
    /// `vcpu` was switched on or off. Returns the vCPUs that must sync and flush.
    pub fn set_power(&mut self, vcpu: VcpuId, power: Power) -> VcpuSet {
        let on = power == Power::On;
        let Some(target) = self.vcpus.get_mut(vcpu.index()) else { return VcpuSet::EMPTY };
        if target.on == on {
            return VcpuSet::EMPTY;
        }
        target.on = on;
        // A CPU interface is reset when its CPU is switched on, and does not matter while it is off.
        target.interface = 0;
        self.route_all_anywhere()
    }

    /// Notes the groups that the CPU interface of `index` has enabled.
    pub(crate) fn set_interface(&mut self, index: usize, groups: u8) -> VcpuSet {
        match self.vcpus.get_mut(index) {
            Some(target) if target.interface != groups => target.interface = groups,
            _ => return VcpuSet::EMPTY,
        }
        self.route_all_anywhere()
    }

    /// GICR_CTLR of vCPU `index` is written.
    pub(crate) fn set_declines(&mut self, index: usize, groups: u8) -> VcpuSet {
        match self.vcpus.get_mut(index) {
            Some(target) if target.declines != groups => target.declines = groups,
            _ => return VcpuSet::EMPTY,
        }
        self.route_all_anywhere()
    }

    /// The SPI `bit` of `word` goes to vCPU `index` and nobody else; to nobody if there is no such vCPU.
    pub(crate) fn route_to(&mut self, word: usize, bit: u32, index: usize) -> VcpuSet {
        if let Some(anywhere) = self.anywhere.get_mut(word - 1) {
            *anywhere &= !bit;
        }
        self.route(word, bit, Some(index));
        self.concerned(word, 0, bit)
    }

    /// The SPI `bit` of `word` is a 1-of-N interrupt from now on.
    pub(crate) fn route_anywhere(&mut self, word: usize, bit: u32) -> VcpuSet {
        let first = !self.has_anywhere();
        if let Some(anywhere) = self.anywhere.get_mut(word - 1) {
            *anywhere |= bit;
        }
        let mut set = self.route_again(word, bit).union(self.concerned(word, 0, bit));
        if first {
            // From here on we look at what they have enabled, and watch it.
            for (index, vcpu) in self.vcpus.iter().enumerate().take(self.vcpu_count) {
                if vcpu.on {
                    set.insert(VcpuId(index as u8));
                }
            }
        }
        set
    }

    /// The groups of the interrupts `changed` of `word` have changed: 1-of-N ones among them may go elsewhere.
    pub(crate) fn route_groups(&mut self, word: usize, changed: u32) -> VcpuSet {
        if word == 0 { VcpuSet::EMPTY } else { self.route_again(word, changed) }
    }

    /// The participants have changed: each 1-of-N interrupt is routed again.
    pub(crate) fn route_all_anywhere(&mut self) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        if self.has_anywhere() {
            for word in 1..WORDS {
                set = set.union(self.route_again(word, u32::MAX));
            }
        }
        set
    }

    /// The maintenance interrupts that tell when a vCPU which has `groups` enabled at its CPU interface enables or disables
    /// one of them. None as long as nothing depends on that.
    pub(crate) fn watch_interface(&self, groups: u8) -> u64 {
        if self.has_anywhere() { self.changes_of(groups) } else { 0 }
    }

    fn has_anywhere(&self) -> bool {
        self.anywhere.iter().any(|&anywhere| anywhere != 0)
    }

    /// Routes those of the 1-of-N interrupts `which` of `word` again; returns the vCPUs concerned.
    fn route_again(&mut self, word: usize, which: u32) -> VcpuSet {
        let anywhere = self.anywhere.get(word - 1).copied().unwrap_or(0) & which;
        let group1 = self.bank(word, 0).map_or(0, |bank| bank.group);
        let mut set = VcpuSet::EMPTY;
        for (group, members) in [(0, anywhere & !group1), (1, anywhere & group1)] {
            if members != 0 {
                let moved = self.route(word, members, self.participant(group));
                set = set.union(self.concerned(word, 0, moved));
            }
        }
        set
    }

    /// Sets the route of the SPIs `members` of `word`; returns those that had another one.
    fn route(&mut self, word: usize, members: u32, target: Option<usize>) -> u32 {
        let mut moved = 0;
        for (index, vcpu) in self.vcpus.iter_mut().enumerate().take(self.vcpu_count) {
            let Some(routed) = vcpu.routed.get_mut(word) else { continue };
            let old = *routed;
            *routed = if Some(index) == target { old | members } else { old & !members };
            moved |= old ^ *routed;
        }
        moved
    }

    /// The vCPU that gets the 1-of-N interrupts of `group`.
    fn participant(&self, group: u8) -> Option<usize> {
        let vcpus = self.vcpus.get(..self.vcpu_count).unwrap_or_default();
        let willing = |vcpu: &crate::Vcpu| vcpu.on && vcpu.declines >> group & 1 == 0;
        let able = |vcpu: &crate::Vcpu| willing(vcpu) && !vcpu.asleep && vcpu.interface >> group & 1 != 0;
        vcpus.iter().position(able).or_else(|| vcpus.iter().position(willing))
    }

    /// What tells when the enabled groups of a CPU interface are others than `groups`.
    fn changes_of(&self, groups: u8) -> u64 {
        let each = virtual_control::GROUP_ENABLED.into_iter().enumerate();
        each.fold(0, |all, (group, enabled)| {
            all | if groups >> group & 1 != 0 { self.closing_of(group) } else { enabled }
        })
    }
}
