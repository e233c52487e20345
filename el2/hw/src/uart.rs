//! The host's PL011 (DDI 0183), as much of it as a hypervisor's console needs. The SBSA generic UART is the same
//! without the baud rate registers, which are left to the firmware here.
//!
//! A transmitter may never be ready: nobody powers it, its clock stands, the other side of the cable does not let it send.
//! Nobody may hang for that, least of all a report of what went wrong. So a byte is waited for once, for longer than the
//! slowest line takes to send a full FIFO; from then on bytes are dropped, and counted, until the transmitter takes one.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use units::{Patience, Ticks};

use crate::{mmio, sync, sysreg};

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const INTERRUPT_FIFO_LEVEL: u64 = 0x34;
const INTERRUPT_MASK: u64 = 0x38;
const INTERRUPT_CLEAR: u64 = 0x44;

const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_FULL: u32 = 1 << 5;
/// Receive and receive timeout.
const RECEIVE_INTERRUPTS: u32 = 1 << 4 | 1 << 6;

/// For how long a byte waits for room, in milliseconds: 32 bytes, which is the largest FIFO, at 1,200 bits a second.
const PATIENCE_MILLISECONDS: u64 = 300;
/// How often is looked meanwhile, at most, should the counter stand still.
const LOOKS: u32 = 50_000_000;

static BASE: AtomicU64 = AtomicU64::new(0);
/// That time in ticks of the counter.
static LONGEST_WAIT: AtomicU64 = AtomicU64::new(0);
/// The transmitter did not take a byte in time, and has taken none since.
static STUCK: AtomicBool = AtomicBool::new(false);
/// For the self-test: the transmitter is to be taken for full.
static PRETENDS_FULL: AtomicBool = AtomicBool::new(false);
/// Bytes that were dropped, ever.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Uses the PL011 whose registers are at `base`, which is mapped (or the MMU is off): 8 bits, FIFOs, both directions.
pub fn init(base: units::Pa) {
    // Now, since CNTFRQ_EL0 may be what a guest is told, once guests run.
    LONGEST_WAIT.store(sysreg::cntfrq_el0() * PATIENCE_MILLISECONDS / 1000, Ordering::Relaxed);
    // Pairs with no acquire: only the boot CPU runs yet, and others are started behind it.
    BASE.store(base.0, Ordering::Release);
    mmio::write32(base.0 + LINE_CONTROL, 0b11 << 5 | 1 << 4);
    mmio::write32(base.0 + CONTROL, 1 | 1 << 8 | 1 << 9);
}

/// Sends one byte if there is room; says whether it did. True, too, when there is no UART at all.
#[must_use]
pub fn try_send(byte: u8) -> bool {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 {
        return true;
    }
    if mmio::read32(base + FLAGS) & TRANSMIT_FULL != 0 || PRETENDS_FULL.load(Ordering::Relaxed) {
        return false;
    }
    mmio::write32(base + DATA, u32::from(byte));
    true
}

/// Sends one byte. Waits for room, but not for ever: a byte for which there is none in time is dropped.
pub fn send(byte: u8) {
    let mut patience = if STUCK.load(Ordering::Relaxed) {
        Patience::exhausted()
    } else {
        Patience::new(LONGEST_WAIT.load(Ordering::Relaxed), LOOKS)
    };
    while !try_send(byte) {
        if !patience.lasts(Ticks(sysreg::cntpct_el0())) {
            STUCK.store(true, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        sync::relax();
    }
    if STUCK.load(Ordering::Relaxed) {
        STUCK.store(false, Ordering::Relaxed);
    }
}

/// How many bytes were dropped, ever, because the transmitter did not take them.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Whether the last byte was dropped.
#[must_use]
pub fn is_stuck() -> bool {
    STUCK.load(Ordering::Relaxed)
}

/// For the self-test: lets the transmitter look full, or itself again.
pub fn pretend_full(full: bool) {
    PRETENDS_FULL.store(full, Ordering::Relaxed);
}

/// The next byte that arrived, if any.
#[must_use]
pub fn receive() -> Option<u8> {
    let base = BASE.load(Ordering::Relaxed);
    if base == 0 || mmio::read32(base + FLAGS) & RECEIVE_EMPTY != 0 {
        return None;
    }
    Some(mmio::read32(base + DATA) as u8)
}

/// Raises an interrupt when bytes arrive.
pub fn enable_receive_interrupt() {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        mmio::write32(base + INTERRUPT_FIFO_LEVEL, 0);
        mmio::write32(base + INTERRUPT_MASK, RECEIVE_INTERRUPTS);
    }
}

/// Takes the receive interrupt back; the bytes stay.
pub fn acknowledge_receive_interrupt() {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        mmio::write32(base + INTERRUPT_CLEAR, RECEIVE_INTERRUPTS);
    }
}

/// Writes straight to the UART, for reports before there are threads and after everything failed.
#[derive(Debug)]
pub struct Emergency;

impl core::fmt::Write for Emergency {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}
