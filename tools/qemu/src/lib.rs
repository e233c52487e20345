//! Starting QEMU's `virt` machine and talking to its serial port.
//!
//! Everything in the project that runs on an emulated Arm machine goes through this crate: `croft run`, the system
//! tests, the payloads and the benchmarks. So the command line of the machine is written once ([`Machine`]), the
//! question "is this QEMU good enough?" is answered once ([`find`]), and a test that waits for a line on a console
//! waits in one way: with a deadline, and with the whole transcript in the error ([`Console`]).
//!
//! QEMU 11.1 is the oldest that will do, because it is the first whose WFE really waits and can be trapped; on older
//! ones the WFE channel can't be seen at all.

mod console;
mod find;
mod machine;
mod wait;

pub use console::{Console, Expected};
pub use find::{Form, MINIMUM, Property, Qemu, Version, find, find_from};
pub use machine::{ExceptionLevel, Firmware, Machine, Running, Serial};
pub use wait::end_of_wait;

use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong between the project and QEMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No QEMU at all.
    #[error("no qemu-system-aarch64 found; run `cargo xtask setup`, or put QEMU {MINIMUM} or newer on PATH")]
    Missing,
    /// There is a QEMU, but it is older than [`MINIMUM`].
    #[error("{} is version {found}, but {MINIMUM} or newer is needed (its WFE must trap); run `cargo xtask setup`", .program.display())]
    TooOld {
        /// The program that was asked.
        program: PathBuf,
        /// What it said its version is.
        found: Version,
    },
    /// The program ran, but `--version` made no sense.
    #[error("{} --version printed {printed:?}, which names no version", .program.display())]
    NoVersion {
        /// The program that was asked.
        program: PathBuf,
        /// What it printed.
        printed: String,
    },
    /// The program that the environment names will not do.
    #[error("{0}; the variable UNDERCROFT_QEMU names that program, and no other is looked for")]
    Named(#[source] Box<Error>),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// [`Running::serial`] was called twice, or the serial port is this process's own standard input and output.
    #[error("the serial port of this machine is not a pipe, or was taken before")]
    NoSerial,
    /// The text that a test waits for did not come in time.
    #[error("waited {waited:?} for {wanted}; the transcript so far:\n{transcript}")]
    Deadline {
        /// The texts, any of which would have done.
        wanted: String,
        /// How long it was waited for.
        waited: Duration,
        /// All that the console printed so far.
        transcript: String,
    },
    /// The machine ended before the text came.
    #[error("the machine ended before it printed {wanted}; the whole transcript:\n{transcript}")]
    Ended {
        /// The texts, any of which would have done.
        wanted: String,
        /// All that the console printed.
        transcript: String,
    },
    /// The text came that says that the wait is lost ([`Console::expect_unless`]).
    #[error("{bad:?} was printed while waiting for {wanted}; the transcript so far:\n{transcript}")]
    Refused {
        /// The text that ends the wait.
        bad: String,
        /// The text that was waited for.
        wanted: String,
        /// All that the console printed so far.
        transcript: String,
    },
}

/// Puts words to an operating system's error.
pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}
