//! A machine whose instruction caches do nothing by themselves, on which the real tables run: the proof that no step of the
//! maintenance is too little, and none too much.
//!
//! QEMU's caches agree always, and so do those of many machines. This one's do the worst that the architecture lets them
//! (DDI 0487 B2.7.4): what is stored stays above the point of unification until it is cleaned, and below it what was
//! cleaned stays above memory; maintenance is complete at the barrier, not at the instruction; an instruction cache keeps
//! what it has until it is told, and fetches ahead whatever it likes, executable or not; a pipeline holds what it fetched
//! until it is synchronised; a TLB keeps what it saw. Between any two steps of an operation the other CPUs store and
//! execute what their TLBs let them. Guests do things at random; each fetch must see what was stored last.
//!
//! That the machine is nasty enough is proven by leaving steps out, one in each test: random guests then find something
//! stale.

extern crate std;

mod lives;

use core::cell::RefCell;
use cpu::exit::Wanted;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;
use units::{BLOCK_SIZE, GIGABYTE, Ipa, PAGE_SIZE, Pa, Range};

use crate::descriptor::Descriptor;
use crate::{
    Allowed, CacheKind, Caches, Effects, Hardware, Invalidation, Level, Permissions, Point, Policy, Promotion, Rules,
    Stage2, Step, TableMemory, TlbOps,
};

const CPUS: usize = 3;
/// What is told apart: half of the smallest line.
const CELL: u64 = 32;
/// The pages that the guest uses, in two blocks, and the places in them.
const PAGES: [u64; 6] = [0, PAGE_SIZE, 16 * PAGE_SIZE, 511 * PAGE_SIZE, BLOCK_SIZE, BLOCK_SIZE + 7 * PAGE_SIZE];
const PLACES: [u64; 4] = [0, CELL, 2 * CELL, PAGE_SIZE - CELL];
const RAM: Range<Ipa> = Range { start: Ipa(0), size: 2 * BLOCK_SIZE };
/// From a guest's address to the host's.
const OFFSET: u64 = 7 * GIGABYTE;
/// What the last owner of the memory left in the instruction caches.
const ANOTHERS: u32 = 0xdead;

/// What is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Omitted {
    Nothing,
    Clean,
    WaitForClean,
    Invalidation,
    WaitForInvalidation,
    Synchronize,
    /// Translations that were changed stay in the TLBs.
    TlbInvalidation,
    /// The hypervisor stores past [`Stage2::rewrite`].
    Taking,
    /// Memory is restored below mappings that stay.
    Hiding,
    /// Memory is restored while vCPUs run that were to stand still.
    Waiting,
    /// A new life begins in the tables of the one before.
    Dismantling,
}

/// What the machine and its guest are like.
#[derive(Clone, Copy)]
struct Shape {
    policy: Policy,
    /// What the hypervisor believes of the caches.
    believed: CacheKind,
    /// Bytes of a line, really.
    line: u64,
    /// The instruction caches are found by virtual address.
    by_virtual_address: bool,
    /// The guest's caches are off.
    off: bool,
    omitted: Omitted,
}

const BELIEVED: CacheKind = CacheKind::of(0x8444_c004);
const USUAL: Shape = Shape {
    policy: Policy::OnDemand,
    believed: BELIEVED,
    line: 64,
    by_virtual_address: false,
    off: false,
    omitted: Omitted::Nothing,
};

#[derive(Default)]
struct Cpu {
    instructions: BTreeMap<u64, u32>,
    /// Fetched and not executed yet.
    pipeline: BTreeMap<u64, u32>,
    tlb: BTreeMap<u64, Descriptor>,
    /// It was told to invalidate these lines, and has not yet.
    invalidating: BTreeSet<u64>,
}

impl Cpu {
    fn invalidate(&mut self) {
        for cell in core::mem::take(&mut self.invalidating) {
            self.instructions.remove(&cell);
        }
    }
}

struct State {
    shape: Shape,
    random: u64,
    tables: BTreeMap<u64, Vec<u64>>,
    root: u64,
    /// The newest of what is stored, above the point of unification; at it; and memory.
    above: BTreeMap<u64, u32>,
    unified: BTreeMap<u64, u32>,
    memory: BTreeMap<u64, u32>,
    cpus: [Cpu; CPUS],
    /// Maintenance that is not complete yet.
    cleaning: BTreeSet<u64>,
    cleaning_to_memory: BTreeSet<u64>,
    /// What the guest has stored and has to maintain itself.
    guests: BTreeSet<u64>,
    /// The CPU on which an operation of the hypervisor's is under way.
    busy: Option<usize>,
    /// The CPUs that are not in the guest.
    outside: [bool; CPUS],
    stores: u32,
    complaint: Option<String>,
}

struct Machine(RefCell<State>);

fn cells() -> impl Iterator<Item = u64> {
    PAGES.into_iter().flat_map(|page| PLACES.map(|place| OFFSET + page + place))
}

impl State {
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    fn draw_cell(&mut self) -> u64 {
        let nth = self.draw((PAGES.len() * PLACES.len()) as u64);
        cells().nth(nth as usize).unwrap()
    }

    fn newest(&self, cell: u64) -> u32 {
        *self.above.get(&cell).or(self.unified.get(&cell)).or(self.memory.get(&cell)).unwrap_or(&0)
    }

    /// What a fetch that misses finds.
    fn below(&self, cell: u64) -> u32 {
        let unified = if self.shape.off { None } else { self.unified.get(&cell) };
        *unified.or(self.memory.get(&cell)).unwrap_or(&0)
    }

    fn entry(&self, ipa: u64) -> Option<Descriptor> {
        let mut table = self.root;
        for level in [Level::One, Level::Two, Level::Three] {
            let entry = Descriptor(self.tables[&table][level.index(Ipa(ipa))]);
            if !entry.is_table(level) {
                return entry.is_valid().then_some(entry);
            }
            table = entry.address().0;
        }
        None
    }

    /// Whether `cpu` may do what needs these permissions. What it sees in the tables its TLB keeps.
    fn may(&mut self, cpu: usize, cell: u64, permissions: Permissions) -> bool {
        let page = (cell - OFFSET) & !(PAGE_SIZE - 1);
        let held = self.cpus[cpu].tlb.get(&page).copied().or_else(|| self.entry(page));
        let Some(entry) = held else { return false };
        self.cpus[cpu].tlb.insert(page, entry);
        entry.attributes().permissions.contains(permissions)
    }

    fn store(&mut self, cell: u64) {
        self.stores += 1;
        self.above.insert(cell, self.stores);
    }

    fn guest_stores(&mut self, cpu: usize, cell: u64) -> bool {
        if !self.may(cpu, cell, Permissions::WRITE) {
            return false;
        }
        let is_code = self
            .entry(cell - OFFSET)
            .is_some_and(|entry| entry.attributes().permissions.contains(Permissions::EXECUTE));
        // Into what is executable, or becomes so at this moment: in a strict VM that does not happen.
        if self.shape.policy != Policy::Strict && (is_code || self.busy.is_some()) {
            self.guests.insert(cell);
        }
        self.store(cell);
        true
    }

    fn fetch_ahead(&mut self, cpu: usize, cell: u64) -> u32 {
        let found = self.below(cell);
        if self.shape.off { found } else { *self.cpus[cpu].instructions.entry(cell).or_insert(found) }
    }

    fn guest_fetches(&mut self, cpu: usize, cell: u64) -> bool {
        if !self.may(cpu, cell, Permissions::EXECUTE) {
            return false;
        }
        let ahead = self.cpus[cpu].pipeline.get(&cell).copied();
        let found = ahead.unwrap_or_else(|| self.fetch_ahead(cpu, cell));
        let newest = self.newest(cell);
        if found != newest && !self.guests.contains(&cell) {
            let policy = self.shape.policy;
            let complaint = format!("{policy:?}: CPU {cpu} executes {found} at {cell:#x}, where {newest} is stored");
            self.complaint.get_or_insert(complaint);
        }
        true
    }

    /// What happens between two steps of whatever goes on.
    fn meanwhile(&mut self) {
        for _ in 0..self.draw(4) {
            let (cpu, cell) = (self.draw(CPUS as u64) as usize, self.draw_cell());
            let is_busy = self.busy == Some(cpu);
            let runs = !is_busy && !self.outside[cpu];
            match self.draw(7) {
                0 if runs => _ = self.guest_stores(cpu, cell),
                1 | 2 if runs => _ = self.guest_fetches(cpu, cell),
                3 => {
                    if let Some(value) = self.above.remove(&cell) {
                        self.unified.insert(cell, value);
                    }
                }
                4 => {
                    if let Some(value) = self.unified.remove(&cell) {
                        self.memory.insert(cell, value);
                    }
                }
                how => {
                    if how == 5 {
                        self.cpus[cpu].invalidate();
                    }
                    let page = cell & !(PAGE_SIZE - 1);
                    for cell in PLACES.map(|place| page + place) {
                        let found = self.fetch_ahead(cpu, cell);
                        if is_busy {
                            self.cpus[cpu].pipeline.insert(cell, found);
                        }
                    }
                }
            }
        }
    }

    /// The cells whose lines a loop over `range` by steps of `line` comes by.
    fn reached(&self, range: Range<Pa>, line: u64) -> Vec<u64> {
        let start = range.start.0 & !(line - 1);
        let is_reached = |&cell: &u64| {
            let own = cell & !(self.shape.line - 1);
            let first = if own <= start { start } else { start + (own - start).next_multiple_of(line) };
            first < range.end().0 && first < own + self.shape.line
        };
        cells().filter(is_reached).collect()
    }

    /// DSB.
    fn complete(&mut self) {
        for cell in core::mem::take(&mut self.cleaning) {
            if let Some(value) = self.above.remove(&cell) {
                self.unified.insert(cell, value);
            }
        }
        for cell in core::mem::take(&mut self.cleaning_to_memory) {
            let value = self.above.remove(&cell).or(self.unified.get(&cell).copied());
            self.unified.remove(&cell);
            if let Some(value) = value {
                self.memory.insert(cell, value);
            }
        }
        self.cpus.iter_mut().for_each(Cpu::invalidate);
    }

    /// Other memory stands in the place of the guest's: stored as data, and cleaned to memory, as whoever shows memory to a guest
    /// has to.
    fn replace_memory(&mut self) {
        for cell in cells() {
            self.store(cell);
            self.cleaning_to_memory.insert(cell);
        }
        self.complete();
        self.guests.clear();
    }

    fn invalidate(&mut self, reached: &[u64]) {
        for cpu in &mut self.cpus {
            cpu.invalidating.extend(reached);
        }
    }
}

impl Caches for &Machine {
    fn carry_out(&mut self, step: Step) -> u64 {
        let mut state = self.0.borrow_mut();
        state.meanwhile();
        let omitted = state.shape.omitted;
        match step {
            Step::CleanToUnification { .. } | Step::CleanToCoherency { .. } if omitted == Omitted::Clean => {}
            Step::CleanToUnification { range, line } => {
                let reached = state.reached(range, line);
                state.cleaning.extend(reached);
            }
            Step::CleanToCoherency { range, line } => {
                let reached = state.reached(range, line);
                state.cleaning_to_memory.extend(reached);
            }
            Step::WaitForClean if omitted == Omitted::WaitForClean => {}
            Step::InvalidateLines { .. } | Step::InvalidateAll if omitted == Omitted::Invalidation => {}
            // Lines that are found by the guest's addresses are not found by ours.
            Step::InvalidateLines { .. } if state.shape.by_virtual_address => {}
            Step::InvalidateLines { range, line } => {
                let reached = state.reached(range, line);
                state.invalidate(&reached);
            }
            Step::InvalidateAll => state.invalidate(&cells().collect::<Vec<_>>()),
            Step::WaitForInvalidation if omitted == Omitted::WaitForInvalidation => {}
            Step::WaitForClean | Step::WaitForInvalidation => state.complete(),
            Step::Synchronize if omitted == Omitted::Synchronize => {}
            Step::Synchronize => {
                if let Some(me) = state.busy {
                    state.cpus[me].pipeline.clear();
                }
            }
        }
        state.meanwhile();
        step.lines()
    }
}

impl TableMemory for &Machine {
    fn allocate(&mut self) -> Option<Pa> {
        let mut state = self.0.borrow_mut();
        let table = 0x10_0000 + state.tables.len() as u64 * 0x2000;
        state.tables.insert(table, std::vec![0; 512]);
        Some(Pa(table))
    }

    fn allocate_root(&mut self) -> Option<Pa> {
        let root = self.allocate()?;
        let mut state = self.0.borrow_mut();
        state.root = root.0;
        state.tables.insert(root.0, std::vec![0; 1024]);
        Some(root)
    }

    // Tables are few and told apart by their addresses: none is used again.
    fn free(&mut self, _: Pa) {}

    fn free_root(&mut self, _: Pa) {}

    fn read(&self, table: Pa, index: usize) -> u64 {
        self.0.borrow().tables[&table.0][index]
    }

    fn write(&mut self, table: Pa, index: usize, value: u64) {
        let mut state = self.0.borrow_mut();
        state.tables.get_mut(&table.0).unwrap()[index] = value;
        // Tables that are being filled are written 512 times.
        if index.is_multiple_of(64) {
            state.meanwhile();
        }
    }
}

impl TlbOps for &Machine {
    // DSB ISHST waits for stores, and for no maintenance.
    fn publish(&mut self) {
        self.0.borrow_mut().meanwhile();
    }

    fn invalidate(&mut self, what: Invalidation) {
        let mut state = self.0.borrow_mut();
        state.meanwhile();
        if state.shape.omitted != Omitted::TlbInvalidation {
            let whole = what == Invalidation::All;
            let size = if let Invalidation::Entries { level, .. } = what { level.size() } else { 0 };
            let gone: Vec<u64> = what.addresses().map(|address| address.0).collect();
            for cpu in &mut state.cpus {
                cpu.tlb.retain(|&page, _| !whole && !gone.iter().any(|&start| page >= start && page - start < size));
            }
        }
        state.complete();
        state.meanwhile();
    }
}

/// Shows the guest the block around `ipa`.
fn show<M: TableMemory, T: TlbOps, C: Caches>(
    tables: &mut Stage2,
    hardware: &mut Hardware<'_, M, T, C>,
    ipa: Ipa,
    rules: Rules,
) {
    let block = ipa.align_down(BLOCK_SIZE);
    tables.show(hardware, block, Range { start: Pa(block.0 + OFFSET), size: BLOCK_SIZE }, rules).unwrap();
}

/// A guest on such a machine.
struct World {
    machine: Machine,
    tables: Stage2,
    shape: Shape,
}

impl World {
    fn new(shape: Shape, seed: u64) -> Self {
        let leftovers: BTreeMap<u64, u32> = cells().map(|cell| (cell, ANOTHERS)).collect();
        let cpu = || Cpu { instructions: leftovers.clone(), ..Cpu::default() };
        let machine = Machine(RefCell::new(State {
            shape,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            tables: BTreeMap::new(),
            root: 0,
            above: BTreeMap::new(),
            unified: BTreeMap::new(),
            memory: BTreeMap::new(),
            cpus: [cpu(), cpu(), cpu()],
            cleaning: BTreeSet::new(),
            cleaning_to_memory: BTreeSet::new(),
            guests: BTreeSet::new(),
            busy: None,
            outside: [false; CPUS],
            stores: 0,
            complaint: None,
        }));
        let tables = Stage2::new(&mut &machine).unwrap();
        Self { machine, tables, shape }
    }

    fn rules(&self) -> Rules {
        let point = if self.shape.off { Point::Coherency } else { Point::Unification };
        Rules { policy: self.shape.policy, caches: self.shape.believed, point }
    }

    fn draw(&self, below: u64) -> u64 {
        self.machine.0.borrow_mut().draw(below)
    }

    /// `cpu` comes to EL2, does `work` there, and returns to its guest.
    fn at_el2<R>(
        &mut self,
        cpu: usize,
        work: impl FnOnce(&mut Stage2, &mut Hardware<'_, &Machine, &Machine, &Machine>, Rules) -> R,
    ) -> R {
        let rules = self.rules();
        let (mut memory, mut tlb, mut caches) = (&self.machine, &self.machine, &self.machine);
        {
            let mut state = self.machine.0.borrow_mut();
            // The exception synchronised. The return does not have to (FEAT_ExS).
            state.cpus[cpu].pipeline.clear();
            state.busy = Some(cpu);
        }
        let mut hardware = Hardware { memory: &mut memory, tlb: &mut tlb, caches: &mut caches };
        let result = work(&mut self.tables, &mut hardware, rules);
        self.machine.0.borrow_mut().busy = None;
        result
    }

    /// The guest's access until it is done.
    fn access(&mut self, cpu: usize, cell: u64, wanted: Wanted) {
        let ipa = Ipa(cell - OFFSET);
        for _ in 0..4 {
            let done = {
                let mut state = self.machine.0.borrow_mut();
                match wanted {
                    Wanted::Fetch => state.guest_fetches(cpu, cell),
                    _ => state.guest_stores(cpu, cell),
                }
            };
            if done {
                break;
            }
            if wanted == Wanted::Fetch {
                // What was stored before is maintained now.
                let mut state = self.machine.0.borrow_mut();
                let page = cell & !(PAGE_SIZE - 1);
                state.guests.retain(|other| other & !(PAGE_SIZE - 1) != page);
            }
            let allowed = self.at_el2(cpu, |tables, hardware, rules| {
                let allowed = tables.allow(hardware, ipa, wanted, rules).unwrap();
                if allowed == Allowed::Unmapped {
                    show(tables, hardware, ipa, rules);
                    return tables.allow(hardware, ipa, wanted, rules).unwrap();
                }
                allowed
            });
            assert_ne!(allowed, Allowed::Never);
        }
        self.machine.0.borrow_mut().cpus[cpu].pipeline.clear();
    }

    /// The hypervisor stores behind the guest's back.
    fn rewrite(&mut self, cpu: usize, cell: u64) {
        let ipa = Ipa(cell - OFFSET);
        if self.machine.0.borrow().shape.omitted == Omitted::Taking {
            self.machine.0.borrow_mut().store(cell);
            return;
        }
        if self.tables.translate(&&self.machine, ipa).is_none() {
            return;
        }
        let is_eager = self.shape.policy == Policy::Eager;
        let range = Range { start: ipa, size: CELL };
        let stored = self.at_el2(cpu, |tables, hardware, rules| {
            let machine = *hardware.memory;
            tables.rewrite(hardware, range, rules, |place| {
                let mut state = machine.0.borrow_mut();
                assert_eq!(place.range().start.0, cell);
                state.store(cell);
                state.guests.remove(&cell);
                if is_eager {
                    // Until it is maintained, right behind this.
                    state.guests.insert(cell);
                }
                let stored = state.stores;
                state.meanwhile();
                stored
            })
        });
        let (stored, _) = stored.unwrap();
        self.machine.0.borrow_mut().cpus[cpu].pipeline.clear();
        let mut state = self.machine.0.borrow_mut();
        if is_eager && state.newest(cell) == stored {
            state.guests.remove(&cell);
        }
    }

    /// Hides all memory from the guest, by way of `cpu`.
    fn hide(&mut self, cpu: usize) {
        if self.shape.omitted != Omitted::Hiding {
            self.at_el2(cpu, |tables, hardware, _| tables.unmap(hardware.memory, hardware.tlb, RAM)).unwrap();
            self.machine.0.borrow_mut().cpus[cpu].pipeline.clear();
        }
    }

    /// The whole VM is replaced by another state of it, by way of `cpu`. All vCPUs stand still.
    fn restore(&mut self, cpu: usize) {
        self.hide(cpu);
        let mut state = self.machine.0.borrow_mut();
        state.replace_memory();
        state.cpus.iter_mut().for_each(|cpu| cpu.pipeline.clear());
    }

    fn promote(&mut self, cpu: usize, ipa: Ipa) {
        if self.shape.policy != Policy::OnDemand {
            return;
        }
        let unfinished = |promotion| matches!(promotion, Promotion::Unfinished(Effects { .. }));
        while self.at_el2(cpu, |tables, hardware, rules| unfinished(tables.promote(hardware, ipa, rules).unwrap())) {}
        self.machine.0.borrow_mut().cpus[cpu].pipeline.clear();
    }

    fn step(&mut self) {
        let cpu = self.draw(CPUS as u64) as usize;
        let cell = self.machine.0.borrow_mut().draw_cell();
        match self.draw(12) {
            0..4 => self.access(cpu, cell, Wanted::Fetch),
            4..7 => self.access(cpu, cell, Wanted::Write),
            7..11 => self.rewrite(cpu, cell),
            _ if self.draw(8) == 0 => self.promote(cpu, Ipa(cell - OFFSET)),
            _ if self.draw(4) == 0 => self.restore(cpu),
            _ => self.machine.0.borrow_mut().meanwhile(),
        }
    }
}

/// What the first of so many random guests finds stale.
fn run(shape: Shape) -> Option<String> {
    (1..=60).find_map(|seed| {
        let mut world = World::new(shape, seed);
        for _ in 0..120 {
            world.step();
            if let Some(complaint) = world.machine.0.borrow_mut().complaint.take() {
                return Some(format!("guest {seed}: {complaint}"));
            }
        }
        None
    })
}

/// As it is, and with `omitted` left out.
fn prove(shape: Shape, omitted: Omitted) {
    assert_eq!(run(shape), None);
    assert_ne!(run(Shape { omitted, ..shape }), None, "{omitted:?} is not needed");
}

const STRICT: Shape = Shape { policy: Policy::Strict, ..USUAL };
const OFF: Shape = Shape { off: true, ..USUAL };
const VIRTUAL: Shape =
    Shape { by_virtual_address: true, believed: CacheKind { by_address: false, ..BELIEVED }, ..USUAL };

#[test]
fn without_the_clean_something_stale_is_executed() {
    prove(USUAL, Omitted::Clean);
    prove(STRICT, Omitted::Clean);
}

#[test]
fn without_the_clean_to_memory_a_guest_with_its_caches_off_executes_something_stale() {
    prove(OFF, Omitted::Clean);
}

#[test]
fn without_the_wait_for_the_clean_something_stale_is_executed() {
    prove(USUAL, Omitted::WaitForClean);
    prove(STRICT, Omitted::WaitForClean);
}

#[test]
fn without_the_invalidation_something_stale_is_executed() {
    prove(USUAL, Omitted::Invalidation);
    prove(STRICT, Omitted::Invalidation);
}

#[test]
fn without_the_wait_for_the_invalidation_something_stale_is_executed() {
    prove(USUAL, Omitted::WaitForInvalidation);
    prove(STRICT, Omitted::WaitForInvalidation);
}

#[test]
fn without_the_synchronisation_something_stale_is_executed() {
    prove(USUAL, Omitted::Synchronize);
}

#[test]
fn without_invalidated_tlbs_something_stale_is_executed() {
    prove(USUAL, Omitted::TlbInvalidation);
    prove(STRICT, Omitted::TlbInvalidation);
}

#[test]
fn without_taking_execution_away_something_stale_is_executed() {
    prove(USUAL, Omitted::Taking);
    prove(STRICT, Omitted::Taking);
}

#[test]
fn without_hiding_what_is_restored_something_stale_is_executed() {
    prove(USUAL, Omitted::Hiding);
    prove(STRICT, Omitted::Hiding);
    prove(Shape { policy: Policy::Eager, ..USUAL }, Omitted::Hiding);
}

#[test]
fn p6_a9_behind_a_restore_only_what_is_touched_comes_back() {
    for policy in [Policy::OnDemand, Policy::Strict, Policy::Eager] {
        let mut world = World::new(Shape { policy, ..USUAL }, 1);
        let pages = |world: &World| world.tables.pages(&&world.machine, RAM);
        let block = BLOCK_SIZE / PAGE_SIZE;
        let executable = |pages| if policy == Policy::Eager { block } else { pages };
        let [first, second] = [PAGES[1], PAGES[5]].map(|page| OFFSET + page);
        world.access(0, first, Wanted::Fetch);
        world.access(1, second, Wanted::Fetch);
        assert_eq!(pages(&world), (2 * block, 2 * executable(1)));
        world.restore(0);
        assert_eq!(pages(&world), (0, 0));
        world.access(2, second, Wanted::Write);
        assert_eq!(pages(&world), (block, executable(0)));
        world.access(2, second, Wanted::Fetch);
        assert_eq!(pages(&world), (block, executable(1)));
        assert_eq!(world.machine.0.borrow_mut().complaint.take(), None);
    }
}

#[test]
fn eager_pages_are_maintained_behind_each_store() {
    prove(Shape { policy: Policy::Eager, ..USUAL }, Omitted::Clean);
    prove(Shape { policy: Policy::Eager, ..USUAL }, Omitted::Invalidation);
}

#[test]
fn by_our_address_nothing_is_found_in_a_cache_by_virtual_address() {
    prove(VIRTUAL, Omitted::Invalidation);
    assert_ne!(run(Shape { believed: BELIEVED, ..VIRTUAL }), None);
}

#[test]
fn by_too_large_a_step_lines_are_passed_by() {
    let small = CacheKind::of(0x8443_c003);
    let shape = Shape { line: 32, believed: BELIEVED.with(small), ..USUAL };
    assert_eq!(run(shape), None);
    assert_ne!(run(Shape { believed: BELIEVED, ..shape }), None);
}
