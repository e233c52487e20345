//! The slots of a disk in the device's memory: heads, buffers, answers, and the descriptors that make a chain of the three.

use core::sync::atomic::Ordering;

use drivers::virtio;
use drivers::virtio::block::{BUFFER, DESCRIPTORS, HEAD, NO_ANSWER, SLOTS, SlotTransport, Slots};

use super::{DEVICE_WRITES, Device, Way, copy_in, copy_out, double, half, word};

/// A descriptor says by this that another one follows, whose number it has.
const NEXT: u64 = 1;
/// Bytes from one head to the next; the answer is behind the head.
const HEADS_APART: u64 = 64;
const ANSWER: u64 = HEAD as u64;

/// They, in a device's memory. All that they reach is inside.
#[derive(Debug)]
pub struct SlotMemory {
    table: u64,
    available: u64,
    used: u64,
    heads: u64,
    buffers: u64,
}

impl SlotMemory {
    /// A slot's number, whatever number it is given.
    fn slot(slot: u16) -> u64 {
        u64::from(slot % SLOTS)
    }

    fn head(&self, slot: u16) -> u64 {
        self.heads + HEADS_APART * Self::slot(slot)
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(BUFFER) * Self::slot(slot)
    }

    /// A ring's entry, whatever number it is given.
    fn place(place: u16) -> u64 {
        u64::from(place % (SLOTS * DESCRIPTORS))
    }

    /// Where `length` bytes at `offset` of a slot's buffer are, and how many of them there are.
    fn part(&self, slot: u16, offset: u32, length: usize) -> (u64, usize) {
        let offset = offset.min(BUFFER);
        (self.buffer(slot) + u64::from(offset), length.min((BUFFER - offset) as usize))
    }
}

impl SlotTransport for Device {
    type Slots = SlotMemory;

    fn lay_out_slots(&mut self, queue: u16) -> Option<SlotMemory> {
        if let Way::Pci(registers) = &mut self.registers
            && !registers.find_doorbell(queue)
        {
            return None;
        }
        let entries = SLOTS * DESCRIPTORS;
        let count = u64::from(entries);
        let table = self.take(16 * count)?;
        let available = self.take(4 + 2 * count + 2)?;
        let used = self.take(4 + 8 * count + 2)?;
        let heads = self.take(HEADS_APART * u64::from(SLOTS))?;
        let buffers = self.take(u64::from(BUFFER) * u64::from(SLOTS))?;
        let is_placed = virtio::place(&self.registers, queue, entries, [table, available, used]);
        is_placed.then_some(SlotMemory { table, available, used, heads, buffers })
    }
}

impl Slots for SlotMemory {
    fn offer(&mut self, place: u16, slot: u16, head: [u8; HEAD], length: u32, device_writes: bool) {
        let at = self.head(slot);
        let value = u128::from_le_bytes(head);
        double(at).store(value as u64, Ordering::Relaxed);
        double(at + 8).store((value >> 64) as u64, Ordering::Relaxed);
        word(at + ANSWER).store(NO_ANSWER.into(), Ordering::Relaxed);

        let first = Self::slot(slot) * u64::from(DESCRIPTORS);
        let length = u64::from(length.min(BUFFER));
        let (data, answer) = (first + 1, first + 2);
        let descriptor = |number: u64, address: u64, length: u64, flags: u64, next: u64| {
            let at = self.table + 16 * number;
            double(at).store(address, Ordering::Relaxed);
            double(at + 8).store(length | flags << 32 | next << 48, Ordering::Relaxed);
        };
        let writes = if device_writes { DEVICE_WRITES } else { 0 };
        descriptor(first, at, HEAD as u64, NEXT, if length == 0 { answer } else { data });
        descriptor(data, self.buffer(slot), length, NEXT | writes, answer);
        descriptor(answer, at + ANSWER, 1, DEVICE_WRITES, 0);
        half(self.available + 4 + 2 * Self::place(place)).store(first as u16, Ordering::Relaxed);
    }

    fn publish(&mut self, count: u16) {
        // Pairs with the device's read of the index, behind which it reads the entry.
        half(self.available + 2).store(count, Ordering::Release);
    }

    fn used_count(&self) -> u16 {
        // Pairs with the device's write of the index, behind the entry and the buffer.
        half(self.used + 2).load(Ordering::Acquire)
    }

    fn used(&self, place: u16) -> (u32, u32) {
        let entry = self.used + 4 + 8 * Self::place(place);
        (word(entry).load(Ordering::Relaxed), word(entry + 4).load(Ordering::Relaxed))
    }

    fn answer(&self, slot: u16) -> u8 {
        word(self.head(slot) + ANSWER).load(Ordering::Relaxed) as u8
    }

    fn fill(&mut self, slot: u16, offset: u32, bytes: &[u8]) {
        let (to, length) = self.part(slot, offset, bytes.len());
        copy_in(to, bytes.get(..length).unwrap_or_default());
    }

    fn copy(&self, slot: u16, offset: u32, into: &mut [u8]) {
        let (from, length) = self.part(slot, offset, into.len());
        copy_out(from, into.get_mut(..length).unwrap_or_default());
    }
}
