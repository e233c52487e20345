//! The words of the protocol and what they ask.

/// X0: is anybody there? ("WFE0DETC")
pub const DETECT: u64 = 0x5746_4530_4445_5443;
/// X0: arm the watchdog for X1 milliseconds (0 disarms it), with action X2. ("WFE0WDOG")
pub const CONFIGURE: u64 = 0x5746_4530_5744_4f47;
/// X0: begin the watchdog's time anew. ("WFE0PATT")
pub const PAT: u64 = 0x5746_4530_5041_5454;
/// X0: how many milliseconds are left? ("WFE0WQRY")
pub const QUERY: u64 = 0x5746_4530_5751_5259;
/// X0: as [`CONFIGURE`], for the watchdog of the calling vCPU. ("WFE0ODOG")
pub const CONFIGURE_OWN: u64 = 0x5746_4530_4f44_4f47;
/// X0: as [`PAT`], for the watchdog of the calling vCPU. ("WFE0OPAT")
pub const PAT_OWN: u64 = 0x5746_4530_4f50_4154;
/// X0: as [`QUERY`], for the watchdog of the calling vCPU. ("WFE0OQRY")
pub const QUERY_OWN: u64 = 0x5746_4530_4f51_5259;
/// X0 of the answer to [`DETECT`]. ("WFE0AGNT")
pub const AGENT: u64 = 0x5746_4530_4147_4e54;
/// X0 of the answer to the others: done; X1 is the granted or remaining time. ("WFE0DONE")
pub const DONE: u64 = 0x5746_4530_444f_4e45;
/// X0 of the answer to the others: refused; X1 says why, as [`crate::Refused::number`]. ("WFE0ERR_")
pub const ERROR: u64 = 0x5746_4530_4552_525f;

/// X1 of the answer to [`DETECT`]: the version in bits 63:32, [`features`] below.
pub const VERSION: u64 = 1 << 32;

/// Bits of X1 of the answer to [`DETECT`].
pub mod features {
    /// There is a watchdog, and the caller may set it up.
    pub const WATCHDOG: u64 = 1;
    /// `MRS XZR, MDCCSR_EL0` and `HVC #0x86` are answered.
    pub const CALLS: u64 = 2;
    /// Each vCPU has a watchdog of its own besides, and the caller may set it up.
    pub const OWN_WATCHDOG: u64 = 4;
}

/// Which watchdog is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The VM's, which any vCPU pats.
    Vm,
    /// The calling vCPU's own.
    Own,
}

/// What a guest asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Is anybody there?
    Detect,
    /// Arm or disarm the watchdog.
    Configure {
        /// Which one.
        scope: Scope,
        /// Milliseconds; 0 disarms.
        timeout: u64,
        /// See [`crate::Action::from_number`].
        action: u64,
    },
    /// Begin its time anew.
    Pat(Scope),
    /// How much is left?
    Query(Scope),
}

impl Request {
    /// What X0 to X2 ask; `None` for an ordinary WFE.
    #[must_use]
    #[inline]
    pub const fn decode(x0: u64, x1: u64, x2: u64) -> Option<Self> {
        match x0 {
            DETECT => Some(Self::Detect),
            CONFIGURE => Some(Self::Configure { scope: Scope::Vm, timeout: x1, action: x2 }),
            CONFIGURE_OWN => Some(Self::Configure { scope: Scope::Own, timeout: x1, action: x2 }),
            PAT => Some(Self::Pat(Scope::Vm)),
            PAT_OWN => Some(Self::Pat(Scope::Own)),
            QUERY => Some(Self::Query(Scope::Vm)),
            QUERY_OWN => Some(Self::Query(Scope::Own)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AGENT, CONFIGURE, CONFIGURE_OWN, DETECT, DONE, ERROR, PAT, PAT_OWN, QUERY, QUERY_OWN, Request, Scope};

    #[test]
    fn they_spell_what_they_are() {
        let spelled = [
            (DETECT, b"WFE0DETC"),
            (CONFIGURE, b"WFE0WDOG"),
            (PAT, b"WFE0PATT"),
            (QUERY, b"WFE0WQRY"),
            (CONFIGURE_OWN, b"WFE0ODOG"),
            (PAT_OWN, b"WFE0OPAT"),
            (QUERY_OWN, b"WFE0OQRY"),
            (AGENT, b"WFE0AGNT"),
            (DONE, b"WFE0DONE"),
            (ERROR, b"WFE0ERR_"),
        ];
        for (word, text) in spelled {
            assert_eq!(word.to_be_bytes(), *text);
        }
    }

    #[test]
    fn a_word_with_one_other_bit_asks_nothing() {
        for word in [DETECT, CONFIGURE, PAT, QUERY, CONFIGURE_OWN, PAT_OWN, QUERY_OWN] {
            assert!(Request::decode(word, 0, 0).is_some());
            for bit in 0..64 {
                assert_eq!(Request::decode(word ^ 1 << bit, 0, 0), None, "{word:#x} bit {bit}");
            }
        }
        let asked = |scope| Some(Request::Configure { scope, timeout: 7, action: 2 });
        assert_eq!(Request::decode(CONFIGURE, 7, 2), asked(Scope::Vm));
        assert_eq!(Request::decode(CONFIGURE_OWN, 7, 2), asked(Scope::Own));
        assert_eq!(Request::decode(PAT_OWN, 7, 2), Some(Request::Pat(Scope::Own)));
    }
}
