//! Data aborts and instruction aborts: which address, what was wrong with it, and what the access wanted.
//!
//! Two subtleties of the architecture are typed here so that no caller can forget them.
//!
//! *The address.* HPFAR_EL2 gives the page of the faulting IPA and FAR_EL2 the virtual address; the offset within the
//! page is the same in both. But HPFAR_EL2 is UNKNOWN for a stage 2 permission fault that is not on a stage 1 table
//! walk (DDI 0487 D24.2.73), so [`DataAbort::ipa`] is an `Option`: without it, the caller translates
//! [`DataAbort::far`] with an AT instruction. And when the walk of a stage 1 table faulted (`on_table_walk`), the
//! IPA is the table's page, while FAR_EL2 is the address that was being translated: the offset says nothing then.
//!
//! *The access.* Only the plain loads and stores of one general-purpose register without writeback describe
//! themselves in the syndrome (ISV = 1). For all the others [`DataAbort::access`] is `None`, and the instruction has
//! to be read from the guest's memory and decoded.

use units::{Direction, Ipa, PAGE_SIZE, RegisterAccess, Va};

/// What was wrong, from the fault status code (ESR_ELx.DFSC or IFSC).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultKind {
    /// The address is wider than the tables allow.
    AddressSize,
    /// Nothing is mapped there.
    Translation,
    /// The entry's access flag is clear.
    AccessFlag,
    /// The entry forbids this access.
    Permission,
    /// The memory system refused the access.
    External,
    /// The memory system refused a table walk.
    ExternalOnWalk,
    /// Parity or error-correction failure, on the access or on a table walk.
    Parity,
    /// The access was not aligned.
    Alignment,
    /// Two TLB entries match.
    TlbConflict,
    /// The memory there cannot do this atomic or exclusive access.
    UnsupportedAtomic,
    /// A granule protection check failed.
    GranuleProtection,
    /// A code without a name here.
    Other(u8),
}

/// The level of a lookup in the translation tables, -1 to 3.
pub type LookupLevel = i8;

/// A fault and the level of the tables where it was found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fault {
    /// What was wrong.
    pub kind: FaultKind,
    /// The level of the tables; 0 for the kinds that have none.
    pub level: LookupLevel,
}

impl Fault {
    /// The fault in a fault status code (six bits, DDI 0487 table of ESR_ELx.DFSC).
    #[must_use]
    pub const fn from_status(code: u8) -> Self {
        let code = code & 0x3f;
        let low = (code & 3) as LookupLevel;
        let (kind, level) = match code {
            0x00..=0x03 => (FaultKind::AddressSize, low),
            0x04..=0x07 => (FaultKind::Translation, low),
            0x08..=0x0b => (FaultKind::AccessFlag, low),
            0x0c..=0x0f => (FaultKind::Permission, low),
            0x10 => (FaultKind::External, 0),
            0x13 => (FaultKind::ExternalOnWalk, -1),
            0x14..=0x17 => (FaultKind::ExternalOnWalk, low),
            0x18 => (FaultKind::Parity, 0),
            0x1b => (FaultKind::Parity, -1),
            0x1c..=0x1f => (FaultKind::Parity, low),
            0x21 => (FaultKind::Alignment, 0),
            0x23 => (FaultKind::GranuleProtection, -1),
            0x24..=0x27 => (FaultKind::GranuleProtection, low),
            0x28 => (FaultKind::GranuleProtection, 0),
            0x29 => (FaultKind::AddressSize, -1),
            0x2b => (FaultKind::Translation, -1),
            0x30 => (FaultKind::TlbConflict, 0),
            0x35 => (FaultKind::UnsupportedAtomic, 0),
            other => (FaultKind::Other(other), 0),
        };
        Self { kind, level }
    }

    /// Whether the memory system, not a table, is the cause.
    #[must_use]
    pub const fn is_external(self) -> bool {
        matches!(self.kind, FaultKind::External | FaultKind::ExternalOnWalk | FaultKind::Parity)
    }
}

/// A data access that did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataAbort {
    /// What was wrong.
    pub fault: Fault,
    /// The address that stage 2 was asked for; `None` where the hardware does not say (see the module's story).
    pub ipa: Option<Ipa>,
    /// The guest's virtual address; `None` where the hardware does not say (FnV).
    pub far: Option<Va>,
    /// Which way the access moves data. Cache maintenance counts as a write; of a table walk it says what the walk
    /// itself did (a write when it updated a flag).
    pub direction: Direction,
    /// The access, where the syndrome describes it.
    pub access: Option<RegisterAccess>,
    /// It was the guest's stage 1 table walk that faulted, not the access: `ipa` is the table's page.
    pub on_table_walk: bool,
    /// The instruction was cache maintenance or an address translation.
    pub cache_maintenance: bool,
}

/// What a guest wanted of memory that stage 2 did not let it have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wanted {
    /// To execute an instruction there.
    Fetch,
    /// To load from there, or to maintain caches.
    Read,
    /// To store there.
    Write,
    /// A walk of its own tables came by there, for whatever access: what lies there is a table, and not executed.
    Walk,
}

impl DataAbort {
    /// What the guest wanted.
    #[must_use]
    pub const fn wanted(&self) -> Wanted {
        match self.direction {
            _ if self.on_table_walk => Wanted::Walk,
            // Maintenance and AT say "write" in the syndrome, and store nothing.
            _ if self.cache_maintenance => Wanted::Read,
            Direction::Read => Wanted::Read,
            Direction::Write => Wanted::Write,
        }
    }

    /// Reads ESR_EL2, FAR_EL2 and HPFAR_EL2 of a data abort.
    #[must_use]
    pub const fn decode(esr: u64, far: u64, hpfar: u64) -> Self {
        let fault = Fault::from_status(esr as u8);
        let on_table_walk = esr & S1PTW != 0;
        Self {
            fault,
            ipa: faulting_ipa(fault, on_table_walk, far, hpfar),
            far: faulting_va(esr, far),
            direction: direction(esr),
            access: decode_access(esr),
            on_table_walk,
            cache_maintenance: esr & CACHE_MAINTENANCE != 0,
        }
    }
}

/// An instruction fetch that did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InstructionAbort {
    /// What was wrong.
    pub fault: Fault,
    /// The address that stage 2 was asked for; `None` where the hardware does not say (see the module's story).
    pub ipa: Option<Ipa>,
    /// The guest's virtual address; `None` where the hardware does not say (FnV).
    pub far: Option<Va>,
    /// It was the guest's stage 1 table walk that faulted, not the fetch: `ipa` is the table's page.
    pub on_table_walk: bool,
}

impl InstructionAbort {
    /// What the guest wanted. A walk on behalf of a fetch is no fetch: taking it for one would make tables executable.
    #[must_use]
    pub const fn wanted(&self) -> Wanted {
        if self.on_table_walk { Wanted::Walk } else { Wanted::Fetch }
    }

    /// Reads ESR_EL2, FAR_EL2 and HPFAR_EL2 of an instruction abort.
    #[must_use]
    pub const fn decode(esr: u64, far: u64, hpfar: u64) -> Self {
        let fault = Fault::from_status(esr as u8);
        let on_table_walk = esr & S1PTW != 0;
        Self { fault, ipa: faulting_ipa(fault, on_table_walk, far, hpfar), far: faulting_va(esr, far), on_table_walk }
    }
}

/// ISS bit 6, WnR.
const WRITE: u64 = 1 << 6;
/// ISS bit 7: the fault is on the stage 2 translation of a stage 1 table walk.
const S1PTW: u64 = 1 << 7;
/// ISS bit 8.
const CACHE_MAINTENANCE: u64 = 1 << 8;
/// ISS bit 10, FnV: FAR_EL2 is not valid. Only defined for an external abort.
const FAR_NOT_VALID: u64 = 1 << 10;
/// ISS bit 24, ISV: bits 23:14 describe the access.
const SYNDROME_VALID: u64 = 1 << 24;

/// WnR.
pub(super) const fn direction(esr: u64) -> Direction {
    if esr & WRITE != 0 { Direction::Write } else { Direction::Read }
}

/// The access in ISS bits 23:14 (SAS, SSE, SRT, SF, AR), if ISV says that they hold it.
const fn decode_access(esr: u64) -> Option<RegisterAccess> {
    if esr & SYNDROME_VALID == 0 {
        return None;
    }
    Some(RegisterAccess {
        bytes: 1 << (esr >> 22 & 3),
        sign_extend: esr & 1 << 21 != 0,
        rt: (esr >> 16) as u8 & 31,
        sixty_four: esr & 1 << 15 != 0,
    })
}

/// The IPA: FIPA (HPFAR_EL2 bits 47:4) is its bits 55:12, the offset in the page comes from FAR_EL2.
const fn faulting_ipa(fault: Fault, on_table_walk: bool, far: u64, hpfar: u64) -> Option<Ipa> {
    let known = match fault.kind {
        FaultKind::Translation | FaultKind::AccessFlag | FaultKind::AddressSize => true,
        FaultKind::Permission => on_table_walk,
        _ => false,
    };
    if !known {
        return None;
    }
    let page = (hpfar & 0x0000_ffff_ffff_fff0) << 8;
    let offset = if on_table_walk { 0 } else { far & (PAGE_SIZE - 1) };
    Some(Ipa(page | offset))
}

/// FAR_EL2, unless it was an external abort whose address was lost.
const fn faulting_va(esr: u64, far: u64) -> Option<Va> {
    if esr & 0x3f == 0x10 && esr & FAR_NOT_VALID != 0 { None } else { Some(Va(far)) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{DataAbort, Direction, Fault, FaultKind, InstructionAbort, Wanted};
    use std::vec::Vec;
    use units::{Ipa, RegisterAccess, Va};

    #[test]
    fn the_memory_system_is_the_cause_of_external_aborts_alone() {
        let external = |status| Fault::from_status(status).is_external();
        let all: Vec<_> = (0..64).filter(|&status| external(status)).collect();
        // Synchronous external aborts and parity errors, each on an access and on a walk at each level.
        assert_eq!(all, [0x10, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f]);
    }

    #[test]
    fn only_a_fetch_is_an_execution() {
        let fetch = |esr| InstructionAbort::decode(esr, 0, 0).wanted();
        // From what is not mapped, and from what is mapped without execute permission, at each level.
        for status in (0x04..=0x07).chain(0x0c..=0x0f) {
            assert_eq!(fetch(0x8200_0000 | status), Wanted::Fetch);
            // S1PTW: the walk of stage 1 for the fetch.
            assert_eq!(fetch(0x8200_0080 | status), Wanted::Walk);
        }
        let data = |esr| DataAbort::decode(esr, 0, 0).wanted();
        for status in (0x04..=0x07).chain(0x0c..=0x0f) {
            assert_eq!(data(0x9380_8000 | status), Wanted::Read);
            assert_eq!(data(0x9380_8040 | status), Wanted::Write);
            // Without a syndrome of the access, as of a pair.
            assert_eq!(data(0x9200_0040 | status), Wanted::Write);
            // CM: `DC CVAU` and the like.
            assert_eq!(data(0x9200_0140 | status), Wanted::Read);
            // S1PTW, also with WnR: the walker updated a flag.
            assert_eq!(data(0x9200_0080 | status), Wanted::Walk);
            assert_eq!(data(0x9200_00c0 | status), Wanted::Walk);
        }
    }

    #[test]
    fn a_write_to_an_unmapped_page_as_measured() {
        let abort = DataAbort::decode(0x93c5_8047, 0xffff_0000_0900_0018, 0x9_0000);
        assert_eq!(abort.fault, Fault { kind: FaultKind::Translation, level: 3 });
        assert_eq!(abort.ipa, Some(Ipa(0x0900_0018)));
        assert_eq!(abort.far, Some(Va(0xffff_0000_0900_0018)));
        assert_eq!(abort.direction, Direction::Write);
        let access = RegisterAccess { bytes: 8, sign_extend: false, sixty_four: true, rt: 5 };
        assert_eq!(abort.access, Some(access));
        assert!(!abort.on_table_walk && !abort.cache_maintenance);
    }

    #[test]
    fn a_permission_fault_does_not_trust_hpfar() {
        let abort = DataAbort::decode(0x93c5_804f, 0x4000_0018, 0x9_0000);
        assert_eq!(abort.fault, Fault { kind: FaultKind::Permission, level: 3 });
        assert_eq!(abort.ipa, None);
        assert_eq!(abort.far, Some(Va(0x4000_0018)));
    }

    #[test]
    fn a_fault_on_a_table_walk_names_the_tables_page() {
        let abort = DataAbort::decode(0x9200_0087, 0xffff_8000_1234_5678, 0x40_0000);
        assert!(abort.on_table_walk);
        assert_eq!(abort.ipa, Some(Ipa(0x4000_0000)));
        assert_eq!(abort.access, None);
        let fetch = InstructionAbort::decode(0x8200_0087, 0x1234_5678, 0x40_0000);
        assert!(fetch.on_table_walk);
        assert_eq!(fetch.ipa, Some(Ipa(0x4000_0000)));
        let permission = DataAbort::decode(0x9200_008f, 0x1234_5678, 0x40_0000);
        assert_eq!(permission.ipa, Some(Ipa(0x4000_0000)));
    }

    #[test]
    fn an_external_abort_may_have_no_address() {
        let abort = DataAbort::decode(0x9200_0410, 0x1234, 0x40_0000);
        assert!(abort.fault.is_external());
        assert_eq!((abort.ipa, abort.far), (None, None));
    }

    #[test]
    fn loads_extend_as_the_instruction_asks() {
        let load = |bytes, sign_extend, sixty_four| {
            RegisterAccess { bytes, sign_extend, sixty_four, rt: 0 }.loaded(0x8182_8384_8586_8788)
        };
        assert_eq!(load(1, false, false), 0x88);
        assert_eq!(load(1, true, true), 0xffff_ffff_ffff_ff88);
        assert_eq!(load(2, true, false), 0xffff_8788);
        assert_eq!(load(4, false, true), 0x8586_8788);
        assert_eq!(load(4, true, true), 0xffff_ffff_8586_8788);
        assert_eq!(load(8, false, true), 0x8182_8384_8586_8788);
        let store = RegisterAccess { bytes: 2, sign_extend: false, sixty_four: false, rt: 0 };
        assert_eq!(store.stored(0x1234_5678), 0x5678);
    }

    #[test]
    fn levels_of_faults() {
        assert_eq!(Fault::from_status(0x2b), Fault { kind: FaultKind::Translation, level: -1 });
        assert_eq!(Fault::from_status(0x0d), Fault { kind: FaultKind::Permission, level: 1 });
        assert_eq!(Fault::from_status(0x21), Fault { kind: FaultKind::Alignment, level: 0 });
        assert_eq!(Fault::from_status(0x3e).kind, FaultKind::Other(0x3e));
    }
}
