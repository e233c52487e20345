//! One generic timer as a guest sees it.

use units::Ticks;

use crate::saved::{self, Refused};
use crate::{GuestClock, GuestTicks};

const ENABLE: u64 = 1 << 0;
const IMASK: u64 = 1 << 1;
const ISTATUS: u64 = 1 << 2;

/// The registers CTL and CVAL of a timer; TVAL is a view of them. It keeps no time itself: every question names the
/// clock and the host's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EmulatedTimer {
    control: u64,
    compare: GuestTicks,
}

impl EmulatedTimer {
    /// A timer with these values of CTL (of which ISTATUS does not count) and CVAL.
    #[must_use]
    pub const fn from_registers(control: u64, compare: u64) -> Self {
        Self { control: control & (ENABLE | IMASK), compare: GuestTicks(compare) }
    }

    /// The timer that was saved.
    ///
    /// # Errors
    /// Why there is no such timer.
    pub const fn restore(saved: &saved::Timer) -> Result<Self, Refused> {
        let saved::Timer { version, control, compare } = *saved;
        if version != saved::Timer::VERSION {
            return Err(Refused::Version(version));
        }
        if control & !(ENABLE | IMASK) != 0 {
            return Err(Refused::Control(control));
        }
        Ok(Self { control, compare: GuestTicks(compare) })
    }

    /// All of it.
    #[must_use]
    pub const fn save(&self) -> saved::Timer {
        let Self { control, compare } = *self;
        saved::Timer { version: saved::Timer::VERSION, control, compare: compare.0 }
    }

    /// Reads CTL: ENABLE, IMASK and ISTATUS. ISTATUS does not care for IMASK, and is 0 while the timer is disabled.
    #[must_use]
    pub const fn read_control(&self, clock: &GuestClock, now: Ticks) -> u64 {
        self.control_at(clock.guest(now))
    }

    /// CTL when the guest's counter shows `count`.
    #[must_use]
    pub const fn control_at(&self, count: GuestTicks) -> u64 {
        if self.is_met(count) { self.control | ISTATUS } else { self.control }
    }

    /// Writes CTL.
    pub const fn write_control(&mut self, value: u64) {
        self.control = value & (ENABLE | IMASK);
    }

    /// Reads CVAL.
    #[must_use]
    pub const fn read_compare(&self) -> u64 {
        self.compare.0
    }

    /// Writes CVAL.
    pub const fn write_compare(&mut self, value: u64) {
        self.compare = GuestTicks(value);
    }

    /// Reads TVAL: the ticks left, the low 32 bits of a difference that is negative once the time is over.
    #[must_use]
    pub const fn read_value(&self, clock: &GuestClock, now: Ticks) -> u64 {
        self.value_at(clock.guest(now))
    }

    /// TVAL when the guest's counter shows `count`.
    #[must_use]
    pub const fn value_at(&self, count: GuestTicks) -> u64 {
        self.compare.0.wrapping_sub(count.0) & 0xffff_ffff
    }

    /// Writes TVAL: the low 32 bits are signed, and count from now.
    pub const fn write_value(&mut self, value: u64, clock: &GuestClock, now: Ticks) {
        self.write_value_at(value, clock.guest(now));
    }

    /// Writes TVAL when the guest's counter shows `count`.
    pub const fn write_value_at(&mut self, value: u64, count: GuestTicks) {
        let ticks = value as u32 as i32;
        self.compare = GuestTicks(count.0.wrapping_add_signed(ticks as i64));
    }

    /// Whether the interrupt line is up: a level, which stays until CTL or CVAL change it.
    #[must_use]
    pub const fn is_asserted(&self, clock: &GuestClock, now: Ticks) -> bool {
        self.is_asserted_at(clock.guest(now))
    }

    /// Whether the interrupt line is up when the guest's counter shows `count`.
    #[must_use]
    pub const fn is_asserted_at(&self, count: GuestTicks) -> bool {
        self.control & IMASK == 0 && self.is_met(count)
    }

    /// The count at which the line goes up, if the timer is not masked or disabled.
    #[must_use]
    pub const fn fires_at(&self) -> Option<GuestTicks> {
        if self.control & (ENABLE | IMASK) == ENABLE { Some(self.compare) } else { None }
    }

    /// The host time at which the line goes up; `now` if it is up. `None` if it never does as things stand: disabled,
    /// masked, or further off than the host can count.
    #[must_use]
    pub fn deadline(&self, clock: &GuestClock, now: Ticks) -> Option<Ticks> {
        clock.host(self.fires_at()?, now)
    }

    const fn is_met(&self, count: GuestTicks) -> bool {
        self.control & ENABLE != 0 && count.0 >= self.compare.0
    }
}

#[cfg(test)]
mod tests {
    use super::{ENABLE, EmulatedTimer, IMASK, ISTATUS};
    use crate::saved::{self, Refused};
    use crate::{GuestClock, Rate};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use units::{Hz, Ticks};

    const HZ: Hz = Hz(62_500_000);

    fn clock() -> GuestClock {
        GuestClock::start(Ticks(1_000), HZ, HZ, Rate::REAL).unwrap()
    }

    #[test]
    fn a_timer_waits_as_long_as_its_clock_stands_still() {
        let (mut clock, timer) = (clock(), EmulatedTimer::from_registers(ENABLE, 500));
        clock.stop(Ticks(1_100));
        assert_eq!((timer.deadline(&clock, Ticks(9_000)), timer.is_asserted(&clock, Ticks(9_000))), (None, false));
        assert_eq!(timer.read_value(&clock, Ticks(9_000)), 400);
        clock.resume(Ticks(10_000));
        assert_eq!(timer.deadline(&clock, Ticks(10_000)), Some(Ticks(10_400)));
        // One that has fired stays so.
        clock.stop(Ticks(10_400));
        assert!(timer.is_asserted(&clock, Ticks(20_000)));
    }

    #[test]
    fn what_no_timer_is_cannot_be_restored() {
        let saved = EmulatedTimer::from_registers(u64::MAX, 7).save();
        assert_eq!((saved.version, saved.control, saved.compare), (1, ENABLE | IMASK, 7));
        assert_eq!(EmulatedTimer::restore(&saved::Timer { version: 0, ..saved }), Err(Refused::Version(0)));
        assert_eq!(EmulatedTimer::restore(&saved::Timer { control: 7, ..saved }), Err(Refused::Control(7)));
    }

    #[test]
    fn the_condition_is_shown_masked_or_not() {
        let mut timer = EmulatedTimer::default();
        timer.write_compare(500);
        assert_eq!(timer.read_control(&clock(), Ticks(2_000)), 0);
        timer.write_control(u64::MAX);
        assert_eq!(timer.read_control(&clock(), Ticks(1_499)), ENABLE | IMASK);
        assert_eq!(timer.read_control(&clock(), Ticks(1_500)), ENABLE | IMASK | ISTATUS);
        assert!(!timer.is_asserted(&clock(), Ticks(1_500)));
        assert_eq!(timer.deadline(&clock(), Ticks(1_100)), None);
        timer.write_control(ENABLE);
        assert!(timer.is_asserted(&clock(), Ticks(1_500)));
        assert_eq!(timer.deadline(&clock(), Ticks(1_100)), Some(Ticks(1_500)));
        assert_eq!(timer.deadline(&clock(), Ticks(1_600)), Some(Ticks(1_600)));
    }

    #[test]
    fn extreme_compare_values() {
        let mut timer = EmulatedTimer::from_registers(ENABLE, u64::MAX);
        assert_eq!(timer.deadline(&clock(), Ticks(5_000)), None);
        timer.write_value(0xffff_ffff, &clock(), Ticks(5_000));
        assert_eq!(timer.read_compare(), 3_999);
        assert!(timer.is_asserted(&clock(), Ticks(5_000)));
        assert_eq!(timer.read_value(&clock(), Ticks(5_000)), 0xffff_ffff);
    }

    proptest! {
        #[test]
        fn what_is_saved_comes_back(control in any::<u64>(), compare in any::<u64>()) {
            let timer = EmulatedTimer::from_registers(control, compare);
            prop_assert_eq!(EmulatedTimer::restore(&timer.save()), Ok(timer));
            let saved = saved::Timer { version: saved::Timer::VERSION, control: control & 3, compare };
            prop_assert_eq!(EmulatedTimer::restore(&saved).map(|timer| timer.save()), Ok(saved));
        }

        #[test]
        fn value_reads_back_what_was_written(value in any::<u32>(), now in any::<u64>(), later in 0..1_000_u64) {
            let mut timer = EmulatedTimer::default();
            timer.write_value(u64::from(value), &clock(), Ticks(now));
            let left = timer.read_value(&clock(), Ticks(now).after(later));
            prop_assert_eq!(left, u64::from(value.wrapping_sub(later as u32)));
        }

        #[test]
        fn the_line_is_up_at_the_deadline_and_not_before(compare in 0..1_u64 << 50, now in 1_000..1_u64 << 50) {
            let clock = GuestClock::start(Ticks(999), HZ, Hz(24_000_000), Rate::REAL).unwrap();
            let timer = EmulatedTimer::from_registers(ENABLE, compare);
            let deadline = timer.deadline(&clock, Ticks(now)).unwrap();
            prop_assert!(timer.is_asserted(&clock, deadline));
            prop_assert!(deadline == Ticks(now) || !timer.is_asserted(&clock, Ticks(deadline.0 - 1)));
        }
    }
}
