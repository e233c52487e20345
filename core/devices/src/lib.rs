//! The platform devices of a guest: UART, real-time clock, GPIO and watchdog, as pure state machines.
//!
//! The set is QEMU `virt`'s (a PL011, a PL031 and a PL061 whose pin 3 is the power button), because every arm64 kernel and firmware has
//! drivers for it, the Generic Watchdog of Arm's servers, the memory-mapped generic timer, the generation identifier, and VMClock.
//!
//! What they have in common is the [`bus`]: one trait, [`Device`], by which every device is read, written, polled, reset and paused, and
//! the wires from their lines to the interrupt controller. A device holds no lock and no clock, and keeps nobody whom it could call: what
//! is outside of it (time, memory, whoever takes its bytes) is the [`Outside`] that each call passes in. It has interrupt lines, which
//! are levels; after every call that can move them [`Wired`] compares them with what the interrupt controller was told last.
//!
//! Beneath that [`Pl011`], [`Pl031`], [`Pl061`] and [`GenericWatchdog`] have methods that are told about register accesses and events, and
//! answer with values ([`Effect`]). A device's state can be taken out and put back ([`saved`]).
//!
//! A guest may do anything to a device: any offset inside its page or outside, any size, any value. Unknown registers
//! read as zero and ignore writes, and no access takes more than a few instructions.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bus;
pub mod memory;
pub mod saved;

mod access;
mod clock_page;
mod fifo;
mod flash;
mod generation;
mod generic_watchdog;
mod memory_timer;
mod pl011;
mod pl031;
mod pl061;
mod uart;

pub use bus::{Access, Bus, Change, Device, Moment, Outside, Place, Request, Slot, Stream, Wired};
pub use clock_page::{ClockPage, SavedClockPage, ShownMoment, TAI_OFFSET};
pub use flash::ErasedFlash;
pub use generation::{GenerationId, SavedGenerationId};
pub use generic_watchdog::{GenericWatchdog, SavedGenericWatchdog};
pub use memory_timer::{MemoryTimer, SavedMemoryTimer};
pub use pl011::{PL011_DR, PL011_FR, Pl011, SavedPl011};
pub use pl031::{Pl031, SavedPl031};
pub use pl061::{POWER_BUTTON_PIN, Pl061, SavedPl061};
pub use uart::{SavedUart, Uart};
pub use units::AccessSize;

/// What a device of the bus has to do after a write to one of its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing; the interrupt line may have changed, as after every access.
    None,
    /// Send this byte to wherever the UART is connected.
    Transmit(u8),
    /// The time that [`Pl031::next_alarm`] or [`GenericWatchdog::deadline`] answers may have changed: set the host's timer
    /// again.
    AlarmChanged,
}
