//! A console as a test uses it: wait for text, send text.

use super::{Session, SessionError, Stopped};
use abi::link::Channel;
use std::time::Duration;

/// How much of a transcript an error shows.
const SHOWN: usize = 12 << 10;

/// Why a script cannot go on. What was printed so far is part of the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The session cannot give what was asked for.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A request came to nothing.
    #[error("{0}")]
    Request(String),
    /// The text did not come in time.
    #[error("waited {limit:?} for {wanted}{transcript}")]
    Deadline {
        /// What was waited for.
        wanted: String,
        /// How long.
        limit: Duration,
        /// The transcript.
        transcript: String,
    },
    /// It cannot come any more.
    #[error("{why} before {wanted}{transcript}")]
    Over {
        /// What was waited for.
        wanted: String,
        /// What happened.
        why: String,
        /// The transcript.
        transcript: String,
    },
    /// The text came that says that the wait is lost.
    #[error("{bad:?} came while waiting for {wanted}{transcript}")]
    Refused {
        /// What came.
        bad: String,
        /// What was waited for.
        wanted: String,
        /// The transcript.
        transcript: String,
    },
}

/// One channel of a session. Each channel remembers what was matched, so that the next wait looks behind it, however
/// often a `Console` for it is made.
#[derive(Clone, Copy)]
pub struct Console<'s> {
    session: &'s Session,
    channel: Channel,
}

impl<'s> Console<'s> {
    pub(super) fn new(session: &'s Session, channel: Channel) -> Self {
        Self { session, channel }
    }

    /// Sends bytes to the guest.
    ///
    /// # Errors
    /// The hypervisor is gone.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), ScriptError> {
        Ok(self.session.send(self.channel, bytes.as_ref())?)
    }

    /// Waits for `text`; gives everything from the last match to its end.
    ///
    /// # Errors
    /// It did not come in time, or cannot come any more: the VM is off, the hypervisor failed, the host ended.
    pub fn expect(&self, text: &str, limit: Duration) -> Result<String, ScriptError> {
        self.expect_any(&[text], limit).map(|(_, found)| found)
    }

    /// Waits for any of `texts`, the one that comes first; gives its index, and everything from the last match to its end.
    ///
    /// # Errors
    /// As [`Console::expect`].
    pub fn expect_any(&self, texts: &[&str], limit: Duration) -> Result<(usize, String), ScriptError> {
        let mut off = false;
        let found = self.session.wait(limit, |state| {
            let found = state.stream(self.channel).and_then(|stream| stream.find(texts));
            off = found.is_none() && state.owner(self.channel).is_some_and(|(_, condition)| condition.is_off());
            if off { Some(None) } else { found.map(Some) }
        });
        let wanted = || texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" or ");
        match found {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Stopped::Ended.explain(self.session, self.channel, &wanted())),
            Err(why) => Err(why.explain(self.session, self.channel, &wanted())),
        }
    }

    /// Waits for `text`, and gives up at once when one of `bad` comes first (a kernel's panic, say).
    ///
    /// # Errors
    /// As [`Console::expect`], and [`ScriptError::Refused`].
    pub fn expect_unless(&self, text: &str, bad: &[&str], limit: Duration) -> Result<String, ScriptError> {
        let texts: Vec<&str> = std::iter::once(text).chain(bad.iter().copied()).collect();
        let (which, found) = self.expect_any(&texts, limit)?;
        match which.checked_sub(1).and_then(|index| bad.get(index)) {
            None => Ok(found),
            Some(bad) => Err(ScriptError::Refused {
                bad: (*bad).to_owned(),
                wanted: format!("{text:?}"),
                transcript: self.session.transcript(self.channel),
            }),
        }
    }

    /// Everything that the channel carried so far (of a very long stream, the end).
    #[must_use]
    pub fn transcript(&self) -> String {
        let mut state = self.session.shared.lock();
        state.stream(self.channel).map_or(String::new(), |stream| String::from_utf8_lossy(stream.all()).into_owned())
    }
}

/// The end of `bytes`, from the start of a line.
fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(SHOWN);
    let shown = bytes.get(start..).unwrap_or_default();
    let line = if start == 0 { 0 } else { shown.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1) };
    String::from_utf8_lossy(shown.get(line..).unwrap_or_default()).into_owned()
}

impl Session {
    /// The ends of this channel's stream and of the log, for an error.
    fn transcript(&self, channel: Channel) -> String {
        let mut state = self.shared.lock();
        let title = state.owner(channel).map(|(name, condition)| format!("\n--- {name} ({condition}):\n"));
        let own = match (&title, state.stream(channel)) {
            (Some(title), Some(stream)) => format!("{title}{}", tail(stream.all())),
            _ => String::new(),
        };
        let log = state.stream(Channel::Log).map_or(String::new(), |stream| tail(stream.all()));
        format!("{own}\n--- log of the hypervisor:\n{log}\n---")
    }
}

impl Stopped {
    /// The error for a wait that ended like this.
    pub(super) fn explain(self, session: &Session, channel: Channel, wanted: &str) -> ScriptError {
        let transcript = session.transcript(channel);
        let wanted = wanted.to_owned();
        if let Self::Deadline(limit) = self {
            return ScriptError::Deadline { wanted, limit, transcript };
        }
        let state = session.shared.lock();
        let off = state.owner(channel).filter(|(_, condition)| condition.is_off());
        let why = match (off, state.outcome(None)) {
            (_, Some(outcome @ super::Outcome::Panicked(_))) => outcome.to_string(),
            (Some((name, condition)), _) => format!("{name} is {condition}"),
            (None, Some(outcome)) => outcome.to_string(),
            (None, None) => "the session was over".to_owned(),
        };
        ScriptError::Over { wanted, why, transcript }
    }
}
