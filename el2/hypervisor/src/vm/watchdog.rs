//! Watchdogs of VMs, and the thread that lets them act: the one that guests set up by calls (`core/wfe`), and the Generic
//! Watchdog among their devices (`core/devices`).
//!
//! Whatever a guest does, the EL2 timer wakes the thread at the first deadline. A pat only moves a deadline further away;
//! the thread finds that out when it wakes at the old one, so patting wakes nobody, and neither does a nearer deadline:
//! it only sets the timer. The thread looks at the VMs whose time has come, at each of them at its own pace: what a guest
//! can make it do does not depend on how many VMs there are, nor on how often the guest changes its mind.

use ::sched::Alarms;
use abi::bundle::Doors as Policy;
use backdoor::Level;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use fair::Pace;
use hw::sync::{PreemptLock, unmask_irqs};
use hw::sysreg;
use spin::Once;
use units::{MAX_VCPUS, Ticks, VcpuId, VmId};
use wfe::{Action, Actions, Bounds, Refused, Scope, Status, Watchdog};

use crate::host;
use crate::sched::{self, Thread};
use crate::vm::devices::AtExpiry;
use crate::vm::handle::request;
use crate::vm::{self, Life, Stop, Vm};

/// The least time that a guest can ask for, in milliseconds.
const LEAST: u64 = 10;
/// The most: what a site file may say too.
const MOST: u64 = *abi::watchdog::MILLISECONDS.end();
/// A VM's watchdogs are looked at so many times at once, and then once in so many microseconds: each look runs before all
/// guests.
const LOOKS_AT_ONCE: u64 = 8;
const LOOK_MICROSECONDS: u64 = 50_000;

static THREAD: Once<&'static Thread> = Once::new();
/// When each VM is to be looked at, by its number. Guests only bring that forward.
static AGENDA: PreemptLock<Alarms> = PreemptLock::new(Alarms::new());

/// One VM's watchdogs.
pub(crate) struct Watchdogs {
    dogs: PreemptLock<Dogs>,
    /// The count at which it is looked at next, as the agenda has it; the largest if it is not there. Changes under the lock of
    /// the agenda.
    next_look: AtomicU64,
    /// The count from which on it may be looked at again.
    look_from: AtomicU64,
}

struct Dogs {
    /// The VM's, which any vCPU pats.
    vm: Watchdog,
    /// Each vCPU's own.
    own: [Watchdog; MAX_VCPUS],
    /// The guest was entered in this life of the VM, and what the site file arms is armed.
    has_begun: bool,
    /// How often the VM is looked at, in counts.
    looks: Pace,
}

impl Dogs {
    fn all(&mut self) -> impl Iterator<Item = (Option<VcpuId>, &mut Watchdog)> {
        let own = (0..).map(|id| Some(VcpuId(id))).zip(&mut self.own);
        core::iter::once((None, &mut self.vm)).chain(own)
    }

    fn find(&mut self, scope: Scope, caller: VcpuId) -> Result<&mut Watchdog, Refused> {
        match scope {
            Scope::Vm => Ok(&mut self.vm),
            Scope::Own => self.own.get_mut(caller.index()).ok_or(Refused::Level),
        }
    }
}

impl Watchdogs {
    /// Not armed yet.
    #[must_use]
    pub(crate) fn new(policy: &Policy) -> Self {
        let dog = |armed| Watchdog::new(bounds(policy, armed));
        let dogs = Dogs {
            vm: dog(policy.watchdog_milliseconds),
            own: [dog(policy.vcpu_watchdog_milliseconds); MAX_VCPUS],
            has_begun: false,
            looks: Pace::new(host::ticks(LOOK_MICROSECONDS), LOOKS_AT_ONCE),
        };
        Self { dogs: PreemptLock::new(dogs), next_look: AtomicU64::new(u64::MAX), look_from: AtomicU64::new(0) }
    }

    /// A vCPU is about to enter the guest, having been switched on: its own watchdog is armed if the site file says so, and
    /// the VM's, if this is the first time in its life. Not earlier: the loading of images is nobody's fault in the guest.
    pub(crate) fn vcpu_started(&self, vm: &Vm, vcpu: VcpuId) {
        let policy = &vm.config.doors;
        let mut dogs = self.dogs.lock();
        if !core::mem::replace(&mut dogs.has_begun, true) {
            dogs.vm.preset(u64::from(policy.watchdog_milliseconds), action_of(policy), vm.milliseconds());
            self.watch_dog(vm, &dogs.vm);
        }
        if policy.vcpu_watchdog_milliseconds != 0
            && let Ok(dog) = dogs.find(Scope::Own, vcpu)
        {
            dog.preset(u64::from(policy.vcpu_watchdog_milliseconds), action_of(policy), vm.milliseconds());
            self.watch_dog(vm, dog);
        }
    }

    /// The VM is off: it is not watched, nor paused.
    pub(crate) fn stop(&self) {
        let mut dogs = self.dogs.lock();
        dogs.has_begun = false;
        dogs.all().for_each(|(_, dog)| dog.stop());
    }

    /// The VM is paused: so are its watchdogs, and those that are set up until its vCPUs have stopped.
    pub(crate) fn pause(&self, vm: &Vm) {
        self.dogs.lock().all().for_each(|(_, dog)| dog.pause(vm.milliseconds()));
    }

    /// The VM goes on.
    pub(crate) fn resume(&self, vm: &Vm) {
        self.dogs.lock().all().for_each(|(_, dog)| {
            dog.resume(vm.milliseconds());
            self.watch_dog(vm, dog);
        });
    }

    /// What `caller` asks of one of its watchdogs: see [`Watchdog::configure`].
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn configure(&self, caller: Caller<'_>, timeout: u64, action: u64) -> Result<u64, Refused> {
        caller.check()?;
        let vm = caller.vm;
        let mut dogs = self.dogs.lock();
        let dog = dogs.find(caller.scope, caller.vcpu)?;
        let granted = dog.configure(timeout, action, vm.milliseconds())?;
        self.watch_dog(vm, dog);
        Ok(granted)
    }

    /// See [`Watchdog::pat`].
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn pat(&self, caller: Caller<'_>) -> Result<u64, Refused> {
        caller.check()?;
        self.dogs.lock().find(caller.scope, caller.vcpu)?.pat(caller.vm.milliseconds())
    }

    /// See [`Watchdog::query`]. For every level.
    ///
    /// # Errors
    /// If it is not armed.
    pub(crate) fn query(&self, caller: Caller<'_>) -> Result<u64, Refused> {
        self.dogs.lock().find(caller.scope, caller.vcpu)?.query(caller.vm.milliseconds())
    }

    fn watch_dog(&self, vm: &Vm, dog: &Watchdog) {
        if let Some(deadline) = dog.deadline().and_then(|deadline| at(vm, deadline)) {
            watch(vm.id, self, deadline);
        }
    }

    /// Writes the state of each that is armed or has acted, a line each.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, vm: &Vm, out: &mut dyn Write) -> fmt::Result {
        let mut states = [(None, None); MAX_VCPUS + 1];
        for (state, (vcpu, dog)) in states.iter_mut().zip(self.dogs.lock().all()) {
            *state = (vcpu, Some(dog.status(vm.milliseconds())));
        }
        for (vcpu, status) in states {
            let Some(Status { armed, action, is_paused, acted }) = status else { continue };
            if armed.is_none() && acted == 0 {
                continue;
            }
            match vcpu {
                None => write!(out, "  watchdog:")?,
                Some(vcpu) => write!(out, "  watchdog of vCPU {}:", vcpu.0)?,
            }
            if let Some((timeout, left)) = armed {
                let paused = if is_paused { ", stands still" } else { "" };
                write!(out, " {left} of {timeout} ms left to {}{paused};", action.name())?;
            }
            writeln!(out, " acted {acted} times")?;
        }
        Ok(())
    }
}

/// Who asks, and about which watchdog.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// What the site file allows.
    pub(crate) policy: &'a Policy,
    /// From which level.
    pub(crate) level: Level,
    /// In which VM, on which vCPU.
    pub(crate) vm: &'a Vm,
    pub(crate) vcpu: VcpuId,
    /// Which watchdog.
    pub(crate) scope: Scope,
}

impl Caller<'_> {
    /// A process must not disarm its kernel's watchdog, unless the site file lets it.
    fn check(&self) -> Result<(), Refused> {
        if self.level == Level::Kernel || self.policy.watchdog_user { Ok(()) } else { Err(Refused::Level) }
    }
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

/// Whether a VM of this policy may ever have a watchdog to look after.
#[must_use]
pub(crate) fn may_be_used(policy: &Policy) -> bool {
    let armed = policy.watchdog_milliseconds != 0 || policy.vcpu_watchdog_milliseconds != 0;
    policy.vmware || policy.wfe || armed || policy.generic_watchdog
}

/// Some watchdog of `vm` has something to do at `deadline`. Under the lock of that watchdog, which the thread takes after it
/// has taken the VM off the agenda.
pub(crate) fn watch(vm: VmId, watchdogs: &Watchdogs, deadline: Ticks) {
    let at = deadline.0.max(watchdogs.look_from.load(Ordering::Relaxed));
    if at >= watchdogs.next_look.load(Ordering::Relaxed) {
        return;
    }
    let Some(thread) = THREAD.get() else { return };
    let mut agenda = AGENDA.lock();
    let is_next = agenda.next().is_none_or(|next| at < next);
    agenda.set_earlier(vm.0.into(), at);
    watchdogs.next_look.store(agenda.deadline_of(vm.0.into()).unwrap_or(u64::MAX), Ordering::Relaxed);
    drop(agenda);
    if is_next {
        sched::wake_at(thread, Ticks(at));
    }
}

/// Starts the thread.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn start() -> Result<(), frames::FramesError> {
    AGENDA.lock().reserve(abi::bundle::MAX_VMS);
    let thread = Thread::spawn("watchdog", run, 0, (1000, u64::MAX))?;
    THREAD.call_once(|| thread);
    sched::wake(thread);
    Ok(())
}

fn run(_: usize) -> ! {
    unmask_irqs();
    loop {
        let mut agenda = AGENDA.lock();
        let vm = agenda.take_due(sysreg::cntpct_el0()).and_then(|due| vm::by_id(VmId(due.slot as u16)));
        let next = agenda.next();
        if let Some(vm) = vm {
            vm.doors.watchdogs.next_look.store(u64::MAX, Ordering::Relaxed);
        }
        drop(agenda);
        let Some(vm) = vm else {
            sched::block(next.map(Ticks));
            continue;
        };
        let watchdogs = &vm.doors.watchdogs;
        let mut dogs = watchdogs.dogs.lock();
        let _ = dogs.looks.take(sysreg::cntpct_el0());
        watchdogs.look_from.store(dogs.looks.next(), Ordering::Relaxed);
        drop(dogs);
        if let Some(next) = look_after(vm) {
            watch(vm.id, watchdogs, next);
        }
    }
}

/// Lets a VM's watchdogs act, if it is time; when it will be.
///
/// Whether one acts, and what it does to the VM's life, is decided under the lock of that life: nobody pauses the VM in
/// between, and a paused one is left alone.
fn look_after(vm: &'static Vm) -> Option<Ticks> {
    let mut next = None;
    for id in core::iter::once(None).chain(vm.vcpus().iter().map(|vcpu| Some(vcpu.id))) {
        let mut life = vm.life();
        if !life.is_running() {
            return None;
        }
        let mut dogs = vm.doors.watchdogs.dogs.lock();
        let dog = match id {
            None => &mut dogs.vm,
            Some(id) => match dogs.own.get_mut(id.index()) {
                Some(dog) => dog,
                None => continue,
            },
        };
        // A millisecond behind: the clock may have been about to show the next one when the watchdog was patted, and none acts
        // before its time is over.
        let action = dog.expire(vm.milliseconds().saturating_sub(1));
        let deadline = dog.deadline().and_then(|deadline| at(vm, deadline));
        next = [next, deadline].into_iter().flatten().min();
        drop(dogs);
        if let Some(action) = action {
            act(vm, &mut life, action, Which::Called(id));
        }
    }
    if !vm.config.doors.generic_watchdog {
        return next;
    }
    let mut life = vm.life();
    if !life.is_running() {
        return None;
    }
    let action = action_of(&vm.config.doors);
    // A paused VM is watched again when it goes on.
    let at_expiry = if action == Action::Pause { AtExpiry::BeginAnew } else { AtExpiry::Stay };
    let (expired, device) = vm.devices.advance_watchdog(vm, at_expiry);
    if expired {
        act(vm, &mut life, action, Which::Device);
    }
    [next, device].into_iter().flatten().min()
}

/// Which of a VM's watchdogs it is.
#[derive(Clone, Copy)]
enum Which {
    /// One that is set up by calls: a vCPU's own, or the VM's.
    Called(Option<VcpuId>),
    /// The Generic Watchdog.
    Device,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Called(None) => f.write_str("watchdog"),
            Self::Called(Some(vcpu)) => write!(f, "watchdog of vCPU {}", vcpu.0),
            Self::Device => f.write_str("SBSA watchdog"),
        }
    }
}

/// The host's count at which the VM's clock has shown `milliseconds` for a whole one; `None` while that stands still.
fn at(vm: &Vm, milliseconds: u64) -> Option<Ticks> {
    vm.when(vm.clock().count_at(milliseconds.saturating_add(1)))
}

fn act(vm: &'static Vm, life: &mut Life, action: Action, which: Which) {
    let patient = match which {
        Which::Called(Some(id)) => id,
        _ => VcpuId(0),
    };
    let say = |what: fmt::Arguments<'_>| vm.report(log::Level::Warn, format_args!("{which}: not patted in time{what}"));
    match action {
        Action::Log => say(format_args!("")),
        Action::Inject => say(format_args!("; vCPU {} gets an SError", patient.0)),
        Action::Reset => say(format_args!("; the VM starts afresh")),
        Action::Pause => say(format_args!("; the VM is paused")),
        Action::Stop => say(format_args!("; the VM stops")),
    }
    match action {
        Action::Log => {}
        Action::Inject => {
            if let Some(vcpu) = vm.vcpus().get(patient.index()).copied() {
                vcpu.request(request::SERROR);
            }
        }
        Action::Reset => vm.stop_under(life, Stop::Reset),
        Action::Pause => {
            vm.pause_under(life);
        }
        Action::Stop => vm.stop_under(life, Stop::Crashed("its watchdog was not patted in time".into())),
    }
}
