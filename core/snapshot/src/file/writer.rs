//! A file that is being written, a section at a time.

use alloc::vec::Vec;

use abi::Crc32c;
use pack::Value;

use super::memory::{Builder, Content, Run};
use super::{BY_PIECES, Description, FileError, HEAD, Kind, MAGIC, PAGES_OF_A_BLOCK, SavedMoment, VERSION};
use crate::{SavedMachine, SavedVm};

/// Writes a stream whose memory comes by pieces, out of a file of which the begin is there: what comes before memory stays as it is
/// ([`Pieces::begin`]), then come pieces and blocks of zeros in any order, each page once, and then [`Pieces::end`].
#[derive(Debug)]
pub struct Pieces(Writer);

impl Pieces {
    /// `begin` is a file up to its memory, which is changed; so many `sections` are in it.
    #[must_use]
    pub fn begin(crc32c: Crc32c, begin: &mut [u8], sections: u32) -> Self {
        if let Some((head, checksum)) = begin.split_at_mut_checked(12)
            && let Some(checksum) = checksum.first_chunk_mut()
        {
            if let Some(order) = head.last_chunk_mut() {
                *order = BY_PIECES;
            }
            *checksum = crc32c(0, head).to_le_bytes();
        }
        Self(Writer { crc32c, sections, pages: 0, memory: Builder::default() })
    }

    /// The pages of one piece, one after the other.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn piece<'a>(&mut self, runs: impl IntoIterator<Item = Run<'a>>) -> Result<Vec<u8>, FileError> {
        let mut runs = runs.into_iter().peekable();
        let mut out = Vec::new();
        if let Some(first) = runs.peek() {
            self.0.memory.go_to(first.first);
        }
        for Run { content, count, .. } in runs {
            out.append(&mut self.0.memory(content, count)?);
        }
        self.0.flush(&mut out)?;
        Ok(out)
    }

    /// `count` blocks of zeros from block number `first` on, at most [`super::MOST_ZEROS`].
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn zeros(&mut self, first: u64, count: u64) -> Result<Vec<u8>, FileError> {
        let (first, count) = (first * PAGES_OF_A_BLOCK, count * PAGES_OF_A_BLOCK);
        self.piece([Run { first, count, content: Content::Fill(0) }])
    }

    /// What comes behind all of them.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn end(&mut self) -> Result<Vec<u8>, FileError> {
        self.0.end()
    }
}

/// Writes a file: [`Writer::begin`], [`Writer::state`], then memory from its first page to its last, then [`Writer::end`]. Each gives
/// the bytes that come next, which may be none.
#[derive(Debug)]
pub struct Writer {
    crc32c: Crc32c,
    sections: u32,
    pages: u64,
    memory: Builder,
}

impl Writer {
    /// A file of which nothing is written yet.
    #[must_use]
    pub fn new(crc32c: Crc32c) -> Self {
        Self { crc32c, sections: 0, pages: 0, memory: Builder::default() }
    }

    /// What comes before the state.
    ///
    /// # Errors
    /// If there is no memory for it, or the description is too long for any VM.
    pub fn begin(
        &mut self,
        vm: &Description<'_>,
        machine: &SavedMachine,
        moment: SavedMoment,
    ) -> Result<Vec<u8>, FileError> {
        let mut out = Vec::new();
        for bytes in [MAGIC.as_slice(), &VERSION.to_le_bytes(), &[0; 2]] {
            push(&mut out, bytes)?;
        }
        let checksum = (self.crc32c)(0, &out).to_le_bytes();
        push(&mut out, &checksum)?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(Kind::Vm.most()).map_err(|_| FileError::NoMemory)?;
        buffer.resize(Kind::Vm.most(), 0);
        let vm = postcard::to_slice(vm, &mut buffer).map_err(|_| FileError::Long(Kind::Vm.name()))?;
        self.section(&mut out, Kind::Vm, vm)?;
        self.section(&mut out, Kind::Machine, &packed(machine)?)?;
        self.section(&mut out, Kind::Moment, &packed(&moment)?)?;
        Ok(out)
    }

    /// The state.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn state(&mut self, state: &SavedVm) -> Result<Vec<u8>, FileError> {
        let mut out = Vec::new();
        self.section(&mut out, Kind::State, &state.to_bytes().map_err(FileError::State)?)?;
        Ok(out)
    }

    /// The next pages of memory.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn memory(&mut self, content: Content<'_>, count: u64) -> Result<Vec<u8>, FileError> {
        let mut out = Vec::new();
        self.pages += count;
        if !self.put(content, count)? {
            self.flush(&mut out)?;
            self.put(content, count)?;
        }
        Ok(out)
    }

    /// What comes behind memory: the end.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn end(&mut self) -> Result<Vec<u8>, FileError> {
        let mut out = Vec::new();
        self.flush(&mut out)?;
        let pages = self.pages.to_le_bytes();
        self.section(&mut out, Kind::End, &pages)?;
        Ok(out)
    }

    fn put(&mut self, content: Content<'_>, count: u64) -> Result<bool, FileError> {
        self.memory.put(content, count).map_err(|_| FileError::NoMemory)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), FileError> {
        if self.memory.count == 0 {
            return Ok(());
        }
        let bytes = self.memory.take();
        self.section(out, Kind::Memory, &bytes)
    }

    fn section(&mut self, out: &mut Vec<u8>, kind: Kind, body: &[u8]) -> Result<(), FileError> {
        if body.len() > kind.most() {
            return Err(FileError::Long(kind.name()));
        }
        let mut head = [0; HEAD];
        let body_checksum = (self.crc32c)(0, body);
        let fields = [
            (0, kind.name().as_bytes()),
            (12, &kind.version().to_le_bytes()),
            (16, &(body.len() as u32).to_le_bytes()),
            (20, &body_checksum.to_le_bytes()),
            (24, &self.sections.to_le_bytes()),
        ];
        for (place, bytes) in fields {
            put(&mut head, place, bytes);
        }
        let checksum = (self.crc32c)(0, head.get(..28).unwrap_or_default());
        put(&mut head, 28, &checksum.to_le_bytes());
        self.sections += 1;
        push(out, &head)?;
        push(out, body)
    }
}

fn put(head: &mut [u8; HEAD], place: usize, bytes: &[u8]) {
    if let Some(field) = head.get_mut(place..place + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), FileError> {
    out.try_reserve(bytes.len()).map_err(|_| FileError::NoMemory)?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn packed(value: &impl Value) -> Result<Vec<u8>, FileError> {
    let mut out = pack::Writer::new();
    value.pack(&mut out);
    out.finish().map_err(|_| FileError::NoMemory)
}
