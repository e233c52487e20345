//! What the TLBs are told, what becomes of tables, and what is held: exactly, at the edges.
//!
//! Too little that is told leaves a CPU with what was; too much costs a guest all its translations.

extern crate std;

use super::{attributes, fetch, guest, level_at};
use crate::model::Host;
use crate::{Attributes, Invalidation, Level, Permissions, Software, Stage2, Stage2Error};
use std::vec::Vec;
use units::{BLOCK_SIZE, GIGABYTE, Ipa, PAGE_SIZE, Pa, Range};

fn pages(start: u64, count: u64) -> Range<Ipa> {
    Range { start: Ipa(start), size: count * PAGE_SIZE }
}

fn told(start: u64, level: Level, count: usize) -> Vec<Invalidation> {
    [Invalidation::Entries { start: Ipa(start), level, count }].into()
}

/// Up to 32 entries are named one by one.
#[test]
fn no_more_is_invalidated_than_has_changed() {
    let (host, mut tables) = guest();
    fetch(&host, &mut tables, GIGABYTE);
    host.take_invalidations();
    let first = GIGABYTE + 16 * PAGE_SIZE;
    let mut permissions = [Permissions::READ, Attributes::RAM.permissions].into_iter().cycle();
    let mut protect = |range| {
        tables.protect(&mut &host, &mut &host, range, permissions.next().unwrap()).unwrap();
        host.settle().unwrap();
        host.take_invalidations()
    };
    for count in [1, 2, 3, 31, 32] {
        assert_eq!(protect(pages(first, count)), told(first, Level::Three, count as usize));
        assert_eq!(protect(pages(first, count)), told(first, Level::Three, count as usize));
    }
    assert_eq!(protect(pages(first, 33)), [Invalidation::All]);
    protect(pages(first, 33));
    assert_eq!(
        protect(Range { start: Ipa(GIGABYTE + BLOCK_SIZE), size: 5 * BLOCK_SIZE }),
        told(GIGABYTE + BLOCK_SIZE, Level::Two, 5)
    );
    tables.destroy(&mut &host, &mut &host);
}

/// A VMID is used again: the next VM must not find what this one had.
#[test]
fn when_tables_are_destroyed_nothing_of_them_stays() {
    for first in [0, 1, 7] {
        let start = first * GIGABYTE;
        let host = Host::new(100, [start, start + 2 * GIGABYTE - PAGE_SIZE].into());
        let mut tables = Stage2::new(&mut &host).unwrap();
        tables.map(&mut &host, &mut &host, Ipa(start), Pa(0), 2 * GIGABYTE, Attributes::RAM).unwrap();
        tables.destroy(&mut &host, &mut &host);
        host.settle().unwrap();
        assert_eq!(host.take_invalidations(), told(start, Level::One, 2));
        assert_eq!(host.tables(), 0);
    }
}

/// Tables below tables, linked or in the place of a block that is held.
#[test]
fn when_tables_are_destroyed_all_of_them_are_freed() {
    for is_held in [false, true] {
        let (host, mut tables) = guest();
        for at in [GIGABYTE, GIGABYTE + 5 * BLOCK_SIZE, 2 * GIGABYTE] {
            fetch(&host, &mut tables, at);
        }
        assert_eq!(host.tables(), 5);
        if is_held {
            tables.hold(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: 2 * GIGABYTE }).unwrap();
        }
        tables.destroy(&mut &host, &mut &host);
        host.settle().unwrap();
        assert_eq!(host.tables(), 0);
    }
}

/// 1 GiB of which one block is in pages, with a page that is read-only, and one block is executable as a whole.
fn varied() -> (Host, Stage2) {
    let probes = [0, 1, 5, 511].map(|page| GIGABYTE + page * PAGE_SIZE).into_iter();
    let others =
        [GIGABYTE + BLOCK_SIZE, GIGABYTE + 2 * BLOCK_SIZE, 2 * GIGABYTE - PAGE_SIZE, 2 * GIGABYTE, 3 * GIGABYTE];
    let host = Host::new(100, probes.chain(others).collect());
    let mut tables = Stage2::new(&mut &host).unwrap();
    tables.map(&mut &host, &mut &host, Ipa(GIGABYTE), Pa(8 * GIGABYTE), 3 * GIGABYTE, Attributes::RAM).unwrap();
    fetch(&host, &mut tables, GIGABYTE);
    tables.protect(&mut &host, &mut &host, pages(GIGABYTE + PAGE_SIZE, 1), Permissions::READ).unwrap();
    let block = Range { start: Ipa(GIGABYTE + BLOCK_SIZE), size: BLOCK_SIZE };
    tables.update(&mut &host, &mut &host, block, |_| Attributes::CODE).unwrap();
    host.take_invalidations();
    (host, tables)
}

/// What the tables say of the places that [`varied`] is about.
fn places(host: &Host, tables: &Stage2) -> Vec<Option<Attributes>> {
    let offsets = [0, PAGE_SIZE, 5 * PAGE_SIZE, 511 * PAGE_SIZE, BLOCK_SIZE, 2 * BLOCK_SIZE, GIGABYTE - PAGE_SIZE];
    let at = |offset| tables.translate(&host, Ipa(GIGABYTE + offset)).map(|mapping| mapping.attributes);
    offsets.map(at).into()
}

/// Each kind of entry: a table with entries that are writable and that are not, a block, a part of 1 GiB.
#[test]
fn what_is_held_is_closed_opened_and_released() {
    let (host, mut tables) = varied();
    let before = places(&host, &tables);
    tables.hold(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: GIGABYTE }).unwrap();
    host.settle().unwrap();
    assert_eq!(places(&host, &tables), [None; 7]);
    // The next gigabyte is left alone, and in one piece.
    assert_eq!(
        (level_at(&host, &tables, 2 * GIGABYTE), level_at(&host, &tables, 3 * GIGABYTE)),
        (Level::One, Level::One)
    );
    assert_eq!(host.take_invalidations(), [Invalidation::All]);
    for block in [0, 1, 2, 511] {
        tables.open(&mut &host, &mut &host, Ipa(GIGABYTE + block * BLOCK_SIZE + 3 * PAGE_SIZE));
        host.settle().unwrap();
    }
    let held = |attributes: Attributes| Attributes {
        permissions: attributes.permissions - Permissions::WRITE,
        software: attributes.software | Software::HELD,
        ..attributes
    };
    let expected = before.iter().enumerate().map(|(at, &was)| if at == 1 { was } else { was.map(held) });
    assert_eq!(places(&host, &tables), expected.collect::<Vec<_>>(), "the second page was read-only before");
    assert_eq!(host.take_invalidations(), [], "no TLB knew anything of it");
    for block in [0, 1, 2, 511] {
        tables.release(&mut &host, &mut &host, Ipa(GIGABYTE + block * BLOCK_SIZE + 3 * PAGE_SIZE));
        host.settle().unwrap();
    }
    assert_eq!(places(&host, &tables), before);
    let block = |nth| Invalidation::Entries { start: Ipa(GIGABYTE + nth * BLOCK_SIZE), level: Level::Two, count: 1 };
    assert_eq!(host.take_invalidations(), [Invalidation::All, block(1), block(2), block(511)]);
    tables.destroy(&mut &host, &mut &host);
}

/// Of the pages of a block only those are invalidated that become writable again.
#[test]
fn what_is_released_is_invalidated_where_it_was_held() {
    let (host, mut tables) = varied();
    tables.protect(&mut &host, &mut &host, pages(GIGABYTE, 512), Permissions::READ).unwrap();
    tables.protect(&mut &host, &mut &host, pages(GIGABYTE + 5 * PAGE_SIZE, 2), Attributes::RAM.permissions).unwrap();
    tables.hold(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: GIGABYTE }).unwrap();
    tables.open(&mut &host, &mut &host, Ipa(GIGABYTE));
    host.take_invalidations();
    tables.release(&mut &host, &mut &host, Ipa(GIGABYTE + BLOCK_SIZE - 1));
    host.settle().unwrap();
    assert_eq!(host.take_invalidations(), told(GIGABYTE + 5 * PAGE_SIZE, Level::Three, 2));
    // Again there is nothing to do, nor for what was never held.
    tables.release(&mut &host, &mut &host, Ipa(GIGABYTE));
    tables.release(&mut &host, &mut &host, Ipa(2 * GIGABYTE));
    tables.open(&mut &host, &mut &host, Ipa(GIGABYTE));
    assert_eq!(host.take_invalidations(), []);
    assert_eq!(attributes(&host, &tables, GIGABYTE + 5 * PAGE_SIZE).permissions, Attributes::RAM.permissions);
    tables.destroy(&mut &host, &mut &host);
}

/// A few blocks in the middle, over the edge of a gigabyte.
#[test]
fn what_is_held_begins_and_ends_at_a_block() {
    let (host, mut tables) = varied();
    let start = 2 * GIGABYTE - 2 * BLOCK_SIZE;
    tables.hold(&mut &host, &mut &host, Range { start: Ipa(start), size: 3 * BLOCK_SIZE }).unwrap();
    host.settle().unwrap();
    for (block, is_held) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
        let at = start - BLOCK_SIZE + block * BLOCK_SIZE;
        assert_eq!(tables.translate(&&host, Ipa(at)).is_none(), is_held, "{block}");
        assert_eq!(tables.translate(&&host, Ipa(at + BLOCK_SIZE - 1)).is_none(), is_held, "{block}");
    }
    for (start, size) in [(PAGE_SIZE, BLOCK_SIZE), (GIGABYTE, PAGE_SIZE), (GIGABYTE + PAGE_SIZE, PAGE_SIZE)] {
        let range = Range { start: Ipa(start), size };
        assert_eq!(tables.hold(&mut &host, &mut &host, range), Err(Stage2Error::Unaligned(Ipa(start))));
    }
    assert_eq!(level_at(&host, &tables, GIGABYTE), Level::Three, "nothing has changed");
    tables.destroy(&mut &host, &mut &host);
}

/// With the mark that it is held, and held once more.
#[test]
fn what_becomes_writable_while_it_is_held_is_so_behind_it() {
    let (host, mut tables) = guest();
    for again in [false, true] {
        let hold = |tables: &mut Stage2| {
            tables.hold(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: GIGABYTE }).unwrap();
            tables.open(&mut &host, &mut &host, Ipa(GIGABYTE));
            assert_eq!(attributes(&host, tables, GIGABYTE).permissions, Permissions::READ);
        };
        hold(&mut tables);
        tables.protect(&mut &host, &mut &host, pages(GIGABYTE, 1), Attributes::RAM.permissions).unwrap();
        if again {
            hold(&mut tables);
        }
        tables.release(&mut &host, &mut &host, Ipa(GIGABYTE));
        host.settle().unwrap();
        assert_eq!(attributes(&host, &tables, GIGABYTE), Attributes::RAM, "held again: {again}");
    }
    tables.destroy(&mut &host, &mut &host);
}

/// A page that is not mapped, though its neighbours are: no change of attributes maps it, to whatever address.
#[test]
fn a_hole_among_pages_stays_one() {
    let (host, mut tables) = varied();
    let hole = pages(GIGABYTE + 5 * PAGE_SIZE, 1);
    tables.unmap(&mut &host, &mut &host, hole).unwrap();
    host.take_invalidations();
    tables.protect(&mut &host, &mut &host, hole, Permissions::all()).unwrap();
    tables.update(&mut &host, &mut &host, hole, |_| Attributes::DEVICE).unwrap();
    assert_eq!(tables.translate(&&host, hole.start), None);
    assert_eq!(host.take_invalidations(), []);
    tables.destroy(&mut &host, &mut &host);
}

/// What becomes of another memory type is broken before it is made.
#[test]
fn a_page_of_another_memory_type_is_broken_first() {
    let (host, mut tables) = varied();
    for becomes in [Attributes::DEVICE, Attributes::RAM] {
        tables.update(&mut &host, &mut &host, pages(GIGABYTE + 5 * PAGE_SIZE, 1), |_| becomes).unwrap();
        host.settle().unwrap();
        assert_eq!(attributes(&host, &tables, GIGABYTE + 5 * PAGE_SIZE), becomes);
    }
    tables.destroy(&mut &host, &mut &host);
}

/// Nothing of the entry around it either.
#[test]
fn an_empty_range_has_no_pages() {
    let (host, mut tables) = guest();
    for at in [GIGABYTE, GIGABYTE + 8, GIGABYTE + PAGE_SIZE, 2 * GIGABYTE + BLOCK_SIZE] {
        assert_eq!(tables.pages(&&host, Range { start: Ipa(at), size: 0 }), (0, 0));
    }
    for at in [GIGABYTE, GIGABYTE + PAGE_SIZE] {
        let over = tables.map(&mut &host, &mut &host, Ipa(at), Pa(0), PAGE_SIZE, Attributes::RAM);
        assert_eq!(over, Err(Stage2Error::AlreadyMapped(Ipa(at))));
        assert_eq!(
            (level_at(&host, &tables, at), host.tables()),
            (Level::One, 0),
            "what it began with stays as it was"
        );
    }
    tables.destroy(&mut &host, &mut &host);
}

/// Both addresses and the size say how large an entry can be, and nothing is mapped beside the range.
#[test]
fn entries_are_as_large_as_both_addresses_and_the_size_allow() {
    use Level::{One, Three, Two};
    let cases = [
        (GIGABYTE, GIGABYTE, GIGABYTE, [One, One]),
        (GIGABYTE, 0, 3 * GIGABYTE, [One, One]),
        (GIGABYTE, BLOCK_SIZE, GIGABYTE, [Two, Two]),
        (GIGABYTE + BLOCK_SIZE, BLOCK_SIZE, GIGABYTE, [Two, Two]),
        (GIGABYTE, 0, GIGABYTE + BLOCK_SIZE + PAGE_SIZE, [One, Three]),
        (GIGABYTE, 0, GIGABYTE - PAGE_SIZE, [Two, Three]),
        (GIGABYTE - PAGE_SIZE, GIGABYTE - PAGE_SIZE, GIGABYTE + PAGE_SIZE, [Three, One]),
        (GIGABYTE, PAGE_SIZE, BLOCK_SIZE, [Three, Three]),
        (GIGABYTE + PAGE_SIZE, 0, BLOCK_SIZE, [Three, Three]),
        (GIGABYTE + PAGE_SIZE, PAGE_SIZE, BLOCK_SIZE, [Three, Three]),
        (GIGABYTE, 0, BLOCK_SIZE - PAGE_SIZE, [Three, Three]),
    ];
    for (ipa, pa, size, levels) in cases {
        let host = Host::new(100, [ipa - PAGE_SIZE, ipa, ipa + size - PAGE_SIZE, ipa + size].into());
        let mut tables = Stage2::new(&mut &host).unwrap();
        tables.map(&mut &host, &mut &host, Ipa(ipa), Pa(pa), size, Attributes::RAM).unwrap();
        host.settle().unwrap();
        let ends = [ipa, ipa + size - 1].map(|at| tables.translate(&&host, Ipa(at)).unwrap());
        assert_eq!(ends.map(|end| end.level), levels, "{ipa:#x} to {pa:#x}, {size:#x} bytes");
        assert_eq!(ends.map(|end| end.pa), [Pa(pa), Pa(pa + size - 1)]);
        let all = Range { start: Ipa(0), size: 1 << 40 };
        assert_eq!(tables.pages(&&host, all), (size / PAGE_SIZE, 0));
        tables.destroy(&mut &host, &mut &host);
        assert_eq!(host.tables(), 0);
    }
}

/// Pages that follow one another become a block where a block can be, and nothing becomes one in their place.
#[test]
fn only_what_a_block_would_say_is_joined() {
    let whole = Range { start: Ipa(GIGABYTE), size: BLOCK_SIZE };
    let shown = |host: &Host, tables: &Stage2, page: u64| {
        tables.translate(&host, Ipa(GIGABYTE + page * PAGE_SIZE)).map(|mapping| (mapping.pa, mapping.level))
    };
    // To an address where no block can begin.
    let host = Host::new(100, [GIGABYTE, GIGABYTE + BLOCK_SIZE - PAGE_SIZE].into());
    let mut tables = Stage2::new(&mut &host).unwrap();
    tables.map(&mut &host, &mut &host, whole.start, Pa(PAGE_SIZE), BLOCK_SIZE, Attributes::RAM).unwrap();
    assert_eq!(tables.merge(&mut &host, &mut &host, whole), Ok(0));
    assert_eq!(shown(&host, &tables, 511), Some((Pa(BLOCK_SIZE), Level::Three)));
    // The first page alone, and all but the first, keep the table; without any page it goes, and the one above it.
    let last = pages(GIGABYTE + 511 * PAGE_SIZE, 1);
    for (gone, left) in [(pages(GIGABYTE, 1), Some(511)), (pages(GIGABYTE + PAGE_SIZE, 510), Some(511)), (last, None)] {
        tables.unmap(&mut &host, &mut &host, gone).unwrap();
        assert_eq!(tables.merge(&mut &host, &mut &host, whole), Ok(usize::from(left.is_none())), "{gone:?}");
        assert_eq!(shown(&host, &tables, 511).is_some(), left.is_some());
        host.settle().unwrap();
    }
    assert_eq!(tables.merge(&mut &host, &mut &host, Range { start: Ipa(GIGABYTE), size: GIGABYTE }), Ok(1));
    assert_eq!(host.tables(), 0);
    // And to one where it can.
    tables.map(&mut &host, &mut &host, whole.start, Pa(0), BLOCK_SIZE, Attributes::RAM).unwrap();
    for (page, permissions) in [(0, Permissions::READ), (0, Attributes::RAM.permissions)] {
        tables.protect(&mut &host, &mut &host, pages(GIGABYTE + page * PAGE_SIZE, 1), permissions).unwrap();
        let joined = usize::from(permissions == Attributes::RAM.permissions);
        assert_eq!(tables.merge(&mut &host, &mut &host, whole), Ok(joined));
    }
    assert_eq!(shown(&host, &tables, 511), Some((Pa(BLOCK_SIZE - PAGE_SIZE), Level::Two)));
    host.settle().unwrap();
    tables.destroy(&mut &host, &mut &host);
}
