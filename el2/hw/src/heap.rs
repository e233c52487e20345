//! The heap of the hypervisor: used while VMs are made and unmade, and for the messages and values of calls; never on the
//! short path of an exit.
//!
//! The allocator is `talc`; IRQs are masked around it, since a thread that is preempted while it holds the allocator's
//! lock would stop every other thread of its CPU that allocates.

use core::alloc::{GlobalAlloc, Layout};

use talc::TalcLock;
use talc::source::Manual;

use crate::sync::{mask_irqs, restore_irqs};

static INNER: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: forwards to an allocator that fulfils the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let irqs = mask_irqs();
        // SAFETY: the caller keeps the contract of `alloc`.
        let pointer = unsafe { INNER.alloc(layout) };
        restore_irqs(irqs);
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let irqs = mask_irqs();
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { INNER.dealloc(pointer, layout) };
        restore_irqs(irqs);
    }
}

/// Adds `memory` to the heap. Says whether it could be used.
pub fn add(memory: &'static mut [u8]) -> bool {
    let irqs = mask_irqs();
    // SAFETY: the slice is given up for ever.
    let claimed = unsafe { INNER.lock().claim(memory.as_mut_ptr(), memory.len()) }.is_some();
    restore_irqs(irqs);
    claimed
}
