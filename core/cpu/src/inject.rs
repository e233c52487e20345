//! Taking an exception to EL1 on the guest's behalf, as the hardware would have done.
//!
//! DDI 0487 D1.3.1 ("exception entry") is followed by one routine, [`synchronous`]: save PSTATE and the return address,
//! set the syndrome, compute the new PSTATE, go to the vector. The other functions only compose syndromes. After any
//! of them the caller enters the guest with the changed state and nothing else; PC must not be advanced.
//!
//! SErrors are not here. The hardware delivers them: set HCR_EL2.VSE (and VSESR_EL2 where FEAT_RAS exists) and the
//! guest takes one as soon as PSTATE.A allows. Interrupts are the list registers' business.

use crate::exit::{ESR_IL, class, class_of};
use crate::pstate;
use units::{Direction, Va};

/// SCTLR_EL1.SPAN: an exception leaves PSTATE.PAN alone.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: what PSTATE.SSBS becomes on an exception.
const SCTLR_DSSBS: u64 = 1 << 44;
/// ISS bit 6 of a data abort, WnR.
const WRITE: u64 = 1 << 6;
/// ISS bit 8 of a data abort, CM.
const CACHE_MAINTENANCE: u64 = 1 << 8;
/// VBAR_EL1 bits 10:0 are RES0.
const VECTOR_ALIGNMENT: u64 = 0x800;

/// The registers that exception entry to EL1 reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestState {
    /// The program counter, from ELR_EL2.
    pub pc: u64,
    /// The processor state, from SPSR_EL2.
    pub pstate: u64,
    /// ELR_EL1.
    pub elr_el1: u64,
    /// SPSR_EL1.
    pub spsr_el1: u64,
    /// ESR_EL1.
    pub esr_el1: u64,
    /// FAR_EL1.
    pub far_el1: u64,
    /// VBAR_EL1; only read.
    pub vbar_el1: u64,
    /// SCTLR_EL1; only read.
    pub sctlr_el1: u64,
}

/// What an injected abort says was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AbortKind {
    /// The memory system refused the access: what a real machine says of an address where nothing is.
    External,
    /// The memory system refused a walk of the guest's own tables; level 0 to 3.
    ExternalOnWalk(u8),
    /// The guest's own tables map nothing there; level 0 to 3.
    Translation(u8),
    /// The guest's own tables forbid it; level 0 to 3.
    Permission(u8),
    /// The access flag of the guest's own tables is clear; level 0 to 3.
    AccessFlag(u8),
    /// The address is wider than the guest's physical address space; level 0 to 3.
    AddressSize(u8),
    /// The access was not aligned, or is of a kind that the memory there does not support.
    Alignment,
    /// The memory there cannot do this atomic or exclusive access.
    UnsupportedAtomic,
}

impl AbortKind {
    /// The fault status code.
    #[must_use]
    pub const fn status(self) -> u64 {
        match self {
            Self::AddressSize(level) => level as u64 & 3,
            Self::Translation(level) => 0x04 | level as u64 & 3,
            Self::AccessFlag(level) => 0x08 | level as u64 & 3,
            Self::Permission(level) => 0x0c | level as u64 & 3,
            Self::External => 0x10,
            Self::ExternalOnWalk(level) => 0x14 | level as u64 & 3,
            Self::Alignment => 0x21,
            Self::UnsupportedAtomic => 0x35,
        }
    }
}

/// The guest executed an instruction that does not exist for it.
pub const fn undefined(state: &mut GuestState) {
    synchronous(state, syndrome(class::UNKNOWN, 0));
}

/// The guest executes in a state that it has not: as after an illegal exception return, PSTATE.IL is set, which is what the saved
/// state says (DDI 0487 D1.3.3).
pub const fn illegal_state(state: &mut GuestState) {
    state.pstate |= pstate::IL;
    synchronous(state, syndrome(class::ILLEGAL_STATE, 0));
}

/// A data access of the guest at `far` failed.
pub const fn data_abort(state: &mut GuestState, far: Va, kind: AbortKind, direction: Direction) {
    let write = match direction {
        Direction::Read => 0,
        Direction::Write => WRITE,
    };
    let class = from_level(state.pstate, class::DATA_ABORT_LOWER, class::DATA_ABORT_CURRENT);
    state.far_el1 = far.0;
    synchronous(state, syndrome(class, write | kind.status()));
}

/// Cache maintenance or an address translation by the guest of `far` failed: with WnR and CM set, whatever the
/// instruction does (DDI 0487, ESR_EL1, ISS of a data abort).
pub const fn maintenance_abort(state: &mut GuestState, far: Va, kind: AbortKind) {
    let class = from_level(state.pstate, class::DATA_ABORT_LOWER, class::DATA_ABORT_CURRENT);
    state.far_el1 = far.0;
    synchronous(state, syndrome(class, CACHE_MAINTENANCE | WRITE | kind.status()));
}

/// An instruction fetch of the guest at `far` failed.
pub const fn instruction_abort(state: &mut GuestState, far: Va, kind: AbortKind) {
    let class = from_level(state.pstate, class::INSTRUCTION_ABORT_LOWER, class::INSTRUCTION_ABORT_CURRENT);
    state.far_el1 = far.0;
    synchronous(state, syndrome(class, kind.status()));
}

/// Hands an exception that was taken to EL2 on to EL1, with the syndrome that EL1 would have got: for breakpoints,
/// steps, watchpoints, BRK and alignment faults that were routed to us and turned out to be the guest's own. `far` is
/// FAR_EL2 for the classes that have an address.
pub const fn reflect(state: &mut GuestState, esr: u64, far: Option<Va>) {
    let taken = class_of(esr);
    let class = match taken {
        class::INSTRUCTION_ABORT_LOWER
        | class::DATA_ABORT_LOWER
        | class::BREAKPOINT_LOWER
        | class::STEP_LOWER
        | class::WATCHPOINT_LOWER => from_level(state.pstate, taken, taken + 1),
        other => other,
    };
    if let Some(far) = far {
        state.far_el1 = far.0;
    }
    synchronous(state, (class as u64) << 26 | esr & 0x03ff_ffff);
}

/// Takes a synchronous exception with the syndrome `esr` to EL1. The one routine that changes PSTATE and PC.
pub const fn synchronous(state: &mut GuestState, esr: u64) {
    state.esr_el1 = esr;
    state.spsr_el1 = state.pstate;
    state.elr_el1 = state.pc;
    state.pc = (state.vbar_el1 & !(VECTOR_ALIGNMENT - 1)).wrapping_add(vector_offset(state.pstate));
    state.pstate = entry_pstate(state.pstate, state.sctlr_el1);
}

/// Where in the vector table a synchronous exception from this state enters.
const fn vector_offset(pstate: u64) -> u64 {
    if pstate & pstate::AARCH32 != 0 {
        return 0x600;
    }
    match pstate & pstate::MODE_MASK {
        pstate::EL1T => 0x000,
        pstate::EL1H => 0x200,
        _ => 0x400,
    }
}

/// PSTATE in the handler. Kept: the condition flags, DIT and PAN (unless SPAN asks for it to be set). Set: the four
/// masks and SSBS as DSSBS says. Everything else becomes zero: BTYPE, IL, SS and UAO because exception entry clears
/// them; TCO and ALLINT because the features behind them are hidden from guests, for whom the bits are RES0.
const fn entry_pstate(old: u64, sctlr: u64) -> u64 {
    let mut new = old & (pstate::NZCV | pstate::DIT | pstate::PAN);
    new |= pstate::DAIF | pstate::EL1H;
    if sctlr & SCTLR_SPAN == 0 {
        new |= pstate::PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= pstate::SSBS;
    }
    new
}

/// Of the two classes of an abort, the one for where it came from.
const fn from_level(pstate: u64, lower: u8, current: u8) -> u8 {
    if pstate::is_user(pstate) { lower } else { current }
}

/// A syndrome for a 32-bit instruction, or one whose length does not matter (IL is 1 for both).
const fn syndrome(class: u8, iss: u64) -> u64 {
    (class as u64) << 26 | ESR_IL | iss
}

#[cfg(test)]
mod tests {
    use super::{
        AbortKind, GuestState, data_abort, illegal_state, instruction_abort, maintenance_abort, reflect, synchronous,
        undefined,
    };
    use crate::pstate::{A, AARCH32, ALLINT, BTYPE, D, DAIF, DIT, EL0T, EL1H, EL1T, F, I, IL, NZCV, PAN, SS, SSBS};
    use crate::pstate::{TCO, UAO};
    use proptest::prelude::*;
    use units::{Direction, Va};

    #[test]
    fn codes_of_fault_statuses() {
        for level in 0..4 {
            let codes = [AbortKind::AddressSize, AbortKind::Translation, AbortKind::AccessFlag, AbortKind::Permission];
            let codes = codes.map(|kind| kind(level).status());
            assert_eq!(codes, [0x00, 0x04, 0x08, 0x0c].map(|first| first + u64::from(level)));
            assert_eq!(AbortKind::ExternalOnWalk(level).status(), 0x14 + u64::from(level));
        }
        let others = [AbortKind::External, AbortKind::Alignment, AbortKind::UnsupportedAtomic].map(AbortKind::status);
        assert_eq!(others, [0x10, 0x21, 0x35]);
    }

    const SPAN: u64 = 1 << 23;
    const DSSBS: u64 = 1 << 44;

    fn guest(pstate: u64) -> GuestState {
        GuestState { pc: 0x4008_0000, pstate, vbar_el1: 0x4001_0000, sctlr_el1: SPAN, ..GuestState::default() }
    }

    #[test]
    fn an_undefined_instruction_in_the_kernel() {
        let mut state = guest(NZCV | EL1H);
        undefined(&mut state);
        assert_eq!(state.pc, 0x4001_0200);
        assert_eq!(state.pstate, NZCV | DAIF | EL1H);
        assert_eq!(state.elr_el1, 0x4008_0000);
        assert_eq!(state.spsr_el1, NZCV | EL1H);
        assert_eq!(state.esr_el1, 0x0200_0000);
        assert_eq!(state.far_el1, 0);
    }

    #[test]
    fn aarch32_at_el0_is_an_illegal_state() {
        // A32 and T32 code, in the middle of an IT block.
        for thumb in [0, 1 << 5 | 1 << 10] {
            let mut state = guest(NZCV | AARCH32 | thumb);
            illegal_state(&mut state);
            assert_eq!((state.pc, state.esr_el1), (0x4001_0600, 0x0e << 26 | 1 << 25));
            assert_eq!((state.elr_el1, state.spsr_el1), (0x4008_0000, NZCV | AARCH32 | thumb | IL));
            assert_eq!(state.pstate, NZCV | DAIF | EL1H);
        }
    }

    #[test]
    fn the_vector_depends_on_where_it_came_from() {
        for (pstate, offset) in [(EL1T, 0), (EL1H, 0x200), (EL0T, 0x400), (AARCH32, 0x600)] {
            let mut state = guest(pstate);
            undefined(&mut state);
            assert_eq!(state.pc, 0x4001_0000 + offset);
            assert_eq!(state.pstate & 0x1f, EL1H);
        }
    }

    #[test]
    fn the_low_bits_of_the_vector_base_do_not_count() {
        let mut state = guest(EL1H);
        state.vbar_el1 |= 0x7ff;
        undefined(&mut state);
        assert_eq!(state.pc, 0x4001_0200);
        state = guest(EL1H);
        state.vbar_el1 = u64::MAX;
        undefined(&mut state);
        assert_eq!(state.pc, 0xffff_ffff_ffff_fa00);
    }

    #[test]
    fn pan_follows_span() {
        for (before, sctlr, after) in [(0, SPAN, 0), (PAN, SPAN, PAN), (0, 0, PAN), (PAN, 0, PAN)] {
            let mut state = guest(EL1H | before);
            state.sctlr_el1 = sctlr;
            undefined(&mut state);
            assert_eq!(state.pstate & PAN, after);
        }
    }

    #[test]
    fn ssbs_follows_dssbs() {
        for (before, sctlr, after) in [(0, 0, 0), (SSBS, 0, 0), (0, DSSBS, SSBS), (SSBS, DSSBS, SSBS)] {
            let mut state = guest(EL1H | before);
            state.sctlr_el1 = SPAN | sctlr;
            undefined(&mut state);
            assert_eq!(state.pstate & SSBS, after);
        }
    }

    #[test]
    fn entry_clears_what_it_must_and_keeps_the_rest() {
        let cleared = BTYPE | IL | SS | UAO | TCO | ALLINT;
        let mut state = guest(cleared | NZCV | DIT | EL1H);
        undefined(&mut state);
        assert_eq!(state.pstate, NZCV | DIT | DAIF | EL1H);
        assert_eq!(state.spsr_el1, cleared | NZCV | DIT | EL1H);
    }

    #[test]
    fn a_data_abort_says_what_and_from_where() {
        let mut state = guest(EL0T);
        data_abort(&mut state, Va(0x1234), AbortKind::Translation(3), Direction::Write);
        assert_eq!(state.esr_el1, 0x9200_0047);
        assert_eq!(state.far_el1, 0x1234);
        let mut state = guest(EL1H);
        data_abort(&mut state, Va(0x1234), AbortKind::External, Direction::Read);
        assert_eq!(state.esr_el1, 0x9600_0010);
        let mut state = guest(EL1T);
        data_abort(&mut state, Va(0), AbortKind::UnsupportedAtomic, Direction::Write);
        assert_eq!(state.esr_el1, 0x9600_0075);
    }

    #[test]
    fn the_abort_of_a_maintenance_instruction_says_so() {
        let mut state = guest(EL1H);
        maintenance_abort(&mut state, Va(0x1234), AbortKind::ExternalOnWalk(2));
        assert_eq!((state.esr_el1, state.far_el1), (0x9600_0156, 0x1234));
        let mut state = guest(EL0T);
        maintenance_abort(&mut state, Va(0), AbortKind::External);
        assert_eq!(state.esr_el1, 0x9200_0150);
    }

    #[test]
    fn an_instruction_abort_says_what_and_from_where() {
        let mut state = guest(EL0T);
        instruction_abort(&mut state, Va(0x8000), AbortKind::Permission(2));
        assert_eq!((state.esr_el1, state.far_el1), (0x8200_000e, 0x8000));
        let mut state = guest(EL1H);
        instruction_abort(&mut state, Va(0x8000), AbortKind::External);
        assert_eq!(state.esr_el1, 0x8600_0010);
    }

    #[test]
    fn a_reflected_exception_gets_the_class_of_its_level() {
        let mut state = guest(EL1H);
        reflect(&mut state, 0xd200_0062, Some(Va(0x99)));
        assert_eq!((state.esr_el1, state.far_el1), (0xd600_0062, 0x99));
        let mut state = guest(EL0T);
        reflect(&mut state, 0xd200_0062, None);
        assert_eq!(state.esr_el1, 0xd200_0062);
        let mut state = guest(EL1H);
        reflect(&mut state, 0xf200_0086, None);
        assert_eq!(state.esr_el1, 0xf200_0086);
    }

    proptest! {
        /// Whatever the guest was doing, the handler runs at EL1 with everything masked, and can go back.
        #[test]
        fn entry_is_sound(pc: u64, pstate: u64, vbar_el1: u64, sctlr_el1: u64, esr: u64) {
            let before = GuestState { pc, pstate, vbar_el1, sctlr_el1, ..GuestState::default() };
            let mut state = before;
            synchronous(&mut state, esr);
            prop_assert_eq!(state.pstate & 0x1f, EL1H);
            prop_assert_eq!(state.pstate & (D | A | I | F), DAIF);
            prop_assert_eq!(state.pstate >> 32, 0);
            prop_assert_eq!((state.elr_el1, state.spsr_el1, state.esr_el1), (pc, pstate, esr));
            prop_assert_eq!(state.pc & 0x7f, 0);
            prop_assert_eq!((state.vbar_el1, state.sctlr_el1), (vbar_el1, sctlr_el1));
        }
    }
}
