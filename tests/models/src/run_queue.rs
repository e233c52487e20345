//! The run queue between CPUs, as `el2/hypervisor/src/sched/mod.rs` has it around its lock: a thread that waits on a
//! busy CPU is seen by a CPU that becomes idle, or that CPU is interrupted; and a CPU that is told to look at its queue
//! finds the thread there.

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// The queue of a busy CPU, and what others see of it without its lock.
struct Busy {
    queue: Mutex<u32>,
    waiting: AtomicU32,
    /// `IDLE`: the bit of the other CPU.
    other_is_idle: AtomicBool,
    /// The other CPU was told (`offer`).
    told: AtomicBool,
}

impl Busy {
    fn new() -> Self {
        Self {
            queue: Mutex::new(0),
            waiting: AtomicU32::new(0),
            other_is_idle: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// `drop_off`: a thread is woken whose home is busy.
    fn drop_off(&self, fenced: bool) {
        {
            let Ok(mut queue) = self.queue.lock() else { return };
            *queue += 1;
            self.waiting.store(*queue, Ordering::SeqCst);
        }
        if fenced {
            fence(Ordering::SeqCst);
        }
        if self.other_is_idle.load(Ordering::SeqCst) {
            self.told.store(true, Ordering::Relaxed);
        }
    }

    /// `put_on` of the idle thread, and then `steal`. Says whether it found something.
    fn become_idle_and_steal(&self, fenced: bool) -> bool {
        self.other_is_idle.store(true, Ordering::SeqCst);
        if fenced {
            fence(Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let Ok(mut queue) = self.queue.lock() else { return false };
        let found = *queue > 0;
        *queue -= u32::from(found);
        found
    }
}

/// `fenced`: the CPU that wakes, and the one that becomes idle.
fn wake_meets_idle(fenced: [bool; 2]) {
    loom::model(move || {
        let cpu = Arc::new(Busy::new());
        let idle = {
            let cpu = Arc::clone(&cpu);
            thread::spawn(move || cpu.become_idle_and_steal(fenced[1]))
        };
        cpu.drop_off(fenced[0]);
        let stolen = idle.join().unwrap_or(false);
        assert!(stolen || cpu.told.load(Ordering::Relaxed), "a thread waits while a CPU is idle");
    });
}

#[test]
fn a_thread_that_waits_is_seen_by_a_cpu_that_becomes_idle() {
    wake_meets_idle([true; 2]);
}

#[test]
#[should_panic(expected = "waits while a CPU is idle")]
fn without_the_wakers_fence_neither_may_see_the_other() {
    wake_meets_idle([false, true]);
}

#[test]
#[should_panic(expected = "waits while a CPU is idle")]
fn without_the_idle_ones_fence_neither_may_see_the_other() {
    wake_meets_idle([true, false]);
}

/// A CPU that is told to look: `attention` keeps all senders but the first from sending an interrupt.
struct Told {
    queue: Mutex<u32>,
    attention: AtomicBool,
    /// The KICK is pending in the interrupt controller.
    kick: AtomicBool,
}

impl Told {
    /// `enqueue` and `notify`, by another CPU. With `told_first` in the wrong order, and without the lock.
    fn enqueue(&self, told_first: bool) {
        if told_first {
            self.notify();
        }
        let Ok(mut queue) = self.queue.lock() else { return };
        *queue += 1;
        if !told_first {
            self.notify();
        }
    }

    fn notify(&self) {
        if !self.attention.swap(true, Ordering::AcqRel) {
            let _ = self.kick.swap(true, Ordering::AcqRel);
        }
    }

    /// The interrupt is acknowledged; `kicked`, and then `reschedule` takes all that waits. With `noted_last` the attention
    /// is taken away only behind that. Says how many there were.
    fn interrupt(&self, noted_last: bool) -> u32 {
        if !self.kick.swap(false, Ordering::AcqRel) {
            return 0;
        }
        let wanted = noted_last || self.attention.swap(false, Ordering::AcqRel);
        let taken = match self.queue.lock() {
            Ok(mut queue) if wanted => core::mem::take(&mut *queue),
            _ => 0,
        };
        if noted_last {
            self.attention.store(false, Ordering::Release);
        }
        taken
    }
}

fn two_tell_one(told_first: bool, noted_last: bool) {
    loom::model(move || {
        let cpu =
            Arc::new(Told { queue: Mutex::new(0), attention: AtomicBool::new(false), kick: AtomicBool::new(false) });
        let others = [(); 2].map(|()| {
            let cpu = Arc::clone(&cpu);
            thread::spawn(move || cpu.enqueue(told_first))
        });
        let mut taken = cpu.interrupt(noted_last);
        for other in others {
            assert!(other.join().is_ok());
        }
        // An interrupt that is still pending comes now.
        taken += cpu.interrupt(noted_last);
        assert_eq!(taken, 2, "told of a thread and did not look");
    });
}

#[test]
fn who_is_told_finds_what_it_was_told_of() {
    two_tell_one(false, false);
}

#[test]
#[should_panic(expected = "did not look")]
fn to_tell_before_the_thread_is_there_would_not_do() {
    two_tell_one(true, false);
}

#[test]
#[should_panic(expected = "did not look")]
fn to_note_it_only_after_the_look_would_not_do() {
    two_tell_one(false, true);
}
