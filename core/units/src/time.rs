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

/// Ticks to nanoseconds by one multiplication, where that must be quick: at most one part in 2^32 and one too few.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scale(u64);

impl Scale {
    /// For a counter of this frequency, which is at least 1 Hz.
    #[must_use]
    pub const fn new(frequency: Hz) -> Self {
        let hertz = if frequency.0 == 0 { 1 } else { frequency.0 };
        Self((1_000_000_000 << 32) / hertz)
    }

    /// `ticks` in nanoseconds; wraps after 584 years.
    #[must_use]
    pub const fn nanoseconds(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.0 as u128) >> 32) as u64
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

#[cfg(test)]
mod tests {
    use super::{Hz, Scale};

    #[test]
    fn the_scale_agrees_with_the_division() {
        for hertz in [1_000_000, 19_200_000, 24_000_000, 54_000_000, 62_500_000, 1_000_000_000, 1_999_999_973] {
            for ticks in [0, 1, 63, 1_000_003, hertz, hertz * 86_400, 1 << 52] {
                let exact = Hz(hertz).nanoseconds(ticks);
                let quick = Scale::new(Hz(hertz)).nanoseconds(ticks);
                // The factor is rounded down to 2^-32 ns a tick.
                assert!(quick <= exact && exact - quick <= (ticks >> 32) + 1, "{hertz} Hz, {ticks}: {exact} {quick}");
            }
        }
    }
}
