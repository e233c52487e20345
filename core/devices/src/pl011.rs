//! The UART: a PrimeCell PL011 (Arm DDI 0183, revision r1p5), the guest's console.
//!
//! Time does not pass in this UART. A byte that the guest writes leaves at once, as [`Effect::Transmit`], as long as the
//! other side takes bytes; while it doesn't ([`Pl011::set_transmit_blocked`]) they collect in the transmit FIFO, which
//! is 32 deep as in the hardware, and then FR.TXFF makes the driver wait. So a guest that floods its console stalls
//! nobody but itself. The FIFO is not a luxury: Linux's driver writes half a FIFO at a transmit interrupt without
//! looking at TXFF again, and would lose text without it.
//!
//! Interrupts follow DDI 0183 section 2.8 with the time taken out:
//! * TXRIS is the level "transmit FIFO at or below its trigger", looked at after each byte written or sent. It starts
//!   clear and stays clear when the driver cleared it until the next byte, so that nothing fires for a driver that has
//!   nothing to say; a driver that unmasks it has just written something.
//! * RXRIS is there as long as there is a byte: its trigger is one byte, whatever IFLS says, as in QEMU's model. A driver that was
//!   written for QEMU's `virt` may enable FIFOs and this interrupt alone, and would wait for 16 keys to be pressed.
//! * RTRIS, the receive timeout, says that bytes have waited for 32 bit times. No time passes, so it is there as long as
//!   there is a byte too.
//!
//! Both are back at once when they are cleared in ICR and a byte is left. In the hardware (section 2.8) a cleared RXRIS
//! comes back when the next byte reaches the trigger, and RTRIS after another 32 bit times; in QEMU's model RXRIS comes back with the
//! first byte after the FIFO was empty. A driver that reads all bytes and then clears would lose the interrupt of one that came in
//! between: for a while in the hardware with FIFOs, and for good in QEMU's model, and without FIFOs, where the byte that waits
//! keeps all others out. Here no driver loses a byte by clearing interrupts before it empties the FIFO, or by enabling them after the
//! byte came.
//!
//! As with QEMU's model, a UART that the guest never enabled works all the same: `earlycon` counts on firmware
//! to have enabled it, and our guests may start without firmware. Baud rates and line format are kept and ignored; modem lines
//! show a terminal that is attached and ready.

use crate::access::{extract, identification, register_offset, written};
use crate::fifo::Fifo;
use crate::saved::Unfit;
use crate::{AccessSize, Effect};
use alloc::vec::Vec;
use pack::Damaged;

/// Register offsets (DDI 0183 table 3-1).
mod register {
    pub(super) const DR: u64 = super::PL011_DR;
    pub(super) const RSR_ECR: u64 = 0x04;
    pub(super) const FR: u64 = super::PL011_FR;
    pub(super) const ILPR: u64 = 0x20;
    pub(super) const IBRD: u64 = 0x24;
    pub(super) const FBRD: u64 = 0x28;
    pub(super) const LCR_H: u64 = 0x2c;
    pub(super) const CR: u64 = 0x30;
    pub(super) const IFLS: u64 = 0x34;
    pub(super) const IMSC: u64 = 0x38;
    pub(super) const RIS: u64 = 0x3c;
    pub(super) const MIS: u64 = 0x40;
    pub(super) const ICR: u64 = 0x44;
    pub(super) const DMACR: u64 = 0x48;
}

/// Offset of the data register, DR.
pub const PL011_DR: u64 = 0x00;
/// Offset of the flag register, FR.
pub const PL011_FR: u64 = 0x18;

/// Part 0x011, designer Arm (0x41), revision 3 (r1p5): Linux takes revision 3 to mean FIFOs of 32.
const PERIPHERAL_ID: u32 = 0x0034_1011;

/// Depth of each FIFO when they are enabled.
const FIFO_DEPTH: usize = 32;

/// Flags (FR).
const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

/// Interrupts (RIS, MIS, IMSC, ICR).
const INTERRUPT_RX: u32 = 1 << 4;
const INTERRUPT_TX: u32 = 1 << 5;
const INTERRUPT_RECEIVE_TIMEOUT: u32 = 1 << 6;
const INTERRUPT_OVERRUN: u32 = 1 << 10;
const INTERRUPTS: u32 = 0x7ff;

/// Overrun, as DR shows it beside a byte and as RSR shows it.
const DR_OVERRUN: u32 = 1 << 11;
const RSR_OVERRUN: u32 = 1 << 3;

/// The bits that each of these registers has.
const ILPR_BITS: u32 = 0xff;
const IBRD_BITS: u32 = 0xffff;
const FBRD_BITS: u32 = 0x3f;
const LCR_H_BITS: u32 = 0xff;
const CR_BITS: u32 = 0xff87;
const IFLS_BITS: u32 = 0x3f;
const DMACR_BITS: u32 = 0x7;

const LCR_H_FEN: u32 = 1 << 4;
const CR_LBE: u32 = 1 << 7;
/// CR after reset: transmitter and receiver on, the UART as a whole off.
const CR_RESET: u32 = 0x300;
/// IFLS after reset: both triggers at half a FIFO.
const IFLS_RESET: u32 = 0x12;

/// A PL011.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pl011 {
    received: Fifo<FIFO_DEPTH>,
    to_send: Fifo<FIFO_DEPTH>,
    /// The other side takes no bytes at the moment.
    blocked: bool,
    /// A byte came in loopback while the receive FIFO was full.
    overrun: bool,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
}

/// The state of a PL011: its registers, and the FIFOs' bytes, the oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedPl011 {
    /// The receive FIFO, the oldest byte first.
    pub received: Vec<u8>,
    /// The transmit FIFO, the oldest byte first.
    pub to_send: Vec<u8>,
    /// A byte came in loopback while the receive FIFO was full (UARTRSR.OE).
    pub overrun: bool,
    /// UARTILPR.
    pub ilpr: u32,
    /// UARTIBRD.
    pub ibrd: u32,
    /// UARTFBRD.
    pub fbrd: u32,
    /// UARTLCR_H.
    pub lcr_h: u32,
    /// UARTCR.
    pub cr: u32,
    /// UARTIFLS.
    pub ifls: u32,
    /// UARTIMSC.
    pub imsc: u32,
    /// UARTRIS.
    pub ris: u32,
    /// UARTDMACR.
    pub dmacr: u32,
}

impl SavedPl011 {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedPl011 versioned {
    received[FIFO_DEPTH], to_send[FIFO_DEPTH], overrun, ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, ris, dmacr
});

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// A UART after reset.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            received: Fifo::new(),
            to_send: Fifo::new(),
            blocked: false,
            overrun: false,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            ris: 0,
            dmacr: 0,
        }
    }

    /// Takes the state out. Whether the other side takes bytes is not part of it.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn save(&self) -> Result<SavedPl011, Damaged> {
        let Self { received, to_send, blocked: _, overrun, ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, ris, dmacr } = self;
        Ok(SavedPl011 {
            received: received.save()?,
            to_send: to_send.save()?,
            overrun: *overrun,
            ilpr: *ilpr,
            ibrd: *ibrd,
            fbrd: *fbrd,
            lcr_h: *lcr_h,
            cr: *cr,
            ifls: *ifls,
            imsc: *imsc,
            ris: *ris,
            dmacr: *dmacr,
        })
    }

    /// A UART with this state. It sends nothing until [`set_transmit_blocked`](Self::set_transmit_blocked) says that the other
    /// side takes bytes.
    ///
    /// # Errors
    /// If no UART can be in such a state.
    pub fn restored(saved: &SavedPl011) -> Result<Self, Unfit> {
        let SavedPl011 { received, to_send, overrun, ilpr, ibrd, fbrd, lcr_h, cr, ifls, imsc, ris, dmacr } = saved;
        let fifo = |bytes: &[u8]| Fifo::restored(bytes).ok_or(Unfit("a UART's FIFO is longer than 32 bytes"));
        let registers = [
            (ilpr, ILPR_BITS),
            (ibrd, IBRD_BITS),
            (fbrd, FBRD_BITS),
            (lcr_h, LCR_H_BITS),
            (cr, CR_BITS),
            (ifls, IFLS_BITS),
            (imsc, INTERRUPTS),
            (ris, INTERRUPTS),
            (dmacr, DMACR_BITS),
        ];
        if registers.into_iter().any(|(value, bits)| value & !bits != 0) {
            return Err(Unfit("a register of the UART has bits that do not exist"));
        }
        Ok(Self {
            received: fifo(received)?,
            to_send: fifo(to_send)?,
            blocked: true,
            overrun: *overrun,
            ilpr: *ilpr,
            ibrd: *ibrd,
            fbrd: *fbrd,
            lcr_h: *lcr_h,
            cr: *cr,
            ifls: *ifls,
            imsc: *imsc,
            ris: *ris,
            dmacr: *dmacr,
        })
    }

    /// The level of the combined interrupt UARTINTR.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// Whether a byte written to the data register now would leave at once ([`Effect::Transmit`]) and change nothing else
    /// that can be seen from outside, the interrupt line above all: as each byte of a driver that polls.
    #[inline(always)]
    #[must_use]
    pub const fn transmits_quietly(&self) -> bool {
        let silent = self.imsc & !self.ris & INTERRUPT_TX == 0;
        silent && !self.blocked && self.to_send.is_empty() && self.cr & CR_LBE == 0
    }

    /// The flag register, FR: reading it changes nothing.
    #[inline(always)]
    #[must_use]
    pub const fn flag_register(&self) -> u64 {
        self.flags() as u64
    }

    /// The guest reads `size` bytes at `offset`. After it, [`receive_space`](Self::receive_space) may have grown.
    pub fn read(&mut self, offset: u64, size: AccessSize) -> u64 {
        let at = register_offset(offset);
        let value = match at {
            // Only an access to the data itself takes it out of the FIFO.
            register::DR if offset == at => self.take_received(),
            register::RSR_ECR => {
                if self.overrun {
                    RSR_OVERRUN
                } else {
                    0
                }
            }
            register::FR => self.flags(),
            register::ILPR => self.ilpr,
            register::IBRD => self.ibrd,
            register::FBRD => self.fbrd,
            register::LCR_H => self.lcr_h,
            register::CR => self.cr,
            register::IFLS => self.ifls,
            register::IMSC => self.imsc,
            register::RIS => self.ris,
            register::MIS => self.ris & self.imsc,
            register::DMACR => self.dmacr,
            _ => identification(at, PERIPHERAL_ID).unwrap_or(0),
        };
        extract(value, offset, size)
    }

    /// The guest writes `size` bytes at `offset`.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64) -> Effect {
        let Some(value) = written(offset, size, value) else { return Effect::None };
        match offset {
            register::DR => return self.transmit(value.to_le_bytes()[0]),
            register::RSR_ECR => self.overrun = false,
            register::ILPR => self.ilpr = value & ILPR_BITS,
            register::IBRD => self.ibrd = value & IBRD_BITS,
            register::FBRD => self.fbrd = value & FBRD_BITS,
            // Bytes in a FIFO survive a change of FEN: DDI 0183 does not say that they go, and nobody misses less.
            register::LCR_H => self.lcr_h = value & LCR_H_BITS,
            register::CR => self.cr = value & CR_BITS,
            register::IFLS => self.ifls = value & IFLS_BITS,
            register::IMSC => self.imsc = value & INTERRUPTS,
            register::ICR => {
                self.ris &= !value;
                self.update_receive_interrupts();
            }
            register::DMACR => self.dmacr = value & DMACR_BITS,
            _ => {}
        }
        Effect::None
    }

    /// How many bytes [`receive`](Self::receive) would take now.
    #[must_use]
    pub const fn receive_space(&self) -> usize {
        self.depth().saturating_sub(self.received.len())
    }

    /// A byte arrives from outside. Returns whether it was taken; if not, the FIFO is full: keep the byte and
    /// offer it again after the guest has read the data register.
    pub fn receive(&mut self, byte: u8) -> bool {
        // In loopback the line is cut off, as UARTRXD is in the hardware.
        if self.cr & CR_LBE != 0 || self.receive_space() == 0 {
            return false;
        }
        self.put_received(byte);
        true
    }

    /// Tells whether the other side has no room for bytes. While it hasn't, writes to the data register fill
    /// the transmit FIFO instead of having the effect [`Effect::Transmit`].
    ///
    /// After unblocking, call [`take_transmit`](Self::take_transmit) until it returns `None`.
    pub const fn set_transmit_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
    }

    /// Takes the oldest byte that waits in the transmit FIFO.
    pub fn take_transmit(&mut self) -> Option<u8> {
        let byte = self.to_send.pop()?;
        self.update_transmit_interrupt();
        Some(byte)
    }

    /// How many bytes wait in the transmit FIFO.
    #[must_use]
    pub const fn transmit_pending(&self) -> usize {
        self.to_send.len()
    }

    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO_DEPTH } else { 1 }
    }

    /// A trigger level in bytes, from its three-bit code: 1/8, 1/4, 1/2, 3/4, 7/8 of the FIFO; other codes are reserved.
    const fn trigger(code: u32) -> usize {
        match code & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            2 => FIFO_DEPTH / 2,
            3 => FIFO_DEPTH * 3 / 4,
            _ => FIFO_DEPTH * 7 / 8,
        }
    }

    /// At which length of the transmit FIFO and below its interrupt is there.
    const fn transmit_trigger(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { Self::trigger(self.ifls) } else { 0 }
    }

    const fn flags(&self) -> u32 {
        let mut flags = FR_CTS | FR_DSR | FR_DCD;
        if self.received.is_empty() {
            flags |= FR_RXFE;
        }
        if self.receive_space() == 0 {
            flags |= FR_RXFF;
        }
        if self.to_send.is_empty() {
            flags |= FR_TXFE;
        } else {
            flags |= FR_BUSY;
        }
        if self.to_send.len() >= self.depth() {
            flags |= FR_TXFF;
        }
        flags
    }

    fn transmit(&mut self, byte: u8) -> Effect {
        if self.cr & CR_LBE != 0 {
            self.loop_back(byte);
            self.ris |= INTERRUPT_TX;
            return Effect::None;
        }
        let effect = if self.blocked || !self.to_send.is_empty() {
            // A byte behind others keeps its place. One written although TXFF is set is lost, as in the hardware.
            if self.to_send.len() < self.depth() {
                self.to_send.push(byte);
            }
            Effect::None
        } else {
            Effect::Transmit(byte)
        };
        self.update_transmit_interrupt();
        effect
    }

    fn loop_back(&mut self, byte: u8) {
        if self.receive_space() == 0 {
            self.overrun = true;
            self.ris |= INTERRUPT_OVERRUN;
        } else {
            self.put_received(byte);
        }
    }

    fn put_received(&mut self, byte: u8) {
        self.received.push(byte);
        self.update_receive_interrupts();
    }

    fn take_received(&mut self) -> u32 {
        let byte = self.received.pop().unwrap_or(0);
        self.update_receive_interrupts();
        u32::from(byte) | if self.overrun { DR_OVERRUN } else { 0 }
    }

    const fn update_receive_interrupts(&mut self) {
        if self.received.is_empty() {
            self.ris &= !(INTERRUPT_RX | INTERRUPT_RECEIVE_TIMEOUT);
        } else {
            self.ris |= INTERRUPT_RX | INTERRUPT_RECEIVE_TIMEOUT;
        }
    }

    const fn update_transmit_interrupt(&mut self) {
        if self.to_send.len() <= self.transmit_trigger() {
            self.ris |= INTERRUPT_TX;
        } else {
            self.ris &= !INTERRUPT_TX;
        }
    }
}

#[cfg(test)]
mod tests;
