//! What the words of the channel ([`abi::wfe`]) ask.

use abi::wfe::{CONFIGURE, CONFIGURE_OWN, DETECT, PAT, PAT_OWN, QUERY, QUERY_OWN};

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
        /// See [`abi::watchdog::Action::from_number`].
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
    use super::{CONFIGURE, CONFIGURE_OWN, DETECT, PAT, PAT_OWN, QUERY, QUERY_OWN, Request, Scope};

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
