//! A virtio driver as small as it can be (virtio 1.3, 4.2 and 2.7): memory-mapped transport, modern only, one buffer at a time on a
//! split queue of eight, all of it in memory outside of the image.

use crate::{memory, sysreg, timer};

/// The first transport of the `virt` machine.
pub const BASE: u64 = 0x0a00_0000;
/// From one transport to the next.
pub const STRIDE: u64 = 0x200;
/// How many transports there are.
pub const SLOTS: u64 = 32;
/// The INTID of the first transport.
pub const FIRST_INTID: u32 = 48;

/// Device type: network card.
pub const NET: u32 = 1;
/// Device type: disk.
pub const BLOCK: u32 = 2;
/// Device type: console.
pub const CONSOLE: u32 = 3;
/// Device type: entropy.
pub const ENTROPY: u32 = 4;

const QUEUE_SIZE: u64 = 64;

/// Register offsets (4.2.2).
pub mod register {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
}
use register as r;

/// Status: the driver has seen the device (1), knows it (2), has agreed on features (8), is ready (4).
const STATUS_FEATURES: u32 = 1 | 2 | 8;
const STATUS_READY: u32 = STATUS_FEATURES | 4;
/// Status: the device needs a reset.
pub const STATUS_NEEDS_RESET: u32 = 64;

/// Which way a buffer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferDirection {
    /// The device reads it.
    ToDevice,
    /// The device fills it.
    FromDevice,
}

/// A transport with a device behind it.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Where its registers are.
    pub base: u64,
    /// Its interrupt.
    pub intid: u32,
}

/// One queue of a device.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    number: u32,
    memory: u64,
    next: u16,
}

/// The device of this type, if the machine has one.
#[must_use]
pub fn find(kind: u32) -> Option<Device> {
    find_nth(kind, 0)
}

/// Device number `nth` of this type, if the machine has so many.
#[must_use]
pub fn find_nth(kind: u32, nth: usize) -> Option<Device> {
    (0..SLOTS)
        .map(|slot| Device { base: BASE + slot * STRIDE, intid: FIRST_INTID + slot as u32 })
        .filter(|device| device.read(r::MAGIC) == 0x7472_6976 && device.read(r::DEVICE_ID) == kind)
        .nth(nth)
}

impl Device {
    /// Reads a register.
    #[must_use]
    pub fn read(&self, register: u64) -> u32 {
        memory::read32(self.base + register)
    }

    /// Writes a register.
    pub fn write(&self, register: u64, value: u32) {
        memory::write32(self.base + register, value);
    }

    /// Resets the device and agrees on VERSION_1 and nothing else; whether the device accepted that.
    #[must_use]
    pub fn start(&self) -> bool {
        self.start_with(0)
    }

    /// As [`Device::start`], and on these of the lower 32 features.
    #[must_use]
    pub fn start_with(&self, features: u32) -> bool {
        self.write(r::STATUS, 0);
        if !timer::wait_until(1000, || self.read(r::STATUS) == 0) {
            return false;
        }
        self.write(r::STATUS, 1);
        self.write(r::STATUS, 1 | 2);
        self.write(r::DEVICE_FEATURES_SEL, 1);
        let has_version_1 = self.read(r::DEVICE_FEATURES) & 1 != 0;
        for (select, features) in [(0, features), (1, 1)] {
            self.write(r::DRIVER_FEATURES_SEL, select);
            self.write(r::DRIVER_FEATURES, features);
        }
        self.write(r::STATUS, STATUS_FEATURES);
        has_version_1 && self.read(r::STATUS) & 8 != 0
    }

    /// Sets up queue `number`; call [`Device::ready`] when all are.
    #[must_use]
    pub fn queue(&self, number: u32) -> Queue {
        self.queue_in(memory::pages(1), number)
    }

    /// The same in this page, which is empty.
    #[must_use]
    pub fn queue_in(&self, memory: u64, number: u32) -> Queue {
        self.write(r::QUEUE_SEL, number);
        self.write(r::QUEUE_NUM, QUEUE_SIZE as u32);
        for (register, offset) in [(r::QUEUE_DESC, 0), (r::QUEUE_DRIVER, 0x400), (r::QUEUE_DEVICE, 0x800)] {
            self.write(register, (memory + offset) as u32);
            self.write(register + 4, ((memory + offset) >> 32) as u32);
        }
        self.write(r::QUEUE_READY, 1);
        Queue { device: *self, number, memory, next: 0 }
    }

    /// Lets the device work.
    pub fn ready(&self) {
        self.write(r::STATUS, STATUS_READY);
    }
}

impl Queue {
    /// Where the queue's page is: descriptors at 0, available ring at 0x400, used ring at 0x800.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Offers one buffer and tells the device.
    pub fn offer(&mut self, address: u64, length: u32, direction: BufferDirection) {
        self.put(address, length, direction);
        self.device.write(r::QUEUE_NOTIFY, self.number);
    }

    /// Offers one buffer, of which the device need not be told.
    pub fn put(&mut self, address: u64, length: u32, direction: BufferDirection) {
        let slot = u64::from(self.next) % QUEUE_SIZE;
        let descriptor = self.memory + 16 * slot;
        memory::write64(descriptor, address);
        memory::write32(descriptor + 8, length);
        memory::write32(descriptor + 12, if direction == BufferDirection::FromDevice { 2 } else { 0 });
        memory::write16(self.memory + 0x404 + 2 * slot, slot as u16);
        sysreg::dsb();
        self.next = self.next.wrapping_add(1);
        memory::write16(self.memory + 0x402, self.next);
        sysreg::dsb();
    }

    /// How many buffers the device has returned since it was set up; it counts on past 65,535.
    #[must_use]
    pub fn returned(&self) -> u16 {
        memory::read16(self.memory + 0x802)
    }

    /// Offers one buffer that consists of `length` bytes at each of these places, at most 64, and tells the device.
    /// Nothing else may be offered yet, or still.
    pub fn offer_chain(&mut self, places: &[u64], length: u32, direction: BufferDirection) {
        let mut pieces = [(0, length, direction); QUEUE_SIZE as usize];
        pieces.iter_mut().zip(places).for_each(|(piece, &place)| piece.0 = place);
        self.offer_pieces(pieces.get(..places.len()).unwrap_or(&[]));
    }

    /// Offers one buffer of these pieces, at most 64, those for the device to read first, and tells the device. Nothing else may be
    /// offered yet, or still.
    pub fn offer_pieces(&mut self, pieces: &[(u64, u32, BufferDirection)]) {
        for (index, &(place, length, direction)) in (0..).zip(pieces) {
            let writable = if direction == BufferDirection::FromDevice { 2 } else { 0 };
            let next = if index + 1 == pieces.len() as u64 { 0 } else { 1 | (index as u32 + 1) << 16 };
            memory::write64(self.memory + 16 * index, place);
            memory::write32(self.memory + 16 * index + 8, length);
            memory::write32(self.memory + 16 * index + 12, writable | next);
        }
        memory::write16(self.memory + 0x404 + 2 * (u64::from(self.next) % QUEUE_SIZE), 0);
        sysreg::dsb();
        self.next = self.next.wrapping_add(1);
        memory::write16(self.memory + 0x402, self.next);
        sysreg::dsb();
        self.device.write(r::QUEUE_NOTIFY, self.number);
    }

    /// Whether the device is done with everything that was offered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        memory::read16(self.memory + 0x802) == self.next
    }

    /// How many bytes the device wrote into the latest buffer.
    #[must_use]
    pub fn written(&self) -> u32 {
        let slot = u64::from(self.next.wrapping_sub(1)) % QUEUE_SIZE;
        memory::read32(self.memory + 0x804 + 8 * slot + 4)
    }
}
