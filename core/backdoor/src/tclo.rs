//! What the host asks of the tools' daemon, and what is known of the tools.
//!
//! The daemon opens one TCLO channel and polls it about ten times a second. One request is outstanding at a time; the
//! next one waits for the reply. After each opening, also one that follows a lost channel, the conversation begins
//! anew with the greeting ([`GREETING`]).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// What every conversation begins with. Options before `broadcastIP`, which makes the daemon report its address at once;
/// the power scripts are the guest's own business.
pub const GREETING: [&str; 6] = [
    "reset",
    "Capabilities_Register",
    "Set_Option synctime.period 0",
    "ping",
    "Set_Option broadcastIP 1",
    "OS_PowerOn",
];
/// At most this many requests wait.
const MAX_WAITING: usize = 32;
/// A daemon that has not polled for this long is not there, in milliseconds.
const ALIVE: u64 = 10_000;

/// A text that the tools reported, cut to what one would show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    bytes: [u8; 96],
    length: u8,
}

impl Text {
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; 96], length: 0 };

    /// The printable part of `text`.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let mut new = Self::EMPTY;
        let printable = text.iter().take_while(|byte| byte.is_ascii_graphic() || **byte == b' ');
        for (to, from) in new.bytes.iter_mut().zip(printable) {
            *to = *from;
            new.length += 1;
        }
        new
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.length)).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

/// What the tools say about themselves and the guest.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The tools' version.
    pub version: Text,
    /// The guest's host name.
    pub host_name: Text,
    /// Its operating system.
    pub system: Text,
    /// Its first IPv4 address.
    pub address: Text,
    /// Seconds that it is up.
    pub uptime: u64,
    /// When the daemon polled last, in milliseconds of the host's clock.
    pub heartbeat: Option<u64>,
    /// It can shut itself down when asked.
    pub soft_power: bool,
    /// The last reply to a request began with "OK".
    pub last_ok: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            version: Text::EMPTY,
            host_name: Text::EMPTY,
            system: Text::EMPTY,
            address: Text::EMPTY,
            uptime: 0,
            heartbeat: None,
            soft_power: false,
            last_ok: false,
        }
    }
}

/// The host's side of the conversation.
#[derive(Debug, Default)]
pub struct Requests {
    channel: Option<u16>,
    waiting: VecDeque<Vec<u8>>,
    outstanding: bool,
}

impl Requests {
    /// The daemon opened `channel`: the newest one counts, since a daemon that was killed leaves its channel open.
    pub fn opened(&mut self, channel: u16, time_sync: bool) {
        self.channel = Some(channel);
        self.outstanding = false;
        self.waiting.clear();
        for request in GREETING {
            self.push(request.as_bytes());
        }
        if time_sync {
            self.push(b"Set_Option synctime 1");
        }
    }

    /// A channel is gone.
    pub fn closed(&mut self, channel: u16) {
        if self.channel == Some(channel) {
            self.channel = None;
            self.outstanding = false;
            self.waiting.clear();
        }
    }

    /// Whether a daemon answers, at `now` in milliseconds.
    #[must_use]
    pub fn is_alive(&self, report: &Report, now: u64) -> bool {
        self.channel.is_some() && report.heartbeat.is_some_and(|beat| now.saturating_sub(beat) < ALIVE)
    }

    /// Asks for something. Says whether there was room.
    pub fn push(&mut self, request: &[u8]) -> bool {
        if self.waiting.len() >= MAX_WAITING || self.waiting.try_reserve(1).is_err() {
            return false;
        }
        self.waiting.push_back(request.to_vec());
        true
    }

    /// The guest polls `channel`.
    pub fn poll(&mut self, channel: u16) -> Option<Vec<u8>> {
        if self.channel != Some(channel) || self.outstanding {
            return None;
        }
        let next = self.waiting.pop_front();
        self.outstanding = next.is_some();
        next
    }

    /// The guest sent `message`, a reply or nothing, on `channel`. Says whether it was a reply to a request.
    pub fn replied(&mut self, channel: u16, message: &[u8]) -> bool {
        if self.channel != Some(channel) || message.is_empty() {
            // A poll while a request is outstanding: the guest dropped it.
            if self.channel == Some(channel) {
                self.outstanding = false;
            }
            return false;
        }
        core::mem::take(&mut self.outstanding)
    }
}
