//! From addresses to blocks and frames, and back.

use units::{BLOCK_SIZE, PAGE_SIZE, Pa, Range};

use crate::carved::{FRAMES, FrameSet};
use crate::{FrameAllocator, FramesError};

/// The part of a range that lies in one block: frames `first..end` of it.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) block: usize,
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl Part {
    pub(crate) const fn is_whole(self) -> bool {
        self.first == 0 && self.end == FRAMES
    }

    pub(crate) fn frames(self) -> FrameSet {
        FrameSet::span(self.first, self.end)
    }

    pub(crate) const fn count(self) -> u64 {
        (self.end - self.first) as u64
    }
}

impl FrameAllocator<'_> {
    /// The address at which `block` begins.
    pub(crate) const fn address(&self, block: usize) -> Pa {
        Pa(self.base.0 + block as u64 * BLOCK_SIZE)
    }

    /// The bytes of `frames` frames from frame `first` of `block` on.
    pub(crate) const fn frame_range(&self, block: usize, first: usize, frames: usize) -> Range<Pa> {
        let start = self.address(block).0 + first as u64 * PAGE_SIZE;
        Range { start: Pa(start), size: frames as u64 * PAGE_SIZE }
    }

    /// The block that holds `address`, if the metadata spans it.
    pub(crate) fn block_of(&self, address: Pa) -> Option<usize> {
        let block = (address.0.checked_sub(self.base.0)? / BLOCK_SIZE) as usize;
        (block < self.blocks.len()).then_some(block)
    }

    /// All that the metadata spans.
    fn span(&self) -> Range<Pa> {
        Range { start: self.base, size: self.blocks.len() as u64 * BLOCK_SIZE }
    }

    pub(crate) fn check_span(&self, range: Range<Pa>) -> Result<(), FramesError> {
        if self.span().contains_range(range) { Ok(()) } else { Err(FramesError::OutsideSpan(range.start)) }
    }

    /// What of `range` the metadata spans.
    pub(crate) fn clip(&self, range: Range<Pa>) -> Option<Range<Pa>> {
        let start = range.start.max(self.base);
        let end = range.end().min(self.span().end());
        (start < end).then(|| Range { start, size: end.0 - start.0 })
    }

    /// `range`, made of whole frames and within the span, block by block.
    pub(crate) fn parts(&self, range: Range<Pa>) -> impl DoubleEndedIterator<Item = Part> + use<> {
        let first_frame = ((range.start.0 - self.base.0) / PAGE_SIZE) as usize;
        let end_frame = ((range.end().0 - self.base.0) / PAGE_SIZE) as usize;
        (first_frame / FRAMES..end_frame.div_ceil(FRAMES)).map(move |block| Part {
            block,
            first: first_frame.saturating_sub(block * FRAMES),
            end: (end_frame - block * FRAMES).min(FRAMES),
        })
    }

    /// The blocks that lie in `range` whole.
    pub(crate) fn whole_blocks(&self, range: Range<Pa>) -> core::ops::Range<usize> {
        let first = (range.start.0 - self.base.0).div_ceil(BLOCK_SIZE) as usize;
        let end = ((range.end().0 - self.base.0) / BLOCK_SIZE) as usize;
        first..end.max(first)
    }

    /// The parts of blocks at both ends of `range` that are not whole.
    pub(crate) fn edge_parts(&self, range: Range<Pa>) -> impl Iterator<Item = Part> + use<> {
        let mut parts = self.parts(range);
        let first = parts.next();
        let last = parts.next_back();
        first.into_iter().chain(last).filter(|part| !part.is_whole())
    }
}

/// The whole frames in `range`; `None` if there is none.
pub(crate) fn inward(range: Range<Pa>) -> Option<Range<Pa>> {
    let start = range.start.align_up(PAGE_SIZE)?;
    let end = range.end().align_down(PAGE_SIZE);
    (start < end).then(|| Range { start, size: end.0 - start.0 })
}

/// All frames of which a part lies in `range`.
pub(crate) fn outward(range: Range<Pa>) -> Range<Pa> {
    if range.is_empty() {
        return range;
    }
    let start = range.start.align_down(PAGE_SIZE);
    let end = range.end().align_up(PAGE_SIZE).unwrap_or(Pa(u64::MAX).align_down(PAGE_SIZE));
    Range { start, size: end.0 - start.0 }
}
