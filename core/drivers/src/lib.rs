//! Drivers of the host's devices.
//!
//! A driver is a value that holds its device's block of registers and nothing else; there may be any number of a kind. It does
//! not know what a block of registers is: on the machine one that EL2 has mapped (`hw::mmio::Region`), in a test an array that
//! plays the device. So what is written to which register, and in which order, is tested where no such device is.
//!
//! What belongs to the machine and not to one device stays in `hw`: how long to wait, what all CPUs share, and whatever has no
//! registers in memory, such as the GIC's CPU interface.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
mod fake;
mod gicv3;
mod ns16550;
mod pl011;
mod pl031;
mod uart;
pub mod virtio;

pub use gicv3::{Distributor, Redistributor};
pub use pl031::Pl031;
pub use platform::{ConsoleKind, InterruptLine};
pub use uart::Uart;

/// A device's block of registers. An access is one load or store of that width, in program order with all others of the
/// block.
///
/// Beyond the end of the block there is nothing: it reads as zero, and a write is lost. Drivers do not go there: they look at
/// [`Registers::size`] when they are made.
pub trait Registers {
    /// How many bytes of registers there are.
    fn size(&self) -> u64;
    /// Reads a byte.
    fn read8(&self, offset: u64) -> u8;
    /// Reads two bytes.
    fn read16(&self, offset: u64) -> u16;
    /// Reads four bytes.
    fn read32(&self, offset: u64) -> u32;
    /// Reads eight bytes.
    fn read64(&self, offset: u64) -> u64;
    /// Writes a byte.
    fn write8(&self, offset: u64, value: u8);
    /// Writes two bytes.
    fn write16(&self, offset: u64, value: u16);
    /// Writes four bytes.
    fn write32(&self, offset: u64, value: u32);
    /// Writes eight bytes.
    fn write64(&self, offset: u64, value: u64);
}

/// A device has fewer registers than its driver needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooSmall {
    /// How many bytes there are.
    pub is: u64,
    /// How many there must be.
    pub needed: u64,
}

impl TooSmall {
    fn check(registers: &impl Registers, needed: u64) -> Result<(), Self> {
        let is = registers.size();
        if is < needed { Err(Self { is, needed }) } else { Ok(()) }
    }
}
