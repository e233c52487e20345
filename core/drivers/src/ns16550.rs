//! A 16550 (National Semiconductor PC16550D), and Synopsys' DesignWare APB UART, which is one with two quirks. The line's rate is
//! left to the firmware.
//!
//! Its receive interrupt stays raised until the last byte is read, and a thread reads. So the interrupt's handler disables it,
//! and the reader enables it again when it finds nothing more to read: bytes that arrived meanwhile raise it at once.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::{Registers, TooSmall};

/// Registers by number: the distance between them is the board's.
const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
/// Read: which interrupt is pending. Written: FIFO control.
const INTERRUPT_ID: u64 = 2;
const FIFO_CONTROL: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
/// DesignWare only.
const UART_STATUS: u64 = 31;
/// How many registers are used of any 16550.
const USED: u64 = 6;

const RECEIVE_INTERRUPT: u8 = 1;
const FIFO_ON: u8 = 1;
/// Eight bits, no parity, one stop bit; the divisor is out of sight.
const LINE: u8 = 0b11;
/// DTR, RTS, and OUT2, which lets interrupts through on many boards.
const MODEM: u8 = 1 | 1 << 1 | 1 << 3;
const RECEIVED: u8 = 1;
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// What the lower bits of INTERRUPT_ID say: nothing was read for a while, though there were bytes.
const RECEIVE_TIMEOUT: u8 = 0xc;
/// DesignWare: LINE_CONTROL was written while a byte was on its way. No other 16550 says this.
const BUSY: u8 = 7;

/// A 16550.
#[derive(Debug)]
pub(crate) struct Ns16550<R> {
    registers: R,
    shift: u8,
    width: u8,
    /// The handler has disabled the receive interrupt.
    is_quiet: AtomicBool,
}

impl<R: Registers> Ns16550<R> {
    /// Register n is at `n << shift`; accesses have `width` bytes, if there are as many from one to the next.
    pub(crate) fn new(registers: R, shift: u8, width: u8) -> Result<Self, TooSmall> {
        let shift = shift.min(3);
        let width = width.min(1 << shift);
        TooSmall::check(&registers, ((USED - 1) << shift) + u64::from(width))?;
        Ok(Self { registers, shift, width, is_quiet: AtomicBool::new(false) })
    }

    // Not inlined, as `write`: each is three accesses of which one is meant.
    #[inline(never)]
    fn read(&self, register: u64) -> u8 {
        let offset = register << self.shift;
        match self.width {
            4.. => self.registers.read32(offset) as u8,
            2.. => self.registers.read16(offset) as u8,
            _ => self.registers.read8(offset),
        }
    }

    #[inline(never)]
    fn write(&self, register: u64, value: u8) {
        let offset = register << self.shift;
        match self.width {
            4.. => self.registers.write32(offset, u32::from(value)),
            2.. => self.registers.write16(offset, u16::from(value)),
            _ => self.registers.write8(offset, value),
        }
    }

    pub(crate) fn init(&self) {
        // A DesignWare that still sends what the firmware wrote refuses it, and interrupts for ever: it is written only if needed.
        // First, since with the divisor in sight the next register would be half of it.
        if self.read(LINE_CONTROL) != LINE {
            self.write(LINE_CONTROL, LINE);
        }
        self.write(INTERRUPT_ENABLE, 0);
        self.write(FIFO_CONTROL, FIFO_ON);
        self.write(MODEM_CONTROL, MODEM);
    }

    pub(crate) fn try_send(&self, byte: u8) -> bool {
        let room = self.read(LINE_STATUS) & TRANSMIT_EMPTY != 0;
        if room {
            self.write(DATA, byte);
        }
        room
    }

    pub(crate) fn receive(&self) -> Option<u8> {
        if self.read(LINE_STATUS) & RECEIVED != 0 {
            return Some(self.read(DATA));
        }
        // Pairs with the store in `quiet_receive_interrupt`. If that comes just behind this, its caller wakes the reader
        // once more.
        if self.is_quiet.swap(false, Ordering::Acquire) {
            self.write(INTERRUPT_ENABLE, RECEIVE_INTERRUPT);
        }
        None
    }

    pub(crate) fn enable_receive_interrupt(&self) {
        self.write(INTERRUPT_ENABLE, RECEIVE_INTERRUPT);
    }

    pub(crate) fn quiet_receive_interrupt(&self) {
        match self.read(INTERRUPT_ID) & 0xf {
            // Reading this takes it back.
            BUSY if (UART_STATUS << self.shift) + u64::from(self.width) <= self.registers.size() => {
                let _ = self.read(UART_STATUS);
            }
            // A DesignWare may say so without any byte, and takes it back when one is read all the same.
            RECEIVE_TIMEOUT if self.read(LINE_STATUS) & RECEIVED == 0 => {
                let _ = self.read(DATA);
            }
            _ => {}
        }
        self.write(INTERRUPT_ENABLE, 0);
        // Pairs with the swap in `receive`: the interrupt is disabled before it is enabled again.
        self.is_quiet.store(true, Ordering::Release);
    }
}
