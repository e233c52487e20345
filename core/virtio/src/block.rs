//! The block device (section 5.2): one queue, whose requests read and write a disk. It is an image in memory, which nobody can change, and,
//! if it may be written, what its guest has written ([`changes`]).
//!
//! A request is a chain: a header of 16 bytes that says what to do and from which sector on, the data or room for them, and one byte of
//! room for the answer. The header is copied once, and how far the device has come is part of the chain, so a request that is
//! stopped anywhere, because the memory refuses for now or a call's share is used up, goes on there, also on another host.
//!
//! A driver that names no room for the answer cannot be answered, and is stopped, as is one whose chain is a loop or is not in its
//! memory; what else is wrong with a request is answered: by an I/O error, with which no byte of data is read or written, or as unknown. A
//! write for which no memory is left ends in an I/O error too, behind what there was memory for.
//!
//! What was written is in memory when that is answered, and a flush has nothing to do. What is discarded is as in the image again, what is
//! zeroed takes no memory: in whole blocks of 4 KiB, which is why a driver is told of that size.

mod changes;
mod disk;
pub mod host;

pub use disk::Disk;

use changes::{BLOCK, Changes, NOTHING, Place};
use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;
use units::SECTOR;

use core::ops::Range;

use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::saved::{SavedBlock, SavedDiskRequest};

/// The most bytes of a serial number (section 5.2.6, VIRTIO_BLK_T_GET_ID).
pub const MAX_SERIAL: usize = 20;

/// VIRTIO_BLK_F_SEG_MAX, _RO, _BLK_SIZE, and what a disk has that may be written: _FLUSH, _TOPOLOGY, _DISCARD and _WRITE_ZEROES.
const FEATURE_SEGMENTS: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
const FEATURES_OF_WRITING: u64 = 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14;

/// The types of request that we know: VIRTIO_BLK_T_IN, _OUT, _FLUSH, _GET_ID, _DISCARD and _WRITE_ZEROES.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_SERIAL: u32 = 8;
const DISCARD: u32 = 11;
const ZERO: u32 = 13;
/// The one flag of a range that is zeroed: what it takes may be given back (section 5.2.6).
const MAY_GIVE_BACK: u32 = 1;

/// The answers: VIRTIO_BLK_S_OK, _IOERR and _UNSUPP.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const UNKNOWN: u8 = 2;

/// Bytes of a request's header: type, a field that is reserved, sector.
pub(crate) const HEADER: usize = 16;
/// Bytes of a range to be discarded or zeroed: sector, how many, flags. A request has one.
pub(crate) const RANGE: usize = 16;
/// Bytes of the configuration space (section 5.2.4).
const CONFIG: usize = 60;
/// Bytes that are copied at once from or to what was written; they lie on the stack meanwhile.
const COPY: usize = 1024;
/// Sectors of a block.
const SECTORS: u64 = BLOCK as u64 / SECTOR;
/// The most bytes that go to the guest in one access. How many a call moves is up to the memory, which refuses when it is enough.
const PIECE: usize = 4096;

/// A request that the device works on; its chain is the device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    header: [u8; HEADER],
    /// How many bytes of the header have been read.
    read: usize,
    /// The answer, once it is known.
    answer: Option<u8>,
    /// The range to be discarded or zeroed, as far as it was read, less what is done of it.
    range: [u8; RANGE],
}

/// A disk whose contents are the bytes of `I`, and what was written.
#[derive(Debug)]
pub struct Block<I> {
    image: I,
    /// The checksum of the image, by which a saved device finds the disk again that it had.
    checksum: u32,
    config: [u8; CONFIG],
    serial: [u8; MAX_SERIAL],
    chain: Chain,
    request: Option<Request>,
    changes: Changes,
}

impl<I: AsRef<[u8]>> Block<I> {
    /// A disk that cannot be written, with this image, of which `checksum` is the CRC-32C, and with a serial number, which is cut to what
    /// there is room for. Bytes behind the last whole sector are not on the disk.
    #[must_use]
    pub fn new(image: I, checksum: u32, serial: &str) -> Self {
        Self::with_changes(image, checksum, serial, 0..0)
    }

    /// As [`Block::new`]; it can be written, unless `changes` is empty: those bytes of the VM's annex are for that, whole pages.
    #[must_use]
    pub fn with_changes(image: I, checksum: u32, serial: &str, changes: Range<u64>) -> Self {
        let mut padded = [0; MAX_SERIAL];
        padded.iter_mut().zip(serial.bytes()).for_each(|(place, byte)| *place = byte);
        let sectors = image.as_ref().len() as u64 / SECTOR;
        let mut config = [0; CONFIG];
        // Of a chain's descriptors one is for the header, and one for the answer.
        let segments = u32::from(LARGEST) - 2;
        let most = u32::try_from(sectors).unwrap_or(u32::MAX).to_le_bytes();
        let is_written =
            [(24, &[3][..]), (26, &[8]), (36, &most), (40, &[1]), (44, &[8]), (48, &most), (52, &[1]), (56, &[1])];
        let changes = Changes::new(sectors * SECTOR, changes.start, changes.end.saturating_sub(changes.start));
        let more = if changes.is_possible() { &is_written[..] } else { &[] };
        let always = [
            (0, &sectors.to_le_bytes()[..]),
            (12, &segments.to_le_bytes()[..]),
            (20, &(SECTOR as u32).to_le_bytes()[..]),
        ];
        for &(at, bytes) in always.iter().chain(more) {
            config.iter_mut().skip(at).zip(bytes).for_each(|(place, &byte)| *place = byte);
        }
        Self { image, checksum, config, serial: padded, chain: Chain::new(LARGEST), request: None, changes }
    }

    /// How many sectors the disk has.
    fn sectors(&self) -> u64 {
        self.image.as_ref().len() as u64 / SECTOR
    }

    /// Goes on with the request until it is answered, or the memory refuses.
    fn work<M: GuestMemory>(&mut self, memory: &M) -> Result<(), QueueError> {
        let Some(mut request) = self.request else { return Ok(()) };
        let outcome = self.advance(&mut request, memory);
        // However far it came.
        self.request = Some(request);
        Ok(self.chain.write_last(memory, outcome?)?)
    }

    /// The answer.
    fn advance<M: GuestMemory>(&mut self, request: &mut Request, memory: &M) -> Result<u8, QueueError> {
        loop {
            if let Some(answer) = request.answer {
                return Ok(answer);
            }
            if let Some(rest) = request.header.get_mut(request.read..).filter(|rest| !rest.is_empty()) {
                match self.chain.read(memory, rest)? {
                    0 => request.answer = Some(FAILED),
                    read => request.read += read,
                }
                continue;
            }
            request.answer = match Self::wish(&request.header) {
                (READ, sector) => self.read(memory, sector)?,
                (WRITE, sector) if self.changes.is_possible() => self.write(memory, sector)?,
                (kind @ (DISCARD | ZERO), _) if self.changes.is_possible() => {
                    self.clear(memory, kind, &mut request.range)?
                }
                (GET_SERIAL, _) => self.tell_serial(memory)?,
                (FLUSH, _) => Some(DONE),
                (WRITE, _) => Some(FAILED),
                _ => Some(UNKNOWN),
            };
        }
    }

    /// How many bytes of data have gone to the guest, and how many there is room for. The last byte is for the answer.
    fn room(&self) -> (usize, usize) {
        let done = self.chain.written() as usize;
        (done, (done + self.chain.unwritten() as usize).saturating_sub(1))
    }

    /// Where byte `done` is of `bytes` on the disk from a sector on, if these are whole sectors and all of them are on the disk.
    fn place(&self, sector: u64, bytes: usize, done: usize) -> Option<u64> {
        let count = (bytes as u64).is_multiple_of(SECTOR).then_some(bytes as u64 / SECTOR)?;
        sector.checked_add(count).filter(|&end| end <= self.sectors())?;
        Some(sector * SECTOR + done as u64)
    }

    /// Reads on: a piece of it, which lies in one block where there may be changes.
    fn read<M: GuestMemory>(&mut self, memory: &M, sector: u64) -> Result<Option<u8>, QueueError> {
        let (done, room) = self.room();
        let Some(at) = self.place(sector, room, done) else { return Ok(Some(FAILED)) };
        if done == room {
            return Ok(Some(DONE));
        }
        let offset = at as usize % BLOCK;
        let length = (room - done).min(if self.changes.is_possible() { BLOCK - offset } else { PIECE });
        match self.changes.find(memory, at / BLOCK as u64)? {
            Place::Image => {
                let whole = self.image.as_ref();
                let piece = usize::try_from(at).ok().and_then(|at| whole.get(at..)?.get(..length)).unwrap_or(&[]);
                self.chain.write(memory, piece)?;
            }
            Place::Zeros => {
                self.chain.write(memory, NOTHING.get(..length).unwrap_or(&NOTHING))?;
            }
            Place::Page(page) => {
                let mut copy = [0; COPY];
                let piece = copy.get_mut(..length.min(COPY)).unwrap_or(&mut []);
                self.changes.read(memory, page, offset, piece)?;
                self.chain.write(memory, piece)?;
            }
        }
        Ok(None)
    }

    /// Writes on: a piece of it, into the page of its block, which has what was on the block before.
    fn write<M: GuestMemory>(&mut self, memory: &M, sector: u64) -> Result<Option<u8>, QueueError> {
        let done = self.chain.taken() as usize - HEADER;
        let all = done + self.chain.unread() as usize;
        let Some(at) = self.place(sector, all, done) else { return Ok(Some(FAILED)) };
        if done == all {
            return Ok(Some(DONE));
        }
        let Some(page) = self.page(memory, at / BLOCK as u64)? else { return Ok(Some(FAILED)) };
        let offset = at as usize % BLOCK;
        let mut copy = [0; COPY];
        // What is read is what there is left, and no more than goes there.
        let piece = copy.get_mut(..COPY.min(BLOCK - offset)).unwrap_or(&mut []);
        let before = self.chain.mark();
        let read = self.chain.read(memory, piece)?;
        let put = self.changes.write(memory, page, offset, piece.get(..read).unwrap_or(&[]));
        if put.is_err() {
            self.chain.go_back(before);
        }
        put?;
        Ok(None)
    }

    /// The page of a block, which is given one if it has none; `None` if none is left.
    fn page<M: GuestMemory>(&mut self, memory: &M, block: u64) -> Result<Option<u32>, QueueError> {
        let contents = match self.changes.find(memory, block)? {
            Place::Page(page) => return Ok(Some(page)),
            Place::Zeros => None,
            Place::Image => Some(self.image.as_ref()),
        };
        let first = (block * BLOCK as u64) as usize;
        let contents = contents.map(|image| {
            let rest = image.get(first..).unwrap_or(&[]);
            rest.get(..BLOCK).unwrap_or(rest)
        });
        Ok(self.changes.give(memory, block, contents)?)
    }

    /// Discards or zeroes on: what there is of the range in one block. What is done of it is no longer in the range.
    fn clear<M: GuestMemory>(
        &mut self,
        memory: &M,
        kind: u32,
        range: &mut [u8; RANGE],
    ) -> Result<Option<u8>, QueueError> {
        let read = self.chain.taken() as usize - HEADER;
        if let Some(rest) = range.get_mut(read..).filter(|rest| !rest.is_empty()) {
            return Ok((self.chain.read(memory, rest)? == 0).then_some(FAILED));
        }
        let value = u128::from_le_bytes(*range);
        let (sector, count, flags) = (value as u64, (value >> 64) as u32, (value >> 96) as u32);
        if flags & !(if kind == ZERO { MAY_GIVE_BACK } else { 0 }) != 0 {
            return Ok(Some(UNKNOWN));
        }
        let end = sector.checked_add(count.into()).filter(|&end| end <= self.sectors() && self.chain.unread() == 0);
        let Some(end) = end else { return Ok(Some(FAILED)) };
        if count == 0 {
            return Ok(Some(DONE));
        }
        let (block, first) = (sector / SECTORS, sector % SECTORS);
        let sectors = (SECTORS - first).min(count.into());
        let is_whole = first == 0 && (sectors == SECTORS || end == self.sectors());
        let place = self.changes.find(memory, block)?;
        match (kind, place, is_whole) {
            (DISCARD, Place::Page(page), true) => self.changes.take_back(memory, block, page, Place::Image)?,
            (DISCARD, ..) | (_, Place::Zeros, _) => {}
            (_, Place::Image, true) => self.changes.zero(memory, block)?,
            (_, Place::Page(page), true) if flags & MAY_GIVE_BACK != 0 => {
                self.changes.take_back(memory, block, page, Place::Zeros)?;
            }
            (_, Place::Page(page), _) => {
                self.changes.clear(memory, page, (first * SECTOR) as usize, (sectors * SECTOR) as usize)?;
            }
            (_, Place::Image, false) => return Ok(self.page(memory, block)?.map_or(Some(FAILED), |_| None)),
        }
        // It begins so much later, and is so much shorter.
        let done = u128::from(sectors);
        *range = (value + done - (done << 64)).to_le_bytes();
        Ok(None)
    }

    /// Tells the serial number, as much of it as there is room for.
    fn tell_serial<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<u8>, QueueError> {
        let (done, room) = self.room();
        let rest = self.serial.get(..room.min(MAX_SERIAL)).and_then(|serial| serial.get(done..)).unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(Some(DONE));
        }
        self.chain.write(memory, rest)?;
        Ok(None)
    }

    /// What a header asks for, and from which sector on.
    fn wish(header: &[u8; HEADER]) -> (u32, u64) {
        let value = u128::from_le_bytes(*header);
        (value as u32, (value >> 64) as u64)
    }
}

impl<I: AsRef<[u8]>> Device for Block<I> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        let own = if self.changes.is_possible() { FEATURES_OF_WRITING } else { FEATURE_READ_ONLY };
        FEATURE_SEGMENTS | FEATURE_BLOCK_SIZE | own
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {
        self.request = None;
        self.changes.may_tell_again();
    }

    fn forget(&mut self) {
        self.changes.forget();
    }

    fn let_go(&mut self, _index: usize) {
        self.request = None;
    }

    fn exchange(&mut self, outside: &dyn Outside) -> usize {
        self.changes.tell(&self.serial, outside);
        0
    }

    type Saved = SavedBlock;

    fn save(&self) -> Result<SavedBlock, Damaged> {
        let Self { image: _, checksum, config: _, serial: _, chain, request, changes } = self;
        let request = match *request {
            Some(Request { header, read, answer, range }) => {
                Some(SavedDiskRequest { chain: chain.save()?, header, header_read: read as u8, answer, range })
            }
            None => None,
        };
        Ok(SavedBlock { sectors: self.sectors(), checksum: *checksum, request, changes: changes.save() })
    }

    fn restore(&mut self, saved: &SavedBlock) -> Result<(), Unfit> {
        let SavedBlock { sectors, checksum, request, changes } = saved;
        if (*sectors, *checksum) != (self.sectors(), self.checksum) {
            return Err(Unfit("a disk has not the contents that it had when the VM was saved"));
        }
        self.changes.look_at(changes)?;
        let Some(SavedDiskRequest { chain, header, header_read, answer, range }) = request else {
            self.changes.restore(changes);
            self.request = None;
            return Ok(());
        };
        if answer.is_some_and(|answer| answer > UNKNOWN) {
            return Err(Unfit("a disk works on a request that no driver can have made"));
        }
        let places = self.chain.look_at(chain)?;
        if u32::from(*header_read) != places.taken().min(HEADER as u32) {
            return Err(Unfit("a disk has read another part of a request's header than it says"));
        }
        self.chain.put(chain, places);
        self.changes.restore(changes);
        let (header, read) = (*header, usize::from(*header_read));
        self.request = Some(Request { header, read, answer: *answer, range: *range });
        Ok(())
    }

    fn process<M: GuestMemory>(
        &mut self,
        _index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        let [queue] = queues else { return Ok(Progress::Idle) };
        for _ in 0..CHAINS_A_CALL {
            if self.request.is_none() {
                if !queue.pop_request(memory, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                self.request = Some(Request { header: [0; HEADER], read: 0, answer: None, range: [0; RANGE] });
            }
            self.work(memory)?;
            queue.push(memory, &self.chain)?;
            self.request = None;
        }
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests;
