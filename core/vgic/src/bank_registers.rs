//! The registers that the Distributor and the Redistributors share: one bit, two bits or one byte for each of 32
//! interrupts (GIC IHI 0069H 12.9 and 12.11). Both frames lay them out alike, from offset 0x80 to 0xCFF, so one
//! decoder serves both.
//!
//! Reads of pending and active state take in what is in list registers as it was when it was loaded; a caller who
//! wants it exact syncs first (see [`Vgic::distributor_needs`]), and so does one who writes active state. Other
//! writes need no sync before them: what they say is recorded against the ledger of loaded interrupts and takes
//! effect when the vCPU that holds them next syncs.

use crate::bank::Held;
use crate::hardware::physical_set;
use crate::{AccessSize, Direction, SGI_EDGES, Vgic};
use units::{VcpuId, VcpuSet};

/// A register for 32 interrupts, or the part of one that an access names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BankRegister {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// The priorities from this interrupt of the 32 on: one, or four.
    Priority(usize),
    /// The triggers of the 16 interrupts from this one on (0 or 16).
    Trigger(u32),
}

/// Which 32 interrupts: a word, and the vCPU if it is word 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) word: usize,
    pub(crate) vcpu: usize,
}

/// Finds the register at `offset` (of the Distributor, or of a Redistributor's SGI_base) and its word.
///
/// `None` if there is nothing of this family there, or the access has the wrong size or alignment for it: words
/// throughout, and bytes for priorities.
pub(crate) fn decode(offset: u64, size: AccessSize) -> Option<(BankRegister, usize)> {
    let priority = matches!(offset, 0x400..=0x7FF);
    let aligned = match size {
        AccessSize::Word => offset & 3 == 0,
        AccessSize::Byte => priority,
        AccessSize::Half | AccessSize::Double => false,
    };
    if !aligned {
        return None;
    }
    let word = (offset as usize & 0x7F) / 4;
    let register = match offset >> 7 {
        0x01 => BankRegister::Group,
        0x02 => BankRegister::SetEnable,
        0x03 => BankRegister::ClearEnable,
        0x04 => BankRegister::SetPending,
        0x05 => BankRegister::ClearPending,
        0x06 => BankRegister::SetActive,
        0x07 => BankRegister::ClearActive,
        _ if priority => {
            let interrupt = offset as usize - 0x400;
            return Some((BankRegister::Priority(interrupt % 32), interrupt / 32));
        }
        0x18 | 0x19 => {
            let index = (offset as usize - 0xC00) / 4;
            return Some((BankRegister::Trigger((index as u32 & 1) * 16), index / 2));
        }
        _ => return None,
    };
    Some((register, word))
}

/// Whether this access of the register at `offset` depends on what is in list registers now: reads of pending and
/// active state, and writes of active state, which must not mix up an activation that is over, one that goes on and
/// one to come.
#[must_use]
pub const fn depends_on_list_registers(offset: u64, direction: Direction) -> bool {
    match direction {
        Direction::Read => matches!(offset, 0x200..=0x3FF),
        Direction::Write => matches!(offset, 0x300..=0x3FF),
    }
}

impl Vgic {
    #[inline]
    pub(crate) fn bank_read(&self, register: BankRegister, place: Place, size: AccessSize) -> u64 {
        let Some(bank) = self.bank(place.word, place.vcpu) else { return 0 };
        let value = match register {
            BankRegister::SetEnable | BankRegister::ClearEnable => bank.enabled,
            BankRegister::Group => bank.group,
            BankRegister::SetPending | BankRegister::ClearPending => self.pending_bits(place),
            BankRegister::SetActive | BankRegister::ClearActive => self.active_bits(place),
            BankRegister::Priority(first) => match size {
                AccessSize::Byte => bank.priority.get(first).map_or(0, |&priority| u32::from(priority)),
                _ => {
                    let bytes = bank.priority.get(first..).and_then(|tail| tail.first_chunk::<4>());
                    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
                }
            },
            BankRegister::Trigger(first) => spread(bank.edge >> first & 0xFFFF) << 1,
        };
        u64::from(value)
    }

    pub(crate) fn bank_write(&mut self, register: BankRegister, place: Place, size: AccessSize, value: u64) -> VcpuSet {
        let value = value as u32;
        match register {
            BankRegister::SetPending => return self.set_pending(place, value),
            BankRegister::ClearPending => return self.clear_pending(place, value),
            BankRegister::SetActive => return self.set_active(place, value),
            BankRegister::ClearActive => return self.clear_active(place, value),
            BankRegister::Priority(first) => return self.write_priorities(place, first, size, value),
            _ => {}
        }
        if register == BankRegister::Group {
            self.keep_active(place, u32::MAX);
        }
        let Some(bank) = self.bank_mut(place.word, place.vcpu) else { return VcpuSet::EMPTY };
        let field = match register {
            BankRegister::Group => &mut bank.group,
            BankRegister::Trigger(_) => &mut bank.edge,
            _ => &mut bank.enabled,
        };
        let old = *field;
        *field = match register {
            BankRegister::SetEnable => old | value,
            BankRegister::ClearEnable => old & !value,
            BankRegister::Group => value,
            BankRegister::Trigger(first) => {
                let written = old & !(0xFFFF << first) | gather(value >> 1) << first;
                if place.word == 0 { written | SGI_EDGES } else { written }
            }
            _ => old,
        };
        let changed = old ^ *field;
        let turned = if matches!(register, BankRegister::Trigger(_)) { changed & bank.level } else { 0 };
        let mut set = self.concerned(place.word, place.vcpu, changed);
        if place.word == 0 && turned != 0 {
            // A line that stands in for a physical interrupt does so no more.
            set.insert(VcpuId(place.vcpu as u8));
        }
        if register == BankRegister::Group { set.union(self.route_groups(place.word, changed)) } else { set }
    }

    /// Pending state as ISPENDR shows it.
    fn pending_bits(&self, place: Place) -> u32 {
        let mut pending = self.pending(place.word, place.vcpu);
        for index in self.sharers(place.word, place.vcpu) {
            let Some(vcpu) = self.vcpus.get(index) else { continue };
            pending |= vcpu.held.get(place.word).map_or(0, |held| held.carried_latch);
            if place.word == 0 {
                pending |= vcpu.hardware_carried;
            }
        }
        pending
    }

    /// Active state as ISACTIVER shows it.
    fn active_bits(&self, place: Place) -> u32 {
        self.each_held(place, Held::active_or_carried)
    }

    fn set_pending(&mut self, place: Place, value: u32) -> VcpuSet {
        let Some(bank) = self.bank_mut(place.word, place.vcpu) else { return VcpuSet::EMPTY };
        let changed = value & !bank.latched;
        bank.latched |= value;
        self.concerned(place.word, place.vcpu, changed)
    }

    /// Clears latches, also those that a list register carries. A high line or a fired physical interrupt stays
    /// pending.
    fn clear_pending(&mut self, place: Place, value: u32) -> VcpuSet {
        let Some(bank) = self.bank_mut(place.word, place.vcpu) else { return VcpuSet::EMPTY };
        bank.latched &= !value;
        let mut set = VcpuSet::EMPTY;
        for index in self.sharers(place.word, place.vcpu) {
            let Some(held) = self.vcpus.get_mut(index).and_then(|vcpu| vcpu.held.get_mut(place.word)) else { continue };
            if held.loaded & value != 0 {
                held.carried_latch &= !value;
                set.insert(VcpuId(index as u8));
            }
        }
        set
    }

    /// Activates by hand. The activation belongs to the vCPU that has the interrupt in hand already, else to the one
    /// that it would go to, else to vCPU 0.
    fn set_active(&mut self, place: Place, value: u32) -> VcpuSet {
        let mut rest = value & !self.each_held(place, |held| held.active);
        let changed = rest;
        if let Some(bank) = self.bank_mut(place.word, place.vcpu) {
            bank.kept &= !changed;
        }
        for pass in 0..3 {
            for index in self.sharers(place.word, place.vcpu) {
                let Some(vcpu) = self.vcpus.get_mut(index) else { continue };
                let routed = vcpu.routed.get(place.word).copied().unwrap_or(0);
                let Some(held) = vcpu.held.get_mut(place.word) else { continue };
                let mine = match pass {
                    0 => held.loaded,
                    1 => routed,
                    _ => u32::MAX,
                };
                held.active |= rest & mine;
                held.set_aside |= rest & mine;
                rest &= !mine;
            }
        }
        self.concerned(place.word, place.vcpu, changed)
    }

    pub(crate) fn clear_active(&mut self, place: Place, value: u32) -> VcpuSet {
        // Whoever held one must look again. So must each vCPU to which one that is still pending is routed.
        let set = self.concerned(place.word, place.vcpu, value & self.each_held(place, Held::any));
        for index in self.sharers(place.word, place.vcpu) {
            let Some(vcpu) = self.vcpus.get_mut(index) else { continue };
            let Some(held) = vcpu.held.get_mut(place.word) else { continue };
            let ended = held.active & value;
            held.active &= !value;
            held.carried_active &= !value;
            held.cancel_active |= held.loaded & value;
            if place.word == 0 {
                // The guest will not end these any more, so their physical interrupts would stay active for ever.
                let linked = ended & vcpu.hardware & !vcpu.hardware_pending;
                vcpu.hardware &= !linked;
                vcpu.deactivate |= physical_set(linked, &vcpu.physical);
            }
        }
        set
    }

    /// What all the vCPUs that may hold these interrupts answer, together.
    fn each_held(&self, place: Place, answer: impl Fn(&Held) -> u32) -> u32 {
        let vcpus = self.vcpus.get(self.sharers(place.word, place.vcpu)).unwrap_or_default();
        vcpus.iter().filter_map(|vcpu| vcpu.held.get(place.word)).fold(0, |all, held| all | answer(held))
    }

    /// Priorities or groups of interrupts among these are about to be changed: those that are active keep what they were acknowledged
    /// with. So do those in list registers, there, until the next sync takes it over.
    #[inline(never)]
    fn keep_active(&mut self, place: Place, among: u32) {
        let active = self.each_held(place, |held| held.active) & among;
        if active != 0
            && let Some(bank) = self.bank_mut(place.word, place.vcpu)
        {
            bank.keep(active);
        }
    }

    fn write_priorities(&mut self, place: Place, first: usize, size: AccessSize, value: u32) -> VcpuSet {
        let mask = self.priority_mask;
        let count = if size == AccessSize::Byte { 1 } else { 4 };
        self.keep_active(place, 0xF << first);
        let Some(bank) = self.bank_mut(place.word, place.vcpu) else { return VcpuSet::EMPTY };
        let mut changed = 0;
        for (index, byte) in value.to_le_bytes().into_iter().take(count).enumerate() {
            let Some(priority) = bank.priority.get_mut(first + index) else { continue };
            if *priority != byte & mask {
                *priority = byte & mask;
                changed |= 1 << (first + index);
            }
        }
        self.concerned(place.word, place.vcpu, changed)
    }
}

/// Moves bit *n* of 16 to bit *2n*.
const fn spread(half: u32) -> u32 {
    let mut word = half & 0xFFFF;
    word = (word | word << 8) & 0x00FF_00FF;
    word = (word | word << 4) & 0x0F0F_0F0F;
    word = (word | word << 2) & 0x3333_3333;
    (word | word << 1) & 0x5555_5555
}

/// Moves bit *2n* to bit *n*; the odd bits are ignored.
const fn gather(word: u32) -> u32 {
    let mut half = word & 0x5555_5555;
    half = (half | half >> 1) & 0x3333_3333;
    half = (half | half >> 2) & 0x0F0F_0F0F;
    half = (half | half >> 4) & 0x00FF_00FF;
    (half | half >> 8) & 0x0000_FFFF
}
