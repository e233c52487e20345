//! The registers of a device on PCI (section 4.1.4), by the numbers that they have behind MMIO.
//!
//! They mean the same; they are in four structures, of other widths. What is different: a queue is notified at a place that it says
//! itself, and reading why the device interrupts takes the interrupt back.

use super::{NamedRegisters, register};
use crate::Registers;

/// Offsets in the structure that all devices have (section 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x00;
    pub(super) const DEVICE_FEATURES: u64 = 0x04;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x08;
    pub(super) const DRIVER_FEATURES: u64 = 0x0c;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SEL: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_READY: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
}

/// As many queues can be notified, the first ones.
const QUEUES: usize = 8;

/// A structure of such a device: a part of a block of registers.
#[derive(Debug)]
pub struct Piece<R> {
    registers: R,
    offset: u64,
    length: u64,
}

impl<R: Registers> Piece<R> {
    /// `length` bytes at `offset` of `registers`, if they are there, and aligned as virtio demands it.
    #[must_use]
    pub fn new(registers: R, offset: u64, length: u64, alignment: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (end <= registers.size() && offset.is_multiple_of(alignment)).then_some(Self { registers, offset, length })
    }

    fn at(&self, offset: u64, width: u64) -> Option<u64> {
        (offset.checked_add(width)? <= self.length).then(|| self.offset + offset)
    }

    fn read8(&self, offset: u64) -> u8 {
        self.at(offset, 1).map_or(0, |at| self.registers.read8(at))
    }

    fn read16(&self, offset: u64) -> u16 {
        self.at(offset, 2).map_or(0, |at| self.registers.read16(at))
    }

    fn read32(&self, offset: u64) -> u32 {
        self.at(offset, 4).map_or(0, |at| self.registers.read32(at))
    }

    fn write8(&self, offset: u64, value: u8) {
        if let Some(at) = self.at(offset, 1) {
            self.registers.write8(at, value);
        }
    }

    fn write16(&self, offset: u64, value: u16) {
        if let Some(at) = self.at(offset, 2) {
            self.registers.write16(at, value);
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        if let Some(at) = self.at(offset, 4) {
            self.registers.write32(at, value);
        }
    }

    /// Of the structure that says why the device interrupts: says it, and takes the interrupt back.
    pub fn take_interrupt(&self) -> u8 {
        self.read8(0)
    }
}

/// A device.
#[derive(Debug)]
pub struct Pci<R> {
    kind: u32,
    common: Piece<R>,
    notify: Piece<R>,
    device: Piece<R>,
    multiplier: u32,
    /// Where each queue is notified; beyond the end where that is not known.
    doorbells: [u64; QUEUES],
}

impl<R: Registers> Pci<R> {
    /// A device of this kind (its device ID of section 5).
    #[must_use]
    pub fn new(kind: u32, common: Piece<R>, notify: Piece<R>, device: Piece<R>, multiplier: u32) -> Self {
        Self { kind, common, notify, device, multiplier, doorbells: [u64::MAX; QUEUES] }
    }

    /// Says that something is in queue number `queue`: what is written by far the most often.
    #[inline]
    pub fn notify(&self, queue: u32) {
        let doorbell = self.doorbells.get(queue as usize).copied().unwrap_or(u64::MAX);
        self.notify.write16(doorbell, queue as u16);
    }

    /// Finds out where queue number `queue` is notified. Says whether that is a place of this device.
    pub fn find_doorbell(&mut self, queue: u16) -> bool {
        self.common.write16(common::QUEUE_SEL, queue);
        let offset = self.common.read16(common::QUEUE_NOTIFY_OFFSET);
        let doorbell = u64::from(offset) * u64::from(self.multiplier);
        let is_there = doorbell.is_multiple_of(2) && self.notify.at(doorbell, 2).is_some();
        match self.doorbells.get_mut(usize::from(queue)) {
            Some(place) if is_there => *place = doorbell,
            _ => return false,
        }
        true
    }
}

impl<R: Registers> NamedRegisters for Pci<R> {
    fn get(&self, register: u64) -> u32 {
        match register {
            register::MAGIC_VALUE => super::MAGIC,
            register::VERSION => super::VERSION,
            register::DEVICE_ID => self.kind,
            register::DEVICE_FEATURES => self.common.read32(common::DEVICE_FEATURES),
            register::QUEUE_SIZE_MAX => self.common.read16(common::QUEUE_SIZE).into(),
            register::STATUS => self.common.read8(common::STATUS).into(),
            register::CONFIG.. => self.device.read32(register - register::CONFIG),
            _ => 0,
        }
    }

    fn set(&self, register: u64, value: u32) {
        let (half, value16) = (register & 4, value as u16);
        match register {
            register::QUEUE_NOTIFY => self.notify(value),
            register::DEVICE_FEATURES_SEL => self.common.write32(common::DEVICE_FEATURES_SEL, value),
            register::DRIVER_FEATURES_SEL => self.common.write32(common::DRIVER_FEATURES_SEL, value),
            register::DRIVER_FEATURES => self.common.write32(common::DRIVER_FEATURES, value),
            register::STATUS => self.common.write8(common::STATUS, value as u8),
            register::QUEUE_SEL => self.common.write16(common::QUEUE_SEL, value16),
            register::QUEUE_SIZE => self.common.write16(common::QUEUE_SIZE, value16),
            register::QUEUE_READY => self.common.write16(common::QUEUE_READY, value16),
            // Three addresses of two halves each, 16 bytes from one to the next there, and 8 here.
            register::QUEUE_DESC..register::CONFIG => {
                let number = (register - register::QUEUE_DESC) / 0x10;
                if number < 3 {
                    self.common.write32(common::QUEUE_DESC + 8 * number + half, value);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::fake::{Access, Fake};

    const COMMON: u64 = 0x100;

    /// What is written to the common structure when `register` is set to `value`.
    fn written(register: u64, value: u32) -> std::vec::Vec<Access> {
        let fake = Fake::new(0x400);
        let piece = |offset, alignment| Piece::new(&fake, offset, 0x100, alignment).unwrap();
        Pci::new(3, piece(COMMON, 4), piece(0x200, 2), piece(0x300, 4), 4).set(register, value);
        fake.log()
    }

    /// A device whose half of the features, and whose queue, is 0 when it begins does without being told so: most do.
    #[test]
    fn the_half_of_the_features_and_the_queue_are_chosen() {
        assert_eq!(written(register::DEVICE_FEATURES_SEL, 1), [Access::Write32(COMMON, 1)]);
        assert_eq!(written(register::DRIVER_FEATURES_SEL, 1), [Access::Write32(COMMON + 8, 1)]);
        assert_eq!(written(register::QUEUE_SEL, 5), [Access::Write16(COMMON + 0x16, 5)]);
    }

    #[test]
    fn the_three_addresses_of_a_queue_are_all_there_is_of_it() {
        for (register, offset) in [(0x80, 0x20), (0x84, 0x24), (0x90, 0x28), (0x94, 0x2c), (0xa0, 0x30), (0xa4, 0x34)] {
            assert_eq!(written(register, 7), [Access::Write32(COMMON + offset, 7)], "{register:#x}");
        }
        for register in [0xb0, 0xb4, 0xc0, 0xfc] {
            assert_eq!(written(register, 7), [], "{register:#x}");
        }
    }
}
