//! Saving VMs, and restoring them: between the link and files of the operator's.

use super::Report;
use super::server::{ANSWER, Desk, Failure, PAUSE_SECONDS, Tell};
use crate::saved::{Check, SavedError, Writing};
use crate::session::{Condition, Told};
use abi::link::request::{Ask, MAX_CHUNK};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that are asked for at a time, or sent: between two of them others have the link.
const PIECE: usize = 16 * MAX_CHUNK;

impl Desk<'_> {
    pub(super) fn save(&self, name: &str, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let writing = Writing::create(file)?;
        self.session.ask(vm, Ask::Save, ANSWER)?;
        let received = self.receive(vm, writing, tell);
        // Whatever has become of it, the VM goes on.
        let ended = self.session.ask(vm, Ask::EndTransfer, ANSWER);
        let bytes = received?.keep()?;
        ended?;
        tell(&Report::Progress(format!("{name}: saved to {}, {bytes} bytes", file.display())))?;
        Ok(())
    }

    fn receive(&self, vm: u16, mut writing: Writing, tell: Tell<'_>) -> Result<Writing, Failure> {
        let mut check = Check::new();
        while !check.is_whole() {
            for told in self.session.ask(vm, Ask::SaveNext { length: PIECE as u32 }, ANSWER)? {
                if let Told::Value(bytes) = told {
                    check.take(&bytes).map_err(SavedError::from)?;
                    writing.write(&bytes)?;
                }
            }
            // Says nothing, and finds out whether anybody listens.
            tell(&Report::Output(Vec::new()))?;
        }
        Ok(writing)
    }

    pub(super) fn restore(&self, vm: Option<String>, file: &Path, pause: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let wrong = |source| SavedError::Io { file: file.to_path_buf(), source };
        let mut reader = File::open(file).map_err(wrong)?;
        // All of it is looked at before anything is made of it.
        let saved = Check::file(&mut reader, file)?;
        let (number, name) = match vm {
            Some(name) => (self.session.vm(&name)?, name),
            None => match self.session.vm(&saved.name) {
                Ok(number) => (number, saved.name.clone()),
                Err(_) => {
                    let known = self.session.names().join(", ");
                    return Err(Failure::NoPlace { file: file.display().to_string(), vm: saved.name, known });
                }
            },
        };
        let condition = self.session.condition(&name)?;
        if !condition.is_off() {
            return Err(Failure::InUse { vm: name, condition });
        }
        let told = self.session.ask(number, Ask::Machine, ANSWER)?;
        let here = told.into_iter().find_map(|told| if let Told::Value(bytes) = told { Some(bytes) } else { None });
        saved.must_fit(&name, &here.unwrap_or_default())?;
        self.session.ask(number, Ask::Restore, ANSWER)?;
        if let Err(failure) = self.send(number, &mut File::open(file).map_err(wrong)?, file, tell) {
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
        self.wait(&name, "go on", PAUSE_SECONDS, is_done)?;
        let stands = if pause { "; it stands still, `croft resume` lets it go on" } else { "" };
        tell(&Report::Progress(format!("{name}: restored from {}{stands}", file.display())))?;
        Ok(())
    }

    fn send(&self, vm: u16, reader: &mut File, file: &Path, tell: Tell<'_>) -> Result<(), Failure> {
        let (mut offset, mut piece) = (0, Vec::new());
        loop {
            piece.clear();
            let wrong = |source| SavedError::Io { file: file.to_path_buf(), source };
            reader.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(wrong)?;
            if piece.is_empty() {
                return Ok(());
            }
            let mut parts: Vec<Ask<'_>> = Vec::new();
            for bytes in piece.chunks(MAX_CHUNK) {
                parts.push(Ask::RestoreNext { offset, bytes, last: false });
                offset += bytes.len() as u64;
            }
            if let Some(Ask::RestoreNext { last, .. }) = parts.last_mut() {
                *last = true;
            }
            self.session.request(vm, parts.into_iter(), ANSWER)?;
            tell(&Report::Output(Vec::new()))?;
        }
    }
}
