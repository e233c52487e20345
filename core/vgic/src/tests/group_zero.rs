//! What the guest acknowledges and ends through the registers of Group 0, where those trap.

use super::{ONE, ZERO, list_registers, read, ready, settle, write};
use crate::ends::subpriority_bits;
use crate::{AccessSize, Line, Vgic, virtual_interface};
use units::{IntId, VcpuSet};

const NOTHING: u32 = 1023;

/// ICH_VMCR_EL2 with both groups enabled and this priority mask.
const fn masked(mask: u64) -> u64 {
    virtual_interface::GROUPS | mask << virtual_interface::MASK_SHIFT
}

/// Raises the SPI `id` of Group 0 at `priority`.
fn raise(vgic: &mut Vgic, id: u32, priority: u64) {
    write(vgic, 0x084, 0);
    vgic.distributor_write(0x400 + u64::from(id), AccessSize::Byte, priority);
    vgic.set_spi_level(IntId(id), Line::High);
}

#[test]
fn what_is_more_important_than_what_runs_is_taken() {
    let mut vgic = ready(1, 4);
    let mut priorities = [0; 2];
    let vmcr = masked(0xF8);
    assert_eq!(vgic.highest_pending_in_group_0(ZERO, vmcr), NOTHING);
    raise(&mut vgic, 40, 0xA0);
    assert_eq!(vgic.highest_pending_in_group_0(ZERO, vmcr), 40);
    assert_eq!(vgic.acknowledge_group_0(ZERO, vmcr, &mut priorities), 40);
    assert_eq!((priorities, vgic.highest_pending_in_group_0(ZERO, vmcr)), ([1 << 20, 0], NOTHING));
    raise(&mut vgic, 41, 0xA0);
    assert_eq!(vgic.highest_pending_in_group_0(ZERO, vmcr), 41);
    assert_eq!(vgic.acknowledge_group_0(ZERO, vmcr, &mut priorities), NOTHING, "it is as important as what runs");
    raise(&mut vgic, 42, 0x98);
    assert_eq!(vgic.acknowledge_group_0(ZERO, vmcr, &mut priorities), 42);
    assert_eq!(priorities, [1 << 20 | 1 << 19, 0]);
    assert_eq!(read(&vgic, 0x304), 1 << 8 | 1 << 10);
    assert_eq!(vgic.end_group_0(ZERO, IntId(42), vmcr, &mut priorities), VcpuSet::only(ZERO));
    assert_eq!((priorities, read(&vgic, 0x304)), ([1 << 20, 0], 1 << 8));
}

#[test]
fn what_the_mask_keeps_out_is_not_taken() {
    let mut vgic = ready(1, 4);
    raise(&mut vgic, 40, 0xA0);
    assert_eq!(vgic.acknowledge_group_0(ZERO, masked(0xA0), &mut [0; 2]), NOTHING);
    assert_eq!(vgic.acknowledge_group_0(ZERO, masked(0xA8), &mut [0; 2]), 40);
}

/// It was made active by hand before, and inactive again: no end was to come for that, and one is for this.
#[test]
fn what_is_taken_is_not_set_aside() {
    let mut vgic = ready(1, 4);
    write(&mut vgic, 0x304, 1 << 8);
    write(&mut vgic, 0x384, 1 << 8);
    raise(&mut vgic, 40, 0xA0);
    assert_eq!(vgic.acknowledge_group_0(ZERO, masked(0xF8), &mut [0; 2]), 40);
    assert_eq!(vgic.vcpus[0].held[1].set_aside & 1 << 8, 0);
}

/// The end of what another vCPU handles drops a priority, and ends nothing.
#[test]
fn nobody_ends_what_another_vcpu_handles() {
    let (mut vgic, mut lrs) = (ready(2, 4), list_registers());
    vgic.distributor_write(0x6000 + 8 * 40, AccessSize::Double, 1);
    raise(&mut vgic, 40, 0xA0);
    assert_eq!(vgic.acknowledge_group_0(ONE, masked(0xF8), &mut [0; 2]), 40);
    vgic.flush(ONE, &mut lrs);
    settle(&mut vgic, ONE, &mut lrs);
    vgic.sync(ONE, &mut lrs);
    assert_eq!(vgic.end_group_0(ZERO, IntId(40), masked(0xF8), &mut [1 << 20, 0]), VcpuSet::EMPTY);
    assert_eq!(read(&vgic, 0x304), 1 << 8);
}

/// As GIC IHI 0069H 4.8.2 has the binary points: Group 0's decides from one bit further up, also for Group 1 if both share it.
#[test]
fn each_group_has_its_binary_point() {
    let points = 3 << virtual_interface::BINARY_POINT_0_SHIFT | 2 << virtual_interface::BINARY_POINT_1_SHIFT;
    assert_eq!((subpriority_bits(0, points), subpriority_bits(1, points)), (4, 2));
    assert_eq!(subpriority_bits(1, points | virtual_interface::COMMON_BINARY_POINT), 4);
}
