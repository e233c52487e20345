//! Why a guest came back to EL2: the syndrome registers as a type.
//!
//! ESR_EL2 says in its exception class (bits 31:26) what happened and in its instruction specific syndrome (bits 24:0)
//! how; FAR_EL2 and HPFAR_EL2 hold the address of an abort. DDI 0487 D24.2.40 (ESR_EL2) has the tables. [`decode`] is
//! one match on the class, so it costs a jump and a few shifts; paths that cannot afford even that look at the class
//! themselves with [`class_of`] and the constants of [`class`].
//!
//! Nothing here decides anything. In particular a class that a guest should not be able to cause still has its name,
//! and one without a name is [`Exit::Unknown`]: the dispatcher decides what happens to the guest.

mod abort;

pub use abort::{DataAbort, Fault, FaultKind, InstructionAbort, LookupLevel, Wanted};

use crate::encoding::SysregEncoding;
use units::{Direction, Va};

/// Exception classes (ESR_ELx bits 31:26) by their names in DDI 0487.
pub mod class {
    /// No other class fits; an UNDEFINED instruction.
    pub const UNKNOWN: u8 = 0x00;
    /// WFI, WFE, WFIT or WFET.
    pub const WFX: u8 = 0x01;
    /// AArch32 MCR or MRC to coprocessor 15.
    pub const CP15_32: u8 = 0x03;
    /// AArch32 MCRR or MRRC to coprocessor 15.
    pub const CP15_64: u8 = 0x04;
    /// AArch32 MCR or MRC to coprocessor 14.
    pub const CP14_32: u8 = 0x05;
    /// AArch32 LDC or STC to coprocessor 14.
    pub const CP14_LDC_STC: u8 = 0x06;
    /// Floating point or Advanced SIMD while CPTR_EL2.TFP is set.
    pub const FLOATING_POINT: u8 = 0x07;
    /// AArch32 VMRS to an identification register.
    pub const VMRS: u8 = 0x08;
    /// Pointer authentication instruction or key while HCR_EL2.API or APK is clear.
    pub const POINTER_AUTHENTICATION: u8 = 0x09;
    /// LD64B, ST64B and relatives.
    pub const LS64: u8 = 0x0a;
    /// AArch32 MCRR or MRRC to coprocessor 14.
    pub const CP14_64: u8 = 0x0c;
    /// Branch target exception.
    pub const BRANCH_TARGET: u8 = 0x0d;
    /// Illegal execution state.
    pub const ILLEGAL_STATE: u8 = 0x0e;
    /// AArch32 SVC.
    pub const SVC32: u8 = 0x11;
    /// AArch32 HVC.
    pub const HVC32: u8 = 0x12;
    /// AArch32 SMC.
    pub const SMC32: u8 = 0x13;
    /// 128-bit MSRR, MRRS or SYSP.
    pub const SYSTEM_REGISTER_128: u8 = 0x14;
    /// SVC.
    pub const SVC64: u8 = 0x15;
    /// HVC.
    pub const HVC64: u8 = 0x16;
    /// SMC.
    pub const SMC64: u8 = 0x17;
    /// MSR, MRS or SYS.
    pub const SYSTEM_REGISTER: u8 = 0x18;
    /// SVE while CPTR_EL2.TZ is set.
    pub const SVE: u8 = 0x19;
    /// ERET while HCR_EL2.NV or the fine-grained trap is set.
    pub const ERET: u8 = 0x1a;
    /// Pointer authentication failed.
    pub const POINTER_AUTHENTICATION_FAILURE: u8 = 0x1c;
    /// SME while CPTR_EL2.TSM is set.
    pub const SME: u8 = 0x1d;
    /// Instruction abort from a lower exception level.
    pub const INSTRUCTION_ABORT_LOWER: u8 = 0x20;
    /// Instruction abort without a change of exception level.
    pub const INSTRUCTION_ABORT_CURRENT: u8 = 0x21;
    /// Misaligned PC.
    pub const PC_ALIGNMENT: u8 = 0x22;
    /// Data abort from a lower exception level.
    pub const DATA_ABORT_LOWER: u8 = 0x24;
    /// Data abort without a change of exception level.
    pub const DATA_ABORT_CURRENT: u8 = 0x25;
    /// Misaligned SP.
    pub const SP_ALIGNMENT: u8 = 0x26;
    /// Memory copy or memory set instruction.
    pub const MEMORY_OPERATION: u8 = 0x27;
    /// AArch32 floating-point exception.
    pub const FLOATING_POINT_EXCEPTION_32: u8 = 0x28;
    /// Floating-point exception.
    pub const FLOATING_POINT_EXCEPTION: u8 = 0x2c;
    /// Guarded control stack exception.
    pub const GUARDED_STACK: u8 = 0x2d;
    /// SError.
    pub const SERROR: u8 = 0x2f;
    /// Breakpoint from a lower exception level.
    pub const BREAKPOINT_LOWER: u8 = 0x30;
    /// Breakpoint without a change of exception level.
    pub const BREAKPOINT_CURRENT: u8 = 0x31;
    /// Software step from a lower exception level.
    pub const STEP_LOWER: u8 = 0x32;
    /// Software step without a change of exception level.
    pub const STEP_CURRENT: u8 = 0x33;
    /// Watchpoint from a lower exception level.
    pub const WATCHPOINT_LOWER: u8 = 0x34;
    /// Watchpoint without a change of exception level.
    pub const WATCHPOINT_CURRENT: u8 = 0x35;
    /// AArch32 BKPT.
    pub const BKPT32: u8 = 0x38;
    /// AArch32 vector catch.
    pub const VECTOR_CATCH_32: u8 = 0x3a;
    /// BRK.
    pub const BRK64: u8 = 0x3c;
}

/// ESR_ELx.IL: the trapped instruction is 32 bits wide.
pub const ESR_IL: u64 = 1 << 25;

/// The exception class of a syndrome, one of [`class`].
#[must_use]
#[inline]
pub const fn class_of(esr: u64) -> u8 {
    (esr >> 26) as u8 & 0x3f
}

/// How many bytes the trapped instruction is long: what to add to PC to step over it (2 only in AArch32).
#[must_use]
#[inline]
pub const fn instruction_bytes(esr: u64) -> u64 {
    if esr & ESR_IL != 0 { 4 } else { 2 }
}

/// Which of the four waiting instructions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WaitKind {
    /// Wait for interrupt.
    Wfi,
    /// Wait for event.
    Wfe,
    /// Wait for interrupt with timeout: until CNTVCT_EL0 reaches the value in the register `rt`.
    Wfit {
        /// Number of the register, 31 for XZR; `None` if the syndrome does not say.
        rt: Option<u8>,
    },
    /// Wait for event with timeout, likewise.
    Wfet {
        /// Number of the register, 31 for XZR; `None` if the syndrome does not say.
        rt: Option<u8>,
    },
}

/// A trapped MSR, MRS or SYS instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SystemRegister {
    /// Which register or instruction.
    pub encoding: SysregEncoding,
    /// MRS (and SYSL) reads, MSR and SYS write.
    pub direction: Direction,
    /// Number of the general-purpose register, 31 for XZR.
    pub rt: u8,
}

/// Why the guest came back, for a synchronous exception.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    /// A waiting instruction, trapped by HCR_EL2.TWI or TWE. PC still points at it.
    Wfx(WaitKind),
    /// HVC. PC points behind it already.
    Hvc {
        /// The number in the instruction.
        immediate: u16,
    },
    /// SMC, trapped by HCR_EL2.TSC. PC still points at it.
    Smc {
        /// The number in the instruction.
        immediate: u16,
    },
    /// MSR, MRS or SYS. PC still points at it.
    SystemRegister(SystemRegister),
    /// A 128-bit system register access.
    SystemRegister128,
    /// Floating point or Advanced SIMD while it is switched off for the guest: load its registers and go on.
    FloatingPoint,
    /// A data access that stage 2 refused, or an external abort.
    DataAbort(DataAbort),
    /// An instruction fetch that stage 2 refused, or an external abort.
    InstructionAbort(InstructionAbort),
    /// Pointer authentication while it is switched off for the guest.
    PointerAuthentication,
    /// SVE while it is switched off for the guest.
    Sve,
    /// SME while it is switched off for the guest.
    Sme,
    /// A 64-byte load or store while it is switched off for the guest.
    Ls64,
    /// ERET while it is trapped.
    Eret,
    /// BRK, while debug exceptions are routed to EL2. PC still points at it.
    Brk {
        /// The number in the instruction.
        immediate: u16,
    },
    /// A hardware breakpoint, while debug exceptions are routed to EL2.
    Breakpoint,
    /// A software step, while debug exceptions are routed to EL2.
    Step,
    /// A watchpoint, while debug exceptions are routed to EL2.
    Watchpoint {
        /// An address in the watched range.
        far: Va,
        /// Which way the access moved data.
        direction: Direction,
    },
    /// PSTATE.IL was set.
    IllegalState,
    /// PC was not a multiple of four.
    PcAlignment {
        /// The misaligned PC.
        far: Va,
    },
    /// SP was not a multiple of sixteen.
    SpAlignment,
    /// A trap from AArch32 state at EL0; guests are not offered it, but cannot be kept from entering it either.
    Aarch32 {
        /// The exception class.
        class: u8,
    },
    /// Anything else.
    Unknown {
        /// The exception class.
        class: u8,
    },
}

/// Says what the syndrome registers ESR_EL2, FAR_EL2 and HPFAR_EL2 mean.
#[must_use]
#[inline(always)]
pub const fn decode(esr: u64, far: u64, hpfar: u64) -> Exit {
    match class_of(esr) {
        class::WFX => Exit::Wfx(decode_wait(esr)),
        class::HVC64 => Exit::Hvc { immediate: esr as u16 },
        class::SMC64 => Exit::Smc { immediate: esr as u16 },
        class::SYSTEM_REGISTER => Exit::SystemRegister(decode_system_register(esr)),
        class::DATA_ABORT_LOWER => Exit::DataAbort(DataAbort::decode(esr, far, hpfar)),
        class::INSTRUCTION_ABORT_LOWER => Exit::InstructionAbort(InstructionAbort::decode(esr, far, hpfar)),
        class::FLOATING_POINT => Exit::FloatingPoint,
        class::POINTER_AUTHENTICATION => Exit::PointerAuthentication,
        class::SVE => Exit::Sve,
        class::SME => Exit::Sme,
        class::LS64 => Exit::Ls64,
        class::ERET => Exit::Eret,
        class::SYSTEM_REGISTER_128 => Exit::SystemRegister128,
        class::BRK64 => Exit::Brk { immediate: esr as u16 },
        class::BREAKPOINT_LOWER => Exit::Breakpoint,
        class::STEP_LOWER => Exit::Step,
        class::WATCHPOINT_LOWER => Exit::Watchpoint { far: Va(far), direction: abort::direction(esr) },
        class::ILLEGAL_STATE => Exit::IllegalState,
        class::PC_ALIGNMENT => Exit::PcAlignment { far: Va(far) },
        class::SP_ALIGNMENT => Exit::SpAlignment,
        class @ (class::CP15_32
        | class::CP15_64
        | class::CP14_32
        | class::CP14_LDC_STC
        | class::VMRS
        | class::CP14_64
        | class::SVC32
        | class::HVC32
        | class::SMC32
        | class::FLOATING_POINT_EXCEPTION_32
        | class::BKPT32
        | class::VECTOR_CATCH_32) => Exit::Aarch32 { class },
        class => Exit::Unknown { class },
    }
}

/// Which waiting instruction: TI in bits 1:0; RV (bit 2) says whether RN (bits 9:5) holds the register's number.
const fn decode_wait(esr: u64) -> WaitKind {
    let rt = if esr & 1 << 2 != 0 { Some((esr >> 5) as u8 & 31) } else { None };
    match esr & 3 {
        0 => WaitKind::Wfi,
        1 => WaitKind::Wfe,
        2 => WaitKind::Wfit { rt },
        _ => WaitKind::Wfet { rt },
    }
}

/// The five numbers, Rt in bits 9:5, and the direction in bit 0 (1 for a read).
const fn decode_system_register(esr: u64) -> SystemRegister {
    SystemRegister {
        encoding: SysregEncoding::from_syndrome(esr),
        direction: if esr & 1 != 0 { Direction::Read } else { Direction::Write },
        rt: (esr >> 5) as u8 & 31,
    }
}

#[cfg(test)]
mod tests {
    use super::{Exit, SystemRegister, WaitKind, class, decode, instruction_bytes};
    use crate::encoding::SysregEncoding;
    use proptest::prelude::*;
    use units::{Direction, Va};

    #[test]
    fn waiting_instructions_are_told_apart() {
        assert_eq!(decode(0x07e0_0000, 0, 0), Exit::Wfx(WaitKind::Wfi));
        assert_eq!(decode(0x07e0_0001, 0, 0), Exit::Wfx(WaitKind::Wfe));
        assert_eq!(decode(0x07e0_0002, 0, 0), Exit::Wfx(WaitKind::Wfit { rt: None }));
        assert_eq!(decode(0x07e0_00a7, 0, 0), Exit::Wfx(WaitKind::Wfet { rt: Some(5) }));
    }

    #[test]
    fn calls_carry_their_number() {
        assert_eq!(decode(0x5a00_0086, 0, 0), Exit::Hvc { immediate: 0x86 });
        assert_eq!(decode(0x5e00_ffff, 0, 0), Exit::Smc { immediate: 0xffff });
        assert_eq!(decode(0xf200_0086, 0, 0), Exit::Brk { immediate: 0x86 });
    }

    #[test]
    fn system_register_accesses_as_measured() {
        let read = SystemRegister { encoding: SysregEncoding::new(2, 3, 0, 1, 0), direction: Direction::Read, rt: 31 };
        assert_eq!(decode(0x6220_c3e3, 0, 0), Exit::SystemRegister(read));
        let write = SystemRegister { encoding: SysregEncoding::new(2, 0, 0, 2, 2), direction: Direction::Write, rt: 1 };
        assert_eq!(decode(0x6224_0024, 0, 0), Exit::SystemRegister(write));
    }

    #[test]
    fn a_watchpoint_says_which_access_hit_it() {
        let esr = u64::from(class::WATCHPOINT_LOWER) << 26 | 1 << 6 | 0x22;
        assert_eq!(decode(esr, 0x1234, 0), Exit::Watchpoint { far: Va(0x1234), direction: Direction::Write });
    }

    #[test]
    fn only_aarch32_has_short_instructions() {
        assert_eq!(instruction_bytes(0x07e0_0000), 4);
        assert_eq!(instruction_bytes(0x0400_0000), 2);
    }

    #[test]
    fn classes_that_a_lower_level_cannot_cause_are_unknown() {
        for class in [class::DATA_ABORT_CURRENT, class::INSTRUCTION_ABORT_CURRENT, class::SERROR, 0x3f] {
            assert_eq!(decode(u64::from(class) << 26, 0, 0), Exit::Unknown { class });
        }
    }

    proptest! {
        #[test]
        fn every_syndrome_decodes(esr: u64, far: u64, hpfar: u64) {
            let _ = decode(esr, far, hpfar);
        }
    }
}
