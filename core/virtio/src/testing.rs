//! What the unit tests share: a guest with 64 KiB of RAM, and a driver's hand to write rings with.

use core::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use devices::{AccessSize, Moment, Outside, Request, Stream};
use units::{IntId, Ipa, Line, VcpuId};

use crate::device::Device;
use crate::memory::{Fault, GuestMemory};
use crate::mmio::Mmio;

/// Where the guest's RAM starts.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const DESCRIPTORS: u64 = RAM;
pub(crate) const AVAILABLE: u64 = RAM + 0x1000;
pub(crate) const USED: u64 = RAM + 0x2000;
/// Where the annex is among what has to be made ready.
const ANNEX: u64 = 1 << 40;
/// And how far behind that it is for stores.
const STORED: u64 = 1 << 32;
/// Where tests put buffers.
pub(crate) const BUFFERS: u64 = RAM + 0x4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A device whose driver has set up one of its queues, of eight entries, and begun.
pub(crate) fn started<D: Device>(device: D, queue: u64) -> Mmio<D> {
    let mut mmio = Mmio::new(device);
    start(&mut mmio, queue);
    mmio
}

/// What its driver does for that.
pub(crate) fn start<D: Device>(mmio: &mut Mmio<D>, queue: u64) {
    let registers = [(0x070, 3), (0x024, 1), (0x020, 1), (0x070, 11), (0x030, queue), (0x038, 8)];
    let rings = [(0x080, DESCRIPTORS), (0x090, AVAILABLE), (0x0a0, USED), (0x044, 1), (0x070, 15)];
    for (register, value) in registers.into_iter().chain(rings) {
        let _ = mmio.write(register, AccessSize::Word, value);
    }
    assert!(mmio.is_live());
}

pub(crate) struct Ram {
    bytes: RefCell<Vec<u8>>,
    /// What no driver sees.
    pub(crate) annex: RefCell<Vec<u8>>,
    /// How many accesses there were: what a hostile driver would like to drive up.
    pub(crate) accesses: RefCell<usize>,
}

impl Ram {
    pub(crate) fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; 0x1_0000]),
            annex: RefCell::new(vec![0; 0x2_0000]),
            accesses: RefCell::new(0),
        }
    }

    pub(crate) fn descriptor(&self, table: u64, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes `heads` available as the entries from `first` on of a ring of `size`.
    pub(crate) fn offer(&self, size: u16, first: u16, heads: &[u16]) {
        for (count, head) in (0..).zip(heads) {
            let slot = first.wrapping_add(count) % size;
            self.put(AVAILABLE + 4 + u64::from(slot) * 2, &head.to_le_bytes());
        }
        self.put(AVAILABLE + 2, &first.wrapping_add(heads.len() as u16).to_le_bytes());
    }

    pub(crate) fn used(&self, slot: u16) -> (u32, u32) {
        let entry = self.get(USED + 4 + u64::from(slot) * 8, 8);
        (u32::from_le_bytes(entry[..4].try_into().unwrap()), u32::from_le_bytes(entry[4..].try_into().unwrap()))
    }

    pub(crate) fn half(&self, at: u64) -> u16 {
        self.load_u16(Ipa(at)).unwrap()
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.write(Ipa(at), bytes).unwrap();
    }

    pub(crate) fn get(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.read(Ipa(at), &mut bytes).unwrap();
        bytes
    }

    fn place(&self, at: Ipa, count: usize) -> Result<core::ops::Range<usize>, Fault> {
        *self.accesses.borrow_mut() += 1;
        let start = usize::try_from(at.0.checked_sub(RAM).ok_or(Fault(at))?).unwrap();
        let end = start.checked_add(count).filter(|&end| end <= self.bytes.borrow().len()).ok_or(Fault(at))?;
        Ok(start..end)
    }
}

impl GuestMemory for Ram {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        let place = self.place(from, into.len())?;
        into.copy_from_slice(&self.bytes.borrow()[place]);
        Ok(())
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        let place = self.place(to, bytes.len())?;
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        Ok(())
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        assert!(at.is_aligned(2));
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        assert!(at.is_aligned(2));
        self.write(at, &value.to_le_bytes())
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(&self.annex.borrow()[in_a_page(at, into.len())]);
        Ok(())
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.annex.borrow_mut()[in_a_page(at, bytes.len())].copy_from_slice(bytes);
        Ok(())
    }
}

fn in_a_page(at: u64, count: usize) -> core::ops::Range<usize> {
    let at = at as usize;
    assert!(at % 4096 + count <= 4096, "{count} bytes at {at} of the annex are in several pages");
    at..at + count
}

/// RAM of blocks of 256 bytes, each of which is refused for now until it was made ready; and that takes only so many accesses in
/// a turn.
pub(crate) struct Reluctant {
    pub(crate) ram: Ram,
    ready: RefCell<BTreeSet<u64>>,
    missing: Cell<Option<u64>>,
    left: Cell<usize>,
    is_refused: Cell<bool>,
}

impl Reluctant {
    pub(crate) fn new(ram: Ram) -> Self {
        let (missing, is_refused) = (Cell::new(None), Cell::new(false));
        Self { ram, ready: RefCell::default(), missing, left: Cell::new(0), is_refused }
    }

    /// Makes ready what was missing, and allows `accesses` more. Returns whether anything was missing.
    pub(crate) fn next_turn(&self, accesses: usize) -> bool {
        self.left.set(accesses);
        self.missing.take().is_some_and(|block| self.ready.borrow_mut().insert(block))
    }

    /// Nothing is ready any more, as when a save begins.
    pub(crate) fn hold(&self) {
        self.ready.borrow_mut().clear();
    }

    fn allow(&self, at: Ipa, count: usize) -> Result<(), Fault> {
        let blocks = at.0 / 256..=(at.0 + count as u64 - 1) / 256;
        let missing = blocks.into_iter().find(|block| !self.ready.borrow().contains(block));
        self.is_refused.set(self.left.get() == 0 || missing.is_some());
        if self.is_refused.get() {
            self.missing.set(if self.left.get() == 0 { self.missing.get() } else { missing });
            return Err(Fault(at));
        }
        self.left.set(self.left.get() - 1);
        Ok(())
    }
}

impl GuestMemory for Reluctant {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        self.allow(from, into.len()).and_then(|()| self.ram.read(from, into))
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.allow(to, bytes.len()).and_then(|()| self.ram.write(to, bytes))
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        self.allow(at, 2).and_then(|()| self.ram.load_u16(at))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.allow(at, 2).and_then(|()| self.ram.store_u16(at, value))
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.allow(Ipa(ANNEX + at), into.len()).and_then(|()| self.ram.read_annex(at, into))
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        // For as long as something has to be made ready, and never for want of accesses.
        self.left.set(self.left.get() + 1);
        // What may be looked at may not be stored into for that: a save copies it first.
        let is_allowed = self.allow(Ipa(ANNEX + STORED + at), bytes.len());
        if is_allowed.is_err() {
            self.left.set(self.left.get() - 1);
        }
        is_allowed.and_then(|()| self.ram.write_annex(at, bytes))
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

/// An outside with so much room, that remembers what it is told.
pub(crate) struct World {
    pub(crate) ram: Ram,
    pub(crate) room: Cell<usize>,
    pub(crate) sent: RefCell<Vec<u8>>,
    pub(crate) requests: RefCell<Vec<String>>,
}

impl World {
    pub(crate) fn with_room(room: usize) -> Self {
        Self { ram: Ram::new(), room: Cell::new(room), sent: RefCell::default(), requests: RefCell::default() }
    }
}

impl Outside for World {
    fn seconds(&self) -> u64 {
        0
    }

    fn count(&self) -> u64 {
        0
    }

    fn moment(&self) -> Moment {
        unreachable!("no virtio device looks at the time")
    }

    fn show(&self, _index: usize, _word: u64) {}

    fn caller(&self) -> Option<VcpuId> {
        None
    }

    fn memory(&self) -> &dyn GuestMemory {
        &self.ram
    }

    fn has_room(&self, _stream: Stream) -> bool {
        self.room.get() > 0
    }

    fn send_byte(&self, stream: Stream, byte: u8) -> bool {
        self.send(stream, &[byte]);
        self.room.get() > 0
    }

    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        assert_eq!(stream, Stream::Virtio);
        let taken = bytes.len().min(self.room.get());
        self.sent.borrow_mut().extend(&bytes[..taken]);
        self.room.set(self.room.get() - taken);
        taken
    }

    fn set_line(&self, _interrupt: IntId, _line: Line) {}

    fn request(&self, request: Request<'_>) {
        self.requests.borrow_mut().push(match request {
            Request::Report(text) => text.to_string(),
            other => std::format!("{other:?}"),
        });
    }
}
