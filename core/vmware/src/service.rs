//! One VM's service: a call in X0 to X7 becomes an answer in X0 to X6.

use alloc::vec::Vec;

use abi::bundle::{Calls, Group};
use abi::calls::NO_COMMAND;
use abi::calls::own::{MAGIC as OWN_MAGIC, PORT as OWN_PORT};
use abi::calls::vmware::{self, DAEMON_IS_LOST, MAGIC, PORT_HIGH, PORT_HIGH_WITH_FLAGS, PORT_LOW, command};

use crate::channel::{Channels, Peer, PeerOf, Protocol, Registers};
use crate::commands;
use crate::encoding::{Access, Form, PortDirection, Size};
use crate::guestinfo::{Refused, Store};
use crate::limits::{Limits, LogRate};
use crate::own::{self, Completion};
use crate::rpci;
use crate::tclo::{Report, Requests};
use units::Direction;

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ExceptionLevel {
    /// EL0.
    User,
    /// EL1.
    Kernel,
}

/// Coordinated universal time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WallTime {
    /// Seconds since 1970.
    pub seconds: u64,
    /// Microseconds of the next one.
    pub microseconds: u32,
}

/// Why a guest's buffer cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BufferError {
    /// The guest's own translation refuses: it gets the abort that its access would have got, and repeats the call.
    Fault {
        /// The address.
        address: u64,
        /// The fault status code (PAR_EL1.FST).
        status: u8,
        /// Whether its memory was to be read or written.
        direction: Direction,
    },
    /// It leads to something that is no RAM.
    NotMemory,
}

/// Which watchdog is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The VM's.
    Vm,
    /// The calling vCPU's own.
    Caller,
}

/// A request to the watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchdogCall {
    /// How long is left?
    Query,
    /// Arms it, or disarms it with 0 milliseconds.
    Configure {
        /// Until it acts.
        milliseconds: u64,
        /// What it does then.
        action: u32,
    },
    /// Begins the time anew.
    Pat,
}

/// What a call needs of the world.
pub trait Host {
    /// Copies guest memory at the virtual address `from`, with the caller's rights.
    ///
    /// # Errors
    /// Which page is missing.
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), BufferError>;
    /// Copies to guest memory at the virtual address `to`, with the caller's rights.
    ///
    /// # Errors
    /// As [`Host::read`].
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError>;
    /// Something nobody can guess.
    fn random(&mut self) -> u64;
    /// What time it is.
    fn time(&mut self) -> WallTime;
    /// The host's clock, which only runs forward, in milliseconds: for what a guest may cost the host.
    fn milliseconds(&mut self) -> u64;
    /// How many milliseconds the VM's own clock has counted: for what is expected of the guest.
    fn guest_milliseconds(&mut self) -> u64;
    /// A line of the guest's for the log; any bytes. Says whether there was room for it.
    fn log(&mut self, text: &[u8]) -> bool;
    /// Bits of [`abi::calls::own::features`] beyond the calls themselves.
    fn features(&mut self) -> u64;
    /// Statistic `number` of the VM: name, count, and how many there are.
    fn statistic(&mut self, number: u32) -> Option<(&'static str, u64, u32)>;
    /// The counter's frequency, and the host's count at which the guest's virtual one was 0.
    fn clock(&mut self) -> (u64, u64);
    /// Asks the watchdog: milliseconds granted or remaining.
    ///
    /// # Errors
    /// One of [`abi::calls::own::status`].
    fn watchdog(&mut self, request: WatchdogCall, whose: Whose, level: ExceptionLevel) -> Result<u64, u64>;
}

/// What does not change while a VM lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The VM's UUID.
    pub uuid: [u8; 16],
    /// Bytes of memory.
    pub memory: u64,
    /// What it is told its CPUs' speed is, in MHz; not 0.
    pub megahertz: u32,
    /// Whether its clock follows the host's.
    pub time_sync: bool,
    /// How much of everything.
    pub limits: Limits,
    /// What the guest's user level may call.
    pub user: Calls,
    /// What its kernel may call.
    pub kernel: Calls,
}

impl Config {
    fn allows(&self, level: ExceptionLevel, group: Group) -> bool {
        match level {
            ExceptionLevel::User => self.user.has(group),
            ExceptionLevel::Kernel => self.kernel.has(group),
        }
    }
}

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Answered: the guest goes on behind the instruction.
    Done,
    /// Partly done: the guest executes the instruction again.
    Again,
    /// The guest gets an abort, and then executes the instruction again.
    Fault {
        /// The address.
        address: u64,
        /// The fault status code.
        status: u8,
        /// Whether its memory was to be read or written.
        direction: Direction,
    },
}

/// What there is besides the channels.
#[derive(Debug)]
pub struct State {
    /// The key store.
    pub store: Store,
    /// What the tools report.
    pub report: Report,
    /// What they are asked.
    pub requests: Requests,
    /// Whether the guest's clock follows the host's.
    pub time_sync: bool,
    pub(crate) limits: Limits,
    pub(crate) log_rate: LogRate,
    /// When the VM was paused, if it is, in milliseconds of its clock. That may run on, but nothing is expected of the guest then.
    pub(crate) paused: Option<u64>,
}

impl State {
    /// Up to when the guest could do something, if its clock shows `now`.
    fn until(&self, now: u64) -> u64 {
        self.paused.unwrap_or(now)
    }
}

/// One VM's service.
#[derive(Debug)]
pub struct Service {
    pub(crate) config: Config,
    pub(crate) channels: Channels,
    /// The rest.
    pub state: State,
}

/// The host at the other end of the channels.
struct HostSide<'a, H> {
    state: &'a mut State,
    host: &'a mut H,
}

impl PeerOf for State {
    fn with<'a, H: Host>(&'a mut self, host: &'a mut H) -> impl Peer {
        HostSide { state: self, host }
    }
}

impl<H: Host> Peer for HostSide<'_, H> {
    fn opened(&mut self, id: u16, protocol: Protocol) {
        if protocol == Protocol::Tclo {
            self.state.requests.opened(id, self.state.time_sync);
        }
    }

    fn message(&mut self, id: u16, protocol: Protocol, message: &[u8]) -> Option<Vec<u8>> {
        match protocol {
            Protocol::Rpci => Some(rpci::execute(self.state, self.host, message)),
            Protocol::Tclo => {
                // A vCPU may be in a call still when the VM is paused.
                let now = self.state.until(self.host.guest_milliseconds());
                self.state.report.heartbeat = Some(now);
                if self.state.requests.replied(id, message, now) {
                    self.state.report.last_ok = message.starts_with(b"OK");
                }
                None
            }
        }
    }

    fn poll(&mut self, id: u16) -> Option<Vec<u8>> {
        let now = self.state.until(self.host.guest_milliseconds());
        self.state.requests.poll(id, now)
    }

    fn closed(&mut self, id: u16, _protocol: Protocol) {
        self.state.requests.closed(id);
    }
}

/// What comes when the tools have shut their guest down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// It is off.
    Halt,
    /// It starts again.
    Restart,
}

impl Service {
    /// The service of a VM that is made at `now`, in milliseconds of the host's clock.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
        let state = State {
            store: Store::default(),
            report: Report::default(),
            requests: Requests::default(),
            time_sync: config.time_sync,
            limits: config.limits,
            log_rate: LogRate::new(config.limits.log, now),
            paused: None,
        };
        Self { config, channels: Channels::default(), state }
    }

    /// What its guest is told its CPUs' speed is from now on, in MHz.
    pub const fn set_megahertz(&mut self, megahertz: u32) {
        self.config.megahertz = megahertz;
    }

    /// The VM starts afresh: channels and reports are gone, values stay.
    pub fn restart(&mut self) {
        self.channels.drop_all();
        self.state.report = Report::default();
        self.state.requests = Requests::default();
        self.state.time_sync = self.config.time_sync;
        self.state.paused = None;
    }

    /// The VM is paused when its clock shows `now`, in milliseconds. Until it goes on nothing is expected of its tools.
    pub const fn pause(&mut self, now: u64) {
        self.state.paused = Some(now);
    }

    /// The VM goes on when its clock shows `now`, in milliseconds: what its tools still have to do has as much time left as before.
    pub fn resume(&mut self, now: u64) {
        let Some(paused) = self.state.paused.take() else { return };
        let passed = now.saturating_sub(paused);
        let State { report, requests, .. } = &mut self.state;
        report.heartbeat = report.heartbeat.map(|beat| beat.saturating_add(passed));
        requests.not_before = requests.not_before.saturating_add(passed);
    }

    /// As after power on: values are gone too.
    pub fn forget(&mut self) {
        self.restart();
        self.state.store = Store::default();
    }

    /// Gives all channels up, as after the VM has come from another machine: the tools notice, and connect anew. Values
    /// and reports stay.
    pub fn drop_channels(&mut self) {
        self.channels.drop_all();
        self.state.requests = Requests::default();
    }

    /// The operator sets a value, under the guest's own limits.
    ///
    /// # Errors
    /// Why not; the old value stays.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refused> {
        self.state.store.set(key, value, &self.state.limits)
    }

    /// How many channels are open.
    #[must_use]
    pub fn open_channels(&self) -> usize {
        self.channels.open_count()
    }

    /// How many bytes of messages are on their way, in both directions.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.channels.buffered()
    }

    /// Answers the call `access` of a caller at `level`. Only documented results change; after anything but
    /// [`Outcome::Done`] and [`Outcome::Again`] nothing has.
    pub fn call(&mut self, access: Access, x: &mut Registers, level: ExceptionLevel, host: &mut impl Host) -> Outcome {
        let known = x[0] as u32 == MAGIC;
        let may_own = self.config.allows(level, Group::Own);
        let result = match (access.port, access.form, access.direction) {
            (PORT_LOW, Form::Single, PortDirection::In) if known && access.size == Size::Word => {
                self.low(x, level, host);
                Ok(Completion::Finished)
            }
            (PORT_HIGH | PORT_HIGH_WITH_FLAGS, Form::String { repeated: true, .. }, direction)
                if known && access.size == Size::Byte && x[1] as u16 == 0 =>
            {
                match direction {
                    _ if !self.config.allows(level, Group::Rpc) => {
                        x[1] = 0;
                        Ok(Completion::Finished)
                    }
                    PortDirection::Out => self.channels.bulk_out(x, &self.config.limits, host, &mut self.state),
                    PortDirection::In => self.channels.bulk_in(x, host),
                }
            }
            (OWN_PORT, Form::Single, PortDirection::In)
                if may_own && x[0] as u32 == OWN_MAGIC && access.size == Size::Word =>
            {
                own::call(&mut self.state, x, level, host).map(|()| Completion::Finished)
            }
            (OWN_PORT, Form::String { repeated: true, backwards: false }, PortDirection::Out)
                if may_own && access.size == Size::Byte =>
            {
                own::string(&mut self.state, x, host)
            }
            (_, Form::Single, PortDirection::In) => {
                // A port where nothing is: all bits set.
                x[0] = x[0] & 0xffff_ffff | access.size.mask();
                Ok(Completion::Finished)
            }
            _ => Ok(Completion::Finished),
        };
        match result {
            Ok(Completion::Finished) | Err(BufferError::NotMemory) => Outcome::Done,
            Ok(Completion::More) => Outcome::Again,
            Err(BufferError::Fault { address, status, direction }) => Outcome::Fault { address, status, direction },
        }
    }

    /// A command of the low port.
    fn low(&mut self, x: &mut Registers, level: ExceptionLevel, host: &mut impl Host) {
        let number = x[2] as u16;
        let allowed = commands::group(number).is_none_or(|group| self.config.allows(level, group));
        if level < commands::least_level(number) || !allowed {
            x[0] = NO_COMMAND;
            return;
        }
        match number {
            command::GET_VERSION => [x[0], x[1], x[2]] = [vmware::VERSION, u64::from(MAGIC), vmware::PRODUCT],
            command::MESSAGE => self.channels.call(x, &self.config.limits, host, &mut self.state),
            command::GET_MHZ => x[0] = u64::from(self.config.megahertz.max(1)),
            command::GET_DEVICE | command::TOGGLE_DEVICE | command::STOP_CATCH_UP | command::DISPLAY_STATISTICS => {
                x[0] = 0;
            }
            command::GET_OPTIONS => x[0] = if self.state.time_sync { vmware::OPTION_TIME_SYNC } else { 0 },
            command::GET_HARDWARE_VERSION => [x[0], x[1]] = [vmware::HARDWARE_VERSION, u64::from(MAGIC)],
            command::GET_UUID => {
                let (words, _) = self.config.uuid.as_chunks::<4>();
                for (to, from) in x.iter_mut().zip(words) {
                    *to = u64::from(u32::from_le_bytes(*from));
                }
            }
            command::GET_MEMORY => {
                x[0] = self.config.memory.min(0xffff_f000);
                x[1] = 0x1177;
            }
            command::GET_TIME => {
                let time = host.time();
                x[0] = time.seconds & 0xffff_ffff;
                x[1] = u64::from(time.microseconds);
                x[2] = vmware::TOLERATED_LAG;
            }
            command::GET_TIME_FULL | command::GET_TIME_FULL_WITH_LAG => {
                let time = host.time();
                x[0] = u64::from(MAGIC);
                x[1] = u64::from(time.microseconds);
                x[2] = vmware::TOLERATED_LAG;
                x[3] = time.seconds & 0xffff_ffff;
                x[4] = time.seconds >> 32;
                if number == command::GET_TIME_FULL_WITH_LAG {
                    x[5] = 0;
                }
            }
            _ => x[0] = NO_COMMAND,
        }
    }

    /// How many milliseconds ago the tools' daemon polled last, of those in which the guest could run; its clock shows `now`. `None`
    /// if it never has.
    #[must_use]
    pub fn silent(&self, now: u64) -> Option<u64> {
        self.state.report.heartbeat.map(|beat| self.state.until(now).saturating_sub(beat))
    }

    /// Whether the tools' daemon answers, when the VM's clock shows `now`, in milliseconds.
    #[must_use]
    pub fn has_tools(&self, now: u64) -> bool {
        self.state.requests.channel.is_some() && self.silent(now).is_some_and(|silent| silent < DAEMON_IS_LOST)
    }

    /// Asks the daemon to shut the guest down, for `what` comes then. Says whether there is a daemon that can; the VM's clock shows
    /// `now`, in milliseconds.
    pub fn ask_to_stop(&mut self, what: Shutdown, now: u64) -> bool {
        let able = self.state.report.soft_power && self.has_tools(now);
        able && self.state.requests.push(match what {
            Shutdown::Halt => b"OS_Halt",
            Shutdown::Restart => b"OS_Reboot",
        })
    }
}
