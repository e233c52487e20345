//! The hypervisor's log: lines with their level and time, into the console's buffer.
//!
//! Lines that a guest can cause go another way, into the VM's own buffer and with a limited rate: see `Vm::report`.

use core::fmt::{self, Write};

use hw::sysreg;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::host;
use crate::output;

/// No line is longer, its end included.
pub(crate) const LONGEST: usize = 640;
/// What a line ends with that would be.
const CUT: &[u8] = b"...\n";

struct Sink;

/// A line, collected before it goes anywhere, so that nobody's come between its pieces. Nothing is allocated; of a line
/// that is too long, the end is cut off.
pub(crate) struct Line {
    text: [u8; LONGEST],
    length: usize,
}

impl Line {
    /// `text` with its level and the time.
    #[must_use]
    pub(crate) fn of(level: Level, text: fmt::Arguments<'_>) -> Self {
        let mut line = Self { text: [0; LONGEST], length: 0 };
        let frequency = host::frequency().0.max(1);
        let milliseconds = u128::from(sysreg::cntpct_el0()) * 1000 / u128::from(frequency);
        let (seconds, rest) = ((milliseconds / 1000) as u64, (milliseconds % 1000) as u64);
        if write!(line, "{seconds}.{rest:03} {level}: {text}").is_err() {
            line.put(CUT);
        } else {
            line.put(b"\n");
        }
        line
    }

    /// All of it, with its end.
    #[must_use]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or(&[])
    }

    fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.text.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

/// What does not fit is an error, but for its beginning.
impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - CUT.len() - self.length;
        self.put(text.as_bytes().get(..text.len().min(room)).unwrap_or(&[]));
        if text.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        output::push_log(Line::of(record.level(), *record.args()).as_bytes());
    }

    fn flush(&self) {}
}

/// Starts the log.
pub(crate) fn init() {
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
