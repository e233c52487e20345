//! A guest's time as it is saved: what the guest can notice of it, and nothing that belongs to the host.
//!
//! Each part has a version of its own, which changes when a field does. To save and to restore take a value apart by all of
//! its fields, so that one that is added and forgotten does not compile.

use core::fmt;

use pack::{Damaged, Reader, Value, Writer};
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
    /// What the guest's virtual counter showed: `count`, but for a guest of another time on a host that cannot trap that counter, which
    /// showed its own speed.
    pub virtual_count: u64,
}

/// What a guest's clock makes of the time that it was away: saved, and not restored yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Away {
    /// It has gone on.
    Advance,
    /// It has stood still.
    Freeze,
}

/// One byte: 0 or 1.
impl Value for Away {
    fn pack(&self, out: &mut Writer) {
        (*self == Self::Freeze).pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(if bool::unpack(from)? { Self::Freeze } else { Self::Advance })
    }
}

impl Clock {
    /// The version that is written, and the only one that is read.
    pub const VERSION: u16 = 3;

    /// The same clock when it has been away for so many microseconds of real time. What it does in a pause is another matter: one that
    /// was saved while it stood still has gone on since, if that is its choice, and stands still again.
    #[must_use]
    pub fn after(self, microseconds: u64, away: Away) -> Self {
        let millionths = u128::from(microseconds) * u128::from(self.frequency) / 1_000_000;
        let ticks = u64::try_from(millionths * u128::from(self.rate) / 1_000_000).unwrap_or(u64::MAX);
        match away {
            // A file may say anything: a time of the year 200 000 too. The count stays, and is refused by a host that cannot hold it.
            // The virtual counter goes on by as much: at the frequency that the guest takes it to have.
            Away::Advance => Self {
                count: self.count.saturating_add(ticks),
                virtual_count: self.virtual_count.saturating_add(ticks),
                ..self
            },
            Away::Freeze => Self { stood: self.stood.saturating_add(ticks), ..self },
        }
    }
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

pack::value!(Clock { version, count, frequency, rate, is_stopped, stood, virtual_count });
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

#[cfg(test)]
mod tests {
    use super::{Away, Clock, Reader, Value, Writer};
    use crate::{GuestClock, Standstill};
    use proptest::prelude::*;
    use units::{Hz, Ticks};

    fn clock(frequency: u64, rate: u32, is_stopped: bool) -> Clock {
        Clock { version: Clock::VERSION, count: 1000, frequency, rate, is_stopped, stood: 7, virtual_count: 3000 }
    }

    #[test]
    fn what_is_to_happen_to_a_clock_goes_through_a_byte() {
        for (away, byte) in [(Away::Advance, 0), (Away::Freeze, 1)] {
            let mut out = Writer::new();
            away.pack(&mut out);
            assert_eq!(out.finish().as_deref(), Ok(&[byte][..]));
            assert_eq!(Away::unpack(&mut Reader::new(&[byte])), Ok(away));
        }
    }

    #[test]
    fn time_away_passes_or_is_stood_still() {
        let second = 1_000_000;
        let real = clock(62_500_000, 1_000_000, false);
        assert_eq!(
            real.after(2 * second, Away::Advance),
            Clock { count: 125_001_000, virtual_count: 125_003_000, ..real }
        );
        assert_eq!(real.after(2 * second, Away::Freeze), Clock { stood: 125_000_007, ..real });
        let slow = clock(1_000_000, 500_000, false);
        assert_eq!(slow.after(4 * second, Away::Advance), Clock { count: 2_001_000, virtual_count: 2_003_000, ..slow });
        let stopped = clock(1_000_000, 1_000_000, true);
        let passed = Clock { count: 1_001_000, virtual_count: 1_003_000, ..stopped };
        assert_eq!(stopped.after(second, Away::Advance), passed);
        assert_eq!(stopped.after(second, Away::Freeze), Clock { stood: 1_000_007, ..stopped });
    }

    proptest! {
        /// However long it was away, its count is not less; frozen, it is the same, and behind by what it was away.
        #[test]
        fn no_count_goes_back(away in any::<u64>(), frequency in 1_000_000..=1_000_000_000_u64, rate in 1_000..=10_000_000_u32) {
            let clock = clock(frequency, rate, false);
            let advanced = clock.after(away, Away::Advance);
            prop_assert!(advanced.count >= clock.count && advanced.virtual_count >= clock.virtual_count);
            let frozen = clock.after(away % (1 << 40), Away::Freeze);
            prop_assert_eq!((frozen.count, frozen.virtual_count), (clock.count, clock.virtual_count));
            let host = Hz(62_500_000);
            if let (Ok(one), Ok(other)) =
                (GuestClock::restore(&clock, host, Ticks(0)), GuestClock::restore(&frozen, host, Ticks(0)))
            {
                let behind = other.behind(Ticks(0), Standstill::Counts) - one.behind(Ticks(0), Standstill::Counts);
                let expected = (away % (1 << 40)) as i64;
                prop_assert!((behind - expected).abs() <= 2 + i64::from(1_000_000_000 / rate), "{behind} for {expected}");
            }
        }
    }
}
