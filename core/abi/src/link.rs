//! The link: one byte stream between the hypervisor and `croft` that carries the hypervisor's log, every VM's
//! consoles and control messages, over nothing better than a UART.
//!
//! ```text
//! START 0xff | channel u8 | length u16 | payload, at most 1024 bytes | CRC-32C u32 of channel, length and payload
//! ```
//!
//! Numbers are little-endian. 0xff cannot occur in UTF-8, so a terminal and a person can share the line with frames:
//! whatever is outside a frame is plain text. Inside a frame (behind its start byte) 0xff and 0xfe are written as
//! 0xfe followed by 0x7f or 0x7e. So a start byte is always the start of a frame, wherever the reader joins or
//! whatever got lost before, and no guest can forge a frame inside its console output. Text that guests print holds
//! neither byte, so this costs nothing in practice. The bytes in detail are in `docs/formats/link.md`.
//!
//! [`Decoder`] is fed byte by byte and owns one frame's buffer; [`encode`] writes through a closure; neither allocates.

mod control;
mod decode;
pub mod request;
#[cfg(test)]
mod tests;

pub use control::{Command, Message, StopReason, VERSION, VmState};
pub use decode::{Decoder, Event};

use crate::Crc32c;
use thiserror::Error;
use units::VmId;

/// Begins a frame, and occurs nowhere else.
pub const START: u8 = 0xff;
/// Inside a frame: the next byte stands for itself with bit 7 set.
pub const ESCAPE: u8 = 0xfe;
/// Ends whatever frame may be open and returns to text: a start byte that is followed by a new line. A panic writes
/// this first, since it may have interrupted a frame.
pub const RETURN_TO_TEXT: [u8; 2] = [START, b'\n'];
/// At most this many bytes in a frame's payload.
pub const MAX_PAYLOAD: usize = 1024;
/// At most this many bytes in a frame as it is on the line, if every byte needs an escape.
pub const MAX_ENCODED: usize = 1 + 2 * (1 + 2 + MAX_PAYLOAD + 4);

/// Whose bytes a frame carries. As a number: 0 control, 1 log, 2 requests, 16 + 2 * VM console, 17 + 2 * VM virtio console.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Channel {
    /// [`Message`]s to the tool, [`Command`]s to the hypervisor; one a frame.
    Control,
    /// The hypervisor's log, UTF-8 text with line ends; frames may cut it anywhere. Only towards the tool.
    Log,
    /// [`request::Request`]s to the hypervisor, [`request::Reply`]s to the tool; one a frame.
    Requests,
    /// A VM's PL011, raw bytes both ways.
    Console(VmId),
    /// A VM's virtio console (port 0), raw bytes both ways.
    VirtioConsole(VmId),
}

impl Channel {
    /// The first console's number; the lower ones are for the hypervisor itself.
    const FIRST_CONSOLE: u8 = 16;

    /// The channel's number; `None` for a VM number past [`crate::bundle::MAX_VMS`].
    #[must_use]
    pub fn number(self) -> Option<u8> {
        let console = |vm: VmId, which: u8| {
            let vm = u8::try_from(vm.0).ok().filter(|&vm| usize::from(vm) < crate::bundle::MAX_VMS)?;
            Some(Self::FIRST_CONSOLE + 2 * vm + which)
        };
        match self {
            Self::Control => Some(0),
            Self::Log => Some(1),
            Self::Requests => Some(2),
            Self::Console(vm) => console(vm, 0),
            Self::VirtioConsole(vm) => console(vm, 1),
        }
    }

    /// The channel with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Control),
            1 => Some(Self::Log),
            2 => Some(Self::Requests),
            _ => {
                let console = number.checked_sub(Self::FIRST_CONSOLE)?;
                let vm = VmId(u16::from(console / 2));
                let channel = if console % 2 == 0 { Self::Console(vm) } else { Self::VirtioConsole(vm) };
                channel.number().map(|_| channel)
            }
        }
    }
}

/// Why something cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LinkError {
    /// The payload is too long for one frame.
    #[error("{0} bytes do not fit into a frame; split them into at most 1024 each")]
    TooLong(usize),
    /// There is no channel for this VM number.
    #[error("VM {0} has no channel; VM numbers end at 63")]
    NoChannel(u16),
}

/// Writes one frame through `write`, byte by byte.
///
/// # Errors
/// If `payload` exceeds [`MAX_PAYLOAD`] or the channel's VM number is too large; nothing was written then.
pub fn encode(channel: Channel, payload: &[u8], crc32c: Crc32c, mut write: impl FnMut(u8)) -> Result<(), LinkError> {
    let number = channel.number().ok_or(match channel {
        Channel::Console(vm) | Channel::VirtioConsole(vm) => LinkError::NoChannel(vm.0),
        Channel::Control | Channel::Log | Channel::Requests => LinkError::NoChannel(0),
    })?;
    if payload.len() > MAX_PAYLOAD {
        return Err(LinkError::TooLong(payload.len()));
    }
    let [low, high] = (payload.len() as u16).to_le_bytes();
    let head = [number, low, high];
    let checksum = crc32c(crc32c(0, &head), payload).to_le_bytes();
    write(START);
    for &byte in head.iter().chain(payload).chain(&checksum) {
        if byte >= ESCAPE {
            write(ESCAPE);
            write(byte & 0x7f);
        } else {
            write(byte);
        }
    }
    Ok(())
}

/// Writes `bytes` of a stream channel (log or console) as however many frames they take.
///
/// # Errors
/// If the channel's VM number is too large; nothing was written then.
pub fn encode_stream(
    channel: Channel,
    bytes: &[u8],
    crc32c: Crc32c,
    mut write: impl FnMut(u8),
) -> Result<(), LinkError> {
    bytes.chunks(MAX_PAYLOAD).try_for_each(|chunk| encode(channel, chunk, crc32c, &mut write))
}
