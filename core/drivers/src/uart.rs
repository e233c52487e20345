//! The host's console UART, of any kind that the platform may name.

use platform::ConsoleKind;

use crate::ns16550::Ns16550;
use crate::pl011::{Pl011, Setup};
use crate::{Registers, TooSmall};

/// A UART. There is no wait in it, since there is no clock: whoever sends asks again.
#[derive(Debug)]
pub struct Uart<R>(Kind<R>);

#[derive(Debug)]
enum Kind<R> {
    Pl011(Pl011<R>),
    Ns16550(Ns16550<R>),
}

impl<R: Registers> Uart<R> {
    /// The UART of this kind with these registers.
    ///
    /// # Errors
    /// When they are too few.
    pub fn new(kind: ConsoleKind, registers: R) -> Result<Self, TooSmall> {
        Ok(Self(match kind {
            ConsoleKind::Pl011 => Kind::Pl011(Pl011::new(registers, Setup::Ours)?),
            ConsoleKind::Sbsa => Kind::Pl011(Pl011::new(registers, Setup::Firmware)?),
            ConsoleKind::Ns16550 { register_shift, register_width } => {
                Kind::Ns16550(Ns16550::new(registers, register_shift, register_width)?)
            }
        }))
    }

    /// Sets it up: 8 bits, FIFOs, both directions, no interrupts.
    pub fn init(&self) {
        match &self.0 {
            Kind::Pl011(uart) => uart.init(),
            Kind::Ns16550(uart) => uart.init(),
        }
    }

    /// Sends one byte if there is room; says whether it did.
    #[must_use]
    pub fn try_send(&self, byte: u8) -> bool {
        match &self.0 {
            Kind::Pl011(uart) => uart.try_send(byte),
            Kind::Ns16550(uart) => uart.try_send(byte),
        }
    }

    /// The next byte that arrived, if any. Whoever finds none will be told by the next interrupt.
    #[must_use]
    pub fn receive(&self) -> Option<u8> {
        match &self.0 {
            Kind::Pl011(uart) => uart.receive(),
            Kind::Ns16550(uart) => uart.receive(),
        }
    }

    /// Raises an interrupt when bytes arrive.
    pub fn enable_receive_interrupt(&self) {
        match &self.0 {
            Kind::Pl011(uart) => uart.enable_receive_interrupt(),
            Kind::Ns16550(uart) => uart.enable_receive_interrupt(),
        }
    }

    /// The interrupt's handler: takes it back; the bytes stay. Somebody must be made to [`Uart::receive`] afterwards, until there
    /// is nothing.
    pub fn quiet_receive_interrupt(&self) {
        match &self.0 {
            Kind::Pl011(uart) => uart.quiet_receive_interrupt(),
            Kind::Ns16550(uart) => uart.quiet_receive_interrupt(),
        }
    }
}

#[cfg(test)]
mod tests;
