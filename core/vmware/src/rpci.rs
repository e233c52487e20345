//! What a guest can ask on an RPCI channel. A request is text, a command and its arguments; some clients send the final
//! NUL along. A reply begins with "1 " or "0 ".

use alloc::vec::Vec;

use crate::limits::copy;
use crate::service::{Host, State};
use crate::tclo::Text;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Sets a value.
    InfoSet {
        /// The key, with its prefix.
        key: &'a [u8],
        /// Everything behind the space.
        value: &'a [u8],
    },
    /// Reads a value.
    InfoGet {
        /// The key, with its prefix.
        key: &'a [u8],
    },
    /// A line for the host's log.
    Log(&'a [u8]),
    /// A fact about the guest: its kind and its bytes.
    GuestInfo(u32, &'a [u8]),
    /// An option that the guest's administrator changes: name and new value.
    SetOption(&'a [u8], &'a [u8]),
    /// A capability of the tools.
    Capability(&'a [u8]),
    /// Something that needs no more than to be accepted.
    Accepted,
    /// Anything else.
    Unknown,
}

/// `text` up to the first space, and what is behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b' ') {
        Some(at) => (text.get(..at).unwrap_or(&[]), text.get(at + 1..).unwrap_or(&[])),
        None => (text, &[]),
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// What a message asks.
#[must_use]
pub fn parse(message: &[u8]) -> Request<'_> {
    let message = message.strip_suffix(&[0]).unwrap_or(message);
    let (command, rest) = word(message);
    match command {
        b"info-set" => {
            let (key, value) = word(rest);
            Request::InfoSet { key, value }
        }
        b"info-get" => Request::InfoGet { key: word(rest).0 },
        b"log" => Request::Log(rest),
        b"SetGuestInfo" => {
            // Two spaces, then the kind.
            let (kind, value) = word(rest.strip_prefix(b" ").unwrap_or(rest));
            number(kind).map_or(Request::Unknown, |kind| Request::GuestInfo(kind, value))
        }
        b"vmx.set_option" => {
            let (name, values) = word(rest);
            Request::SetOption(name, word(values).1)
        }
        b"SetGuestDiskInfo"
        | b"tools.set.versiontype"
        | b"tools.set.version"
        | b"tools.os.statechange.status"
        | b"update.tools.health" => Request::Accepted,
        _ => match command.strip_prefix(b"tools.capability.") {
            Some(name) => Request::Capability(name),
            None if command.starts_with(b"vmx.capability.") => Request::Accepted,
            None => Request::Unknown,
        },
    }
}

/// The reply to what was done.
fn done(text: &[u8]) -> Vec<u8> {
    reply(b"1 ", text)
}

/// The reply to what was not, which says why.
fn refused(why: &[u8]) -> Vec<u8> {
    reply(b"0 ", why)
}

fn reply(head: &[u8], text: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    if reply.try_reserve_exact(head.len() + text.len()).is_err() {
        return no_room();
    }
    reply.extend_from_slice(head);
    reply.extend_from_slice(text);
    reply
}

/// The reply for which there is no room.
pub(crate) const NO_ROOM: &[u8] = b"0 Out of memory";

/// [`NO_ROOM`]; nothing at all if there is no memory even for that.
pub(crate) fn no_room() -> Vec<u8> {
    copy(NO_ROOM).unwrap_or_default()
}

/// Does what a message asks, and says what came of it.
pub fn execute(state: &mut State, host: &mut impl Host, message: &[u8]) -> Vec<u8> {
    match parse(message) {
        Request::InfoSet { key, value } => match state.store.set(key, value, &state.limits) {
            Ok(()) => {
                note(state, key, value);
                done(b"")
            }
            Err(why) => refused(why.text()),
        },
        Request::InfoGet { key } => match state.store.get(key) {
            Some(value) => done(value),
            None => refused(b"No value found"),
        },
        Request::Log(text) => {
            if log(state, host, text) {
                done(b"")
            } else {
                refused(b"")
            }
        }
        Request::GuestInfo(kind, value) => {
            match kind {
                1 => state.report.host_name = Text::new(value),
                5 => state.report.system = Text::new(value),
                // Version 1, a short name of 129 bytes, a full one of 513.
                11 => state.report.system = Text::new(value.get(4 + 129..).unwrap_or(&[])),
                7 => state.report.uptime = number(value).map_or(0, |hundredths| u64::from(hundredths) / 100),
                _ => {}
            }
            done(b"")
        }
        Request::SetOption(name, value) => {
            if name == b"synctime" {
                state.time_sync = value == b"1";
                let request: &[u8] = if state.time_sync { b"Set_Option synctime 1" } else { b"Set_Option synctime 0" };
                state.requests.push(request);
            }
            done(b"")
        }
        Request::Capability(name) => {
            if name == b"statechange" {
                state.report.soft_power = true;
            }
            done(b"")
        }
        Request::Accepted => done(b""),
        Request::Unknown => refused(b"Unknown command"),
    }
}

/// Some values say something about the tools.
fn note(state: &mut State, key: &[u8], value: &[u8]) {
    match key {
        b"guestinfo.ip" => state.report.address = Text::new(value),
        b"guestinfo.vmtools.versionString" => state.report.version = Text::new(value),
        _ => {}
    }
}

/// Writes a line into the host's log, unless the guest has written too much of late.
pub(crate) fn log(state: &mut State, host: &mut impl Host, text: &[u8]) -> bool {
    let now = host.milliseconds();
    state.log_rate.take(text.len() as u64 + 16, now) && host.log(text)
}
