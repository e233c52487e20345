//! A look at all watchdogs of a VM: which of them act, and when they are to be looked at next.
//!
//! The locks are the caller's: of the VM's life, and of its watchdogs. It takes the former, asks for one [`RoundStep`] after the other,
//! performs each, and lets go of the lock where it is told that it may. Whether one acts and what that does to the VM's life is
//! decided under that lock, so nobody pauses the VM in between. What a step leads to counts for those behind it: a VM that is
//! paused, or about to be off, is left alone.

use abi::bundle::Doors as Policy;
use clock::{GuestClock, GuestTicks};
use units::Ticks;

use super::{AtExpiry, Bite, Watchdogs, Which};
use crate::Life;

#[cfg(test)]
mod tests;

/// A look, which is under way.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    policy: Policy,
    vcpus: u8,
    place: Place,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The watchdog with this number among those that are set up by calls.
    Called(usize),
    /// It has acted, and the next one is this.
    Acted(usize),
    /// The Generic Watchdogs, if the VM has any.
    Devices,
    /// They were let know what time it is: so many second signals have risen and have not acted, and this is when the next of these
    /// devices has something to do.
    Expired(usize, Option<GuestTicks>),
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoundStep {
    /// This one acts: the log has a line about it, and [`Bite::consequence`] says what else.
    Act(Bite),
    /// Nothing. Whoever waits for the lock of the VM's life may come first.
    LetIn,
    /// The Generic Watchdogs are let know what time it is, and this is what becomes of one whose second signal rises. Then
    /// [`Round::expired`] is to be told.
    Devices(AtExpiry),
    /// No more. They are to be looked at again when the host's counter shows this, if nothing else happens.
    Done(Option<Ticks>),
}

impl Round {
    /// A look at those of a VM of this policy, with so many vCPUs.
    #[must_use]
    pub const fn new(policy: &Policy, vcpus: u8) -> Self {
        Self { policy: *policy, vcpus, place: Place::Called(0) }
    }

    /// The next step, where the VM goes by `clock` and the host's counter shows `now`.
    #[must_use]
    pub fn next<R: Clone + PartialEq>(
        &mut self,
        watchdogs: &mut Watchdogs,
        life: &Life<R>,
        clock: &GuestClock,
        now: Ticks,
    ) -> RoundStep {
        if let Place::Acted(next) = self.place {
            self.place = Place::Called(next);
            return RoundStep::LetIn;
        }
        if let Place::Called(first) = self.place {
            let milliseconds = clock.milliseconds(now);
            for (number, which) in Which::called(self.vcpus).enumerate().skip(first) {
                if let Some(bite) = watchdogs.look(life, which, milliseconds) {
                    self.place = Place::Acted(number + 1);
                    return RoundStep::Act(bite);
                }
            }
            self.place = Place::Devices;
        }
        if !life.is_running() {
            return RoundStep::Done(None);
        }
        let bite = Bite::of_device(&self.policy, life);
        let device = match self.place {
            Place::Expired(0, device) => device,
            // Of two that rise at once, the first may be the VM's end.
            Place::Expired(left, device) => {
                self.place = Place::Expired(left - 1, device);
                return RoundStep::Act(bite);
            }
            Place::Devices if self.policy.generic_watchdog => {
                self.place = Place::Expired(0, None);
                return RoundStep::Devices(bite.at_expiry());
            }
            _ => None,
        };
        let called = watchdogs.next_look().map(|milliseconds| clock.count_at(milliseconds));
        let next = [called, device].into_iter().flatten().min();
        RoundStep::Done(next.and_then(|count| clock.host(count, now)))
    }

    /// So many second signals of Generic Watchdogs have risen, and `next` is what the guest's counter shows when one has something to do
    /// next.
    pub const fn expired(&mut self, signals: usize, next: Option<GuestTicks>) {
        self.place = Place::Expired(signals, next);
    }
}
