//! What the whole-system scenarios share: guests, hosts, and the judgement of what they print.
//!
//! A scenario starts an emulated machine with the hypervisor, lets real guests run on it, and looks at it from outside,
//! through croft's [`Session`](croft::session::Session), as an operator would. Scenarios live in `tests/`, a binary a
//! theme; each is a named test:
//!
//! ```text
//! cargo test -p system                    what CI runs
//! cargo test -p system -- reboot          only scenarios with this in their names
//! cargo test -p system -- --full          all of them (or with UNDERCROFT_FULL=1)
//! ```
//!
//! `UNDERCROFT_LOGS=DIR` keeps all consoles and logs, a folder for each emulated machine.
//!
//! A scenario that this computer is too small for says "ignored" and why; it never passes. One that needs what `cargo xtask
//! setup --all` fetches fails without it.
#![forbid(unsafe_code)]

pub mod bare;
pub mod core_file;
pub mod guest;
pub mod host;
pub mod host_tree;
pub mod log;
pub mod memory;
pub mod place;
pub mod terminal;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// How long a guest may take to boot, on a machine that does other things too.
pub const BOOT: Duration = Duration::from_secs(150);
/// How long anything that takes a moment may take.
pub const SOON: Duration = Duration::from_secs(60);

/// Why a scenario cannot run here. As an error of a scenario, it skips it.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The error that skips a scenario.
pub fn skip(why: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Skip(why.into()))
}

/// A named scenario.
pub fn scenario(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match run() {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => Ok(Completion::ignored_with(why)),
            None => Err(format!("{error:#}").into()),
        },
    })
}

/// Whether everything is to be tried, rather than what CI can afford.
pub fn full() -> bool {
    std::env::args().any(|argument| argument == "--full")
        || std::env::var("UNDERCROFT_FULL").is_ok_and(|value| !matches!(&*value, "" | "0"))
}

/// Runs the scenarios that the command line selects, one at a time unless it says otherwise: an emulated machine
/// keeps several CPUs busy by itself.
pub fn run(scenarios: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_iter(std::env::args().filter(|argument| argument != "--full"));
    arguments.test_threads = arguments.test_threads.or(Some(1));
    libtest_mimic::run(&arguments, scenarios).exit_code()
}
