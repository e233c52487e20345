//! A split virtqueue (section 2.7), from the driver's side.
//!
//! Each buffer has its own descriptor for ever, so there is no free list that a device could corrupt, and each address is written
//! once. A buffer that the device returns is accepted only if the device has it.

use super::{Broken, Shape, Transport, register};

/// A queue has at most so many buffers.
pub const MOST: u16 = 64;

/// A queue's memory: what its descriptors and rings hold, and its buffers.
pub trait Rings {
    /// Puts buffer number `buffer`, with `length` bytes, into place `slot` of the driver's ring.
    fn offer(&mut self, slot: u16, buffer: u16, length: u32);

    /// Lets the device see that `count` buffers were offered, ever.
    fn publish(&mut self, count: u16);

    /// Whether the device is to interrupt when it has used one. In effect when this returns, for whoever looks behind it.
    fn set_interrupts(&mut self, on: bool);

    /// How many buffers the device has used, ever. What it wrote before is seen behind this.
    fn used_count(&self) -> u16;

    /// Which buffer stands in place `slot` of the device's ring, and how many bytes of it were written.
    fn used(&self, slot: u16) -> (u32, u32);

    /// Writes into a buffer, as much as there is room for.
    fn fill(&mut self, buffer: u16, offset: u32, bytes: &[u8]);

    /// Copies what is at the start of a buffer, as much as there is.
    fn copy(&self, buffer: u16, into: &mut [u8]);
}

/// A queue.
#[derive(Debug)]
pub struct Queue<R> {
    number: u16,
    rings: R,
    shape: Shape,
    /// Buffers that the device does not have, a bit each.
    ours: u64,
    /// How many were offered, and how many taken back, ever.
    offered: u16,
    taken: u16,
}

impl<R: Rings> Queue<R> {
    /// One whose buffers are all ours. The device interrupts when it has used one.
    pub(super) fn new(number: u16, rings: R, shape: Shape) -> Self {
        let ours = u64::MAX >> (64 - u32::from(shape.count.clamp(1, MOST)));
        Self { number, rings, shape, ours, offered: 0, taken: 0 }
    }

    /// How many bytes a buffer has.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.shape.length
    }

    /// A buffer that the device does not have.
    #[must_use]
    pub fn unused(&self) -> Option<u16> {
        (self.ours != 0).then(|| self.ours.trailing_zeros() as u16)
    }

    /// Whether the device has none.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.offered == self.taken
    }

    /// Writes into buffer number `buffer`, which is ours.
    pub fn fill(&mut self, buffer: u16, offset: u32, bytes: &[u8]) {
        self.rings.fill(buffer, offset, bytes);
    }

    /// Copies what is at the start of buffer number `buffer`.
    pub fn copy(&self, buffer: u16, into: &mut [u8]) {
        self.rings.copy(buffer, into);
    }

    /// Gives buffer number `buffer`, which is ours, to the device, with `length` bytes of it. Another one changes nothing.
    pub fn offer(&mut self, buffer: u16, length: u32) {
        let bit = 1_u64.checked_shl(buffer.into()).unwrap_or(0);
        if self.ours & bit == 0 {
            return;
        }
        self.ours &= !bit;
        self.rings.offer(self.offered % self.shape.count, buffer, length.min(self.shape.length));
        self.offered = self.offered.wrapping_add(1);
        self.rings.publish(self.offered);
    }

    /// Gives all that are ours to the device.
    pub fn offer_all(&mut self) {
        while let Some(buffer) = self.unused() {
            self.offer(buffer, self.shape.length);
        }
    }

    /// Tells the device that something was offered.
    pub fn notify<T: Transport>(&self, transport: &T) {
        transport.write(register::QUEUE_NOTIFY, self.number.into());
    }

    /// Whether the device is to interrupt when it has used a buffer.
    pub fn set_interrupts(&mut self, on: bool) {
        self.rings.set_interrupts(on);
    }

    /// Takes back the next buffer that the device has used, with how many bytes it wrote.
    ///
    /// # Errors
    /// If it says so of a buffer that it does not have, or of more than it has, or wrote more than there is room for.
    pub fn take(&mut self) -> Result<Option<(u16, u32)>, Broken> {
        let waiting = self.rings.used_count().wrapping_sub(self.taken);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.offered.wrapping_sub(self.taken) {
            return Err(Broken("it has used more buffers than it was given"));
        }
        let (buffer, written) = self.rings.used(self.taken % self.shape.count);
        let bit = 1_u64.checked_shl(buffer).filter(|_| buffer < self.shape.count.into()).unwrap_or(0);
        if bit == 0 || self.ours & bit != 0 {
            return Err(Broken("it has used a buffer that it was not given"));
        }
        if self.shape.device_writes && written > self.shape.length {
            return Err(Broken("it has written more than a buffer holds"));
        }
        self.ours |= bit;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((buffer as u16, written)))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Queue, Rings, Shape};
    use std::vec::Vec;

    /// Remembers what was offered.
    #[derive(Default)]
    struct Offers(Vec<(u16, u16, u32)>);

    impl Rings for Offers {
        fn offer(&mut self, slot: u16, buffer: u16, length: u32) {
            self.0.push((slot, buffer, length));
        }

        fn publish(&mut self, _: u16) {}

        fn set_interrupts(&mut self, _: bool) {}

        fn used_count(&self) -> u16 {
            0
        }

        fn used(&self, _: u16) -> (u32, u32) {
            (0, 0)
        }

        fn fill(&mut self, _: u16, _: u32, _: &[u8]) {}

        fn copy(&self, _: u16, _: &mut [u8]) {}
    }

    /// The device has a buffer once, or it would write into one that we take for ours.
    #[test]
    fn a_buffer_is_offered_while_it_is_ours() {
        let shape = Shape { count: 2, length: 8, device_writes: true };
        let mut queue = Queue::new(0, Offers::default(), shape);
        assert_eq!(queue.length(), 8);
        [(1, 9), (1, 8), (2, 8), (77, 8), (0, 3)].into_iter().for_each(|(buffer, length)| queue.offer(buffer, length));
        assert_eq!(queue.rings.0, [(0, 1, 8), (1, 0, 3)]);
        assert_eq!(queue.unused(), None);
    }
}
