//! The requests of the operator's tool about a running VM's guest, or about the host, and the answers: channel 2. One
//! request or answer a frame, postcard-encoded, as on the control channel.
//!
//! A request has a number that its answers repeat, so that several can be under way. Each request gets any number of
//! answers with data, and then exactly one [`Answer::Done`] or [`Answer::Refused`]. Values are longer than frames: they
//! come and go in pieces of at most [`MAX_PIECE`] bytes.

use serde::{Deserialize, Serialize};

/// At most this many bytes of a value in one request or answer.
pub const MAX_PIECE: usize = 640;
/// At most this many bytes of a saved VM in one request or answer.
pub const MAX_CHUNK: usize = 960;
/// At most this many in one that goes down [`super::Channel::Bulk`].
pub const MAX_BULK_CHUNK: usize = 64 << 10;
/// At most this many bytes stand before those of [`Answer::Value`].
pub const VALUE_HEAD: usize = 16;
/// At most this many bytes in a key, so that it fits into a frame beside a piece.
pub const MAX_KEY: usize = 256;

/// In [`Request::vm`]: no VM, the host itself is asked.
pub const HOST: u16 = u16::MAX;

/// From the tool to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request<'a> {
    /// Chosen by the tool; not the number of a request that has not ended.
    pub id: u32,
    /// Which VM, or [`HOST`].
    pub vm: u16,
    /// What is asked.
    #[serde(borrow)]
    pub ask: Ask<'a>,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask<'a> {
    /// What the guest's tools have reported. Answered by [`Answer::Guest`].
    Guest,
    /// The keys of the guest's store. Answered by an [`Answer::Key`] each.
    Keys,
    /// A value of the store. Answered by as many [`Answer::Value`]s as it takes; none for an empty value.
    Get {
        /// Its key, whole.
        key: &'a str,
    },
    /// Sets a value. All pieces have the same number; the last one is answered, and each one
    /// that is refused.
    Set {
        /// Its key, whole.
        key: &'a str,
        /// How much of the value came before. A piece that doesn't follow the one before is refused.
        offset: u32,
        /// The next piece.
        value: &'a [u8],
        /// Whether it is the last one.
        last: bool,
    },
    /// The guest is to shut down: the tools are asked if they run, else the power button is pressed. Answered by
    /// [`Answer::ByTools`] or [`Answer::ByButton`].
    Stop,
    /// The guest is to reboot: the tools are asked if they run; else the power button is pressed, and a guest that powers
    /// itself off in time is started again. Answered as [`Ask::Stop`].
    Restart {
        /// How many seconds it may take to power itself off.
        seconds: u32,
    },
    /// All of the guest's channels are given up, as if the VM came from another machine: the tools connect anew.
    Reconnect,
    /// What time the host has; [`HOST`] alone is asked this. Answered by [`Answer::Time`].
    Time,
    /// Sets the host's real-time clock; [`HOST`] alone is asked this.
    SetTime {
        /// Since 1970, UTC.
        microseconds: u64,
    },
    /// The guest's tools are to set its clock to the host's, forward or back. Answered when they say that it is done.
    SetGuestTime,
    /// The VM is to stand still and be saved. Answered when it does, and its state was taken.
    Save,
    /// What comes next of the saved VM. Answered by [`Answer::Value`]s, which may be none: pages were looked at that take no room.
    /// What was told last can be asked for again, from where it began or anywhere in it: it may have been lost on its way.
    SaveNext {
        /// How much has come before. All of that is forgotten.
        offset: u64,
        /// At most so many bytes.
        length: u32,
    },
    /// A saved VM is to take the place of this one, which is off.
    Restore,
    /// The next piece of it. Only the last of several is answered, and each one that is refused; then all is, and the VM is off.
    /// [`Answer::Over`] is told if the guest, which runs meanwhile, has ended its life; it is told again until [`Ask::EndTransfer`].
    /// [`Answer::More`] is told if there was more to write than is written for one request: the next one goes on with that, and
    /// may hold nothing. What was taken before is passed over: a piece whose answer was lost can be sent again, also in other pieces.
    RestoreNext {
        /// How much came before.
        offset: u64,
        /// The piece.
        bytes: &'a [u8],
        /// Whether it is to be answered.
        last: bool,
    },
    /// That was all: the VM is to go on.
    RestoreEnd {
        /// Not before it is told to.
        pause: bool,
    },
    /// What is saved is, or nobody wants it any more: the VM goes on if it ran before. Nobody wants what is being restored any
    /// more: the VM is off.
    EndTransfer,
    /// What the VM's machine is, with what its guest can know of the CPU. Answered by one [`Answer::Value`].
    Machine,
}

/// From the hypervisor to the tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reply<'a> {
    /// The request's number.
    pub id: u32,
    /// What is told.
    #[serde(borrow)]
    pub answer: Answer<'a>,
}

/// What is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer<'a> {
    /// What the tools have reported.
    #[serde(borrow)]
    Guest(Guest<'a>),
    /// A key of the store.
    Key {
        /// Its name.
        key: &'a str,
        /// How long its value is.
        length: u32,
    },
    /// The next piece of a value.
    Value(&'a [u8]),
    /// The tools were asked.
    ByTools,
    /// The power button was pressed.
    ByButton,
    /// The request has been carried out.
    Done,
    /// It has not, and why.
    Refused(&'a str),
    /// What time the host has.
    Time {
        /// Since 1970, UTC.
        microseconds: u64,
        /// Whether it has a clock that can be set.
        settable: bool,
    },
    /// What came before has not all been written yet.
    More,
    /// The request has been carried out, but some of what it was answered with is lost: nobody took it. It ends by this.
    Lost,
    /// The VM stands still until this piece of its memory has come.
    Wanted {
        /// Its number: the memory is counted in pieces of 64 KiB, from 0.
        piece: u32,
    },
    /// The guest has ended its life before all of its memory had come. Nothing more of it is wanted, and what is sent is passed over.
    Over(Over),
}

/// How a guest has ended its life while its memory came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Over {
    /// It has powered itself off.
    PoweredOff,
    /// It was reset, by itself or by a watchdog: it starts afresh.
    Afresh,
}

/// What a guest's tools have reported. Texts are printable ASCII, and empty where nothing was said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Guest<'a> {
    /// The tools' version.
    pub version: &'a str,
    /// The guest's host name.
    pub host_name: &'a str,
    /// Its operating system.
    pub system: &'a str,
    /// Its first IPv4 address.
    pub address: &'a str,
    /// Seconds that it was up when it last said so.
    pub uptime: u64,
    /// Milliseconds since the tools' daemon last polled, of those in which the guest could run; `None` if it never has.
    pub heartbeat: Option<u64>,
    /// Whether the daemon is there and can shut the guest down.
    pub can_stop: bool,
    /// How many channels are open.
    pub channels: u16,
}

impl Ask<'_> {
    /// Whether it is about a VM that is saved or restored.
    #[must_use]
    pub const fn is_of_transfer(&self) -> bool {
        matches!(
            self,
            Self::Save
                | Self::SaveNext { .. }
                | Self::Restore
                | Self::RestoreNext { .. }
                | Self::RestoreEnd { .. }
                | Self::EndTransfer
        )
    }
}

impl<'a> Request<'a> {
    /// Encodes into `buffer` (of [`super::MAX_PAYLOAD`] bytes) and returns the part that was used; `None` if key and piece
    /// are too long for it.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        postcard::to_slice(self, buffer).ok().map(|used| &*used)
    }

    /// The request in a frame's payload; `None` for one that this version doesn't know.
    #[must_use]
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }
}

impl<'a> Reply<'a> {
    /// As [`Request::encode`].
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        postcard::to_slice(self, buffer).ok().map(|used| &*used)
    }

    /// What stands before the bytes of an [`Answer::Value`] with so many of them: together they are such a reply, encoded.
    pub fn value_head(id: u32, length: usize, buffer: &mut [u8; VALUE_HEAD]) -> Option<&[u8]> {
        postcard::to_slice(&(id, VALUE, length), buffer).ok().map(|used| &*used)
    }

    /// As [`Request::decode`].
    #[must_use]
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        postcard::from_bytes(payload).ok()
    }
}

/// The number of [`Answer::Value`].
const VALUE: u32 = 2;

#[cfg(test)]
mod tests {
    use super::{
        Answer, Ask, Guest, HOST, MAX_BULK_CHUNK, MAX_CHUNK, MAX_KEY, MAX_PIECE, Over, Reply, Request, VALUE_HEAD,
    };
    use crate::link::{MAX_BULK, MAX_PAYLOAD};
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn a_vm_on_its_way_is_known_by_its_requests() {
        let of_transfer = [Ask::Save, Ask::Restore, Ask::EndTransfer];
        assert!(of_transfer.iter().all(Ask::is_of_transfer));
        assert!(!Ask::Guest.is_of_transfer() && !Ask::Time.is_of_transfer());
    }

    #[test]
    fn the_longest_of_each_fits_a_frame() {
        let key = core::str::from_utf8(&[b'k'; MAX_KEY]).unwrap();
        let mut buffer = [0; MAX_PAYLOAD];
        let ask = Ask::Set { key, offset: u32::MAX, value: &[0xff; MAX_PIECE], last: true };
        let request = Request { id: u32::MAX, vm: u16::MAX, ask };
        assert_eq!(Request::decode(request.encode(&mut buffer).unwrap()), Some(request));
        let ask = Ask::RestoreNext { offset: u64::MAX, bytes: &[0xff; MAX_CHUNK], last: true };
        let request = Request { id: u32::MAX, vm: u16::MAX, ask };
        assert_eq!(Request::decode(request.encode(&mut buffer).unwrap()), Some(request));
        let text = core::str::from_utf8(&[b't'; 96]).unwrap();
        let guest = Guest {
            version: text,
            host_name: text,
            system: text,
            address: text,
            uptime: u64::MAX,
            heartbeat: Some(u64::MAX),
            can_stop: true,
            channels: u16::MAX,
        };
        let time = Answer::Time { microseconds: u64::MAX, settable: true };
        for answer in
            [Answer::Guest(guest), Answer::Value(&[0xfe; MAX_CHUNK]), Answer::Key { key, length: u32::MAX }, time]
        {
            let reply = Reply { id: u32::MAX, answer };
            assert_eq!(Reply::decode(reply.encode(&mut buffer).unwrap()), Some(reply));
        }
    }

    #[test]
    fn the_bytes_are_as_documented() {
        let mut buffer = [0; MAX_PAYLOAD];
        let ask = Ask::Set { key: "ab", offset: 300, value: &[7, 8, 9], last: true };
        let request = Request { id: 5, vm: 1, ask };
        assert_eq!(request.encode(&mut buffer), Some(&[5, 1, 3, 2, b'a', b'b', 0xac, 2, 3, 7, 8, 9, 1][..]));
        let ask = Ask::RestoreNext { offset: 300, bytes: &[7, 8], last: true };
        let request = Request { id: 5, vm: 1, ask };
        assert_eq!(request.encode(&mut buffer), Some(&[5, 1, 13, 0xac, 2, 2, 7, 8, 1][..]));
        let request = Request { id: 5, vm: 1, ask: Ask::EndTransfer };
        assert_eq!(request.encode(&mut buffer), Some(&[5, 1, 15][..]));
        let reply = Reply { id: 5, answer: Answer::Refused("no") };
        assert_eq!(reply.encode(&mut buffer), Some(&[5, 6, 2, b'n', b'o'][..]));
        let request = Request { id: 6, vm: HOST, ask: Ask::SetTime { microseconds: 300 } };
        assert_eq!(request.encode(&mut buffer), Some(&[6, 0xff, 0xff, 3, 8, 0xac, 2][..]));
        let request = Request { id: 6, vm: 1, ask: Ask::Restart { seconds: 120 } };
        assert_eq!(request.encode(&mut buffer), Some(&[6, 1, 5, 120][..]));
        let reply = Reply { id: 6, answer: Answer::Time { microseconds: 300, settable: true } };
        assert_eq!(reply.encode(&mut buffer), Some(&[6, 7, 0xac, 2, 1][..]));
        let reply = Reply { id: 6, answer: Answer::More };
        assert_eq!(reply.encode(&mut buffer), Some(&[6, 8][..]));
        let reply = Reply { id: 6, answer: Answer::Lost };
        assert_eq!(reply.encode(&mut buffer), Some(&[6, 9][..]));
        let reply = Reply { id: 6, answer: Answer::Wanted { piece: 300 } };
        assert_eq!(reply.encode(&mut buffer), Some(&[6, 10, 0xac, 2][..]));
        let reply = Reply { id: 6, answer: Answer::Over(Over::Afresh) };
        assert_eq!(reply.encode(&mut buffer), Some(&[6, 11, 1][..]));
        let request = Request { id: 5, vm: 1, ask: Ask::SaveNext { offset: 300, length: 7 } };
        assert_eq!(request.encode(&mut buffer), Some(&[5, 1, 11, 0xac, 2, 7][..]));
        assert_eq!(Request::decode(&[5, 1, 99]), None);
        assert_eq!(Request::decode(&[5, 1, 2, 2, 0xff, 0xff]), None, "a key is UTF-8");
    }

    #[test]
    fn the_longest_pieces_fit_a_bulk_frame() {
        let mut buffer = vec![0; MAX_BULK];
        let bytes = [0xff; MAX_BULK_CHUNK];
        let ask = Ask::RestoreNext { offset: u64::MAX, bytes: &bytes, last: true };
        let request = Request { id: u32::MAX, vm: u16::MAX, ask };
        assert_eq!(Request::decode(request.encode(&mut buffer).unwrap()), Some(request));
        for length in [1, 127, 128, MAX_CHUNK, MAX_BULK_CHUNK] {
            let answer = Answer::Value(bytes.get(..length).unwrap());
            let reply = Reply { id: u32::MAX, answer };
            let mut head = [0; VALUE_HEAD];
            let head = Reply::value_head(u32::MAX, length, &mut head).unwrap();
            assert!(head.len() + length <= MAX_BULK);
            assert_eq!(reply.encode(&mut buffer).unwrap(), [head, &bytes[..length]].concat());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_PAYLOAD)) {
            let mut buffer = [0; MAX_PAYLOAD];
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(request.encode(&mut buffer).unwrap()), Some(request));
            }
            if let Some(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(Reply::decode(reply.encode(&mut buffer).unwrap()), Some(reply));
            }
        }
    }
}
