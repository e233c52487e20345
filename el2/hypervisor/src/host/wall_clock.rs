//! The host's time of day: what guests' real-time clocks show, and what VMware's time commands answer.
//!
//! The host's real-time clock is read once, at start, and is then a constant added to the system counter: it knows
//! whole seconds only, and a read of it is slow. When the operator sets the time ([`set`]) the clock is written, so
//! that the next start finds it, and the constant changes: from the next instruction on every reader sees the new time.
//! Deadlines and uptimes do not depend on any of this; they are counts of the system counter.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use hw::clock::Clock;
use hw::sysreg;
use spin::Once;
use units::{Pa, Range, Ticks};

use crate::host;

/// Microseconds since 1970 at the counter's zero, modulo 2^64: the time may be set to one before that.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// The host's real-time clock.
static DEVICE: Once<Clock> = Once::new();

/// Of a second.
pub(crate) const MICROSECONDS: u64 = 1_000_000;

/// Why the time cannot be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// There is no clock to be set.
    NoClock,
    /// The clock does not take it.
    ReadOnly,
    /// It is past what the clock can show.
    TooLate,
}

impl Refused {
    /// A sentence for the operator.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::NoClock => "the host has no real-time clock that could be set: its device tree names no PL031",
            Self::ReadOnly => "the host's real-time clock does not let itself be set",
            Self::TooLate => "the host's real-time clock counts seconds in 32 bits, to 2106-02-07T06:28:15Z",
        }
    }
}

/// Reads the host's real-time clock at `registers`, if it has one.
#[inline(never)]
pub(crate) fn init(registers: Option<Range<Pa>>) {
    let Some(registers) = registers else { return };
    match hw::clock::open(registers) {
        Ok(clock) => adopt(DEVICE.call_once(|| clock).seconds().saturating_mul(MICROSECONDS)),
        Err(error) => log::warn!("the host's real-time clock is not used: {}", error.sentence()),
    }
}

fn adopt(microseconds: u64) {
    EPOCH.store(microseconds.wrapping_sub(since_start()), Ordering::Relaxed);
}

fn since_start() -> u64 {
    host::get().counter.nanoseconds(sysreg::cntpct_el0()) / 1000
}

/// The time since 1970 when the host's counter shows `now`, to the nanosecond: what [`microseconds`] says then, and what that leaves out.
#[must_use]
pub(crate) fn at(now: Ticks) -> Duration {
    let nanoseconds = host::get().counter.nanoseconds(now.0);
    let microseconds = EPOCH.load(Ordering::Relaxed).wrapping_add(nanoseconds / 1000);
    Duration::from_micros(microseconds).saturating_add(Duration::from_nanos(nanoseconds % 1000))
}

/// Microseconds since 1970, as far as the host knows it.
#[must_use]
pub(crate) fn microseconds() -> u64 {
    EPOCH.load(Ordering::Relaxed).wrapping_add(since_start())
}

/// Whether there is a clock that can be set.
#[must_use]
pub(crate) fn is_settable() -> bool {
    DEVICE.get().is_some()
}

/// It is `microseconds` since 1970. By the console's thread, which looks at guests' alarms next.
///
/// # Errors
/// Why it stays as it was.
pub(crate) fn set(to: u64) -> Result<(), Refused> {
    let clock = DEVICE.get().ok_or(Refused::NoClock)?;
    let whole = u32::try_from(to / MICROSECONDS).map_err(|_| Refused::TooLate)?;
    let before = microseconds();
    // The device first: where it refuses, guests must not see a time that is gone when the host starts again.
    if !clock.set(whole) {
        return Err(Refused::ReadOnly);
    }
    adopt(to);
    let (sign, step) = if to < before { ('-', before - to) } else { ('+', to - before) };
    let (seconds, fraction) = (step / MICROSECONDS, step % MICROSECONDS);
    log::info!("the operator has set the time of day: {sign}{seconds}.{fraction:06} s");
    Ok(())
}
