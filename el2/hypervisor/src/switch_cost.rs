//! What switches cost, in ticks of the counter, which are instructions where time is counted so (`cargo xtask bench`):
//! the boot argument `selftest=switch` prints `bench <name> <ticks>` lines and switches the host off.

use hw::sysreg;

use crate::sched::{self, Thread};
use crate::selftest;

/// Switches that are timed together.
const ROUNDS: u64 = 1000;

/// The thread that measures.
pub(crate) fn run(_: usize) -> ! {
    match Thread::spawn("partner", partner, 0, (100, 1)) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
    for name in ["thread-switch-cold", "thread-switch"] {
        let begin = sysreg::cntpct_el0();
        for _ in 0..ROUNDS {
            sched::yield_now();
        }
        // To the partner and back.
        let each = sysreg::cntpct_el0().wrapping_sub(begin) * 10 / (2 * ROUNDS);
        log::info!("bench {name} {}.{}", each / 10, each % 10);
    }
    selftest::end()
}

fn partner(_: usize) -> ! {
    loop {
        sched::yield_now();
    }
}
