//! An Ethernet switch without wires: which port a frame goes to, if to any, and what each port has carried.
//!
//! Every port is known before the first frame: the site says which networks there are, which VM has a port on which, and what that port's
//! address is. A port sends from that address and no other. So there is nothing to learn: the table is made once, and never changes. What
//! a guest sends cannot grow it, cannot move another's entry, and cannot make a frame appear at a port that is not to see it; a frame to
//! an address that no port has goes nowhere.
//!
//! A port is on one segment, which is a network or a VLAN of one, and sees the ports of that and no others. It is the site that says on which:
//! a frame has no tag, and one that has is dropped, so no guest says to which VLAN it belongs.
//!
//! A frame to a group of stations goes to all other ports of the segment, one after the other ([`Switch::next`]): whoever sends it does
//! that work, and may be stopped between two of them.
//!
//! The switch decides. It carries no frame, has no clock and takes no lock: its owner does.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod counters;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

pub use counters::{Counters, Reason, Traffic};

/// Bytes before what a frame carries: destination, source, type.
pub const HEAD: usize = 14;
/// The most bytes that a frame may have, its head included: the largest IP packet behind the longest head (virtio 1.3, section 5.1.6.3.1).
pub const MAX_FRAME: u32 = 65_550;
/// The most ports that a switch has.
pub const MAX_PORTS: usize = 512;

/// A station's address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it is that of a group of stations, all of them among these, and of no single one.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is meant for the nearest switch alone, which passes it on to nobody (IEEE 802.1Q, table 8-1).
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
    }

    const fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A port of the switch: its number in the order in which they were given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u16);

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// To this port.
    One(PortId),
    /// To all ports of the segment but the sender's.
    All,
}

/// How far a round through a segment's ports has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lap(usize);

/// Why there cannot be such a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Two ports of a segment have one address.
    #[error("two ports of a network have the address {0}; each needs its own")]
    Taken(Mac),
    /// A port's address is that of a group.
    #[error("{0} is the address of a group, and no port's")]
    Group(Mac),
    /// There are too many.
    #[error("there are more than {MAX_PORTS} ports")]
    Many,
}

/// A row of the table: segment and address in one number, by which it is sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Row {
    key: u64,
    port: PortId,
}

/// The EtherTypes of frames with a tag: of a customer's VLAN, of a provider's, and what bridges said before that was a standard.
const TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];

const fn key(segment: u16, mac: Mac) -> u64 {
    (segment as u64) << 48 | mac.number()
}

/// The switch: all ports of all segments. Two segments have nothing in common.
#[derive(Clone, Debug, Default)]
pub struct Switch {
    /// Each port's key.
    ports: Vec<u64>,
    table: Vec<Row>,
}

impl Switch {
    /// A switch with these ports, each on a segment of that number with that address.
    ///
    /// # Errors
    /// If an address is not a port's alone in its segment.
    pub fn new(all: impl IntoIterator<Item = (u16, Mac)>) -> Result<Self, Problem> {
        let mut switch = Self::default();
        for (number, (segment, mac)) in all.into_iter().enumerate() {
            if number >= MAX_PORTS {
                return Err(Problem::Many);
            }
            if mac.is_group() {
                return Err(Problem::Group(mac));
            }
            let (key, port) = (key(segment, mac), PortId(number as u16));
            let at = switch.place(key).err().ok_or(Problem::Taken(mac))?;
            switch.ports.push(key);
            switch.table.insert(at, Row { key, port });
        }
        Ok(switch)
    }

    /// How many ports there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    fn place(&self, key: u64) -> Result<usize, usize> {
        self.table.binary_search_by_key(&key, |row| row.key)
    }

    /// Where a frame goes that comes from port `from` and begins like this.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn judge(&self, from: PortId, head: &[u8; HEAD]) -> Result<Destination, Reason> {
        let [a, b, c, d, e, f, source @ .., t0, t1] = *head;
        let to = Mac([a, b, c, d, e, f]);
        let own = *self.ports.get(usize::from(from.0)).ok_or(Reason::Unknown)?;
        let segment = (own >> 48) as u16;
        if own != key(segment, Mac(source)) {
            return Err(Reason::Forged);
        }
        if TAGS.contains(&[t0, t1]) {
            return Err(Reason::Tagged);
        }
        if to.is_reserved() {
            return Err(Reason::Reserved);
        }
        if to.is_group() {
            return Ok(Destination::All);
        }
        let row = self.place(key(segment, to)).ok().and_then(|at| self.table.get(at));
        // What a guest sends to itself stays with it, as on a wire.
        row.filter(|row| row.port != from).map(|row| Destination::One(row.port)).ok_or(Reason::Unknown)
    }

    /// Begins a round through the ports of the segment that `from` is on.
    #[must_use]
    pub fn round(&self, from: PortId) -> Lap {
        let segment = self.ports.get(usize::from(from.0)).map_or(u64::MAX, |own| own >> 48);
        Lap(self.table.partition_point(|row| row.key >> 48 < segment))
    }

    /// The next port of that round, which passes `from` over.
    #[must_use]
    pub fn next(&self, from: PortId, round: &mut Lap) -> Option<PortId> {
        let segment = *self.ports.get(usize::from(from.0))? >> 48;
        loop {
            let row = self.table.get(round.0).filter(|row| row.key >> 48 == segment)?;
            round.0 += 1;
            if row.port != from {
                return Some(row.port);
            }
        }
    }
}
