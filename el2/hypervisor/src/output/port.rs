//! The port by which the link goes where there is one: that of the name [`NAME`] of a virtio console of the host's.
//!
//! Bytes go through a fixed number of buffers. Who sends fills them itself, on its own time, and sleeps while there are none: who
//! takes nothing at the other end costs nobody more than the wait. What comes stays in its buffers until the port's thread
//! has dealt with what came before. The thread also hears what the device says of itself. A port whose other end is shut, and a
//! device that breaks its rules, end every wait; the link goes on over the UART then.

use core::sync::atomic::{AtomicBool, Ordering};

use drivers::virtio::console::{self, Console, MOST_AT_ONCE};
use drivers::virtio::{Broken, probe};
use frames::Owner;
use hw::sync::{PreemptGuard, PreemptLock};
use hw::virtio::{Device, Interrupt};
use platform::{Platform, VirtioWindow};
use spin::Once;
use units::{PAGE_SIZE, Pa, Range};

use crate::host::memory;
use crate::output;
use crate::sched::{self, Thread};

/// What the port is called.
pub(crate) const NAME: &str = "undercroft.link";

/// Where it may be.
static PLATFORM: Once<&Platform<'_>> = Once::new();
static PORT: Once<Port> = Once::new();
/// Somebody is at the other end, as was last heard.
static OPEN: AtomicBool = AtomicBool::new(false);

struct Port {
    registers: Pa,
    state: PreemptLock<State>,
    interrupt: Interrupt,
    thread: Once<&'static Thread>,
}

struct State {
    console: Console<Device>,
    /// Who waits for room.
    waiter: Option<&'static Thread>,
}

/// The port may be behind one of this platform's windows.
pub(crate) fn look_behind(platform: &'static Platform<'static>) {
    PLATFORM.call_once(|| platform);
}

/// Where it may be.
pub(crate) fn windows() -> impl Iterator<Item = VirtioWindow> {
    PLATFORM.get().into_iter().flat_map(|platform| platform.virtio())
}

/// Looks what is behind these registers of a virtio device, and uses it if it is a console with ports. Says whether it is.
pub(crate) fn adopt(registers: Range<Pa>) -> bool {
    let at = registers.start.0;
    if PORT.get().is_some() {
        return false;
    }
    let (mut device, interrupt) = match Device::open(registers) {
        Ok(opened) => opened,
        Err(error) => {
            log::warn!("the virtio device at {at:#x} is not used: {}", error.sentence());
            return false;
        }
    };
    match probe(&device) {
        Ok(Some(console::DEVICE_ID)) => {}
        Ok(_) => return false,
        Err(error) => {
            log::warn!("the virtio device at {at:#x} is not used: {}", error.sentence());
            return false;
        }
    }
    match memory::allocate_frames(Owner::Hypervisor, (console::MEMORY / PAGE_SIZE) as usize) {
        Ok(frames) => device.give(frames.range()),
        Err(error) => {
            log::warn!("the virtio console at {at:#x} is not used: {error}");
            return false;
        }
    }
    match Console::start(device, NAME) {
        Ok(console) => {
            let state = PreemptLock::new(State { console, waiter: None });
            PORT.call_once(|| Port { registers: registers.start, state, interrupt, thread: Once::new() });
            true
        }
        Err(error) => {
            log::warn!("the virtio console at {at:#x} is not used: {}", error.sentence());
            false
        }
    }
}

/// Where the port's device is, if there is one.
pub(crate) fn registers() -> Option<Pa> {
    PORT.get().map(|port| port.registers)
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
    note(&state, heard);
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
    note(&state, received).unwrap_or(0)
}

/// Whether all that was sent has gone, or nobody takes it any more.
#[must_use]
pub(crate) fn is_drained() -> bool {
    let Some(port) = PORT.get() else { return true };
    let mut state = port.state.lock();
    let drained = state.console.is_drained();
    note(&state, drained).unwrap_or(true)
}

/// Takes note of how the port is after something was done, and tells the link's reader if that is new.
fn note<T>(state: &State, done: Result<T, Broken>) -> Option<T> {
    let open = state.console.is_open();
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

/// Puts what is to be sent into buffers.
pub(crate) struct Writer {
    /// The buffer that is being filled, and how far.
    filling: Option<(PreemptGuard<'static, State>, u16, u32)>,
    is_shut: bool,
}

impl Writer {
    /// Nobody else writes meanwhile.
    pub(crate) fn new() -> Self {
        Self { filling: None, is_shut: false }
    }

    /// Writes `bytes`; sleeps until there is room. A buffer that is full is sent at once.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_shut {
            let Some((mut state, buffer, filled)) = self.filling.take().or_else(room) else {
                self.is_shut = true;
                return;
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
    }

    /// Sends the rest. Says whether all was sent.
    pub(crate) fn finish(self) -> bool {
        if let Some((mut state, buffer, filled)) = self.filling {
            state.console.send(buffer, filled);
        }
        !self.is_shut
    }
}

/// A buffer to be filled. Waits for one; `None` when nobody is at the other end.
fn room() -> Option<(PreemptGuard<'static, State>, u16, u32)> {
    let port = PORT.get()?;
    loop {
        let mut state = port.state.lock();
        if !state.console.is_open() {
            return None;
        }
        let mut found = state.console.room();
        if found == Ok(None) {
            // The device may have given one back before it saw that it is waited for.
            state.console.wait_for_room(true);
            found = state.console.room();
        }
        match note(&state, found)? {
            Some(buffer) => {
                state.console.wait_for_room(false);
                return Some((state, buffer, 0));
            }
            None => {
                state.waiter = Some(sched::current());
                drop(state);
                sched::block(None);
                // The thread may have been woken for other work of its own.
                output::look_again();
            }
        }
    }
}
