//! A session shown to people.
//!
//! * [`Screen`]: one terminal for everything. One console, or the log, is in the foreground and gets the input; the
//!   command key Ctrl-] begins every other action. The output of the others is kept and shown when one switches to
//!   them.
//! * [`Lines`]: for a file, a pipe or a CI log: every line with its source's name; nothing is read.
//! * [`Outlet`]: what both write to, so that neither waits for a reader. [`Look`]: what the terminal can show.
//! * [`Raw`]: the terminal in raw mode for as long as it lives.
//!
//! `Screen` and `Lines` write to anything and know no terminal, so tests look at what they write.

mod lines;
mod look;
mod outlet;
mod raw;
mod screen;

pub use lines::Lines;
pub use look::{Look, Stripper};
pub use outlet::{Backlog, Outlet, Patience, STALLED, Standing};
pub use raw::Raw;
pub use screen::{Action, Screen};

/// How the log is called where a VM's name would stand.
pub const LOG_NAME: &str = "undercroft";
