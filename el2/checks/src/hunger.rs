//! A hypervisor without any heap left, started by the boot argument `selftest=hunger`: requests while VMs run are served without
//! memory, or refused.

use alloc::vec::Vec;
use core::mem;

use undercroft::{sched, vm};

use crate::selftest::sleep;

/// Waits until a VM was started a second time, which shows that all is made that is made once; then takes the heap, piece by piece.
pub(crate) fn run(_: usize) -> ! {
    while !vm::all().any(|vm| vm.boots() > 1) {
        sleep(20_000);
    }
    let mut taken = 0;
    for size in [1 << 20, 64 << 10, 4096, 256, 32, 8] {
        let mut piece = Vec::<u8>::new();
        while piece.try_reserve_exact(size).is_ok() {
            taken += size;
            mem::forget(mem::take(&mut piece));
        }
    }
    log::info!("selftest: the heap is used up, {taken} bytes were left");
    loop {
        sched::block(None);
    }
}
