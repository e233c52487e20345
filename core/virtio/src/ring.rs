//! A byte queue of fixed capacity, allocated once: what a device holds between the guest and the outside.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use pack::Damaged;

/// Bytes, first in, first out.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    /// Where the oldest byte is.
    first: usize,
    length: usize,
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into_boxed_slice(), first: 0, length: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn space(&self) -> usize {
        self.bytes.len() - self.length
    }

    /// Takes in as many of `bytes` as fit, from their start, and returns how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        let at = (self.first + self.length) % self.bytes.len().max(1);
        // Behind what is in it up to the end, and then from the start.
        let (bytes, behind) = (bytes.get(..count).unwrap_or(&[]), self.bytes.len() - at);
        let (first, second) = bytes.split_at(count.min(behind));
        for (at, part) in [(at, first), (0, second)] {
            if let Some(place) = self.bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
        }
        self.length += count;
        count
    }

    /// The oldest bytes that lie in one piece.
    pub(crate) fn front(&self) -> &[u8] {
        let end = (self.first + self.length).min(self.bytes.len());
        self.bytes.get(self.first..end).unwrap_or(&[])
    }

    /// What is in it, the oldest byte first.
    pub(crate) fn save(&self) -> Result<Vec<u8>, Damaged> {
        let Self { bytes, first, length } = self;
        let mut saved = Vec::new();
        saved.try_reserve_exact(*length).map_err(|_| Damaged::NoMemory)?;
        saved.extend((0..*length).filter_map(|position| bytes.get((first + position) % bytes.len()).copied()));
        Ok(saved)
    }

    /// Whether these bytes fit into an empty one.
    pub(crate) fn fits(&self, saved: &[u8]) -> bool {
        saved.len() <= self.bytes.len()
    }

    /// Puts these bytes in place of what is in it, as many as [fit](Self::fits).
    pub(crate) fn restore(&mut self, saved: &[u8]) {
        self.first = 0;
        self.length = 0;
        self.push(saved);
    }

    /// Drops the oldest `count` bytes, or all if there are fewer.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.length);
        if count > 0 {
            self.first = (self.first + count) % self.bytes.len();
            self.length -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn gives_back_in_order_what_fit() {
        let mut ring = Ring::new(4);
        assert_eq!(ring.push(b"abc"), 3);
        ring.consume(2);
        assert_eq!(ring.push(b"defg"), 3);
        assert_eq!((ring.front(), ring.space()), (&b"cd"[..], 0));
        ring.consume(2);
        assert_eq!(ring.front(), b"ef");
        ring.consume(9);
        assert_eq!((ring.len(), ring.front()), (0, &b""[..]));
    }
}
