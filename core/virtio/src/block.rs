//! The block device (section 5.2): one queue, whose requests read a disk that is an image in memory, which nobody can change.
//!
//! A request is a chain: a header of 16 bytes that says what to do and from which sector on, room for the data, and one byte of
//! room for the answer. The header is copied once, and how far the answer has come is part of the chain, so a request that is
//! stopped anywhere, because the memory refuses for now or a call's share is used up, goes on there, also on another host.
//!
//! A driver that names no room for the answer cannot be answered, and is stopped, as is one whose chain is a loop or is not in its
//! memory; what else is wrong with a request is answered: by an I/O error, with which no byte of data is written, or as unknown. A
//! disk that cannot be written has nothing to flush, and does as if it had.

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;

use crate::chain::Chain;
use crate::device::{Device, Progress, VirtioKind};
use crate::memory::GuestMemory;
use crate::queue::{CHAINS_A_CALL, LARGEST, Queue, QueueError};
use crate::saved::{SavedBlock, SavedDiskRequest};

/// Bytes in a sector: the unit of all numbers of the protocol, whatever a disk's own blocks are (section 5.2.4).
pub const SECTOR: u64 = 512;
/// The most bytes of a serial number (section 5.2.6, VIRTIO_BLK_T_GET_ID).
pub const MAX_SERIAL: usize = 20;

/// VIRTIO_BLK_F_SEG_MAX, _RO and _BLK_SIZE.
const FEATURE_SEGMENTS: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;

/// The types of request that we know: VIRTIO_BLK_T_IN, _OUT, _FLUSH and _GET_ID.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_SERIAL: u32 = 8;

/// The answers: VIRTIO_BLK_S_OK, _IOERR and _UNSUPP.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const UNKNOWN: u8 = 2;

/// Bytes of a request's header: type, a field that is reserved, sector.
pub(crate) const HEADER: usize = 16;
/// Bytes of the configuration space: up to the field `blk_size` of section 5.2.4.
const CONFIG: usize = 24;
/// The most bytes that one call moves, and that go to the guest in one access.
const BYTES_A_CALL: usize = 64 << 10;
const PIECE: usize = 4096;

/// A request that the device works on; its chain is the device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    header: [u8; HEADER],
    /// How many bytes of the header have been read.
    read: usize,
    /// The answer, once it is known.
    answer: Option<u8>,
}

/// A disk whose contents are the bytes of `I`.
#[derive(Debug)]
pub struct Block<I> {
    image: I,
    /// The checksum of the image, by which a saved device finds the disk again that it had.
    checksum: u32,
    config: [u8; CONFIG],
    serial: [u8; MAX_SERIAL],
    chain: Chain,
    request: Option<Request>,
}

impl<I: AsRef<[u8]>> Block<I> {
    /// A disk with this image, of which `checksum` is the CRC-32C, and with a serial number, which is cut to what there is room for.
    /// Bytes behind the last whole sector are not on the disk.
    #[must_use]
    pub fn new(image: I, checksum: u32, serial: &str) -> Self {
        let mut padded = [0; MAX_SERIAL];
        padded.iter_mut().zip(serial.bytes()).for_each(|(place, byte)| *place = byte);
        let sectors = image.as_ref().len() as u64 / SECTOR;
        let mut config = [0; CONFIG];
        // Of a chain's descriptors one is for the header, and one for the answer.
        let segments = u32::from(LARGEST) - 2;
        for (at, bytes) in [
            (0, &sectors.to_le_bytes()[..]),
            (12, &segments.to_le_bytes()[..]),
            (20, &(SECTOR as u32).to_le_bytes()[..]),
        ] {
            config.iter_mut().skip(at).zip(bytes).for_each(|(place, &byte)| *place = byte);
        }
        Self { image, checksum, config, serial: padded, chain: Chain::new(LARGEST), request: None }
    }

    /// How many sectors the disk has.
    fn sectors(&self) -> u64 {
        self.image.as_ref().len() as u64 / SECTOR
    }

    /// Goes on with the request. Says whether it was answered; if not, `budget` is used up.
    fn work<M: GuestMemory>(&mut self, memory: &M, budget: &mut usize) -> Result<bool, QueueError> {
        let Some(mut request) = self.request else { return Ok(true) };
        let outcome = self.advance(&mut request, memory, budget);
        // However far it came.
        self.request = Some(request);
        let Some(answer) = outcome? else { return Ok(false) };
        self.chain.write_last(memory, answer)?;
        Ok(true)
    }

    /// The answer, if it is known by now.
    fn advance<M: GuestMemory>(
        &mut self,
        request: &mut Request,
        memory: &M,
        budget: &mut usize,
    ) -> Result<Option<u8>, QueueError> {
        while request.answer.is_none() {
            if let Some(rest) = request.header.get_mut(request.read..).filter(|rest| !rest.is_empty()) {
                match self.chain.read(memory, rest)? {
                    0 => request.answer = Some(FAILED),
                    read => request.read += read,
                }
                continue;
            }
            let done = self.chain.written() as usize;
            // The last byte is for the answer.
            let room = (done + self.chain.unwritten() as usize).saturating_sub(1);
            let source = match Self::wish(&request.header) {
                (READ, sector) => match span(self.image.as_ref(), sector, room) {
                    Some(source) => source,
                    None => {
                        request.answer = Some(FAILED);
                        continue;
                    }
                },
                (GET_SERIAL, _) => self.serial.get(..room.min(MAX_SERIAL)).unwrap_or(&[]),
                (kind, _) => {
                    request.answer = Some(match kind {
                        FLUSH => DONE,
                        WRITE => FAILED,
                        _ => UNKNOWN,
                    });
                    continue;
                }
            };
            let rest = source.get(done..).unwrap_or(&[]);
            if rest.is_empty() {
                request.answer = Some(DONE);
                continue;
            }
            let piece = rest.get(..rest.len().min(PIECE).min(*budget)).unwrap_or(&[]);
            if piece.is_empty() {
                return Ok(None);
            }
            *budget -= self.chain.write(memory, piece)?;
        }
        Ok(request.answer)
    }

    /// What a header asks for, and from which sector on.
    fn wish(header: &[u8; HEADER]) -> (u32, u64) {
        let value = u128::from_le_bytes(*header);
        (value as u32, (value >> 64) as u64)
    }
}

/// So many bytes of an image from a sector on, if these are whole sectors and all of them are on the disk.
fn span(image: &[u8], sector: u64, bytes: usize) -> Option<&[u8]> {
    if !(bytes as u64).is_multiple_of(SECTOR) {
        return None;
    }
    let start = usize::try_from(sector.checked_mul(SECTOR)?).ok()?;
    // A tail that is no whole sector has no room for one.
    image.get(start..)?.get(..bytes)
}

impl<I: AsRef<[u8]>> Device for Block<I> {
    fn kind(&self) -> VirtioKind {
        VirtioKind::Block
    }

    fn features(&self) -> u64 {
        FEATURE_SEGMENTS | FEATURE_READ_ONLY | FEATURE_BLOCK_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[LARGEST]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {
        self.request = None;
    }

    fn let_go(&mut self, _index: usize) {
        self.request = None;
    }

    fn exchange(&mut self, _outside: &dyn Outside) -> usize {
        0
    }

    type Saved = SavedBlock;

    fn save(&self) -> Result<SavedBlock, Damaged> {
        let Self { image: _, checksum, config: _, serial: _, chain, request } = self;
        let request = match *request {
            Some(Request { header, read, answer }) => {
                Some(SavedDiskRequest { chain: chain.save()?, header, header_read: read as u8, answer })
            }
            None => None,
        };
        Ok(SavedBlock { sectors: self.sectors(), checksum: *checksum, request })
    }

    fn restore(&mut self, saved: &SavedBlock) -> Result<(), Unfit> {
        let SavedBlock { sectors, checksum, request } = saved;
        if (*sectors, *checksum) != (self.sectors(), self.checksum) {
            return Err(Unfit("a disk has not the contents that it had when the VM was saved"));
        }
        let Some(SavedDiskRequest { chain, header, header_read, answer }) = request else {
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
        self.request = Some(Request { header: *header, read: usize::from(*header_read), answer: *answer });
        Ok(())
    }

    fn process<M: GuestMemory>(
        &mut self,
        _index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError> {
        let [queue] = queues else { return Ok(Progress::Idle) };
        let mut budget = BYTES_A_CALL;
        for _ in 0..CHAINS_A_CALL {
            if self.request.is_none() {
                if !queue.pop(memory, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                if self.chain.writable().is_empty() {
                    return Err(QueueError::NoAnswer);
                }
                self.request = Some(Request { header: [0; HEADER], read: 0, answer: None });
            }
            if !self.work(memory, &mut budget)? {
                return Ok(Progress::More);
            }
            queue.push(memory, &self.chain)?;
            self.request = None;
        }
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests;
