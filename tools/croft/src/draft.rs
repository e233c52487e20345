//! A file that exists complete, or not at all.
//!
//! It has no name while it is written: the kernel drops it with the process, so that nothing is left of it, however the process
//! ends. When it is complete and on the disk it gets a temporary name beside its final one, and then atomically replaces what had
//! the final name. If a file system has no files without names (FAT on a stick), it has the temporary name from the beginning.
//! The writer of a draft holds a lock on it, which the kernel drops with the process: that shows what a killed process left,
//! which is removed before the next draft of the same name.

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, TempPath};

/// What the name beside ends with, and the letters and digits by which it differs from others of the same file.
const SUFFIX: &str = ".part";
const RANDOM: usize = 6;

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
        remove_what_is_left(to);
        Self::without_name(to, mode).or_else(|_| Self::with_name(to, mode))
    }

    fn without_name(to: &Path, mode: u32) -> Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, folder_of(to), flags, Mode::from_raw_mode(mode))?);
        // By this it is named in the end, so this must be there in the beginning.
        place_in_proc(&file).metadata()?;
        // For the moment in which it has the name beside. It is nobody else's, so this cannot fail where there are locks.
        let _ = lock(&file);
        Ok(Self { file, beside: None, to: to.to_path_buf() })
    }

    fn with_name(to: &Path, mode: u32) -> Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let open = |path: &Path| {
            let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(mode))?);
            // Before it was locked somebody may have taken it for one that was left: then under another name. Where there are no
            // locks nobody takes it for that.
            let is_taken = lock(&file).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            if is_taken || !is_the_file(path, &file) { Err(Error::from(ErrorKind::AlreadyExists)) } else { Ok(file) }
        };
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
    Builder::new().prefix(&prefix(to)).suffix(SUFFIX).rand_bytes(RANDOM).make_in(folder_of(to), make)
}

/// How a name beside `to` begins.
fn prefix(to: &Path) -> String {
    format!(".{}.", to.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes the drafts of `to` that nobody writes any more. One that cannot be looked at stays.
fn remove_what_is_left(to: &Path) {
    let prefix = prefix(to);
    let is_draft = |name: &str| {
        let random = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
        random.is_some_and(|random| random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    };
    for entry in std::fs::read_dir(folder_of(to)).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !entry.file_name().to_str().is_some_and(is_draft) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        // A draft that was kept meanwhile has its own name, and another one may have this.
        if lock(&file).is_ok() && is_the_file(&entry.path(), &file) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Locks it for as long as it is open; an error if somebody else has.
fn lock(file: &File) -> Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

/// Whether this name is that of the open file.
fn is_the_file(path: &Path, file: &File) -> bool {
    let number = |about: std::fs::Metadata| (about.dev(), about.ino());
    path.symlink_metadata().and_then(|named| Ok(number(named) == number(file.metadata()?))).unwrap_or(false)
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

    /// As a kill leaves it where no file is without a name: the file, which nobody has locked.
    #[test]
    fn what_a_killed_one_left_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let left = folder.path().join(".file.a1B2c3.part");
        let others =
            [".file.mine.part", ".other.a1B2c3.part", ".file.a1B2c3.parts", "file.a1B2c3.part", ".file.a1-2c3.part"];
        for name in others {
            fs::write(folder.path().join(name), "somebody's").unwrap();
        }
        fs::write(&left, "half").unwrap();
        let mut written = Draft::with_name(&to, 0o600).unwrap();
        written.write_all(b"of now").unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count(), others.len() + 2);
        let another = Draft::create(&to, 0o600).unwrap();
        assert!(!left.exists(), "what was left is still there");
        assert_eq!(count(), others.len() + 1, "what is being written, and what is none of ours, stays");
        written.keep().unwrap();
        drop(another);
        assert_eq!(fs::read(&to).unwrap(), b"of now");
        assert_eq!(count(), others.len() + 1);
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
