//! When a guest's pages become executable, as a site file says it.

use serde::{Deserialize, Serialize};

/// When a page becomes executable, and the caches are made to agree about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Coherency {
    /// When it is executed.
    #[default]
    OnDemand,
    /// When the guest is shown it.
    Eager,
    /// `Eager` where the caches of all CPUs agree by themselves (CTR_EL0.IDC and DIC), else `OnDemand`.
    OffWhenCoherent,
    /// When it is executed, until it is written.
    Strict,
}

impl Coherency {
    /// What a site file may say by name, by their numbers there. `Strict` is a key of its own.
    pub const NAMES: [&str; 3] = ["on-demand", "eager", "off-when-coherent"];

    /// What the number in a site file's list means, and whether it is strict; `None` if the two do not go together.
    #[must_use]
    pub const fn of(number: u64, strict: bool) -> Option<Self> {
        Some(match (number, strict) {
            (0, false) => Self::OnDemand,
            (0, true) => Self::Strict,
            (1, false) => Self::Eager,
            (2, false) => Self::OffWhenCoherent,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Coherency;

    #[test]
    fn only_on_demand_can_be_strict() {
        assert_eq!(Coherency::of(0, false), Some(Coherency::default()));
        assert_eq!(Coherency::of(0, true), Some(Coherency::Strict));
        assert_eq!(Coherency::of(1, false), Some(Coherency::Eager));
        assert_eq!(Coherency::of(2, false), Some(Coherency::OffWhenCoherent));
        for number in 1..=Coherency::NAMES.len() as u64 {
            assert_eq!(Coherency::of(number, true), None);
        }
    }
}
