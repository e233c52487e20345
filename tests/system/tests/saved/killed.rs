//! Somebody is killed, or the link is cut, at random moments of saves and restores.
//!
//! A moment is a number of bytes that have come by the link's port; no more is taken then, until somebody is killed. So a moment lies in the
//! middle of what is under way, however fast or slow this computer is.

use super::{NAME, Operated, control_file, host, kept};
use abi::link::request::Ask;
use anyhow::{Context, Result, ensure};
use croft::control;
use croft::session::Condition;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use system::SOON;
use system::host::Host;

/// Who is killed, or what is cut, in the middle of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    /// The client of a save.
    SavesClient,
    /// The client of a restore.
    RestoresClient,
    /// The link's port is pulled while a VM is saved, or restored.
    SavesPort,
    RestoresPort,
    /// The host, as its power goes.
    SavesHost,
    RestoresHost,
    /// As well, as soon as the save was told to be done.
    SavedHost,
}

impl Moment {
    fn is_save(self) -> bool {
        matches!(self, Self::SavesClient | Self::SavesPort | Self::SavesHost | Self::SavedHost)
    }

    /// Whether a file must be there then, and is whole, or must not. Should the port be shut, what is left goes by the UART.
    fn leaves_file(self) -> Option<bool> {
        match self {
            Self::SavesClient | Self::SavesHost => Some(false),
            Self::SavedHost => Some(true),
            Self::RestoresClient | Self::RestoresPort | Self::RestoresHost => Some(false),
            Self::SavesPort => None,
        }
    }
}

/// How many bytes come by the port in a whole save and in a whole restore.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    save: u64,
    restore: u64,
}

/// As many moments of each kind, chosen at random, of a save and of a restore, in which somebody is killed or the link is cut. Of a save
/// the whole file is left or none, and nothing beside it; a VM whose host lives goes on, or has been restored as a whole, or is off and
/// is restored by the next try.
pub(super) fn killed() -> Result<()> {
    use Moment::{RestoresClient, RestoresHost, RestoresPort, SavedHost, SavesClient, SavesHost, SavesPort};
    const ALL: [Moment; 7] = [SavesClient, RestoresClient, SavesPort, SavesHost, RestoresPort, RestoresHost, SavedHost];
    let rounds = if system::full() { 10 } else { 1 };
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    println!("    the moments follow from {random}");
    let folder = tempfile::tempdir()?;
    let (place, good) = (folder.path().join("files"), folder.path().join("good.saved"));
    fs::create_dir(&place)?;
    let file = place.join("kept.saved");
    let mut here: Option<Operated> = None;
    let mut lengths: Option<Lengths> = None;
    for (number, moment) in ALL.into_iter().cycle().take(ALL.len() * rounds).enumerate() {
        let host = match here.take() {
            Some(host) => host,
            None => {
                let host = Host { port: true, ..host("max") }.start_and_stay(vec![kept()?])?;
                let host = Operated::new(host, folder.path(), &format!("host-{number}"))?;
                host.ticks(3)?;
                host
            }
        };
        let Lengths { save, restore } = match lengths {
            Some(lengths) => lengths,
            None => *lengths.insert(host.lengths(&good)?),
        };
        let is_save = moment.is_save();
        let order = if is_save {
            format!("{{\"Save\":{{\"vm\":\"{NAME}\",\"file\":\"{}\"}}}}\n", file.display())
        } else {
            host.force_off()?;
            format!("{{\"Restore\":{{\"vm\":null,\"file\":\"{}\",\"pause\":false}}}}\n", good.display())
        };
        let mut client = control::connect(&host.socket)?;
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Not in the second half: what is in the port already may be taken by whoever was cut off from the rest. Nor in the first
        // sixteenth, which other things may fill that the VM says.
        let half = if is_save { save } else { restore } / 2;
        let bytes = half / 8 + ((u64::from(random) * (half - half / 8)) >> 32);
        let session = host.run.session();
        if moment != SavedHost {
            session.hold_port_after(bytes);
        }
        client.write_all(order.as_bytes())?;
        if moment == SavedHost {
            let said = read_all(client.try_clone()?);
            ensure!(file.exists(), "it is not saved: {said}");
        } else {
            ensure!(session.wait_until_port_is_held(SOON), "it ended before {bytes} bytes had come");
            ensure!(!file.exists(), "moment {number}, {moment:?}: there is a file after {bytes} bytes of {save}");
        }
        match moment {
            SavesClient | RestoresClient => client.shutdown(Shutdown::Both)?,
            SavesPort | RestoresPort => session.shut_port(),
            SavesHost | RestoresHost | SavedHost => kill_host()?,
        }
        session.hold_port(false);
        let said = match moment {
            // Whoever waits for it hears what became of it.
            SavesPort | RestoresPort | SavesHost | RestoresHost | SavedHost => read_all(client),
            SavesClient | RestoresClient => {
                drop(client);
                String::new()
            }
        };
        let lives = !matches!(moment, SavesHost | RestoresHost | SavedHost);
        if lives {
            host.settles(&good, is_save).with_context(|| format!("moment {number}, {moment:?}: {said}"))?;
            host.run.check_log_but(&["nobody asks any more", "its memory has not all come", "link"])?;
            // One whose port was shut has none for the next moment.
            here = Some(host).filter(|_| !matches!(moment, SavesPort | RestoresPort));
        } else {
            drop(host);
        }
        let left: Vec<_> = fs::read_dir(&place)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        ensure!(left.is_empty() || left == ["kept.saved"], "moment {number}, {moment:?}, left {left:?}: {said}");
        let is_as_it_must = moment.leaves_file().is_none_or(|must| must != left.is_empty());
        ensure!(is_as_it_must, "moment {number}, {moment:?}, after {bytes} bytes of {save}, left {left:?}: {said}");
        if !left.is_empty() {
            control_file(&file)?;
            fs::remove_file(&file)?;
        }
    }
    let host = Operated::new(host("max").start_and_stay(vec![kept()?])?, folder.path(), "last")?;
    host.tick()?;
    host.force_off()?;
    host.restore(&good)?;
    host.ticks(3)?;
    host.run.check_log()
}

impl Operated {
    /// Saves the VM to `good`, and restores it from there.
    fn lengths(&self, good: &Path) -> Result<Lengths> {
        let came = || self.run.session().came_by_port();
        let before = came();
        self.save(good)?;
        let save = came() - before;
        self.force_off()?;
        let before = came();
        self.restore(good)?;
        let restore = came() - before;
        self.ticks(2)?;
        println!("    {save} bytes come in a save, {restore} in a restore");
        Ok(Lengths { save, restore })
    }

    /// What was cut off has ended, within the time that the hypervisor waits for whoever went away. The guest goes on.
    fn settles(&self, good: &Path, was_saved: bool) -> Result<()> {
        let is_settled = |condition: &Condition| match condition {
            Condition::Running { .. } => true,
            condition => !was_saved && condition.is_off(),
        };
        // It is built, and waits for its memory, until that is given up.
        if !was_saved {
            let _ = self.run.session().ask(self.run.vm(NAME)?, Ask::EndTransfer, SOON);
            thread::sleep(Duration::from_secs(1));
        }
        self.is_left()?;
        let mut again = 0;
        loop {
            self.run.wait_for(NAME, SOON, is_settled)?;
            if !self.run.condition(NAME)?.is_off() {
                break;
            }
            match self.restore(good) {
                Ok(()) => break,
                Err(error) if again == 20 => return Err(error.into()),
                Err(_) => again += 1,
            }
            thread::sleep(Duration::from_secs(1));
        }
        self.ticks(2)?;
        Ok(())
    }
}

/// Kills the emulator that this process has started, as if the power went.
fn kill_host() -> Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // Behind the name, which is in parentheses, are the state (a Z: it was killed) and the parent.
        let Ok(text) = fs::read_to_string(path.join("stat")) else { continue };
        let mut fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
        if fields.next() != Some("Z") && fields.next() == Some(&own) {
            let process = path.file_name().context("a process")?;
            ensure!(Command::new("kill").arg("-9").arg(process).status()?.success(), "{} lives on", path.display());
            return Ok(());
        }
    }
    anyhow::bail!("no emulator runs")
}

fn read_all(mut from: impl Read) -> String {
    let mut said = String::new();
    let _ = from.read_to_string(&mut said);
    said
}
