//! Random operations against a naive map, under the eyes of the model TLB; and the special cases.

extern crate std;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;
use std::vec::Vec;
use units::{BLOCK_SIZE, GIGABYTE, Ipa, PAGE_SIZE, Pa, Range};

use crate::model::Host;
use crate::{Attributes, Invalidation, Level, Permissions, Stage2, Stage2Error};

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
    Revoke,
    Merge,
}

type Step = (usize, usize, Act, usize);

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
        1 => Just(Act::Revoke),
        3 => Just(Act::Merge),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
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

    fn step(&mut self, (first, end, act, budget): Step) -> Result<(), TestCaseError> {
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
                // The first page only, if that is an atom of its own.
                if atoms().nth(first).is_none_or(|atom| atom.size != PAGE_SIZE) {
                    return Ok(());
                }
                change(&mut naive[..1], &|attributes| Attributes {
                    permissions: attributes.permissions | Permissions::EXECUTE,
                    software: attributes.software | crate::Software::MAINTAINED,
                    ..attributes
                });
                self.tables.grant_execute(memory, tlb, Ipa(range.start.0 + 0x123))
            }
            Act::Revoke => {
                change(naive, &|attributes| Attributes {
                    permissions: attributes.permissions - Permissions::EXECUTE,
                    software: attributes.software - crate::Software::MAINTAINED,
                    ..attributes
                });
                self.tables.revoke_execute(memory, tlb, range)
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

#[test]
fn a_fetch_from_a_block_makes_one_page_executable() {
    let (host, mut tables) = guest();
    let fetched = Ipa(GIGABYTE + 7 * PAGE_SIZE + 0x40);
    tables.grant_execute(&mut &host, &mut &host, fetched).unwrap();
    host.settle().unwrap();
    assert_eq!(host.tables(), 2);
    let executable = |address| tables.translate(&&host, Ipa(address)).unwrap().attributes == Attributes::CODE;
    assert!(executable(fetched.0));
    assert!(!executable(fetched.0 - PAGE_SIZE));
    assert!(!executable(fetched.0 + PAGE_SIZE));
    assert_eq!(level_at(&host, &tables, GIGABYTE + BLOCK_SIZE), Level::Two);
    let mut code = 0;
    tables.visit(&&host, Range { start: Ipa(0), size: 1 << 40 }, |_, mapping| {
        code += u32::from(mapping.attributes == Attributes::CODE);
    });
    assert_eq!(code, 1);
    // The next page of the block costs one entry's invalidation, with its level as hint.
    host.take_invalidations();
    tables.grant_execute(&mut &host, &mut &host, Ipa(GIGABYTE)).unwrap();
    let one = Invalidation::Entries { start: Ipa(GIGABYTE), level: Level::Three, count: 1 };
    assert_eq!(host.take_invalidations(), [one]);
    // Once both have lost it again, the gigabyte can be whole again.
    let ram = Range { start: Ipa(GIGABYTE), size: 2 * GIGABYTE };
    tables.revoke_execute(&mut &host, &mut &host, ram).unwrap();
    assert_eq!(tables.merge(&mut &host, &mut &host, ram), Ok(2));
    host.settle().unwrap();
    assert_eq!(level_at(&host, &tables, GIGABYTE), Level::One);
    tables.destroy(&mut &host, &mut &host);
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
    assert_eq!(map(0, 1 << 48, 0x1000), Err(Stage2Error::BadOutput(Pa(1 << 48))));
    assert_eq!(map(1 << 40, 0, 0x1000), Err(Stage2Error::OutOfSpace(Ipa(1 << 40))));
    assert_eq!(map((1 << 40) - 0x1000, 0, 0x2000), Err(Stage2Error::OutOfSpace(Ipa((1 << 40) - 0x1000))));
    let huge = !(PAGE_SIZE - 1);
    assert_eq!(map(0x1000, 0, huge), Err(Stage2Error::OutOfSpace(Ipa(0x1000))));
    tables.destroy(&mut &host, &mut &host);
}
