//! A guest's memory held as it is while the guest runs on: a store faults, until its block is released.
//!
//! A VM is saved as it is at one moment, and its memory is sent long after that. At that moment it stands still, so little may be
//! done to its tables then: [`Stage2::hold`] makes the entry of each 2 MiB invalid and leaves the rest of it unchanged, the
//! address of a table or of a block, so that it costs the same whatever was split. A guest that accesses it faults once for each
//! 2 MiB. Then the entry is valid again ([`Stage2::open`]), but what was writable in it is not; each such entry has a mark
//! ([`Software::HELD`]), by which [`Stage2::release`] gives back exactly what was there, also in a guest whose code is
//! write-protected for another reason.
//!
//! The caller knows which blocks are held, and what has to be done before one is released.

use units::{BLOCK_SIZE, Ipa, Pa, Range};

use crate::descriptor::Descriptor;
use crate::edit::Edit;
use crate::{Level, Stage2, Stage2Error, TableMemory, TlbOps};

impl Stage2 {
    /// Holds all that is mapped in `range`, which is made of whole blocks: no access goes there any more.
    ///
    /// # Errors
    ///
    /// If the range is malformed, or if there is no memory to split an entry of 1 GiB: what comes before it is held then.
    pub fn hold<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        range: Range<Ipa>,
    ) -> Result<(), Stage2Error> {
        if !range.start.is_aligned(BLOCK_SIZE) || !range.size.is_multiple_of(BLOCK_SIZE) {
            return Err(Stage2Error::Unaligned(range.start));
        }
        let mut edit = Edit::new(memory, tlb);
        let mut result = Ok(());
        for large in range.start.0 / Level::One.size()..range.end().0.div_ceil(Level::One.size()) {
            let covered = Range { start: Ipa(large * Level::One.size()), size: Level::One.size() };
            let index = Level::One.index(covered.start);
            if !edit.read(self.root(), index).is_valid() {
                continue;
            }
            match edit.split(self.root(), index, Level::One, covered) {
                Ok(table) => {
                    let first = covered.start.max(range.start);
                    let count = (covered.end().min(range.end()).0 - first.0) / BLOCK_SIZE;
                    edit.close(table, first, count);
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        edit.finish();
        result
    }

    /// Lets the guest look at the block around `ipa`, if that is held, but not store there.
    pub fn open<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(&mut self, memory: &mut M, tlb: &mut T, ipa: Ipa) {
        let Some((table, index, entry)) = self.entry_of_block(memory, ipa).filter(|(.., entry)| entry.is_closed())
        else {
            return;
        };
        let open = entry.opened();
        // No TLB knows anything of it: it was invalid.
        if open.is_table(Level::Two) {
            for part in 0..Level::Three.entries() {
                let old = Descriptor(memory.read(open.address(), part));
                if old != old.held() {
                    memory.write(open.address(), part, old.held().0);
                }
            }
            tlb.publish();
            memory.write(table, index, open.0);
        } else {
            memory.write(table, index, open.held().0);
        }
        tlb.publish();
    }

    /// The block around `ipa` is no longer held: its entries are as they were, but for what has become executable.
    pub fn release<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(&mut self, memory: &mut M, tlb: &mut T, ipa: Ipa) {
        let Some((table, index, entry)) = self.entry_of_block(memory, ipa) else { return };
        let block = Range { start: ipa.align_down(BLOCK_SIZE), size: BLOCK_SIZE };
        if entry.is_closed() {
            memory.write(table, index, entry.opened().0);
            return tlb.publish();
        }
        let mut edit = Edit::new(memory, tlb);
        if entry.is_table(Level::Two) {
            for part in 0..Level::Three.entries() {
                let old = edit.read(entry.address(), part);
                if old != old.released() {
                    let size = Level::Three.size();
                    let page = Range { start: Ipa(block.start.0 + part as u64 * size), size };
                    edit.adjust(entry.address(), part, old.released(), Level::Three, page);
                }
            }
        } else if entry != entry.released() {
            edit.adjust(table, index, entry.released(), Level::Two, block);
        }
        edit.finish();
    }

    /// Where the entry for the block around `ipa` is, and what it says, if there is a table of such.
    fn entry_of_block<M: TableMemory + ?Sized>(&self, memory: &M, ipa: Ipa) -> Option<(Pa, usize, Descriptor)> {
        let large = Descriptor(memory.read(self.root(), Level::One.index(ipa)));
        let (table, index) = (large.address(), Level::Two.index(ipa));
        large.is_table(Level::One).then(|| (table, index, Descriptor(memory.read(table, index))))
    }
}
