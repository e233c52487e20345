//! Saving VMs, dumping them, and restoring them: between the link and the operator's files.
//!
//! A clone is a save and then a restore, by way of a file that has no name: it is checked by the same code as any file.

use super::Report;
use super::server::{ANSWER, Desk, Failure, PAUSE_SECONDS, Tell};
use crate::dump::Dumping;
use crate::saved::{self, Check, SavedError, Writing, machines_must_agree};
use crate::session::{Condition, Told};
use abi::link::Carrier;
use abi::link::request::{Ask, MAX_BULK_CHUNK, MAX_CHUNK};
use std::fs::File;
use std::io::{Read, Seek, Write as _};
use std::path::Path;

/// Takes what comes of a saved VM.
type Write<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), SavedError>;

/// Bytes that are asked for at a time, or sent, by the serial port: between two of them others have the link.
const PIECE: usize = 16 * MAX_CHUNK;

impl Desk<'_> {
    pub(super) fn save(&self, name: &str, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let mut writing = Writing::create(file)?;
        self.take_out(vm, &mut |bytes| writing.write(bytes), tell)?;
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
        self.session.ask(vm, Ask::Save, ANSWER)?;
        let received = self.receive(vm, write, tell);
        // Whatever has become of it, the VM's memory is its own again.
        let ended = self.session.ask(vm, Ask::EndTransfer, ANSWER);
        received?;
        ended?;
        Ok(())
    }

    /// How many bytes are asked for at a time, or sent, and in pieces of how many.
    fn pieces(&self) -> (usize, usize) {
        match self.session.carrier() {
            Carrier::Uart => (PIECE, MAX_CHUNK),
            Carrier::Port => (MAX_BULK_CHUNK, MAX_BULK_CHUNK),
        }
    }

    fn receive(&self, vm: u16, write: Write<'_>, tell: Tell<'_>) -> Result<(), Failure> {
        let mut check = Check::new();
        while !check.is_whole() {
            let (length, _) = self.pieces();
            for told in self.session.ask(vm, Ask::SaveNext { length: length as u32 }, ANSWER)? {
                if let Told::Value(bytes) = told {
                    check.take(&bytes).map_err(SavedError::from)?;
                    write(&bytes)?;
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
        self.put_in(number, &name, (&mut saved::open(file)?, file), pause, tell)?;
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
        self.take_out(vm, &mut |bytes| file.write_all(bytes).map_err(wrong), tell)?;
        file.rewind().map_err(wrong)?;
        self.put_in(number, other, (&mut file, &folder), pause, tell)?;
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
        (from, file): (&mut File, &Path),
        pause: bool,
        tell: Tell<'_>,
    ) -> Result<(), Failure> {
        self.session.ask(number, Ask::Restore, ANSWER)?;
        if let Err(failure) = self.send(number, from, file, tell) {
            // It may be refused already, and has ended by that.
            let _ = self.session.ask(number, Ask::EndTransfer, ANSWER);
            return Err(failure);
        }
        self.session.ask(number, Ask::RestoreEnd { pause }, ANSWER)?;
        let is_done = |condition: &Condition| match condition {
            Condition::Paused => pause,
            Condition::Running { .. } => !pause,
            _ => false,
        };
        self.wait(name, "go on", PAUSE_SECONDS, is_done)?;
        Ok(())
    }

    fn send(&self, vm: u16, reader: &mut File, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let (mut offset, mut piece) = (0, Vec::new());
        loop {
            piece.clear();
            let wrong = |source| SavedError::Io { file: file.to_path_buf(), source };
            let (length, longest) = self.pieces();
            Read::by_ref(reader).take(length as u64).read_to_end(&mut piece).map_err(wrong)?;
            if piece.is_empty() {
                return Ok(());
            }
            let mut parts: Vec<Ask<'_>> = Vec::new();
            for bytes in piece.chunks(longest) {
                parts.push(Ask::RestoreNext { offset, bytes, last: false });
                offset += bytes.len() as u64;
            }
            if let Some(Ask::RestoreNext { last, .. }) = parts.last_mut() {
                *last = true;
            }
            let mut told = self.session.request(vm, parts.into_iter(), ANSWER)?;
            tell(&Report::Output(Vec::new()))?;
            // A few bytes may stand for many pages, which are written a few at a time.
            while told.contains(&Told::More) {
                told = self.session.ask(vm, Ask::RestoreNext { offset, bytes: &[], last: true }, ANSWER)?;
                tell(&Report::Output(Vec::new()))?;
            }
        }
    }
}
