//! A guest's RAM that is still to come, while the guest runs: what a restore brings, piece by piece.
//!
//! A VM that is restored runs as soon as its state is in it ([`GuestRam::is_to_come`]). Its memory comes in any order, by pieces of 64 KiB,
//! and nobody sees a piece before it is there: not the guest, whose tables do not show it, and not the hypervisor on its behalf. Whoever
//! needs one waits for it, and the VM stands still meanwhile, as a whole. What comes is written into pieces that are still to come and
//! into nothing else, whatever a stream says: a guest that runs owns all others.
//!
//! A block of which only some pieces are there is mapped by pages, as far as the guest touches it. When the last one has come, the rest is
//! mapped beside these, and the block is one entry again if nothing in it was executed: as it would be if it had been whole at first.

use hw::cache;
use hw::sync::PreemptLock;
use snapshot::file::{Content, PAGES_OF_A_PIECE, Run};
use stage2::{Point, Stage2Error};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa, Range};

use super::{Block, GuestRam, Missing, Preparation, RamError, State, Tables, Tlb};
use crate::host::memory;

/// Pieces of a block.
const PIECES: usize = (BLOCK_SIZE / memory::PIECE) as usize;
/// All of them are there.
const ALL: u32 = u32::MAX;
const _: () = assert!(PIECES == ALL.count_ones() as usize && PAGES_OF_A_PIECE * PAGE_SIZE == memory::PIECE);

/// What is known beside the blocks, while some are to come.
#[derive(Default)]
pub(super) struct Coming {
    /// How many blocks, of which at least a piece is to come.
    left: usize,
    /// The piece for which the VM stands still.
    stalled: Option<usize>,
    /// There was no memory for the table of a block in pieces: whoever wants one waits for the whole block, which takes none.
    is_short: bool,
}

impl GuestRam {
    /// All of it is to come: it was just built.
    pub(crate) fn is_to_come(&mut self) {
        let mut left = 0;
        for block in self.all_blocks().filter(|block| block.state == State::Untouched) {
            block.state = State::ToCome(0);
            left += 1;
        }
        self.coming = Some(Coming { left, ..Coming::default() });
    }

    /// How many blocks are to come, or are some of which not all pieces have.
    #[must_use]
    pub(crate) fn left_to_come(&self) -> usize {
        self.coming.as_ref().map_or(0, |coming| coming.left)
    }

    /// The piece for which the VM stands still, by its number.
    #[must_use]
    pub(crate) fn wanted(&self) -> Option<usize> {
        self.coming.as_ref().and_then(|coming| coming.stalled)
    }

    /// Whether the guest, and the hypervisor for it, has the piece around `at` of a block of which these have come.
    pub(super) fn has_piece(&self, at: Ipa, came: u32) -> bool {
        let is_shown = |tables: &stage2::Stage2| tables.translate(&Tables(self.vm), at).is_some();
        let has_come = came & self.bit(at) != 0;
        if self.in_annex(self.index(at)).is_some() {
            return has_come;
        }
        has_come && self.tables.as_ref().is_some_and(is_shown)
    }

    /// Shows the guest the piece around `at`, if it is one of those that have come.
    pub(super) fn prepare_piece(&mut self, at: Ipa, came: u32) -> Result<Preparation, RamError> {
        if came & self.bit(at) == 0 {
            return Ok(Preparation::Stalled);
        }
        if self.has_piece(at, came) {
            return Ok(Preparation::Shown);
        }
        match self.show_piece(at) {
            Err(RamError::Tables(Stage2Error::OutOfTables)) => {
                if let Some(coming) = &mut self.coming {
                    coming.is_short = true;
                }
                Ok(Preparation::Stalled)
            }
            shown => shown.map(|()| Preparation::Shown),
        }
    }

    fn show_piece(&mut self, at: Ipa) -> Result<(), RamError> {
        let at = at.align_down(memory::PIECE);
        let block = self.block(self.index(at)).ok_or(RamError::Outside(at))?;
        let place = Range { start: Pa(block.pa.0 + (at.0 - self.range.start.0) % BLOCK_SIZE), size: memory::PIECE };
        let rules = self.rules(self.policy, Point::Unification);
        self.change(at, |tables, hardware| Ok(((), tables.show(hardware, at, place, rules)?)))?;
        self.mapped += PAGES_OF_A_PIECE;
        Ok(())
    }

    /// Notes that the VM is about to stand still until what is missing has come. `false` if it need not: it is there.
    pub(crate) fn waits_for(&mut self, missing: Missing) -> bool {
        let index = self.index(missing.at);
        let Some(&Block { state: State::ToCome(came), .. }) = self.block(index) else { return false };
        let (bit, is_missing) = (self.bit(missing.at), !self.has_piece(missing.at, came));
        let Some(coming) = &mut self.coming else { return false };
        let nth = match came & bit {
            0 => bit.trailing_zeros() as usize,
            _ if is_missing && coming.is_short && came != ALL => came.trailing_ones() as usize,
            _ => return false,
        };
        coming.stalled = Some(index * PIECES + nth);
        true
    }

    /// Block number `index` is zeros. Says whether the VM stands still for that.
    ///
    /// # Errors
    /// When it is not one that is to come, of which nothing has.
    pub(crate) fn has_come_as_zeros(&mut self, index: usize) -> Result<bool, RamError> {
        let at = self.address_of(index * PIECES);
        let block = self.block_mut(index).filter(|block| block.state == State::ToCome(0));
        block.ok_or(RamError::NotToCome(at))?.state = State::Untouched;
        self.block_has_come();
        let Some(coming) = &mut self.coming else { return Ok(false) };
        Ok(coming.stalled.take_if(|piece| *piece / PIECES == index).is_some())
    }

    /// A piece has come, the first page of which is number `first`: `runs` are what it holds, and `page` is room for a page. Says whether
    /// the VM stands still for it. Takes the lock for a piece at a time.
    ///
    /// # Errors
    /// When it is not one that is to come, or not as large as one.
    pub(crate) fn comes<'a>(
        ram: &PreemptLock<Self>,
        first: u64,
        runs: impl Iterator<Item = Run<'a>>,
        page: &mut [u8; PAGE_SIZE as usize],
    ) -> Result<bool, RamError> {
        let number = (first / PAGES_OF_A_PIECE) as usize;
        let (is_wanted, is_last) = ram.lock().take_in(number, runs, page)?;
        if is_last {
            let first = number - number % PIECES;
            for piece in first..first + PIECES {
                ram.lock().fill_up(piece)?;
            }
            ram.lock().block_is_whole(number / PIECES)?;
        }
        Ok(is_wanted)
    }

    /// Writes a piece. Says whether the VM stands still for it, and whether it is the last one of a block of which the guest sees some.
    fn take_in<'a>(
        &mut self,
        number: usize,
        runs: impl Iterator<Item = Run<'a>>,
        page: &mut [u8; PAGE_SIZE as usize],
    ) -> Result<(bool, bool), RamError> {
        let (at, index, bit) = (self.address_of(number), number / PIECES, 1 << (number % PIECES));
        let block = self.block(index).filter(|_| self.coming.is_some()).copied();
        let Some(Block { pa, state: State::ToCome(came), .. }) = block else { return Err(RamError::NotToCome(at)) };
        if came & bit != 0 {
            return Err(RamError::NotToCome(at));
        }
        // What it held of others is written over as a whole, before anybody sees it.
        let start = Pa(pa.0 + (number % PIECES) as u64 * memory::PIECE);
        let mut written = 0;
        for run in runs {
            let bytes = match run.content {
                Content::Page(bytes) => bytes,
                Content::Fill(word) => {
                    page.as_chunks_mut::<8>().0.fill(word.to_le_bytes());
                    &*page
                }
            };
            for _ in 0..run.count {
                if written >= memory::PIECE {
                    return Err(RamError::NotToCome(at));
                }
                hw::memory::write_frame(Pa(start.0 + written), bytes);
                written += PAGE_SIZE;
            }
        }
        if written != memory::PIECE {
            return Err(RamError::NotToCome(at));
        }
        // Before the guest can see it, which may look with its caches off, and would find what the memory held of others.
        cache::clean(Range { start, size: memory::PIECE });
        let (came, mut state, mut is_last) = (came | bit, State::ToCome(came | bit), false);
        if came == ALL {
            memory::is_written(self.account(index), pa).map_err(RamError::Frames)?;
            // Nobody maps those of the annex.
            is_last = self.in_annex(index).is_none()
                && (0..PIECES).any(|nth| self.has_piece(self.address_of(index * PIECES + nth), ALL));
            if !is_last {
                state = State::Hidden;
                self.block_has_come();
            }
        }
        // Only now has it come: whatever was refused above may have written a part of it.
        if let Some(block) = self.block_mut(index) {
            block.state = state;
        }
        let is_wanted = self.coming.as_mut().and_then(|coming| coming.stalled.take_if(|piece| *piece == number));
        Ok((is_wanted.is_some(), is_last))
    }

    /// Shows the guest a piece of a block of which it sees another one, and of which all have come.
    fn fill_up(&mut self, number: usize) -> Result<(), RamError> {
        let at = self.address_of(number);
        let is_complete = self.block(number / PIECES).is_some_and(|block| block.state == State::ToCome(ALL));
        if !is_complete || self.has_piece(at, ALL) {
            return Ok(());
        }
        // Nothing has to be allocated for it: another piece of the block is shown by the same table.
        self.show_piece(at)
    }

    /// The guest sees all of a block.
    fn block_is_whole(&mut self, index: usize) -> Result<(), RamError> {
        let range = Range { start: self.address_of(index * PIECES), size: BLOCK_SIZE };
        let block = self.blocks.get_mut(index).filter(|block| block.state == State::ToCome(ALL));
        let (Some(block), Some(tables)) = (block, &mut self.tables) else { return Ok(()) };
        block.state = State::Shown;
        tables.merge(&mut Tables(self.vm), &mut Tlb(self.vttbr), range).map_err(RamError::Tables)?;
        self.block_has_come();
        Ok(())
    }

    /// A block is no longer to come.
    fn block_has_come(&mut self) {
        if let Some(coming) = &mut self.coming {
            coming.left = coming.left.saturating_sub(1);
        }
    }

    /// All has come. `false` if it has not, and nothing has changed.
    pub(crate) fn has_all_come(&mut self) -> bool {
        let has_all = self.left_to_come() == 0;
        if has_all {
            self.coming = None;
        }
        has_all
    }

    /// The piece around `at` among those of its block.
    fn bit(&self, at: Ipa) -> u32 {
        1 << (at.0.wrapping_sub(self.range.start.0) % BLOCK_SIZE / memory::PIECE)
    }

    /// Where piece number `number` begins.
    fn address_of(&self, number: usize) -> Ipa {
        Ipa(self.range.start.0 + number as u64 * memory::PIECE)
    }
}
