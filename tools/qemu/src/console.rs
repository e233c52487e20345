//! Waiting for text on a serial port.
//!
//! A thread reads the port all the time, so the machine never stalls on a full pipe. Waits look through what came since
//! the last match; each has a deadline, and its error carries everything that was printed, so that a failed test needs
//! no second run to be understood.

use crate::{Error, end_of_wait, io};
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a wait found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Which of the texts it was, as an index into the list that was waited for.
    pub which: usize,
    /// The text between the last match and this one.
    pub before: String,
    /// The rest of the line after the text, if the whole line was there already.
    pub after: String,
}

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Heard>,
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A serial port: what it printed so far, and how to write to it.
pub struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// Everything before this place was matched by earlier waits.
    place: usize,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Console").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Console {
    /// Starts to read `output`; `input` is where [`Console::send`] writes to.
    pub fn new(mut output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Console {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = output.read(&mut buffer).unwrap_or(0);
                let mut heard = ours.lock();
                heard.bytes.extend(buffer.iter().take(count));
                heard.ended = count == 0;
                ours.news.notify_all();
                if count == 0 {
                    break;
                }
            }
        });
        Console { shared, input: Box::new(input), place: 0 }
    }

    /// Writes to the port.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn send(&mut self, text: &str) -> Result<(), Error> {
        let result = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        result.map_err(io("writing to the serial port"))
    }

    /// Waits for this text, and gives the rest of its line.
    ///
    /// # Errors
    /// [`Error::Deadline`] or [`Error::Ended`].
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String, Error> {
        self.expect_any(&[text], limit).map(|found| found.after)
    }

    /// Waits for this text, and gives up at once when one of `bad` comes first (a kernel's panic, say).
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Deadline`] or [`Error::Ended`].
    pub fn expect_unless(&mut self, text: &str, bad: &[&str], limit: Duration) -> Result<String, Error> {
        let texts: Vec<&str> = std::iter::once(text).chain(bad.iter().copied()).collect();
        let found = self.expect_any(&texts, limit)?;
        match found.which.checked_sub(1).and_then(|index| bad.get(index)) {
            None => Ok(found.after),
            Some(bad) => {
                let (bad, wanted) = ((*bad).to_owned(), format!("{text:?}"));
                Err(Error::Refused { bad, wanted, transcript: self.transcript() })
            }
        }
    }

    /// Waits for any of these texts: the one that comes first.
    ///
    /// # Errors
    /// [`Error::Deadline`] or [`Error::Ended`].
    pub fn expect_any(&mut self, texts: &[&str], limit: Duration) -> Result<Expected, Error> {
        let wanted = || texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" or ");
        let end = end_of_wait(Instant::now(), limit);
        let mut heard = self.shared.lock();
        loop {
            let fresh = heard.bytes.get(self.place..).unwrap_or_default();
            if let Some((expected, length)) = first_match(fresh, texts, heard.ended) {
                self.place += length;
                return Ok(expected);
            }
            let transcript = |heard: &Heard| String::from_utf8_lossy(&heard.bytes).into_owned();
            if heard.ended {
                return Err(Error::Ended { wanted: wanted(), transcript: transcript(&heard) });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Deadline { wanted: wanted(), waited: limit, transcript: transcript(&heard) });
            }
            heard = self.shared.news.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the port is closed, and gives all that it printed.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub fn expect_end(&mut self, limit: Duration) -> Result<String, Error> {
        match self.expect_any(&[], limit) {
            Err(Error::Ended { transcript, .. }) => Ok(transcript),
            Err(Error::Deadline { waited, transcript, .. }) => {
                Err(Error::Deadline { wanted: "the machine's end".into(), waited, transcript })
            }
            Err(other) => Err(other),
            Ok(_) => Ok(self.transcript()),
        }
    }

    /// All that the port printed so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }
}

/// The first match of any of the texts, and how many bytes it and everything before it take. The rest of the line is
/// wanted too, so a match counts only when its line is complete, when nothing more can come, or when the text itself
/// ends a line or is a prompt (ends in a space).
fn first_match(fresh: &[u8], texts: &[&str], ended: bool) -> Option<(Expected, usize)> {
    let find = |text: &str| fresh.windows(text.len().max(1)).position(|window| window == text.as_bytes());
    let found = texts.iter().enumerate().filter_map(|(which, text)| Some((find(text)?, which, text.len())));
    let (start, which, length) = found.min()?;
    let (before, rest) = fresh.split_at_checked(start)?;
    let (text, rest) = rest.split_at_checked(length)?;
    let line = rest.iter().position(|byte| *byte == b'\n');
    let after = match line {
        _ if text.ends_with(b"\n") || text.ends_with(b" ") => 0,
        Some(length) => length,
        None if ended => rest.len(),
        None => return None,
    };
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let rest = words(rest.get(..after)?).trim().to_owned();
    Some((Expected { which, before: words(before), after: rest }, start + length + after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    const SOON: Duration = Duration::from_secs(10);

    fn console(text: &'static str) -> Console {
        Console::new(Cursor::new(text), std::io::sink())
    }

    #[test]
    fn finds_texts_in_order() {
        let mut port = console("boot\r\ninit: 6.12 2 cpus online\r\nlogin: ");
        assert_eq!(port.expect("init:", SOON).expect("init"), "6.12 2 cpus online");
        assert_eq!(port.expect("login: ", SOON).expect("prompt"), "");
        assert!(matches!(port.expect("boot", SOON), Err(Error::Ended { .. })), "what is matched is gone");
    }

    #[test]
    fn takes_the_one_that_comes_first() {
        let mut port = console("a panic\nall well\n");
        assert_eq!(port.expect_any(&["well", "panic"], SOON).expect("one").which, 1);
        let refused = console("a panic\nall well\n").expect_unless("well", &["panic"], SOON);
        assert!(matches!(refused, Err(Error::Refused { .. })));
        assert_eq!(console("all well\n").expect_unless("all", &["panic"], SOON).expect("well"), "well");
    }

    #[test]
    fn tells_everything_when_the_deadline_passes() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(b"half a li").expect("written");
        let mut port = Console::new(reader, std::io::sink());
        let late = port.expect("line", Duration::from_millis(50)).expect_err("no such line");
        let text = late.to_string();
        assert!(text.contains("\"line\"") && text.contains("half a li"), "{text}");
        writer.write_all(b"ne: x\n").expect("written");
        assert_eq!(port.expect("half a line:", SOON).expect("the line"), "x");
        drop(writer);
        assert_eq!(port.expect_end(SOON).expect("the end"), "half a line: x\n");
    }
}
