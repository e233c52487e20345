//! Reading what Rust's test harness (and libtest-mimic) prints, while it prints it: what passed, and how long it took.

use super::Tally;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What the time is kept of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Each {
    /// Each test: those of one program run one after the other.
    Test,
    /// Each program of tests: within one they run side by side.
    Program,
}

/// As many lines of what a failed test said stand in the summary: whoever sees no more than the end of the output learns why.
const REASON: usize = 8;
/// A line of it has at most as many letters there.
const WIDTH: usize = 200;

/// The output so far.
pub(crate) struct Harness {
    tally: Tally,
    /// Which of the failures is explained by the lines that come, and how many of them it has.
    explained: Option<(usize, usize)>,
    each: Each,
    /// The program that runs, as cargo calls it.
    program: String,
    /// The test whose verdict is not there yet: something was printed in between.
    pending: Option<String>,
    /// How long tests took that said so themselves, since others ran beside them.
    told: BTreeMap<String, Duration>,
    /// When what runs now began.
    since: Instant,
}

impl Harness {
    pub(crate) fn new(each: Each, now: Instant) -> Self {
        Self {
            tally: Tally::default(),
            explained: None,
            each,
            program: String::new(),
            pending: None,
            told: BTreeMap::new(),
            since: now,
        }
    }

    /// Takes the next line, which came at `now`; gives how long it was waited for if it is a verdict on what is timed.
    pub(crate) fn line(&mut self, line: &str, now: Instant) -> Option<Duration> {
        self.told.extend(told(line));
        self.explain(line);
        if let Some(program) = program(line) {
            self.program = program;
            self.since = now;
        } else if line.starts_with("running ") {
            self.pending = None;
            self.since = now;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.tally.passed += number(result, "passed");
            self.tally.failed += number(result, "failed");
            if self.each == Each::Program {
                return Some(self.took(self.program.clone(), now));
            }
        } else if let Some((name, verdict)) = super::tally::verdict(line) {
            if is_verdict(verdict) {
                return self.judged(name, verdict, now);
            }
            self.pending = Some(name.to_owned());
        } else if is_verdict(line)
            && let Some(name) = self.pending.take()
        {
            return self.judged(&name, line, now);
        }
        None
    }

    /// What all lines together say.
    pub(crate) fn end(self) -> Tally {
        self.tally
    }

    /// Behind all verdicts there is a part for each test that failed, which begins with `---- <name> ----` (of Rust's own harness:
    /// `---- <name> stdout ----`).
    fn explain(&mut self, line: &str) {
        let title = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----"));
        if let Some(title) = title {
            let name = title.strip_suffix(" stdout").unwrap_or(title);
            let which = self.tally.failures.iter().rposition(|failure| failure == name);
            self.explained = which.map(|which| (which, 0));
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.explained = None;
        } else if let Some((which, count)) = &mut self.explained
            && *count < REASON
            && !line.trim().is_empty()
            && let Some(failure) = self.tally.failures.get_mut(*which)
        {
            *count += 1;
            failure.push_str("\n    ");
            failure.extend(line.chars().filter(|letter| !letter.is_control()).take(WIDTH));
        }
    }

    fn judged(&mut self, name: &str, verdict: &str, now: Instant) -> Option<Duration> {
        self.pending = None;
        if verdict == "FAILED" {
            self.tally.failures.push(name.to_owned());
        } else if verdict.starts_with("ignored") {
            // libtest-mimic prints the bare word; std's harness may give the attribute's reason.
            self.tally.skipped.push(reason(name, verdict));
        }
        (self.each == Each::Test).then(|| self.took(name.to_owned(), now))
    }

    fn took(&mut self, what: String, now: Instant) -> Duration {
        let time = self.told.remove(&what).unwrap_or_else(|| now.saturating_duration_since(self.since));
        self.tally.times.push((time, what));
        self.since = now;
        time
    }
}

/// The program in cargo's `Running unittests src/lib.rs (target/debug/deps/vgic-0123456789abcdef)` or `Doc-tests vgic`.
fn program(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("examples of {package}"));
    }
    let (_, file) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let name = file.rsplit('/').next()?;
    Some(name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned())
}

/// The test and its time in `# <name> took 1.5 s`, whatever stands before it.
fn told(line: &str) -> Option<(String, Duration)> {
    let (name, time) = line.rsplit_once("# ")?.1.split_once(" took ")?;
    let seconds = time.strip_suffix(" s")?.parse().ok()?;
    Some((name.to_owned(), Duration::try_from_secs_f64(seconds).ok()?))
}

/// The number before `word` in `ok. 12 passed; 0 failed; ...`.
fn number(result: &str, word: &str) -> usize {
    let part = result.split(['.', ';']).find_map(|part| part.trim().strip_suffix(word));
    part.and_then(|part| part.trim().parse().ok()).unwrap_or(0)
}

fn is_verdict(text: &str) -> bool {
    ["ok", "FAILED"].contains(&text) || text.starts_with("ignored")
}

fn reason(name: &str, ignored: &str) -> String {
    let why = ignored.trim_start_matches("ignored").trim_start_matches([',', ' ']);
    format!("{name}: {}", if why.is_empty() { "it says itself that it is to be run by hand" } else { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads lines that come a second apart.
    fn read(each: Each, output: &str) -> Tally {
        let mut now = Instant::now();
        let mut harness = Harness::new(each, now);
        for line in output.lines() {
            now += Duration::from_secs(1);
            harness.line(line, now);
        }
        harness.end()
    }

    fn times(tally: &Tally) -> Vec<(u64, &str)> {
        tally.times.iter().map(|(time, what)| (time.as_secs(), &**what)).collect()
    }

    #[test]
    fn counts() {
        let output = "running 3 tests\ntest a ... ok\ntest b ... ignored, needs a printer\ntest c ... FAILED\n\n\
                      test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                      test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let tally = read(Each::Test, output);
        assert_eq!(tally.to_string(), "13 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures, ["c"]);
        assert_eq!(tally.skipped, ["b: needs a printer"]);
    }

    #[test]
    fn whoever_fails_says_why_in_the_summary() {
        let many: String = (1..20).map(|line| format!("line {line}\n")).collect();
        let output = format!(
            "running 3 tests\ntest a ... FAILED\ntest b ... ok\ntest c ... FAILED\n\nfailures:\n\n---- a ----\nno \x1b[1manswer\n{many}\n\
             ---- c stdout ----\nthread 'c' panicked\n\n\nfailures:\n    a\n    c\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored\nrunning 1 test\ntest a ... FAILED\n\nfailures:\n\n---- a ----\n{}\n\n\
             failures:\n    a\n",
            "x".repeat(999)
        );
        let tally = read(Each::Test, &output);
        let lines: String = (1..REASON).map(|line| format!("\n    line {line}")).collect();
        let again = format!("a\n    {}", "x".repeat(WIDTH));
        assert_eq!(
            tally.failures,
            [format!("a\n    no [1manswer{lines}"), "c\n    thread 'c' panicked".to_owned(), again]
        );
    }

    #[test]
    fn a_verdict_is_found_behind_what_the_test_printed_itself() {
        let output = "running 3 tests\ntest a ... late by 28 us\nok\ntest b ... one: 1 ms\nother: 2 ms\nFAILED\n\
                      test c ... too small\nignored, no memory\nok\n";
        let tally = read(Each::Test, output);
        assert_eq!(tally.failures, ["b"]);
        assert_eq!(tally.skipped, ["c: no memory"]);
        assert_eq!(times(&tally), [(2, "a"), (3, "b"), (2, "c")]);
    }

    #[test]
    fn what_a_test_says_of_its_time_holds() {
        let output = "running 3 tests\n# a took 42.0 s\ntest [waits] a ... ok\ntest b ... # b took 7.0 s\nok\n# c took x s\n\
                      test c ... ok\n";
        assert_eq!(times(&read(Each::Test, output)), [(42, "a"), (7, "b"), (2, "c")]);
    }

    #[test]
    fn programs_are_timed_by_their_names() {
        let output = "     Running unittests src/lib.rs (target/debug/deps/vgic-0123456789abcdef)\n\nrunning 2 tests\n\
                      test a ... ok\ntest b ... ok\n\ntest result: ok. 2 passed; 0 failed; 0 ignored\n   Doc-tests vgic\n\
                      running 1 test\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(times(&read(Each::Program, output)), [(4, "vgic"), (1, "examples of vgic")]);
    }
}
