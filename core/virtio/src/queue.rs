//! The split virtqueue (section 2.7), device side.
//!
//! Three areas in guest memory make a queue: the descriptor table and the available ring, which the driver writes, and the used
//! ring, which the device writes. This side keeps its own place in both rings and never reads back what it wrote. A chain may
//! have at most as many descriptors as the queue's largest size, and one more for a table of indirect ones, so a cyclic chain is
//! simply too long. If the memory is not ready, the queue remembers its progress in a chain, and continues there.
//!
//! Notifications in either direction are suppressed with event indices (section 2.7.10) if the driver accepted them:
//! the device asks for the next one only when it has found the queue empty, and interrupts only when the driver's
//! `used_event` is passed.

use core::sync::atomic::{Ordering, fence};

use devices::saved::Unfit;
use units::{Direction, Ipa};

use crate::chain::Chain;
use crate::memory::{Fault, GuestMemory};
use crate::saved::SavedQueue;

/// What a driver did wrong with a queue. It ends in DEVICE_NEEDS_RESET.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring, a descriptor table or a buffer lies outside the guest's memory.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The available ring's index is further ahead than the ring is long.
    #[error("available index {index} is more than the queue's size ahead of {expected}")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// Up to where the device has taken buffers.
        expected: u16,
    },
    /// A descriptor's number is not below the table's size.
    #[error("descriptor {0} does not exist; numbers are below the table's size")]
    NoSuchDescriptor(u16),
    /// A chain has more descriptors than the queue, or is a loop.
    #[error("a descriptor chain is longer than the queue, or a loop")]
    ChainTooLong,
    /// A chain's lengths add up to more than 32 bits hold.
    #[error("a descriptor chain has 4 GiB or more; its length must fit 32 bits")]
    ChainTooLarge,
    /// A buffer reaches past the end of the address space.
    #[error("the buffer at {0} reaches past the end of the address space")]
    AddressWraps(Ipa),
    /// A device-readable descriptor follows a device-writable one.
    #[error("a readable descriptor follows a writable one; readable ones come first")]
    ReadableAfterWritable,
    /// An indirect descriptor that is nested, chained on, or of a feature that was not negotiated.
    #[error("an indirect descriptor is not allowed here")]
    MisplacedIndirect,
    /// An indirect table's length is no multiple of a descriptor's size, or zero.
    #[error("an indirect table is {0} bytes long; it must be a multiple of 16 and not 0")]
    IndirectLength(u32),
    /// The driver made a queue ready whose size or addresses are not valid.
    #[error("queue {0} was made ready with a size or an address that is not valid")]
    InvalidSetup(u16),
    /// A request that wants an answer has no room for it.
    #[error("a request has no room for its answer; the last byte that the device may write is for that")]
    NoAnswer,
}

/// VIRTQ_DESC_F_NEXT, _WRITE and _INDIRECT.
const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const DESCRIPTOR_INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const AVAILABLE_NO_INTERRUPT: u16 = 1;

/// Bytes in a descriptor, in an entry of the available ring and in one of the used ring.
const DESCRIPTOR_SIZE: u64 = 16;
const AVAILABLE_SIZE: u64 = 2;
const USED_SIZE: u64 = 8;
/// Flags and index before each ring.
const RING_HEADER: u64 = 4;

/// A descriptor, copied out of guest memory.
struct Descriptor {
    address: Ipa,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read<M: GuestMemory>(memory: &M, table: Ipa, index: u16) -> Result<Self, QueueError> {
        let mut bytes = [0; DESCRIPTOR_SIZE as usize];
        memory.read(entry(table, 0, index, DESCRIPTOR_SIZE)?, &mut bytes)?;
        let value = u128::from_le_bytes(bytes);
        Ok(Self {
            address: Ipa(value as u64),
            length: (value >> 64) as u32,
            flags: (value >> 96) as u16,
            next: (value >> 112) as u16,
        })
    }
}

/// What a device asks of the driver when it finds no buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// To be notified of the next one.
    ToBeNotified,
    /// Nothing.
    ForNothing,
}

/// How far the queue has come with the descriptors of a chain.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// The table that it is in, and how many entries that has.
    table: Ipa,
    entries: u32,
    in_indirect: bool,
    /// The descriptor that is next.
    index: u16,
    /// How many more there may be.
    left: u16,
}

/// The address of entry `index` of a table whose entries start `header` bytes behind `base`.
fn entry(base: Ipa, header: u64, index: u16, size: u64) -> Result<Ipa, QueueError> {
    base.checked_add(header + u64::from(index) * size).ok_or(QueueError::AddressWraps(base))
}

/// The largest size of our devices' queues. Drivers for the legacy rings, and test suites with them, want 128 at least.
pub const LARGEST: u16 = 256;
/// How many chains a device takes from a queue in one call. What a call may do is bounded by this, however long the queue is.
pub const CHAINS_A_CALL: usize = 64;

/// One virtqueue of a device.
#[derive(Clone, Debug)]
pub struct Queue {
    max_size: u16,
    /// What is saved of it.
    pub(crate) state: SavedQueue,
    /// Where to go on with the chain that is next, if it was begun. Not part of the state: the chain may be begun again.
    walk: Option<Walk>,
    /// For which entry the driver has been asked to notify. As little: it may be asked again.
    asked: Option<u16>,
}

impl Queue {
    /// A queue that may become up to `max_size` entries long: a power of two, at most 32768.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self { max_size, state: SavedQueue { size: max_size, ..SavedQueue::default() }, walk: None, asked: None }
    }

    /// The largest size.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver has set it up and released it to the device.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.ready
    }

    /// Sets which of the ring features the driver accepted.
    pub fn set_features(&mut self, event_index: bool, indirect: bool) {
        self.state.event_index = event_index;
        self.state.indirect = indirect;
    }

    /// Places the queue, before it is made ready: its size, descriptor table, available ring and used ring.
    pub fn place(&mut self, size: u16, descriptors: Ipa, available: Ipa, used: Ipa) {
        self.state.size = size;
        self.state.descriptors = descriptors;
        self.state.available = available;
        self.state.used = used;
    }

    /// Makes the queue ready, from the start of its rings, if its size and addresses are valid (section 2.7); returns
    /// whether they are.
    pub fn make_ready(&mut self) -> bool {
        self.state.ready = self.is_valid();
        self.state.next_available = 0;
        self.state.next_used = 0;
        self.state.considered = 0;
        (self.walk, self.asked) = (None, None);
        self.state.ready
    }

    /// Whether its size and addresses are such that the arithmetic of its rings holds.
    fn is_valid(&self) -> bool {
        let size = u64::from(self.state.size);
        let fits = |base: Ipa, alignment, bytes| base.is_aligned(alignment) && base.checked_add(bytes).is_some();
        self.state.size.is_power_of_two()
            && self.state.size <= self.max_size
            && fits(self.state.descriptors, DESCRIPTOR_SIZE, size * DESCRIPTOR_SIZE)
            && fits(self.state.available, 2, RING_HEADER + size * AVAILABLE_SIZE + 2)
            && fits(self.state.used, 4, RING_HEADER + size * USED_SIZE + 2)
    }

    /// Takes the state out.
    #[must_use]
    pub fn save(&self) -> SavedQueue {
        self.state
    }

    /// A queue of up to `max_size` entries with this state.
    ///
    /// # Errors
    /// If no driver can bring such a queue into it.
    pub fn restored(max_size: u16, saved: &SavedQueue) -> Result<Self, Unfit> {
        let queue = Self { max_size, state: *saved, walk: None, asked: None };
        if saved.ready && !queue.is_valid() {
            return Err(Unfit("a queue is ready whose size or addresses are not valid"));
        }
        Ok(queue)
    }

    /// Takes the queue from the device; nothing touches its memory any more.
    pub fn make_unready(&mut self) {
        self.state.ready = false;
        self.walk = None;
    }

    /// Back to the state after creation.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Takes the next buffer that the driver made available and fills `chain` with it; `false` if there is none. In that
    /// case the driver will notify when there is one. After a refusal for now, the call that goes on has the same `chain`.
    ///
    /// # Errors
    /// If the ring or the chain breaks a rule. The queue is then not to be used any more.
    pub fn pop<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<bool, QueueError> {
        self.take(memory, chain, Ask::ToBeNotified)
    }

    /// As [`Queue::pop`], for a device that looks for buffers only when it has something to put in: it need not hear of new ones.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn pop_quietly<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<bool, QueueError> {
        self.take(memory, chain, Ask::ForNothing)
    }

    fn take<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain, ask: Ask) -> Result<bool, QueueError> {
        if !self.state.ready {
            return Ok(false);
        }
        let walk = match self.walk.take() {
            Some(walk) => walk,
            None => {
                let Some(head) = self.next_head(memory, ask)? else { return Ok(false) };
                chain.begin(head);
                // One step more than a chain may be long, for the descriptor of an indirect table.
                let left = self.max_size.saturating_add(1);
                Walk {
                    table: self.state.descriptors,
                    entries: self.state.size.into(),
                    in_indirect: false,
                    index: head,
                    left,
                }
            }
        };
        self.collect(memory, walk, chain)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        self.asked = None;
        Ok(true)
    }

    /// As [`pop`](Self::pop), for a device that answers each request: in the last byte that it may write.
    ///
    /// # Errors
    /// As `pop`, and if there is no such byte.
    pub fn pop_request<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<bool, QueueError> {
        let is_any = self.pop(memory, chain)?;
        if is_any && chain.writable().is_empty() { Err(QueueError::NoAnswer) } else { Ok(is_any) }
    }

    /// The first descriptor of the next buffer, if there is one.
    fn next_head<M: GuestMemory>(&mut self, memory: &M, ask: Ask) -> Result<Option<u16>, QueueError> {
        let mut index = self.load_available_index(memory)?;
        if index == self.state.next_available {
            if ask == Ask::ForNothing || !self.state.event_index || self.asked == Some(index) {
                return Ok(None);
            }
            // Ask for a notification, then look again: the driver may have added a buffer before it saw the request.
            memory.store_u16(self.available_event_address()?, index)?;
            // Pairs with the driver's barrier between its store of the available index and its load of this request: one of the two sees
            // what the other wrote.
            fence(Ordering::SeqCst);
            index = self.load_available_index(memory)?;
            if index == self.state.next_available {
                self.asked = Some(index);
                return Ok(None);
            }
        }
        if index.wrapping_sub(self.state.next_available) > self.state.size {
            return Err(QueueError::AvailableIndex { index, expected: self.state.next_available });
        }
        let slot = self.state.next_available & (self.state.size - 1);
        Ok(Some(memory.load_u16(entry(self.state.available, RING_HEADER, slot, AVAILABLE_SIZE)?)?))
    }

    /// Returns a buffer to the driver, with the bytes that were written to it.
    ///
    /// # Errors
    /// If the used ring lies outside the guest's memory; the buffer was not returned then.
    pub fn push<M: GuestMemory>(&mut self, memory: &M, chain: &Chain) -> Result<(), QueueError> {
        if !self.state.ready {
            return Ok(());
        }
        self.lay(memory, 0, chain)?;
        self.show(memory, 1)
    }

    /// How far the queue has come with taking buffers, to be [put back](Queue::put_back) there.
    #[must_use]
    pub(crate) const fn taken(&self) -> u16 {
        self.state.next_available
    }

    /// The buffers that were taken since `taken` was asked for are the driver's again, and the first that is taken next: nothing of them was
    /// returned.
    pub(crate) const fn put_back(&mut self, taken: u16) {
        self.state.next_available = taken;
        self.walk = None;
    }

    /// Puts a buffer into the used ring that the driver does not see yet: `nth` others were put there before since the last were
    /// [shown](Queue::show).
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub(crate) fn lay<M: GuestMemory>(&self, memory: &M, nth: u16, chain: &Chain) -> Result<(), QueueError> {
        let slot = self.state.next_used.wrapping_add(nth) & (self.state.size - 1);
        let element = u64::from(chain.head()) | u64::from(chain.written()) << 32;
        Ok(memory.write(entry(self.state.used, RING_HEADER, slot, USED_SIZE)?, &element.to_le_bytes())?)
    }

    /// Shows the driver so many buffers that were put into the used ring, all at once.
    ///
    /// # Errors
    /// As [`Queue::push`]; it sees none of them then.
    pub(crate) fn show<M: GuestMemory>(&mut self, memory: &M, count: u16) -> Result<(), QueueError> {
        // The data and the elements have to be there before the index says so. Pairs with the driver's barrier between its load of the
        // used index and its loads of both.
        fence(Ordering::Release);
        let next = self.state.next_used.wrapping_add(count);
        memory.store_u16(entry(self.state.used, 2, 0, 0)?, next)?;
        self.state.next_used = next;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the buffers returned since the last call.
    ///
    /// # Errors
    /// If the rings lie outside the guest's memory.
    pub fn take_interrupt<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, QueueError> {
        if !self.state.ready || self.state.next_used == self.state.considered {
            return Ok(false);
        }
        let before = self.state.considered;
        // The used index has to be visible before the driver's request is read. Pairs with the driver's barrier: it writes its request
        // first, and then looks once more at the used index.
        fence(Ordering::SeqCst);
        let wanted = if self.state.event_index {
            let event = memory.load_u16(entry(self.state.available, RING_HEADER, self.state.size, AVAILABLE_SIZE)?)?;
            // Is `event` one of the indices from `before` up to, but not including, `next_used`? (section 2.7.10)
            self.state.next_used.wrapping_sub(event).wrapping_sub(1) < self.state.next_used.wrapping_sub(before)
        } else {
            memory.load_u16(self.state.available)? & AVAILABLE_NO_INTERRUPT == 0
        };
        self.state.considered = self.state.next_used;
        Ok(wanted)
    }

    fn load_available_index<M: GuestMemory>(&self, memory: &M) -> Result<u16, QueueError> {
        let index = memory.load_u16(entry(self.state.available, 2, 0, 0)?)?;
        // Ring entries and descriptors are read after the index that announced them. Pairs with the driver's barrier before it stores
        // that index.
        fence(Ordering::Acquire);
        Ok(index)
    }

    fn available_event_address(&self) -> Result<Ipa, QueueError> {
        entry(self.state.used, RING_HEADER, self.state.size, USED_SIZE)
    }

    /// Copies the rest of a chain, from where `walk` has come to.
    fn collect<M: GuestMemory>(&mut self, memory: &M, mut walk: Walk, chain: &mut Chain) -> Result<(), QueueError> {
        while let Some(left) = walk.left.checked_sub(1) {
            if u32::from(walk.index) >= walk.entries {
                return Err(QueueError::NoSuchDescriptor(walk.index));
            }
            let descriptor =
                Descriptor::read(memory, walk.table, walk.index).inspect_err(|_| self.walk = Some(walk))?;
            walk.left = left;
            if descriptor.flags & DESCRIPTOR_INDIRECT != 0 {
                if walk.in_indirect || !self.state.indirect || descriptor.flags & DESCRIPTOR_NEXT != 0 {
                    return Err(QueueError::MisplacedIndirect);
                }
                if descriptor.length == 0 || !descriptor.length.is_multiple_of(DESCRIPTOR_SIZE as u32) {
                    return Err(QueueError::IndirectLength(descriptor.length));
                }
                walk.table = descriptor.address;
                walk.entries = descriptor.length / DESCRIPTOR_SIZE as u32;
                walk.in_indirect = true;
                walk.index = 0;
                continue;
            }
            let writable = descriptor.flags & DESCRIPTOR_WRITE != 0;
            let direction = if writable { Direction::Write } else { Direction::Read };
            chain.add(descriptor.address, descriptor.length, direction)?;
            if descriptor.flags & DESCRIPTOR_NEXT == 0 {
                return Ok(());
            }
            walk.index = descriptor.next;
        }
        Err(QueueError::ChainTooLong)
    }
}

#[cfg(test)]
mod tests;
