//! What a driver leaves open in a frame: its checksum, and its division into segments.
//!
//! The header before the frame says so (section 5.1.6). It comes from a guest, and goes to another one: so it is not passed on, but read,
//! looked at, and written anew out of what was read. A receiver gets a header that agrees with its frame, whatever the sender wrote: where
//! something is open, the frame is an IP packet, and has TCP or UDP where the header says. What of the frame is looked at for that arrives as
//! it was looked at ([`LOOKED`]).

use switch::{HEAD, Reason};

use super::{HEADER, LOOKED, feature};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6, and _ECN beside them.
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const ECN: u8 = 0x80;
/// Where TCP and UDP, by their numbers, have their checksums.
const TCP: (u8, u16) = (6, 16);
const UDP: (u8, u16) = (17, 6);
/// The fewest bytes of a segment: what a Linux guest leaves beside all options in the smallest packet that it agrees to.
const LEAST: u16 = 8;
/// The bytes of TCP's own header.
const TCP_HEADER: u32 = 20;

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
    /// What the header says of a frame of `length` bytes that begins with `bytes`, whose driver has accepted `features`, on a network that
    /// carries packets of `mtu` bytes.
    ///
    /// # Errors
    /// If that cannot be, or is not what the driver may leave open.
    pub(super) fn of(
        header: &[u8; HEADER],
        bytes: &[u8; LOOKED],
        features: u64,
        (length, mtu): (u32, u16),
    ) -> Result<Self, Reason> {
        let [flags, kind, before @ .., _, _] = *header;
        let [b0, b1, s0, s1, c0, c1, o0, o1] = before;
        let (before, segment) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([s0, s1]));
        let (start, offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
        let has = |bits: u64| features & bits == bits;
        // Other flags are about what a device tells a driver, and mean nothing here.
        if flags & NEEDS_CHECKSUM == 0 {
            return if kind == 0 { Ok(Self::default()) } else { Err(Reason::Header) };
        }
        let packet = Packet::of(bytes).ok_or(Reason::Header)?;
        let end = u32::from(start) + u32::from(offset) + 2;
        if !has(feature::CHECKSUM) || end > length || !packet.may_have(start, offset) {
            return Err(Reason::Header);
        }
        let checksum = Self { start, offset, ..Self::default() };
        let (wanted, is_6) = match kind & !ECN {
            0 if kind == 0 => return Ok(checksum),
            TCP4 => (feature::HOST_TSO4, false),
            TCP6 => (feature::HOST_TSO6, true),
            _ => return Err(Reason::Header),
        };
        let is_allowed = has(wanted) && (kind & ECN == 0 || has(feature::HOST_ECN));
        let is_tcp = packet.is_6 == is_6 && packet.may_be_tcp(start) && offset == TCP.1;
        // The driver's number of bytes before each segment is a hint; where there is one, it is behind the checksum and in the frame.
        let is_sound = before == 0 || u32::from(before) >= end && u32::from(before) <= length;
        // Each segment has all that is before the first one's bytes.
        let packet_of_each = u32::from(start) + TCP_HEADER + u32::from(segment) - HEAD as u32;
        let is_carried = segment >= LEAST && packet_of_each <= mtu.into();
        let is_right = is_allowed && is_tcp && is_sound && is_carried;
        if is_right { Ok(Self { kind, before, segment, ..checksum }) } else { Err(Reason::Header) }
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
        let Self { start, offset, kind, before, segment } = *self;
        let flags = if self.is_open() { NEEDS_CHECKSUM } else { 0 };
        let [b, s, c, o, n] = [before, segment, start, offset, buffers].map(u16::to_le_bytes);
        [flags, kind, b[0], b[1], s[0], s[1], c[0], c[1], o[0], o[1], n[0], n[1]]
    }

    /// The same with its checksum computed.
    pub(super) const fn closed(&self) -> Self {
        Self { start: 0, offset: 0, ..*self }
    }
}

/// What a frame begins with that has something open: an IP packet.
struct Packet {
    is_6: bool,
    /// The number of what its header is followed by.
    protocol: u8,
    /// Where in the frame that is.
    behind: u16,
}

impl Packet {
    fn of(bytes: &[u8; LOOKED]) -> Option<Self> {
        let [.., e0, e1, first, _, _, _, _, _, next, _, _, protocol] = *bytes;
        let words = u16::from(first & 0xf);
        match ([e0, e1], first >> 4) {
            ([0x08, 0x00], 4) if words >= 5 => Some(Self { is_6: false, protocol, behind: HEAD as u16 + 4 * words }),
            ([0x86, 0xdd], 6) => Some(Self { is_6: true, protocol: next, behind: HEAD as u16 + 40 }),
            _ => None,
        }
    }

    /// Whether it may have a checksum so far behind `start`. What is further in may be in any packet in the packet.
    fn may_have(&self, start: u16, offset: u16) -> bool {
        let is_one =
            |(protocol, place): (u8, u16)| offset == place && (start > self.behind || self.protocol == protocol);
        start >= self.behind && (is_one(TCP) || is_one(UDP))
    }

    /// Whether TCP may begin at `start`: behind the header, or in IPv6 behind options for each hop, a route, or options for the destination.
    fn may_be_tcp(&self, start: u16) -> bool {
        match self.protocol {
            protocol if protocol == TCP.0 => start == self.behind,
            0 | 43 | 60 => self.is_6 && start > self.behind,
            _ => false,
        }
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
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        if self.is_odd
            && let Some((&first, behind)) = bytes.split_first()
        {
            self.add_word(first.into());
            (self.is_odd, bytes) = (false, behind);
        }
        // Four words of 16 bits at once: what runs over comes in again at the other end, which is the same in each of them.
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|&word| self.add_word(u64::from_be_bytes(word)));
        for &byte in rest {
            self.add_word(if self.is_odd { byte.into() } else { u64::from(byte) << 8 });
            self.is_odd = !self.is_odd;
        }
    }

    const fn add_word(&mut self, word: u64) {
        let (sum, is_over) = self.sum.overflowing_add(word);
        self.sum = sum + is_over as u64;
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
