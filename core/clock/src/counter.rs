//! From the host's counter to the guest's and back.

use units::{Hz, Ticks};

use crate::Period;
use crate::saved::{self, Refused};

/// A value of a guest's counter. [`Ticks`] are the host's; the two must not be mixed up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GuestTicks(pub u64);

/// How fast a guest's time passes, in millionths of real time: one at half of it finds a real minute to be thirty seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(pub u32);

impl Rate {
    /// Real time.
    pub const REAL: Self = Self(1_000_000);
}

/// How fast a guest's counter runs relative to the host's: by `m / 2^s`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterScale {
    multiplier: u64,
    shift: u32,
}

/// Shifts up to this keep `2^64 * 2^s` within 128 bits.
const MAX_SHIFT: u32 = 63;
/// Fewer significant bits in the multiplier would let the clock drift by more than half a nanosecond a second.
const MIN_MULTIPLIER: u64 = 1 << 31;

impl CounterScale {
    /// The guest's counter runs as fast as the host's.
    pub const IDENTITY: Self = Self { multiplier: 1, shift: 0 };

    /// The scale by which a counter of `host` appears as one of `guest` whose time passes at `rate`. `None` if one of them is
    /// zero or the two are so far apart (a factor of more than 2^32 down, 2^64 up) that the scale would be inexact.
    #[must_use]
    pub fn between(host: Hz, guest: Hz, rate: Rate) -> Option<Self> {
        // In millionths of a tick a second: neither has more than 96 bits.
        let wanted = u128::from(guest.0) * u128::from(rate.0);
        let given = u128::from(host.0) * u128::from(Rate::REAL.0);
        if wanted == given && wanted != 0 {
            return Some(Self::IDENTITY);
        }
        let mut multiplier = u64::try_from(wanted.checked_div(given)?).ok()?;
        let mut rest = wanted.checked_rem(given)?;
        // One more bit of the quotient at a time, as long as there is room for it.
        let mut shift = 0;
        while shift < MAX_SHIFT && multiplier >> 63 == 0 {
            rest *= 2;
            multiplier *= 2;
            if rest >= given {
                rest -= given;
                multiplier += 1;
            }
            shift += 1;
        }
        (multiplier >= MIN_MULTIPLIER).then_some(Self { multiplier, shift })
    }

    /// The factors m and s.
    #[must_use]
    pub const fn parts(self) -> (u64, u32) {
        (self.multiplier, self.shift)
    }

    /// The scale with these factors; `None` for a shift of more than 63.
    #[must_use]
    #[inline(always)]
    pub const fn from_parts(multiplier: u64, shift: u32) -> Option<Self> {
        if shift > MAX_SHIFT { None } else { Some(Self { multiplier, shift }) }
    }

    /// Whether the two counters run equally fast.
    #[must_use]
    pub const fn is_identity(self) -> bool {
        self.multiplier == 1 && self.shift == 0
    }

    /// `elapsed` host ticks in guest ticks, rounded down; wraps as a counter does.
    #[inline(always)]
    const fn apply(self, elapsed: u64) -> GuestTicks {
        let product = elapsed as u128 * self.multiplier as u128;
        // The low 64 bits of `product >> shift`, without the compiler's care for shifts of 64 and more. The first of the two
        // shifts to the left keeps the second one below 64 where `shift` is 0.
        let (high, low) = ((product >> 64) as u64, product as u64);
        GuestTicks(low >> (self.shift & 63) | high << 1 << ((63 - self.shift) & 63))
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

/// What shows a clock's count while it does not stand still: all that a trapped read of the counter needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    /// The host's count at which the scaled count is 0.
    pub offset: Ticks,
    /// How fast it runs.
    pub scale: CounterScale,
    /// What the scaled count is ahead of the guest's: of a clock that was restored at a value between two host ticks.
    pub ahead: u64,
}

impl Counter {
    /// Its count when the host's is `now`. The offset goes before the scale: after it, a slow guest's counter would stand at a
    /// value that depends on how long its host has been on, and lose its high bits.
    #[must_use]
    #[inline(always)]
    pub const fn guest(self, now: Ticks) -> GuestTicks {
        GuestTicks(self.scale.apply(now.since(self.offset)).0.wrapping_sub(self.ahead))
    }
}

/// The clock that all vCPUs of a VM share: its counter, at which frequency that counts, and whether it stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestClock {
    /// The host's count at which the scaled count is 0.
    offset: Ticks,
    scale: CounterScale,
    /// What the scaled count is ahead of the guest's: of a clock that was restored at a value between two host ticks.
    ahead: u64,
    frequency: Hz,
    rate: Rate,
    /// The host's count at which a counter that nobody scales is 0: one that agreed with the scaled count when the clock was
    /// made, and has stood still as long; of a clock that was restored, it went on where the virtual counter was.
    unscaled: Ticks,
    /// The host's count at which it was stopped, while it stands still.
    stopped: Option<Ticks>,
    /// For how long it has stood still since its start, before this time, in its own ticks.
    stood: GuestTicks,
}

/// Whether a clock that stood still is behind by that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standstill {
    /// It is.
    Counts,
    /// That is another matter.
    IsLeftOut,
}

impl GuestClock {
    /// A clock that stands at zero and begins to count when the host's counter is at `now`. `None` if the frequencies do
    /// not go together ([`CounterScale::between`]).
    #[must_use]
    pub fn start(now: Ticks, host: Hz, guest: Hz, rate: Rate) -> Option<Self> {
        let scale = CounterScale::between(host, guest, rate)?;
        let stood = GuestTicks(0);
        Some(Self { offset: now, scale, ahead: 0, frequency: guest, rate, unscaled: now, stopped: None, stood })
    }

    /// A clock as fast as the host's, whose frequency is `frequency`, that begins to count at `now`.
    #[must_use]
    pub const fn like_the_hosts(now: Ticks, frequency: Hz) -> Self {
        let (scale, rate, stood) = (CounterScale::IDENTITY, Rate::REAL, GuestTicks(0));
        Self { offset: now, scale, ahead: 0, frequency, rate, unscaled: now, stopped: None, stood }
    }

    /// The clock that was saved, going on, on whatever host, when that one's counter is at `now`: it shows exactly what it
    /// showed when it was saved, and stands still if it did. Where the hardware can show it, its virtual counter is the same count,
    /// whatever that showed.
    ///
    /// # Errors
    /// Why that is impossible.
    pub fn restore(saved: &saved::Clock, host: Hz, now: Ticks) -> Result<Self, Refused> {
        let saved::Clock { version, count, frequency, rate, is_stopped, stood, virtual_count } = *saved;
        if version != saved::Clock::VERSION {
            return Err(Refused::Version(version));
        }
        let frequency = Hz(frequency);
        let rate = Rate(rate);
        let scale = CounterScale::between(host, frequency, rate).ok_or(Refused::Frequency(frequency, rate))?;
        let elapsed = scale.invert(GuestTicks(count)).ok_or(Refused::Count(count))?;
        // Perhaps no host tick falls on the count exactly. The next one is too far by a little, which is subtracted from then
        // on: so the count is neither behind, which the guest would notice, nor ahead.
        let ahead = scale.apply(elapsed).0.wrapping_sub(count);
        let mut clock = Self {
            offset: Ticks(now.0.wrapping_sub(elapsed)),
            scale,
            ahead,
            frequency,
            rate,
            unscaled: Ticks(now.0.wrapping_sub(virtual_count)),
            stopped: is_stopped.then_some(now),
            stood: GuestTicks(stood),
        };
        if let Some(offset) = clock.hardware_offset() {
            clock.unscaled = offset;
        }
        Ok(clock)
    }

    /// All of it that the guest can notice, as of `now`, on a host on which the virtual counter of a guest of another time `traps`, or
    /// does not.
    #[must_use]
    pub const fn save(&self, now: Ticks, traps: bool) -> saved::Clock {
        let Self { offset: _, scale: _, ahead: _, unscaled: _, frequency, rate, stopped, stood: _ } = *self;
        saved::Clock {
            version: saved::Clock::VERSION,
            count: self.guest(now).0,
            frequency: frequency.0,
            rate: rate.0,
            is_stopped: stopped.is_some(),
            stood: self.stood(now).0,
            virtual_count: if traps { self.guest(now).0 } else { self.unscaled().guest(now).0 },
        }
    }

    /// How many of its ticks are one of the guest's seconds.
    #[must_use]
    pub const fn frequency(&self) -> Hz {
        self.frequency
    }

    /// How fast the guest's time passes, while it does.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// CNTVOFF_EL2 for this clock: exact where [`GuestClock::hardware_offset`] is one. Otherwise what the hardware shows by it
    /// began with the clock and stands still when that does, but runs as fast as the host's counter.
    #[must_use]
    pub const fn virtual_offset(&self) -> Ticks {
        self.unscaled
    }

    /// The clock that the hardware shows by [`GuestClock::virtual_offset`], and by which its virtual timer fires.
    #[must_use]
    pub const fn unscaled(&self) -> Self {
        Self { offset: self.unscaled, scale: CounterScale::IDENTITY, ahead: 0, ..*self }
    }

    /// CNTVOFF_EL2, by which the hardware shows this clock while it counts. `None` if the hardware cannot: it knows no scale,
    /// and all of the guest's counter and timer registers have to trap. Nor does it where frequency and rate make up for each
    /// other: the guest has another frequency than the host all the same.
    #[must_use]
    pub const fn hardware_offset(&self) -> Option<Ticks> {
        if self.scale.is_identity() && self.rate.0 == Rate::REAL.0 { Some(self.offset) } else { None }
    }

    /// What the guest's virtual counter shows at `now`, and how long one of its ticks takes in the guest's time: this clock, or, where
    /// neither the hardware can show that nor the counter `traps`, a counter as fast as the `host`'s.
    #[must_use]
    pub fn virtual_counter(&self, now: Ticks, host: Hz, traps: bool) -> (GuestTicks, Option<Period>) {
        if self.hardware_offset().is_some() || traps {
            (self.guest(now), Period::of(self.frequency, Rate::REAL))
        } else {
            (self.unscaled().guest(now), Period::of(host, self.rate))
        }
    }

    /// What counts for it while it does not stand still.
    #[must_use]
    #[inline(always)]
    pub const fn counter(&self) -> Counter {
        let Self { offset, scale, ahead, .. } = *self;
        Counter { offset, scale, ahead }
    }

    /// What the guest's counter says when the host's says `now`.
    #[must_use]
    #[inline(always)]
    pub const fn guest(&self, now: Ticks) -> GuestTicks {
        let now = match self.stopped {
            Some(since) => since,
            None => now,
        };
        self.counter().guest(now)
    }

    /// How many milliseconds of its time the clock has counted.
    #[must_use]
    pub fn milliseconds(&self, now: Ticks) -> u64 {
        self.frequency.nanoseconds(self.guest(now).0) / 1_000_000
    }

    /// The least count at which [`GuestClock::milliseconds`] says `milliseconds`.
    #[must_use]
    pub fn count_at(&self, milliseconds: u64) -> GuestTicks {
        let ticks = (u128::from(milliseconds) * u128::from(self.frequency.0)).div_ceil(1000);
        GuestTicks(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// When the guest's counter reaches `value`: the least host time, but `now` if it has already. `None` if that is
    /// never, as things stand: it stands still, or the host's counter ends before that.
    #[must_use]
    pub fn host(&self, value: GuestTicks, now: Ticks) -> Option<Ticks> {
        if self.guest(now) >= value {
            return Some(now);
        }
        if self.stopped.is_some() {
            return None;
        }
        // Counted from the offset, which may itself lie "before" zero, so only the distance can be compared.
        let value = GuestTicks(value.0.checked_add(self.ahead)?);
        let elapsed = self.scale.invert(value)?;
        // A fast guest's counter goes by several ticks at once, and may begin anew without having shown the last ones.
        if self.scale.apply(elapsed) < value {
            return None;
        }
        let wait = elapsed.checked_sub(now.since(self.offset))?;
        now.0.checked_add(wait).map(Ticks)
    }

    /// Whether it stands still.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Lets it stand still from `now` on. No vCPU may be in the guest: the hardware would go on counting for it, and it would
    /// see its counter go back when the clock goes on.
    pub const fn stop(&mut self, now: Ticks) {
        if self.stopped.is_none() {
            self.stopped = Some(now);
        }
    }

    /// Lets it go on, from where it stands.
    pub const fn resume(&mut self, now: Ticks) {
        self.stood = self.stood(now);
        if let Some(since) = self.stopped.take() {
            self.offset = self.offset.after(now.since(since));
            self.unscaled = self.unscaled.after(now.since(since));
        }
    }

    /// For how long it has stood still since its start, in its own ticks.
    #[must_use]
    pub const fn stood(&self, now: Ticks) -> GuestTicks {
        match self.stopped {
            Some(since) => GuestTicks(self.stood.0.wrapping_add(self.scale.apply(now.since(since)).0)),
            None => self.stood,
        }
    }

    /// By how many of the guest's microseconds it is behind a clock that began with it and has shown real time ever since;
    /// less than nothing where it is ahead.
    #[must_use]
    pub fn behind(&self, now: Ticks, standstill: Standstill) -> i64 {
        let (shown, stood) = (u128::from(self.guest(now).0), u128::from(self.stood(now).0));
        // What its ticks took in real time. No clock is made without a frequency and a rate.
        let real = |ticks: u128| (ticks * u128::from(Rate::REAL.0)).checked_div(self.rate.0.into()).unwrap_or(0);
        let passed = match standstill {
            Standstill::Counts => real(shown) + real(stood),
            Standstill::IsLeftOut => real(shown),
        };
        let (sign, ticks) = if passed < shown { (-1, shown - passed) } else { (1, passed - shown) };
        // Two times 64 bits, in millionths: 86 bits.
        let microseconds = (ticks * 1_000_000).checked_div(self.frequency.0.into()).unwrap_or(0);
        sign * i64::try_from(microseconds).unwrap_or(i64::MAX)
    }

    /// By which the ticks of a `host`'s counter are nanoseconds of the guest's: a host that seems to count faster or slower.
    #[must_use]
    pub fn ticks_of(&self, host: Hz) -> units::Scale {
        let seeming = (u128::from(host.0) * u128::from(Rate::REAL.0)).checked_div(self.rate.0.into());
        units::Scale::new(Hz(seeming.and_then(|hertz| u64::try_from(hertz).ok()).unwrap_or(u64::MAX)))
    }

    /// How many real microseconds pass before it has counted `microseconds` of the guest's, rounded up, at most `u64::MAX`.
    #[must_use]
    pub fn real_microseconds(&self, microseconds: u64) -> u64 {
        let millionths = u128::from(microseconds) * u128::from(Rate::REAL.0);
        let real = if self.rate.0 == 0 { u128::MAX } else { millionths.div_ceil(self.rate.0.into()) };
        u64::try_from(real).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
