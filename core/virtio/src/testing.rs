//! What the unit tests share: a guest with 64 KiB of RAM, and a driver's hand to write rings with.

use core::cell::RefCell;
use std::vec;
use std::vec::Vec;

use units::Ipa;

use crate::memory::{Fault, GuestMemory};

/// Where the guest's RAM starts.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const DESCRIPTORS: u64 = RAM;
pub(crate) const AVAILABLE: u64 = RAM + 0x1000;
pub(crate) const USED: u64 = RAM + 0x2000;
/// Where tests put buffers.
pub(crate) const BUFFERS: u64 = RAM + 0x4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) struct Ram {
    bytes: RefCell<Vec<u8>>,
    /// How many accesses there were: what a hostile driver would like to drive up.
    pub(crate) accesses: RefCell<usize>,
}

impl Ram {
    pub(crate) fn new() -> Self {
        Self { bytes: RefCell::new(vec![0; 0x1_0000]), accesses: RefCell::new(0) }
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
}
