//! `croft run`: a site on an emulated host, from the first check to the exit status.

use crate::control::{self, About};
use crate::output::complain;
use crate::printable;
use crate::session::{Notice, Options, Outcome, PortBus, Session, StartError, built_image, firmware, status};
use crate::site::{Site, SiteError};
use crate::terminal::{Action, Backlog, Lines, Look, Outlet, Patience, Raw, STALLED, Screen};
use abi::host_arguments::AllOff;
use qemu::end_of_wait;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{ErrorKind, Read, stdin, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// What was asked for on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Request {
    /// The site file; its table of the host says what to emulate.
    pub site: PathBuf,
    /// End everything after this many seconds.
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Return when every VM is off: with status 0 if all powered themselves off.
    #[arg(long)]
    pub until_stopped: bool,
    /// Keep each console in DIR/<vm>.console (virtio: DIR/<vm>.hvc0) and the log in DIR/hypervisor.log,
    /// each line with the time of day (UTC).
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Count time in instructions: one a nanosecond, on one thread. Repeatable, and slower.
    #[arg(long)]
    pub icount: bool,
    /// One more argument for QEMU; may be given often. Write --qemu-arg=-d --qemu-arg=int.
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_args: Vec<String>,
    /// The hypervisor's image, instead of the one that `cargo xtask build` makes. Only of an image in the folder into which this
    /// project is built can croft tell that it is older than its source.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Start the host as a server starts: by UEFI firmware, from a disk with an EFI system partition. FILE is the firmware's flash; `uefi`
    /// is Debian's for QEMU.
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// How long the hypervisor may take to say hello, 60 unless given; 0: for ever, as with --qemu-arg=-S.
    #[arg(long, value_name = "S", value_parser = seconds_or_none)]
    pub hello: Option<Duration>,
    /// Where the host has the device with the link's port: behind registers in memory, or on PCI.
    /// With --icount the link goes by the serial port.
    #[arg(long, value_name = "BUS", value_enum, default_value_t, conflicts_with = "icount")]
    pub port_bus: PortBus,
    /// A file that is a disk of the host's, raw, behind those that the site file names; may be given often.
    #[arg(long = "disk", value_name = "FILE")]
    pub disks: Vec<PathBuf>,
    /// Where the host has its disks: behind registers in memory, or on PCI.
    #[arg(long, value_name = "BUS", value_enum, default_value_t)]
    pub disk_bus: PortBus,
}

/// As [`seconds`], and 0.
fn seconds_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { seconds(text) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or("write a number of seconds".to_owned())
}

/// The options of `croft run` that have a value.
pub const WITH_VALUE: [&str; 9] =
    ["--timeout", "--log-dir", "--qemu-arg", "--image", "--firmware", "--hello", "--port-bus", "--disk", "--disk-bus"];

/// The site file among the arguments of `croft run`, if there is one.
#[must_use]
pub fn site_among(arguments: &[String]) -> Option<&str> {
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            return arguments.next();
        }
        if !argument.starts_with('-') {
            return Some(argument);
        }
        if WITH_VALUE.contains(&argument) {
            arguments.next();
        }
    }
    None
}

/// How long the hypervisor may take to say hello, unless something else is said.
pub const HELLO: Duration = Duration::from_secs(60);
/// After this time a person wants to know why nothing happens.
const QUIET: Duration = Duration::from_secs(5);
/// How long the VMs may take to stop when the run is ended from outside.
const WIND_DOWN: Duration = Duration::from_secs(2);

/// Why `croft run` could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The site.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// The host.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The terminal, or the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it did not work.
        source: std::io::Error,
    },
}

impl RunError {
    /// The mistakes in the site, if that is it.
    #[must_use]
    pub fn mistakes(&self) -> Option<&SiteError> {
        match self {
            Self::Site(mistakes) | Self::Start(StartError::Site(mistakes)) => Some(mistakes),
            _ => None,
        }
    }

    /// The exit status that says this.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Site(_) | Self::Start(StartError::Site(_) | StartError::Argument { .. }) => status::USAGE,
            Self::Start(_) | Self::Io { .. } => status::HOST,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, or when its time was up.
    Outcome(Outcome),
    /// The person at the terminal had enough.
    Quit,
    /// By a signal.
    Signal(i32),
    /// What it shows cannot be written any more, and why.
    Unwritable(String),
}

/// How a run ended, and what of it was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// How it ended.
    pub end: End,
    /// A line about each thing that is incomplete.
    pub incomplete: Vec<String>,
}

impl Finish {
    /// The exit status that says this: what is incomplete matters where all else is well.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        let incomplete = if self.incomplete.is_empty() { status::OK } else { status::INCOMPLETE };
        status::worse(self.end.exit_status(), incomplete)
    }
}

impl End {
    /// The exit status that says this.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Outcome(outcome) => outcome.exit_status(),
            Self::Quit => status::OK,
            Self::Signal(number) => status::SIGNAL.wrapping_add(*number as u8),
            Self::Unwritable(_) => status::INCOMPLETE,
        }
    }

    /// The line that says why, for anything but a good end.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Outcome(Outcome::PoweredOff) | Self::Quit => None,
            Self::Outcome(outcome) => Some(outcome.to_string()),
            Self::Signal(number) => Some(format!("ended by signal {number}")),
            Self::Unwritable(why) => Some(format!("standard output: {why}; the VMs were stopped")),
        }
    }
}

/// The two ways of showing a session.
enum View {
    Screen {
        screen: Screen<Outlet>,
        /// Held for what happens when it is dropped.
        _raw: Raw,
    },
    Lines(Lines<Outlet>),
}

impl View {
    fn new(names: Vec<String>, notices: &Sender<Notice>) -> std::io::Result<Self> {
        let teller = notices.clone();
        let outlet = Outlet::new(stdout(), move |error| {
            let why = match error.kind() {
                ErrorKind::BrokenPipe => "nobody reads it any more".to_owned(),
                _ => error.to_string(),
            };
            let _ = teller.send(Notice::Unwritable(why));
        });
        if !Raw::possible() {
            return Ok(Self::Lines(Lines::new(outlet, names)));
        }
        let raw = Raw::enter()?;
        let notices = notices.clone();
        thread::spawn(move || {
            let mut keys = [0; 256];
            while let Ok(count @ 1..) = stdin().read(&mut keys) {
                if notices.send(Notice::Keys(keys.iter().take(count).copied().collect())).is_err() {
                    break;
                }
            }
        });
        Ok(Self::Screen { screen: Screen::new(outlet, names, Look::from_environment())?, _raw: raw })
    }

    fn backlog(&self) -> Backlog {
        match self {
            Self::Screen { screen, .. } => screen.backlog(),
            Self::Lines(lines) => lines.backlog(),
        }
    }

    fn show(&mut self, notice: &Notice) -> std::io::Result<Vec<Action>> {
        match (self, notice) {
            (Self::Screen { screen, .. }, Notice::Keys(keys)) => screen.keys(keys),
            (Self::Screen { screen, .. }, notice) => screen.show(notice).map(|()| Vec::new()),
            (Self::Lines(lines), notice) => lines.show(notice).map(|()| Vec::new()),
        }
    }

    /// Leaves everything tidy.
    fn finish(&mut self) {
        let _ = match self {
            Self::Screen { screen, .. } => screen.finish(),
            Self::Lines(lines) => lines.finish(),
        };
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}

/// Turns the signals that ask a process to end into notices, so that the host and the terminal are seen to first.
fn watch_signals(notices: &Sender<Notice>) -> Result<(), RunError> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).map_err(io("watching for signals"))?;
    let notices = notices.clone();
    thread::spawn(move || {
        for signal in signals.forever() {
            if notices.send(Notice::Signal(signal)).is_err() {
                break;
            }
        }
    });
    Ok(())
}

/// Runs a site until something ends it. Nothing is left running afterwards.
///
/// # Errors
/// Why it could not begin.
pub fn run(request: &Request) -> Result<Finish, RunError> {
    let began = Instant::now();
    let site = Site::load(&request.site)?;
    let (sender, notices) = mpsc::channel();
    watch_signals(&sender)?;
    let image = match image(request, &notices, began)? {
        Ok(image) => image,
        Err(end) => return Ok(Finish { end, incomplete: Vec::new() }),
    };
    let options = Options {
        image: Some(image),
        firmware: request.firmware.as_deref().map(firmware).transpose()?,
        all_off: if request.until_stopped { AllOff::PowerOff } else { AllOff::Stay },
        icount: request.icount,
        // What is measured is to be repeatable.
        port: !request.icount,
        port_bus: request.port_bus,
        disks: request.disks.clone(),
        disk_bus: request.disk_bus,
        qemu_args: request.qemu_args.clone(),
        log_dir: request.log_dir.clone(),
        title: request.site.display().to_string(),
        listener: Some(sender.clone()),
        ..Options::default()
    };
    let session = Arc::new(Session::start(&site, &options)?);
    let logs = request.log_dir.as_deref().and_then(|folder| std::path::absolute(folder).ok());
    let about = About {
        site: request.site.display().to_string(),
        logs: logs.map(|folder| folder.display().to_string()),
        vcpus: site.vms.iter().map(|vm| vm.vcpus).collect(),
        vmware: site.vms.iter().map(|vm| vm.doors.vmware).collect(),
        changes: site.vms.iter().map(|vm| vm.disks.iter().map(|disk| disk.changes()).collect()).collect(),
    };
    // The VMs run whether or not others can reach them.
    let place = control::for_run(request.log_dir.as_deref());
    let server = match place.and_then(|place| control::serve(&session, about, &place)) {
        Ok(server) => {
            if let Some(why) = server.complaint() {
                let why = printable::lines(why);
                complain(&format!("croft: --host will not find this host by the folder of its logs: {why}"));
            }
            Some(server)
        }
        Err(error) => {
            let why = printable::lines(&error.to_string());
            complain(&format!("croft: `croft ps` and its like will not reach this host: {why}"));
            None
        }
    };
    let mut view = View::new(session.names(), &sender).map_err(io("the terminal"))?;
    let started = Instant::now();
    let deadline = request.timeout.and_then(|timeout| began.checked_add(timeout));
    let end = attend(&session, &notices, &mut view, request, (started, deadline));
    if !matches!(end, End::Outcome(Outcome::PoweredOff | Outcome::NotClean(_) | Outcome::HostEnded { .. })) {
        session.wind_down(WIND_DOWN);
    }
    // Whoever waits for a VM that has just stopped learns it.
    drop(server);
    let unshown = finish(&notices, &mut view, &end, deadline);
    let incomplete = [session.log_complaint(), unshown].into_iter().flatten().collect();
    Ok(Finish { end, incomplete })
}

/// The hypervisor's image. Where it is built first, a signal and the end of the time end that.
fn image(request: &Request, notices: &Receiver<Notice>, began: Instant) -> Result<Result<PathBuf, End>, RunError> {
    if let Some(image) = &request.image {
        return Ok(Ok(image.clone()));
    }
    let mut end = None;
    let image = built_image(|| {
        if let Ok(Notice::Signal(number)) = notices.try_recv() {
            end = Some(End::Signal(number));
        } else if let Some(limit) = request.timeout.filter(|limit| began.elapsed() >= *limit) {
            end = Some(End::Outcome(Outcome::TimedOut { limit, running: Vec::new() }));
        }
        end.is_some()
    })?;
    Ok(image.ok_or(end.unwrap_or(End::Quit)))
}

/// How long the last output may take once the end is certain.
const GRACE: Duration = Duration::from_secs(3);

/// How long the hypervisor may take to say hello; `None` for ever, as behind a debugger.
fn hello_limit(request: &Request) -> Option<Duration> {
    let is_halted = request.qemu_args.iter().any(|argument| argument == "-S");
    Some(request.hello.unwrap_or(HELLO)).filter(|limit| !limit.is_zero() && (!is_halted || request.hello.is_some()))
}

/// Shows everything and does what is asked for until the end.
fn attend(
    session: &Session,
    notices: &Receiver<Notice>,
    view: &mut View,
    request: &Request,
    (started, mut deadline): (Instant, Option<Instant>),
) -> End {
    let limit = request.timeout.unwrap_or(Duration::MAX);
    let hello = hello_limit(request);
    let mut quiet = Some(started + QUIET);
    loop {
        let silence =
            hello.filter(|_| quiet.is_some() || !session.has_said_hello()).map(|limit| end_of_wait(started, limit));
        let soonest = [deadline, quiet, silence].into_iter().flatten().min();
        let received = match soonest {
            Some(soonest) => notices.recv_timeout(soonest.saturating_duration_since(Instant::now())),
            None => notices.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let now = Instant::now();
        if session.has_said_hello() {
            quiet = None;
        } else if deadline.is_none_or(|deadline| now < deadline) {
            if hello.is_some_and(|limit| now >= end_of_wait(started, limit)) {
                return End::Outcome(session.silent(hello.unwrap_or_default()));
            }
            if quiet.is_some_and(|quiet| now >= quiet) {
                quiet = None;
                let _ = view.show(&Notice::Remark(still_silent(hello)));
            }
        }
        let notice = match received {
            Ok(notice) => notice,
            Err(RecvTimeoutError::Timeout) if deadline.is_none_or(|deadline| now < deadline) => continue,
            Err(_) => return End::Outcome(session.outcome(limit)),
        };
        let Ok(actions) = view.show(&notice) else { return End::Quit };
        match notice {
            Notice::Signal(number) => return End::Signal(number),
            Notice::Unwritable(why) => return End::Unwritable(why),
            Notice::Ended => return End::Outcome(session.outcome(limit)),
            Notice::Failed => deadline = Some(sooner(deadline)),
            Notice::AllStopped if request.until_stopped => deadline = Some(sooner(deadline)),
            _ => {}
        }
        for action in actions {
            // A hypervisor that is gone shows as `Ended` in a moment.
            let _ = match action {
                Action::Quit => return End::Quit,
                Action::Send(channel, bytes) => session.send(channel, &bytes),
                Action::Tell(command) => session.control(command),
            };
        }
        // However much a guest prints, it must not keep the time from being up.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return End::Outcome(session.outcome(limit));
        }
    }
}

fn still_silent(hello: Option<Duration>) -> String {
    let end = match hello {
        Some(limit) => format!("it is given {} s (--hello)", limit.as_secs_f64()),
        None => "it is waited for".to_owned(),
    };
    format!("the hypervisor has not said hello for {} s; {end}", QUIET.as_secs())
}

/// Lets the reader have what was shown. After an end of its own the run waits for it, until its time is up or it is asked to
/// end; ended from outside, it waits only while something is taken. Says what was not shown.
fn finish(notices: &Receiver<Notice>, view: &mut View, end: &End, deadline: Option<Instant>) -> Option<String> {
    let natural = matches!(end, End::Outcome(outcome) if !matches!(outcome, Outcome::TimedOut { .. }));
    let backlog = view.backlog();
    // What came since the end was certain: the hypervisor's last words about its VMs.
    let (mut ended, last_words) = (false, Instant::now() + STALLED);
    let incomplete = |why: &str| Some(format!("standard output is incomplete: {why}"));
    // A guest that floods its console until the host ends has no last word.
    while let Some(notice) = notices.try_recv().ok().filter(|_| Instant::now() < last_words) {
        ended |= matches!(notice, Notice::Ended);
        if let Notice::Unwritable(why) = &notice {
            return incomplete(why);
        }
        if matches!(notice, Notice::Output { .. } | Notice::Changed { .. } | Notice::Ended) {
            let _ = view.show(&notice);
        }
    }
    if !ended {
        view.finish();
    }
    let mut patience = if natural { Patience::Endless } else { Patience::WhileTaken };
    let waited = backlog.wait(|| {
        match notices.recv_timeout(Duration::from_millis(10)) {
            Ok(Notice::Signal(_)) => patience = Patience::WhileTaken,
            Ok(Notice::Unwritable(why)) => return Err(why),
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            patience = Patience::WhileTaken;
        }
        Ok(patience)
    });
    let unshown = match waited {
        Ok(unshown) => unshown,
        Err(why) => return incomplete(&why),
    };
    while let Ok(notice) = notices.try_recv() {
        if let Notice::Unwritable(why) = notice {
            return incomplete(&why);
        }
    }
    unshown
}

fn sooner(deadline: Option<Instant>) -> Instant {
    let soon = Instant::now() + GRACE;
    deadline.map_or(soon, |deadline| deadline.min(soon))
}

#[cfg(test)]
mod tests {
    use super::site_among;

    #[test]
    fn the_site_is_what_is_neither_an_option_nor_its_value() {
        let found = |line: &str| {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            site_among(&arguments).map(str::to_owned)
        };
        for line in
            ["demo/site", "--icount demo/site", "--timeout 9 demo/site --icount", "--hello=9 demo/site", "-- demo/site"]
        {
            assert_eq!(found(line).as_deref(), Some("demo/site"), "{line}");
        }
        assert_eq!(found("--qemu-arg -d --qemu-arg x.toml a.toml").as_deref(), Some("a.toml"));
        for line in ["", "--icount", "--timeout 9 --log-dir site.toml", "--image=a.toml", "--"] {
            assert_eq!(found(line), None, "{line}");
        }
    }
}
