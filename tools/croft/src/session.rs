//! A hypervisor at the other end of the link.
//!
//! A [`Session`] owns the emulated host and both ends of its serial port. One thread decodes the stream and records what arrives:
//! console output by VM, the log, the VMs' states, statistics. Another writes, so that no caller hangs when the machine stops
//! reading. If the host has a port for the link beside its serial port, two more threads serve that, and its data is recorded
//! when the serial port has said that the link continues there (see `carrier`). There are two kinds of user:
//!
//! * a person's terminal, which gets every piece as a [`Notice`] when it arrives;
//! * a test, which works through [`Console`]s (`expect`, `send`), [`Session::control`] and [`Session::wait_stopped`].
//!
//! Whatever ends a session ends the host too: dropping it kills QEMU, and QEMU also ends when this process dies.

mod carrier;
mod console;
mod disks;
mod host;
mod outcome;
mod record;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use console::{Console, ScriptError};
pub use host::{StartError, built_image, firmware, make_boot_disk};
pub use outcome::{Outcome, status};
pub use request::{HostTime, Report, RequestError, Told};
pub use state::{Condition, Notice, Standing};

use abi::crc32c;
use abi::host_arguments::AllOff;
use abi::link::{self, Carrier, Channel, Command};
use qemu::end_of_wait;
use record::Recorder;
use state::State;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{Receiver, SendError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where the host has a device: the one with the link's port, or its disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum PortBus {
    /// Behind registers in memory.
    #[default]
    Mmio,
    /// On PCI.
    Pci,
}

/// How a session is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The hypervisor's image; `None` for the one that `cargo xtask build` makes.
    pub image: Option<PathBuf>,
    /// UEFI firmware that the host starts with, from a disk that is made for it; `None` for QEMU's own loader.
    pub firmware: Option<PathBuf>,
    /// What the hypervisor does when all VMs are off.
    pub all_off: AllOff,
    /// Count time in instructions: repeatable, and slower.
    pub icount: bool,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
    /// More boot arguments for the hypervisor.
    pub boot_arguments: String,
    /// Where to keep consoles and log.
    pub log_dir: Option<PathBuf>,
    /// Give the host a port for the link, through which hundreds of megabytes go in the time that the serial port takes for one.
    /// What it does is not repeatable to the last instruction.
    pub port: bool,
    /// Where the port's device is.
    pub port_bus: PortBus,
    /// Files that are disks of the host's, behind those that the site names.
    pub disks: Vec<PathBuf>,
    /// Where all of these are.
    pub disk_bus: PortBus,
    /// What this run is called if another one wants the same folder for its logs.
    pub title: String,
    /// Who wants to know of everything as it comes.
    pub listener: Option<Sender<Notice>>,
}

/// What the session's threads share.
struct Shared {
    state: Mutex<State>,
    news: Condvar,
    next_request: AtomicU32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hypervisor at the other end of the link. Dropping it ends the emulated host.
pub struct Session {
    shared: Arc<Shared>,
    output: Sender<Vec<u8>>,
    host: Option<host::Host>,
    /// The VMs whose guests may read a wrong clock on that host.
    wrong_clocks: Vec<String>,
    /// Those of which that is known of what they were restored from, by number: with the number of the life that this is, once that is
    /// known.
    restored_wrong: Mutex<BTreeMap<u16, Option<u32>>>,
}

/// How a session ends, for those who see that from outside and must not keep it from ending.
pub struct Ending(Arc<Shared>);

impl Ending {
    /// How it has ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.lock().outcome(None)
    }
}

/// What was asked of a session that it cannot give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No VM of that name.
    #[error("there is no VM named {wanted}; there are {known}")]
    NoVm {
        /// The name asked for.
        wanted: String,
        /// All names.
        known: String,
    },
    /// The hypervisor is gone.
    #[error("the hypervisor is gone")]
    Gone,
}

impl Session {
    /// A session with a hypervisor that is already there, at the other end of `input` and `output`. `names` are the VMs'.
    ///
    /// # Errors
    /// If the folder for the logs cannot be made, or is another run's.
    pub fn over(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        names: Vec<String>,
        options: &Options,
    ) -> std::io::Result<Self> {
        let recorder = Self::recorder(&names, options)?;
        Ok(Self::recorded(input, output, names, options, recorder))
    }

    /// The files for the logs, if there are to be any; what becomes of an earlier run's is told.
    fn recorder(names: &[String], options: &Options) -> std::io::Result<Option<Recorder>> {
        let Some(folder) = &options.log_dir else { return Ok(None) };
        let (recorder, moved) = Recorder::new(folder, names, &options.title)?;
        if let (Some(text), Some(listener)) = (moved, &options.listener) {
            let _ = listener.send(Notice::Remark(text));
        }
        Ok(Some(recorder))
    }

    /// As [`Session::over`], with the files for the logs at hand.
    fn recorded(
        input: impl Read + Send + 'static,
        output: impl Write + Send + 'static,
        names: Vec<String>,
        options: &Options,
        recorder: Option<Recorder>,
    ) -> Self {
        let state = State::new(names, recorder, options.listener.clone());
        let shared =
            Arc::new(Shared { state: Mutex::new(state), news: Condvar::new(), next_request: AtomicU32::new(1) });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || carrier::read(input, &theirs, Carrier::Uart));
        Self {
            shared,
            output: carrier::start_writer(output),
            host: None,
            wrong_clocks: Vec::new(),
            restored_wrong: Mutex::default(),
        }
    }

    /// The VMs' names; a VM's number is its place.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().names().to_vec()
    }

    /// Who says more about it, if the guest of the VM with this number and name may read a wrong clock on this host.
    #[must_use]
    pub fn may_read_a_wrong_clock(&self, vm: u16, name: &str) -> Option<&'static str> {
        // What the site file says of it is `croft check`'s to tell; what a file brought along, the hypervisor has told.
        let by_site = self.wrong_clocks.iter().any(|other| other == name).then_some("croft check");
        by_site.or_else(|| self.was_restored_wrong(vm).then_some("the log"))
    }

    /// The VM with this number was restored, and its guest may read a wrong clock on this host until its life ends.
    pub fn has_a_wrong_clock(&self, vm: u16) {
        let life = match self.standing(vm).condition {
            Condition::Running { boots } => Some(boots),
            _ => None,
        };
        self.restored_wrong.lock().unwrap_or_else(PoisonError::into_inner).insert(vm, life);
    }

    fn was_restored_wrong(&self, vm: u16) -> bool {
        let mut all = self.restored_wrong.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(life) = all.get_mut(&vm) else { return false };
        let is_over = match self.standing(vm).condition {
            // One that was restored to stand still says which life it is when it goes on.
            Condition::Running { boots } => *life.get_or_insert(boots) != boots,
            condition => condition.is_off(),
        };
        if is_over {
            all.remove(&vm);
        }
        !is_over
    }

    /// The number of the VM with this name.
    ///
    /// # Errors
    /// [`SessionError::NoVm`].
    pub fn vm(&self, name: &str) -> Result<u16, SessionError> {
        let state = self.shared.lock();
        let found = state.names().iter().position(|other| other == name);
        let no_vm = || SessionError::NoVm { wanted: name.to_owned(), known: state.names().join(", ") };
        found.map(|index| index as u16).ok_or_else(no_vm)
    }

    /// The PL011 of the VM with this name.
    ///
    /// # Errors
    /// [`SessionError::NoVm`].
    pub fn console(&self, name: &str) -> Result<Console<'_>, SessionError> {
        Ok(Console::new(self, Channel::Console(units::VmId(self.vm(name)?))))
    }

    /// The virtio console of the VM with this name.
    ///
    /// # Errors
    /// [`SessionError::NoVm`].
    pub fn virtio_console(&self, name: &str) -> Result<Console<'_>, SessionError> {
        Ok(Console::new(self, Channel::VirtioConsole(units::VmId(self.vm(name)?))))
    }

    /// The hypervisor's log, with whatever it printed outside frames. Nothing can be sent there.
    #[must_use]
    pub fn log(&self) -> Console<'_> {
        Console::new(self, Channel::Log)
    }

    /// Tells the hypervisor to do something. Whether it could shows in a [`Condition`] or in [`Session::refusals`].
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn control(&self, command: Command) -> Result<(), SessionError> {
        let mut buffer = [0; Command::MAX_ENCODED];
        let payload = command.encode(&mut buffer).ok_or(SessionError::Gone)?;
        self.send(Channel::Control, payload)
    }

    /// Sends bytes down a channel.
    ///
    /// # Errors
    /// [`SessionError::Gone`].
    pub fn send(&self, channel: Channel, bytes: &[u8]) -> Result<(), SessionError> {
        let mut frames = Vec::new();
        for piece in bytes.chunks(channel.max_payload()) {
            let framed = link::encode_parts(channel, &[piece], crc32c::compute, |run| frames.extend_from_slice(run));
            framed.map_err(|_| SessionError::Gone)?;
        }
        self.transmit(frames)
    }

    fn transmit(&self, frames: Vec<u8>) -> Result<(), SessionError> {
        let port = self.shared.lock().way.output();
        // A port that has just ended takes nothing any more: the link goes on over the serial port.
        let sent = port.unwrap_or_else(|| self.output.clone()).send(frames);
        sent.or_else(|SendError(frames)| self.output.send(frames)).map_err(|_| SessionError::Gone)
    }

    /// What carries the link.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.shared.lock().way.carrier()
    }

    /// Shuts the host's port for the link for ever, as if its cable were pulled. The link goes on over the serial port.
    pub fn shut_port(&self) {
        if let Some(host) = &self.host {
            host.shut_port();
        }
    }

    /// Takes nothing that comes by the host's port for as long as `hold` says so, as a tool that was stopped.
    pub fn hold_port(&self, hold: bool) {
        self.shared.lock().way.hold(hold);
        self.shared.news.notify_all();
    }

    /// As [`Session::hold_port`], when so many bytes more have come by it: in the same place of whatever comes, however busy this
    /// computer is.
    pub fn hold_port_after(&self, bytes: u64) {
        self.shared.lock().way.hold_after(bytes);
    }

    /// Waits until what comes by the host's port is held. Says whether it is.
    #[must_use]
    pub fn wait_until_port_is_held(&self, limit: Duration) -> bool {
        let waits = |state: &mut State| !state.way.is_held() && !state.ended;
        let state = self.shared.lock();
        let waited = self.shared.news.wait_timeout_while(state, limit, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.way.is_held()
    }

    /// How many bytes have come by the host's port.
    #[must_use]
    pub fn came_by_port(&self) -> u64 {
        self.shared.lock().way.came()
    }

    /// What the hypervisor refused so far, oldest first.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        self.shared.lock().refusals.clone()
    }

    /// How often a piece of the stream was lost or damaged; 0 on a healthy line.
    #[must_use]
    pub fn damage(&self) -> u64 {
        self.shared.lock().damaged
    }

    /// What the VM with this name does.
    ///
    /// # Errors
    /// [`SessionError::NoVm`].
    pub fn condition(&self, name: &str) -> Result<Condition, SessionError> {
        let vm = self.vm(name)?;
        Ok(self.shared.lock().condition(vm).cloned().unwrap_or_default())
    }

    /// What is known of VM number `vm`.
    #[must_use]
    pub fn standing(&self, vm: u16) -> Standing {
        self.shared.lock().standing(vm).unwrap_or_default()
    }

    /// Whether the hypervisor has said hello.
    #[must_use]
    pub fn has_said_hello(&self) -> bool {
        self.shared.lock().hello
    }

    /// Whether nothing more can come: the host has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended
    }

    /// How it will have ended. It lives no longer for that.
    #[must_use]
    pub fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.shared))
    }

    /// What is wrong with the files for logs, if anything is.
    #[must_use]
    pub fn log_complaint(&self) -> Option<String> {
        self.shared.lock().complaint()
    }

    /// What is kept of the hypervisor's log, each line behind the time of day at which it came, by this computer's clock.
    #[must_use]
    pub fn timed_log(&self) -> Vec<u8> {
        self.shared.lock().timed_log().to_vec()
    }

    /// What comes down `channel` from now on, lines of the log as in [`Session::timed_log`], and first the last `history` bytes of
    /// what came before. It ends with the session, or when the receiver is too far behind. `None` for a channel that carries no text.
    #[must_use]
    pub fn watch(&self, channel: Channel, history: usize) -> Option<Receiver<Vec<u8>>> {
        self.shared.lock().watch(channel, history)
    }

    /// Stops all VMs at once and waits a moment for it, so that the hypervisor ends before the host does.
    pub fn wind_down(&self, limit: Duration) {
        if !self.has_said_hello() {
            return;
        }
        for vm in 0..self.names().len() as u16 {
            if !self.standing(vm).condition.is_off() && self.control(Command::ForceStop { vm }).is_err() {
                return;
            }
        }
        let _ = self.wait(limit, |state| state.all_stopped().then_some(()));
    }

    /// Waits until `done` likes what the VM does.
    ///
    /// # Errors
    /// If it does not come to that: the deadline passed, or the hypervisor is gone.
    pub fn wait_for(
        &self,
        name: &str,
        limit: Duration,
        done: impl Fn(&Condition) -> bool,
    ) -> Result<Condition, ScriptError> {
        let vm = self.vm(name)?;
        let found = self.wait(limit, |state| state.condition(vm).filter(|condition| done(condition)).cloned());
        found.map_err(|why| why.explain(self, Channel::Console(units::VmId(vm)), &format!("a change of {name}")))
    }

    /// As [`Session::wait_for`], or until the hypervisor refuses something in words that begin with `word`. It had refused so many
    /// things `earlier`.
    ///
    /// # Errors
    /// As there; within the result the words.
    pub fn wait_for_unless_refused(
        &self,
        name: &str,
        limit: Duration,
        (word, earlier): (&str, usize),
        done: impl Fn(&Condition) -> bool,
    ) -> Result<Result<Condition, String>, ScriptError> {
        let vm = self.vm(name)?;
        let found = self.wait(limit, |state| {
            let condition = state.condition(vm).filter(|condition| done(condition)).cloned();
            let refused = || state.refusals.iter().skip(earlier).find(|text| text.starts_with(word)).cloned();
            condition.map(Ok).or_else(|| refused().map(Err))
        });
        found.map_err(|why| why.explain(self, Channel::Console(units::VmId(vm)), &format!("a change of {name}")))
    }

    /// Asks for the statistics of all VMs.
    ///
    /// # Errors
    /// If they do not come.
    pub fn statistics(&self, limit: Duration) -> Result<String, ScriptError> {
        let before = self.shared.lock().statistics_count;
        self.control(Command::Stats)?;
        let found = self.wait(limit, |state| (state.statistics_count > before).then(|| state.statistics.clone()));
        found.map_err(|why| why.explain(self, Channel::Log, "the statistics"))
    }

    /// Waits until all VMs have stopped, or something worse happened, and says what.
    #[must_use]
    pub fn wait_stopped(&self, limit: Duration) -> Outcome {
        let over = self.wait(limit, |state| (state.all_stopped() || state.ended).then_some(()));
        if let Err(Stopped::Deadline(limit)) = over {
            let known = self.shared.lock().outcome(None);
            return known.unwrap_or_else(|| self.timed_out(limit));
        }
        if over.is_ok() {
            // The last of the log comes behind the last VM; a host that powers itself off ends by itself.
            let _ = self.wait(GRACE, |state| state.ended.then_some(()));
        }
        self.outcome(limit)
    }

    /// How the session has ended, as far as is known now; `limit` is named if it has not.
    #[must_use]
    pub fn outcome(&self, limit: Duration) -> Outcome {
        let ended = self.shared.lock().ended;
        let status = self.host.as_ref().and_then(|host| host.status(ended));
        let known = self.shared.lock().outcome(status);
        known.unwrap_or_else(|| self.timed_out(limit))
    }

    /// How it ended if the hypervisor has not said hello for so long.
    #[must_use]
    pub fn silent(&self, limit: Duration) -> Outcome {
        let mut state = self.shared.lock();
        let log =
            state.stream(Channel::Log).map_or(String::new(), |log| String::from_utf8_lossy(log.all()).into_owned());
        Outcome::Silent { limit, last_words: outcome::last_line(&log) }
    }

    fn timed_out(&self, limit: Duration) -> Outcome {
        Outcome::TimedOut { limit, running: self.shared.lock().still_on() }
    }

    /// Waits for `found` to find something. A panic of the hypervisor, or the stream's end, ends the wait early.
    fn wait<T>(&self, limit: Duration, mut found: impl FnMut(&mut State) -> Option<T>) -> Result<T, Stopped> {
        let mut end = end_of_wait(Instant::now(), limit);
        let mut failed = false;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = found(&mut state) {
                return Ok(found);
            }
            if state.ended {
                return Err(Stopped::Ended);
            }
            if state.failed() && !failed {
                // The rest of its report is under way.
                failed = true;
                end = end.min(Instant::now() + REPORT);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(if failed { Stopped::Ended } else { Stopped::Deadline(limit) });
            }
            state = self.shared.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How long a host that powers itself off may take for it.
const GRACE: Duration = Duration::from_secs(3);
/// How long the rest of a report may take.
const REPORT: Duration = Duration::from_secs(1);

/// Why a wait found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// So much time is over.
    Deadline(Duration),
    /// Nothing more will come.
    Ended,
}
