//! For how long the thread that runs on a CPU has run since it was last charged for it.
//!
//! It is charged when threads are switched. A thread that is alone on its CPU is not switched for minutes, so a reader of its run
//! time has it charged first, also from another CPU, whose counter may be behind what was read here a moment ago.

/// Until when whoever runs on a CPU has been charged for its time, in ticks of the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meter(u64);

impl Meter {
    /// Nobody is charged for what was before `now`.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        Self(now)
    }

    /// The ticks until `now` that nobody was charged for; they are charged now. On its own CPU, whose counter does not go back.
    #[inline(always)]
    pub const fn take(&mut self, now: u64) -> u64 {
        let ran = now.saturating_sub(self.0);
        self.0 = now;
        ran
    }

    /// As [`Meter::take`], from wherever. If it went back here, the time in between would be charged twice.
    pub const fn take_until(&mut self, now: u64) -> u64 {
        self.take(if now < self.0 { self.0 } else { now })
    }
}

#[cfg(test)]
mod tests {
    use super::Meter;

    #[test]
    fn who_is_never_switched_is_charged_at_each_look() {
        let mut meter = Meter::new(1000);
        let mut charged = 0;
        for now in [1010, 1500, 1500, 62_500_000] {
            charged += meter.take_until(now);
            assert_eq!(charged, now - 1000, "until now");
        }
    }

    #[test]
    fn no_tick_is_charged_twice() {
        let mut meter = Meter::new(1000);
        assert_eq!(meter.take(1100), 100);
        assert_eq!(meter.take_until(1090), 0, "another CPU's counter was read a moment before");
        assert_eq!(meter.take(1105), 5);
        assert_eq!(meter.take_until(1205) + meter.take(1205), 100);
    }
}
