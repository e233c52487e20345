//! A ring of bytes: what is written waits there until the console's thread takes it.

use core::fmt;

/// At most `N` bytes, first in, first out. Remembers them after they were taken, until they are overwritten.
pub(crate) struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Bytes ever written.
    written: usize,
    /// Bytes ever taken.
    taken: usize,
}

impl<const N: usize> Ring<N> {
    /// An empty one.
    #[must_use]
    pub(crate) const fn new() -> Self {
        assert!(N.is_power_of_two());
        Self { bytes: [0; N], written: 0, taken: 0 }
    }

    /// How many bytes still fit.
    #[must_use]
    pub(crate) const fn room(&self) -> usize {
        N - self.written.wrapping_sub(self.taken)
    }

    /// Adds a byte; a full ring drops it.
    pub(crate) fn push(&mut self, byte: u8) {
        if self.room() > 0 {
            self.bytes[self.written % N] = byte;
            self.written = self.written.wrapping_add(1);
        }
    }

    /// Adds a byte; a full ring drops its oldest.
    pub(crate) fn push_over(&mut self, byte: u8) {
        if self.room() == 0 {
            self.taken = self.taken.wrapping_add(1);
        }
        self.push(byte);
    }

    /// Takes as many bytes as there are and fit into `into`; returns how many.
    pub(crate) fn pop_into(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.written.wrapping_sub(self.taken));
        for slot in into.iter_mut().take(count) {
            *slot = self.bytes[self.taken % N];
            self.taken = self.taken.wrapping_add(1);
        }
        count
    }

    /// The length of the whole lines among the first `most` bytes; all of these if there is no line end in so many.
    pub(crate) fn whole_lines(&self, most: usize) -> usize {
        let waiting = self.written.wrapping_sub(self.taken).min(most);
        let is_end = |&at: &usize| self.bytes[self.taken.wrapping_add(at) % N] == b'\n';
        let lines = (0..waiting).rev().find(is_end).map_or(0, |at| at + 1);
        if lines == 0 && waiting == most { most } else { lines }
    }

    /// The last `N` bytes written, oldest first; zeroes if there were fewer.
    pub(crate) fn recent(&self) -> impl Iterator<Item = u8> {
        let start = self.written % N;
        self.bytes[start..].iter().chain(&self.bytes[..start]).copied()
    }
}

/// What does not fit is dropped.
impl<const N: usize> fmt::Write for Ring<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}
