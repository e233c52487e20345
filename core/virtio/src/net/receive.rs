//! A frame arrives: from the sender's memory into buffers of the receiver's driver.
//!
//! All of it arrives, or nothing: buffers are taken, filled and put into the used ring, and the driver sees them at the end, all at once. Where
//! something does not go, the buffers are the driver's again and the frame is dropped. Whoever sends it does this, so nothing of the
//! receiver's makes it wait. Memory that is not ready (zeroed, copied for a save, come) makes the frame be dropped too, and is made
//! ready later, at the receiver's cost. Buffers in so many pieces that they cost more than the receiver's share are as none.

use switch::{HEAD, Reason};
use units::Ipa;

use super::offload::Sum;
use super::{Frame, HEADER, LOOKED, Link, Net, RECEIVE, feature};
use crate::chain::Chain;
use crate::memory::{Fault, GuestMemory};
use crate::mmio::Mmio;
use crate::queue::{Queue, QueueError};

/// Bytes that are read at once for a checksum; they lie on the stack meanwhile.
const COPY: usize = 256;
/// How much longer than its packet a frame may be: its head, and what drivers allow for a tag. So the longest one fits the largest MTU.
const AROUND: u32 = HEAD as u32 + 4;

/// On which side a copy was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The sender's.
    Sender(Fault),
    /// The receiver's.
    Receiver(Fault),
}

/// The two memories between which a frame goes.
pub trait Between {
    /// Copies `length` bytes at `from` in the sender's memory to `to` in the receiver's. The two may be one guest's, and overlap.
    ///
    /// # Errors
    /// Which memory refused; a part may have been copied. The receiver's says itself whether that is for now.
    fn copy(&self, from: Ipa, to: Ipa, length: usize) -> Result<(), Side>;

    /// Reads the sender's memory, for a checksum.
    ///
    /// # Errors
    /// If it refuses, with the place of the first byte that it does not give; or as the receiver's, if that may not cost more.
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Side>;

    /// Whether the receiver's memory refused because its share was used up: its buffers are in too many pieces.
    fn is_used_up(&self) -> bool;
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// The driver has it.
    Taken,
    /// It was dropped, and counted.
    Dropped(Reason),
    /// It is to be brought again: the sender's memory refused there.
    Unread(Ipa),
}

/// Why a frame did not arrive.
enum Miss {
    Dropped(Reason),
    Unread(Ipa),
    Broken(QueueError),
}

impl From<Side> for Miss {
    fn from(refusal: Side) -> Self {
        match refusal {
            Side::Sender(Fault(at)) => Self::Unread(at),
            Side::Receiver(fault) => fault.into(),
        }
    }
}

impl From<QueueError> for Miss {
    fn from(error: QueueError) -> Self {
        Self::Broken(error)
    }
}

impl From<Fault> for Miss {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault.into())
    }
}

/// Where the bytes of a frame are in its sender's memory, from some place on.
struct Source<'a> {
    chain: &'a Chain,
    piece: usize,
    offset: u64,
}

impl<'a> Source<'a> {
    /// From byte `skip` of the chain on.
    fn new(chain: &'a Chain, skip: u64) -> Self {
        let mut source = Self { chain, piece: 0, offset: 0 };
        source.advance(skip);
        source
    }

    /// The next at most `wanted` bytes that are together.
    fn next(&self, wanted: usize) -> Option<(Ipa, usize)> {
        let piece = self.chain.readable().get(self.piece)?;
        let left = usize::try_from(piece.size - self.offset).unwrap_or(usize::MAX);
        Some((piece.start.checked_add(self.offset)?, left.min(wanted)))
    }

    fn advance(&mut self, count: u64) {
        self.offset += count;
        while let Some(piece) = self.chain.readable().get(self.piece).filter(|piece| self.offset >= piece.size) {
            self.offset -= piece.size;
            self.piece += 1;
        }
    }
}

impl<L: Link> Mmio<Net<L>> {
    /// Takes a frame in, and counts it.
    ///
    /// # Errors
    /// If this device's driver broke its queue: the frame was dropped, the device was stopped, and the error is for its guest's log.
    pub fn receive<M: GuestMemory>(
        &mut self,
        memory: &M,
        frame: &Frame<'_>,
        between: &dyn Between,
    ) -> Result<Received, QueueError> {
        match self.take_in(RECEIVE, memory, |net, queue| net.take_in(queue, memory, frame, between)) {
            Some(Ok(received)) => Ok(received),
            Some(Err(error)) => {
                self.device_mut().missed(Reason::Down);
                Err(error)
            }
            None => {
                self.device_mut().missed(Reason::Down);
                Ok(Received::Dropped(Reason::Down))
            }
        }
    }
}

impl<L: Link> Net<L> {
    fn take_in<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        memory: &M,
        frame: &Frame<'_>,
        between: &dyn Between,
    ) -> Result<Received, QueueError> {
        let before = queue.taken();
        let miss = match self.fill(queue, memory, frame, between) {
            Ok(()) => {
                self.counters.received.count(frame.length);
                return Ok(Received::Taken);
            }
            Err(miss) => miss,
        };
        queue.put_back(before);
        let reason = match miss {
            Miss::Unread(at) => return Ok(Received::Unread(at)),
            Miss::Dropped(reason) => reason,
            // Nothing that could be made ready.
            Miss::Broken(QueueError::Fault(_)) if memory.is_refused_for_now() && between.is_used_up() => Reason::Room,
            Miss::Broken(QueueError::Fault(Fault(at))) if memory.is_refused_for_now() => {
                self.wanted = Some(at);
                Reason::Memory
            }
            Miss::Broken(error) => return Err(error),
        };
        self.counters.drop(reason);
        Ok(Received::Dropped(reason))
    }

    fn fill<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        memory: &M,
        frame: &Frame<'_>,
        between: &dyn Between,
    ) -> Result<(), Miss> {
        let mut offload = frame.offload;
        if !self.has(offload.needs()) {
            return Err(Miss::Dropped(Reason::Offload));
        }
        let longest = if offload.is_divided() { offload.segment.into() } else { frame.length.saturating_sub(AROUND) };
        if longest > self.mtu.into() {
            return Err(Miss::Dropped(Reason::Mtu));
        }
        let mut checksum = None;
        let looked = frame.looked();
        let mut source = Source::new(frame.chain, (HEADER + looked) as u64);
        let (mut done, mut buffers) = (looked as u32, 0);
        loop {
            let chain = if buffers == 0 { &mut self.first } else { &mut self.next };
            if !queue.pop_quietly(memory, chain)? {
                return Err(Miss::Dropped(Reason::Room));
            }
            if buffers == 0 {
                // Not before there is a buffer: it is of no use then.
                if offload.is_open() && !self.features & feature::GUEST_CHECKSUM != 0 {
                    let at = u32::from(offload.start) + u32::from(offload.offset);
                    checksum = Some((at, compute(frame, offload.start.into(), between)?));
                    offload = offload.closed();
                }
                let mut bytes = [0; HEADER + LOOKED];
                if let Some((header, begin)) = bytes.split_first_chunk_mut() {
                    *header = offload.header(1);
                    begin.copy_from_slice(&frame.begin);
                }
                write_all(chain, memory, bytes.get(..HEADER + looked).unwrap_or(&bytes))?;
            }
            while let Some((to, room)) = chain.next_place((frame.length - done) as usize).filter(|place| place.1 > 0) {
                let Some((from, length)) = source.next(room) else { return Err(Miss::Dropped(Reason::Length)) };
                between.copy(from, to, length)?;
                if let Some((at, bytes)) = checksum {
                    overwrite(memory, (done, to, length), at, bytes)?;
                }
                chain.has_written(length);
                source.advance(length as u64);
                done += length as u32;
            }
            queue.lay(memory, buffers, chain)?;
            buffers += 1;
            if done >= frame.length {
                break;
            }
            if self.features & feature::MERGEABLE == 0 {
                return Err(Miss::Dropped(Reason::Room));
            }
        }
        if buffers > 1 {
            self.first.write_again();
            write_all(&mut self.first, memory, &offload.header(buffers))?;
        }
        Ok(queue.show(memory, buffers)?)
    }
}

/// Writes all of these bytes into the chain, which must have room for them.
fn write_all<M: GuestMemory>(chain: &mut Chain, memory: &M, bytes: &[u8]) -> Result<(), Miss> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match chain.write(memory, rest)? {
            0 => return Err(Miss::Dropped(Reason::Room)),
            written => done += written,
        }
    }
    Ok(())
}

/// The checksum of a frame from byte `start` on.
fn compute(frame: &Frame<'_>, start: u32, between: &dyn Between) -> Result<[u8; 2], Miss> {
    let mut source = Source::new(frame.chain, HEADER as u64 + u64::from(start));
    let (mut left, mut sum) = ((frame.length - start) as usize, Sum::default());
    while left > 0 {
        let Some((from, length)) = source.next(left.min(COPY)) else { break };
        let mut copy = [0; COPY];
        let piece = copy.get_mut(..length).unwrap_or(&mut []);
        between.read(from, piece)?;
        sum.add(piece);
        source.advance(length as u64);
        left -= length;
    }
    Ok(sum.checksum())
}

/// Writes those bytes of a checksum, which is at byte `at` of the frame, that lie in a piece of it: that begins at byte `.0` and is at `.1` in
/// memory.
fn overwrite<M: GuestMemory>(
    memory: &M,
    (first, to, length): (u32, Ipa, usize),
    at: u32,
    bytes: [u8; 2],
) -> Result<(), Miss> {
    for (at, byte) in (at..).zip(bytes) {
        if let Some(offset) = at.checked_sub(first).filter(|&offset| (offset as usize) < length) {
            memory.write(Ipa(to.0.wrapping_add(offset.into())), &[byte])?;
        }
    }
    Ok(())
}
