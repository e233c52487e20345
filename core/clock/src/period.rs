//! How long a tick takes, as a fraction of a second so exact that a clock which goes by it does not drift.

use units::Hz;

use crate::Rate;

/// The period of a counter: `fraction` / 2^(64 + `shift`) seconds, rounded down. Its first bit is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// How many of the unit.
    pub fraction: u64,
    /// What the unit is.
    pub shift: u8,
}

impl Period {
    /// Of a counter with so many ticks a second of a time that passes at `rate`, in seconds of that time. `None` if a tick takes a second
    /// or longer, or no time, or so little that it is no counter's.
    #[must_use]
    pub fn of(frequency: Hz, rate: Rate) -> Option<Self> {
        // In millionths of a tick a second.
        let whole = frequency.0.checked_mul(Rate::REAL.0.into()).filter(|whole| whole >> 63 == 0)?;
        if rate.0 == 0 || u64::from(rate.0) >= whole {
            return None;
        }
        // The quotient has 64 bits or one more, whose shift is one less. What is divided has 64 bits more than `whole`.
        let shift = whole.ilog2() - rate.0.ilog2();
        let divide = |shift: u32| (u128::from(rate.0) << (64 + shift)).checked_div(whole.into());
        let fraction = divide(shift)?;
        let (fraction, shift) =
            if fraction >> 64 == 0 { (fraction, shift) } else { (divide(shift.checked_sub(1)?)?, shift - 1) };
        Some(Self { fraction: u64::try_from(fraction).ok()?, shift: shift as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::Period;
    use crate::Rate;
    use proptest::prelude::*;
    use units::Hz;

    #[test]
    fn a_nanosecond_is_as_the_specification_has_it() {
        let nanosecond = Period { fraction: 0x8970_5f41_36b4_a597, shift: 29 };
        assert_eq!(Period::of(Hz(1_000_000_000), Rate::REAL), Some(nanosecond));
        assert_eq!(Period::of(Hz(2), Rate::REAL), Some(Period { fraction: 1 << 63, shift: 0 }));
        for (hertz, rate) in [(0, 1), (1_000_000, 0), (1, 1_000_000), (2, 2_000_000), (1 << 44, 1_000_000)] {
            assert_eq!(Period::of(Hz(hertz), Rate(rate)), None, "{hertz} {rate}");
        }
        assert_eq!(Period::of(Hz(u64::MAX), Rate(1)), None);
        let most = Hz((1 << 63) / 1_000_000);
        assert!(Period::of(most, Rate(1)).is_some_and(|period| period.fraction >> 63 == 1 && period.shift < 64));
        assert!(Period::of(most, Rate(u32::MAX)).is_some());
    }

    proptest! {
        /// A second of ticks is a second, to less than one part in 2^62.
        #[test]
        fn ticks_add_up_to_seconds(hertz in 1_000_000..=2_000_000_000_u64, rate in 1_000..=10_000_000_u32) {
            let Period { fraction, shift } = Period::of(Hz(hertz), Rate(rate)).expect("less than a second");
            prop_assert!(fraction >> 63 == 1);
            // 2^64 seconds are `hertz` million times `fraction`, shifted, `rate` times.
            let whole = u128::from(hertz) * 1_000_000;
            let sum = ((u128::from(fraction) >> 32) * whole) >> shift;
            let expected = u128::from(rate) << 32;
            prop_assert!(sum <= expected && expected - sum <= (expected >> 30) + 1, "{sum} {expected}");
        }
    }
}
