//! The debug registers that a guest reaches (DDI 0487 chapter H9 and D24.3): what becomes of each.
//!
//! They have no identification field that could hide them, so each is either the guest's own, moved with the vCPU, or it traps
//! and is answered here or by the dispatcher. On a CPU with fine-grained traps (FEAT_FGT) what is not moved traps by a control
//! of its own, and breakpoints and watchpoints are reached without a trap once they were used. On others there is one trap for
//! all of them, MDCR_EL2.TDA, which then stays set.
//!
//! What an external debugger would see through them (claim tags, the channel, OSECCR_EL1) is state through which VMs could
//! communicate, also with their next life, if the hardware kept it. The claim tags are kept for each vCPU; the others read as
//! zero.

/// MDSCR_EL1.TDCC: EL0 may not use the debug channel.
pub const MDSCR_TDCC: u64 = 1 << 12;

/// What becomes of a register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Treatment {
    /// It is moved with the vCPU.
    Switched,
    /// The dispatcher keeps its value for each vCPU; the hardware never has it.
    Kept,
    /// It reads as zero and ignores writes.
    Zero,
}

/// What traps it, on a CPU with fine-grained traps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Control {
    /// A bit of HDFGRTR_EL2 and HDFGWTR_EL2, or of the one of the two that has it.
    Fine(u8),
    /// MDCR_EL2.TDCC: the debug communications channel.
    Channel,
    /// MDCR_EL2.TDOSA, which is always set.
    OsLock,
    /// MDCR_EL2.TDRA, which is always set.
    Address,
}

/// A register, or a bank of them.
#[derive(Clone, Copy, Debug)]
pub struct DebugRow {
    /// Its name in the manual.
    pub name: &'static str,
    /// op1, CRn, CRm (the first of a bank) and op2; op0 is 2.
    pub encoding: (u8, u8, u8, u8),
    /// How many there are, with consecutive CRm.
    pub count: u8,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What traps it.
    pub control: Control,
}

const fn row(name: &'static str, encoding: (u8, u8, u8, u8), treatment: Treatment, control: Control) -> DebugRow {
    DebugRow { name, encoding, count: 1, treatment, control }
}

const fn bank(name: &'static str, op2: u8, bit: u8) -> DebugRow {
    DebugRow { name, encoding: (0, 0, 0, op2), count: 16, treatment: Switched, control: Fine(bit) }
}

use Control::{Address, Channel, Fine, OsLock};
use Treatment::{Kept, Switched, Zero};

/// All of them.
pub const ROWS: [DebugRow; 20] = [
    bank("DBGBCR<n>_EL1", 5, 0),
    bank("DBGBVR<n>_EL1", 4, 1),
    bank("DBGWCR<n>_EL1", 7, 2),
    bank("DBGWVR<n>_EL1", 6, 3),
    row("MDSCR_EL1", (0, 0, 2, 2), Switched, Fine(4)),
    row("DBGCLAIMSET_EL1", (0, 7, 8, 6), Kept, Fine(5)),
    row("DBGCLAIMCLR_EL1", (0, 7, 9, 6), Kept, Fine(5)),
    // Zero says that nothing of an external debugger is implemented.
    row("DBGAUTHSTATUS_EL1", (0, 7, 14, 6), Zero, Fine(6)),
    row("OSECCR_EL1", (0, 0, 6, 2), Zero, Fine(10)),
    // Its two enables of interrupts would act on the host's interrupt lines.
    row("MDCCINT_EL1", (0, 0, 2, 0), Kept, Channel),
    row("OSDTRRX_EL1", (0, 0, 0, 2), Zero, Channel),
    row("OSDTRTX_EL1", (0, 0, 3, 2), Zero, Channel),
    row("MDCCSR_EL0", (3, 0, 1, 0), Zero, Channel),
    row("DBGDTR_EL0", (3, 0, 4, 0), Zero, Channel),
    row("DBGDTRRX_EL0, DBGDTRTX_EL0", (3, 0, 5, 0), Zero, Channel),
    row("OSLAR_EL1", (0, 1, 0, 4), Kept, OsLock),
    row("OSLSR_EL1", (0, 1, 1, 4), Kept, OsLock),
    row("OSDLR_EL1", (0, 1, 3, 4), Zero, OsLock),
    row("DBGPRCR_EL1", (0, 1, 4, 4), Zero, OsLock),
    row("MDRAR_EL1", (0, 1, 0, 0), Zero, Address),
];

/// Which debug registers a guest reaches without a trap, once it has used one. What is shared between VMs always traps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DebugPolicy {
    /// None: the CPU can trap what is shared only together with all others.
    #[default]
    TrapAll,
    /// Those that are switched, but for MDSCR_EL1.
    TrapStatus,
    /// Those that are switched.
    Natural,
}

/// A breakpoint or watchpoint register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DebugBank {
    /// DBGBVR`n`_EL1.
    BreakpointValue,
    /// DBGBCR`n`_EL1.
    BreakpointControl,
    /// DBGWVR`n`_EL1.
    WatchpointValue,
    /// DBGWCR`n`_EL1.
    WatchpointControl,
}

/// The bits of HDFGRTR_EL2 (and of HDFGWTR_EL2, where the bit means something there) that trap what is not switched.
pub const FINE_TRAPS: u64 = {
    let (mut bits, mut index) = (0, 0);
    while index < ROWS.len() {
        if let (Zero | Kept, Fine(bit)) = (ROWS[index].treatment, ROWS[index].control) {
            bits |= 1 << bit;
        }
        index += 1;
    }
    bits
};

/// How many claim tags there are (DDI 0487 H9.2.5: eight, always); DBGCLAIMSET_EL1 reads as these bits.
pub const CLAIM_TAGS: u64 = 0xff;
/// MDCCINT_EL1.RX and TX; its other bits are RES0.
pub const MDCCINT_BITS: u64 = 3 << 29;

#[cfg(test)]
mod tests {
    use super::{Control, FINE_TRAPS, ROWS, Treatment};
    use crate::controls::controls;
    use crate::encoding::SysregEncoding;
    use crate::id::{Field, fields, models};
    use crate::sysreg::{Action, classify};
    use std::vec::Vec;
    use units::Direction;

    fn encodings() -> impl Iterator<Item = (&'static super::DebugRow, SysregEncoding)> {
        ROWS.iter().flat_map(|row| {
            let (op1, crn, crm, op2) = row.encoding;
            (crm..crm + row.count).map(move |crm| (row, SysregEncoding::new(2, op1, crn, crm, op2)))
        })
    }

    /// Each register of the table is answered as it says, and no other debug register is answered at all.
    #[test]
    fn the_table_is_what_is_answered() {
        let mut known = Vec::new();
        for (row, encoding) in encodings() {
            known.push(encoding);
            for direction in [Direction::Read, Direction::Write] {
                let fits = match (row.treatment, classify(encoding, direction)) {
                    (Treatment::Switched, Action::Debug(_)) => true,
                    (Treatment::Kept, Action::Debug(_) | Action::OsLock(_)) => true,
                    (Treatment::Zero, Action::ReadZeroWriteIgnored | Action::DebugChannelStatus) => true,
                    // The other direction of one that can only be read, or only be written.
                    (_, Action::Undefined) => {
                        [Direction::Read, Direction::Write].iter().any(|&d| classify(encoding, d) != Action::Undefined)
                    }
                    _ => false,
                };
                assert!(fits, "{} {direction:?}: {:?}", row.name, classify(encoding, direction));
            }
        }
        for raw in 0..=u16::MAX {
            let encoding = SysregEncoding(raw);
            if encoding.op0() == 2 && !known.contains(&encoding) {
                assert_eq!(classify(encoding, Direction::Read), Action::Undefined, "{encoding}");
                assert_eq!(classify(encoding, Direction::Write), Action::Undefined, "{encoding}");
            }
        }
    }

    /// What is not switched traps, on a CPU with fine-grained traps by the control in its row.
    #[test]
    fn what_is_not_switched_traps_for_ever() {
        const FGT: Field = fields::MMFR0_FGT;
        let mut host = models::CORTEX_A76;
        host.set_field(FGT, 1);
        let controls = controls(&host, 6);
        let fine = controls.fine_grained.unwrap_or_default();
        for row in ROWS.iter().filter(|row| row.treatment != Treatment::Switched) {
            let traps = match row.control {
                Control::Fine(bit) => {
                    (fine.hdfgrtr & fine.hdfgwtr) >> bit & 1 == 1 || bit == 6 && fine.hdfgrtr >> 6 & 1 == 1
                }
                Control::Channel => controls.mdcr >> 27 & 1 == 1,
                Control::OsLock => controls.mdcr >> 10 & 1 == 1,
                Control::Address => controls.mdcr >> 11 & 1 == 1,
            };
            assert!(traps, "{}", row.name);
        }
        // DBGCLAIM, DBGAUTHSTATUS_EL1, OSECCR_EL1; none of the breakpoints, watchpoints and MDSCR_EL1.
        assert_eq!(FINE_TRAPS, 1 << 5 | 1 << 6 | 1 << 10);
    }
}
