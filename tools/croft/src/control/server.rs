//! The server's end, in `croft run`.

use super::follow::Followers;
use super::moves::{Move, Moves};
use super::post::{Clients, Post};
use super::{ControlError, MAX_LINE, Order, Place, Report, Vm, follow};
use crate::saved::SavedError;
use crate::session::{Condition, HostTime, RequestError, ScriptError, Session, SessionError, Standing, Told};
use crate::{moment, size};
use abi::link::request::{Ask, Over};
use abi::link::{Channel, Command};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;
use units::VmId;

/// How long the hypervisor may take for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// How long a client may take to say what it wants.
const CLIENT: Duration = Duration::from_secs(10);

/// How long those who follow something are waited for at the end, until they have heard of it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long nobody is let in after it was not possible.
const PAUSE: Duration = Duration::from_millis(50);

/// What a host says of itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The site file, as it was named.
    pub site: String,
    /// Where the folder for logs was at the start.
    pub logs: Option<String>,
    /// How many vCPUs each of its VMs has.
    pub vcpus: Vec<u8>,
    /// Whether the tools of its guest can call, of each.
    pub vmware: Vec<bool>,
    /// How much memory each has for what is written to each of its disks, in bytes.
    pub changes: Vec<Vec<u64>>,
}

/// A socket that is listened on; it goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    post: Arc<Mutex<Post>>,
    followers: Arc<Followers>,
    complaint: Option<String>,
}

impl Server {
    /// Why a folder for logs does not lead to the host, if it doesn't.
    #[must_use]
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        lock(&self.post).leave();
        self.followers.dismiss(FAREWELL);
    }
}

pub(super) fn lock(post: &Mutex<Post>) -> MutexGuard<'_, Post> {
    post.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens at `place` for orders to `session`. The session lives no longer for it.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(session: &Arc<Session>, about: About, place: &Place) -> Result<Server, ControlError> {
    let (post, listener, complaint) = Post::take_up(place)?;
    let server = Server { post: Arc::new(Mutex::new(post)), followers: Arc::default(), complaint };
    let clients = Clients::new(listener, Arc::clone(&server.post));
    let (session, about) = (Arc::downgrade(session), Arc::new(about));
    let (followers, moves) = (Arc::clone(&server.followers), Arc::<Moves>::default());
    thread::spawn(move || {
        let_in(clients, &session, |stream| {
            let (session, about) = (Weak::clone(&session), Arc::clone(&about));
            let (followers, moves) = (Arc::clone(&followers), Arc::clone(&moves));
            // A client that goes away in the middle is nobody's trouble; one for whom there is no thread is sent away.
            let _ = thread::Builder::new().spawn(move || attend(&session, &about, &followers, &moves, &stream));
        });
    });
    Ok(server)
}

/// Hands over one client after the other, as long as the session lives. When one cannot be let in, for all descriptors are in
/// use, the next ones can: to give up would put the host out of everybody's reach for good.
fn let_in(
    clients: impl Iterator<Item = std::io::Result<UnixStream>>,
    session: &Weak<Session>,
    mut serve: impl FnMut(UnixStream),
) {
    for client in clients {
        if session.strong_count() == 0 {
            return;
        }
        match client {
            Ok(stream) => serve(stream),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// One client.
fn attend(
    session: &Weak<Session>,
    about: &About,
    followers: &Followers,
    moves: &Moves,
    stream: &UnixStream,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT))?;
    let (mut input, mut line) = (BufReader::new(stream), Vec::new());
    input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    let mut tell = |report: &Report| -> std::io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        (&mut &*stream).write_all(&line)
    };
    let Ok(order) = serde_json::from_slice::<Order>(&line) else {
        return tell(&Report::Failed(
            "this croft does not know the order; use the croft that runs the host".to_owned(),
        ));
    };
    let Some(session) = session.upgrade() else { return Ok(()) };
    let followed = match &order {
        Order::Log { follow: true } => Some(Ok(Channel::Log)),
        Order::Console { vm, virtio } => {
            let channel = if *virtio { Channel::VirtioConsole } else { Channel::Console };
            Some(session.vm(vm).map(|vm| channel(VmId(vm))))
        }
        _ => None,
    };
    match followed {
        Some(Ok(channel)) => {
            return followers.count(|| {
                let end = follow::attend(session, channel, input, followers, &mut tell)?;
                tell(&end)
            });
        }
        Some(Err(why)) => return tell(&Failure::from(why).report()),
        None => {}
    }
    // That it was heard: what it leads to may take its time. It fails if the client has left, while this process stood still perhaps: who
    // has not waited for it may want something else by now.
    tell(&Report::Output(Vec::new()))?;
    let handler = RequestHandler { session: &session, about, moves };
    match handler.carry_out(order, &mut tell) {
        Ok(()) => tell(&Report::Done),
        Err(why) => tell(&why.report()),
    }
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{vm} did not {what} within {seconds} s, it is {condition}{}", hint(.what, .condition))]
    Late { vm: String, what: &'static str, seconds: u64, condition: Condition },
    #[error("{vm}: {text}")]
    Refused { vm: String, text: String },
    #[error("the host has ended: {0}")]
    Ended(String),
    #[error("{vm} is {condition} instead")]
    Otherwise { vm: String, condition: Condition },
    #[error(
        "{vm} is paused and cannot {what}; `croft resume {vm}` lets it go on{}", force(.what)
    )]
    StandsStill { vm: String, what: &'static str },
    #[error("{vm} does not {what}: it is {condition}")]
    Not { vm: String, what: &'static str, condition: Condition },
    #[error("the hypervisor sent no statistics within {} s", ANSWER.as_secs())]
    NoStatistics,
    #[error("the client went away")]
    Client(#[from] std::io::Error),
    #[error("its guest has ended before all of its memory had come")]
    Over(Over),
    #[error(transparent)]
    File(#[from] SavedError),
    #[error(
        "{vm} is {condition}; a saved VM, or a clone, takes the place of one that is off: `croft stop {vm}`, with --force if it may lose its work"
    )]
    InUse { vm: String, condition: Condition },
    #[error("{vm} is {what}; wait until that is done, or end the command that does it")]
    IsMoved { vm: String, what: &'static str },
    #[error(
        "{name} is no place for a clone of {vm}: that has {} for what is written to its disks, {name} has {}; `changes` in the site file must \
         be the same", sizes(.changes), sizes(.here)
    )]
    OtherChanges { vm: String, name: String, changes: Vec<u64>, here: Vec<u64> },
    #[error("{vm} cannot take its own place; name another VM of the site file with --name, which is off")]
    Itself { vm: String },
    #[error("{file} holds a VM named {vm}, and there is none of that name; name one with --name: {known}")]
    NoPlace { file: String, vm: String, known: String },
}

/// Amounts of memory, one after the other.
fn sizes(all: &[u64]) -> String {
    let shown: Vec<String> = all.iter().map(|&bytes| size::show(bytes)).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

/// What else helps where one is paused.
fn force(what: &str) -> &'static str {
    if matches!(what, STOP | REBOOT) { ", and --force stops or reboots it as it is" } else { "" }
}

/// What may help where one did not do in time what it was to do.
fn hint(what: &str, condition: &Condition) -> &'static str {
    match (what, condition) {
        (STOP | REBOOT, Condition::Running { .. } | Condition::Paused) => "; `--force` does not ask the guest",
        _ => "",
    }
}

impl Failure {
    /// What the client is told.
    fn report(&self) -> Report {
        match self {
            Self::Session(SessionError::NoVm { .. }) | Self::NoPlace { .. } => Report::NotThere(self.to_string()),
            _ => Report::Failed(self.to_string()),
        }
    }
}

/// What has a `--force`, and the same with it.
const STOP: &str = "stop";
const REBOOT: &str = "reboot";
const STOP_BY_FORCE: &str = "stop by force";
const REBOOT_BY_FORCE: &str = "reboot by force";
/// How long it may take until a VM stands still, or goes on.
pub(super) const PAUSE_SECONDS: u64 = 10;

/// How long a VM may take to start: its images are loaded and checked meanwhile.
const START_SECONDS: u64 = 120;
/// Bytes of the log in one report: as numbers in JSON they fit a line.
pub(super) const PIECE: usize = 64 << 10;
/// Held from the look whether a VM is off until it runs: a second start at the same time would reset it.
static STARTING: Mutex<()> = Mutex::new(());

pub(super) struct RequestHandler<'a> {
    pub(super) session: &'a Session,
    pub(super) about: &'a About,
    pub(super) moves: &'a Moves,
}

pub(super) type Tell<'a> = &'a mut dyn FnMut(&Report) -> std::io::Result<()>;

/// What a VM does after all.
pub(super) fn tell_condition(name: &str, condition: &Condition, tell: Tell<'_>) -> Result<(), Failure> {
    Ok(tell(&Report::Progress(format!("{name}: {condition}")))?)
}

impl RequestHandler<'_> {
    fn carry_out(&self, order: Order, tell: Tell<'_>) -> Result<(), Failure> {
        match order {
            Order::Host => {
                tell(&Report::Host { site: self.about.site.clone(), logs: self.about.logs.clone() })?;
            }
            Order::List => tell(&Report::Vms(self.list()?))?,
            Order::Keys { vm } => {
                let told = self.session.ask(self.session.vm(&vm)?, Ask::Keys, ANSWER)?;
                let keys = told.into_iter().filter_map(|told| match told {
                    Told::Key(key, length) => Some((key, length)),
                    _ => None,
                });
                tell(&Report::Keys(keys.collect()))?;
            }
            Order::Get { vm, key } => {
                tell(&Report::Value(self.session.value(self.session.vm(&vm)?, &key, ANSWER)?))?;
            }
            Order::Set { vm, key, value } => {
                self.session.set_value(self.session.vm(&vm)?, &key, &value, ANSWER)?;
            }
            // Those that are followed are not for this handler.
            Order::Log { .. } | Order::Console { .. } => {
                for piece in self.session.timed_log().chunks(PIECE) {
                    tell(&Report::Output(piece.to_vec()))?;
                }
            }
            Order::Statistics { vms } => {
                for vm in &vms {
                    self.session.vm(vm)?;
                }
                tell(&Report::Statistics(self.session.statistics(ANSWER).map_err(|_| Failure::NoStatistics)?))?;
            }
            Order::Start { vm } => self.start(&vm, tell)?,
            Order::Stop { vm, force, seconds } => self.stop(&vm, force, seconds, tell)?,
            Order::Reboot { vm, force, seconds } => self.reboot(&vm, force, seconds, tell)?,
            Order::Pause { vm } => {
                let number = self.session.vm(&vm)?;
                self.change(&vm, "run", |condition| match condition {
                    Condition::Running { .. } => true,
                    // One that is being saved stands still for moments by itself. From now on the operator lets it go on.
                    Condition::Paused => self.moves.of(number) == Some(Move::Out),
                    _ => false,
                })?;
                let command = Command::PauseVm { vm: number };
                let is_there = |condition: &Condition| *condition == Condition::Paused;
                let paused = self.command(&vm, command, ("pause", PAUSE_SECONDS), "pause: ", is_there)?;
                tell_condition(&vm, &paused, tell)?;
            }
            Order::Resume { vm } => {
                let number = self.session.vm(&vm)?;
                self.change(&vm, "stand still", |condition| *condition == Condition::Paused)?;
                // It waits for its state, and then goes on by itself, or is to stand still.
                if self.moves.of(number) == Some(Move::In) {
                    self.must_not_be_moved(&vm, number)?;
                }
                let command = Command::ResumeVm { vm: number };
                let is_there = |condition: &Condition| *condition != Condition::Paused;
                let goes_on = self.command(&vm, command, ("go on", PAUSE_SECONDS), "resume: ", is_there)?;
                tell_condition(&vm, &goes_on, tell)?;
            }
            Order::Save { vm, file, compress } => self.save(&vm, &file, compress, tell)?,
            Order::Dump { vm, file } => self.dump(&vm, &file, tell)?,
            Order::Restore { vm, file, pause } => self.restore(vm, &file, pause, tell)?,
            Order::Clone { vm, name, pause } => self.clone_to(&vm, &name, pause, tell)?,
            Order::Time => {
                let HostTime { microseconds, settable } = self.session.host_time(ANSWER)?;
                tell(&Report::Time { microseconds, settable })?;
            }
            Order::SetTime { microseconds } => {
                self.session.set_host_time(microseconds, ANSWER)?;
                tell(&Report::Progress(format!("the host's time is set to {}", moment::show(microseconds))))?;
            }
            Order::SetGuestTime { vm } => {
                self.must_not_stand_still(&vm, "set its clock")?;
                self.session.ask(self.session.vm(&vm)?, Ask::SetGuestTime, ANSWER)?;
                tell(&Report::Progress(format!("{vm}: its tools have set its clock")))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<Vm>, Failure> {
        let mut vms = Vec::new();
        for (index, name) in self.session.names().into_iter().enumerate() {
            let Standing { condition, boots, last_words } = self.session.standing(index as u16);
            let (mut state, mut word, mut reason) = (condition.to_string(), condition.word(), None);
            if let Condition::Crashed(why) = condition {
                reason = Some(why);
            } else if last_words.is_some() {
                word = if word == "running" { "panicked" } else { word };
                state = format!("{state}, its console says that its kernel panicked");
                reason = last_words;
            }
            if let Some(more) = self.session.may_read_a_wrong_clock(index as u16, &name) {
                state.push_str(&format!(", its clock is wrong if it reads CNTVCT_EL0 (see {more})"));
            }
            let what = self.moves.of(index as u16);
            if let Some(what) = what {
                state.push_str(&format!(", {}", what.sentence()));
            }
            let transfer = what.map(|what| what.word().to_owned());
            let word = word.to_owned();
            let vcpus = self.about.vcpus.get(index).copied().unwrap_or_default();
            let guest = match self.session.report(index as u16, ANSWER) {
                Ok(report) => Some(report.into()),
                // It is off, or has no door to report by.
                Err(RequestError::Refused(_)) => None,
                Err(error) => return Err(error.into()),
            };
            vms.push(Vm { name, state, word, boots, reason, transfer, vcpus, guest });
        }
        Ok(vms)
    }

    fn start(&self, name: &str, tell: Tell<'_>) -> Result<(), Failure> {
        let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let vm = self.session.vm(name)?;
        let condition = self.session.condition(name)?;
        if condition.is_off() || self.moves.of(vm) == Some(Move::In) {
            self.must_not_be_moved(name, vm)?;
        }
        self.change(name, "need a start", Condition::is_off)?;
        let runs = self.runs_anew(vm);
        // It may end as soon as it begins, for want of memory or because its images are damaged.
        let is_there = |now: &Condition| runs(now) || now.is_off() && *now != condition;
        let started = self.command(name, Command::Reset { vm }, ("start", START_SECONDS), "reboot: ", is_there)?;
        self.must_run(name, &started)?;
        tell_condition(name, &started, tell)
    }

    fn stop(&self, name: &str, force: bool, seconds: u64, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        self.change(name, "need a stop", |condition| !condition.is_off())?;
        if force {
            self.session.control(Command::ForceStop { vm })?;
        } else {
            self.must_not_stand_still(name, STOP)?;
            self.ask_guest(name, vm, Ask::Stop, tell)?;
        }
        let what = if force { STOP_BY_FORCE } else { STOP };
        let off = self.wait(name, what, seconds, Condition::is_off)?;
        tell_condition(name, &off, tell)
    }

    fn reboot(&self, name: &str, force: bool, seconds: u64, tell: Tell<'_>) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        let before = self.session.condition(name)?;
        let again = self.runs_anew(vm);
        if force || before.is_off() {
            self.must_not_be_moved(name, vm)?;
        }
        let again_or_off = |condition: &Condition| again(condition) || condition.is_off() && *condition != before;
        if before.is_off() || force {
            if before.is_off() {
                tell(&Report::Progress(format!("{name} is off; starting it")))?;
            }
            let limit = (REBOOT_BY_FORCE, seconds);
            self.command(name, Command::Reset { vm }, limit, "reboot: ", again_or_off)?;
        } else {
            self.must_not_stand_still(name, REBOOT)?;
            // By the button too: the hypervisor starts it again when it has powered itself off.
            let ask = Ask::Restart { seconds: u32::try_from(seconds).unwrap_or(u32::MAX) };
            self.ask_guest(name, vm, ask, tell)?;
            self.wait(name, REBOOT, seconds, again_or_off)?;
        }
        let started = self.wait(name, REBOOT, seconds, again_or_off)?;
        self.must_run(name, &started)?;
        tell_condition(name, &started, tell)
    }

    /// Tells a VM that was started once more from one that still runs, and from one that is being started: what is reported of that is
    /// how often it was started before.
    fn runs_anew(&self, vm: u16) -> impl Fn(&Condition) -> bool {
        let before = self.session.standing(vm).boots;
        move |condition| matches!(condition, Condition::Running { boots } if *boots != before)
    }

    /// Refuses one that was to run and does not.
    fn must_run(&self, name: &str, condition: &Condition) -> Result<(), Failure> {
        if condition.is_off() {
            return Err(Failure::Otherwise { vm: name.to_owned(), condition: condition.clone() });
        }
        Ok(())
    }

    /// Refuses a change of a VM that does something else than it has to for that.
    fn change(&self, name: &str, what: &'static str, good: impl Fn(&Condition) -> bool) -> Result<(), Failure> {
        let condition = self.session.condition(name)?;
        if good(&condition) { Ok(()) } else { Err(Failure::Not { vm: name.to_owned(), what, condition }) }
    }

    /// Refuses to start or to reset a VM while all of it is under way: the hypervisor would refuse it too.
    fn must_not_be_moved(&self, name: &str, vm: u16) -> Result<(), Failure> {
        let refused = |what: Move| Failure::IsMoved { vm: name.to_owned(), what: what.sentence() };
        self.moves.of(vm).map_or(Ok(()), |what| Err(refused(what)))
    }

    /// Refuses what a guest has to do itself while it cannot. While it is saved it stands still for moments, and is waited for.
    fn must_not_stand_still(&self, name: &str, what: &'static str) -> Result<(), Failure> {
        let vm = self.session.vm(name)?;
        if self.session.condition(name)? == Condition::Paused {
            match self.moves.of(vm) {
                Some(Move::Out) => {
                    let _ = self.wait(name, "go on", PAUSE_SECONDS, |condition| *condition != Condition::Paused);
                }
                Some(Move::In) => self.must_not_be_moved(name, vm)?,
                Some(Move::Arriving) | None => {}
            }
        }
        let stands_still = self.session.condition(name)? == Condition::Paused;
        if stands_still { Err(Failure::StandsStill { vm: name.to_owned(), what }) } else { Ok(()) }
    }

    /// Asks the guest to end, the one way or the other, and says which.
    fn ask_guest(&self, name: &str, vm: u16, ask: Ask<'_>, tell: Tell<'_>) -> Result<(), Failure> {
        let told = self.session.ask(vm, ask, ANSWER)?.into_iter().next().unwrap_or(Told::ByButton);
        let way = match told {
            Told::ByTools => "its tools were asked",
            // Nobody misses tools that could not call.
            _ if self.about.vmware.get(usize::from(vm)) == Some(&false) => "pressed its power button",
            _ => "its tools do not answer; pressed its power button",
        };
        tell(&Report::Progress(format!("{name}: {way}")))?;
        Ok(())
    }

    pub(super) fn wait(
        &self,
        name: &str,
        what: &'static str,
        seconds: u64,
        done: impl Fn(&Condition) -> bool,
    ) -> Result<Condition, Failure> {
        let limit = Duration::from_secs(seconds);
        self.session.wait_for(name, limit, done).map_err(|error| self.late(name, what, seconds, error))
    }

    /// Sends a command, and waits for what it is to bring about, or until the hypervisor refuses it in words that begin with `word`.
    fn command(
        &self,
        name: &str,
        command: Command,
        (what, seconds): (&'static str, u64),
        word: &str,
        done: impl Fn(&Condition) -> bool,
    ) -> Result<Condition, Failure> {
        let earlier = self.session.refusals().len();
        self.session.control(command)?;
        let limit = Duration::from_secs(seconds);
        match self.session.wait_for_unless_refused(name, limit, (word, earlier), done) {
            Ok(Ok(condition)) => Ok(condition),
            Ok(Err(text)) => Err(Failure::Refused { vm: name.to_owned(), text }),
            Err(error) => Err(self.late(name, what, seconds, error)),
        }
    }

    fn late(&self, name: &str, what: &'static str, seconds: u64, error: ScriptError) -> Failure {
        if let ScriptError::Over { why, .. } = error {
            return Failure::Ended(why);
        }
        let condition = self.session.condition(name).unwrap_or_default();
        Failure::Late { vm: name.to_owned(), what, seconds, condition }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Options;
    use std::io::{Error, empty, sink};

    #[test]
    fn one_who_cannot_be_let_in_keeps_nobody_out() {
        let session = Arc::new(Session::over(empty(), sink(), Vec::new(), &Options::default()).unwrap());
        let alive = Arc::downgrade(&session);
        let client = || Ok(UnixStream::pair().unwrap().0);
        let refused = || Err(Error::from_raw_os_error(24));
        let mut served = 0;
        let_in([client(), refused(), refused(), client()].into_iter(), &alive, |_| served += 1);
        assert_eq!(served, 2);
        drop(session);
        let_in([client()].into_iter(), &alive, |_| panic!("nobody is there to be served for"));
    }
}
