//! The client's end.

use super::{MAX_LINE, Order, Report, place};
use crate::output::complain;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// After this time without an answer to what is answered at once, the person who waits is told.
const SILENCE: Duration = Duration::from_secs(10);

/// Why a host cannot be reached, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing runs.
    #[error("no host runs here; start one with `croft run`, or name another user's or a logged one's with --host")]
    NoHost,
    /// Not there.
    #[error("no host runs at {}; --host names the folder that `croft run --log-dir` was given, or a socket", .0.display())]
    NoHostAt(PathBuf),
    /// More than one.
    #[error("more than one host runs; name one with --host:{}", list(.0))]
    SeveralHosts(Vec<String>),
    /// The folder for sockets cannot be used.
    #[error("{folder}: {why}; the variable {variable} says where it is to be", folder = .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The variable of the environment that names the folder around it.
        variable: &'static str,
    },
    /// The socket's place.
    #[error(
        "{}: the path has {bytes} bytes, and a socket's 107 at most; name a folder with a shorter one (`--log-dir`, `--host`, or the variable XDG_RUNTIME_DIR)",
        .socket.display()
    )]
    LongPath {
        /// Where it was to be.
        socket: PathBuf,
        /// How many bytes that are.
        bytes: usize,
    },
    /// The socket.
    #[error("{}: {source}", .socket.display())]
    Socket {
        /// Its place.
        socket: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The host ended, or is of another version.
    #[error("the host did not answer; it has ended, or is of another version")]
    NoAnswer,
    /// The host refused.
    #[error("{0}")]
    Failed(String),
    /// What was named is not there.
    #[error("{0}")]
    NotThere(String),
    /// The host has ended while it was followed, under VMs that ran.
    #[error("the host has ended: {0}")]
    HostEnded(String),
}

impl ControlError {
    /// What it is where the host had begun to answer something that is followed: a process that is killed has no last words.
    #[must_use]
    pub fn while_followed(self) -> Self {
        match self {
            Self::NoAnswer => Self::HostEnded("its `croft run` is gone, and did not say why".to_owned()),
            other => other,
        }
    }
}

fn list(hosts: &[String]) -> String {
    hosts.iter().map(|host| format!("\n  {host}")).collect()
}

/// A connection to the host behind this socket.
///
/// # Errors
/// Nobody listens.
pub fn connect(socket: &Path) -> Result<UnixStream, ControlError> {
    place::fits(socket)?;
    UnixStream::connect(socket).map_err(|source| match source.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => ControlError::NoHostAt(socket.to_path_buf()),
        _ => ControlError::Socket { socket: socket.to_path_buf(), source },
    })
}

/// Sends an order and hands every report to `show`, up to the last one.
///
/// # Errors
/// The host refused, or is gone.
pub fn perform(stream: UnixStream, order: &Order, mut show: impl FnMut(Report)) -> Result<(), ControlError> {
    perform_while(stream, order, |report| {
        show(report);
        ControlFlow::Continue(())
    })
}

/// As [`perform`], for as long as `show` wants to go on.
///
/// # Errors
/// The host refused, or is gone.
pub fn perform_while(
    mut stream: UnixStream,
    order: &Order,
    mut show: impl FnMut(Report) -> ControlFlow<()>,
) -> Result<(), ControlError> {
    let mut line = serde_json::to_vec(order).map_err(|_| ControlError::NoAnswer)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|_| ControlError::NoAnswer)?;
    // A process that was stopped takes connections, and answers none.
    let silence = order.is_answered_at_once().then_some(SILENCE);
    stream.set_read_timeout(silence).map_err(|_| ControlError::NoAnswer)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        while let Err(error) = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    let seconds = SILENCE.as_secs();
                    complain(&format!(
                        "croft: the host has not answered for {seconds} s; perhaps its `croft run` is stopped (kill -CONT)"
                    ));
                    reader.get_ref().set_read_timeout(None).map_err(|_| ControlError::NoAnswer)?;
                }
                ErrorKind::Interrupted => {}
                _ => return Err(ControlError::NoAnswer),
            }
        }
        if line.is_empty() {
            return Err(ControlError::NoAnswer);
        }
        match serde_json::from_slice(&line).map_err(|_| ControlError::NoAnswer)? {
            Report::Done => return Ok(()),
            Report::Failed(why) => return Err(ControlError::Failed(why)),
            Report::NotThere(why) => return Err(ControlError::NotThere(why)),
            Report::HostEnded(how) => return Err(ControlError::HostEnded(how)),
            report => {
                if show(report).is_break() {
                    return Ok(());
                }
            }
        }
    }
}
