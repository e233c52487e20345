//! A guest's time as it is saved: what the guest can notice of it, and nothing that belongs to the host.
//!
//! Each part has a version of its own, which changes when a field does. To save and to restore take a value apart by all of
//! its fields, so that one that is added and forgotten does not compile.

use core::fmt;

use units::Hz;

use crate::Rate;

/// A [`GuestClock`](crate::GuestClock). Its counter is saved, not its offset: the host that goes on with it has another counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// [`Clock::VERSION`].
    pub version: u16,
    /// What the counter showed.
    pub count: u64,
    /// Its frequency in hertz.
    pub frequency: u64,
    /// How fast its time passes, in millionths of real time.
    pub rate: u32,
    /// It stood still.
    pub is_stopped: bool,
    /// For how long it had stood still since its start, in its own ticks.
    pub stood: u64,
}

impl Clock {
    /// The version that is written, and the only one that is read.
    pub const VERSION: u16 = 2;
}

/// An [`EmulatedTimer`](crate::EmulatedTimer): the physical one of a vCPU, or its virtual one while it is not loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timer {
    /// [`Timer::VERSION`].
    pub version: u16,
    /// CTL without ISTATUS, which follows from the clock.
    pub control: u64,
    /// CVAL.
    pub compare: u64,
}

impl Timer {
    /// The version that is written, and the only one that is read.
    pub const VERSION: u16 = 1;
}

pack::value!(Clock { version, count, frequency, rate, is_stopped, stood });
pack::value!(Timer { version, control, compare });

/// Why something saved cannot be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It has a version that is not known here.
    Version(u16),
    /// This host cannot show a counter of that frequency at that rate.
    Frequency(Hz, Rate),
    /// This host's counter cannot hold that count.
    Count(u64),
    /// CTL has bits that no timer has.
    Control(u64),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    f,
                    "version {version} of a saved clock or timer is not known; {} of a clock is, {} of a timer",
                    Clock::VERSION,
                    Timer::VERSION
                )
            }
            Self::Frequency(Hz(hertz), Rate(rate)) => write!(
                f,
                "no counter of {hertz} Hz at {rate} millionths of real time can be shown here; the product of the two must \
                 be within 2^-32 and 2^64 times the host's"
            ),
            Self::Count(count) => write!(f, "the count {count} is past the end of this host's counter"),
            Self::Control(control) => {
                write!(f, "a timer's CTL is {control:#x}; only ENABLE and IMASK, 0x3, can be set")
            }
        }
    }
}
