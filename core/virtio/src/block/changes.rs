//! What a guest has written to its disk: blocks of 4 KiB, in memory of the VM that its guest does not see, each at its first store.
//!
//! That memory is an array of pages, which are zeros at first. It begins with a list, a word of 32 bits for each block of the disk: 0 for
//! one that is as in the image, [`ZEROS`] for one that was zeroed, else the number of the page that has it. Behind the list are the pages
//! that blocks are given: those that were never given to one, from a number on, and those that one has given back, each of which has in
//! its first bytes the number of the one that was given back before it. So no page has to be looked for, and a start costs nothing.
//!
//! The memory may refuse each access, also one that it has just let through: a save may have begun, or a piece of it may be on its way.
//! Then all is done again. So a page is written only while no block and no other page knows of it: there is one such page at a time,
//! the *spare* one, which is taken from those that are free before a block gets it, and becomes one of them after a block has lost it.
//!
//! Nothing of it is the guest's to write. But it comes with a VM that is restored, from a file in which there may be anything: so each
//! number is looked at when it is read, and where it is that of no page it counts as 0. Two blocks may then have one page, which harms
//! nobody but that guest.

use devices::Outside;
use devices::saved::Unfit;
use units::PAGE_SIZE;

use super::SECTOR;
use crate::memory::{Fault, GuestMemory};
use crate::saved::SavedChanges;

/// Bytes of a block.
pub(super) const BLOCK: usize = PAGE_SIZE as usize;
/// What the list says of a block of zeros.
const ZEROS: u32 = u32::MAX;
/// Bytes of an entry of the list, and of the number in a page that was given back.
const WORD: u64 = size_of::<u32>() as u64;
/// Zeros, of which a page is written a sector at a time.
pub(super) const NOTHING: [u8; SECTOR as usize] = [0; SECTOR as usize];

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Where it was at first.
    Image,
    /// Nowhere: it is zeros.
    Zeros,
    /// In the page of this number.
    Page(u32),
}

/// Where the changes of one disk are.
#[derive(Debug)]
pub(super) struct Changes {
    /// Where they begin in the memory that a VM has for those of all its disks, in bytes.
    start: u64,
    /// How many pages there are, the list with them, and how many that takes.
    pages: u32,
    list: u32,
    /// The first page that no block was given so far.
    next: u32,
    /// The page that was given back last, of those that are in a row; 0 if there is none.
    free: u32,
    /// A page that is neither a block's nor in that row; 0 if there is none.
    spare: u32,
    /// A store found no page: to be told, and told. The latter until the next reset.
    is_to_tell: bool,
    was_told: bool,
}

impl Changes {
    /// None, of a disk of so many bytes, in `size` bytes from `start` on: 0 for a disk that cannot be written.
    pub(super) fn new(disk: u64, start: u64, size: u64) -> Self {
        let pages = u32::try_from(size / PAGE_SIZE).unwrap_or(ZEROS - 1);
        let bytes = disk.div_ceil(PAGE_SIZE).saturating_mul(WORD);
        let list = u32::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(pages).min(pages);
        Self { start, pages, list, next: list, free: 0, spare: 0, is_to_tell: false, was_told: false }
    }

    /// Whether there can be any.
    pub(super) const fn is_possible(&self) -> bool {
        self.pages > 0
    }

    /// The memory has gone, and with it all of them.
    pub(super) fn forget(&mut self) {
        (self.next, self.free, self.spare) = (self.list, 0, 0);
    }

    /// Where block `block` of the disk is.
    pub(super) fn find<M: GuestMemory>(&self, memory: &M, block: u64) -> Result<Place, Fault> {
        if !self.is_possible() {
            return Ok(Place::Image);
        }
        let mut word = [0; WORD as usize];
        memory.read_annex(self.start.saturating_add(block.saturating_mul(WORD)), &mut word)?;
        Ok(match u32::from_le_bytes(word) {
            ZEROS => Place::Zeros,
            page if self.has(page) => Place::Page(page),
            _ => Place::Image,
        })
    }

    /// Whether a block may have been given the page of this number.
    fn has(&self, page: u32) -> bool {
        (self.list..self.next).contains(&page)
    }

    /// From now on block `block` is there.
    fn put<M: GuestMemory>(&self, memory: &M, block: u64, place: Place) -> Result<(), Fault> {
        let word = match place {
            Place::Image => 0,
            Place::Zeros => ZEROS,
            Place::Page(page) => page,
        };
        memory.write_annex(self.start.saturating_add(block.saturating_mul(WORD)), &word.to_le_bytes())
    }

    fn at(&self, page: u32, offset: usize) -> u64 {
        self.start.saturating_add(u64::from(page) * PAGE_SIZE + offset as u64)
    }

    pub(super) fn read<M: GuestMemory>(
        &self,
        memory: &M,
        page: u32,
        offset: usize,
        into: &mut [u8],
    ) -> Result<(), Fault> {
        memory.read_annex(self.at(page, offset), into)
    }

    pub(super) fn write<M: GuestMemory>(
        &self,
        memory: &M,
        page: u32,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        memory.write_annex(self.at(page, offset), bytes)
    }

    /// Zeros `length` bytes of a page, whole sectors.
    pub(super) fn clear<M: GuestMemory>(
        &self,
        memory: &M,
        page: u32,
        offset: usize,
        length: usize,
    ) -> Result<(), Fault> {
        (0..length).step_by(NOTHING.len()).try_for_each(|done| self.write(memory, page, offset + done, &NOTHING))
    }

    /// Gives block `block` a page of its own, with what is on it: these bytes, or zeros. `None` if there is no page left.
    ///
    /// Whatever the memory refuses, it can be done again: what is written before the list is in the spare page.
    pub(super) fn give<M: GuestMemory>(
        &mut self,
        memory: &M,
        block: u64,
        contents: Option<&[u8]>,
    ) -> Result<Option<u32>, Fault> {
        if !self.has(self.spare) {
            if self.has(self.free) {
                let mut word = [0; WORD as usize];
                self.read(memory, self.free, 0, &mut word)?;
                (self.spare, self.free) = (self.free, u32::from_le_bytes(word));
            } else if self.next < self.pages {
                (self.spare, self.next) = (self.next, self.next + 1);
            } else {
                self.is_to_tell = !self.was_told;
                return Ok(None);
            }
        }
        let page = self.spare;
        match contents {
            Some(bytes) => self.write(memory, page, 0, bytes)?,
            None => self.clear(memory, page, 0, BLOCK)?,
        }
        self.put(memory, block, Place::Page(page))?;
        self.spare = 0;
        Ok(Some(page))
    }

    /// Block `block` is `place` from now on, and has the page no longer that it had. As [`Changes::give`], it can be done again.
    pub(super) fn take_back<M: GuestMemory>(
        &mut self,
        memory: &M,
        block: u64,
        page: u32,
        place: Place,
    ) -> Result<(), Fault> {
        if self.has(self.spare) {
            let before = if self.has(self.free) { self.free } else { 0 };
            self.write(memory, self.spare, 0, &before.to_le_bytes())?;
            (self.free, self.spare) = (self.spare, 0);
        }
        self.put(memory, block, place)?;
        self.spare = page;
        Ok(())
    }

    /// Block `block`, which has no page, is zeros from now on.
    pub(super) fn zero<M: GuestMemory>(&self, memory: &M, block: u64) -> Result<(), Fault> {
        self.put(memory, block, Place::Zeros)
    }

    /// Its driver begins anew, and may be told anew.
    pub(super) fn may_tell_again(&mut self) {
        (self.is_to_tell, self.was_told) = (false, false);
    }

    /// Tells of a store that found no page, once; the disk has this serial number, with zeros behind it.
    pub(super) fn tell(&mut self, serial: &[u8], outside: &dyn Outside) {
        if core::mem::take(&mut self.is_to_tell) {
            self.was_told = true;
            let serial = serial.split(|&byte| byte == 0).next().and_then(|bytes| core::str::from_utf8(bytes).ok());
            let serial = serial.unwrap_or_default();
            outside.request(devices::Request::Report(format_args!(
                "virtio-blk: a write to the disk {serial} failed: the {} MiB for what is written to it are used up",
                (u64::from(self.pages) * PAGE_SIZE) >> 20
            )));
        }
    }

    pub(super) const fn save(&self) -> SavedChanges {
        // The list and the pages are in memory. What was told may be told again.
        let Self { start: _, pages, list: _, next, free, spare, is_to_tell: _, was_told: _ } = *self;
        SavedChanges { pages, next, free, spare }
    }

    pub(super) fn look_at(&self, saved: &SavedChanges) -> Result<(), Unfit> {
        let SavedChanges { pages, next, free: _, spare: _ } = saved;
        if *pages != self.pages {
            return Err(Unfit("there was another amount of memory for what is written to a disk"));
        }
        let is_page = (self.list..=self.pages).contains(next);
        if is_page { Ok(()) } else { Err(Unfit("a disk has given more pages to what is written than there are")) }
    }

    pub(super) fn restore(&mut self, saved: &SavedChanges) {
        (self.next, self.free, self.spare) = (saved.next, saved.free, saved.spare);
    }
}
