//! A kernel that is not an `Image`: its segments, each with its address, and its entry.

use super::VmProblem;
use serde::{Deserialize, Serialize};

/// At most this many pieces.
pub const MAX_SEGMENTS: usize = 16;

/// A piece of a program. Its bytes are in the kernel's blob, behind those of the pieces before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The guest's physical address that it is loaded to.
    pub address: u64,
    /// How many bytes it has in the blob.
    pub file_bytes: u64,
    /// How many it has in memory; the rest is zero. 0 only in entries that are not used.
    pub size: u64,
}

/// How a program is loaded and entered. Whether it fits into the machine's map is judged where that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// The first instruction's address.
    pub entry: u64,
    /// The pieces, one behind the other; entries that are not used come last and are all zero.
    pub segments: [Segment; MAX_SEGMENTS],
}

impl Program {
    /// A program of these pieces; `None` if there are too many.
    #[must_use]
    pub fn new(entry: u64, pieces: &[Segment]) -> Option<Self> {
        let mut segments = [Segment::default(); MAX_SEGMENTS];
        segments.get_mut(..pieces.len())?.copy_from_slice(pieces);
        Some(Self { entry, segments })
    }

    /// The pieces in use, each with where its bytes begin in the blob.
    pub fn pieces(&self) -> impl Iterator<Item = (Segment, u64)> + '_ {
        let used = self.segments.iter().take_while(|segment| segment.size != 0);
        used.scan(0, |next: &mut u64, segment| {
            let start = *next;
            *next = next.saturating_add(segment.file_bytes);
            Some((*segment, start))
        })
    }

    /// Whether the pieces are the blob of `length` bytes, to the last one.
    pub(super) fn check(&self, length: u64) -> Result<(), VmProblem> {
        let used = self.pieces().count();
        let rest_is_empty = self.segments.iter().skip(used).all(|segment| *segment == Segment::default());
        let fit = self.pieces().all(|(segment, _)| segment.file_bytes <= segment.size);
        let bytes = self.pieces().fold(0_u64, |sum, (segment, _)| sum.saturating_add(segment.file_bytes));
        if used > 0 && rest_is_empty && fit && bytes == length { Ok(()) } else { Err(VmProblem::Program) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Program, Segment};

    #[test]
    fn a_program_has_pieces_that_are_its_blob() {
        let piece = |size, file_bytes| Segment { size, file_bytes, ..Segment::default() };
        let check = |pieces: &[Segment], length| Program::new(0, pieces).is_some_and(|it| it.check(length).is_ok());
        assert!(check(&[piece(8, 5), piece(8, 8)], 13) && check(&[piece(8, 0)], 0));
        assert!(!check(&[], 0), "no pieces");
        assert!(!check(&[piece(8, 5), piece(0, 0), piece(8, 8)], 5), "one behind the end");
        assert!(!check(&[piece(8, 9)], 9) && !check(&[piece(8, 5)], 6) && !check(&[piece(8, 5)], 4));
    }
}
