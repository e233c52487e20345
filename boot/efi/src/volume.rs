//! Files on the volume that the loader came from.

use super::pages::Pages;
use alloc::vec::Vec;
use uefi::boot::{self, ScopedProtocol};
use uefi::proto::media::file::{Directory, File, FileAttribute, FileInfo, FileMode, FileType};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CStr16, CString16, Status};
use units::{Pa, Range};

/// The volume.
pub(crate) struct Volume {
    // Before what it is a folder of: fields are dropped in this order.
    root: Directory,
    _system: ScopedProtocol<SimpleFileSystem>,
}

/// A file in memory.
#[derive(Debug)]
pub(crate) struct Contents {
    pages: Pages,
    size: usize,
}

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFile {
    /// There is none of this path.
    #[error("there is no such file on the volume that BOOTAA64.EFI was loaded from")]
    Missing,
    /// It is a folder.
    #[error("that is a folder, and no file")]
    Folder,
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The path has characters that firmware does not know.
    #[error("the path has characters that UEFI has not")]
    Path,
    /// It could not be read to its end.
    #[error("it has {size} bytes, of which {read} could be read")]
    Short {
        /// How many it has.
        size: usize,
        /// How many came.
        read: usize,
    },
    /// Firmware's answer.
    #[error("firmware says {0}")]
    Firmware(Status),
}

impl BadFile {
    /// What firmware is told.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Missing => Status::NOT_FOUND,
            Self::Folder | Self::Path => Status::INVALID_PARAMETER,
            Self::Empty | Self::Short { .. } => Status::LOAD_ERROR,
            Self::Firmware(status) => *status,
        }
    }
}

impl Contents {
    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.pages.bytes()[..self.size]
    }

    /// Where they are.
    pub(crate) fn range(&self) -> Range<Pa> {
        Range { start: self.pages.range().start, size: self.size as u64 }
    }
}

impl Volume {
    /// The one that this program was loaded from.
    ///
    /// # Errors
    /// Firmware's: it was not loaded from a file, for example.
    pub(crate) fn of_this() -> uefi::Result<Self> {
        let mut system = boot::get_image_file_system(boot::image_handle())?;
        let root = system.open_volume()?;
        Ok(Self { root, _system: system })
    }

    /// Reads the file of this path, with `\` between its names.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(crate) fn read(&mut self, path: &str) -> Result<Contents, BadFile> {
        let path = CString16::try_from(path).map_err(|_| BadFile::Path)?;
        let path: &CStr16 = &path;
        let handle = self.root.open(path, FileMode::Read, FileAttribute::empty());
        let handle = handle.map_err(|error| match error.status() {
            Status::NOT_FOUND => BadFile::Missing,
            status => BadFile::Firmware(status),
        })?;
        let firmware = |error: uefi::Error| BadFile::Firmware(error.status());
        let FileType::Regular(mut file) = handle.into_type().map_err(firmware)? else {
            return Err(BadFile::Folder);
        };
        let size = file_size(&mut file)?;
        if size == 0 {
            return Err(BadFile::Empty);
        }
        let mut pages = Pages::new(size as u64).map_err(firmware)?;
        let mut read = 0;
        while read < size {
            match file.read(&mut pages.bytes_mut()[read..size]) {
                Ok(0) => return Err(BadFile::Short { size, read }),
                Ok(more) => read += more,
                Err(error) => return Err(BadFile::Firmware(error.status())),
            }
        }
        Ok(Contents { pages, size })
    }
}

fn file_size(file: &mut impl File) -> Result<usize, BadFile> {
    // A name of 255 characters and what stands before it; a buffer of bytes may begin anywhere, so there is room to align.
    let mut buffer: Vec<u64> = alloc::vec![0; 128];
    let bytes = bytes_of(&mut buffer);
    let info = file.get_info::<FileInfo>(bytes).map_err(|error| BadFile::Firmware(error.status()))?;
    usize::try_from(info.file_size()).map_err(|_| BadFile::Firmware(Status::OUT_OF_RESOURCES))
}

/// Words as bytes, aligned as words are.
fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: the same memory; any value of a byte is one of a word, and a byte needs no alignment.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
