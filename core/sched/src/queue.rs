//! One CPU's run queue.

use core::num::NonZeroU32;
use units::CpuId;

use crate::balance::QueueLevel;
use crate::heap::Heap;

/// A thread of the hypervisor: a vCPU or a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ThreadId(pub u32);

/// A thread's share of a CPU, relative to the others that want it. 1 to 10,000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Weight(NonZeroU32);

impl Weight {
    /// The weight of a thread of which nothing else is said.
    pub const DEFAULT: Self = Self::new(100);
    const MAX: u32 = 10_000;

    /// `weight`, brought into the allowed range.
    #[must_use]
    pub const fn new(weight: u32) -> Self {
        match NonZeroU32::new(if weight > Self::MAX { Self::MAX } else { weight }) {
            Some(weight) => Self(weight),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// `ticks` of real time as virtual time of a thread of this weight.
    pub(crate) const fn virtual_time(self, ticks: u64) -> u64 {
        // 128 bits cost a division routine; a thread is charged at most seconds at a time.
        ticks.saturating_mul(VIRTUAL_UNIT) / self.0.get() as u64
    }
}

/// Virtual time per tick at weight 1: enough that the division by a weight loses little, so little that it takes years
/// at the least weight until two virtual times on one queue could be 2^63 apart.
pub(crate) const VIRTUAL_UNIT: u64 = 128;

/// Nobody is ahead of those that wait by so much: two minutes of a counter of 1 GHz at the least weight.
const FAR: u64 = 1 << 44;

/// The CPUs on which a thread may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity(pub u64);

impl Affinity {
    /// Every CPU.
    pub const ANY: Self = Self(u64::MAX);

    /// Just `cpu`: a pinned thread. CPUs from 64 on cannot be named, so the set is then empty.
    #[must_use]
    pub const fn only(cpu: CpuId) -> Self {
        if cpu.0 < 64 { Self(1 << cpu.0) } else { Self(0) }
    }

    /// Whether `cpu` is one of them.
    #[must_use]
    pub const fn allows(self, cpu: CpuId) -> bool {
        cpu.0 < 64 && self.0 & (1 << cpu.0) != 0
    }
}

/// A thread as the queue knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entity {
    /// Which one.
    pub thread: ThreadId,
    /// Its share.
    pub weight: Weight,
    /// Where it may run.
    pub affinity: Affinity,
    /// Its virtual run time: on a queue in that queue's time, of one that moves on the scale common to all.
    pub(crate) virtual_time: u64,
}

impl Entity {
    /// A thread that has not run yet: enqueue it as [`Arrival::Woken`].
    #[must_use]
    pub const fn new(thread: ThreadId, weight: Weight, affinity: Affinity) -> Self {
        Self { thread, weight, affinity, virtual_time: 0 }
    }

    /// A thread whose [`Entity::virtual_time`] was kept elsewhere while it slept.
    #[must_use]
    pub const fn resumed(thread: ThreadId, weight: Weight, affinity: Affinity, virtual_time: u64) -> Self {
        Self { thread, weight, affinity, virtual_time }
    }

    /// Whether it is to run before `other`.
    const fn is_before(&self, other: &Self) -> bool {
        self.virtual_time_is_before(other.virtual_time)
    }

    pub(crate) const fn virtual_time_is_before(&self, time: u64) -> bool {
        // The difference decides, so that virtual run times may wrap.
        (self.virtual_time.wrapping_sub(time) as i64) < 0
    }

    /// Its virtual run time, to be kept for [`Entity::resumed`].
    #[must_use]
    pub const fn virtual_time(&self) -> u64 {
        self.virtual_time
    }
}

/// Why a thread comes to a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// It slept, and was on this queue before; or it is new.
    Woken,
    /// It comes from another queue by [`RunQueue::steal`] or [`RunQueue::detach`].
    Moved,
}

/// How long threads run, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Within this time every thread that waits should have run, if that does not make slices too short.
    pub period: u64,
    /// No slice is shorter.
    pub minimum_slice: u64,
}

/// The threads that want one CPU: one that runs, and those that wait.
#[derive(Debug)]
pub struct RunQueue {
    pub(crate) waiting: Heap,
    pub(crate) current: Option<Entity>,
    /// The least virtual run time of all, never going back; brought up to date before a thread comes or goes.
    pub(crate) floor: u64,
    /// How it compares to other queues.
    pub(crate) level: QueueLevel,
    /// The sum of the weights of those that wait.
    pub(crate) waiting_weight: u64,
    pub(crate) timing: Timing,
}

impl RunQueue {
    /// An empty queue.
    #[must_use]
    pub const fn new(timing: Timing) -> Self {
        Self { waiting: Heap::new(), current: None, floor: 0, level: QueueLevel::NEW, waiting_weight: 0, timing }
    }

    /// Makes room for `threads` in all, so that nothing here allocates until there are more.
    pub fn reserve(&mut self, threads: usize) {
        self.waiting.reserve(threads);
    }

    /// Lets a thread wait for its turn. Ask [`RunQueue::should_preempt`] afterwards. Says whether there is some
    /// [`hurry`](RunQueue::hurry): it woke and has used little, and others that did so too come before it, or wait and come behind it.
    pub fn enqueue(&mut self, mut entity: Entity, arrival: Arrival) -> bool {
        self.raise_floor();
        let mut has_used_little = false;
        match arrival {
            Arrival::Moved => self.attach(&mut entity),
            Arrival::Woken => {
                // Neither a sleeper nor a newcomer may claim more than a shortest slice before all others: by that it preempts whoever
                // runs. And each of them the same, however many are there when it comes: one that came to an empty queue would
                // otherwise claim more than all who come behind it, and keep them waiting for as long.
                let claim = entity.weight.virtual_time(self.timing.minimum_slice);
                let earliest = self.floor.wrapping_sub(claim);
                entity.virtual_time = kept(entity.virtual_time, earliest);
                has_used_little = entity.virtual_time == earliest;
            }
        }
        // Only those that woke and have used little are before the floor. A lighter one claims more, and would come before a heavier one
        // that woke earlier, and keep it waiting for a whole slice.
        let another_waits = self.waiting.first().is_some_and(|first| first.virtual_time_is_before(self.floor));
        self.push(entity);
        let is_first = self.waiting.first().is_some_and(|first| first.thread == entity.thread);
        has_used_little && (another_waits || !(is_first && self.should_preempt()))
    }

    /// Chooses who runs next. The one that ran until now waits again: it was preempted or its slice is over. If it
    /// does not want the CPU any more, [`RunQueue::take_current`] comes first.
    pub fn pick(&mut self) -> Option<ThreadId> {
        let next = match self.current {
            Some(current) => match self.waiting.first() {
                Some(first) if !current.is_before(first) => self.exchange(current)?,
                _ => current,
            },
            None => {
                let next = self.waiting.pop()?;
                self.waiting_weight -= u64::from(next.weight.get());
                next
            }
        };
        self.current = Some(next);
        Some(next.thread)
    }

    /// Chooses who runs next as the running one gives way for this once: whoever else waits comes before it.
    #[inline]
    pub fn yield_and_pick(&mut self) -> Option<ThreadId> {
        let (Some(mut current), Some(first)) = (self.current, self.waiting.first()) else { return self.pick() };
        current.virtual_time = later(current.virtual_time, first.virtual_time);
        self.current = self.exchange(current);
        self.current.map(|next| next.thread)
    }

    /// Lets `current` wait instead of the first of those that do, which is returned.
    #[inline]
    fn exchange(&mut self, current: Entity) -> Option<Entity> {
        let next = self.waiting.replace_first(current)?;
        self.waiting_weight = self.waiting_weight + u64::from(current.weight.get()) - u64::from(next.weight.get());
        Some(next)
    }

    /// Charges the running thread for having run for `ticks`.
    #[inline]
    pub fn charge(&mut self, ticks: u64) {
        if let Some(current) = &mut self.current {
            current.virtual_time = current.virtual_time.wrapping_add(current.weight.virtual_time(ticks));
        } else if self.waiting.len() == 0 {
            self.idle(ticks);
        }
    }

    /// Nobody wanted the CPU for `ticks`. Everybody has got all that it wanted until then, so what one has had more than others is soon
    /// forgotten: time passes as for a thread of the least weight. Without that, one that was alone here now and then would come
    /// behind all that slept meanwhile. How it stands beside other queues does not change by that; an idle CPU takes whoever waits anyway.
    #[cold]
    #[inline(never)]
    fn idle(&mut self, ticks: u64) {
        let passed = Weight::new(0).virtual_time(ticks);
        self.floor = self.floor.wrapping_add(passed);
        self.level.offset = self.level.offset.wrapping_sub(passed);
    }

    /// Takes the running thread off the CPU and the queue: it sleeps or has ended. When it wakes, enqueue it again.
    pub fn take_current(&mut self) -> Option<Entity> {
        self.raise_floor();
        self.current.take()
    }

    /// The running thread.
    #[must_use]
    pub const fn current(&self) -> Option<&Entity> {
        self.current.as_ref()
    }

    /// How long the running thread may run until [`RunQueue::pick`] is due; `None` if nobody waits.
    #[must_use]
    pub fn slice(&self) -> Option<u64> {
        let current = self.current.as_ref()?;
        (self.waiting.len() > 0).then(|| self.slice_of(current.weight, self.total_weight()))
    }

    /// How long slices are to be the shortest, and how long that is: for as long as all that wait now take for that. Asked where one woke
    /// that has used little, and is not served at once, since others that woke just before are as far behind: by whole slices of each
    /// of them it would be late.
    #[must_use]
    pub(crate) fn hurry(&self) -> (u64, u64) {
        let slice = self.timing.minimum_slice;
        (slice.saturating_mul(self.waiting.len() as u64), slice)
    }

    /// Whether somebody waits who should run at once, before the running one's slice is over: it is further behind than
    /// a shortest slice of its own.
    #[must_use]
    pub fn should_preempt(&self) -> bool {
        match (&self.current, self.waiting.first()) {
            (Some(current), Some(first)) => {
                let ahead = current.virtual_time.wrapping_sub(first.virtual_time) as i64;
                ahead > 0 && ahead as u64 >= first.weight.virtual_time(self.timing.minimum_slice)
            }
            (None, Some(_)) => true,
            _ => false,
        }
    }

    /// Gives away a waiting thread that may run on `cpu` and that `wanted` accepts; `cpu`'s queue is to enqueue it as
    /// [`Arrival::Moved`].
    pub fn steal(&mut self, cpu: CpuId, wanted: impl Fn(ThreadId) -> bool) -> Option<Entity> {
        self.raise_floor();
        let mut stolen = self.waiting.take_late(|entity| entity.affinity.allows(cpu) && wanted(entity.thread))?;
        self.waiting_weight -= u64::from(stolen.weight.get());
        self.detach(&mut stolen);
        Some(stolen)
    }

    /// Takes out the waiting thread `thread`, which is to be stopped or moved; call [`RunQueue::detach`] if it moves.
    pub fn remove(&mut self, thread: ThreadId) -> Option<Entity> {
        self.raise_floor();
        let removed = self.waiting.take_late(|entity| entity.thread == thread)?;
        self.waiting_weight -= u64::from(removed.weight.get());
        Some(removed)
    }

    /// How many threads wait or run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.current.is_some())
    }

    /// Whether nobody waits or runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many threads wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The weights of all that wait or run: a measure of how busy the CPU is.
    #[must_use]
    pub fn total_weight(&self) -> u64 {
        self.waiting_weight + self.current.map_or(0, |current| u64::from(current.weight.get()))
    }

    /// By how much virtual time a slice is for a thread of `weight` once it is here too.
    pub(crate) fn slice_when_here(&self, weight: Weight) -> u64 {
        weight.virtual_time(self.slice_of(weight, self.total_weight() + u64::from(weight.get())))
    }

    /// The slice of a thread of `weight` where all together have `total`.
    #[inline]
    fn slice_of(&self, weight: Weight, total: u64) -> u64 {
        let share = self.timing.period.saturating_mul(u64::from(weight.get())) / total.max(1);
        share.max(self.timing.minimum_slice)
    }

    fn push(&mut self, entity: Entity) {
        self.waiting.push(entity);
        self.waiting_weight += u64::from(entity.weight.get());
    }

    pub(crate) fn raise_floor(&mut self) {
        let least = match (self.current.as_ref(), self.waiting.first()) {
            (Some(current), Some(first)) => earlier(current.virtual_time, first.virtual_time),
            (Some(one), None) | (None, Some(one)) => one.virtual_time,
            (None, None) => return,
        };
        self.floor = later(self.floor, least);
    }
}

/// What a thread that may have slept since it was at `time` has where nobody that sleeps has less than `earliest`: the later of both.
/// Who slept for years while others ran, or the CPU idled, may be so far behind that it seems to be ahead; nobody is as far ahead as that.
pub(crate) const fn kept(time: u64, earliest: u64) -> u64 {
    if time.wrapping_sub(earliest) < FAR { time } else { earliest }
}

/// The later of two virtual times less than 2^63 apart.
pub(crate) const fn later(one: u64, other: u64) -> u64 {
    if (one.wrapping_sub(other) as i64) < 0 { other } else { one }
}

/// The earlier of two virtual times less than 2^63 apart.
pub(crate) const fn earlier(one: u64, other: u64) -> u64 {
    if (one.wrapping_sub(other) as i64) < 0 { one } else { other }
}

#[cfg(test)]
mod tests {
    use units::CpuId;

    use super::{Affinity, Arrival, Entity, RunQueue, ThreadId, Timing, Weight};

    #[test]
    fn cpus_that_have_no_number_here_are_in_no_set() {
        for cpu in [0, 1, 63] {
            assert!(Affinity::only(CpuId(cpu)).allows(CpuId(cpu)));
            assert!(!Affinity::only(CpuId(cpu)).allows(CpuId(cpu ^ 1)));
        }
        for cpu in [64, 65, 255] {
            assert_eq!(Affinity::only(CpuId(cpu)), Affinity(0));
            assert!(!Affinity::ANY.allows(CpuId(cpu)));
        }
    }

    #[test]
    fn weights_are_brought_into_range() {
        let weights = [0, 1, 2, 9_999, 10_000, 10_001, u32::MAX].map(|weight| Weight::new(weight).get());
        assert_eq!(weights, [1, 1, 2, 9_999, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn who_waits_goes_first_when_it_is_behind_by_a_shortest_slice() {
        let mut queue = RunQueue::new(Timing { period: 1_000, minimum_slice: 100 });
        queue.reserve(3);
        // At this weight a tick of virtual time is a tick.
        let thread = |id| Entity::new(ThreadId(id), Weight::new(128), Affinity::ANY);
        assert!(!queue.should_preempt(), "nobody is there");
        queue.enqueue(thread(0), Arrival::Woken);
        assert!(queue.should_preempt(), "nobody runs");
        assert_eq!(queue.pick(), Some(ThreadId(0)));
        assert!(!queue.should_preempt(), "nobody waits");
        queue.enqueue(thread(1), Arrival::Woken);
        assert!(!queue.should_preempt(), "both have got the same");
        queue.charge(99);
        assert!(!queue.should_preempt(), "a tick is missing");
        queue.charge(1);
        assert!(queue.should_preempt());
        // The other runs, ahead of nobody.
        assert_eq!(queue.pick(), Some(ThreadId(1)));
        assert!(!queue.should_preempt(), "who runs is behind");
    }

    #[test]
    fn who_comes_before_one_that_woke_earlier_hurries() {
        let mut queue = RunQueue::new(Timing { period: 10_000, minimum_slice: 1_000 });
        let thread = |id, weight| Entity::new(ThreadId(id), Weight::new(weight), Affinity::ANY);
        // Two that compute: both are past the floor, and are nobody to hurry for.
        for id in 0..2 {
            queue.enqueue(thread(id, 100), Arrival::Woken);
        }
        for _ in 0..20 {
            queue.pick();
            queue.charge(5_000);
        }
        assert!(!queue.enqueue(thread(2, 200), Arrival::Woken), "it is to run at once");
        assert!(queue.should_preempt());
        // Before it does, a lighter one wakes, which claims more of the common time.
        assert!(queue.enqueue(thread(3, 50), Arrival::Woken), "the heavier one waits for it");
        assert_eq!(queue.pick(), Some(ThreadId(3)));
        // What it is slowed down to is enough.
        let (_, slice) = queue.hurry();
        queue.charge(slice);
        assert_eq!(queue.pick(), Some(ThreadId(2)));
    }

    /// At 1 GHz virtual time passes by 2^63 while a CPU idles for 834 days.
    #[test]
    fn who_slept_for_years_is_served_at_once() {
        const YEAR: u64 = 365 * 24 * 3_600 * 1_000_000_000;
        let timing = Timing { period: 10_000_000, minimum_slice: 1_000_000 };
        let thread = |id| Entity::new(ThreadId(id), Weight::DEFAULT, Affinity::ANY);
        for years in 0..9 {
            let mut queue = RunQueue::new(timing);
            queue.enqueue(thread(0), Arrival::Woken);
            queue.pick();
            queue.charge(10_000_000);
            let mut slept = queue.take_current().unwrap();
            // It is there once a year; or the first to wake would take the time back to where it was.
            for _ in 0..years {
                queue.charge(YEAR);
                queue.enqueue(slept, Arrival::Woken);
                queue.pick();
                queue.charge(1_000_000);
                slept = queue.take_current().unwrap();
            }
            queue.enqueue(slept, Arrival::Woken);
            assert_eq!(queue.pick(), Some(ThreadId(0)));
            queue.charge(10_000_000);
            // Another one sleeps since the start, and may go elsewhere when it wakes.
            let mut moved = thread(1);
            queue.detach(&mut moved);
            let ahead = moved.virtual_time.wrapping_sub(queue.level.offset).wrapping_sub(queue.floor) as i64;
            assert!((-25_600_000..=0).contains(&ahead), "{ahead} after {years} years");
            queue.enqueue(thread(1), Arrival::Woken);
            assert!(queue.should_preempt(), "after {years} years");
            assert_eq!(queue.pick(), Some(ThreadId(1)));
            queue.charge(500_000);
            // It goes on where it was after a short sleep.
            let slept = queue.take_current().unwrap();
            queue.enqueue(slept, Arrival::Woken);
            assert_eq!(queue.waiting.first().map(|first| first.virtual_time), Some(slept.virtual_time));
        }
    }

    #[test]
    fn what_a_thread_got_is_kept_while_it_sleeps() {
        let mut queue = RunQueue::new(Timing { period: 1_000, minimum_slice: 100 });
        queue.enqueue(Entity::new(ThreadId(0), Weight::DEFAULT, Affinity::ANY), Arrival::Woken);
        queue.pick();
        queue.charge(100);
        let slept = queue.take_current().unwrap();
        assert_eq!(slept.virtual_time(), Weight::DEFAULT.virtual_time(100));
        let woken = Entity::resumed(slept.thread, slept.weight, slept.affinity, slept.virtual_time());
        assert_eq!(woken, slept);
    }
}
