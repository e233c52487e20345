//! A VM's own time: the frequency of its counter, and how fast its time passes.

use super::VmProblem;
use core::ops::RangeInclusive;
use serde::{Deserialize, Serialize};

/// What the site file says of a VM's time. With the host's frequency and real time its counters and timers are the hardware's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Time {
    /// The frequency of its counter in hertz, for all its life and on whatever host; 0: that of the host it is created on.
    pub frequency: u32,
    /// How fast its time passes, in millionths of real time.
    pub rate: u32,
}

impl Time {
    /// A frequency in hertz. Milliseconds are to be counted in it, and CPUs of today have 1 GHz at most.
    pub const FREQUENCY: RangeInclusive<u32> = 1_000_000..=1_000_000_000;
    /// Real time, in millionths of it.
    pub const REAL: u32 = 1_000_000;
    /// A thousandth of real time to ten times it: with the highest frequency that is a counter which does not begin anew within
    /// 40 years (DDI 0487 D12.1.1).
    pub const RATE: RangeInclusive<u32> = 1_000..=10_000_000;

    /// Whether there can be such a time.
    ///
    /// # Errors
    /// What of it there cannot be.
    pub fn check(&self) -> Result<(), VmProblem> {
        if self.frequency != 0 && !Self::FREQUENCY.contains(&self.frequency) {
            return Err(VmProblem::Frequency(self.frequency));
        }
        if Self::RATE.contains(&self.rate) { Ok(()) } else { Err(VmProblem::Rate(self.rate)) }
    }
}

impl Default for Time {
    fn default() -> Self {
        Self { frequency: 0, rate: Self::REAL }
    }
}
