//! Records of carved blocks: four bits for each 4 KiB frame.

use crate::Owner;
use crate::state::Contents;

/// Frames in a block.
pub(crate) const FRAMES: usize = 512;
const WORDS: usize = FRAMES / 64;

/// Some of a block's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameSet([u64; WORDS]);

impl FrameSet {
    pub(crate) const NONE: Self = Self([0; WORDS]);
    pub(crate) const ALL: Self = Self([u64::MAX; WORDS]);

    /// The frames from `first` up to, not including, `end`; both at most 512.
    pub(crate) fn span(first: usize, end: usize) -> Self {
        let below = |limit: usize, word: usize| match limit.saturating_sub(word * 64) {
            0 => 0,
            bits @ 1..=63 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        Self(core::array::from_fn(|word| below(end, word) & !below(first, word)))
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(core::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub(crate) fn intersection(self, other: Self) -> Self {
        Self(core::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(core::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::NONE
    }

    pub(crate) fn contains_all(self, other: Self) -> bool {
        other.without(self).is_empty()
    }

    pub(crate) fn count(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first `count` neighbours, aligned to `count`, that are all in the set; `count` is a power of two up to 64.
    pub(crate) fn find(self, count: usize) -> Option<usize> {
        for (number, &word) in self.0.iter().enumerate() {
            // Fold the word onto itself: a bit survives if it and its `count - 1` upper neighbours are set.
            let mut starts = word;
            let mut folded = 1;
            while folded < count {
                starts &= starts >> folded;
                folded <<= 1;
            }
            starts &= aligned_starts(count);
            if starts != 0 {
                return Some(number * 64 + starts.trailing_zeros() as usize);
            }
        }
        None
    }
}

/// The bits of a word at multiples of `count`, a power of two up to 64.
const fn aligned_starts(count: usize) -> u64 {
    match count {
        1 => u64::MAX,
        2 => 0x5555_5555_5555_5555,
        4 => 0x1111_1111_1111_1111,
        8 => 0x0101_0101_0101_0101,
        16 => 0x0001_0001_0001_0001,
        32 => 0x0000_0001_0000_0001,
        _ => 1,
    }
}

/// The record of one carved block. The caller hands in an array of them: as many as there may be carved blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CarvedBlock {
    /// Whether the record is that of a block at all.
    pub(crate) in_use: bool,
    /// Number of the block.
    pub(crate) block: u32,
    /// For whom frames are used; `None` while no frame is.
    pub(crate) owner: Option<Owner>,
    /// Frames that are no RAM.
    pub(crate) absent: FrameSet,
    /// Frames that are [`Owner::Reserved`].
    pub(crate) reserved: FrameSet,
    /// Frames that `owner` has.
    pub(crate) used: FrameSet,
    /// Frames that may hold something of a former owner.
    pub(crate) dirty: FrameSet,
    /// How many frames are free.
    pub(crate) free: u16,
}

impl CarvedBlock {
    /// A record that no block has.
    pub const UNUSED: Self = Self {
        in_use: false,
        block: 0,
        owner: None,
        absent: FrameSet::NONE,
        reserved: FrameSet::NONE,
        used: FrameSet::NONE,
        dirty: FrameSet::NONE,
        free: 0,
    };

    /// The record of a free block that is about to be divided.
    pub(crate) fn of_free_block(block: u32, contents: Contents) -> Self {
        let dirty = match contents {
            Contents::Zeros => FrameSet::NONE,
            Contents::Anything => FrameSet::ALL,
        };
        Self { in_use: true, block, dirty, free: FRAMES as u16, ..Self::UNUSED }
    }

    /// The frames that can be had.
    pub(crate) fn available(&self) -> FrameSet {
        FrameSet::ALL.without(self.absent).without(self.reserved).without(self.used)
    }

    /// Counts the free frames anew after a change of the sets; returns the frames gained or lost.
    pub(crate) fn recount(&mut self) -> i64 {
        let before = i64::from(self.free);
        self.free = self.available().count() as u16;
        i64::from(self.free) - before
    }

    /// Whether the block could be whole again: all of it is RAM, and free.
    pub(crate) fn is_wholly_free(&self) -> bool {
        usize::from(self.free) == FRAMES
    }

    /// Whether `owner` may have frames of this block.
    pub(crate) fn serves(&self, owner: Owner) -> bool {
        self.in_use && self.free > 0 && (self.owner.is_none() || self.owner == Some(owner))
    }
}

#[cfg(test)]
mod tests {
    use super::{FRAMES, FrameSet};

    #[test]
    fn spans_count_what_they_hold() {
        for (first, end) in [(0, 0), (0, 512), (3, 64), (63, 65), (64, 128), (500, 512)] {
            assert_eq!(FrameSet::span(first, end).count(), (end - first) as u64, "{first}..{end}");
        }
        assert_eq!(FrameSet::span(0, FRAMES), FrameSet::ALL);
    }

    #[test]
    fn find_aligns_to_the_size() {
        let set = FrameSet::span(3, 512);
        assert_eq!(set.find(1), Some(3));
        assert_eq!(set.find(2), Some(4));
        assert_eq!(set.find(8), Some(8));
        assert_eq!(set.find(16), Some(16));
        assert_eq!(set.find(32), Some(32));
        assert_eq!(set.find(64), Some(64));
        assert_eq!(FrameSet::span(3, 9).find(4), Some(4));
        assert_eq!(FrameSet::span(3, 9).find(8), None);
    }
}
