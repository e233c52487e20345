//! A VM's own time: the frequency of its counter, how fast its time passes, which counter its guest reads, and whether
//! time passes while the VM is saved.

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
    /// Which counter and timers its device tree names.
    pub source: TimeSource,
    /// Whether it passes while the VM is saved.
    pub away: TimeAway,
}

/// What becomes of the time between a VM's being saved and its being restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TimeAway {
    /// It has passed for its guest too, as far as hosts have clocks.
    #[default]
    Advance,
    /// Its guest's clocks have stood still.
    Freeze,
}

impl TimeAway {
    /// What a site file may say, by their numbers there.
    pub const NAMES: [&str; 2] = ["advance", "freeze"];
    /// The same as values.
    pub const LIST: [Self; 2] = [Self::Advance, Self::Freeze];
}

/// Which counter and timers a guest's device tree names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TimeSource {
    /// The CPU's where they show the guest's time, else the memory-mapped one.
    #[default]
    Auto,
    /// The CPU's.
    Cp15,
    /// The memory-mapped one alone.
    Mmio,
}

/// How far a host's CPU can show a guest's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuCounters {
    /// Its time is the host's: nothing is emulated.
    Native,
    /// Its time is another, and all counters trap and show it.
    Trapped,
    /// Its time is another, and CNTVCT_EL0 traps nowhere (no FEAT_ECV): it shows the host's speed.
    VirtualUntrapped,
}

impl TimeSource {
    /// What a site file may say, by their numbers there.
    pub const NAMES: [&str; 3] = ["auto", "cp15", "mmio"];
    /// The same as values.
    pub const LIST: [Self; 3] = [Self::Auto, Self::Cp15, Self::Mmio];

    /// Whether the guest is told of the memory-mapped timer alone.
    #[must_use]
    pub const fn is_memory(self, counters: CpuCounters) -> bool {
        match self {
            Self::Auto => matches!(counters, CpuCounters::VirtualUntrapped),
            Self::Cp15 => false,
            Self::Mmio => true,
        }
    }

    /// Whether a kernel that takes its clock from the virtual counter, as Linux does, has a wrong one.
    #[must_use]
    pub const fn misleads(self, counters: CpuCounters) -> bool {
        matches!((self, counters), (Self::Cp15, CpuCounters::VirtualUntrapped))
    }
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
        Self { frequency: 0, rate: Self::REAL, source: TimeSource::Auto, away: TimeAway::Advance }
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuCounters, TimeAway, TimeSource};

    #[test]
    fn the_timer_in_memory_is_for_what_the_cpu_cannot_show() {
        let [native, trapped, untrapped] = [CpuCounters::Native, CpuCounters::Trapped, CpuCounters::VirtualUntrapped];
        let memory = |source: TimeSource| [native, trapped, untrapped].map(|counters| source.is_memory(counters));
        assert_eq!(memory(TimeSource::Auto), [false, false, true]);
        assert_eq!(memory(TimeSource::Cp15), [false; 3]);
        assert_eq!(memory(TimeSource::Mmio), [true; 3]);
        for source in TimeSource::LIST {
            let wrong = [native, trapped, untrapped].map(|counters| source.misleads(counters));
            assert_eq!(wrong, [false, false, source == TimeSource::Cp15]);
        }
        assert_eq!(TimeSource::LIST.len(), TimeSource::NAMES.len());
        assert_eq!(TimeAway::LIST.len(), TimeAway::NAMES.len());
    }
}
