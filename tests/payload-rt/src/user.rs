//! A few instructions at EL0, or at EL1 on SP_EL0, with all general registers given and taken back.
//!
//! The code lies in a page of its own, which both levels can read and execute, followed by `SVC #0`; what ends it comes
//! back as [`End`]. Meanwhile the vectors are this module's. Only the boot CPU may use it. Other pages of the window can
//! be given to EL0 as test needs them ([`map`]).

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{instruction, memory, mmu, sysreg};

/// `SVC #0`.
const SVC: u32 = 0xd400_0001;
/// The slot of the address space that the window is in.
const SLOT: usize = mmu::FREE_SLOT + 8;
/// Pages of 4 KiB in the window.
pub const PAGES: u64 = 512;

/// How a page of the window is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// Not at all.
    Missing,
    /// EL0 and EL1 read and execute.
    Code,
    /// EL0 and EL1 read.
    ReadOnly,
    /// EL0 and EL1 read and write.
    Data,
    /// Only EL1 reads and writes.
    Kernel,
    /// EL0 executes, and does not read.
    ExecuteOnly,
    /// A device for EL0 and EL1, or, as said, RAM or a device as Normal memory: whatever these attributes say.
    Other(u64),
}

/// Attributes of a page for [`Page::Other`]: EL0 reads and writes a device.
pub const DEVICE: u64 = 3 | 1 << 10 | 1 << 2 | 1 << 6 | 3 << 53;
/// EL0 and EL1 read and write a device as if it was Normal memory.
pub const DEVICE_AS_NORMAL: u64 = 3 | 1 << 10 | 3 << 8 | 1 << 6 | 3 << 53;
/// Changes [`DEVICE`] so that nobody writes.
pub const READ_ONLY: u64 = 1 << 7;
/// Present in [`DEVICE`]: EL0 has access, too.
pub const FOR_USER: u64 = 1 << 6;
/// Present in [`DEVICE`]: the access flag.
pub const ACCESSED: u64 = 1 << 10;

/// Which level the code runs at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExceptionLevel {
    /// EL0.
    User,
    /// EL1, on SP_EL0.
    Kernel,
}

/// All registers, and how it ended.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where, counted in bytes from the first instruction.
    pub elr: u64,
    /// With what PSTATE.
    pub spsr: u64,
    /// ESR_EL1; that of `SVC #0` if nothing else happened.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// SP_EL0.
    pub sp: u64,
}

impl End {
    /// Whether the code came to its end.
    #[must_use]
    pub fn is_svc(&self) -> bool {
        self.esr >> 26 == 0x15
    }
}

static TABLE: AtomicU64 = AtomicU64::new(0);
static CODE: AtomicU64 = AtomicU64::new(0);

/// The address of page `number` of the window.
#[must_use]
pub fn address(number: u64) -> u64 {
    SLOT as u64 * mmu::SLOT_SIZE + number * 4096
}

fn table() -> u64 {
    let known = TABLE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let tables = memory::pages(3);
    memory::write64(tables, mmu::table(tables + 4096));
    mmu::set_slot(SLOT, mmu::table(tables));
    TABLE.store(tables + 4096, Ordering::Relaxed);
    CODE.store(tables + 8192, Ordering::Relaxed);
    map(0, tables + 8192, Page::Code);
    tables + 4096
}

/// Maps page `number` of the window (0 is the code's) to the page of RAM at `to`.
pub fn map(number: u64, to: u64, page: Page) {
    const NORMAL_PAGE: u64 = 3 | 1 << 10 | 3 << 8;
    const NOT_EXECUTABLE: u64 = 3 << 53;
    let attributes = match page {
        Page::Missing => 0,
        Page::Code => to | NORMAL_PAGE | 3 << 6,
        Page::ReadOnly => to | NORMAL_PAGE | 3 << 6 | NOT_EXECUTABLE,
        Page::Data => to | NORMAL_PAGE | 1 << 6 | NOT_EXECUTABLE,
        Page::Kernel => to | NORMAL_PAGE | NOT_EXECUTABLE,
        Page::ExecuteOnly => to | NORMAL_PAGE | 1 << 53,
        Page::Other(attributes) => to | attributes,
    };
    let entry = descriptor(number);
    memory::write64(entry, 0);
    sysreg::invalidate_tlb();
    memory::write64(entry, attributes);
    sysreg::invalidate_tlb();
}

/// Where the descriptor of page `number` is.
#[must_use]
pub fn descriptor(number: u64) -> u64 {
    assert!(number < PAGES, "the window has {PAGES} pages");
    table() + 8 * number
}

/// Maps the window's first page, where the code is, as `page`.
pub fn map_code(page: Page) {
    table();
    map(0, CODE.load(Ordering::Relaxed), page);
}

/// What lies behind the window (2 MiB): `entry`, or nothing if it is 0.
pub fn map_behind(entry: u64) {
    memory::write64(table() - 4096 + 8, entry);
    sysreg::invalidate_tlb();
}

/// Bits of PSTATE for [`run_with`].
pub const PAN: u64 = 1 << 22;
/// See [`PAN`].
pub const UAO: u64 = 1 << 23;

/// As [`run`], with these bits of PSTATE set besides.
#[must_use]
pub fn run_with(level: ExceptionLevel, bits: u64, code: &[u32], x: [u64; 31]) -> End {
    load(code);
    enter(level, 0, bits, x)
}

/// Lets EL0's data be big-endian, or not (SCTLR_EL1.E0E).
pub fn set_big_endian(on: bool) {
    let value = sysreg::sctlr_el1::read() & !(1 << 24) | u64::from(on) << 24;
    // SAFETY: the bit changes EL0's loads and stores alone.
    unsafe { core::arch::asm!("msr sctlr_el1, {}", "isb", in(reg) value, options(nostack)) };
}

/// Runs `code` at `level` with `x` in the general registers and interrupts masked.
#[must_use]
pub fn run(level: ExceptionLevel, code: &[u32], x: [u64; 31]) -> End {
    load(code);
    run_again(level, 0, x)
}

/// Puts `code` into the window's first page, for [`run_again`].
pub fn load(code: &[u32]) {
    table();
    let at = CODE.load(Ordering::Relaxed);
    for (index, &word) in (0..).zip(code.iter().chain(&[SVC])) {
        memory::write32(at + 4 * index, word);
        instruction::publish(at + 4 * index);
    }
}

/// How often [`ask`] asks.
const ATTEMPTS: usize = 4;

/// As [`run`], with code that asks whoever it may concern by a WFE with a word in X0. The host's interrupts are exits, whose return is
/// an event: after one that comes between the instructions, the WFE finds that event, and nobody is asked. Then it is tried again.
#[must_use]
pub fn ask(level: ExceptionLevel, code: &[u32], x: [u64; 31]) -> End {
    load(code);
    for _ in 1..ATTEMPTS {
        let end = run_again(level, 0, x);
        if end.x[0] != x[0] {
            return end;
        }
    }
    run_again(level, 0, x)
}

/// As [`run`], with code that is in the window already ([`load`]), from its instruction number `first`.
#[must_use]
pub fn run_again(level: ExceptionLevel, first: u64, x: [u64; 31]) -> End {
    enter(level, first, 0, x)
}

fn enter(level: ExceptionLevel, first: u64, bits: u64, x: [u64; 31]) -> End {
    let state = match level {
        ExceptionLevel::User => 0x3c0,
        ExceptionLevel::Kernel => 0x3c4,
    };
    // Flags that nobody would leave by chance.
    let mut end =
        End { x, elr: address(0) + 4 * first, spsr: state | bits | 0xa << 28, esr: 0, far: 0, sp: 0x5a5a_5a50 };
    // SAFETY: the code runs with the window's pages and general registers only; what it may not touch it cannot reach at
    // EL0, and at EL1 the callers' instructions are calls and system register accesses.
    unsafe { user_enter(&raw mut end) };
    end.elr = end.elr.wrapping_sub(address(0));
    end
}

/// An instruction set of AArch32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set32 {
    /// Words.
    A32,
    /// Half-words; two of them are in each word of the code, the first in its lower half.
    T32,
}

/// As [`run`], in AArch32 state at EL0: which takes an address that has 32 bits, so the window is seen in the fourth gigabyte too
/// ([`address32`]).
#[must_use]
pub fn run32(set: Set32, code: &[u32], x: [u64; 31]) -> End {
    load(code);
    mmu::set_slot(mmu::LOW_SLOT, mmu::table(table() - 4096));
    let thumb = if set == Set32::T32 { 1 << 5 } else { 0 };
    let mut end = End { x, elr: address32(0), spsr: 0x1d0 | thumb, esr: 0, far: 0, sp: 0x5a5a_5a50 };
    // SAFETY: as for `run`; what the code does at EL0 in AArch32 state it could do in AArch64 state.
    unsafe { user_enter(&raw mut end) };
    mmu::reset_slot(mmu::LOW_SLOT);
    end.elr = end.elr.wrapping_sub(address32(0));
    end
}

/// The address of page `number` of the window for [`run32`].
#[must_use]
pub fn address32(number: u64) -> u64 {
    mmu::LOW_SLOT as u64 * mmu::SLOT_SIZE + number * 4096
}

unsafe extern "C" {
    fn user_enter(end: *mut End);
}

global_asm!(
    r#"
    .section .text.user, "ax"
    .balign 0x800
user_vectors:
    b       user_left                       // EL1 on SP_EL0
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x200
    b       user_left                       // EL1 on SP_EL1: the return to where the code is was illegal
    .balign 0x200
    b       user_left                       // EL0
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x200
    b       user_left                       // EL0 in AArch32 state
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x80
    b       user_left
    .balign 0x80

user_enter:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x1, vbar_el1
    stp     x0, x1, [sp, #96]
    adrp    x1, user_vectors
    add     x1, x1, :lo12:user_vectors
    msr     vbar_el1, x1
    ldp     x1, x2, [x0, #248]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldr     x1, [x0, #280]
    msr     sp_el0, x1
    isb
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret

user_left:
    stp     x0, x1, [sp, #-16]!
    ldr     x0, [sp, #112]
    stp     x2, x3, [x0, #16]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    mrs     x1, elr_el1
    stp     x30, x1, [x0, #240]
    mrs     x1, spsr_el1
    mrs     x2, esr_el1
    stp     x1, x2, [x0, #256]
    mrs     x1, far_el1
    mrs     x2, sp_el0
    stp     x1, x2, [x0, #272]
    ldr     x1, [sp, #104]
    msr     vbar_el1, x1
    isb
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
"#
);

const _: () = {
    assert!(core::mem::offset_of!(End, elr) == 248);
    assert!(core::mem::offset_of!(End, sp) == 280);
};
