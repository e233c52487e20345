//! Whole blocks: handing them out in runs, scrubbing them, taking them back.

use units::{BLOCK_SIZE, GIGABYTE, Pa, Range, VmId};

use crate::allocator::{MAX_VMS, Release, Run, Runs};
use crate::carved::FRAMES;
use crate::state::{Contents, Kind};
use crate::{Allocation, BlockState, Extent, FrameAllocator, FramesError, Owner, Unscrubbed};

const BLOCKS_PER_GIGABYTE: usize = (GIGABYTE / BLOCK_SIZE) as usize;

impl FrameAllocator<'_> {
    /// How many blocks are free.
    #[must_use]
    pub const fn free_blocks(&self) -> usize {
        (self.usage.free / FRAMES as u64) as usize
    }

    /// Gives `count` blocks to guest `vm` as RAM, in as few runs as can be had, whole aligned gigabytes first. Mapped
    /// in this order from an IPA that is a multiple of 1 GiB on, the gigabytes can be mapped by blocks of 1 GiB.
    ///
    /// No block may be shown to the guest before [`FrameAllocator::first_touch`] has said whether to scrub it.
    ///
    /// # Errors
    ///
    /// If so many blocks are not to be had, or only in more than [`crate::MAX_RUNS`] runs; then nothing is allocated.
    pub fn allocate_guest(&mut self, vm: VmId, count: usize) -> Result<Runs, FramesError> {
        let owner = Owner::Guest(vm);
        self.check_owner(owner)?;
        let free = self.free_blocks();
        if count > free {
            return Err(FramesError::OutOfBlocks { wanted: count, free });
        }
        let mut runs = Runs::new();
        let mut missing = count;
        while missing > 0 {
            let found = if runs.is_full() { None } else { self.find_run(missing) };
            let Some((first, length)) = found else {
                for run in runs {
                    self.free(owner, run.range())?;
                }
                return Err(FramesError::Fragmented(count));
            };
            self.take_run(first, length, owner);
            runs.push(Run { start: self.address(first), blocks: length });
            missing -= length;
        }
        Ok(runs)
    }

    /// Gives `count` neighbouring blocks to `owner`. For a guest's RAM see [`FrameAllocator::allocate_guest`].
    ///
    /// # Errors
    ///
    /// If there are not so many neighbouring free blocks, or if `owner` is not one who can be given any.
    pub fn allocate_blocks(&mut self, owner: Owner, count: usize) -> Result<Allocation, FramesError> {
        self.check_owner(owner)?;
        if matches!(owner, Owner::Guest(_)) {
            return Err(FramesError::BadOwner(owner));
        }
        let free = self.free_blocks();
        if count == 0 || count > free {
            return Err(FramesError::OutOfBlocks { wanted: count, free });
        }
        let found = self.find_run(count).filter(|&(_, length)| length == count);
        let (first, length) = found.ok_or(FramesError::Fragmented(count))?;
        let clean = self.blocks[first..first + length].iter().all(|state| state.is_clean());
        self.take_run(first, length, owner);
        Ok(Allocation::new(Run { start: self.address(first), blocks: length }.range(), clean))
    }

    /// The block around `address` for guest `vm`, which touches it for the first time: what is
    /// [`Allocation::Unscrubbed`] must be zeroed and [`FrameAllocator::mark_clean`]ed before it is mapped. From here to
    /// the mapping, no other vCPU may get at the block: hold the VM's lock.
    ///
    /// # Errors
    ///
    /// [`FramesError::NotOwned`] if it is not the RAM of `vm`.
    pub fn first_touch(&self, vm: VmId, address: Pa) -> Result<Allocation, FramesError> {
        let owner = Owner::Guest(vm);
        let block = self.block_of(address).filter(|&block| self.blocks[block].owner() == Some(owner));
        let block = block.ok_or(FramesError::NotOwned(address, owner))?;
        let range = Range { start: self.address(block), size: BLOCK_SIZE };
        Ok(Allocation::new(range, self.blocks[block].is_clean()))
    }

    /// Whether the whole block around `address` holds nothing of a former owner. Of carved blocks this is not known.
    #[must_use]
    pub fn is_clean(&self, address: Pa) -> bool {
        self.block_of(address).is_some_and(|block| self.blocks[block].is_clean())
    }

    /// Notes that a guest's block from [`FrameAllocator::first_touch`] was scrubbed.
    ///
    /// # Errors
    ///
    /// [`FramesError::NotOwned`] if it is not the RAM of `vm` (any more).
    pub fn mark_clean(&mut self, vm: VmId, block: &Extent) -> Result<(), FramesError> {
        let owner = Owner::Guest(vm);
        let number = self.block_of(block.start()).filter(|&block| self.blocks[block].owner() == Some(owner));
        let number = number.ok_or(FramesError::NotOwned(block.start(), owner))?;
        self.blocks[number] = self.blocks[number].with_clean(true);
        Ok(())
    }

    /// Lends a free block to a CPU that has nothing better to do than to zero it; `None` if there is none. It comes
    /// back by [`FrameAllocator::return_clean`] or [`FrameAllocator::return_dirty`]; meanwhile nobody can have it.
    pub fn next_dirty_free_block(&mut self) -> Option<Unscrubbed> {
        if self.usage.free == self.usage.free_clean {
            return None;
        }
        for region in &mut self.regions {
            let candidates = &self.blocks[region.dirty_hint.min(region.end)..region.end];
            let Some(found) = candidates.iter().position(|state| state.is_free() && !state.is_clean()) else {
                region.dirty_hint = region.end;
                continue;
            };
            let block = region.dirty_hint + found;
            region.dirty_hint = block + 1;
            self.blocks[block] = BlockState::SCRUBBING;
            self.usage.free -= FRAMES as u64;
            self.usage.scrubbing += FRAMES as u64;
            return Some(Unscrubbed::new(Range { start: self.address(block), size: BLOCK_SIZE }));
        }
        None
    }

    /// Takes back a block from [`FrameAllocator::next_dirty_free_block`] that was zeroed.
    ///
    /// # Errors
    ///
    /// [`FramesError::NotOwned`] if it does not come from there.
    pub fn return_clean(&mut self, block: Extent) -> Result<(), FramesError> {
        self.end_scrubbing(block.range(), Contents::Zeros)
    }

    /// Takes back a block from [`FrameAllocator::next_dirty_free_block`] that was not, or not wholly, zeroed.
    ///
    /// # Errors
    ///
    /// [`FramesError::NotOwned`] if it does not come from there.
    pub fn return_dirty(&mut self, block: Unscrubbed) -> Result<(), FramesError> {
        self.end_scrubbing(block.range(), Contents::Anything)
    }

    /// Frees the blocks or frames in `range`, all of which `owner` must have. They are dirty from now on.
    ///
    /// # Errors
    ///
    /// [`FramesError::NotOwned`] if any of it is not what `owner` has, or is only part of a block that was allocated
    /// whole; then nothing is freed.
    pub fn free(&mut self, owner: Owner, range: Range<Pa>) -> Result<(), FramesError> {
        self.check_owner(owner)?;
        if crate::geometry::inward(range) != Some(range) {
            return Err(FramesError::Unaligned(range.start));
        }
        self.check_span(range)?;
        for part in self.parts(range) {
            let state = self.blocks[part.block];
            let owned = if state.kind() == Kind::Carved {
                let record = self.record(part.block);
                record.owner == Some(owner) && record.used.contains_all(part.frames())
            } else {
                state.owner() == Some(owner) && part.is_whole()
            };
            if !owned {
                return Err(FramesError::NotOwned(self.address(part.block).max(range.start), owner));
            }
        }
        for part in self.parts(range) {
            if self.blocks[part.block].kind() == Kind::Carved {
                self.free_frames(owner, part);
            } else {
                self.free_block(owner, part.block);
            }
        }
        Ok(())
    }

    /// Frees some of what exists for `vm`: at most `most` blocks of its RAM or its tables, or what it has in as many carved ones.
    /// They are dirty from then on. `release` goes from call to call and counts. Says whether that is all: then nothing is on the
    /// VM's account any more. A call costs what `most` says, whatever the VM has.
    ///
    /// Nothing may use the memory any more: no CPU runs the VM, and the TLBs have forgotten it. Nothing is allocated for it
    /// before all is free.
    pub fn release_some(&mut self, vm: VmId, release: &mut Release, most: usize) -> bool {
        let Some(account) = self.vms.get(usize::from(vm.0)) else { return true };
        let first = (account.runs as usize).checked_sub(1);
        let Some((first, owner)) = first.and_then(|first| Some((first, self.blocks[first].owner()?))) else {
            return self.release_frames(vm, release, most);
        };
        self.vms[usize::from(vm.0)].runs = self.blocks[first].link();
        let is_next = |state: &BlockState| state.owner() == Some(owner) && !state.is_head();
        let rest = &self.blocks[first + 1..];
        let count = 1 + rest.iter().take(most.saturating_sub(1)).take_while(|state| is_next(state)).count();
        if self.blocks.get(first + count).is_some_and(is_next) {
            // What is left becomes a run of its own.
            self.link_run(vm, first + count);
        }
        self.charge(owner, -((count * FRAMES) as i64));
        release.frames += (count * FRAMES) as u64;
        for block in first..first + count {
            self.set_free(block, Contents::Anything);
        }
        false
    }

    /// Whether `owner` can have memory at all.
    pub(crate) fn check_owner(&self, owner: Owner) -> Result<(), FramesError> {
        match owner {
            Owner::Free | Owner::Reserved => Err(FramesError::BadOwner(owner)),
            Owner::Guest(vm) | Owner::Tables(vm) if usize::from(vm.0) >= MAX_VMS => Err(FramesError::BadVm(vm)),
            _ => Ok(()),
        }
    }

    /// Counts `frames` more, or fewer, for `owner`.
    pub(crate) fn charge(&mut self, owner: Owner, frames: i64) {
        let add = |count: &mut u64| *count = count.wrapping_add_signed(frames);
        match owner {
            Owner::Hypervisor => add(&mut self.usage.hypervisor),
            Owner::Shared => add(&mut self.usage.shared),
            Owner::Enclave => add(&mut self.usage.enclave),
            Owner::Guest(vm) => {
                add(&mut self.usage.guest);
                add(&mut self.vms[usize::from(vm.0)].usage.guest);
            }
            Owner::Tables(vm) => {
                add(&mut self.usage.tables);
                add(&mut self.vms[usize::from(vm.0)].usage.tables);
            }
            Owner::Free | Owner::Reserved => {}
        }
    }

    fn end_scrubbing(&mut self, range: Range<Pa>, contents: Contents) -> Result<(), FramesError> {
        let lent = |&block: &usize| self.blocks[block].kind() == Kind::Scrubbing && range.size == BLOCK_SIZE;
        let block = self.block_of(range.start).filter(lent);
        let block = block.ok_or(FramesError::NotOwned(range.start, Owner::Free))?;
        self.usage.scrubbing -= FRAMES as u64;
        self.set_free(block, contents);
        Ok(())
    }

    /// Up to `at_most` neighbouring free blocks: the first and how many. Whole aligned gigabytes if so many are
    /// wanted and there are any, else the first run that is long enough, else the longest.
    pub(crate) fn find_run(&mut self, at_most: usize) -> Option<(usize, usize)> {
        if let Some(found) = self.find_gigabytes(at_most) {
            return Some(found);
        }
        let mut longest = (0, 0);
        for region in &mut self.regions {
            let free_at = |block: &usize| self.blocks[*block].is_free();
            let mut next = (region.free_hint..region.end).find(free_at);
            region.free_hint = next.unwrap_or(region.end);
            while let Some(first) = next {
                let limit = region.end.min(first + at_most);
                let end = (first..limit).find(|block| !free_at(block)).unwrap_or(limit);
                let length = end - first;
                if length == at_most {
                    return Some((first, length));
                }
                if length > longest.1 {
                    longest = (first, length);
                }
                next = (end..region.end).find(free_at);
            }
        }
        (longest.1 > 0).then_some(longest)
    }

    /// As many whole aligned gigabytes as `at_most` blocks make, side by side; more than that only if it is all.
    fn find_gigabytes(&self, at_most: usize) -> Option<(usize, usize)> {
        if at_most < BLOCKS_PER_GIGABYTE {
            return None;
        }
        let offset = (self.base.0 / BLOCK_SIZE) as usize % BLOCKS_PER_GIGABYTE;
        for region in &self.regions {
            // Block numbers of aligned gigabytes are multiples if counted from the gigabyte that holds block 0.
            let from = (region.free_hint + offset).next_multiple_of(BLOCKS_PER_GIGABYTE) - offset;
            for first in (from..region.end).step_by(BLOCKS_PER_GIGABYTE) {
                let limit = region.end.min(first + at_most);
                let free = self.blocks[first..limit].iter().take_while(|state| state.is_free()).count();
                if free == at_most {
                    return Some((first, free));
                }
                if free >= BLOCKS_PER_GIGABYTE {
                    return Some((first, free - free % BLOCKS_PER_GIGABYTE));
                }
            }
        }
        None
    }

    /// Makes free blocks those of `owner`; each keeps its mark of being clean.
    pub(crate) fn take_run(&mut self, first: usize, length: usize, owner: Owner) {
        let frames = (length * FRAMES) as u64;
        let owned = BlockState::owned(owner);
        let run = &mut self.blocks[first..first + length];
        if self.usage.free_clean == 0 {
            run.fill(owned);
        } else {
            for state in run {
                if state.is_clean() {
                    self.usage.free_clean -= FRAMES as u64;
                }
                *state = owned.with_clean(state.is_clean());
            }
        }
        self.usage.free -= frames;
        self.charge(owner, frames as i64);
        if let Some(vm) = vm_of(owner) {
            self.link_run(vm, first);
        }
    }

    /// Puts the run that begins at `first` at the front of the list of `vm`.
    fn link_run(&mut self, vm: VmId, first: usize) {
        let account = &mut self.vms[usize::from(vm.0)];
        self.blocks[first] = self.blocks[first].with_link(account.runs);
        account.runs = first as u32 + 1;
    }

    /// Frees one block that was allocated as part of a run.
    fn free_block(&mut self, owner: Owner, block: usize) {
        if let Some(vm) = vm_of(owner) {
            let state = self.blocks[block];
            if state.is_head() {
                self.unlink_head(vm, block);
            }
            let next = self.blocks.get(block + 1).copied().unwrap_or_default();
            if next.owner() == Some(owner) && !next.is_head() {
                // What follows becomes a run of its own.
                self.link_run(vm, block + 1);
            }
        }
        self.charge(owner, -(FRAMES as i64));
        self.set_free(block, Contents::Anything);
    }

    /// Takes the run that begins at `block` out of the list of `vm`.
    fn unlink_head(&mut self, vm: VmId, block: usize) {
        let (this, next) = (block as u32 + 1, self.blocks[block].link());
        let account = &mut self.vms[usize::from(vm.0)];
        if account.runs == this {
            account.runs = next;
            return;
        }
        let mut run = account.runs;
        while let Some(head) = (run as usize).checked_sub(1) {
            run = self.blocks[head].link();
            if run == this {
                self.blocks[head] = self.blocks[head].with_link(next);
                return;
            }
        }
    }
}

/// The VM that has runs of `owner` in its list.
const fn vm_of(owner: Owner) -> Option<VmId> {
    match owner {
        Owner::Guest(vm) | Owner::Tables(vm) => Some(vm),
        _ => None,
    }
}
