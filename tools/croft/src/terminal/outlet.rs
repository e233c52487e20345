//! Output that may find no reader.
//!
//! A pipe or a terminal that nobody reads is full after some kilobytes, and then a writer waits for ever. So `croft run`, and
//! `croft console` in a terminal, whose signals it has taken over, write into a bounded queue, and a separate thread copies that to
//! standard output: deadlines, signals and the VMs never wait for a reader. What does not fit into the queue is left out, a line at a
//! time; the gap is marked, and counted for the exit status. The first error (the reader went away, the disk is full) is reported
//! once, and ends the writing.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A reader that has taken nothing for so long is not waited for when the command is ended from outside.
pub const STALLED: Duration = Duration::from_secs(1);

/// For how long a reader is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until it has read everything.
    Endless,
    /// While it takes something.
    WhileTaken,
}

/// How many bytes may wait for the reader.
const BOUND: usize = 32 << 20;

/// The writer's end of the queue. What is written is handed over with [`Write::flush`], whole or not at all.
pub struct Outlet {
    shared: Arc<Shared>,
    record: Vec<u8>,
}

/// Knows how far the writing is.
#[derive(Clone)]
pub struct Backlog(Arc<Shared>);

/// How far the writing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Bytes that were handed over and not written yet.
    pub waiting: usize,
    /// Bytes that were written.
    pub written: u64,
    /// Bytes that found no room.
    pub lost: u64,
}

struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
    bound: usize,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Vec<u8>>,
    standing: Standing,
    /// Of the bytes lost, those whose gap is not marked yet.
    unmarked: u64,
    closed: bool,
    failed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, record: Vec<u8>) {
        self.standing.waiting += record.len();
        self.records.push_back(record);
    }
}

impl Outlet {
    /// An outlet to `out`. `failed` is called with the first error, from the thread that writes.
    pub fn new(out: impl Write + Send + 'static, failed: impl FnOnce(std::io::Error) + Send + 'static) -> Self {
        Self::bounded(out, failed, BOUND)
    }

    fn bounded(
        out: impl Write + Send + 'static,
        failed: impl FnOnce(std::io::Error) + Send + 'static,
        bound: usize,
    ) -> Self {
        let shared = Arc::new(Shared { queue: Mutex::default(), news: Condvar::new(), bound });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || write_on(out, &theirs, failed));
        Self { shared, record: Vec::new() }
    }

    /// Somebody else's look at how far the writing is.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog(Arc::clone(&self.shared))
    }
}

impl Backlog {
    /// How far the writing is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.lock().standing
    }

    /// Waits for the reader, for as long as `look` says, which waits a moment each time. Says what was not shown.
    ///
    /// # Errors
    /// Those of `look`, which end it.
    pub fn wait<E>(
        &self,
        mut look: impl FnMut() -> core::result::Result<Patience, E>,
    ) -> core::result::Result<Option<String>, E> {
        let (mut taken, mut since) = (0, Instant::now());
        let standing = loop {
            let standing = self.standing();
            if standing.waiting == 0 {
                break standing;
            }
            if standing.written != taken {
                (taken, since) = (standing.written, Instant::now());
            }
            if look()? == Patience::WhileTaken && since.elapsed() >= STALLED {
                break self.standing();
            }
        };
        let unshown = standing.lost + standing.waiting as u64;
        Ok((unshown > 0).then(|| format!("{unshown} bytes of the output were not shown: nobody read them")))
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.record.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Hands over what was written since the last time. It never waits, and never fails.
    fn flush(&mut self) -> Result<()> {
        let record = std::mem::take(&mut self.record);
        let mut queue = self.shared.lock();
        if queue.failed || record.is_empty() {
            return Ok(());
        }
        let missing = queue.unmarked;
        let mark = format!("[croft] {missing} bytes are left out here: nobody read them in time\r\n").into_bytes();
        let mark = if missing > 0 { mark } else { Vec::new() };
        if queue.standing.waiting + mark.len() + record.len() > self.shared.bound {
            queue.standing.lost += record.len() as u64;
            queue.unmarked += record.len() as u64;
            return Ok(());
        }
        if !mark.is_empty() {
            queue.unmarked = 0;
            queue.push(mark);
        }
        queue.push(record);
        drop(queue);
        self.shared.news.notify_all();
        Ok(())
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.news.notify_all();
    }
}

/// Writes record by record until the outlet is dropped, or writing fails.
fn write_on(mut out: impl Write, shared: &Shared, failed: impl FnOnce(std::io::Error)) {
    loop {
        let mut queue = shared.lock();
        let record = loop {
            match queue.records.pop_front() {
                Some(record) => break record,
                None if queue.closed => return,
                None => queue = shared.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(queue);
        if let Err(error) = write_whole(&mut out, &record) {
            // First the word, then the empty queue: whoever waits until nothing waits any more would miss a word that follows.
            failed(error);
            let mut queue = shared.lock();
            *queue = Queue { failed: true, standing: Standing { waiting: 0, ..queue.standing }, ..Queue::default() };
            return;
        }
        let mut queue = shared.lock();
        queue.standing.waiting -= record.len();
        queue.standing.written += record.len() as u64;
    }
}

/// As `write_all` and `flush`, also where somebody has made the descriptor non-blocking.
fn write_whole(out: &mut impl Write, record: &[u8]) -> Result<()> {
    let mut rest = record;
    loop {
        let step = if rest.is_empty() { out.flush().map(|()| 0) } else { out.write(rest) };
        match step {
            Ok(_) if rest.is_empty() => return Ok(()),
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Outlet, Standing};
    use std::io::{Read, Write};
    use std::sync::mpsc::channel;

    fn say(outlet: &mut Outlet, text: &str) {
        // In two pieces, as `write!` may do it.
        let (one, other) = text.split_at(text.len() / 2);
        outlet.write_all(one.as_bytes()).unwrap();
        outlet.write_all(other.as_bytes()).unwrap();
        outlet.flush().unwrap();
    }

    #[test]
    fn who_does_not_read_delays_nobody_and_learns_what_is_missing() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut outlet = Outlet::bounded(writer, |error| panic!("{error}"), 1 << 20);
        let backlog = outlet.backlog();
        let line = format!("{}\n", "x".repeat(1023));
        // Far more than a pipe and the queue hold: this would wait for ever.
        for _ in 0..4096 {
            say(&mut outlet, &line);
        }
        let Standing { waiting, lost, .. } = backlog.standing();
        assert!(waiting <= 1 << 20 && lost > 0, "{waiting} wait, {lost} are lost");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text).unwrap()
        });
        while backlog.standing().waiting > 0 {
            std::thread::yield_now();
        }
        say(&mut outlet, "the end\n");
        drop(outlet);
        let text = reader.join().unwrap();
        assert!(text.ends_with("read them in time\r\nthe end\n"), "{}", &text[text.len() - 100..]);
        // More than one gap, if the pipe took its share late.
        let gap = |line: &str| {
            let (count, rest) = line.strip_prefix("[croft] ")?.split_once(' ')?;
            (rest == "bytes are left out here: nobody read them in time").then(|| count.parse::<u64>().ok())?
        };
        assert_eq!(text.lines().filter_map(gap).sum::<u64>(), lost);
        let whole = text.lines().filter(|&kept| kept == line.trim_end()).count() as u64;
        assert_eq!(
            (whole * 1024 + lost, text.lines().count() as u64),
            (4096 * 1024, whole + text.lines().filter_map(gap).count() as u64 + 1),
            "lines are left out whole"
        );
    }

    #[test]
    fn an_error_is_told_once_and_nothing_waits_behind_it() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (told, errors) = channel();
        let mut outlet = Outlet::new(writer, move |error| {
            // Slowly, so that a queue that shows empty before the word is out is seen.
            std::thread::sleep(std::time::Duration::from_millis(50));
            told.send(error).unwrap();
        });
        say(&mut outlet, "to nobody\n");
        while outlet.backlog().standing().waiting > 0 {
            std::thread::yield_now();
        }
        assert_eq!(errors.try_recv().unwrap().kind(), std::io::ErrorKind::BrokenPipe);
        say(&mut outlet, "nor this\n");
        assert_eq!(outlet.backlog().standing().waiting, 0);
        assert!(errors.recv().is_err(), "once");
    }
}
