//! The network device (section 5.1): two queues, one of buffers for frames that arrive and one of frames to be sent. At its other end is a
//! port of a [`Switch`].
//!
//! A frame goes from the sender's memory into the receiver's buffers in one copy ([`receive`]), when the sender's driver offers it: there
//! is no queue between them. It arrives at once, or is dropped and counted, as on a wire: a receiver without buffers makes nobody
//! wait. So what is in flight is one chain at most, of which a saved device only says that it is to be returned; the frame may have
//! been lost.
//!
//! The sender's vCPU does all of that work, a bounded part of it a call. What it has to have from the receiver, its lock and its memory,
//! the owner knows how to get: see [`Link`].
//!
//! A driver may leave a frame's checksum open, or its division into segments, and say so in the header before the frame ([`offload`]). That
//! is looked at, and passed on to a receiver whose driver has accepted such; for one that takes no open checksum it is computed.

mod offload;
mod receive;

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;
use switch::{Counters, Destination, HEAD, Lap, MAX_FRAME, PortId, Reason, Switch};

pub use offload::Offload;
pub use receive::{Between, Received, Side};

use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::{Fault, GuestMemory};
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::saved::SavedNet;
use units::Ipa;

/// The queues: buffers for what arrives, and frames to be sent.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Bytes before each frame, that say what is open in it (section 5.1.6).
pub const HEADER: usize = 12;

/// So many bytes of a frame are looked at: its head, and of an IP packet behind it the version and what it carries. They arrive as they were
/// looked at, whatever the sender's driver does meanwhile.
const LOOKED: usize = HEAD + 10;

/// The feature bits, of VIRTIO_NET_F_ each.
mod feature {
    pub(super) const CHECKSUM: u64 = 1 << 0;
    pub(super) const GUEST_CHECKSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MERGEABLE: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    /// Those that are offered.
    pub(super) const ALL: u64 = CHECKSUM
        | GUEST_CHECKSUM
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MERGEABLE
        | STATUS;
}

/// Bytes of the configuration space: address, status, pairs of queues, MTU.
const CONFIG: usize = 12;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u8 = 1;

/// What a call may do, in instructions, about; and what a frame takes of that at least, with a byte in so many an instruction. What its receiver
/// makes it cost beyond that is taken of it too.
const WORK_A_CALL: u32 = 8_000;
const WORK_OF_A_FRAME: u32 = 2_000;
const BYTES_A_WORK: u32 = 4;

/// So many times a frame is brought to a port again, each time in a turn of its own, and then it is dropped: who keeps a port busy slows nobody,
/// and nothing is tried for ever.
const TRIES: u8 = 32;

/// What became of a frame at one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// It is there, or was dropped and counted there.
    Done,
    /// Nobody is at that port.
    Absent,
    /// The port cannot be had now; the frame is to be brought again soon. Nothing of it was delivered.
    Busy,
    /// The sender's memory could not be read there. Nothing of it was delivered.
    Unread(Ipa),
}

/// What a network device is connected with. The owner of both ends makes it.
pub trait Link {
    /// The switch, and which of its ports this is.
    fn port(&self) -> (&Switch, PortId);

    /// Whether a frame may go to all others now: a guest may send so many.
    fn may_flood(&mut self) -> bool;

    /// Brings a frame to another port, whose device takes it in ([`Net::take_in`]), under the locks that this needs. The device that sends it is
    /// locked already, and so may that one be by somebody who wants this one: it is not waited for. Adds to `spent` what it has taken, in
    /// instructions, about.
    fn deliver(&mut self, to: PortId, frame: &Frame<'_>, spent: &mut u32) -> Delivery;
}

/// A link to nobody, for a device alone.
#[derive(Clone, Debug, Default)]
pub struct NoLink(Switch);

impl Link for NoLink {
    fn port(&self) -> (&Switch, PortId) {
        (&self.0, PortId(0))
    }

    fn may_flood(&mut self) -> bool {
        false
    }

    fn deliver(&mut self, _to: PortId, _frame: &Frame<'_>, _spent: &mut u32) -> Delivery {
        Delivery::Absent
    }
}

/// A frame on its way, in its sender's memory.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Header and frame.
    chain: &'a Chain,
    /// Its first bytes, as they were looked at: its driver may change those in its memory meanwhile. What a shorter one does not have is zeros.
    begin: [u8; LOOKED],
    /// Bytes of the frame alone: from those of a head up to [`MAX_FRAME`].
    length: u32,
    offload: Offload,
}

impl Frame<'_> {
    /// How many bytes it has.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// In how many pieces its sender has it.
    #[must_use]
    pub fn pieces(&self) -> u32 {
        self.chain.readable().len() as u32
    }

    /// Whether all of it may have to be read for a checksum.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.offload.is_open()
    }

    /// How many of its bytes were looked at.
    fn looked(&self) -> usize {
        LOOKED.min(self.length as usize)
    }
}

/// What became of bringing a frame to a port.
enum Brought {
    /// It is there, or was dropped and counted there.
    There,
    /// It did not get there.
    Nowhere(Reason),
    /// It is to be brought again.
    Again,
}

/// How far a frame has come that was taken from the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sending {
    /// There is none.
    Nothing,
    /// It is to be looked at.
    Begun,
    /// It goes to all others, of which so many had it.
    Round(Lap),
    /// It is to be returned to the driver.
    Over,
}

/// A network device.
#[derive(Debug)]
pub struct Net<L> {
    link: L,
    config: [u8; CONFIG],
    mtu: u16,
    /// What the driver has accepted; nothing until it has.
    features: u64,
    chain: Chain,
    sending: Sending,
    /// How many times the frame could not be brought to the port that it goes to now.
    tries: u8,
    /// The first buffer of a frame that arrives, and the next one. Nothing of them outlasts a call.
    first: Chain,
    next: Chain,
    /// Where the memory refused a frame that arrived, to be made ready at this guest's cost.
    wanted: Option<Ipa>,
    counters: Counters,
}

impl<L: Link> Net<L> {
    /// A device behind `link`, with an address and the largest packet that its network carries.
    #[must_use]
    pub fn new(link: L, mac: [u8; 6], mtu: u16) -> Self {
        let mut config = [0; CONFIG];
        let parts = [(0, &mac[..]), (6, &[LINK_UP]), (8, &[1]), (10, &mtu.to_le_bytes())];
        for (at, bytes) in parts {
            config.iter_mut().skip(at).zip(bytes).for_each(|(place, &byte)| *place = byte);
        }
        Self {
            link,
            config,
            mtu,
            features: 0,
            chain: Chain::new(LARGEST),
            sending: Sending::Nothing,
            tries: 0,
            first: Chain::new(LARGEST),
            next: Chain::new(LARGEST),
            wanted: None,
            counters: Counters::default(),
        }
    }

    /// What it has carried.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A frame did not reach it, for whoever finds that it is not there.
    pub fn missed(&mut self, reason: Reason) {
        self.counters.drop(reason);
    }

    const fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Goes on with the frame of the chain; says whether it is over. `work` is what may still be done in this call.
    fn send<M: GuestMemory>(&mut self, memory: &M, work: &mut u32) -> Result<bool, QueueError> {
        let all = self.chain.taken().saturating_add(self.chain.unread());
        let length = all.saturating_sub(HEADER as u32);
        if length < HEAD as u32 || length > MAX_FRAME {
            self.counters.drop(Reason::Length);
            return Ok(true);
        }
        // Read anew in each call, so that nothing but the chain outlasts one.
        self.chain.read_again();
        let mut bytes = [0; HEADER + LOOKED];
        let wanted = HEADER + LOOKED.min(length as usize);
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..wanted).filter(|rest| !rest.is_empty()) {
            read += self.chain.read(memory, rest)?;
        }
        let (Some(header), Some(&begin)) = (bytes.first_chunk(), bytes.last_chunk()) else { return Ok(true) };
        let Some(head) = begin.first_chunk() else { return Ok(true) };
        let offload = match Offload::of(header, &begin, self.features, (length, self.mtu)) {
            Ok(offload) => offload,
            Err(reason) => {
                self.counters.drop(reason);
                return Ok(true);
            }
        };
        let (switch, port) = self.link.port();
        let mut round = match (self.sending, switch.judge(port, head)) {
            (_, Err(reason)) => {
                self.counters.drop(reason);
                return Ok(true);
            }
            // If it is still what it was when the round began.
            (Sending::Round(round), Ok(Destination::All)) => round,
            (Sending::Round(_), Ok(Destination::One(_))) => return Ok(true),
            (_, Ok(Destination::One(to))) => {
                match self.bring(memory, to, (begin, length, offload), work)? {
                    Brought::There => self.counters.sent.count(length),
                    Brought::Nowhere(reason) => self.counters.drop(reason),
                    Brought::Again => return Ok(false),
                }
                return Ok(true);
            }
            (_, Ok(Destination::All)) => {
                let round = switch.round(port);
                if !self.link.may_flood() {
                    self.counters.drop(Reason::Pace);
                    return Ok(true);
                }
                self.counters.sent.count(length);
                self.counters.floods = self.counters.floods.wrapping_add(1);
                round
            }
        };
        loop {
            self.sending = Sending::Round(round);
            let (switch, port) = self.link.port();
            let Some(to) = switch.next(port, &mut round) else { return Ok(true) };
            if *work == 0 {
                return Ok(false);
            }
            match self.bring(memory, to, (begin, length, offload), work)? {
                Brought::Nowhere(reason @ (Reason::Busy | Reason::Memory)) => self.counters.drop(reason),
                Brought::There | Brought::Nowhere(_) => {}
                Brought::Again => return Ok(false),
            }
        }
    }

    /// Brings the frame of the chain to another port.
    fn bring<M: GuestMemory>(
        &mut self,
        memory: &M,
        to: PortId,
        (begin, length, offload): ([u8; LOOKED], u32, Offload),
        work: &mut u32,
    ) -> Result<Brought, QueueError> {
        let frame = Frame { chain: &self.chain, begin, length, offload };
        let mut spent = 0;
        let delivery = self.link.deliver(to, &frame, &mut spent);
        *work = work.saturating_sub(spent.max(WORK_OF_A_FRAME + length / BYTES_A_WORK));
        let brought = match delivery {
            Delivery::Done => Brought::There,
            Delivery::Absent => Brought::Nowhere(Reason::Down),
            Delivery::Busy if self.tries < TRIES => {
                self.tries += 1;
                return Ok(Brought::Again);
            }
            Delivery::Busy => Brought::Nowhere(Reason::Busy),
            // Once the sender's memory is ready there. If it is so already, it was of no use to look there.
            Delivery::Unread(at) => {
                memory.read(at, &mut [0])?;
                if self.tries < TRIES {
                    self.tries += 1;
                    return Ok(Brought::Again);
                }
                Brought::Nowhere(Reason::Memory)
            }
        };
        self.tries = 0;
        Ok(brought)
    }
}

impl<L: Link> Device for Net<L> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Net
    }

    fn features(&self) -> u64 {
        feature::ALL
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST; 2]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.features = features & feature::ALL;
    }

    fn reset(&mut self) {
        self.features = 0;
        self.sending = Sending::Nothing;
        self.wanted = None;
    }

    fn let_go(&mut self, index: usize) {
        match index {
            RECEIVE => self.wanted = None,
            _ => self.sending = Sending::Nothing,
        }
    }

    fn exchange(&mut self, _outside: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedNet;

    fn save(&self) -> Result<SavedNet, Damaged> {
        let Self {
            link: _,
            config,
            mtu,
            features,
            chain,
            sending,
            // The frame is not brought again.
            tries: _,
            // Used within one call.
            first: _,
            next: _,
            // The next frame finds out again.
            wanted: _,
            // They are the host's.
            counters: _,
        } = self;
        let sending = (*sending != Sending::Nothing).then(|| chain.head());
        let mac = config.first_chunk().copied().unwrap_or_default();
        Ok(SavedNet { mac, mtu: *mtu, features: *features, sending })
    }

    fn restore(&mut self, saved: &SavedNet) -> Result<(), Unfit> {
        // Its port's address is what the place has: the driver hears of another one, and sees it when it looks.
        let SavedNet { mac: _, mtu, features, sending } = saved;
        if *mtu != self.mtu {
            return Err(Unfit("a network has another MTU than it had when the VM was saved"));
        }
        if features & !feature::ALL != 0 {
            return Err(Unfit("the driver of a network device has accepted features that this one does not have"));
        }
        if let Some(head) = sending {
            self.chain.begin(*head);
        }
        self.features = *features;
        self.sending = if sending.is_some() { Sending::Over } else { Sending::Nothing };
        self.wanted = None;
        Ok(())
    }

    fn has_another_config(&self, saved: &SavedNet) -> bool {
        self.config.first_chunk() != Some(&saved.mac)
    }

    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        if index != TRANSMIT {
            if let Some(at) = self.wanted {
                match memory.make_ready(at) {
                    Err(fault) if memory.is_refused_for_now() => return Err(fault.into()),
                    // What else is wrong with the place shows when a frame is to go there.
                    Ok(()) | Err(Fault(_)) => self.wanted = None,
                }
            }
            return Ok(Progress::Idle);
        }
        let [_, queue] = queues else { return Ok(Progress::Idle) };
        let mut work = WORK_A_CALL;
        for _ in 0..CHAINS_A_CALL {
            if self.sending == Sending::Nothing {
                if work == 0 {
                    return Ok(Progress::More);
                }
                if !queue.pop(memory, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                self.sending = Sending::Begun;
                self.tries = 0;
            }
            if self.sending != Sending::Over {
                if !self.send(memory, &mut work)? {
                    return Ok(Progress::More);
                }
                // Before it is returned, which may be refused: it would be sent twice.
                self.sending = Sending::Over;
            }
            queue.push(memory, &self.chain)?;
            self.sending = Sending::Nothing;
        }
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests;
