//! The hardware's virtual CPU interface, as far as list registers go (GIC IHI 0069H 6 and 12.4): acknowledge, end of
//! interrupt, priority drop, EOIcount and maintenance interrupts. All priority bits count for preemption.

use vgic::{ListRegisters, list_register as field, virtual_control as control};

pub(crate) struct CpuInterface {
    pub(crate) lr: Vec<u64>,
    pub(crate) hcr: u64,
    /// What the guest is handling, the innermost last: INTID and priority.
    pub(crate) stack: Vec<(u32, u8)>,
    /// EOImode one: acknowledged, priority dropped, not yet deactivated.
    pub(crate) dropped: Vec<u32>,
    /// Physical PPIs that are active on this CPU.
    pub(crate) physical_active: u32,
}

impl CpuInterface {
    pub(crate) fn new(list_registers: usize) -> Self {
        Self { lr: vec![0; list_registers], hcr: 1, stack: vec![], dropped: vec![], physical_active: 0 }
    }

    pub(crate) fn running(&self) -> u16 {
        self.stack.last().map_or(0x100, |&(_, priority)| u16::from(priority))
    }

    pub(crate) fn shows(&self, id: u32, state: u64) -> bool {
        self.lr.iter().any(|lr| lr & field::VIRTUAL == u64::from(id) && lr & state != 0)
    }

    pub(crate) fn acknowledge(&mut self) -> Option<u32> {
        let running = self.running();
        let pending = self.lr.iter_mut().filter(|lr| **lr & field::STATE == field::PENDING);
        let best = pending.min_by_key(|lr| (**lr >> 48 & 0xFF, **lr & field::VIRTUAL))?;
        let priority = (*best >> 48) as u8;
        if u16::from(priority) >= running {
            return None;
        }
        *best = *best & !field::STATE | field::ACTIVE;
        let id = (*best & field::VIRTUAL) as u32;
        self.stack.push((id, priority));
        Some(id)
    }

    /// Writes ICC_EOIR with EOImode zero for the innermost interrupt.
    pub(crate) fn end(&mut self) -> Option<u32> {
        let (id, _) = self.stack.pop()?;
        let found = self.lr.iter_mut().find(|lr| **lr & field::VIRTUAL == u64::from(id) && **lr & field::ACTIVE != 0);
        match found {
            Some(lr) => {
                *lr &= !field::ACTIVE;
                if *lr & field::HARDWARE != 0 {
                    assert_eq!(*lr & field::PENDING, 0, "a hardware list register is pending or active");
                    self.physical_active &= !(1 << (*lr >> 32 & 0x1FFF));
                }
            }
            None => {
                let count = (self.hcr & control::EOI_COUNT) >> control::EOI_COUNT_SHIFT;
                self.hcr = self.hcr & !control::EOI_COUNT | (count + 1).min(31) << control::EOI_COUNT_SHIFT;
            }
        }
        Some(id)
    }

    pub(crate) fn maintenance(&self) -> bool {
        let ended = self.lr.iter().any(|lr| lr & (field::STATE | field::HARDWARE | field::EOI) == field::EOI);
        let none_pending = self.lr.iter().all(|lr| lr & field::STATE != field::PENDING);
        let not_present = self.hcr & control::EOI_COUNT != 0;
        ended || (self.hcr & control::NPIE != 0 && none_pending) || (self.hcr & control::LRENPIE != 0 && not_present)
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
        self.hcr = lrs.hcr;
        self.physical_active &= !lrs.deactivate;
        lrs.deactivate = 0;
        lrs.dirty = 0;
    }
}
