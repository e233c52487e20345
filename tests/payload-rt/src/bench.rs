//! Counting the instructions of single operations.
//!
//! Meant for QEMU with `-icount shift=0,sleep=off`, one CPU and a counter of 1 GHz (`-cpu cortex-a76,cntfrq=1000000000`): virtual time
//! then advances by one tick an instruction, at all exception levels together, so that the guest's counter counts the hypervisor's
//! instructions too. Each operation runs in a loop of [`ROUNDS`]; the same loop without the operation is measured as well and taken
//! off. The instructions that the operation has in the guest itself stay in: they are what the bare machine shows.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use abi::calls::{self, vmware};

use crate::instruction::publish;
use crate::{gic, sysreg, timer};

/// Repetitions of an operation in one measurement.
pub const ROUNDS: u64 = 1000;

/// Repetitions of an operation that comes with a long undisturbed loop.
const TIMER_ROUNDS: u64 = 200;

// While these vectors are in use only IRQs are expected, and only while X9 to X15 are the measuring code's own. X11 becomes 1 when an
// interrupt has been handled. Each entry is a whole handler; there are two tables because the timer must also be silenced.
global_asm!(
    r#"
    .section .text.bench, "ax"
    .balign 0x800
bench_sgi_vectors:
    .space  0x280
    mrs     x10, S3_0_C12_C12_0     // ICC_IAR1_EL1
    msr     S3_0_C12_C12_1, x10     // ICC_EOIR1_EL1
    mov     x11, #1
    eret
    .balign 0x800
bench_timer_vectors:
    .space  0x280
    mrs     x10, S3_0_C12_C12_0
    msr     cntv_ctl_el0, xzr
    msr     S3_0_C12_C12_1, x10
    mov     x11, #1
    eret
    .balign 0x800
"#
);

/// Times `$rounds` repetitions of the operation: ticks from before the loop to behind it.
macro_rules! ticks {
    ($rounds:expr, [$($before:literal),*], [$($operation:literal),*], [$($after:literal),*], $($operands:tt)*) => {{
        let (start, end): (u64, u64);
        // SAFETY: the operations change registers named here, the counters' and the GIC's state, and nothing in memory.
        unsafe {
            asm!(
                $($before,)*
                "isb", "mrs {start}, cntvct_el0",
                "2:",
                $($operation,)*
                "subs {rounds}, {rounds}, #1", "b.ne 2b",
                "isb", "mrs {end}, cntvct_el0",
                $($after,)*
                start = out(reg) start, end = out(reg) end, rounds = inout(reg) $rounds => _,
                $($operands)*
                out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                out("x8") _, out("x10") _, out("x12") _, out("x14") _, out("x16") _, out("x17") _,
                options(nostack)
            );
        }
        end - start
    }};
}

/// Instructions of one operation, in tenths, out of the ticks of two loops of `rounds`.
fn tenths(with: u64, without: u64, rounds: u64) -> u64 {
    let difference = with.saturating_sub(without);
    (difference * 10 + rounds / 2) / rounds
}

fn empty() -> u64 {
    ticks!(ROUNDS, [], [], [],)
}

/// A call by HVC with this function and no arguments: `MOV`, `HVC`.
pub fn call(function: u32) -> u64 {
    let with = ticks!(ROUNDS, [], ["mov x0, x9", "hvc #0"], [], in("x9") u64::from(function),);
    tenths(with, empty(), ROUNDS)
}

/// W0 to W3 and X7 of VMware's GETVERSION, then the call: by a read of the debug channel's status, or by `HVC #0x86`. Five `MOV`s
/// and the call; command, port and control word stand in the instructions themselves.
macro_rules! version {
    ($call:literal) => {{
        let with = ticks!(ROUNDS, [],
            ["mov w0, w9", "mov w2, #10", "mov w3, #0x5658", "mov w7, #0x0e", "movk x7, #0x86, lsl #32", $call], [],
            in("x9") vmware::MAGIC as u64,);
        tenths(with, empty(), ROUNDS)
    }};
}

/// GETVERSION through the debug channel.
pub fn version_by_debug_channel() -> u64 {
    version!("mrs xzr, mdccsr_el0")
}

/// GETVERSION by HVC.
pub fn version_by_hvc() -> u64 {
    version!("hvc #0x86")
}

/// A bulk transfer from `address` to the host on an open channel (its number, and its cookies: high and low). Says whether
/// it was taken.
pub fn bulk_out(channel: [u64; 3], address: u64, length: u64) -> bool {
    crate::memory::outside_image(address, length);
    let [id, high, low] = channel;
    let mut status = 0x1_0000_u64;
    // SAFETY: reading this status register has no effect of its own. The hypervisor reads the buffer, which is none of
    // Rust's, and changes X1.
    unsafe {
        asm!("mrs xzr, mdccsr_el0",
            inout("x0") u64::from(vmware::MAGIC) => _, inout("x1") status, inout("x2") length => _,
            inout("x3") id << 16 | u64::from(vmware::PORT_HIGH) => _, inout("x4") address => _, inout("x5") low => _, inout("x6") high => _,
            in("x7") calls::marked(calls::HIGH_OUT), options(nostack));
    }
    status == 0x1_0000
}

/// A byte written to the UART's data register, as a console driver that polls does: `STRB`. The bytes are line ends, and fewer
/// than the hypervisor has room for.
pub fn transmit() -> u64 {
    const BYTES: u64 = 1000;
    let with = ticks!(BYTES, [], ["strb w9, [x11]"], [], in("x9") u64::from(b'\n'), in("x11") crate::uart::BASE,);
    tenths(with, ticks!(BYTES, [], [], [],), BYTES)
}

/// A WFE that would wait and asks for nothing. Before it `SEVL` and a `WFE` that uses the event up, which do not count.
pub fn ordinary_wfe() -> u64 {
    let without = ticks!(ROUNDS, [], ["mov x0, #0", "sevl", "wfe"], [],);
    tenths(ticks!(ROUNDS, [], ["mov x0, #0", "sevl", "wfe", "wfe"], [],), without, ROUNDS)
}

/// The detection by WFE: `MOV`, `SEVL`, `WFE`, `WFE`.
pub fn detection_by_wfe() -> u64 {
    tenths(ticks!(ROUNDS, [], ["mov x0, x9", "sevl", "wfe", "wfe"], [], in("x9") abi::wfe::DETECT,), empty(), ROUNDS)
}

/// Gives the CPU away: a WFE that would wait. With `fp`, after an instruction that uses an FP register.
pub fn give_way(fp: bool) {
    // SAFETY: a WFE has no effect but time; D0 is nobody's, and FP is not trapped to this level from the entry on.
    unsafe {
        if fp {
            asm!(".arch_extension fp", "fmov d0, xzr", ".arch_extension nofp", options(nomem, nostack));
        }
        asm!("sevl", "wfe", "wfe", options(nomem, nostack));
    }
}

/// What it takes to give the CPU away to another vCPU that does nothing but give it back ([`give_way`]), for each of the two
/// switches: exit, choice of the next thread, the vCPU's state to memory and the other's into the CPU, entry. With `fp`, both
/// use their FP registers in between.
pub fn turns(fp: bool) -> u64 {
    let (with, without) = if fp {
        let without =
            ticks!(ROUNDS, [], [".arch_extension fp", "fmov d0, xzr", ".arch_extension nofp", "sevl", "wfe"], [],);
        let with = ticks!(
            ROUNDS,
            [],
            [".arch_extension fp", "fmov d0, xzr", ".arch_extension nofp", "sevl", "wfe", "wfe"],
            [],
        );
        (with, without)
    } else {
        (ticks!(ROUNDS, [], ["sevl", "wfe", "wfe"], [],), ticks!(ROUNDS, [], ["sevl", "wfe"], [],))
    };
    tenths(with, without, 2 * ROUNDS)
}

/// A loop of two instructions, so many times.
pub fn spin(rounds: u64) {
    // SAFETY: it counts down a register.
    unsafe { asm!("2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) rounds.max(1) => _, options(nomem, nostack)) };
}

/// A read of ID_AA64PFR0_EL1.
pub fn id_register() -> u64 {
    tenths(ticks!(ROUNDS, [], ["mrs x10, S3_0_C0_C4_0"], [],), empty(), ROUNDS)
}

/// A read of CNTPCT_EL0.
pub fn physical_count() -> u64 {
    tenths(ticks!(ROUNDS, [], ["mrs x10, cntpct_el0"], [],), empty(), ROUNDS)
}

/// `MSR CNTP_CVAL_EL0`, of a timer that is off.
pub fn physical_timer_write() -> u64 {
    tenths(ticks!(ROUNDS, [], ["msr cntp_cval_el0, xzr"], [],), empty(), ROUNDS)
}

/// The physical timer with interrupts masked: set to fire at once (`MSR CTL`), found by reading ICC_IAR1_EL1 (`MRS`, `CMP`, `B`),
/// switched off and ended (`MSR CTL`, `MSR EOIR`). Two of these are accesses to the timer.
pub fn physical_timer_polled() -> u64 {
    gic::enable(timer::PHYSICAL_PPI);
    sysreg::cntp_cval_el0::write(0);
    let with = ticks!(ROUNDS, [],
        ["msr cntp_ctl_el0, x9", "isb",
         "3:", "mrs x10, S3_0_C12_C12_0", "cmp w10, #1023", "b.eq 3b",
         "msr cntp_ctl_el0, xzr", "msr S3_0_C12_C12_1, x10"],
        [], in("x9") timer::ENABLE,);
    timer::stop();
    gic::disable(timer::PHYSICAL_PPI);
    tenths(with, empty(), ROUNDS)
}

/// A 32-bit load from a device register.
pub fn load(address: u64) -> u64 {
    crate::memory::outside_image(address, 4);
    tenths(ticks!(ROUNDS, [], ["ldr w10, [x9]"], [], in("x9") address,), empty(), ROUNDS)
}

/// A 32-bit store of zero to a device register.
pub fn store_zero(address: u64) -> u64 {
    crate::memory::outside_image(address, 4);
    tenths(ticks!(ROUNDS, [], ["str wzr, [x9]"], [], in("x9") address,), empty(), ROUNDS)
}

/// Pages of 4 KiB, and the blocks of 2 MiB that stage 2 maps them in.
const PAGE: u64 = 4096;
const BLOCK: u64 = 0x20_0000;

/// So many blocks in a row that nobody has touched yet.
fn fresh_blocks(count: u64) -> u64 {
    static BEHIND: AtomicU64 = AtomicU64::new(0);
    let behind = BEHIND.load(Ordering::Relaxed);
    let mut blocks = crate::memory::untouched_blocks().filter(|&block| block >= behind);
    let mut start = blocks.next().expect("there is RAM for all rows");
    let mut end = start + BLOCK;
    while end < start + count * BLOCK {
        let next = blocks.next().expect("there is RAM for all rows");
        if next != end {
            start = next;
        }
        end = next + BLOCK;
    }
    BEHIND.store(end, Ordering::Relaxed);
    start
}

/// Puts a `RET` at the beginning of so many pieces of memory, `step` apart.
fn put_code(start: u64, step: u64, count: u64) {
    const RET: u32 = 0xd65f_03c0;
    for address in (0..count).map(|nth| start + nth * step) {
        crate::memory::write32(address, RET);
        publish(address);
    }
}

/// Calls the code at each of so many places, `step` apart: `BLR`, `ADD`, and the `RET` there.
fn calls(start: u64, step: u64, count: u64) -> u64 {
    ticks!(count, [], ["blr x9", "add x9, x9, x13"], [], inout("x9") start => _, in("x13") step, out("x30") _,)
}

/// What the first calls of these places take more than the second ones.
fn first_calls(start: u64, step: u64, count: u64) -> u64 {
    let with = calls(start, step, count);
    tenths(with, calls(start, step, count), count)
}

/// The first access to memory, a load: a block of 2 MiB is zeroed and mapped.
pub fn first_load() -> u64 {
    const BLOCKS: u64 = 2;
    let start = fresh_blocks(BLOCKS);
    let loads =
        || ticks!(BLOCKS, [], ["ldr x10, [x9]", "add x9, x9, x13"], [], inout("x9") start => _, in("x13") BLOCK,);
    let with = loads();
    tenths(with, loads(), BLOCKS)
}

/// The first fetch from a page, in a block whose other pages are pages already.
pub fn first_fetch() -> u64 {
    const PAGES: u64 = 256;
    let start = fresh_blocks(1);
    put_code(start, PAGE, PAGES + 1);
    calls(start, PAGE, 1);
    first_calls(start + PAGE, PAGE, PAGES)
}

/// The first fetch from a block.
pub fn first_fetch_from_a_block() -> u64 {
    const BLOCKS: u64 = 2;
    let start = fresh_blocks(BLOCKS);
    put_code(start, BLOCK, BLOCKS);
    first_calls(start, BLOCK, BLOCKS)
}

/// The fetch with which three quarters of a block are executable, behind which all of it is, and one entry again.
pub fn fetch_from_most_of_a_block() -> u64 {
    const BEFORE: u64 = 383;
    let start = fresh_blocks(1);
    put_code(start, PAGE, BLOCK / PAGE);
    calls(start, PAGE, BEFORE);
    first_calls(start + BEFORE * PAGE, PAGE, 1)
}

/// ICC_SGI1R_EL1 for SGI 1 to this CPU, which is the first of its cluster.
const SELF_SGI: u64 = 1 << 24 | 1;

/// SGI to itself, taken as an interrupt: `MSR SGI1R`, `ISB`, interrupt, `MRS IAR`, `MSR EOIR`, `MOV`, `ERET`, and the check that it
/// came (`CBZ`, `MOV`).
pub fn self_sgi() -> u64 {
    gic::enable(1);
    let with = ticks!(ROUNDS,
        ["mrs x15, vbar_el1", "adrp x10, bench_sgi_vectors", "add x10, x10, :lo12:bench_sgi_vectors", "msr vbar_el1, x10",
         "mov x11, #0", "isb", "msr daifclr, #2"],
        ["msr S3_0_C12_C11_5, x9", "isb", "3:", "cbz x11, 3b", "mov x11, #0"],
        ["msr daifset, #2", "msr vbar_el1, x15", "isb"],
        in("x9") SELF_SGI, out("x11") _, out("x15") _,);
    tenths(with, empty(), ROUNDS)
}

/// SGI to itself with interrupts masked, found by reading ICC_IAR1_EL1: `MSR SGI1R`, `ISB`, `MRS IAR`, `CMP`, `B`, `MSR EOIR`.
pub fn self_sgi_polled() -> u64 {
    gic::enable(1);
    let with = ticks!(ROUNDS, [],
        ["msr S3_0_C12_C11_5, x9", "isb", "3:", "mrs x10, S3_0_C12_C12_0", "cmp w10, #1023", "b.eq 3b", "msr S3_0_C12_C12_1, x10"],
        [], in("x9") SELF_SGI,);
    tenths(with, empty(), ROUNDS)
}

/// How long after arming the timer fires, ticks; it fires within the counted loop, which takes 4000 instructions.
const AHEAD: u64 = 500;

/// The timer armed (or, with control 0, not armed) in front of a counted loop.
fn timer_loop(control: u64) -> u64 {
    ticks!(TIMER_ROUNDS,
        ["mrs x15, vbar_el1", "adrp x10, bench_timer_vectors", "add x10, x10, :lo12:bench_timer_vectors", "msr vbar_el1, x10",
         "mov x11, #0", "isb", "msr daifclr, #2"],
        ["mrs x12, cntvct_el0", "add x12, x12, x13", "msr cntv_cval_el0, x12", "msr cntv_ctl_el0, x9",
         "mov x14, #2000", "3:", "subs x14, x14, #1", "b.ne 3b"],
        ["msr daifset, #2", "msr vbar_el1, x15", "isb"],
        in("x9") control, in("x13") AHEAD, out("x11") _, out("x15") _,)
}

/// The virtual timer as an interrupt in the middle of a loop: the loop with it, less the very same loop without. This counts all from
/// the timer's fire to the return to the loop: the interrupt, `MRS IAR`, `MSR CNTV_CTL`, `MSR EOIR`, `MOV`, `ERET`.
pub fn virtual_timer() -> u64 {
    gic::enable(timer::VIRTUAL_PPI);
    let with = timer_loop(timer::ENABLE);
    let without = timer_loop(0);
    timer::stop();
    gic::disable(timer::VIRTUAL_PPI);
    tenths(with, without, TIMER_ROUNDS)
}

/// The virtual timer with interrupts masked: set to fire at once (`MSR CVAL`, `MSR CTL`, `ISB`), found by reading ICC_IAR1_EL1 (`MRS`,
/// `CMP`, `B`), switched off and ended (`MSR CTL`, `MSR EOIR`).
pub fn virtual_timer_polled() -> u64 {
    gic::enable(timer::VIRTUAL_PPI);
    let with = ticks!(ROUNDS, [],
        ["msr cntv_cval_el0, xzr", "msr cntv_ctl_el0, x9", "isb",
         "3:", "mrs x10, S3_0_C12_C12_0", "cmp w10, #1023", "b.eq 3b",
         "msr cntv_ctl_el0, xzr", "msr S3_0_C12_C12_1, x10"],
        [], in("x9") timer::ENABLE,);
    timer::stop();
    gic::disable(timer::VIRTUAL_PPI);
    tenths(with, empty(), ROUNDS)
}

/// How many times an interrupt-driven measurement would see its interrupt: both directions of the bench's own check.
#[must_use]
pub fn timer_fires() -> bool {
    gic::enable(timer::VIRTUAL_PPI);
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    let fired = timer::wait_until(100, || gic::acknowledge() == timer::VIRTUAL_PPI);
    timer::stop();
    gic::end(timer::VIRTUAL_PPI);
    gic::disable(timer::VIRTUAL_PPI);
    fired
}
