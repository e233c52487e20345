//! The service's state as a value: channels with the messages on them, the key store, what the tools have said and are asked.
//!
//! Times are saved relative to now: the next host has another clock. The guest's quotas are not saved, they belong to the VM: a state
//! that exceeds them is refused. How much a guest may still write into the log is not saved either, and starts from the beginning.
//!
//! It is the largest part of a VM's state. So it is moved into the service, and nothing is in memory twice. How many bytes it can
//! have in a file follows from what the VM may have ([`SavedService::most_bytes`]).
//!
//! Each type is taken apart by naming all of its fields: a field that is added and forgotten here does not compile.

use abi::bundle::Quota;
use alloc::vec::Vec;

use pack::{Damaged, value};

use crate::channel::{Channel, Channels, Protocol};
use crate::guestinfo::{Refused, Store};
use crate::limits::{Limits, copy};
use crate::rpci;
use crate::service::{Service, State};
use crate::tclo::{Report, Requests, Text, TimeSet};

/// The most that a site file can let a guest have.
const MOST: Limits = Limits::of(&Quota {
    channels: *Quota::CHANNELS.end() as u16,
    message: *Quota::MESSAGE.end() as u32,
    keys: *Quota::KEYS.end() as u16,
    store: *Quota::STORE.end() as u32,
    ..Quota::USUAL
});

/// So many bytes of a channel's are not among those that the buffers have room for: a reply for which there is none, or a request.
const BEYOND: usize = if rpci::NO_ROOM.len() > Requests::LONGEST { rpci::NO_ROOM.len() } else { Requests::LONGEST };

/// The state of one VM's service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedService {
    /// Its channels, by number.
    pub channels: Vec<Option<SavedChannel>>,
    /// How many calls there were, by which the channel is found that was not used for the longest time.
    pub calls: u64,
    /// Keys and values, in the order in which they came.
    pub store: Vec<SavedValue>,
    /// What the tools have reported.
    pub report: SavedReport,
    /// What they are asked.
    pub requests: SavedRequests,
    /// Whether the guest's clock follows the host's.
    pub time_sync: bool,
}

/// A channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedChannel {
    /// The host asks on it (TCLO), not the guest (RPCI).
    pub host_asks: bool,
    /// High and low.
    pub cookies: Option<[u32; 2]>,
    /// When it was used last, in calls.
    pub used: u64,
    /// The message that is arriving, and its length.
    pub incoming: Option<SavedMessage>,
    /// What is to be received, and how much has been.
    pub outgoing: Option<SavedMessage>,
    /// How much of the one or the other has been moved by a transfer as a whole that is not at its end.
    pub moved: usize,
}

/// A message on its way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedMessage {
    /// What is there of it.
    pub bytes: Vec<u8>,
    /// How long it will be; of one that is being received, how much of it was.
    pub place: usize,
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedValue {
    /// The key, with its prefix.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Something that the tools are asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedRequest {
    /// The request.
    pub text: Vec<u8>,
}

/// What the tools have reported. Texts are printable ASCII.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedReport {
    /// The tools' version.
    pub version: Vec<u8>,
    /// The guest's host name.
    pub host_name: Vec<u8>,
    /// Its operating system.
    pub system: Vec<u8>,
    /// Its first IPv4 address.
    pub address: Vec<u8>,
    /// Seconds that it is up.
    pub uptime: u64,
    /// How many milliseconds ago the daemon polled last.
    pub silent: Option<u64>,
    /// It can shut itself down when asked.
    pub soft_power: bool,
    /// The last reply to a request began with "OK".
    pub last_ok: bool,
}

/// The conversation in which the host asks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SavedRequests {
    /// On which channel.
    pub channel: Option<u16>,
    /// What waits to be asked, first things first.
    pub waiting: Vec<SavedRequest>,
    /// What the daemon has been asked and not replied to.
    pub outstanding: Option<SavedRequest>,
    /// For how many milliseconds nothing is asked.
    pub quiet: u64,
    /// How often the daemon was busy for the request at the front.
    pub busy: u32,
    /// What became of the last request to set the clock: never made, waiting, done, failed.
    pub time_set: u8,
}

impl SavedService {
    /// The version of this type, and of those in it: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

value!(SavedService as "vmware" { channels[MOST.channels], calls, store[MOST.keys], report, requests, time_sync });
value!(SavedChannel { host_asks, cookies, used, incoming, outgoing, moved });
// A reply is not bound by a message, but with all others by the buffers.
value!(SavedMessage { bytes[MOST.buffers], place });
value!(SavedValue { key[MOST.key], value[MOST.message] });
value!(SavedReport {
    version[Text::MOST], host_name[Text::MOST], system[Text::MOST], address[Text::MOST], uptime, silent, soft_power, last_ok
});
value!(SavedRequest { text[Requests::LONGEST] });
value!(SavedRequests { channel, waiting[Requests::MOST_WAITING], outstanding, quiet, busy, time_set });

impl SavedService {
    /// At most so many bytes are in the file for a guest that may have so much.
    #[must_use]
    pub const fn most_bytes(limits: &Limits) -> usize {
        // Numbers and flags, and how many there are of what: of a channel and its messages, of a value, of a request, and of all.
        const CHANNEL: usize = 64;
        const VALUE: usize = 8;
        const REQUEST: usize = 5;
        const ALL: usize = 128;
        let channels = limits.buffers + limits.channels * (CHANNEL + BEYOND);
        let store = limits.store + limits.keys * VALUE;
        let requests = (Requests::MOST_WAITING + 1) * (Requests::LONGEST + REQUEST);
        ALL + channels + store + 4 * Text::MOST + requests
    }
}

/// A copy, or why not.
fn copied(bytes: &[u8]) -> Result<Vec<u8>, Damaged> {
    copy(bytes).ok_or(Damaged::NoMemory)
}

/// What `each` makes of all `from`.
fn collected<T, U>(
    from: impl ExactSizeIterator<Item = T>,
    each: impl FnMut(T) -> Result<U, Damaged>,
) -> Result<Vec<U>, Damaged> {
    let mut all = Vec::new();
    all.try_reserve_exact(from.len()).map_err(|_| Damaged::NoMemory)?;
    for one in from.map(each) {
        all.push(one?);
    }
    Ok(all)
}

fn message(message: &Option<(Vec<u8>, usize)>) -> Result<Option<SavedMessage>, Damaged> {
    let saved = |(bytes, place): &(Vec<u8>, usize)| Ok(SavedMessage { bytes: copied(bytes)?, place: *place });
    message.as_ref().map(saved).transpose()
}

fn request(text: &[u8]) -> Result<SavedRequest, Damaged> {
    copied(text).map(|text| SavedRequest { text })
}

impl Service {
    /// Takes the state out when the VM's clock shows `now`, in milliseconds.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn save(&self, now: u64) -> Result<SavedService, Damaged> {
        // What the VM may have is its own.
        let Self { config: _, channels, state } = self;
        let Channels { slots, calls } = channels;
        let State { store, report, requests, time_sync, limits: _, log_rate: _, paused } = state;
        // A VM that is saved is paused.
        let now = paused.unwrap_or(now);
        Ok(SavedService {
            channels: collected(slots.iter(), |slot| slot.as_ref().map(Channel::save).transpose())?,
            calls: *calls,
            store: collected(store.entries().iter(), |(key, value)| {
                Ok(SavedValue { key: copied(key)?, value: copied(value)? })
            })?,
            report: report.save(now)?,
            requests: requests.save(now)?,
            time_sync: *time_sync,
        })
    }

    /// Puts a state in when the VM's clock shows `now`, in milliseconds. The VM is paused.
    ///
    /// # Errors
    /// If it is none that this VM's service can have, or there is no memory for it; the service is then as after power on.
    pub fn restore(&mut self, saved: SavedService, now: u64) -> Result<(), Damaged> {
        let SavedService { channels, calls, store, report, requests, time_sync } = saved;
        let limits = self.config.limits;
        if channels.len() > limits.channels {
            return Err(Damaged::Impossible("more channels are open than the VM may have"));
        }
        self.forget();
        let store = Store::restored(store, &limits)?;
        let slots =
            collected(channels.into_iter(), |slot| slot.map(|slot| Channel::restored(slot, &limits)).transpose())?;
        let channels = Channels { slots, calls };
        if channels.buffered() > limits.buffers + channels.open_count() * BEYOND {
            return Err(Damaged::Impossible("more bytes of messages are on their way than the VM may have"));
        }
        let (report, requests) = (Report::restored(report, now)?, Requests::restored(requests, now)?);
        self.channels = channels;
        self.state.store = store;
        self.state.report = report;
        self.state.requests = requests;
        self.state.time_sync = time_sync;
        self.state.paused = Some(now);
        Ok(())
    }
}

impl Store {
    fn restored(saved: Vec<SavedValue>, limits: &Limits) -> Result<Self, Damaged> {
        let mut store = Self::default();
        store.reserve(saved.len()).ok_or(Damaged::NoMemory)?;
        for SavedValue { key, value } in saved {
            // As many as were saved are in it, and each is one that could be set.
            let is_new = store.get(&key).is_none();
            let set = if is_new { store.take(key, value, limits) } else { Err(Refused::Key) };
            set.map_err(|_| Damaged::Impossible("a value is not one that the VM may have"))?;
        }
        Ok(store)
    }
}

impl Channel {
    fn save(&self) -> Result<SavedChannel, Damaged> {
        let Self { protocol, cookies, used, incoming, outgoing, moved } = self;
        Ok(SavedChannel {
            host_asks: *protocol == Protocol::Tclo,
            cookies: *cookies,
            used: *used,
            incoming: message(incoming)?,
            outgoing: message(outgoing)?,
            moved: *moved,
        })
    }

    fn restored(saved: SavedChannel, limits: &Limits) -> Result<Self, Damaged> {
        let SavedChannel { host_asks, cookies, used, incoming, outgoing, moved } = saved;
        let message = |message: SavedMessage| (message.bytes, message.place);
        let (incoming, outgoing) = (incoming.map(message), outgoing.map(message));
        let arrives = |(bytes, length): &(Vec<u8>, usize)| bytes.len() <= *length && *length <= limits.message;
        if !incoming.as_ref().is_none_or(arrives) {
            return Err(Damaged::Impossible("a message is longer than it was to be, or than any may be"));
        }
        let whole = [&incoming, &outgoing].into_iter().flatten().map(|(bytes, _)| bytes.len()).max().unwrap_or(0);
        if outgoing.as_ref().is_some_and(|(bytes, place)| *place > bytes.len()) || moved > whole {
            return Err(Damaged::Impossible("more of a message was moved than there is"));
        }
        let protocol = if host_asks { Protocol::Tclo } else { Protocol::Rpci };
        Ok(Self { protocol, cookies, used, incoming, outgoing, moved })
    }
}

impl Report {
    fn save(&self, now: u64) -> Result<SavedReport, Damaged> {
        let Self { version, host_name, system, address, uptime, heartbeat, soft_power, last_ok } = self;
        let text = |text: &Text| copied(text.as_str().as_bytes());
        Ok(SavedReport {
            version: text(version)?,
            host_name: text(host_name)?,
            system: text(system)?,
            address: text(address)?,
            uptime: *uptime,
            silent: heartbeat.map(|heartbeat| now.saturating_sub(heartbeat)),
            soft_power: *soft_power,
            last_ok: *last_ok,
        })
    }

    fn restored(saved: SavedReport, now: u64) -> Result<Self, Damaged> {
        let SavedReport { version, host_name, system, address, uptime, silent, soft_power, last_ok } = saved;
        let text = |bytes: Vec<u8>| {
            let text = Text::new(&bytes);
            let whole = text.as_str().as_bytes() == bytes;
            whole.then_some(text).ok_or(Damaged::Impossible("a report has a text that no tool can have reported"))
        };
        Ok(Self {
            version: text(version)?,
            host_name: text(host_name)?,
            system: text(system)?,
            address: text(address)?,
            uptime,
            // A VM whose clock has just started cannot say that it was longer ago.
            heartbeat: silent.map(|silent| now.saturating_sub(silent)),
            soft_power,
            last_ok,
        })
    }
}

impl Requests {
    fn save(&self, now: u64) -> Result<SavedRequests, Damaged> {
        let Self { channel, waiting, outstanding, not_before, busy, time_set } = self;
        Ok(SavedRequests {
            channel: *channel,
            waiting: collected(waiting.iter(), |text| request(text))?,
            outstanding: outstanding.as_deref().map(request).transpose()?,
            quiet: not_before.saturating_sub(now),
            busy: *busy,
            time_set: *time_set as u8,
        })
    }

    fn restored(saved: SavedRequests, now: u64) -> Result<Self, Damaged> {
        let SavedRequests { channel, waiting, outstanding, quiet, busy, time_set } = saved;
        if waiting.len() > Self::MOST_WAITING {
            return Err(Damaged::Impossible("more requests wait for the tools than can"));
        }
        Ok(Self {
            channel,
            waiting: collected(waiting.into_iter(), |SavedRequest { text }| Ok(text))?.into(),
            outstanding: outstanding.map(|SavedRequest { text }| text),
            not_before: if quiet == 0 { 0 } else { now.saturating_add(quiet) },
            busy,
            time_set: match time_set {
                0 => TimeSet::Never,
                1 => TimeSet::Waiting,
                2 => TimeSet::Done,
                3 => TimeSet::Failed,
                _ => return Err(Damaged::Impossible("a clock was set in a way that does not exist")),
            },
        })
    }
}

#[cfg(test)]
mod tests;
