//! Whether a thread runs, waits for a CPU or sleeps, and how a wake-up is never lost.
//!
//! All changes but [`Parking::is_running`]'s reads are made under the lock of the run queue of the thread's home CPU, and
//! the home changes only while the thread waits there (it is stolen) or runs there (it moves itself), under that same
//! lock. A wake-up that finds the thread not asleep leaves a token, and the next attempt to sleep takes the token instead.
//! `tests/models` runs this file against all interleavings.

use crate::sync::{AtomicU8, AtomicU32, Ordering};

const RUNNING: u8 = 0;
const READY: u8 = 1;
const ASLEEP: u8 = 2;
/// Added to RUNNING or READY: a wake-up came meanwhile.
const TOKEN: u8 = 0x80;

/// A thread's state and its home CPU.
#[derive(Debug)]
pub struct Parking {
    state: AtomicU8,
    home: AtomicU32,
}

impl Parking {
    /// A thread that sleeps at `home`.
    #[must_use]
    pub fn asleep(home: u32) -> Self {
        Self { state: AtomicU8::new(ASLEEP), home: AtomicU32::new(home) }
    }

    /// A thread that runs at `home`.
    #[must_use]
    pub fn running(home: u32) -> Self {
        Self { state: AtomicU8::new(RUNNING), home: AtomicU32::new(home) }
    }

    /// The CPU whose queue's lock guards the state. To be read again with that lock held.
    pub fn home(&self) -> u32 {
        // Pairs with the store in `set_home`: under the new home's lock, whoever finds it there sees the state that it had when it left.
        self.home.load(Ordering::Acquire)
    }

    /// The thread has left its home's queue for `home`. Under the old home's lock; it waits or runs.
    pub fn set_home(&self, home: u32) {
        // Pairs with the load in `home`: the new home's lock is not held, and the state was written under the old one's.
        self.home.store(home, Ordering::Release);
    }

    /// Whether it runs; may be out of date when it returns.
    pub fn is_running(&self) -> bool {
        // Pairs with the store in `set_state`: whoever sees it run sees, behind this, the home at which it runs.
        self.state.load(Ordering::Acquire) & !TOKEN == RUNNING
    }

    /// The running thread wants to sleep: false if a wake-up came before. Under its home's lock.
    pub fn try_sleep(&self) -> bool {
        // Others write under the same lock: no read-modify-write is needed.
        if self.state.load(Ordering::Relaxed) & TOKEN != 0 {
            self.set_state(RUNNING);
            return false;
        }
        self.set_state(ASLEEP);
        true
    }

    /// A wake-up: true if the thread slept and is now ready, to be put on its home's queue by the caller; otherwise the
    /// wake-up is kept for it. Under its home's lock.
    pub fn try_wake(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        let asleep = state == ASLEEP;
        self.set_state(if asleep { READY } else { state | TOKEN });
        asleep
    }

    /// The running thread gives the CPU away and stays ready. Under its home's lock.
    pub fn preempted(&self) {
        self.replace(READY);
    }

    /// The ready thread is put on a CPU. Under its home's lock.
    pub fn picked(&self) {
        self.replace(RUNNING);
    }

    fn replace(&self, state: u8) {
        let token = self.state.load(Ordering::Relaxed) & TOKEN;
        self.set_state(state | token);
    }

    fn set_state(&self, state: u8) {
        // Pairs with the load in `is_running`: the home was set before.
        self.state.store(state, Ordering::Release);
    }
}
