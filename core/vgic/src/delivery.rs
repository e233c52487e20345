//! Between the model and the list registers: sync, flush, and what to do when there are too few (GIC IHI 0069H 6.3
//! and 6.4).
//!
//! As long as everything fits, order does not matter: the hardware picks the most important list register. When it
//! does not, flush chooses by priority, and keeps this promise: *whatever is left out is less important than every
//! pending interrupt that is loaded.* So nothing left out can be due until none of the loaded ones is pending, which
//! is what NPIE reports. Activations keep their list registers, the most important first, since those end first; but
//! one list register is always given to the best pending interrupt, or a guest that keeps many active would never
//! hear of it. The end of an activation that has no list register is counted by the hardware in EOIcount (LRENPIE
//! reports it), and ends are nested: it was the most important one left out. Activations made through ISACTIVER have no
//! handler that would end them, and come last in both choices.

use crate::bank::bits;
use crate::hardware::physical_set;
use crate::list_registers::{compose, hardware_fields, list_register, virtual_control};
use crate::{INTIDS, ListRegisters, MAX_LIST_REGISTERS, Vgic, WORDS};
use units::{IntId, VcpuId, VcpuSet};

/// What waits for a list register of one vCPU.
#[derive(Clone, Copy)]
struct Waiting {
    /// Pending and deliverable here.
    ready: [u32; WORDS],
    /// Active here.
    active: [u32; WORDS],
}

impl Waiting {
    /// All of it, one bit for each INTID.
    fn all(&self) -> u128 {
        let word = |index: usize| u64::from(self.ready[index] | self.active[index]);
        u128::from(word(0) | word(1) << 32) | u128::from(word(2) | word(3) << 32) << 64
    }
}

/// What the list registers will hold.
struct Choice {
    interrupts: [u8; MAX_LIST_REGISTERS],
    count: usize,
    /// Maintenance interrupts of ICH_HCR_EL2 that tell when to choose again.
    maintenance: u64,
}

impl Choice {
    const fn new() -> Self {
        Self { interrupts: [0; MAX_LIST_REGISTERS], count: 0, maintenance: 0 }
    }

    fn push(&mut self, interrupt: u8) {
        if let Some(slot) = self.interrupts.get_mut(self.count) {
            *slot = interrupt;
            self.count += 1;
        }
    }
}

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
        let mut rest = lrs.used;
        while rest != 0 {
            let number = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let Some(&value) = lrs.lr.get(number) else { break };
            if value & list_register::STATE != 0 {
                lrs.stale |= 1 << number;
                self.fold(index, value);
            } else if value & (list_register::HARDWARE | list_register::EOI) == list_register::EOI {
                // Empty, but it goes on raising the maintenance interrupt until it is overwritten.
                lrs.stale |= 1 << number;
            }
        }
        lrs.used = 0;
        self.close_ledger(index, ended)
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
        // SGIs and PPIs are nobody else's business.
        if freed[1] | freed[2] | freed[3] == 0 {
            return VcpuSet::EMPTY;
        }
        self.others_waiting_for(index, &freed)
    }

    /// Folds one list register that is not empty.
    fn fold(&mut self, index: usize, value: u64) {
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
                held.by_hand &= !bit;
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
        if latched && let Some(bank) = self.bank_mut(word, index) {
            bank.latched |= bit;
        }
    }

    /// Ends the activations that had no list register when the guest ended them; returns which.
    fn count_ends(&mut self, index: usize, lrs: &mut ListRegisters) -> [u32; WORDS] {
        let mut freed = [0; WORDS];
        let ends = (lrs.hcr & virtual_control::EOI_COUNT) >> virtual_control::EOI_COUNT_SHIFT;
        lrs.hcr &= !virtual_control::EOI_COUNT;
        for _ in 0..ends {
            let Some(target) = self.vcpus.get(index) else { break };
            let handled = target.held.map(|held| held.active & !held.by_hand & !held.loaded);
            let by_hand = target.held.map(|held| held.active & held.by_hand & !held.loaded);
            let ended = self.most_important(index, &handled).or_else(|| self.most_important(index, &by_hand));
            let Some(interrupt) = ended else { break };
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
        lrs.hcr = virtual_control::EN | virtual_control::TDIR | maintenance;
        if let Some(target) = self.vcpus.get_mut(index) {
            target.overflow = maintenance != 0;
            lrs.deactivate |= target.deactivate;
            target.deactivate = 0;
            lrs.at_rest = used == 0 && maintenance == 0 && target.hardware == 0;
        }
    }

    /// Loads one interrupt into list register `number`.
    fn fill(&mut self, index: usize, interrupt: u8, number: usize, waiting: &Waiting, lrs: &mut ListRegisters) {
        let value = self.load(index, interrupt, waiting);
        let Some(slot) = lrs.lr.get_mut(number) else { return };
        if lrs.stale >> number & 1 == 0 || *slot != value {
            *slot = value;
            lrs.dirty |= 1 << number;
        }
    }

    /// Loads all that waits, or the best of it. Returns the list registers filled, and the maintenance interrupts that
    /// tell when to choose again.
    fn fill_many(&mut self, index: usize, mut waiting: Waiting, lrs: &mut ListRegisters) -> (u16, u64) {
        let choice = match self.choose_all(&waiting) {
            Some(choice) => choice,
            None => {
                // An active interrupt must not go on to pending by itself here, out of its turn.
                for (ready, active) in waiting.ready.iter_mut().zip(&waiting.active) {
                    *ready &= !active;
                }
                self.choose_by_priority(index, &waiting)
            }
        };
        let mut used = 0;
        for (number, &interrupt) in choice.interrupts.iter().enumerate().take(choice.count) {
            self.fill(index, interrupt, number, &waiting, lrs);
            used |= 1 << number;
        }
        (used, choice.maintenance)
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

    /// Everything that waits, if it fits.
    fn choose_all(&self, waiting: &Waiting) -> Option<Choice> {
        let mut choice = Choice::new();
        let mut rest = waiting.all();
        while rest != 0 {
            if choice.count == self.list_register_count {
                return None;
            }
            choice.push(rest.trailing_zeros() as u8);
            rest &= rest - 1;
        }
        Some(choice)
    }

    /// The best of what waits. `waiting.ready` and `waiting.active` have no interrupt in common.
    fn choose_by_priority(&self, index: usize, waiting: &Waiting) -> Choice {
        let mut choice = Choice::new();
        let mut left = *waiting;
        let any_ready = waiting.ready.iter().any(|&ready| ready != 0);
        let for_active = self.list_register_count - usize::from(any_ready);
        let mut handled = waiting.active;
        for (handled, held) in handled.iter_mut().zip(self.vcpus.get(index).iter().flat_map(|vcpu| &vcpu.held)) {
            *handled &= !held.by_hand;
        }
        while choice.count < for_active
            && let Some(interrupt) = self.most_important(index, &handled)
        {
            choice.push(interrupt);
            handled[usize::from(interrupt / 32)] &= !(1 << (interrupt % 32));
            left.active[usize::from(interrupt / 32)] &= !(1 << (interrupt % 32));
        }
        while choice.count < for_active
            && let Some(interrupt) = self.most_important(index, &left.active)
        {
            choice.push(interrupt);
            left.active[usize::from(interrupt / 32)] &= !(1 << (interrupt % 32));
        }
        while choice.count < self.list_register_count
            && let Some(interrupt) = self.most_important(index, &left.ready)
        {
            choice.push(interrupt);
            left.ready[usize::from(interrupt / 32)] &= !(1 << (interrupt % 32));
        }
        if left.ready.iter().any(|&ready| ready != 0) {
            choice.maintenance |= virtual_control::NPIE;
        }
        if left.active.iter().any(|&active| active != 0) {
            choice.maintenance |= virtual_control::LRENPIE;
        }
        choice
    }

    /// The interrupt of `set` with the lowest priority value; of equals, the lowest INTID.
    fn most_important(&self, index: usize, set: &[u32; WORDS]) -> Option<u8> {
        let mut best = None;
        for (word, &candidates) in set.iter().enumerate() {
            let Some(bank) = self.bank(word, index) else { continue };
            for bit in bits(candidates) {
                let priority = bank.priority.get(bit as usize).copied().unwrap_or(u8::MAX);
                if best.is_none_or(|(most, _)| priority < most) {
                    best = Some((priority, word as u8 * 32 + bit as u8));
                }
            }
        }
        best.map(|(_, interrupt)| interrupt)
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
        let priority = bank.priority[usize::from(interrupt % 32)];
        let mut value = compose(u32::from(interrupt), priority, bank.group & bit != 0) | link;
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
        let group0 = if vmcr & 1 != 0 { u32::MAX } else { 0 };
        let group1 = if vmcr & 2 != 0 { u32::MAX } else { 0 };
        let mask = (vmcr >> 24) as u8;
        let Waiting { mut ready, active } = self.waiting(index);
        for (word, (ready, active)) in ready.iter_mut().zip(&active).enumerate() {
            let interface = self.bank(word, index).map_or(0, |bank| bank.in_groups((group0, group1)));
            *ready &= interface & !active;
        }
        let Some(best) = self.most_important(index, &ready) else { return false };
        let bank = self.bank(usize::from(best / 32), index);
        bank.and_then(|bank| bank.priority.get(usize::from(best % 32))).is_some_and(|&priority| priority < mask)
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
