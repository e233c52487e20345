//! The generic timers of EL1 (Arm ARM D12): the counter in order, deadlines in real units, and the interrupts' numbers.

use crate::{cpu, gic, interrupt, sysreg};

/// The virtual timer's PPI.
pub const VIRTUAL_PPI: u32 = 27;
/// The physical timer's PPI.
pub const PHYSICAL_PPI: u32 = 30;

/// CNTx_CTL: the timer is on.
pub const ENABLE: u64 = 1;
/// CNTx_CTL: the interrupt is masked.
pub const IMASK: u64 = 2;
/// CNTx_CTL: the condition is met.
pub const ISTATUS: u64 = 4;

/// The virtual counter, read after everything before it.
#[inline(always)]
#[must_use]
pub fn now() -> u64 {
    sysreg::isb();
    sysreg::cntvct_el0::read()
}

/// The physical count at the payload's first instruction.
static FIRST_COUNT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Remembers it; by the entry.
pub(crate) fn note_first_count(count: u64) {
    FIRST_COUNT.store(count, core::sync::atomic::Ordering::Relaxed);
}

/// The physical count at the payload's first instruction: how long the machine ran before it, on a machine whose counter
/// starts at zero.
pub fn first_count() -> u64 {
    FIRST_COUNT.load(core::sync::atomic::Ordering::Relaxed)
}

/// The physical counter, read after everything before it.
#[inline(always)]
#[must_use]
pub fn physical_now() -> u64 {
    sysreg::isb();
    sysreg::cntpct_el0::read()
}

/// Ticks in so many microseconds.
#[must_use]
pub fn microseconds(count: u64) -> u64 {
    sysreg::cntfrq_el0::read() / 1000 * count / 1000
}

/// The patience of somebody who looks again and again. What passes between two looks uses up a hundredth of it at most: where a CPU
/// stands still for seconds, or only the emulator's timers do, what is waited for gets its chance all the same.
#[derive(Debug)]
pub struct Deadline {
    last: u64,
    left: u64,
    most: u64,
}

impl Deadline {
    /// So many milliseconds from now, by the virtual counter.
    #[must_use]
    pub fn after_milliseconds(count: u64) -> Self {
        Self::after(microseconds(1000) * count, now())
    }

    /// So many ticks of a counter that shows `now`.
    #[must_use]
    pub fn after(ticks: u64, now: u64) -> Self {
        Self { last: now, left: ticks, most: ticks.div_ceil(100) }
    }

    /// Whether it is over by the virtual counter.
    #[must_use]
    pub fn passed(&mut self) -> bool {
        self.passed_by(now())
    }

    /// Whether it is over by its counter, which shows `now`.
    #[must_use]
    pub fn passed_by(&mut self, now: u64) -> bool {
        self.left = self.left.saturating_sub(now.saturating_sub(self.last).min(self.most));
        self.last = now;
        self.left == 0
    }
}

/// Spins until `done`; false if that takes more than `milliseconds`, of which each look takes a [hundredth](Deadline) at most.
pub fn wait_until(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let mut deadline = Deadline::after_milliseconds(milliseconds);
    loop {
        if done() {
            return true;
        }
        if deadline.passed() {
            return done();
        }
        cpu::relax();
    }
}

/// Spins for so many microseconds.
pub fn delay(count: u64) {
    let end = now() + microseconds(count);
    while now() < end {}
}

/// Both timers off.
pub fn stop() {
    sysreg::cntv_ctl_el0::write(0);
    sysreg::cntp_ctl_el0::write(0);
}

/// Sleeps for so many microseconds by WFI, interrupts masked: the virtual timer's interrupt is pending at the end, is not
/// taken, and goes away with the timer. An SError that becomes pending meanwhile ends it too. Says how many microseconds it
/// was.
pub fn sleep(count: u64) -> u64 {
    let start = now();
    let end = start + microseconds(count);
    gic::enable(VIRTUAL_PPI);
    sysreg::cntv_cval_el0::write(end);
    sysreg::cntv_ctl_el0::write(ENABLE);
    // WFI may end for no reason.
    loop {
        cpu::wait_for_interrupt();
        if now() >= end || interrupt::is_serror_pending() {
            break;
        }
    }
    sysreg::cntv_ctl_el0::write(0);
    (now() - start) * 1000 / microseconds(1000)
}

/// Runs `body` with an event every few microseconds (CNTKCTL_EL1.EVNTEN), so that no WFE waits for ever.
pub fn with_event_stream<R>(body: impl FnOnce() -> R) -> R {
    let before = sysreg::cntkctl_el1::read();
    sysreg::cntkctl_el1::write(before | 1 << 2 | 8 << 4);
    let result = body();
    sysreg::cntkctl_el1::write(before);
    result
}
