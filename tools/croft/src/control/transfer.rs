//! Saving VMs, dumping them, and restoring them: between the link and the operator's files.
//!
//! A clone is a save and then a restore, by way of a file that has no name: it is checked by the same code as any file.
//!
//! A VM that is restored runs as soon as its state is sent ([`RequestHandler::send_pieces`]). Then its memory is sent: always what it waits
//! for first. One that is to stand still has no use for that, and is sent as the file has it.

use super::Report;
use super::moves::{Move, UnderWay};
use super::server::{ANSWER, Failure, PAUSE_SECONDS, RequestHandler, Tell, tell_condition};
use crate::dump::{Dumping, Written};
use crate::saved::{self, Check, Index, SavedError, Source, Writing, machines_must_agree};
use crate::session::{Condition, RequestError, Told};
use abi::crc32c;
use abi::link::Carrier;
use abi::link::request::{Ask, MAX_BULK_CHUNK, MAX_CHUNK, Over};
use snapshot::file::{MOST_ZEROS, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE, Pieces};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek, Write as _};
use std::path::{Path, PathBuf};
use units::PAGE_SIZE;

/// Takes what comes of a saved VM; or nothing, to go on with what came before.
type Write<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Written, SavedError>;

/// Bytes that are asked for at a time, or sent, by the serial port: between two of them others have the link.
const PIECE: usize = 16 * MAX_CHUNK;
/// So often is the same piece asked for, or sent, if the link loses it: more often than the link goes over, or is stuck, by chance.
const TRIES: u32 = 8;

impl RequestHandler<'_> {
    pub(super) fn save(&self, name: &str, file: &Path, compress: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let mut writing = Writing::create(file, compress)?;
        let what = format!("{name}: being saved");
        self.take_out(vm, &what, &mut |bytes| writing.write(bytes).map(|()| Written::All), tell)?;
        let bytes = writing.keep()?;
        tell(&Report::Progress(format!("{name}: saved to {}, {bytes} bytes", file.display())))?;
        Ok(())
    }

    /// A core is made of what would be saved, as it comes.
    pub(super) fn dump(&self, name: &str, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let mut dumping = Dumping::create(file, None)?;
        self.take_out(vm, &format!("{name}: being dumped"), &mut |bytes| dumping.take(bytes), tell)?;
        let dumped = dumping.keep()?;
        tell(&Report::Progress(format!("{name}: {}", dumped.show(file))))?;
        Ok(())
    }

    /// All of a VM as it is now, which runs on meanwhile.
    fn take_out(&self, vm: u16, what: &str, write: Write<'_>, tell: Tell<'_>) -> Result<(), Failure> {
        let _under_way = self.moves.begin(vm, Move::Out);
        self.begin(vm, Ask::Save)?;
        let received = self.receive(vm, what, write, tell);
        // Whatever has become of it, the VM's memory is its own again.
        let ended = self.end(vm, Ask::EndTransfer);
        received?;
        ended?;
        Ok(())
    }

    /// Begins a transfer. If it is not known whether it has begun, that one ends, of which nothing was made yet, and another begins.
    fn begin(&self, vm: u16, ask: Ask<'_>) -> Result<(), RequestError> {
        let begin = || {
            self.session.ask(vm, ask, ANSWER).inspect_err(|error| {
                if *error == RequestError::Lost {
                    let _ = self.end(vm, Ask::EndTransfer);
                }
            })
        };
        until_it_arrives(begin).map(drop)
    }

    /// Ends a transfer. If it is not known whether that was done it is asked for once more, and refused if it was.
    fn end(&self, vm: u16, ask: Ask<'_>) -> Result<(), RequestError> {
        match self.session.ask(vm, ask, ANSWER) {
            Err(RequestError::Lost) => match until_it_arrives(|| self.session.ask(vm, ask, ANSWER)) {
                Err(RequestError::Refused(_)) => Ok(()),
                done => done.map(drop),
            },
            done => done.map(drop),
        }
    }

    /// How many bytes are asked for at a time, or sent, and in pieces of how many.
    fn pieces(&self) -> (usize, usize) {
        match self.session.carrier() {
            Carrier::Uart => (PIECE, MAX_CHUNK),
            Carrier::Port => (MAX_BULK_CHUNK, MAX_BULK_CHUNK),
        }
    }

    fn receive(&self, vm: u16, what: &str, write: Write<'_>, tell: Tell<'_>) -> Result<(), Failure> {
        let (mut check, mut offset) = (Check::new(), 0);
        while !check.is_whole() {
            let next = || {
                let (length, _) = self.pieces();
                self.session.ask(vm, Ask::SaveNext { offset, length: length as u32 }, ANSWER)
            };
            for told in until_it_arrives(next)? {
                if let Told::Value(bytes) = told {
                    offset += bytes.len() as u64;
                    check.take(&bytes).map_err(SavedError::from)?;
                    let mut progress = write(&bytes)?;
                    while progress == Written::More {
                        // Asks for nothing, so that the hypervisor knows that somebody is still there.
                        until_it_arrives(|| self.session.ask(vm, Ask::SaveNext { offset, length: 0 }, ANSWER))?;
                        tell(&Report::Output(Vec::new()))?;
                        progress = write(&[])?;
                    }
                }
            }
            // And finds out whether anybody listens.
            tell(&Report::Meanwhile { what: what.to_owned(), bytes: offset, of: None })?;
        }
        Ok(())
    }

    pub(super) fn restore(&self, vm: Option<String>, file: &Path, pause: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let mut reader = saved::open(file)?;
        // All of it is looked at before anything is made of it.
        let found = look_at(&mut reader, file, &format!("{}: being looked at", file.display()), tell)?;
        let (number, name) = match vm {
            Some(name) => (self.session.vm(&name)?, name),
            None => match self.session.vm(&found.name) {
                Ok(number) => (number, found.name.clone()),
                Err(_) => {
                    let known = self.session.names().join(", ");
                    return Err(Failure::NoPlace { file: file.display().to_string(), vm: found.name, known });
                }
            },
        };
        self.must_be_off(&name)?;
        let here = self.machine(number)?;
        found.must_fit(&name, &here)?;
        reader.rewind().map_err(|source| SavedError::Io { file: file.to_path_buf(), source })?;
        self.put_in(number, &name, (reader, file, found.index()), pause, tell)?;
        let stands = if pause { "; it stands still, `croft resume` lets it go on" } else { "" };
        tell(&Report::Progress(format!("{name}: restored from {}{stands}", file.display())))?;
        // It is restored, whether the host still says what time it is or has ended with its guests.
        if let Some(jump) = self.session.host_time(ANSWER).ok().and_then(|now| found.jump(now)) {
            tell(&Report::Progress(format!("{name}: {jump}")))?;
        }
        self.tell_of_its_clock((number, &name), &found, &here, tell)
    }

    pub(super) fn clone_to(&self, name: &str, other: &str, pause: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let (vm, number) = (self.session.vm(name)?, self.session.vm(other)?);
        if vm == number {
            return Err(Failure::Itself { vm: name.to_owned() });
        }
        // All that can be known before is, so that nothing is copied for nothing.
        self.must_be_off(other)?;
        let changes = |vm: u16| self.about.changes.get(usize::from(vm)).cloned().unwrap_or_default();
        let (changes, here) = (changes(vm), changes(number));
        if changes != here {
            return Err(Failure::OtherChanges { vm: name.to_owned(), name: other.to_owned(), changes, here });
        }
        let there = self.machine(number)?;
        machines_must_agree((name, &self.machine(vm)?), (other, &there))?;
        // Named for messages alone: it has no name, and is gone with this process, whatever ends that.
        let folder = std::env::temp_dir();
        let place = PathBuf::from(format!("{} (the variable TMPDIR names this folder)", folder.display()));
        let wrong = |source| SavedError::Io { file: place.clone(), source };
        let mut file = tempfile::tempfile_in(&folder).map_err(wrong)?;
        let mut write = |bytes: &[u8]| file.write_all(bytes).map(|()| Written::All).map_err(wrong);
        self.take_out(vm, &format!("{name}: being saved for {other}"), &mut write, tell)?;
        file.rewind().map_err(wrong)?;
        let found = look_at(&mut file, &folder, &format!("{other}: being looked at"), tell)?;
        file.rewind().map_err(wrong)?;
        self.put_in(number, other, (file, &folder, found.index()), pause, tell)?;
        let stands = if pause { "; the clone stands still, `croft resume` lets it go on" } else { "" };
        tell(&Report::Progress(format!("{other}: a clone of {name}{stands}")))?;
        self.tell_of_its_clock((number, other), &found, &there, tell)
    }

    /// Says what the guest of a VM that was restored makes of its clock there, if that is wrong.
    fn tell_of_its_clock(
        &self,
        (number, name): (u16, &str),
        found: &saved::Contents,
        there: &[u8],
        tell: Tell<'_>,
    ) -> Result<(), Failure> {
        if let Some(wrong) = found.wrong_clock(there) {
            self.session.has_a_wrong_clock(number);
            tell(&Report::Progress(format!("{name}: {wrong}")))?;
        }
        Ok(())
    }

    fn must_be_off(&self, name: &str) -> Result<(), Failure> {
        let condition = self.session.condition(name)?;
        if condition.is_off() { Ok(()) } else { Err(Failure::InUse { vm: name.to_owned(), condition }) }
    }

    /// A VM's machine, as the hypervisor describes it.
    fn machine(&self, vm: u16) -> Result<Vec<u8>, Failure> {
        let told = self.session.ask(vm, Ask::Machine, ANSWER)?;
        let machine = told.into_iter().find_map(|told| if let Told::Value(bytes) = told { Some(bytes) } else { None });
        Ok(machine.unwrap_or_default())
    }

    /// Lets what is in a file, which was looked at, take the place of a VM that is off.
    fn put_in(
        &self,
        number: u16,
        name: &str,
        (mut from, file, index): (File, &Path, &Index),
        pause: bool,
        tell: Tell<'_>,
    ) -> Result<(), Failure> {
        let mut under_way = self.moves.begin(number, Move::In);
        self.begin(number, Ask::Restore)?;
        let sent = if pause {
            self.send(number, &format!("{name}: being restored"), (from, file), tell)
        } else {
            self.send_pieces((&mut under_way, number, name), (&mut from, file, index), tell)
        };
        if let Err(failure) = sent {
            // It may be refused already, and has ended by that.
            let _ = self.session.ask(number, Ask::EndTransfer, ANSWER);
            // A guest that runs may end, too, before it has had a use for all of its memory. It was restored.
            let Failure::Over(how) = failure else { return Err(failure) };
            let how = match how {
                Over::PoweredOff => "has powered itself off",
                Over::Afresh => "was reset, and starts afresh,",
            };
            tell(&Report::Progress(format!("{name}: its guest {how} before all of its memory had come")))?;
            return Ok(());
        }
        self.end(number, Ask::RestoreEnd { pause })?;
        if pause {
            self.wait(name, "stand still", PAUSE_SECONDS, |condition| *condition == Condition::Paused)?;
            return Ok(());
        }
        let condition = self.session.condition(name)?;
        if condition.is_off() {
            tell_condition(name, &condition, tell)?;
        }
        Ok(())
    }

    /// Sends the state, with which the VM runs, and then its memory. What it waits for comes before all else, then what follows that, since
    /// a guest often goes on there. Blocks of zeros take next to nothing, and so come first of what nobody waits for.
    fn send_pieces(
        &self,
        (under_way, vm, name): (&mut UnderWay<'_>, u16, &str),
        (from, file, index): (&mut File, &Path, &Index),
        tell: Tell<'_>,
    ) -> Result<(), Failure> {
        let (length, sections) = index.begin();
        let mut stream = Stream { handler: self, vm, offset: 0, ready: vec![0; length as usize] };
        from.read_exact(&mut stream.ready).map_err(|source| SavedError::Io { file: file.to_path_buf(), source })?;
        let mut pieces = Pieces::begin(crc32c::compute, &mut stream.ready, sections);
        let mut wanted = stream.send(Portion::All, tell)?;
        under_way.arrives();
        let mut left: BTreeSet<u64> = index.others().collect();
        let mut zeros: BTreeMap<u64, u64> = index.zeros().iter().copied().flat_map(at_a_time).collect();
        let (mut next, all) = (0, left.len());
        loop {
            let [bytes, of] = [all - left.len(), all].map(|pieces| pieces as u64 * PAGES_OF_A_PIECE * PAGE_SIZE);
            tell(&Report::Meanwhile { what: format!("{name}: runs while its memory comes"), bytes, of: Some(of) })?;
            if let Some(piece) = wanted.filter(|piece| left.remove(piece)) {
                next = piece + 1;
                let bytes = index.piece(piece, from, file, |runs| pieces.piece(runs))?;
                stream.ready.extend(bytes.map_err(SavedError::from)?);
                wanted = stream.send(Portion::All, tell)?;
            } else if !zeros.is_empty() {
                let block = wanted.map_or(0, |piece| piece * PAGES_OF_A_PIECE / PAGES_OF_A_BLOCK);
                let around = zeros.range(..=block).next_back().or_else(|| zeros.first_key_value());
                if let Some((&first, &count)) = around {
                    zeros.remove(&first);
                    stream.ready.extend(pieces.zeros(first, count).map_err(SavedError::from)?);
                }
                wanted = stream.send(Portion::All, tell)?;
            } else if let Some(piece) = left.range(next..).next().or_else(|| left.first()).copied() {
                left.remove(&piece);
                next = piece + 1;
                let bytes = index.piece(piece, from, file, |runs| pieces.piece(runs))?;
                stream.ready.extend(bytes.map_err(SavedError::from)?);
                wanted = stream.send(Portion::FullMessages, tell)?;
            } else {
                stream.ready.extend(pieces.end().map_err(SavedError::from)?);
                stream.send(Portion::All, tell)?;
                return Ok(());
            }
        }
    }

    fn send(&self, vm: u16, what: &str, (from, file): (File, &Path), tell: Tell<'_>) -> Result<(), Failure> {
        let of = from.metadata().map(|metadata| metadata.len()).ok();
        let mut from = Source::new(from, file);
        let (mut offset, mut piece) = (0, Vec::new());
        loop {
            piece.clear();
            let (length, _) = self.pieces();
            loop {
                match from.next(length - piece.len())? {
                    [] => break,
                    bytes => piece.extend_from_slice(bytes),
                }
            }
            if piece.is_empty() {
                return Ok(());
            }
            let mut told = until_it_arrives(|| self.send_piece(vm, offset, &piece))?;
            offset += piece.len() as u64;
            tell(&Report::Meanwhile { what: what.to_owned(), bytes: from.taken(), of })?;
            // A few bytes may stand for many pages, which are written a few at a time.
            while told.contains(&Told::More) {
                told = until_it_arrives(|| self.send_piece(vm, offset, &[]))?;
                tell(&Report::Output(Vec::new()))?;
            }
        }
    }

    /// Sends a piece that stands at `offset`, or nothing, as whatever carries the link now takes it.
    fn send_piece(&self, vm: u16, offset: u64, piece: &[u8]) -> Result<Vec<Told>, RequestError> {
        let (_, longest) = self.pieces();
        let count = piece.len().div_ceil(longest).max(1);
        let parts = (0..count).map(|index| {
            let from = index * longest;
            let bytes = piece.get(from..piece.len().min(from + longest)).unwrap_or_default();
            Ask::RestoreNext { offset: offset + from as u64, bytes, last: index + 1 == count }
        });
        self.session.request(vm, parts, ANSWER)
    }
}

/// Looks at a whole file, and says meanwhile how far that is.
fn look_at(from: &mut File, file: &Path, what: &str, tell: Tell<'_>) -> Result<saved::Contents, Failure> {
    let of = from.metadata().map(|metadata| metadata.len()).ok();
    Check::file_while(from, file, |bytes| Ok(tell(&Report::Meanwhile { what: what.to_owned(), bytes, of })?))
}

/// How much is sent of what is ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Portion {
    All,
    /// As much as fills messages.
    FullMessages,
}

/// What is being sent of a VM that runs.
struct Stream<'a> {
    handler: &'a RequestHandler<'a>,
    vm: u16,
    /// Where the next byte stands, of those that are ready.
    offset: u64,
    ready: Vec<u8>,
}

impl Stream<'_> {
    /// Sends what is ready, or that portion of it. Says which piece the VM waits for.
    fn send(&mut self, portion: Portion, tell: Tell<'_>) -> Result<Option<u64>, Failure> {
        let (length, _) = self.handler.pieces();
        let mut told = Vec::new();
        let mut sent = 0;
        for bytes in self.ready.chunks(length).filter(|bytes| portion == Portion::All || bytes.len() == length) {
            told = until_it_arrives(|| self.handler.send_piece(self.vm, self.offset, bytes))?;
            self.offset += bytes.len() as u64;
            sent += bytes.len();
            tell(&Report::Output(Vec::new()))?;
            while told.contains(&Told::More) {
                told = until_it_arrives(|| self.handler.send_piece(self.vm, self.offset, &[]))?;
                tell(&Report::Output(Vec::new()))?;
            }
            if let Some(how) = told.iter().find_map(|told| if let Told::Over(how) = told { Some(*how) } else { None }) {
                return Err(Failure::Over(how));
            }
        }
        self.ready.drain(..sent);
        Ok(told.iter().find_map(|told| if let Told::Wanted(piece) = told { Some(u64::from(*piece)) } else { None }))
    }
}

/// Blocks of zeros, as many at a time as one section may have.
fn at_a_time((first, count): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    (0..count).step_by(MOST_ZEROS as usize).map(move |done| (first + done, MOST_ZEROS.min(count - done)))
}

/// Asks until the answer has not been lost on its way. What is asked for is the same each time, so nothing is wrong with that.
fn until_it_arrives(mut ask: impl FnMut() -> Result<Vec<Told>, RequestError>) -> Result<Vec<Told>, RequestError> {
    for _ in 1..TRIES {
        match ask() {
            Err(RequestError::Lost) => {}
            done => return done,
        }
    }
    ask()
}
