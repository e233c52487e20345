//! RPC channels: messages between a guest and the host, on command 30 and the bulk port.
//!
//! ```text
//! RPCI:  OPEN -> idle -SENDSIZE(n)-> receiving -payload* or bulk-> executed -RECVSIZE-> delivering -payload* or bulk,
//!        RECVSTATUS-> idle ... CLOSE
//! TCLO:  the same, but a message of length 0 only asks whether the host has a request, which RECVSIZE then delivers.
//! ```
//!
//! A channel belongs to the VM, not to a CPU: a process may move between any two calls. Two random cookies keep other processes
//! out. A process that is killed leaves its channel open; when all are taken, the one that was idle longest is given up. Clients
//! handle that: they open a new one.
//!
//! A reply waits here until the guest takes it. One bound holds for all messages of a VM in transit, in both directions; a reply
//! that exceeds it becomes an error of a few bytes.
//!
//! A payload that is transferred as a whole moves in pieces of [`PIECE`] bytes: the guest executes its call again until all is
//! there, and each time the copy continues where it ended. So another caller of the service waits for one piece at most, and a
//! missing page repeats one piece at most.
//!
//! Everything is in the low 32 bits, results are zero-extended, and only the registers named here change.

use alloc::vec::Vec;

use abi::calls::vmware::channel::{RPCI, TCLO, WITH_COOKIES, status, step};

use crate::limits::Limits;
use crate::own::Completion;
use crate::rpci;
use crate::service::{BufferError, Host};

/// How much of a payload is copied at a time.
pub const PIECE: usize = 8192;

/// X0 to X7.
pub type Registers = [u64; 8];

/// Who asks on a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// The guest asks and the host replies.
    Rpci,
    /// The host asks and the guest replies.
    Tclo,
}

/// What is behind the channels.
pub trait Peer {
    /// A channel was opened.
    fn opened(&mut self, id: u16, protocol: Protocol);
    /// The guest sent a message; the reply to it, if it gets one. On RPCI it must.
    fn message(&mut self, id: u16, protocol: Protocol, message: &[u8]) -> Option<Vec<u8>>;
    /// The guest polls a TCLO channel; the next request, if there is one.
    fn poll(&mut self, id: u16) -> Option<Vec<u8>>;
    /// A channel was closed, or given up.
    fn closed(&mut self, id: u16, protocol: Protocol);
}

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) protocol: Protocol,
    /// High and low.
    pub(crate) cookies: Option<[u32; 2]>,
    /// When it was used last, in calls.
    pub(crate) used: u64,
    /// The message that is arriving, and its length.
    pub(crate) incoming: Option<(Vec<u8>, usize)>,
    /// What is to be received, and how much has been.
    pub(crate) outgoing: Option<(Vec<u8>, usize)>,
    /// How much of the one or the other has been moved by a transfer as a whole that is not at its end.
    pub(crate) moved: usize,
}

impl Channel {
    fn buffered(&self) -> usize {
        self.incoming.as_ref().map_or(0, |(_, length)| *length)
            + self.outgoing.as_ref().map_or(0, |(bytes, _)| bytes.len())
    }
}

/// One VM's channels.
#[derive(Debug, Default)]
pub struct Channels {
    pub(crate) slots: Vec<Option<Channel>>,
    pub(crate) calls: u64,
}

fn finish(x: &mut Registers, status: u64) {
    x[2] = status << 16;
}

fn port_and_id(x: &Registers) -> u16 {
    (x[3] >> 16) as u16
}

impl Channels {
    /// How many are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Gives all up, as after the guest was moved to another machine: clients notice and begin again.
    pub fn drop_all(&mut self) {
        self.slots.clear();
    }

    /// Bytes of all messages on their way, those included that the guest has only announced.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.slots.iter().flatten().map(Channel::buffered).sum()
    }

    /// The host has replied on channel `id`: a reply that is more than there may be becomes an error.
    fn bound_reply(&mut self, id: u16, limits: &Limits) {
        if self.buffered() <= limits.buffers {
            return;
        }
        if let Some(Some(channel)) = self.slots.get_mut(usize::from(id))
            && let Some((reply, _)) = &mut channel.outgoing
            && reply.len() > rpci::NO_ROOM.len()
        {
            *reply = rpci::no_room();
        }
    }

    /// Carries out command 30.
    pub fn call(&mut self, x: &mut Registers, limits: &Limits, host: &mut impl Host, peer: &mut impl PeerOf) {
        self.calls += 1;
        let which = (x[2] >> 16) as u16;
        if which == step::OPEN {
            return self.open(x, limits, host, peer);
        }
        let id = port_and_id(x);
        let calls = self.calls;
        // Only a new message needs to know, and there are many calls for each.
        let buffered = if which == step::SEND_SIZE { self.buffered() } else { 0 };
        let Some(channel) = self.find(id, [x[4] as u32, x[5] as u32]) else {
            return finish(x, status::CLOSED);
        };
        channel.used = calls;
        match which {
            step::SEND_SIZE | step::SEND_PAYLOAD => {
                match which {
                    step::SEND_SIZE => send_size(channel, id, x, limits, buffered, peer, host),
                    _ => send_payload(channel, id, x, peer, host),
                }
                if channel.outgoing.is_some() {
                    self.bound_reply(id, limits);
                }
            }
            step::RECEIVE_SIZE => receive_size(channel, id, x, peer, host),
            step::RECEIVE_PAYLOAD => receive_payload(channel, x),
            step::RECEIVE_STATUS => {
                channel.outgoing = None;
                channel.moved = 0;
                finish(x, status::SUCCESS);
            }
            step::CLOSE => {
                let protocol = channel.protocol;
                if let Some(slot) = self.slots.get_mut(usize::from(id)) {
                    *slot = None;
                }
                peer.with(host).closed(id, protocol);
                finish(x, status::SUCCESS);
            }
            _ => finish(x, 0),
        }
    }

    fn open(&mut self, x: &mut Registers, limits: &Limits, host: &mut impl Host, peer: &mut impl PeerOf) {
        let wanted = x[1] as u32;
        let protocol = match wanted & !WITH_COOKIES {
            RPCI => Protocol::Rpci,
            TCLO => Protocol::Tclo,
            _ => return finish(x, 0),
        };
        let Some((index, given_up)) = self.place(limits) else { return finish(x, 0) };
        let id = index as u16;
        if let Some(other) = given_up {
            peer.with(host).closed(id, other);
        }
        let random = host.random();
        let cookies = (wanted & WITH_COOKIES != 0).then_some([(random >> 32) as u32, random as u32]);
        let channel = Channel { protocol, cookies, used: self.calls, incoming: None, outgoing: None, moved: 0 };
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(channel);
        }
        peer.with(host).opened(id, protocol);
        let [high, low] = cookies.unwrap_or([0; 2]);
        x[3] = u64::from(id) << 16;
        x[4] = u64::from(high);
        x[5] = u64::from(low);
        finish(x, status::SUCCESS);
    }

    /// A free place, and the protocol of the channel that was given up for it, if one had to be.
    fn place(&mut self, limits: &Limits) -> Option<(usize, Option<Protocol>)> {
        if let Some(index) = self.slots.iter().position(Option::is_none) {
            return Some((index, None));
        }
        if self.slots.len() < limits.channels.min(usize::from(u16::MAX)) {
            self.slots.try_reserve(1).ok()?;
            self.slots.push(None);
            return Some((self.slots.len() - 1, None));
        }
        let (index, slot) =
            self.slots.iter_mut().enumerate().min_by_key(|(_, slot)| slot.as_ref().map(|channel| channel.used))?;
        Some((index, slot.take().map(|channel| channel.protocol)))
    }

    fn find(&mut self, id: u16, cookies: [u32; 2]) -> Option<&mut Channel> {
        let channel = self.slots.get_mut(usize::from(id))?.as_mut()?;
        (channel.cookies.is_none_or(|known| known == cookies)).then_some(channel)
    }

    /// A whole payload from the guest: W5 and W6 are the low and the high cookie, X4 the address, X2 the length.
    ///
    /// # Errors
    /// When the guest's page is missing; no register has changed, and the guest is to repeat the call.
    pub fn bulk_out(
        &mut self,
        x: &mut Registers,
        limits: &Limits,
        host: &mut impl Host,
        peer: &mut impl PeerOf,
    ) -> Result<Completion, BufferError> {
        self.calls += 1;
        let calls = self.calls;
        let id = port_and_id(x);
        x[1] = {
            let Some(channel) = self.find(id, [x[6] as u32, x[5] as u32]) else {
                return bulk_result(x, status::CLOSED);
            };
            let Some((bytes, length)) = &mut channel.incoming else { return bulk_result(x, 0) };
            if x[2] != *length as u64 || bytes.len() != channel.moved {
                return bulk_result(x, 0);
            }
            channel.used = calls;
            let begin = channel.moved;
            let end = (begin + PIECE).min(*length);
            bytes.resize(end, 0);
            let place = x[4].wrapping_add(begin as u64);
            match bytes.get_mut(begin..).map_or(Ok(()), |piece| host.read(place, piece)) {
                Ok(()) => channel.moved = end,
                Err(BufferError::NotMemory) => {
                    bytes.clear();
                    channel.moved = 0;
                    return bulk_result(x, 0);
                }
                Err(fault) => {
                    bytes.truncate(begin);
                    return Err(fault);
                }
            }
            if end < *length {
                return Ok(Completion::More);
            }
            complete(channel, id, peer, host);
            status::SUCCESS << 16
        };
        self.bound_reply(id, limits);
        Ok(Completion::Finished)
    }

    /// A whole payload to the guest: W6 and W4 are the low and the high cookie, X5 the address, X2 the length.
    ///
    /// # Errors
    /// As [`Channels::bulk_out`].
    pub fn bulk_in(&mut self, x: &mut Registers, host: &mut impl Host) -> Result<Completion, BufferError> {
        self.calls += 1;
        let calls = self.calls;
        let id = port_and_id(x);
        let Some(channel) = self.find(id, [x[4] as u32, x[6] as u32]) else { return bulk_result(x, status::CLOSED) };
        let Some((bytes, position)) = &mut channel.outgoing else { return bulk_result(x, 0) };
        if x[2] != bytes.len() as u64 || *position != 0 {
            return bulk_result(x, 0);
        }
        channel.used = calls;
        let begin = channel.moved;
        let end = (begin + PIECE).min(bytes.len());
        let place = x[5].wrapping_add(begin as u64);
        match bytes.get(begin..end).map_or(Ok(()), |piece| host.write(place, piece)) {
            Ok(()) => channel.moved = end,
            Err(BufferError::NotMemory) => {
                channel.moved = 0;
                return bulk_result(x, 0);
            }
            Err(fault) => return Err(fault),
        }
        if end < bytes.len() {
            return Ok(Completion::More);
        }
        *position = bytes.len();
        channel.moved = 0;
        bulk_result(x, status::SUCCESS)
    }
}

/// Something that is a [`Peer`] once it can reach the host.
pub trait PeerOf {
    /// The peer.
    fn with<'a, H: Host>(&'a mut self, host: &'a mut H) -> impl Peer;
}

#[expect(clippy::unnecessary_wraps, reason = "so that callers can return it")]
fn bulk_result(x: &mut Registers, status: u64) -> Result<Completion, BufferError> {
    x[1] = status << 16;
    Ok(Completion::Finished)
}

fn send_size(
    channel: &mut Channel,
    id: u16,
    x: &mut Registers,
    limits: &Limits,
    buffered: usize,
    peer: &mut impl PeerOf,
    host: &mut impl Host,
) {
    channel.incoming = None;
    channel.outgoing = None;
    channel.moved = 0;
    let length = x[1] as u32 as usize;
    let mut bytes = Vec::new();
    if length > limits.message || buffered + length > limits.buffers || bytes.try_reserve_exact(length).is_err() {
        return finish(x, 0);
    }
    channel.incoming = Some((bytes, length));
    if length == 0 {
        complete(channel, id, peer, host);
    }
    finish(x, status::SUCCESS | if length > 0 { status::BULK } else { 0 });
}

fn send_payload(channel: &mut Channel, id: u16, x: &mut Registers, peer: &mut impl PeerOf, host: &mut impl Host) {
    let Some((bytes, length)) = &mut channel.incoming else { return finish(x, 0) };
    let part = (*length - bytes.len()).min(4);
    bytes.extend((x[1] as u32).to_le_bytes().iter().take(part));
    if bytes.len() == *length {
        complete(channel, id, peer, host);
    }
    finish(x, status::SUCCESS);
}

/// A message has arrived.
fn complete(channel: &mut Channel, id: u16, peer: &mut impl PeerOf, host: &mut impl Host) {
    let Some((message, _)) = channel.incoming.take() else { return };
    channel.moved = 0;
    channel.outgoing = peer.with(host).message(id, channel.protocol, &message).map(|reply| (reply, 0));
}

fn receive_size(channel: &mut Channel, id: u16, x: &mut Registers, peer: &mut impl PeerOf, host: &mut impl Host) {
    if channel.outgoing.is_none() && channel.protocol == Protocol::Tclo {
        channel.outgoing = peer.with(host).poll(id).map(|request| (request, 0));
    }
    let Some((bytes, position)) = &mut channel.outgoing else { return finish(x, status::SUCCESS) };
    *position = 0;
    channel.moved = 0;
    x[1] = bytes.len() as u64;
    // The clients look at this: what comes next is a size.
    x[3] = u64::from(step::SEND_SIZE) << 16;
    finish(x, status::SUCCESS | status::DO_RECEIVE | status::BULK);
}

fn receive_payload(channel: &mut Channel, x: &mut Registers) {
    // The guest says whether it could use the piece before.
    if x[1] & status::SUCCESS == 0 {
        channel.outgoing = None;
        return finish(x, status::SUCCESS);
    }
    let Some((bytes, position)) = &mut channel.outgoing else { return finish(x, 0) };
    let mut word = [0; 4];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(*position)) {
        *to = *from;
    }
    *position = (*position + 4).min(bytes.len());
    x[1] = u64::from(u32::from_le_bytes(word));
    x[3] = u64::from(step::SEND_PAYLOAD) << 16;
    finish(x, status::SUCCESS);
}
