//! What the host asks of the tools' daemon, and what is known of the tools.
//!
//! The daemon opens one TCLO channel and polls it about ten times a second. One request is outstanding at a time; the
//! next one waits for the reply. After each opening, also one that follows a lost channel, the conversation begins
//! again with the greeting ([`GREETING`]). A daemon that is still at its last change of power state says so; it is
//! asked again a little later.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::limits::copy;

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
/// Asks the daemon to set the guest's clock to the host's once, back too if it must.
const SET_TIME: &[u8] = b"Time_Synchronize 1";
/// What a daemon replies that is still at its last change of power state, at its scripts for instance.
const BUSY: &[u8] = b"ERROR State change already in progress";
/// How long it is left alone then, in milliseconds, and how often it is asked again.
const PATIENCE: u64 = 500;
const RETRIES: u32 = 120;

/// A text that the tools reported, cut to what one would show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    bytes: [u8; Text::MOST],
    length: u8,
}

impl Text {
    /// The most bytes of one.
    pub(crate) const MOST: usize = 96;
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; Self::MOST], length: 0 };

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
    /// When the daemon polled last, in milliseconds of the VM's clock.
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

/// What became of a request to set the guest's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TimeSet {
    /// There is none, or the conversation in which it was made is over.
    #[default]
    Never,
    /// The daemon has not replied yet.
    Waiting,
    /// It has set the clock, or found it right.
    Done,
    /// It could not.
    Failed,
}

/// The host's side of the conversation.
#[derive(Debug, Default)]
pub struct Requests {
    pub(crate) channel: Option<u16>,
    pub(crate) waiting: VecDeque<Vec<u8>>,
    /// What the daemon has been asked and not replied to.
    pub(crate) outstanding: Option<Vec<u8>>,
    /// Nothing is asked before this time, in milliseconds.
    pub(crate) not_before: u64,
    /// How often the daemon was busy for the request at the front.
    pub(crate) busy: u32,
    pub(crate) time_set: TimeSet,
}

impl Requests {
    /// At most this many requests wait.
    pub(crate) const MAX_WAITING: usize = 32;
    /// And so many when the one that they wait for is to be asked again.
    pub(crate) const MOST_WAITING: usize = Self::MAX_WAITING + 1;
    /// None is longer than this.
    pub(crate) const LONGEST: usize = 32;

    /// The daemon opened `channel`: the newest one counts, since a daemon that was killed leaves its channel open.
    pub fn opened(&mut self, channel: u16, time_sync: bool) {
        *self = Self { channel: Some(channel), ..Self::default() };
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
            *self = Self::default();
        }
    }

    /// Asks for something. Says whether there was room.
    pub fn push(&mut self, request: &[u8]) -> bool {
        let is_room = self.waiting.len() < Self::MAX_WAITING && request.len() <= Self::LONGEST;
        if !is_room || self.waiting.try_reserve(1).is_err() {
            return false;
        }
        let request = copy(request);
        let taken = request.is_some();
        self.waiting.extend(request);
        taken
    }

    /// Asks for the guest's clock to be set, once for all requests at a time. Says whether there was room.
    pub fn set_time(&mut self) -> bool {
        let asked = self.time_set == TimeSet::Waiting || self.push(SET_TIME);
        if asked {
            self.time_set = TimeSet::Waiting;
        }
        asked
    }

    /// What became of the last [`Requests::set_time`].
    #[must_use]
    pub fn time_set(&self) -> TimeSet {
        self.time_set
    }

    /// The guest polls `channel`, at `now` in milliseconds.
    pub fn poll(&mut self, channel: u16, now: u64) -> Option<Vec<u8>> {
        if self.channel != Some(channel) || self.outstanding.is_some() || now < self.not_before {
            return None;
        }
        let request = copy(self.waiting.front()?)?;
        self.outstanding = self.waiting.pop_front();
        Some(request)
    }

    /// The guest sent `message`, a reply or nothing, on `channel`, at `now` in milliseconds. Says whether it was a reply to
    /// a request.
    pub fn replied(&mut self, channel: u16, message: &[u8], now: u64) -> bool {
        if self.channel != Some(channel) {
            return false;
        }
        let Some(request) = self.outstanding.take() else { return false };
        // Nothing: a poll. The guest has dropped the request.
        let replied = !message.is_empty();
        let again = message.starts_with(BUSY) && self.busy < RETRIES && self.waiting.try_reserve(1).is_ok();
        if request == SET_TIME && !again {
            self.time_set = if message.starts_with(b"OK") { TimeSet::Done } else { TimeSet::Failed };
        }
        if !replied {
            return false;
        }
        if again {
            self.busy += 1;
            self.not_before = now.saturating_add(PATIENCE);
            self.waiting.push_front(request);
        } else {
            self.busy = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{GREETING, RETRIES, Requests, TimeSet};

    const OK: &[u8] = b"OK ";
    const BUSY: &[u8] = b"ERROR State change already in progress";

    /// A conversation behind its greeting.
    fn greeted() -> Requests {
        let mut requests = Requests::default();
        requests.opened(3, false);
        for greeting in GREETING {
            assert_eq!(requests.poll(3, 0).as_deref(), Some(greeting.as_bytes()));
            assert_eq!(requests.poll(3, 0), None, "one at a time");
            assert!(requests.replied(3, OK, 0));
        }
        requests
    }

    #[test]
    fn a_busy_daemon_is_asked_again_later() {
        let mut requests = greeted();
        assert!(requests.push(b"OS_Halt") && requests.push(b"ping"));
        assert_eq!(requests.poll(3, 10).as_deref(), Some(&b"OS_Halt"[..]));
        assert!(requests.replied(3, BUSY, 20));
        assert_eq!(requests.poll(3, 519), None);
        assert_eq!(requests.poll(3, 520).as_deref(), Some(&b"OS_Halt"[..]), "and before anything else");
        assert!(requests.replied(3, OK, 530));
        assert_eq!(requests.poll(3, 530).as_deref(), Some(&b"ping"[..]));
    }

    #[test]
    fn a_daemon_that_is_always_busy_loses_the_request() {
        let mut requests = greeted();
        assert!(requests.push(b"OS_Halt"));
        let mut now = 0;
        for _ in 0..=RETRIES {
            now += 1000;
            assert!(requests.poll(3, now).is_some());
            assert!(requests.replied(3, BUSY, now));
        }
        assert_eq!(requests.poll(3, now + 1000), None);
    }

    #[test]
    fn what_became_of_setting_the_clock_is_known() {
        for (reply, became) in
            [(OK, TimeSet::Done), (b"ERROR Unable to sync time", TimeSet::Failed), (b"", TimeSet::Failed)]
        {
            let mut requests = greeted();
            assert_eq!(requests.time_set(), TimeSet::Never);
            assert!(requests.set_time() && requests.set_time(), "two at a time are one");
            assert_eq!(requests.poll(3, 0).as_deref(), Some(&b"Time_Synchronize 1"[..]));
            assert_eq!((requests.time_set(), requests.poll(3, 0)), (TimeSet::Waiting, None));
            assert_eq!(requests.replied(3, reply, 0), !reply.is_empty());
            assert_eq!((requests.time_set(), requests.poll(3, 0)), (became, None));
            assert!(requests.set_time(), "once more");
            assert!(requests.poll(3, 0).is_some());
            requests.closed(3);
            assert_eq!(requests.time_set(), TimeSet::Never, "nobody is there who could reply");
        }
    }

    #[test]
    fn a_busy_daemon_still_sets_the_clock() {
        let mut requests = greeted();
        assert!(requests.set_time() && requests.poll(3, 0).is_some() && requests.replied(3, BUSY, 0));
        assert_eq!(requests.time_set(), TimeSet::Waiting);
        assert!(requests.poll(3, 500).is_some() && requests.replied(3, OK, 510));
        assert_eq!(requests.time_set(), TimeSet::Done);
    }

    #[test]
    fn another_channel_has_nothing_to_say() {
        let mut requests = greeted();
        assert!(requests.push(b"ping"));
        assert_eq!(requests.poll(2, 0), None);
        assert!(requests.poll(3, 0).is_some());
        assert!(!requests.replied(2, OK, 0));
        requests.closed(2);
        assert!(requests.replied(3, OK, 0));
        requests.closed(3);
        assert_eq!(requests.poll(3, 0), None);
    }
}
