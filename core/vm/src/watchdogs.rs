//! A VM's watchdogs that guests set up by calls: the VM's own, which any vCPU pats, and one of each vCPU's; and what follows
//! when one of a VM's watchdogs was not patted in time.
//!
//! What one watchdog does is written in `core/watchdog`. Here is what the site file makes of them: which are armed before the
//! guest asks, and what the guest may change then. The site file also says what the second signal of the Generic Watchdog does,
//! which is a device: that one acts as those that are set up by calls do.
//!
//! Times are milliseconds of the VM's clock. That clock stands still while the VM is paused if the site file says so, so callers
//! may stop it once [`Watchdogs::pause`] was called.

use core::fmt::{self, Write};

use abi::bundle::Doors as Policy;
use services::psci::VmPower;
use units::{MAX_VCPUS, VcpuId};
use vmware::ExceptionLevel;
use watchdog::{Action, Actions, Bounds, Refused, Scope, Status, Watchdog};

use crate::doors::{WatchdogRequest, may_set_watchdogs_up};
use crate::{Life, Stop};

pub mod agenda;
mod round;
pub(crate) mod saved;
#[cfg(test)]
mod tests;

pub use round::{Round, RoundStep};

/// The least time that a guest can ask for, in milliseconds.
const LEAST: u64 = 10;
/// The most: what a site file may say too.
const MOST: u64 = *abi::watchdog::MILLISECONDS.end();

/// The watchdogs of one VM that are set up by calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watchdogs {
    policy: Policy,
    vm: Watchdog,
    own: [Watchdog; MAX_VCPUS],
    /// A vCPU has begun in this life of the VM, and what the site file arms is armed.
    has_begun: bool,
}

/// Who asks, and about which watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// From which level.
    pub level: ExceptionLevel,
    /// On which vCPU.
    pub vcpu: VcpuId,
    /// The VM's watchdog, or the vCPU's own.
    pub scope: Scope,
}

/// Which of a VM's watchdogs it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The VM's, which is set up by calls.
    Vm,
    /// A vCPU's own.
    Own(VcpuId),
    /// The Generic Watchdog.
    Device,
}

impl Which {
    /// Those of a VM with so many vCPUs that are set up by calls.
    pub fn called(vcpus: u8) -> impl Iterator<Item = Self> {
        core::iter::once(Self::Vm).chain((0..vcpus).map(|id| Self::Own(VcpuId(id))))
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm => f.write_str("watchdog"),
            Self::Own(vcpu) => write!(f, "watchdog of vCPU {}", vcpu.0),
            Self::Device => f.write_str("Generic Watchdog"),
        }
    }
}

/// A watchdog that was not patted in time, and what it does. Its text is the log's line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bite {
    which: Which,
    action: Action,
    /// Who gets the SError, if that is the action.
    patient: VcpuId,
}

/// What a bite leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Consequence<R> {
    /// Nothing but a line in the log.
    Nothing,
    /// This vCPU gets an SError.
    SError(VcpuId),
    /// The VM is paused.
    Pause,
    /// The VM stops, or starts afresh.
    Stop(Stop<R>),
}

/// What becomes of the Generic Watchdog whose second signal has risen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtExpiry {
    /// The signal stays, until the guest refreshes the watchdog.
    Stay,
    /// Two periods begin anew.
    BeginAnew,
}

impl Bite {
    /// Of one of a VM whose CPUs are on or off like this.
    fn new(which: Which, action: Action, power: &VmPower) -> Self {
        Self { which, action, patient: patient(which, power) }
    }

    /// Of the Generic Watchdog of a VM of this policy that lives this life, when its second signal rises.
    #[must_use]
    pub fn of_device<R: Clone + PartialEq>(policy: &Policy, life: &Life<R>) -> Self {
        Self::new(Which::Device, action_of(policy), life.machine())
    }

    /// What it leads to; `R` is the sentence of a VM that cannot go on.
    #[must_use]
    pub fn consequence<R: From<&'static str>>(self) -> Consequence<R> {
        match self.action {
            Action::Log => Consequence::Nothing,
            Action::Inject => Consequence::SError(self.patient),
            Action::Reset => Consequence::Stop(Stop::Reset),
            Action::Pause => Consequence::Pause,
            Action::Stop => Consequence::Stop(Stop::Crashed("its watchdog was not patted in time".into())),
        }
    }

    /// What becomes of the Generic Watchdog. A VM that is paused goes on some day, and is watched again then.
    #[must_use]
    pub fn at_expiry(self) -> AtExpiry {
        if self.action == Action::Pause { AtExpiry::BeginAnew } else { AtExpiry::Stay }
    }
}

impl fmt::Display for Bite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: not patted in time", self.which)?;
        match self.action {
            Action::Log => Ok(()),
            Action::Inject => write!(f, "; vCPU {} gets an SError", self.patient.0),
            Action::Reset => f.write_str("; the VM starts afresh"),
            Action::Pause => f.write_str("; the VM is paused (`croft dump` shows where, `croft resume` goes on)"),
            Action::Stop => f.write_str("; the VM stops"),
        }
    }
}

impl Watchdogs {
    /// Not armed yet.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        let watchdog = |armed| Watchdog::new(bounds(policy, armed));
        Self {
            policy: *policy,
            vm: watchdog(policy.watchdog_milliseconds),
            own: [watchdog(policy.vcpu_watchdog_milliseconds); MAX_VCPUS],
            has_begun: false,
        }
    }

    /// Whether a VM of this policy may ever have a watchdog to look after.
    #[must_use]
    pub const fn may_be_used(policy: &Policy) -> bool {
        let armed = policy.watchdog_milliseconds != 0 || policy.vcpu_watchdog_milliseconds != 0;
        policy.vmware || policy.wfe || armed || policy.generic_watchdog
    }

    /// `vcpu` was switched on and is about to enter the guest: its own watchdog is armed if the site file says so, and the VM's,
    /// if this is the first time in its life. Not earlier: the loading of images is nobody's fault in the guest.
    pub fn vcpu_started(&mut self, vcpu: VcpuId, now: u64) {
        let [of_vm, own] = [Which::Vm, Which::Own(vcpu)].map(|which| self.preset(which));
        if !core::mem::replace(&mut self.has_begun, true) {
            let (timeout, action) = of_vm.unwrap_or((0, action_of(&self.policy)));
            self.vm.preset(timeout, action, now);
        }
        if let (Some((timeout, action)), Some(watchdog)) = (own, self.own.get_mut(vcpu.index())) {
            watchdog.preset(timeout, action, now);
        }
    }

    /// For how long, and to do what, the site file arms one of them, if it does.
    fn preset(&self, which: Which) -> Option<(u64, Action)> {
        let timeout = match which {
            Which::Vm => self.policy.watchdog_milliseconds,
            Which::Own(_) => self.policy.vcpu_watchdog_milliseconds,
            Which::Device => 0,
        };
        (timeout != 0).then(|| (timeout.into(), action_of(&self.policy)))
    }

    /// The VM is off: it is not watched, nor paused.
    pub fn stop(&mut self) {
        self.has_begun = false;
        self.all_mut().for_each(Watchdog::stop);
    }

    /// The VM is paused: so are its watchdogs, and those that are set up until its vCPUs have stopped.
    pub fn pause(&mut self, now: u64) {
        self.all_mut().for_each(|watchdog| watchdog.pause(now));
    }

    /// The VM goes on.
    pub fn resume(&mut self, now: u64) {
        self.all_mut().for_each(|watchdog| watchdog.resume(now));
    }

    /// What `caller` asks of one of its watchdogs: the milliseconds that it is granted, or that are left. Every level may look.
    ///
    /// # Errors
    /// Why not.
    pub fn carry_out(&mut self, caller: Caller, request: WatchdogRequest, now: u64) -> Result<u64, Refused> {
        if request != WatchdogRequest::Query && !may_set_watchdogs_up(&self.policy, caller.level) {
            return Err(Refused::Level);
        }
        let watchdog = match caller.scope {
            Scope::Vm => &mut self.vm,
            Scope::Own => self.own.get_mut(caller.vcpu.index()).ok_or(Refused::Level)?,
        };
        match request {
            WatchdogRequest::Configure { timeout, action } => watchdog.configure(timeout, action, now),
            WatchdogRequest::Pat => watchdog.pat(now),
            WatchdogRequest::Query => watchdog.query(now),
        }
    }

    /// Looks at one of them at `now`: the bite, if its time is over. Under the lock of the VM's `life`, so that nobody pauses the
    /// VM between the bite and what it leads to. A VM that is paused, or about to be off, is left alone.
    #[must_use]
    pub fn look<R: Clone + PartialEq>(&mut self, life: &Life<R>, which: Which, now: u64) -> Option<Bite> {
        if !life.is_running() {
            return None;
        }
        let watchdog = match which {
            Which::Vm => &mut self.vm,
            Which::Own(id) => self.own.get_mut(id.index())?,
            Which::Device => return None,
        };
        // A millisecond behind: the clock may have been about to show the next one when the watchdog was patted, and none acts
        // before its time is over.
        let action = watchdog.expire(now.saturating_sub(1))?;
        Some(Bite::new(which, action, life.machine()))
    }

    /// When to look at them next: the first time of the clock at which one may bite.
    #[must_use]
    pub fn next_look(&self) -> Option<u64> {
        // For the reason that `look` has for being behind.
        self.all().filter_map(|(_, watchdog)| watchdog.deadline()).min().map(|deadline| deadline.saturating_add(1))
    }

    /// Writes the state of each that is armed or has acted, a line each.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, now: u64, out: &mut dyn Write) -> fmt::Result {
        for (which, watchdog) in self.all() {
            let Status { armed, action, is_paused, acted } = watchdog.status(now);
            if armed.is_none() && acted == 0 {
                continue;
            }
            write!(out, "  {which}:")?;
            if let Some((timeout, left)) = armed {
                let paused = if is_paused { ", stands still" } else { "" };
                write!(out, " {left} of {timeout} ms left to {}{paused};", action.name())?;
            }
            writeln!(out, " acted {}", units::Times(acted.into()))?;
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Which, &Watchdog)> {
        let own = (0..).map(|id| Which::Own(VcpuId(id))).zip(&self.own);
        core::iter::once((Which::Vm, &self.vm)).chain(own)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Watchdog> {
        core::iter::once(&mut self.vm).chain(&mut self.own)
    }
}

/// Which vCPU gets an SError: the one whose watchdog it is, and for a watchdog of all of them the first that is on. One that is off
/// has nobody who could take it (and when it is switched on again it begins without), so the first gets that as well: the guest
/// left a watchdog behind that nobody pats. A VM of which no vCPU is on is about to be off, and what vCPU 0 gets then goes with it.
fn patient(which: Which, power: &VmPower) -> VcpuId {
    let own = match which {
        Which::Own(id) => Some(id),
        Which::Vm | Which::Device => None,
    };
    own.filter(|&id| power.is_on(id)).or_else(|| power.first_on()).unwrap_or(VcpuId(0))
}

/// What the guest may ask of a watchdog that the site file arms for `armed` milliseconds, or of its own if that is 0. The
/// guest can make the former stricter, not laxer.
fn bounds(policy: &Policy, armed: u32) -> Bounds {
    let may_disarm = armed == 0;
    let actions = match policy.watchdog_choices {
        0 if may_disarm => Actions::ALL,
        0 => Actions::only(action_of(policy)),
        some => Actions(some),
    };
    Bounds { least: LEAST, most: if may_disarm { MOST } else { u64::from(armed) }, actions, may_disarm }
}

/// What the site file wants a watchdog to do.
fn action_of(policy: &Policy) -> Action {
    Action::from_number(u64::from(policy.watchdog_action)).unwrap_or(Action::Reset)
}
