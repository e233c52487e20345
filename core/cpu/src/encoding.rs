//! Names of system registers and system instructions: the five numbers op0, op1, CRn, CRm, op2.
//!
//! They are kept in one 16-bit number, in the order in which the instruction holds them in its bits 20:5 (DDI 0487
//! C5.1.2). The syndrome of a trapped access holds the same five numbers in another order (ISS encoding for exception
//! class 0x18), see [`SysregEncoding::from_syndrome`].

use core::fmt;

/// Which system register or system instruction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysregEncoding(pub u16);

impl SysregEncoding {
    /// The encoding from its five numbers; each is cut to the width that the instruction has for it.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | (op2 as u16 & 7),
        )
    }

    /// The encoding in the syndrome of a trapped MSR, MRS or SYS instruction.
    #[must_use]
    pub const fn from_syndrome(esr: u64) -> Self {
        let op0 = (esr >> 20) as u16 & 3;
        let op2 = (esr >> 17) as u16 & 7;
        let op1 = (esr >> 14) as u16 & 7;
        let crn = (esr >> 10) as u16 & 15;
        let crm = (esr >> 1) as u16 & 15;
        Self(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }

    /// op0: 1 for system instructions, 2 for debug and trace registers, 3 for the others.
    #[must_use]
    pub const fn op0(self) -> u8 {
        (self.0 >> 14) as u8 & 3
    }

    /// op1.
    #[must_use]
    pub const fn op1(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }

    /// CRn.
    #[must_use]
    pub const fn crn(self) -> u8 {
        (self.0 >> 7) as u8 & 15
    }

    /// CRm.
    #[must_use]
    pub const fn crm(self) -> u8 {
        (self.0 >> 3) as u8 & 15
    }

    /// op2.
    #[must_use]
    pub const fn op2(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Debug for SysregEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The generic name that every assembler accepts.
        write!(f, "S{}_{}_C{}_C{}_{}", self.op0(), self.op1(), self.crn(), self.crm(), self.op2())
    }
}

impl fmt::Display for SysregEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::SysregEncoding;
    use std::format;

    #[test]
    fn the_five_numbers_come_back() {
        let encoding = SysregEncoding::new(3, 5, 12, 11, 6);
        let numbers = (encoding.op0(), encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2());
        assert_eq!(numbers, (3, 5, 12, 11, 6));
        assert_eq!(format!("{encoding}"), "S3_5_C12_C11_6");
    }

    #[test]
    fn syndromes_measured_on_a_machine() {
        // MRS XZR, MDCCSR_EL0 and MRS X5, MDSCR_EL1.
        assert_eq!(SysregEncoding::from_syndrome(0x6220_c3e3), SysregEncoding::new(2, 3, 0, 1, 0));
        assert_eq!(SysregEncoding::from_syndrome(0x6224_00a5), SysregEncoding::new(2, 0, 0, 2, 2));
    }
}
