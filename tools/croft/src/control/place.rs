//! Where sockets are.

use super::ControlError;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The socket's name in a folder for logs.
const IN_LOGS: &str = "croft.socket";

/// The longest path that a socket can have, in bytes: `sun_path` of Linux's `sockaddr_un`, less the zero at its end.
const LONGEST: usize = 107;

/// Where a run's socket is, and the link by which it is found from elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The socket.
    pub socket: PathBuf,
    /// The link, and what it says.
    link: Option<(PathBuf, PathBuf)>,
}

/// Where a new run's socket goes.
///
/// # Errors
/// There is no private folder for it, or its path is too long.
pub fn for_run(log_dir: Option<&Path>) -> Result<Place, ControlError> {
    choose(log_dir, &private_folder()?.join(format!("{}.socket", std::process::id())))
}

/// The socket in the folder for logs and a link to it at `private`; or the other way round, where the former's path is too long
/// for a socket.
fn choose(log_dir: Option<&Path>, private: &Path) -> Result<Place, ControlError> {
    let wrong = |socket: &Path| {
        let socket = socket.to_path_buf();
        move |source| ControlError::Socket { socket, source }
    };
    let private = std::path::absolute(private).map_err(wrong(private))?;
    let Some(folder) = log_dir else { return fits(&private).map(|()| Place { socket: private, link: None }) };
    let logged = folder.join(IN_LOGS);
    let whole = std::path::absolute(&logged).map_err(wrong(&logged))?;
    if fits(&whole).is_ok() {
        return Ok(Place { socket: logged, link: Some((private, whole)) });
    }
    fits(&private).map(|()| Place { socket: private.clone(), link: Some((logged, private)) })
}

/// Whether a socket can be there.
///
/// # Errors
/// If its path is too long.
pub(super) fn fits(socket: &Path) -> Result<(), ControlError> {
    let bytes = socket.as_os_str().len();
    if bytes <= LONGEST { Ok(()) } else { Err(ControlError::LongPath { socket: socket.to_path_buf(), bytes }) }
}

/// The link to a run's socket; it goes when this is dropped.
#[derive(Debug)]
pub struct Registration(PathBuf);

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Place {
    /// Lets [`find`] find the socket. `None` if it lies where it is found anyway.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn register(&self) -> Result<Option<Registration>, ControlError> {
        let Some((link, target)) = &self.link else { return Ok(None) };
        // Left by a killed run: one with this folder, or whose number this process has now.
        let _ = fs::remove_file(link);
        let wrong = |source| ControlError::Socket { socket: link.clone(), source };
        std::os::unix::fs::symlink(target, link).map_err(wrong)?;
        Ok(Some(Registration(link.clone())))
    }
}

/// The socket of the host that is meant: `host` names a socket or a folder for logs; without it, it is the only one that
/// this user runs.
///
/// # Errors
/// There is none, or more than one.
pub fn find(host: Option<&Path>) -> Result<PathBuf, ControlError> {
    if let Some(place) = host {
        let named = if place.is_dir() { place.join(IN_LOGS) } else { place.to_path_buf() };
        let socket = match fits(&named) {
            Ok(()) => named,
            // There is a link then, if a host runs there.
            Err(error) => fs::read_link(&named).map_err(|_| error)?,
        };
        let is_socket = fs::metadata(&socket).is_ok_and(|metadata| metadata.file_type().is_socket());
        return if is_socket { Ok(socket) } else { Err(ControlError::NoHostAt(place.to_path_buf())) };
    }
    let mut alive = Vec::new();
    for entry in fs::read_dir(private_folder()?).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "socket") {
            if UnixStream::connect(&path).is_ok() {
                alive.push(fs::read_link(&path).unwrap_or(path));
            } else {
                // Left by a run that was killed.
                let _ = fs::remove_file(&path);
            }
        }
    }
    alive.sort();
    match alive.as_slice() {
        [] => Err(ControlError::NoHost),
        [one] => Ok(one.clone()),
        several => Err(ControlError::SeveralHosts(several.to_vec())),
    }
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
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
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
    use super::{IN_LOGS, LONGEST, Place, choose};
    use std::path::{Path, PathBuf};

    /// A folder below the root in which the socket's path has so many bytes.
    fn folder(bytes: usize) -> PathBuf {
        Path::new("/").join("x".repeat(bytes - IN_LOGS.len() - 2))
    }

    #[test]
    fn where_the_path_is_too_long_socket_and_link_change_places() {
        let private = Path::new("/run/7.socket");
        for bytes in [50, LONGEST] {
            let logged = folder(bytes).join(IN_LOGS);
            assert_eq!(logged.as_os_str().len(), bytes);
            let place = Place { socket: logged.clone(), link: Some((private.into(), logged)) };
            assert_eq!(choose(Some(&folder(bytes)), private).ok(), Some(place));
        }
        let logged = folder(LONGEST + 1).join(IN_LOGS);
        let place = Place { socket: private.into(), link: Some((logged, private.into())) };
        assert_eq!(choose(Some(&folder(LONGEST + 1)), private).ok(), Some(place));
        // Nowhere is a place.
        for log_dir in [None, Some(folder(200))] {
            let private = Path::new("/").join("y".repeat(149));
            let error = choose(log_dir.as_deref(), &private).expect_err("no socket has such a path").to_string();
            assert!(error.contains("has 150 bytes") && error.contains("XDG_RUNTIME_DIR"), "{error}");
        }
    }
}
