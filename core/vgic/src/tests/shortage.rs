//! More interrupts than list registers.

use super::{ACTIVE, PENDING, ZERO, acknowledge, end, ready, settle, shown, write};
use crate::{AccessSize, Line, ListRegisters, virtual_control};
use units::{IntId, VcpuSet};

/// Raises the level-sensitive SPI `id` at `priority`.
fn raise(vgic: &mut crate::Vgic, id: u32, priority: u64) {
    vgic.distributor_write(0x400 + u64::from(id), AccessSize::Byte, priority);
    vgic.set_spi_level(IntId(id), Line::High);
}

#[test]
fn the_most_important_come_first_and_the_rest_when_those_are_taken() {
    let (mut vgic, mut lrs) = (ready(1, 2), ListRegisters::new());
    for (id, priority) in [(40, 0xA0), (41, 0x20), (42, 0x80), (43, 0x20)] {
        raise(&mut vgic, id, priority);
    }
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(41, PENDING), (43, PENDING)]);
    assert_eq!(lrs.hcr & virtual_control::NPIE, virtual_control::NPIE);
    acknowledge(&mut lrs, 0);
    end(&mut lrs, 0);
    vgic.set_spi_level(IntId(41), Line::Low);
    acknowledge(&mut lrs, 1);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(43, ACTIVE), (42, PENDING)]);
    assert_eq!(vgic.set_spi_level(IntId(40), Line::Low), VcpuSet::EMPTY);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.hcr & virtual_control::NPIE, 0);
}

#[test]
fn an_activation_gives_way_to_something_pending_and_its_end_is_counted() {
    let (mut vgic, mut lrs) = (ready(1, 1), ListRegisters::new());
    raise(&mut vgic, 40, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    raise(&mut vgic, 41, 0x20);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(41, PENDING)]);
    assert_eq!(lrs.hcr & virtual_control::LRENPIE, virtual_control::LRENPIE);
    acknowledge(&mut lrs, 0);
    vgic.set_spi_level(IntId(40), Line::Low);
    vgic.set_spi_level(IntId(41), Line::Low);
    end(&mut lrs, 0);
    lrs.hcr |= 1 << virtual_control::EOI_COUNT_SHIFT;
    settle(&mut vgic, ZERO, &mut lrs);
    assert!(vgic.is_quiet(ZERO));
    assert_eq!(lrs.hcr, virtual_control::EN | virtual_control::TDIR);
}

#[test]
fn an_interrupt_activated_by_hand_does_not_stand_for_one_that_was_handled() {
    let (mut vgic, mut lrs) = (ready(1, 1), ListRegisters::new());
    raise(&mut vgic, 40, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.distributor_write(0x400 + 50, AccessSize::Byte, 0);
    vgic.sync(ZERO, &mut lrs);
    write(&mut vgic, 0x304, 1 << (50 - 32));
    vgic.flush(ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(40, ACTIVE)]);
}

#[test]
fn no_ready_made_list_register_while_others_wait() {
    let (mut vgic, mut lrs) = (ready(1, 1), ListRegisters::new());
    raise(&mut vgic, 40, 0xA0);
    raise(&mut vgic, 41, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(vgic.hardware_list_register(ZERO, IntId(27), IntId(27)), None);
}
