//! What a host's disk was told, one thing after the other: QEMU's blklogwrites, which has the format of Linux's dm-log-writes.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// "shrwsfj" backwards: how such a log begins.
const MAGIC: u64 = 0x6a_7366_7773_6872;
/// Flags of an entry.
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// One thing that the disk was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told<'l> {
    /// From this byte on there are these from now on.
    Write(u64, &'l [u8]),
    /// All that was written before is to stay when the power goes.
    Flush,
}

/// A log's bytes.
pub struct WriteLog(Vec<u8>);

impl WriteLog {
    /// The log in a file.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(file: &Path) -> Result<WriteLog> {
        let log = WriteLog(fs::read(file)?);
        ensure!(log.word(0) == Some(MAGIC), "this is no log of writes");
        Ok(log)
    }

    fn word(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    /// What the disk was told, as far as it was logged whole: whoever logs was killed. What was discarded is left out, since it may be
    /// as before.
    ///
    /// # Errors
    /// If it does not say how long a sector is.
    pub fn told(&self) -> Result<Vec<Told<'_>>> {
        let size = self.0.get(24..28).and_then(|size| Some(u32::from_le_bytes(size.try_into().ok()?)));
        let sector = size.filter(|&size| size >= 512).context("the size of a sector")? as usize;
        let (mut at, mut told) = (sector, Vec::new());
        while let (Some(place), Some(count), Some(flags)) = (self.word(at), self.word(at + 8), self.word(at + 16)) {
            if count == 0 && flags == 0 {
                break;
            }
            at += sector;
            if flags & FLUSH != 0 {
                told.push(Told::Flush);
            }
            if flags & DISCARD == 0 && count > 0 {
                let length = count as usize * sector;
                let Some(data) = self.0.get(at..at + length) else { break };
                told.push(Told::Write(place * sector as u64, data));
                at += length;
            }
        }
        Ok(told)
    }
}

/// Does to the file of a disk what was written.
///
/// # Errors
/// If it cannot be written.
pub fn write_all<'l>(disk: &File, writes: impl IntoIterator<Item = (u64, &'l [u8])>) -> Result<()> {
    for (place, data) in writes {
        disk.write_all_at(data, place)?;
    }
    Ok(())
}
