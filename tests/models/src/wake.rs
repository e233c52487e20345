//! Sleeping, waking and stealing, as `el2/hypervisor/src/sched/mod.rs` does them around [`Parking`]: no wake-up is lost, and
//! no thread is on two queues.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::parking::Parking;

/// Two CPUs' queues of one kind of thread: how often it is in each.
struct Machine {
    thread: Parking,
    queues: [Mutex<u32>; 2],
    work: AtomicBool,
}

impl Machine {
    fn new(thread: Parking) -> Self {
        Self { thread, queues: [Mutex::new(0), Mutex::new(0)], work: AtomicBool::new(false) }
    }

    /// `wake`: looks the home up, takes its lock, and looks again.
    fn wake(&self, look_again: bool) {
        loop {
            let home = self.thread.home();
            let Ok(mut queue) = self.queues[home as usize].lock() else { return };
            if look_again && self.thread.home() != home {
                continue;
            }
            if self.thread.try_wake() {
                *queue += 1;
            }
            return;
        }
    }

    /// The thread itself, running at CPU 0: sleeps unless there is work. Says whether it sleeps.
    fn sleep(&self) -> bool {
        if self.work.load(Ordering::Acquire) {
            return false;
        }
        let Ok(_queue) = self.queues[0].lock() else { return false };
        self.thread.try_sleep()
    }

    /// CPU 1 takes the thread from CPU 0's queue, as `steal` does.
    fn steal(&self) {
        let Ok(mut queue) = self.queues[0].lock() else { return };
        if *queue == 0 {
            return;
        }
        *queue -= 1;
        self.thread.set_home(1);
        drop(queue);
        if let Ok(mut queue) = self.queues[1].lock() {
            *queue += 1;
        }
    }

    /// The thread itself moves from CPU 0 to CPU 1: `give_way`, and then the other queue. With `locked` or without, as it must
    /// not be, as far as its state goes.
    fn move_away(&self, locked: bool) {
        let queue = locked.then(|| self.queues[0].lock());
        self.thread.preempted();
        self.thread.set_home(1);
        drop(queue);
        if let Ok(mut queue) = self.queues[1].lock() {
            *queue += 1;
        }
    }

    fn queued(&self) -> u32 {
        self.queues.iter().map(|queue| queue.lock().map_or(0, |queue| *queue)).sum()
    }
}

#[test]
fn a_wake_up_that_meets_the_sleep_is_not_lost() {
    loom::model(|| {
        let machine = Arc::new(Machine::new(Parking::running(0)));
        let waker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                machine.work.store(true, Ordering::Release);
                machine.wake(true);
            })
        };
        let sleeps = machine.sleep();
        let joined = waker.join();
        assert!(joined.is_ok());
        // Asleep and not queued would be a thread that nobody ever runs again, with work to do.
        assert_eq!(machine.queued(), u32::from(sleeps));
    });
}

#[test]
fn two_wakers_queue_it_once() {
    loom::model(|| {
        let machine = Arc::new(Machine::new(Parking::asleep(0)));
        let waker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.wake(true))
        };
        machine.wake(true);
        assert!(waker.join().is_ok());
        assert_eq!(machine.queued(), 1);
    });
}

#[test]
fn a_thread_that_is_stolen_while_it_is_woken_is_queued_once() {
    loom::model(|| {
        let machine = Arc::new(Machine::new(Parking::asleep(0)));
        machine.wake(true);
        let waker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.wake(true))
        };
        machine.steal();
        assert!(waker.join().is_ok());
        assert_eq!(machine.queued(), 1);
        // The second wake-up is kept for it: it runs, wants to sleep, and does not.
        machine.thread.picked();
        assert!(!machine.thread.try_sleep());
    });
}

/// A thread moves to CPU 1 and is woken meanwhile; then CPU 1 runs it, and it wants to sleep.
fn move_meets_wake(locked: bool) {
    loom::model(move || {
        let machine = Arc::new(Machine::new(Parking::running(0)));
        let waker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.wake(true))
        };
        machine.move_away(locked);
        assert!(waker.join().is_ok());
        assert_eq!(machine.queued(), 1);
        machine.thread.picked();
        assert!(!machine.thread.try_sleep(), "the wake-up is lost");
    });
}

#[test]
fn a_thread_that_moves_while_it_is_woken_is_queued_once_and_knows() {
    move_meets_wake(true);
}

#[test]
#[should_panic(expected = "the wake-up is lost")]
fn a_move_without_the_lock_loses_a_wake_up() {
    move_meets_wake(false);
}

/// A thread is stolen, runs at its new home and goes to sleep there, and is woken meanwhile.
fn stolen_sleeper(look_again: bool) {
    loom::model(move || {
        let machine = Arc::new(Machine::new(Parking::asleep(0)));
        machine.wake(true);
        let waker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.wake(look_again))
        };
        machine.steal();
        // CPU 1 runs it.
        let sleeps = {
            let Ok(mut queue) = machine.queues[1].lock() else { return };
            *queue -= 1;
            machine.thread.picked();
            machine.thread.try_sleep()
        };
        assert!(waker.join().is_ok());
        // Whether it sleeps or the wake-up came first: in the end it runs, or waits where it lives.
        let queued = [0, 1].map(|cpu: usize| machine.queues[cpu].lock().map_or(9, |queue| *queue));
        assert_eq!(queued, [0, u32::from(sleeps)], "lost, or queued where it does not live");
    });
}

#[test]
fn a_wake_up_that_meets_the_sleep_of_a_stolen_thread_is_not_lost() {
    stolen_sleeper(true);
}

/// Without the second look a waker may change the state under the wrong lock, while the thread goes to sleep at its new
/// home: the model finds the wake-up that is lost.
#[test]
#[should_panic(expected = "lost")]
fn without_the_second_look_a_wake_up_is_lost() {
    stolen_sleeper(false);
}
