//! The client's end.

use super::{MAX_LINE, Order, Report, place};
use crate::output::complain;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// After this time without any answer, the person who waits is told.
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

/// What is said of a host that says nothing, once.
struct Silence {
    is_over: bool,
}

impl Silence {
    /// A process that was stopped takes connections, and answers none. Nor does it take what no longer fits in between.
    fn begin(stream: &UnixStream) -> Result<Self, ControlError> {
        let both = stream.set_read_timeout(Some(SILENCE)).and_then(|()| stream.set_write_timeout(Some(SILENCE)));
        both.map_err(|_| ControlError::NoAnswer)?;
        Ok(Self { is_over: false })
    }

    /// Goes on waiting after this error, if that is one to wait after.
    fn goes_on(&mut self, stream: &UnixStream, error: &std::io::Error) -> Result<(), ControlError> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let seconds = SILENCE.as_secs();
                complain(&format!(
                    "croft: the host has not answered for {seconds} s; perhaps its `croft run` is stopped (kill -CONT)"
                ));
                self.end(stream)
            }
            ErrorKind::Interrupted => Ok(()),
            _ => Err(ControlError::NoAnswer),
        }
    }

    /// From now on it may take as long as it wants.
    fn end(&mut self, stream: &UnixStream) -> Result<(), ControlError> {
        if !std::mem::replace(&mut self.is_over, true) {
            let both = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None));
            both.map_err(|_| ControlError::NoAnswer)?;
        }
        Ok(())
    }
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
    let mut silence = Silence::begin(&stream)?;
    let mut rest = &*line;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(0) => return Err(ControlError::NoAnswer),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) => silence.goes_on(&stream, &error)?,
        }
    }
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        while let Err(error) = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            silence.goes_on(reader.get_ref(), &error)?;
        }
        // It has heard of it, and what it does now may take its time.
        silence.end(reader.get_ref())?;
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
