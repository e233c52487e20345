//! Watchdogs of VMs, and the thread that makes them act: those that guests set up by calls (`core/vm`, which decides what their
//! action does), and the Generic Watchdogs among their devices (`core/devices`).
//!
//! Whatever a guest does, the EL2 timer wakes the thread at the first deadline. A pat only moves a deadline further away; the
//! thread finds that out when it wakes at the old one, so patting wakes nobody, and neither does a nearer deadline: it only sets
//! the timer. The thread looks at the VMs whose time has come, at each of them at a limited rate: what a guest can make it do
//! depends neither on the number of VMs, nor on how often the guest changes its deadlines.

use ::vm::doors::WatchdogRequest;
use ::vm::watchdogs::agenda::{self, Agenda, Due, Looks, Planned};
use ::vm::{Bite, Caller, Consequence, Round, RoundStep, SavedWatchdogs};
use abi::bundle::Doors as Policy;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use hw::sync::{PreemptLock, unmask_irqs};
use hw::sysreg;
use pack::Damaged;
use spin::Once;
use units::{Ticks, VcpuId, VcpuSet, VmId};
use watchdog::Refused;

use crate::host;
use crate::sched::{self, Thread};
use crate::vm::handle::request;
use crate::vm::{self, Life, Vm};

static THREAD: Once<&'static Thread> = Once::new();
/// When each VM is to be looked at, by its number. Guests only bring that forward.
static AGENDA: PreemptLock<Agenda> = PreemptLock::new(Agenda::new());

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
    /// How often the VM is looked at.
    looks: Looks,
}

impl Watchdogs {
    /// Not armed yet.
    #[must_use]
    pub(crate) fn new(policy: &Policy) -> Self {
        let looks = Looks::new(Ticks(host::ticks(Looks::MICROSECONDS)));
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

    /// Puts a state in, of a VM of which these vCPUs have begun. They stand still until the VM goes on.
    ///
    /// # Errors
    /// If no watchdogs of this VM can be in it.
    pub(crate) fn restore(&self, saved: &SavedWatchdogs, begun: VcpuSet) -> Result<(), Damaged> {
        self.inner.lock().all.restore(saved, begun)
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
    let [from, planned] = [&watchdogs.look_from, &watchdogs.next_look].map(|at| Ticks(at.load(Ordering::Relaxed)));
    let Some(at) = agenda::look_at(deadline, from, (planned.0 != u64::MAX).then_some(planned)) else { return };
    let Some(thread) = THREAD.get() else { return };
    let mut agenda = AGENDA.lock();
    let Planned { look, is_first } = agenda.bring_forward(vm, at);
    watchdogs.next_look.store(look.0, Ordering::Relaxed);
    drop(agenda);
    if is_first {
        sched::wake_at(thread, at);
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
        let due = agenda.take_due(Ticks(sysreg::cntpct_el0()));
        let vm = match due {
            Due::Look(id) => vm::by_id(id),
            Due::Sleep(_) => None,
        };
        if let Some(vm) = vm {
            vm.doors.watchdogs.next_look.store(u64::MAX, Ordering::Relaxed);
        }
        drop(agenda);
        if let Due::Sleep(until) = due {
            sched::block(until);
        }
        let Some(vm) = vm else { continue };
        let watchdogs = &vm.doors.watchdogs;
        let mut inner = watchdogs.inner.lock();
        let from = inner.looks.take(Ticks(sysreg::cntpct_el0()));
        watchdogs.look_from.store(from.0, Ordering::Relaxed);
        drop(inner);
        if let Some(next) = look_after(vm) {
            watch(vm.id, watchdogs, next);
        }
    }
}

/// Lets a VM's watchdogs act, if it is time; when it will be.
fn look_after(vm: &'static Vm) -> Option<Ticks> {
    let mut round = Round::new(&vm.config.doors, vm.config.vcpus);
    let mut life = vm.life();
    loop {
        let (clock, now) = (vm.clock(), Ticks(sysreg::cntpct_el0()));
        let step = round.next(&mut vm.doors.watchdogs.inner.lock().all, &life, &clock, now);
        match step {
            RoundStep::Act(bite) => act(vm, &mut life, bite),
            RoundStep::LetIn => {
                drop(life);
                life = vm.life();
            }
            RoundStep::Devices(at_expiry) => {
                let (signals, next) = vm.devices.advance_generic_watchdogs(vm, at_expiry);
                round.expired(signals, next);
            }
            RoundStep::Done(next) => return next,
        }
    }
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
