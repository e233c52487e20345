//! Fairness between queues: which thread a CPU gives to another one, and with what claim.
//!
//! On one queue all threads advance alike in virtual time. Different queues do not: one with little weight on it is
//! ahead of one with much, and its threads get more than their share. So the *levels* of queues are compared: the mean
//! virtual run time of a queue's threads, on a scale common to all queues. A queue that is behind another one by a
//! *turn*, the time in which each of its threads runs once, gives it a thread, which takes weight away where there was
//! too much. Where numbers or weights cannot be divided evenly (three equal threads on two CPUs), threads move round in
//! this way, each in turn. Where a move makes the weights more even at once, the queue need not be behind by a turn
//! first.
//!
//! Three things keep that sane:
//!
//! * A thread that moves keeps how far it is behind or ahead on the common scale, as far as that is at most
//!   two slices of its own on the new queue, measured from the last that came so. Those that compute there give way
//!   for that; those that sleep there, or woke and have used little, do not wait for it.
//! * The level is forgotten little by little ([`WINDOW_PERIODS`]). A difference that harms no thread, because those
//!   that are behind may not go where others are ahead, or have a whole CPU already, would otherwise grow without end,
//!   and still count when things have changed.
//! * A queue that was empty has no past: it takes the level of the first that it is compared to.
//!
//! If every thread may run on every CPU, each thread thus gets the share of all CPUs that its weight gives it, at most
//! a whole CPU (`balance_simulation`). With restricted sets of CPUs it does too, unless some thread's share is nearly a
//! whole CPU or more: a thread that has a whole CPU has no reason to leave it to others that may run nowhere else.

use units::CpuId;

use crate::queue::{RunQueue, VIRTUAL_UNIT, earlier, kept, later};
use crate::{Entity, ThreadId};

/// A queue's level is forgotten with this time constant, in periods: half a second, where a period is ten milliseconds. Long
/// beside the turns by which levels differ while threads go round, so that those count; and no longer than one may wait for
/// others to notice that things have changed.
const WINDOW_PERIODS: u64 = 50;
/// A thread that moves claims so many slices at most.
const CLAIM: u64 = 2;

/// What makes a queue's virtual time one on the common scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLevel {
    /// The difference.
    pub(crate) offset: u64,
    /// Up to when it has been forgotten.
    at: u64,
    /// It was not compared to any since the queue was empty.
    is_new: bool,
}

impl QueueLevel {
    pub(crate) const NEW: Self = Self { offset: 0, at: 0, is_new: true };
}

/// Where a queue stands: what is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The mean virtual run time, on the common scale.
    level: i64,
    /// The weights of all that run or wait.
    weight: u64,
    /// The virtual time in which each of them runs once.
    turn: u64,
}

impl Standing {
    /// By how much this queue is behind `other`.
    const fn behind(&self, other: &Self) -> i64 {
        if other.weight == 0 { 0 } else { other.level.saturating_sub(self.level) }
    }
}

/// A thread that its queue gives to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// One that waited and is not on the queue any more; the other queue is to enqueue it.
    Waiting(Entity),
    /// The running one, which is still there: it is to be taken off the CPU first.
    Running(ThreadId),
}

impl RunQueue {
    /// Where this queue stands at `now`. The running thread has been charged.
    pub fn standing(&mut self, now: u64) -> Standing {
        let weight = self.total_weight();
        let turn = self.timing.period.max(self.timing.minimum_slice.saturating_mul(self.len() as u64));
        let mean = self.mean();
        let level = forget(
            mean.wrapping_add(self.level.offset) as i64,
            now.saturating_sub(self.level.at),
            self.timing.period.saturating_mul(WINDOW_PERIODS),
        );
        self.level = QueueLevel { offset: (level as u64).wrapping_sub(mean), at: now, ..self.level };
        Standing { level, weight, turn: turn.saturating_mul(VIRTUAL_UNIT) / weight.max(1) }
    }

    /// As [`RunQueue::standing`], to be compared to `other`'s: a queue without a past takes its level.
    pub fn stand_beside(&mut self, other: &Standing, now: u64) -> Standing {
        let own = self.standing(now);
        if !self.level.is_new || other.weight == 0 {
            return own;
        }
        self.level.offset = self.level.offset.wrapping_add(other.level.wrapping_sub(own.level) as u64);
        self.level.is_new = false;
        Standing { level: other.level, ..own }
    }

    /// Gives a thread to `cpu`, whose queue stands as `theirs`, if that is fair; a waiting one only if `is_movable`.
    pub fn give(
        &mut self,
        cpu: CpuId,
        theirs: &Standing,
        now: u64,
        is_movable: impl Fn(ThreadId) -> bool,
    ) -> Option<Given> {
        let own = self.stand_beside(theirs, now);
        let more = own.weight.checked_sub(theirs.weight)?;
        let weight = |entity: &Entity| u64::from(entity.weight.get());
        let allowed = |entity: &&Entity| entity.affinity.allows(cpu);
        let behind = own.behind(theirs);
        let heaviest = if behind < 0 {
            return None;
        } else if behind.unsigned_abs() >= own.turn {
            // It is a thread's turn to go, even if there is more weight there than here then.
            u64::MAX
        } else {
            // Let the weights be more even, or as even the other way round.
            more / 2
        };
        let waiting = self.waiting.iter().filter(|entity| is_movable(entity.thread)).map(|entity| (entity, false));
        let all = waiting.chain(self.current().map(|entity| (entity, true)));
        let wanted = all.filter(|(entity, _)| allowed(entity) && weight(entity) <= heaviest);
        // The one that leaves the weights most even; then one that waits; then the one that is most behind.
        let (best, runs) = wanted.min_by_key(|(entity, runs)| {
            (more.abs_diff(2 * weight(entity)), *runs, entity.virtual_time.wrapping_sub(self.floor) as i64)
        })?;
        let thread = best.thread;
        if runs {
            return Some(Given::Running(thread));
        }
        let mut given = self.remove(thread)?;
        self.detach(&mut given);
        Some(Given::Waiting(given))
    }

    /// Prepares a thread that left this queue (and sleeps, say) for being enqueued on another one.
    pub fn detach(&mut self, entity: &mut Entity) {
        self.raise_floor();
        let claim = self.slice_when_here(entity.weight).saturating_mul(CLAIM);
        let time = kept(entity.virtual_time, self.floor.wrapping_sub(claim));
        entity.virtual_time = time.wrapping_add(self.level.offset);
    }

    /// Puts a thread that comes from another queue into this one's time.
    pub(crate) fn attach(&mut self, entity: &mut Entity) {
        self.level.is_new |= self.is_empty();
        if self.level.is_new {
            entity.virtual_time = self.floor;
            return;
        }
        let claim = self.slice_when_here(entity.weight).saturating_mul(CLAIM);
        let time = entity.virtual_time.wrapping_sub(self.level.offset);
        let (earliest, latest) = (self.floor.wrapping_sub(claim), self.floor.wrapping_add(claim));
        let time = earlier(later(time, earliest), latest);
        entity.virtual_time = later(time, self.floor);
        self.advance(entity.virtual_time.wrapping_sub(time));
    }

    /// One comes that has had `time` less than the floor. It comes there, and all that compute here have had so much more: among those
    /// nothing changes by that, nor beside other queues, whose scale is the mean. But those that woke and have used little, which stand
    /// before the floor, and those that sleep, go on as if it had caught up meanwhile: they would wait until it has.
    fn advance(&mut self, time: u64) {
        if time == 0 {
            return;
        }
        let (floor, mean) = (self.floor, self.mean());
        self.waiting.advance(time, floor);
        if let Some(current) = self.current.as_mut().filter(|current| !current.virtual_time_is_before(floor)) {
            current.virtual_time = current.virtual_time.wrapping_add(time);
        }
        self.level.offset = self.level.offset.wrapping_sub(self.mean().wrapping_sub(mean));
    }

    /// The mean virtual run time, by weight: what all have got, whoever of them it was.
    fn mean(&self) -> u64 {
        let ahead = self.waiting.iter().chain(self.current()).fold(0_i64, |sum, entity| {
            let ahead = entity.virtual_time.wrapping_sub(self.floor) as i64;
            sum.saturating_add(ahead.saturating_mul(i64::from(entity.weight.get())))
        });
        self.floor.wrapping_add((ahead / self.total_weight().max(1) as i64) as u64)
    }
}

/// What is left of `level` after `passed` ticks: all but `passed / (window + passed)` of it.
fn forget(level: i64, passed: u64, window: u64) -> i64 {
    /// In so many parts: 128 bits would cost a division routine.
    const PARTS: u64 = 1 << 20;
    // Beyond this all is forgotten anyway; without a bound on both sides of the fraction it would come back.
    let passed = passed.min(u64::MAX / PARTS);
    let forgotten = passed * PARTS / window.saturating_add(passed).max(1);
    level - level / 1024 * (forgotten as i64) / 1024
}

#[cfg(test)]
mod tests {
    use units::CpuId;

    use super::{Given, forget};
    use crate::{Affinity, Arrival, Entity, RunQueue, ThreadId, Timing, Weight};

    #[test]
    fn a_level_is_forgotten_in_the_course_of_time() {
        assert_eq!(forget(1 << 30, 0, 1_000), 1 << 30);
        assert_eq!(forget(1 << 30, 1_000, 1_000), 1 << 29);
        assert_eq!(forget(-(1 << 30), 3_000, 1_000), -(1 << 28));
        assert!(forget(1 << 30, u64::MAX, 1_000) < 1 << 20);
        assert_eq!(forget(1 << 30, 1 << 40, 1 << 40), 1 << 29, "also of long times");
    }

    /// Of weights 60, 100 and 300 beside nothing, 300 goes: it leaves the two most even.
    #[test]
    fn the_one_that_leaves_the_weights_most_even_goes() {
        let timing = Timing { period: 1_000, minimum_slice: 100 };
        let (mut full, mut empty) = (RunQueue::new(timing), RunQueue::new(timing));
        for (id, weight) in [(0, 60), (1, 100), (2, 300), (3, 180)] {
            full.enqueue(Entity::new(ThreadId(id), Weight::new(weight), Affinity::ANY), Arrival::Woken);
        }
        let theirs = empty.standing(0);
        let Some(Given::Waiting(given)) = full.give(CpuId(1), &theirs, 0, |_| true) else { panic!("nobody goes") };
        assert_eq!(given.thread, ThreadId(2));
    }

    /// One of two threads goes where one computes that has had twice as much, and another one sleeps.
    #[test]
    fn who_wakes_comes_before_one_that_came_and_is_to_catch_up() {
        let timing = Timing { period: 10_000, minimum_slice: 1_000 };
        // At this weight a tick of virtual time is a tick.
        let thread = |id| Entity::new(ThreadId(id), Weight::new(128), Affinity::ANY);
        let (mut full, mut other) = (RunQueue::new(timing), RunQueue::new(timing));
        for id in 0..2 {
            full.enqueue(thread(id), Arrival::Woken);
        }
        full.pick();
        other.enqueue(thread(2), Arrival::Woken);
        other.pick();
        let sleeper = other.take_current().unwrap();
        other.enqueue(thread(3), Arrival::Woken);
        other.pick();
        let own = full.standing(0);
        assert_eq!(other.stand_beside(&own, 0).behind(&own), 0);
        full.charge(6_000);
        other.charge(12_000);
        let mut moved = full.remove(ThreadId(1)).unwrap();
        full.detach(&mut moved);
        other.enqueue(moved, Arrival::Moved);
        // It may be behind by two slices, which are 10,000; the mean is where it would be if it stood there.
        assert_eq!((other.pick(), other.standing(0).level), (Some(ThreadId(1)), 12_000 - 10_000 / 2));
        other.charge(10);
        // Who slept wakes, has the CPU at once, and gives it back.
        other.enqueue(sleeper, Arrival::Woken);
        assert!(other.should_preempt());
        assert_eq!(other.pick(), Some(ThreadId(2)));
        other.charge(60);
        other.take_current();
        assert_eq!(other.pick(), Some(ThreadId(1)));
        let mut ran = 10;
        while other.pick() == Some(ThreadId(1)) {
            other.charge(10);
            ran += 10;
        }
        assert_eq!(ran, 10_000, "until it had caught up");
    }

    #[test]
    fn a_queue_that_was_empty_takes_the_level_of_the_other() {
        let timing = Timing { period: 1_000, minimum_slice: 100 };
        let (mut busy, mut idle) = (RunQueue::new(timing), RunQueue::new(timing));
        let thread = |id| Entity::new(ThreadId(id), Weight::DEFAULT, Affinity::ANY);
        for id in 0..2 {
            busy.enqueue(thread(id), Arrival::Woken);
        }
        idle.enqueue(thread(2), Arrival::Woken);
        let own = busy.standing(0);
        assert_eq!(idle.stand_beside(&own, 0).behind(&own), 0);
        busy.pick();
        idle.pick();
        idle.take_current();
        for _ in 0..100 {
            busy.charge(1_000);
            busy.pick();
        }
        // While nobody was there, nobody fell behind.
        let moved = busy.steal(CpuId(1), |_| true).unwrap();
        idle.enqueue(moved, Arrival::Moved);
        let own = busy.standing(100_000);
        assert_eq!(idle.stand_beside(&own, 100_000).behind(&own), 0);
        // From then on it counts.
        busy.charge(1_000);
        let own = busy.standing(101_000);
        assert!(idle.stand_beside(&own, 101_000).behind(&own) > 0);
    }
}
