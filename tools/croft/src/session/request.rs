//! Questions about a VM's guest, and their answers (`abi::link::request`).

use super::{ScriptError, Session, SessionError, Stopped};
use abi::link::request::{Answer, Ask, HOST, MAX_PIECE, Over, Reply, Request};
use abi::link::{Channel, MAX_BULK, MAX_PAYLOAD};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// More answers than any request has: 256 keys, or 64 KiB in pieces.
const MAX_ANSWERS: usize = 1024;

/// One answer that holds something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What the guest's tools have reported.
    Guest(Report),
    /// A key of the store, and the length of its value.
    Key(String, u32),
    /// A piece of a value.
    Value(Vec<u8>),
    /// The tools were asked to do it.
    ByTools,
    /// The power button was pressed.
    ByButton,
    /// What time the host has.
    Time(HostTime),
    /// What came before has not all been written yet.
    More,
    /// The VM stands still until this piece of its memory has come, of 64 KiB each.
    Wanted(u32),
    /// The guest has ended its life before all of its memory had come.
    Over(Over),
}

/// What time the host has; see [`Answer::Time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTime {
    /// Microseconds since 1970, UTC.
    pub microseconds: u64,
    /// Whether it has a clock that can be set.
    pub settable: bool,
}

/// What a guest's tools have reported; see [`abi::link::request::Guest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The tools' version.
    pub version: String,
    /// The guest's host name.
    pub host_name: String,
    /// Its operating system.
    pub system: String,
    /// Its first IPv4 address.
    pub address: String,
    /// Seconds that it was up when it last said so.
    pub uptime: u64,
    /// Milliseconds since the tools' daemon last polled.
    pub heartbeat: Option<u64>,
    /// Whether the daemon is there and can shut the guest down.
    pub can_stop: bool,
    /// How many channels are open.
    pub channels: u16,
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The hypervisor refused.
    #[error("{0}")]
    Refused(String),
    /// It cannot be sent: the hypervisor is gone.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No answer.
    #[error("the hypervisor did not answer within {0:?}")]
    Silent(Duration),
    /// The answer, or a part of it, may be lost; if it was the request that was lost, it was not carried out.
    #[error("some of what the link carried is lost: its port was shut, or nobody took what came; try again")]
    Lost,
    /// Key and value do not fit the protocol.
    #[error("a key has at most {} bytes", abi::link::request::MAX_KEY)]
    TooLong,
}

impl From<RequestError> for ScriptError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Session(error) => Self::Session(error),
            other => Self::Request(other.to_string()),
        }
    }
}

/// Requests that have not ended, by number, or have and were not collected.
#[derive(Debug, Default)]
pub(super) struct Requests(HashMap<u32, Pending>);

#[derive(Debug, Default)]
struct Pending {
    told: Vec<Told>,
    end: Option<Result<(), RequestError>>,
    /// It is about a VM that is saved or restored.
    is_of_transfer: bool,
}

impl Requests {
    /// Files an answer. One that nobody waits for is dropped.
    pub(super) fn take(&mut self, reply: Reply<'_>) {
        let Some(pending) = self.0.get_mut(&reply.id).filter(|pending| pending.end.is_none()) else { return };
        let told = match reply.answer {
            Answer::Done => {
                pending.end = Some(Ok(()));
                return;
            }
            Answer::Refused(why) => {
                pending.end = Some(Err(RequestError::Refused(why.to_owned())));
                return;
            }
            Answer::Lost => {
                pending.end = Some(Err(RequestError::Lost));
                return;
            }
            Answer::Guest(guest) => Told::Guest(Report {
                version: guest.version.to_owned(),
                host_name: guest.host_name.to_owned(),
                system: guest.system.to_owned(),
                address: guest.address.to_owned(),
                uptime: guest.uptime,
                heartbeat: guest.heartbeat,
                can_stop: guest.can_stop,
                channels: guest.channels,
            }),
            Answer::Key { key, length } => Told::Key(key.to_owned(), length),
            Answer::Value(piece) => Told::Value(piece.to_vec()),
            Answer::ByTools => Told::ByTools,
            Answer::ByButton => Told::ByButton,
            Answer::Time { microseconds, settable } => Told::Time(HostTime { microseconds, settable }),
            Answer::More => Told::More,
            Answer::Wanted { piece } => Told::Wanted(piece),
            Answer::Over(how) => Told::Over(how),
        };
        if pending.told.len() < MAX_ANSWERS {
            pending.told.push(told);
        }
    }

    /// What was on its way, either way, may be lost. Whoever transfers a VM can ask for each piece again, and need not wait for an
    /// answer that may never come; for others it does no harm to wait.
    pub(super) fn lose(&mut self) {
        for pending in self.0.values_mut().filter(|pending| pending.is_of_transfer) {
            pending.end.get_or_insert(Err(RequestError::Lost));
        }
    }
}

impl Session {
    /// Asks something about a VM, or about [`HOST`], and gives what was told.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub fn ask(&self, vm: u16, ask: Ask<'_>, limit: Duration) -> Result<Vec<Told>, RequestError> {
        self.request(vm, std::iter::once(ask), limit)
    }

    /// A value of the guest's store.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn value(&self, vm: u16, key: &str, limit: Duration) -> Result<Vec<u8>, RequestError> {
        let told = self.ask(vm, Ask::Get { key }, limit)?;
        Ok(told
            .into_iter()
            .filter_map(|told| if let Told::Value(piece) = told { Some(piece) } else { None })
            .flatten()
            .collect())
    }

    /// Sets a value of the guest's store.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn set_value(&self, vm: u16, key: &str, value: &[u8], limit: Duration) -> Result<(), RequestError> {
        let count = value.len().div_ceil(MAX_PIECE).max(1);
        let pieces = (0..count).map(|index| {
            let offset = index * MAX_PIECE;
            let piece = value.get(offset..value.len().min(offset + MAX_PIECE)).unwrap_or_default();
            Ask::Set { key, offset: offset as u32, value: piece, last: index + 1 == count }
        });
        self.request(vm, pieces, limit).map(drop)
    }

    /// What a VM's guest tools have reported.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn report(&self, vm: u16, limit: Duration) -> Result<Report, RequestError> {
        let told = self.ask(vm, Ask::Guest, limit)?;
        let report = told.into_iter().find_map(|told| if let Told::Guest(report) = told { Some(report) } else { None });
        report.ok_or_else(|| RequestError::Refused("the hypervisor answered something else".to_owned()))
    }

    /// What time the host has.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn host_time(&self, limit: Duration) -> Result<HostTime, RequestError> {
        let told = self.ask(HOST, Ask::Time, limit)?;
        let time = told.into_iter().find_map(|told| if let Told::Time(time) = told { Some(time) } else { None });
        time.ok_or_else(|| RequestError::Refused("the hypervisor answered something else".to_owned()))
    }

    /// Sets the host's clock.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn set_host_time(&self, microseconds: u64, limit: Duration) -> Result<(), RequestError> {
        self.ask(HOST, Ask::SetTime { microseconds }, limit).map(drop)
    }

    /// Sends the parts of one request and collects its answers.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn request<'a>(
        &self,
        vm: u16,
        parts: impl Iterator<Item = Ask<'a>>,
        limit: Duration,
    ) -> Result<Vec<Told>, RequestError> {
        let id = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        let mut parts = parts.peekable();
        let is_of_transfer = parts.peek().is_some_and(Ask::is_of_transfer);
        self.shared.lock().requests.0.insert(id, Pending { is_of_transfer, ..Pending::default() });
        let done = self.send_parts(id, vm, parts).and_then(|()| {
            let ended = self.wait(limit, |state| {
                let pending = state.requests.0.get_mut(&id)?;
                pending.end.take().map(|end| end.map(|()| std::mem::take(&mut pending.told)))
            });
            match ended {
                Ok(end) => end,
                Err(Stopped::Ended) => Err(SessionError::Gone.into()),
                Err(Stopped::Deadline(limit)) => Err(RequestError::Silent(limit)),
            }
        });
        self.shared.lock().requests.0.remove(&id);
        done
    }

    fn send_parts<'a>(&self, id: u32, vm: u16, parts: impl Iterator<Item = Ask<'a>>) -> Result<(), RequestError> {
        let mut buffer = vec![0; MAX_BULK];
        for ask in parts {
            let payload = Request { id, vm, ask }.encode(&mut buffer).ok_or(RequestError::TooLong)?;
            let is_large = payload.len() > MAX_PAYLOAD;
            // The largest of others is no piece of a saved VM, and is to be told its limit.
            if is_large && !matches!(ask, Ask::RestoreNext { .. }) {
                return Err(RequestError::TooLong);
            }
            self.send(if is_large { Channel::Bulk } else { Channel::Requests }, payload)?;
        }
        Ok(())
    }
}
