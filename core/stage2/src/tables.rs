//! The operations on one guest's tables.

use units::{Ipa, PAGE_SIZE, Pa, Range};

use crate::control::IPA_SIZE;
use crate::descriptor::Descriptor;
use crate::edit::Edit;
use crate::{Attributes, Invalidation, Level, Permissions, Stage2Error, TableMemory, TlbOps};

/// Output addresses have 48 bits.
const PA_SIZE: u64 = 1 << 48;

/// One guest's tables. The value is only the root's address: whoever has it owns the tables, and must
/// [`Stage2::destroy`] them.
#[derive(Debug)]
#[must_use = "tables that are dropped instead of destroyed leak their memory"]
pub struct Stage2 {
    root: Pa,
}

/// What the tables say of one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where the address itself goes, its offset within the page or block included.
    pub pa: Pa,
    /// The size of the entry that says so.
    pub level: Level,
    /// What the guest may do there.
    pub attributes: Attributes,
}

impl Stage2 {
    /// Empty tables: every access faults.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::OutOfTables`] if there is no memory for the root.
    pub fn new<M: TableMemory + ?Sized>(memory: &mut M) -> Result<Self, Stage2Error> {
        let root = memory.allocate_root().ok_or(Stage2Error::OutOfTables)?;
        Ok(Self { root })
    }

    /// The address of the root, for [`crate::vttbr_el2`].
    #[must_use]
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// Maps `size` bytes from `ipa` to those from `pa`, by the largest entries that the alignment of both allows.
    ///
    /// Nothing may be mapped in the range yet.
    ///
    /// # Errors
    ///
    /// If the range is not one that can be mapped, if any page of it is mapped already, or if there is no memory for
    /// a table. The range is then as it was before the call.
    pub fn map<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        ipa: Ipa,
        pa: Pa,
        size: u64,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        let range = checked(Range { start: ipa, size })?;
        if !pa.is_aligned(PAGE_SIZE) || pa.0 >= PA_SIZE || size > PA_SIZE - pa.0 {
            return Err(Stage2Error::BadOutput(pa));
        }
        let mut done = 0;
        let mut result = Ok(());
        let mut edit = Edit::new(memory, tlb);
        while done < size && result.is_ok() {
            let rest = Range { start: Ipa(range.start.0 + done), size: size - done };
            match map_in_one_table(&mut edit, self.root, rest, Pa(pa.0 + done), attributes) {
                Ok(bytes) => done += bytes,
                Err(error) => result = Err(error),
            }
        }
        if result.is_err() {
            // Whole entries that this call made: clearing them splits nothing and cannot fail.
            result =
                clear_range(&mut edit, self.root, Level::One, Ipa(0), Range { start: ipa, size: done }).and(result);
        }
        edit.finish();
        result
    }

    /// Unmaps `range`, of which any part may be unmapped already. Blocks that reach out of it are split.
    ///
    /// When it returns, no CPU can reach the old pages through these tables any more.
    ///
    /// # Errors
    ///
    /// If the range is malformed, or if there is no memory to split a block: then part of the range may be unmapped.
    pub fn unmap<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        range: Range<Ipa>,
    ) -> Result<(), Stage2Error> {
        let range = checked(range)?;
        let mut edit = Edit::new(memory, tlb);
        let result = clear_range(&mut edit, self.root, Level::One, Ipa(0), range);
        edit.finish();
        result
    }

    /// Gives what is mapped in `range` the attributes that `change` makes of its present ones. Holes stay holes, blocks
    /// that reach out of the range are split if they change at all.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::unmap`].
    pub fn update<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        range: Range<Ipa>,
        change: impl Fn(Attributes) -> Attributes,
    ) -> Result<(), Stage2Error> {
        let range = checked(range)?;
        if range.size == PAGE_SIZE && self.adjust_page(memory, tlb, range.start, &change) {
            return Ok(());
        }
        let mut edit = Edit::new(memory, tlb);
        let result = update_range(&mut edit, self.root, Level::One, Ipa(0), range, &change);
        edit.finish();
        result
    }

    /// [`Stage2::update`] for a page that is an entry already and needs no break: what each first fetch does, in a quarter of the
    /// instructions. Says whether it was such a page.
    fn adjust_page<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &self,
        memory: &mut M,
        tlb: &mut T,
        page: Ipa,
        change: &impl Fn(Attributes) -> Attributes,
    ) -> bool {
        let Some(table) = self.table_of_pages(memory, page) else { return false };
        let index = Level::Three.index(page);
        let entry = Descriptor(memory.read(table, index));
        let (old, new) = (entry.attributes(), change(entry.attributes()));
        if !entry.is_valid() || old.memory != new.memory {
            return false;
        }
        if old != new {
            memory.write(table, index, Descriptor::leaf(Level::Three, entry.address(), new).0);
            tlb.invalidate(Invalidation::Entries { start: page, level: Level::Three, count: 1 });
        }
        true
    }

    /// Gives what is mapped in `range` these permissions, and leaves all else of it alone.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::unmap`].
    pub fn protect<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        range: Range<Ipa>,
        permissions: Permissions,
    ) -> Result<(), Stage2Error> {
        self.update(memory, tlb, range, |attributes| attributes.with_permissions(permissions))
    }

    /// Makes the page at `ipa` an entry of its own, if it is mapped: the block around it is split.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::unmap`]; nothing has changed then, but perhaps the size of entries.
    pub(crate) fn split_to_pages<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        ipa: Ipa,
    ) -> Result<(), Stage2Error> {
        let mut edit = Edit::new(memory, tlb);
        let result = split_around(&mut edit, self.root, ipa);
        edit.finish();
        result
    }

    /// Joins what was split: where all entries of a table within `range` agree and follow one another, a block takes
    /// the table's place; tables that map nothing are freed. Returns how many tables were freed.
    ///
    /// # Errors
    ///
    /// If the range is malformed.
    pub fn merge<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
        &mut self,
        memory: &mut M,
        tlb: &mut T,
        range: Range<Ipa>,
    ) -> Result<usize, Stage2Error> {
        let range = checked(range)?;
        let mut edit = Edit::new(memory, tlb);
        let freed = merge_range(&mut edit, self.root, Level::One, Ipa(0), range);
        edit.finish();
        Ok(freed)
    }

    /// What the tables say of `ipa`; `None` if it is not mapped.
    #[must_use]
    pub fn translate<M: TableMemory + ?Sized>(&self, memory: &M, ipa: Ipa) -> Option<Mapping> {
        if ipa.0 >= IPA_SIZE {
            return None;
        }
        let mut table = self.root;
        let mut level = Level::One;
        loop {
            let entry = Descriptor(memory.read(table, level.index(ipa)));
            if !entry.is_valid() {
                return None;
            }
            if !entry.is_table(level) {
                let offset = ipa.0 & (level.size() - 1);
                return Some(Mapping { pa: Pa(entry.address().0 + offset), level, attributes: entry.attributes() });
            }
            table = entry.address();
            level = level.below();
        }
    }

    /// The table whose entries map the pages of the 2 MiB around `ipa`, if there is one.
    pub(crate) fn table_of_pages<M: TableMemory + ?Sized>(&self, memory: &M, ipa: Ipa) -> Option<Pa> {
        let mut table = self.root;
        for level in [Level::One, Level::Two] {
            let entry = Descriptor(memory.read(table, level.index(ipa)));
            if !entry.is_table(level) {
                return None;
            }
            table = entry.address();
        }
        Some(table)
    }

    /// Calls `visit` for each entry that maps something in `range`, in ascending order, with the address where the
    /// entry begins (which may lie before the range).
    pub fn visit<M: TableMemory + ?Sized>(&self, memory: &M, range: Range<Ipa>, mut visit: impl FnMut(Ipa, Mapping)) {
        visit_range(memory, self.root, Level::One, Ipa(0), range, &mut visit);
    }

    /// Unmaps everything and frees all tables. When it returns, no TLB knows anything of the VM, and its VMID may be
    /// used again. The vCPUs have stopped for good, and no CPU may have the VM's VTTBR_EL2 loaded after this returns.
    pub fn destroy<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(self, memory: &mut M, tlb: &mut T) {
        let mut edit = Edit::new(memory, tlb);
        edit.clear_root(self.root);
        edit.finish();
        memory.free_root(self.root);
    }
}

/// A range of whole pages within the guest's address space.
fn checked(range: Range<Ipa>) -> Result<Range<Ipa>, Stage2Error> {
    if range.is_empty() || !range.start.is_aligned(PAGE_SIZE) || range.size & (PAGE_SIZE - 1) != 0 {
        return Err(Stage2Error::Unaligned(range.start));
    }
    if range.start.0 >= IPA_SIZE || range.size > IPA_SIZE - range.start.0 {
        return Err(Stage2Error::OutOfSpace(range.start));
    }
    Ok(range)
}

/// The entries of the table of `level` for addresses from `base` on that have a part in `range`: index and address.
fn entries_in(level: Level, base: Ipa, range: Range<Ipa>) -> impl Iterator<Item = (usize, Range<Ipa>)> {
    let table_end = base.0 + level.size() * level.entries() as u64;
    let first = range.start.0.max(base.0);
    let end = range.end().0.min(table_end);
    let count = if first < end { ((end - 1 - base.0) >> level.size().trailing_zeros()) + 1 } else { 0 };
    let start = (first - base.0) >> level.size().trailing_zeros();
    (start..count)
        .map(move |index| (index as usize, Range { start: Ipa(base.0 + index * level.size()), size: level.size() }))
}

/// Maps as much of `range` as the table takes that holds its first entry; returns how many bytes that was.
fn map_in_one_table<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
    edit: &mut Edit<'_, M, T>,
    root: Pa,
    range: Range<Ipa>,
    pa: Pa,
    attributes: Attributes,
) -> Result<u64, Stage2Error> {
    let mut table = root;
    let mut level = Level::One;
    loop {
        let index = level.index(range.start);
        let entry = edit.read(table, index);
        let is_table = entry.is_table(level);
        if entry.is_closed() || entry.is_valid() && !is_table {
            return Err(Stage2Error::AlreadyMapped(range.start));
        }
        // If there is a table already, the range is mapped in its entries: it may hold other mappings.
        if !is_table && level.aligns(range.start) && level.aligns(pa) && range.size >= level.size() {
            break;
        }
        table = edit.descend(table, index)?;
        level = level.below();
    }
    let first = level.index(range.start);
    let fitting = (level.entries() - first).min((range.size / level.size()) as usize);
    let mut bytes = 0;
    for index in first..first + fitting {
        if edit.read(table, index) != Descriptor::INVALID {
            break;
        }
        edit.make(table, index, Descriptor::leaf(level, Pa(pa.0 + bytes), attributes));
        bytes += level.size();
    }
    Ok(bytes)
}

fn clear_range<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
    edit: &mut Edit<'_, M, T>,
    table: Pa,
    level: Level,
    base: Ipa,
    range: Range<Ipa>,
) -> Result<(), Stage2Error> {
    for (index, covered) in entries_in(level, base, range) {
        let entry = edit.read(table, index);
        if entry.is_closed() {
            // What it links is to be cleared with it, or in part.
            edit.make(table, index, entry.opened());
        } else if !entry.is_valid() {
            continue;
        }
        if range.contains_range(covered) {
            edit.clear(table, index, level, covered);
        } else {
            let child = edit.split(table, index, level, covered)?;
            clear_range(edit, child, level.below(), covered.start, range)?;
        }
    }
    Ok(())
}

fn split_around<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
    edit: &mut Edit<'_, M, T>,
    root: Pa,
    ipa: Ipa,
) -> Result<(), Stage2Error> {
    let (mut table, mut level) = (root, Level::One);
    while level != Level::Three {
        let index = level.index(ipa);
        if !edit.read(table, index).is_valid() {
            return Ok(());
        }
        let covered = Range { start: ipa.align_down(level.size()), size: level.size() };
        table = edit.split(table, index, level, covered)?;
        level = level.below();
    }
    Ok(())
}

fn update_range<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
    edit: &mut Edit<'_, M, T>,
    table: Pa,
    level: Level,
    base: Ipa,
    range: Range<Ipa>,
    change: &impl Fn(Attributes) -> Attributes,
) -> Result<(), Stage2Error> {
    for (index, covered) in entries_in(level, base, range) {
        let entry = edit.read(table, index);
        if !entry.is_valid() {
            continue;
        }
        if !entry.is_table(level) {
            let (old, new) = (entry.attributes(), change(entry.attributes()));
            if old == new {
                continue;
            }
            if range.contains_range(covered) {
                let changed = Descriptor::leaf(level, entry.address(), new);
                if old.memory == new.memory {
                    edit.adjust(table, index, changed, level, covered);
                } else {
                    edit.replace(table, index, changed, level, covered);
                }
                continue;
            }
        }
        let child = edit.split(table, index, level, covered)?;
        update_range(edit, child, level.below(), covered.start, range, change)?;
    }
    Ok(())
}

fn merge_range<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(
    edit: &mut Edit<'_, M, T>,
    table: Pa,
    level: Level,
    base: Ipa,
    range: Range<Ipa>,
) -> usize {
    let mut freed = 0;
    for (index, covered) in entries_in(level, base, range) {
        let entry = edit.read(table, index);
        if !entry.is_table(level) {
            continue;
        }
        if level == Level::One {
            freed += merge_range(edit, entry.address(), Level::Two, covered.start, range);
        }
        if !range.contains_range(covered) {
            continue;
        }
        match summarize(edit, entry.address(), level) {
            Summary::Empty => edit.clear(table, index, level, covered),
            Summary::Uniform(block) => edit.replace(table, index, block, level, covered),
            Summary::Mixed => continue,
        }
        freed += 1;
    }
    freed
}

/// What a table says as a whole.
enum Summary {
    /// Nothing is valid in it.
    Empty,
    /// It says what this one entry in its place would say.
    Uniform(Descriptor),
    /// It is needed.
    Mixed,
}

/// Sums up the table at `child`, which an entry of `level` links.
fn summarize<M: TableMemory + ?Sized, T: TlbOps + ?Sized>(edit: &Edit<'_, M, T>, child: Pa, level: Level) -> Summary {
    let below = level.below();
    let first = edit.read(child, 0);
    if !first.is_valid() {
        let empty = (0..below.entries()).all(|index| edit.read(child, index) == Descriptor::INVALID);
        return if empty { Summary::Empty } else { Summary::Mixed };
    }
    if first.is_table(below) || !level.aligns(first.address()) {
        return Summary::Mixed;
    }
    let block = Descriptor::leaf(level, first.address(), first.attributes());
    let uniform = (1..below.entries()).all(|index| edit.read(child, index) == block.part(level, index));
    if uniform { Summary::Uniform(block) } else { Summary::Mixed }
}

fn visit_range<M: TableMemory + ?Sized>(
    memory: &M,
    table: Pa,
    level: Level,
    base: Ipa,
    range: Range<Ipa>,
    visit: &mut impl FnMut(Ipa, Mapping),
) {
    for (index, covered) in entries_in(level, base, range) {
        let entry = Descriptor(memory.read(table, index));
        if entry.is_table(level) {
            visit_range(memory, entry.address(), level.below(), covered.start, range, visit);
        } else if entry.is_valid() {
            let mapping = Mapping { pa: entry.address(), level, attributes: entry.attributes() };
            visit(covered.start, mapping);
        }
    }
}
