//! `--log-dir`: a file for each console, and one for the log.
//!
//! A console's file has its bytes as they came. Each line of the log has the time of day before it ([`with_time`]), by this computer's
//! clock: the hypervisor's own time counts from its start, and cannot be compared with other logs.
//!
//! A folder belongs to one run at a time, which holds the lock of a file in it. What an earlier run left there is kept: its
//! files get a `.1` behind their names, those that have one a `.2`, and so on to [`KEPT`]. A disk that is full does not end the
//! session; what is missing is counted, and marked in the file as soon as there is room again.

use abi::link::Channel;
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{Error, Read, Result, Write};
use std::path::{Path, PathBuf};

/// The file whose lock says that the folder is in use, and whose contents say by whom.
const LOCK: &str = "croft.lock";
/// As many earlier runs' files are kept.
const KEPT: u32 = 9;
/// The log's file.
const LOG: &str = "hypervisor.log";
/// How consoles' files end.
const CONSOLE: &str = ".console";
const VIRTIO_CONSOLE: &str = ".hvc0";

/// The files. A console's holds its raw bytes; a virtio console's is made when the first byte comes.
#[derive(Debug)]
pub(super) struct Recorder {
    folder: PathBuf,
    names: Vec<String>,
    files: HashMap<Channel, Record>,
    missing: u64,
    failure: Option<Error>,
    /// Held for its lock.
    _lock: File,
}

#[derive(Debug, Default)]
struct Record {
    /// `None` if it could not be opened.
    file: Option<File>,
    /// How many bytes are missing at its end.
    missing: u64,
}

fn about(path: &Path) -> impl FnOnce(Error) -> Error {
    move |error| Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Recorder {
    /// Opens the files in `folder` for the VMs of these names; `title` is what the run is called if another one wants the folder.
    /// Says what became of an earlier run's files, if there were any.
    pub(super) fn new(folder: &Path, names: &[String], title: &str) -> Result<(Self, Option<String>)> {
        fs::create_dir_all(folder).map_err(about(folder))?;
        let lock = lock(folder, title)?;
        let moved = move_aside(folder)?;
        let mut recorder = Self {
            folder: folder.to_path_buf(),
            names: names.to_vec(),
            files: HashMap::new(),
            missing: 0,
            failure: None,
            _lock: lock,
        };
        recorder.open(Channel::Log)?;
        for vm in 0..names.len() {
            recorder.open(Channel::Console(units::VmId(vm as u16)))?;
        }
        Ok((recorder, moved))
    }

    fn open(&mut self, channel: Channel) -> Result<()> {
        let name = |vm: units::VmId| self.names.get(usize::from(vm.0)).map_or("", String::as_str);
        let file = match channel {
            Channel::Control | Channel::Requests | Channel::Bulk => return Ok(()),
            Channel::Log => LOG.to_owned(),
            Channel::Console(vm) => format!("{}{CONSOLE}", name(vm)),
            Channel::VirtioConsole(vm) => format!("{}{VIRTIO_CONSOLE}", name(vm)),
        };
        let path = self.folder.join(file);
        let file = File::create(&path).map_err(about(&path))?;
        self.files.entry(channel).or_default().file = Some(file);
        Ok(())
    }

    /// Appends to the channel's file. The first failure is returned, to be told at once; [`Recorder::complaint`] has them all.
    pub(super) fn write(&mut self, channel: Channel, bytes: &[u8]) -> Option<String> {
        let opened = match self.files.get(&channel) {
            Some(Record { file: Some(_), .. }) => Ok(()),
            _ => self.open(channel),
        };
        let record = self.files.entry(channel).or_default();
        let (missing, error) = match opened {
            Ok(()) => record.append(bytes)?,
            Err(error) => (bytes.len(), error),
        };
        record.missing += missing as u64;
        self.missing += missing as u64;
        let first = self.failure.is_none();
        self.failure.get_or_insert(error);
        if first { self.complaint() } else { None }
    }

    /// What is wrong with the files, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let error = self.failure.as_ref()?;
        Some(format!("{}: the logs are incomplete, {} bytes are missing: {error}", self.folder.display(), self.missing))
    }
}

impl Record {
    /// Writes what there is room for; gives how much is missing then, and why.
    fn append(&mut self, bytes: &[u8]) -> Option<(usize, Error)> {
        let file = self.file.as_mut()?;
        if self.missing > 0 {
            let mark = format!("\n[croft: {} bytes are missing here]\n", self.missing);
            if let Err(error) = file.write_all(mark.as_bytes()) {
                return Some((bytes.len(), error));
            }
            self.missing = 0;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(count @ 1..) => rest = rest.get(count..).unwrap_or_default(),
                Ok(0) => return Some((rest.len(), Error::other("the file takes no more"))),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Some((rest.len(), error)),
            }
        }
        None
    }
}

/// `bytes` with `time` at the start of each line; the first may go on with one that had its time already.
pub(super) fn with_time(bytes: &[u8], is_in_line: &mut bool, time: &str) -> Vec<u8> {
    let mut timed = Vec::new();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if !*is_in_line {
            timed.extend_from_slice(time.as_bytes());
            timed.push(b' ');
        }
        timed.extend_from_slice(line);
        *is_in_line = !line.ends_with(b"\n");
    }
    timed
}

/// Makes the folder this run's, or says whose it is.
fn lock(folder: &Path, title: &str) -> Result<File> {
    let path = folder.join(LOCK);
    let mut file = File::options().create(true).read(true).append(true).open(&path).map_err(about(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let text = format!(
                "{}: another run keeps its logs there: {}; give this one another --log-dir",
                folder.display(),
                owner.trim()
            );
            return Err(Error::new(std::io::ErrorKind::ResourceBusy, text));
        }
        Err(TryLockError::Error(error)) => return Err(about(&path)(error)),
    }
    file.set_len(0).map_err(about(&path))?;
    // Only a message would lack it.
    let _ = writeln!(file, "{title} (process {})", std::process::id());
    Ok(file)
}

/// The name without its number, and the number; `None` if it is no file of ours.
fn numbered(name: &str) -> Option<(&str, u32)> {
    let (base, number) = match name.rsplit_once('.') {
        Some((base, digits)) if digits.len() == 1 => (base, digits.parse().ok()?),
        _ => (name, 0),
    };
    (base == LOG || base.ends_with(CONSOLE) || base.ends_with(VIRTIO_CONSOLE)).then_some((base, number))
}

/// Moves an earlier run's files aside, all by one number. Says so, if there were any.
fn move_aside(folder: &Path) -> Result<Option<String>> {
    let entries = fs::read_dir(folder).map_err(about(folder))?;
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let mut ours: Vec<(u32, &str)> =
        names.iter().filter_map(|name| numbered(name)).map(|(base, number)| (number, base)).collect();
    if !ours.iter().any(|&(number, _)| number == 0) {
        return Ok(None);
    }
    // The oldest first, so that each finds its place free.
    ours.sort_by(|one, other| other.cmp(one));
    let path = |base: &str, number| match number {
        0 => folder.join(base),
        number => folder.join(format!("{base}.{number}")),
    };
    let mut dropped = false;
    for (number, base) in ours {
        let (from, to) = (path(base, number), path(base, number + 1));
        let moved = if number < KEPT { fs::rename(&from, to) } else { fs::remove_file(&from) };
        moved.map_err(about(&from))?;
        dropped |= number >= KEPT;
    }
    let end = if dropped { format!("; those with .{KEPT}, the oldest, are gone") } else { String::new() };
    Ok(Some(format!("{}: an earlier run's logs are kept: their names end with .1 now{end}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Record, Recorder, with_time};
    use abi::link::Channel;
    use std::fs::{self, File};
    use std::path::Path;
    use units::VmId;

    const WEB: Channel = Channel::Console(VmId(0));

    fn recorder(folder: &Path) -> (Recorder, Option<String>) {
        Recorder::new(folder, &["web".to_owned()], "site.toml").unwrap()
    }

    #[test]
    fn each_line_of_the_log_has_the_time_once() {
        let mut is_in_line = false;
        let pieces = [&b"1.0 INFO: one\n1.1 IN"[..], b"", b"FO: two", b"\n", b"\n1.2 INFO: three\n"];
        let text: Vec<u8> = pieces
            .iter()
            .zip('a'..)
            .flat_map(|(piece, time)| with_time(piece, &mut is_in_line, &time.to_string()))
            .collect();
        assert_eq!(String::from_utf8(text).unwrap(), "a 1.0 INFO: one\na 1.1 INFO: two\ne \ne 1.2 INFO: three\n");
    }

    #[test]
    fn one_run_at_a_time_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, _) = recorder(folder.path());
        assert_eq!(first.write(WEB, b"precious"), None);
        let refused = Recorder::new(folder.path(), &["db".to_owned()], "other.toml").unwrap_err().to_string();
        let owner = format!("site.toml (process {}); give this one another --log-dir", std::process::id());
        assert!(refused.starts_with(&folder.path().display().to_string()) && refused.ends_with(&owner), "{refused}");
        assert_eq!(fs::read(folder.path().join("web.console")).unwrap(), b"precious");
        drop(first);
        assert!(recorder(folder.path()).1.is_some());
    }

    #[test]
    fn an_earlier_runs_files_are_kept_by_number() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        for run in 0..KEPT + 3 {
            let (mut recorder, moved) = recorder(folder.path());
            assert_eq!(moved.is_some(), run > 0);
            assert_eq!(moved.is_some_and(|text| text.contains("are gone")), run > KEPT, "run {run}");
            recorder.write(WEB, format!("run {run}").as_bytes());
            if run == 0 {
                recorder.write(Channel::VirtioConsole(VmId(0)), b"hvc");
            }
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("web.console").as_deref(), Some("run 11"));
        assert_eq!(read("web.console.1").as_deref(), Some("run 10"));
        assert_eq!(read("web.console.9").as_deref(), Some("run 2"));
        assert_eq!((read("web.console.10"), read("web.hvc0")), (None, None));
        assert_eq!(read("hypervisor.log.9").as_deref(), Some(""));
        assert_eq!(read("notes.txt").as_deref(), Some("mine"));
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted_and_marked() {
        let folder = tempfile::tempdir().unwrap();
        let (mut recorder, _) = recorder(folder.path());
        assert_eq!(recorder.write(WEB, b"before"), None);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let good = recorder.files.insert(WEB, Record { file: Some(full), missing: 0 }).unwrap();
        let said = recorder.write(WEB, b"lost").unwrap();
        assert!(said.contains("4 bytes are missing: No space left on device"), "{said}");
        assert_eq!(recorder.write(WEB, b"lost too"), None, "said once");
        assert!(recorder.complaint().unwrap().contains("12 bytes are missing"));
        // There is room again.
        recorder.files.insert(WEB, Record { missing: 12, ..good });
        assert_eq!(recorder.write(WEB, b"after"), None);
        let text = fs::read_to_string(folder.path().join("web.console")).unwrap();
        assert_eq!(text, "before\n[croft: 12 bytes are missing here]\nafter");
        assert!(recorder.complaint().is_some(), "it stays incomplete");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (mut recorder, _) = recorder(folder.path());
        fs::create_dir(folder.path().join("web.hvc0")).unwrap();
        let said = recorder.write(Channel::VirtioConsole(VmId(0)), b"hvc").unwrap();
        assert!(said.contains("3 bytes are missing: ") && said.contains("web.hvc0: "), "{said}");
    }
}
