//! Where the memory of a saved VM is in its file, so that it can be read piece by piece in any order.
//!
//! A guest that is restored runs before its memory has come, and waits for what it touches. The file has the order of its pages, so all of
//! it is looked at first ([`super::Check::file`]): nothing that is damaged is found when a guest runs already. What is noted then, for
//! each section, is where it stands and which page it begins with.

use super::SavedError;
use crate::compressed::{ExpandError, Expanded};
use abi::crc32c;
use snapshot::file::{Content, Memory, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE, Run};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Where the memory of a saved VM is in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Bytes before the first section of memory, and how many sections these are.
    begin: u64,
    sections: u32,
    /// All pages so far.
    pages: u64,
    places: Vec<Place>,
    /// Whole blocks of zeros: the first one's number, and how many.
    zeros: Vec<(u64, u64)>,
}

/// Where a section of memory is, which may be compressed there, and the first of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    start: u64,
    end: u64,
    first: u64,
}

impl Index {
    /// A section of memory has come.
    pub(super) fn take(&mut self, runs: Memory<'_>) {
        let start = self.places.last().map_or(self.begin, |place| place.end);
        self.places.push(Place { start, end: start, first: self.pages });
        for run in runs {
            let behind = run.first + run.count;
            let (first, last) = (run.first.div_ceil(PAGES_OF_A_BLOCK), behind / PAGES_OF_A_BLOCK);
            if run.content == Content::Fill(0) && first < last {
                self.zeros.push((first, last - first));
            }
            self.pages = behind;
        }
    }

    /// So many sections have come, and the last one ends `taken` bytes behind the begin of the file. Called for each section.
    pub(super) fn section_ends(&mut self, sections: u32, taken: u64) {
        match self.places.last_mut() {
            Some(place) if place.end == place.start => place.end = taken,
            // It is the end.
            Some(_) => {}
            None => (self.begin, self.sections) = (taken, sections),
        }
    }

    /// Bytes before the first section of memory, and how many sections these are.
    #[must_use]
    pub const fn begin(&self) -> (u64, u32) {
        (self.begin, self.sections)
    }

    /// Whole blocks of zeros: the first one's number, and how many.
    #[must_use]
    pub fn zeros(&self) -> &[(u64, u64)] {
        &self.zeros
    }

    /// All pieces that are in none of those.
    pub fn others(&self) -> impl Iterator<Item = u64> {
        let pieces = PAGES_OF_A_BLOCK / PAGES_OF_A_PIECE;
        let mut next = 0;
        let ends = self.zeros.iter().map(|&(first, count)| (first, first + count));
        ends.chain([(self.pages / PAGES_OF_A_BLOCK, u64::MAX)]).flat_map(move |(first, behind)| {
            let before = next..first.max(next);
            next = behind;
            before.start * pieces..before.end * pieces
        })
    }

    /// Reads the pages of piece number `piece` from the file, called `file` in messages, and hands them to `work`.
    ///
    /// # Errors
    /// If the file cannot be read, or is another one by now.
    pub fn piece<R>(
        &self,
        piece: u64,
        from: &mut (impl Read + Seek),
        file: &Path,
        work: impl FnOnce(Vec<Run<'_>>) -> R,
    ) -> Result<R, SavedError> {
        let (first, behind) = (piece * PAGES_OF_A_PIECE, (piece + 1) * PAGES_OF_A_PIECE);
        let begin = self.places.partition_point(|place| place.first <= first).saturating_sub(1);
        let end = self.places.partition_point(|place| place.first < behind);
        let mut sections = Vec::new();
        for place in self.places.get(begin..end).unwrap_or_default() {
            sections.push((place.first, place.read(from, file)?));
        }
        let mut runs = Vec::new();
        for (page, bytes) in &sections {
            let memory = Memory::of_section(crc32c::compute, bytes, *page, self.pages)?;
            for run in memory.ok_or_else(|| changed(file))? {
                let (from, to) = (run.first.max(first), (run.first + run.count).min(behind));
                if from < to {
                    runs.push(Run { first: from, count: to - from, content: run.content });
                }
            }
        }
        if runs.iter().map(|run| run.count).sum::<u64>() != PAGES_OF_A_PIECE {
            return Err(changed(file));
        }
        Ok(work(runs))
    }
}

impl Place {
    /// The section, with its head, as the hypervisor knows it.
    fn read(&self, from: &mut (impl Read + Seek), file: &Path) -> Result<Vec<u8>, SavedError> {
        let wrong = |source| SavedError::Io { file: file.to_path_buf(), source };
        from.seek(SeekFrom::Start(self.start)).map_err(wrong)?;
        let mut expanded = Expanded::at_section(from.take(self.end - self.start));
        let mut section = Vec::new();
        while expanded.taken() < self.end - self.start || section.is_empty() {
            match expanded.next(usize::MAX) {
                // It ends where the section does: nothing comes after that.
                Ok([]) => break,
                Ok(bytes) => section.extend_from_slice(bytes),
                Err(ExpandError::Io(source)) => return Err(wrong(source)),
                Err(ExpandError::Damaged(_)) => return Err(changed(file)),
            }
        }
        Ok(section)
    }
}

fn changed(file: &Path) -> SavedError {
    SavedError::Changed { file: file.to_path_buf() }
}

#[cfg(test)]
mod tests {
    use super::{Index, Place};

    fn index(pages: u64, zeros: &[(u64, u64)]) -> Index {
        Index { pages, zeros: zeros.to_vec(), ..Index::default() }
    }

    #[test]
    fn others_are_all_pieces_but_those_of_blocks_of_zeros() {
        let all = |index: Index| index.others().collect::<Vec<_>>();
        assert_eq!(all(index(1024, &[])), (0..64).collect::<Vec<_>>());
        assert_eq!(all(index(2048, &[(1, 2)])), (0..32).chain(96..128).collect::<Vec<_>>());
        assert_eq!(all(index(1024, &[(0, 1)])), (32..64).collect::<Vec<_>>());
        assert_eq!(all(index(1536, &[(0, 1), (2, 1)])), (32..64).collect::<Vec<_>>());
        assert_eq!(all(index(1024, &[(0, 1), (1, 1)])), Vec::<u64>::new());
        assert_eq!(all(index(1024, &[(0, 2)])), Vec::<u64>::new());
    }

    #[test]
    fn what_stands_before_memory_is_not_memory() {
        let mut index = Index::default();
        for (sections, taken) in [(1, 100), (2, 300), (4, 700)] {
            index.section_ends(sections, taken);
        }
        assert_eq!(index.begin(), (700, 4));
        index.places.push(Place { start: 700, end: 700, first: 0 });
        index.section_ends(5, 950);
        index.section_ends(6, 1000);
        assert_eq!(
            (index.begin(), index.places.as_slice()),
            ((700, 4), &[Place { start: 700, end: 950, first: 0 }][..])
        );
    }
}
