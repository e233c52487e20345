//! The link's port, where there is one: the port called [`NAME`] of a virtio console of the host, behind registers in memory or on
//! PCI. The first that can be used is, in that order.
//!
//! Bytes go through a fixed number of buffers. A sender fills them itself, on its own time, and sleeps while there are none, but no
//! longer than it would wait for the UART: what cannot be sent in time is lost, and counted, so that a tool that takes nothing does
//! not stop the consoles' thread. That thread starts nothing while there is no buffer ([`is_full`]).
//!
//! Input stays in its buffers until the port's thread has handled what came before. The thread also handles the device's control
//! messages. When the port's other end is closed, or the device breaks its rules, every wait ends, and the link continues over the
//! UART.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use drivers::virtio::Broken;
use drivers::virtio::console::{self, Console, MOST_AT_ONCE};
use frames::Owner;
use hw::sync::{PreemptGuard, PreemptLock, without_irqs};
use hw::sysreg;
use hw::virtio::{Device, Interrupt};
use platform::InterruptLine;
use spin::Once;
use units::{IntId, PAGE_SIZE, Ticks};

use crate::host::virtio::{self, Address, Found, Use};
use crate::host::{self, memory};
use crate::output;
use crate::sched::{self, Thread};

/// What the port is called.
pub(crate) const NAME: &str = "undercroft.link";
/// How long a frame may wait for room in microseconds, as a byte for the UART.
const PATIENCE_MICROSECONDS: u64 = 300_000;

static PORT: Once<Port> = Once::new();
/// Somebody is at the other end, as was last heard.
static OPEN: AtomicBool = AtomicBool::new(false);
/// Bytes that were not sent, ever, because there was no room in time.
static LOST: AtomicU64 = AtomicU64::new(0);

struct Port {
    address: Address,
    state: PreemptLock<State>,
    interrupt: Interrupt,
    line: InterruptLine,
    thread: Once<&'static Thread>,
}

struct State {
    console: Console<Device>,
    /// The thread that waits for room.
    waiter: Option<&'static Thread>,
    /// The last one waited in vain: the next does not wait.
    is_stuck: bool,
}

/// Whether there may be one.
pub(crate) fn may_be() -> bool {
    virtio::may_be()
}

/// Looks for a console with ports, and uses the first one. Returns its interrupt.
pub(crate) fn find() -> Option<InterruptLine> {
    let mut line = None;
    virtio::find(console::DEVICE_ID, "virtio console", &mut |found| {
        let its_line = found.line;
        // A line that it shares would interrupt for ever while nobody knows of it.
        if !without_irqs(|| start(found)) {
            return Use::None;
        }
        line = Some(its_line);
        Use::Enough
    });
    line
}

/// Uses a console, which gets its memory. Says whether it can be used.
fn start(found: Found) -> bool {
    let Found { address, mut device, interrupt, line } = found;
    match memory::allocate_frames(Owner::Hypervisor, (console::MEMORY / PAGE_SIZE) as usize) {
        Ok(frames) => device.give(frames.range()),
        Err(error) => {
            log::warn!("the virtio console at {address} is not used: {error}");
            return false;
        }
    }
    match Console::start(device, NAME) {
        Ok(console) => {
            let state = PreemptLock::new(State { console, waiter: None, is_stuck: false });
            PORT.call_once(|| Port { address, state, interrupt, line, thread: Once::new() });
            true
        }
        Err(error) => {
            log::warn!("the virtio console at {address} is not used: {}", error.sentence());
            false
        }
    }
}

/// Where the port's device is, if there is one.
pub(crate) fn address() -> Option<Address> {
    PORT.get().map(|port| port.address)
}

/// From now on `thread` is woken by the device.
pub(crate) fn set_thread(thread: &'static Thread) {
    if let Some(port) = PORT.get() {
        port.thread.call_once(|| thread);
    }
}

/// The device interrupts.
pub(crate) fn interrupted() {
    if let Some(port) = PORT.get() {
        port.interrupt.acknowledge();
        if let Some(thread) = port.thread.get() {
            sched::wake(thread);
        }
    }
}

/// A device with this line interrupts, or the port, if that has the same one.
pub(crate) fn interrupted_beside(line: Option<IntId>) {
    if PORT.get().is_some_and(|port| Some(port.line.interrupt) == line) {
        interrupted();
    }
}

/// Whether there is a port with somebody at its other end.
#[must_use]
pub(crate) fn is_open() -> bool {
    OPEN.load(Ordering::Relaxed)
}

/// Hears what the device says of itself, and lets whoever waits for room look.
pub(crate) fn attend() {
    let Some(port) = PORT.get() else { return };
    let mut state = port.state.lock();
    let heard = state.console.attend();
    note(&mut state, heard);
    let waiter = state.waiter.take();
    drop(state);
    if let Some(waiter) = waiter {
        sched::wake(waiter);
    }
}

/// Moves what came next to `into`, which has room for [`MOST_AT_ONCE`]; says how much.
pub(crate) fn receive(into: &mut [u8; MOST_AT_ONCE]) -> usize {
    let Some(port) = PORT.get() else { return 0 };
    let mut state = port.state.lock();
    let received = state.console.receive(into);
    note(&mut state, received).unwrap_or(0)
}

/// Whether all that was sent has gone, or nobody takes it any more.
#[must_use]
pub(crate) fn is_drained() -> bool {
    let Some(port) = PORT.get() else { return true };
    let mut state = port.state.lock();
    let drained = state.console.is_drained();
    note(&mut state, drained).unwrap_or(true)
}

/// Takes note of how the port is after something was done, and tells the link's reader if that is new.
fn note<T>(state: &mut State, done: Result<T, Broken>) -> Option<T> {
    let open = state.console.is_open();
    if !open && let Some(waiter) = state.waiter.take() {
        sched::wake(waiter);
    }
    // Whoever sees it open looks behind the lock.
    if OPEN.swap(open, Ordering::Relaxed) != open {
        output::look_again();
        output::wake_reader();
    }
    done.inspect_err(|Broken(why)| {
        log::error!("link: the virtio console broke its rules: {why}; it is not used any more")
    })
    .ok()
}

/// Whether there is no room now. The thread that asks is woken when there is.
#[must_use]
pub(crate) fn is_full() -> bool {
    let Some(port) = PORT.get() else { return false };
    let mut state = port.state.lock();
    // Whoever sends hears that nobody is there any more.
    if !state.console.is_open() || look_for_room(&mut state) != Some(None) {
        return false;
    }
    state.waiter = Some(sched::current());
    true
}

/// How many bytes were lost, ever, because there was no room in time.
#[must_use]
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Puts what is to be sent into buffers.
pub(crate) struct Writer {
    /// The buffer that is being filled, and how far.
    filling: Option<(PreemptGuard<'static, State>, u16, u32)>,
    /// Until when it waits, once it has begun to.
    until: Option<u64>,
    end: Option<End>,
}

/// Why nothing more is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// There was no room in time.
    Full,
    /// Nobody is at the other end.
    Shut,
}

impl Writer {
    /// Nobody else writes meanwhile.
    pub(crate) fn new() -> Self {
        Self { filling: None, until: None, end: None }
    }

    /// Writes `bytes`; sleeps until there is room. A buffer that is full is sent at once.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.end.is_none() {
            let place = self.filling.take().map_or_else(|| room(&mut self.until), Ok);
            let (mut state, buffer, filled) = match place {
                Ok(place) => place,
                Err(end) => {
                    self.end = Some(end);
                    break;
                }
            };
            let count = bytes.len().min((console::BUFFER - filled) as usize);
            let (now, later) = bytes.split_at(count);
            state.console.fill(buffer, filled, now);
            bytes = later;
            let filled = filled + count as u32;
            if filled == console::BUFFER {
                state.console.send(buffer, filled);
            } else {
                self.filling = Some((state, buffer, filled));
            }
        }
        if self.end == Some(End::Full) {
            LOST.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }

    /// Sends the rest. If not all of it went, the reason.
    pub(crate) fn finish(self) -> Result<(), End> {
        if let Some((mut state, buffer, filled)) = self.filling {
            state.console.send(buffer, filled);
        }
        self.end.map_or(Ok(()), Err)
    }
}

/// A buffer, if there is one; otherwise the device interrupts when there is. `None` if it is of no use any more.
fn look_for_room(state: &mut State) -> Option<Option<u16>> {
    let mut found = state.console.room();
    if found == Ok(None) {
        // The device may have given one back before it saw that it is waited for.
        state.console.wait_for_room(true);
        found = state.console.room();
    }
    let found = note(state, found)?;
    if found.is_some() {
        state.console.wait_for_room(false);
        state.is_stuck = false;
    }
    Some(found)
}

/// A buffer to be filled. Waits for one until `until`, which it sets if it has to.
fn room(until: &mut Option<u64>) -> Result<(PreemptGuard<'static, State>, u16, u32), End> {
    let port = PORT.get().ok_or(End::Shut)?;
    loop {
        let mut state = port.state.lock();
        if !state.console.is_open() {
            return Err(End::Shut);
        }
        if let Some(buffer) = look_for_room(&mut state).ok_or(End::Shut)? {
            return Ok((state, buffer, 0));
        }
        let now = sysreg::cntpct_el0();
        let patience = if state.is_stuck { 0 } else { host::ticks(PATIENCE_MICROSECONDS) };
        let until = *until.get_or_insert(now.saturating_add(patience));
        if now >= until {
            state.is_stuck = true;
            return Err(End::Full);
        }
        state.waiter = Some(sched::current());
        drop(state);
        sched::block(Some(Ticks(until)));
        // The thread may have been woken for other work of its own.
        output::look_again();
    }
}
