//! With which rights a guest's access is translated, and what came of it.
//!
//! An instruction that is carried out for a guest reaches no more than it would have reached by itself. So each address
//! goes through the guest's own stage 1 by an AT instruction with the rights of that very access ([`rights`]), for
//! reading or for writing, and what the CPU then says in PAR_EL1 ([`outcome`]) is either a place or the exception that
//! the guest is to get.

use crate::exit::{Fault, FaultKind};
use crate::inject::AbortKind;
use crate::pstate;
use units::{Ipa, PAGE_SIZE, Va};

/// As whom an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rights {
    /// As EL0.
    User,
    /// As EL1, to whatever it may reach.
    Kernel,
    /// As EL1, to nothing that EL0 may reach (PSTATE.PAN).
    KernelAlone,
}

/// Which form of load or store an instruction is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// With the rights of the level that executes it.
    Plain,
    /// LDTR, STTR and relatives: with EL0's rights.
    Unprivileged,
}

/// The rights of a load or store of this form in the state `state` (DDI 0487 D8.4, "About PSTATE.PAN"
/// and "About PSTATE.UAO": the latter makes the unprivileged forms ordinary ones, and nothing else does).
#[must_use]
pub const fn rights(state: u64, form: Form) -> Rights {
    let as_user = pstate::is_user(state) || matches!(form, Form::Unprivileged) && state & pstate::UAO == 0;
    if as_user {
        Rights::User
    } else if state & pstate::PAN != 0 {
        Rights::KernelAlone
    } else {
        Rights::Kernel
    }
}

/// What PAR_EL1 says after an AT instruction for stage 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The address is there.
    Place {
        /// Where in the guest's memory.
        ipa: Ipa,
        /// What the guest says that it is.
        memory: Memory,
    },
    /// The guest's own tables refuse it, with this.
    Refused(AbortKind),
    /// The walk came to a table that stage 2 does not map.
    NoTable,
}

impl Outcome {
    /// What it is, the outcome for EL1, under PSTATE.PAN on a CPU that has no AT instruction which heeds that (FEAT_PAN without
    /// FEAT_PAN2). PAN forbids what EL0 can read (DDI 0487 D8.4, "About PSTATE.PAN"), and `for_user` says whether it can. The
    /// level of the fault is not known then; it is given as that of a page.
    #[must_use]
    #[inline(always)]
    pub fn unless_for_user(self, for_user: impl FnOnce() -> Self) -> Self {
        let Self::Place { .. } = self else { return self };
        match for_user() {
            Self::Place { .. } => Self::Refused(AbortKind::Permission(3)),
            // The guest's tables are changing, and nobody knows what EL0 can: not to be taken for leave.
            Self::NoTable => Self::NoTable,
            Self::Refused(_) => self,
        }
    }
}

/// A memory type of stage 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Where accesses may be unaligned.
    Normal,
    /// Where an unaligned access faults before stage 2 is asked.
    Device,
}

/// PAR_EL1.F: the translation failed.
const FAILED: u64 = 1;
/// PAR_EL1.S: at stage 2.
const STAGE_2: u64 = 1 << 9;
/// PAR_EL1.PA: bits 47:12 of the address.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The outcome of the translation of `va` that left `par` in PAR_EL1 (DDI 0487, PAR_EL1).
#[must_use]
pub const fn outcome(par: u64, va: Va) -> Outcome {
    if par & FAILED == 0 {
        let ipa = Ipa(par & ADDRESS | va.0 & (PAGE_SIZE - 1));
        // ATTR is a byte in the format of MAIR_EL1, where Device types have nothing in the upper half.
        return Outcome::Place { ipa, memory: if par >> 60 == 0 { Memory::Device } else { Memory::Normal } };
    }
    if par & STAGE_2 != 0 {
        return Outcome::NoTable;
    }
    Outcome::Refused(AbortKind::from_status((par >> 1) as u8))
}

impl AbortKind {
    /// The abort with this fault status code; an external one for those that no guest of ours can be told.
    #[must_use]
    pub const fn from_status(status: u8) -> Self {
        let fault = Fault::from_status(status);
        // A level of -1 is one of 52-bit addresses, which guests do not have.
        let level = if fault.level < 0 { 0 } else { fault.level as u8 };
        match fault.kind {
            FaultKind::AddressSize => Self::AddressSize(level),
            FaultKind::Translation => Self::Translation(level),
            FaultKind::AccessFlag => Self::AccessFlag(level),
            FaultKind::Permission => Self::Permission(level),
            FaultKind::ExternalOnWalk => Self::ExternalOnWalk(level),
            FaultKind::Alignment => Self::Alignment,
            FaultKind::UnsupportedAtomic => Self::UnsupportedAtomic,
            _ => Self::External,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Memory, Outcome, Rights, outcome, rights};
    use crate::inject::AbortKind;
    use crate::pstate::{EL0T, EL1H, EL1T, NZCV, PAN, UAO};
    use proptest::prelude::*;
    use units::{Ipa, Va};

    #[test]
    fn without_pan2_what_user_can_read_is_forbidden() {
        let place = |at| Outcome::Place { ipa: Ipa(at), memory: Memory::Device };
        let refused = |level| Outcome::Refused(AbortKind::Translation(level));
        let cases = [
            (place(0x9000), place(0x9000), Outcome::Refused(AbortKind::Permission(3))),
            (place(0x9000), Outcome::Refused(AbortKind::Permission(2)), place(0x9000)),
            (place(0x9000), Outcome::NoTable, Outcome::NoTable),
        ];
        for (as_kernel, as_user, expected) in cases {
            assert_eq!(as_kernel.unless_for_user(|| as_user), expected, "{as_kernel:?}, for EL0 {as_user:?}");
        }
        // What the kernel itself cannot do is its own fault, whatever EL0 can.
        for as_kernel in [refused(2), Outcome::NoTable] {
            assert_eq!(as_kernel.unless_for_user(|| unreachable!("it does not matter")), as_kernel);
        }
    }

    #[test]
    fn an_access_has_the_rights_of_its_level_and_form() {
        use Form::{Plain, Unprivileged};
        let table = [
            (EL0T, Plain, Rights::User),
            (EL0T | PAN | UAO, Plain, Rights::User),
            (EL0T | PAN | UAO, Unprivileged, Rights::User),
            (EL1H, Plain, Rights::Kernel),
            (EL1H | UAO, Plain, Rights::Kernel),
            (EL1H | PAN, Plain, Rights::KernelAlone),
            (EL1H, Unprivileged, Rights::User),
            // PAN does not concern accesses as EL0.
            (EL1H | PAN, Unprivileged, Rights::User),
            (EL1H | UAO, Unprivileged, Rights::Kernel),
            (EL1H | UAO | PAN, Unprivileged, Rights::KernelAlone),
            (EL1T | PAN, Plain, Rights::KernelAlone),
        ];
        for (state, form, expected) in table {
            assert_eq!(rights(state | NZCV, form), expected, "{state:#x}, {form:?}");
        }
    }

    #[test]
    fn the_result_of_a_translation() {
        let place = |par| outcome(par, Va(0xffff_0000_0000_0124));
        assert_eq!(place(0xff00_0000_4000_0b80), Outcome::Place { ipa: Ipa(0x4000_0124), memory: Memory::Normal });
        assert_eq!(place(0x0400_0000_0900_0800), Outcome::Place { ipa: Ipa(0x0900_0124), memory: Memory::Device });
        assert_eq!(place(0x44 << 56 | 0x5000), Outcome::Place { ipa: Ipa(0x5124), memory: Memory::Normal });
        assert_eq!(place(1 | 0x0f << 1), Outcome::Refused(AbortKind::Permission(3)));
        assert_eq!(place(1 | 0x06 << 1), Outcome::Refused(AbortKind::Translation(2)));
        assert_eq!(place(1 | 0x09 << 1), Outcome::Refused(AbortKind::AccessFlag(1)));
        assert_eq!(place(1 | 0x16 << 1), Outcome::Refused(AbortKind::ExternalOnWalk(2)));
        assert_eq!(place(1 | 0x06 << 1 | 1 << 8 | 1 << 9), Outcome::NoTable);
    }

    proptest! {
        /// A status that a guest may be told is told as it is.
        #[test]
        fn statuses_survive(status in 0_u8..64) {
            let told = AbortKind::from_status(status).status();
            prop_assert!(told == u64::from(status) || told == 0x10 || matches!(status, 0x13 | 0x29 | 0x2b), "{status:#x}: {told:#x}");
        }
    }
}
