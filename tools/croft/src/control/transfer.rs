//! Saving VMs, dumping them, and restoring them: between the link and the operator's files.
//!
//! A clone is a save and then a restore, by way of a file that has no name: it is checked by the same code as any file.

use super::Report;
use super::server::{ANSWER, Failure, PAUSE_SECONDS, RequestHandler, Tell, tell_condition};
use crate::dump::{Dumping, Written};
use crate::saved::{self, Check, SavedError, Source, Writing, machines_must_agree};
use crate::session::{Condition, RequestError, Told};
use abi::link::request::{Ask, MAX_BULK_CHUNK, MAX_CHUNK};
use abi::link::{Carrier, Command};
use std::fs::File;
use std::io::{Seek, Write as _};
use std::path::Path;

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
        self.take_out(vm, &mut |bytes| writing.write(bytes).map(|()| Written::All), tell)?;
        let bytes = writing.keep()?;
        tell(&Report::Progress(format!("{name}: saved to {}, {bytes} bytes", file.display())))?;
        Ok(())
    }

    /// A core is made of what would be saved, as it comes.
    pub(super) fn dump(&self, name: &str, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let mut dumping = Dumping::create(file, None)?;
        self.take_out(vm, &mut |bytes| dumping.take(bytes), tell)?;
        let dumped = dumping.keep()?;
        tell(&Report::Progress(format!("{name}: {}", dumped.show(file))))?;
        Ok(())
    }

    /// All of a VM as it is now, which runs on meanwhile.
    fn take_out(&self, vm: u16, write: Write<'_>, tell: Tell<'_>) -> Result<(), Failure> {
        self.begin(vm, Ask::Save)?;
        let received = self.receive(vm, write, tell);
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

    fn receive(&self, vm: u16, write: Write<'_>, tell: Tell<'_>) -> Result<(), Failure> {
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
            // Says nothing, and finds out whether anybody listens.
            tell(&Report::Output(Vec::new()))?;
        }
        Ok(())
    }

    pub(super) fn restore(&self, vm: Option<String>, file: &Path, pause: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let mut reader = saved::open(file)?;
        // All of it is looked at before anything is made of it.
        let found = Check::file(&mut reader, file)?;
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
        found.must_fit(&name, &self.machine(number)?)?;
        self.put_in(number, &name, Source::new(saved::open(file)?, file), pause, tell)?;
        let stands = if pause { "; it stands still, `croft resume` lets it go on" } else { "" };
        tell(&Report::Progress(format!("{name}: restored from {}{stands}", file.display())))?;
        // It is restored, whether the host still says what time it is or has ended with its guests.
        if let Some(jump) = self.session.host_time(ANSWER).ok().and_then(|now| found.jump(now)) {
            tell(&Report::Progress(format!("{name}: {jump}")))?;
        }
        Ok(())
    }

    pub(super) fn clone_to(&self, name: &str, other: &str, pause: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let (vm, number) = (self.session.vm(name)?, self.session.vm(other)?);
        if vm == number {
            return Err(Failure::Itself { vm: name.to_owned() });
        }
        // All that can be known before is, so that nothing is copied for nothing.
        self.must_be_off(other)?;
        machines_must_agree((name, &self.machine(vm)?), (other, &self.machine(number)?))?;
        // Named for messages alone: it has no name, and is gone with this process, whatever ends that.
        let folder = std::env::temp_dir();
        let wrong = |source| SavedError::Io { file: folder.clone(), source };
        let mut file = tempfile::tempfile_in(&folder).map_err(wrong)?;
        let mut write = |bytes: &[u8]| file.write_all(bytes).map(|()| Written::All).map_err(wrong);
        self.take_out(vm, &mut write, tell)?;
        file.rewind().map_err(wrong)?;
        self.put_in(number, other, Source::new(file, &folder), pause, tell)?;
        let stands = if pause { "; the clone stands still, `croft resume` lets it go on" } else { "" };
        tell(&Report::Progress(format!("{other}: a clone of {name}{stands}")))?;
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
        from: Source<'_, File>,
        pause: bool,
        tell: Tell<'_>,
    ) -> Result<(), Failure> {
        self.begin(number, Ask::Restore)?;
        if let Err(failure) = self.send(number, from, tell) {
            // It may be refused already, and has ended by that.
            let _ = self.session.ask(number, Ask::EndTransfer, ANSWER);
            return Err(failure);
        }
        // It stands still at first, since whoever goes on may end at once: what it does then is not a sign that it went on.
        self.end(number, Ask::RestoreEnd { pause: true })?;
        self.wait(name, "stand still", PAUSE_SECONDS, |condition| *condition == Condition::Paused)?;
        if !pause {
            self.session.control(Command::ResumeVm { vm: number })?;
            let gone_on = self.wait(name, "go on", PAUSE_SECONDS, |condition| *condition != Condition::Paused)?;
            if gone_on.is_off() {
                tell_condition(name, &gone_on, tell)?;
            }
        }
        Ok(())
    }

    fn send(&self, vm: u16, mut from: Source<'_, File>, tell: Tell<'_>) -> Result<(), Failure> {
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
            tell(&Report::Output(Vec::new()))?;
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
