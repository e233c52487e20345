//! A host that cannot trap ICC_DIR_EL1 by itself.
//!
//! A write of ICC_DIR_EL1 deactivates an interrupt wherever it is active: in no list register, or in another vCPU's. So it has
//! to trap. Where ICH_VTR_EL2.TDS is zero, as on many CPUs of Armv8.0, there is no ICH_HCR_EL2.TDIR, and TC is set instead. It
//! traps the accesses to all registers of the CPU interface that serve both groups (GIC IHI 0069H 12.2): ICC_DIR_EL1 and the SGI
//! registers, which are exits anyway, and ICC_CTLR_EL1, ICC_PMR_EL1 and ICC_RPR_EL1. These are done here, on ICH_VMCR_EL2,
//! which the virtual CPU interface goes by. A guest writes the first two when it starts a CPU; one that masks its interrupts by
//! priority (Linux's pseudo-NMIs) pays an exit for each change there.
//!
//! It cannot be set only while a guest has EOImode one: what would tell that it sets it is TC itself.

use crate::Vgic;
use crate::list_registers::virtual_interface::{COMMON_BINARY_POINT, MASK_SHIFT, SPLIT_END};

/// What ICC_RPR_EL1 reads as while nothing runs.
const IDLE: u64 = 0xff;

/// Fields of ICC_CTLR_EL1.
mod control {
    pub(crate) const CBPR: u64 = 1 << 0;
    pub(crate) const EOIMODE: u64 = 1 << 1;
    pub(crate) const PRIORITY_BITS_SHIFT: u32 = 8;
    pub(crate) const ID_BITS_SHIFT: u32 = 11;
    pub(crate) const SEIS: u64 = 1 << 14;
    pub(crate) const A3V: u64 = 1 << 15;
}

/// Fields of ICH_VTR_EL2 that ICC_CTLR_EL1 shows.
mod virtual_type {
    pub(crate) const PRIORITY_BITS_SHIFT: u32 = 29;
    pub(crate) const ID_BITS_SHIFT: u32 = 23;
    pub(crate) const SEIS: u64 = 1 << 22;
    pub(crate) const A3V: u64 = 1 << 21;
}

/// `to`, if `from` is set in `value`.
const fn flag(value: u64, from: u64, to: u64) -> u64 {
    if value & from != 0 { to } else { 0 }
}

/// What a guest reads from ICC_CTLR_EL1. `vmcr` is ICH_VMCR_EL2, `vtr` the host's ICH_VTR_EL2.
#[must_use]
pub const fn control(vmcr: u64, vtr: u64) -> u64 {
    flag(vmcr, COMMON_BINARY_POINT, control::CBPR)
        | flag(vmcr, SPLIT_END, control::EOIMODE)
        | (vtr >> virtual_type::PRIORITY_BITS_SHIFT & 7) << control::PRIORITY_BITS_SHIFT
        | (vtr >> virtual_type::ID_BITS_SHIFT & 7) << control::ID_BITS_SHIFT
        | flag(vtr, virtual_type::SEIS, control::SEIS)
        | flag(vtr, virtual_type::A3V, control::A3V)
}

/// ICH_VMCR_EL2 after a guest has written `value` to ICC_CTLR_EL1.
#[must_use]
pub const fn with_control(vmcr: u64, value: u64) -> u64 {
    let rest = vmcr & !(COMMON_BINARY_POINT | SPLIT_END);
    rest | flag(value, control::CBPR, COMMON_BINARY_POINT) | flag(value, control::EOIMODE, SPLIT_END)
}

/// What a guest reads from ICC_PMR_EL1.
#[must_use]
pub const fn priority_mask(vmcr: u64) -> u64 {
    vmcr >> MASK_SHIFT & 0xff
}

/// ICH_VMCR_EL2 after a guest has written `value` to ICC_PMR_EL1, on a host with so many bits of a virtual priority.
#[must_use]
pub const fn with_priority_mask(vmcr: u64, value: u64, priority_bits: u8) -> u64 {
    let implemented = 0xff << (8 - priority_bits) & 0xff;
    vmcr & !(0xff << MASK_SHIFT) | (value & implemented) << MASK_SHIFT
}

impl Vgic {
    /// What a guest reads from ICC_RPR_EL1: the group priority of the most important interrupt that it has acknowledged, and whose
    /// priority it has not dropped. `active_priorities` are as in [`Self::note_running`].
    #[must_use]
    pub fn running_priority(&self, active_priorities: [u128; 2]) -> u64 {
        let highest = (active_priorities[0] | active_priorities[1]).trailing_zeros();
        if highest == u128::BITS { IDLE } else { u64::from(highest) << (8 - self.preemption_bits) }
    }
}
