//! The hardware's virtual CPU interface, as far as list registers go (GIC IHI 0069H 6 and 12.4): acknowledge, end of
//! interrupt, priority drop, EOIcount, active priorities and maintenance interrupts.

use crate::scenario::Setting;
use vgic::{ListRegisters, list_register as field, virtual_control as control, virtual_interface as interface};

/// What the guest is handling.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    pub(crate) id: u32,
    pub(crate) group: usize,
    pub(crate) group_priority: u8,
}

#[derive(Clone)]
pub(crate) struct CpuInterface {
    pub(crate) lr: Vec<u64>,
    pub(crate) hcr: u64,
    pub(crate) vmcr: u64,
    preemption_bits: u32,
    /// It counts ends without a list register in EOIcount with EOImode one too, as some do.
    counts_drops: bool,
    /// It says that Group 0 is disabled if and only if Group 1 is, as QEMU's does.
    pub(crate) confuses_groups: bool,
    /// What the guest is handling, the innermost last.
    pub(crate) stack: Vec<Running>,
    /// EOImode one: acknowledged, priority dropped, not yet deactivated.
    pub(crate) dropped: Vec<u32>,
    /// Physical PPIs that are active on this CPU.
    pub(crate) physical_active: u32,
}

impl CpuInterface {
    pub(crate) fn new(setting: &Setting, preemption_bits: u8, vmcr: u64) -> Self {
        let Setting { list_registers, counts_drops, confuses_groups, .. } = *setting;
        let preemption_bits = u32::from(preemption_bits);
        let (stack, dropped) = (vec![], vec![]);
        let lr = vec![0; list_registers];
        Self {
            lr,
            hcr: control::EN | control::TDIR,
            vmcr,
            preemption_bits,
            counts_drops,
            confuses_groups,
            stack,
            dropped,
            physical_active: 0,
        }
    }

    /// The bits of a priority that are the group priority.
    pub(crate) fn group_priority_mask(&self, group: usize) -> u8 {
        let least = 7 - self.preemption_bits;
        let subpriority_bits = if group == 0 || self.vmcr & interface::COMMON_BINARY_POINT != 0 {
            (self.vmcr >> interface::BINARY_POINT_0_SHIFT & 7).max(u64::from(least)) + 1
        } else {
            (self.vmcr >> interface::BINARY_POINT_1_SHIFT & 7).max(u64::from(least) + 1)
        };
        (0xFF_u16 << subpriority_bits) as u8
    }

    /// Whether an access of the guest to a register of Group 0 traps.
    pub(crate) fn traps_group_0(&self) -> bool {
        self.hcr & control::TRAP_GROUP_0 != 0
    }

    pub(crate) fn enables(&self, group: usize) -> bool {
        self.vmcr >> group & 1 != 0
    }

    /// Whether an interrupt of this group and priority, the best of what is pending, is taken.
    pub(crate) fn lets_through(&self, group: usize, priority: u8) -> bool {
        let mask = self.group_priority_mask(group);
        let preempts = |running: &Running| priority & mask < running.group_priority & mask;
        priority < (self.vmcr >> interface::MASK_SHIFT) as u8 && self.stack.last().is_none_or(preempts)
    }

    fn split_end(&self) -> bool {
        self.vmcr & interface::SPLIT_END != 0
    }

    /// ICH_AP0R<n>_EL2 and ICH_AP1R<n>_EL2.
    pub(crate) fn active_priorities(&self) -> [u128; 2] {
        let mut registers = [0; 2];
        for running in &self.stack {
            registers[running.group] |= 1 << (running.group_priority >> (8 - self.preemption_bits));
        }
        registers
    }

    /// It is switched off, and on again later.
    pub(crate) fn reset(&mut self) {
        self.lr.fill(0);
        (self.hcr, self.vmcr) = (control::EN | control::TDIR, self.vmcr & !interface::GROUPS);
        self.stack.clear();
        self.dropped.clear();
        self.physical_active = 0;
    }

    pub(crate) fn shows(&self, id: u32, state: u64) -> bool {
        self.lr.iter().any(|lr| lr & field::VIRTUAL == u64::from(id) && lr & state != 0)
    }

    pub(crate) fn acknowledge(&mut self) -> Option<u32> {
        let group_of = |lr: u64| usize::from(lr & field::GROUP1 != 0);
        let pending = self.lr.iter().enumerate();
        let pending = pending.filter(|(_, lr)| **lr & field::STATE == field::PENDING && self.enables(group_of(**lr)));
        let (number, &best) = pending.min_by_key(|(_, lr)| (**lr >> 48 & 0xFF, **lr & field::VIRTUAL))?;
        let (group, priority) = (group_of(best), (best >> 48) as u8);
        if !self.lets_through(group, priority) {
            return None;
        }
        self.lr[number] = best & !field::STATE | field::ACTIVE;
        let id = (best & field::VIRTUAL) as u32;
        let group_priority = priority & self.group_priority_mask(group);
        self.stack.push(Running { id, group, group_priority });
        Some(id)
    }

    /// Writes ICC_EOIR for the innermost interrupt. Returns it if that deactivated it.
    pub(crate) fn end(&mut self) -> Option<u32> {
        let Running { id, group, group_priority } = self.stack.pop()?;
        let split_end = self.split_end();
        let mask = self.group_priority_mask(group);
        let found = self.lr.iter_mut().find(|lr| **lr & field::VIRTUAL == u64::from(id) && **lr & field::ACTIVE != 0);
        match found {
            Some(_) if split_end => {}
            Some(lr) => {
                let (of_group, priority) = (usize::from(*lr & field::GROUP1 != 0), (*lr >> 48) as u8);
                assert_eq!(
                    (of_group, priority & mask),
                    (group, group_priority & mask),
                    "the end of {id} finds it with other fields than it was acknowledged with, and deactivates nothing"
                );
                *lr &= !field::ACTIVE;
                if *lr & field::HARDWARE != 0 {
                    assert_eq!(*lr & field::PENDING, 0, "a hardware list register is pending or active");
                    self.physical_active &= !(1 << (*lr >> 32 & 0x1FFF));
                }
            }
            None if split_end && !self.counts_drops => {}
            None => {
                let count = (self.hcr & control::EOI_COUNT) >> control::EOI_COUNT_SHIFT;
                self.hcr = self.hcr & !control::EOI_COUNT | ((count + 1) & 31) << control::EOI_COUNT_SHIFT;
            }
        }
        if split_end {
            self.dropped.push(id);
            return None;
        }
        Some(id)
    }

    pub(crate) fn maintenance(&self) -> bool {
        let ended = self.lr.iter().any(|lr| lr & (field::STATE | field::HARDWARE | field::EOI) == field::EOI);
        let none_pending = self.lr.iter().all(|lr| lr & field::STATE != field::PENDING);
        let not_present = self.hcr & control::EOI_COUNT != 0;
        let changed = (0..2).any(|group| {
            let disabled = !self.enables(if self.confuses_groups { 1 } else { group });
            self.enables(group) && self.hcr & control::GROUP_ENABLED[group] != 0
                || disabled && self.hcr & control::GROUP_DISABLED[group] != 0
        });
        changed
            || ended
            || (self.hcr & control::NPIE != 0 && none_pending)
            || (self.hcr & control::LRENPIE != 0 && not_present)
    }

    /// What the owner of a `Vgic` does before a sync.
    pub(crate) fn save(&self, lrs: &mut ListRegisters) {
        for (number, &lr) in self.lr.iter().enumerate() {
            if lrs.used >> number & 1 != 0 {
                lrs.lr[number] = lr;
            } else {
                assert_eq!(lr & field::STATE, 0, "list register {number} is in use and nobody knows");
            }
        }
        lrs.vmcr = self.vmcr;
        if lrs.hcr & control::LRENPIE != 0 {
            lrs.hcr = self.hcr;
        }
    }

    /// What it does after a flush.
    pub(crate) fn load(&mut self, lrs: &mut ListRegisters) {
        for number in 0..16 {
            if lrs.dirty >> number & 1 != 0 {
                self.lr[number] = lrs.lr[number];
            }
            let value = self.lr.get(number).copied().unwrap_or(0);
            if lrs.used >> number & 1 != 0 {
                assert_eq!(value, lrs.lr[number], "list register {number} was not marked dirty");
            } else {
                assert_eq!(value & field::STATE, 0, "list register {number} was not emptied");
            }
        }
        if core::mem::take(&mut lrs.hcr_dirty) {
            self.hcr = lrs.hcr;
        }
        // What it counts while nobody asks does not matter, as long as it starts from zero when somebody does.
        let ignored = if lrs.hcr & control::LRENPIE == 0 { control::EOI_COUNT } else { 0 };
        assert_eq!(
            self.hcr & !ignored,
            lrs.hcr,
            "ICH_HCR_EL2 was not marked dirty, so EOIcount, or what to report, stays wrong"
        );
        self.physical_active &= !lrs.deactivate;
        lrs.deactivate = 0;
        lrs.dirty = 0;
    }
}
