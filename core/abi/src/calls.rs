//! Calls that a guest makes without a driver: an access to a port that the machine does not have, spelled in X0 to X7, and
//! `MRS XZR, MDCCSR_EL0` or `HVC #0x86`. [`vmware`] has the ports of VMware's guest ABI, [`own`] ours.
//!
//! X7 says what is accessed:
//!
//! | bits | meaning |
//! |---|---|
//! | 63:32 | [`MARK`], for the debug channel. HVC has the mark in its immediate, and these bits don't count |
//! | 1:0 | bytes: 0 one, 1 two, 2 four, 3 invalid |
//! | 2 | 1 reads (IN), 0 writes (OUT) |
//! | 3 | the port is in W3\[15:0\] |
//! | 4 | a string of items; with bit 3, as many as X2 says |
//! | 5 | of a string: downwards in memory |
//! | 12:5 | the port, if bits 3 and 4 are clear |
//!
//! All other bits of W7 are reserved. What sets one of them, or has the invalid size, is no call.
//!
//! [`arm`] has the numbers of calls of another kind, which need no driver either: those that Arm has defined.

pub mod arm;
pub mod own;
pub mod vmware;

/// X7\[63:32\] of a call through the debug channel, and the immediate of HVC.
pub const MARK: u32 = 0x86;
/// W7 of a read of four bytes from the port in W3\[15:0\]: a call that carries everything in registers.
pub const LOW: u32 = 0x0e;
/// W7 of a string of bytes that the port is sent from memory.
pub const HIGH_OUT: u32 = 0x18;
/// W7 of a string of bytes that the port sends to memory.
pub const HIGH_IN: u32 = 0x1c;
/// W0 of a command that does not exist, or not for the caller.
pub const NO_COMMAND: u64 = 0xffff_ffff;

/// X7 of a call through the debug channel that accesses what `w7` says.
#[must_use]
pub const fn marked(w7: u32) -> u64 {
    (MARK as u64) << 32 | w7 as u64
}

#[cfg(test)]
mod tests {
    use super::{HIGH_IN, LOW, marked};

    #[test]
    fn the_mark_stands_above_the_access() {
        assert_eq!((marked(LOW), marked(HIGH_IN)), (0x86_0000_000e, 0x86_0000_001c));
    }
}
