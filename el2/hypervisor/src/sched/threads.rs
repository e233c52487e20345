//! A thread: what is known about it, and the table of all threads.

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ::sched::{Affinity, Entity, Parking, ThreadId, Weight};
use hw::percpu::this_cpu;
use hw::thread::Context;
use spin::Once;
use units::{CpuId, Ticks, Va};

use super::{CPUS, Cpu, NOBODY, cpu, online, place};
use crate::host::memory;

/// How many threads there can be.
pub(crate) const MAX_THREADS: usize = 1024;

/// State in a CPU's registers that is not the thread's own.
pub(crate) trait Registers: Sync {
    /// Its thread goes on after others ran, perhaps on another CPU. IRQs are masked. Never called on the short path of an exit,
    /// where a call through a table of functions must not be.
    fn resume(&'static self);

    /// It is to leave this CPU's registers, if it is there. IRQs are masked; its thread is here, or does not run.
    fn unload(&'static self);
}

/// What a thread has in its CPU's registers beside its own, as far as the scheduler knows it.
pub(crate) struct Occupant {
    /// How it is moved.
    pub(crate) registers: &'static dyn Registers,
    /// On which CPU it is; [`NOBODY`] while it is in memory.
    pub(crate) loaded_on: &'static AtomicU32,
    /// What is asked of it, a bit each.
    pub(crate) requests: &'static AtomicU32,
    /// The bit that says that its alarm ([`super::set_alarm`]) rang.
    pub(crate) alarm: u32,
}

/// One thread. Lives for ever.
pub struct Thread {
    /// What it is for, in reports.
    pub name: &'static str,
    /// Its number, the index in the table of threads.
    pub index: u32,
    pub(super) context: Context,
    /// Whether it runs, waits or sleeps, and where.
    pub(super) parking: Parking,
    pub(super) weight: Weight,
    /// The CPUs it may run on, a bit each.
    pub(super) affinity: AtomicU64,
    /// Its virtual run time while it sleeps; under its home's lock.
    pub(super) virtual_time: AtomicU64,
    /// Ticks of the counter it has run, when it was last charged for them; see [`super::run_time`].
    pub(super) run_time: AtomicU64,
    /// Ticks of the counter it was ready and did not run.
    pub(super) wait_time: AtomicU64,
    /// Since when it waits.
    pub(super) ready_since: AtomicU64,
    /// Where its next preemption takes it: 0 nowhere, or a CPU's number plus 1.
    pub(super) destination: AtomicU32,
    /// What it has in its CPU's registers beside its own.
    pub(super) occupant: Once<Occupant>,
}

static THREADS: [Once<&'static Thread>; MAX_THREADS] = [const { Once::new() }; MAX_THREADS];
pub(super) static THREAD_COUNT: AtomicU32 = AtomicU32::new(0);

/// How many threads there are.
pub(crate) fn thread_count() -> u32 {
    THREAD_COUNT.load(Ordering::Relaxed)
}

impl Thread {
    pub(super) fn register(
        name: &'static str,
        context: Context,
        parking: Parking,
        weight: u16,
        affinity: u64,
    ) -> &'static Self {
        let index = THREAD_COUNT.fetch_add(1, Ordering::Relaxed);
        let thread: &'static Self = Box::leak(Box::new(Self {
            name,
            index,
            context,
            parking,
            weight: Weight::new(u32::from(weight)),
            affinity: AtomicU64::new(affinity),
            virtual_time: AtomicU64::new(0),
            run_time: AtomicU64::new(0),
            wait_time: AtomicU64::new(0),
            ready_since: AtomicU64::new(0),
            destination: AtomicU32::new(0),
            occupant: Once::new(),
        }));
        if let Some(slot) = THREADS.get(index as usize) {
            slot.call_once(|| thread);
        }
        // Room for everybody everywhere, so that no switch and no wake-up allocates.
        for cpu in CPUS.iter().filter_map(Once::get) {
            cpu.queue.lock().reserve();
        }
        thread
    }

    /// A thread that will run `entry(argument)` once it is woken, on one of the CPUs in `affinity`, with `weight`.
    ///
    /// # Errors
    /// When there is no memory for its stack or no place in the table.
    pub fn spawn(
        name: &'static str,
        entry: fn(usize) -> !,
        argument: usize,
        (weight, affinity): (u16, u64),
    ) -> Result<&'static Self, frames::FramesError> {
        if THREAD_COUNT.load(Ordering::Relaxed) as usize >= MAX_THREADS {
            return Err(frames::FramesError::OutOfFrames);
        }
        let affinity = match affinity & online() {
            0 => {
                log::warn!("{name}: none of the CPUs that it may run on is there; it may run on all");
                online()
            }
            some => some,
        };
        let stack: Va = memory::allocate_stack()?;
        let home = place(affinity, weight);
        let parking = Parking::asleep(u32::from(home.id.0));
        Ok(Self::register(name, Context::new(stack, entry, argument), parking, weight, affinity))
    }

    /// Whether it has something in its CPU's registers beside its own.
    #[must_use]
    pub fn has_occupant(&self) -> bool {
        self.occupant.get().is_some()
    }

    /// Says what this thread has in its CPU's registers; once, before it runs.
    pub(crate) fn set_occupant(&self, occupant: Occupant) {
        self.occupant.call_once(|| occupant);
    }

    /// For how long it could have run and did not, for others ran: a counter that advances with the host's, while it waits.
    #[must_use]
    pub(crate) fn wait_time(&self) -> Ticks {
        Ticks(self.wait_time.load(Ordering::Relaxed))
    }

    /// Whether it runs right now, on whichever CPU.
    #[must_use]
    pub(crate) fn is_running(&self) -> bool {
        self.parking.is_running()
    }

    /// Its next preemption takes it to `cpu`.
    pub fn migrate(&self, cpu: CpuId) {
        self.destination.store(u32::from(cpu.0) + 1, Ordering::Relaxed);
    }

    /// Its next preemption takes it to `cpu`, unless it is to go elsewhere already. Says whether it will.
    pub fn send(&self, cpu: CpuId) -> bool {
        let free = self.destination.load(Ordering::Relaxed) == 0;
        if free {
            self.migrate(cpu);
        }
        free
    }

    /// For checks: it may run on `cpu` alone, as soon as it waits or is preempted the next time.
    pub fn restrict_to(&self, cpu: CpuId) {
        self.affinity.store(1 << cpu.0, Ordering::Relaxed);
    }

    pub(super) fn home(&self) -> &'static Cpu {
        cpu(CpuId(self.parking.home() as u16))
    }

    pub(super) fn entity(&self, virtual_time: u64) -> Entity {
        let affinity = Affinity(self.affinity.load(Ordering::Relaxed));
        Entity::resumed(ThreadId(self.index), self.weight, affinity, virtual_time)
    }

    /// Its slot among a queue's alarms for the end of its sleep.
    pub(super) fn sleep_slot(&self) -> u32 {
        2 * self.index
    }

    /// Its slot for what it wants to be told of while it runs.
    pub(super) fn alarm_slot(&self) -> u32 {
        2 * self.index + 1
    }

    /// Where it goes at this preemption, if anywhere.
    pub(super) fn take_destination(&self) -> Option<CpuId> {
        let to = self.destination.load(Ordering::Relaxed).checked_sub(1)?;
        self.destination.store(0, Ordering::Relaxed);
        Some(CpuId(to as u16))
    }

    /// Whether it can go on elsewhere: only the CPU on which its occupant is loaded can save its registers.
    pub(super) fn is_movable(&self) -> bool {
        // Pairs with the release in the occupant's save: whoever finds it nowhere finds all of its state in memory.
        self.occupant.get().is_none_or(|occupant| occupant.loaded_on.load(Ordering::Acquire) == NOBODY)
    }

    pub(super) fn may_run_on(&self, cpu: CpuId) -> bool {
        Affinity(self.affinity.load(Ordering::Relaxed)).allows(cpu)
    }
}

pub(super) fn thread(id: ThreadId) -> &'static Thread {
    match THREADS.get(id.0 as usize).and_then(Once::get) {
        Some(thread) => thread,
        None => unreachable!("a thread that is not in the table"),
    }
}

/// The name of the running thread, if there are threads yet; for a crash report.
pub(crate) fn current_name() -> Option<&'static str> {
    let index = this_cpu().thread.load(Ordering::Relaxed) as usize;
    THREADS.get(index)?.get().map(|thread| thread.name)
}

/// The running thread.
#[must_use]
pub fn current() -> &'static Thread {
    thread(ThreadId(this_cpu().thread.load(Ordering::Relaxed) as u32))
}
