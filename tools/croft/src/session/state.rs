//! What is known of the hypervisor and its VMs, from what the link has brought so far.

use super::carrier::Way;
use super::outcome::{Outcome, last_line};
use super::record::{Recorder, with_time};
use super::request::Requests;
use crate::moment;
use abi::link::request::Reply;
use abi::link::{self, Channel, Event, Message, StopReason, VmState};
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use units::VmId;

/// At least half of this many bytes of each stream is kept.
const KEEP: usize = 8 << 20;
/// Whoever watches a channel may be so many pieces behind.
const BEHIND: usize = 4096;

/// What a VM does, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// The hypervisor has not said.
    #[default]
    Unknown,
    /// It runs.
    Running {
        /// How often it was started: 1 at first, one more after each reboot.
        boots: u32,
    },
    /// The operator halted it for a while.
    Paused,
    /// It is off, and nobody has started it yet.
    NotStarted,
    /// The guest powered itself off.
    PoweredOff,
    /// The operator stopped it.
    Forced,
    /// The hypervisor stopped it, for this reason.
    Crashed(String),
}

impl Condition {
    /// Whether it is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self, Self::NotStarted | Self::PoweredOff | Self::Forced | Self::Crashed(_))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => out.write_str("not known"),
            Self::Running { boots: 0 | 1 } => out.write_str("running"),
            Self::Running { boots } => write!(out, "running, boot {boots}"),
            Self::Paused => out.write_str("paused"),
            Self::PoweredOff => out.write_str("powered off"),
            Self::Forced => out.write_str("stopped by the operator"),
            Self::Crashed(why) => write!(out, "crashed: {why}"),
            Self::NotStarted => out.write_str("not started"),
        }
    }
}

impl Condition {
    /// One fixed word for it, for programs (`docs/formats/control.md`).
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Running { .. } => "running",
            Self::Paused => "paused",
            Self::PoweredOff => "powered-off",
            Self::Forced => "stopped",
            Self::Crashed(_) => "crashed",
            Self::NotStarted => "not-started",
        }
    }
}

impl From<VmState<'_>> for Condition {
    fn from(state: VmState<'_>) -> Self {
        match state {
            VmState::Running { boots } => Self::Running { boots },
            VmState::Paused => Self::Paused,
            VmState::Stopped(StopReason::PowerOff) => Self::PoweredOff,
            VmState::Stopped(StopReason::Forced) => Self::Forced,
            VmState::Stopped(StopReason::Crashed(why)) => Self::Crashed(why.to_owned()),
            VmState::Stopped(StopReason::NotStarted) => Self::NotStarted,
        }
    }
}

/// Something that just happened, for whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Output of a console or the log.
    Output {
        /// Whose.
        channel: Channel,
        /// What.
        bytes: Vec<u8>,
    },
    /// A VM does something else now.
    Changed {
        /// Its number.
        vm: u16,
        /// What it does.
        condition: Condition,
    },
    /// The statistics that were asked for.
    Statistics(String),
    /// A command was refused, and why.
    Refused(String),
    /// Something that the tool itself has to say.
    Remark(String),
    /// All VMs are off.
    AllStopped,
    /// The hypervisor failed and its report follows in the log, or it is not the expected one.
    Failed,
    /// The link has ended.
    Ended,
    /// The person at the terminal typed something. Not from the link; here so that one queue serves all.
    Keys(Vec<u8>),
    /// This process got a signal that asks it to end, by number. Not from the link either.
    Signal(i32),
    /// What is shown cannot be written any more, and why. Not from the link either.
    Unwritable(String),
}

/// The bytes of one channel.
#[derive(Debug, Default)]
pub(super) struct Stream {
    bytes: Vec<u8>,
    /// Everything before this place was matched by earlier waits.
    place: usize,
}

impl Stream {
    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > KEEP {
            let surplus = self.bytes.len() - KEEP / 2;
            self.bytes.drain(..surplus);
            self.place = self.place.saturating_sub(surplus);
        }
    }

    /// Everything that is kept.
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// The first of `texts` in what was not matched yet, and everything from the last match to its end.
    pub(super) fn find(&mut self, texts: &[&str]) -> Option<(usize, String)> {
        let fresh = self.bytes.get(self.place..)?;
        let find = |text: &str| fresh.windows(text.len().max(1)).position(|window| window == text.as_bytes());
        let found = texts.iter().enumerate().filter_map(|(which, text)| Some((find(text)? + text.len(), which)));
        let (length, which) = found.min()?;
        self.place += length;
        Some((which, String::from_utf8_lossy(fresh.get(..length)?).into_owned()))
    }
}

/// One VM.
#[derive(Debug, Default)]
struct Vm {
    condition: Condition,
    /// How often it was started, as far as is known.
    boots: u32,
    console: Stream,
    virtio_console: Stream,
    /// Of each console: what comes by two at once has lines of its own in each.
    alarm: Alarm,
    virtio_alarm: Alarm,
}

/// Whether a VM's kernel says on its console that it has failed. A kernel that has panicked goes on spinning: for the
/// hypervisor it runs. What it says is the guest's word, and so it is told.
#[derive(Debug, Default)]
struct Alarm {
    line: Vec<u8>,
    said: Option<String>,
}

impl Alarm {
    /// How Linux begins its last words, behind the time stamp.
    const LAST_WORDS: &str = "Kernel panic - not syncing";
    /// A longer line is not looked at to its end.
    const LONGEST: usize = 512;

    fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line);
                let line = line.trim();
                let text = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, text)| text);
                if text.starts_with(Self::LAST_WORDS) && self.said.is_none() {
                    self.said = Some(text.to_owned());
                }
                self.line.clear();
            } else if self.line.len() < Self::LONGEST {
                self.line.push(byte);
            }
        }
    }
}

/// Somebody who gets what comes down a channel from now on.
#[derive(Debug)]
struct Watcher {
    channel: Channel,
    pieces: SyncSender<Vec<u8>>,
}

/// What is known of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What it does.
    pub condition: Condition,
    /// How often it was started; 0 if that is not known.
    pub boots: u32,
    /// How its kernel said on its console, since it was started last, that it has failed.
    pub last_words: Option<String>,
}

/// All that is known.
#[derive(Debug)]
pub(super) struct State {
    names: Vec<String>,
    vms: Vec<Vm>,
    log: Stream,
    /// The same with the time of day before each line, for people.
    timed_log: Stream,
    /// Its last line has not ended.
    is_in_line: bool,
    /// Bytes outside frames that were not filed yet.
    text: Vec<u8>,
    panic: Option<String>,
    /// The link's other side speaks another version: what it said.
    stranger: Option<String>,
    gathering: String,
    all_stopped: bool,
    watchers: Vec<Watcher>,
    /// Which way the link goes.
    pub(super) way: Way,
    pub(super) hello: bool,
    pub(super) statistics: String,
    pub(super) statistics_count: u64,
    pub(super) refusals: Vec<String>,
    pub(super) requests: Requests,
    pub(super) damaged: u64,
    pub(super) ended: bool,
    recorder: Option<Recorder>,
    listener: Option<Sender<Notice>>,
}

impl State {
    pub(super) fn new(names: Vec<String>, recorder: Option<Recorder>, listener: Option<Sender<Notice>>) -> Self {
        Self {
            vms: names.iter().map(|_| Vm::default()).collect(),
            names,
            log: Stream::default(),
            timed_log: Stream::default(),
            is_in_line: false,
            text: Vec::new(),
            panic: None,
            stranger: None,
            gathering: String::new(),
            all_stopped: false,
            watchers: Vec::new(),
            way: Way::default(),
            hello: false,
            statistics: String::new(),
            statistics_count: 0,
            refusals: Vec::new(),
            requests: Requests::default(),
            damaged: 0,
            ended: false,
            recorder,
            listener,
        }
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn condition(&self, vm: u16) -> Option<&Condition> {
        self.vms.get(usize::from(vm)).map(|vm| &vm.condition)
    }

    /// Whether nothing good can come any more: the hypervisor failed, or is not the expected one.
    pub(super) fn failed(&self) -> bool {
        self.panic.is_some() || self.stranger.is_some()
    }

    fn meet_stranger(&mut self, why: String) {
        if self.stranger.is_none() {
            self.stranger = Some(why);
            self.tell(Notice::Failed);
        }
    }

    /// Whether all VMs are off: the hypervisor said so, or it shows.
    pub(super) fn all_stopped(&self) -> bool {
        self.all_stopped || self.vms.iter().all(|vm| vm.condition.is_off())
    }

    pub(super) fn still_on(&self) -> Vec<String> {
        let on = self.names.iter().zip(&self.vms).filter(|(_, vm)| !vm.condition.is_off());
        on.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn stream(&mut self, channel: Channel) -> Option<&mut Stream> {
        match channel {
            Channel::Control | Channel::Requests | Channel::Bulk => None,
            Channel::Log => Some(&mut self.log),
            Channel::Console(vm) => self.vms.get_mut(usize::from(vm.0)).map(|vm| &mut vm.console),
            Channel::VirtioConsole(vm) => self.vms.get_mut(usize::from(vm.0)).map(|vm| &mut vm.virtio_console),
        }
    }

    fn tell(&mut self, notice: Notice) {
        if let Some(listener) = &self.listener
            && listener.send(notice).is_err()
        {
            self.listener = None;
        }
    }

    /// Takes in what the decoder found.
    pub(super) fn take(&mut self, event: Event<'_>) {
        match event {
            // Unframed text is the hypervisor's, from before it spoke frames or after it failed.
            Event::Text(byte) => self.text.push(byte),
            Event::Damaged => self.damaged += 1,
            Event::Frame { channel: Channel::Control, payload } => {
                self.flush_text();
                match Message::decode(payload) {
                    Some(message) => self.take_message(message),
                    None => self.damaged += 1,
                }
            }
            Event::Frame { channel: Channel::Requests | Channel::Bulk, payload } => match Reply::decode(payload) {
                Some(reply) => self.requests.take(reply),
                None => self.damaged += 1,
            },
            Event::Frame { channel, payload } => {
                self.flush_text();
                self.file(channel, payload);
            }
        }
    }

    /// What comes down `channel` from now on, a piece at a time, and first the last `history` bytes of what came before.
    pub(super) fn watch(&mut self, channel: Channel, history: usize) -> Option<Receiver<Vec<u8>>> {
        let before = if channel == Channel::Log { &self.timed_log } else { self.stream(channel)? }.all();
        let before = before.get(before.len().saturating_sub(history)..).unwrap_or_default().to_vec();
        let (pieces, receiver) = sync_channel(BEHIND);
        let _ = pieces.try_send(before);
        if !self.ended {
            self.watchers.push(Watcher { channel, pieces });
        }
        Some(receiver)
    }

    /// What is kept of the log, with the time of day before each line.
    pub(super) fn timed_log(&self) -> &[u8] {
        self.timed_log.all()
    }

    /// What is wrong with the files for logs, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        self.recorder.as_ref().and_then(Recorder::complaint)
    }

    /// What is known of a VM.
    pub(super) fn standing(&self, vm: u16) -> Option<Standing> {
        let vm = self.vms.get(usize::from(vm))?;
        let runs = matches!(vm.condition, Condition::Running { .. } | Condition::Paused);
        let said = vm.alarm.said.as_ref().or(vm.virtio_alarm.said.as_ref());
        let last_words = said.filter(|_| runs).cloned();
        Some(Standing { condition: vm.condition.clone(), boots: vm.boots, last_words })
    }

    /// Files the text that has gathered.
    pub(super) fn flush_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.file(Channel::Log, &text);
        }
    }

    fn file(&mut self, channel: Channel, bytes: &[u8]) {
        let Some(stream) = self.stream(channel) else {
            self.damaged += 1;
            return;
        };
        stream.extend(bytes);
        match channel {
            Channel::Console(VmId(vm)) => self.vms.get_mut(usize::from(vm)).map(|vm| &mut vm.alarm),
            Channel::VirtioConsole(VmId(vm)) => self.vms.get_mut(usize::from(vm)).map(|vm| &mut vm.virtio_alarm),
            _ => None,
        }
        .into_iter()
        .for_each(|alarm| alarm.hear(bytes));
        // Whoever looks at it later, or compares it with another log, wants to know when that was.
        let mut kept = bytes.to_vec();
        if channel == Channel::Log {
            kept = with_time(bytes, &mut self.is_in_line, &moment::show(moment::now()));
            self.timed_log.extend(&kept);
        }
        if let Some(complaint) = self.recorder.as_mut().and_then(|recorder| recorder.write(channel, &kept)) {
            self.tell(Notice::Remark(complaint));
        }
        // Whoever is too far behind is let go, and learns it by that.
        self.watchers.retain(|watcher| watcher.channel != channel || watcher.pieces.try_send(kept.clone()).is_ok());
        self.tell(Notice::Output { channel, bytes: bytes.to_vec() });
    }

    fn take_message(&mut self, message: Message<'_>) {
        match message {
            Message::Hello { version, vms, build } => self.check_hello(version, vms, build),
            Message::Vm { vm, name, state } => {
                if self.names.get(usize::from(vm)).is_some_and(|ours| ours != name) {
                    self.meet_stranger(format!("its VM {vm} is {name}, which is not the site's"));
                }
                self.change(vm, state.into());
            }
            Message::VmState { vm, state } => self.change(vm, state.into()),
            Message::AllStopped => {
                self.all_stopped = true;
                self.tell(Notice::AllStopped);
            }
            Message::Panic { text } => {
                if self.panic.is_none() {
                    self.tell(Notice::Failed);
                }
                self.panic.get_or_insert_default().push_str(text);
                self.file(Channel::Log, text.as_bytes());
            }
            Message::Stats { text } => self.gathering.push_str(text),
            Message::StatsEnd => {
                self.statistics = std::mem::take(&mut self.gathering);
                self.statistics_count += 1;
                self.tell(Notice::Statistics(self.statistics.clone()));
            }
            Message::Refused { text } => {
                self.refusals.push(text.to_owned());
                self.tell(Notice::Refused(text.to_owned()));
            }
            Message::Carrier { carrier } => self.way.announced = Some(carrier),
            Message::Lost => self.requests.lose(),
        }
    }

    fn check_hello(&mut self, version: u16, vms: u16, build: &str) {
        self.hello = true;
        if version != link::VERSION {
            self.meet_stranger(format!(
                "{build} speaks version {version} of the link, croft version {}; build both from one tree",
                link::VERSION
            ));
        } else if usize::from(vms) != self.names.len() {
            self.meet_stranger(format!("{build} has {vms} VMs, the site {}", self.names.len()));
        }
    }

    fn change(&mut self, vm: u16, condition: Condition) {
        let Some(slot) = self.vms.get_mut(usize::from(vm)) else {
            self.damaged += 1;
            return;
        };
        if let Condition::Running { boots } = condition
            && slot.boots != boots
        {
            slot.boots = boots;
            (slot.alarm, slot.virtio_alarm) = (Alarm::default(), Alarm::default());
        }
        if slot.condition != condition {
            slot.condition = condition.clone();
            self.all_stopped &= condition.is_off();
            self.tell(Notice::Changed { vm, condition });
        }
    }

    /// The stream has ended.
    pub(super) fn end(&mut self) {
        self.flush_text();
        self.ended = true;
        self.watchers.clear();
        self.tell(Notice::Ended);
    }

    /// How it has ended, if it has; `status` is how QEMU went.
    pub(super) fn outcome(&self, status: Option<String>) -> Option<Outcome> {
        if let Some(report) = &self.panic {
            return Some(Outcome::Panicked(report.clone()));
        }
        if let Some(why) = &self.stranger {
            return Some(Outcome::Stranger(why.clone()));
        }
        if self.all_stopped() {
            let is_bad = |condition: &Condition| !matches!(condition, Condition::PoweredOff | Condition::NotStarted);
            let bad = self.names.iter().zip(&self.vms).filter(|(_, vm)| is_bad(&vm.condition));
            let bad: Vec<_> = bad.map(|(name, vm)| (name.clone(), vm.condition.clone())).collect();
            return Some(if bad.is_empty() { Outcome::PoweredOff } else { Outcome::NotClean(bad) });
        }
        self.ended.then(|| {
            let log = String::from_utf8_lossy(self.log.all()).into_owned();
            Outcome::HostEnded {
                status: status.unwrap_or_else(|| "the link ended".to_owned()),
                running: self.still_on(),
                last_words: last_line(&log),
            }
        })
    }

    /// The name of the VM behind a channel.
    pub(super) fn owner(&self, channel: Channel) -> Option<(&str, &Condition)> {
        let (Channel::Console(VmId(vm)) | Channel::VirtioConsole(VmId(vm))) = channel else { return None };
        let name = self.names.get(usize::from(vm))?;
        Some((name, self.condition(vm)?))
    }
}
