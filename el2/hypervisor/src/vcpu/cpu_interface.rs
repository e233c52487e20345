//! The CPU interface's registers where the guest's accesses to them trap, which they do on some hosts: those of Group 0 where the
//! GIC does not tell that a guest disables that group, and only while it matters (`vgic::group_zero`); those of both groups
//! where ICC_DIR_EL1 does not trap by itself (`vgic::common_registers`). The vCPU is loaded.

use cpu::sysreg::{CommonRegister, GroupZero};
use hw::state::{active_priorities, set_active_priorities};
use hw::sysreg;
use units::{IntId, VcpuSet};
use vgic::{common_registers, virtual_interface};

use crate::host;
use crate::vcpu::Vcpu;

/// ICH_VMCR_EL2.VENG0.
const ENABLE: u64 = 1;
/// ICH_VMCR_EL2.VBPR0, moved down.
const BINARY_POINT: u64 = 7;

impl Vcpu {
    /// The guest reads this register, or has written to it. Returns what it reads.
    #[cold]
    #[inline(never)]
    pub(crate) fn access_group_zero(&self, register: GroupZero, written: Option<u64>) -> u64 {
        let features = &host::get().features;
        let vmcr = sysreg::ich_vmcr_el2::read();
        let mut priorities = active_priorities(features);
        match (register, written) {
            (GroupZero::BinaryPoint, None) => return vmcr >> virtual_interface::BINARY_POINT_0_SHIFT & BINARY_POINT,
            (GroupZero::BinaryPoint, Some(value)) => {
                // The hardware itself raises it to the least that there is.
                let shift = virtual_interface::BINARY_POINT_0_SHIFT;
                sysreg::ich_vmcr_el2::write(vmcr & !(BINARY_POINT << shift) | (value & BINARY_POINT) << shift);
                return 0;
            }
            (GroupZero::ActivePriorities(word), None) => {
                return u64::from((priorities[0] >> (32 * u32::from(word & 3))) as u32);
            }
            (GroupZero::ActivePriorities(word), Some(value)) => {
                let shift = 32 * u32::from(word & 3);
                priorities[0] = priorities[0] & !(u128::from(u32::MAX) << shift) | u128::from(value as u32) << shift;
                set_active_priorities(features, priorities);
                return 0;
            }
            (GroupZero::Enable, None) => return vmcr & ENABLE,
            // The sync below looks at it, and the flush chooses by it.
            (GroupZero::Enable, Some(value)) => sysreg::ich_vmcr_el2::write(vmcr & !ENABLE | value & ENABLE),
            (GroupZero::Acknowledge | GroupZero::HighestPending | GroupZero::End, _) => {}
        }
        let mut value = 0;
        self.with_gic(|gic| {
            let mut concerned = VcpuSet::EMPTY;
            match register {
                GroupZero::Acknowledge => value = gic.acknowledge_group_0(self.id, vmcr, &mut priorities).into(),
                GroupZero::HighestPending => value = gic.highest_pending_in_group_0(self.id, vmcr).into(),
                GroupZero::End => {
                    let interrupt = IntId(written.unwrap_or(0) as u32 & 0xff_ffff);
                    concerned = gic.end_group_0(self.id, interrupt, vmcr, &mut priorities);
                }
                GroupZero::BinaryPoint | GroupZero::ActivePriorities(_) | GroupZero::Enable => {}
            }
            set_active_priorities(features, priorities);
            concerned
        });
        value
    }

    /// The guest reads this register, or has written to it. Returns what it reads.
    #[cold]
    #[inline(never)]
    pub(crate) fn access_common(&self, register: CommonRegister, written: Option<u64>) -> u64 {
        let vmcr = sysreg::ich_vmcr_el2::read();
        let changed = match (register, written) {
            (CommonRegister::Control, None) => return common_registers::control(vmcr, sysreg::ich_vtr_el2()),
            (CommonRegister::PriorityMask, None) => return common_registers::priority_mask(vmcr),
            (CommonRegister::RunningPriority, _) => {
                let priorities = active_priorities(&host::get().features);
                return self.vm.gic.lock_masked().running_priority(priorities);
            }
            (CommonRegister::Control, Some(value)) => common_registers::with_control(vmcr, value),
            (CommonRegister::PriorityMask, Some(value)) => {
                common_registers::with_priority_mask(vmcr, value, host::get().priority_bits)
            }
        };
        // As where it does not trap: the next sync sees it.
        sysreg::ich_vmcr_el2::write(changed);
        0
    }
}
