//! The driver side of virtio 1.3, over the MMIO transport (section 4.2) and over PCI (4.1), as far as our devices need it.
//!
//! * [`queue`]: a split virtqueue (section 2.7) whose descriptors never change: number n is buffer number n.
//! * [`pci`]: what stands in which register on PCI. Everything else knows the registers of MMIO alone.
//! * [`console`]: the console with several ports (section 5.3), of which one is ours.
//! * [`block`]: a disk (section 5.2), with several requests at once.
//!
//! A virtio device does DMA. Nothing here holds an address: the owner of the device ([`Transport`]) lays queues and buffers out
//! in memory that only the device uses, and tells the device where; a driver names buffers by number, and writes no addresses
//! into registers. A device is trusted with the memory that it can reach, since nothing stops it; but its answers are checked,
//! and a device that breaks the rules is reset and no longer used ([`Broken`]).

pub mod block;
pub mod console;
pub mod pci;
pub mod queue;

use crate::Registers;
use queue::Rings;

/// Register offsets (section 4.2.2).
pub mod register {
    /// "virt".
    pub const MAGIC_VALUE: u64 = 0x000;
    /// 2; 1 for the legacy interface.
    pub const VERSION: u64 = 0x004;
    /// What it is; 0 for nothing.
    pub const DEVICE_ID: u64 = 0x008;
    /// 32 bits of what it can.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// 32 bits of what it may.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Which queue the next registers are about.
    pub const QUEUE_SEL: u64 = 0x030;
    /// How large it may be; 0 if there is none.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// How large it is.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// Whether it is used.
    pub const QUEUE_READY: u64 = 0x044;
    /// Something is in this queue.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Why it interrupts.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// That has been seen.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// How far the driver is; 0 resets.
    pub const STATUS: u64 = 0x070;
    /// Where the descriptors are, low half; the high one is behind it, as with the next two.
    pub const QUEUE_DESC: u64 = 0x080;
    /// Where the driver's ring is.
    pub const QUEUE_DRIVER: u64 = 0x090;
    /// Where the device's ring is.
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    /// What is special to the kind of device.
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;

/// Device status bits (section 2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const FAILED: u32 = 128;

/// VIRTIO_F_VERSION_1.
const FEATURE_VERSION_1: u64 = 1 << 32;

/// How many buffers a queue has, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// How many: a power of two, at most [`queue::MOST`].
    pub count: u16,
    /// How many bytes each has.
    pub length: u32,
    /// Whether the device writes into them; it reads them otherwise.
    pub device_writes: bool,
}

/// A device's registers, by the numbers that they have behind MMIO.
pub trait NamedRegisters {
    /// Reads a register of four bytes.
    fn get(&self, register: u64) -> u32;
    /// Writes one.
    fn set(&self, register: u64, value: u32);
}

impl<R: Registers> NamedRegisters for R {
    fn get(&self, register: u64) -> u32 {
        self.read32(register)
    }

    fn set(&self, register: u64, value: u32) {
        self.write32(register, value);
    }
}

/// A device with memory of its own.
pub trait Transport {
    /// A queue in that memory.
    type Rings: Rings;

    /// Reads a register of four bytes.
    fn read(&self, register: u64) -> u32;

    /// Writes one of the registers STATUS, DEVICE_FEATURES_SEL, QUEUE_NOTIFY and INTERRUPT_ACK, which can lead the device to no
    /// memory; all others stay as they are. What was written into the device's memory before is seen by the device before this.
    fn write(&self, register: u64, value: u32);

    /// Says what the driver understands ([`accept`]), but for what changes the form of rings and addresses.
    fn accept(&self, features: u64);

    /// Lays queue number `queue` out in that memory, and tells the device where ([`place`]). `None` if that cannot be.
    fn lay_out(&mut self, queue: u16, shape: Shape) -> Option<Self::Rings>;
}

/// Tells the device what the driver understands.
pub fn accept(registers: &impl NamedRegisters, features: u64) {
    for half in [0, 1] {
        registers.set(register::DRIVER_FEATURES_SEL, half);
        registers.set(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
}

/// Tells the device where queue number `queue` is: its descriptors, its driver's ring, and its own, with `count` entries each. Says
/// whether it has such a queue.
pub fn place(registers: &impl NamedRegisters, queue: u16, count: u16, addresses: [u64; 3]) -> bool {
    registers.set(register::QUEUE_SEL, queue.into());
    if registers.get(register::QUEUE_SIZE_MAX) < count.into() {
        return false;
    }
    registers.set(register::QUEUE_SIZE, count.into());
    for (register, address) in
        [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE].into_iter().zip(addresses)
    {
        registers.set(register, address as u32);
        registers.set(register + 4, (address >> 32) as u32);
    }
    registers.set(register::QUEUE_READY, 1);
    true
}

/// Why a device is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// It has the legacy interface, of before virtio 1.0.
    Legacy,
    /// It does not come back from its reset.
    Reset,
    /// It does not do what is needed.
    Features,
    /// One of its queues cannot be had.
    Queue(u16),
    /// It is a disk of no size that can be.
    Disk,
    /// It has one port only, with no way to say whether somebody is at its other end.
    OnePort,
}

impl Unusable {
    /// A sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Legacy => "it has the legacy interface; with QEMU add -global virtio-mmio.force-legacy=false",
            Self::Reset => "it does not come back from its reset",
            Self::Features => "it does not accept what the driver understands",
            Self::Disk => "it is a disk whose blocks or requests have a size that cannot be, or has no size that stays",
            Self::Queue(_) => "a queue is too small, or there is no memory for it",
            Self::OnePort => {
                "it has no way to say which port is which; with QEMU it is a virtio-serial-device or a virtio-serial-pci"
            }
        }
    }
}

/// The device answered what no device may answer. It was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Broken(pub &'static str);

/// What kind of device is behind these registers: its device ID (section 5), or `None` if there is none.
///
/// # Errors
/// [`Unusable::Legacy`].
pub fn probe<T: Transport>(transport: &T) -> Result<Option<u32>, Unusable> {
    if transport.read(register::MAGIC_VALUE) != MAGIC {
        return Ok(None);
    }
    match (transport.read(register::DEVICE_ID), transport.read(register::VERSION)) {
        (0, _) => Ok(None),
        (id, VERSION) => Ok(Some(id)),
        _ => Err(Unusable::Legacy),
    }
}

/// So often is looked whether a device has come back from its reset.
const LOOKS: usize = 10_000;

/// Resets the device, and waits until it says that it is: until then it may do DMA (section 2.1.2).
///
/// # Errors
/// [`Unusable::Reset`].
pub fn reset<T: Transport>(transport: &T) -> Result<(), Unusable> {
    transport.write(register::STATUS, 0);
    let is_reset = (0..LOOKS).any(|_| transport.read(register::STATUS) == 0);
    if is_reset { Ok(()) } else { Err(Unusable::Reset) }
}

/// The first steps of section 3.1.1: reset, and agreement about `wanted`, all of which must be there, and about what is there of
/// `welcome`, which is returned.
fn begin<T: Transport>(transport: &T, wanted: u64, welcome: u64) -> Result<u64, Unusable> {
    reset(transport)?;
    transport.write(register::STATUS, ACKNOWLEDGE | DRIVER);
    let offered = [0, 1].map(|half| {
        transport.write(register::DEVICE_FEATURES_SEL, half);
        u64::from(transport.read(register::DEVICE_FEATURES)) << (32 * half)
    });
    let (offered, wanted) = (offered[0] | offered[1], wanted | FEATURE_VERSION_1);
    if offered & wanted != wanted {
        return Err(give_up(transport, Unusable::Features));
    }
    let accepted = wanted | offered & welcome;
    transport.accept(accepted);
    transport.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if transport.read(register::STATUS) & FEATURES_OK == 0 {
        return Err(give_up(transport, Unusable::Features));
    }
    Ok(accepted & welcome)
}

/// Sets queue number `queue` up.
fn set_up<T: Transport>(transport: &mut T, queue: u16, shape: Shape) -> Result<queue::Queue<T::Rings>, Unusable> {
    let Some(rings) = transport.lay_out(queue, shape) else {
        return Err(give_up(transport, Unusable::Queue(queue)));
    };
    Ok(queue::Queue::new(queue, rings, shape))
}

/// The last step: the device works from now on.
fn finish<T: Transport>(transport: &T) {
    transport.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

fn give_up<T: Transport>(transport: &T, why: Unusable) -> Unusable {
    transport.write(register::STATUS, transport.read(register::STATUS) | FAILED);
    why
}
