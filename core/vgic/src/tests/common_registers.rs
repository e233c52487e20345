//! The CPU interface's registers of both groups, where they trap because ICC_DIR_EL1 cannot by itself.

use super::{list_registers, ready};
use crate::common_registers::{control, priority_mask, with_control, with_priority_mask};
use crate::{Config, Vgic, virtual_control, virtual_interface};
use units::VcpuId;

/// All fields of ICH_VMCR_EL2 that there are.
const ALL: u64 = 0xFFFC_021F;

#[test]
fn where_deactivations_do_not_trap_by_themselves_the_common_registers_do() {
    let config = Config {
        vcpus: 1,
        list_registers: 4,
        priority_bits: 5,
        preemption_bits: 5,
        tells_of_group_0: true,
        traps_deactivation: true,
    };
    for (traps_deactivation, trap) in [(true, virtual_control::TDIR), (false, virtual_control::TRAP_COMMON)] {
        let mut vgic = Vgic::new(Config { traps_deactivation, ..config });
        let mut lrs = list_registers();
        vgic.sync(VcpuId(0), &mut lrs);
        vgic.flush(VcpuId(0), &mut lrs);
        assert_eq!(lrs.hcr & !0xF8, virtual_control::EN | trap);
        // A vCPU's first one, and whatever was loaded before: the hardware is told.
        assert_eq!(lrs.hcr_dirty, lrs.hcr != crate::ListRegisters::new().hcr);
        // At rest it leaves its CPU and comes back without a flush: what the owner loads then is what the next one goes by.
        assert!(lrs.at_rest);
        assert_eq!(lrs.hcr, vgic.usual_control());
        lrs.forget(vgic.usual_control());
        vgic.flush(VcpuId(0), &mut lrs);
        assert_eq!((lrs.hcr, lrs.hcr_dirty), (vgic.usual_control(), false));
    }
}

#[test]
fn control_shows_what_the_guest_chose_and_what_the_host_is() {
    assert_eq!(control(0, 0), 0);
    assert_eq!(control(!(virtual_interface::SPLIT_END | virtual_interface::COMMON_BINARY_POINT), 0), 0);
    assert_eq!(control(virtual_interface::COMMON_BINARY_POINT, 0), 1);
    assert_eq!(control(virtual_interface::SPLIT_END, 0), 2);
    // ICH_VTR_EL2: five bits of priority, 24 bits of INTIDs, SEIS; then Aff3 alone; then what is not shown.
    assert_eq!(control(0, 4 << 29 | 1 << 23 | 1 << 22), 4 << 8 | 1 << 11 | 1 << 14);
    assert_eq!(control(0, 1 << 21), 1 << 15);
    assert_eq!(control(0, !(7 << 29 | 7 << 23 | 3 << 21)), 0);
    assert_eq!(control(0, 7 << 29 | 7 << 23), 7 << 8 | 7 << 11);
}

#[test]
fn control_changes_two_fields() {
    let own = virtual_interface::SPLIT_END | virtual_interface::COMMON_BINARY_POINT;
    for value in 0..4 {
        let chosen =
            ((value & 1) * virtual_interface::COMMON_BINARY_POINT) | ((value >> 1) * virtual_interface::SPLIT_END);
        assert_eq!(with_control(0, value), chosen);
        assert_eq!(with_control(ALL, value | 0xFFF8), ALL & !own | chosen);
        assert_eq!(control(with_control(ALL, value), 0), value);
    }
}

#[test]
fn the_priority_mask_has_the_hosts_bits() {
    assert_eq!(with_priority_mask(0, 0xF7, 5), 0xF0 << 24);
    assert_eq!(with_priority_mask(0, 0xF7, 8), 0xF7 << 24);
    assert_eq!(with_priority_mask(ALL, 0x1_0000_0000, 5), ALL & !0xFF00_0000);
    assert_eq!(with_priority_mask(ALL, 0x80, 5), ALL & 0x80FF_FFFF);
    assert_eq!((priority_mask(ALL & 0x80FF_FFFF), priority_mask(0x00FF_FFFF), priority_mask(1 << 32)), (0x80, 0, 0));
}

#[test]
fn the_running_priority_is_the_highest_that_is_active() {
    let vgic = ready(1, 4);
    assert_eq!(vgic.running_priority([0, 0]), 0xFF);
    assert_eq!(vgic.running_priority([1 << 20, 0]), 0xA0);
    assert_eq!(vgic.running_priority([1 << 20, 1 << 19]), 0x98);
    assert_eq!(vgic.running_priority([1 << 3 | 1 << 31, 1 << 4]), 0x18);
    assert_eq!(vgic.running_priority([1, 1 << 31]), 0);
    let finer = Vgic::new(Config {
        vcpus: 1,
        list_registers: 4,
        priority_bits: 8,
        preemption_bits: 7,
        tells_of_group_0: true,
        traps_deactivation: true,
    });
    assert_eq!(finer.running_priority([0, 1 << 127]), 0xFE);
}
