//! Threads on CPUs: who runs, who waits, who is woken.
//!
//! Every vCPU and every worker of the hypervisor is a thread; each CPU has a run queue, a list of sleepers and an idle
//! thread (what the CPU booted on). A thread sits on the queue of its home CPU; an idle CPU takes a waiting thread from a
//! busy one and becomes its home.
//!
//! IRQs are masked while anything here changes, and threads run with IRQs masked except where they let them in on
//! purpose ([`hw::sync::with_irqs`]); there they are preempted by the EL2 timer. The choice among waiting threads is by
//! weighted virtual run time: who has had least, relative to its weight, runs next, for one slice.
//!
//! Lost wake-ups: [`wake`] leaves a token if the thread does not sleep, and [`block`] returns at once when it finds one.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use hw::gic;
use hw::percpu::this_cpu;
use hw::sync::IrqLock;
use hw::sysreg::{cnthp_ctl_el2, cnthp_cval_el2, cntpct_el0};
use hw::thread::{self, Context};
use spin::Once;
use units::{CpuId, Ticks, Va};

use crate::vcpu::{Vcpu, request};
use crate::{host, interrupts};

/// How many threads there can be.
pub(crate) const MAX_THREADS: usize = 1024;
/// How long a thread runs before another one that waits gets its turn, in microseconds.
const SLICE_MICROSECONDS: u64 = 5_000;
/// No deadline.
const NEVER: u64 = u64::MAX;
/// The weight by which virtual run time is real run time.
const UNIT_WEIGHT: u64 = 100;

const RUNNING: u8 = 0;
const READY: u8 = 1;
const BLOCKED: u8 = 2;

/// One thread. Lives for ever.
pub(crate) struct Thread {
    /// What it is for, in reports.
    pub(crate) name: &'static str,
    /// Its number, the index in the table of threads.
    index: usize,
    context: Context,
    /// The CPU on whose queue it sits or sat; changes under both queues' rules (see [`steal`]).
    home: AtomicU32,
    /// RUNNING, READY or BLOCKED; changes under the home queue's lock.
    state: AtomicU8,
    /// A wake-up that came while it was not blocked.
    token: AtomicBool,
    /// Its share, relative to other threads.
    weight: AtomicU32,
    /// The CPUs it may run on, a bit each.
    affinity: AtomicU64,
    /// Run time so far, scaled by weight.
    virtual_time: AtomicU64,
    /// Ticks of the counter it has run.
    run_time: AtomicU64,
    /// When it was last put on a CPU.
    since: AtomicU64,
    /// The vCPU that it runs, if it is one's thread.
    vcpu: Once<&'static Vcpu>,
}

/// One CPU's part of the scheduler.
pub(crate) struct Cpu {
    /// Which one.
    pub(crate) id: CpuId,
    affinity: u64,
    queue: IrqLock<Queue>,
    /// Whether it has nothing to run.
    idle: AtomicBool,
    /// The vCPU whose state is in this CPU's registers.
    loaded: IrqLock<Option<&'static Vcpu>>,
}

struct Queue {
    ready: Vec<&'static Thread>,
    sleepers: Vec<(u64, &'static Thread)>,
    idle: &'static Thread,
    /// Virtual time of the one that ran last: where newcomers start.
    virtual_now: u64,
    /// When the running thread's slice ends; NEVER while nobody waits.
    slice_end: u64,
}

static THREADS: [Once<&'static Thread>; MAX_THREADS] = [const { Once::new() }; MAX_THREADS];
static THREAD_COUNT: AtomicU32 = AtomicU32::new(0);
static CPUS: [Once<&'static Cpu>; platform::MAX_CPUS] = [const { Once::new() }; platform::MAX_CPUS];
/// The CPUs that take part, a bit each.
static ONLINE: AtomicU64 = AtomicU64::new(0);

impl Thread {
    fn register(name: &'static str, context: Context, home: CpuId, weight: u16, affinity: u64) -> &'static Self {
        let index = THREAD_COUNT.fetch_add(1, Ordering::Relaxed) as usize;
        let thread: &'static Self = Box::leak(Box::new(Self {
            name,
            index,
            context,
            home: AtomicU32::new(u32::from(home.0)),
            state: AtomicU8::new(BLOCKED),
            token: AtomicBool::new(false),
            weight: AtomicU32::new(u32::from(weight.max(1))),
            affinity: AtomicU64::new(affinity),
            virtual_time: AtomicU64::new(0),
            run_time: AtomicU64::new(0),
            since: AtomicU64::new(0),
            vcpu: Once::new(),
        }));
        if let Some(slot) = THREADS.get(index) {
            slot.call_once(|| thread);
        }
        thread
    }

    /// A thread that will run `entry(argument)` once it is woken, at first on `home`.
    ///
    /// # Errors
    /// When there is no memory for its stack or no place in the table.
    pub(crate) fn spawn(
        name: &'static str,
        entry: fn(usize) -> !,
        argument: usize,
        home: CpuId,
        (weight, affinity): (u16, u64),
    ) -> Result<&'static Self, frames::FramesError> {
        if THREAD_COUNT.load(Ordering::Relaxed) as usize >= MAX_THREADS {
            return Err(frames::FramesError::OutOfFrames);
        }
        let stack: Va = crate::memory::allocate_stack()?;
        Ok(Self::register(name, Context::new(stack, entry, argument), home, weight, affinity))
    }

    /// Says which vCPU this thread runs; once.
    pub(crate) fn set_vcpu(&self, vcpu: &'static Vcpu) {
        self.vcpu.call_once(|| vcpu);
    }

    /// Ticks of the counter that it has run.
    #[must_use]
    pub(crate) fn run_time(&self) -> u64 {
        self.run_time.load(Ordering::Relaxed)
    }

    /// Whether it runs right now, on whichever CPU.
    #[must_use]
    pub(crate) fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    fn home(&self) -> &'static Cpu {
        cpu(CpuId(self.home.load(Ordering::Acquire) as u16))
    }
}

/// The running thread.
#[must_use]
pub(crate) fn current() -> &'static Thread {
    let index = this_cpu().thread.load(Ordering::Relaxed) as usize;
    match THREADS.get(index).and_then(Once::get) {
        Some(thread) => thread,
        None => unreachable!("a CPU runs a thread that is not in the table"),
    }
}

fn cpu(id: CpuId) -> &'static Cpu {
    match CPUS.get(usize::from(id.0)).and_then(Once::get) {
        Some(cpu) => cpu,
        None => unreachable!("CPU {} takes no part in scheduling", id.0),
    }
}

/// This CPU's part of the scheduler.
#[must_use]
pub(crate) fn this() -> &'static Cpu {
    cpu(this_cpu().cpu)
}

/// Makes this CPU take part; what runs now becomes its idle thread. IRQs are masked.
pub(crate) fn join() {
    let id = this_cpu().cpu;
    let idle = Thread::register("idle", Context::of_running(), id, 1, 1 << id.0);
    idle.state.store(RUNNING, Ordering::Relaxed);
    this_cpu().thread.store(idle.index as u64, Ordering::Relaxed);
    let queue = Queue {
        ready: Vec::with_capacity(64),
        sleepers: Vec::with_capacity(64),
        idle,
        virtual_now: 0,
        slice_end: NEVER,
    };
    let cpu: &'static Cpu = Box::leak(Box::new(Cpu {
        id,
        affinity: this_cpu().affinity,
        queue: IrqLock::new(queue),
        idle: AtomicBool::new(true),
        loaded: IrqLock::new(None),
    }));
    if let Some(slot) = CPUS.get(usize::from(id.0)) {
        slot.call_once(|| cpu);
    }
    ONLINE.fetch_or(1 << id.0, Ordering::Release);
    cnthp_ctl_el2::write(0);
}

/// The CPUs that take part, a bit each.
#[must_use]
pub(crate) fn online() -> u64 {
    ONLINE.load(Ordering::Acquire)
}

/// What an idle CPU does for ever: runs whoever becomes ready, zeroes free memory meanwhile.
pub(crate) fn idle() -> ! {
    let me = this();
    loop {
        reschedule(Outcome::Yield);
        if steal(me) {
            continue;
        }
        if crate::memory::scrub_one() {
            continue;
        }
        // IRQs are masked: one that arrives from here on ends the WFI and is handled right after.
        if me.queue.lock().ready.is_empty() {
            hw::sysreg::wfi();
        }
        hw::sync::with_irqs(hw::sysreg::isb);
    }
}

/// What becomes of the thread that gives the CPU away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It stays ready.
    Yield,
    /// It sleeps, until the count in [`block`]'s deadline if not NEVER.
    Block(u64),
}

/// Lets other threads of this CPU run, if there are any. IRQs are masked.
pub(crate) fn yield_now() {
    reschedule(Outcome::Yield);
}

/// Sleeps until somebody calls [`wake`] or the counter reaches `deadline`. IRQs are masked.
pub(crate) fn block(deadline: Option<Ticks>) {
    reschedule(Outcome::Block(deadline.map_or(NEVER, |ticks| ticks.0)));
}

/// Whether this CPU was asked to look at its queue.
#[must_use]
pub(crate) fn wants_reschedule() -> bool {
    this_cpu().reschedule.load(Ordering::Relaxed) != 0
}

fn reschedule(outcome: Outcome) {
    let me = this();
    let current = current();
    this_cpu().reschedule.store(0, Ordering::Relaxed);
    let now = cntpct_el0();
    let next = {
        let mut queue = me.queue.lock();
        charge(current, &mut queue, now);
        let is_idle = core::ptr::eq(current, queue.idle);
        match outcome {
            Outcome::Block(_) if current.token.swap(false, Ordering::AcqRel) => return,
            Outcome::Block(deadline) => {
                current.state.store(BLOCKED, Ordering::Release);
                if deadline != NEVER {
                    queue.sleepers.push((deadline, current));
                }
            }
            Outcome::Yield if is_idle => {}
            Outcome::Yield => {
                if queue.ready.is_empty() {
                    queue.slice_end = NEVER;
                    arm_timer(&queue);
                    return;
                }
                current.state.store(READY, Ordering::Release);
                queue.ready.push(current);
            }
        }
        let next = pick(&mut queue);
        next.state.store(RUNNING, Ordering::Release);
        next.since.store(now, Ordering::Relaxed);
        let next_is_idle = core::ptr::eq(next, queue.idle);
        me.idle.store(next_is_idle, Ordering::Release);
        queue.slice_end =
            if queue.ready.is_empty() { NEVER } else { now.saturating_add(host::ticks(SLICE_MICROSECONDS)) };
        arm_timer(&queue);
        next
    };
    if !core::ptr::eq(next, current) {
        this_cpu().thread.store(next.index as u64, Ordering::Relaxed);
        thread::switch(&current.context, &next.context);
    }
    // Another CPU may have this thread now.
    if let Some(vcpu) = current.vcpu.get() {
        vcpu.ensure_loaded();
    }
}

/// Adds the time since the thread was last looked at.
fn charge(thread: &Thread, queue: &mut Queue, now: u64) {
    let ran = now.saturating_sub(thread.since.swap(now, Ordering::Relaxed));
    thread.run_time.fetch_add(ran, Ordering::Relaxed);
    let scaled = ran.saturating_mul(UNIT_WEIGHT) / u64::from(thread.weight.load(Ordering::Relaxed));
    let virtual_time = thread.virtual_time.load(Ordering::Relaxed).saturating_add(scaled);
    thread.virtual_time.store(virtual_time, Ordering::Relaxed);
    if !core::ptr::eq(thread, queue.idle) {
        queue.virtual_now = queue.virtual_now.max(virtual_time.min(queue.virtual_now.saturating_add(scaled)));
    }
}

/// The waiting thread with the least virtual run time, or the idle thread.
fn pick(queue: &mut Queue) -> &'static Thread {
    let least = queue.ready.iter().enumerate().min_by_key(|(_, thread)| thread.virtual_time.load(Ordering::Relaxed));
    match least.map(|(index, _)| index) {
        Some(index) => queue.ready.swap_remove(index),
        None => queue.idle,
    }
}

fn arm_timer(queue: &Queue) {
    let deadline = queue.sleepers.iter().map(|&(deadline, _)| deadline).fold(queue.slice_end, u64::min);
    if deadline == NEVER {
        cnthp_ctl_el2::write(0);
    } else {
        cnthp_cval_el2::write(deadline);
        cnthp_ctl_el2::write(1);
    }
}

/// Puts a thread that is not running on `queue`, its lock held.
fn enqueue(queue: &mut Queue, thread: &'static Thread, me: &Cpu) {
    thread.state.store(READY, Ordering::Release);
    queue.sleepers.retain(|&(_, sleeper)| !core::ptr::eq(sleeper, thread));
    // Who slept long gets a slice's advantage, not all the time it missed.
    let credit = host::ticks(SLICE_MICROSECONDS);
    let floor = queue.virtual_now.saturating_sub(credit);
    thread.virtual_time.fetch_max(floor, Ordering::Relaxed);
    queue.ready.push(thread);
    notify(me);
}

/// Makes `cpu` look at its queue soon.
fn notify(target: &Cpu) {
    if target.id == this_cpu().cpu {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    } else {
        gic::send_sgi(target.affinity, gic::KICK);
    }
}

/// Wakes `thread` if it sleeps; otherwise its next [`block`] returns at once.
pub(crate) fn wake(thread: &'static Thread) {
    loop {
        let home = thread.home();
        let mut queue = home.queue.lock();
        if !core::ptr::eq(home, thread.home()) {
            continue;
        }
        if thread.state.load(Ordering::Acquire) == BLOCKED {
            enqueue(&mut queue, thread, home);
            drop(queue);
            if !home.idle.load(Ordering::Acquire) {
                offer(thread);
            }
        } else {
            thread.token.store(true, Ordering::Release);
        }
        return;
    }
}

/// Lets an idle CPU know of a thread that has to wait where it is.
fn offer(thread: &Thread) {
    let affinity = thread.affinity.load(Ordering::Relaxed);
    let idle = |cpu: &&&'static Cpu| cpu.idle.load(Ordering::Acquire) && affinity >> cpu.id.0 & 1 != 0;
    if let Some(cpu) = CPUS.iter().filter_map(Once::get).find(idle) {
        notify(cpu);
    }
}

/// Wakes `thread` when the counter reaches `deadline`, wherever it is then.
pub(crate) fn wake_at(thread: &'static Thread, deadline: Ticks) {
    let mut queue = this().queue.lock();
    queue.sleepers.push((deadline.0, thread));
    arm_timer(&queue);
}

/// Tells the running vCPU ([`request::TIMER`]) when the counter reaches `deadline`.
pub(crate) fn set_alarm(deadline: Ticks) {
    let thread = current();
    let mut queue = this().queue.lock();
    let known = queue.sleepers.iter().any(|&(at, sleeper)| at == deadline.0 && core::ptr::eq(sleeper, thread));
    if !known {
        queue.sleepers.push((deadline.0, thread));
        arm_timer(&queue);
    }
}

/// Interrupts whatever CPU runs `thread` now, so that it looks at what is asked of it.
pub(crate) fn interrupt(thread: &'static Thread) {
    if thread.is_running() {
        let home = thread.home();
        if home.id != this_cpu().cpu {
            gic::send_sgi(home.affinity, gic::KICK);
        }
    }
}

/// The EL2 timer fired on this CPU: wakes sleepers and ends slices.
pub(crate) fn timer_fired() {
    let me = this();
    let now = cntpct_el0();
    loop {
        let mut queue = me.queue.lock();
        let Some(index) = queue.sleepers.iter().position(|&(deadline, _)| deadline <= now) else { break };
        let (_, thread) = queue.sleepers.swap_remove(index);
        drop(queue);
        match thread.vcpu.get() {
            Some(vcpu) => vcpu.request(request::TIMER),
            None => wake(thread),
        }
    }
    let mut queue = me.queue.lock();
    if queue.slice_end <= now {
        queue.slice_end = NEVER;
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    }
    arm_timer(&queue);
}

/// A KICK arrived: somebody put a thread on this CPU's queue, or wants the running vCPU's attention.
pub(crate) fn kicked() {
    this_cpu().reschedule.store(1, Ordering::Relaxed);
}

/// Takes one waiting thread from the busiest queue, for a CPU that has nothing to do. Says whether it found one.
///
/// A thread whose vCPU is still loaded where it waits stays there: only that CPU can save its registers.
fn steal(me: &'static Cpu) -> bool {
    let victims = CPUS.iter().filter_map(Once::get).filter(|cpu| cpu.id != me.id && !cpu.idle.load(Ordering::Acquire));
    for victim in victims {
        let stolen = {
            let Some(mut queue) = victim.queue.try_lock() else { continue };
            let found = queue.ready.iter().position(|thread| {
                thread.affinity.load(Ordering::Relaxed) & 1 << me.id.0 != 0
                    && thread.vcpu.get().is_none_or(|vcpu| !vcpu.is_loaded())
            });
            let Some(index) = found else { continue };
            let thread = queue.ready.swap_remove(index);
            thread.home.store(u32::from(me.id.0), Ordering::Release);
            // Virtual times of different queues have different origins: keep only the lead over the others.
            let lead = thread.virtual_time.load(Ordering::Relaxed).saturating_sub(queue.virtual_now);
            thread.virtual_time.store(lead, Ordering::Relaxed);
            thread
        };
        let mut queue = me.queue.lock();
        let lead = stolen.virtual_time.load(Ordering::Relaxed);
        stolen.virtual_time.store(queue.virtual_now.saturating_add(lead), Ordering::Relaxed);
        queue.ready.push(stolen);
        return true;
    }
    false
}

/// How many other threads want this CPU right now.
#[must_use]
pub(crate) fn is_contended() -> bool {
    !this().queue.lock().ready.is_empty()
}

impl Cpu {
    /// The vCPU whose state is in this CPU's registers.
    #[must_use]
    pub(crate) fn loaded(&self) -> &IrqLock<Option<&'static Vcpu>> {
        &self.loaded
    }
}

/// The interrupt hook: an interrupt arrived while this CPU was in EL2 with IRQs let in.
pub(crate) extern "C" fn interrupt_in_el2() {
    interrupts::handle();
    if wants_reschedule() {
        yield_now();
    }
}

/// The CPU a new thread starts on: the next one in turn of those that `affinity` allows.
#[must_use]
pub(crate) fn place(affinity: u64) -> CpuId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let allowed = match affinity & online() {
        0 => online(),
        some => some,
    };
    let nth = NEXT.fetch_add(1, Ordering::Relaxed) % allowed.count_ones();
    let cpu = (0..64_u16).filter(|cpu| allowed >> cpu & 1 != 0).nth(nth as usize);
    CpuId(cpu.unwrap_or(0))
}
