//! How much memory a CPU's queue and alarms take for the threads that they have room for.

use sched::{Alarms, BYTES_OF_A_PLACE, RunQueue, Timing};

#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

/// What a thread is said to take on each CPU is what it takes: whoever adds up a site's memory goes by that.
#[test]
fn a_place_takes_what_it_is_said_to_take() {
    for threads in [8, 600] {
        let (_, took) = scarce::most_held(|| {
            let mut queue = RunQueue::new(Timing { period: 1000, minimum_slice: 100 });
            queue.reserve(threads);
            let mut alarms = Alarms::new();
            alarms.reserve(2 * threads);
            (queue, alarms)
        });
        assert_eq!(took, threads * BYTES_OF_A_PLACE);
    }
}
