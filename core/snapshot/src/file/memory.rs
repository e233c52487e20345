//! A section of memory: pages one after the other, of which those that hold one word again and again, or what the page before
//! holds, take next to nothing.

use alloc::vec::Vec;

use super::{FileError, HEAD, MOST_ZEROS, PAGE, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE};
use abi::Crc32c;

/// At most so many pages are written out in a section.
pub(super) const PAGES: usize = 16;
/// At most so many runs in a section.
pub const RUNS: usize = 256;
/// At most so many bytes in a section of memory, with the number of the first page.
pub const MOST: usize = 8 + RUNS * LONGEST_HEAD + PAGES * PAGE;

/// Kinds of runs.
const FILL: u8 = 0;
const LITERAL: u8 = 1;
const AGAIN: u8 = 2;
/// A kind, how many pages, and a word.
const LONGEST_HEAD: usize = 1 + 8 + 8;

/// What the pages of a run hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// This word again and again, little-endian; mostly 0.
    Fill(u64),
    /// These bytes, each of them.
    Page(&'a [u8; PAGE]),
}

/// Pages that hold the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<'a> {
    /// The first one's number, from the begin of memory.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// What they hold.
    pub content: Content<'a>,
}

/// The word that a page holds again and again, if it does.
pub(super) fn word_of(page: &[u8; PAGE]) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let (first, rest) = words.split_first()?;
    rest.iter().all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

/// A section that is being made.
#[derive(Debug, Default)]
pub(super) struct Builder {
    bytes: Vec<u8>,
    /// The pages in it, and the number behind the last one.
    pub(super) count: u64,
    next: u64,
    runs: usize,
    literals: usize,
    /// Where the last run's count is, with its kind, if it has one that may grow.
    last: Option<(u8, usize, u64)>,
    /// Where the last page that was written out is.
    page: Option<usize>,
}

/// There is no memory for it.
pub(super) struct Full;

impl Builder {
    /// Takes pages in. `false` if they are for the next section: there is no room for one more run, or page.
    pub(super) fn put(&mut self, content: Content<'_>, count: u64) -> Result<bool, Full> {
        let content = match content {
            Content::Page(page) => word_of(page).map_or(content, Content::Fill),
            fill @ Content::Fill(_) => fill,
        };
        let (kind, word) = match content {
            Content::Fill(word) => (FILL, word),
            Content::Page(page) if self.is_last_page(page) => (AGAIN, 0),
            Content::Page(page) => {
                if self.runs + 2 > RUNS || self.literals == PAGES {
                    return Ok(false);
                }
                self.begin()?;
                self.push(&[LITERAL])?;
                self.page = Some(self.bytes.len());
                self.push(page)?;
                self.runs += 1;
                self.literals += 1;
                self.last = None;
                self.grow(1);
                return if count > 1 { self.put(content, count - 1) } else { Ok(true) };
            }
        };
        match self.last {
            Some((last, place, value)) if last == kind && value == word => {
                let field = self.bytes.get_mut(place..).and_then(|rest| rest.first_chunk_mut::<8>());
                if let Some(field) = field {
                    *field = (u64::from_le_bytes(*field) + count).to_le_bytes();
                }
            }
            _ => {
                if self.runs == RUNS {
                    return Ok(false);
                }
                self.begin()?;
                self.push(&[kind])?;
                self.last = Some((kind, self.bytes.len(), word));
                self.push(&count.to_le_bytes())?;
                if kind == FILL {
                    self.push(&word.to_le_bytes())?;
                }
                self.runs += 1;
            }
        }
        self.grow(count);
        Ok(true)
    }

    /// It goes on with this page; nothing is in it.
    pub(super) fn go_to(&mut self, page: u64) {
        *self = Self { next: page, ..Self::default() };
    }

    /// What is in it; it is empty then, and goes on behind that.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let next = self.next;
        let Self { bytes, .. } = core::mem::replace(self, Self { next, ..Self::default() });
        bytes
    }

    fn is_last_page(&self, page: &[u8; PAGE]) -> bool {
        self.page.is_some_and(|place| self.bytes.get(place..place + PAGE).is_some_and(|last| last == page))
    }

    fn begin(&mut self) -> Result<(), Full> {
        if !self.bytes.is_empty() {
            return Ok(());
        }
        if self.bytes.capacity() == 0 {
            // All of it at once, and no more: one that grows takes more than what is in it.
            self.bytes.try_reserve_exact(MOST).map_err(|_| Full)?;
        }
        self.push(&self.next.to_le_bytes())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.bytes.try_reserve(bytes.len()).map_err(|_| Full)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn grow(&mut self, count: u64) {
        self.count += count;
        self.next += count;
    }
}

/// A section's runs.
#[derive(Clone, Debug)]
pub struct Memory<'a> {
    next: u64,
    rest: &'a [u8],
    page: Option<&'a [u8; PAGE]>,
}

impl<'a> Memory<'a> {
    /// The runs in a section that must begin with page `next`, of `all` there are; with the number of the page behind the last one.
    /// `None` if they are not what [`Builder`] writes.
    ///
    /// # Errors
    /// [`FileError::NoMemory`].
    pub(super) fn parse(bytes: &'a [u8], next: u64, all: u64) -> Result<Option<(Self, u64)>, FileError> {
        let Some((first, rest)) = bytes.split_first_chunk::<8>() else { return Ok(None) };
        if u64::from_le_bytes(*first) != next {
            return Ok(None);
        }
        let memory = Self { next, rest, page: None };
        let (mut end, mut again, mut look) = (next, Builder { next, ..Builder::default() }, memory.clone());
        // No more than that is written if it is the same.
        again.bytes.try_reserve_exact(bytes.len()).map_err(|_| FileError::NoMemory)?;
        while !look.rest.is_empty() {
            let run = look.next();
            let behind = run.and_then(|run| end.checked_add(run.count)).filter(|&end| end <= all);
            let (Some(run), Some(behind)) = (run, behind) else { return Ok(None) };
            end = behind;
            // What is written in another way than by us is not read either.
            if !again.put(run.content, run.count).map_err(|_| FileError::NoMemory)? {
                return Ok(None);
            }
        }
        Ok((again.take() == bytes).then_some((memory, end)))
    }

    /// The runs of a `section` with its head, as it stands in a file that was read before, and begins with page `first` of `all`
    /// there are. `None` if it is damaged, or another one by now.
    ///
    /// # Errors
    /// [`FileError::NoMemory`].
    pub fn of_section(crc32c: Crc32c, section: &'a [u8], first: u64, all: u64) -> Result<Option<Self>, FileError> {
        let Some((head, body)) = section.split_first_chunk::<HEAD>() else { return Ok(None) };
        let checksum = head.get(20..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        if checksum != Some(crc32c(0, body)) {
            return Ok(None);
        }
        Ok(Self::parse(body, first, all)?.map(|(memory, _)| memory))
    }

    /// As [`Memory::parse`], of a section of a stream, which begins where it says: it is one whole piece, or whole blocks of zeros, of
    /// which a section has [`MOST_ZEROS`] at most. Instead of a number, how many pages there are in it.
    ///
    /// # Errors
    /// [`FileError::NoMemory`].
    pub(super) fn parse_piece(bytes: &'a [u8], all: u64) -> Result<Option<(Self, u64)>, FileError> {
        let Some(first) = bytes.first_chunk::<8>().map(|first| u64::from_le_bytes(*first)) else { return Ok(None) };
        let Some((memory, end)) = Self::parse(bytes, first, all)? else { return Ok(None) };
        let count = end - first;
        let is_piece = first.is_multiple_of(PAGES_OF_A_PIECE) && count == PAGES_OF_A_PIECE;
        let are_blocks = [first, count].iter().all(|pages| pages.is_multiple_of(PAGES_OF_A_BLOCK))
            && (1..=MOST_ZEROS * PAGES_OF_A_BLOCK).contains(&count);
        let are_zeros = |run: Run<'_>| run.content == Content::Fill(0) && run.count == count;
        let is_one = is_piece || are_blocks && memory.clone().next().is_some_and(are_zeros);
        Ok(is_one.then_some((memory, count)))
    }
}

impl<'a> Iterator for Memory<'a> {
    type Item = Run<'a>;

    fn next(&mut self) -> Option<Run<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        let (count, content, rest) = if kind == LITERAL {
            let (page, rest) = rest.split_first_chunk::<PAGE>()?;
            self.page = Some(page);
            (1, Content::Page(page), rest)
        } else {
            let (count, rest) = rest.split_first_chunk::<8>()?;
            let (content, rest) = match kind {
                FILL => {
                    let (word, rest) = rest.split_first_chunk::<8>()?;
                    (Content::Fill(u64::from_le_bytes(*word)), rest)
                }
                AGAIN => (Content::Page(self.page?), rest),
                _ => return None,
            };
            (u64::from_le_bytes(*count), content, rest)
        };
        self.rest = rest;
        let first = self.next;
        self.next = first.checked_add(count).filter(|&next| next > first)?;
        Some(Run { first, count, content })
    }
}
