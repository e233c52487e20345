//! Arm's PL011 (DDI 0183), as much of it as a console needs, and the generic UART of the Server Base System Architecture
//! (DEN0029, appendix B), which is a PL011 without the registers that set it up. The line's rate is left to the firmware.

use crate::{Registers, TooSmall};

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const INTERRUPT_FIFO_LEVEL: u64 = 0x34;
const INTERRUPT_MASK: u64 = 0x38;
const INTERRUPT_CLEAR: u64 = 0x44;
/// How many bytes hold the registers that are used.
const NEEDED: u64 = 0x48;

const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_FULL: u32 = 1 << 5;
/// Receive and receive timeout.
const RECEIVE_INTERRUPTS: u32 = 1 << 4 | 1 << 6;
/// Eight bits, FIFOs.
const LINE: u32 = 0b11 << 5 | 1 << 4;
/// On, in both directions.
const ON: u32 = 1 | 1 << 8 | 1 << 9;

/// Whether it has the registers that set it up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Setup {
    /// A PL011.
    Ours,
    /// A generic UART: firmware has done it.
    Firmware,
}

/// A PL011 or a generic UART.
#[derive(Debug)]
pub(crate) struct Pl011<R> {
    registers: R,
    setup: Setup,
}

impl<R: Registers> Pl011<R> {
    pub(crate) fn new(registers: R, setup: Setup) -> Result<Self, TooSmall> {
        TooSmall::check(&registers, NEEDED)?;
        Ok(Self { registers, setup })
    }

    pub(crate) fn init(&self) {
        if self.setup == Setup::Ours {
            self.registers.write32(LINE_CONTROL, LINE);
            self.registers.write32(CONTROL, ON);
        }
    }

    pub(crate) fn try_send(&self, byte: u8) -> bool {
        let room = self.registers.read32(FLAGS) & TRANSMIT_FULL == 0;
        if room {
            self.registers.write32(DATA, u32::from(byte));
        }
        room
    }

    pub(crate) fn receive(&self) -> Option<u8> {
        let is_empty = self.registers.read32(FLAGS) & RECEIVE_EMPTY != 0;
        if is_empty { None } else { Some(self.registers.read32(DATA) as u8) }
    }

    pub(crate) fn enable_receive_interrupt(&self) {
        if self.setup == Setup::Ours {
            self.registers.write32(INTERRUPT_FIFO_LEVEL, 0);
        }
        self.registers.write32(INTERRUPT_MASK, RECEIVE_INTERRUPTS);
    }

    pub(crate) fn quiet_receive_interrupt(&self) {
        self.registers.write32(INTERRUPT_CLEAR, RECEIVE_INTERRUPTS);
    }
}
