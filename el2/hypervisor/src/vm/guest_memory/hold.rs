//! A guest's RAM as it was at one moment, while the guest runs on: what a save sends (`link/transfer.rs`).
//!
//! At that moment, with no vCPU in the guest, all of its RAM is held ([`GuestRam::hold`]): that takes a few instructions for each block,
//! whatever is in it. Every block is sent as it was then. Before a store into a block that is held and has not been sent, by the guest or by
//! the hypervisor for it, the block is copied, a piece at a time like the zeroing at the first touch, and at the guest's cost; then the copy
//! is sent. The sender releases each block after it has sent it, and copies are freed.
//!
//! Copies are made in memory that no VM of the site can need. When that is used up, a store has to wait until its block was sent, and the
//! whole VM stands still until then: a guest of which only one vCPU hangs for seconds would be worse off.

use frames::Owner;
use stage2::Stage2Error;
use units::{BLOCK_SIZE, Ipa, Pa, Range};

use super::{Block, GuestRam, Missing, Preparation, RamError, State, Tables, Tlb, Use};
use crate::host::memory;

/// So many pieces of a block are copied, one after the other.
const PIECES: u8 = (BLOCK_SIZE / memory::PIECE) as u8;

/// What is kept of a block as it was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Nothing: it is not being saved, or was sent.
    Nothing,
    /// Zeros: the guest had not touched it.
    Zeros,
    /// It is mapped where the guest has it, which cannot access it, or can only read it.
    InPlace { is_open: bool },
    /// As before, and so many pieces of it are copied to a block, of which this is the number.
    Copying { to: u32, pieces: u8, is_open: bool },
    /// It was copied to that block.
    Copied { to: u32 },
}

/// What is known beside the blocks, while RAM is held.
#[derive(Default)]
pub(super) struct Hold {
    copies: usize,
    /// The block for which the VM stands still, because there is no memory for a copy.
    stalled: Option<usize>,
}

impl Block {
    /// Whether it can be used so at once.
    #[inline(always)]
    pub(super) fn is_ready(&self, what: Use) -> bool {
        self.state == State::Shown
            && match self.kept {
                Kept::Nothing | Kept::Zeros | Kept::Copied { .. } => true,
                Kept::InPlace { is_open } | Kept::Copying { is_open, .. } => is_open && what == Use::Look,
            }
    }

    /// Whether it is to be copied, or sent, before anybody stores into it.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.kept, Kept::InPlace { .. } | Kept::Copying { .. })
    }
}

fn place(number: u32) -> Pa {
    Pa(u64::from(number) * BLOCK_SIZE)
}

impl GuestRam {
    /// Holds all of it. No vCPU is in the guest.
    ///
    /// # Errors
    /// When there is no memory for a table, or some of it is still to come. Nothing is held then.
    pub(crate) fn hold(&mut self) -> Result<(), RamError> {
        let is_there = self.all_blocks().all(|block| {
            block.kept = match block.state {
                State::Shown | State::Hidden => Kept::InPlace { is_open: false },
                // What is an enclave's is not saved.
                State::Untouched | State::Zeroing(_) | State::Taken => Kept::Zeros,
                State::ToCome(_) => return false,
            };
            true
        });
        if !is_there {
            self.all_blocks().for_each(|block| block.kept = Kept::Nothing);
            return Err(RamError::StillToCome);
        }
        let tables = self.tables.as_mut().ok_or(RamError::Outside(self.range.start))?;
        let held = tables.hold(&mut Tables(self.vm), &mut Tlb(self.vttbr), self.range);
        self.hold = Some(Hold::default());
        held.map_err(|error: Stage2Error| {
            // What lies before the table that could not be had is closed already: it would stay so, with nobody to open it.
            (0..self.blocks.len() + self.annex.len()).for_each(|index| self.release(index));
            self.hold = None;
            RamError::Tables(error)
        })
    }

    /// Whether it is held: not any more, if it is no longer the same memory.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// The next bounded piece of what a block needs that the guest has seen and that is held: it may be looked at, or is copied.
    pub(super) fn prepare_held(&mut self, index: usize, what: Use) -> Result<Preparation, RamError> {
        let Some(block) = self.block_mut(index) else { return Ok(Preparation::Shown) };
        if block.is_ready(what) {
            return Ok(Preparation::Shown);
        }
        if what == Use::Store {
            return self.copy_piece(index);
        }
        // To look at, not to store into: a store faults again, and is what makes a copy.
        match &mut block.kept {
            Kept::InPlace { is_open } | Kept::Copying { is_open, .. } => *is_open = true,
            Kept::Nothing | Kept::Zeros | Kept::Copied { .. } => {}
        }
        if self.in_annex(index).is_some() {
            return Ok(Preparation::Shown);
        }
        let at = Ipa(self.range.start.0 + index as u64 * BLOCK_SIZE);
        let tables = self.tables.as_mut().ok_or(RamError::Outside(at))?;
        tables.open(&mut Tables(self.vm), &mut Tlb(self.vttbr), at);
        Ok(Preparation::Shown)
    }

    /// Copies the next piece of a block; behind the last one it is released.
    pub(super) fn copy_piece(&mut self, index: usize) -> Result<Preparation, RamError> {
        let kept = self.block(index).map_or(Kept::Nothing, |block| block.kept);
        let (to, pieces, is_open) = match kept {
            Kept::Nothing | Kept::Zeros | Kept::Copied { .. } => return Ok(Preparation::Unfinished),
            Kept::Copying { to, pieces, is_open } => (to, pieces, is_open),
            Kept::InPlace { is_open } => match self.room() {
                Some(to) => (to, 0, is_open),
                None => return Ok(Preparation::Stalled),
            },
        };
        let Some(block) = self.block_mut(index) else { return Ok(Preparation::Unfinished) };
        // Nobody can store into the block while its pieces are copied one after the other, between which the lock is free: for the
        // guest it is closed or can only be read, and the hypervisor asks `is_ready` first.
        memory::copy_piece(block.pa, place(to), u64::from(pieces) * memory::PIECE);
        if pieces + 1 < PIECES {
            block.kept = Kept::Copying { to, pieces: pieces + 1, is_open };
            return Ok(Preparation::Unfinished);
        }
        block.kept = Kept::Copied { to };
        self.copied += 1;
        // Last: from here on the guest stores into it on any CPU. Opened sooner, what is sent would have stores in it that came later.
        self.let_store(index);
        Ok(Preparation::Unfinished)
    }

    /// A block for a copy, if one is left.
    fn room(&mut self) -> Option<u32> {
        let hold = self.hold.as_mut()?;
        if hold.copies >= memory::spare_blocks() {
            return None;
        }
        let runs = memory::allocate_guest(self.vm, 1).ok()?;
        hold.copies += 1;
        runs.first().map(|run| (run.start.0 / BLOCK_SIZE) as u32)
    }

    fn give_back(&mut self, number: u32) {
        memory::free_frames(Owner::Guest(self.vm), Range { start: place(number), size: BLOCK_SIZE });
        if let Some(hold) = &mut self.hold {
            hold.copies = hold.copies.saturating_sub(1);
        }
    }

    fn let_store(&mut self, index: usize) {
        if self.in_annex(index).is_some() {
            return;
        }
        if let Some(tables) = &mut self.tables {
            let at = Ipa(self.range.start.0 + index as u64 * BLOCK_SIZE);
            tables.release(&mut Tables(self.vm), &mut Tlb(self.vttbr), at);
        }
    }

    /// Nothing is kept of a block any more.
    fn release(&mut self, index: usize) {
        let Some(block) = self.block_mut(index) else { return };
        match core::mem::replace(&mut block.kept, Kept::Nothing) {
            Kept::Nothing | Kept::Zeros => {}
            Kept::InPlace { .. } => self.let_store(index),
            Kept::Copying { to, .. } => {
                // As long as the copy is not whole, the block itself is what is sent (`read_kept`).
                self.give_back(to);
                self.let_store(index);
            }
            Kept::Copied { to } => self.give_back(to),
        }
    }

    /// The block around `at` was sent. Says whether the VM stands still for that.
    pub(crate) fn was_sent(&mut self, at: Ipa) -> bool {
        let index = self.index(at);
        // Before the caller lets the VM go on: its store would find the block held still, and nothing would be sent that ends that.
        self.release(index);
        self.hold.as_mut().is_some_and(|hold| hold.stalled.take_if(|stalled| *stalled == index).is_some())
    }

    /// Releases the block around `at`, which was not sent, in a round through all of them.
    pub(crate) fn let_go(&mut self, at: Ipa) {
        let index = self.index(at);
        self.release(index);
    }

    /// All blocks are released. Says whether the VM stands still because one was not.
    pub(crate) fn end_hold(&mut self) -> bool {
        self.hold.take().is_some_and(|hold| hold.stalled.is_some())
    }

    /// Notes that the VM is about to stand still until what is missing was sent. `false` if it need not: it was.
    pub(crate) fn stalls(&mut self, missing: Missing) -> bool {
        let index = self.index(missing.at);
        // Looked at again, under the lock: the block may have been sent since the store found no room, and is not sent twice. Whoever
        // stood still for it would do so until the whole save ends.
        let is_held = self.block(index).is_some_and(Block::is_held);
        match &mut self.hold {
            Some(hold) if is_held => {
                hold.stalled = Some(index);
                true
            }
            _ => false,
        }
    }

    /// The operator lets it go on, or not: if it stands still again, that is another matter. Says whether it stood still for this.
    pub(crate) fn forget_stall(&mut self) -> bool {
        self.hold.as_mut().is_some_and(|hold| hold.stalled.take().is_some())
    }

    /// Copies what the guest had in memory at `from` when it was held, or has now if it is not; within one block. False, and nothing
    /// is copied, if it had never seen the block: it is zeros then. To take hidden blocks for that would lose what
    /// a VM that was restored has not touched yet, when it is saved again.
    ///
    /// # Errors
    /// When it is not RAM, or is still to come.
    pub(crate) fn read_kept(&self, from: Ipa, into: &mut [u8]) -> Result<bool, RamError> {
        let block = self.block(self.index(from)).ok_or(RamError::Outside(from))?;
        let offset = from.0.wrapping_sub(self.range.start.0) % BLOCK_SIZE;
        let pa = match block.kept {
            Kept::Zeros => return Ok(false),
            Kept::Copied { to } => place(to),
            Kept::InPlace { .. } | Kept::Copying { .. } => block.pa,
            Kept::Nothing if matches!(block.state, State::Shown | State::Hidden) => block.pa,
            Kept::Nothing if matches!(block.state, State::ToCome(_)) => return Err(RamError::StillToCome),
            Kept::Nothing => return Ok(false),
        };
        hw::memory::read(Pa(pa.0 + offset), into);
        Ok(true)
    }
}
