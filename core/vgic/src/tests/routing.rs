//! 1-of-N interrupts: GICD_IROUTER.Interrupt_Routing_Mode.

use super::{ONE, PENDING, SPI, ZERO, acknowledge, list_registers, ready, settle, shown, vgic, write};
use crate::{AccessSize, Line, ListRegisters, Power, Vgic, virtual_control};
use units::{IntId, VcpuId, VcpuSet};

const TWO: VcpuId = VcpuId(2);
const GICR_CTLR: u64 = 0;
const GICR_WAKER: u64 = 0x14;

/// Three vCPUs that take part, and an SPI that may go to any of them.
fn any_of_three() -> (Vgic, [ListRegisters; 3]) {
    let mut vgic = ready(3, 4);
    let mut lrs = [list_registers(), list_registers(), list_registers()];
    vgic.distributor_write(0x6100, AccessSize::Double, 1 << 31);
    for (vcpu, lrs) in (0..).map(VcpuId).zip(&mut lrs) {
        settle(&mut vgic, vcpu, lrs);
    }
    (vgic, lrs)
}

/// Settles whoever is named, and whoever those name, until nobody is.
fn settle_all(vgic: &mut Vgic, lrs: &mut [ListRegisters; 3], mut set: VcpuSet) {
    while let Some(vcpu) = set.iter().next() {
        set.remove(vcpu);
        set = set.union(settle(vgic, vcpu, &mut lrs[vcpu.index()]));
    }
}

/// Who has SPI 32 in a list register.
fn holders(lrs: &[ListRegisters; 3]) -> Vec<usize> {
    (0..3).filter(|&vcpu| shown(&lrs[vcpu]).iter().any(|&(interrupt, _)| interrupt == u64::from(SPI.0))).collect()
}

extern crate std;
use std::vec::Vec;

#[test]
fn a_1_of_n_interrupt_goes_to_the_first_that_takes_part() {
    let (mut vgic, mut lrs) = any_of_three();
    let set = vgic.set_spi_level(SPI, Line::High);
    settle_all(&mut vgic, &mut lrs, set);
    assert_eq!(holders(&lrs), [0]);
}

#[test]
fn a_pending_1_of_n_interrupt_leaves_whoever_stops_taking_part() {
    type Stop = fn(&mut Vgic, &mut ListRegisters, VcpuId) -> VcpuSet;
    let off: Stop = |vgic, lrs, vcpu| {
        let others = vgic.sync(vcpu, lrs);
        lrs.forget(vgic.usual_control());
        others.union(vgic.set_power(vcpu, Power::Off))
    };
    let asleep: Stop = |vgic, _, vcpu| vgic.redistributor_write(vcpu, GICR_WAKER, AccessSize::Word, 2);
    let declines: Stop = |vgic, _, vcpu| vgic.redistributor_write(vcpu, GICR_CTLR, AccessSize::Word, 1 << 25);
    let masks: Stop = |_, lrs, vcpu| {
        // Without an exit: what tells is the maintenance interrupt.
        assert_ne!(lrs.hcr & virtual_control::GROUP_DISABLED[1], 0);
        lrs.vmcr = 0;
        VcpuSet::only(vcpu)
    };
    for stop in [off, asleep, declines, masks] {
        let (mut vgic, mut lrs) = any_of_three();
        let set = vgic.set_spi_level(SPI, Line::High);
        settle_all(&mut vgic, &mut lrs, set);
        for (leaves, next) in [(ZERO, 1), (ONE, 2)] {
            let mut set = stop(&mut vgic, &mut lrs[leaves.index()], leaves);
            if vgic.vcpus[leaves.index()].on {
                set.insert(leaves);
            } else {
                set.remove(leaves);
            }
            settle_all(&mut vgic, &mut lrs, set);
            assert_eq!(holders(&lrs), [next]);
        }
    }
}

#[test]
fn an_active_1_of_n_interrupt_stays_where_it_is_handled() {
    let (mut vgic, mut lrs) = any_of_three();
    let set = vgic.set_spi_level(SPI, Line::High);
    settle_all(&mut vgic, &mut lrs, set);
    acknowledge(&mut lrs[0], 0);
    let set = vgic.redistributor_write(ZERO, GICR_CTLR, AccessSize::Word, 1 << 25);
    settle_all(&mut vgic, &mut lrs, set);
    assert_eq!(holders(&lrs), [0]);
    super::end(&mut lrs[0], 0);
    settle_all(&mut vgic, &mut lrs, VcpuSet::only(ZERO));
    assert_eq!(holders(&lrs), [1], "its line is still high, and it goes to another one");
}

#[test]
fn a_1_of_n_interrupt_waits_for_the_first_that_takes_part_and_finds_it() {
    let mut vgic = vgic(3, 4);
    let mut lrs = [ListRegisters::new(), ListRegisters::new(), ListRegisters::new()];
    write(&mut vgic, 0x084, 1);
    write(&mut vgic, 0x104, 1);
    write(&mut vgic, 0, 2);
    let set = vgic.distributor_write(0x6100, AccessSize::Double, 1 << 31);
    settle_all(&mut vgic, &mut lrs, set);
    let set = vgic.set_spi_level(SPI, Line::High);
    settle_all(&mut vgic, &mut lrs, set);
    assert_eq!(holders(&lrs), [0], "as it waits for any, it may as well wait there");
    // vCPU 2 enables its group.
    assert_ne!(lrs[2].hcr & virtual_control::GROUP_ENABLED[1], 0);
    lrs[2].vmcr = 0b10;
    settle_all(&mut vgic, &mut lrs, VcpuSet::only(TWO));
    assert_eq!(holders(&lrs), [2]);
    assert_eq!(shown(&lrs[2]), [(32, PENDING)]);
}

#[test]
fn the_group_says_who_takes_part() {
    let (mut vgic, mut lrs) = any_of_three();
    vgic.redistributor_write(ZERO, GICR_CTLR, AccessSize::Word, 1 << 24);
    let set = vgic.set_spi_level(SPI, Line::High);
    settle_all(&mut vgic, &mut lrs, set);
    assert_eq!(holders(&lrs), [0], "it declines those of Group 0 only");
    let set = write(&mut vgic, 0x084, 0);
    settle_all(&mut vgic, &mut lrs, set);
    assert_eq!(holders(&lrs), [1]);
    assert_eq!(vgic.redistributor_read(ZERO, GICR_CTLR, AccessSize::Word), 1 << 24);
    assert_eq!(vgic.redistributor_read(ZERO, 0x8, AccessSize::Word) & 1 << 5, 1 << 5, "GICR_TYPER.DPGS");
}

/// A vCPU that a change of the participants does not concern is not made to leave its guest for it.
#[test]
fn who_holds_what_does_not_move_is_left_alone() {
    let (mut vgic, mut lrs) = any_of_three();
    vgic.distributor_write(0x6000 + 8 * 33, AccessSize::Double, 1);
    for spi in [SPI, IntId(33)] {
        let set = vgic.set_spi_level(spi, Line::High);
        settle_all(&mut vgic, &mut lrs, set);
    }
    assert_eq!((holders(&lrs), shown(&lrs[1])), ([0].to_vec(), [(33, PENDING)].to_vec()));
    let set = vgic.redistributor_write(TWO, GICR_CTLR, AccessSize::Word, 1 << 25);
    assert_eq!(set, VcpuSet::EMPTY, "the one goes to vCPU 0, the other to vCPU 1, as before");
}

#[test]
fn nobody_is_watched_while_nothing_goes_anywhere() {
    let (mut vgic, mut lrs) = any_of_three();
    let watch = |lrs: &ListRegisters| lrs.hcr & !(virtual_control::EN | virtual_control::TDIR);
    assert_ne!(watch(&lrs[1]), 0);
    assert!(!lrs[1].at_rest);
    vgic.distributor_write(0x6100, AccessSize::Double, 0);
    settle(&mut vgic, ONE, &mut lrs[1]);
    assert_eq!((watch(&lrs[1]), lrs[1].at_rest), (0, true));
}
