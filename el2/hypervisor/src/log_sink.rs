//! The hypervisor's log: lines with their level and time, into the console's buffer.

use core::fmt::{self, Write};

use hw::sysreg;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::console;

struct Sink;

/// Collects a line, so that others' lines do not come between its pieces. Nothing is allocated; of a line that is longer than
/// the room here, the beginning goes ahead.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Line {
    fn flush(&mut self) {
        let text = self.text.get(..self.length).unwrap_or(&[]);
        console::push_log(core::str::from_utf8(text).unwrap_or("?"));
        self.length = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.text.len() - self.length {
            self.flush();
        }
        match self.text.get_mut(self.length..self.length + text.len()) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                self.length += text.len();
            }
            None => console::push_log(text),
        }
        Ok(())
    }
}

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = Line { text: [0; 256], length: 0 };
        write_line(&mut line, record.level(), *record.args());
        line.flush();
    }

    fn flush(&self) {}
}

/// Writes a line of the log, with its time.
pub(crate) fn write_line(out: &mut impl Write, level: Level, text: fmt::Arguments<'_>) {
    let frequency = sysreg::cntfrq_el0().max(1);
    let milliseconds = u128::from(sysreg::cntpct_el0()) * 1000 / u128::from(frequency);
    let (seconds, rest) = ((milliseconds / 1000) as u64, (milliseconds % 1000) as u64);
    let _ = writeln!(out, "{seconds}.{rest:03} {level}: {text}");
}

/// Starts the log.
pub(crate) fn init() {
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
