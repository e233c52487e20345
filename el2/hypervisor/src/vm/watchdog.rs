//! Watchdogs of VMs, and the thread that makes them act: those that guests set up by calls (`core/vm`, which decides what their
//! action does), and the Generic Watchdogs among their devices (`core/devices`).
//!
//! Whatever a guest does, the EL2 timer wakes the thread at the first deadline. A pat only moves a deadline further away; the
//! thread finds that out when it wakes at the old one, so patting wakes nobody, and neither does a nearer deadline: it only sets
//! the timer. The thread looks at the VMs whose time has come, at each of them at a limited rate: what a guest can make it do
//! depends neither on the number of VMs, nor on how often the guest changes its deadlines.

use ::sched::Alarms;
use ::vm::doors::WatchdogRequest;
use ::vm::{Bite, Caller, Consequence, SavedWatchdogs, Which};
use abi::bundle::Doors as Policy;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use fair::Pace;
use hw::sync::{PreemptLock, unmask_irqs};
use hw::sysreg;
use pack::Damaged;
use spin::Once;
use units::{Ticks, VcpuId, VmId};
use watchdog::Refused;

use crate::host;
use crate::sched::{self, Thread};
use crate::vm::handle::request;
use crate::vm::{self, Life, Vm};

/// A VM's watchdogs are looked at so many times at once, and then once in so many microseconds: each look runs before all
/// guests.
const LOOKS_AT_ONCE: u64 = 8;
const LOOK_MICROSECONDS: u64 = 50_000;

static THREAD: Once<&'static Thread> = Once::new();
/// When each VM is to be looked at, by its number. Guests only bring that forward.
static AGENDA: PreemptLock<Alarms> = PreemptLock::new(Alarms::new());

/// One VM's watchdogs.
pub(crate) struct Watchdogs {
    inner: PreemptLock<Inner>,
    /// The count at which it is looked at next, as the agenda has it; the largest if it is not there. Changes under the lock of
    /// the agenda.
    next_look: AtomicU64,
    /// The count from which on it may be looked at again.
    look_from: AtomicU64,
}

struct Inner {
    all: ::vm::Watchdogs,
    /// How often the VM is looked at, in counts.
    looks: Pace,
}

impl Watchdogs {
    /// Not armed yet.
    #[must_use]
    pub(crate) fn new(policy: &Policy) -> Self {
        let looks = Pace::new(host::ticks(LOOK_MICROSECONDS), LOOKS_AT_ONCE);
        let inner = Inner { all: ::vm::Watchdogs::new(policy), looks };
        Self { inner: PreemptLock::new(inner), next_look: AtomicU64::new(u64::MAX), look_from: AtomicU64::new(0) }
    }

    /// A vCPU is about to enter the guest, having been switched on.
    pub(crate) fn vcpu_started(&self, vm: &Vm, vcpu: VcpuId) {
        let mut inner = self.inner.lock();
        inner.all.vcpu_started(vcpu, vm.milliseconds());
        self.watch_all(vm, &inner.all);
    }

    /// The VM is off.
    pub(crate) fn stop(&self) {
        self.inner.lock().all.stop();
    }

    /// The VM is paused.
    pub(crate) fn pause(&self, vm: &Vm) {
        self.inner.lock().all.pause(vm.milliseconds());
    }

    /// The VM goes on.
    pub(crate) fn resume(&self, vm: &Vm) {
        let mut inner = self.inner.lock();
        inner.all.resume(vm.milliseconds());
        self.watch_all(vm, &inner.all);
    }

    /// What `caller` in `vm` asks of one of its watchdogs.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn carry_out(&self, vm: &Vm, caller: Caller, request: WatchdogRequest) -> Result<u64, Refused> {
        let mut inner = self.inner.lock();
        let result = inner.all.carry_out(caller, request, vm.milliseconds());
        // A pat only moves a deadline further away.
        if matches!(request, WatchdogRequest::Configure { .. }) {
            self.watch_all(vm, &inner.all);
        }
        result
    }

    /// Takes their state out, of a paused VM whose clock shows `milliseconds`.
    #[must_use]
    pub(crate) fn save(&self, milliseconds: u64) -> SavedWatchdogs {
        // When they are looked at next: the host's counts, which are computed anew when the VM goes on.
        let Self { inner, next_look: _, look_from: _ } = self;
        // How often the VM may be looked at bounds what a guest costs this host, and is no guest's to see.
        let Inner { all, looks: _ } = &*inner.lock();
        all.save(milliseconds)
    }

    /// Puts a state in. They stand still until the VM goes on.
    ///
    /// # Errors
    /// If no watchdogs can be in it.
    pub(crate) fn restore(&self, saved: &SavedWatchdogs) -> Result<(), Damaged> {
        self.inner.lock().all.restore(saved)
    }

    fn watch_all(&self, vm: &Vm, watchdogs: &::vm::Watchdogs) {
        if let Some(at) = at(vm, watchdogs) {
            watch(vm.id, self, at);
        }
    }

    /// Writes the state of each that is armed or has acted, a line each.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, vm: &Vm, out: &mut dyn Write) -> fmt::Result {
        let inner = self.inner.lock().all;
        inner.write(vm.milliseconds(), out)
    }
}

/// The host's count at which they are to be looked at next; `None` while the VM's clock stands still.
fn at(vm: &Vm, watchdogs: &::vm::Watchdogs) -> Option<Ticks> {
    watchdogs.next_look().and_then(|milliseconds| vm.when(vm.clock().count_at(milliseconds)))
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
        let mut inner = watchdogs.inner.lock();
        let _ = inner.looks.take(sysreg::cntpct_el0());
        watchdogs.look_from.store(inner.looks.next(), Ordering::Relaxed);
        drop(inner);
        if let Some(next) = look_after(vm) {
            watch(vm.id, watchdogs, next);
        }
    }
}

/// Lets a VM's watchdogs act, if it is time; when it will be.
///
/// Whether one acts, and what it does to the VM's life, is decided under the lock of that life: nobody pauses the VM in
/// between.
fn look_after(vm: &'static Vm) -> Option<Ticks> {
    let watchdogs = &vm.doors.watchdogs;
    for which in Which::called(vm.config.vcpus) {
        let mut life = vm.life();
        let bite = watchdogs.inner.lock().all.look(&life, which, vm.milliseconds());
        if let Some(bite) = bite {
            act(vm, &mut life, bite);
        }
    }
    let mut life = vm.life();
    let device = look_after_devices(vm, &mut life);
    if !life.is_running() {
        return None;
    }
    let called = at(vm, &watchdogs.inner.lock().all);
    [called, device].into_iter().flatten().min()
}

/// As [`look_after`], for the Generic Watchdogs.
fn look_after_devices(vm: &'static Vm, life: &mut Life) -> Option<Ticks> {
    if !vm.devices.has_watchdogs() || !life.is_running() {
        return None;
    }
    let bite = Bite::of_device(&vm.config.doors);
    let (expired, next) = vm.devices.advance_watchdogs(vm, bite.at_expiry());
    for _ in 0..expired {
        // Of two that rise at once, the first may be the VM's end.
        if life.is_running() {
            act(vm, life, bite);
        }
    }
    next
}

fn act(vm: &'static Vm, life: &mut Life, bite: Bite) {
    vm.report(log::Level::Warn, format_args!("{bite}"));
    match bite.consequence() {
        Consequence::Nothing => {}
        Consequence::SError(id) => {
            if let Some(vcpu) = vm.vcpus().get(id.index()) {
                vcpu.request(request::SERROR);
            }
        }
        Consequence::Pause => {
            vm.pause_under(life);
        }
        Consequence::Stop(stop) => vm.stop_under(life, stop),
    }
}
