//! What to do with a trapped system register or system instruction.
//!
//! [`classify`] names the emulation that an access needs; the dispatcher has an arm for each. Everything without an
//! emulation is [`Action::Undefined`]: the guest gets an undefined-instruction exception, as on a machine without the
//! feature. That default is the point: a register that nobody thought of cannot be reached.
//!
//! The identification registers come first here too, though the exit path answers them before it gets this far (see
//! [`crate::id::index_of_syndrome`]). Groups that are undefined on purpose, because [`crate::id`] hides their feature
//! and [`crate::controls`] traps them: performance monitors, statistical profiling, trace and trace buffer, branch
//! records, activity monitors, limited ordering regions, error records, memory partitioning, tags, SVE and SME control, and
//! all IMPLEMENTATION DEFINED registers.

use crate::debug::DebugBank;
use crate::encoding::SysregEncoding;
use crate::id;
use units::Direction;

/// Which of the three registers that send a software-generated interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SgiRegister {
    /// ICC_SGI1R_EL1: group 1 of this security state.
    Sgi1r,
    /// ICC_ASGI1R_EL1: group 1 of the other security state.
    Asgi1r,
    /// ICC_SGI0R_EL1: group 0.
    Sgi0r,
}

/// One of the two timers of EL1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// CNTP, which always traps.
    Physical,
    /// CNTV, which traps where CNTHCTL_EL2.EL1TVT is set.
    Virtual,
}

/// A register of a timer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TimerRegister {
    /// CNTP_CTL_EL0, CNTV_CTL_EL0.
    Control,
    /// CNTP_CVAL_EL0, CNTV_CVAL_EL0.
    CompareValue,
    /// CNTP_TVAL_EL0, CNTV_TVAL_EL0.
    TimerValue,
}

/// A register of the CPU interface for interrupts of Group 0, trapped by ICH_HCR_EL2.TALL0 (GIC IHI 0069H 12.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GroupZero {
    /// ICC_IAR0_EL1, read-only.
    Acknowledge,
    /// ICC_EOIR0_EL1, write-only.
    End,
    /// ICC_HPPIR0_EL1, read-only.
    HighestPending,
    /// ICC_BPR0_EL1.
    BinaryPoint,
    /// ICC_AP0R<n>_EL1.
    ActivePriorities(u8),
    /// ICC_IGRPEN0_EL1.
    Enable,
}

/// A register of the CPU interface for interrupts of both groups, trapped by ICH_HCR_EL2.TC (GIC IHI 0069H 12.2) together with those
/// that always trap: ICC_DIR_EL1 and the SGI registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CommonRegister {
    /// ICC_CTLR_EL1.
    Control,
    /// ICC_PMR_EL1.
    PriorityMask,
    /// ICC_RPR_EL1, read-only.
    RunningPriority,
}

/// A register of the OS lock and its relatives, trapped by MDCR_EL2.TDOSA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OsLockRegister {
    /// OSLAR_EL1, write-only: bit 0 locks and unlocks.
    Oslar,
    /// OSLSR_EL1, read-only: see [`oslsr`].
    Oslsr,
}

/// A debug register of the vCPU's own: see [`crate::debug`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DebugRegister {
    /// MDSCR_EL1.
    Mdscr,
    /// MDCCINT_EL1.
    Mdccint,
    /// DBGCLAIMSET_EL1: reads as all tags, sets those that are written.
    ClaimSet,
    /// DBGCLAIMCLR_EL1: reads as the tags that are set, clears those that are written.
    ClaimClear,
    /// The breakpoint or watchpoint register with this number.
    Point(DebugBank, u8),
}

/// What the dispatcher does with a trapped access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Read the identification register with this index from the VM's [`id::GuestIds`].
    Identification(usize),
    /// Send a software-generated interrupt: the value of the register goes to the GIC model.
    SendSgi(SgiRegister),
    /// ICC_SRE_EL1: reads as [`ICC_SRE_VALUE`], writes are ignored.
    IccSre,
    /// ICC_DIR_EL1: deactivate the interrupt in the register.
    IccDir,
    /// A register of the CPU interface for Group 0.
    GroupZero(GroupZero),
    /// A register of the CPU interface for both groups.
    Common(CommonRegister),
    /// A register of a timer.
    Timer(Timer, TimerRegister),
    /// CNTPCT_EL0, CNTVCT_EL0, CNTPCTSS_EL0 or CNTVCTSS_EL0: the count, which is one, as far as the counter that traps is
    /// concerned.
    Count,
    /// The OS lock.
    OsLock(OsLockRegister),
    /// A debug register.
    Debug(DebugRegister),
    /// MDCCSR_EL0, the status of the debug channel: reads as zero. An action of its own because guests call the
    /// hypervisor with it.
    DebugChannelStatus,
    /// Reads as zero, writes are ignored.
    ReadZeroWriteIgnored,
    /// A system instruction that is to do nothing.
    NoOperation,
    /// The register does not exist for the guest: inject an undefined-instruction exception.
    Undefined,
}

/// What ICC_SRE_EL1 reads as: system registers enabled (SRE), no bypass (DFB, DIB). Writes are ignored.
pub const ICC_SRE_VALUE: u64 = 0b111;

/// What OSLSR_EL1 reads as while the lock is `locked`: OSLM is 0b10 (bits 3 and 0), OSLK is bit 1.
#[must_use]
pub const fn oslsr(locked: bool) -> u64 {
    1 << 3 | (locked as u64) << 1
}

/// Says how an access to `encoding` is emulated.
#[must_use]
pub const fn classify(encoding: SysregEncoding, direction: Direction) -> Action {
    if let Some(index) = id::index(encoding) {
        return match direction {
            Direction::Read => Action::Identification(index),
            Direction::Write => Action::Undefined,
        };
    }
    match encoding.op0() {
        1 => classify_instruction(encoding, direction),
        2 => classify_debug(encoding, direction),
        3 => classify_register(encoding, direction),
        _ => Action::Undefined,
    }
}

/// `action` for one direction, undefined for the other.
const fn only(wanted: Direction, direction: Direction, action: Action) -> Action {
    match (wanted, direction) {
        (Direction::Read, Direction::Read) | (Direction::Write, Direction::Write) => action,
        _ => Action::Undefined,
    }
}

/// System instructions, op0 = 1.
const fn classify_instruction(encoding: SysregEncoding, direction: Direction) -> Action {
    match (encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2()) {
        // DC ISW, CSW and CISW, trapped by HCR_EL2.TSW. By set and way a guest could only clean the cache of the CPU it
        // happens to run on, while its data is anywhere; KVM cleans all of its memory instead. Guests start with clean
        // memory and use maintenance by address, so nothing is lost by doing nothing.
        (0, 7, 6 | 10 | 14, 2) => only(Direction::Write, direction, Action::NoOperation),
        _ => Action::Undefined,
    }
}

/// Debug and trace registers, op0 = 2.
const fn classify_debug(encoding: SysregEncoding, direction: Direction) -> Action {
    use Direction::{Read, Write};
    match (encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2()) {
        // MDRAR_EL1: no memory-mapped debug registers.
        (0, 1, 0, 0) => only(Read, direction, Action::ReadZeroWriteIgnored),
        (0, 1, 0, 4) => only(Write, direction, Action::OsLock(OsLockRegister::Oslar)),
        (0, 1, 1, 4) => only(Read, direction, Action::OsLock(OsLockRegister::Oslsr)),
        // OSDLR_EL1, without a double lock as ID_AA64DFR0_EL1 says, and DBGPRCR_EL1, whose power requests mean nothing.
        (0, 1, 3 | 4, 4) => Action::ReadZeroWriteIgnored,
        (0, 0, 2, 2) => Action::Debug(DebugRegister::Mdscr),
        (0, 0, 2, 0) => Action::Debug(DebugRegister::Mdccint),
        // OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1: no external debugger.
        (0, 0, 0 | 3 | 6, 2) => Action::ReadZeroWriteIgnored,
        (0, 0, number, 4) => Action::Debug(DebugRegister::Point(DebugBank::BreakpointValue, number)),
        (0, 0, number, 5) => Action::Debug(DebugRegister::Point(DebugBank::BreakpointControl, number)),
        (0, 0, number, 6) => Action::Debug(DebugRegister::Point(DebugBank::WatchpointValue, number)),
        (0, 0, number, 7) => Action::Debug(DebugRegister::Point(DebugBank::WatchpointControl, number)),
        (0, 7, 8, 6) => Action::Debug(DebugRegister::ClaimSet),
        (0, 7, 9, 6) => Action::Debug(DebugRegister::ClaimClear),
        // DBGAUTHSTATUS_EL1.
        (0, 7, 14, 6) => only(Read, direction, Action::ReadZeroWriteIgnored),
        (3, 0, 1, 0) => only(Read, direction, Action::DebugChannelStatus),
        // DBGDTR_EL0, and DBGDTRRX_EL0 with DBGDTRTX_EL0: the channel is empty and swallows what is sent.
        (3, 0, 4 | 5, 0) => Action::ReadZeroWriteIgnored,
        _ => Action::Undefined,
    }
}

/// The other registers, op0 = 3.
const fn classify_register(encoding: SysregEncoding, direction: Direction) -> Action {
    use Direction::{Read, Write};
    match (encoding.op1(), encoding.crn(), encoding.crm(), encoding.op2()) {
        // ACTLR_EL1, trapped by HCR_EL2.TACR.
        (0, 1, 0, 1) => Action::ReadZeroWriteIgnored,
        // REVIDR_EL1 and AIDR_EL1, trapped only where TID1 is needed to hide SMIDR_EL1: no erratum is marked as fixed.
        (0, 0, 0, 6) | (1, 0, 0, 7) => only(Read, direction, Action::ReadZeroWriteIgnored),
        (0, 4, 6, 0) => Action::Common(CommonRegister::PriorityMask),
        (0, 12, 11, 3) => only(Read, direction, Action::Common(CommonRegister::RunningPriority)),
        (0, 12, 12, 4) => Action::Common(CommonRegister::Control),
        (0, 12, 8, 0) => only(Read, direction, Action::GroupZero(GroupZero::Acknowledge)),
        (0, 12, 8, 1) => only(Write, direction, Action::GroupZero(GroupZero::End)),
        (0, 12, 8, 2) => only(Read, direction, Action::GroupZero(GroupZero::HighestPending)),
        (0, 12, 8, 3) => Action::GroupZero(GroupZero::BinaryPoint),
        (0, 12, 8, number @ 4..=7) => Action::GroupZero(GroupZero::ActivePriorities(number - 4)),
        (0, 12, 12, 6) => Action::GroupZero(GroupZero::Enable),
        (0, 12, 11, 1) => only(Write, direction, Action::IccDir),
        (0, 12, 11, 5) => only(Write, direction, Action::SendSgi(SgiRegister::Sgi1r)),
        (0, 12, 11, 6) => only(Write, direction, Action::SendSgi(SgiRegister::Asgi1r)),
        (0, 12, 11, 7) => only(Write, direction, Action::SendSgi(SgiRegister::Sgi0r)),
        (0, 12, 12, 5) => Action::IccSre,
        (3, 14, 0, 1 | 2 | 5 | 6) => only(Read, direction, Action::Count),
        (3, 14, 2, 0) => Action::Timer(Timer::Physical, TimerRegister::TimerValue),
        (3, 14, 2, 1) => Action::Timer(Timer::Physical, TimerRegister::Control),
        (3, 14, 2, 2) => Action::Timer(Timer::Physical, TimerRegister::CompareValue),
        (3, 14, 3, 0) => Action::Timer(Timer::Virtual, TimerRegister::TimerValue),
        (3, 14, 3, 1) => Action::Timer(Timer::Virtual, TimerRegister::Control),
        (3, 14, 3, 2) => Action::Timer(Timer::Virtual, TimerRegister::CompareValue),
        _ => Action::Undefined,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Action, CommonRegister, DebugRegister, GroupZero, OsLockRegister, SgiRegister, Timer, TimerRegister, classify,
    };
    use crate::debug::DebugBank;
    use crate::encoding::SysregEncoding;
    use units::Direction::{Read, Write};

    const fn name(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> SysregEncoding {
        SysregEncoding::new(op0, op1, crn, crm, op2)
    }

    #[test]
    fn identification_registers_can_only_be_read() {
        assert_eq!(classify(name(3, 0, 0, 4, 0), Read), Action::Identification(24));
        assert_eq!(classify(name(3, 0, 0, 4, 0), Write), Action::Undefined);
        assert_eq!(classify(name(3, 0, 0, 7, 7), Read), Action::Identification(55));
    }

    /// DC ISW, CSW and CISW do nothing; no other system instruction that traps exists for a guest.
    #[test]
    fn maintenance_by_set_and_way_does_nothing() {
        for crm in [6, 10, 14] {
            assert_eq!(classify(name(1, 0, 7, crm, 2), Write), Action::NoOperation);
            assert_eq!(classify(name(1, 0, 7, crm, 2), Read), Action::Undefined);
            assert_eq!(classify(name(1, 0, 7, crm, 1), Write), Action::Undefined);
        }
        assert_eq!(classify(name(1, 0, 7, 11, 2), Write), Action::Undefined);
    }

    #[test]
    fn interrupts_and_timers() {
        assert_eq!(classify(name(3, 0, 12, 11, 5), Write), Action::SendSgi(SgiRegister::Sgi1r));
        assert_eq!(classify(name(3, 0, 12, 11, 5), Read), Action::Undefined);
        assert_eq!(classify(name(3, 0, 12, 11, 6), Write), Action::SendSgi(SgiRegister::Asgi1r));
        assert_eq!(classify(name(3, 0, 12, 11, 7), Write), Action::SendSgi(SgiRegister::Sgi0r));
        assert_eq!(classify(name(3, 0, 12, 12, 5), Read), Action::IccSre);
        assert_eq!(classify(name(3, 0, 12, 11, 1), Write), Action::IccDir);
        let group_zero = |crm, op2, direction| classify(name(3, 0, 12, crm, op2), direction);
        let common = |crn, crm, op2, direction| classify(name(3, 0, crn, crm, op2), direction);
        for direction in [Read, Write] {
            assert_eq!(common(4, 6, 0, direction), Action::Common(CommonRegister::PriorityMask));
            assert_eq!(common(12, 12, 4, direction), Action::Common(CommonRegister::Control));
        }
        assert_eq!(common(12, 11, 3, Read), Action::Common(CommonRegister::RunningPriority));
        assert_eq!(common(12, 11, 3, Write), Action::Undefined);
        assert_eq!(group_zero(8, 0, Read), Action::GroupZero(GroupZero::Acknowledge));
        assert_eq!(group_zero(8, 0, Write), Action::Undefined);
        assert_eq!(group_zero(8, 1, Write), Action::GroupZero(GroupZero::End));
        assert_eq!(group_zero(8, 1, Read), Action::Undefined);
        assert_eq!(group_zero(8, 2, Read), Action::GroupZero(GroupZero::HighestPending));
        assert_eq!(group_zero(8, 3, Write), Action::GroupZero(GroupZero::BinaryPoint));
        assert_eq!(group_zero(8, 7, Write), Action::GroupZero(GroupZero::ActivePriorities(3)));
        assert_eq!(group_zero(12, 6, Read), Action::GroupZero(GroupZero::Enable));
        for (crm, timer) in [(2, Timer::Physical), (3, Timer::Virtual)] {
            let registers = [TimerRegister::TimerValue, TimerRegister::Control, TimerRegister::CompareValue];
            for (op2, register) in (0..).zip(registers) {
                assert_eq!(classify(name(3, 3, 14, crm, op2), Read), Action::Timer(timer, register));
                assert_eq!(classify(name(3, 3, 14, crm, op2), Write), Action::Timer(timer, register));
            }
        }
        for op2 in [1, 2, 5, 6] {
            assert_eq!(classify(name(3, 3, 14, 0, op2), Read), Action::Count);
            assert_eq!(classify(name(3, 3, 14, 0, op2), Write), Action::Undefined);
        }
    }

    #[test]
    fn the_debug_block() {
        assert_eq!(classify(name(2, 0, 1, 0, 4), Write), Action::OsLock(OsLockRegister::Oslar));
        assert_eq!(classify(name(2, 0, 1, 1, 4), Read), Action::OsLock(OsLockRegister::Oslsr));
        assert_eq!(classify(name(2, 0, 1, 3, 4), Write), Action::ReadZeroWriteIgnored);
        assert_eq!(classify(name(2, 3, 0, 1, 0), Read), Action::DebugChannelStatus);
        assert_eq!(classify(name(2, 0, 0, 2, 2), Write), Action::Debug(DebugRegister::Mdscr));
        assert_eq!(
            classify(name(2, 0, 0, 15, 5), Write),
            Action::Debug(DebugRegister::Point(DebugBank::BreakpointControl, 15))
        );
        assert_eq!(super::oslsr(true), 0b1010);
    }

    #[test]
    fn what_is_hidden_is_undefined() {
        let hidden = [
            name(3, 3, 9, 12, 0), // PMCR_EL0
            name(3, 3, 14, 8, 0), // PMEVCNTR0_EL0
            name(3, 0, 9, 9, 0),  // PMSCR_EL1
            name(3, 0, 9, 11, 0), // TRBLIMITR_EL1
            name(2, 1, 9, 0, 0),  // BRBCR_EL1
            name(2, 1, 0, 1, 0),  // TRCPRGCTLR
            name(3, 3, 13, 2, 0), // AMCR_EL0
            name(3, 0, 10, 4, 7), // LORID_EL1
            name(3, 0, 5, 3, 0),  // ERRIDR_EL1
            name(3, 0, 10, 4, 4), // MPAMIDR_EL1
            name(3, 0, 1, 2, 0),  // ZCR_EL1
            name(3, 0, 1, 0, 5),  // RGSR_EL1
            name(3, 1, 0, 0, 4),  // GMID_EL1
            name(3, 1, 0, 0, 6),  // SMIDR_EL1
            name(3, 3, 13, 0, 5), // TPIDR2_EL0
            name(3, 3, 13, 0, 7), // SCXTNUM_EL0
            name(3, 0, 2, 0, 3),  // TCR2_EL1
            name(3, 0, 15, 2, 0), // IMPLEMENTATION DEFINED
            name(3, 1, 11, 0, 2), // IMPLEMENTATION DEFINED: L2CTLR_EL1 of some cores
            name(1, 0, 7, 6, 4),  // DC IGSW
            name(1, 0, 7, 9, 2),  // AT S1E1A
        ];
        for encoding in hidden {
            assert_eq!(classify(encoding, Read), Action::Undefined, "{encoding}");
            assert_eq!(classify(encoding, Write), Action::Undefined, "{encoding}");
        }
    }

    #[test]
    fn every_encoding_has_an_answer_and_few_are_answered() {
        let answered = (0..=u16::MAX).filter(|&raw| classify(SysregEncoding(raw), Read) != Action::Undefined).count();
        // 56 identification registers, 64 breakpoints and watchpoints, and the ones with a line above.
        assert_eq!(answered, 56 + 64 + 40);
    }
}
