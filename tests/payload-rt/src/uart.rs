//! Output on the PL011 at 0x0900_0000 (Arm DDI 0183), by polling, one message at a time.

use core::fmt::{self, Write};

use spin::Mutex;

use crate::memory;

/// Where the UART is.
pub const BASE: u64 = 0x0900_0000;
/// Data register.
pub const DR: u64 = 0x00;
/// Flag register.
pub const FR: u64 = 0x18;
/// Line control.
pub const LCR_H: u64 = 0x2c;
/// Control register.
pub const CR: u64 = 0x30;
/// Receive FIFO empty, in [`FR`].
pub const FR_RXFE: u32 = 1 << 4;
/// Transmit FIFO full, in [`FR`].
pub const FR_TXFF: u32 = 1 << 5;

struct Uart;

static UART: Mutex<Uart> = Mutex::new(Uart);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    while memory::read32(BASE + FR) & FR_TXFF != 0 {}
    memory::write32(BASE + DR, u32::from(byte));
}

/// A byte that somebody has typed, if there is one.
#[must_use]
pub fn receive() -> Option<u8> {
    (memory::read32(BASE + FR) & FR_RXFE == 0).then(|| memory::read32(BASE + DR) as u8)
}

/// Eight bits, FIFOs, transmitter and receiver on.
pub fn enable() {
    memory::write32(BASE + LCR_H, 0x70);
    memory::write32(BASE + CR, 0x301);
}

/// Prints without a line end. Interrupt handlers must not print: the lock is not theirs to wait for.
pub fn print(arguments: fmt::Arguments<'_>) {
    // Writing to the UART cannot fail.
    let _ = UART.lock().write_fmt(arguments);
}

/// Prints bytes as they are.
pub fn print_bytes(bytes: &[u8]) {
    let _uart = UART.lock();
    bytes.iter().copied().for_each(put);
}

/// Prints even if the lock is held: for the last words of a payload that has gone wrong.
pub(crate) fn print_last_words(arguments: fmt::Arguments<'_>) {
    let _ = Uart.write_fmt(arguments);
}

/// Prints formatted text on the UART.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::uart::print(format_args!($($arguments)*)) };
}

/// Prints a line on the UART.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => { $crate::uart::print(format_args!("{}\n", format_args!($($arguments)*))) };
}
