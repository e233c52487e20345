//! Counter values and frequencies.

/// A counter's frequency in hertz.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Hz(pub u64);

impl Hz {
    /// `microseconds` in ticks of this frequency, rounded up, at most `u64::MAX`.
    #[must_use]
    pub fn ticks_in_microseconds(self, microseconds: u64) -> u64 {
        let ticks = (u128::from(microseconds) * u128::from(self.0)).div_ceil(1_000_000);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// `ticks` of this frequency in nanoseconds, rounded down, at most `u64::MAX`; 0 if the frequency is 0.
    #[must_use]
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let nanoseconds = (u128::from(ticks) * 1_000_000_000).checked_div(u128::from(self.0)).unwrap_or(0);
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }
}

/// A counter's value. Arithmetic on counters wraps, as the hardware's does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticks(pub u64);

impl Ticks {
    /// `ticks` later.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// How long after `earlier` this is; wraps if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.wrapping_sub(earlier.0)
    }
}
