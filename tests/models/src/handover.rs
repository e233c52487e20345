//! The running flag of `hw::thread::switch_stacks`: a thread that is already on another CPU's queue is continued there
//! only after its registers are saved here, and two CPUs that exchange threads do not wait for each other for ever.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use loom::thread;

/// A thread's saved registers (one stands for all) and whether it runs.
struct Context {
    saved: AtomicU64,
    running: AtomicU8,
}

impl Context {
    fn new(saved: u64, running: u8) -> Self {
        Self { saved: AtomicU64::new(saved), running: AtomicU8::new(running) }
    }

    /// `str x4, [x0]; stlrb wzr, [x1]`.
    fn leave(&self, registers: u64, order: Ordering) {
        self.saved.store(registers, Ordering::Relaxed);
        self.running.store(0, order);
    }

    /// `ldaxrb, cbnz, stxrb; ldr x4, [x2]`.
    fn enter(&self) -> u64 {
        while self.running.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
        self.saved.load(Ordering::Relaxed)
    }
}

/// CPU 0 runs thread A and CPU 1 thread B; each is put on the other's queue, and then both switch.
fn exchange(order: Ordering) {
    let threads = Arc::new([Context::new(0, 1), Context::new(0, 1)]);
    let other = {
        let threads = Arc::clone(&threads);
        thread::spawn(move || {
            threads[1].leave(20, order);
            threads[0].enter()
        })
    };
    threads[0].leave(10, order);
    let here = threads[1].enter();
    let there = other.join();
    assert_eq!((here, there.ok()), (20, Some(10)), "continued with stale registers");
}

#[test]
fn an_exchange_ends_with_the_right_registers() {
    loom::model(|| exchange(Ordering::Release));
}

#[test]
#[should_panic(expected = "stale registers")]
fn a_plain_store_of_the_flag_would_not_do() {
    loom::model(|| exchange(Ordering::Relaxed));
}

/// Two CPUs find the same ready thread: the flag lets one in.
#[test]
fn a_thread_is_continued_once() {
    loom::model(|| {
        let context = Arc::new(Context::new(7, 0));
        let inside = Arc::new(AtomicU8::new(0));
        let run = |context: &Context, inside: &AtomicU8| {
            context.enter();
            assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
            inside.fetch_sub(1, Ordering::Relaxed);
            context.leave(7, Ordering::Release);
        };
        let other = {
            let (context, inside) = (Arc::clone(&context), Arc::clone(&inside));
            thread::spawn(move || run(&context, &inside))
        };
        run(&context, &inside);
        assert!(other.join().is_ok());
    });
}
