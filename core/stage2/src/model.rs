//! For tests: memory with tables in it, and a TLB that keeps everything it is ever allowed to keep.
//!
//! After every store to a table that a walker can reach, and at every barrier, the model walks for all addresses of
//! interest, from the root as well as from each table pointer it has cached, and caches what it finds. It complains
//!
//! * when it comes to hold two entries for one address that differ in more than permissions (break before make was
//!   broken),
//! * when a table that it still holds a pointer to is freed,
//! * when a table becomes reachable whose content has not been published,
//! * when, after an operation, it still holds anything that the tables no longer say.

extern crate std;

use core::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;
use units::{Ipa, Pa, Range};

use crate::descriptor::Descriptor;
use crate::{Invalidation, Level, TableMemory, TlbOps};

const LEVELS: [Level; 3] = [Level::One, Level::Two, Level::Three];

/// An entry that the TLB may hold: its level and where what it covers begins.
type Key = (Level, u64);

#[derive(Default)]
struct State {
    /// All tables, the root as one of 1024 entries.
    tables: BTreeMap<u64, Vec<u64>>,
    next: u64,
    root: u64,
    /// How many more tables may be allocated.
    budget: usize,
    probes: Vec<u64>,
    cached: BTreeMap<Key, u64>,
    /// Tables that have been written or allocated since the last barrier.
    unpublished: BTreeSet<u64>,
    /// Tables that a walker has seen.
    linked: BTreeSet<u64>,
    invalidations: Vec<Invalidation>,
    complaint: Option<String>,
}

/// A host with one VM; both traits are implemented for references to it.
pub(crate) struct Host(RefCell<State>);

impl Host {
    /// `budget` tables can be allocated; the TLB is filled for the pages at `probes`.
    pub(crate) fn new(budget: usize, probes: Vec<u64>) -> Self {
        Self(RefCell::new(State { next: 0x10_0000, budget, probes, ..State::default() }))
    }

    /// How many tables exist, without the root.
    pub(crate) fn tables(&self) -> usize {
        self.0.borrow().tables.len() - usize::from(self.0.borrow().root != 0)
    }

    /// Sets how many more tables can be allocated.
    pub(crate) fn set_budget(&self, budget: usize) {
        self.0.borrow_mut().budget = budget;
    }

    /// The invalidations since the last call.
    pub(crate) fn take_invalidations(&self) -> Vec<Invalidation> {
        core::mem::take(&mut self.0.borrow_mut().invalidations)
    }

    /// After an operation: what went wrong, or what is stale.
    pub(crate) fn settle(&self) -> Result<(), String> {
        let mut state = self.0.borrow_mut();
        state.walk_all();
        if let Some(complaint) = &state.complaint {
            return Err(complaint.clone());
        }
        if state.root != 0 && !state.unpublished.is_empty() {
            return Err("an operation ended without publishing what it wrote".into());
        }
        for (&(level, base), &held) in &state.cached {
            let actual = state.entry(level, base);
            if actual != Some(held) {
                return Err(format!("stale: level {level:?} at {base:#x} is held as {held:#x}, is {actual:x?}"));
            }
        }
        Ok(())
    }
}

impl State {
    fn complain(&mut self, complaint: String) {
        self.complaint.get_or_insert(complaint);
    }

    fn allocate(&mut self, entries: usize) -> Option<Pa> {
        self.budget = self.budget.checked_sub(1)?;
        let table = self.next;
        self.next += 0x2000;
        self.tables.insert(table, std::vec![0; entries]);
        self.unpublished.insert(table);
        Some(Pa(table))
    }

    fn free(&mut self, table: Pa) {
        let pointed = self.cached.values().any(|&held| {
            let held = Descriptor(held);
            held.is_table(Level::One) && held.address() == table
        });
        if pointed {
            self.complain(format!("table {table} is freed while a walker holds a pointer to it"));
        }
        if self.tables.remove(&table.0).is_none() {
            self.complain(format!("table {table} is freed twice"));
        }
        self.linked.remove(&table.0);
        self.unpublished.remove(&table.0);
    }

    /// The valid entry of `level` for `base` that a walk from the root comes by.
    fn entry(&self, level: Level, base: u64) -> Option<u64> {
        let mut table = self.root;
        for step in LEVELS {
            let entry = *self.tables.get(&table)?.get(step.index(Ipa(base)))?;
            let valid = Descriptor(entry).is_valid().then_some(entry);
            if step == level || !Descriptor(entry).is_table(step) {
                return valid.filter(|_| step == level);
            }
            table = Descriptor(entry).address().0;
        }
        None
    }

    fn walk_all(&mut self) {
        if self.root == 0 {
            return;
        }
        for probe in self.probes.clone() {
            self.walk(self.root, 0, probe);
            for (depth, level) in [(1, Level::One), (2, Level::Two)] {
                let held = self.cached.get(&key(level, probe)).copied().map(Descriptor);
                if let Some(pointer) = held.filter(|held| held.is_table(level)) {
                    self.walk(pointer.address().0, depth, probe);
                }
            }
        }
    }

    /// Walks from `table`, whose entries are of `LEVELS[depth]`, and caches all that is valid on the way.
    fn walk(&mut self, mut table: u64, depth: usize, probe: u64) {
        for level in LEVELS.into_iter().skip(depth) {
            if self.linked.insert(table) && self.unpublished.contains(&table) && table != self.root {
                self.complain(format!("table {table:#x} is linked before its content is published"));
            }
            let Some(entries) = self.tables.get(&table) else {
                self.complain(format!("a walk for {probe:#x} runs into freed table {table:#x}"));
                return;
            };
            let entry = Descriptor(entries[level.index(Ipa(probe))]);
            if !entry.is_valid() {
                return;
            }
            self.cache(level, probe, entry);
            if !entry.is_table(level) {
                return;
            }
            table = entry.address().0;
        }
    }

    fn cache(&mut self, level: Level, probe: u64, entry: Descriptor) {
        for other in LEVELS {
            let Some(held) = self.cached.get(&key(other, probe)).copied().map(Descriptor) else { continue };
            let both_leaves = !held.is_table(other) && !entry.is_table(level);
            let differ = if other == level {
                held.is_table(level) != entry.is_table(level)
                    || held.address() != entry.address()
                    || (both_leaves && held.attributes().memory != entry.attributes().memory)
            } else {
                // Blocks and what lies above or below them exclude each other; tables above entries do not.
                let upper = if other < level { (held, other) } else { (entry, level) };
                !upper.0.is_table(upper.1)
            };
            if differ {
                self.complain(format!(
                    "no break before make at {probe:#x}: level {other:?} {held:x?} and {level:?} {entry:x?}"
                ));
            }
        }
        self.cached.insert(key(level, probe), entry.0);
    }

    fn invalidate(&mut self, what: Invalidation) {
        let Invalidation::Entries { start, level, count } = what else {
            self.cached.clear();
            return;
        };
        if !(1..=Invalidation::MAX_ENTRIES).contains(&count) || !start.is_aligned(level.size()) {
            self.complain(format!("malformed {what:?}"));
        }
        for address in what.addresses() {
            self.cached.retain(|&(at, base), entry| {
                let covers = Range { start: Ipa(base), size: at.size() }.contains(address);
                // With a level hint, leaves of other levels may stay; pointers above the level go, as without one.
                let hinted_away = level != at && !Descriptor(*entry).is_table(at);
                !covers || hinted_away
            });
        }
    }
}

fn key(level: Level, address: u64) -> Key {
    (level, address & !(level.size() - 1))
}

impl TableMemory for &Host {
    fn allocate(&mut self) -> Option<Pa> {
        self.0.borrow_mut().allocate(512)
    }

    fn allocate_root(&mut self) -> Option<Pa> {
        let root = self.0.borrow_mut().allocate(1024)?;
        self.0.borrow_mut().root = root.0;
        self.0.borrow_mut().unpublished.clear();
        Some(root)
    }

    fn free(&mut self, table: Pa) {
        self.0.borrow_mut().free(table);
    }

    fn free_root(&mut self, root: Pa) {
        let mut state = self.0.borrow_mut();
        if state.root != root.0 {
            state.complain("what is freed as root is none".into());
        }
        state.root = 0;
        state.free(root);
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        self.0.borrow().tables[&table.0][index]
    }

    fn write(&mut self, table: Pa, index: usize, value: u64) {
        let mut state = self.0.borrow_mut();
        state.unpublished.insert(table.0);
        let entries = state.tables.get_mut(&table.0).unwrap();
        entries[index] = value;
        if state.linked.contains(&table.0) || state.root == table.0 {
            state.walk_all();
        }
    }
}

impl TlbOps for &Host {
    fn publish(&mut self) {
        self.0.borrow_mut().unpublished.clear();
    }

    fn invalidate(&mut self, what: Invalidation) {
        let mut state = self.0.borrow_mut();
        // Until the very moment of the invalidation the TLB may fetch what the tables say.
        state.walk_all();
        state.unpublished.clear();
        state.invalidations.push(what);
        state.invalidate(what);
        state.walk_all();
    }
}
