//! What the log says about one VM.
//!
//! A guest can cause lines about itself: by breaking a device, by letting its watchdogs act, by resetting itself. Each
//! VM has a ring in which its lines wait, and a limit on their rate; lines that are left out are counted, and the count
//! is a line too. So no guest displaces a line about another.

use core::fmt::{self, Write};

use crate::{Pace, Ring};

/// The lines about one VM that wait, in `N` bytes.
pub struct Reports<const N: usize> {
    ring: Ring<N>,
    pace: Pace,
    left_out: u32,
}

impl<const N: usize> Reports<N> {
    /// None yet; with this pace.
    #[must_use]
    pub const fn new(pace: Pace) -> Self {
        Self { ring: Ring::new(), pace, left_out: 0 }
    }

    /// Adds a line (with its end) at `now`, if the pace and the room allow it; says whether they do. The count of lines left
    /// out goes ahead of it, written by `count`.
    pub fn push(&mut self, line: &[u8], now: u64, count: impl FnOnce(&mut dyn Write, u32) -> fmt::Result) -> bool {
        self.settle(now, count);
        let taken = self.left_out == 0 && self.ring.room() >= line.len() && self.pace.take(now);
        if taken {
            line.iter().for_each(|&byte| self.ring.push(byte));
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        taken
    }

    /// Adds a line that comes seldom enough by itself, if there is room; says whether there is.
    pub fn push_always(&mut self, line: &[u8]) -> bool {
        let is_room = self.ring.room() >= line.len();
        if is_room {
            line.iter().for_each(|&byte| self.ring.push(byte));
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        is_room
    }

    /// Writes how many lines were left out by `now`, if any were and it is time to say so.
    pub fn settle(&mut self, now: u64, count: impl FnOnce(&mut dyn Write, u32) -> fmt::Result) {
        if self.left_out == 0 || self.pace.next() > now {
            return;
        }
        let mut line = Ring::<256>::new();
        let mut bytes = [0; 256];
        let written = count(&mut line, self.left_out);
        let length = line.pop_into(&mut bytes);
        if written.is_ok() && self.ring.room() >= length && self.pace.take(now) {
            bytes.iter().take(length).for_each(|&byte| self.ring.push(byte));
            self.left_out = 0;
        }
    }

    /// When [`Reports::settle`] has something to do.
    #[must_use]
    pub const fn next(&self) -> Option<u64> {
        if self.left_out == 0 { None } else { Some(self.pace.next()) }
    }

    /// The lines.
    pub fn ring(&mut self) -> &mut Ring<N> {
        &mut self.ring
    }
}

#[cfg(test)]
mod tests {
    use super::Reports;
    use crate::Pace;
    use core::fmt::{self, Write};
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    fn count(out: &mut dyn Write, left_out: u32) -> fmt::Result {
        writeln!(out, "{left_out} left out")
    }

    fn taken<const N: usize>(reports: &mut Reports<N>) -> String {
        let mut bytes = [0; 4096];
        let length = reports.ring().pop_into(&mut bytes);
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn what_is_too_much_is_counted_and_the_count_is_told() {
        let mut reports = Reports::<256>::new(Pace::new(100, 2));
        let lines: Vec<bool> = (0..5).map(|_| reports.push(b"broken\n", 0, count)).collect();
        assert_eq!(lines, [true, true, false, false, false]);
        assert_eq!((taken(&mut reports), reports.next()), (String::from("broken\nbroken\n"), Some(100)));
        reports.settle(99, count);
        assert_eq!(taken(&mut reports), "");
        reports.settle(100, count);
        assert_eq!((taken(&mut reports), reports.next()), (String::from("3 left out\n"), None));
        assert!(reports.push(b"broken\n", 300, count));
    }

    /// What comes seldom by itself waits for no pace, but for room.
    #[test]
    fn a_line_that_is_always_told_needs_room_alone() {
        let mut reports = Reports::<16>::new(Pace::new(100, 1));
        assert_eq!([0; 3].map(|_| reports.push_always(b"stopped\n")), [true, true, false]);
        assert_eq!((taken(&mut reports), reports.next()), (String::from("stopped\nstopped\n"), Some(0)));
        reports.settle(0, count);
        assert_eq!(taken(&mut reports), "1 left out\n");
    }

    proptest! {
        /// Every line is there, whole and in order, or in a count that is.
        #[test]
        fn no_line_is_lost_uncounted_nor_torn(
            steps in prop::collection::vec((0u64..80, 1usize..60, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut reports = Reports::<256>::new(Pace::new(50, 3));
            let (mut now, mut all, mut text) = (0, 0, String::new());
            for (step, length, always, take) in steps {
                now += step;
                all += 1;
                let mut line = std::vec![b'x'; length];
                line.push(b'\n');
                let _ = if always { reports.push_always(&line) } else { reports.push(&line, now, count) };
                if take { text.push_str(&taken(&mut reports)); }
            }
            text.push_str(&taken(&mut reports));
            now = now.max(reports.next().unwrap_or(0));
            reports.settle(now, count);
            text.push_str(&taken(&mut reports));
            let mut seen = 0;
            prop_assert!(text.is_empty() || text.ends_with('\n'));
            for line in text.lines() {
                match line.strip_suffix(" left out") {
                    Some(number) => seen += number.parse::<usize>().unwrap(),
                    None => { prop_assert!(line.bytes().all(|byte| byte == b'x')); seen += 1; }
                }
            }
            prop_assert_eq!((seen, reports.next()), (all, None));
        }
    }
}
