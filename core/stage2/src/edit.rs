//! One change of live tables: remembers what the TLBs must forget and which table pages wait for that, and does both
//! in the right order.

use arrayvec::ArrayVec;
use units::{Ipa, Pa, Range};

use crate::descriptor::Descriptor;
use crate::{Invalidation, Level, Stage2Error, TableMemory, TlbOps};

/// How many unlinked tables may wait for one invalidation.
const WAITING_TABLES: usize = 16;

/// A change under way. It ends with [`Edit::finish`], also when it fails halfway.
pub(crate) struct Edit<'a, M: TableMemory + ?Sized, T: TlbOps + ?Sized> {
    memory: &'a mut M,
    tlb: &'a mut T,
    stale: Stale,
    /// Unlinked tables, each with all that it links, freed after the next invalidation.
    unlinked: ArrayVec<(Pa, Level), WAITING_TABLES>,
    /// Whether something became valid that no invalidation has published yet.
    unpublished: bool,
}

impl<'a, M: TableMemory + ?Sized, T: TlbOps + ?Sized> Edit<'a, M, T> {
    pub(crate) fn new(memory: &'a mut M, tlb: &'a mut T) -> Self {
        Self { memory, tlb, stale: Stale::default(), unlinked: ArrayVec::new(), unpublished: false }
    }

    pub(crate) fn read(&self, table: Pa, index: usize) -> Descriptor {
        Descriptor(self.memory.read(table, index))
    }

    /// Makes an entry valid that is invalid now and of which no TLB knows anything.
    pub(crate) fn make(&mut self, table: Pa, index: usize, entry: Descriptor) {
        self.memory.write(table, index, entry.0);
        self.unpublished = true;
    }

    /// Changes a valid leaf of `level` that maps `range` in its permissions or marks only, which needs no break.
    pub(crate) fn adjust(&mut self, table: Pa, index: usize, entry: Descriptor, level: Level, range: Range<Ipa>) {
        self.memory.write(table, index, entry.0);
        self.stale.add(range, level);
    }

    /// Clears a valid entry of `level` that covers `range`; a table it links goes with all that is below.
    pub(crate) fn clear(&mut self, table: Pa, index: usize, level: Level, range: Range<Ipa>) {
        let old = self.read(table, index);
        self.memory.write(table, index, Descriptor::INVALID.0);
        if !old.is_table(level) {
            self.stale.add(range, level);
            return;
        }
        // What the table below says may be cached in any size.
        self.stale.add(range, Level::Three);
        self.unlinked.push((old.address(), level.below()));
        if self.unlinked.is_full() {
            self.flush();
        }
    }

    /// Makes `count` entries for blocks from `start` on invalid, and leaves in them what they say.
    pub(crate) fn close(&mut self, table: Pa, start: Ipa, count: u64) {
        let first = Level::Two.index(start);
        let mut any = false;
        for index in first..first + count as usize {
            let entry = self.read(table, index);
            if entry.is_valid() {
                self.memory.write(table, index, entry.closed().0);
                any = true;
            }
        }
        if any {
            // The pages of one block are more than are forgotten one by one: everything is.
            self.stale.add(Range { start, size: Level::Two.size() }, Level::Three);
        }
    }

    /// Clears all of the root.
    pub(crate) fn clear_root(&mut self, root: Pa) {
        for index in 0..Level::One.entries() {
            if self.read(root, index).is_valid() {
                let range = Range { start: Ipa(index as u64 * Level::One.size()), size: Level::One.size() };
                self.clear(root, index, Level::One, range);
            }
        }
    }

    /// Break before make: replaces a valid entry by any other one.
    pub(crate) fn replace(&mut self, table: Pa, index: usize, entry: Descriptor, level: Level, range: Range<Ipa>) {
        self.clear(table, index, level, range);
        self.flush();
        self.make(table, index, entry);
    }

    /// The table below the valid entry at `index`. A leaf of `level` is split: a new table says the same in 512 parts.
    pub(crate) fn split(
        &mut self,
        table: Pa,
        index: usize,
        level: Level,
        range: Range<Ipa>,
    ) -> Result<Pa, Stage2Error> {
        let old = self.read(table, index);
        if old.is_table(level) {
            return Ok(old.address());
        }
        let child = self.memory.allocate().ok_or(Stage2Error::OutOfTables)?;
        for part in 0..level.below().entries() {
            self.memory.write(child, part, old.part(level, part).0);
        }
        // The invalidation between break and make publishes the child before it is linked.
        self.replace(table, index, Descriptor::table(child), level, range);
        Ok(child)
    }

    /// The table below the entry at `index`, which is a table or invalid: then an empty table is linked.
    pub(crate) fn descend(&mut self, table: Pa, index: usize) -> Result<Pa, Stage2Error> {
        let old = self.read(table, index);
        if old.is_valid() {
            return Ok(old.address());
        }
        let child = self.memory.allocate().ok_or(Stage2Error::OutOfTables)?;
        // Its zeroes must be seen before the link to it is.
        self.tlb.publish();
        self.make(table, index, Descriptor::table(child));
        Ok(child)
    }

    /// Makes all CPUs forget what has been changed, and frees what they could have been using.
    fn flush(&mut self) {
        if let Some(what) = self.stale.take() {
            self.tlb.invalidate(what);
            self.unpublished = false;
        }
        for (table, level) in self.unlinked.take() {
            free_tree(self.memory, table, level);
        }
    }

    /// Ends the change: when this returns, all CPUs see it and none remembers what was before.
    pub(crate) fn finish(mut self) {
        self.flush();
        if self.unpublished {
            self.tlb.publish();
        }
    }
}

/// Frees the table at `table`, whose entries are of `level`, and all tables below it.
fn free_tree<M: TableMemory + ?Sized>(memory: &mut M, table: Pa, level: Level) {
    if level != Level::Three {
        for index in 0..level.entries() {
            let entry = Descriptor(memory.read(table, index));
            // One that is closed links its table all the same.
            let entry = if entry.is_closed() { entry.opened() } else { entry };
            if entry.is_table(level) {
                free_tree(memory, entry.address(), level.below());
            }
        }
    }
    memory.free(table);
}

/// The smallest single range that holds every changed entry. Changes come in ascending order and close together, so
/// little that did not change is caught in it.
#[derive(Default)]
struct Stale {
    covered: Option<(Range<Ipa>, Level)>,
}

impl Stale {
    /// Adds an entry of `level` that covers `range`, or a range in which entries of `level` and larger ones changed.
    fn add(&mut self, range: Range<Ipa>, level: Level) {
        let (covered, finest) = self.covered.unwrap_or((range, level));
        let start = covered.start.min(range.start);
        let end = covered.end().max(range.end());
        self.covered = Some((Range { start, size: end.0 - start.0 }, finest.max(level)));
    }

    /// What is to be invalidated. One entry of a larger size makes more steps of a smaller one than are done one by
    /// one, so whenever levels were mixed it is everything, and the level named is that of all entries.
    fn take(&mut self) -> Option<Invalidation> {
        const { assert!(Invalidation::MAX_ENTRIES < 512, "a mixture of levels must not be taken for entries of one") };
        let (covered, level) = self.covered.take()?;
        let count = (covered.size / level.size()) as usize;
        if count > Invalidation::MAX_ENTRIES {
            return Some(Invalidation::All);
        }
        Some(Invalidation::Entries { start: covered.start, level, count })
    }
}
