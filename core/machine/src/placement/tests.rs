//! Programs with fixed addresses, and what is put beside them.

extern crate std;

use super::{DEVICE_TREE_SIZE, Placement, PlacementError, Segment};
use crate::{MachinePlan, RAM_BASE, Spec, Timers};
use alloc::vec::Vec;
use proptest::prelude::*;
use units::{Hz, Ipa, Range};

const MIB: u64 = 1 << 20;

fn plan(memory: u64) -> MachinePlan {
    MachinePlan::new(Spec {
        name: "rtos",
        vcpus: 1,
        memory_bytes: memory,
        ipa_bits: 40,
        virtio: &[],
        generic_watchdog: false,
        enclave: false,
        counter_frequency: Hz(1_000_000),
        timers: Timers::Cpu,
    })
    .unwrap()
}

/// A segment so many bytes from the start of RAM.
fn segment(offset: u64, size: u64) -> Segment {
    Segment { range: Range { start: Ipa(RAM_BASE.0.wrapping_add(offset)), size }, file_bytes: size.min(0x1000) }
}

fn place(memory: u64, segments: &[Segment], initrd: u64) -> Result<Placement, PlacementError> {
    let entry = segments.first().map_or(RAM_BASE, |segment| segment.range.start);
    Placement::of_program(&plan(memory), segments, entry, initrd)
}

#[test]
fn the_tree_is_where_ram_begins_unless_a_segment_is() {
    let behind = place(64 * MIB, &[segment(0x28_0000, 0x1234)], 0x5000).unwrap();
    assert_eq!(behind.device_tree, Range { start: RAM_BASE, size: DEVICE_TREE_SIZE });
    assert_eq!(behind.entry, Ipa(0x4028_0000));
    assert_eq!(behind.kernel, Range { start: Ipa(0x4028_0000), size: 0x1234 });
    assert_eq!(behind.initrd, Some(Range { start: Ipa(0x4200_0000), size: 0x5000 }));
    // What a program uses behind its end is unknown: the middle of memory is safer than what follows it.
    let at_start = place(64 * MIB, &[segment(0, 0x1234)], 0x5000).unwrap();
    assert_eq!(at_start.device_tree.start, Ipa(0x4200_0000));
    assert_eq!(at_start.initrd.unwrap().start, Ipa(0x4201_0000));
    let far = place(1024 * MIB, &[segment(0x20_0000, 1)], 1).unwrap();
    assert_eq!(far.initrd.unwrap().start, Ipa(0x4800_0000));
    let in_the_way = place(64 * MIB, &[segment(32 * MIB, 0x1801), segment(0x8_0000, 4)], 1).unwrap();
    assert_eq!(in_the_way.initrd.unwrap().start, Ipa(0x4200_2000));
    let smallest = place(2 * MIB, &[segment(0, 0x1000)], 0).unwrap();
    assert_eq!((smallest.device_tree.start, smallest.initrd), (Ipa(0x4010_0000), None));
}

#[test]
fn segments_that_cannot_be_are_refused_with_their_addresses() {
    let said = |segments: &[Segment]| std::format!("{}", place(64 * MIB, segments, 0).unwrap_err());
    let outside = said(&[segment(64 * MIB - 0x1000, 0x1001)]);
    assert_eq!(
        outside,
        "the segment of 0x1001 bytes at 0x43fff000 is not inside the VM's RAM, which is 0x4000000 bytes at 0x40000000"
    );
    assert!(said(&[segment(RAM_BASE.0.wrapping_neg(), 1)]).contains("at 0x0 is not inside"));
    assert!(said(&[segment(0x1000, u64::MAX)]).contains("0xffffffffffffffff bytes at 0x40001000"));
    let overlap = said(&[segment(0x1000, 0x1001), segment(0x2000, 1)]);
    assert_eq!(overlap, "the segments of 0x1001 bytes at 0x40001000 and of 0x1 bytes at 0x40002000 overlap");
    assert!(said(&[]).contains("0 segments"));
    assert!(said(&[segment(0, 1); 17]).contains("17 segments"));
    let most: Vec<Segment> = (0..16).map(|number| segment(number << 16, 1)).collect();
    assert!(place(64 * MIB, &most, 0).is_ok());
    let short = Segment { file_bytes: 3, ..segment(0, 2) };
    assert!(said(&[short]).contains("3 bytes in the file and only 2 in memory"));
}

#[test]
fn the_entry_is_an_instruction_of_the_program() {
    let plan = plan(64 * MIB);
    let with = |entry| Placement::of_program(&plan, &[segment(0x1000, 0x1000)], Ipa(entry), 0);
    assert!(with(0x4000_1ffc).is_ok());
    for entry in [0x4000_0ffc, 0x4000_2000, 0x4000_1002, 0] {
        assert_eq!(with(entry), Err(PlacementError::Entry(Ipa(entry))));
    }
}

#[test]
fn what_finds_no_room_is_named() {
    let no_tree = place(2 * MIB, &[segment(0, 2 * MIB)], 0);
    assert_eq!(no_tree, Err(PlacementError::NoGap { what: "the device tree", size: DEVICE_TREE_SIZE }));
    let no_initrd = place(4 * MIB, &[segment(MIB, MIB)], 3 * MIB);
    assert_eq!(no_initrd, Err(PlacementError::NoGap { what: "the initrd", size: 3 * MIB }));
}

proptest! {
    #[test]
    fn all_parts_stay_inside_and_apart(
        memory in 1_u64..64,
        segments in prop::collection::vec((0_u64..128 * MIB, 0_u64..8 * MIB), 0..6),
        initrd in 0_u64..8 * MIB,
    ) {
        let segments: Vec<_> = segments.into_iter().map(|(offset, size)| segment(offset, size)).collect();
        if let Ok(placed) = place(memory << 21, &segments, initrd) {
            let ranges = segments.iter().map(|segment| segment.range);
            let mut parts: Vec<_> = ranges.chain([placed.device_tree]).chain(placed.initrd).collect();
            prop_assert!(parts.iter().all(|&part| plan(memory << 21).ram().contains_range(part)));
            prop_assert!(segments.iter().all(|segment| placed.kernel.contains_range(segment.range)));
            parts.sort();
            let apart = parts.windows(2).all(|pair| !pair[0].overlaps(pair[1]));
            prop_assert!(apart);
            prop_assert_eq!(placed.initrd.is_some(), initrd != 0);
        }
    }
}
