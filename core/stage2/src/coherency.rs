//! Which pages a guest may execute, and what happens before it may.
//!
//! RAM is mapped for a guest readable and writable, but not executable. Its first fetch from a page faults: the caches
//! are made to agree about that page ([`crate::steps`]), and it becomes executable. Few pages ever do, so little is
//! maintained, and what the hypervisor stores without the guest's knowledge (an image, what a device transfers, a
//! message) needs no maintenance at once: [`Stage2::rewrite`] takes the execute permission away first, and the next
//! fetch comes here again. There is no other way to a [`Writable`], and EL2 stores into guests only through that type.
//!
//! A load or a store is no execution, nor is the walk of a guest's own tables on behalf of a fetch ([`Wanted::Walk`]).
//!
//! * A block stays one entry until somebody executes from it. Then one page of it becomes executable, and where most of a
//!   block is, the rest follows and the block is one entry again ([`Stage2::promote`]): a kernel's code costs no more TLB
//!   entries than before.
//! * [`Policy::Strict`] keeps executable pages read-only. A store makes the page writable and no longer executable, the
//!   next fetch turns it around. The caller grants both at once by [`Policy::OnDemand`] when it sees that a guest makes
//!   no progress, as with code that stores into its own page.
//!
//! The order inside matters, and is not left to callers: maintenance precedes the permission, and in a strict VM
//! follows the end of all stores; all CPUs lose the permission before anything is stored.

use core::marker::PhantomData;

use cpu::exit::Wanted;
use units::{Ipa, PAGE_SIZE, Pa, Range};

use crate::descriptor::Descriptor;
use crate::maintenance::{CacheKind, Caches, Point, Step, steps};
use crate::{Attributes, Level, Mapping, MemoryType, Permissions, Software, Stage2, Stage2Error, TableMemory, TlbOps};

/// Pages that [`Stage2::promote`] makes executable in one go: 64 KiB, as much as is zeroed in one.
const GROUP: usize = 16;
/// Pages of a block that have to be executable before the others are made so too: three quarters.
pub const MOST: usize = 384;

/// When a page becomes executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// When it is executed; it stays writable, and what the guest then stores is the guest's to maintain.
    #[default]
    OnDemand,
    /// When it is executed; until it is written.
    Strict,
    /// When the guest is shown it; what the hypervisor stores there is maintained at once.
    Eager,
}

/// What a change of execute permission goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The VM's.
    pub policy: Policy,
    /// The host's caches.
    pub caches: CacheKind,
    /// How far the fetching vCPU sees.
    pub point: Point,
}

/// What a change works with.
pub struct Hardware<'a, M: ?Sized, T: ?Sized, C: ?Sized> {
    /// The tables' memory.
    pub memory: &'a mut M,
    /// The TLBs.
    pub tlb: &'a mut T,
    /// The caches.
    pub caches: &'a mut C,
}

/// What was done, to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Pages that became executable.
    pub granted: u64,
    /// Pages that are no longer.
    pub taken: u64,
    /// Lines of the data cache that were cleaned.
    pub lines: u64,
    /// Invalidations of instruction caches, of a stretch or of all.
    pub invalidations: u64,
    /// Blocks that became pages.
    pub splits: u64,
    /// Blocks that became one entry again, executable.
    pub promotions: u64,
}

impl Effects {
    /// These and the `other` ones.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            granted: self.granted + other.granted,
            taken: self.taken + other.taken,
            lines: self.lines + other.lines,
            invalidations: self.invalidations + other.invalidations,
            splits: self.splits + other.splits,
            promotions: self.promotions + other.promotions,
        }
    }
}

/// What became of an access that stage 2 had refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Nothing is mapped there.
    Unmapped,
    /// The tables allow it already: another vCPU was here first. The guest is to try again.
    Already,
    /// It may, from now on.
    Now {
        /// What was done.
        effects: Effects,
        /// Whether [`Stage2::promote`] has something to do there.
        crowded: bool,
    },
    /// Never: it is a device, or read-only.
    Never,
}

/// A block whose pages can become one entry.
struct Survey {
    /// The table of its pages.
    table: Pa,
    /// Where it is.
    start: Pa,
    /// The first page that is not executable.
    missing: Option<usize>,
}

/// How far [`Stage2::promote`] has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promotion {
    /// There is more to do.
    Unfinished(Effects),
    /// It is one entry, or will not be.
    Finished(Effects),
}

/// Guest memory into which the hypervisor may store now: no CPU executes from it, or it is maintained right behind. Only
/// [`Stage2::rewrite`] makes one, and it lives as long as the tables cannot change.
#[derive(Debug)]
pub struct Writable<'a> {
    range: Range<Pa>,
    tables: PhantomData<&'a mut Stage2>,
}

impl Writable<'_> {
    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> Range<Pa> {
        self.range
    }
}

impl Stage2 {
    /// Shows the guest RAM of its own: maps it as the policy has it. It was cleaned to the point of coherency as data.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::map`].
    pub fn show<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        ram: Range<Pa>,
        rules: Rules,
    ) -> Result<Effects, Stage2Error> {
        let mut effects = Effects::default();
        let mut attributes = Attributes::RAM;
        if rules.policy == Policy::Eager {
            // There is nothing to clean, but what the last owner executed there must go. The whole cache is invalidated, of
            // whatever size: a block has more lines than most caches.
            let kind = CacheKind { needs_clean: false, by_address: false, ..rules.caches };
            effects = maintain(hardware.caches, Rules { caches: kind, point: Point::Unification, ..rules }, ram);
            effects.granted = ram.size / PAGE_SIZE;
            attributes = Attributes::CODE;
        }
        self.map(hardware.memory, hardware.tlb, ipa, ram.start, ram.size, attributes)?;
        Ok(effects)
    }

    /// Lets the guest have what it wanted at `ipa`, if it may. A translation fault and a permission fault are alike here:
    /// what counts is what the tables say now.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::update`].
    pub fn allow<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        wanted: Wanted,
        rules: Rules,
    ) -> Result<Allowed, Stage2Error> {
        let Some(mapping) = self.translate(hardware.memory, ipa) else { return Ok(Allowed::Unmapped) };
        let has = mapping.attributes.permissions;
        let is_closed = mapping.attributes.memory == MemoryType::Device;
        match wanted {
            Wanted::Fetch if has.contains(Permissions::EXECUTE) => Ok(Allowed::Already),
            Wanted::Fetch if is_closed => Ok(Allowed::Never),
            Wanted::Fetch => self.execute(hardware, ipa, mapping, rules),
            // A walk reads, and writes where the hardware keeps flags in tables.
            Wanted::Write | Wanted::Walk if has.contains(Permissions::WRITE) => Ok(Allowed::Already),
            Wanted::Write | Wanted::Walk if is_protected(mapping.attributes) => {
                self.make_writable(hardware, ipa, mapping, rules)
            }
            Wanted::Read | Wanted::Walk if has.contains(Permissions::READ) => Ok(Allowed::Already),
            Wanted::Read | Wanted::Write | Wanted::Walk => Ok(Allowed::Never),
        }
    }

    /// The first fetch from a page.
    fn execute<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        mapping: Mapping,
        rules: Rules,
    ) -> Result<Allowed, Stage2Error> {
        let (range, pa) = self.isolate(hardware, ipa, mapping)?;
        let is_strict = rules.policy == Policy::Strict;
        if is_strict {
            // This comes before the clean: what another vCPU stores after it would be executed stale.
            self.update(hardware.memory, hardware.tlb, range, |attributes| Attributes {
                permissions: attributes.permissions - Permissions::WRITE,
                // If it were released, it would be writable.
                software: attributes.software - Software::HELD,
                ..attributes
            })?;
        }
        let mut effects = maintain(hardware.caches, rules, pa);
        self.update(hardware.memory, hardware.tlb, range, executable)?;
        effects.granted = range.size / PAGE_SIZE;
        effects.splits = splits(mapping, range);
        let crowded = self.is_crowded(hardware.memory, ipa);
        Ok(Allowed::Now { effects, crowded })
    }

    /// A store into a page that is executable and therefore read-only. By [`Policy::Strict`] it changes sides; by
    /// another it becomes both, and what is stored from then on is the guest's to maintain.
    fn make_writable<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        mapping: Mapping,
        rules: Rules,
    ) -> Result<Allowed, Stage2Error> {
        let range = entry_around(ipa, mapping.level);
        let mut effects = Effects::default();
        let keeps = rules.policy != Policy::Strict;
        if keeps {
            effects = maintain(hardware.caches, rules, place_of(range, ipa, mapping));
        } else {
            effects.taken = range.size / PAGE_SIZE;
        }
        self.update(hardware.memory, hardware.tlb, range, |attributes| Attributes {
            permissions: (attributes.permissions | Permissions::WRITE)
                - if keeps { Permissions::empty() } else { Permissions::EXECUTE },
            ..attributes
        })?;
        Ok(Allowed::Now { effects, crowded: false })
    }

    /// Lets `write` store into `range`, which is mapped as one stretch of RAM. No CPU executes from it meanwhile, nor
    /// behind it without maintenance: the execute permission is taken away first. By [`Policy::Eager`] it stays, and the
    /// caches are maintained behind the store.
    ///
    /// # Errors
    ///
    /// [`Stage2Error::Apart`] if it is not mapped as one stretch. Nothing is stored then.
    pub fn rewrite<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized, R>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        range: Range<Ipa>,
        rules: Rules,
        write: impl FnOnce(&Writable<'_>) -> R,
    ) -> Result<(R, Effects), Stage2Error> {
        let mut effects = Effects::default();
        let (mut at, mut start) = (range.start, None);
        let mut may_be_executed = false;
        while at < range.end() {
            let mapping = self.translate(hardware.memory, at).ok_or(Stage2Error::Apart(at))?;
            let place = mapping.pa.0.wrapping_sub(at.0.wrapping_sub(range.start.0));
            if *start.get_or_insert(place) != place {
                return Err(Stage2Error::Apart(at));
            }
            if mapping.attributes.permissions.contains(Permissions::EXECUTE) {
                if rules.policy == Policy::Eager {
                    may_be_executed = true;
                } else {
                    effects = effects.and(self.take(hardware, at, mapping)?);
                }
            }
            // A block may have been split now: the next page is looked up again, the rest of an entry that stays is not.
            let size = if mapping.attributes.permissions.contains(Permissions::EXECUTE) {
                PAGE_SIZE
            } else {
                mapping.level.size()
            };
            at = Ipa((at.0 & !(size - 1)) + size);
        }
        let range = Range { start: Pa(start.ok_or(Stage2Error::Apart(range.start))?), size: range.size };
        let result = write(&Writable { range, tables: PhantomData });
        if may_be_executed {
            effects = effects.and(maintain(hardware.caches, rules, range));
        }
        Ok((result, effects))
    }

    /// Takes the execute permission from the page around `ipa`, or from its block if there is no memory to split that.
    fn take<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        mapping: Mapping,
    ) -> Result<Effects, Stage2Error> {
        let (range, _) = self.isolate(hardware, ipa, mapping)?;
        self.update(hardware.memory, hardware.tlb, range, |attributes| Attributes {
            permissions: (attributes.permissions - Permissions::EXECUTE)
                | if is_protected(attributes) { Permissions::WRITE } else { Permissions::empty() },
            software: (attributes.software - Software::MAINTAINED) | Software::REWRITTEN,
            ..attributes
        })?;
        Ok(Effects { taken: range.size / PAGE_SIZE, splits: splits(mapping, range), ..Effects::default() })
    }

    /// Makes the page around `ipa` an entry of its own. Without memory for a table it stays in its block, which then
    /// becomes or ceases to be executable as a whole: that is dear, but the guest goes on.
    fn isolate<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        mapping: Mapping,
    ) -> Result<(Range<Ipa>, Range<Pa>), Stage2Error> {
        let page = entry_around(ipa, Level::Three);
        if mapping.level == Level::Three {
            return Ok((page, place_of(page, ipa, mapping)));
        }
        let block = entry_around(ipa, Level::Two);
        let range = match self.split_to_pages(hardware.memory, hardware.tlb, page.start) {
            // If not even the block could be made, whatever is done to it next fails with the same error.
            Err(Stage2Error::OutOfTables) => block,
            result => result.map(|()| page)?,
        };
        Ok((range, place_of(range, ipa, mapping)))
    }

    /// Whether so much of the block around `ipa`, which has just become executable, is, that the rest should be. It never is where
    /// that page is read-only, or was stored into by the hypervisor, or is no entry of its own: [`Stage2::survey`] sees to that. Only
    /// each sixteenth page asks, since the answer takes longer than all else at a first fetch. Of a block that fills up, the last of
    /// these comes among the last pages; and one in which it does not stays in pieces, which is right too.
    fn is_crowded<M: TableMemory + ?Sized>(&self, memory: &M, ipa: Ipa) -> bool {
        let is_asked = Level::Three.index(ipa) % GROUP == GROUP - 1;
        is_asked && self.survey(memory, ipa, Level::Three.entries() - MOST).is_some()
    }

    /// Looks at all pages of the block around `ipa`, until more than `most_missing` are not executable. `None` then, and if they
    /// cannot become one entry: those that do not lie in one stretch, and those that the hypervisor has stored into since they
    /// were executed. What it has, it will again, and a block that is split for each store costs more than one that stays split.
    fn survey<M: TableMemory + ?Sized>(&self, memory: &M, ipa: Ipa, most_missing: usize) -> Option<Survey> {
        let table = self.table_of_pages(memory, ipa)?;
        let start = Descriptor(memory.read(table, 0)).address();
        let [plain, code] =
            [Attributes::RAM, Attributes::CODE].map(|attributes| Descriptor::leaf(Level::Three, start, attributes).0);
        let (mut missing, mut first) = (0, None);
        for index in 0..Level::Three.entries() {
            // As if all were the first one's: that compares address and attributes at once.
            let entry = memory.read(table, index).wrapping_sub(index as u64 * PAGE_SIZE);
            if entry == code {
                continue;
            }
            missing += 1;
            first = first.or(Some(index));
            if entry != plain || missing > most_missing {
                return None;
            }
        }
        Some(Survey { table, start, missing: first })
    }

    /// Does the next bounded piece of making the block around `ipa` one executable entry: makes 64 KiB of it executable,
    /// or joins it when all is. By [`Policy::Strict`] nothing is done: there a page that is both writable and executable is an
    /// exception, and says nothing of its neighbours.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::update`].
    pub fn promote<M: TableMemory + ?Sized, T: TlbOps + ?Sized, C: Caches + ?Sized>(
        &mut self,
        hardware: &mut Hardware<'_, M, T, C>,
        ipa: Ipa,
        rules: Rules,
    ) -> Result<Promotion, Stage2Error> {
        let block = entry_around(ipa, Level::Two);
        let survey = self.survey(hardware.memory, ipa, Level::Three.entries());
        let Some(Survey { table, start, missing }) = survey.filter(|_| rules.policy != Policy::Strict) else {
            return Ok(Promotion::Finished(Effects::default()));
        };
        let Some(missing) = missing else {
            let joined = self.merge(hardware.memory, hardware.tlb, block)?;
            return Ok(Promotion::Finished(Effects { promotions: joined as u64, ..Effects::default() }));
        };
        let first = missing - missing % GROUP;
        let offset = first as u64 * PAGE_SIZE;
        let is_missing =
            |&index: &usize| Descriptor(hardware.memory.read(table, index)).attributes() != Attributes::CODE;
        let granted = (first..first + GROUP).filter(is_missing).count() as u64;
        let size = GROUP as u64 * PAGE_SIZE;
        let effects = maintain(hardware.caches, rules, Range { start: Pa(start.0 + offset), size });
        self.update(hardware.memory, hardware.tlb, Range { start: Ipa(block.start.0 + offset), size }, executable)?;
        Ok(Promotion::Unfinished(Effects { granted, ..effects }))
    }

    /// How many pages of `range` are mapped, and how many of those are executable.
    #[must_use]
    pub fn pages<M: TableMemory + ?Sized>(&self, memory: &M, range: Range<Ipa>) -> (u64, u64) {
        let (mut mapped, mut executable) = (0, 0);
        self.visit(memory, range, |_, mapping| {
            let pages = mapping.level.size() / PAGE_SIZE;
            mapped += pages;
            executable += pages * u64::from(mapping.attributes.permissions.contains(Permissions::EXECUTE));
        });
        (mapped, executable)
    }
}

/// Executable, and the caches agree.
fn executable(attributes: Attributes) -> Attributes {
    Attributes {
        permissions: attributes.permissions | Permissions::EXECUTE,
        software: attributes.software | Software::MAINTAINED,
        ..attributes
    }
}

/// Read-only because it is executable, and for no other reason.
fn is_protected(attributes: Attributes) -> bool {
    attributes.permissions == Permissions::READ | Permissions::EXECUTE
        && attributes.software.contains(Software::MAINTAINED)
        && !attributes.software.contains(Software::HELD)
}

/// What an entry of `level` around `ipa` covers.
fn entry_around(ipa: Ipa, level: Level) -> Range<Ipa> {
    Range { start: ipa.align_down(level.size()), size: level.size() }
}

/// Where `range` is, of which `mapping` tells the place of `ipa`.
fn place_of(range: Range<Ipa>, ipa: Ipa, mapping: Mapping) -> Range<Pa> {
    Range { start: Pa(mapping.pa.0 - (ipa.0 - range.start.0)), size: range.size }
}

/// How many entries were split to make `range`, a page or a block, one of its own.
fn splits(before: Mapping, range: Range<Ipa>) -> u64 {
    let level = if range.size == PAGE_SIZE { Level::Three } else { Level::Two };
    level as u64 - before.level as u64
}

fn maintain<C: Caches + ?Sized>(caches: &mut C, rules: Rules, range: Range<Pa>) -> Effects {
    let mut effects = Effects::default();
    for step in steps(rules.caches, range, rules.point) {
        // This counts what was done, not what was meant to be.
        let lines = caches.carry_out(step);
        match step {
            Step::CleanToUnification { .. } | Step::CleanToCoherency { .. } => effects.lines += lines,
            Step::InvalidateLines { .. } | Step::InvalidateAll => effects.invalidations += u64::from(lines > 0),
            Step::WaitForClean | Step::WaitForInvalidation | Step::Synchronize => {}
        }
    }
    effects
}
