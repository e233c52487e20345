//! A guest's time: its counter, and the timers that compare with it.
//!
//! A guest's counter is the host's, less an offset, times a scale: `guest(c) = ((c - offset) * m) >> s`. Offset and
//! scale belong to the VM, so all its vCPUs read one clock. The scale makes the counter run at the guest's own
//! frequency whatever the host's is, and a VM's time pass faster or slower than real time on purpose ([`Rate`]); with
//! equal frequencies at real time it is the identity, and the hardware's CNTVOFF_EL2 can do it all
//! ([`GuestClock::hardware_offset`] says whether). No other code converts between the two counters.
//!
//! The clock can be stopped while no vCPU is in the guest: it continues from where it stood, by another offset, and
//! knows for how long it stood.
//!
//! The way back must never be early: [`GuestClock::host`] gives the *least* host time at which the guest's counter has
//! reached a value, so that a guest that is woken by its timer finds its counter at or past the compare value.
//!
//! * [`GuestClock`], [`CounterScale`], [`Rate`]: the arithmetic, exact in 128 bits.
//! * [`VmClock`]: the clock of a VM that can be paused.
//! * [`EmulatedTimer`]: one generic timer as the guest sees it (CTL, CVAL, TVAL; Arm ARM DDI 0487, section D12.2), for
//!   the physical timer, which always traps, and for the virtual timer of a vCPU that sleeps.
//! * [`Period`]: how long a tick takes, exactly enough for a clock that runs for years.
//! * [`saved`]: what of them is saved.
#![no_std]
#![forbid(unsafe_code)]

mod counter;
mod pause;
mod period;
pub mod saved;
mod timer;

pub use counter::{Counter, CounterScale, GuestClock, GuestTicks, Rate, Standstill};
pub use pause::VmClock;
pub use period::Period;
pub use timer::EmulatedTimer;
