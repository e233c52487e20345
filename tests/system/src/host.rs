//! The emulated host.

use crate::{BOOT, SOON, log, place};
use abi::host_arguments::AllOff;
use anyhow::{Context, Result, ensure};
use croft::session::{Options, Outcome, PortBus, Session};
use croft::site::{self, Site, Vm};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A host to be started.
#[derive(Clone, Debug)]
pub struct Host {
    /// QEMU's name of the CPU model.
    pub cpu: &'static str,
    /// How many CPUs.
    pub cpus: u8,
    /// RAM in MiB.
    pub memory: u64,
    /// Whether it has a port for the link.
    pub port: bool,
    /// Where that is.
    pub port_bus: PortBus,
    /// Files that are its disks.
    pub disks: Vec<PathBuf>,
    /// Where those are.
    pub disk_bus: PortBus,
    /// Whether it starts by UEFI firmware.
    pub firmware: bool,
}

impl Default for Host {
    /// Two CPUs, since that is what CI has, of a middling sort.
    fn default() -> Self {
        let (port_bus, disk_bus) = (PortBus::Mmio, PortBus::Mmio);
        let (disks, firmware) = (Vec::new(), false);
        Host { cpu: "cortex-a76", cpus: 2, memory: 1024, port: false, port_bus, disks, disk_bus, firmware }
    }
}

/// A hypervisor that runs, with its turn on this machine.
pub struct Run {
    session: Arc<Session>,
    _turn: Turn,
}

impl Deref for Run {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Host {
    /// Starts the hypervisor with these VMs. It switches the host off when all of them are off.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(&self, vms: Vec<Vm>) -> Result<Run> {
        self.start_with(vms, AllOff::PowerOff, Options::default())
    }

    /// As [`Host::start`], but the host stays when all VMs are off, until the run is dropped.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_and_stay(&self, vms: Vec<Vm>) -> Result<Run> {
        self.start_with(vms, AllOff::Stay, Options::default())
    }

    /// As [`Host::start`], keeping the consoles in `folder`.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_logged(&self, vms: Vec<Vm>, folder: &Path) -> Result<Run> {
        self.start_with(vms, AllOff::PowerOff, Options { log_dir: Some(folder.to_path_buf()), ..Options::default() })
    }

    /// As [`Host::start_and_stay`], keeping the consoles in `folder`.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_and_stay_logged(&self, vms: Vec<Vm>, folder: &Path) -> Result<Run> {
        self.start_with(vms, AllOff::Stay, Options { log_dir: Some(folder.to_path_buf()), ..Options::default() })
    }

    /// As [`Host::start_and_stay`], with time counted in instructions: while everybody sleeps it passes at once, so that
    /// hours take seconds.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_counted(&self, vms: Vec<Vm>) -> Result<Run> {
        self.start_with(vms, AllOff::Stay, Options { icount: true, ..Options::default() })
    }

    /// As [`Host::start`], by the hypervisor with checks of itself, of which `words` on its command line choose one.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_checks(&self, vms: Vec<Vm>, words: &str) -> Result<Run> {
        let options = Options { image: Some(place::checks()?), boot_arguments: words.to_owned(), ..Options::default() };
        self.start_with(vms, AllOff::PowerOff, options)
    }

    /// As [`Host::start`], with more arguments for QEMU.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_with_qemu(&self, vms: Vec<Vm>, qemu_args: Vec<String>) -> Result<Run> {
        self.start_with(vms, AllOff::PowerOff, Options { qemu_args, ..Options::default() })
    }

    /// As [`Host::start`], with time counted in instructions: each takes 2^`shift` nanoseconds, whichever CPU executes it. What
    /// runs is then the same each time, however busy this computer is.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start_coarse(&self, vms: Vec<Vm>, shift: u8) -> Result<Run> {
        let qemu_args = vec!["-icount".to_owned(), format!("shift={shift},sleep=off")];
        self.start_with(vms, AllOff::PowerOff, Options { qemu_args, ..Options::default() })
    }

    fn start_with(&self, vms: Vec<Vm>, all_off: AllOff, options: Options) -> Result<Run> {
        let memory = self.memory << 20;
        let host = site::Host { cpu: self.cpu.to_owned(), cpus: self.cpus, memory, disks: self.disks.clone() };
        let image = options.image.map_or_else(place::hypervisor, Ok)?;
        let options = Options { image: Some(image), all_off, port: self.port, port_bus: self.port_bus, ..options };
        let firmware = self.firmware.then(place::firmware).transpose()?;
        let options = Options { disk_bus: self.disk_bus, firmware, ..options };
        let log_dir = options.log_dir.or_else(kept_logs);
        let qemu_args = [reserve_nothing(self.memory), options.qemu_args].concat();
        let options = Options { qemu_args, log_dir, ..options };
        let turn = Turn::take()?;
        let session = Session::start(&Site::new("site", host, vms), &options).context("starting the host")?;
        Ok(Run { session: Arc::new(session), _turn: turn })
    }
}

/// A new folder in the one that `UNDERCROFT_LOGS` names.
fn kept_logs() -> Option<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let folder = PathBuf::from(std::env::var_os("UNDERCROFT_LOGS")?);
    Some(folder.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))))
}

/// Lets the emulated machine have more memory than this computer: QEMU asks for it page by page.
fn reserve_nothing(mebibytes: u64) -> Vec<String> {
    if mebibytes <= 4096 {
        return Vec::new();
    }
    let memory = format!("memory-backend-ram,id=ram,size={mebibytes}M,reserve=off");
    vec!["-object".to_owned(), memory, "-machine".to_owned(), "memory-backend=ram".to_owned()]
}

impl Run {
    /// The session, for the socket by which croft's other commands reach it.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Waits until all VMs have powered themselves off, and checks that nothing was wrong: no line was damaged, and
    /// the hypervisor had nothing to complain about.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(self, limit: Duration) -> Result<()> {
        let outcome = self.session.wait_stopped(limit);
        let transcript = self.session.log().transcript();
        ensure!(outcome == Outcome::PoweredOff, "{outcome}\n{}\n--- log:\n{transcript}", self.consoles());
        self.check_log()
    }

    /// Checks that no line was damaged so far, and that the hypervisor had nothing to complain about.
    ///
    /// # Errors
    /// What was wrong.
    pub fn check_log(&self) -> Result<()> {
        self.check_log_but(&[])
    }

    /// As [`Run::check_log`], where warnings with these words in them belong to what is tried.
    ///
    /// # Errors
    /// There are others.
    pub fn check_log_but(&self, expected: &[&str]) -> Result<()> {
        ensure!(self.session.damage() == 0, "{} pieces of the link were damaged", self.session.damage());
        self.check_complaints(expected)
    }

    /// Checks that the hypervisor had nothing to complain about but what has these words in it.
    ///
    /// # Errors
    /// The other complaints.
    pub fn check_complaints(&self, expected: &[&str]) -> Result<()> {
        let mut complaints = log::complaints(&self.session.log().transcript());
        complaints.retain(|line| !expected.iter().any(|words| line.contains(words)));
        ensure!(complaints.is_empty(), "the hypervisor complains: {}", complaints.join("; "));
        Ok(())
    }

    /// Types a command at a guest's prompt and waits for the answer; gives everything up to its end. What is typed is
    /// echoed, so the answer must not be part of the command.
    ///
    /// # Errors
    /// No prompt, or no answer.
    pub fn ask(&self, name: &str, command: &str, answer: &str) -> Result<String> {
        let console = self.session.console(name)?;
        console.expect_unless("# ", &["Kernel panic"], BOOT)?;
        console.send(format!("{command}\n"))?;
        Ok(console.expect_unless(answer, &["Kernel panic"], SOON)?)
    }

    /// The ends of all consoles, for an error.
    fn consoles(&self) -> String {
        let mut text = String::new();
        for name in self.session.names() {
            let console = self.session.console(&name).map(|console| console.transcript()).unwrap_or_default();
            let lines: Vec<&str> = console.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default();
            text.push_str(&format!("--- end of {name}:\n{}\n", shown.join("\n")));
        }
        text
    }
}

/// The right to run an emulated machine. Where several people share a computer, `UNDERCROFT_TURN` names a file that is
/// locked while one runs, so that no machine starves another one into a timeout.
pub struct Turn(#[expect(dead_code, reason = "held for its lock")] Option<File>);

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// If the file cannot be locked.
    pub fn take() -> Result<Turn> {
        let Some(path) = std::env::var_os("UNDERCROFT_TURN") else { return Ok(Turn(None)) };
        let file =
            File::options().create(true).append(true).open(&path).context("opening the file of UNDERCROFT_TURN")?;
        file.lock().context("locking the file of UNDERCROFT_TURN")?;
        Ok(Turn(Some(file)))
    }
}
