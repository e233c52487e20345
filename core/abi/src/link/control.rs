//! What the two sides say to each other on the control channel. One message a frame, postcard-encoded.
//!
//! Variants and fields are only ever added at the end, with a new [`VERSION`]; a reader drops a message that it cannot
//! decode. VM numbers are those of the site file's order, from 0.

use serde::{Deserialize, Serialize};

/// The version of the control messages that this code speaks.
pub const VERSION: u16 = 10;

/// What carries the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Carrier {
    /// The host's UART, beside whatever text the hypervisor prints there.
    #[default]
    Uart,
    /// A port of a virtio console of the host's, for nothing but frames.
    Port,
}

/// Why a VM is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StopReason<'a> {
    /// The guest powered itself off (PSCI SYSTEM_OFF, or all its vCPUs off).
    PowerOff,
    /// The operator stopped it.
    Forced,
    /// The hypervisor stopped it, for what it did or what it lacks; the text says what.
    Crashed(&'a str),
    /// Nobody has started it yet.
    NotStarted,
}

/// What a VM does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum VmState<'a> {
    /// It runs, for the `boots`th time: 1 at first, one more after each reboot.
    Running {
        /// How often it has been started.
        boots: u32,
    },
    /// It is off.
    Stopped(#[serde(borrow)] StopReason<'a>),
    /// The operator, or its watchdog, halted it for a while.
    Paused,
}

/// From the hypervisor to the tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message<'a> {
    /// The first message in framed mode, and the answer to [`Command::Attach`]; a [`Message::Vm`] for each VM follows.
    Hello {
        /// The sender's [`VERSION`].
        version: u16,
        /// How many VMs there are.
        vms: u16,
        /// Name and version of the hypervisor.
        build: &'a str,
    },
    /// Introduces a VM.
    Vm {
        /// Its number.
        vm: u16,
        /// Its name.
        name: &'a str,
        /// What it does now.
        #[serde(borrow)]
        state: VmState<'a>,
    },
    /// A VM's state has changed (a reboot is a change too: `boots` grows).
    VmState {
        /// Its number.
        vm: u16,
        /// What it does from now on.
        #[serde(borrow)]
        state: VmState<'a>,
    },
    /// The last VM that was on has stopped.
    AllStopped,
    /// The hypervisor has failed and stops the machine. A part of the report, in order; as many as it takes.
    Panic {
        /// UTF-8, at most [`Message::MAX_TEXT`] bytes.
        text: &'a str,
    },
    /// A part of the statistics that [`Command::Stats`] asked for, in order.
    Stats {
        /// UTF-8, at most [`Message::MAX_TEXT`] bytes.
        text: &'a str,
    },
    /// The statistics are complete.
    StatsEnd,
    /// A command could not be carried out; the text says which and why.
    Refused {
        /// One line, at most [`Message::MAX_TEXT`] bytes.
        text: &'a str,
    },
    /// Everything behind this comes by that carrier, beginning with a [`Message::Hello`] if it is another one than this came by.
    Carrier {
        /// Which.
        carrier: Carrier,
    },
    /// Nobody took what the link carried for a while, and some of it is lost: an answer that has not come may never do.
    Lost,
}

/// From the tool to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Frames from now on. Answered by [`Message::Hello`].
    Attach {
        /// The sender's [`VERSION`].
        version: u16,
    },
    /// Readable text from now on.
    Detach,
    /// Press the VM's power button: the guest is asked to shut down.
    PowerButton {
        /// Which VM.
        vm: u16,
    },
    /// Stop the VM at once.
    ForceStop {
        /// Which VM.
        vm: u16,
    },
    /// Have the guest's tools reboot the VM, reset it if they do not run, or start it if it is off.
    Reboot {
        /// Which VM.
        vm: u16,
    },
    /// Send statistics: [`Message::Stats`], then [`Message::StatsEnd`].
    Stats,
    /// Let the VM's vCPUs stand still, and its watchdogs with them.
    PauseVm {
        /// Which VM.
        vm: u16,
    },
    /// Let a paused VM go on.
    ResumeVm {
        /// Which VM.
        vm: u16,
    },
    /// Time exits besides counting them, or no longer.
    ExitTimes {
        /// Whether they are timed from now on.
        on: bool,
    },
    /// Reset the VM at once, without asking the guest, or start it if it is off.
    Reset {
        /// Which VM.
        vm: u16,
    },
}

impl<'a> Message<'a> {
    /// At most this many bytes of text in a message, so that it always fits into a frame.
    pub const MAX_TEXT: usize = 960;

    /// Encodes into `buffer` (of [`super::MAX_PAYLOAD`] bytes) and returns the part that was used; `None` if a text is too long.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        postcard::to_slice(self, buffer).ok().map(|used| &*used)
    }

    /// The message in a control frame's payload; `None` for one that this version doesn't know.
    #[must_use]
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }

    /// The pieces of at most [`Message::MAX_TEXT`] bytes that a longer text is sent in; no character is cut.
    pub fn pieces(text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        core::iter::from_fn(move || {
            let (piece, behind) = rest.split_at_checked(rest.floor_char_boundary(Self::MAX_TEXT))?;
            rest = behind;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

impl Command {
    /// At most this many bytes in an encoded command.
    pub const MAX_ENCODED: usize = 16;

    /// Encodes into `buffer` and returns the part that was used; `None` if it is shorter than [`Command::MAX_ENCODED`].
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        postcard::to_slice(self, buffer).ok().map(|used| &*used)
    }

    /// The command in a control frame's payload; `None` for one that this version doesn't know.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }
}
