//! A virtio device of the host, behind MMIO registers or on PCI, and the memory to which it does DMA.
//!
//! There is no SMMU in between: such a device can access any address that it is given. So only this file makes addresses, inside
//! memory that the caller gave up for this device for ever. Code above knows only buffer numbers, and the few registers that hold
//! no address. The device has to be cache-coherent; the platform lists no other.
//!
//! Bytes are copied in and out, without references to the device's memory: the device may write at any time.

mod slots;

use core::ptr;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use drivers::Registers as _;
use drivers::virtio::pci::{Pci, Piece};
use drivers::virtio::queue::Rings;
use drivers::virtio::{self, NamedRegisters as _, Shape, Transport, register};
use pci::{Structure, Structures};
use units::{Pa, Range};

use crate::memory;
use crate::mmio::{Region, RegionError};

/// VIRTIO_F_VERSION_1, and the bits that belong to the kind of device. All others change what rings and addresses mean.
const HARMLESS: u64 = 1 << 32 | 0xff_ffff;
/// Where queues and buffers begin: a line of the caches.
const ALIGNMENT: u64 = 64;
/// A descriptor says by this that the device writes into the buffer.
const DEVICE_WRITES: u64 = 1 << 1;
/// The driver's ring says by this that it wants no interrupt.
const NO_INTERRUPT: u16 = 1;

/// A device, with memory of its own.
#[derive(Debug)]
pub struct Device {
    registers: Way,
    free: Range<Pa>,
}

/// How its registers are reached.
#[derive(Debug)]
enum Way {
    Mmio(Region),
    Pci(Pci<Region>),
}

impl virtio::NamedRegisters for Way {
    #[inline(never)]
    fn get(&self, register: u64) -> u32 {
        match self {
            Self::Mmio(registers) => registers.get(register),
            Self::Pci(registers) => registers.get(register),
        }
    }

    #[inline(never)]
    fn set(&self, register: u64, value: u32) {
        match self {
            Self::Mmio(registers) => registers.set(register, value),
            Self::Pci(registers) => registers.set(register, value),
        }
    }
}

impl Way {
    /// Says that something is in a queue. All else is done once.
    #[inline(always)]
    fn notify(&self, queue: u32) {
        match self {
            Self::Mmio(registers) => registers.set(register::QUEUE_NOTIFY, queue),
            Self::Pci(registers) => registers.notify(queue),
        }
    }
}

/// So often an interrupt's causes are looked at, at most: a device that always has another one is broken.
const LOOKS: usize = 64;

/// The device's interrupt: for its handler, which may come while the device is in use.
#[derive(Debug)]
pub struct Interrupt {
    cause: Cause,
}

/// Where it says why it interrupts.
#[derive(Debug)]
enum Cause {
    Mmio(Region),
    Pci(Piece<Region>),
}

impl Interrupt {
    /// Takes the interrupt back. What the device did before it is seen behind this.
    pub fn acknowledge(&self) {
        // Until it says nothing more: a cause that comes between a look and the answer to it would leave the line up, and where
        // that is edge-triggered nothing would ever be heard of the device again. The last look also keeps the rings from being
        // read before the device has taken the interrupt back: what it did in between would have none.
        for _ in 0..LOOKS {
            match &self.cause {
                Cause::Mmio(registers) => match registers.read32(register::INTERRUPT_STATUS) {
                    0 => break,
                    causes => registers.write32(register::INTERRUPT_ACK, causes),
                },
                Cause::Pci(isr) => {
                    if isr.take_interrupt() == 0 {
                        break;
                    }
                }
            }
        }
        // SAFETY: a barrier changes nothing.
        unsafe { core::arch::asm!("dmb osh", options(nostack, preserves_flags)) };
    }
}

impl Device {
    /// The device behind `registers`, without memory: it can be asked what it is.
    ///
    /// # Errors
    /// If these are not a device's registers.
    pub fn open(registers: Range<Pa>) -> Result<(Self, Interrupt), RegionError> {
        let free = Range { start: Pa(0), size: 0 };
        let device = Self { registers: Way::Mmio(Region::open(registers)?), free };
        Ok((device, Interrupt { cause: Cause::Mmio(Region::open(registers)?) }))
    }

    /// The device on PCI with these structures, of this kind, which does no DMA yet.
    pub(crate) fn open_pci(kind: u32, structures: &Structures) -> Result<(Self, Interrupt), RegionError> {
        let part = |structure: Structure, alignment| {
            let registers = Region::open_later(structure.registers)?;
            Piece::new(registers, structure.offset, structure.length, alignment).ok_or(RegionError::Misplaced)
        };
        let Structures { common, notify, isr, device, notify_multiplier } = *structures;
        let (common, notify, device) = (part(common, 4)?, part(notify, 2)?, part(device, 4)?);
        let registers = Way::Pci(Pci::new(kind, common, notify, device, notify_multiplier));
        let free = Range { start: Pa(0), size: 0 };
        Ok((Self { registers, free }, Interrupt { cause: Cause::Pci(part(isr, 1)?) }))
    }

    /// Gives it `memory`, for ever: zeroed frames that the caller owns and gives up.
    pub fn give(&mut self, memory: Range<Pa>) {
        self.free = memory;
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.free.start.align_up(ALIGNMENT)?;
        let end = start.0.checked_add(size).filter(|&end| end <= self.free.end().0)?;
        self.free = Range { start: Pa(end), size: self.free.end().0 - end };
        Some(start.0)
    }
}

impl Transport for Device {
    type Rings = Queue;

    fn read(&self, register: u64) -> u32 {
        self.registers.get(register)
    }

    fn write(&self, register: u64, value: u32) {
        if matches!(
            register,
            register::STATUS | register::DEVICE_FEATURES_SEL | register::QUEUE_NOTIFY | register::INTERRUPT_ACK
        ) {
            // The device sees the stores to memory before this one, which tells it of them (DDI 0487 section B2.3.12): it would find
            // the ring as it was, and wait for another notification.
            // SAFETY: a barrier changes nothing.
            unsafe { core::arch::asm!("dmb oshst", options(nostack, preserves_flags)) };
            if register == register::QUEUE_NOTIFY {
                self.registers.notify(value);
            } else {
                self.registers.set(register, value);
            }
        }
    }

    fn accept(&self, features: u64) {
        virtio::accept(&self.registers, features & HARMLESS);
    }

    fn lay_out(&mut self, queue: u16, shape: Shape) -> Option<Queue> {
        if let Way::Pci(registers) = &mut self.registers
            && !registers.find_doorbell(queue)
        {
            return None;
        }
        let count = u64::from(shape.count);
        let table = self.take(16 * count)?;
        let available = self.take(4 + 2 * count + 2)?;
        let used = self.take(4 + 8 * count + 2)?;
        let buffers = self.take(count * u64::from(shape.length))?;
        virtio::place(&self.registers, queue, shape.count, [table, available, used]).then_some(Queue {
            shape,
            table,
            available,
            used,
            buffers,
        })
    }
}

/// A queue in a device's memory. All that it reaches is inside.
#[derive(Debug)]
pub struct Queue {
    shape: Shape,
    table: u64,
    available: u64,
    used: u64,
    buffers: u64,
}

impl Queue {
    /// Where buffer number `buffer` is; of a number that is none, where the first is.
    fn buffer(&self, buffer: u16) -> u64 {
        self.buffers + u64::from(if buffer < self.shape.count { buffer } else { 0 }) * u64::from(self.shape.length)
    }

    /// A ring's entry, whatever number it is given.
    fn slot(&self, slot: u16) -> u64 {
        u64::from(slot % self.shape.count.max(1))
    }
}

/// Two bytes of a ring.
fn half(at: u64) -> &'static AtomicU16 {
    // SAFETY: a queue passes even addresses inside its rings, which are RAM of this device for ever, mapped where it is and only
    // accessed by atomics; to the device each is one access.
    unsafe { &*ptr::with_exposed_provenance(at as usize) }
}

/// Four bytes of a ring.
fn word(at: u64) -> &'static AtomicU32 {
    // SAFETY: as for `half`, at a multiple of four.
    unsafe { &*ptr::with_exposed_provenance(at as usize) }
}

/// Eight bytes of a descriptor.
fn double(at: u64) -> &'static AtomicU64 {
    // SAFETY: as for `half`, at a multiple of eight.
    unsafe { &*ptr::with_exposed_provenance(at as usize) }
}

/// Copies `bytes` into a buffer.
fn copy_in(to: u64, bytes: &[u8]) {
    // SAFETY: the callers, all in this file and in `slots`, pass a place inside a buffer, which has room for the bytes, and is RAM of
    // this device for ever, mapped read-write where it is; nothing refers to it.
    unsafe { memory::copy(bytes.as_ptr(), ptr::with_exposed_provenance_mut(to as usize), bytes.len()) };
}

/// Copies bytes out of a buffer.
fn copy_out(from: u64, into: &mut [u8]) {
    // SAFETY: as for `copy_in`; the device may write meanwhile, which the copy allows.
    unsafe { memory::copy(ptr::with_exposed_provenance(from as usize), into.as_mut_ptr(), into.len()) };
}

impl Rings for Queue {
    fn offer(&mut self, slot: u16, buffer: u16, length: u32) {
        let buffer = if buffer < self.shape.count { buffer } else { 0 };
        let descriptor = self.table + 16 * u64::from(buffer);
        let flags = if self.shape.device_writes { DEVICE_WRITES } else { 0 };
        double(descriptor).store(self.buffer(buffer), Ordering::Relaxed);
        double(descriptor + 8).store(u64::from(length.min(self.shape.length)) | flags << 32, Ordering::Relaxed);
        half(self.available + 4 + 2 * self.slot(slot)).store(buffer, Ordering::Relaxed);
    }

    fn publish(&mut self, count: u16) {
        // Pairs with the device's read of the index, behind which it reads the entry.
        half(self.available + 2).store(count, Ordering::Release);
    }

    fn set_interrupts(&mut self, on: bool) {
        half(self.available).store(if on { 0 } else { NO_INTERRUPT }, Ordering::Relaxed);
        // The device sees the request before the caller looks at the device's ring: a buffer that came between an earlier look and the
        // request would have no interrupt, and nobody would look for it.
        // SAFETY: a barrier changes nothing.
        unsafe { core::arch::asm!("dmb osh", options(nostack, preserves_flags)) };
    }

    fn used_count(&self) -> u16 {
        // Pairs with the device's write of the index, behind the entry and the buffer.
        half(self.used + 2).load(Ordering::Acquire)
    }

    fn used(&self, slot: u16) -> (u32, u32) {
        let entry = self.used + 4 + 8 * self.slot(slot);
        (word(entry).load(Ordering::Relaxed), word(entry + 4).load(Ordering::Relaxed))
    }

    fn fill(&mut self, buffer: u16, offset: u32, bytes: &[u8]) {
        let room = self.shape.length.saturating_sub(offset) as usize;
        let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        copy_in(self.buffer(buffer) + u64::from(offset.min(self.shape.length)), bytes);
    }

    fn copy(&self, buffer: u16, into: &mut [u8]) {
        let length = into.len().min(self.shape.length as usize);
        copy_out(self.buffer(buffer), into.get_mut(..length).unwrap_or_default());
    }
}
