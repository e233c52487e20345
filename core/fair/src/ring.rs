//! A ring of bytes: what is written waits there until the console's thread takes it.

use core::fmt;

/// At most `N` bytes, first in, first out. Remembers them after they were taken, until they are overwritten.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Bytes ever written.
    written: usize,
    /// Bytes ever taken.
    taken: usize,
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Ring<N> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        assert!(N.is_power_of_two());
        Self { bytes: [0; N], written: 0, taken: 0 }
    }

    /// How many bytes still fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        N - self.written.wrapping_sub(self.taken)
    }

    /// Adds a byte; a full ring drops it.
    pub fn push(&mut self, byte: u8) {
        if self.room() > 0 {
            self.bytes[self.written % N] = byte;
            self.written = self.written.wrapping_add(1);
        }
    }

    /// Adds as many of `bytes` as there is room for, from their start; returns how many.
    pub fn push_some(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let at = self.written % N;
        let (first, second) = bytes.get(..count).unwrap_or(&[]).split_at(count.min(N - at));
        for (at, part) in [(at, first), (0, second)] {
            if let Some(place) = self.bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
        }
        self.written = self.written.wrapping_add(count);
        count
    }

    /// Adds `text`, whole lines of it; where there is no room, the oldest lines make it, each as a whole: what is left of
    /// the others is never torn. A text that is longer than the ring keeps its end.
    pub fn push_lines_over(&mut self, text: &[u8]) {
        let text = text.get(text.len().saturating_sub(N)..).unwrap_or(&[]);
        while self.room() < text.len() {
            self.drop_line();
        }
        for &byte in text {
            self.push(byte);
        }
    }

    fn drop_line(&mut self) {
        while self.taken != self.written {
            let byte = self.bytes[self.taken % N];
            self.taken = self.taken.wrapping_add(1);
            if byte == b'\n' {
                return;
            }
        }
    }

    /// Takes as many bytes as there are and fit into `into`; returns how many.
    pub fn pop_into(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.written.wrapping_sub(self.taken));
        let at = self.taken % N;
        let (first, second) = into.get_mut(..count).unwrap_or(&mut []).split_at_mut(count.min(N - at));
        for (at, part) in [(at, first), (0, second)] {
            if let Some(place) = self.bytes.get(at..at + part.len()) {
                part.copy_from_slice(place);
            }
        }
        self.taken = self.taken.wrapping_add(count);
        count
    }

    /// The length of the whole lines among the first `most` bytes; all of these if there is no line end in so many.
    pub fn whole_lines(&self, most: usize) -> usize {
        let waiting = self.written.wrapping_sub(self.taken).min(most);
        let is_end = |&at: &usize| self.bytes[self.taken.wrapping_add(at) % N] == b'\n';
        let lines = (0..waiting).rev().find(is_end).map_or(0, |at| at + 1);
        if lines == 0 && waiting == most { most } else { lines }
    }

    /// The last bytes written, at most `most` of the last `N`, oldest first, whether they were taken or not; from the beginning of a
    /// line on, if there is one.
    pub fn recent_lines(&self, most: usize) -> impl Iterator<Item = u8> {
        let byte = |at: usize| self.bytes[at % N];
        let from = self.written.saturating_sub(most.min(N));
        // What went before may be gone; only the line behind is known to be whole then.
        let is_begun = from == 0 || (from + N > self.written && byte(from - 1) == b'\n');
        let next = if is_begun { None } else { (from..self.written).find(|&at| byte(at) == b'\n') };
        (next.map_or(from, |end| end + 1)..self.written).map(byte)
    }
}

/// What does not fit is dropped.
impl<const N: usize> fmt::Write for Ring<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    proptest! {
        /// What is left after any overflow is the latest lines, all of them whole.
        #[test]
        fn lines_that_make_room_do_so_as_a_whole(lengths in prop::collection::vec(0usize..60, 1..100)) {
            let mut ring = Ring::<128>::new();
            let mut lines = Vec::new();
            for (number, length) in lengths.into_iter().enumerate() {
                let line = std::format!("{number} {}\n", "x".repeat(length));
                ring.push_lines_over(line.as_bytes());
                lines.push(line);
            }
            let mut bytes = [0; 128];
            let left = ring.pop_into(&mut bytes);
            let left = String::from_utf8(bytes[..left].to_vec()).unwrap();
            prop_assert!(left.len() > 128 - 70 || left == lines.concat());
            prop_assert!(lines.concat().ends_with(&left), "{:?}", left);
            let first = left.lines().next().unwrap();
            prop_assert!(lines.iter().any(|line| line.trim_end_matches('\n') == first), "torn: {:?}", first);
        }
    }

    proptest! {
        /// Stretches of bytes come out as they went in, wherever the ring's end lies among them.
        #[test]
        fn what_goes_in_by_stretches_comes_out(steps in prop::collection::vec((0usize..40, 0usize..40), 1..50)) {
            let (mut ring, mut next) = (Ring::<32>::new(), (0..=u8::MAX).cycle());
            let mut waiting = std::collections::VecDeque::new();
            for (push, pop) in steps {
                let bytes: Vec<u8> = (0..push).map(|_| next.next().unwrap_or(0)).collect();
                let room = ring.room();
                let pushed = ring.push_some(&bytes);
                prop_assert_eq!(pushed, room.min(push));
                waiting.extend(&bytes[..pushed]);
                let mut into = std::vec![0; pop];
                let popped = ring.pop_into(&mut into);
                let expected: Vec<u8> = waiting.drain(..pop.min(waiting.len())).collect();
                prop_assert_eq!(&into[..popped], &expected[..]);
            }
        }
    }

    #[test]
    fn recent_lines_are_whole() {
        let mut ring = Ring::<16>::new();
        let recent = |ring: &Ring<16>, most| String::from_utf8(ring.recent_lines(most).collect()).unwrap();
        assert_eq!(recent(&ring, 16), "");
        b"one\ntwo\n".iter().for_each(|&byte| ring.push(byte));
        let mut taken = [0; 6];
        ring.pop_into(&mut taken);
        // What was taken is still remembered.
        assert_eq!(
            [16, 8, 7, 4, 3].map(|most| recent(&ring, most)),
            ["one\ntwo\n", "one\ntwo\n", "two\n", "two\n", ""]
        );
        b"three\nfour\n".iter().for_each(|&byte| ring.push(byte));
        assert_eq!(
            [99, 16, 11, 10].map(|most| recent(&ring, most)),
            ["two\nthree\nfour\n", "two\nthree\nfour\n", "three\nfour\n", "four\n"]
        );
        // A line that is not over, and is longer than what is asked for, is shown as far as that goes.
        ring.pop_into(&mut [0; 16]);
        b"0123456789abcdef".iter().for_each(|&byte| ring.push(byte));
        assert_eq!(recent(&ring, 4), "cdef");
    }

    #[test]
    fn whole_lines_come_first() {
        let mut ring = Ring::<16>::new();
        b"one\ntwo\nthr".iter().for_each(|&byte| ring.push(byte));
        assert_eq!((ring.whole_lines(16), ring.whole_lines(5), ring.room()), (8, 4, 5));
        // A line that is not over may yet be, unless it is as long as what is asked for.
        let mut ring = Ring::<16>::new();
        b"thr".iter().for_each(|&byte| ring.push(byte));
        assert_eq!((ring.whole_lines(16), ring.whole_lines(4), ring.whole_lines(3), ring.whole_lines(2)), (0, 0, 3, 2));
    }

    #[test]
    fn a_full_ring_drops_what_comes_and_remembers_what_came() {
        let mut ring = Ring::<8>::new();
        b"0123456789".iter().for_each(|&byte| ring.push(byte));
        let mut bytes = [0; 16];
        assert_eq!((ring.pop_into(&mut bytes), &bytes[..8], ring.room()), (8, &b"01234567"[..], 8));
        b"abc".iter().for_each(|&byte| ring.push(byte));
        assert_eq!(ring.recent_lines(8).collect::<Vec<_>>(), b"34567abc");
        // What just fits drops no line.
        let mut ring = Ring::<8>::new();
        ring.push_lines_over(b"abc\n");
        ring.push_lines_over(b"def\n");
        assert_eq!((ring.pop_into(&mut bytes), &bytes[..8]), (8, &b"abc\ndef\n"[..]));
    }
}
