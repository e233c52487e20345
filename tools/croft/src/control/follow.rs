//! The server's end of streams: the log, and a console with the client's input.

use super::server::{PIECE, Tell};
use super::{MAX_LINE, Report};
use crate::session::{Ending, Outcome, Session};
use abi::link::Channel;
use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How much of a console is shown first of what came before: some screens.
const HISTORY: usize = 16 << 10;
/// How often it is looked whether the client is still there.
const LOOK: Duration = Duration::from_millis(100);
/// A client that has gone away is owed at most so many pieces more, however fast they come.
const OWED: usize = 4096;

/// Those who follow something, of whom each is to hear how the host has ended.
#[derive(Debug, Default)]
pub(super) struct Followers {
    count: Mutex<usize>,
    left: Condvar,
    is_over: AtomicBool,
}

impl Followers {
    /// The run is over: they are told so, and waited for as long as `limit`.
    pub(super) fn dismiss(&self, limit: Duration) {
        // Pairs with the load in `show`: how the session has ended is known by then.
        self.is_over.store(true, Ordering::Release);
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who take nothing learn nothing.
        drop(self.left.wait_timeout_while(count, limit, |count| *count > 0));
    }

    fn change(&self, by: impl FnOnce(&mut usize)) {
        by(&mut self.count.lock().unwrap_or_else(PoisonError::into_inner));
        self.left.notify_all();
    }

    /// Runs `follow`, and tells the client the last report, as one of them.
    pub(super) fn count(&self, follow: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        self.change(|count| *count += 1);
        let done = follow();
        self.change(|count| *count -= 1);
        done
    }
}

/// Carries `channel` to the client, and what the client types to it, until one of both ends. Returns the last report.
///
/// # Errors
/// The client cannot be reached.
pub(super) fn attend(
    session: Arc<Session>,
    channel: Channel,
    mut input: BufReader<&UnixStream>,
    followers: &Followers,
    tell: Tell<'_>,
) -> std::io::Result<Report> {
    let is_log = channel == Channel::Log;
    let Some(pieces) = session.watch(channel, if is_log { usize::MAX } else { HISTORY }) else {
        return Ok(Report::Failed("that carries no text".to_owned()));
    };
    // The session lives no longer for a client.
    let (theirs, ending) = (Arc::downgrade(&session), session.ending());
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
            // Pairs with the load in `show`: all that the client typed was passed on before.
            gone.store(true, Ordering::Release);
        });
        let end = show(&pieces, is_log, &gone, (followers, &ending), tell);
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
    (followers, ending): (&Followers, &Ending),
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
        // Pairs with the store in `attend`.
        if gone.load(Ordering::Acquire) {
            // A client that has said all still reads.
            pieces.try_iter().take(OWED).try_for_each(|piece| put(&piece))?;
            return Ok(Report::Done);
        }
        match pieces.recv_timeout(LOOK) {
            Ok(piece) => put(&piece)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let late = || Report::Failed("more came than was read here; the rest is lost".to_owned());
                return Ok(ending.outcome().map_or_else(late, last_report));
            }
        }
        // Pairs with the store in `dismiss`.
        if followers.is_over.load(Ordering::Acquire) {
            pieces.try_iter().take(OWED).try_for_each(|piece| put(&piece))?;
            let cut_off = || Report::HostEnded("`croft run` ended it".to_owned());
            return Ok(ending.outcome().map_or_else(cut_off, last_report));
        }
    }
}

/// What a client is told of this end: whether its VM had its own, or the host went away under it.
fn last_report(outcome: Outcome) -> Report {
    match outcome {
        Outcome::PoweredOff | Outcome::NotClean(_) => Report::Done,
        other => Report::HostEnded(other.to_string()),
    }
}
