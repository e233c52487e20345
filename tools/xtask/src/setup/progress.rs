//! How far a long step has come: on a terminal one line that is written over, elsewhere a line now and then.

use crate::tree::words;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{IsTerminal, Read, Write, stderr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a terminal's line is written anew.
const GLANCE: Duration = Duration::from_millis(200);
/// How often there is a line where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// What is shown of a step of so many bytes.
pub(super) struct ProgressLine {
    indent: &'static str,
    total: u64,
    on_terminal: bool,
    shown: Instant,
}

impl ProgressLine {
    /// Nothing is shown yet.
    pub(super) fn new(indent: &'static str, total: u64) -> ProgressLine {
        let can_write_over = is_a_real_one(std::env::var_os("TERM").as_deref());
        ProgressLine { indent, total, on_terminal: can_write_over && stderr().is_terminal(), shown: Instant::now() }
    }

    /// So many bytes are there.
    fn show(&mut self, bytes: u64) {
        let line = line(bytes, self.total);
        if self.on_terminal {
            // It does not matter if nobody can read it.
            let _ = write!(stderr(), "\r{}{line}", self.indent);
        } else if self.shown.elapsed() >= LINE {
            self.shown = Instant::now();
            println!("{}{line}", self.indent);
        }
    }

    fn end(&self) {
        if self.on_terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// Whether a terminal of this name understands control sequences.
fn is_a_real_one(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

fn line(bytes: u64, total: u64) -> String {
    let percent = bytes.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
    format!("{:.1} of {:.1} MB, {percent} %", bytes as f64 / 1e6, total as f64 / 1e6)
}

/// Runs a command to its end and shows meanwhile how many bytes `arrived` counts. What it prints is shown only when it fails.
pub(super) fn run_watched(command: &mut Command, mut progress: ProgressLine, arrived: impl Fn() -> u64) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", words(command)))?;
    let mut errors = child.stderr.take().context("a command's errors")?;
    // Read as it comes: a full pipe would stop the command.
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        errors.read_to_end(&mut said).map(|_| String::from_utf8_lossy(&said).into_owned())
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.show(arrived());
        std::thread::sleep(GLANCE);
    };
    progress.end();
    let said = reader.join().ok().and_then(Result::ok).unwrap_or_default();
    if !status.success() {
        bail!("{} ended with {status}: {}", words(command), said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        assert_eq!(line(12_340_000, 37_700_000), "12.3 of 37.7 MB, 32 %");
        assert_eq!(line(0, 0), "0.0 of 0.0 MB, 100 %");
        assert_eq!(line(9, 8), "0.0 of 0.0 MB, 100 %", "a file may be larger than it was said to be");
    }

    #[test]
    fn a_terminal_that_can_do_nothing_gets_lines() {
        let real = |term: &str| is_a_real_one(Some(term.as_ref()));
        assert!(real("xterm-256color") && real("linux"));
        assert!(!real("dumb") && !real("") && !is_a_real_one(None));
    }

    #[test]
    fn a_command_that_fails_tells_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo because >&2; exit 3"]);
        let error = run_watched(&mut command, ProgressLine::new("", 1), || 0).expect_err("it fails");
        assert!(error.to_string().ends_with("because"), "{error}");
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 1000000 /dev/zero >&2"]);
        assert!(run_watched(&mut command, ProgressLine::new("", 1), || 0).is_ok(), "much to say stops nothing");
    }
}
