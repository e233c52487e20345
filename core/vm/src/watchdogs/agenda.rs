//! When the watchdogs of which VM are looked at.
//!
//! One thread looks at all of them. It sleeps until the first deadline. Guests only bring looks forward ([`Agenda::bring_forward`]);
//! whatever moves a deadline further away is found out at the old one. A VM is looked at at a limited rate ([`Looks`]), since each
//! look runs before all guests: what a guest can make the thread do depends neither on the number of VMs, nor on how often the guest
//! changes its deadlines.

use fair::Pace;
use sched::Alarms;
use units::{Ticks, VmId};

#[cfg(test)]
mod tests;

/// How often one VM's watchdogs are looked at: so many times at once, and then once in so many microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Looks(Pace);

impl Looks {
    /// Between two looks in the long run.
    pub const MICROSECONDS: u64 = 50_000;
    const AT_ONCE: u64 = 8;

    /// No look yet, where [`Looks::MICROSECONDS`] are `interval` counts.
    #[must_use]
    pub const fn new(interval: Ticks) -> Self {
        Self(Pace::new(interval.0, Self::AT_ONCE))
    }

    /// They are looked at now. From when on they may be again.
    pub fn take(&mut self, now: Ticks) -> Ticks {
        let _ = self.0.take(now.0);
        Ticks(self.0.next())
    }
}

/// When to look at a VM of whose watchdogs one has something to do at `deadline`: not before the VM may be looked at, `from`. `None`
/// if that is not before the look at `next` that is planned already.
#[must_use]
pub const fn look_at(deadline: Ticks, from: Ticks, next: Option<Ticks>) -> Option<Ticks> {
    let at = if deadline.0 > from.0 { deadline } else { from };
    match next {
        Some(next) if at.0 >= next.0 => None,
        _ => Some(at),
    }
}

/// When each VM is looked at.
#[derive(Debug, Default)]
pub struct Agenda(Alarms);

/// What was planned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// When the VM is looked at.
    pub look: Ticks,
    /// That is the first look of all: the thread is to wake then, and not later.
    pub is_first: bool,
}

/// What the thread does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// It looks at this VM, which is planned no more.
    Look(VmId),
    /// It sleeps until then, or until somebody brings a look forward.
    Sleep(Option<Ticks>),
}

impl Agenda {
    /// No looks.
    #[must_use]
    pub const fn new() -> Self {
        Self(Alarms::new())
    }

    /// Makes room for so many VMs, so that nothing here allocates for them.
    pub fn reserve(&mut self, vms: usize) {
        self.0.reserve(vms);
    }

    /// `vm` is looked at at `at`, or before, if that is planned already.
    pub fn bring_forward(&mut self, vm: VmId, at: Ticks) -> Planned {
        let is_first = self.0.next().is_none_or(|next| at.0 < next);
        self.0.set_earlier(vm.0.into(), at.0);
        Planned { look: self.0.deadline_of(vm.0.into()).map_or(at, Ticks), is_first }
    }

    /// What is to be done at `now`.
    pub fn take_due(&mut self, now: Ticks) -> Due {
        match self.0.take_due(now.0) {
            Some(alarm) => Due::Look(VmId(alarm.slot as u16)),
            None => Due::Sleep(self.0.next().map(Ticks)),
        }
    }
}
