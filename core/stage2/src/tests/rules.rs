//! What may become executable, writable, or one entry: one rule at a time, at the edges that random operations seldom come to.

extern crate std;

use super::{Idle, PROTECTED, RULES, Recorder, STRICT, attributes, fetch, guest, level_at, promote, store, want};
use crate::model::Host;
use crate::{
    Allowed, Attributes, Caches, Effects, Hardware, Level, MOST, Permissions, Point, Policy, Promotion, Rules,
    Software, Stage2, Stage2Error, Step,
};
use cpu::exit::Wanted;
use units::{BLOCK_SIZE, GIGABYTE, Ipa, PAGE_SIZE, Pa, Range};

/// Gives one page of the guest these permissions.
fn protect(host: &Host, tables: &mut Stage2, address: u64, permissions: Permissions) {
    let page = Range { start: Ipa(address), size: PAGE_SIZE };
    tables.protect(&mut &*host, &mut &*host, page, permissions).unwrap();
}

/// A page that may not be read: who reads it is not told to try again, for ever.
#[test]
fn what_may_not_be_read_never_is() {
    let (host, mut tables) = guest();
    for permissions in [Permissions::empty(), Permissions::EXECUTE] {
        protect(&host, &mut tables, GIGABYTE, permissions);
        for wanted in [Wanted::Read, Wanted::Walk, Wanted::Write] {
            assert_eq!(want(&host, &mut tables, GIGABYTE, wanted, RULES), Allowed::Never, "{permissions:?} {wanted:?}");
        }
    }
    tables.destroy(&mut &host, &mut &host);
}

/// Code that is made read-only, or less, was not so because it is executable: no store makes it writable.
#[test]
fn what_is_read_only_for_another_reason_stays_so() {
    for permissions in [Permissions::READ, Permissions::EXECUTE, Permissions::empty()] {
        for rules in [RULES, STRICT] {
            let (host, mut tables) = guest();
            want(&host, &mut tables, GIGABYTE, Wanted::Fetch, rules);
            protect(&host, &mut tables, GIGABYTE, permissions);
            assert_eq!(want(&host, &mut tables, GIGABYTE, Wanted::Write, rules), Allowed::Never);
            store(&host, &mut tables, GIGABYTE, 8, rules);
            let left = permissions - Permissions::EXECUTE;
            assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, left, "{permissions:?} {rules:?}");
            tables.destroy(&mut &host, &mut &host);
        }
    }
    // What the guest may only read, and executes, is read-only still.
    let (host, mut tables) = guest();
    protect(&host, &mut tables, GIGABYTE, Permissions::READ);
    assert!(matches!(fetch(&host, &mut tables, GIGABYTE), Allowed::Now { .. }));
    assert_eq!(attributes(&host, &tables, GIGABYTE).permissions, PROTECTED);
    tables.destroy(&mut &host, &mut &host);
}

/// What is shown to an eager guest was cleaned as data, however far the guest looks: only what was executed there must go.
#[test]
fn what_an_eager_guest_is_shown_is_not_cleaned_again() {
    for point in [Point::Unification, Point::Coherency] {
        let host = Host::new(100, [GIGABYTE].into());
        let mut tables = Stage2::new(&mut &host).unwrap();
        let mut caches = Recorder::default();
        let rules = Rules { policy: Policy::Eager, point, ..RULES };
        let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut caches };
        let ram = Range { start: Pa(0x4020_0000), size: BLOCK_SIZE };
        let effects = tables.show(&mut hardware, Ipa(GIGABYTE), ram, rules).unwrap();
        assert_eq!((effects.lines, effects.invalidations), (0, 1));
        let steps = [Step::WaitForClean, Step::InvalidateAll, Step::WaitForInvalidation, Step::Synchronize];
        assert_eq!(caches.steps, steps);
        tables.destroy(&mut &host, &mut &host);
    }
}

/// Caches with which all that is asked for is done already.
struct Nothing;

impl Caches for Nothing {
    fn carry_out(&mut self, _: Step) -> u64 {
        0
    }
}

#[test]
fn what_was_not_done_is_not_counted() {
    let (host, mut tables) = guest();
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut Nothing };
    let allowed = tables.allow(&mut hardware, Ipa(GIGABYTE), Wanted::Fetch, RULES).unwrap();
    let effects = Effects { granted: 1, splits: 2, ..Effects::default() };
    assert_eq!(allowed, Allowed::Now { effects, crowded: false });
    tables.destroy(&mut &host, &mut &host);
}

/// However often the hypervisor stores into a page and the guest executes it.
#[test]
fn what_the_hypervisor_stores_into_keeps_its_block_in_pieces() {
    let (host, mut tables) = guest();
    for stores in 1..4 {
        fetch(&host, &mut tables, GIGABYTE);
        store(&host, &mut tables, GIGABYTE, 8, RULES);
        let rewritten = Attributes::RAM.with_software(Software::REWRITTEN);
        assert_eq!(attributes(&host, &tables, GIGABYTE), rewritten, "after {stores}");
    }
    let crowded = |&page: &u64| {
        let allowed = fetch(&host, &mut tables, GIGABYTE + page * PAGE_SIZE);
        matches!(allowed, Allowed::Now { crowded: true, .. })
    };
    assert_eq!((0..512).find(crowded), None);
    assert_eq!(promote(&host, &mut tables, GIGABYTE), (Effects::default(), 1));
    tables.destroy(&mut &host, &mut &host);
}

/// Whichever pages of it were executed, alone or beside others: what is executable already stays so, and is not counted again.
#[test]
fn a_block_is_promoted_around_what_is_executable_in_it() {
    for step in [1, 3, 5, 17, 101, 511] {
        let (host, mut tables) = guest();
        let crowded = |nth: &u64| {
            let page = nth * step % 512;
            let allowed = fetch(&host, &mut tables, GIGABYTE + page * PAGE_SIZE);
            matches!(allowed, Allowed::Now { crowded: true, .. })
        };
        let executed = (0..512).find(crowded).unwrap() + 1;
        let (done, _) = promote(&host, &mut tables, GIGABYTE);
        assert_eq!((done.granted, done.promotions), (512 - executed, 1), "by steps of {step}");
        assert_eq!(level_at(&host, &tables, GIGABYTE), Level::Two);
        assert_eq!(attributes(&host, &tables, GIGABYTE), Attributes::CODE);
        tables.destroy(&mut &host, &mut &host);
    }
}

/// A strict guest that makes no progress gets both permissions for a page at a time. That most pages of a block have come to that makes
/// the others neither executable nor, once they are, writable.
#[test]
fn no_page_of_a_strict_guest_becomes_executable_with_its_neighbours() {
    let (host, mut tables) = guest();
    for page in 0..MOST as u64 {
        fetch(&host, &mut tables, GIGABYTE + page * PAGE_SIZE);
    }
    let (last, at) = (GIGABYTE + 511 * PAGE_SIZE, Ipa(GIGABYTE));
    let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut Idle };
    assert_eq!(tables.promote(&mut hardware, at, STRICT), Ok(Promotion::Finished(Effects::default())));
    assert_eq!(attributes(&host, &tables, last), Attributes::RAM);
    let effects = Effects { granted: 1, lines: 64, invalidations: 1, ..Effects::default() };
    let fetched = want(&host, &mut tables, last, Wanted::Fetch, STRICT);
    assert_eq!(fetched, Allowed::Now { effects, crowded: false });
    assert_eq!(attributes(&host, &tables, last).permissions, PROTECTED);
    tables.destroy(&mut &host, &mut &host);
}

/// With the memory for a table that splits an entry of 1 GiB, and for no second one, the block becomes executable; with none, nothing.
#[test]
fn as_much_is_split_as_there_are_tables_for() {
    for tables_left in 0..3 {
        for rules in [RULES, STRICT] {
            let (host, mut tables) = guest();
            host.set_budget(tables_left);
            let mut hardware = Hardware { memory: &mut &host, tlb: &mut &host, caches: &mut Idle };
            let (address, all) = (GIGABYTE + 7 * PAGE_SIZE, Range { start: Ipa(GIGABYTE), size: GIGABYTE });
            let allowed = tables.allow(&mut hardware, Ipa(address), Wanted::Fetch, rules);
            let granted = [0, 512, 1][tables_left];
            if granted == 0 {
                assert_eq!(allowed, Err(Stage2Error::OutOfTables));
                assert_eq!(attributes(&host, &tables, address), Attributes::RAM);
            } else {
                let splits = tables_left as u64;
                let effects = Effects { granted, lines: 64 * granted, invalidations: 1, splits, ..Effects::default() };
                assert_eq!(allowed, Ok(Allowed::Now { effects, crowded: false }));
            }
            assert_eq!(tables.pages(&&host, all), (GIGABYTE / PAGE_SIZE, granted));
            host.settle().unwrap();
            if granted != 0 {
                let taken = Effects { taken: granted, ..Effects::default() };
                assert_eq!(store(&host, &mut tables, address, 8, rules), taken);
                assert_eq!(tables.pages(&&host, all), (GIGABYTE / PAGE_SIZE, 0));
            }
            tables.destroy(&mut &host, &mut &host);
        }
    }
}
