//! A byte queue of fixed size, as inside a UART.

/// Up to `N` bytes, first in, first out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fifo<const N: usize> {
    bytes: [u8; N],
    /// Where the oldest byte is; always below `N`.
    first: usize,
    length: usize,
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
}
