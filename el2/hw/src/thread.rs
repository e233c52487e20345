//! Threads of EL2: a stack, and what is on it while another one runs.
//!
//! [`switch`] saves the registers that a function call must preserve on the running thread's stack, remembers its stack
//! pointer, and continues another thread in the same way. It refuses, with a panic, to continue a thread that runs on
//! another CPU or whose registers are still being saved there: each context says whether it is running, and says so
//! until the thread after it has started. That check is what makes this a safe function.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use units::Va;

/// Where a thread continues.
pub struct Context {
    stack_pointer: UnsafeCell<u64>,
    running: AtomicBool,
    /// Who ran before; set by the thread that switches to this one.
    previous: AtomicPtr<Context>,
}

// SAFETY: `stack_pointer` is touched only by the CPU that made `running` true.
unsafe impl Sync for Context {}

impl Context {
    /// The context of what runs right now, on the stack that it is on.
    #[must_use]
    pub const fn of_running() -> Self {
        Self {
            stack_pointer: UnsafeCell::new(0),
            running: AtomicBool::new(true),
            previous: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// A thread that will run `entry(argument)` on the stack with top `stack_top`, which nothing else uses.
    #[must_use]
    pub fn new(stack_top: Va, entry: fn(usize) -> !, argument: usize) -> Self {
        let frame = stack_top.0 - 96;
        let registers: [u64; 12] =
            [0, (thread_start as *const ()).addr() as u64, (entry as *const ()).addr() as u64, argument as u64, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the top of a stack that is mapped, writable and unused.
        unsafe { core::ptr::with_exposed_provenance_mut::<[u64; 12]>(frame as usize).write(registers) };
        Self {
            stack_pointer: UnsafeCell::new(frame),
            running: AtomicBool::new(false),
            previous: AtomicPtr::new(core::ptr::null_mut()),
        }
    }
}

unsafe extern "C" {
    fn switch_stacks(save: *mut u64, next: u64);
    fn thread_start();
}

/// Leaves the running thread, whose context is `from`, and continues `to`; returns when somebody continues `from`.
/// IRQs are masked.
///
/// # Panics
/// If `to` is running: a defect of the scheduler.
#[inline(never)]
pub fn switch(from: &'static Context, to: &'static Context) {
    let was_running = to.running.swap(true, Ordering::Acquire);
    assert!(!was_running, "the scheduler continued a thread that is running");
    to.previous.store(core::ptr::from_ref(from).cast_mut(), Ordering::Relaxed);
    // SAFETY: `to` was not running, so its stack pointer leads to registers saved by this function or laid out by
    // `Context::new`, and this CPU alone has just claimed it. `from` is this thread's own.
    unsafe { switch_stacks(from.stack_pointer.get(), *to.stack_pointer.get()) };
    release_previous(from);
}

/// The thread before this one is fully saved now: others may continue it.
fn release_previous(current: &Context) {
    let previous = current.previous.swap(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: contexts are `'static`; the pointer was made from a reference by `switch`.
    if let Some(previous) = unsafe { previous.as_ref() } {
        previous.running.store(false, Ordering::Release);
    }
}

/// What a new thread calls first, with its own context: the other half of [`switch`].
pub fn started(current: &'static Context) {
    release_previous(current);
}

global_asm!(
    r#"
    .pushsection .text.switch, "ax"
    .global switch_stacks
switch_stacks:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x2, sp
    str     x2, [x0]
    mov     sp, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    .global thread_start
thread_start:
    mov     x0, x20
    mov     x29, xzr
    mov     x30, xzr
    blr     x19
    b       .
    .popsection
    "#
);
