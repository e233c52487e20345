//! From bytes back to frames and text.

use super::{Channel, ESCAPE, MAX_PAYLOAD, START};
use crate::Crc32c;

/// Channel and length.
const HEAD: usize = 3;
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

/// Takes the stream apart, a byte at a time. About 1 KiB.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    /// The frame so far, without start byte and escapes.
    buffer: [u8; HEAD + MAX_PAYLOAD + CHECKSUM],
    filled: usize,
    /// What `filled` must reach, once the length is known.
    expected: usize,
    crc32c: Crc32c,
}

impl Decoder {
    /// A decoder at a point outside frames.
    #[must_use]
    pub const fn new(crc32c: Crc32c) -> Self {
        Self { state: State::Text, buffer: [0; HEAD + MAX_PAYLOAD + CHECKSUM], filled: 0, expected: HEAD, crc32c }
    }

    /// Takes the next byte, and says what it completes.
    pub fn push(&mut self, byte: u8) -> Option<Event<'_>> {
        match (self.state, byte) {
            (State::Text, START) => {
                self.begin();
                None
            }
            // A frame that ends before its time was cut off. `Lost` has said so already.
            (State::Frame | State::Escaped, START) => {
                self.begin();
                Some(Event::Damaged)
            }
            (State::Lost, START) => {
                self.begin();
                None
            }
            (State::Lost, _) => None,
            (State::Text, _) => Some(Event::Text(byte)),
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
    }

    fn give_up(&mut self) -> Option<Event<'static>> {
        self.state = State::Lost;
        Some(Event::Damaged)
    }

    fn store(&mut self, byte: u8) -> Option<Event<'_>> {
        let Some(slot) = self.buffer.get_mut(self.filled) else { return self.give_up() };
        *slot = byte;
        self.filled += 1;
        if self.filled < self.expected {
            return None;
        }
        if self.filled == HEAD {
            let length = usize::from(u16::from_le_bytes([self.buffer[1], self.buffer[2]]));
            if length > MAX_PAYLOAD {
                return self.give_up();
            }
            self.expected = HEAD + length + CHECKSUM;
            return None;
        }
        self.state = State::Text;
        Some(self.complete().unwrap_or(Event::Damaged))
    }

    /// The frame in the buffer, if its checksum and channel are good.
    fn complete(&self) -> Option<Event<'_>> {
        let (contents, checksum) = self.buffer.get(..self.filled)?.split_last_chunk::<CHECKSUM>()?;
        if (self.crc32c)(0, contents) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (head, payload) = contents.split_first_chunk::<HEAD>()?;
        Some(Event::Frame { channel: Channel::from_number(head[0])?, payload })
    }
}
