//! The hypervisor's log: lines with their level and time, into the console's buffer.

use core::fmt::{self, Write};

use hw::sysreg;
use log::{LevelFilter, Log, Metadata, Record};

use crate::console;

struct Sink;

/// Passes formatted text on piece by piece, so that nothing is allocated.
struct Pieces;

impl Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::push_log(text);
        Ok(())
    }
}

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let frequency = sysreg::cntfrq_el0().max(1);
        let milliseconds = u128::from(sysreg::cntpct_el0()) * 1000 / u128::from(frequency);
        let (seconds, rest) = ((milliseconds / 1000) as u64, (milliseconds % 1000) as u64);
        let _ = writeln!(Pieces, "{seconds}.{rest:03} {}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// Starts the log.
pub(crate) fn init() {
    if log::set_logger(&Sink).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
