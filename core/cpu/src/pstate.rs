//! The processor state as SPSR_EL2 and SPSR_EL1 hold it (DDI 0487 C5.2.19, "exception taken from AArch64 state").

use units::ByteOrder;

/// SCTLR_EL1.E0E: the data of EL0 is big-endian.
pub const SCTLR_E0E: u64 = 1 << 24;
/// SCTLR_EL1.EE: the data of EL1 is big-endian, and so are the tables of both.
pub const SCTLR_EE: u64 = 1 << 25;

/// M\[3:0\]: EL0.
pub const EL0T: u64 = 0b0000;
/// M\[3:0\]: EL1 on SP_EL0.
pub const EL1T: u64 = 0b0100;
/// M\[3:0\]: EL1 on SP_EL1.
pub const EL1H: u64 = 0b0101;
/// M\[3:0\]: EL2 on SP_EL2.
pub const EL2H: u64 = 0b1001;
/// All of M\[4:0\].
pub const MODE_MASK: u64 = 0x1f;
/// M\[4\], nRW: AArch32 state.
pub const AARCH32: u64 = 1 << 4;
/// FIQs are masked.
pub const F: u64 = 1 << 6;
/// IRQs are masked.
pub const I: u64 = 1 << 7;
/// SErrors are masked.
pub const A: u64 = 1 << 8;
/// Debug exceptions are masked.
pub const D: u64 = 1 << 9;
/// All four masks.
pub const DAIF: u64 = D | A | I | F;
/// Branch target type.
pub const BTYPE: u64 = 3 << 10;
/// Speculative store bypass safe.
pub const SSBS: u64 = 1 << 12;
/// All interrupts masked (FEAT_NMI).
pub const ALLINT: u64 = 1 << 13;
/// Illegal execution state.
pub const IL: u64 = 1 << 20;
/// Software step.
pub const SS: u64 = 1 << 21;
/// Privileged access never.
pub const PAN: u64 = 1 << 22;
/// User access override.
pub const UAO: u64 = 1 << 23;
/// Data independent timing.
pub const DIT: u64 = 1 << 24;
/// Tag check override.
pub const TCO: u64 = 1 << 25;
/// The condition flags.
pub const NZCV: u64 = 0xf << 28;

/// Who was executing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// EL0, AArch64.
    User,
    /// EL0, AArch32.
    User32,
    /// EL1 on SP_EL0.
    KernelOnSp0,
    /// EL1 on SP_EL1.
    Kernel,
    /// Not a mode that a guest of ours can run in.
    Other,
}

/// Who was executing, from a saved state.
#[must_use]
#[inline]
pub const fn mode(pstate: u64) -> Mode {
    match pstate & MODE_MASK {
        EL0T => Mode::User,
        EL1T => Mode::KernelOnSp0,
        EL1H => Mode::Kernel,
        0x10 => Mode::User32,
        _ => Mode::Other,
    }
}

/// Whether the saved state of a guest is one of EL1, which is always AArch64. One bit tells: guests have no other states
/// than [`Mode`] names.
#[must_use]
#[inline(always)]
pub const fn is_kernel(pstate: u64) -> bool {
    pstate & EL1T != 0
}

/// Whether the saved state is one of EL0.
#[must_use]
#[inline]
pub const fn is_user(pstate: u64) -> bool {
    matches!(mode(pstate), Mode::User | Mode::User32)
}

/// Whether a guest can be in the saved state: EL1 or EL0 in AArch64 state.
#[must_use]
pub const fn is_guests(pstate: u64) -> bool {
    matches!(mode(pstate), Mode::User | Mode::KernelOnSp0 | Mode::Kernel)
}

/// In which order the data accesses of this state have their bytes: SCTLR_EL1.E0E says it for EL0 and EE for EL1, also of
/// the unprivileged loads and stores (DDI 0487, function BigEndian). Instructions are little-endian always.
#[must_use]
#[inline(always)]
pub const fn byte_order(pstate: u64, sctlr_el1: u64) -> ByteOrder {
    let bit = if is_user(pstate) { SCTLR_E0E } else { SCTLR_EE };
    if sctlr_el1 & bit == 0 { ByteOrder::Little } else { ByteOrder::Big }
}

/// The state after an instruction was emulated: as after executing it, BTYPE is zero, and so is SS, which makes a
/// guest that single-steps itself see the step. PC has to be advanced as well.
#[must_use]
#[inline]
pub const fn after_instruction(pstate: u64) -> u64 {
    if pstate & AARCH32 != 0 { pstate & !SS } else { after_a64_instruction(pstate) }
}

/// [`after_instruction`] for a state that is known to be AArch64.
#[must_use]
#[inline(always)]
pub const fn after_a64_instruction(pstate: u64) -> u64 {
    pstate & !(SS | BTYPE)
}

#[cfg(test)]
mod tests {
    use super::{
        AARCH32, BTYPE, DAIF, EL0T, EL1H, EL1T, Mode, NZCV, SS, after_instruction, byte_order, is_kernel, is_user, mode,
    };
    use super::{SCTLR_E0E, SCTLR_EE};
    use units::ByteOrder::{Big, Little};

    #[test]
    fn each_level_has_its_byte_order() {
        for (sctlr, user, kernel) in
            [(0, Little, Little), (SCTLR_E0E, Big, Little), (SCTLR_EE, Little, Big), (SCTLR_E0E | SCTLR_EE, Big, Big)]
        {
            assert_eq!(byte_order(EL0T | NZCV, sctlr), user);
            assert_eq!(byte_order(EL1H | NZCV, sctlr), kernel);
            assert_eq!(byte_order(EL1T, sctlr), kernel);
        }
    }

    #[test]
    fn modes() {
        assert_eq!(mode(NZCV | DAIF | EL1H), Mode::Kernel);
        assert_eq!(mode(0x1_0000_0004), Mode::KernelOnSp0);
        assert!(is_user(0) && is_user(0x10) && !is_user(EL1H));
        assert_eq!(mode(0x13), Mode::Other);
        assert_eq!(mode(0x9), Mode::Other);
        assert!(is_kernel(NZCV | EL1H) && is_kernel(EL1T) && !is_kernel(NZCV | EL0T) && !is_kernel(AARCH32));
    }

    #[test]
    fn an_emulated_instruction_ends_its_step() {
        assert_eq!(after_instruction(NZCV | SS | BTYPE | EL1H), NZCV | EL1H);
        // In AArch32 bits 11:10 belong to the IT state.
        assert_eq!(after_instruction(AARCH32 | SS | BTYPE), AARCH32 | BTYPE);
    }
}
