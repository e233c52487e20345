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

/// For how long somebody waits for what may never come: a device that is to take a byte, say.
///
/// By the counter, and by the number of looks besides, since the counter of a broken machine may stand still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    limit: u64,
    end: Option<Ticks>,
    looks: u32,
}

impl Patience {
    /// Lasts `limit` ticks from the first look on, and at most `looks` looks.
    #[must_use]
    pub const fn new(limit: u64, looks: u32) -> Self {
        Self { limit, end: None, looks }
    }

    /// None: what did not come the last time is not waited for again.
    #[must_use]
    pub const fn exhausted() -> Self {
        Self::new(0, 0)
    }

    /// After a look in vain: whether there is to be another one.
    pub fn lasts(&mut self, now: Ticks) -> bool {
        let end = *self.end.get_or_insert(now.after(self.limit));
        let Some(looks) = self.looks.checked_sub(1) else { return false };
        self.looks = looks;
        (now.since(end) as i64) < 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Hz, Patience, Scale, Ticks};

    #[test]
    fn patience_lasts_for_its_time_from_the_first_look_on() {
        // The counter may wrap meanwhile.
        for start in [0, 1000, u64::MAX - 50] {
            let mut patience = Patience::new(100, u32::MAX);
            let lasts = |after: u64, patience: &mut Patience| patience.lasts(Ticks(start).after(after));
            assert!(lasts(0, &mut patience) && lasts(99, &mut patience), "from {start}");
            assert!(!lasts(100, &mut patience) && !lasts(5000, &mut patience), "from {start}");
        }
    }

    #[test]
    fn patience_ends_though_the_counter_stands_still() {
        let mut patience = Patience::new(100, 10);
        assert_eq!((0..1000).filter(|_| patience.lasts(Ticks(7))).count(), 10);
        assert!(!Patience::exhausted().lasts(Ticks(7)));
    }

    #[test]
    fn microseconds_are_rounded_up_to_ticks() {
        assert_eq!(
            [0, 1, 16, 1_000_000].map(|time| Hz(62_500_000).ticks_in_microseconds(time)),
            [0, 63, 1000, 62_500_000]
        );
        assert_eq!(Hz(u64::MAX).ticks_in_microseconds(u64::MAX), u64::MAX);
    }

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
