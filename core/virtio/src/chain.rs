//! One buffer that the driver offered: a descriptor chain, copied and checked, with a read and a write cursor.
//!
//! A chain is a list of pieces of guest memory; those that the device may read come first, those that it may write
//! after them (section 2.7.4.2). The list is a copy, so the driver can't change it any more, but the bytes that it
//! names are the guest's: they are read once, and the copy is checked. Whether a piece lies in the guest's memory is
//! found out when it is used.
//!
//! Storage for the list is allocated with the device and used again for every chain; a device that has several buffers
//! in flight owns several `Chain`s.

use alloc::vec::Vec;

use devices::saved::Unfit;
use pack::Damaged;
use units::{Direction, Ipa, Range};

use crate::memory::{Fault, GuestMemory};
use crate::queue::QueueError;
use crate::saved::SavedChain;

/// Where a cursor stands: in which segment, and how many bytes into it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Cursor {
    segment: usize,
    offset: u64,
}

/// How far a chain is that is put in.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    read: Cursor,
    write: Cursor,
    unread: u32,
    unwritten: u32,
    taken: u32,
}

impl Places {
    /// How many bytes of the chain were read.
    pub(crate) const fn taken(&self) -> u32 {
        self.taken
    }
}

/// How far a chain was read at some time.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    read: Cursor,
    unread: u32,
    taken: u32,
}

/// A descriptor chain. Empty until [`Queue::pop`](crate::Queue::pop) fills it.
#[derive(Debug)]
pub struct Chain {
    segments: Vec<Range<Ipa>>,
    /// The most segments it may have; the vector's capacity, kept so that it never grows.
    capacity: usize,
    /// How many of the segments are readable; the others are writable.
    readable_segments: usize,
    head: u16,
    read: Cursor,
    write: Cursor,
    unread: u32,
    unwritten: u32,
    taken: u32,
    written: u32,
}

impl Chain {
    /// Storage for chains of up to `capacity` descriptors: the largest size of the queue that they come from.
    #[must_use]
    pub fn new(capacity: u16) -> Self {
        let capacity = usize::from(capacity);
        Self {
            segments: Vec::with_capacity(capacity),
            capacity,
            readable_segments: 0,
            head: 0,
            read: Cursor::default(),
            write: Cursor::default(),
            unread: 0,
            unwritten: 0,
            taken: 0,
            written: 0,
        }
    }

    /// Takes the chain out, with how far it was worked on.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn save(&self) -> Result<SavedChain, Damaged> {
        // What is left follows from the pieces and the cursors.
        let Self {
            segments,
            capacity: _,
            readable_segments,
            head,
            read: Cursor { segment: read_segment, offset: read_offset },
            write: Cursor { segment: write_segment, offset: write_offset },
            unread: _,
            unwritten: _,
            taken: _,
            written,
        } = self;
        let mut pieces = Vec::new();
        pieces.try_reserve_exact(segments.len()).map_err(|_| Damaged::NoMemory)?;
        pieces.extend_from_slice(segments);
        Ok(SavedChain {
            segments: pieces,
            readable_segments: *readable_segments,
            head: *head,
            read: (*read_segment, *read_offset),
            write: (*write_segment, *write_offset),
            written: *written,
        })
    }

    /// Looks at a chain that is to be put in: where its cursors stand, and how much is left behind them.
    ///
    /// # Errors
    /// If no driver can have offered such a chain, or no device have worked on it so far.
    pub(crate) fn look_at(&self, saved: &SavedChain) -> Result<Places, Unfit> {
        let SavedChain { segments, readable_segments, head: _, read, write, written } = saved;
        if segments.len() > self.capacity {
            return Err(Unfit("a descriptor chain is longer than the queue"));
        }
        if segments.iter().any(|piece| piece.is_empty() || Range::new(piece.start, piece.size).is_none()) {
            return Err(Unfit("a piece of a descriptor chain is empty, or reaches past the end of the address space"));
        }
        let (readable, writable) = segments
            .split_at_checked(*readable_segments)
            .ok_or(Unfit("a chain has fewer pieces than readable ones"))?;
        let place = |pieces: &[Range<Ipa>], (segment, offset): (usize, u64)| match pieces.get(segment) {
            Some(piece) if offset < piece.size => Some(Cursor { segment, offset }),
            None if segment == pieces.len() && offset == 0 => Some(Cursor { segment, offset }),
            _ => None,
        };
        let left = |pieces: &[Range<Ipa>], cursor: Cursor| {
            let rest = pieces.get(cursor.segment..).unwrap_or(&[]);
            let total = rest.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.size))?;
            u32::try_from(total - cursor.offset).ok()
        };
        let behind = Unfit("the place up to which a chain was worked on is not in the chain");
        let (read, write) = (place(readable, *read).ok_or(behind)?, place(writable, *write).ok_or(behind)?);
        let too_large = Unfit("a descriptor chain has 4 GiB or more");
        let (unread, unwritten) = left(readable, read).zip(left(writable, write)).ok_or(too_large)?;
        // Which bytes of its answer a device writes next goes by this number, and where to by the place: at odds, a guest would find the
        // bytes of another place.
        let start = Cursor::default();
        let (readable, writable) = left(readable, start).zip(left(writable, start)).ok_or(too_large)?;
        if *written != writable - unwritten {
            return Err(Unfit("a chain was written up to another place than it says"));
        }
        Ok(Places { read, write, unread, unwritten, taken: readable - unread })
    }

    /// Puts a chain in whose places were found. It has room for all its pieces, and takes no memory.
    pub(crate) fn put(&mut self, saved: &SavedChain, places: Places) {
        let SavedChain { segments, readable_segments, head, read: _, write: _, written } = saved;
        let Places { read, write, unread, unwritten, taken } = places;
        self.segments.clear();
        self.segments.extend_from_slice(segments);
        self.readable_segments = *readable_segments;
        self.head = *head;
        self.read = read;
        self.write = write;
        (self.unread, self.unwritten, self.taken) = (unread, unwritten, taken);
        self.written = *written;
    }

    /// The number of the chain's first descriptor, by which the driver knows it.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many bytes are left to [`read`](Self::read).
    #[must_use]
    pub fn unread(&self) -> u32 {
        self.unread
    }

    /// How many bytes have been [`read`](Self::read).
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// How many more bytes [`write`](Self::write) takes.
    #[must_use]
    pub fn unwritten(&self) -> u32 {
        self.unwritten
    }

    /// How many bytes have been written.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written
    }

    /// The device-readable pieces, for a device that moves data without copying it. The ranges are not empty
    /// and do not wrap, but whether they lie in RAM is unchecked.
    #[must_use]
    pub fn readable(&self) -> &[Range<Ipa>] {
        self.segments.get(..self.readable_segments).unwrap_or(&[])
    }

    /// The device-writable pieces, like [`readable`](Self::readable).
    #[must_use]
    pub fn writable(&self) -> &[Range<Ipa>] {
        self.segments.get(self.readable_segments..).unwrap_or(&[])
    }

    /// Copies the next bytes of the readable part into `into`, as many as there are, and returns how many; fewer, if only the
    /// first pieces of memory can be reached: the next call has the error.
    ///
    /// # Errors
    /// If they lie outside the guest's memory.
    pub fn read<M: GuestMemory>(&mut self, memory: &M, into: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some((from, length)) = next_piece(self.readable(), self.read, rest.len()) else { break };
            let Some(target) = rest.get_mut(..length) else { break };
            match memory.read(from, target) {
                Err(_) if done > 0 => break,
                result => result?,
            }
            advance(&mut self.read, self.segments.get(..self.readable_segments).unwrap_or(&[]), length);
            self.unread = self.unread.saturating_sub(length as u32);
            self.taken = self.taken.saturating_add(length as u32);
            done += length;
        }
        Ok(done)
    }

    /// Copies `bytes` to the next place of the writable part, as many as fit, and returns how many; fewer, as in
    /// [`read`](Self::read).
    ///
    /// # Errors
    /// If they would lie outside the guest's memory.
    pub fn write<M: GuestMemory>(&mut self, memory: &M, bytes: &[u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let Some((to, length)) = next_piece(self.writable(), self.write, rest.len()) else { break };
            let Some(source) = rest.get(..length) else { break };
            match memory.write(to, source) {
                Err(_) if done > 0 => break,
                result => result?,
            }
            self.has_written(length);
            done += length;
        }
        Ok(done)
    }

    /// It is read from the start again.
    pub(crate) const fn read_again(&mut self) {
        self.unread = self.unread.saturating_add(self.taken);
        (self.read, self.taken) = (Cursor { segment: 0, offset: 0 }, 0);
    }

    /// It is written from the start again.
    pub(crate) const fn write_again(&mut self) {
        self.unwritten = self.unwritten.saturating_add(self.written);
        (self.write, self.written) = (Cursor { segment: 0, offset: 0 }, 0);
    }

    /// Where the next at most `wanted` bytes of the writable part are, as far as they lie in one piece, for whoever puts them there in another
    /// way than [`write`](Self::write) and says so by [`has_written`](Self::has_written).
    pub(crate) fn next_place(&self, wanted: usize) -> Option<(Ipa, usize)> {
        next_piece(self.writable(), self.write, wanted)
    }

    /// So many bytes were put there.
    pub(crate) fn has_written(&mut self, length: usize) {
        advance(&mut self.write, self.segments.get(self.readable_segments..).unwrap_or(&[]), length);
        self.unwritten = self.unwritten.saturating_sub(length as u32);
        self.written = self.written.saturating_add(length as u32);
    }

    /// How far it was read, to come back to.
    pub(crate) const fn mark(&self) -> Mark {
        let Self { read, unread, taken, .. } = *self;
        Mark { read, unread, taken }
    }

    /// What was read since `mark` is read again: whoever did so could not put it away.
    pub(crate) fn go_back(&mut self, mark: Mark) {
        let Mark { read, unread, taken } = mark;
        (self.read, self.unread, self.taken) = (read, unread, taken);
    }

    /// Writes the last byte of the writable part, wherever the cursor stands. It counts as written if all before it was: what is told
    /// to a driver is how many bytes there are from the start on. May be repeated.
    ///
    /// # Errors
    /// If it lies outside the guest's memory, or there is none.
    pub fn write_last<M: GuestMemory>(&mut self, memory: &M, byte: u8) -> Result<(), Fault> {
        let last = self.writable().last().ok_or(Fault(Ipa(0)))?;
        let at = last.start.checked_add(last.size.saturating_sub(1)).ok_or(Fault(last.start))?;
        if self.unwritten == 1 {
            return self.write(memory, &[byte]).map(drop);
        }
        memory.write(at, &[byte])
    }

    pub(crate) fn begin(&mut self, head: u16) {
        self.segments.clear();
        self.readable_segments = 0;
        self.head = head;
        self.read = Cursor::default();
        self.write = Cursor::default();
        self.unread = 0;
        self.unwritten = 0;
        self.taken = 0;
        self.written = 0;
    }

    /// Adds one descriptor's piece of memory, which the device may read or write: its `direction` is the device's.
    pub(crate) fn add(&mut self, start: Ipa, length: u32, direction: Direction) -> Result<(), QueueError> {
        let range = Range::new(start, length.into()).ok_or(QueueError::AddressWraps(start))?;
        let total = self.unread.checked_add(self.unwritten).and_then(|total| total.checked_add(length));
        total.ok_or(QueueError::ChainTooLarge)?;
        if direction == Direction::Read && self.segments.len() > self.readable_segments {
            return Err(QueueError::ReadableAfterWritable);
        }
        // Pieces of no length mean nothing, and leaving them out spares the cursors a special case.
        if range.is_empty() {
            return Ok(());
        }
        if self.segments.len() >= self.capacity {
            return Err(QueueError::ChainTooLong);
        }
        self.segments.push(range);
        match direction {
            Direction::Read => {
                self.readable_segments += 1;
                self.unread += length;
            }
            Direction::Write => self.unwritten += length,
        }
        Ok(())
    }
}

/// Where the next at most `wanted` bytes behind `cursor` are, as far as they lie in one piece.
fn next_piece(segments: &[Range<Ipa>], cursor: Cursor, wanted: usize) -> Option<(Ipa, usize)> {
    let segment = segments.get(cursor.segment)?;
    let from = segment.start.checked_add(cursor.offset)?;
    let left = usize::try_from(segment.size - cursor.offset).unwrap_or(usize::MAX);
    Some((from, left.min(wanted)))
}

fn advance(cursor: &mut Cursor, segments: &[Range<Ipa>], count: usize) {
    cursor.offset += count as u64;
    if segments.get(cursor.segment).is_some_and(|segment| cursor.offset >= segment.size) {
        *cursor = Cursor { segment: cursor.segment + 1, offset: 0 };
    }
}
