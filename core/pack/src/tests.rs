//! Values come back; damage is noticed, and takes no memory; a lack of memory is reported.

use std::vec::Vec;

use proptest::prelude::*;
use units::{Ipa, Range};

use crate::testing::assert_bounded;
use crate::{Boxed, Damaged, Part, Reader, Value, Writer};

#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

#[derive(Clone, PartialEq, Debug)]
struct Inner {
    flag: bool,
    word: u32,
}

crate::value!(Inner { flag, word });

#[derive(Clone, PartialEq, Debug)]
struct Outer {
    inner: Option<Inner>,
    several: Vec<u16>,
    fixed: [u64; 3],
    pair: (u8, usize),
    place: Range<Ipa>,
}

#[derive(PartialEq, Debug)]
struct Versioned {
    word: u32,
}

impl Versioned {
    const VERSION: u16 = 2;
}

crate::value!(Versioned versioned { word });

impl Outer {
    const VERSION: u16 = 7;
}

crate::value!(Outer as "outer" { inner, several[9], fixed, pair, place });

fn outer() -> impl Strategy<Value = Outer> {
    let numbers = any::<([u64; 3], u8, u32, u64, u64)>();
    (proptest::option::of(any::<(bool, u32)>()), proptest::collection::vec(any::<u16>(), 0..9), numbers).prop_map(
        |(inner, several, (fixed, small, count, start, size))| Outer {
            inner: inner.map(|(flag, word)| Inner { flag, word }),
            several,
            fixed,
            pair: (small, count as usize),
            place: Range { start: Ipa(start), size },
        },
    )
}

fn packed(part: &impl Part) -> Vec<u8> {
    let mut out = Writer::new();
    out.part(part);
    out.finish().unwrap()
}

proptest! {
    #[test]
    fn what_was_written_is_read(value in outer(), behind in any::<u8>()) {
        let mut bytes = packed(&value);
        bytes.push(behind);
        let mut from = Reader::new(&bytes);
        prop_assert_eq!(from.part::<Outer>(), Ok(value));
        prop_assert_eq!((from.left(), u8::unpack(&mut from)), (1, Ok(behind)));
    }

    #[test]
    fn no_piece_of_it_is_enough(value in outer(), cut in any::<prop::sample::Index>()) {
        let bytes = packed(&value);
        let bytes = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(Reader::new(bytes).part::<Outer>(), Err(Damaged::Short));
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = Outer::unpack(&mut Reader::new(&bytes)) {
            let mut out = Writer::new();
            value.pack(&mut out);
            let again = out.finish().unwrap();
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
        }
    }
}

#[test]
fn the_bytes_are_as_documented() {
    let value = Inner { flag: true, word: 0x1234 };
    let value = Outer {
        inner: Some(value),
        several: Vec::from([9]),
        fixed: [1, 2, 3],
        pair: (4, 5),
        place: Range { start: Ipa(6), size: 7 },
    };
    let bytes = packed(&value);
    let begin = [5, b'o', b'u', b't', b'e', b'r', 7, 0, 61, 0, 0, 0, 1, 1, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0];
    assert_eq!(&bytes[..begin.len()], &begin);
    assert_eq!(bytes.len(), 12 + 61);
}

#[test]
fn a_version_within_a_section() {
    let mut out = Writer::new();
    Versioned { word: 5 }.pack(&mut out);
    let mut bytes = out.finish().unwrap();
    assert_eq!(bytes, [2, 0, 5, 0, 0, 0]);
    assert_eq!(Versioned::unpack(&mut Reader::new(&bytes)), Ok(Versioned { word: 5 }));
    bytes[0] = 3;
    assert_eq!(Versioned::unpack(&mut Reader::new(&bytes)), Err(Damaged::Version("Versioned", 3, 2)));
}

fn outer_of_nothing() -> Outer {
    Outer { inner: None, several: Vec::new(), fixed: [0; 3], pair: (0, 0), place: Range { start: Ipa(0), size: 0 } }
}

#[test]
fn what_is_wrong_is_said() {
    let good = packed(&outer_of_nothing());
    let read = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Reader::new(&bytes).part::<Outer>().unwrap_err()
    };
    assert_eq!(read(|bytes| bytes[1] = b'O'), Damaged::Missing("outer"));
    assert_eq!(read(|bytes| bytes[6] = 8), Damaged::Version("outer", 8, 7));
    assert_eq!(read(|bytes| bytes[12] = 2), Damaged::Impossible("a flag is neither 0 nor 1"));
    // As many elements as there can be, and nothing behind; and one more.
    assert_eq!(read(|bytes| (bytes[13], bytes[8]) = (9, 5)), Damaged::Short);
    assert_eq!(read(|bytes| bytes[13] = 10), Damaged::Many("Outer.several", 10, 9));
    assert_eq!(read(|bytes| bytes[13..17].fill(0xff)), Damaged::Many("Outer.several", u32::MAX, 9));
    let longer = read(|bytes| {
        bytes[8] += 1;
        bytes.push(0);
    });
    assert_eq!(longer, Damaged::Long("outer"));
    assert_eq!(
        std::format!("{}", Damaged::Many("Outer.several", 10, 9)),
        "the saved state is damaged: its Outer.several has 10 values, and no VM's has more than 9"
    );
    assert_eq!(
        std::format!("{}", Damaged::Version("outer", 8, 7)),
        "the saved state's outer has version 8; version 7 is known here"
    );
}

/// A list of more than there can be, or than there is, takes no memory; one that may be takes what it has, and no more.
#[test]
fn a_list_takes_the_memory_that_it_needs() {
    let list = |bytes: &[u8], most| {
        let (read, took) = scarce::most_held(|| Reader::new(bytes).list::<u64>(most, "list").map(|all| all.len()));
        (read, took)
    };
    let mut bytes = Vec::from([0; 4 + 80]);
    bytes[0] = 10;
    assert_eq!(list(&bytes, 10), (Ok(10), 80));
    assert_eq!(list(&bytes, 9), (Err(Damaged::Many("list", 10, 9)), 0));
    bytes[..4].copy_from_slice(&81_u32.to_le_bytes());
    assert_eq!(list(&bytes, 100), (Err(Damaged::Short), 0), "each would have a byte or more");
    bytes[..4].copy_from_slice(&80_u32.to_le_bytes());
    assert_eq!(list(&bytes, 100), (Err(Damaged::Short), 640));
}

#[test]
fn without_memory_nothing_is_made() {
    let bytes = [2, 0, 0, 0, 7, 8];
    let list = |allocations| scarce::with_only(allocations, || Reader::new(&bytes).list::<u8>(2, "list"));
    assert_eq!(list(0), Err(Damaged::NoMemory));
    assert_eq!(list(1), Ok(Vec::from([7, 8])));
    let mut boxed = scarce::with_only(1, || Boxed::new([9_u64; 4])).expect("there was room");
    boxed[3] = 8;
    assert_eq!(*boxed, [9, 9, 9, 8]);
    assert_eq!(scarce::with_only(0, || Boxed::new(5_u8)), Err(Damaged::NoMemory));
    let mut out = Writer::new();
    out.taken_out::<Outer>(Err(Damaged::NoMemory));
    assert_eq!(out.finish(), Err(Damaged::NoMemory));
    let written = |allocations| {
        scarce::with_only(allocations, || {
            let mut out = Writer::new();
            out.list(&[7_u8, 8]);
            out.finish()
        })
    };
    assert_eq!(written(0), Err(Damaged::NoMemory));
    assert_eq!(written(1), Ok(Vec::from(bytes)));
}

/// Other crates' tests of their lists rest on this one.
#[test]
fn a_bound_is_exact_or_its_test_fails() {
    let holds = |list: &'static str, most| {
        let with = |count| Outer { several: std::vec![1; count], ..outer_of_nothing() };
        std::panic::catch_unwind(|| assert_bounded(list, most, with)).is_ok()
    };
    assert!(holds("Outer.several", 9));
    assert!(!holds("Outer.several", 8) && !holds("Outer.several", 10) && !holds("Outer.fixed", 9));
}
