//! The link: one byte stream between the hypervisor and `croft` that carries the hypervisor's log, every VM's consoles,
//! control messages, requests and saved VMs, if need be over a UART.
//!
//! ```text
//! START 0xff | channel u8 | length u16, or u32 if long | payload | CRC-32C u32 of channel, length and payload
//! ```
//!
//! A payload has at most 1024 bytes, on channel 3 at most 65 KiB. A length of 0x8000 or more is *long*: it takes four
//! bytes, the low 15 bits in the first two, whose bit 15 is set, and 16 more in the others.
//!
//! Numbers are little-endian. 0xff cannot occur in UTF-8, so a terminal and a person can share the line with frames:
//! whatever is outside a frame is plain text. Inside a frame (behind its start byte) 0xff and 0xfe are written as
//! 0xfe followed by 0x7f or 0x7e. So a start byte is always the start of a frame, wherever the reader joins or
//! whatever got lost before, and no guest can forge a frame inside its console output. Text that guests print holds
//! neither byte, so this costs nothing in practice. The bytes in detail are in `docs/formats/link.md`.
//!
//! [`Decoder`] takes bytes one by one, or as many as have arrived, and owns one frame's buffer; [`encode`] writes
//! through a closure; neither allocates. Bytes that need no escape, which are nearly all, are moved in whole runs.

mod control;
mod decode;
mod plain;
pub mod request;
#[cfg(test)]
mod tests;

pub use control::{Carrier, Command, Message, StopReason, VERSION, VmState};
pub use decode::{Decoder, Event, decoder_buffer};

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
/// At most this many bytes in a frame's payload, on any channel but [`Channel::Bulk`].
pub const MAX_PAYLOAD: usize = 1024;
/// At most this many bytes in a frame's payload on [`Channel::Bulk`]: a block of 64 KiB, and what is said about it.
pub const MAX_BULK: usize = 65 << 10;
/// At most this many bytes in a frame as it is on the line, if every byte needs an escape.
pub const MAX_ENCODED: usize = 1 + 2 * (1 + 2 + MAX_PAYLOAD + 4);
/// A length that takes four bytes has this bit in the first two.
const LONG: u16 = 1 << 15;

/// Whose bytes a frame carries. As a number: 0 control, 1 log, 2 requests, 3 bulk, 16 + 2 * VM console, 17 + 2 * VM virtio
/// console.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Channel {
    /// [`Message`]s to the tool, [`Command`]s to the hypervisor; one a frame.
    Control,
    /// The hypervisor's log, UTF-8 text with line ends; frames may cut it anywhere. Only towards the tool.
    Log,
    /// [`request::Request`]s to the hypervisor, [`request::Reply`]s to the tool; one a frame.
    Requests,
    /// What is transferred in large pieces, both ways; one piece a frame.
    Bulk,
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
            Self::Bulk => Some(3),
            Self::Console(vm) => console(vm, 0),
            Self::VirtioConsole(vm) => console(vm, 1),
        }
    }

    /// At most this many bytes in a frame's payload.
    #[must_use]
    pub fn max_payload(self) -> usize {
        if self == Self::Bulk { MAX_BULK } else { MAX_PAYLOAD }
    }

    /// The channel with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Control),
            1 => Some(Self::Log),
            2 => Some(Self::Requests),
            3 => Some(Self::Bulk),
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
    #[error("{0} bytes do not fit into a frame of that channel; split them into at most {1} each")]
    TooLong(usize, usize),
    /// There is no channel for this VM number.
    #[error("VM {0} has no channel; VM numbers end at 63")]
    NoChannel(u16),
}

/// Writes one frame through `write`, byte by byte.
///
/// # Errors
/// If `payload` exceeds [`Channel::max_payload`] or the channel's VM number is too large; nothing was written then.
pub fn encode(channel: Channel, payload: &[u8], crc32c: Crc32c, mut write: impl FnMut(u8)) -> Result<(), LinkError> {
    encode_parts(channel, &[payload], crc32c, |run| run.iter().for_each(|&byte| write(byte)))
}

/// Writes one frame, whose payload is made of `parts`, through `write`, in runs: each is as it is on the line.
///
/// # Errors
/// As [`encode`].
pub fn encode_parts(
    channel: Channel,
    parts: &[&[u8]],
    crc32c: Crc32c,
    mut write: impl FnMut(&[u8]),
) -> Result<(), LinkError> {
    let number = channel.number().ok_or(match channel {
        Channel::Console(vm) | Channel::VirtioConsole(vm) => LinkError::NoChannel(vm.0),
        Channel::Control | Channel::Log | Channel::Requests | Channel::Bulk => LinkError::NoChannel(0),
    })?;
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    if length > channel.max_payload() {
        return Err(LinkError::TooLong(length, channel.max_payload()));
    }
    let (low, rest) = (length as u16 & !LONG, (length >> 15) as u16);
    let is_long = rest > 0;
    let [l0, l1] = (if is_long { low | LONG } else { low }).to_le_bytes();
    let [l2, l3] = rest.to_le_bytes();
    let head = [number, l0, l1, l2, l3];
    let head = head.get(..if is_long { 5 } else { 3 }).unwrap_or(&head);
    let checksum = parts.iter().fold(crc32c(0, head), |sum, part| crc32c(sum, part)).to_le_bytes();
    write(&[START]);
    for part in core::iter::once(&head).chain(parts).chain(&[&checksum[..]]) {
        let mut part = *part;
        while !part.is_empty() {
            let (run, special) = part.split_at(plain::length(part));
            if !run.is_empty() {
                write(run);
            }
            let (first, behind) =
                special.split_first().map_or((None, special), |(first, behind)| (Some(first), behind));
            if let Some(first) = first {
                write(&[ESCAPE, first & 0x7f]);
            }
            part = behind;
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
