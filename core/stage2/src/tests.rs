//! Random operations against a naive map, under the eyes of the model TLB; and the special cases.

extern crate std;

mod edges;
mod rules;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;
use std::vec::Vec;
use units::{BLOCK_SIZE, GIGABYTE, Ipa, PAGE_SIZE, Pa, Range};

use crate::model::Host;
use crate::{
    Allowed, Attributes, CacheKind, Caches, Effects, Hardware, Invalidation, Level, MOST, MemoryType, Permissions,
    Point, Policy, Promotion, Rules, Software, Stage2, Stage2Error, Step,
};
use cpu::exit::Wanted;

/// Caches that need nothing done.
struct Idle;

impl Caches for Idle {
    fn carry_out(&mut self, step: Step) -> u64 {
        step.lines()
    }
}

/// As on a cortex-a72.
const RULES: Rules = Rules { policy: Policy::OnDemand, caches: CacheKind::of(0x8444_c004), point: Point::Unification };

/// Caches that say what was done to them, to which the tables look as they did then.
#[derive(Default)]
struct Recorder {
    steps: Vec<Step>,
}

impl Caches for Recorder {
    fn carry_out(&mut self, step: Step) -> u64 {
        self.steps.push(step);
        step.lines()
    }
}

/// Where operations begin and end: each boundary that makes a difference to the tables.
const EDGES: [u64; 18] = [
    0,
    PAGE_SIZE,
    2 * PAGE_SIZE,
    BLOCK_SIZE - PAGE_SIZE,
    BLOCK_SIZE,
    BLOCK_SIZE + PAGE_SIZE,
    2 * BLOCK_SIZE,
    5 * BLOCK_SIZE,
    GIGABYTE - BLOCK_SIZE,
    GIGABYTE - PAGE_SIZE,
    GIGABYTE,
    GIGABYTE + PAGE_SIZE,
    GIGABYTE + BLOCK_SIZE,
    2 * GIGABYTE,
    2 * GIGABYTE + 3 * PAGE_SIZE,
    3 * GIGABYTE,
    (1 << 40) - GIGABYTE,
    1 << 40,
];

/// The stretch between two neighbouring edges.
fn atoms() -> impl Iterator<Item = Range<Ipa>> {
    EDGES.windows(2).map(|edges| Range { start: Ipa(edges[0]), size: edges[1] - edges[0] })
}

fn between(first: usize, end: usize) -> Range<Ipa> {
    Range { start: Ipa(EDGES[first]), size: EDGES[end] - EDGES[first] }
}

fn probes() -> Vec<u64> {
    atoms().flat_map(|atom| [atom.start.0, atom.end().0 - PAGE_SIZE]).collect()
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Map { shift: u64, attributes: Attributes },
    Unmap,
    Protect(Permissions),
    Retype(Attributes),
    Execute,
    Rewrite,
    Merge,
}

type Operation = (usize, usize, Act, usize);

fn acts() -> impl Strategy<Value = Act> {
    let attributes =
        || prop_oneof![4 => Just(Attributes::RAM), 1 => Just(Attributes::CODE), 1 => Just(Attributes::DEVICE)];
    let shifts = prop_oneof![6 => Just(GIGABYTE), 2 => Just(5 * BLOCK_SIZE), 1 => Just(7 * PAGE_SIZE)];
    prop_oneof![
        8 => (shifts, attributes()).prop_map(|(shift, attributes)| Act::Map { shift, attributes }),
        4 => Just(Act::Unmap),
        3 => (0..8_u8).prop_map(|bits| Act::Protect(Permissions::from_bits_truncate(bits))),
        1 => attributes().prop_map(Act::Retype),
        3 => Just(Act::Execute),
        2 => Just(Act::Rewrite),
        3 => Just(Act::Merge),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Operation>> {
    let edge = 0..EDGES.len();
    // The last number is the memory for tables: mostly plenty.
    let budget = prop_oneof![9 => Just(1000_usize), 1 => 0..3_usize];
    let step = (edge.clone(), edge, acts(), budget).prop_filter_map("empty", |(one, other, act, budget)| {
        (one != other).then_some((one.min(other), one.max(other), act, budget))
    });
    proptest::collection::vec(step, 1..40)
}

/// What each atom maps to: the address of its first byte, and how.
type Naive = [Option<(u64, Attributes)>; EDGES.len() - 1];

struct World {
    host: Host,
    tables: Stage2,
    naive: Naive,
}

impl World {
    fn new() -> Self {
        let host = Host::new(1000, probes());
        let tables = Stage2::new(&mut &host).unwrap();
        Self { host, tables, naive: [None; EDGES.len() - 1] }
    }

    fn step(&mut self, (first, end, act, budget): Operation) -> Result<(), TestCaseError> {
        let (memory, tlb) = (&mut &self.host, &mut &self.host);
        let range = between(first, end);
        // Nobody maps gigabytes by pages.
        let wide = range.size > 16 * BLOCK_SIZE;
        self.host.set_budget(budget);
        let before = self.naive;
        let naive = &mut self.naive[first..end];
        let change = |naive: &mut [Option<(u64, Attributes)>], change: &dyn Fn(Attributes) -> Attributes| {
            naive.iter_mut().flatten().for_each(|(_, attributes)| *attributes = change(*attributes));
        };
        let result = match act {
            Act::Map { shift, attributes } => {
                let shift = if wide { GIGABYTE } else { shift };
                let result =
                    self.tables.map(memory, tlb, range.start, Pa(range.start.0 + shift), range.size, attributes);
                if naive.iter().any(Option::is_some) {
                    prop_assert!(matches!(result, Err(Stage2Error::AlreadyMapped(_) | Stage2Error::OutOfTables)));
                }
                if result.is_ok() {
                    for (mapped, atom) in naive.iter_mut().zip(atoms().skip(first)) {
                        *mapped = Some((atom.start.0 + shift, attributes));
                    }
                } else {
                    // Unlike all others, a failed map must have changed nothing.
                    self.host.set_budget(1000);
                    return self.check();
                }
                result
            }
            Act::Unmap => {
                naive.fill(None);
                self.tables.unmap(memory, tlb, range)
            }
            Act::Protect(permissions) => {
                change(naive, &|attributes| attributes.with_permissions(permissions));
                self.tables.protect(memory, tlb, range, permissions)
            }
            Act::Retype(attributes) => {
                change(naive, &|_| attributes);
                self.tables.update(memory, tlb, range, |_| attributes)
            }
            Act::Execute => {
                // The first page only, if that is an atom of its own. Without memory for tables more than that changes,
                // which has a test of its own.
                if atoms().nth(first).is_none_or(|atom| atom.size != PAGE_SIZE) {
                    return Ok(());
                }
                self.host.set_budget(1000);
                let expected = match naive[0] {
                    None => Some(Allowed::Unmapped),
                    Some((_, attributes)) if attributes.permissions.contains(Permissions::EXECUTE) => {
                        Some(Allowed::Already)
                    }
                    Some((_, attributes)) if attributes.memory == MemoryType::Device => Some(Allowed::Never),
                    Some(_) => None,
                };
                let allowed = self.tables.allow(
                    &mut Hardware { memory, tlb, caches: &mut Idle },
                    Ipa(range.start.0 + 0x123),
                    Wanted::Fetch,
                    RULES,
                );
                match expected {
                    Some(expected) => prop_assert_eq!(allowed, Ok(expected)),
                    None => {
                        prop_assert!(matches!(allowed, Ok(Allowed::Now { .. })), "{:?}", allowed);
                        change(&mut naive[..1], &|attributes| Attributes {
                            permissions: attributes.permissions | Permissions::EXECUTE,
                            software: attributes.software | Software::MAINTAINED,
                            ..attributes
                        });
                    }
                }
                Ok(())
            }
            Act::Rewrite => {
                // As for the fetch.
                if atoms().nth(first).is_none_or(|atom| atom.size != PAGE_SIZE) {
                    return Ok(());
                }
                self.host.set_budget(1000);
                let mut hardware = Hardware { memory, tlb, caches: &mut Idle };
                let part = Range { start: Ipa(range.start.0 + 0x123), size: 0x400 };
                let rewritten = self.tables.rewrite(&mut hardware, part, RULES, |place| place.range().start);
                let place = naive[0].map(|(pa, _)| Pa(pa + 0x123));
                prop_assert_eq!(rewritten.map(|(place, _)| place), place.ok_or(Stage2Error::Apart(part.start)));
                change(&mut naive[..1], &|attributes| {
                    if !attributes.permissions.contains(Permissions::EXECUTE) {
                        return attributes;
                    }
                    let protected = Permissions::READ | Permissions::EXECUTE;
                    let is_protected =
                        attributes.permissions == protected && attributes.software.contains(Software::MAINTAINED);
                    Attributes {
                        permissions: (attributes.permissions - Permissions::EXECUTE)
                            | if is_protected { Permissions::WRITE } else { Permissions::empty() },
                        software: (attributes.software - Software::MAINTAINED) | Software::REWRITTEN,
                        ..attributes
                    }
                });
                Ok(())
            }
            Act::Merge => {
                let tables = self.host.tables();
                let freed = self.tables.merge(memory, tlb, range);
                freed.map(|freed| assert_eq!(freed, tables - self.host.tables()))
            }
        };
        if result.is_err() {
            prop_assert_eq!(result, Err(Stage2Error::OutOfTables));
            prop_assert!(budget < 1000);
            // Halfway done: every page is as before or as wanted. Then do the whole with enough memory.
            self.check_either(before)?;
            return self.step((first, end, act, 1000));
        }
        self.check()
    }

    fn actual(&self, address: Ipa) -> Option<(u64, Attributes)> {
        self.tables.translate(&&self.host, address).map(|mapping| (mapping.pa.0, mapping.attributes))
    }

    /// The first and the last byte of each atom go where they should.
    fn check(&self) -> Result<(), TestCaseError> {
        for (atom, mapped) in atoms().zip(self.naive) {
            prop_assert_eq!(self.actual(atom.start), mapped, "at {:?}", atom.start);
            let last = mapped.map(|(pa, attributes)| (pa + atom.size - 1, attributes));
            prop_assert_eq!(self.actual(Ipa(atom.end().0 - 1)), last, "last of {:?}", atom);
        }
        self.host.settle().map_err(TestCaseError::fail)
    }

    fn check_either(&self, before: Naive) -> Result<(), TestCaseError> {
        for ((atom, wanted), old) in atoms().zip(self.naive).zip(before) {
            let actual = self.actual(atom.start);
            prop_assert!(actual == wanted || actual == old, "at {:?}: {:?}", atom.start, actual);
        }
        self.host.settle().map_err(TestCaseError::fail)
    }

    fn destroy(self) -> Result<(), TestCaseError> {
        self.tables.destroy(&mut &self.host, &mut &self.host);
        prop_assert_eq!(self.host.tables(), 0);
        self.host.settle().map_err(TestCaseError::fail)
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_a_naive_map_and_never_confuses_a_tlb(list in steps(), spoiled in any::<bool>()) {
        let mut world = World::new();
        for mut step in list {
            if !spoiled {
                step.3 = 1000;
            }
            world.step(step)?;
        }
        world.destroy()?;
    }

    /// Whatever is mapped: held, nobody gets there, and what holds it keeps it; open, nobody stores there; released, all is as it was.
    #[test]
    fn what_is_held_is_as_it_was_when_it_is_released(
        list in steps(),
        looks in proptest::collection::vec((0..1536_u64, any::<bool>()), 0..12),
        ends_early in any::<bool>(),
    ) {
        let mut world = World::new();
        for (first, end, act, _) in list {
            world.step((first, end, act, 1000))?;
        }
        world.hold(&looks, ends_early)?;
        world.destroy()?;
    }
}

/// The first gigabytes, in which all that is small lies.
const HELD: Range<Ipa> = Range { start: Ipa(0), size: 3 * GIGABYTE };

impl World {
    fn hold(&mut self, looks: &[(u64, bool)], ends_early: bool) -> Result<(), TestCaseError> {
        self.host.set_budget(1000);
        self.tables.hold(&mut &self.host, &mut &self.host, HELD).unwrap();
        let (mut open, mut released) = (Vec::new(), Vec::new());
        self.check_held(&open, &released)?;
        for &(block, releases) in looks {
            let at = Ipa(block * BLOCK_SIZE + 5 * PAGE_SIZE);
            if releases {
                self.tables.release(&mut &self.host, &mut &self.host, at);
                released.push(block);
            } else {
                self.tables.open(&mut &self.host, &mut &self.host, at);
                open.push(block);
            }
            self.check_held(&open, &released)?;
        }
        for atom in atoms().filter(|atom| HELD.contains_range(*atom)) {
            let over = self.tables.map(&mut &self.host, &mut &self.host, atom.start, Pa(0), PAGE_SIZE, Attributes::RAM);
            if over.is_ok() {
                let page = Range { start: atom.start, size: PAGE_SIZE };
                self.tables.unmap(&mut &self.host, &mut &self.host, page).unwrap();
            }
        }
        self.tables.merge(&mut &self.host, &mut &self.host, HELD).unwrap();
        self.check_held(&open, &released)?;
        if ends_early {
            self.naive
                .iter_mut()
                .zip(atoms())
                .filter(|(_, atom)| HELD.contains_range(*atom))
                .for_each(|(at, _)| *at = None);
            self.tables.unmap(&mut &self.host, &mut &self.host, HELD).unwrap();
        }
        for block in 0..HELD.size / BLOCK_SIZE {
            self.tables.release(&mut &self.host, &mut &self.host, Ipa(block * BLOCK_SIZE));
        }
        self.check()
    }

    fn check_held(&self, open: &[u64], released: &[u64]) -> Result<(), TestCaseError> {
        for (atom, mapped) in atoms().zip(self.naive).filter(|(atom, _)| HELD.contains_range(*atom)) {
            for at in [atom.start, Ipa(atom.end().0 - PAGE_SIZE)] {
                let block = at.0 / BLOCK_SIZE;
                let is_released = released.contains(&block);
                let expected = mapped.filter(|_| is_released || open.contains(&block)).map(|(pa, attributes)| {
                    let is_held = !is_released && attributes.permissions.contains(Permissions::WRITE);
                    let held = Attributes {
                        permissions: attributes.permissions - Permissions::WRITE,
                        software: attributes.software | Software::HELD,
                        ..attributes
                    };
                    (pa + at.0 - atom.start.0, if is_held { held } else { attributes })
                });
                prop_assert_eq!(self.actual(at), expected, "at {:?}, open {:?}, released {:?}", at, open, released);
            }
        }
        self.host.settle().map_err(TestCaseError::fail)
    }
}

/// In a strict guest that executes what is held for the first time, the page is not writable when it is released.
#[test]
fn a_strict_page_that_is_executed_while_it_is_held_stays_read_only() {
    let (host, mut tables) = guest();
    let (page, other) = (GIGABYTE + 7 * PAGE_SIZE, GIGABYTE + 8 * PAGE_SIZE);
    let strict = Rules { policy: Policy::Strict, ..RULES };
    tables.hold(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: 2 * GIGABYTE }).unwrap();
    assert_eq!(want(&host, &mut tables, page, Wanted::Fetch, strict), Allowed::Unmapped);
    tables.open(&mut &host, &mut &host, Ipa(page));
    assert!(matches!(want(&host, &mut tables, page, Wanted::Fetch, strict), Allowed::Now { .. }));
    assert_eq!(want(&host, &mut tables, other, Wanted::Write, strict), Allowed::Never);
    tables.release(&mut &host, &mut &host, Ipa(page));
    let read = Permissions::READ;
    assert_eq!(attributes(&host, &tables, page).permissions, read | Permissions::EXECUTE);
    assert_eq!(attributes(&host, &tables, other), Attributes::RAM);
    host.settle().unwrap();
}

/// 2 GiB of RAM at 1 GiB, as a guest has it.
fn guest() -> (Host, Stage2) {
    let host = Host::new(100, [GIGABYTE, GIGABYTE + 7 * PAGE_SIZE, GIGABYTE + BLOCK_SIZE, 2 * GIGABYTE].into());
    let mut tables = Stage2::new(&mut &host).unwrap();
    let ram = Attributes::RAM;
    tables.map(&mut &host, &mut &host, Ipa(GIGABYTE), Pa(8 * GIGABYTE), 2 * GIGABYTE, ram).unwrap();
    (host, tables)
}

fn level_at(host: &Host, tables: &Stage2, address: u64) -> Level {
    tables.translate(&host, Ipa(address)).unwrap().level
}

#[test]
fn aligned_gigabytes_need_no_table_and_no_invalidation() {
    let (host, tables) = guest();
    assert_eq!(host.tables(), 0);
    assert_eq!(host.take_invalidations(), []);
    assert_eq!(level_at(&host, &tables, 2 * GIGABYTE), Level::One);
    assert_eq!(tables.translate(&&host, Ipa(GIGABYTE + 0x1234)).unwrap().pa, Pa(8 * GIGABYTE + 0x1234));
    assert_eq!(tables.translate(&&host, Ipa(3 * GIGABYTE)), None);
    assert_eq!(tables.translate(&&host, Ipa(u64::MAX)), None);
    tables.destroy(&mut &host, &mut &host);
}

fn fetch(host: &Host, tables: &mut Stage2, address: u64) -> Allowed {
    want(host, tables, address, Wanted::Fetch, RULES)
}

fn want(host: &Host, tables: &mut Stage2, address: u64, wanted: Wanted, rules: Rules) -> Allowed {
    let mut hardware = Hardware { memory: &mut &*host, tlb: &mut &*host, caches: &mut Idle };
    tables.allow(&mut hardware, Ipa(address), wanted, rules).unwrap()
}

fn store(host: &Host, tables: &mut Stage2, address: u64, size: u64, rules: Rules) -> Effects {
    let mut hardware = Hardware { memory: &mut &*host, tlb: &mut &*host, caches: &mut Idle };
    tables.rewrite(&mut hardware, Range { start: Ipa(address), size }, rules, |_| ()).unwrap().1
}

fn attributes(host: &Host, tables: &Stage2, address: u64) -> Attributes {
    tables.translate(&host, Ipa(address)).unwrap().attributes
}

const STRICT: Rules = Rules { policy: Policy::Strict, ..RULES };
const PROTECTED: Permissions = Permissions::READ.union(Permissions::EXECUTE);

#[test]
fn p6_a10_a_fetch_from_a_block_makes_one_page_executable() {
    let (host, mut tables) = guest();
    let fetched = Ipa(GIGABYTE + 7 * PAGE_SIZE + 0x40);
    let effects = Effects { granted: 1, lines: 64, invalidations: 1, splits: 2, ..Effects::default() };
    assert_eq!(fetch(&host, &mut tables, fetched.0), Allowed::Now { effects, crowded: false });
    host.settle().unwrap();
    assert_eq!(host.tables(), 2);
    let executable = |address| attributes(&host, &tables, address) == Attributes::CODE;
    assert!(executable(fetched.0));
    assert!(!executable(fetched.0 - PAGE_SIZE));
    assert!(!executable(fetched.0 + PAGE_SIZE));
    assert_eq!(level_at(&host, &tables, GIGABYTE + BLOCK_SIZE), Level::Two);
    let all = Range { start: Ipa(0), size: 1 << 40 };
    assert_eq!(tables.pages(&&host, all), (2 * GIGABYTE / PAGE_SIZE, 1));
    // The next page of the block costs one entry's invalidation, with its level as hint.
    host.take_invalidations();
    fetch(&host, &mut tables, GIGABYTE);
    let one = Invalidation::Entries { start: Ipa(GIGABYTE), level: Level::Three, count: 1 };
    assert_eq!(host.take_invalidations(), [one]);
    // It is executable now, and a second vCPU that faulted with the first finds it so: no second maintenance.
    assert_eq!(fetch(&host, &mut tables, GIGABYTE), Allowed::Already);
    assert_eq!(host.take_invalidations(), []);
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn p6_a1_what_is_no_fetch_makes_nothing_executable() {
    let (host, mut tables) = guest();
    for wanted in [Wanted::Read, Wanted::Write, Wanted::Walk] {
        assert_eq!(want(&host, &mut tables, GIGABYTE, wanted, RULES), Allowed::Already);
        assert_eq!(attributes(&host, &tables, GIGABYTE), Attributes::RAM);
        assert_eq!(want(&host, &mut tables, 0, wanted, RULES), Allowed::Unmapped);
    }
    assert_eq!(want(&host, &mut tables, 0, Wanted::Fetch, RULES), Allowed::Unmapped);
    assert_eq!(host.take_invalidations(), []);
    // Registers of a device, and a page that is read-only to the guest.
    let (device, read_only) = (Ipa(0), Attributes::RAM.with_permissions(Permissions::READ));
    tables.map(&mut &host, &mut &host, device, Pa(0), PAGE_SIZE, Attributes::DEVICE).unwrap();
    assert_eq!(want(&host, &mut tables, device.0, Wanted::Fetch, RULES), Allowed::Never);
    tables.map(&mut &host, &mut &host, Ipa(PAGE_SIZE), Pa(0), PAGE_SIZE, read_only).unwrap();
    assert_eq!(want(&host, &mut tables, PAGE_SIZE, Wanted::Write, RULES), Allowed::Never);
    assert_eq!(want(&host, &mut tables, PAGE_SIZE, Wanted::Walk, RULES), Allowed::Already);
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn p6_a2_a_page_is_executable_only_behind_its_maintenance() {
    let (host, mut tables) = guest();
    let mut caches = Recorder::default();
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut caches };
    tables.allow(&mut hardware, Ipa(GIGABYTE + 0x40), Wanted::Fetch, RULES).unwrap();
    let page = Range { start: Pa(8 * GIGABYTE), size: PAGE_SIZE };
    assert_eq!(caches.steps, crate::steps(RULES.caches, page, Point::Unification).to_vec());
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn p6_a7_a_store_of_the_hypervisors_takes_execution_away_first() {
    let (host, mut tables) = guest();
    for page in 0..3 {
        fetch(&host, &mut tables, GIGABYTE + page * PAGE_SIZE);
    }
    host.take_invalidations();
    // The last bytes of the first page and the first of the second.
    assert_eq!(
        store(&host, &mut tables, GIGABYTE + PAGE_SIZE - 2, 4, RULES),
        Effects { taken: 2, ..Effects::default() }
    );
    host.settle().unwrap();
    assert_eq!(host.take_invalidations().len(), 2);
    let rewritten = Attributes::RAM.with_software(Software::REWRITTEN);
    for (page, expected) in [(0, rewritten), (1, rewritten), (2, Attributes::CODE)] {
        assert_eq!(attributes(&host, &tables, GIGABYTE + page * PAGE_SIZE), expected);
    }
    // What is not executable costs nothing.
    assert_eq!(store(&host, &mut tables, GIGABYTE, BLOCK_SIZE / 2, RULES).taken, 1);
    host.take_invalidations();
    assert_eq!(store(&host, &mut tables, GIGABYTE, 2 * BLOCK_SIZE, RULES), Effects::default());
    assert_eq!(host.take_invalidations(), []);
    assert!(matches!(fetch(&host, &mut tables, GIGABYTE), Allowed::Now { .. }));
    // Beyond the end of RAM nothing is stored.
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut Idle };
    let behind = Range { start: Ipa(3 * GIGABYTE - 8), size: 16 };
    let result = tables.rewrite(&mut hardware, behind, RULES, |_| panic!("it is not mapped"));
    assert_eq!(result.map(|((), _)| ()), Err(Stage2Error::Apart(Ipa(3 * GIGABYTE))));
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn eager_pages_stay_executable_and_are_maintained_behind_a_store() {
    let host = Host::new(100, [GIGABYTE].into());
    let mut tables = Stage2::new(&mut &host).unwrap();
    let mut caches = Recorder::default();
    let rules = Rules { policy: Policy::Eager, ..RULES };
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut caches };
    let ram = Range { start: Pa(0x4020_0000), size: BLOCK_SIZE };
    let effects = tables.show(&mut hardware, Ipa(GIGABYTE), ram, rules).unwrap();
    assert_eq!((effects.granted, effects.lines, effects.invalidations), (512, 0, 1));
    assert_eq!(hardware.caches.steps[1], Step::InvalidateAll);
    assert_eq!(attributes(&host, &tables, GIGABYTE), Attributes::CODE);
    caches.steps.clear();
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut caches };
    let part = Range { start: Ipa(GIGABYTE + 60), size: 8 };
    let (place, effects) = tables.rewrite(&mut hardware, part, rules, |place| place.range()).unwrap();
    assert_eq!(place, Range { start: Pa(0x4020_003c), size: 8 });
    assert_eq!((effects.lines, effects.taken), (2, 0));
    assert_eq!(caches.steps, crate::steps(RULES.caches, place, Point::Unification).to_vec());
    assert_eq!(level_at(&host, &tables, GIGABYTE), Level::Two);
    tables.destroy(&mut &host, &mut &host);
}

/// What a guest waits for is shown to it by pieces of 64 KiB. When all is there the block is as if it had been shown as one, but where some
/// of it was executed.
#[test]
fn a_block_that_is_shown_by_pieces_becomes_one_entry() {
    const PIECE: u64 = 16 * PAGE_SIZE;
    for executes in [false, true] {
        let host = Host::new(100, [GIGABYTE, GIGABYTE + 5 * PIECE, GIGABYTE + BLOCK_SIZE - PAGE_SIZE].into());
        let mut tables = Stage2::new(&mut &host).unwrap();
        for nth in (0..32).map(|nth| nth * 13 % 32) {
            let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut Idle };
            let (at, pa) = (Ipa(GIGABYTE + nth * PIECE), Pa(0x4020_0000 + nth * PIECE));
            assert_eq!(tables.translate(&&host, at), None);
            tables.show(&mut hardware, at, Range { start: pa, size: PIECE }, RULES).unwrap();
            assert_eq!(tables.translate(&&host, at).unwrap().pa, pa);
            if executes && nth == 5 {
                assert!(matches!(want(&host, &mut tables, at.0, Wanted::Fetch, RULES), Allowed::Now { .. }));
            }
        }
        let block = Range { start: Ipa(GIGABYTE), size: BLOCK_SIZE };
        assert_eq!(tables.merge(&mut &host, &mut &host, block).unwrap(), usize::from(!executes));
        let level = if executes { Level::Three } else { Level::Two };
        assert_eq!(level_at(&host, &tables, GIGABYTE), level);
        assert_eq!(tables.pages(&&host, block), (512, u64::from(executes)));
        tables.destroy(&mut &host, &mut &host);
    }
}

#[test]
fn p6_a15_a_strict_page_is_writable_or_executable() {
    let (host, mut tables) = guest();
    want(&host, &mut tables, GIGABYTE, Wanted::Fetch, STRICT);
    assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, PROTECTED);
    // The hardware's own store into a table is one too.
    for wanted in [Wanted::Write, Wanted::Walk] {
        let effects = Effects { taken: 1, ..Effects::default() };
        let written = want(&host, &mut tables, GIGABYTE, wanted, STRICT);
        assert_eq!(written, Allowed::Now { effects, crowded: false }, "{wanted:?}");
        assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, Attributes::RAM.permissions);
        assert!(matches!(want(&host, &mut tables, GIGABYTE, Wanted::Fetch, STRICT), Allowed::Now { .. }));
        assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, PROTECTED);
    }
    host.settle().unwrap();
    // What the hypervisor stores there leaves it to the guest's stores as well.
    store(&host, &mut tables, GIGABYTE, 8, STRICT);
    assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, Attributes::RAM.permissions);
    // A guest that makes no progress gets both permissions, in either case, and the caches agree at that moment.
    let both = |effects: Effects| (effects.lines, effects.taken) == (64, 0);
    want(&host, &mut tables, GIGABYTE, Wanted::Fetch, STRICT);
    let given = want(&host, &mut tables, GIGABYTE, Wanted::Write, RULES);
    assert!(matches!(given, Allowed::Now { effects, .. } if both(effects)));
    assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, Permissions::all());
    assert_eq!(want(&host, &mut tables, GIGABYTE, Wanted::Write, STRICT), Allowed::Already);
    assert_eq!(want(&host, &mut tables, GIGABYTE, Wanted::Fetch, STRICT), Allowed::Already);
    tables.destroy(&mut &host, &mut &host);
}

/// Promotes to the end; what was done, and in how many pieces.
fn promote(host: &Host, tables: &mut Stage2, address: u64) -> (Effects, usize) {
    let mut hardware = Hardware { memory: &mut &*host, tlb: &mut &*host, caches: &mut Idle };
    let (mut done, mut pieces) = (Effects::default(), 0);
    loop {
        pieces += 1;
        match tables.promote(&mut hardware, Ipa(address), RULES).unwrap() {
            Promotion::Unfinished(effects) => {
                assert!(effects.lines <= 16 * 64, "a piece is bounded");
                done = done.and(effects);
            }
            Promotion::Finished(effects) => return (done.and(effects), pieces),
        }
        host.settle().unwrap();
    }
}

/// Fetches from `count` pages of the first block in ascending order; says at which fetches it was crowded.
fn fetch_many(host: &Host, tables: &mut Stage2, count: u64) -> Vec<u64> {
    let crowded = |&page: &u64| {
        let allowed = fetch(host, tables, GIGABYTE + page * PAGE_SIZE);
        matches!(allowed, Allowed::Now { crowded: true, .. })
    };
    (0..count).filter(crowded).collect()
}

#[test]
fn a_block_of_which_most_is_executable_is_one_entry_again() {
    let (host, mut tables) = guest();
    assert_eq!(fetch_many(&host, &mut tables, MOST as u64), [MOST as u64 - 1]);
    let (done, pieces) = promote(&host, &mut tables, GIGABYTE + 0x1234);
    assert_eq!((done.granted, done.promotions, pieces), (128, 1, 9));
    assert_eq!(level_at(&host, &tables, GIGABYTE), Level::Two);
    assert_eq!(attributes(&host, &tables, GIGABYTE + BLOCK_SIZE - 1), Attributes::CODE);
    assert_eq!(attributes(&host, &tables, GIGABYTE + BLOCK_SIZE), Attributes::RAM);
    // A page that the hypervisor stores into leaves it in pieces, and so it stays: it will be stored into again.
    assert_eq!(store(&host, &mut tables, GIGABYTE, 8, RULES), Effects { taken: 1, splits: 1, ..Effects::default() });
    host.settle().unwrap();
    let effects = Effects { granted: 1, lines: 64, invalidations: 1, ..Effects::default() };
    assert_eq!(fetch(&host, &mut tables, GIGABYTE), Allowed::Now { effects, crowded: false });
    assert_eq!(promote(&host, &mut tables, GIGABYTE), (Effects::default(), 1));
    assert_eq!(level_at(&host, &tables, GIGABYTE), Level::Three);
    tables.destroy(&mut &host, &mut &host);
}

/// Whatever the order in which a whole block is executed, it is seen that most of it is, and not before.
#[test]
fn a_crowded_block_is_seen_in_any_order() {
    for step in [1, 3, 5, 17, 101, 511] {
        let (host, mut tables) = guest();
        let pages = (0..512).map(|nth| nth * step % 512);
        let crowded = |(_, page): &(usize, u64)| {
            let allowed = fetch(&host, &mut tables, GIGABYTE + page * PAGE_SIZE);
            matches!(allowed, Allowed::Now { crowded: true, .. })
        };
        let (nth, _) = pages.enumerate().find(crowded).unwrap();
        assert!((MOST - 1..MOST + 32).contains(&nth), "by steps of {step} after {nth} fetches");
        tables.destroy(&mut &host, &mut &host);
    }
}

#[test]
fn no_block_is_promoted_too_early_or_with_pages_that_must_not() {
    let (host, mut tables) = guest();
    assert_eq!(fetch_many(&host, &mut tables, MOST as u64 - 1), []);
    // The guest may only read one page behind those: that page keeps the block in pieces.
    let page = Range { start: Ipa(GIGABYTE + 400 * PAGE_SIZE), size: PAGE_SIZE };
    tables.protect(&mut &host, &mut &host, page, Permissions::READ).unwrap();
    assert_eq!(fetch_many(&host, &mut tables, 400), []);
    assert_eq!(promote(&host, &mut tables, GIGABYTE), (Effects::default(), 1));
    assert_eq!(attributes(&host, &tables, page.start.0).permissions, Permissions::READ);
    // Half a block is mapped and all of it executed: no entry may take the other half's place.
    let start = Ipa(4 * GIGABYTE);
    tables.map(&mut &host, &mut &host, start, Pa(0), 448 * PAGE_SIZE, Attributes::CODE).unwrap();
    assert_eq!(promote(&host, &mut tables, start.0), (Effects::default(), 1));
    assert_eq!(tables.translate(&&host, Ipa(start.0 + 448 * PAGE_SIZE)), None);
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn without_memory_for_a_table_the_whole_block_changes() {
    let host = Host::new(10, [GIGABYTE, GIGABYTE + BLOCK_SIZE - PAGE_SIZE].into());
    let mut tables = Stage2::new(&mut &host).unwrap();
    tables.map(&mut &host, &mut &host, Ipa(GIGABYTE), Pa(0), 2 * BLOCK_SIZE, Attributes::RAM).unwrap();
    host.set_budget(0);
    let Allowed::Now { effects, .. } = fetch(&host, &mut tables, GIGABYTE + PAGE_SIZE) else { panic!("it may") };
    assert_eq!((effects.granted, effects.lines, effects.splits), (512, 512 * 64, 0));
    assert_eq!(tables.pages(&&host, Range { start: Ipa(GIGABYTE), size: 2 * BLOCK_SIZE }), (1024, 512));
    assert_eq!(store(&host, &mut tables, GIGABYTE + 8, 2 * PAGE_SIZE, RULES).taken, 512);
    host.settle().unwrap();
    assert_eq!(tables.pages(&&host, Range { start: Ipa(GIGABYTE), size: 2 * BLOCK_SIZE }), (1024, 0));
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn effects_are_counted_together() {
    let one = Effects { granted: 3, taken: 5, lines: 7, invalidations: 11, splits: 13, promotions: 17 };
    let two = Effects { granted: 6, taken: 10, lines: 14, invalidations: 22, splits: 26, promotions: 34 };
    assert_eq!(one.and(one), two);
}

#[test]
fn what_fails_to_map_leaves_nothing_behind() {
    let (host, mut tables) = guest();
    let start = Ipa(GIGABYTE - 3 * BLOCK_SIZE);
    let result = tables.map(&mut &host, &mut &host, start, Pa(0), 4 * BLOCK_SIZE, Attributes::RAM);
    assert_eq!(result, Err(Stage2Error::AlreadyMapped(Ipa(GIGABYTE))));
    assert_eq!(tables.translate(&&host, start), None);
    host.settle().unwrap();
    tables.destroy(&mut &host, &mut &host);
}

#[test]
fn malformed_ranges_are_refused() {
    let (host, mut tables) = guest();
    let mut map = |ipa, pa, size| tables.map(&mut &host, &mut &host, Ipa(ipa), Pa(pa), size, Attributes::RAM);
    assert_eq!(map(0x800, 0, 0x1000), Err(Stage2Error::Unaligned(Ipa(0x800))));
    assert_eq!(map(0, 0, 0x1800), Err(Stage2Error::Unaligned(Ipa(0))));
    assert_eq!(map(0, 0, 0), Err(Stage2Error::Unaligned(Ipa(0))));
    assert_eq!(map(0, 0x10, 0x1000), Err(Stage2Error::BadOutput(Pa(0x10))));
    for beyond in [1 << 48, 1 << 49, !(PAGE_SIZE - 1)] {
        assert_eq!(map(0, beyond, 0x1000), Err(Stage2Error::BadOutput(Pa(beyond))));
    }
    let last = (1 << 48) - 0x1000;
    assert_eq!(map(0, last, 0x2000), Err(Stage2Error::BadOutput(Pa(last))));
    assert_eq!(map(0, last, 0x1000), Ok(()));
    assert_eq!(map((1 << 40) - 0x1000, 0, 0x1000), Ok(()));
    assert_eq!(map(1 << 40, 0, 0x1000), Err(Stage2Error::OutOfSpace(Ipa(1 << 40))));
    assert_eq!(map((1 << 40) - 0x1000, 0, 0x2000), Err(Stage2Error::OutOfSpace(Ipa((1 << 40) - 0x1000))));
    let huge = !(PAGE_SIZE - 1);
    assert_eq!(map(0x1000, 0, huge), Err(Stage2Error::OutOfSpace(Ipa(0x1000))));
    tables.destroy(&mut &host, &mut &host);
}
