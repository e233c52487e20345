//! Busy CPUs give work away.
//!
//! An idle CPU takes work by itself. One that is busy with a single thread does not look around, and has no timer that would
//! make it; so it is the CPU with the longer queue, whose timer fires at the end of each slice, that evens out. Which threads
//! it may give, and when, is [`sched::should_give`](::sched::should_give)'s.

use core::sync::atomic::Ordering;

use ::sched::{Affinity, Arrival};
use spin::Once;

use super::{CPUS, Cpu, IDLE, thread};
use crate::host;

/// Where queues differ by one thread, the difference goes round this often, in microseconds.
const ROUND_MICROSECONDS: u64 = 100_000;

impl Cpu {
    /// How many threads run or wait here; perhaps out of date.
    fn threads(&self) -> usize {
        let runs = IDLE.load(Ordering::Relaxed) >> self.id.0 & 1 == 0;
        self.waiting.load(Ordering::Relaxed) as usize + usize::from(runs)
    }
}

/// Gives one of the threads that wait here to the CPU with the shortest queue, if that makes things more even. IRQs are
/// masked.
pub(super) fn give_away(me: &'static Cpu, now: u64) {
    let allowed = Affinity(me.waiting_affinity.load(Ordering::Relaxed));
    let others = CPUS.iter().filter_map(Once::get).copied();
    let others = others.filter(|cpu| cpu.id != me.id && allowed.allows(cpu.id));
    let Some(other) = others.min_by_key(|cpu| cpu.threads()) else { return };
    let mut queue = me.queue.lock();
    let round = now >= queue.next_round;
    if !::sched::should_give(queue.run.len(), other.threads(), round) {
        return;
    }
    let Some(given) = queue.run.steal(other.id, |id| thread(id).is_movable()) else { return };
    if round {
        queue.next_round = now.saturating_add(host::ticks(ROUND_MICROSECONDS));
    }
    me.waiting.store(queue.run.waiting() as u32, Ordering::SeqCst);
    thread(given.thread).parking.set_home(u32::from(other.id.0));
    drop(queue);
    other.queue.lock().enqueue(other, given, Arrival::Moved);
}
