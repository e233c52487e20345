//! Single frames, and a few together, out of carved blocks.

use units::VmId;

use crate::allocator::{HINTS, MAX_VMS, Release};
use crate::carved::FrameSet;
use crate::geometry::Part;
use crate::{Allocation, CarvedBlock, FrameAllocator, FramesError, Owner, VmUsage};

/// The most frames that one call allocates.
const MAX_COUNT: usize = 64;

impl FrameAllocator<'_> {
    /// Gives `owner` `count` neighbouring frames of 4 KiB, aligned to their size; `count` is a power of two up to 64.
    ///
    /// # Errors
    ///
    /// [`FramesError::OutOfFrames`] if there is no memory or no record left to carve a block.
    pub fn allocate_frames(&mut self, owner: Owner, count: usize) -> Result<Allocation, FramesError> {
        self.check_owner(owner)?;
        if !count.is_power_of_two() || count > MAX_COUNT {
            return Err(FramesError::BadCount(count));
        }
        let hint = usize::from(self.hints[hint_of(owner)]);
        if let Some(allocation) = self.take_frames(hint, owner, count) {
            return Ok(allocation);
        }
        for place in 0..self.carved.len() {
            if let Some(allocation) = self.take_frames(place, owner, count) {
                return Ok(allocation);
            }
        }
        let place = self.carve_free_block().ok_or(FramesError::OutOfFrames)?;
        self.take_frames(place, owner, count).ok_or(FramesError::OutOfFrames)
    }

    /// What exists for `vm`.
    #[must_use]
    pub fn vm_usage(&self, vm: VmId) -> VmUsage {
        self.vms.get(usize::from(vm.0)).map_or(VmUsage::default(), |account| account.usage)
    }

    /// Takes frames from the block of record `place`, if it serves `owner` and has them.
    fn take_frames(&mut self, place: usize, owner: Owner, count: usize) -> Option<Allocation> {
        let record = self.carved.get_mut(place).filter(|record| record.serves(owner))?;
        let first = record.available().find(count)?;
        let taken = FrameSet::span(first, first + count);
        let clean = record.dirty.intersection(taken).is_empty();
        record.owner = Some(owner);
        record.used = record.used.union(taken);
        record.dirty = record.dirty.union(taken);
        record.free -= count as u16;
        let block = record.block as usize;
        self.usage.spare -= count as u64;
        self.charge(owner, count as i64);
        self.hints[hint_of(owner)] = place as u16;
        Some(Allocation::new(self.frame_range(block, first, count), clean))
    }

    /// Divides a free block; returns the place of its record.
    fn carve_free_block(&mut self) -> Option<usize> {
        let (block, _) = self.find_run(1)?;
        let state = self.blocks[block];
        if !self.carve(CarvedBlock::of_free_block(block as u32, state.contents())) {
            return None;
        }
        self.count_out_free(state);
        self.usage.spare += crate::carved::FRAMES as u64;
        Some(self.blocks[block].link() as usize)
    }

    /// Frees frames that `owner` is known to have.
    pub(crate) fn free_frames(&mut self, owner: Owner, part: Part) {
        self.charge(owner, -(part.count() as i64));
        self.change_record(part.block, |record| record.used = record.used.without(part.frames()));
    }

    /// Frees all frames on the account of `vm`.
    pub(crate) fn release_frames(&mut self, vm: VmId, release: &mut Release, most: usize) -> bool {
        let end = self.carved.len().min(release.record.saturating_add(most));
        for place in release.record..end {
            let record = self.carved[place];
            let Some(owner @ (Owner::Guest(holder) | Owner::Tables(holder))) = record.owner else { continue };
            if !record.in_use || holder != vm {
                continue;
            }
            self.charge(owner, -(record.used.count() as i64));
            release.frames += record.used.count();
            self.change_record(record.block as usize, |record| record.used = FrameSet::NONE);
        }
        release.record = end;
        end == self.carved.len()
    }
}

/// Where the hint for `owner` is kept.
fn hint_of(owner: Owner) -> usize {
    let place = match owner {
        Owner::Guest(vm) => usize::from(vm.0),
        Owner::Tables(vm) => MAX_VMS + usize::from(vm.0),
        Owner::Shared => 2 * MAX_VMS,
        Owner::Enclave => 2 * MAX_VMS + 1,
        Owner::Hypervisor | Owner::Free | Owner::Reserved => 2 * MAX_VMS + 2,
    };
    place.min(HINTS - 1)
}
