//! A reader of VMClock's page, by the rules of its specification (UAPI.13; Linux's `include/uapi/linux/vmclock-abi.h`): fields are read
//! by their offsets, and used only if the sequence count was even, and the same, before and after all of them.

use core::sync::atomic::{Ordering, fence};

use crate::{cpu, gic, memory, timer};

/// Where the page is, and its interrupt.
pub const PAGE: u64 = 0x0915_0000;
/// See there.
pub const INTID: u32 = 47;

/// "VCLK".
pub const MAGIC: u32 = 0x4b4c_4356;
/// The flags that are promised here: an offset of TAI, a count of generations, notifications.
pub const FLAGS: u64 = 1 | 1 << 8 | 1 << 9;
/// The clock ran by another one, and goes on by itself.
pub const FREE_RUNNING: u8 = 3;

/// What the page says at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// The sequence count, even.
    pub sequence: u32,
    /// The marker of disruptions.
    pub disruption: u64,
    /// What is valid.
    pub flags: u64,
    /// How far the clock can be relied upon.
    pub status: u8,
    /// By how many seconds TAI is ahead of UTC.
    pub tai_offset: i16,
    /// What the counter showed at the time `seconds` and `fraction`.
    pub count: u64,
    /// A tick takes `period` / 2^(64 + `shift`) seconds.
    pub period: u64,
    /// See there.
    pub shift: u8,
    /// TAI in seconds since 1970.
    pub seconds: u64,
    /// And what is behind them, in units of 2^-64 seconds.
    pub fraction: u64,
    /// The count of generations.
    pub generation: u64,
}

/// Reads the page.
///
/// # Panics
/// If it is never whole.
#[must_use]
pub fn read() -> Clock {
    let (word, byte) = (|at| memory::read64(PAGE + at), |at| memory::read8(PAGE + at));
    for _ in 0..1_000_000 {
        let sequence = memory::read32(PAGE + 0x0c);
        // Pairs with the stores of the hypervisor, each of which is seen behind the one before.
        fence(Ordering::Acquire);
        let clock = Clock {
            sequence,
            disruption: word(0x10),
            flags: word(0x18),
            status: byte(0x22),
            tai_offset: memory::read16(PAGE + 0x24).cast_signed(),
            count: word(0x28),
            period: word(0x30),
            shift: byte(0x27),
            seconds: word(0x48),
            fraction: word(0x50),
            generation: word(0x68),
        };
        // As above.
        fence(Ordering::Acquire);
        if sequence.is_multiple_of(2) && memory::read32(PAGE + 0x0c) == sequence {
            return clock;
        }
        cpu::relax();
    }
    panic!("VMClock's page is never whole")
}

impl Clock {
    /// UTC in microseconds since 1970, when the virtual counter shows `count`.
    #[must_use]
    pub fn microseconds(&self, count: u64) -> u64 {
        let ticks = u128::from(count.wrapping_sub(self.count));
        let passed = ((ticks * u128::from(self.period)) >> self.shift) + u128::from(self.fraction);
        let seconds = self.seconds.wrapping_add((passed >> 64) as u64).wrapping_add_signed(-i64::from(self.tai_offset));
        seconds * 1_000_000 + ((u128::from(passed as u64) * 1_000_000) >> 64) as u64
    }

    /// UTC in microseconds since 1970, now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.microseconds(timer::now())
    }
}

/// Looks at the page between two looks at the counter, and at the real-time clock that `seconds` reads in between, until that has moved on
/// so often: what it shows must be no earlier than the one, and no later than the other. The three of them, in microseconds and seconds,
/// if not.
pub fn disagreement(
    clock: &Clock,
    changes: u32,
    mut rest: impl FnMut(),
    seconds: impl Fn() -> u64,
) -> Option<(u64, u64, u64)> {
    // What is left out where the page was written.
    const ROUNDING: u64 = 3;
    let first = seconds();
    loop {
        let before = clock.now();
        let shown = seconds();
        let after = clock.now();
        if (before - ROUNDING) / 1_000_000 > shown || (after + ROUNDING) / 1_000_000 < shown {
            return Some((before, shown, after));
        }
        if shown >= first + u64::from(changes) {
            return None;
        }
        rest();
    }
}

/// Whether its interrupt is pending, which it is not any more then.
pub fn take_notice() -> bool {
    let is_pending = gic::read_bit(gic::ISPENDR, INTID);
    if is_pending {
        gic::write_bit(gic::ICPENDR, INTID);
    }
    is_pending
}
