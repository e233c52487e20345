//! A heap that runs out on purpose, and counts what is held: for tests of what must still work when guests have used up
//! the hypervisor's heap, and of how much of it one guest can use.
//!
//! A crate's tests use it by `#[global_allocator] static HEAP: scarce::Heap = scarce::Heap;`. Each test's thread has
//! its own counts, so that tests may run side by side. An infallible allocation that fails within [`with_only`] ends
//! the whole test program, as it would stop the hypervisor.
#![expect(unsafe_code, reason = "an allocator's interface is made of raw pointers")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// How many allocations of this thread succeed from now on.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Bytes that this thread has taken and not given back, and the most that it ever had.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The heap.
#[derive(Debug)]
pub struct Heap;

// SAFETY: forwards to the system's allocator, or fails as an allocator may. The counts are plain cells without destructors, which
// allocate nothing.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = LEFT.get();
        if left == 0 {
            return std::ptr::null_mut();
        }
        if left != usize::MAX {
            LEFT.set(left - 1);
        }
        HELD.set(HELD.get().wrapping_add_unsigned(layout.size()));
        MOST.set(MOST.get().max(HELD.get()));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub_unsigned(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` returns when only its first `allocations` succeed.
pub fn with_only<T>(allocations: usize, work: impl FnOnce() -> T) -> T {
    LEFT.set(allocations);
    let result = work();
    LEFT.set(usize::MAX);
    result
}

/// Bytes that this thread has taken and not given back; less than nothing if it gave back what others took.
#[must_use]
pub fn held() -> isize {
    HELD.get()
}

/// What `work` returns, and how many bytes more than before this thread had at most meanwhile.
pub fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, usize::try_from(MOST.get() - before).unwrap_or(0))
}
