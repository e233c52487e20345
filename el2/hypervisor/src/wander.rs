//! Guests that never stay on a CPU: the boot argument `selftest=wander`.
//!
//! VMs run as usual, but each preemption takes a vCPU's thread to another CPU, wherever it is: in the guest, or in the middle
//! of what an exit led to. A thread of the hypervisor's own makes the CPUs look at their queues all the time, so that there
//! are thousands of such moves a second. No guest may notice: what EL2's handlers read from the CPU before a move and write
//! after it is still the same vCPU's.

use core::sync::atomic::Ordering;

use hw::percpu;
use hw::sync::unmask_irqs;
use hw::sysreg;
use units::{CpuId, Ticks};

use crate::sched::{self, Thread};
use crate::{host, vm};

/// How long the CPUs are left alone, in microseconds.
const PAUSE_MICROSECONDS: u64 = 50;

/// Makes the threads of all vCPUs restless.
pub(crate) fn start() {
    for vcpu in vm::all().flat_map(|vm| vm.vcpus()) {
        vcpu.thread().exile_anywhere(true);
    }
    // Wherever it runs, it has just taken the CPU from somebody.
    match Thread::spawn("restless", run, 0, (10_000, sched::online())) {
        Ok(thread) => sched::wake(thread),
        Err(error) => log::error!("selftest: {error}"),
    }
}

fn run(_: usize) -> ! {
    unmask_irqs();
    let mut told = 0;
    loop {
        sched::block(Some(Ticks(sysreg::cntpct_el0() + host::ticks(PAUSE_MICROSECONDS))));
        sched::nudge_others();
        let (at_once, deferred) = preemptions();
        // For the scenario to see that it tests something.
        if at_once / 1000 > told {
            told = at_once / 1000;
            log::info!("EL2 was preempted {at_once} times at once, {deferred} times after a lock");
        }
    }
}

/// How often EL2 was preempted at once, and after a lock, on all CPUs.
fn preemptions() -> (u64, u64) {
    let areas = || (0..64).map(CpuId).filter(|cpu| sched::online() >> cpu.0 & 1 != 0).filter_map(percpu::of);
    let at_once = areas().map(|area| area.preemptions.load(Ordering::Relaxed)).sum();
    let deferred = areas().map(|area| area.deferred_preemptions.load(Ordering::Relaxed)).sum();
    (at_once, deferred)
}
