//! Between the model and the list registers: sync and flush (GIC IHI 0069H 6.3 and 6.4). What to do when there are too
//! few of them is in `choice`, and the end of what had none in `ends`.

use crate::choice::Waiting;
use crate::hardware::physical_set;
use crate::list_registers::{compose, hardware_fields, list_register, virtual_control, virtual_interface};
use crate::{INTIDS, ListRegisters, Vgic, WORDS};
use units::{IntId, VcpuId, VcpuSet};

impl Vgic {
    /// Takes the state of `vcpu`'s interrupts back from its list registers: those of `lrs.used`, as the hardware has
    /// them now.
    ///
    /// Afterwards the model knows all there is to know of this vCPU, and its list registers count as empty: the guest
    /// must not run on it again before [`Self::flush`]. Returns *other* vCPUs that must sync and flush: an SPI that
    /// was in the way here can now go to them.
    pub fn sync(&mut self, vcpu: VcpuId, lrs: &mut ListRegisters) -> VcpuSet {
        let index = vcpu.index();
        if index >= self.vcpu_count {
            return VcpuSet::EMPTY;
        }
        let counts_ends = lrs.hcr & virtual_control::LRENPIE != 0;
        let ended = if counts_ends { self.count_ends(index, lrs) } else { [0; WORDS] };
        let Some(target) = self.vcpus.get_mut(index) else { return VcpuSet::EMPTY };
        // Whatever the list registers carried is over, unless one of them still shows it below.
        target.hardware &= !target.held[0].loaded | target.hardware_pending;
        target.hardware_carried = 0;
        let mut acknowledged = [0; WORDS];
        let mut rest = lrs.used;
        while rest != 0 {
            let number = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some(&value) = lrs.lr.get(number) else { break };
            if value & list_register::STATE != 0 {
                lrs.stale |= 1 << number;
                self.fold(index, value, &mut acknowledged);
            } else if value & (list_register::HARDWARE | list_register::EOI) == list_register::EOI {
                // It is empty, but raises the maintenance interrupt until it is overwritten.
                lrs.stale |= 1 << number;
            }
        }
        lrs.used = 0;
        self.set_aside_overtaken(index, lrs.vmcr, &acknowledged);
        let freed = self.close_ledger(index, ended);
        let mut moved = self.set_interface(index, (lrs.vmcr & virtual_interface::GROUPS) as u8);
        moved.remove(vcpu);
        freed.union(moved)
    }

    /// Clears the ledger of what was loaded; returns the other vCPUs that can have an SPI of it, or of `ended`, now.
    fn close_ledger(&mut self, index: usize, ended: [u32; WORDS]) -> VcpuSet {
        let mut freed = ended;
        let Some(target) = self.vcpus.get_mut(index) else { return VcpuSet::EMPTY };
        for (held, freed) in target.held.iter_mut().zip(&mut freed) {
            if held.loaded != 0 {
                *freed |= held.loaded;
                held.loaded = 0;
                held.carried_latch = 0;
                held.carried_active = 0;
                held.cancel_active = 0;
            }
        }
        // SGIs and PPIs concern no other vCPU.
        if freed[1] | freed[2] | freed[3] == 0 {
            return VcpuSet::EMPTY;
        }
        self.others_waiting_for(index, &freed)
    }

    /// Folds one list register that is not empty; enters it into `acknowledged` if the guest has just taken it.
    fn fold(&mut self, index: usize, value: u64, acknowledged: &mut [u32; WORDS]) {
        let interrupt = (value & list_register::VIRTUAL) as u32;
        if interrupt >= INTIDS {
            return;
        }
        let (word, bit) = ((interrupt / 32) as usize, 1_u32 << (interrupt % 32));
        let Some(target) = self.vcpus.get_mut(index) else { return };
        let Some(held) = target.held.get_mut(word) else { return };
        let cancelled = held.cancel_active & bit != 0;
        let latched = value & list_register::PENDING != 0 && held.carried_latch & bit != 0;
        let active = value & list_register::ACTIVE != 0 && !cancelled;
        if active {
            held.active |= bit;
            if held.carried_active & bit == 0 {
                held.set_aside &= !bit;
                acknowledged[word] |= bit;
            }
        }
        if value & list_register::HARDWARE != 0 && word == 0 {
            let physical = ((value & list_register::PHYSICAL) >> list_register::PHYSICAL_SHIFT) as u8;
            if value & list_register::PENDING != 0 {
                target.hardware_pending |= bit;
            }
            if value & list_register::PENDING != 0 || active {
                target.hardware |= bit;
                if let Some(slot) = target.physical.get_mut(interrupt as usize) {
                    *slot = physical;
                }
            } else {
                // Deactivated by hand: the guest's end of interrupt will no longer reach the physical one.
                target.deactivate |= 1 << (physical & 31);
            }
        }
        let Some(bank) = self.bank_mut(word, index) else { return };
        if latched {
            bank.latched |= bit;
        }
        if active {
            let number = interrupt % 32;
            let now = compose(interrupt, bank.priority[number as usize], bank.group & bit != 0);
            if (value ^ now) & list_register::FIELDS != 0 {
                // It was acknowledged with another priority than it has now.
                let group = u32::from(value & list_register::GROUP1 != 0);
                bank.keep_as(number, (value >> list_register::PRIORITY_SHIFT) as u8, group);
            } else {
                bank.kept &= !bit;
            }
        }
    }

    /// The vCPUs, other than `index`, that can now have one of the SPIs `freed`.
    fn others_waiting_for(&self, index: usize, freed: &[u32; WORDS]) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        let Some(target) = self.vcpus.get(index) else { return set };
        for word in 1..WORDS {
            let (Some(&freed), Some(held), Some(&routed)) =
                (freed.get(word), target.held.get(word), target.routed.get(word))
            else {
                continue;
            };
            let elsewhere = freed & !held.active & !routed;
            if elsewhere != 0 {
                set = set.union(self.concerned(word, 0, elsewhere & self.ready(word, 0)));
            }
        }
        set.remove(VcpuId(index as u8));
        set
    }

    /// Fills `vcpu`'s list registers with what it must be told, and says in `lrs.dirty`, `lrs.hcr` and
    /// `lrs.deactivate` what the owner has to do to the hardware. [`Self::sync`] comes before it whenever `lrs.used`
    /// is not empty.
    pub fn flush(&mut self, vcpu: VcpuId, lrs: &mut ListRegisters) {
        let index = vcpu.index();
        if index >= self.vcpu_count {
            return;
        }
        let waiting = self.waiting(index);
        let all = waiting.all();
        let mut used = 0;
        lrs.dirty = 0;
        let mut maintenance = 0;
        if all & all.wrapping_sub(1) == 0 {
            // None or one: by far the most frequent.
            if all != 0 {
                self.fill(index, all.trailing_zeros() as u8, 0, &waiting, lrs);
                used = 1;
            }
        } else {
            (used, maintenance) = self.fill_many(index, waiting, lrs);
        }
        let overflow = maintenance != 0;
        maintenance |= self.watch_interface((lrs.vmcr & virtual_interface::GROUPS) as u8);
        let mut rest = lrs.stale & !used;
        while rest != 0 {
            let number = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            if let Some(slot) = lrs.lr.get_mut(number) {
                *slot = 0;
                lrs.dirty |= 1 << number;
            }
        }
        lrs.stale = 0;
        lrs.used = used;
        let hcr = self.always | maintenance;
        lrs.hcr_dirty |= lrs.hcr != hcr;
        lrs.hcr = hcr;
        if let Some(target) = self.vcpus.get_mut(index) {
            target.overflow = overflow;
            lrs.deactivate |= target.deactivate;
            target.deactivate = 0;
            lrs.at_rest = used == 0 && maintenance == 0 && target.hardware == 0;
        }
    }

    /// Loads one interrupt into list register `number`.
    pub(crate) fn fill(
        &mut self,
        index: usize,
        interrupt: u8,
        number: usize,
        waiting: &Waiting,
        lrs: &mut ListRegisters,
    ) {
        let value = self.load(index, interrupt, waiting);
        let Some(slot) = lrs.lr.get_mut(number) else { return };
        if lrs.stale >> number & 1 == 0 || *slot != value {
            *slot = value;
            lrs.dirty |= 1 << number;
        }
    }

    /// What waits for a list register of a vCPU that has been synced.
    fn waiting(&self, index: usize) -> Waiting {
        let mut waiting = Waiting { ready: [0; WORDS], active: [0; WORDS] };
        let Some(target) = self.vcpus.get(index) else { return waiting };
        let groups = (self.group0, self.group1);
        let [private, shared @ ..] = &mut waiting.ready;
        *private = target.private.deliverable(groups, target.hardware_pending);
        let routes = self.shared.iter().zip(&target.routed[1..]);
        for (word, (ready, (bank, routed))) in (1..).zip(shared.iter_mut().zip(routes)) {
            // Most of the time no device has anything to say.
            if bank.latched | bank.level != 0 {
                *ready = bank.deliverable(groups, 0) & routed;
                if *ready != 0 {
                    *ready &= !self.held_by_others(word, index);
                }
            }
        }
        if target.asleep {
            waiting.ready = [0; WORDS];
        }
        for (active, held) in waiting.active.iter_mut().zip(&target.held) {
            *active = held.active;
        }
        waiting
    }

    /// SPIs of `word` that another vCPU has in hand: nobody else may take them until it lets go.
    fn held_by_others(&self, word: usize, index: usize) -> u32 {
        let mut held = 0;
        for (other, vcpu) in self.vcpus.iter().enumerate().take(self.vcpu_count) {
            if other != index {
                held |= vcpu.held.get(word).map_or(0, |theirs| theirs.any());
            }
        }
        held
    }

    /// Moves one interrupt out of the model into the list register whose value this returns.
    fn load(&mut self, index: usize, interrupt: u8, waiting: &Waiting) -> u64 {
        let (word, bit) = (usize::from(interrupt / 32), 1_u32 << (interrupt % 32));
        let Some(target) = self.vcpus.get_mut(index) else { return 0 };
        let (Some(held), Some(&ready), Some(&active)) =
            (target.held.get_mut(word), waiting.ready.get(word), waiting.active.get(word))
        else {
            return 0;
        };
        let (mut pending, active) = (ready & bit != 0, active & bit != 0);
        let mut link = 0;
        let mut fired = false;
        if word == 0 && target.hardware & bit != 0 {
            fired = target.hardware_pending & bit != 0;
            // A hardware-linked list register is pending or active, never both, and its end raises no maintenance
            // interrupt. If a software activation of the same INTID stands in its way, it waits for the end of that; if
            // it is active and made pending by hand as well, it lets go of the physical interrupt and ends as a
            // software one.
            if active && !fired && (target.private.latched | target.private.asserted()) & bit != 0 {
                target.hardware &= !bit;
                target.deactivate |= physical_set(bit, &target.physical);
            } else if active && fired {
                pending = false;
            } else {
                link = hardware_fields(IntId(u32::from(target.physical[usize::from(interrupt % 32)])));
                if pending && fired {
                    target.hardware_pending &= !bit;
                    target.hardware_carried |= bit;
                }
            }
        }
        let bank = if word == 0 { Some(&mut target.private) } else { self.shared.get_mut(word - 1) };
        let Some(bank) = bank else { return 0 };
        // The virtual end of interrupt deactivates what has the priority and the group that it drops (QEMU's does so; the manual does
        // not say): of an active interrupt, those of its acknowledgement. What it is pending for besides has those of now, and waits.
        pending &= !(active && bank.kept & bit != 0);
        let (priority, group) = bank.fields(u32::from(interrupt % 32), if active { bit } else { 0 });
        let mut value = compose(u32::from(interrupt), priority, group != 0) | link;
        let asserted = bank.asserted() & bit != 0;
        let withheld = !pending && (fired || bank.latched & bit != 0);
        if link == 0 && (asserted || withheld) {
            value |= list_register::EOI;
        }
        held.loaded |= bit;
        if active {
            value |= list_register::ACTIVE;
            held.active &= !bit;
            held.carried_active |= bit;
        }
        if pending {
            value |= list_register::PENDING;
            held.carried_latch |= bank.latched & bit;
            bank.latched &= !bit;
        }
        value
    }

    /// Whether an interrupt would be signalled to `vcpu`, so that WFI ends: pending, enabled, awake, in a group that
    /// the virtual CPU interface has enabled, and more important than its priority mask. `vmcr` is ICH_VMCR_EL2. Sync
    /// first.
    ///
    /// The running priority is not looked at: a WFI inside an interrupt handler may end without cause, as any WFI may.
    #[must_use]
    pub fn has_deliverable(&self, vcpu: VcpuId, vmcr: u64) -> bool {
        let index = vcpu.index();
        if index >= self.vcpu_count {
            return false;
        }
        let mask = (vmcr >> virtual_interface::MASK_SHIFT) as u8;
        self.best_open(index, vmcr).is_some_and(|(_, priority)| priority < mask)
    }

    /// The most important interrupt that is pending, enabled, not active, and in a group that the virtual CPU interface has
    /// enabled, and its priority: what the interface would offer if it had all of them in list registers.
    pub(crate) fn best_open(&self, index: usize, vmcr: u64) -> Option<(u8, u8)> {
        let group0 = if vmcr & 1 != 0 { u32::MAX } else { 0 };
        let group1 = if vmcr & 2 != 0 { u32::MAX } else { 0 };
        let Waiting { mut ready, active } = self.waiting(index);
        for (word, (ready, active)) in ready.iter_mut().zip(&active).enumerate() {
            let interface = self.bank(word, index).map_or(0, |bank| bank.in_groups((group0, group1)));
            *ready &= interface & !active;
        }
        let best = self.most_important(index, &ready)?;
        let bank = self.bank(usize::from(best / 32), index)?;
        Some((best, *bank.priority.get(usize::from(best % 32))?))
    }

    /// Whether anything that is pending and enabled is routed to `vcpu`, whatever its CPU interface or GICR_WAKER
    /// say: what wakes a vCPU out of CPU_SUSPEND with its power down (the wake request of GIC IHI 0069H 10.1). Sync
    /// first.
    #[must_use]
    pub fn has_wake_request(&self, vcpu: VcpuId) -> bool {
        let index = vcpu.index();
        let Some(target) = self.vcpus.get(index) else { return false };
        target.routed.iter().zip(&target.held).enumerate().any(|(word, (routed, held))| {
            let ready = self.ready(word, index) & routed & !held.active;
            ready != 0 && (word == 0 || ready & !self.held_by_others(word, index) != 0)
        })
    }

    /// Whether nothing of `vcpu` is in a list register or waits for one. A caller that has flushed may look at
    /// [`ListRegisters::used`] instead: it is zero exactly then.
    #[must_use]
    pub fn is_quiet(&self, vcpu: VcpuId) -> bool {
        let Some(target) = self.vcpus.get(vcpu.index()) else { return true };
        let held = target.held.iter().any(|held| held.any() != 0);
        !held && self.waiting(vcpu.index()).ready.iter().all(|&ready| ready == 0)
    }
}
