//! Where sockets are.

use super::ControlError;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The socket's name in a folder for logs.
const IN_LOGS: &str = "croft.socket";

/// Where a new run's socket goes.
///
/// # Errors
/// There is no private folder for it.
pub fn for_run(log_dir: Option<&Path>) -> Result<PathBuf, ControlError> {
    match log_dir {
        Some(folder) => Ok(folder.join(IN_LOGS)),
        None => Ok(private_folder()?.join(format!("{}.socket", std::process::id()))),
    }
}

/// A link to a run's socket in the user's private folder; it goes when this is dropped.
#[derive(Debug)]
pub struct Registration(PathBuf);

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Lets [`find`] find the socket of a run with a folder for logs. `None` if it lies where it is found anyway.
///
/// # Errors
/// The private folder cannot be used.
pub fn register(socket: &Path) -> Result<Option<Registration>, ControlError> {
    let link = for_run(None)?;
    if socket == link {
        return Ok(None);
    }
    let wrong = |source| ControlError::Socket { socket: link.clone(), source };
    let whole = std::path::absolute(socket).map_err(wrong)?;
    // Left by a killed run whose number this process has now.
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(whole, &link).map_err(wrong)?;
    Ok(Some(Registration(link)))
}

/// The socket of the host that is meant: `host` names a socket or a folder for logs; without it, it is the only one that
/// this user runs.
///
/// # Errors
/// There is none, or more than one.
pub fn find(host: Option<&Path>) -> Result<PathBuf, ControlError> {
    if let Some(place) = host {
        let socket = if place.is_dir() { place.join(IN_LOGS) } else { place.to_path_buf() };
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
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => Path::new(&folder).join("undercroft"),
        None => std::env::temp_dir().join(format!("undercroft-{own}")),
    };
    let wrong = |why: String| ControlError::Folder { folder: folder.clone(), why };
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
