//! Somebody is killed, or the link is cut, at random moments of saves and restores.

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
#[derive(Clone, Copy, Debug)]
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
}

/// As many moments of each kind, chosen at random, of a save and of a restore, in which somebody is killed or the link is cut. Of a save
/// the whole file is left or none, and nothing beside it; a VM whose host lives goes on, or has been restored as a whole, or is off and
/// is restored by the next try.
pub(super) fn killed() -> Result<()> {
    use Moment::{RestoresClient, RestoresHost, RestoresPort, SavesClient, SavesHost, SavesPort};
    const ALL: [Moment; 6] = [SavesClient, RestoresClient, SavesPort, SavesHost, RestoresPort, RestoresHost];
    let rounds = if system::full() { 5 } else { 1 };
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    println!("    the moments follow from {random}");
    let folder = tempfile::tempdir()?;
    let (place, good) = (folder.path().join("files"), folder.path().join("good.saved"));
    fs::create_dir(&place)?;
    let file = place.join("kept.saved");
    let mut here: Option<Operated> = None;
    for (number, moment) in ALL.into_iter().cycle().take(ALL.len() * rounds).enumerate() {
        let host = match here.take() {
            Some(host) => host,
            None => {
                let host = Host { port: true, ..host("max") }.start_and_stay(vec![kept()?])?;
                let host = Operated::new(host, folder.path(), &format!("host-{number}"))?;
                host.ticks(3)?;
                if !good.exists() {
                    host.save(&good)?;
                }
                host
            }
        };
        let is_save = matches!(moment, SavesClient | SavesPort | SavesHost);
        let order = if is_save {
            format!("{{\"Save\":{{\"vm\":\"{NAME}\",\"file\":\"{}\"}}}}\n", file.display())
        } else {
            host.force_off()?;
            format!("{{\"Restore\":{{\"vm\":null,\"file\":\"{}\",\"pause\":false}}}}\n", good.display())
        };
        let mut client = control::connect(&host.socket)?;
        client.write_all(order.as_bytes())?;
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        thread::sleep(Duration::from_millis(u64::from(random >> 16) % 500));
        match moment {
            SavesClient | RestoresClient => client.shutdown(Shutdown::Both)?,
            SavesPort | RestoresPort => host.run.session().shut_port(),
            SavesHost | RestoresHost => kill_host()?,
        }
        let said = match moment {
            // Whoever waits for it hears what became of it.
            SavesPort | RestoresPort | SavesHost | RestoresHost => read_all(client),
            SavesClient | RestoresClient => {
                drop(client);
                String::new()
            }
        };
        let lives = !matches!(moment, SavesHost | RestoresHost);
        if lives {
            host.settles(&good, is_save).with_context(|| format!("moment {number}, {moment:?}: {said}"))?;
            host.run.check_log_but(&["nobody asks any more", "its memory has not all come", "link"])?;
            here = Some(host);
        } else {
            drop(host);
        }
        let left: Vec<_> = fs::read_dir(&place)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        ensure!(left.is_empty() || left == ["kept.saved"], "moment {number}, {moment:?}, left {left:?}: {said}");
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
