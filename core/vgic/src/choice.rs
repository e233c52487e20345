//! What goes into the list registers when there are too few (GIC IHI 0069H 6.3 and 6.4).
//!
//! As long as everything fits, order does not matter: the hardware picks the most important list register. When it does
//! not, flush chooses by priority among the interrupts that the guest's CPU interface lets through (*open*: their group
//! is enabled in ICC_IGRPEN<n>_EL1), and keeps this promise: *whatever open is left out is less important than every
//! pending interrupt that is loaded, and all that is loaded as pending while something open is left out is open.* So
//! nothing left out can be due until none of the loaded ones is pending, which is what NPIE reports; what masks the
//! loaded ones, the priority mask (ICC_PMR_EL1) and the running priority, masks what is left out all the more. Only the
//! groups do not go by priority, and a guest enables and disables them without an exit. So VGrp<n>DIE tells when a
//! group closes while open interrupts of the other one are left out, as what was chosen of the closed one would hide
//! them from NPIE; and VGrp<n>EIE when one opens of which some were left out. Masked interrupts get only list registers
//! that would otherwise be empty.
//!
//! Activations keep their list registers, the most important first, since those end first; but one list register is always
//! given to the best open pending interrupt, or a guest that keeps many active would never hear of it. Activations that no
//! end of interrupt will end (see `ends`) come last in the choice.

use crate::bank::bits;
use crate::list_registers::{virtual_control, virtual_interface};
use crate::{ListRegisters, MAX_LIST_REGISTERS, Vgic, WORDS};

/// What waits for a list register of one vCPU.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    /// Pending and deliverable here.
    pub(crate) ready: [u32; WORDS],
    /// Active here.
    pub(crate) active: [u32; WORDS],
}

impl Waiting {
    /// All of it, one bit for each INTID.
    pub(crate) fn all(&self) -> u128 {
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
    /// Loads all that waits, or the best of it. Returns the list registers filled, and the maintenance interrupts that
    /// tell when to choose again.
    pub(crate) fn fill_many(&mut self, index: usize, mut waiting: Waiting, lrs: &mut ListRegisters) -> (u16, u64) {
        let choice = match self.choose_all(&waiting) {
            Some(choice) => choice,
            None => {
                // An active interrupt must not go on to pending by itself here, out of its turn.
                for (ready, active) in waiting.ready.iter_mut().zip(&waiting.active) {
                    *ready &= !active;
                }
                self.choose_by_priority(index, &waiting, (lrs.vmcr & virtual_interface::GROUPS) as u8)
            }
        };
        let mut used = 0;
        for (number, &interrupt) in choice.interrupts.iter().enumerate().take(choice.count) {
            self.fill(index, interrupt, number, &waiting, lrs);
            used |= 1 << number;
        }
        (used, choice.maintenance)
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

    /// The best of what waits. `waiting.ready` and `waiting.active` have no interrupt in common; `groups` are enabled at
    /// the CPU interface.
    fn choose_by_priority(&self, index: usize, waiting: &Waiting, groups: u8) -> Choice {
        let mut choice = Choice::new();
        let [mut running, mut set_aside, mut open, mut masked] = self.divide(index, waiting, groups);
        let for_active = self.list_register_count - usize::from(is_any(&open));
        self.take_best(index, &mut choice, &mut running, for_active);
        self.take_best(index, &mut choice, &mut set_aside, for_active);
        self.take_best(index, &mut choice, &mut open, self.list_register_count);
        self.take_best(index, &mut choice, &mut masked, self.list_register_count);
        if is_any(&open) {
            choice.maintenance |= virtual_control::NPIE;
        }
        for (group, enabled) in virtual_control::GROUP_ENABLED.into_iter().enumerate() {
            let is_among =
                |set: &[u32; WORDS]| (0..WORDS).any(|word| set[word] & self.members(word, index, 1 << group) != 0);
            if is_among(&masked) {
                choice.maintenance |= enabled;
            }
            if groups == BOTH && is_among(&open) {
                choice.maintenance |= self.closing_of(1 - group);
            }
        }
        if is_any(&running) || is_any(&set_aside) {
            choice.maintenance |= virtual_control::LRENPIE;
        }
        choice
    }

    /// What waits, in the order in which it is chosen: active ones that run and that are set aside, pending ones that are open
    /// and that are masked.
    fn divide(&self, index: usize, waiting: &Waiting, groups: u8) -> [[u32; WORDS]; 4] {
        let held = |word: usize| self.vcpus.get(index).and_then(|vcpu| vcpu.held.get(word));
        let set_aside: [u32; WORDS] = core::array::from_fn(|word| held(word).map_or(0, |held| held.set_aside));
        let open: [u32; WORDS] = core::array::from_fn(|word| self.members(word, index, groups));
        [
            core::array::from_fn(|word| waiting.active[word] & !set_aside[word]),
            core::array::from_fn(|word| waiting.active[word] & set_aside[word]),
            core::array::from_fn(|word| waiting.ready[word] & open[word]),
            core::array::from_fn(|word| waiting.ready[word] & !open[word]),
        ]
    }

    /// The interrupts of `word` whose group is among `groups`.
    fn members(&self, word: usize, index: usize, groups: u8) -> u32 {
        let all = |group: u8| if groups >> group & 1 != 0 { u32::MAX } else { 0 };
        self.bank(word, index).map_or(0, |bank| bank.in_groups((all(0), all(1))))
    }

    /// Moves the most important of `from` into `choice`, until that holds `limit`.
    fn take_best(&self, index: usize, choice: &mut Choice, from: &mut [u32; WORDS], limit: usize) {
        while choice.count < limit
            && let Some(interrupt) = self.most_important(index, from)
        {
            choice.push(interrupt);
            from[usize::from(interrupt / 32)] &= !(1 << (interrupt % 32));
        }
    }

    /// The interrupt of `set` with the lowest priority value, which of active ones is that of their acknowledgement; of equals, the
    /// lowest INTID.
    pub(crate) fn most_important(&self, index: usize, set: &[u32; WORDS]) -> Option<u8> {
        let mut best = None;
        for (word, &candidates) in set.iter().enumerate() {
            let Some(bank) = self.bank(word, index) else { continue };
            let active = self.vcpus.get(index).and_then(|vcpu| vcpu.held.get(word)).map_or(0, |held| held.active);
            for bit in bits(candidates) {
                let (priority, _) = bank.fields(bit, active);
                if best.is_none_or(|(most, _)| priority < most) {
                    best = Some((priority, word as u8 * 32 + bit as u8));
                }
            }
        }
        best.map(|(_, interrupt)| interrupt)
    }
}

/// Both groups are enabled.
const BOTH: u8 = 0b11;

fn is_any(set: &[u32; WORDS]) -> bool {
    set.iter().any(|&word| word != 0)
}
