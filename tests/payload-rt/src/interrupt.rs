//! What happens on an IRQ: the handler that a test has set, or [`count`]. And SErrors, which are masked until a test takes one
//! ([`take_serror`]).

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use crate::{MAX_CPUS, cpu, gic, instruction, sysreg, timer};

/// Interrupts with numbers below this are counted.
const COUNTED: usize = 1020;

static HANDLER: Mutex<fn()> = Mutex::new(count);
static COUNTS: [[AtomicU32; COUNTED]; MAX_CPUS] = [const { [const { AtomicU32::new(0) }; COUNTED] }; MAX_CPUS];
static SPURIOUS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// SErrors are welcome on this CPU.
static WELCOME: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// One has come.
static TAKEN: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
static LAST_TIME: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Makes `handler` run for each IRQ, on all CPUs, interrupts masked. It must acknowledge and end the interrupt itself, and not print.
pub fn set_handler(handler: fn()) {
    cpu::mask_interrupts();
    *HANDLER.lock() = handler;
}

/// Back to [`count`].
pub fn reset_handler() {
    set_handler(count);
}

pub(crate) fn dispatch() {
    let handler = *HANDLER.lock();
    handler();
}

/// The usual handler: acknowledge, note time and count, silence a timer, end.
pub fn count() {
    let me = cpu::index();
    let time = timer::now();
    let intid = gic::acknowledge();
    let Some(counter) = COUNTS[me].get(intid as usize) else {
        SPURIOUS[me].fetch_add(1, Ordering::SeqCst);
        return;
    };
    match intid {
        timer::VIRTUAL_PPI => sysreg::cntv_ctl_el0::write(timer::ENABLE | timer::IMASK),
        timer::PHYSICAL_PPI => sysreg::cntp_ctl_el0::write(timer::ENABLE | timer::IMASK),
        _ => {}
    }
    LAST_TIME[me].store(time, Ordering::SeqCst);
    counter.fetch_add(1, Ordering::SeqCst);
    gic::end(intid);
}

/// How often [`count`] has seen `intid` on CPU `index` since [`clear`].
#[must_use]
pub fn seen(index: usize, intid: u32) -> u32 {
    COUNTS[index][intid as usize].load(Ordering::SeqCst)
}

/// How often there was an IRQ but nothing to acknowledge on CPU `index`.
#[must_use]
pub fn spurious(index: usize) -> u32 {
    SPURIOUS[index].load(Ordering::SeqCst)
}

/// The virtual counter at the latest interrupt that [`count`] saw on CPU `index`.
#[must_use]
pub fn last_time(index: usize) -> u64 {
    LAST_TIME[index].load(Ordering::SeqCst)
}

/// Sleeps by WFI, unless `came` says that what is waited for has come; IRQs are let in behind it. May return before it comes.
/// An interrupt between the look and the WFI is pending for the WFI, and taken behind it: were it let in there, the WFI would
/// sleep for an interrupt that is over.
pub fn wait_unless(came: impl Fn() -> bool) {
    cpu::mask_interrupts();
    if !came() {
        cpu::wait_for_interrupt();
    }
    cpu::unmask_interrupts();
    // Without it the CPU may be asked to mask them again before it has taken the one that is pending.
    sysreg::isb();
}

/// Forgets all counts.
pub fn clear() {
    for counter in COUNTS.iter().flatten().chain(&SPURIOUS) {
        counter.store(0, Ordering::SeqCst);
    }
}

/// Whether an SError is pending for this CPU: ISR_EL1.A.
#[must_use]
pub fn is_serror_pending() -> bool {
    instruction::read_register([3, 0, 12, 1, 0]).is_ok_and(|pending| pending >> 8 & 1 != 0)
}

/// Takes the SError that is pending for this CPU, so that it is pending no longer, and one that may come just then. Says
/// whether there was any.
pub fn take_serror() -> bool {
    let me = cpu::index();
    TAKEN[me].store(false, Ordering::SeqCst);
    WELCOME[me].store(true, Ordering::SeqCst);
    // SAFETY: the handler keeps all registers and changes an atomic. SErrors are masked again behind it.
    unsafe { asm!("msr daifclr, #4", "isb", "msr daifset, #4", options(nostack)) };
    WELCOME[me].store(false, Ordering::SeqCst);
    TAKEN[me].load(Ordering::SeqCst)
}

/// An SError came. Says whether it was welcome.
pub(crate) fn on_serror() -> bool {
    TAKEN[cpu::index()].store(true, Ordering::SeqCst);
    WELCOME[cpu::index()].load(Ordering::SeqCst)
}
