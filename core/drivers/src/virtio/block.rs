//! A disk (section 5.2), of which several requests are under way at once.
//!
//! A request has a slot: a head of 16 bytes, a buffer, and a byte for the answer, in the device's own memory and for ever at the
//! same place, so that no address is written twice and no list of free descriptors can be tangled. A caller fills a slot, offers
//! it, and has it back when the device has answered, in whatever order that does.
//!
//! What the device answers is looked at before it is believed. One that gives back what it does not have, or says that it wrote more
//! than there is room for, is [`Broken`]. One that says that all is well, and that it wrote less than was asked for, has failed at
//! that request: what is in the buffer is then what another request has left there. Nothing here waits: whoever does looks from time to
//! time, and [`Disk::is_silent`] counts these looks.

use units::{DiskOutcome, DiskRequest, SECTOR};

use super::{Broken, Transport, Unusable, begin, finish, give_up, register};

/// The device ID of a disk.
pub const DEVICE_ID: u32 = 2;
/// So many requests are under way at most.
pub const SLOTS: u16 = 32;
/// Bytes of a slot's buffer.
pub const BUFFER: u32 = 60 << 10;
/// Bytes of a serial number.
pub const SERIAL: usize = 20;
/// Bytes of a slot's head.
pub const HEAD: usize = 16;
/// Descriptors of a slot: one each for the head, the buffer and the answer, and one that is not used, so that their numbers begin at
/// a power of two.
pub const DESCRIPTORS: u16 = 4;
/// As many bytes as [`Disk::start`] lays out, with room to spare for their alignment: what has memory to give gives it in blocks of that.
pub const MEMORY: u64 = 2 << 20;
const _: () = assert!((SLOTS as u64) * (BUFFER as u64 + 64 + DESCRIPTORS as u64 * (16 + 2 + 8)) + 4096 <= MEMORY);

/// The most sectors that are discarded or zeroed by one request, whatever the device says: 64 MiB. All slots together, it can write them in
/// the time for which it may be silent. With what most devices allow, one guest could make it so, and nobody would have the disk any more.
pub const MOST_CLEARED: u32 = 128 << 10;
/// A device may answer nothing for so many looks.
pub const QUICK_LOOKS: u32 = 6;
/// The same while it flushes, discards or zeroes: how long that takes depends on how much was written before.
pub const SLOW_LOOKS: u32 = 60;

/// What stands in place of an answer until there is one.
pub const NO_ANSWER: u8 = 0xff;

/// VIRTIO_BLK_F_SIZE_MAX, _RO, _BLK_SIZE, _FLUSH, _DISCARD and _WRITE_ZEROES.
const SIZE_MAX: u64 = 1 << 1;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const ZERO: u64 = 1 << 14;

/// The only queue that is used.
const QUEUE: u16 = 0;

/// Where the configuration space has what (section 5.2.4).
mod config {
    use super::register::CONFIG;

    pub(super) const CAPACITY: u64 = CONFIG;
    pub(super) const SIZE_MAX: u64 = CONFIG + 8;
    pub(super) const BLOCK_SIZE: u64 = CONFIG + 20;
    pub(super) const DISCARD_MOST: u64 = CONFIG + 36;
    pub(super) const DISCARD_ALIGNMENT: u64 = CONFIG + 44;
    pub(super) const ZERO_MOST: u64 = CONFIG + 48;
}

/// The number of a request for the serial number, which no guest's request is.
const GET_SERIAL: u32 = 8;

/// A request's number, its sector, how many bytes there are beside the head, and whether the device writes them.
const fn parts(wish: DiskRequest) -> (u32, u64, u32, bool) {
    match wish {
        DiskRequest::Read(sector, bytes) => (0, sector, bytes, true),
        DiskRequest::Write(sector, bytes) => (1, sector, bytes, false),
        DiskRequest::Flush => (4, 0, 0, true),
        DiskRequest::Discard(..) => (11, 0, HEAD as u32, false),
        DiskRequest::Zero(..) => (13, 0, HEAD as u32, false),
    }
}

/// What a disk that discards or zeroes demands of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The most sectors of one request.
    pub most: u32,
    /// Where a range had better begin.
    pub alignment: u32,
}

/// What a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// How many sectors it has.
    pub sectors: u64,
    /// The bytes of its own blocks, of which each request has to be whole ones: a power of two, at least a sector.
    pub block: u32,
    /// The most bytes of a read or a write.
    pub most: u32,
    /// It cannot be written.
    pub is_read_only: bool,
    /// What was written may be lost with the power until it is flushed.
    pub has_cache: bool,
    /// It can discard.
    pub discard: Option<Limits>,
    /// It can zero.
    pub zero: Option<Limits>,
}

/// The memory of the slots, and the rings through which they go.
pub trait Slots {
    /// Writes `head` into the head of slot number `slot`, [`NO_ANSWER`] into the place of its answer, and makes one chain of it: the
    /// head, `length` bytes of the buffer, if any, into which the device writes if `device_writes`, and the answer. Then puts that chain
    /// into place `place` of the driver's ring.
    fn offer(&mut self, place: u16, slot: u16, head: [u8; HEAD], length: u32, device_writes: bool);

    /// Lets the device see that `count` chains were offered, ever.
    fn publish(&mut self, count: u16);

    /// How many chains the device has used, ever. What it wrote before is seen behind this.
    fn used_count(&self) -> u16;

    /// The first descriptor of the chain in place `place` of the device's ring, and how many bytes of it were written.
    fn used(&self, place: u16) -> (u32, u32);

    /// The answer in a slot.
    fn answer(&self, slot: u16) -> u8;

    /// Writes into a slot's buffer, as much as there is room for.
    fn fill(&mut self, slot: u16, offset: u32, bytes: &[u8]);

    /// Copies what is at `offset` of a slot's buffer, as much as there is.
    fn copy(&self, slot: u16, offset: u32, into: &mut [u8]);
}

/// A device whose memory has room for slots.
pub trait SlotTransport: Transport {
    /// They.
    type Slots: Slots;

    /// Lays [`SLOTS`] of them out for queue number `queue`, with [`DESCRIPTORS`] times as many entries in each of its rings, and tells
    /// the device where. `None` if that cannot be.
    fn lay_out_slots(&mut self, queue: u16) -> Option<Self::Slots>;
}

/// A disk.
#[derive(Debug)]
pub struct Disk<T: SlotTransport> {
    transport: T,
    slots: T::Slots,
    facts: Facts,
    /// How many bytes the device is to write, with the answer, of each slot that it has; 0 for one that it does not have.
    given: [u32; SLOTS as usize],
    /// How many chains were offered, and how many came back, ever.
    offered: u16,
    taken: u16,
    /// A bit for each slot whose request may take long.
    slow: u32,
    /// How often somebody looked since it answered, and what the clock showed at the last of these looks.
    looks: u32,
    looked: u64,
    is_broken: bool,
}

const _: () = assert!(SLOTS as u32 <= u32::BITS);

impl<T: SlotTransport> Disk<T> {
    /// Starts the device.
    ///
    /// # Errors
    /// If it is of no use. It is not running then.
    pub fn start(mut transport: T) -> Result<Self, Unusable> {
        let has = begin(&transport, 0, SIZE_MAX | READ_ONLY | BLOCK_SIZE | FLUSH | DISCARD | ZERO)?;
        let facts = Self::facts_of(&transport, has).ok_or_else(|| give_up(&transport, Unusable::Disk))?;
        let Some(slots) = transport.lay_out_slots(QUEUE) else {
            return Err(give_up(&transport, Unusable::Queue(QUEUE)));
        };
        finish(&transport);
        let given = [0; SLOTS as usize];
        let (offered, taken, slow, looks, looked) = (0, 0, 0, 0, 0);
        Ok(Self { transport, slots, facts, given, offered, taken, slow, looks, looked, is_broken: false })
    }

    fn facts_of(transport: &T, has: u64) -> Option<Facts> {
        let number = |feature, at, otherwise| if has & feature != 0 { transport.read(at) } else { otherwise };
        let block = number(BLOCK_SIZE, config::BLOCK_SIZE, SECTOR as u32);
        let most = number(SIZE_MAX, config::SIZE_MAX, BUFFER).min(BUFFER);
        if !block.is_power_of_two() || u64::from(block) < SECTOR || most < block {
            return None;
        }
        let limits = |feature, most, alignment| {
            let most = number(feature, most, 0).min(MOST_CLEARED);
            (most > 0).then_some(Limits { most, alignment })
        };
        let alignment = number(DISCARD, config::DISCARD_ALIGNMENT, 1).max(1);
        Some(Facts {
            sectors: Self::capacity(transport)?,
            block,
            most: most & !(block - 1),
            is_read_only: has & READ_ONLY != 0,
            has_cache: has & FLUSH != 0,
            discard: limits(DISCARD, config::DISCARD_MOST, alignment),
            zero: limits(ZERO, config::ZERO_MOST, 1),
        })
    }

    /// Its sectors, in two reads: the disk may be made larger between them, but not so often. No more than have addresses in bytes.
    fn capacity(transport: &T) -> Option<u64> {
        let [low, high] = [config::CAPACITY, config::CAPACITY + 4];
        let read = || {
            let before = transport.read(high);
            let value = u64::from(transport.read(low)) | u64::from(before) << 32;
            (transport.read(high) == before).then_some(value)
        };
        (0..4).find_map(|_| read()).map(|sectors| sectors.min(u64::MAX / SECTOR))
    }

    /// What it is.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it broke its rules, or was given up: it is not used any more.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// How many requests the device has.
    #[must_use]
    pub const fn under_way(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Somebody looks, where the clock shows `now`: whether the device has requests, and has answered none for too many looks. Looks that
    /// follow each other by less than `apart` are one, and so is one that comes late because everything stood still.
    pub const fn is_silent(&mut self, now: u64, apart: u64) -> bool {
        if self.under_way() == 0 {
            self.looks = 0;
        } else if self.looks == 0 || now.saturating_sub(self.looked) >= apart {
            self.looks += 1;
            self.looked = now;
        }
        self.looks > if self.slow == 0 { QUICK_LOOKS } else { SLOW_LOOKS }
    }

    /// Writes into the buffer of a slot that the device does not have; nothing into that of another one, or where the device was given
    /// up: it may still read what it was given.
    pub fn fill(&mut self, slot: u16, offset: u32, bytes: &[u8]) {
        if self.is_ours(slot) && !self.is_broken {
            self.slots.fill(slot, offset, bytes);
        }
    }

    /// Copies what is at `offset` of the buffer of such a slot.
    pub fn copy(&self, slot: u16, offset: u32, into: &mut [u8]) {
        if self.is_ours(slot) {
            self.slots.copy(slot, offset, into);
        }
    }

    /// There is such a slot, and the device has it not.
    fn is_ours(&self, slot: u16) -> bool {
        self.given.get(usize::from(slot)) == Some(&0)
    }

    /// Gives a slot to the device with what is wanted of it. Says whether the device has it now: not if it had it already, if it is
    /// broken, or if no such request may be made of it.
    pub fn offer(&mut self, slot: u16, wish: DiskRequest) -> bool {
        if self.is_broken || !self.is_ours(slot) || !self.may(wish) {
            return false;
        }
        if let DiskRequest::Discard(first, count) | DiskRequest::Zero(first, count, _) = wish {
            let flags = u32::from(matches!(wish, DiskRequest::Zero(.., true)));
            let range = u128::from(first) | u128::from(count) << 64 | u128::from(flags) << 96;
            self.slots.fill(slot, 0, &range.to_le_bytes());
        }
        if !matches!(wish, DiskRequest::Read(..) | DiskRequest::Write(..)) {
            self.slow |= 1 << slot;
        }
        self.give(slot, parts(wish));
        true
    }

    /// As [`Disk::offer`], for the serial number: [`SERIAL`] bytes.
    pub fn offer_serial(&mut self, slot: u16) -> bool {
        let is_possible = !self.is_broken && self.is_ours(slot);
        if is_possible {
            self.give(slot, (GET_SERIAL, 0, SERIAL as u32, true));
        }
        is_possible
    }

    fn give(&mut self, slot: u16, (number, sector, length, device_writes): (u32, u64, u32, bool)) {
        let head = u128::from(number) | u128::from(sector) << 64;
        if let Some(given) = self.given.get_mut(usize::from(slot)) {
            *given = 1 + if device_writes { length } else { 0 };
        }
        self.slots.offer(self.offered % (SLOTS * DESCRIPTORS), slot, head.to_le_bytes(), length, device_writes);
        self.offered = self.offered.wrapping_add(1);
        self.slots.publish(self.offered);
    }

    /// Whether the disk has what is wanted.
    fn may(&self, wish: DiskRequest) -> bool {
        let facts = &self.facts;
        let is_on =
            wish.range().is_none_or(|(first, count)| first.checked_add(count).is_some_and(|end| end <= facts.sectors));
        let in_limits = |limits: Option<Limits>, count| limits.is_some_and(|limits| (1..=limits.most).contains(&count));
        let is_possible = match wish {
            DiskRequest::Read(_, bytes) | DiskRequest::Write(_, bytes) => {
                bytes > 0 && bytes <= facts.most && bytes.is_multiple_of(facts.block)
            }
            DiskRequest::Discard(_, count) => in_limits(facts.discard, count),
            DiskRequest::Zero(_, count, _) => in_limits(facts.zero, count),
            DiskRequest::Flush => facts.has_cache,
        };
        is_possible && is_on && !(wish.changes() && facts.is_read_only)
    }

    /// Tells the device that something was offered.
    pub fn notify(&self) {
        if !self.is_broken {
            self.transport.write(register::QUEUE_NOTIFY, QUEUE.into());
        }
    }

    /// Takes back the next slot that the device has answered, with how that ended.
    ///
    /// # Errors
    /// If it says so of a slot that it does not have, or of more than it has, or wrote more than there is room for. It was reset, and
    /// nothing works any more.
    pub fn take(&mut self) -> Result<Option<(u16, DiskOutcome)>, Broken> {
        if self.is_broken {
            return Ok(None);
        }
        let taken = self.try_take();
        if taken.is_err() {
            self.give_up();
        }
        taken
    }

    fn try_take(&mut self) -> Result<Option<(u16, DiskOutcome)>, Broken> {
        let waiting = self.slots.used_count().wrapping_sub(self.taken);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.under_way() {
            return Err(Broken("it has answered more requests than it was given"));
        }
        let (first, written) = self.slots.used(self.taken % (SLOTS * DESCRIPTORS));
        let place = first / u32::from(DESCRIPTORS);
        let is_first = first.is_multiple_of(DESCRIPTORS.into());
        let given = self.given.get_mut(place as usize).filter(|given| is_first && **given != 0);
        let Some(given) = given else { return Err(Broken("it has answered a request that it was not given")) };
        if written > *given {
            return Err(Broken("it has written more than a request has room for"));
        }
        let is_whole = written == *given;
        *given = 0;
        self.taken = self.taken.wrapping_add(1);
        self.slow &= !(1 << place);
        self.looks = 0;
        let slot = place as u16;
        let outcome = match self.slots.answer(slot) {
            0 if is_whole => DiskOutcome::Done,
            2 => DiskOutcome::Unknown,
            _ => DiskOutcome::Failed,
        };
        Ok(Some((slot, outcome)))
    }

    /// Resets it: it is not used any more, and has no slot. Whoever waits for one is to be told that it failed.
    pub fn give_up(&mut self) {
        self.transport.write(register::STATUS, 0);
        self.is_broken = true;
        self.given = [0; SLOTS as usize];
        self.taken = self.offered;
    }
}

#[cfg(test)]
mod tests;
