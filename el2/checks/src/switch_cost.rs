//! What a switch of threads costs, in ticks of the counter, which are instructions where time is counted so (`cargo xtask
//! bench`): the boot argument `selftest=switch` prints a line `bench thread-switch <ticks>` and switches the host off.
//!
//! Two threads of the same CPU yield to each other: choosing the next one, charging this one, arming the timer, saving and
//! loading registers. What a switch of vCPUs costs is measured from inside guests, where everything counts.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw::percpu::this_cpu;
use hw::sysreg;
use units::Ticks;

use crate::{link_cost, selftest};
use undercroft::host;
use undercroft::sched::{self, Thread};

/// Switches that are timed together.
const ROUNDS: u64 = 1000;
/// How often the partner has had the CPU.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// The measurement is over.
static OVER: AtomicBool = AtomicBool::new(false);

/// The thread that measures.
pub(crate) fn run(_: usize) -> ! {
    sched::move_to(this_cpu().cpu);
    // Until the log is out and memory is zeroed.
    sched::block(Some(Ticks(sysreg::cntpct_el0() + host::ticks(1_000_000))));
    match Thread::spawn("partner", partner, 0, (100, 1 << this_cpu().cpu.0)) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
    let mut tenths = 0;
    // The second time everything has been used before.
    for _ in 0..2 {
        let theirs = TURNS.load(Ordering::Relaxed);
        let begin = sysreg::cntpct_el0();
        for _ in 0..ROUNDS {
            sched::yield_now();
        }
        let ticks = sysreg::cntpct_el0().wrapping_sub(begin);
        // To the partner and back.
        let switches = 2 * (TURNS.load(Ordering::Relaxed) - theirs);
        tenths = ticks * 10 / switches.max(1);
    }
    OVER.store(true, Ordering::Relaxed);
    log::info!("bench thread-switch {}.{}", tenths / 10, tenths % 10);
    link_cost::measure();
    selftest::end()
}

fn partner(_: usize) -> ! {
    while !OVER.load(Ordering::Relaxed) {
        TURNS.store(TURNS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        sched::yield_now();
    }
    loop {
        sched::block(None);
    }
}
