//! From the host's counter to the guest's and back.

use units::{Hz, Ticks};

/// A value of a guest's counter. [`Ticks`] are the host's; the two must not be mixed up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GuestTicks(pub u64);

/// How fast a guest's counter runs relative to the host's: by `m / 2^s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    multiplier: u64,
    shift: u32,
}

/// Shifts up to this keep `2^64 * 2^s` within 128 bits.
const MAX_SHIFT: u32 = 63;
/// Fewer significant bits in the multiplier would let the clock drift by more than half a nanosecond a second.
const MIN_MULTIPLIER: u64 = 1 << 31;

impl Scale {
    /// The guest's counter runs as fast as the host's.
    pub const IDENTITY: Self = Self { multiplier: 1, shift: 0 };

    /// The scale by which a counter of `host` appears as one of `guest`; `None` if either is zero or the two are so
    /// far apart (a factor of more than 2^32) that the scale would be inexact.
    #[must_use]
    pub fn between(host: Hz, guest: Hz) -> Option<Self> {
        if host.0 == 0 || guest.0 == 0 {
            return None;
        }
        if host == guest {
            return Some(Self::IDENTITY);
        }
        (0..=MAX_SHIFT)
            .rev()
            .find_map(|shift| {
                let exact = u128::from(guest.0) << shift;
                let rounded = (exact + u128::from(host.0 / 2)) / u128::from(host.0);
                let multiplier = u64::try_from(rounded).ok()?;
                Some(Self { multiplier, shift })
            })
            .filter(|scale| scale.multiplier >= MIN_MULTIPLIER)
    }

    /// A scale as it was saved; `None` if it is none that [`Scale::between`] could have made.
    #[must_use]
    pub const fn from_parts(multiplier: u64, shift: u32) -> Option<Self> {
        let identity = multiplier == 1 && shift == 0;
        if identity || (multiplier >= MIN_MULTIPLIER && shift <= MAX_SHIFT) {
            return Some(Self { multiplier, shift });
        }
        None
    }

    /// The factors m and s.
    #[must_use]
    pub const fn parts(self) -> (u64, u32) {
        (self.multiplier, self.shift)
    }

    /// Whether the two counters run equally fast.
    #[must_use]
    pub const fn is_identity(self) -> bool {
        self.multiplier == 1 && self.shift == 0
    }

    /// `elapsed` host ticks in guest ticks, rounded down; wraps as a counter does.
    const fn apply(self, elapsed: u64) -> GuestTicks {
        if self.is_identity() {
            return GuestTicks(elapsed);
        }
        GuestTicks(((elapsed as u128 * self.multiplier as u128) >> self.shift) as u64)
    }

    /// The least number of host ticks that are at least `guest` guest ticks.
    const fn invert(self, guest: GuestTicks) -> Option<u64> {
        if self.is_identity() {
            return Some(guest.0);
        }
        let elapsed = ((guest.0 as u128) << self.shift).div_ceil(self.multiplier as u128);
        if elapsed > u64::MAX as u128 { None } else { Some(elapsed as u64) }
    }
}

/// The clock that all vCPUs of a VM share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestClock {
    offset: Ticks,
    scale: Scale,
}

impl GuestClock {
    /// A clock that stood at zero when the host's counter was at `offset`.
    #[must_use]
    pub const fn new(offset: Ticks, scale: Scale) -> Self {
        Self { offset, scale }
    }

    /// A clock that stands at `value` when the host's counter is at `now`: for a start (value 0), and to carry on where
    /// a saved VM stopped. If no host tick falls on `value` exactly it is ahead by less than one host tick, never
    /// behind. `None` if the host would take more than 2^64 ticks to count so far.
    #[must_use]
    pub fn standing_at(value: GuestTicks, now: Ticks, scale: Scale) -> Option<Self> {
        let elapsed = scale.invert(value)?;
        Some(Self { offset: Ticks(now.0.wrapping_sub(elapsed)), scale })
    }

    /// The offset in host ticks: CNTVOFF_EL2.
    #[must_use]
    pub const fn offset(&self) -> Ticks {
        self.offset
    }

    /// The scale.
    #[must_use]
    pub const fn scale(&self) -> Scale {
        self.scale
    }

    /// What the guest's counter says when the host's says `now`.
    #[must_use]
    pub const fn guest(&self, now: Ticks) -> GuestTicks {
        self.scale.apply(now.since(self.offset))
    }

    /// How many host ticks after [`GuestClock::offset`] the guest's counter reaches `value`, at the earliest; `None` if
    /// the host's counter comes round before that.
    #[must_use]
    pub const fn elapsed_at(&self, value: GuestTicks) -> Option<u64> {
        self.scale.invert(value)
    }

    /// When the guest's counter reaches `value`: the least host time, but `now` if it has already. `None` if that is
    /// never, which is to say beyond the end of the host's counter.
    #[must_use]
    pub fn host(&self, value: GuestTicks, now: Ticks) -> Option<Ticks> {
        if self.guest(now) >= value {
            return Some(now);
        }
        // Counted from the offset, which may itself lie "before" zero, so only the distance can be compared.
        let wait = self.elapsed_at(value)?.checked_sub(now.since(self.offset))?;
        now.0.checked_add(wait).map(Ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestClock, GuestTicks, Scale};
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest};
    use units::{Hz, Ticks};

    fn frequencies() -> impl Strategy<Value = (Hz, Hz)> {
        let one =
            || prop_oneof![Just(24_000_000_u64), Just(62_500_000), Just(1_000_000_000), 1_000_000..1_000_000_000_u64];
        (one(), one()).prop_map(|(host, guest)| (Hz(host), Hz(guest)))
    }

    proptest! {
        #[test]
        fn the_way_back_is_the_least_host_time((host, guest) in frequencies(), g in any::<u64>(), offset in any::<u64>()) {
            let clock = GuestClock::new(Ticks(offset), Scale::between(host, guest).unwrap());
            let Some(elapsed) = clock.elapsed_at(GuestTicks(g)) else { return Ok(()) };
            prop_assert!(clock.guest(Ticks(offset).after(elapsed)) >= GuestTicks(g));
            if elapsed > 0 {
                prop_assert!(clock.guest(Ticks(offset).after(elapsed - 1)) < GuestTicks(g));
            }
        }

        #[test]
        fn the_counter_never_goes_back((host, guest) in frequencies(), elapsed in 0..1_u64 << 53, step in any::<u32>()) {
            let clock = GuestClock::new(Ticks(77), Scale::between(host, guest).unwrap());
            let before = clock.guest(Ticks(77).after(elapsed));
            prop_assert!(clock.guest(Ticks(77).after(elapsed + u64::from(step))) >= before);
        }

        #[test]
        fn identity_is_the_difference(offset in any::<u64>(), now in any::<u64>()) {
            let clock = GuestClock::new(Ticks(offset), Scale::IDENTITY);
            prop_assert_eq!(clock.guest(Ticks(now)).0, now.wrapping_sub(offset));
        }

        #[test]
        fn a_deadline_is_neither_early_nor_late(
            (host, guest) in frequencies(), now in 0..u64::MAX / 2, start in 0..1_u64 << 48, wait in 0..1_u64 << 40,
        ) {
            let scale = Scale::between(host, guest).unwrap();
            let Some(clock) = GuestClock::standing_at(GuestTicks(start), Ticks(now), scale) else { return Ok(()) };
            let target = GuestTicks(start + wait);
            prop_assume!(clock.guest(Ticks(now)) < target);
            let deadline = clock.host(target, Ticks(now)).unwrap();
            prop_assert!(deadline > Ticks(now));
            prop_assert!(clock.guest(deadline) >= target);
            prop_assert!(clock.guest(Ticks(deadline.0 - 1)) < target);
        }

        #[test]
        fn a_moved_clock_is_continuous((host, guest) in frequencies(), g in 0..1_u64 << 50, now in any::<u64>()) {
            let clock = GuestClock::standing_at(GuestTicks(g), Ticks(now), Scale::between(host, guest).unwrap());
            let stands = clock.unwrap().guest(Ticks(now)).0;
            prop_assert!(stands >= g && stands - g <= guest.0 / host.0 + 1);
        }
    }

    #[test]
    fn ten_seconds_are_ten_seconds() {
        let scale = Scale::between(Hz(100_000_000), Hz(24_000_000)).unwrap();
        let clock = GuestClock::new(Ticks(u64::MAX - 5), scale);
        let counted = clock.guest(Ticks(u64::MAX - 5).after(1_000_000_000)).0;
        assert!(counted.abs_diff(240_000_000) <= 1, "{counted}");
    }

    #[test]
    fn far_apart_frequencies_keep_their_precision() {
        for (host, guest) in [(1_000_000, 1_000_000_000), (1_000_000_000, 1_000_000), (1, 1_000), (1_000, 1)] {
            let (multiplier, shift) = Scale::between(Hz(host), Hz(guest)).unwrap().parts();
            assert!(multiplier >= 1 << 31 && shift <= 63);
            assert_eq!(Scale::from_parts(multiplier, shift).unwrap().parts(), (multiplier, shift));
        }
        assert_eq!(Scale::between(Hz(0), Hz(1)), None);
        assert_eq!(Scale::between(Hz(u64::MAX), Hz(1)), None);
        assert_eq!(Scale::from_parts(5, 0), None);
    }

    #[test]
    fn the_end_of_time_is_never() {
        let clock = GuestClock::new(Ticks(1_000), Scale::IDENTITY);
        assert_eq!(clock.host(GuestTicks(u64::MAX), Ticks(5_000)), None);
        assert_eq!(clock.host(GuestTicks(10_000), Ticks(5_000)), Some(Ticks(11_000)));
        assert_eq!(clock.host(GuestTicks(4_000), Ticks(5_000)), Some(Ticks(5_000)));
        // A guest that is ahead of its host.
        let ahead = GuestClock::standing_at(GuestTicks(1_000), Ticks(100), Scale::IDENTITY).unwrap();
        assert_eq!(ahead.host(GuestTicks(1_500), Ticks(100)), Some(Ticks(600)));
        let slow = Scale::between(Hz(1_000_000_000), Hz(1_000_000)).unwrap();
        assert_eq!(GuestClock::new(Ticks(0), slow).host(GuestTicks(u64::MAX), Ticks(0)), None);
    }
}
