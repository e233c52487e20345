//! Interrupts that a check asks for, threads that go to another CPU at each preemption, and counts of both, by CPU.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hw::percpu::this_cpu;
use hw::sysreg::cntpct_el0;
use undercroft::exit::checks::Place;
use undercroft::sched::{self, Thread};
use units::CpuId;

/// What happened on one CPU.
pub(crate) struct Counts {
    /// Interrupts taken while in EL2.
    pub(crate) interrupts: AtomicU64,
    /// Where the last of them interrupted.
    pub(crate) last_interrupted: AtomicU64,
    /// Preemptions by an interrupt, at once.
    pub(crate) at_once: AtomicU64,
    /// Preemptions that had to wait, for the end of listed code or for a lock.
    pub(crate) deferred: AtomicU64,
    /// Interrupts that are still to be sent: see [`nudge_self`].
    echoes: AtomicU32,
}

static COUNTS: [Counts; platform::MAX_CPUS] = [const {
    Counts {
        interrupts: AtomicU64::new(0),
        last_interrupted: AtomicU64::new(0),
        at_once: AtomicU64::new(0),
        deferred: AtomicU64::new(0),
        echoes: AtomicU32::new(0),
    }
}; platform::MAX_CPUS];
/// The threads that go to another CPU at each preemption, a bit each, by their numbers.
static RESTLESS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

/// What happened on `cpu`.
pub(crate) fn on(cpu: CpuId) -> &'static Counts {
    match COUNTS.get(usize::from(cpu.0)) {
        Some(counts) => counts,
        None => unreachable!("CPU {} is more than there can be", cpu.0),
    }
}

fn here() -> &'static Counts {
    on(this_cpu().cpu)
}

/// An interrupt arrived in EL2.
pub(crate) fn note_interrupt(return_address: u64) {
    here().interrupts.fetch_add(1, Ordering::Relaxed);
    here().last_interrupted.store(return_address, Ordering::Relaxed);
}

/// The running thread is about to be preempted.
pub(crate) fn note_preemption(place: Place) {
    match place {
        Place::AtOnce => here().at_once.fetch_add(1, Ordering::Relaxed),
        Place::Deferred => here().deferred.fetch_add(1, Ordering::Relaxed),
        Place::BetweenExits => 0,
    };
}

/// This CPU's next interrupt is a request to look at its queue, which is pending from now on, and `echoes` more after it,
/// each sent while the one before is handled. IRQs are masked.
pub(crate) fn nudge_self(echoes: u32) {
    here().echoes.store(echoes, Ordering::Relaxed);
    sched::nudge_self();
}

/// The next of the requests that [`nudge_self`] promised. IRQs are masked.
pub(crate) fn echo() {
    let echoes = here().echoes.load(Ordering::Relaxed);
    if echoes > 0 {
        nudge_self(echoes - 1);
    }
}

/// The running thread's next preemption takes it to `cpu`, and nobody takes it back from there.
pub(crate) fn migrate_for_good(cpu: CpuId) {
    let thread = sched::current();
    thread.restrict_to(cpu);
    thread.migrate(cpu);
}

/// Every preemption takes `thread` to some other CPU, or no longer.
pub(crate) fn set_restless(thread: &Thread, restless: bool) {
    let Some(set) = RESTLESS.get(thread.index as usize / 64) else { return };
    let bit = 1 << (thread.index % 64);
    if restless {
        set.fetch_or(bit, Ordering::Relaxed);
    } else {
        set.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Sends the running thread away, if it is restless. It is about to be preempted.
pub(crate) fn send_restless() {
    let thread = sched::current();
    let set = RESTLESS.get(thread.index as usize / 64).map_or(0, |set| set.load(Ordering::Relaxed));
    if set >> (thread.index % 64) & 1 != 0 {
        thread.migrate(any_cpu(thread.index));
    }
}

/// Some CPU that takes part, another one each time.
fn any_cpu(salt: u32) -> CpuId {
    // The counter's low bits, stirred (Knuth's multiplicative hash): nobody has to be unable to guess it.
    let stirred = (cntpct_el0() ^ u64::from(salt)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let online = sched::online();
    let nth = stirred as u32 % online.count_ones().max(1);
    let cpu = (0..64_u16).filter(|cpu| online >> cpu & 1 != 0).nth(nth as usize);
    CpuId(cpu.unwrap_or(0))
}
