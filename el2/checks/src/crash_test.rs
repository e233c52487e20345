//! Faults in the hypervisor, caused on purpose by the boot argument `selftest=crash-...`: each has to end in a report
//! that says what it was, and in a host that is switched off. `tests/system` checks the result.

use core::hint::black_box;

use abi::check_arguments::Crash;
use hw::selftest as probe;

use crate::selftest::{self, sleep};
use undercroft::vm;

/// The thread that crashes; `crash` is a [`Crash`].
pub(crate) fn run(crash: usize) -> ! {
    // The VMs, where there are some, have been told of by then.
    while vm::all().any(|vm| vm.boots() == 0) {
        sleep(20_000);
    }
    sleep(if vm::all().next().is_some() { 100_000 } else { 0 });
    log::info!("selftest: a crash on purpose");
    if crash == Crash::Panic as usize {
        panic!("the self-test panics");
    } else if crash == Crash::Undefined as usize {
        probe::execute_undefined();
    } else if crash == Crash::WriteCode as usize {
        probe::write_code();
    } else if crash == Crash::ExecuteData as usize {
        probe::execute_data();
    } else {
        log::info!("{}", overflow(1));
    }
    log::error!("selftest: nothing crashed");
    selftest::end()
}

/// Calls itself until the stack is full.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let filler = black_box([depth; 32]);
    if black_box(depth) == 0 { 0 } else { overflow(depth + 1).wrapping_add(filler[depth as usize % 32]) }
}
