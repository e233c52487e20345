//! `croft run`: a site on an emulated host, from the first check to the exit status.

use crate::control;
use crate::session::{Notice, Options, Outcome, Session, StartError, status};
use crate::site::{Site, SiteError};
use crate::terminal::{Lines, Raw, Screen, Wish};
use abi::host_arguments::AllOff;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{Read, Stdout, stdin, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// What was asked for on the command line.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The site file.
    pub site: PathBuf,
    /// End everything after this time.
    pub timeout: Option<Duration>,
    /// Return when every VM is off.
    pub until_stopped: bool,
    /// See [`Options::log_dir`].
    pub log_dir: Option<PathBuf>,
    /// See [`Options::icount`].
    pub icount: bool,
    /// See [`Options::qemu_args`].
    pub qemu_args: Vec<String>,
    /// See [`Options::image`].
    pub image: Option<PathBuf>,
}

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
    /// The exit status that says this.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Site(_) | Self::Start(StartError::Site(_)) => status::USAGE,
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
}

impl End {
    /// The exit status that says this.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Outcome(outcome) => outcome.exit_status(),
            Self::Quit => status::OK,
            Self::Signal(number) => status::SIGNAL.wrapping_add(*number as u8),
        }
    }

    /// The line that says why, for anything but a good end.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Outcome(Outcome::PoweredOff) | Self::Quit => None,
            Self::Outcome(outcome) => Some(outcome.to_string()),
            Self::Signal(number) => Some(format!("ended by signal {number}")),
        }
    }
}

/// The two ways of showing a session.
enum View {
    Screen {
        screen: Screen<Stdout>,
        /// Held for what happens when it is dropped.
        _raw: Raw,
    },
    Lines(Lines<Stdout>),
}

impl View {
    fn new(names: Vec<String>, notices: &Sender<Notice>) -> std::io::Result<Self> {
        if !Raw::possible() {
            return Ok(Self::Lines(Lines::new(stdout(), names)));
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
        Ok(Self::Screen { screen: Screen::new(stdout(), names)?, _raw: raw })
    }

    fn show(&mut self, notice: &Notice) -> std::io::Result<Vec<Wish>> {
        match (self, notice) {
            (Self::Screen { screen, .. }, Notice::Keys(keys)) => screen.keys(keys),
            (Self::Screen { screen, .. }, notice) => screen.show(notice).map(|()| Vec::new()),
            (Self::Lines(lines), notice) => lines.show(notice).map(|()| Vec::new()),
        }
    }

    /// Leaves everything tidy. Who doesn't read any more doesn't miss anything either.
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
pub fn run(request: &Request) -> Result<End, RunError> {
    let site = Site::load(&request.site)?;
    let (sender, notices) = mpsc::channel();
    watch_signals(&sender)?;
    let options = Options {
        image: request.image.clone(),
        all_off: if request.until_stopped { AllOff::PowerOff } else { AllOff::Stay },
        icount: request.icount,
        qemu_args: request.qemu_args.clone(),
        log_dir: request.log_dir.clone(),
        listener: Some(sender.clone()),
        ..Options::default()
    };
    let session = Arc::new(Session::start(&site, &options)?);
    let vcpus = site.vms.iter().map(|vm| vm.vcpus).collect();
    let socket = control::for_run(request.log_dir.as_deref());
    // The VMs run whether or not others can reach them.
    let _server = match socket.and_then(|socket| control::serve(&session, vcpus, &socket)) {
        Ok(server) => Some(server),
        Err(error) => {
            eprintln!("croft: `croft ps` and its like will not reach this host: {error}");
            None
        }
    };
    let mut view = View::new(session.names(), &sender).map_err(io("the terminal"))?;
    let end = attend(&session, &notices, &mut view, request);
    view.finish();
    Ok(end)
}

/// How long the last output may take once the end is certain.
const GRACE: Duration = Duration::from_secs(3);

/// Shows everything and does what is wished until the end.
fn attend(session: &Session, notices: &Receiver<Notice>, view: &mut View, request: &Request) -> End {
    let limit = request.timeout.unwrap_or(Duration::MAX);
    let mut deadline = Instant::now().checked_add(limit);
    loop {
        let received = match deadline {
            Some(deadline) => notices.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => notices.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let Ok(notice) = received else { return End::Outcome(session.outcome(limit)) };
        // A reader that went away (`| head`) ends the run as it ends any other filter.
        let Ok(wishes) = view.show(&notice) else { return End::Quit };
        match notice {
            Notice::Signal(number) => return End::Signal(number),
            Notice::Ended => return End::Outcome(session.outcome(limit)),
            Notice::Failed => deadline = Some(sooner(deadline)),
            Notice::AllStopped if request.until_stopped => deadline = Some(sooner(deadline)),
            _ => {}
        }
        for wish in wishes {
            // A hypervisor that is gone shows as `Ended` in a moment.
            let _ = match wish {
                Wish::Quit => return End::Quit,
                Wish::Send(channel, bytes) => session.send(channel, &bytes),
                Wish::Tell(command) => session.control(command),
            };
        }
    }
}

fn sooner(deadline: Option<Instant>) -> Instant {
    let soon = Instant::now() + GRACE;
    deadline.map_or(soon, |deadline| deadline.min(soon))
}
