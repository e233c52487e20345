//! The heap of the hypervisor: used while VMs are made and unmade, and for the messages and values of calls; never on the
//! short path of an exit.
//!
//! An infallible allocation that fails stops the host. So allocations while guests run are fallible ([`boxed`], and `try_reserve`
//! for what grows); and a VM is made only if there is room for all of it ([`has_room`]).
//!
//! The allocator is `talc`; IRQs are masked around it, since a thread that is preempted while it holds the allocator's
//! lock would stop every other thread of its CPU that allocates.

extern crate alloc;

use alloc::alloc::alloc;
use alloc::boxed::Box;
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

/// `value` on the heap, if there is room for it.
#[must_use]
pub fn boxed<T>(value: T) -> Option<Box<T>> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Some(Box::new(value));
    }
    // SAFETY: the layout has a size. What it gives is checked, and written, before it is a box, which then has its only pointer, and
    // gives it back with the same layout.
    unsafe {
        let place = alloc(layout).cast::<T>();
        if place.is_null() {
            return None;
        }
        place.write(value);
        Some(Box::from_raw(place))
    }
}

/// Whether there is room for `bytes` in one piece.
///
/// It asks the allocator itself: of memory that is taken by `alloc::alloc` and given back unused the compiler knows that it need not be
/// taken at all, and that there was some.
#[must_use]
pub fn has_room(bytes: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(bytes.max(1), 16) else { return false };
    // SAFETY: the layout has a size; what was taken is given back unused, with the same layout.
    unsafe {
        let place = HEAP.alloc(layout);
        if !place.is_null() {
            HEAP.dealloc(place, layout);
        }
        !place.is_null()
    }
}
