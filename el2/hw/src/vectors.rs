//! EL2's exception vectors (DDI 0487 D1.3.2): where a guest's exits and our own interrupts arrive.
//!
//! An exit stores the guest's general registers into the current vCPU, found through the per-CPU alias, and calls the
//! exit hook on the vCPU thread's own stack. If the hook could answer (it returns 0), the registers go back and the
//! guest continues: that is the short path, and its length is a promise (SPECIFICATION.md). Otherwise the values that
//! [`enter_guest`] saved come back from the stack and it returns to its caller, as any function does.
//!
//! A guest also leaves its branches behind in predictors (`cpu::speculation`). So there are three sets of vectors, and
//! each CPU uses the one that it needs, so that the others pay nothing ([`choose`]):
//! * *plain*: the CPU keeps contexts apart by itself.
//! * *clearing*: the guest's branch history is overwritten when an exit leaves the short path. Until then there is no
//!   indirect branch whose prediction the history could choose: the hook is called directly, and `cargo xtask test` looks
//!   at each instruction that can be reached from it (`tools/xtask/src/branches.rs`). What follows then, the long path or
//!   another thread ([`crate::speculation`]), may branch as it likes.
//! * *calling*: where only firmware can make the CPU forget what a guest has trained, the vector calls it first of all.
//!
//! An interrupt in EL2 saves what a function call may change, runs the interrupt hook, which may switch threads, and
//! returns. Every other exception in EL2 is our own bug: the registers are laid out as a [`crate::crash::Frame`] and
//! the machine stops with a report. After a stack overflow the stack pointer is in the guard half of its 64 KiB slot
//! (`stack`), where nothing can be stored; the check needs no free register, and switches to the CPU's emergency stack.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::crash::{Frame, crash_entry};
use crate::percpu::{ALIAS, Area};
use crate::sysreg;
use crate::vcpu::VcpuContext;

global_asm!(
    r#"
    .macro lower_exit kind, path
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    movz    x0, #{alias}, lsl #32
    ldr     x0, [x0, #{vcpu}]
    stp     x2, x3, [x0, #16]
    mov     x1, #\kind
    b       \path
    .endm

    // A fault of our own. SP's bit 15 is set while it points into the mapped half of a stack slot.
    .macro own_fault kind
    .balign 0x80
    sub     sp, sp, #{frame_size}
    add     sp, sp, x0
    sub     x0, sp, x0
    tbz     x0, #15, 1f
    sub     x0, sp, x0
    sub     sp, sp, x0
    stp     x0, x1, [sp]
    mov     x0, #\kind
    mov     x1, #0
    b       own_fault_common
1:  b       stack_overflow
    .endm

    // As lower_exit, but the firmware's workaround comes first. By SMCCC 1.1 it changes X0 to X3 at most.
    .macro lower_exit_calling kind, path
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    movz    x0, #{alias}, lsl #32
    ldr     x0, [x0, #{vcpu}]
    stp     x2, x3, [x0, #16]
    movz    x0, #{alias}, lsl #32
    ldr     w0, [x0, #{workaround}]
    smc     #0
    movz    x0, #{alias}, lsl #32
    ldr     x0, [x0, #{vcpu}]
    mov     x1, #\kind
    b       \path
    .endm

    .macro vector_table name, lower, path
    .balign 0x800
    .global \name
\name:
    // Current EL with SP_EL0: never used by us.
    own_fault 0
    own_fault 1
    own_fault 2
    own_fault 3
    // Current EL with SP_EL2.
    own_fault 4
    .balign 0x80
    b       own_interrupt
    own_fault 6
    own_fault 7
    // A lower EL: first where EL1 is in AArch64 state, as it always is; it is EL1 that counts, wherever the guest was.
    .rept 2
    \lower 1, \path
    \lower 2, \path
    \lower 2, \path
    \lower 3, \path
    .endr
    .balign 0x80
    .endm

    // Nothing is executed behind an ERET or a branch that does not return; this keeps a CPU from beginning to, ahead of time.
    .macro no_further
    dsb     nsh
    isb
    .endm

    // The way out of the guest and back, by the name `path`; what leaves the short path goes on at `leave`.
    // In: x0 = vCPU context, x1 = kind, the guest's x2 and x3 stored, its x0 and x1 on the stack, the rest untouched.
    .macro exit_path path, resume, leave
    .global \path
\path:
    stp     x4, x5, [x0, #32]
    ldp     x2, x3, [sp], #16
    stp     x6, x7, [x0, #48]
    stp     x2, x3, [x0]
    stp     x8, x9, [x0, #64]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x10, x11, [x0, #80]
    tbz     x3, #4, 1f                      // M[4]: EL0 in AArch32 state, where no guest should be
    mov     x4, #4                          // is another kind of exit, but for an SError, which was taken by this;
    cmp     x1, #3                          // an interrupt stays pending, for the vCPU's thread
    csel    x1, x1, x4, eq
1:  stp     x12, x13, [x0, #96]
    mrs     x4, esr_el2
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    stp     x30, x2, [x0, #240]
    stp     x3, x4, [x0, #256]
    mov     x19, x0
    bl      {exit_hook}
    cbnz    x0, \leave
    mov     x0, x19
\resume:
    ldp     x30, x2, [x0, #240]
    ldr     x3, [x0, #256]
    ldp     x28, x29, [x0, #224]
    ldp     x26, x27, [x0, #208]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x24, x25, [x0, #192]
    ldp     x22, x23, [x0, #176]
    ldp     x20, x21, [x0, #160]
    ldp     x18, x19, [x0, #144]
    ldp     x16, x17, [x0, #128]
    ldp     x14, x15, [x0, #112]
    ldp     x12, x13, [x0, #96]
    ldp     x10, x11, [x0, #80]
    ldp     x8, x9, [x0, #64]
    ldp     x6, x7, [x0, #48]
    ldp     x4, x5, [x0, #32]
    ldp     x2, x3, [x0, #16]
    ldp     x0, x1, [x0]
    // A guest may stand between the LDXR and the WFE by which it waits for a lock, IRQs masked. The exit has taken its exclusive
    // state away, so that no store of the owner's is an event for it any more; that is why an exception return is one by itself
    // (DDI 0487, the Event Register of a PE). QEMU's (11.1) is none, and such a guest slept for ever.
    sevl
    eret
    no_further
    .endm

    .pushsection .text.vectors, "ax"
    vector_table exception_vectors, lower_exit, guest_exit_plain
    vector_table exception_vectors_clearing, lower_exit, guest_exit_clearing
    vector_table exception_vectors_calling, lower_exit_calling, guest_exit_plain

    exit_path guest_exit_plain, guest_resume, leave_enter
    exit_path guest_exit_clearing, guest_resume_clearing, leave_clearing

    // In: x0, which stays. Changes x1 and x2, and the flags.
    .macro clear_branch_history
    hint    #22                             // CLRBHB, nothing where the CPU does not have it
    movz    x1, #{alias}, lsl #32
    ldr     x2, [x1, #{rounds}]
    cbz     x2, 2f
1:  b       . + 4
    subs    x2, x2, #1
    b.ne    1b
2:  dsb     nsh
    isb
    .endm

    // void forget_branch_history(void): as above, for a thread that goes on where a guest left the CPU.
    .global forget_branch_history
forget_branch_history:
    clear_branch_history
    ret
    no_further

    // u64 enter_guest(VcpuContext *): IRQs masked. Returns what the exit hook returned.
    .global enter_guest
enter_guest:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    b       guest_resume
leave_clearing:
    clear_branch_history
leave_enter:
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    no_further

own_interrupt:
    sub     sp, sp, #208
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x29, [sp, #144]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x30, x2, [sp, #160]
    str     x3, [sp, #176]
    movz    x5, #{alias}, lsl #32
    ldr     x5, [x5, #{interrupt_hook}]
    mov     x0, x2                          // where the interrupted code goes on
    blr     x5
    ldp     x30, x2, [sp, #160]
    ldr     x3, [sp, #176]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x29, [sp, #144]
    add     sp, sp, #208
    eret
    no_further

    // In: x0 = (original SP - frame size), SP = that plus the original x0.
stack_overflow:
    msr     tpidr_el0, x1                   // the guest's, but this machine is about to stop
    sub     x1, sp, x0                      // the original x0
    mov     sp, x1                          // parked there for a moment
    movz    x1, #{alias}, lsl #32
    str     x0, [x1, #{faulting_sp}]
    mov     x0, sp
    str     x0, [x1, #{scratch}]
    ldr     x0, [x1, #{emergency}]
    sub     sp, x0, #{frame_size}
    ldr     x0, [x1, #{scratch}]
    mrs     x1, tpidr_el0
    stp     x0, x1, [sp]
    mov     x0, #4
    movz    x1, #{alias}, lsl #32
    ldr     x1, [x1, #{faulting_sp}]
    // In: SP = frame with x0 and x1 stored, x0 = kind, x1 = the SP before, or 0 for "this one".
own_fault_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    add     x2, sp, #{frame_size}
    add     x3, x1, #{frame_size}
    cmp     x1, #0
    csel    x2, x2, x3, eq
    stp     x30, x2, [sp, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [sp, #256]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [sp, #272]
    cset    x2, ne
    stp     x0, x2, [sp, #288]
    mov     x0, sp
    mov     x29, sp
    bl      {crash}
    b       .
    .popsection
    "#,
    alias = const ALIAS >> 32,
    vcpu = const offset_of!(Area, vcpu),
    exit_hook = sym undercroft_exit,
    workaround = const offset_of!(Area, workaround),
    rounds = const offset_of!(Area, history_rounds),
    interrupt_hook = const offset_of!(Area, interrupt_hook),
    faulting_sp = const offset_of!(Area, faulting_sp),
    emergency = const offset_of!(Area, emergency_stack),
    scratch = const offset_of!(Area, scratch),
    frame_size = const size_of::<Frame>(),
    crash = sym crash_entry,
);

unsafe extern "C" {
    static exception_vectors: u8;
    static exception_vectors_clearing: u8;
    static exception_vectors_calling: u8;
    /// The exit hook, which `entry!` names: what runs at an exit from the guest before anything else, on the thread's stack
    /// with IRQs masked. Returns 0 to enter the guest again at once, anything else to return from [`crate::vcpu::enter`]
    /// with that value.
    fn undercroft_exit(context: &mut VcpuContext, kind: u64) -> u64;
}

/// Where a guest's synchronous exit comes in, for the self-test to read.
pub(crate) fn exit_address() -> usize {
    (&raw const exception_vectors).addr() + 0x400
}

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Set {
    Plain,
    Clearing,
    Calling,
}

/// Which set this CPU takes its exceptions through, for the self-test.
pub(crate) fn chosen() -> Option<Set> {
    let tables = [
        (&raw const exception_vectors, Set::Plain),
        (&raw const exception_vectors_clearing, Set::Clearing),
        (&raw const exception_vectors_calling, Set::Calling),
    ];
    let base = sysreg::vbar_el2();
    tables.into_iter().find(|(table, _)| table.addr() as u64 == base).map(|(_, set)| set)
}

/// Makes this CPU take its exceptions through `set`.
pub(crate) fn choose(set: Set) {
    let table = match set {
        Set::Plain => &raw const exception_vectors,
        Set::Clearing => &raw const exception_vectors_clearing,
        Set::Calling => &raw const exception_vectors_calling,
    };
    // SAFETY: each is a table of vectors in the image's code, of the size and alignment that VBAR_EL2 wants.
    unsafe { sysreg::write_vbar_el2(table.addr() as u64) };
    sysreg::isb();
}

const _: () = {
    assert!(offset_of!(VcpuContext, x) == 0);
    assert!(offset_of!(VcpuContext, pc) == 248);
    assert!(offset_of!(VcpuContext, pstate) == 256);
    assert!(offset_of!(VcpuContext, syndrome) == 264);
    assert!(size_of::<Frame>() == 304);
};
