//! A file that is there whole, or not at all.
//!
//! It has no name while it is written: the kernel drops it with the process, so that nothing is left of it, whatever ends that.
//! When it is whole and on the disk it gets a name beside the one that it is to have, and takes that at once from whatever had
//! it. Where a file system knows no files without names (FAT on a stick), it has the name beside from the beginning, and only
//! an orderly end removes it.

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io::{Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, TempPath};

/// A file that is being written. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    /// Its name beside the one that it is to have, if it has one already.
    beside: Option<TempPath>,
    to: PathBuf,
}

impl Draft {
    /// Begins one, to be `to` with this mode, less what the process's mask takes from it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn create(to: &Path, mode: u32) -> Result<Self> {
        Self::without_name(to, mode).or_else(|_| Self::with_name(to, mode))
    }

    fn without_name(to: &Path, mode: u32) -> Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, folder_of(to), flags, Mode::from_raw_mode(mode))?);
        // By this it is named in the end, so this must be there in the beginning.
        place_in_proc(&file).metadata()?;
        Ok(Self { file, beside: None, to: to.to_path_buf() })
    }

    fn with_name(to: &Path, mode: u32) -> Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let open = |path: &Path| Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(mode))?));
        let (file, beside) = beside(to, open)?.into_parts();
        Ok(Self { file, beside: Some(beside), to: to.to_path_buf() })
    }

    /// It is whole, and takes its name. A name never stands for half of it, whenever the power goes.
    ///
    /// # Errors
    /// If that cannot be; what had the name has it still then.
    pub(crate) fn keep(self) -> Result<()> {
        let Self { file, beside: named, to } = self;
        file.sync_all()?;
        let named = match named {
            Some(named) => named,
            None => {
                let place = place_in_proc(&file);
                let link = |path: &Path| Ok(rustix::fs::linkat(CWD, &place, CWD, path, AtFlags::SYMLINK_FOLLOW)?);
                beside(&to, link)?.into_temp_path()
            }
        };
        named.persist(&to).map_err(|error| error.error)?;
        // The name is in the folder.
        File::open(folder_of(&to))?.sync_all()
    }
}

impl Seek for Draft {
    fn seek(&mut self, place: SeekFrom) -> Result<u64> {
        self.file.seek(place)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

/// The folder in which `file` is.
pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Something with a name of its own beside `to`.
fn beside<T>(to: &Path, make: impl FnMut(&Path) -> Result<T>) -> Result<NamedTempFile<T>> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    Builder::new().prefix(&format!(".{name}.")).suffix(".part").make_in(folder_of(to), make)
}

/// Where an open file is, whatever names it has.
fn place_in_proc(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::Draft;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// Whoever is killed removes nothing, so there must be nothing to be removed.
    #[test]
    fn nothing_is_in_the_folder_before_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let mut draft = Draft::without_name(&to, 0o600).expect("this file system has files without names");
        draft.write_all(b"half").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        draft.write_all(b" and half").unwrap();
        draft.keep().unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"half and half");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn it_takes_the_name_of_what_was_there_or_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        for begin in [Draft::without_name, Draft::with_name] {
            fs::write(&to, "before").unwrap();
            let mut draft = begin(&to, 0o640).unwrap();
            draft.write_all(b"half").unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"before");
            drop(draft);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left");
            let mut draft = begin(&to, 0o640).unwrap();
            draft.write_all(b"all of it").unwrap();
            draft.keep().unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"all of it");
            assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left");
            // A folder keeps its name.
            let taken = folder.path().join("taken");
            fs::create_dir(&taken).unwrap();
            assert!(begin(&taken, 0o640).unwrap().keep().is_err());
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something is left");
            fs::remove_dir(&taken).unwrap();
        }
    }
}
