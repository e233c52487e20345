//! How often something may happen.

/// Something may happen once in an interval, on average; after a rest several times at once. Times are counts of any clock
/// that only runs forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    interval: u64,
    burst: u64,
    /// When all that has happened so far would be over, one an interval.
    over: u64,
}

impl Pace {
    /// Once in `interval`, `burst` times at once.
    #[must_use]
    pub const fn new(interval: u64, burst: u64) -> Self {
        Self { interval, burst, over: 0 }
    }

    /// From when on it may happen again.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.over.saturating_sub(self.interval.saturating_mul(self.burst.saturating_sub(1)))
    }

    /// It is to happen at `now`; says whether it may.
    #[must_use]
    pub const fn take(&mut self, now: u64) -> bool {
        let may = now >= self.next();
        if may {
            let from = if self.over > now { self.over } else { now };
            self.over = from.saturating_add(self.interval);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use proptest::prelude::*;

    #[test]
    fn a_burst_and_then_one_an_interval() {
        let mut pace = Pace::new(100, 3);
        assert_eq!([0; 5].map(|now| pace.take(now)), [true, true, true, false, false]);
        assert_eq!(pace.next(), 100);
        assert!(!pace.take(99) && pace.take(100) && !pace.take(101) && pace.take(200));
        assert_eq!([10_000; 4].map(|now| pace.take(now)), [true, true, true, false]);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            interval in 1u64..1000, burst in 1u64..20, steps in prop::collection::vec(0u64..300, 1..200),
        ) {
            let (mut pace, mut now, mut times) = (Pace::new(interval, burst), 0, 0);
            for step in steps {
                now += step;
                let next = pace.next();
                let may = pace.take(now);
                prop_assert_eq!(may, next <= now);
                times += u64::from(may);
                prop_assert!(times <= burst + now / interval);
            }
        }
    }
}
