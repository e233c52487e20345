//! Threads of EL2: a stack, and the registers that are saved on it while another thread runs.
//!
//! [`switch`] saves the registers that a function call must preserve on the running thread's stack, remembers its stack
//! pointer, and continues another thread in the same way. A thread that was just put on some run queue may be picked by
//! another CPU while its registers are still being saved on this one; so each context says whether it is running, the
//! flag falls only once everything is saved, and the other CPU waits for that. CPUs cannot wait for each other in a
//! circle: a CPU releases the thread it leaves before it waits for the next, and uses neither stack in between. That
//! flag is also what makes this a safe function: a running thread is never continued a second time.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU8;

use units::Va;

/// Where a thread continues.
pub struct Context {
    stack_pointer: UnsafeCell<u64>,
    running: AtomicU8,
}

// SAFETY: `stack_pointer` is touched only by the CPU that made `running` 1.
unsafe impl Sync for Context {}

impl Context {
    /// The context of what runs right now, on the stack that it is on.
    #[must_use]
    pub const fn of_running() -> Self {
        Self { stack_pointer: UnsafeCell::new(0), running: AtomicU8::new(1) }
    }

    /// A thread that will run `entry(argument)`, IRQs masked, on the stack with top `stack_top`, which nothing else uses.
    #[must_use]
    pub fn new(stack_top: Va, entry: fn(usize) -> !, argument: usize) -> Self {
        let frame = stack_top.0 - 96;
        let (start, entry) = ((thread_start as *const ()).addr() as u64, (entry as *const ()).addr() as u64);
        let registers: [u64; 12] = [0, start, entry, argument as u64, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the top of a stack that is mapped, writable and unused.
        unsafe { core::ptr::with_exposed_provenance_mut::<[u64; 12]>(frame as usize).write(registers) };
        Self { stack_pointer: UnsafeCell::new(frame), running: AtomicU8::new(0) }
    }
}

/// Where the switch itself is, for the self-test to read.
pub(crate) fn switch_address() -> usize {
    (switch_stacks as *const ()).addr()
}

unsafe extern "C" {
    fn switch_stacks(from: *mut u64, from_running: *const AtomicU8, to: *mut u64, to_running: *const AtomicU8);
    fn thread_start();
}

/// Leaves the running thread, whose context is `from`, and continues `to`, another one; returns when somebody continues
/// `from`. IRQs are masked. Inlined: the assembly keeps a frame record of its own, so that a backtrace shows who waits here.
#[inline(always)]
pub fn switch(from: &'static Context, to: &'static Context) {
    debug_assert!(!core::ptr::eq(from, to));
    // SAFETY: the assembly takes `to` only once it is not running, so its stack pointer leads to registers saved by this
    // function or laid out by `Context::new`. `from` is this thread's own. Both live for ever.
    unsafe {
        switch_stacks(from.stack_pointer.get(), &raw const from.running, to.stack_pointer.get(), &raw const to.running)
    };
}

global_asm!(
    r#"
    .pushsection .text.switch, "ax"
    // In: x0, x1 = stack pointer and flag of the thread that is left; x2, x3 = of the one that continues.
    .global switch_stacks
switch_stacks:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x4, sp
    str     x4, [x0]
    stlrb   wzr, [x1]                       // from here on this stack may be in use elsewhere
    mov     w5, #1
1:  ldaxrb  w4, [x3]                        // pairs with the stlrb of the CPU that left the thread: its stack holds its registers
    cbnz    w4, 2f
    stxrb   w4, w5, [x3]
    cbnz    w4, 1b
    ldr     x4, [x2]
    mov     sp, x4
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    dsb     nsh
    isb
2:  yield                                   // the CPU that it leaves is saving its registers
    b       1b
    .global thread_start
thread_start:
    bl      {forget}                        // it may follow a guest that gave the CPU away
    mov     x0, x20
    mov     x29, xzr
    mov     x30, xzr
    blr     x19
    b       .
    .popsection
    "#,
    forget = sym start_without_history,
);

extern "C" fn start_without_history() {
    crate::speculation::forget();
}
