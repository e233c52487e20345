//! From bytes back to frames and text.

use super::{Channel, ESCAPE, LONG, MAX_PAYLOAD, START, plain};
use crate::Crc32c;

/// Channel and length.
const HEAD: usize = 3;
/// Channel and a long length.
const LONG_HEAD: usize = 5;
/// The checksum behind the payload.
const CHECKSUM: usize = 4;

/// What the decoder found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A byte outside any frame.
    Text(u8),
    /// A whole frame with the right checksum.
    Frame {
        /// Whose bytes.
        channel: Channel,
        /// The bytes.
        payload: &'a [u8],
    },
    /// A frame was cut off, damaged, or for a channel that nobody knows; its contents are dropped.
    Damaged,
}

/// Where the decoder is in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Outside frames.
    Text,
    /// In a frame.
    Frame,
    /// In a frame, behind an escape byte.
    Escaped,
    /// In a frame that is beyond saving: nothing can be told before the next start byte.
    Lost,
}

/// What a byte completed; the frame is in the buffer.
enum Found {
    Text(u8),
    Frame,
    Damaged,
}

/// The buffer that a decoder needs for frames whose payload has at most `payload` bytes.
#[must_use]
pub const fn decoder_buffer(payload: usize) -> usize {
    LONG_HEAD + payload + CHECKSUM
}

/// The buffer of a decoder that has no need of the bulk channel.
type Small = [u8; decoder_buffer(MAX_PAYLOAD)];

/// Takes the stream apart. About 1 KiB, unless it is given another buffer; frames that do not fit it are damaged for it.
#[derive(Clone, Debug)]
pub struct Decoder<B = Small> {
    state: State,
    /// The frame so far, without start byte and escapes.
    buffer: B,
    filled: usize,
    /// What `filled` must reach, as far as it is known.
    expected: usize,
    /// The channel and the length are known.
    in_payload: bool,
    crc32c: Crc32c,
}

impl Decoder {
    /// A decoder at a point outside frames, for all channels but the bulk one.
    #[must_use]
    pub const fn new(crc32c: Crc32c) -> Self {
        Self::with_buffer([0; decoder_buffer(MAX_PAYLOAD)], crc32c)
    }
}

impl<B> Decoder<B> {
    /// A decoder at a point outside frames, with a buffer of [`decoder_buffer`] bytes.
    #[must_use]
    pub const fn with_buffer(buffer: B, crc32c: Crc32c) -> Self {
        Self { state: State::Text, buffer, filled: 0, expected: HEAD, in_payload: false, crc32c }
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Decoder<B> {
    /// Takes the next byte, and says what it completes.
    pub fn push(&mut self, byte: u8) -> Option<Event<'_>> {
        let found = self.step(byte)?;
        Some(self.event(found))
    }

    /// Takes from `bytes` what is needed to complete something, and says what; `None` if that is still to come, when all of
    /// them have been taken. As [`Decoder::push`] for each, but in few steps.
    pub fn take(&mut self, bytes: &mut &[u8]) -> Option<Event<'_>> {
        let found = loop {
            self.take_run(bytes);
            let (&first, rest) = bytes.split_first()?;
            *bytes = rest;
            if let Some(found) = self.step(first) {
                break found;
            }
        };
        Some(self.event(found))
    }

    /// Takes what stands for itself, and not the frame's last byte.
    fn take_run(&mut self, bytes: &mut &[u8]) {
        if self.state != State::Frame || !self.in_payload {
            return;
        }
        let limit = bytes.len().min(self.expected.saturating_sub(self.filled + 1));
        let length = plain::length(bytes.get(..limit).unwrap_or_default());
        let room = self.buffer.as_mut().get_mut(self.filled..self.filled + length);
        if let (Some(room), Some((run, rest))) = (room, bytes.split_at_checked(length)) {
            room.copy_from_slice(run);
            self.filled += length;
            *bytes = rest;
        }
    }

    fn step(&mut self, byte: u8) -> Option<Found> {
        match (self.state, byte) {
            (State::Text, START) => {
                self.begin();
                None
            }
            // A frame that ends before its time was cut off. `Lost` has said so already.
            (State::Frame | State::Escaped, START) => {
                self.begin();
                Some(Found::Damaged)
            }
            (State::Lost, START) => {
                self.begin();
                None
            }
            (State::Lost, _) => None,
            (State::Text, _) => Some(Found::Text(byte)),
            (State::Frame, ESCAPE) => {
                self.state = State::Escaped;
                None
            }
            (State::Frame, b'\n') if self.filled == 0 => {
                self.state = State::Text;
                None
            }
            (State::Frame, _) => self.store(byte),
            (State::Escaped, 0x7e | 0x7f) => {
                self.state = State::Frame;
                self.store(byte | 0x80)
            }
            (State::Escaped, _) => self.give_up(),
        }
    }

    fn event(&self, found: Found) -> Event<'_> {
        match found {
            Found::Text(byte) => Event::Text(byte),
            Found::Damaged => Event::Damaged,
            Found::Frame => self.complete().unwrap_or(Event::Damaged),
        }
    }

    /// The stream has ended or fallen silent: whether a frame was cut off by that. The decoder is outside frames then.
    pub fn finish(&mut self) -> Option<Event<'static>> {
        let open = matches!(self.state, State::Frame | State::Escaped);
        self.state = State::Text;
        open.then_some(Event::Damaged)
    }

    fn begin(&mut self) {
        self.state = State::Frame;
        self.filled = 0;
        self.expected = HEAD;
        self.in_payload = false;
    }

    fn give_up(&mut self) -> Option<Found> {
        self.state = State::Lost;
        Some(Found::Damaged)
    }

    fn store(&mut self, byte: u8) -> Option<Found> {
        let Some(slot) = self.buffer.as_mut().get_mut(self.filled) else { return self.give_up() };
        *slot = byte;
        self.filled += 1;
        if self.filled < self.expected {
            return None;
        }
        if self.in_payload {
            self.state = State::Text;
            return Some(Found::Frame);
        }
        let Some(head) = self.head() else {
            // The length is a long one, and its other half is to come.
            self.expected = LONG_HEAD;
            return None;
        };
        let whole = head.bytes + head.length + CHECKSUM;
        let most = head.channel.map_or(MAX_PAYLOAD, Channel::max_payload);
        if head.length > most || whole > self.buffer.as_ref().len() {
            return self.give_up();
        }
        self.expected = whole;
        self.in_payload = true;
        None
    }

    /// What the frame in the buffer says of itself, if that has come.
    fn head(&self) -> Option<Head> {
        let &[number, l0, l1, ref rest @ ..] = self.buffer.as_ref().get(..self.filled)? else { return None };
        let (channel, short) = (Channel::from_number(number), u16::from_le_bytes([l0, l1]));
        if short & LONG == 0 {
            return Some(Head { channel, length: usize::from(short), bytes: HEAD });
        }
        let &[l2, l3, ..] = rest else { return None };
        let length = usize::from(short & !LONG) | usize::from(u16::from_le_bytes([l2, l3])) << 15;
        Some(Head { channel, length, bytes: LONG_HEAD })
    }

    /// The frame in the buffer, if its checksum and channel are good.
    fn complete(&self) -> Option<Event<'_>> {
        let (contents, checksum) = self.buffer.as_ref().get(..self.filled)?.split_last_chunk::<CHECKSUM>()?;
        if (self.crc32c)(0, contents) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let head = self.head()?;
        Some(Event::Frame { channel: head.channel?, payload: contents.get(head.bytes..)? })
    }
}

/// What a frame says of itself.
struct Head {
    /// `None` for one that nobody knows.
    channel: Option<Channel>,
    length: usize,
    /// How many bytes say so.
    bytes: usize,
}
