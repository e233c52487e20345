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
pub mod file_system;
pub mod guest;
pub mod host;
pub mod host_tree;
pub mod log;
pub mod memory;
pub mod operator;
pub mod place;
pub mod spin_table;
pub mod terminal;
pub mod write_log;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};
use std::fmt;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// Held by the scenario that has the emulated machines of this program for itself, but for one that waits.
static BUSY: Mutex<()> = Mutex::new(());
/// Held by a scenario that waits.
static WAITING: Mutex<()> = Mutex::new(());

/// A named scenario. One of them at a time runs.
pub fn scenario(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    trial(name.into(), &BUSY, run)
}

/// A named scenario that for the most part waits for time to pass, a daemon's minute or a watchdog's. One of them at a time runs
/// beside the other scenarios of its program, which need not wait for it.
pub fn waiting(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    trial(name.into(), &WAITING, run).with_kind(WAITS)
}

/// The kind of those that wait, by which they are known, and which stands behind their names.
const WAITS: &str = "waits";

fn trial(name: String, turn: &'static Mutex<()>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name.clone(), move || {
        // One that failed left nothing behind that others would find.
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        let end = run();
        // Between two verdicts there is another time, where scenarios run side by side.
        println!("# {name} took {:.1} s", since.elapsed().as_secs_f64());
        match end {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(Skip(why)) => Ok(Completion::ignored_with(why)),
                None => Err(format!("{error:#}").into()),
            },
        }
    })
}

/// Whether everything is to be tried, rather than what CI can afford.
pub fn full() -> bool {
    std::env::args().any(|argument| argument == "--full")
        || std::env::var("UNDERCROFT_FULL").is_ok_and(|value| !matches!(&*value, "" | "0"))
}

/// Runs the scenarios that the command line selects, one at a time, since an emulated machine keeps several CPUs busy by itself;
/// and beside them one at a time of those that wait, unless the command line asks for one thread.
pub fn run(scenarios: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_iter(std::env::args().filter(|argument| argument != "--full"));
    let (waiting, others): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(|trial| trial.kind() == WAITS);
    // A thread for each that waits, also for its turn; they come first, so that what is left is that of the others.
    arguments.test_threads = arguments.test_threads.or(Some(waiting.len() + 1));
    libtest_mimic::run(&arguments, waiting.into_iter().chain(others).collect()).exit_code()
}
