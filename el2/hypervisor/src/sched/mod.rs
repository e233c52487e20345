//! Threads on CPUs: who runs, who waits, who is woken.
//!
//! Every vCPU and every worker of the hypervisor is a thread. Each CPU has a run queue (`core/sched`: weighted fair sharing by
//! virtual run time), the deadlines that its timer serves, and an idle thread, which is what the CPU booted on. A thread waits in
//! the queue of its home CPU. A woken thread whose home is busy is put on an idle CPU, if it may run there; a CPU that becomes
//! idle takes a waiting thread from a busy one; one whose threads fall behind gives some away (`balance`).
//!
//! There is no tick: the EL2 timer is armed for the next deadline, and for the end of the running thread's slice only
//! while somebody waits for the CPU. A vCPU that is alone on its CPU is never interrupted by us.
//!
//! Threads run with IRQs enabled. They can be preempted anywhere, and may continue on another CPU, except while they hold a lock
//! ([`hw::sync`]) and in listed code (`hw::nopreempt`): then the preemption waits. IRQs are masked while anything here changes,
//! and from a vCPU's last look at its requests until its guest runs.
//!
//! The scheduler does not know what else a thread keeps in its CPU's registers (a vCPU's state): that is an [`Occupant`], which
//! is called when its thread continues, and when it has to leave the registers.
//!
//! Locks: never two queues at a time; a lock of an occupant's is taken before a queue's.
//! Lost wake-ups: see [`::sched::Parking`].

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use ::sched::{Affinity, Alarms, Arrival, Entity, Meter, Parking, RunQueue, Slice, ThreadId, Timing};
use hw::percpu::this_cpu;
use hw::sync::{IrqLock, is_unpreemptible, without_irqs};
use hw::sysreg::{cnthp_ctl_el2, cnthp_cval_el2, cntpct_el0};
use hw::thread::{Context, switch};
use hw::{gic, speculation};
use spin::Once;
use units::{CpuId, Ticks};

mod balance;
mod threads;

pub(crate) use threads::{Occupant, Registers, current_name, thread_count};
pub use threads::{Thread, current};

use threads::{THREAD_COUNT, thread};

use crate::host;

/// Within this time every thread that waits for a CPU should have run there, if that does not make slices too short, in microseconds.
const PERIOD_MICROSECONDS: u64 = 10_000;
/// No slice is shorter, in microseconds.
const SLICE_MICROSECONDS: u64 = 1_000;
/// The number of no thread, and of no CPU.
pub(crate) const NOBODY: u32 = u32::MAX;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// One CPU's part of the scheduler.
pub(crate) struct Cpu {
    /// Which one.
    pub(crate) id: CpuId,
    affinity: u64,
    queue: IrqLock<Queue>,
    /// How many threads wait in the queue: for others to look without the lock.
    waiting: AtomicU32,
    /// At least the CPUs that one of those may run on: an idle CPU that none of them may run on leaves the lock alone.
    waiting_affinity: AtomicU64,
    /// A KICK was sent for the queue's sake.
    attention: AtomicBool,
    /// Somebody needs what is in this CPU's registers and does not run here: an idle CPU, which would take that thread, or a vCPU that
    /// waits for what they hold.
    release: AtomicBool,
    /// The weights of the threads that were placed here.
    placed: AtomicU32,
}

struct Queue {
    run: RunQueue,
    alarms: Alarms,
    idle: &'static Thread,
    /// The thread that runs: the run queue's current one, or `idle`.
    running: &'static Thread,
    /// What the running thread is to be charged for its time.
    charged: Meter,
    /// The running thread's slice: there is none while nobody waits.
    slice: Slice,
}

static CPUS: [Once<&'static Cpu>; platform::MAX_CPUS] = [const { Once::new() }; platform::MAX_CPUS];
/// The CPUs that take part, a bit each.
static ONLINE: AtomicU64 = AtomicU64::new(0);
/// Those that have nothing to run.
static IDLE: AtomicU64 = AtomicU64::new(0);

/// The thread whose occupant's state is in each CPU's registers, or [`NOBODY`].
static LOADED: [AtomicU32; platform::MAX_CPUS] = [const { AtomicU32::new(NOBODY) }; platform::MAX_CPUS];

/// The running thread's occupant is in this CPU's registers from now on: for CPUs that look for work. IRQs are masked.
#[inline(always)]
pub(crate) fn occupy() {
    if let Some(loaded) = LOADED.get(usize::from(this_cpu().cpu.0)) {
        loaded.store(this_cpu().thread.load(Ordering::Relaxed) as u32, Ordering::Relaxed);
    }
}

/// Nobody's state is in this CPU's registers from now on. IRQs are masked.
pub(crate) fn vacate() {
    if let Some(loaded) = LOADED.get(usize::from(this_cpu().cpu.0)) {
        loaded.store(NOBODY, Ordering::Relaxed);
    }
}

fn loaded_on(cpu: &Cpu) -> u32 {
    LOADED.get(usize::from(cpu.id.0)).map_or(NOBODY, |loaded| loaded.load(Ordering::Relaxed))
}

fn cpu(id: CpuId) -> &'static Cpu {
    match CPUS.get(usize::from(id.0)).and_then(Once::get) {
        Some(cpu) => cpu,
        None => unreachable!("CPU {} takes no part in scheduling", id.0),
    }
}

/// This CPU's part of the scheduler. IRQs are masked, or it may be another's a moment later.
#[must_use]
pub(crate) fn this() -> &'static Cpu {
    cpu(this_cpu().cpu)
}

/// Makes this CPU take part; what runs now becomes its idle thread. IRQs are masked.
pub(crate) fn join() {
    let id = this_cpu().cpu;
    let home = u32::from(id.0);
    let idle = Thread::register("idle", Context::of_running(), Parking::running(home), 1, 1 << id.0);
    this_cpu().thread.store(u64::from(idle.index), Ordering::Relaxed);
    let timing = Timing { period: host::ticks(PERIOD_MICROSECONDS), minimum_slice: host::ticks(SLICE_MICROSECONDS) };
    let mut queue = Queue {
        run: RunQueue::new(timing),
        alarms: Alarms::new(),
        idle,
        running: idle,
        charged: Meter::new(cntpct_el0()),
        slice: Slice::NONE,
    };
    queue.reserve();
    let cpu: &'static Cpu = Box::leak(Box::new(Cpu {
        id,
        affinity: this_cpu().affinity,
        queue: IrqLock::new(queue),
        waiting: AtomicU32::new(0),
        waiting_affinity: AtomicU64::new(0),
        attention: AtomicBool::new(false),
        release: AtomicBool::new(false),
        placed: AtomicU32::new(0),
    }));
    if let Some(slot) = CPUS.get(usize::from(id.0)) {
        slot.call_once(|| cpu);
    }
    // Threads that were made since then found no queue here to make room in.
    cpu.queue.lock().reserve();
    // Pairs with the loads of `IDLE` in `offer` and `drop_off`, and with that in `online`: whoever finds the CPU there finds its queue.
    // Those who change its bit of `IDLE` later read and write it at once, which passes this on.
    IDLE.fetch_or(1 << id.0, Ordering::Release);
    ONLINE.fetch_or(1 << id.0, Ordering::Release);
    cnthp_ctl_el2::write(0);
}

/// The CPUs that take part, a bit each.
#[must_use]
pub fn online() -> u64 {
    // Pairs with the release in `join`.
    ONLINE.load(Ordering::Acquire)
}

/// For how many ticks of the counter `thread` has run until now, for reports.
///
/// Its CPU charges it at the next switch. For a thread that is alone on its CPU that may be minutes away.
pub(crate) fn run_time(thread: &Thread) -> u64 {
    if let Some(cpu) = CPUS.get(thread.parking.home() as usize).and_then(Once::get) {
        let mut queue = cpu.queue.lock();
        // It may have moved since; then it was charged a moment ago.
        if core::ptr::eq(queue.running, thread) {
            queue.charge_until(cntpct_el0());
        }
    }
    thread.run_time.load(Ordering::Relaxed)
}

/// As [`run_time`], of the running thread.
pub(crate) fn own_run_time() -> u64 {
    without_irqs(|| run_time(current()))
}

/// Charges the running thread for so many ticks of the counter that another one ran on its account: it gives way, if somebody else
/// has a better claim by that.
pub(crate) fn charge(ticks: u64) {
    without_irqs(|| {
        this().queue.lock().run.charge(ticks);
        preempt();
    });
}

/// What an idle CPU does for ever: runs whoever becomes ready, zeroes free memory meanwhile.
pub(crate) fn idle() -> ! {
    let me = this();
    loop {
        reschedule(Outcome::Yield, Place::Elsewhere);
        if steal(me) {
            continue;
        }
        if host::memory::scrub_one() {
            continue;
        }
        // IRQs are masked: one that arrives from here on ends the WFI and is handled right after.
        // Pairs with the store in `enqueue`. Should that come a moment later, the KICK that follows it ends the WFI.
        if me.waiting.load(Ordering::Acquire) == 0 {
            hw::sysreg::wfi();
        }
        hw::sync::with_irqs(hw::sysreg::isb);
    }
}

/// What becomes of the thread that gives the CPU away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It stays ready, and lets whoever waits go first.
    Yield,
    /// It stays ready, and gives way only to whoever has a better claim, or if its slice is over.
    Preempt,
    /// It sleeps, until the count in [`block`]'s deadline if not NEVER.
    Sleep(u64),
    /// It goes on on another CPU.
    Move(CpuId),
}

/// Where a thread gives the CPU away, and goes on when it gets it back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the short path of its guest's exit, which ends in the guest again.
    ShortPath,
    /// Anywhere else.
    Elsewhere,
}

/// Lets other threads of this CPU run, if there are any.
pub fn yield_now() {
    without_irqs(|| {
        reschedule(Outcome::Yield, Place::Elsewhere);
    });
}

/// As [`yield_now`], on the short path of a guest's exit. IRQs are masked. Says whether others ran: then the caller brings what
/// its thread has in registers back itself, for no call through a pointer may be made here.
#[inline(always)]
#[must_use]
pub(crate) fn yield_on_short_path() -> bool {
    speculation::defer();
    reschedule(Outcome::Yield, Place::ShortPath)
}

/// Lets a thread with a better claim run, if there is one. IRQs are masked.
pub(crate) fn preempt() {
    let thread = current();
    if thread.destination.load(Ordering::Relaxed) != 0
        && let Some(to) = thread.take_destination()
        && to != this_cpu().cpu
    {
        reschedule(Outcome::Move(to), Place::Elsewhere);
        return;
    }
    reschedule(Outcome::Preempt, Place::Elsewhere);
}

/// Sleeps until somebody calls [`wake`] or the counter reaches `deadline`. No lock is held.
pub fn block(deadline: Option<Ticks>) {
    assert!(!is_unpreemptible(), "a thread that holds a lock must not sleep");
    without_irqs(|| {
        reschedule(Outcome::Sleep(deadline.map_or(NEVER, |ticks| ticks.0)), Place::Elsewhere);
    });
}

/// Goes on on `to`, which takes part, and may run nowhere else from now on. No lock is held.
pub fn move_to(to: CpuId) {
    assert!(!is_unpreemptible(), "a thread that holds a lock must not move");
    without_irqs(|| {
        current().affinity.store(1 << to.0, Ordering::Relaxed);
        if to != this_cpu().cpu {
            reschedule(Outcome::Move(to), Place::Elsewhere);
        }
    });
}

/// Whether this CPU was asked to look at its queue.
#[inline(always)]
#[must_use]
pub(crate) fn wants_reschedule() -> bool {
    this_cpu().reschedule.load(Ordering::Relaxed) != 0
}

/// Gives the CPU away, if there is somebody to have it. Says whether others ran meanwhile.
///
/// Inlined where it is called with one of the outcomes, so that a switch pays for none of the others.
#[inline(always)]
fn reschedule(outcome: Outcome, place: Place) -> bool {
    let me = this();
    let now = cntpct_el0();
    this_cpu().reschedule.store(0, Ordering::Relaxed);
    this_cpu().preempt_pending.store(0, Ordering::Relaxed);
    // Wherever the note above is taken back, or the request would stay, and with it no KICK: the next one who asks would wait for ever.
    // Pairs with the swap in `ask_to_release`: the request is taken once. Whose registers they are is looked up behind it.
    if place == Place::Elsewhere && me.release.load(Ordering::Relaxed) && me.release.swap(false, Ordering::AcqRel) {
        release(me);
    }
    // Before the queue's lock, which comes behind an occupant's; and before another CPU can find the thread, which would load registers
    // that are not in memory.
    if matches!(outcome, Outcome::Move(_))
        && let Some(occupant) = current().occupant.get()
    {
        occupant.registers.unload();
    }
    let mut queue = me.queue.lock_masked();
    let current = queue.running;
    queue.charge(now);
    if !queue.gives_way(current, outcome, now) {
        queue.arm_timer();
        return false;
    }
    let mut moving = None;
    if let Outcome::Move(to) = outcome {
        moving = queue.run.take_current().map(|mut entity| {
            queue.run.detach(&mut entity);
            (cpu(to), current.entity(entity.virtual_time()))
        });
    }
    let next = if outcome == Outcome::Yield { queue.run.yield_and_pick() } else { queue.run.pick() };
    let next = next.map_or(queue.idle, thread);
    queue.put_on(me, current, next, now);
    drop(queue);
    // The thread is still on its stack here, and `to` may choose it at once: its switch waits until `switch` below has stored the registers.
    if let Some((to, entity)) = moving {
        to.queue.lock_masked().enqueue(to, entity, Arrival::Moved);
    }
    if core::ptr::eq(next, current) {
        return false;
    }
    // Before the switch: what stands behind it runs when `current` continues, perhaps on another CPU.
    this_cpu().thread.store(u64::from(next.index), Ordering::Relaxed);
    switch(&current.context, &next.context);
    if place == Place::Elsewhere {
        speculation::settle();
        // Others ran here, or this is another CPU.
        if let Some(occupant) = current.occupant.get() {
            occupant.registers.resume();
        }
    }
    true
}

// What is counted before a site is accepted: twice what is there, for the queues grow by doubling, and the old place, which is
// free only when the new one is there.
const _: () = assert!(3 * ::sched::BYTES_OF_A_PLACE as u64 <= ::vm::needs::HEAP_OF_A_PLACE);

impl Queue {
    fn reserve(&mut self) {
        let threads = THREAD_COUNT.load(Ordering::Relaxed) as usize;
        self.run.reserve(threads);
        self.alarms.reserve(2 * threads);
    }

    /// Charges the running thread for its time.
    #[inline]
    fn charge(&mut self, now: u64) {
        let ran = self.charged.take(now);
        self.charge_for(ran);
    }

    /// As [`Queue::charge`], from wherever: its own CPU may have been at it a moment later than `now`.
    fn charge_until(&mut self, now: u64) {
        let ran = self.charged.take_until(now);
        self.charge_for(ran);
    }

    #[inline(always)]
    fn charge_for(&mut self, ran: u64) {
        let run_time = &self.running.run_time;
        run_time.store(run_time.load(Ordering::Relaxed) + ran, Ordering::Relaxed);
        self.run.charge(ran);
    }

    /// What becomes of the running thread `current`: says whether it gives the CPU away.
    #[inline(always)]
    fn gives_way(&mut self, current: &'static Thread, outcome: Outcome, now: u64) -> bool {
        if core::ptr::eq(current, self.idle) {
            return self.slice.somebody_waits(&self.run);
        }
        match outcome {
            Outcome::Sleep(deadline) => {
                if !current.parking.try_sleep() {
                    // It goes on. The flag that asked for a look at the queue is taken: whoever has come would wait without end.
                    self.slice.begin_if_none(&self.run, now);
                    return false;
                }
                if let Some(entity) = self.run.take_current() {
                    current.virtual_time.store(entity.virtual_time(), Ordering::Relaxed);
                }
                if deadline != NEVER {
                    self.alarms.set(current.sleep_slot(), deadline);
                }
                return true;
            }
            Outcome::Move(to) => {
                current.ready_since.store(now, Ordering::Relaxed);
                current.parking.preempted();
                current.parking.set_home(u32::from(to.0));
                return true;
            }
            Outcome::Yield | Outcome::Preempt => {}
        }
        if !self.slice.somebody_waits(&self.run) {
            return false;
        }
        if outcome == Outcome::Preempt && !self.run.should_preempt() && now < self.slice.end() {
            self.slice.begin_if_none(&self.run, now);
            return false;
        }
        current.ready_since.store(now, Ordering::Relaxed);
        current.parking.preempted();
        true
    }

    /// `next`, which was just chosen, runs on `me` from now on, `current` no longer.
    #[inline(always)]
    fn put_on(&mut self, me: &Cpu, current: &'static Thread, next: &'static Thread, now: u64) {
        let bit = 1 << me.id.0;
        self.running = next;
        if core::ptr::eq(next, self.idle) {
            // Pairs with the fence in `drop_off`: this CPU sets its bit and then, behind the fence in `steal`, looks
            // for threads that wait; whoever makes one wait says so and then, behind its fence, looks for idle CPUs. One of
            // the two sees the other, or a thread would wait beside a CPU that sleeps.
            IDLE.fetch_or(bit, Ordering::SeqCst);
        } else {
            next.parking.picked();
            let waited = now.saturating_sub(next.ready_since.load(Ordering::Relaxed));
            next.wait_time.store(next.wait_time.load(Ordering::Relaxed) + waited, Ordering::Relaxed);
            if core::ptr::eq(current, self.idle) {
                // It orders nothing: a CPU that is taken for idle a moment longer gets a thread that it runs next.
                IDLE.fetch_and(!bit, Ordering::Relaxed);
            }
        }
        let waiting = self.run.waiting();
        if waiting == 0 {
            // Pairs with the loads in `steal`, in one order with the bits of `IDLE`: see above.
            me.waiting.store(0, Ordering::SeqCst);
            me.waiting_affinity.store(0, Ordering::SeqCst);
            self.slice.somebody_waits(&self.run);
            self.cancel_round();
        } else {
            // First where, then that: an idle CPU that sees somebody wait also sees that it may take it.
            let affinity = current.affinity.load(Ordering::Relaxed);
            if affinity & !me.waiting_affinity.load(Ordering::Relaxed) != 0 {
                // Pairs with the load behind that of `waiting` in `steal`.
                me.waiting_affinity.fetch_or(affinity, Ordering::SeqCst);
            }
            // Pairs with the load in `steal`.
            me.waiting.store(waiting as u32, Ordering::SeqCst);
            self.slice.begin(&self.run, now);
        }
        self.arm_timer();
    }

    /// Puts `entity`, which is ready, on this queue of `target`'s, and sees to it that it is noticed.
    fn enqueue(&mut self, target: &Cpu, entity: Entity, arrival: Arrival) {
        let now = cntpct_el0();
        self.charge_until(now);
        // Pairs with the loads in `steal`, which come in the other order: whoever sees somebody wait sees where it may go.
        target.waiting_affinity.fetch_or(entity.affinity.0, Ordering::SeqCst);
        let is_in_a_hurry = self.run.enqueue(entity, arrival);
        target.waiting.store(self.run.waiting() as u32, Ordering::SeqCst);
        self.plan_round(target, now);
        if self.slice.is_none() || self.run.should_preempt() {
            notify(target);
        }
        if is_in_a_hurry {
            self.hurry(target, now);
        }
    }

    /// Somebody woke on `target`, whose queue this is, who is to be served soon and not at once: slices are the shortest until it was.
    #[cold]
    #[inline(never)]
    fn hurry(&mut self, target: &Cpu, now: u64) {
        if self.slice.hurry(&self.run, now) {
            if target.id == this_cpu().cpu {
                self.arm_timer();
            } else {
                // Its timer is its own to set.
                notify(target);
            }
        }
    }

    /// Sets this CPU's timer, whose queue this is.
    fn arm_timer(&self) {
        let deadline = self.slice.end().min(self.alarms.next().unwrap_or(NEVER));
        if deadline == NEVER {
            cnthp_ctl_el2::write(0);
        } else {
            cnthp_cval_el2::write(deadline);
            cnthp_ctl_el2::write(1);
        }
    }
}

/// Makes `target` look at its queue soon. IRQs are masked.
fn notify(target: &Cpu) {
    if target.id == this_cpu().cpu {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    // Pairs with the swap in `kicked`: a sender that still finds it set relies on the KICK that is under way, whose handler then sees the
    // queue as it is now.
    } else if !target.attention.swap(true, Ordering::AcqRel) {
        gic::send_sgi(target.affinity, gic::KICK);
    }
}

/// Wakes `thread` if it sleeps; otherwise its next [`block`] returns at once.
pub fn wake(thread: &'static Thread) {
    without_irqs(|| {
        loop {
            let home = thread.home();
            let mut queue = home.queue.lock();
            // It may have moved before the lock was ours.
            if core::ptr::eq(home, thread.home()) {
                if thread.parking.try_wake() {
                    queue.alarms.cancel(thread.sleep_slot());
                    thread.ready_since.store(cntpct_el0(), Ordering::Relaxed);
                    drop_off(thread, home, queue);
                }
                return;
            }
        }
    });
}

/// Puts `thread`, just woken, on its home's queue, or on that of an idle CPU if the home is busy.
fn drop_off(thread: &'static Thread, home: &'static Cpu, mut queue: hw::sync::IrqGuard<'_, Queue>) {
    let mut entity = thread.entity(thread.virtual_time.load(Ordering::Relaxed));
    let others = IDLE.load(Ordering::Relaxed) & thread.affinity.load(Ordering::Relaxed);
    if others == 0 || queue.run.is_empty() || !thread.is_movable() {
        queue.enqueue(home, entity, Arrival::Woken);
        let busy = queue.run.current().is_some();
        drop(queue);
        // A CPU that became idle meanwhile either sees the thread waiting, or is seen here.
        // Pairs with the fence in `steal`.
        fence(Ordering::SeqCst);
        if busy {
            offer(thread);
        }
        return;
    }
    // Pairs with the release in `join`, whose bit was read above: that CPU's queue is there. Only here, since most that wake somebody do
    // not come so far.
    fence(Ordering::Acquire);
    let to = cpu(CpuId(others.trailing_zeros() as u16));
    queue.run.detach(&mut entity);
    thread.parking.set_home(u32::from(to.id.0));
    drop(queue);
    to.queue.lock().enqueue(to, entity, Arrival::Moved);
}

/// Lets an idle CPU know of a thread that has to wait where it is.
fn offer(thread: &Thread) {
    // Pairs with the bit that `put_on` sets, and with the release in `join`.
    let idle = IDLE.load(Ordering::SeqCst) & thread.affinity.load(Ordering::Relaxed);
    if idle != 0 {
        notify(cpu(CpuId(idle.trailing_zeros() as u16)));
    }
}

/// Wakes `thread` when the counter reaches `deadline`, wherever it is then.
pub(crate) fn wake_at(thread: &'static Thread, deadline: Ticks) {
    without_irqs(|| {
        let mut queue = this().queue.lock_masked();
        queue.alarms.set_earlier(thread.alarm_slot(), deadline.0);
        queue.arm_timer();
    });
}

/// Asks the running thread's occupant ([`Occupant::alarm`]) when the counter reaches `deadline`.
pub(crate) fn set_alarm(deadline: Ticks) {
    without_irqs(|| {
        let slot = current().alarm_slot();
        let mut queue = this().queue.lock_masked();
        queue.alarms.set(slot, deadline.0);
        queue.arm_timer();
    });
}

/// Asks something of `thread`, wherever it is: a bit in `requests`, at which it looks before it goes on with what it is for.
pub(crate) fn ask(thread: &'static Thread, requests: &AtomicU32, what: u32) {
    // Pairs with the thread's own look, an acquire: what was written before is seen by whoever finds the bit.
    let before = requests.fetch_or(what, Ordering::AcqRel);
    if before & what != what {
        interrupt(thread);
    }
    wake(thread);
}

/// Interrupts whatever CPU runs `thread` now, so that it looks at what is asked of it.
pub(crate) fn interrupt(thread: &'static Thread) {
    without_irqs(|| {
        if thread.is_running() {
            let home = thread.home();
            if home.id != this_cpu().cpu {
                gic::send_sgi(home.affinity, gic::KICK);
            }
        }
    });
}

/// The EL2 timer fired on this CPU: wakes sleepers and ends slices.
pub(crate) fn timer_fired() {
    let me = this();
    let now = cntpct_el0();
    loop {
        let mut queue = me.queue.lock();
        let Some(alarm) = queue.alarms.take_due(now) else { break };
        let idle = queue.idle;
        drop(queue);
        let thread = thread(ThreadId(alarm.slot / 2));
        match thread.occupant.get() {
            Some(occupant) => ask(thread, occupant.requests, occupant.alarm),
            None if core::ptr::eq(thread, idle) => balance::round(me, now),
            None => wake(thread),
        }
    }
    let queue = me.queue.lock();
    if queue.slice.end() <= now {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
        // Until the thread gives way there is nothing to fire for; if it does not, the timer fires again at once.
        cnthp_ctl_el2::write(0);
    } else {
        queue.arm_timer();
    }
}

/// A KICK arrived: somebody put a thread on this CPU's queue, or wants the running vCPU's attention.
pub(crate) fn kicked() {
    let me = this();
    // Pairs with the swap in `notify`: what was put on the queue before it is seen from here on.
    if me.attention.swap(false, Ordering::AcqRel) {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    }
    if me.release.load(Ordering::Relaxed) {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    }
}

/// For checks: this CPU's next interrupt is a request to look at its queue, which is pending from now on. IRQs are masked.
pub fn nudge_self() {
    let me = this();
    // Pairs with the swap in `kicked`.
    me.attention.store(true, Ordering::Release);
    gic::send_sgi(me.affinity, gic::KICK);
}

/// For checks: makes all other CPUs look at their queues.
pub fn nudge_others() {
    without_irqs(|| {
        for cpu in CPUS.iter().filter_map(Once::get).filter(|cpu| cpu.id != this_cpu().cpu) {
            notify(cpu);
        }
    });
}

/// Empties this CPU's registers while something else runs, so that the thread to which they belong can go elsewhere. IRQs are
/// masked.
fn release(me: &'static Cpu) {
    let loaded = loaded_on(me);
    if loaded != NOBODY
        && loaded != current().index
        && let Some(occupant) = thread(ThreadId(loaded)).occupant.get()
    {
        occupant.registers.unload();
        offer(thread(ThreadId(loaded)));
    }
}

/// Asks CPU `on` to put into memory what it has in its registers of somebody who does not run.
pub(crate) fn ask_to_release(on: CpuId) {
    let cpu = cpu(on);
    // Pairs with the swap in `reschedule`: a request that is found there already has its KICK.
    if !cpu.release.load(Ordering::Relaxed) && !cpu.release.swap(true, Ordering::AcqRel) {
        without_irqs(|| gic::send_sgi(cpu.affinity, gic::KICK));
    }
}

/// Takes one waiting thread from another queue, for a CPU that has nothing to do. Says whether it found one.
fn steal(me: &'static Cpu) -> bool {
    // Pairs with the fence in `drop_off`: behind it, either a thread is seen that waits, or whoever makes it wait sees this CPU idle.
    fence(Ordering::SeqCst);
    let busy = |cpu: &&'static Cpu| {
        cpu.id != me.id
            // Pairs with the stores in `enqueue` and `put_on`.
            && cpu.waiting.load(Ordering::SeqCst) > 0
            && Affinity(cpu.waiting_affinity.load(Ordering::SeqCst)).allows(me.id)
    };
    for victim in CPUS.iter().filter_map(Once::get).copied().filter(busy) {
        let mut queue = victim.queue.lock();
        let stolen = queue.run.steal(me.id, |id| thread(id).is_movable());
        if let Some(entity) = stolen {
            // Pairs with the loads of other CPUs in `steal`.
            victim.waiting.store(queue.run.waiting() as u32, Ordering::SeqCst);
            thread(entity.thread).parking.set_home(u32::from(me.id.0));
            drop(queue);
            me.queue.lock().enqueue(me, entity, Arrival::Moved);
            return true;
        }
        drop(queue);
        // It may be loaded elsewhere a moment later: then the victim looks in vain.
        let loaded = loaded_on(victim);
        let holds_another = loaded != NOBODY && {
            let thread = thread(ThreadId(loaded));
            !thread.is_running() && thread.may_run_on(me.id)
        };
        if holds_another {
            ask_to_release(victim.id);
        }
    }
    false
}

/// The CPU a new thread starts on: of those that `affinity` allows the one with the least weight placed on it.
fn place(affinity: u64, weight: u16) -> &'static Cpu {
    let allowed = CPUS.iter().filter_map(Once::get).copied().filter(|cpu| affinity >> cpu.id.0 & 1 != 0);
    let home = allowed.min_by_key(|cpu| cpu.placed.load(Ordering::Relaxed)).unwrap_or_else(this);
    home.placed.fetch_add(u32::from(weight), Ordering::Relaxed);
    home
}

/// Whether `thread` finds a CPU that none of `all`, the threads of the host's vCPUs, needs but itself.
pub(crate) fn has_cpu_of_its_own(thread: &Thread, all: impl Iterator<Item = &'static Thread>) -> bool {
    let affinity = |thread: &Thread| Affinity(thread.affinity.load(Ordering::Relaxed));
    ::sched::has_cpu_of_its_own(affinity(thread), all.map(affinity), online())
}
