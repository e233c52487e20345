//! Where sockets are.
//!
//! The socket lies in the user's private folder and not in the folder for logs, which may be moved or removed while the host runs
//! on, or have a longer path than a socket can have; the folder for logs has a link to it. If that link is lost, the host itself
//! still knows where its logs were.

use super::{ControlError, Order, Report, client};
use crate::printable;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the link in a folder for logs.
const IN_LOGS: &str = "croft.socket";

/// The longest path that a socket can have, in bytes: `sun_path` of Linux's `sockaddr_un`, less the zero at its end.
const LONGEST: usize = 107;

/// How long a host may take to say what it is called, where that is only for a message.
const NAME: Duration = Duration::from_secs(2);

/// Where a run is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The socket, by a path that does not depend on the current folder.
    pub(super) socket: PathBuf,
    /// The folder in which a link leads to it, and the link's name.
    pub(super) link: Option<(PathBuf, &'static str)>,
}

impl Place {
    /// This socket, with no link to it.
    ///
    /// # Errors
    /// Its path is too long.
    pub fn at(socket: &Path) -> Result<Self, ControlError> {
        let whole = std::path::absolute(socket)
            .map_err(|source| ControlError::Socket { socket: socket.to_path_buf(), source })?;
        fits(&whole).map(|()| Self { socket: whole, link: None })
    }
}

/// Where a new run is reached.
///
/// # Errors
/// There is no private folder for the socket, or its path is too long.
pub fn for_run(log_dir: Option<&Path>) -> Result<Place, ControlError> {
    let own = private_folder()?.join(format!("{}.socket", std::process::id()));
    Ok(Place { link: log_dir.map(|folder| (folder.to_path_buf(), IN_LOGS)), ..Place::at(&own)? })
}

/// Whether a socket can be there.
///
/// # Errors
/// If its path is too long.
pub(super) fn fits(socket: &Path) -> Result<(), ControlError> {
    let bytes = socket.as_os_str().len();
    if bytes <= LONGEST { Ok(()) } else { Err(ControlError::LongPath { socket: socket.to_path_buf(), bytes }) }
}

/// The socket of the host that is meant: `host` names a socket or a folder for logs; without it, it is the only one that
/// this user runs.
///
/// # Errors
/// There is none, or more than one.
pub fn find(host: Option<&Path>) -> Result<PathBuf, ControlError> {
    if let Some(place) = host {
        return find_named(place);
    }
    let alive = alive()?;
    match alive.as_slice() {
        [] => Err(ControlError::NoHost),
        [one] => Ok(one.clone()),
        several => Err(ControlError::SeveralHosts(several.iter().map(|socket| describe(socket)).collect())),
    }
}

/// The socket of the host with this folder for logs, or this socket.
fn find_named(place: &Path) -> Result<PathBuf, ControlError> {
    let named = if place.is_dir() { place.join(IN_LOGS) } else { place.to_path_buf() };
    let (socket, is_too_long) = match fits(&named) {
        Ok(()) => (Some(named), None),
        // There is a link then, if a host runs there.
        Err(error) => (fs::read_link(&named).ok(), Some(error)),
    };
    let is_socket = |socket: &PathBuf| fs::metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket());
    if let Some(socket) = socket.filter(is_socket) {
        return Ok(socket);
    }
    // The folder may be gone, or be somewhere else; the host that had it runs on.
    let whole = std::path::absolute(place).ok();
    let had_it = |socket: &PathBuf| ask(socket).is_some_and(|(_, logs)| logs.is_some() && logs == whole);
    let found = alive().ok().and_then(|alive| alive.into_iter().find(had_it));
    found.ok_or_else(|| is_too_long.unwrap_or_else(|| ControlError::NoHostAt(place.to_path_buf())))
}

/// The sockets of all hosts that this user runs.
fn alive() -> Result<Vec<PathBuf>, ControlError> {
    let mut alive = Vec::new();
    for entry in fs::read_dir(private_folder()?).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|end| end != "socket") {
            continue;
        }
        match UnixStream::connect(&path) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                // Left by a run that was killed; or one that is just about to listen, and is found the next time.
                if !is_running(&path) {
                    let _ = fs::remove_file(&path);
                }
            }
            // Whatever else is wrong is for whoever talks to it.
            _ => alive.push(path),
        }
    }
    alive.sort();
    Ok(alive)
}

/// Whether the process runs that a socket is named after; taken for granted where it names none.
fn is_running(socket: &Path) -> bool {
    let number = socket.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let process = number.and_then(rustix::process::Pid::from_raw);
    process.is_none_or(|process| rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH))
}

/// What the host behind this socket runs, and where its folder for logs was at its start.
fn ask(socket: &Path) -> Option<(String, Option<PathBuf>)> {
    let stream = client::connect(socket).ok()?;
    stream.set_read_timeout(Some(NAME)).ok()?;
    let mut told = None;
    let asked = client::perform(stream, &Order::Host, |report| {
        if let Report::Host { site, logs } = report {
            told = Some((site, logs.map(PathBuf::from)));
        }
    });
    asked.ok().and(told)
}

/// How `--host` names the host behind this socket, and what it runs. One that does not answer is listed all the same.
fn describe(socket: &Path) -> String {
    let (site, logs) = ask(socket).unwrap_or_else(|| ("its site is not known".to_owned(), None));
    // Where they were: if they have been moved, somebody else's may be there now.
    let leads_here = |logs: &PathBuf| fs::read_link(logs.join(IN_LOGS)).is_ok_and(|target| target == socket);
    let named = logs.filter(leads_here).unwrap_or_else(|| socket.to_path_buf());
    printable::line(&format!("{}  ({site})", named.display()))
}

/// The user's own folder for sockets, which nobody else can write to.
fn private_folder() -> Result<PathBuf, ControlError> {
    let own = rustix::process::getuid().as_raw();
    let (folder, variable) = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => (Path::new(&folder).join("undercroft"), "XDG_RUNTIME_DIR"),
        None => (std::env::temp_dir().join(format!("undercroft-{own}")), "TMPDIR"),
    };
    let wrong = |why: String| ControlError::Folder { folder: folder.clone(), why, variable };
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(wrong(format!("it cannot be made: {error}"))),
    }
    let metadata = fs::symlink_metadata(&folder).map_err(|error| wrong(error.to_string()))?;
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Err(wrong("it is not a folder that only its owner may use".to_owned()));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, Place, is_running};
    use std::path::Path;

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let path = |bytes: usize| Path::new("/").join("y".repeat(bytes - 1));
        assert_eq!(Place::at(&path(LONGEST)).unwrap().socket, path(LONGEST));
        let error = Place::at(&path(LONGEST + 1)).unwrap_err().to_string();
        assert!(error.contains("has 108 bytes") && error.contains("XDG_RUNTIME_DIR"), "{error}");
    }

    #[test]
    fn a_socket_is_a_dead_runs_only_if_its_process_is_gone() {
        let named = |name: &str| is_running(&Path::new("/run").join(name));
        assert!(named(&format!("{}.socket", std::process::id())) && named("1.socket"));
        assert!(named("other.socket"), "who knows");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!named(&format!("{}.socket", child.id())));
    }
}
