//! The host's console UART. `drivers::Uart` knows its registers; here are the one handle, and how long to wait.
//!
//! A transmitter may never be ready: it has no power or no clock, or the other end does not let it send. Nothing may
//! hang because of that, least of all a crash report. So one byte waits for longer than the slowest line takes to send
//! a full FIFO; from then on bytes are dropped, and counted, until the transmitter takes one.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use drivers::{ConsoleKind, Uart};
use units::{Pa, Patience, Range, Ticks};

use crate::mmio::{Region, RegionError};
use crate::{boot, sync, sysreg};

/// For how long a byte waits for room, in milliseconds: 32 bytes, which is the largest FIFO, at 1,200 bits a second.
const PATIENCE_MILLISECONDS: u64 = 300;
/// How often is looked meanwhile, at most, should the counter stand still.
const LOOKS: u32 = 50_000_000;

struct Handle(UnsafeCell<Option<Uart<Region>>>);
// SAFETY: `init` writes it before the MMU is on, when one CPU runs and takes no interrupts, and only while `CURRENT` is null;
// everybody else reads it, and only through that.
unsafe impl Sync for Handle {}

static UART: Handle = Handle(UnsafeCell::new(None));
/// The one that is used; null while there is none.
static CURRENT: AtomicPtr<Uart<Region>> = AtomicPtr::new(ptr::null_mut());
/// That time in ticks of the counter.
static LONGEST_WAIT: AtomicU64 = AtomicU64::new(0);
/// The transmitter did not take a byte in time, and has taken none since.
static STUCK: AtomicBool = AtomicBool::new(false);
/// Bytes that were dropped, ever.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Uses the UART of this kind whose registers are at `range`. For the boot CPU, before the MMU is on, once: later it does
/// nothing.
///
/// # Errors
/// When there can be none.
pub fn init(kind: ConsoleKind, range: Range<Pa>) -> Result<(), RegionError> {
    if boot::is_virtual() || !CURRENT.load(Ordering::Relaxed).is_null() {
        return Ok(());
    }
    let uart = Uart::new(kind, Region::open(range)?)?;
    uart.init();
    // Now, since CNTFRQ_EL0 may be what a guest is told, once guests run.
    LONGEST_WAIT.store(sysreg::cntfrq_el0() * PATIENCE_MILLISECONDS / 1000, Ordering::Relaxed);
    // SAFETY: nobody else runs yet, and nobody has read it (see `Handle`).
    let uart: &Uart<Region> = unsafe { (*UART.0.get()).insert(uart) };
    // Pairs with the load in `uart`, of this CPU and of those that are started later. A store: before the MMU is on a CPU need not
    // be able to do more with an atomic.
    CURRENT.store(ptr::from_ref(uart).cast_mut(), Ordering::Release);
    Ok(())
}

fn uart() -> Option<&'static Uart<Region>> {
    // Pairs with the store in `init`, and the swap in `exchange`.
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: null, or what lives for ever and is only read: what `init` has written, and never will again, or what `exchange` was given.
    unsafe { current.as_ref() }
}

/// From now on `uart` is the one that is used. Returns the one that was. Only the self-test does this.
pub fn exchange(uart: &'static Uart<Region>) -> Option<&'static Uart<Region>> {
    // Pairs with the loads in `uart`, and the store in `init`.
    let before = CURRENT.swap(ptr::from_ref(uart).cast_mut(), Ordering::AcqRel);
    // SAFETY: as in `uart`.
    unsafe { before.as_ref() }
}

/// Sends one byte if there is room; says whether it did. True, too, when there is no UART at all.
#[must_use]
pub fn try_send(byte: u8) -> bool {
    let Some(uart) = uart() else { return true };
    uart.try_send(byte)
}

/// Sends one byte. Waits for room, but not for ever: a byte for which there is none in time is dropped.
#[inline(never)]
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

/// The next byte that arrived, if any. Whoever finds none is told of the next by an interrupt, if those are enabled.
#[must_use]
pub fn receive() -> Option<u8> {
    uart()?.receive()
}

/// Raises an interrupt when bytes arrive.
pub fn enable_receive_interrupt() {
    if let Some(uart) = uart() {
        uart.enable_receive_interrupt();
    }
}

/// Takes the receive interrupt back; the bytes stay. Somebody must be made to [`receive`] them all afterwards.
pub fn quiet_receive_interrupt() {
    if let Some(uart) = uart() {
        uart.quiet_receive_interrupt();
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
