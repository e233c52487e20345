//! A program on a terminal, and the person in front of it.

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A terminal with a program on it, and the person in front.
pub struct Terminal {
    person: File,
    program_side: File,
    shown: String,
    screen: Receiver<Vec<u8>>,
    child: Child,
}

impl Terminal {
    /// Runs `command` on a new terminal.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn start(mut command: Command) -> Result<Self> {
        let person: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&person)?;
        unlockpt(&person)?;
        let name = ptsname(&person, Vec::new())?.into_string()?;
        let program_side = OpenOptions::new().read(true).write(true).open(name)?;
        command.stdin(program_side.try_clone()?).stdout(program_side.try_clone()?).stderr(program_side.try_clone()?);
        let child = command.spawn().context("starting the program")?;
        let person = File::from(person);
        let mut reader = person.try_clone()?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The terminal says EIO when nobody has the other side any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let _ = sender.send(buffer.get(..count).unwrap_or_default().to_vec());
            }
        });
        Ok(Terminal { person, program_side, shown: String::new(), screen, child })
    }

    /// Waits until `text` is shown, after all that was waited for before.
    ///
    /// # Errors
    /// It was not, with what was.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return Ok(());
            }
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("waited {limit:?} for {text:?}; shown is:\n{}", self.shown),
                Err(RecvTimeoutError::Disconnected) => bail!("the terminal is closed; shown is:\n{}", self.shown),
            }
        }
    }

    /// What is shown and was not waited for yet.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Presses keys.
    ///
    /// # Errors
    /// The terminal is closed.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.person.write_all(keys.as_bytes())?)
    }

    /// Whether the terminal edits lines and echoes, as it does for a shell.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn is_cooked(&self) -> Result<bool> {
        let modes = tcgetattr(&self.program_side)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It runs on.
    pub fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the program runs on; shown is:\n{}", self.shown)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only does something if the scenario failed.
        if self.press("\x1dq").is_ok() && self.end(Duration::from_secs(5)).is_ok() {
            return;
        }
        if let Err(error) = self.child.kill()
            && error.kind() != ErrorKind::InvalidInput
        {
            eprintln!("the demonstration cannot be ended: {error}");
        }
        let _ = self.child.wait();
    }
}
