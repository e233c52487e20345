//! How a session ended, in one line and one exit status.

use super::Condition;
use std::fmt;
use std::time::Duration;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every VM powered itself off.
    PoweredOff,
    /// All VMs are off, but these did not power themselves off.
    NotClean(Vec<(String, Condition)>),
    /// The hypervisor failed; its report.
    Panicked(String),
    /// The link's other side is not the hypervisor that was expected, and why.
    Stranger(String),
    /// The emulated host went away under running VMs.
    HostEnded {
        /// How QEMU ended.
        status: String,
        /// The VMs that were not off.
        running: Vec<String>,
        /// The last line that the hypervisor printed, possibly empty.
        last_words: String,
    },
    /// The hypervisor never said hello.
    Silent {
        /// How long it was waited for.
        limit: Duration,
        /// The last line that came instead, possibly empty.
        last_words: String,
    },
    /// Time is up.
    TimedOut {
        /// How long it was.
        limit: Duration,
        /// The VMs that were not off.
        running: Vec<String>,
    },
}

/// Exit statuses of `croft run`.
pub mod status {
    /// All is well.
    pub const OK: u8 = 0;
    /// A VM crashed or was stopped by force, or the hypervisor failed.
    pub const FAILED: u8 = 1;
    /// Wrong arguments, or a mistake in the site file or in a file that it names.
    pub const USAGE: u8 = 2;
    /// The emulated host could not be started, or ended under running VMs.
    pub const HOST: u8 = 3;
    /// All went well, but not all of the output or of the logs could be written.
    pub const INCOMPLETE: u8 = 4;
    /// The time given with `--timeout` is up; the same number as timeout(1) uses.
    pub const TIMEOUT: u8 = 124;
    /// A signal ended it: this plus the signal's number.
    pub const SIGNAL: u8 = 128;

    /// The one of two that matters: what is incomplete does where all else is well.
    #[must_use]
    pub fn worse(one: u8, other: u8) -> u8 {
        let failure = |status| if matches!(status, OK | INCOMPLETE) { OK } else { status };
        match failure(one).max(failure(other)) {
            OK => one.max(other),
            failure => failure,
        }
    }
}

impl Outcome {
    /// The exit status that says this.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::PoweredOff => status::OK,
            Self::NotClean(_) | Self::Panicked(_) => status::FAILED,
            Self::Stranger(_) | Self::HostEnded { .. } | Self::Silent { .. } => status::HOST,
            Self::TimedOut { .. } => status::TIMEOUT,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => out.write_str("all VMs powered off"),
            Self::NotClean(vms) => {
                let each: Vec<String> = vms.iter().map(|(name, condition)| format!("{name}: {condition}")).collect();
                out.write_str(&each.join("; "))
            }
            Self::Panicked(report) => {
                let first = report.lines().map(str::trim).find(|line| !line.is_empty());
                write!(out, "the hypervisor failed: {}", first.unwrap_or("it did not say why"))
            }
            Self::Stranger(why) => write!(out, "not the expected hypervisor: {why}"),
            Self::HostEnded { status, running, last_words } => {
                write!(out, "{status} while {} ran", running.join(", "))?;
                if last_words.is_empty() { Ok(()) } else { write!(out, "; last line of the log: {last_words}") }
            }
            Self::Silent { limit, last_words } => {
                write!(
                    out,
                    "the hypervisor did not say hello within {}s (--hello S waits longer; 0: for ever)",
                    limit.as_secs_f64()
                )?;
                if last_words.is_empty() {
                    out.write_str("; it printed nothing: is the image undercroft.img, and QEMU's serial port the link?")
                } else {
                    write!(out, "; last line of its output: {last_words}")
                }
            }
            Self::TimedOut { limit, running } => {
                write!(out, "timed out after {}s; ", limit.as_secs_f64())?;
                match &running[..] {
                    [] => out.write_str("nothing ran yet"),
                    running => write!(out, "not off: {}", running.join(", ")),
                }
            }
        }
    }
}

/// The last line of `log` that says something, possibly empty.
pub(super) fn last_line(log: &str) -> String {
    log.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
