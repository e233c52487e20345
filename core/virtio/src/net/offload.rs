//! What a driver leaves open in a frame: its checksum, and its division into segments.
//!
//! The header before the frame says so (section 5.1.6). It comes from a guest, and goes to another one: so it is not passed on, but read,
//! looked at, and written anew out of what was read. A receiver gets a header that agrees with its frame, whatever the sender wrote.

use switch::{HEAD, Reason};

use super::{HEADER, feature};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6, and _ECN beside them.
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const ECN: u8 = 0x80;

/// What is open in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// From which byte of the frame on the checksum goes, and how far behind that it is; both 0 if there is none to be computed.
    pub(super) start: u16,
    pub(super) offset: u16,
    /// How it is divided into segments; 0 if it is not.
    kind: u8,
    /// How much of the frame goes before each segment.
    before: u16,
    /// How many bytes each segment has beside that.
    pub(super) segment: u16,
}

impl Offload {
    /// What the header says of a frame of `length` bytes, whose driver has accepted `features`.
    ///
    /// # Errors
    /// If that cannot be, or is not what the driver may leave open.
    pub(super) fn of(header: &[u8; HEADER], features: u64, length: u32) -> Result<Self, Reason> {
        let [flags, kind, before @ .., _, _] = *header;
        let [b0, b1, s0, s1, c0, c1, o0, o1] = before;
        let (before, segment) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([s0, s1]));
        let (start, offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
        let has = |bits: u64| features & bits == bits;
        // Other flags are about what a device tells a driver, and mean nothing here.
        let is_open = flags & NEEDS_CHECKSUM != 0;
        if is_open {
            let end = u32::from(start) + u32::from(offset) + 2;
            if !has(feature::CHECKSUM) || usize::from(start) < HEAD || end > length {
                return Err(Reason::Header);
            }
        }
        let checksum = if is_open { Self { start, offset, ..Self::default() } } else { Self::default() };
        if kind == 0 {
            return Ok(checksum);
        }
        let wanted = match kind & !ECN {
            TCP4 => feature::HOST_TSO4,
            TCP6 => feature::HOST_TSO6,
            _ => return Err(Reason::Header),
        };
        let is_allowed = has(wanted) && (kind & ECN == 0 || has(feature::HOST_ECN));
        // The driver's number of bytes before each segment is a hint; where there is one, it is behind the checksum and in the frame.
        let is_sound = is_open && segment != 0 && (before == 0 || before > start && u32::from(before) <= length);
        if is_allowed && is_sound { Ok(Self { kind, before, segment, ..checksum }) } else { Err(Reason::Header) }
    }

    /// Whether a checksum is to be computed.
    pub(super) const fn is_open(&self) -> bool {
        self.start != 0
    }

    /// Whether segments are to be made.
    pub(super) const fn is_divided(&self) -> bool {
        self.kind != 0
    }

    /// What a receiver's driver must have accepted to get the frame divided like this.
    pub(super) const fn needs(&self) -> u64 {
        let kind = match self.kind & !ECN {
            TCP4 => feature::GUEST_TSO4,
            TCP6 => feature::GUEST_TSO6,
            _ => return 0,
        };
        feature::GUEST_CHECKSUM | kind | if self.kind & ECN != 0 { feature::GUEST_ECN } else { 0 }
    }

    /// The header for a receiver, whose frame is in so many buffers.
    pub(super) fn header(&self, buffers: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let Self { start, offset, kind, before, segment } = *self;
        header[0] = if self.is_open() { NEEDS_CHECKSUM } else { 0 };
        header[1] = kind;
        let words = [before, segment, start, offset, buffers];
        for (place, word) in header.iter_mut().skip(2).zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *place = word;
        }
        header
    }

    /// The same with its checksum computed.
    pub(super) const fn closed(&self) -> Self {
        Self { start: 0, offset: 0, ..*self }
    }
}

/// The sum of which a checksum is made (RFC 1071), of bytes that come piece by piece.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    sum: u64,
    is_odd: bool,
}

impl Sum {
    /// More bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.sum += if self.is_odd { u64::from(byte) } else { u64::from(byte) << 8 };
            self.is_odd = !self.is_odd;
        }
    }

    /// The checksum. One that would be 0 is written in its other form: in UDP 0 says that there is none.
    pub(super) fn checksum(self) -> [u8; 2] {
        let mut sum = self.sum;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !(sum as u16);
        (if checksum == 0 { 0xffff } else { checksum }).to_be_bytes()
    }
}
