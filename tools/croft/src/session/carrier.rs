//! The two carriers of the link: the host's serial port, and, where there is one, a port that carries nothing else.
//!
//! The link is on one of them at a time, and the hypervisor says when it changes: by the last message on the serial port when it
//! leaves that, or by the first one there when the other port is closed. Data around a change is recorded in the order in which
//! it was sent: the port's reader waits until the serial port's has read the message of the change, and the serial port's reader
//! waits for the port's end.

use super::Shared;
use abi::crc32c;
use abi::link::{self, Carrier, Decoder, Event};
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

/// How long the end of a port that is shut may take: what is under way in it comes at once.
const LAST: Duration = Duration::from_secs(10);

/// How the port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Port {
    /// There is none, or not yet.
    #[default]
    Absent,
    /// It is there.
    Open,
    /// It has ended.
    Ended,
}

/// Which way the link goes.
#[derive(Debug, Default)]
pub(super) struct Way {
    carrier: Carrier,
    port: Port,
    /// Where what goes to the port is given.
    output: Option<Sender<Vec<u8>>>,
    /// Nothing that comes by the port is taken.
    is_held: bool,
    /// So many bytes more are, and then nothing.
    until_hold: Option<u64>,
    /// Bytes that have come by the port.
    came: u64,
    /// The hypervisor has said so, and its reader has not heard it yet.
    pub(super) announced: Option<Carrier>,
}

impl Way {
    /// What carries the link.
    pub(super) fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Where to give what is to go by the port; `None` if it goes by the serial port.
    pub(super) fn output(&self) -> Option<Sender<Vec<u8>>> {
        self.output.clone().filter(|_| self.carrier == Carrier::Port)
    }

    /// Whether what comes by the port is left there.
    pub(super) fn hold(&mut self, hold: bool) {
        self.is_held = hold;
        self.until_hold = None;
    }

    /// What comes by the port is left there when so many bytes more have come.
    pub(super) fn hold_after(&mut self, bytes: u64) {
        self.until_hold = Some(bytes);
    }

    /// Whether what comes by the port is left there by now.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// How many bytes have come by the port.
    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// So many bytes have come by the port.
    fn come(&mut self, count: u64) {
        self.came += count;
        if let Some(left) = &mut self.until_hold {
            *left = left.saturating_sub(count);
            self.is_held |= *left == 0;
        }
    }

    /// There is no port any more.
    fn end(&mut self) {
        self.port = Port::Ended;
        self.output = None;
    }
}

/// Takes the port up: `input` and `output` are this side of it.
pub(super) fn attach(shared: &Arc<Shared>, input: impl Read + Send + 'static, output: impl Write + Send + 'static) {
    let mut state = shared.lock();
    state.way.output = Some(start_writer(output));
    state.way.port = Port::Open;
    drop(state);
    let theirs = Arc::clone(shared);
    thread::spawn(move || read(input, &theirs, Carrier::Port));
}

/// The port cannot be taken up: the link stays on the serial port, or comes back to it.
pub(super) fn give_up(shared: &Shared) {
    let mut state = shared.lock();
    state.way.end();
    state.way.carrier = Carrier::Uart;
    drop(state);
    shared.news.notify_all();
}

/// Takes the stream that comes by `by` apart until it ends.
pub(super) fn read(mut input: impl Read, shared: &Shared, by: Carrier) {
    let mut decoder = Decoder::with_buffer(vec![0; link::decoder_buffer(link::MAX_BULK)], crc32c::compute);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let mut state = shared.lock();
        if by == Carrier::Port {
            state.way.come(count as u64);
            if state.way.is_held() {
                shared.news.notify_all();
            }
            let waits = |state: &mut super::State| {
                let waits = state.way.carrier == Carrier::Uart || state.way.is_held;
                waits && state.way.port == Port::Open && !state.ended
            };
            state = shared.news.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            if state.way.port == Port::Ended {
                // The link has gone on without waiting for this any longer.
                state.damaged += 1;
                break;
            }
        }
        let mut bytes = buffer.get(..count).unwrap_or_default();
        while let Some(event) = decoder.take(&mut bytes) {
            match event {
                // The port carries frames alone.
                Event::Text(_) if by == Carrier::Port => state.damaged += 1,
                event => state.take(event),
            }
            let Some(next) = state.way.announced.take().filter(|_| by == Carrier::Uart) else { continue };
            if next == Carrier::Uart && state.way.carrier == Carrier::Port {
                state = last_of_port(shared, state);
                state.way.end();
                // What was under way in the port is gone.
                state.requests.lose();
            }
            // It may be said before this side has taken the port up.
            state.way.carrier = if state.way.port == Port::Ended { Carrier::Uart } else { next };
            shared.news.notify_all();
        }
        if by == Carrier::Uart {
            state.flush_text();
        }
        drop(state);
        shared.news.notify_all();
    }
    let mut state = shared.lock();
    match by {
        // A frame that was cut off at the turn comes again, whole, by the serial port.
        Carrier::Port => state.way.end(),
        Carrier::Uart => {
            if let Some(event) = decoder.finish() {
                state.take(event);
            }
            // The host is gone, and by that the port's end is on its way.
            state.way.carrier = Carrier::Port;
            shared.news.notify_all();
            state = last_of_port(shared, state);
            state.end();
        }
    }
    drop(state);
    shared.news.notify_all();
}

/// Waits until the port's reader has filed all that came by it.
fn last_of_port<'a>(
    shared: &'a Shared,
    state: super::MutexGuard<'a, super::State>,
) -> super::MutexGuard<'a, super::State> {
    let waits = |state: &mut super::State| state.way.port == Port::Open;
    shared.news.wait_timeout_while(state, LAST, waits).unwrap_or_else(PoisonError::into_inner).0
}

/// A thread that writes what it is sent, for as long as somebody reads.
pub(super) fn start_writer(mut output: impl Write + Send + 'static) -> Sender<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in receiver {
            if output.write_all(&bytes).and_then(|()| output.flush()).is_err() {
                break;
            }
        }
    });
    sender
}
