//! The state of transports, queues and devices as values, with what is in flight.
//!
//! See [`devices::saved`] for what holds for all of these types. A chain in progress is saved with its progress, so that its
//! driver gets each buffer back once, and as full as it would have been.

use alloc::vec::Vec;

use pack::{Damaged, Part, Reader, Value, Writer};
use units::{Ipa, Range};

use crate::block::{HEADER, RANGE};
use crate::console::{INPUT_CAPACITY, OUTPUT_CAPACITY};
use crate::queue::LARGEST;

/// The most queues that a device has.
const QUEUES: usize = 2;

/// The state of a transport, with that of the device behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedMmio<S> {
    /// The device's.
    pub device: S,
    /// The queues.
    pub queues: Vec<SavedQueue>,
    /// Status.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub generation: u32,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// What the driver wrote to both halves of DriverFeatures.
    pub driver_features: u64,
}

impl<S> SavedMmio<S> {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

/// The device is a section within that of its transport.
impl<S: Part> Value for SavedMmio<S> {
    fn pack(&self, out: &mut Writer) {
        let Self {
            device,
            queues,
            status,
            interrupt_status,
            generation,
            device_features_select,
            driver_features_select,
            queue_select,
            driver_features,
        } = self;
        out.part(device);
        out.list(queues);
        for register in
            [status, interrupt_status, generation, device_features_select, driver_features_select, queue_select]
        {
            register.pack(out);
        }
        driver_features.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(Self {
            device: from.part()?,
            queues: from.list(QUEUES, "SavedMmio.queues")?,
            status: Value::unpack(from)?,
            interrupt_status: Value::unpack(from)?,
            generation: Value::unpack(from)?,
            device_features_select: Value::unpack(from)?,
            driver_features_select: Value::unpack(from)?,
            queue_select: Value::unpack(from)?,
            driver_features: Value::unpack(from)?,
        })
    }
}

impl<S: Part> Part for SavedMmio<S> {
    const NAME: &'static str = "virtio-mmio";
    const VERSION: u16 = Self::VERSION;
}

/// The state of a queue, which is what the queue works on: a field that is added is saved, or stands outside of it with the reason.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SavedQueue {
    /// QueueSize.
    pub size: u16,
    /// QueueDesc.
    pub descriptors: Ipa,
    /// QueueDriver.
    pub available: Ipa,
    /// QueueDevice.
    pub used: Ipa,
    /// QueueReady.
    pub ready: bool,
    /// The driver accepted event indices.
    pub event_index: bool,
    /// And indirect descriptors.
    pub indirect: bool,
    /// The next entry of the available ring to take. It counts on past the size, as the next one.
    pub next_available: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
    /// What that was when the driver was last considered for an interrupt.
    pub considered: u16,
}

impl SavedQueue {
    /// The version of this type.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedQueue versioned {
    size, descriptors, available, used, ready, event_index, indirect, next_available, next_used, considered
});

/// A chain that is being worked on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedChain {
    /// Its pieces, those that the device may read first.
    pub segments: Vec<Range<Ipa>>,
    /// How many of them those are.
    pub readable_segments: usize,
    /// The number of its first descriptor.
    pub head: u16,
    /// Up to which readable piece, and how far into it, it was read.
    pub read: (usize, u64),
    /// Up to which writable piece, and how far into it, it was written.
    pub write: (usize, u64),
    /// How many bytes were written.
    pub written: u32,
}

impl SavedChain {
    /// The version of this type.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedChain versioned { segments[LARGEST as usize], readable_segments, head, read, write, written });

/// The state of a console.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedConsole {
    /// The configuration space: columns, rows.
    pub config: [u8; 4],
    /// Bytes for the guest, the oldest first.
    pub input: Vec<u8>,
    /// Bytes of the guest's.
    pub output: Vec<u8>,
    /// The chain that is being filled.
    pub receiving: Option<SavedChain>,
    /// The chain that is being read.
    pub transmitting: Option<SavedChain>,
}

impl SavedConsole {
    /// The version of this type.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedConsole as "virtio-console" {
    config, input[INPUT_CAPACITY], output[OUTPUT_CAPACITY], receiving, transmitting
});

/// The state of an entropy device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedEntropy {
    /// The chain that is being filled.
    pub filling: Option<SavedChain>,
}

impl SavedEntropy {
    /// The version of this type.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedEntropy as "virtio-entropy" { filling });

/// A request that a block device works on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedDiskRequest {
    /// Its chain.
    pub chain: SavedChain,
    /// Its header.
    pub header: [u8; HEADER],
    /// How many bytes of that have been read.
    pub header_read: u8,
    /// The answer, if it is known.
    pub answer: Option<u8>,
    /// The range of sectors that is to be discarded or zeroed, as the driver wrote it, less what is done of it.
    pub range: [u8; RANGE],
}

impl SavedDiskRequest {
    /// The version of this type. 2: a range of sectors.
    pub const VERSION: u16 = 2;
}

pack::value!(SavedDiskRequest versioned { chain, header, header_read, answer, range });

/// What is known of what was written to a disk, beside the memory that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedChanges {
    /// How many pages there are for it; none if the disk cannot be written.
    pub pages: u32,
    /// The first of them that was never used.
    pub next: u32,
    /// The one that became free last, of those that are in a row, or 0.
    pub free: u32,
    /// One that is neither a block's nor in that row, or 0.
    pub spare: u32,
}

impl SavedChanges {
    /// The version of this type.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedChanges versioned { pages, next, free, spare });

/// The state of a block device. What is on the disk is not in it: that is known by its size and its checksum, or lies in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedBlock {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// The CRC-32C of the image.
    pub checksum: u32,
    /// The request that is being worked on.
    pub request: Option<SavedDiskRequest>,
    /// What was written.
    pub changes: SavedChanges,
}

impl SavedBlock {
    /// The version of this type. 2: what was written.
    pub const VERSION: u16 = 2;
}

pack::value!(SavedBlock as "virtio-block" { sectors, checksum, request, changes });

/// The state of a network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedNet {
    /// The address of the port that it had, of which its driver knows.
    pub mac: [u8; 6],
    /// The largest packet.
    pub mtu: u16,
    /// What the driver has accepted, of this kind's features.
    pub features: u64,
    /// The number of the first descriptor of the frame that is being sent, which is returned when the VM goes on: the frame may be lost, as on
    /// a wire.
    pub sending: Option<u16>,
}

impl SavedNet {
    /// The version of this type. 2: the port's address.
    pub const VERSION: u16 = 2;
}

pack::value!(SavedNet as "virtio-net" { mac, mtu, features, sending });

#[cfg(test)]
mod tests;
