//! How `croft ps`, `croft stop`, `croft time` and their like reach a running host: a Unix socket that `croft run` listens on.
//!
//! `croft run` owns the link, so only it can ask. Its socket lies in a private folder of the user (`$XDG_RUNTIME_DIR/undercroft`, or
//! `undercroft-<uid>` in the temporary folder); only its owner may connect. A run with a folder for logs leaves a link to its socket there, by
//! which it can be named. The protocol is described in `docs/formats/control.md`. A client sends one [`Order`] as a line of JSON, and gets
//! [`Report`]s, one a line, until the server closes. A line longer than [`MAX_LINE`] ends the conversation.

mod client;
mod follow;
mod moves;
mod place;
mod post;
mod server;
mod transfer;

pub use client::{ControlError, connect, perform, perform_while};
pub use place::{Place, find, for_run};
pub use server::{About, Server, serve};

use crate::session;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// At most this many bytes in a line: a value of 64 KiB as JSON numbers, with room.
pub const MAX_LINE: u64 = 512 << 10;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// What the host runs, and where its logs are.
    Host,
    /// All VMs, and what is known of them.
    List,
    /// The keys of a VM's guest store.
    Keys {
        /// The VM's name.
        vm: String,
    },
    /// A value of it.
    Get {
        /// The VM's name.
        vm: String,
        /// The key, whole.
        key: String,
    },
    /// Sets a value of it.
    Set {
        /// The VM's name.
        vm: String,
        /// The key, whole.
        key: String,
        /// The value.
        value: Vec<u8>,
    },
    /// What is kept of the hypervisor's log.
    Log {
        /// And what comes from now on, until the client closes the connection.
        follow: bool,
    },
    /// The last of what a console printed and what it prints from now on. Each further line of the client's is a list of
    /// bytes, which go to the guest; it ends when the client has no more to say.
    Console {
        /// The VM's name.
        vm: String,
        /// The virtio console, not the PL011.
        virtio: bool,
    },
    /// What the hypervisor counts.
    Statistics {
        /// These VMs must be there.
        vms: Vec<String>,
    },
    /// Starts a VM that is off.
    Start {
        /// The VM's name.
        vm: String,
    },
    /// Shuts a VM down.
    Stop {
        /// The VM's name.
        vm: String,
        /// At once, without asking the guest.
        force: bool,
        /// How many seconds the guest may take.
        seconds: u64,
    },
    /// Reboots a VM, or starts one that is off.
    Reboot {
        /// The VM's name.
        vm: String,
        /// At once, without asking the guest.
        force: bool,
        /// How many seconds the guest may take.
        seconds: u64,
    },
    /// Lets a VM's vCPUs stand still, and its watchdogs with them.
    Pause {
        /// The VM's name.
        vm: String,
    },
    /// Lets a paused VM go on.
    Resume {
        /// The VM's name.
        vm: String,
    },
    /// Saves a VM to a file, as it is at that moment. It runs on.
    Save {
        /// The VM's name.
        vm: String,
        /// The file; an absolute path.
        file: PathBuf,
        /// Its memory is compressed there.
        #[serde(default)]
        compress: bool,
    },
    /// Writes a VM to a file as an ELF core, for debuggers. It stands still meanwhile.
    Dump {
        /// The VM's name.
        vm: String,
        /// The file; an absolute path.
        file: PathBuf,
    },
    /// Lets a saved VM take the place of one that is off.
    Restore {
        /// That one's name; without it, it is called as the saved one.
        vm: Option<String>,
        /// The file; an absolute path.
        file: PathBuf,
        /// It stands still until it is told to go on.
        pause: bool,
    },
    /// Lets a clone of a VM, as it is at that moment, take the place of one that is off. The VM runs on.
    Clone {
        /// The VM's name.
        vm: String,
        /// The name of the one that is off.
        name: String,
        /// The clone stands still until it is told to go on.
        pause: bool,
    },
    /// What time the host has.
    Time,
    /// Sets the host's real-time clock.
    SetTime {
        /// Microseconds since 1970, UTC.
        microseconds: u64,
    },
    /// Has a guest's tools set its clock to the host's, forward or back.
    SetGuestTime {
        /// The VM's name.
        vm: String,
    },
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The answer to [`Order::Host`].
    Host {
        /// The site file, as it was named.
        site: String,
        /// Where the folder for logs was at the start.
        logs: Option<String>,
    },
    /// The answer to [`Order::List`].
    Vms(Vec<Vm>),
    /// The answer to [`Order::Keys`]: each key with the length of its value.
    Keys(Vec<(String, u32)>),
    /// The answer to [`Order::Get`].
    Value(Vec<u8>),
    /// The answer to [`Order::Time`].
    Time {
        /// Microseconds since 1970, UTC; since the host's start if it has no clock.
        microseconds: u64,
        /// Whether it has a clock.
        settable: bool,
    },
    /// The next piece of the answer to [`Order::Log`] or [`Order::Console`].
    Output(Vec<u8>),
    /// The answer to [`Order::Statistics`]: of all VMs, as the hypervisor writes them.
    Statistics(String),
    /// Something on the way.
    Progress(String),
    /// How far a copy is that takes its time. It comes often.
    Meanwhile {
        /// What is copied.
        what: String,
        /// How many bytes are.
        bytes: u64,
        /// Of so many, if that is known.
        of: Option<u64>,
    },
    /// It is done.
    Done,
    /// It isn't, and why.
    Failed(String),
    /// It isn't, since the client has named a VM that is not there.
    NotThere(String),
    /// What was followed has ended since the host has, under VMs that ran; and how.
    HostEnded(String),
}

/// A VM as `croft ps` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// What it does, for people.
    pub state: String,
    /// What it does, as one of the words of `docs/formats/control.md`.
    pub word: String,
    /// How often it was started; 0 if that is not known.
    pub boots: u32,
    /// Why it crashed, or how its kernel says that it panicked.
    pub reason: Option<String>,
    /// What is done with all of it: one of the words of `docs/formats/control.md`.
    pub transfer: Option<String>,
    /// How many vCPUs it has.
    pub vcpus: u8,
    /// What its guest's tools have reported, if it has any.
    pub guest: Option<Guest>,
}

/// What a guest's tools have reported. Texts are empty where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The tools' version.
    pub tools: String,
    /// The guest's host name.
    pub host_name: String,
    /// Its operating system.
    pub system: String,
    /// Its first IPv4 address.
    pub address: String,
    /// Seconds that it was up when it last said so.
    pub uptime: u64,
    /// Milliseconds since its daemon last polled.
    pub heartbeat: Option<u64>,
    /// Whether the daemon is there and can shut the guest down.
    pub can_stop: bool,
}

impl From<session::Report> for Guest {
    fn from(report: session::Report) -> Self {
        let session::Report { version, host_name, system, address, uptime, heartbeat, can_stop, .. } = report;
        Self { tools: version, host_name, system, address, uptime, heartbeat, can_stop }
    }
}
