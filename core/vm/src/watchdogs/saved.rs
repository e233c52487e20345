//! A VM's watchdogs as a value. What the site file arms, and what the guest may change of it, is not in it: the VM has
//! that.

use pack::{Damaged, value};
use units::MAX_VCPUS;
use watchdog::SavedWatchdog;

use super::Watchdogs;

/// The watchdogs of one paused VM that are set up by calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedWatchdogs {
    /// A vCPU has begun in this life of the VM, and what its site file arms is armed.
    pub has_begun: bool,
    /// The VM's.
    pub vm: SavedWatchdog,
    /// Each vCPU's own.
    pub own: [SavedWatchdog; MAX_VCPUS],
}

impl SavedWatchdogs {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

value!(SavedWatchdogs as "watchdogs" { has_begun, vm, own });

impl Watchdogs {
    /// Takes the state out at `now`, in milliseconds.
    #[must_use]
    pub fn save(&self, now: u64) -> SavedWatchdogs {
        let Self { policy: _, vm, own, has_begun } = self;
        SavedWatchdogs { has_begun: *has_begun, vm: vm.save(now), own: own.map(|watchdog| watchdog.save(now)) }
    }

    /// Puts a state in. The watchdogs stand still until the VM goes on.
    ///
    /// # Errors
    /// If no watchdogs can be in it; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedWatchdogs) -> Result<(), Damaged> {
        let SavedWatchdogs { has_begun, vm, own } = saved;
        let mut restored = Self { policy: self.policy, vm: self.vm, own: self.own, has_begun: *has_begun };
        restored.vm.restore(vm)?;
        for (watchdog, saved) in restored.own.iter_mut().zip(own) {
            watchdog.restore(saved)?;
        }
        *self = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::SavedWatchdogs;
    use crate::Watchdogs;
    use abi::bundle::Doors;
    use pack::testing::through_bytes;
    use proptest::prelude::*;
    use watchdog::SavedWatchdog;

    fn watchdog() -> impl Strategy<Value = SavedWatchdog> {
        (1..u64::MAX, any::<Option<u64>>(), 0..5_u8, any::<u32>()).prop_map(|(timeout, left, action, acted)| {
            SavedWatchdog { timeout, action, remaining: left.map(|left| left % timeout), acted }
        })
    }

    proptest! {
        /// Whatever was put in is taken out, and comes through bytes.
        #[test]
        fn what_was_put_in_is_taken_out(all in proptest::collection::vec(watchdog(), 9), has_begun in any::<bool>(), now in any::<u64>()) {
            let own = core::array::from_fn(|id| all[id]);
            let saved = SavedWatchdogs { has_begun, vm: all[8], own };
            let mut watchdogs = Watchdogs::new(&Doors::default());
            prop_assert_eq!(watchdogs.restore(&saved), Ok(()));
            prop_assert_eq!(watchdogs.save(now), saved);
            prop_assert_eq!(through_bytes(&saved), Ok(saved));
            let mut bad = saved;
            bad.own[7].action = 9;
            prop_assert!(watchdogs.restore(&bad).is_err());
            prop_assert_eq!(watchdogs.save(now), saved, "nothing has changed");
        }
    }
}
