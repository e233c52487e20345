//! A disk that is, or is a part of, one of the host's: several requests at once, each of which waits for a [`Backend`].
//!
//! A request has a slot, here and at the backend. It moves through steps, each of which can be gone on with later: its header is read; what it
//! writes is moved into the slot's buffer, piece by piece where it is longer than that; the backend has it; what was read is moved to
//! the guest; it is answered. A step that has to wait, for the backend or for memory, leaves the others alone, so requests are answered in
//! the order in which they end.
//!
//! The backend never touches the guest's memory, and the guest never the backend's. So whatever becomes of the guest meanwhile, a request
//! that the backend has can only end in its own slot. A driver that takes its requests back (a reset) is let begin new ones when the
//! backend is rid of those: a write that is still under way would otherwise come behind one that was asked for later.
//!
//! A flush is the backend's. Where it has a cache that may be lost, and the driver did not accept flushes, each write is flushed before it is
//! answered (section 5.2.6.2). The backend's errors are answered as I/O errors of the request that they are of.

use alloc::vec::Vec;

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;
use units::{DiskOutcome, DiskRequest, SECTOR};

use super::{
    Block, CONFIG, COPY, DISCARD, DONE, FAILED, FEATURE_BLOCK_SIZE, FEATURE_READ_ONLY, FEATURE_SEGMENTS, FLUSH,
    GET_SERIAL, HEADER, MAX_SERIAL, MAY_GIVE_BACK, RANGE, READ, UNKNOWN, WRITE, ZERO,
};
use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::saved::{SavedBlock, SavedChanges};

/// The most requests of one disk that are under way at once.
pub const MOST_SLOTS: usize = 16;

/// VIRTIO_BLK_F_FLUSH, _DISCARD and _WRITE_ZEROES.
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_ZERO: u64 = 1 << 14;

/// What a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// How many sectors there are.
    pub sectors: u64,
    /// The bytes of its blocks, of which each request has whole ones: a power of two, at least [`SECTOR`].
    pub block: u32,
    /// It cannot be written.
    pub is_read_only: bool,
    /// What was written may be lost with the power until it is flushed.
    pub has_cache: bool,
    /// The most sectors that it discards at once, and where they had better begin; none if it does not.
    pub discard: Option<(u32, u32)>,
    /// The most that it zeroes at once.
    pub zero: Option<u32>,
    /// How many requests it has slots for, and how many bytes the buffer of each has: whole blocks.
    pub slots: usize,
    /// Those bytes.
    pub room: usize,
}

/// Whoever has what is on the disk.
pub trait Backend: Send {
    /// What it is; always the same.
    fn facts(&self) -> Facts;

    /// Writes into the buffer of a slot that has nothing under way.
    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]);

    /// Copies out of the buffer of a slot whose outcome is known.
    fn copy(&mut self, slot: usize, offset: usize, into: &mut [u8]);

    /// Begins something with a slot that has nothing under way.
    fn begin(&mut self, slot: usize, wish: DiskRequest);

    /// All was begun that can be now: for a backend that is told of several at once.
    fn send(&mut self);

    /// How what was begun with a slot has ended; nothing while it is under way. The slot has nothing under way then.
    fn outcome(&mut self, slot: usize) -> Option<DiskOutcome>;
}

/// There is none: for whoever has no such disks.
impl Backend for core::convert::Infallible {
    fn facts(&self) -> Facts {
        match *self {}
    }

    fn fill(&mut self, _slot: usize, _offset: usize, _bytes: &[u8]) {
        match *self {}
    }

    fn copy(&mut self, _slot: usize, _offset: usize, _into: &mut [u8]) {
        match *self {}
    }

    fn begin(&mut self, _slot: usize, _wish: DiskRequest) {
        match *self {}
    }

    fn send(&mut self) {
        match *self {}
    }

    fn outcome(&mut self, _slot: usize) -> Option<DiskOutcome> {
        match *self {}
    }
}

/// What a request is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// There is none.
    Free,
    /// So many bytes of its header have been read.
    Header(usize),
    /// So many bytes of the next piece are in the buffer.
    Filling(usize),
    /// The backend has it, or a piece of it of so many bytes.
    UnderWay(usize),
    /// The backend flushes what it wrote, which its driver cannot ask for.
    Settling,
    /// Of a piece that was read, so many bytes, those up to there are the guest's.
    Emptying(usize, usize),
    /// This is its answer.
    Answered(u8),
    /// Its driver took it back. The backend still has it.
    Abandoned,
}

/// A request, and its place.
#[derive(Debug)]
struct Slot {
    chain: Chain,
    step: Step,
    header: [u8; HEADER],
    range: [u8; RANGE],
    /// Bytes of its data that it is done with.
    done: usize,
}

impl Slot {
    /// How many bytes of data there are for the guest to get. The last byte is for the answer.
    fn room(&self) -> usize {
        (self.chain.written() as usize + self.chain.unwritten() as usize).saturating_sub(1)
    }

    /// How many bytes there are behind the header.
    fn data(&self) -> usize {
        (self.chain.taken() as usize + self.chain.unread() as usize).saturating_sub(HEADER)
    }
}

/// A disk at a backend.
#[derive(Debug)]
pub struct HostBlock<B> {
    backend: B,
    facts: Facts,
    config: [u8; CONFIG],
    serial: [u8; MAX_SERIAL],
    slots: Vec<Slot>,
    /// The slot whose chain is being taken from the queue, if that had to stop.
    taking: Option<usize>,
    /// The driver asks for flushes itself.
    flushes: bool,
}

impl<B: Backend> HostBlock<B> {
    /// A disk with this backend and this serial number, which is cut to what there is room for.
    #[must_use]
    pub fn new(backend: B, serial: &str) -> Self {
        let facts = backend.facts();
        let mut padded = [0; MAX_SERIAL];
        padded.iter_mut().zip(serial.bytes()).for_each(|(place, byte)| *place = byte);
        let mut config = [0; CONFIG];
        // Of a chain's descriptors one is for the header, and one for the answer.
        let segments = u32::from(LARGEST) - 2;
        let (discard, alignment) = facts.discard.unwrap_or_default();
        let zero = facts.zero.unwrap_or_default();
        let values = [
            (0, &facts.sectors.to_le_bytes()[..]),
            (12, &segments.to_le_bytes()),
            (20, &facts.block.to_le_bytes()),
            (36, &discard.to_le_bytes()),
            (40, &u32::from(discard > 0).to_le_bytes()),
            (44, &alignment.to_le_bytes()),
            (48, &zero.to_le_bytes()),
            (52, &u32::from(zero > 0).to_le_bytes()),
            (56, &[u8::from(zero > 0)]),
        ];
        for (at, bytes) in values {
            config.iter_mut().skip(at).zip(bytes).for_each(|(place, &byte)| *place = byte);
        }
        let slot =
            |_| Slot { chain: Chain::new(LARGEST), step: Step::Free, header: [0; HEADER], range: [0; RANGE], done: 0 };
        let slots = (0..facts.slots.min(MOST_SLOTS)).map(slot).collect();
        Self { backend, facts, config, serial: padded, slots, taking: None, flushes: false }
    }

    /// Its driver takes all requests back.
    fn take_back(&mut self) {
        for slot in &mut self.slots {
            slot.step = match slot.step {
                Step::UnderWay(_) | Step::Settling | Step::Abandoned => Step::Abandoned,
                _ => Step::Free,
            };
        }
        self.taking = None;
    }

    /// Whether the backend still has something that a driver took back.
    fn is_haunted(&mut self) -> bool {
        let mut is_haunted = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.step == Step::Abandoned {
                match self.backend.outcome(index) {
                    Some(_) => slot.step = Step::Free,
                    None => is_haunted = true,
                }
            }
        }
        is_haunted
    }

    /// Goes on with the request of slot number `index`. Says whether it has an answer.
    fn advance<M: GuestMemory>(&mut self, index: usize, memory: &M) -> Result<bool, QueueError> {
        let Self { backend, facts, slots, serial, flushes, .. } = self;
        let Some(slot) = slots.get_mut(index) else { return Ok(false) };
        loop {
            slot.step = match slot.step {
                Step::Free | Step::Abandoned => return Ok(false),
                Step::Answered(_) => return Ok(true),
                Step::Header(read) => {
                    let rest = slot.header.get_mut(read..).unwrap_or(&mut []);
                    if rest.is_empty() {
                        slot.done = 0;
                        next(slot, index, backend, facts, serial, memory)?
                    } else {
                        match slot.chain.read(memory, rest)? {
                            0 => Step::Answered(FAILED),
                            more => Step::Header(read + more),
                        }
                    }
                }
                Step::Filling(filled) => {
                    let piece = (slot.data() - slot.done).min(facts.room);
                    if filled == piece {
                        let (_, sector) = Block::<[u8; 0]>::wish(&slot.header);
                        let sector = sector + slot.done as u64 / SECTOR;
                        backend.begin(index, DiskRequest::Write(sector, piece as u32));
                        Step::UnderWay(piece)
                    } else {
                        let mut copy = [0; COPY];
                        let part = copy.get_mut(..(piece - filled).min(COPY)).unwrap_or(&mut []);
                        let read = slot.chain.read(memory, part)?;
                        backend.fill(index, filled, part.get(..read).unwrap_or(&[]));
                        Step::Filling(filled + read)
                    }
                }
                Step::UnderWay(piece) => match backend.outcome(index) {
                    None => return Ok(false),
                    Some(DiskOutcome::Failed) => Step::Answered(FAILED),
                    Some(DiskOutcome::Unknown) => Step::Answered(UNKNOWN),
                    Some(DiskOutcome::Done) => match Block::<[u8; 0]>::wish(&slot.header).0 {
                        READ => Step::Emptying(piece, 0),
                        WRITE if slot.done + piece < slot.data() => {
                            slot.done += piece;
                            Step::Filling(0)
                        }
                        FLUSH => Step::Answered(DONE),
                        _ if *flushes || !facts.has_cache => Step::Answered(DONE),
                        _ => {
                            backend.begin(index, DiskRequest::Flush);
                            Step::Settling
                        }
                    },
                },
                Step::Settling => match backend.outcome(index) {
                    None => return Ok(false),
                    Some(DiskOutcome::Done) => Step::Answered(DONE),
                    Some(_) => Step::Answered(FAILED),
                },
                Step::Emptying(piece, emptied) if emptied == piece => {
                    slot.done += piece;
                    next(slot, index, backend, facts, serial, memory)?
                }
                Step::Emptying(piece, emptied) => {
                    let mut copy = [0; COPY];
                    let part = copy.get_mut(..(piece - emptied).min(COPY)).unwrap_or(&mut []);
                    backend.copy(index, emptied, part);
                    Step::Emptying(piece, emptied + slot.chain.write(memory, part)?)
                }
            };
        }
    }

    /// Gives the request of slot number `index`, which has an answer, back to the driver.
    fn give_back<M: GuestMemory>(&mut self, index: usize, queue: &mut Queue, memory: &M) -> Result<(), QueueError> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Step::Answered(answer) = slot.step else { return Ok(()) };
        slot.chain.write_last(memory, answer)?;
        queue.push(memory, &slot.chain)?;
        slot.step = Step::Free;
        Ok(())
    }

    /// Takes a request from the queue, if there is one and a slot for it. Its slot.
    fn take<M: GuestMemory>(&mut self, queue: &mut Queue, memory: &M) -> Result<Option<usize>, QueueError> {
        let free = || self.slots.iter().position(|slot| slot.step == Step::Free);
        let Some(index) = self.taking.take().or_else(free) else { return Ok(None) };
        let Some(slot) = self.slots.get_mut(index) else { return Ok(None) };
        // Whoever goes on with a chain has to have the same storage for it.
        self.taking = Some(index);
        let is_any = queue.pop_request(memory, &mut slot.chain)?;
        self.taking = None;
        if !is_any {
            return Ok(None);
        }
        slot.step = Step::Header(0);
        Ok(Some(index))
    }

    /// Works until all waits.
    fn work<M: GuestMemory>(&mut self, queue: &mut Queue, memory: &M) -> Result<Progress, QueueError> {
        if self.is_haunted() {
            return Ok(Progress::Blocked);
        }
        for index in 0..self.slots.len() {
            if self.advance(index, memory)? {
                self.give_back(index, queue, memory)?;
            }
        }
        for _ in 0..CHAINS_A_CALL {
            let Some(index) = self.take(queue, memory)? else {
                let is_idle = self.slots.iter().all(|slot| slot.step == Step::Free);
                return Ok(if is_idle { Progress::Idle } else { Progress::Blocked });
            };
            if self.advance(index, memory)? {
                self.give_back(index, queue, memory)?;
            }
        }
        Ok(Progress::More)
    }
}

/// What is next for a request whose header is read, and of whose data `done` bytes are done with.
fn next<M: GuestMemory>(
    slot: &mut Slot,
    index: usize,
    backend: &mut impl Backend,
    facts: &Facts,
    serial: &[u8; MAX_SERIAL],
    memory: &M,
) -> Result<Step, QueueError> {
    let (kind, sector) = Block::<[u8; 0]>::wish(&slot.header);
    let is_on = |sector: u64, sectors: u64| sector.checked_add(sectors).is_some_and(|end| end <= facts.sectors);
    let fits = |bytes: usize| {
        let bytes = bytes as u64;
        let start = sector.checked_mul(SECTOR);
        let is_whole = start.is_some_and(|start| (start | bytes).is_multiple_of(facts.block.into()));
        is_whole && is_on(sector, bytes / SECTOR)
    };
    let can_write = !facts.is_read_only;
    match kind {
        READ => {
            let all = slot.room();
            if !fits(all) {
                return Ok(Step::Answered(FAILED));
            }
            let piece = (all - slot.done).min(facts.room);
            if piece == 0 {
                return Ok(Step::Answered(DONE));
            }
            backend.begin(index, DiskRequest::Read(sector + slot.done as u64 / SECTOR, piece as u32));
            Ok(Step::UnderWay(piece))
        }
        WRITE => Ok(match slot.data() {
            all if !can_write || !fits(all) => Step::Answered(FAILED),
            0 => Step::Answered(DONE),
            _ => Step::Filling(0),
        }),
        FLUSH if facts.has_cache => {
            backend.begin(index, DiskRequest::Flush);
            Ok(Step::UnderWay(0))
        }
        // What was written is where it stays.
        FLUSH => Ok(Step::Answered(DONE)),
        GET_SERIAL => {
            let told = slot.chain.written() as usize;
            let rest = serial.get(told..slot.room().min(MAX_SERIAL)).unwrap_or(&[]);
            if rest.is_empty() {
                return Ok(Step::Answered(DONE));
            }
            slot.chain.write(memory, rest)?;
            Ok(Step::Header(HEADER))
        }
        DISCARD | ZERO if can_write => {
            let read = slot.chain.taken() as usize - HEADER;
            if let Some(rest) = slot.range.get_mut(read..).filter(|rest| !rest.is_empty()) {
                let is_short = slot.chain.read(memory, rest)? == 0;
                return Ok(if is_short { Step::Answered(FAILED) } else { Step::Header(HEADER) });
            }
            let value = u128::from_le_bytes(slot.range);
            let (first, count, flags) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
            let most = if kind == ZERO { facts.zero } else { facts.discard.map(|(most, _)| most) };
            let Some(most) = most else { return Ok(Step::Answered(UNKNOWN)) };
            if flags & !(if kind == ZERO { MAY_GIVE_BACK } else { 0 }) != 0 {
                return Ok(Step::Answered(UNKNOWN));
            }
            let blocks = u64::from(facts.block) / SECTOR;
            let is_whole = (first | u64::from(count)).is_multiple_of(blocks);
            if !is_on(first, count.into()) || count > most || !is_whole || slot.chain.unread() > 0 {
                return Ok(Step::Answered(FAILED));
            }
            if count == 0 {
                return Ok(Step::Answered(DONE));
            }
            let wish = if kind == ZERO {
                DiskRequest::Zero(first, count, flags != 0)
            } else {
                DiskRequest::Discard(first, count)
            };
            backend.begin(index, wish);
            Ok(Step::UnderWay(0))
        }
        _ => Ok(Step::Answered(UNKNOWN)),
    }
}

impl<B: Backend> Device for HostBlock<B> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        let facts = &self.facts;
        let writes = [
            (facts.has_cache, FEATURE_FLUSH),
            (facts.discard.is_some(), FEATURE_DISCARD),
            (facts.zero.is_some(), FEATURE_ZERO),
        ];
        let own = if facts.is_read_only {
            FEATURE_READ_ONLY
        } else {
            writes.iter().filter(|(has, _)| *has).fold(0, |all, (_, feature)| all | feature)
        };
        FEATURE_SEGMENTS | FEATURE_BLOCK_SIZE | own
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) {
        self.flushes = features & FEATURE_FLUSH != 0;
    }

    fn reset(&mut self) {
        self.take_back();
    }

    fn let_go(&mut self, _index: usize) {
        self.take_back();
    }

    fn exchange(&mut self, _outside: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedBlock;

    /// What is on the disk may have changed when somebody comes back to it, and nothing here would know: so it is not restored, and
    /// whoever saves a VM refuses one with such a disk first.
    fn save(&self) -> Result<SavedBlock, Damaged> {
        let changes = SavedChanges { pages: 0, next: 0, free: 0, spare: 0 };
        Ok(SavedBlock { sectors: self.facts.sectors, checksum: 0, request: None, changes })
    }

    fn restore(&mut self, _saved: &SavedBlock) -> Result<(), Unfit> {
        Err(Unfit("a disk of the VM is on the host's disk, which may have changed since"))
    }

    fn process<M: GuestMemory>(
        &mut self,
        _index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        let [queue] = queues else { return Ok(Progress::Idle) };
        let outcome = self.work(queue, memory);
        self.backend.send();
        outcome
    }
}

#[cfg(test)]
mod tests;
