//! The registers of a vCPU that starts: at power-on, after a reset, and by PSCI CPU_ON (DEN0022 6.4).
//!
//! The architecture leaves most of EL1 UNKNOWN at reset. Here every value is defined, so that a guest cannot see what
//! ran before it, and each is the harmless one: MMU and caches off, everything masked, nothing trapped.

use crate::pstate;
use units::{ByteOrder, VcpuId};

/// PSTATE (SPSR_EL2 layout): EL1 on SP_EL1, everything masked.
pub const PSTATE: u64 = pstate::DAIF | pstate::EL1H;

/// SCTLR_EL1 of a vCPU that starts little-endian: MMU, caches and alignment check off. The bits that were RES1 in Armv8.0 are set: LSMAOE
/// (29), nTLSMD (28), SPAN (23), EIS (22), TSCXT (20), EOS (11).
pub const SCTLR_EL1: u64 = 0x30d0_0800;

/// SCTLR_EL1 of a vCPU that starts in this byte order, which is that of whoever switched it on.
#[must_use]
pub const fn sctlr_el1(order: ByteOrder) -> u64 {
    match order {
        ByteOrder::Little => SCTLR_EL1,
        ByteOrder::Big => SCTLR_EL1 | pstate::SCTLR_EE,
    }
}

/// CPACR_EL1: floating point traps until the guest enables it, as after a reset.
pub const CPACR_EL1: u64 = 0;

/// MDSCR_EL1: no monitor debug, no software step, and EL0 may read the debug channel's status.
pub const MDSCR_EL1: u64 = 0;

/// CNTKCTL_EL1: EL0 has no access to counters and timers until the guest grants it.
pub const CNTKCTL_EL1: u64 = 0;

/// The value of every other EL1 and EL0 system register that the world switch saves.
pub const OTHERS: u64 = 0;

/// FPCR and FPSR.
pub const FPCR: u64 = 0;

/// What the guest reads as MPIDR_EL1: affinity 0 is the vCPU's number, bit 31 is RES1; not a uniprocessor, not
/// multithreaded.
#[must_use]
pub const fn vmpidr_el2(vcpu: VcpuId) -> u64 {
    1 << 31 | vcpu.0 as u64
}

#[cfg(test)]
mod tests {
    use super::{PSTATE, SCTLR_EL1, sctlr_el1, vmpidr_el2};
    use units::{ByteOrder, VcpuId};

    #[test]
    fn the_known_numbers() {
        assert_eq!(PSTATE, 0x3c5);
        let res1 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;
        assert_eq!(SCTLR_EL1, res1);
        assert_eq!(sctlr_el1(ByteOrder::Little), res1);
        assert_eq!(sctlr_el1(ByteOrder::Big), res1 | 1 << 25);
        assert_eq!(vmpidr_el2(VcpuId(3)), 0x8000_0003);
    }
}
