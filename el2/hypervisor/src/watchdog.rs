//! Watchdogs of VMs (`core/wfe`), and the thread that lets them act.
//!
//! Whatever a guest does, the EL2 timer wakes the thread at the first deadline. A pat only moves a deadline further away;
//! the thread finds that out when it wakes at the old one, so patting wakes nobody.

use abi::bundle::Doors as Policy;
use backdoor::Level;
use hw::sync::IrqLock;
use spin::Once;
use units::{Ticks, VcpuId};
use wfe::{Action, Actions, Bounds, Refused, Watchdog};

use crate::doors::milliseconds;
use crate::host;
use crate::sched::{self, Thread};
use crate::vcpu::request;
use crate::vm::{self, Stop, Vm};

/// The least time that a guest can ask for, in milliseconds.
const LEAST: u64 = 10;
/// The most: a day.
const MOST: u64 = 86_400_000;
/// Log, inject, reset, stop; there is nothing yet that a paused VM could be looked at with.
const ACTIONS: Actions = Actions(0b10111);

static THREAD: Once<&'static Thread> = Once::new();

/// One VM's watchdog.
pub(crate) struct VmWatchdog(IrqLock<Watchdog>);

impl VmWatchdog {
    /// Not armed yet.
    #[must_use]
    pub(crate) fn new(policy: &Policy) -> Self {
        let bounds =
            Bounds { least: LEAST, most: MOST, actions: ACTIONS, may_disarm: policy.watchdog_milliseconds == 0 };
        Self(IrqLock::new(Watchdog::new(bounds)))
    }

    /// The VM starts: armed if the site file says so.
    pub(crate) fn restart(&self, policy: &Policy) {
        let action = Action::from_number(u64::from(policy.watchdog_action)).unwrap_or(Action::Reset);
        self.0.lock().preset(u64::from(policy.watchdog_milliseconds), action, milliseconds());
        notify();
    }

    /// The VM is off: it is not watched.
    pub(crate) fn stop(&self) {
        self.0.lock().preset(0, Action::Log, 0);
    }

    /// See [`Watchdog::configure`].
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn configure(&self, policy: &Policy, level: Level, timeout: u64, action: u64) -> Result<u64, Refused> {
        allowed(policy, level)?;
        let granted = self.0.lock().configure(timeout, action, milliseconds())?;
        notify();
        Ok(granted)
    }

    /// See [`Watchdog::pat`].
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn pat(&self, policy: &Policy, level: Level) -> Result<u64, Refused> {
        allowed(policy, level)?;
        self.0.lock().pat(milliseconds())
    }

    /// See [`Watchdog::query`].
    ///
    /// # Errors
    /// If it is not armed.
    pub(crate) fn query(&self) -> Result<u64, Refused> {
        self.0.lock().query(milliseconds())
    }
}

/// A process must not disarm its kernel's watchdog, unless the site file lets it.
fn allowed(policy: &Policy, level: Level) -> Result<(), Refused> {
    if level == Level::Kernel || policy.watchdog_user { Ok(()) } else { Err(Refused::Level) }
}

fn notify() {
    if let Some(thread) = THREAD.get() {
        sched::wake(thread);
    }
}

/// Starts the thread.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn start() -> Result<(), frames::FramesError> {
    let thread = Thread::spawn("watchdog", run, 0, (1000, u64::MAX))?;
    THREAD.call_once(|| thread);
    sched::wake(thread);
    Ok(())
}

fn run(_: usize) -> ! {
    loop {
        let now = milliseconds();
        let mut next = None;
        for vm in vm::all() {
            let mut watchdog = vm.doors.watchdog.0.lock();
            let action = watchdog.expire(now);
            next = [next, watchdog.deadline()].into_iter().flatten().min();
            drop(watchdog);
            if let Some(action) = action {
                act(vm, action);
            }
        }
        sched::block(next.map(at));
    }
}

/// The count at which the millisecond clock shows `milliseconds`, or a little later.
fn at(milliseconds: u64) -> Ticks {
    let ticks = u128::from(milliseconds) * u128::from(host::get().counter.0) / 1000;
    Ticks(u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1))
}

fn act(vm: &'static Vm, action: Action) {
    let name = vm.config.name;
    match action {
        Action::Log | Action::Pause => log::warn!("{name}: watchdog: not patted in time"),
        Action::Inject => {
            log::warn!("{name}: watchdog: not patted in time; vCPU 0 gets an SError");
            if let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.id == VcpuId(0)) {
                vcpu.request(request::SERROR);
            }
        }
        Action::Reset => {
            log::warn!("{name}: watchdog: not patted in time; the VM starts afresh");
            vm.stop(Stop::Reset);
        }
        Action::Stop => {
            log::warn!("{name}: watchdog: not patted in time; the VM stops");
            vm.stop(Stop::Crashed("its watchdog was not patted in time".into()));
        }
    }
}
