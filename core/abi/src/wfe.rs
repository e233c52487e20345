//! The words of the WFE channel: what a guest puts into X0 (with arguments in X1 and X2) before it executes WFE, and what it
//! finds there. What they ask is `core/watchdog`'s business.

/// X0: is anybody there? ("WFE0DETC")
pub const DETECT: u64 = 0x5746_4530_4445_5443;
/// X0: arm the watchdog for X1 milliseconds (0 disarms it), with action X2 ([`crate::watchdog::Action`]). ("WFE0WDOG")
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
/// X0 of the answer to the others: refused; X1 says why, as [`crate::watchdog::Refused::number`]. ("WFE0ERR_")
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

#[cfg(test)]
mod tests {
    use super::{AGENT, CONFIGURE, CONFIGURE_OWN, DETECT, DONE, ERROR, PAT, PAT_OWN, QUERY, QUERY_OWN};

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
}
