//! When alarms of guests' real-time clocks are due: by the host's time of day, which the operator may set. The link's
//! thread checks them.

use core::sync::atomic::{AtomicU64, Ordering};

use hw::sysreg;
use units::Ticks;

use crate::host;
use crate::host::wall_clock::microseconds;
use crate::output;

/// When some guest's real-time clock rings, in the host's microseconds since 1970.
static ALARM: AtomicU64 = AtomicU64::new(u64::MAX);

/// A clock rings so much later at least than it was set to.
const LEAST_MICROSECONDS: u64 = 1_000;

/// When one VM's clock rings, in the host's microseconds since 1970; the largest while it is not to.
pub(crate) struct Alarm(AtomicU64);

impl Alarm {
    /// It is not to ring.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// It is to ring at `microseconds`. The console's thread is woken when that has come, not sooner, however often a guest changes
    /// its mind.
    pub(crate) fn set(&self, microseconds: u64) {
        // Pairs with the acquire in `take_due`.
        self.0.store(microseconds, Ordering::Release);
        self.watch();
    }

    /// Whether it is due; it no longer waits then.
    #[must_use]
    pub(crate) fn take_due(&self) -> bool {
        // Pairs with the release in `set`.
        let due = self.0.load(Ordering::Acquire) <= microseconds();
        if due {
            // Pairs with the acquire in `watch`. A time that a vCPU sets between the two is lost here, and comes back: the caller looks
            // at the devices of a VM whose alarm was due, and the clock asks again for what it waits for.
            self.0.store(u64::MAX, Ordering::Release);
        }
        due
    }

    /// Lets the console's thread know of it, if it is the next of all.
    pub(crate) fn watch(&self) {
        // Pairs with the releases in `set` and `take_due`.
        let at = self.0.load(Ordering::Acquire);
        // Pairs with the loads in `take_alarm` and `next_alarm`: whoever finds this time finds the VM's own behind it.
        if ALARM.fetch_min(at, Ordering::AcqRel) > at
            && let Some(at) = next_alarm()
        {
            output::attend_at(Ticks(at));
        }
    }
}

/// Whether somebody's clock is to ring now. Whoever asks looks at all of them, and calls [`Alarm::watch`] for each.
#[must_use]
pub(crate) fn take_alarm() -> bool {
    // Pairs with the minimum in `watch`.
    let ringing = ALARM.load(Ordering::Acquire) <= microseconds();
    if ringing {
        // Pairs with the minimum in `watch`, which each VM is made to do again: a time that is lost here comes back then.
        ALARM.store(u64::MAX, Ordering::Release);
    }
    ringing
}

/// The count at which the next clock rings, as the time of day is now.
#[must_use]
pub(crate) fn next_alarm() -> Option<u64> {
    // Pairs with the minimum in `watch`.
    match ALARM.load(Ordering::Acquire) {
        u64::MAX => None,
        at => {
            let away = at.saturating_sub(microseconds());
            // Not at once, so that a guest which lets its clock ring all the time wakes nobody all the time.
            let ticks = host::get().counter.ticks_in_microseconds(away.max(LEAST_MICROSECONDS)).saturating_add(1);
            Some(sysreg::cntpct_el0().saturating_add(ticks))
        }
    }
}
