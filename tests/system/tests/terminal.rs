//! The demonstration as a person meets it: `cargo xtask run` on a terminal, two guests to type at, and the keys between.

use anyhow::{Context, Result, bail, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use system::host::Turn;
use system::{BOOT, SOON, place, scenario};

fn main() -> ExitCode {
    system::run(vec![scenario("terminal::demonstration", demonstration)])
}

/// A terminal with a program on it, and the person in front.
struct Terminal {
    person: File,
    program_side: File,
    shown: String,
    screen: Receiver<Vec<u8>>,
    child: Child,
}

impl Terminal {
    /// Runs `command` on a new terminal.
    fn start(mut command: Command) -> Result<Self> {
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
    fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
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

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.person.write_all(keys.as_bytes())?)
    }

    /// Whether the terminal edits lines and echoes, as it does for a shell.
    fn is_cooked(&self) -> Result<bool> {
        let modes = tcgetattr(&self.program_side)?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// Waits for the program's end.
    fn end(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
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

fn demonstration() -> Result<()> {
    // Guests and emulator are there, or this is skipped.
    place::kernel("linux-6.12-cloud")?;
    place::hypervisor()?;
    let _turn = Turn::take()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["xtask", "run"]).current_dir(place::project()).env("TERM", "xterm");
    let mut terminal = Terminal::start(command)?;
    ensure!(terminal.is_cooked()?, "a new terminal is not as a shell wants it");

    terminal.expect("cpus online", BOOT * 2)?;
    terminal.expect("# ", SOON)?;
    ensure!(!terminal.is_cooked()?, "the terminal would keep keys from the guest");
    terminal.press("me=first; echo I am $me of $(nproc)\r")?;
    terminal.expect("\nI am first of 2", SOON)?;
    // Ctrl-C is the guest's: it ends a program there, and not the demonstration.
    terminal.expect("# ", SOON)?;
    terminal.press("(echo asleep; sleep 1000)\r")?;
    terminal.expect("\nasleep\r\n", SOON)?;
    terminal.press("\x03")?;
    terminal.expect("# ", SOON)?;

    terminal.press("\x1dn")?;
    terminal.expect("# ", BOOT)?;
    terminal.press("me=${me}second; echo I am $me\r")?;
    terminal.expect("\nI am second", SOON)?;
    terminal.press("\x1d0")?;
    terminal.press("\recho back at $me\r")?;
    terminal.expect("\nback at first", SOON)?;

    terminal.press("\x1dl")?;
    terminal.expect("db: started (1)", SOON)?;
    terminal.press("\x1ds")?;
    terminal.expect("exits", SOON)?;
    terminal.press("\x1dq")?;
    let status = terminal.end(SOON)?;
    ensure!(status.success(), "it ended with {status}; shown is:\n{}", terminal.shown);
    ensure!(terminal.is_cooked()?, "the terminal was not put back");
    Ok(())
}
