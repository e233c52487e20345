//! The allocator itself: what RAM there is, and which of it was in use at start.

use arrayvec::ArrayVec;
use units::{BLOCK_SIZE, PAGE_SIZE, Pa, Range};

use crate::carved::{FRAMES, FrameSet};
use crate::geometry::{Part, inward, outward};
use crate::state::{Contents, Kind};
use crate::{BlockState, CarvedBlock, FramesError, Owner, Usage};

/// VMs are numbered below this. One may have two numbers, for what is to end at different times.
pub const MAX_VMS: usize = 128;
/// How many pieces one guest's RAM may be in.
pub const MAX_RUNS: usize = 64;
/// How many separate stretches of RAM are told apart when searching; gaps between further ones are searched as well.
const MAX_REGIONS: usize = 16;
/// Owners for whom a hint is kept: per VM its guest and its tables, and three more.
pub(crate) const HINTS: usize = 2 * MAX_VMS + 3;

/// Neighbouring blocks of one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first byte, aligned to 2 MiB.
    pub start: Pa,
    /// How many blocks of 2 MiB.
    pub blocks: usize,
}

impl Run {
    /// The bytes of the run.
    #[must_use]
    pub const fn range(self) -> Range<Pa> {
        Range { start: self.start, size: self.blocks as u64 * BLOCK_SIZE }
    }
}

/// A guest's RAM: in the order in which it is to appear to the guest.
pub type Runs = ArrayVec<Run, MAX_RUNS>;

/// How many [`BlockState`]s RAM that lies within `span` needs.
#[must_use]
pub const fn metadata_len(span: Range<Pa>) -> usize {
    let first = span.start.0 / BLOCK_SIZE;
    let end = span.start.0.saturating_add(span.size).div_ceil(BLOCK_SIZE);
    (end - first) as usize
}

/// A stretch of blocks that are RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) first: usize,
    pub(crate) end: usize,
    /// No block below is free.
    pub(crate) free_hint: usize,
    /// No block below is free and dirty.
    pub(crate) dirty_hint: usize,
}

/// What is known of one VM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VmAccount {
    /// The number of the first block of its first run, plus one; 0: no run.
    pub(crate) runs: u32,
    pub(crate) usage: crate::VmUsage,
}

/// How far the release of a VM's memory has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Release {
    /// How many frames were freed.
    pub frames: u64,
    /// Up to which record of a carved block all is done.
    pub(crate) record: usize,
}

/// Knows the owner of each piece of RAM and hands it out.
pub struct FrameAllocator<'m> {
    pub(crate) blocks: &'m mut [BlockState],
    pub(crate) carved: &'m mut [CarvedBlock],
    /// Address of block 0 of `blocks`.
    pub(crate) base: Pa,
    pub(crate) regions: ArrayVec<Region, MAX_REGIONS>,
    pub(crate) usage: Usage,
    pub(crate) vms: [VmAccount; MAX_VMS],
    /// The record that served each owner last.
    pub(crate) hints: [u16; HINTS],
}

impl<'m> FrameAllocator<'m> {
    /// An allocator that knows no RAM yet.
    ///
    /// `metadata` has at least [`metadata_len`] entries, all [`BlockState::ABSENT`] (which is memory of zeroes);
    /// `carved` are as many [`CarvedBlock::UNUSED`] as blocks may be carved at once, at most 65,535. `span` holds all
    /// RAM that will ever be added.
    ///
    /// # Errors
    ///
    /// [`FramesError::MetadataTooShort`].
    pub fn new(
        metadata: &'m mut [BlockState],
        carved: &'m mut [CarvedBlock],
        span: Range<Pa>,
    ) -> Result<Self, FramesError> {
        let needed = metadata_len(span);
        let got = metadata.len();
        let blocks = metadata.get_mut(..needed).ok_or(FramesError::MetadataTooShort { got, needed })?;
        Ok(Self {
            blocks,
            carved,
            base: span.start.align_down(BLOCK_SIZE),
            regions: ArrayVec::new(),
            usage: Usage::default(),
            vms: [VmAccount::default(); MAX_VMS],
            hints: [0; HINTS],
        })
    }

    /// Adds RAM, free and dirty. Frames of which only a part lies in `range` are left out.
    ///
    /// # Errors
    ///
    /// If it lies outside of the span or was added before; then nothing is added.
    pub fn add_memory(&mut self, range: Range<Pa>) -> Result<(), FramesError> {
        let Some(range) = inward(range) else { return Ok(()) };
        self.check_span(range)?;
        for part in self.edge_parts(range) {
            let taken = match self.blocks[part.block].kind() {
                Kind::Absent => false,
                Kind::Carved => !self.record(part.block).absent.contains_all(part.frames()),
                _ => true,
            };
            if taken {
                return Err(FramesError::Overlap(self.address(part.block)));
            }
        }
        let whole = self.whole_blocks(range);
        if let Some(taken) = first_present(&self.blocks[whole.clone()]) {
            return Err(FramesError::Overlap(self.address(whole.start + taken)));
        }
        for part in self.edge_parts(range) {
            self.add_part(part);
        }
        if !whole.is_empty() {
            self.blocks[whole.clone()].fill(BlockState::FREE_DIRTY);
            let frames = (whole.len() * FRAMES) as u64;
            self.usage.total += frames;
            self.usage.free += frames;
            self.add_region(whole.start, whole.end);
        }
        Ok(())
    }

    /// Takes RAM that is in use already (by firmware, by our image, by the bundle). Frames of which only a part lies in
    /// `range` are taken whole; what is no RAM is left alone. If too many blocks are in use in part only, whole ones
    /// are taken.
    ///
    /// # Errors
    ///
    /// [`FramesError::InUse`] if some of it was allocated before; then nothing is reserved.
    pub fn reserve(&mut self, range: Range<Pa>) -> Result<(), FramesError> {
        let Some(range) = self.clip(outward(range)) else { return Ok(()) };
        for part in self.parts(range) {
            let in_use = match self.blocks[part.block].kind() {
                Kind::Absent | Kind::Free | Kind::Reserved => false,
                Kind::Carved => !self.record(part.block).used.intersection(part.frames()).is_empty(),
                _ => true,
            };
            if in_use {
                return Err(FramesError::InUse(self.address(part.block)));
            }
        }
        for part in self.parts(range) {
            self.reserve_part(part);
        }
        Ok(())
    }

    /// Gives back what was reserved and is needed no more (the bundle, once the guests are loaded), dirty. Frames of which
    /// only a part lies in `range` stay. Returns how many frames became free.
    pub fn reclaim(&mut self, range: Range<Pa>) -> u64 {
        let Some(range) = inward(range).and_then(|range| self.clip(range)) else { return 0 };
        let before = self.usage.reserved;
        for part in self.parts(range) {
            self.reclaim_part(part);
        }
        before - self.usage.reserved
    }

    /// How much RAM each owner has.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        self.usage
    }

    /// Whose the RAM at `address` is; `None` if it is no RAM.
    #[must_use]
    pub fn owner_of(&self, address: Pa) -> Option<Owner> {
        let block = self.block_of(address)?;
        let state = self.blocks[block];
        if state.kind() != Kind::Carved {
            return state.owner();
        }
        let record = self.record(block);
        let frame = ((address.0 & (BLOCK_SIZE - 1)) / PAGE_SIZE) as usize;
        let this = FrameSet::span(frame, frame + 1);
        if record.absent.contains_all(this) {
            None
        } else if record.reserved.contains_all(this) {
            Some(Owner::Reserved)
        } else if record.used.contains_all(this) {
            record.owner
        } else {
            Some(Owner::Free)
        }
    }

    fn add_part(&mut self, part: Part) {
        let block = part.block;
        if self.blocks[block].kind() == Kind::Absent {
            let fresh = CarvedBlock {
                absent: FrameSet::ALL,
                free: 0,
                ..CarvedBlock::of_free_block(block as u32, Contents::Anything)
            };
            if !self.carve(fresh) {
                return; // No record left: these few frames are not used at all.
            }
            self.add_region(block, block + 1);
        }
        self.usage.total += part.count();
        self.change_record(block, |record| record.absent = record.absent.without(part.frames()));
    }

    fn reserve_part(&mut self, part: Part) {
        let (block, state) = (part.block, self.blocks[part.block]);
        match state.kind() {
            Kind::Free => {
                self.count_out_free(state);
                if part.is_whole() || !self.carve(CarvedBlock::of_free_block(block as u32, state.contents())) {
                    self.blocks[block] = BlockState::RESERVED;
                    self.usage.reserved += FRAMES as u64;
                    return;
                }
                self.usage.spare += FRAMES as u64;
            }
            Kind::Carved => {}
            _ => return,
        }
        let record = self.record(block);
        let taken = part.frames().intersection(record.available());
        self.usage.reserved += taken.count();
        self.change_record(block, |record| record.reserved = record.reserved.union(taken));
    }

    fn reclaim_part(&mut self, part: Part) {
        let block = part.block;
        match self.blocks[block].kind() {
            Kind::Reserved if part.is_whole() => {
                self.usage.reserved -= FRAMES as u64;
                self.set_free(block, Contents::Anything);
                return;
            }
            Kind::Reserved => {
                let all = CarvedBlock {
                    reserved: FrameSet::ALL,
                    free: 0,
                    ..CarvedBlock::of_free_block(block as u32, Contents::Anything)
                };
                if !self.carve(all) {
                    return;
                }
            }
            Kind::Carved => {}
            _ => return,
        }
        let given = part.frames().intersection(self.record(block).reserved);
        self.usage.reserved -= given.count();
        self.change_record(block, |record| {
            record.reserved = record.reserved.without(given);
            record.dirty = record.dirty.union(given);
        });
    }

    /// Puts `record` into a place of the array that is unused; `false` if there is none.
    pub(crate) fn carve(&mut self, record: CarvedBlock) -> bool {
        let Some(place) = self.carved.iter().position(|record| !record.in_use) else { return false };
        self.blocks[record.block as usize] = BlockState::carved(place);
        self.carved[place] = record;
        true
    }

    /// The record of a carved block.
    pub(crate) fn record(&self, block: usize) -> CarvedBlock {
        self.carved[self.blocks[block].link() as usize]
    }

    /// Changes the sets of the record of `block`, counts its free frames, and dissolves it if it is all of a kind.
    pub(crate) fn change_record(&mut self, block: usize, change: impl FnOnce(&mut CarvedBlock)) {
        let place = self.blocks[block].link() as usize;
        let record = &mut self.carved[place];
        change(record);
        let gained = record.recount();
        self.usage.spare = self.usage.spare.wrapping_add_signed(gained);
        if !record.used.is_empty() {
            return;
        }
        record.owner = None;
        if record.is_wholly_free() {
            let contents = if record.dirty.is_empty() { Contents::Zeros } else { Contents::Anything };
            *record = CarvedBlock::UNUSED;
            self.usage.spare -= FRAMES as u64;
            self.set_free(block, contents);
        } else if record.reserved == FrameSet::ALL {
            *record = CarvedBlock::UNUSED;
            self.blocks[block] = BlockState::RESERVED;
        }
    }

    /// Makes a block free that was counted out of where it was before.
    pub(crate) fn set_free(&mut self, block: usize, contents: Contents) {
        self.blocks[block] = match contents {
            Contents::Zeros => BlockState::FREE_CLEAN,
            Contents::Anything => BlockState::FREE_DIRTY,
        };
        self.usage.free += FRAMES as u64;
        if contents == Contents::Zeros {
            self.usage.free_clean += FRAMES as u64;
        }
        let in_region = |region: &&mut Region| (region.first..region.end).contains(&block);
        if let Some(region) = self.regions.iter_mut().find(in_region) {
            region.free_hint = region.free_hint.min(block);
            if contents == Contents::Anything {
                region.dirty_hint = region.dirty_hint.min(block);
            }
        }
    }

    /// Counts a block of `state` out that is free and will not be.
    pub(crate) fn count_out_free(&mut self, state: BlockState) {
        self.usage.free -= FRAMES as u64;
        if state.is_clean() {
            self.usage.free_clean -= FRAMES as u64;
        }
    }

    /// Notes where RAM is. A region that is too many is thrown together with the last one.
    fn add_region(&mut self, first: usize, end: usize) {
        let place = match self.regions.iter().position(|region| first <= region.end && region.first <= end) {
            Some(place) => place,
            None => {
                let fresh = Region { first, end, free_hint: first, dirty_hint: first };
                if self.regions.try_push(fresh).is_ok() {
                    return;
                }
                MAX_REGIONS - 1
            }
        };
        let region = &mut self.regions[place];
        region.first = region.first.min(first);
        region.end = region.end.max(end);
        region.free_hint = region.free_hint.min(first);
        region.dirty_hint = region.dirty_hint.min(first);
    }
}

/// The first of `blocks` that is RAM already. All in one sweep: this is done for all RAM at boot.
fn first_present(blocks: &[BlockState]) -> Option<usize> {
    if blocks.iter().fold(0, |all, state| all | state.bits()) == 0 {
        return None;
    }
    blocks.iter().position(|&state| state != BlockState::ABSENT)
}
