//! What a port has carried, and what it has not and why.

/// Why a frame goes no further. The first ones are counted at the port that sends it, the others at the one that it does not reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// It has less than a head, or more than any frame.
    Length,
    /// What its driver says of its checksum or its segments is wrong, or not of such a frame.
    Header,
    /// It does not come from the address of its port.
    Forged,
    /// It has a VLAN's tag; what a port sends is in the VLAN that the site says.
    Tagged,
    /// Its destination is meant for the nearest switch alone.
    Reserved,
    /// No port of its segment has its destination's address.
    Unknown,
    /// It is for a group, and there were too many such.
    Pace,
    /// Nobody is there: the VM is off or stands still, or its driver has not begun.
    Down,
    /// Others worked on the port each time that it was to be had.
    Busy,
    /// The driver has not accepted what the frame needs: a checksum that is still to be computed, or segments still to be made.
    Offload,
    /// It is longer than the port's MTU.
    Mtu,
    /// The driver has given no buffer, or none that is large enough, or it is in too many pieces.
    Room,
    /// The buffer's memory is not ready; or, at the port that sends, that of the frame was not, however often it was tried.
    Memory,
}

impl Reason {
    /// Their names, for statistics, in their order.
    pub const NAMES: [&'static str; 13] = [
        "length", "header", "forged", "tagged", "reserved", "unknown", "pace", "down", "busy", "offload", "mtu",
        "room", "memory",
    ];
}

/// Frames, and the bytes in them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes, each frame's head included.
    pub bytes: u64,
}

impl Traffic {
    /// One more.
    pub const fn count(&mut self, bytes: u32) {
        self.frames = self.frames.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
    }
}

/// What a port has carried since its VM was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// From its guest: what was passed on, to whomever.
    pub sent: Traffic,
    /// To its guest.
    pub received: Traffic,
    /// Of what was sent: frames for a group.
    pub floods: u64,
    /// What was not passed on, by [`Reason`].
    pub dropped: [u64; Reason::NAMES.len()],
}

impl Counters {
    /// A frame was dropped.
    pub fn drop(&mut self, reason: Reason) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// How many were dropped for this.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }
}
