//! Our own calls, on a port beside VMware's.
//!
//! Reading four bytes from [`PORT`] with [`MAGIC`] in W0 and a command in W2\[15:0\] is a call: W0 becomes a [`status`],
//! results are in X1 to X5. On a machine without us nothing changes, and W0 stays the magic.
//!
//! | command | in | out |
//! |---|---|---|
//! | 0 version | | X1 = [`MAGIC`], X2 = version (major in \[31:16\]), X3 = [`features`] |
//! | 1 statistic | W1 = number, from 0 | X1 = count, X2 = how many there are, X3 to X5 = its name, 24 bytes of ASCII |
//! | 2 clock | | X1 = the counter's frequency in Hz, X2 = what the virtual counter lags behind the physical one |
//! | 3 watchdog | W1 = 0 query, 1 configure, 2 pat, 4 more for the calling vCPU's own; X4 = milliseconds, W5 = action | X1 = milliseconds granted or remaining |
//! | 4 log | W1 = length, X4 = address | |
//!
//! Writing a string of bytes to the port (REP OUTS: X4 = address, X2 = count) appends to the host's log too; as on the
//! machine that this imitates, X4 and X2 move on as bytes are taken, so the transfer can be interrupted anywhere.

/// The port ("UC").
pub const PORT: u16 = 0x5543;
/// W0 of every call, "UCv1".
pub const MAGIC: u32 = 0x3176_4355;
/// What [`command::VERSION`] answers in X2.
pub const VERSION: u64 = 0x1_0000;
/// The most that one log call takes, and one step of a string.
pub const LOG_BYTES: usize = 1024;

/// W2\[15:0\] of a call.
pub mod command {
    /// Who is there, and what can it do?
    pub const VERSION: u16 = 0;
    /// One of the VM's statistics.
    pub const STATISTIC: u16 = 1;
    /// The counter's frequency and lag.
    pub const CLOCK: u16 = 2;
    /// A watchdog; see [`super::watchdog`].
    pub const WATCHDOG: u16 = 3;
    /// A line for the host's log.
    pub const LOG: u16 = 4;
}

/// W1 of [`command::WATCHDOG`].
pub mod watchdog {
    /// How long is left?
    pub const QUERY: u32 = 0;
    /// Arms it, or disarms it with 0 milliseconds.
    pub const CONFIGURE: u32 = 1;
    /// Begins the time anew.
    pub const PAT: u32 = 2;
    /// Added to one of the others: the calling vCPU's own watchdog is meant.
    pub const OF_CALLER: u32 = 4;
}

/// W0 of an answer.
pub mod status {
    /// Done.
    pub const DONE: u64 = 0;
    /// The caller's level may not do this.
    pub const REFUSED: u64 = 1;
    /// An argument is wrong.
    pub const ARGUMENT: u64 = 2;
    /// Not available here, or too much of it.
    pub const UNAVAILABLE: u64 = 3;
}

/// Bits of X3 of [`command::VERSION`].
pub mod features {
    /// The calls of this list.
    pub const CALLS: u64 = 1;
    /// The RPC channels of VMware.
    pub const CHANNELS: u64 = 2;
    /// The WFE channel.
    pub const WFE: u64 = 4;
    /// A watchdog that the caller may set up.
    pub const WATCHDOG: u64 = 8;
    /// A watchdog of each vCPU's own besides.
    pub const OWN_WATCHDOG: u64 = 16;

    /// All of them, with the names that tools show.
    pub const NAMES: [(u64, &str); 5] = [
        (CALLS, "calls"),
        (CHANNELS, "rpc-channels"),
        (WFE, "wfe-channel"),
        (WATCHDOG, "watchdog"),
        (OWN_WATCHDOG, "own-watchdog"),
    ];

    /// Those of `features` that have no name here: a newer hypervisor's.
    #[must_use]
    pub fn unnamed(features: u64) -> u64 {
        NAMES.iter().fold(features, |left, (bit, _)| left & !bit)
    }
}

#[cfg(test)]
mod tests {
    use super::features::{NAMES, unnamed};

    #[test]
    fn a_feature_without_a_name_is_told_as_a_number() {
        let named = NAMES.iter().fold(0, |bits, (bit, _)| bits | bit);
        assert_eq!(named.count_ones() as usize, NAMES.len(), "each has a bit of its own");
        assert_eq!(unnamed(named), 0);
        for bit in (0..64).map(|number| 1 << number).filter(|bit| named & bit == 0) {
            assert_eq!(unnamed(bit | named), bit);
            assert_eq!(unnamed(bit), bit);
        }
    }
}
