//! Writing the file of `-o FILE`, and printing messages that may find no reader.

use crate::draft::{Draft, folder_of};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a message may take until it is written; the other end may be a pipe that nobody reads.
const MESSAGE: Duration = Duration::from_secs(1);

/// How something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A file is there, whole; an earlier one was replaced at once.
    Replaced,
    /// The bytes went through a device, a pipe or a socket's name, which is still what it was.
    Through,
}

/// A file's contents; `None` if it has more bytes than `most`, however many it claims to have: a device may have no end.
///
/// # Errors
/// Why it could not be read.
pub fn read_at_most(file: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let file = File::open(file)?;
    if file.metadata()?.len() > most {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let count = file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((count as u64 <= most).then_some(bytes))
}

/// Whether both names lead to one file, by whatever links.
#[must_use]
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |file: &Path| fs::metadata(file).map(|found| (found.dev(), found.ino())).ok();
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Writes `bytes` to `place`. A regular file, also one behind a symbolic link, is made beside its place first, so that a
/// failure leaves what was there. Anything else (`/dev/stdout`, a named pipe) is written to and never replaced.
///
/// # Errors
/// Why it could not be written.
pub fn write(place: &Path, bytes: &[u8]) -> Result<Written> {
    let target = target(place)?;
    let before = match fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // What a name in /proc leads to is somebody's open file, whatever it looks like: `/dev/stdout` may be a regular file, and /dev/fd is
    // a folder there. A file in /dev/shm is one as any other.
    let is_in_proc = fs::canonicalize(folder_of(place)).is_ok_and(|folder| folder.starts_with("/proc"));
    let is_special = is_in_proc || target.starts_with("/proc");
    if before.as_ref().is_some_and(|metadata| is_special || !metadata.is_file()) {
        let mut file = File::options().write(true).open(place)?;
        file.write_all(bytes)?;
        file.flush()?;
        return Ok(Written::Through);
    }
    let folder = folder_of(&target);
    if !folder.is_dir() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no folder {}", folder.display())));
    }
    let mode = before.map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
    // Without the name that the draft has at times: nobody has asked for that one.
    let mut draft = Draft::create(&target, mode).map_err(|error| Error::from(error.kind()))?;
    draft.write_all(bytes)?;
    draft.keep()?;
    Ok(Written::Replaced)
}

/// Where `place` leads to: symbolic links are followed, also one whose target is not there yet.
fn target(place: &Path) -> Result<PathBuf> {
    let mut target = place.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&target) {
            // The links of /proc name what cannot be opened by that name.
            Ok(_) if target.starts_with("/proc") => return Ok(target),
            Ok(link) => target = folder_of(&target).join(link),
            Err(_) => return Ok(target),
        }
    }
    Err(Error::other("too many symbolic links"))
}

/// Writes a line to standard error. It gives up after a moment if nobody takes it, and fails at nothing.
pub fn complain(text: &dyn Display) {
    mutter(format!("{text}\n"));
}

/// As [`complain`], without an end of the line.
pub fn mutter(line: String) {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let _ = std::io::stderr().write_all(line.as_bytes());
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(MESSAGE);
}

#[cfg(test)]
mod tests {
    use super::{Written, write};
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink("file", &link).unwrap();
        assert_eq!(write(&link, b"one").unwrap(), Written::Replaced, "its target is not there yet");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let before = fs::metadata(&file).unwrap().ino();
        assert_eq!(write(&link, b"two").unwrap(), Written::Replaced);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        let after = fs::metadata(&file).unwrap();
        assert_ne!(after.ino(), before, "beside its place first");
        assert_eq!(after.permissions().mode() & 0o777, 0o600, "what one may do with it stays");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/dev/null", &link).unwrap();
        for place in [Path::new("/dev/null"), &link] {
            assert_eq!(write(place, b"gone").unwrap(), Written::Through, "{}", place.display());
            assert!(fs::metadata(place).unwrap().file_type().is_char_device(), "{}", place.display());
        }
        let full = write(Path::new("/dev/full"), b"too much").unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        assert!(write(folder.path(), b"x").is_err(), "a folder is no file");
        assert!(write(&folder.path().join("no/such"), b"x").is_err());
        let ring = folder.path().join("ring");
        symlink("ring", &ring).unwrap();
        assert!(write(&ring, b"x").is_err());
    }

    /// The end of a longer one that was there before would stay.
    #[test]
    fn a_file_in_memory_is_replaced_as_any_other() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = folder.path().join("file");
        assert_eq!(write(&file, b"a long one").unwrap(), Written::Replaced);
        assert_eq!(write(&file, b"short").unwrap(), Written::Replaced);
        assert_eq!(fs::read(&file).unwrap(), b"short");
    }

    /// A shell's `-o /dev/fd/3 3> file` means the file that is open, which keeps its name and its number.
    #[test]
    fn an_open_file_is_written_to_by_its_number() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("file")).unwrap();
        let number = file.metadata().unwrap().ino();
        for name in ["/dev/fd", "/proc/self/fd"] {
            let place = format!("{name}/{}", file.as_raw_fd());
            assert_eq!(write(Path::new(&place), b"through").unwrap(), Written::Through, "{place}");
            assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"through");
            assert_eq!(fs::metadata(folder.path().join("file")).unwrap().ino(), number);
        }
    }

    #[test]
    fn a_named_pipe_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let reader = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(reader).unwrap());
        assert_eq!(write(&pipe, b"through").unwrap(), Written::Through);
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
