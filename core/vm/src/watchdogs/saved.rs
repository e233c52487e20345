//! A VM's watchdogs as a value. What the site file arms, and what the guest may change of it, is not in it: the VM has
//! that.

use pack::{Damaged, value};
use units::{MAX_VCPUS, VcpuId, VcpuSet};
use watchdog::SavedWatchdog;

use super::{Watchdogs, Which};

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

    /// Puts a state in, of a VM of which these vCPUs have begun. The watchdogs stand still until the VM goes on.
    ///
    /// # Errors
    /// If no watchdogs can be in it, or if it is not what the site file makes of this VM's; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedWatchdogs, begun: VcpuSet) -> Result<(), Damaged> {
        let SavedWatchdogs { has_begun, vm, own } = saved;
        let mut restored = Self { policy: self.policy, vm: self.vm, own: self.own, has_begun: *has_begun };
        restored.vm.restore(vm, self.preset(Which::Vm))?;
        for (id, (watchdog, saved)) in (0..).map(VcpuId).zip(restored.own.iter_mut().zip(own)) {
            watchdog.restore(saved, self.preset(Which::Own(id)))?;
        }
        if !begun.is_empty() && !has_begun {
            return Err(Damaged::Impossible("vCPUs of it have begun, and its watchdogs know nothing of it"));
        }
        let must_stay = |which: &Which| match *which {
            Which::Vm => *has_begun,
            Which::Own(id) => begun.contains(id),
            Which::Device => false,
        };
        if !restored.all().filter(|(which, _)| must_stay(which)).all(|(_, watchdog)| watchdog.has_stayed()) {
            return Err(Damaged::Impossible("a watchdog is not armed that its site file arms"));
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
    use pack::Damaged;
    use pack::testing::through_bytes;
    use proptest::prelude::*;
    use units::{VcpuId, VcpuSet};
    use watchdog::{Action, SavedWatchdog};

    fn of(vcpus: &[u8]) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        vcpus.iter().for_each(|&vcpu| set.insert(VcpuId(vcpu)));
        set
    }

    /// What the site file arms is armed after a restore too, for no longer than it says, whatever the file says; but for a watchdog that
    /// has acted, and for that of a vCPU that has not begun.
    #[test]
    fn what_the_site_file_arms_is_armed_after_a_restore() {
        let policy = Doors {
            watchdog_milliseconds: 5000,
            vcpu_watchdog_milliseconds: 300,
            watchdog_action: Action::Reset.number(),
            ..Doors::default()
        };
        let restored = |change: &dyn Fn(&mut SavedWatchdogs)| {
            let mut there = Watchdogs::new(&policy);
            there.vcpu_started(VcpuId(1), 0);
            let mut saved = there.save(100);
            change(&mut saved);
            let mut here = Watchdogs::new(&policy);
            let before = here;
            let done = here.restore(&saved, of(&[1]));
            assert!(done.is_ok() || here == before);
            done.is_ok_and(|()| here.save(0) == saved)
        };
        assert!(restored(&|_| {}));
        let off = SavedWatchdog { action: Action::Reset.number(), ..SavedWatchdog::default() };
        assert!(!restored(&|saved| saved.vm = off));
        assert!(!restored(&|saved| saved.own[1] = off));
        assert!(restored(&|saved| saved.own[0] = off), "that vCPU has not begun");
        assert!(restored(&|saved| (saved.vm, saved.own[1]) = [SavedWatchdog { acted: 1, ..off }; 2].into()));
        assert!(!restored(&|saved| saved.vm = SavedWatchdog { acted: 1, action: Action::Log.number(), ..off }));
        assert!(!restored(&|saved| saved.vm.timeout = 6000));
        assert!(!restored(&|saved| saved.vm.action = Action::Log.number()));
        assert!(!restored(&|saved| saved.own[1].timeout = 5000));
        assert!(restored(&|saved| (saved.vm.timeout, saved.vm.remaining) = (10, Some(10))), "its guest may do that");
        assert!(!restored(&|saved| (saved.vm, saved.has_begun) = (off, false)));
    }

    #[test]
    fn vcpus_have_begun_or_they_have_not() {
        let saved = Watchdogs::new(&Doors::default()).save(0);
        let restore = |vcpus: &[u8]| Watchdogs::new(&Doors::default()).restore(&saved, of(vcpus));
        assert_eq!(restore(&[]), Ok(()));
        assert!(matches!(restore(&[0]), Err(Damaged::Impossible(_))));
    }

    fn watchdog() -> impl Strategy<Value = SavedWatchdog> {
        (10..86_400_000_u64, any::<Option<u64>>(), 0..5_u8, any::<u32>()).prop_map(|(timeout, left, action, acted)| {
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
            prop_assert_eq!(watchdogs.restore(&saved, VcpuSet::EMPTY), Ok(()));
            prop_assert_eq!(watchdogs.save(now), saved);
            prop_assert_eq!(through_bytes(&saved), Ok(saved));
            let mut bad = saved;
            bad.own[7].action = 9;
            prop_assert!(watchdogs.restore(&bad, VcpuSet::EMPTY).is_err());
            prop_assert_eq!(watchdogs.save(now), saved, "nothing has changed");
        }
    }
}
