//! A ring in the guest's memory, as its registers describe it. The guest may write anything into them: nothing is believed before it is
//! used, and an index that is beyond the ring's size is never stored.

use abi::enclave::MAX_RING_BITS;
use units::Ipa;

/// A ring of entries of `SIZE` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ring<const SIZE: u64> {
    pub(crate) base: u64,
    pub(crate) bits: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
}

impl<const SIZE: u64> Ring<SIZE> {
    /// How many entries it has; none, if it cannot be used as it is described.
    pub(crate) const fn entries(&self) -> u32 {
        let is_usable = self.bits >= 1 && self.bits <= MAX_RING_BITS && self.base.is_multiple_of(SIZE);
        if is_usable && self.base.checked_add(SIZE << self.bits).is_some() { 1 << self.bits } else { 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Whether one more has no room.
    pub(crate) const fn is_full(&self) -> bool {
        self.next(self.tail) == self.head
    }

    /// The entry behind this one.
    pub(crate) const fn next(&self, index: u32) -> u32 {
        (index + 1) & ((1 << (self.bits & 31)) - 1)
    }

    pub(crate) const fn place(&self, index: u32) -> Ipa {
        Ipa(self.base.wrapping_add(index as u64 * SIZE))
    }

    /// A new description: nothing is in it.
    pub(crate) const fn describe(&mut self, base: u64, bits: u32) {
        *self = Self { base, bits, head: 0, tail: 0 };
    }

    /// Whether such a ring can be: a description of any kind is empty, and what is not has indices within its size.
    pub(crate) const fn is_possible(&self) -> bool {
        let entries = self.entries();
        self.head == 0 && self.tail == 0 || self.head < entries && self.tail < entries
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn a_ring_is_within_the_address_space_and_aligned() {
        let ring = |base, bits| Ring::<64> { base, bits, ..Ring::default() }.entries();
        assert_eq!((ring(0x4000_0000, 1), ring(0x4000_0040, 8)), (2, 256));
        assert_eq!((ring(0x4000_0000, 0), ring(0x4000_0000, 9), ring(0x4000_0020, 1)), (0, 0, 0));
        assert_eq!((ring(u64::MAX - 63, 1), ring(0, 32)), (0, 0));
    }

    #[test]
    fn one_entry_is_always_free() {
        let mut ring = Ring::<32> { base: 0, bits: 1, head: 0, tail: 0 };
        assert!(ring.is_empty() && !ring.is_full() && ring.is_possible());
        ring.tail = ring.next(ring.tail);
        assert!(!ring.is_empty() && ring.is_full());
        assert_eq!((ring.next(1), ring.place(1).0), (0, 32));
        assert!(!Ring::<32> { tail: 2, ..ring }.is_possible());
    }
}
