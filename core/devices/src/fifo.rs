//! A byte queue of fixed size, as inside a UART.

use alloc::vec::Vec;

use pack::Damaged;

/// Up to `N` bytes, first in, first out.
#[derive(Clone, Eq, Debug)]
pub(crate) struct Fifo<const N: usize> {
    bytes: [u8; N],
    /// Where the oldest byte is; always below `N`.
    first: usize,
    length: usize,
}

/// Two queues are the same if what is in them is, wherever in their memory that lies.
impl<const N: usize> PartialEq for Fifo<N> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().eq(other.bytes())
    }
}

impl<const N: usize> Fifo<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], first: 0, length: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        let Self { bytes, first, length } = self;
        (0..*length).filter_map(move |position| bytes.get((first + position) % N).copied())
    }

    /// What is in it, the oldest byte first.
    pub(crate) fn save(&self) -> Result<Vec<u8>, Damaged> {
        let mut saved = Vec::new();
        saved.try_reserve_exact(self.length).map_err(|_| Damaged::NoMemory)?;
        saved.extend(self.bytes());
        Ok(saved)
    }

    /// A queue with these bytes in it; `None` if they do not fit.
    pub(crate) fn restored(saved: &[u8]) -> Option<Self> {
        let mut fifo = Self::new();
        saved.iter().for_each(|&byte| fifo.push(byte));
        (saved.len() <= N).then_some(fifo)
    }

    /// Adds a byte behind the others; a full queue drops it.
    pub(crate) fn push(&mut self, byte: u8) {
        if self.length < N
            && let Some(slot) = self.bytes.get_mut((self.first + self.length) % N)
        {
            *slot = byte;
            self.length += 1;
        }
    }

    /// Takes the oldest byte.
    pub(crate) fn pop(&mut self) -> Option<u8> {
        if self.length == 0 {
            return None;
        }
        let byte = self.bytes.get(self.first).copied();
        self.first = (self.first + 1) % N;
        self.length -= 1;
        byte
    }
}

#[cfg(test)]
mod tests {
    use super::Fifo;

    #[test]
    fn keeps_order_across_the_wrap() {
        let mut fifo = Fifo::<4>::new();
        for round in 0..10 {
            fifo.push(round);
            fifo.push(round + 100);
            assert_eq!(fifo.pop(), Some(round));
            assert_eq!(fifo.pop(), Some(round + 100));
        }
        for byte in 0..6 {
            fifo.push(byte);
        }
        assert_eq!(fifo.len(), 4);
        assert_eq!(fifo.pop(), Some(0));
    }

    #[test]
    fn queues_are_the_same_if_their_bytes_are() {
        let of = |bytes: &[u8]| Fifo::<4>::restored(bytes).expect("they fit");
        let mut moved = of(&[0, 1, 2]);
        assert_eq!(moved.pop(), Some(0));
        assert_eq!(moved, of(&[1, 2]), "they lie elsewhere");
        for other in [&[1, 3][..], &[1], &[1, 2, 0], &[]] {
            assert_ne!(moved, of(other));
        }
        assert_eq!(Fifo::<4>::restored(&[0; 5]), None);
    }
}
