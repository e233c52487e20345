//! What the self-test needs of the hardware: accesses by an address that was obtained earlier, and reads of the tables
//! and of the code. Only the image with checks contains it: nothing else in this crate uses it.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use drivers::{ConsoleKind, InterruptLine, Registers, Uart};
use units::{CpuId, IntId, Pa, Range, Trigger, Va};

use crate::gic;
use crate::mmio::{Region, RegionError};
use crate::mmu;
use crate::percpu::{self, ALIAS, Area, PerCpu, this_cpu};
use crate::speculation::Means;
use crate::stack;
use crate::sysreg::{self, isb};
use crate::vectors::{self, Set};

global_asm!(
    r#"
    .pushsection .text.selftest, "ax"
    // x0 = what is called between obtaining the address and using it, x1 = its argument.
    .global increment_through_held_alias
increment_through_held_alias:
    stp     x29, x30, [sp, #-32]!
    str     x19, [sp, #16]
    mov     x29, sp
    movz    x19, #{alias}, lsl #32
    mov     x9, x0
    mov     x0, x1
    blr     x9
    ldr     x9, [x19, #{counter}]
    add     x9, x9, #1
    str     x9, [x19, #{counter}]
    ldr     x19, [sp, #16]
    ldp     x29, x30, [sp], #32
    ret
    dsb     nsh
    isb

    // The contrast: the same with the address from TPIDR_EL2.
    .global increment_through_held_register
increment_through_held_register:
    stp     x29, x30, [sp, #-32]!
    str     x19, [sp, #16]
    mov     x29, sp
    mrs     x19, tpidr_el2
    mov     x9, x0
    mov     x0, x1
    blr     x9
    ldr     x9, [x19, #{contrast}]
    add     x9, x9, #1
    str     x9, [x19, #{contrast}]
    ldr     x19, [sp, #16]
    ldp     x29, x30, [sp], #32
    ret
    dsb     nsh
    isb

    // u64 increment_exclusive(void): LDXR/STXR on the alias; returns 1. No ordering is wanted.
    .global increment_exclusive
increment_exclusive:
    movz    x9, #{alias}, lsl #32
    add     x9, x9, #{exclusive}
1:  ldxr    x10, [x9]
    add     x10, x10, #1
    stxr    w11, x10, [x9]
    cbnz    w11, 1b
    ret
    dsb     nsh
    isb

    .arch_extension lse
    .global increment_atomic
increment_atomic:
    movz    x9, #{alias}, lsl #32
    add     x9, x9, #{atomic}
    mov     x10, #1
    stadd   x10, [x9]
    ret
    dsb     nsh
    isb
    .arch_extension nolse

    // u64 cpu_through_alias(void)
    .global cpu_through_alias
cpu_through_alias:
    movz    x0, #{alias}, lsl #32
    ldrh    w0, [x0, #{cpu}]
    ret
    dsb     nsh
    isb

    .global undefined_instruction
undefined_instruction:
    udf     #0x5e1f
    ret
    dsb     nsh
    isb
    .popsection
    "#,
    alias = const ALIAS >> 32,
    cpu = const offset_of!(Area, cpu),
    counter = const place_of(counter::ALIAS),
    contrast = const place_of(counter::REGISTER),
    exclusive = const place_of(counter::EXCLUSIVE),
    atomic = const place_of(counter::ATOMIC),
);

/// Where the functions here count, in each CPU's own page: at its end, of which the area uses nothing.
const COUNTERS: usize = size_of::<PerCpu>() - size_of::<[AtomicU64; counter::ALL]>();
const _: () = assert!(size_of::<Area>() <= COUNTERS, "the area reaches to where the self-test counts");

const fn place_of(which: usize) -> usize {
    COUNTERS + which * size_of::<AtomicU64>()
}

/// Which counter the functions here count in.
pub mod counter {
    /// [`super::increment_held`] with [`super::Held::Alias`].
    pub const ALIAS: usize = 0;
    /// [`super::increment_held`] with [`super::Held::Register`].
    pub const REGISTER: usize = 1;
    /// [`super::increment_exclusively`].
    pub const EXCLUSIVE: usize = 2;
    /// [`super::increment_atomically`].
    pub const ATOMIC: usize = 3;
    /// How many there are.
    pub(super) const ALL: usize = 4;
}

/// What was counted by one of the [`counter`]s of a CPU since some time before it started.
#[must_use]
pub fn counted(cpu: CpuId, which: usize) -> u64 {
    let Some(area) = percpu::address_of(cpu).filter(|_| which < counter::ALL) else { return 0 };
    // SAFETY: the page of an area is never unmapped; the counters are in it, aligned, behind the area, and nothing
    // but this and the functions here reads or writes them.
    let counter: &AtomicU64 = unsafe { &*core::ptr::with_exposed_provenance(area + place_of(which)) };
    counter.load(Ordering::Relaxed)
}

/// How an address is obtained that is held while the thread moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// The constant address.
    Alias,
    /// TPIDR_EL2: what the alias is there to avoid.
    Register,
}

unsafe extern "C" {
    fn increment_through_held_alias(between: extern "C" fn(u64), argument: u64);
    fn increment_through_held_register(between: extern "C" fn(u64), argument: u64);
    fn increment_exclusive();
    fn increment_atomic();
    fn cpu_through_alias() -> u64;
    fn undefined_instruction();
    fn nopreempt_leave();
}

/// Obtains the area's address, calls `between`, and then adds 1 to a counter by plain load and store through it.
pub fn increment_held(held: Held, between: extern "C" fn(u64), argument: u64) {
    // SAFETY: both addresses are of a CPU's area, which is never unmapped; the counters are for this alone.
    unsafe {
        match held {
            Held::Alias => increment_through_held_alias(between, argument),
            Held::Register => increment_through_held_register(between, argument),
        }
    }
}

/// Adds 1 through the alias by LDXR and STXR.
pub fn increment_exclusively() {
    // SAFETY: an atomic addition to a counter that is there for this alone.
    unsafe { increment_exclusive() };
}

/// Adds 1 through the alias by one atomic instruction (FEAT_LSE); false if the CPU has none.
#[must_use]
pub fn increment_atomically() -> bool {
    // ID_AA64ISAR0_EL1.Atomic.
    let present = sysreg::id_aa64isar0_el1() >> 20 & 0xf != 0;
    if present {
        // SAFETY: as above, and the instruction exists.
        unsafe { increment_atomic() };
    }
    present
}

/// Executes an instruction that does not exist: the crash that follows is wanted.
pub fn execute_undefined() {
    // SAFETY: it ends in the crash report, or returns having done nothing.
    unsafe { undefined_instruction() };
}

/// Stores into the code. The page is read-only, so a crash follows.
pub fn write_code() {
    let target = undefined_instruction as *mut u32;
    // SAFETY: should the page be writable against all expectation, the same word is written that is there.
    unsafe { target.write_volatile(target.read_volatile()) };
}

/// Jumps into data, where a RET lies. The page is not executable, so a crash follows.
pub fn execute_data() {
    static mut RETURN: u32 = 0xd65f_03c0;
    let target = &raw mut RETURN;
    // SAFETY: the word is a whole function of no effect; were the page executable, it would return.
    unsafe { core::mem::transmute::<*mut u32, extern "C" fn()>(target)() };
}

/// Whether EL2's tables let a byte be read at `address`, as the CPU walks them.
#[must_use]
pub fn is_readable(address: Va) -> bool {
    // PAR_EL1.F.
    translate(address) & 1 == 0
}

/// The CPU's number as an access of one immediate address reads it.
#[must_use]
pub fn cpu_through_the_alias() -> CpuId {
    // SAFETY: reads the area.
    CpuId(unsafe { cpu_through_alias() } as u16)
}

/// A UART whose transmitter has no room, ever, and whose receiver has nothing: memory, all bits of which are set.
///
/// # Panics
/// If it is too small for a UART's registers.
#[must_use]
pub fn mute_uart() -> Uart<Region> {
    static TAKES_NOTHING: [AtomicU64; 0x1000 / 8] = [const { AtomicU64::new(u64::MAX) }; 0x1000 / 8];
    let registers =
        Region::opened_before(Pa((&raw const TAKES_NOTHING).addr() as u64), size_of_val(&TAKES_NOTHING) as u64);
    match Uart::new(ConsoleKind::Sbsa, registers) {
        Ok(uart) => uart,
        Err(_) => unreachable!("a page has room for them"),
    }
}

/// Enables SPI `interrupt` on this CPU and makes it pending, as a device would that nobody drives.
pub fn raise_spi(interrupt: IntId) {
    gic::enable_spi(InterruptLine { interrupt, trigger: None });
    if let Some(distributor) = gic::distributor() {
        distributor.pend(interrupt);
    }
}

/// Holds the line of the host's real-time clock (PL031, its registers at `range`) high, or lets it fall.
///
/// # Errors
/// When there is no such device.
pub fn hold_line_of_clock(range: Range<Pa>, is_high: bool) -> Result<(), RegionError> {
    const DATA: u64 = 0;
    const MATCH: u64 = 0x4;
    const MASK: u64 = 0x10;
    const STATUS: u64 = 0x14;
    const CLEAR: u64 = 0x1c;
    let registers = Region::open(range)?;
    if is_high {
        registers.write32(MASK, 1);
        // A second may pass between the two.
        while registers.read32(STATUS) & 1 == 0 {
            registers.write32(MATCH, registers.read32(DATA));
        }
    } else {
        registers.write32(MASK, 0);
        registers.write32(CLEAR, 1);
    }
    Ok(())
}

/// Whether SPI `interrupt` is enabled.
#[must_use]
pub fn is_spi_enabled(interrupt: IntId) -> bool {
    gic::distributor().is_some_and(|distributor| distributor.is_enabled(interrupt))
}

/// How SPI `interrupt` is signalled.
#[must_use]
pub fn trigger_of_spi(interrupt: IntId) -> Option<Trigger> {
    Some(gic::distributor()?.trigger(interrupt))
}

/// PAR_EL1 after AT S1E2R of `address`. There must be no guest whose PAR_EL1 it would be.
#[must_use]
pub fn translate(address: Va) -> u64 {
    // SAFETY: an address translation changes PAR_EL1 alone.
    unsafe { core::arch::asm!("at s1e2r, {}", in(reg) address.0, options(nostack, preserves_flags)) };
    isb();
    sysreg::par_el1::read()
}

/// This CPU's TTBR0_EL2, TPIDR_EL2, and the descriptor that maps the alias.
#[must_use]
pub fn tables() -> (u64, u64, Option<u64>) {
    let root = sysreg::ttbr0_el2();
    (root, sysreg::tpidr_el2(), mmu::descriptor(root & !0xfff, Va(ALIAS)))
}

/// A stretch of the image's code that a self-test reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// A function compiled from Rust that asks for the area: `this_cpu().cpu`.
    Accessor,
    /// The access in assembly, [`cpu_through_the_alias`].
    Assembly,
    /// The exit path from the guest, up to its call.
    Exit,
    /// The switch of threads.
    Switch,
    /// What runs behind listed code.
    Leave,
    /// All code of the image.
    All,
}

#[inline(never)]
extern "C" fn accessor() -> u64 {
    u64::from(this_cpu().cpu.0)
}

/// The instructions of some code, from its start: at most `most`.
#[must_use]
pub fn code(which: Code, most: usize) -> &'static [u32] {
    let text = stack::image().text;
    let start = match which {
        Code::Accessor => (accessor as *const ()).addr(),
        Code::Assembly => (cpu_through_alias as *const ()).addr(),
        Code::Exit => vectors::exit_address(),
        Code::Switch => crate::thread::switch_address(),
        Code::Leave => (nopreempt_leave as *const ()).addr(),
        Code::All => text.start.0 as usize,
    };
    let room = (text.end().0 as usize).saturating_sub(start) / 4;
    // SAFETY: the image's code is mapped readable and never changes.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(start), room.min(most)) }
}

/// What this CPU's exits do against its predictors, by its vectors and what these read; `None` if the two do not fit together.
#[must_use]
pub fn means() -> Option<Means> {
    let area = this_cpu();
    let rounds = area.history_rounds.load(Ordering::Relaxed);
    match (vectors::chosen()?, rounds, area.workaround.load(Ordering::Relaxed)) {
        (Set::Plain, 0, 0) => Some(Means::Nothing),
        (Set::Clearing, rounds, 0) => u8::try_from(rounds).ok().map(Means::Clear),
        (Set::Calling, 0, function) => Some(Means::Call(function)),
        _ => None,
    }
}

/// Whether there is a note that the branch history is a guest's ([`crate::speculation::defer`]).
#[must_use]
pub fn history_is_foreign() -> bool {
    this_cpu().foreign_history.load(Ordering::Relaxed) != 0
}

/// Makes this CPU, which has not joined yet, as somebody may leave it who was in the middle of an interrupt, and had guests: the highest
/// priority is active, the virtual timer is armed, a guest's interrupt is in a list register, and our interrupt that halts a CPU is
/// pending.
pub fn leave_interrupts() {
    sysreg::icc_sre_el2::write(0b0111);
    isb();
    sysreg::icc_ap1r0_el1::write(1);
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntv_ctl_el0::write(1);
    crate::state::count_list_registers();
    // In Group 1, of the highest priority, pending, with a maintenance interrupt at its end: INTID 40.
    crate::state::write_list_register(0, 1 << 62 | 1 << 60 | 1 << 41 | 40);
    sysreg::ich_hcr_el2::write(1);
    // By ICC_SGI0R_EL1: after a reset it is of Group 0, and becomes one of Group 1 pending as it is.
    let own = sysreg::mpidr_el1();
    let value = u64::from(gic::HALT.0) << 24 | (own & 0xff00) << 8 | 1 << (own & 0xf);
    // SAFETY: this CPU's own interrupt becomes pending, and is taken where all of them are.
    unsafe { core::arch::asm!("msr S3_0_C12_C11_7, {}", "isb", in(reg) value, options(nostack, preserves_flags)) };
}
