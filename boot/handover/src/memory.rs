//! Firmware's map of memory (UEFI 2.11, section 7.2.3) in few ranges.
//!
//! Once firmware has been left, that map is what is true of memory; a device tree may tell less, or older things. Firmware's map has
//! dozens of entries, by what each was allocated for. The hypervisor asks two questions: what is RAM, and what of it is somebody
//! else's for ever. What firmware needed only for itself, and what the loader has allocated, is free; where the hypervisor, its bundle
//! and its tree are, it keeps itself.

use alloc::vec::Vec;
use units::{Pa, Range};

/// What becomes of an entry of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// RAM that may be used.
    Free,
    /// RAM that is to be left as it is: firmware runs in it when it is called, or its tables are there.
    Kept,
    /// No RAM, or none that can be used as such.
    Foreign,
}

/// Firmware's map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Map {
    /// All RAM, in ascending order; neighbours are one range.
    pub memory: Vec<Range<Pa>>,
    /// What of it is kept, likewise.
    pub kept: Vec<Range<Pa>>,
}

impl Map {
    /// From the map's entries, in any order: a range in bytes, and its use. Entries that overlap or lead beyond the end of all addresses
    /// are firmware's mistake; of what overlaps, what is kept stays kept.
    #[must_use]
    pub fn new(entries: impl Iterator<Item = (Range<Pa>, Use)>) -> Self {
        let (mut memory, mut kept) = (Vec::new(), Vec::new());
        for (range, use_) in entries {
            if range.size == 0 || range.start.0.checked_add(range.size).is_none() || use_ == Use::Foreign {
                continue;
            }
            memory.push(range);
            if use_ == Use::Kept {
                kept.push(range);
            }
        }
        Self { memory: merged(memory), kept: merged(kept) }
    }
}

fn merged(mut ranges: Vec<Range<Pa>>) -> Vec<Range<Pa>> {
    ranges.sort_by_key(|range| range.start.0);
    let mut merged: Vec<Range<Pa>> = Vec::new();
    for range in ranges {
        match merged.last_mut().filter(|last| last.end().0 >= range.start.0) {
            Some(last) => last.size = last.size.max(range.end().0 - last.start.0),
            None => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn range(start: u64, size: u64) -> Range<Pa> {
        Range { start: Pa(start), size }
    }

    #[test]
    fn neighbours_are_one_range() {
        let entries = [
            (range(0x5000, 0x1000), Use::Kept),
            (range(0x4000, 0x1000), Use::Free),
            (range(0x6000, 0x2000), Use::Kept),
            (range(0x9000, 0x1000), Use::Foreign),
            (range(0xa000, 0x1000), Use::Free),
            (range(0xb000, 0), Use::Free),
            (range(u64::MAX - 1, 3), Use::Kept),
        ];
        let map = Map::new(entries.into_iter());
        assert_eq!(map.memory, vec![range(0x4000, 0x4000), range(0xa000, 0x1000)]);
        assert_eq!(map.kept, vec![range(0x5000, 0x3000)]);
    }

    #[derive(Clone, Copy, Debug)]
    struct Entry(u64, u64, Use);

    fn entry() -> impl Strategy<Value = Entry> {
        let use_ = prop_oneof![Just(Use::Free), Just(Use::Kept), Just(Use::Foreign)];
        (0_u64..64, 0_u64..16, use_).prop_map(|(start, size, use_)| Entry(start, size, use_))
    }

    proptest! {
        /// By a list of all bytes: each is RAM and kept if an entry says so, and ranges neither touch nor are out of order.
        #[test]
        fn each_byte_is_what_an_entry_says(entries in prop::collection::vec(entry(), 0..20)) {
            let map = Map::new(entries.iter().map(|&Entry(start, size, use_)| (range(start, size), use_)));
            for byte in 0..96 {
                let said = |which: &dyn Fn(Use) -> bool| {
                    entries.iter().any(|&Entry(start, size, use_)| which(use_) && (start..start + size).contains(&byte))
                };
                let has = |ranges: &[Range<Pa>]| ranges.iter().any(|range| (range.start.0..range.end().0).contains(&byte));
                prop_assert_eq!(has(&map.memory), said(&|use_| use_ != Use::Foreign));
                prop_assert_eq!(has(&map.kept), said(&|use_| use_ == Use::Kept));
            }
            for ranges in [&map.memory, &map.kept] {
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end().0 < pair[1].start.0));
            }
        }
    }
}
