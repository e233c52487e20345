//! The server's end of streams: the log, and a console with the client's input.

use super::server::{PIECE, Tell};
use super::{MAX_LINE, Report};
use crate::session::Session;
use abi::link::Channel;
use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// How much of a console is shown first of what came before: some screens.
const HISTORY: usize = 16 << 10;
/// How often it is looked whether the client is still there.
const LOOK: Duration = Duration::from_millis(100);
/// A client that has gone away is owed at most so many pieces more, however fast they come.
const OWED: usize = 4096;

/// Carries `channel` to the client, and what the client types to it, until one of both ends. Returns the last report.
///
/// # Errors
/// The client cannot be reached.
pub(super) fn attend(
    session: Arc<Session>,
    channel: Channel,
    mut input: BufReader<&UnixStream>,
    tell: Tell<'_>,
) -> std::io::Result<Report> {
    let is_log = channel == Channel::Log;
    let Some(pieces) = session.watch(channel, if is_log { usize::MAX } else { HISTORY }) else {
        return Ok(Report::Failed("that carries no text".to_owned()));
    };
    // The session lives no longer for a client.
    let theirs = Arc::downgrade(&session);
    drop(session);
    let stream = *input.get_ref();
    stream.set_read_timeout(None)?;
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Some(typed) = next(&mut input) {
                let sent = theirs.upgrade().is_some_and(|session| is_log || session.send(channel, &typed).is_ok());
                if !sent {
                    break;
                }
            }
            gone.store(true, Ordering::Release);
        });
        let end = show(&pieces, is_log, &gone, &theirs, tell);
        // Whoever waits for what the client types does so no longer.
        let _ = stream.shutdown(Shutdown::Read);
        end
    })
}

/// What the client types next; `None` if it has no more to say, or talks nonsense.
fn next(input: &mut BufReader<&UnixStream>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

fn show(
    pieces: &Receiver<Vec<u8>>,
    is_log: bool,
    gone: &AtomicBool,
    session: &Weak<Session>,
    tell: Tell<'_>,
) -> std::io::Result<Report> {
    let history = pieces.recv().unwrap_or_default();
    // From the start of a line, so that no letter and no control sequence is cut in two.
    let cut = !is_log && history.len() == HISTORY;
    let start = if cut { history.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1) } else { 0 };
    // Even if it is empty: it says that the client is let in.
    tell(&Report::Output(Vec::new()))?;
    let mut put = |bytes: &[u8]| bytes.chunks(PIECE).try_for_each(|piece| tell(&Report::Output(piece.to_vec())));
    put(history.get(start..).unwrap_or_default())?;
    loop {
        if gone.load(Ordering::Acquire) {
            // A client that has said all still reads.
            pieces.try_iter().take(OWED).try_for_each(|piece| put(&piece))?;
            return Ok(Report::Done);
        }
        match pieces.recv_timeout(LOOK) {
            Ok(piece) => put(&piece)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let has_ended = session.upgrade().is_none_or(|session| session.has_ended());
                let late = || Report::Failed("more came than was read here; the rest is lost".to_owned());
                return Ok(if has_ended { Report::Done } else { late() });
            }
        }
    }
}
