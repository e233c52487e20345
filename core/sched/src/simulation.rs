//! Tests by simulation: CPUs whose ticks are handed out by the queues.

extern crate std;

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use std::vec;
use std::vec::Vec;
use units::CpuId;

use crate::{Affinity, Arrival, Entity, Parking, RunQueue, Slice, ThreadId, Timing, Weight};

/// Six milliseconds, at least 0.75, of a counter of 62.5 MHz.
const TIMING: Timing = Timing { period: 375_000, minimum_slice: 46_875 };

type Queue = RunQueue;

fn newcomer(thread: u32, weight: u32) -> Entity {
    Entity::new(ThreadId(thread), Weight::new(weight), Affinity::ANY)
}

/// A queue with threads 0, 1, ... of these weights.
fn queue_of(weights: &[u32]) -> Queue {
    let mut queue = Queue::new(TIMING);
    for (thread, &weight) in weights.iter().enumerate() {
        queue.enqueue(newcomer(thread as u32, weight), Arrival::Woken);
    }
    queue
}

/// Everybody computes without end for `ticks`; how long each has run, and the longest anybody had to wait.
fn compute(queue: &mut Queue, threads: usize, ticks: u64) -> (Vec<u64>, u64) {
    let mut ran = vec![0; threads];
    let mut last = vec![0; threads];
    let (mut now, mut longest) = (0, 0);
    while now < ticks {
        let thread = queue.pick().unwrap().0 as usize;
        longest = longest.max(now - last[thread]);
        let slice = queue.slice().unwrap_or(TIMING.period);
        queue.charge(slice);
        now += slice;
        ran[thread] += slice;
        last[thread] = now;
    }
    (ran, longest)
}

#[test]
fn shares_follow_the_weights_within_a_percent() {
    let weights = [100, 100, 200, 400];
    let mut queue = queue_of(&weights);
    let (ran, _) = compute(&mut queue, 4, 1_000 * TIMING.period);
    let total: u64 = ran.iter().sum();
    for (ran, weight) in ran.iter().zip(weights) {
        let fair = total * u64::from(weight) / 800;
        assert!(ran.abs_diff(fair) * 100 <= fair, "weight {weight} ran {ran}, fair is {fair}");
    }
}

proptest! {
    #[test]
    fn nobody_starves(weights in proptest::collection::vec(1..=1_000_u32, 1..16)) {
        let mut queue = queue_of(&weights);
        let total: u32 = weights.iter().sum();
        let (ran, longest) = compute(&mut queue, weights.len(), 200 * TIMING.period);
        // The lightest must wait until all others have run its slice's worth of virtual time.
        let lightest = weights.iter().min().copied().unwrap_or(1);
        let turn = TIMING.minimum_slice * u64::from(total) / u64::from(lightest);
        prop_assert!(longest <= 2 * (turn + TIMING.period * 16), "waited {}", longest);
        prop_assert!(ran.iter().all(|&ran| ran > 0 || turn > 50 * TIMING.period));
    }

    #[test]
    fn a_sleeper_gets_a_shortest_slice_of_credit_and_no_more(slept in 13..1_000_u64, weight in 1..1_000_u32) {
        let mut queue = queue_of(&[weight, 100]);
        while queue.pick() != Some(ThreadId(0)) {
            queue.charge(1_000);
        }
        // For so long that the other one's virtual time passes by more than the credit of the lightest.
        let sleeper = queue.take_current().unwrap();
        compute(&mut queue, 2, slept * TIMING.period);
        queue.enqueue(sleeper, Arrival::Woken);
        // It then runs alone until the other one has its turn again, which waits at the floor: that is its credit.
        let mut ran = 0;
        while queue.pick() == Some(ThreadId(0)) {
            queue.charge(1_000);
            ran += 1_000;
        }
        // A tick and the steps of a thousand are rounded.
        prop_assert!((TIMING.minimum_slice..=TIMING.minimum_slice + 2_000).contains(&ran), "ran {}", ran);
    }

    #[test]
    fn threads_are_kept_through_all_moves(moves in proptest::collection::vec((0..2_usize, 0..5_u32), 1..200)) {
        let mut queues = [queue_of(&[100, 50, 300, 7]), Queue::new(TIMING)];
        let mut asleep: Vec<(usize, Entity)> = Vec::new();
        for (cpu, action) in moves {
            match action {
                0 => { queues[cpu].pick(); }
                1 => queues[cpu].charge(50_000),
                2 => asleep.extend(queues[cpu].take_current().map(|entity| (cpu, entity))),
                3 => if let Some((home, entity)) = asleep.pop() {
                    queues[home].enqueue(entity, Arrival::Woken);
                },
                _ => if let Some(entity) = queues[1 - cpu].steal(CpuId(cpu as u16), |_| true) {
                    queues[cpu].enqueue(entity, Arrival::Moved);
                },
            }
            let total: usize = queues.iter().map(RunQueue::len).sum();
            prop_assert_eq!(total + asleep.len(), 4);
            let weight: u64 = queues.iter().map(RunQueue::total_weight).sum();
            let asleep: u64 = asleep.iter().map(|(_, entity)| u64::from(entity.weight.get())).sum();
            prop_assert_eq!(weight + asleep, 457);
        }
    }
}

#[test]
fn a_woken_interactive_thread_runs_at_once_among_busy_ones() {
    let mut queue = queue_of(&[100, 100, 100]);
    let mut interactive = newcomer(3, 100);
    for _ in 0..1_000 {
        compute(&mut queue, 4, TIMING.period);
        queue.enqueue(interactive, Arrival::Woken);
        assert!(queue.should_preempt());
        assert_eq!(queue.pick(), Some(ThreadId(3)));
        queue.charge(2_000);
        interactive = queue.take_current().unwrap();
    }
}

#[test]
fn stealing_respects_affinity_and_keeps_the_claim() {
    let mut queue = Queue::new(TIMING);
    let pinned = Entity::new(ThreadId(0), Weight::DEFAULT, Affinity::only(CpuId(0)));
    queue.enqueue(pinned, Arrival::Woken);
    assert_eq!(queue.steal(CpuId(1), |_| true), None);
    queue.enqueue(newcomer(1, 100), Arrival::Woken);
    let stolen = queue.steal(CpuId(1), |_| true).unwrap();
    assert_eq!(stolen.thread, ThreadId(1));
    // On a queue that has long been running it is neither starved nor let run for ages.
    let mut other = queue_of(&[100]);
    compute(&mut other, 1, 1_000 * TIMING.period);
    other.enqueue(Entity { thread: ThreadId(5), ..stolen }, Arrival::Moved);
    let (ran, _) = compute(&mut other, 6, 100 * TIMING.period);
    assert!(ran[0].abs_diff(ran[5]) <= 2 * TIMING.period, "{ran:?}");
}

#[test]
fn who_yields_lets_the_others_go_first() {
    let mut queue = queue_of(&[100, 100]);
    assert_eq!(queue.pick(), Some(ThreadId(0)));
    assert_eq!(queue.yield_and_pick(), Some(ThreadId(1)));
    assert_eq!(queue.yield_and_pick(), Some(ThreadId(0)));
    queue.remove(ThreadId(1)).unwrap();
    assert_eq!(queue.yield_and_pick(), Some(ThreadId(0)));
    assert_eq!(queue.slice(), None);
}

#[test]
fn a_wake_up_before_the_sleep_is_kept_through_preemption_and_taken_once() {
    let parking = Parking::running(0);
    assert!(!parking.try_wake());
    parking.preempted();
    assert!(!parking.is_running());
    parking.picked();
    assert!(parking.is_running());
    assert!(!parking.try_sleep());
    assert!(parking.try_sleep());
    assert!(parking.try_wake());
    assert!(!parking.try_wake());
}

/// One that wakes beside others, on one CPU.
struct Sleeper {
    entity: Option<Entity>,
    /// When it wakes, while it sleeps; when it woke, or had the CPU last, if it does not.
    at: u64,
    /// How long it runs then, and how much of that is left; how long it sleeps behind that.
    runs: u64,
    left: u64,
    sleeps: u64,
}

/// How late each of these threads was at most, after it woke. Each runs, and sleeps, for so many ticks in turn, as the hypervisor
/// lets them: it preempts at a wake-up or when a slice is over.
fn lateness(threads: &[(u64, u64)], end: u64) -> Vec<u64> {
    let mut queue = Queue::new(TIMING);
    let mut sleepers: Vec<Sleeper> = Vec::new();
    for (id, &(runs, sleeps)) in threads.iter().enumerate() {
        let entity = Some(newcomer(id as u32, 100));
        sleepers.push(Sleeper { entity, at: sleeps, runs, left: runs, sleeps });
    }
    let mut late = vec![0; threads.len()];
    let (mut now, mut slice, mut is_fresh) = (0, Slice::NONE, vec![false; threads.len()]);
    while now < end {
        let running = queue.current().map(|entity| entity.thread.0 as usize);
        let ends = running.map_or(u64::MAX, |running| now + sleepers[running].left);
        let wakes = sleepers.iter().filter(|sleeper| sleeper.entity.is_some()).map(|sleeper| sleeper.at).min();
        let next = ends.min(slice.end()).min(wakes.unwrap_or(u64::MAX)).max(now);
        queue.charge(next - now);
        if let Some(running) = running {
            sleepers[running].left -= next - now;
        }
        now = next;
        let mut gives_way = slice.end() <= now;
        if let Some(running) = running.filter(|&running| sleepers[running].left == 0) {
            let sleeper = &mut sleepers[running];
            (sleeper.entity, sleeper.left, sleeper.at) = (queue.take_current(), sleeper.runs, now + sleeper.sleeps);
            gives_way = true;
        }
        for (id, sleeper) in sleepers.iter_mut().enumerate() {
            if let Some(entity) = sleeper.entity.take_if(|_| sleeper.at <= now) {
                let is_in_a_hurry = queue.enqueue(entity, Arrival::Woken);
                is_fresh[id] = true;
                gives_way |= slice.is_none() || queue.should_preempt();
                if is_in_a_hurry {
                    slice.hurry(&queue, now);
                }
            }
        }
        if gives_way && let Some(picked) = queue.pick() {
            let picked = picked.0 as usize;
            if core::mem::take(&mut is_fresh[picked]) {
                late[picked] = late[picked].max(now - sleepers[picked].at);
            }
        }
        if gives_way {
            slice.begin(&queue, now);
        }
    }
    late
}

/// Whoever has used little comes first, also beside those that slept for long and then compute for long: it waits for no more than a
/// shortest slice of each that woke just before it.
#[test]
fn who_uses_little_is_served_soon_beside_those_that_slept() {
    const MILLISECOND: u64 = 62_500;
    for others in 1..=4 {
        // A wake-up each 3 ms, and the others' at any distance from those.
        let mut threads = vec![(60 * MILLISECOND / 1000, 3 * MILLISECOND)];
        threads.extend((0..others).map(|nth| (20 * MILLISECOND, (100 + nth) * MILLISECOND + 777 * (nth % 2))));
        let late = lateness(&threads, 60_000 * MILLISECOND);
        assert!(late[0] <= others * TIMING.minimum_slice, "{late:?}, beside {others}");
    }
}
