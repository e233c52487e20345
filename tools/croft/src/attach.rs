//! `croft console`: a VM's console in this terminal, beside the one that `croft run` has.
//!
//! In a terminal every key except the command key, Ctrl-], goes to the guest, as in `croft run`. Otherwise standard
//! input is sent unchanged, and its end ends the command.
//!
//! In a terminal a signal does not end this process at once: the terminal is left as it was first. So nothing here waits for
//! somebody who reads the terminal ([`Outlet`]). Elsewhere signals do what they usually do, and a slow reader is waited for.

use crate::control::{ControlError, Order, Report, perform_while};
use crate::output::complain;
use crate::terminal::{Look, Outlet, Patience, Raw, Stripper};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// Ctrl-].
const COMMAND_KEY: u8 = 0x1d;
const HELP: &str = "Ctrl-] q leaves the console, Ctrl-] Ctrl-] sends Ctrl-]";

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// The person had enough, or the input ended, or the host did, with all VMs off.
    Well,
    /// By a signal.
    Signal(i32),
    /// What the guest prints cannot be shown.
    Unwritable(std::io::Error),
    /// Well, but not all that the guest printed was read; that was said.
    Unread,
}

/// Why this end closed the connection: 0 if it did not, a signal's number, or this. The number is all that goes from one thread to the
/// other, so it is read and written relaxed: the close that follows it ends the wait of the one that reads it.
const LEFT: i32 = -1;

/// Attaches to the console that `order` asks for until somebody has enough.
///
/// # Errors
/// The host refused, or is not there.
pub fn attach(stream: &UnixStream, order: &Order) -> Result<End, ControlError> {
    let again = || stream.try_clone().map_err(|_| ControlError::NoAnswer);
    let is_terminal = Raw::possible();
    let mut raw = None;
    let mut stripper = (is_terminal && Look::from_environment() == Look::Plain).then(Stripper::default);
    let why = Arc::new(AtomicI32::new(0));
    let unwritten = Arc::new(OnceLock::new());
    let mut outlet = if is_terminal {
        watch_signals(stream, &why);
        Some(open_outlet(again()?, Arc::clone(&unwritten)))
    } else {
        None
    };
    let mut typing = Some((again()?, Arc::clone(&why)));
    let done = perform_while(again()?, order, |report| {
        // The first report says that the host lets this client in.
        if let Some((stream, why)) = typing.take() {
            if is_terminal {
                // Before, Ctrl-C is what it usually is: a host may take for ever to answer.
                raw = Raw::enter().ok();
                complain(&format!("croft: {HELP}\r"));
            }
            thread::spawn(move || type_in(&stream, is_terminal, &why));
        }
        let Report::Output(bytes) = report else { return ControlFlow::Continue(()) };
        let bytes = stripper.as_mut().map_or(bytes.clone(), |stripper| stripper.strip(&bytes));
        let written = match &mut outlet {
            Some(outlet) => outlet.write_all(&bytes).and_then(|()| outlet.flush()),
            None => stdout().write_all(&bytes).and_then(|()| stdout().flush()),
        };
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                let _ = unwritten.set(error);
                ControlFlow::Break(())
            }
        }
    });
    // After an end of its own it waits for whoever reads the terminal, until they have had enough or a signal comes.
    let unread = outlet.and_then(|outlet| {
        let waited = outlet.backlog().wait(|| {
            thread::sleep(Duration::from_millis(10));
            let is_left = why.load(Ordering::Relaxed) != 0;
            Ok::<_, Infallible>(if is_left { Patience::WhileTaken } else { Patience::Endless })
        });
        let Ok(unread) = waited;
        unread
    });
    drop(raw);
    let has_begun = typing.is_none();
    let why = why.load(Ordering::Relaxed);
    if is_terminal && has_begun {
        let told =
            if why == 0 && unwritten.get().is_none() && done.is_ok() { "\ncroft: the host has ended" } else { "" };
        complain(&told);
    }
    if let Some(unread) = &unread {
        complain(&format!("croft: {unread}"));
    }
    // The thread that writes may have it too, for as long as it still waits for the reader.
    let unwritten = unwritten.get().map(|error| std::io::Error::new(error.kind(), error.to_string()));
    match (unwritten, why, done) {
        (Some(error), ..) => Ok(End::Unwritable(error)),
        (None, signal @ 1.., _) => Ok(End::Signal(signal)),
        (None, LEFT, _) | (None, _, Ok(())) => Ok(if unread.is_some() { End::Unread } else { End::Well }),
        (None, _, Err(error)) => Err(if has_begun { error.while_followed() } else { error }),
    }
}

/// Standard output, which ends the conversation with the first error.
fn open_outlet(stream: UnixStream, unwritten: Arc<OnceLock<std::io::Error>>) -> Outlet {
    Outlet::new(stdout(), move |error| {
        let _ = unwritten.set(error);
        let _ = stream.shutdown(Shutdown::Both);
    })
}

/// Leaves the terminal as it was when a signal ends this process.
fn watch_signals(stream: &UnixStream, why: &Arc<AtomicI32>) {
    let (Ok(mut signals), Ok(stream)) = (Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]), stream.try_clone()) else {
        return;
    };
    let why = Arc::clone(why);
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            why.store(signal, Ordering::Relaxed);
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Sends what comes on standard input until that ends, or until it says so.
fn type_in(mut stream: &UnixStream, is_terminal: bool, why: &AtomicI32) {
    let mut keys = Keys::default();
    let mut buffer = [0; 1024];
    loop {
        let read = match stdin().read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(count) => buffer.get(..count).unwrap_or_default(),
        };
        let Typed { bytes, wants_help, leaves } = if is_terminal { keys.take(read) } else { Typed::from(read) };
        if wants_help {
            complain(&format!("\r\ncroft: {HELP}\r"));
        }
        let Ok(mut line) = serde_json::to_vec(&bytes) else { break };
        line.push(b'\n');
        if leaves || stream.write_all(&line).is_err() {
            break;
        }
    }
    if is_terminal {
        let _ = why.compare_exchange(0, LEFT, Ordering::Relaxed, Ordering::Relaxed);
    }
    // Without a terminal, what the guest has printed so far is still to come.
    let _ = stream.shutdown(if is_terminal { Shutdown::Both } else { Shutdown::Write });
}

/// What typed keys mean.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    /// For the guest.
    bytes: Vec<u8>,
    wants_help: bool,
    leaves: bool,
}

impl From<&[u8]> for Typed {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..Self::default() }
    }
}

/// Tells the command key's sequences from what is for the guest, also when they come in pieces.
#[derive(Default)]
struct Keys {
    is_command: bool,
}

impl Keys {
    fn take(&mut self, keys: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &key in keys {
            match (std::mem::take(&mut self.is_command), key) {
                (false, COMMAND_KEY) => self.is_command = true,
                (false, key) | (true, key @ COMMAND_KEY) => typed.bytes.push(key),
                (true, b'q') => {
                    typed.leaves = true;
                    break;
                }
                (true, _) => typed.wants_help = true,
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::{Keys, Typed};

    #[test]
    fn the_command_key_leads_however_it_is_cut() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\r\x03\xc3"), Typed::from(&b"ls\r\x03\xc3"[..]));
        assert_eq!(keys.take(b"q\x1d"), Typed::from(&b"q"[..]));
        assert_eq!(keys.take(b"\x1dx"), Typed::from(&b"\x1dx"[..]), "twice: itself");
        assert_eq!(keys.take(b"\x1dhy"), Typed { wants_help: true, ..Typed::from(&b"y"[..]) });
        assert_eq!(keys.take(b"a\x1d"), Typed::from(&b"a"[..]));
        assert_eq!(keys.take(b"qz"), Typed { leaves: true, ..Typed::default() }, "what comes behind is lost");
    }
}
