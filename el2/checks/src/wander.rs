//! Guests that never stay on a CPU: the boot argument `selftest=wander`.
//!
//! VMs run as usual, but each preemption takes a vCPU's thread to another CPU, wherever it is: in the guest, or in the middle of
//! what an exit led to. A hypervisor thread makes the CPUs look at their queues all the time; and every other exit that takes the
//! long path finds an interrupt that does so when it enables IRQs ([`disturb`]). No guest may notice: what EL2's handlers read
//! from the CPU before a move and write after it still belongs to the same vCPU.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw::sync::unmask_irqs;
use hw::sysreg;
use units::Ticks;

use crate::disturbance;
use undercroft::exit::checks::Place;
use undercroft::sched::{self, Thread};
use undercroft::{host, vm};

/// How long the CPUs are left alone, in microseconds.
const PAUSE_MICROSECONDS: u64 = 50;

static ON: AtomicBool = AtomicBool::new(false);
/// How often handlers of exits were preempted.
static PREEMPTED: AtomicU64 = AtomicU64::new(0);

/// Makes the threads of all vCPUs restless.
pub(crate) fn start() {
    ON.store(true, Ordering::Relaxed);
    for vcpu in vm::all().flat_map(|vm| vm.vcpus()) {
        disturbance::set_restless(vcpu.thread(), true);
    }
    // Wherever it runs, it has just taken the CPU from somebody.
    match Thread::spawn("restless", run, 0, (10_000, sched::online())) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
}

/// A handler of an exit is about to let IRQs in: every other time one waits for that. IRQs are masked.
#[inline(always)]
pub(crate) fn disturb() {
    if ON.load(Ordering::Relaxed) && sysreg::cntpct_el0() >> 4 & 1 != 0 {
        disturbance::nudge_self(0);
    }
}

/// The running thread is about to be preempted: counts those of vCPUs, in EL2.
pub(crate) fn note_preemption(place: Place) {
    if ON.load(Ordering::Relaxed) && place == Place::AtOnce && sched::current().has_occupant() {
        PREEMPTED.fetch_add(1, Ordering::Relaxed);
    }
}

fn run(_: usize) -> ! {
    unmask_irqs();
    let mut told = 0;
    loop {
        sched::block(Some(Ticks(sysreg::cntpct_el0() + host::ticks(PAUSE_MICROSECONDS))));
        sched::nudge_others();
        // For the scenario to see that it tests something.
        let preempted = PREEMPTED.load(Ordering::Relaxed);
        if preempted / 1000 > told {
            told = preempted / 1000;
            log::info!("exits' handlers were preempted {preempted} times");
        }
    }
}
