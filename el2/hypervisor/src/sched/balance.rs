//! Fairness between CPUs: a CPU on which threads fall behind gives one to a CPU on which they are ahead.
//!
//! An idle CPU takes work by itself. One that is busy with a single thread does not look around, and has no timer that
//! would make it; so the CPU on which a thread has to wait looks at the others, in *rounds*, every few milliseconds for
//! as long as a thread waits. A round is an alarm among the others of its CPU, in a slot of the idle thread, which does
//! not need it; none of this is on the path of a switch. [`RunQueue::give`](::sched::RunQueue::give) decides which
//! thread may move.

use core::sync::atomic::Ordering;

use ::sched::{Arrival, Given, ThreadId};
use hw::percpu::this_cpu;
use spin::Once;
use units::CpuId;

use super::threads::thread;
use super::{CPUS, Cpu, Queue};
use crate::host;

/// From one round to the next, in microseconds: no simple fraction of the time in which threads take turns, or the same
/// one would run at each round.
const ROUND_MICROSECONDS: u64 = 6180;
/// A CPU gives each other one at most so many threads in a round.
const PASSES: u32 = 4;

impl Queue {
    /// The slot of this CPU's next round among its alarms.
    fn round_slot(&self) -> u32 {
        self.idle.alarm_slot()
    }

    /// The CPUs to which something that runs or waits on `me`, whose queue this is, could go; perhaps more.
    fn reachable(&self, me: &Cpu) -> u64 {
        let running = self.run.current().map_or(0, |entity| entity.affinity.0);
        (me.waiting_affinity.load(Ordering::Relaxed) | running) & super::online() & !(1 << me.id.0)
    }

    /// There is to be a round on `me`, whose queue this is, if somebody waits who could go elsewhere.
    pub(super) fn plan_round(&mut self, me: &Cpu, now: u64) {
        let slot = self.round_slot();
        if self.run.len() > 1 && self.alarms.deadline_of(slot).is_none() && self.reachable(me) != 0 {
            self.alarms.set(slot, now.saturating_add(host::ticks(ROUND_MICROSECONDS)));
        }
    }

    /// Nobody waits any more: whoever is alone is not interrupted.
    pub(super) fn cancel_round(&mut self) {
        self.alarms.cancel(self.round_slot());
    }
}

/// A round of this CPU's: compares it to the others, and gives threads away. IRQs are masked.
pub(super) fn round(me: &'static Cpu, now: u64) {
    for _ in 0..PASSES {
        // Each begins with its neighbour, so that not all give to the same one.
        let (before, after) = CPUS.split_at(usize::from(me.id.0).min(CPUS.len()));
        let others = after.iter().skip(1).chain(before).filter_map(Once::get).copied();
        let given = others.filter(|other| give(me, other, now)).count();
        if given == 0 {
            break;
        }
    }
    let mut queue = me.queue.lock();
    let Queue { run, slice, .. } = &mut *queue;
    slice.somebody_waits(run);
    queue.plan_round(me, now);
}

/// Gives one of `me`'s threads to `other`, if that is fair. Says whether it did. Locks one queue after the other, so either
/// may have changed a little when it is compared.
fn give(me: &'static Cpu, other: &'static Cpu, now: u64) -> bool {
    let mut queue = me.queue.lock();
    if queue.run.waiting() == 0 || queue.reachable(me) >> other.id.0 & 1 == 0 {
        return false;
    }
    queue.charge_until(now);
    let own = queue.run.standing(now);
    drop(queue);
    let mut queue = other.queue.lock();
    queue.charge_until(now);
    let theirs = queue.run.stand_beside(&own, now);
    drop(queue);
    let mut queue = me.queue.lock();
    match queue.run.give(other.id, &theirs, now, |id| thread(id).is_movable()) {
        Some(Given::Waiting(entity)) => {
            // Pairs with the loads in `steal`.
            me.waiting.store(queue.run.waiting() as u32, Ordering::SeqCst);
            thread(entity.thread).parking.set_home(u32::from(other.id.0));
            drop(queue);
            other.queue.lock().enqueue(other, entity, Arrival::Moved);
            true
        }
        Some(Given::Running(id)) => {
            drop(queue);
            send(id, other.id);
            false
        }
        None => false,
    }
}

/// Lets the running thread go to `to`, as soon as it can be preempted.
fn send(id: ThreadId, to: CpuId) {
    if thread(id).send(to) {
        this_cpu().reschedule.store(1, Ordering::Relaxed);
    }
}
