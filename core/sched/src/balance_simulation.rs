//! Tests by simulation of several CPUs, as `el2/hypervisor/src/sched` has them share: every thread gets its share of all
//! CPUs together, wherever it starts, and whoever wakes and has used little is served soon.

extern crate std;

use proptest::collection::vec as vec_of;
use proptest::prelude::{ProptestConfig, prop_assert, proptest};
use proptest::test_runner::RngSeed;
use std::vec;
use std::vec::Vec;
use units::CpuId;

use crate::{Affinity, Arrival, Entity, Given, RunQueue, Slice, ThreadId, Timing, Weight};

/// Ten milliseconds, at least one, of a counter of 62.5 MHz.
const TIMING: Timing = Timing { period: 625_000, minimum_slice: 62_500 };
/// From one round to the next.
const ROUND: u64 = 386_271;
/// A CPU gives each other one at most so many threads in a round.
const PASSES: usize = 4;
const NEVER: u64 = u64::MAX;
/// Every CPU.
const ANY: u64 = u64::MAX;

/// A thread's weight and the CPUs on which it may run.
type Share = (u32, u64);

/// What a thread does all the time: it runs for so many ticks and sleeps for so many.
type Habit = (u64, u64);
/// It computes for ever.
const STEADY: Habit = (NEVER, 0);

struct Cpu {
    queue: RunQueue,
    charged: u64,
    slice: Slice,
    /// It was notified, and picks at once.
    is_notified: bool,
    next_round: u64,
}

struct Thread {
    habit: Habit,
    /// For how long it is still to run before it sleeps.
    left: u64,
    /// On whose queue it is, or was last.
    home: usize,
    /// While it sleeps: what it is woken as, and when.
    asleep: Option<(Entity, u64)>,
    /// When it woke, until it sleeps again.
    woke: Option<u64>,
    ran: u64,
    /// For how long it waited at most, from a wake-up until it had done what it woke for.
    late: u64,
}

struct Machine {
    cpus: Vec<Cpu>,
    now: u64,
    threads: Vec<Thread>,
    moves: u64,
}

impl Machine {
    fn new(cpus: usize) -> Self {
        let queue = || RunQueue::new(TIMING);
        let cpu = |_| Cpu { queue: queue(), charged: 0, slice: Slice::NONE, is_notified: false, next_round: NEVER };
        Machine { cpus: (0..cpus).map(cpu).collect(), now: 0, threads: Vec::new(), moves: 0 }
    }

    /// Another thread, which computes for ever, begins at `home`.
    fn add(&mut self, share: Share, home: usize) {
        self.add_with(share, home, STEADY);
    }

    /// Another thread, which does so, begins at `home`.
    fn add_with(&mut self, (weight, affinity): Share, home: usize, habit: Habit) {
        let id = ThreadId(self.threads.len() as u32);
        self.threads.push(Thread { habit, left: habit.0, home, asleep: None, woke: None, ran: 0, late: 0 });
        assert!(Affinity(affinity).allows(CpuId(home as u16)));
        self.enqueue(home, Entity::new(id, Weight::new(weight), Affinity(affinity)), Arrival::Woken);
    }

    fn ran(&self) -> Vec<u64> {
        self.threads.iter().map(|thread| thread.ran).collect()
    }

    fn charge(&mut self, cpu: usize) {
        let now = self.now;
        let cpu = &mut self.cpus[cpu];
        let ran = now - core::mem::replace(&mut cpu.charged, now);
        if let Some(current) = cpu.queue.current() {
            let thread = &mut self.threads[current.thread.0 as usize];
            thread.ran += ran;
            thread.left -= ran.min(thread.left);
        }
        cpu.queue.charge(ran);
    }

    fn enqueue(&mut self, cpu: usize, entity: Entity, arrival: Arrival) {
        self.charge(cpu);
        self.threads[entity.thread.0 as usize].home = cpu;
        let is_in_a_hurry = self.cpus[cpu].queue.enqueue(entity, arrival);
        let now = self.now;
        let cpu = &mut self.cpus[cpu];
        if cpu.queue.current().is_none() || cpu.slice.is_none() || cpu.queue.should_preempt() {
            cpu.is_notified = true;
        }
        if is_in_a_hurry {
            cpu.slice.hurry(&cpu.queue, now);
        }
        if cpu.next_round == NEVER {
            cpu.next_round = now + ROUND;
        }
    }

    fn pick(&mut self, cpu: usize) {
        self.charge(cpu);
        let now = self.now;
        let cpu = &mut self.cpus[cpu];
        cpu.queue.pick();
        cpu.slice.begin(&cpu.queue, now);
        cpu.is_notified = false;
    }

    /// When the thread that runs on `cpu` will have done what it woke for.
    fn sleeps_at(&self, cpu: &Cpu) -> u64 {
        let left = |current: &Entity| self.threads[current.thread.0 as usize].left;
        cpu.queue.current().map_or(NEVER, |current| cpu.charged.saturating_add(left(current)))
    }

    /// Whoever runs on `cpu` sleeps, if it has done what it woke for.
    fn sleep(&mut self, cpu: usize) {
        self.charge(cpu);
        if self.sleeps_at(&self.cpus[cpu]) <= self.now
            && let Some(entity) = self.cpus[cpu].queue.take_current()
        {
            let thread = &mut self.threads[entity.thread.0 as usize];
            let waited = thread.woke.take().map_or(0, |woke| self.now - woke - thread.habit.0);
            thread.late = thread.late.max(waited);
            thread.left = thread.habit.0;
            thread.asleep = Some((entity, self.now + thread.habit.1));
            self.pick(cpu);
        }
    }

    /// Wakes those that have slept long enough: each at home, or on an idle CPU if its home is busy.
    fn wake(&mut self) {
        for id in 0..self.threads.len() {
            let thread = &mut self.threads[id];
            let Some((mut entity, at)) = thread.asleep.take_if(|(_, at)| *at <= self.now) else { continue };
            thread.woke = Some(at);
            let home = thread.home;
            let is_idle = |&cpu: &usize| self.cpus[cpu].queue.is_empty() && entity.affinity.allows(CpuId(cpu as u16));
            match (0..self.cpus.len()).find(is_idle) {
                Some(idle) if !self.cpus[home].queue.is_empty() => {
                    self.charge(home);
                    self.cpus[home].queue.detach(&mut entity);
                    self.enqueue(idle, entity, Arrival::Moved);
                }
                _ => self.enqueue(home, entity, Arrival::Woken),
            }
        }
    }

    fn round(&mut self, cpu: usize) {
        self.cpus[cpu].next_round = NEVER;
        let count = self.cpus.len();
        for _ in 0..PASSES {
            let given = (1..count).filter(|step| self.give(cpu, (cpu + step) % count)).count();
            if given == 0 {
                break;
            }
        }
        if self.cpus[cpu].queue.waiting() > 0 {
            self.cpus[cpu].next_round = self.now + ROUND;
        }
    }

    fn give(&mut self, cpu: usize, other: usize) -> bool {
        if self.cpus[cpu].queue.waiting() == 0 {
            return false;
        }
        self.charge(cpu);
        self.charge(other);
        let own = self.cpus[cpu].queue.standing(self.now);
        let theirs = self.cpus[other].queue.stand_beside(&own, self.now);
        let (entity, again) = match self.cpus[cpu].queue.give(CpuId(other as u16), &theirs, self.now, |_| true) {
            Some(Given::Waiting(entity)) => (entity, true),
            Some(Given::Running(_)) => {
                let mut entity = self.cpus[cpu].queue.take_current().unwrap();
                self.cpus[cpu].queue.detach(&mut entity);
                self.pick(cpu);
                (entity, false)
            }
            None => return false,
        };
        assert!(entity.affinity.allows(CpuId(other as u16)));
        self.moves += 1;
        self.enqueue(other, entity, Arrival::Moved);
        again
    }

    /// `cpu` has nothing to run.
    fn steal(&mut self, cpu: usize) {
        for other in 0..self.cpus.len() {
            if other != cpu
                && self.cpus[other].queue.len() > 1
                && let Some(entity) = self.cpus[other].queue.steal(CpuId(cpu as u16), |_| true)
            {
                self.enqueue(cpu, entity, Arrival::Moved);
                return;
            }
        }
    }

    /// Lets so many periods pass.
    fn run(&mut self, periods: u64) {
        let until = self.now + periods * TIMING.period;
        loop {
            for cpu in 0..self.cpus.len() {
                if self.cpus[cpu].queue.is_empty() {
                    self.steal(cpu);
                }
            }
            let next = |cpu: usize| {
                let cpu = &self.cpus[cpu];
                let slice_end = if cpu.is_notified { self.now } else { cpu.slice.end() };
                slice_end.min(cpu.next_round).min(self.sleeps_at(cpu))
            };
            let first = (0..self.cpus.len()).min_by_key(|&cpu| next(cpu)).unwrap();
            let asleep = self.threads.iter().filter_map(|thread| thread.asleep.map(|(_, at)| at));
            let at = next(first).min(asleep.min().unwrap_or(NEVER));
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.wake();
            self.sleep(first);
            if self.cpus[first].next_round <= self.now {
                self.round(first);
            }
            if self.cpus[first].is_notified || self.cpus[first].slice.end() <= self.now {
                self.pick(first);
            }
        }
        self.now = until;
        (0..self.cpus.len()).for_each(|cpu| self.charge(cpu));
    }
}

/// What each of `threads` should get of `cpus` CPUs, in parts of a CPU: as much of it as its weight says, but for those that
/// cannot have that, since they may not run on more CPUs, or not on more than one at a time; what they leave is shared by
/// the others in the same way.
fn fair(cpus: usize, threads: &[Share]) -> Vec<f64> {
    let mut share: Vec<Option<f64>> = vec![None; threads.len()];
    while share.iter().any(Option::is_none) {
        // The level at which the first limit is reached, and who is frozen by it.
        let mut least = (f64::INFINITY, Vec::new());
        for (index, &(weight, _)) in threads.iter().enumerate().filter(|(index, _)| share[*index].is_none()) {
            if 1.0 / f64::from(weight) < least.0 {
                least = (1.0 / f64::from(weight), vec![index]);
            }
        }
        for set in 1..1_u64 << cpus {
            let inside: Vec<usize> =
                (0..threads.len()).filter(|&index| threads[index].1 & ((1 << cpus) - 1) & !set == 0).collect();
            let taken: f64 = inside.iter().filter_map(|&index| share[index]).sum();
            let free: Vec<usize> = inside.into_iter().filter(|&index| share[index].is_none()).collect();
            let weight: f64 = free.iter().map(|&index| f64::from(threads[index].0)).sum();
            let level = (f64::from(set.count_ones()) - taken).max(0.0) / weight;
            if !free.is_empty() && level < least.0 {
                least = (level, free);
            }
        }
        for &index in &least.1 {
            share[index] = Some(least.0 * f64::from(threads[index].0));
        }
    }
    share.into_iter().flatten().collect()
}

/// Runs `threads`, each put on one of its CPUs by `places`, and says how many parts of what is fair the one that got least
/// has after `periods`, apart from two periods' worth of time, and how many moves that took.
fn least_part(cpus: usize, threads: &[Share], places: &[usize], periods: u64) -> (f64, u64) {
    let mut machine = Machine::new(cpus);
    for (&(weight, affinity), &place) in threads.iter().zip(places) {
        let allowed: Vec<usize> = (0..cpus).filter(|cpu| affinity >> cpu & 1 != 0).collect();
        machine.add((weight, affinity), allowed[place % allowed.len()]);
    }
    machine.run(periods);
    let part = |(&ran, fair): (&u64, f64)| (ran as f64 / TIMING.period as f64 + 2.0) / (fair * periods as f64);
    let least = machine.ran().iter().zip(fair(cpus, threads)).map(part).fold(f64::INFINITY, f64::min);
    (least, machine.moves)
}

#[test]
fn fair_is_what_it_should_be() {
    let close = |cpus, threads: &[Share], expected: &[f64]| {
        let fair = fair(cpus, threads);
        assert!(fair.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-9), "{fair:?}");
    };
    close(2, &[(100, ANY), (100, ANY), (200, ANY)], &[0.5, 0.5, 1.0]);
    close(2, &[(900, ANY), (100, ANY), (300, ANY)], &[1.0, 0.25, 0.75]);
    close(2, &[(100, 1), (100, 1), (100, 1), (100, ANY), (100, 2)], &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.5, 0.5]);
    close(2, &[(100, 1), (100, 1), (100, ANY), (200, 2)], &[0.4, 0.4, 0.4, 0.8]);
}

#[test]
fn those_who_are_even_stay_and_others_go_round() {
    for (cpus, count) in [(2, 16), (4, 64), (2, 3), (3, 5), (4, 5), (4, 17)] {
        let places: Vec<usize> = (0..count).collect();
        let (least, moves) = least_part(cpus, &vec![(100, ANY); count], &places, 400);
        assert!(least >= 0.99, "{count} on {cpus}: {least}");
        assert_eq!(moves == 0, count % cpus == 0, "{count} on {cpus}: {moves} moves");
        // Not all the time.
        assert!(moves < 400, "{count} on {cpus}: {moves} moves");
    }
}

#[test]
fn a_heavy_one_gets_a_cpu_and_those_beside_it_leave() {
    let (least, moves) = least_part(2, &[(10_000, ANY), (100, ANY), (100, ANY), (100, ANY), (100, ANY)], &[0; 5], 400);
    assert!(least >= 0.98 && moves < 20, "{least}, {moves} moves");
}

#[test]
fn one_that_always_runs_goes_all_the_same() {
    // The heavy one would have to wait to be taken from the queue, which it does for a millisecond in two seconds.
    let (least, _) = least_part(2, &[(2000, ANY), (1, 2), (2, ANY)], &[1, 0, 0], 400);
    assert!(least >= 0.9, "{least}");
}

#[test]
fn what_was_long_ago_does_not_count() {
    let mut machine = Machine::new(2);
    // For ten minutes two are ahead of one that cannot have more than a CPU.
    machine.add((100, ANY), 0);
    machine.add((1000, ANY), 1);
    machine.add((100, ANY), 0);
    machine.run(60_000);
    // Then there are more, which begin where those two are. Two seconds later all have what is theirs.
    (0..18).for_each(|_| machine.add((100, ANY), 0));
    machine.run(200);
    let before = machine.ran();
    machine.run(200);
    let heavy = (machine.ran()[1] - before[1]) as f64 / (200 * TIMING.period) as f64;
    assert!((heavy - 2.0 / 3.0).abs() < 0.05, "it has {heavy}");
}

/// The same cases each time, or those of the seed that PROPTEST_RNG_SEED names: how near to what is fair everybody comes in the worst
/// case of all is not known, and others have to pass the gate that change something else.
fn cases() -> ProptestConfig {
    let given = ProptestConfig::default();
    let rng_seed = if given.rng_seed == RngSeed::Random { RngSeed::Fixed(0x5eed) } else { given.rng_seed };
    ProptestConfig { rng_seed, ..given }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn everybody_gets_the_part_of_all_cpus_that_the_weight_says(
        cpus in 1..=4_usize, weights in vec_of(1..=2000_u32, 1..24), places in vec_of(0..4_usize, 24),
    ) {
        let threads: Vec<Share> = weights.into_iter().map(|weight| (weight, ANY)).collect();
        let (least, moves) = least_part(cpus, &threads, &places, 600);
        prop_assert!(least >= 0.95, "{} of what is fair after {} moves", least, moves);
    }

    #[test]
    fn also_where_not_all_may_run_everywhere(
        cpus in 2..=4_usize, shares in vec_of((50..=400_u32, 1..16_u64), 2..24), places in vec_of(0..12_usize, 24),
    ) {
        let all = (1 << cpus) - 1;
        let threads: Vec<Share> =
            shares.into_iter().map(|(weight, set)| (weight, if set & all == 0 { all } else { set & all })).collect();
        // See the module's story: whoever has a CPU whole, or nearly, has no reason to leave it.
        if fair(cpus, &threads).iter().all(|&fair| fair < 0.75) {
            let (least, moves) = least_part(cpus, &threads, &places, 600);
            prop_assert!(least >= 0.9, "{} of what is fair after {} moves", least, moves);
        }
    }
}

/// Whoever uses little preempts whoever runs, also where that one came from another CPU a moment ago and is to catch up.
#[test]
fn who_uses_little_does_not_wait_for_one_that_came_from_another_cpu() {
    const MICROSECOND: u64 = 62;
    for (cpus, steady, sleeps) in
        [(2, 3, 3_001), (2, 3, 7_900), (2, 5, 3_001), (3, 5, 3_413), (4, 6, 6_853), (4, 17, 2_600)]
    {
        let mut machine = Machine::new(cpus);
        machine.add_with((100, 1), 0, (60 * MICROSECOND, sleeps * MICROSECOND));
        (0..steady).for_each(|nth| machine.add((100, ANY), nth % cpus));
        // At the start all have had the same, which is nothing.
        machine.run(50);
        let before = (machine.moves, machine.ran());
        machine.threads[0].late = 0;
        machine.run(600);
        let late = machine.threads[0].late;
        assert!(machine.moves - before.0 >= 20, "{} moves", machine.moves - before.0);
        assert!(late <= TIMING.minimum_slice / 10, "beside {steady} on {cpus}: late by {} us", late / MICROSECOND);
        // The others have what it leaves them, all alike.
        let ran = machine.ran().iter().zip(&before.1).skip(1).map(|(now, before)| now - before).collect::<Vec<_>>();
        let (least, most) = (ran.iter().min().unwrap(), ran.iter().max().unwrap());
        assert!(most - least <= most / 25, "beside {steady} on {cpus}: {ran:?}");
    }
}
