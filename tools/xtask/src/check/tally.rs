//! Counting tests, whoever ran them.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

/// How many tests passed, failed, and were skipped, and what there is to say about the latter two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// What failed.
    pub(crate) failures: Vec<String>,
    /// What was skipped, and why.
    pub(crate) skipped: Vec<String>,
    /// How long what took; for people, and no verdict.
    pub(crate) times: Vec<(Duration, String)>,
}

impl Tally {
    /// One test that passed.
    pub(crate) fn success() -> Tally {
        Tally { passed: 1, ..Tally::default() }
    }

    /// One test that failed.
    pub(crate) fn failure(what: impl Into<String>) -> Tally {
        Tally { failed: 1, failures: vec![what.into()], ..Tally::default() }
    }

    /// One test that was skipped.
    pub(crate) fn skip(why: impl Into<String>) -> Tally {
        Tally { skipped: vec![why.into()], ..Tally::default() }
    }

    /// The `count` that took longest, that first.
    pub(crate) fn slowest(&self, count: usize) -> Vec<&(Duration, String)> {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        times.truncate(count);
        times
    }

    /// Whether no test was counted.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skipped.is_empty()
    }

    /// Counts what a payload prints: `test <name> ... ok`, `FAILED: why` or `skipped: why`, and at the end
    /// `payload: N passed, N failed, N skipped`. A payload that did not come to its end has failed.
    pub(crate) fn of_payload(payload: &str, transcript: &str) -> Tally {
        let mut tally = Tally::default();
        for line in transcript.lines() {
            let Some((name, verdict)) = verdict(line) else { continue };
            match verdict.split_once(": ").unwrap_or((verdict, "")) {
                ("ok", _) => tally.passed += 1,
                ("skipped", why) => tally.skipped.push(format!("{name}: {why}")),
                ("FAILED", why) => tally += Tally::failure(format!("{name}: {why}")),
                ("", _) => tally += Tally::failure(format!("{name}: did not come to its end")),
                _ => tally += Tally::failure(format!("{name}: {verdict}")),
            }
        }
        let end = transcript.lines().find_map(|line| line.split_once("payload: ")?.1.split_once(" passed"));
        let ended = end.and_then(|(count, _)| count.parse::<usize>().ok());
        match ended {
            Some(passed) if passed == tally.passed || tally == Tally::default() => tally.passed = passed,
            Some(passed) => {
                let lost = format!("{payload}: counts {passed} passed, but {} lines say so", tally.passed);
                tally += Tally::failure(lost);
            }
            None => tally += Tally::failure(format!("{payload}: did not come to its end")),
        }
        tally
    }
}

/// The name and the verdict in a line `test <name> ... <verdict>`, whatever stands before it, and without the kind before the name.
pub(super) fn verdict(line: &str) -> Option<(&str, &str)> {
    let (before, verdict) = line.split_once(" ... ")?;
    let (_, name) = before.split_once("test ")?;
    let name = name.strip_prefix('[').and_then(|name| Some(name.split_once("] ")?.1)).unwrap_or(name);
    Some((name.trim(), verdict.trim()))
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.skipped.extend(other.skipped);
        self.times.extend(other.times);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_slowest() {
        let time = |seconds, what: &str| (Duration::from_secs(seconds), what.to_owned());
        let mut tally = Tally { times: vec![time(1, "a"), time(9, "b")], ..Tally::default() };
        tally += Tally { times: vec![time(5, "c")], ..Tally::default() };
        assert_eq!(tally.slowest(2), [&time(9, "b"), &time(5, "c")]);
        assert_eq!(tally.slowest(9).len(), 3);
    }

    #[test]
    fn counts_a_payload() {
        let text = "[gic] test gic::sgi ... ok\r\n[gic] test gic::lpi ... skipped: no ITS\n\
                    [gic] test gic::spi ... FAILED: got 1\n[gic] payload: 1 passed, 1 failed, 1 skipped\n";
        let tally = Tally::of_payload("gic", text);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures, ["gic::spi: got 1"]);
    }

    #[test]
    fn a_payload_that_hangs_or_loses_lines_fails() {
        let hung = Tally::of_payload("gic", "test gic::sgi ... ok\ntest gic::spi ... ");
        assert_eq!((hung.passed, hung.failed), (1, 2), "the test that hangs, and the missing end");
        assert_eq!(Tally::of_payload("gic", "").failed, 1);
        assert_eq!(Tally::of_payload("gic", "test a ... ok\npayload: 2 passed, 0 failed, 0 skipped\n").failed, 1);
        assert_eq!(Tally::of_payload("bench", "payload: 9 passed, 0 failed, 0 skipped\n").passed, 9);
    }
}
