//! More interrupts than list registers.

use super::{ACTIVE, PENDING, ZERO, acknowledge, end, list_registers, ready, settle, shown, write};
use crate::{AccessSize, Line, ListRegisters, Vgic, virtual_control, virtual_interface};
use units::{IntId, VcpuSet};

/// Raises the level-sensitive SPI `id` at `priority`.
pub(super) fn raise(vgic: &mut Vgic, id: u32, priority: u64) {
    vgic.distributor_write(0x400 + u64::from(id), AccessSize::Byte, priority);
    vgic.set_spi_level(IntId(id), Line::High);
}

#[test]
fn the_most_important_come_first_and_the_rest_when_those_are_taken() {
    let (mut vgic, mut lrs) = (ready(1, 2), list_registers());
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
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
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
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
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
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    raise(&mut vgic, 40, 0xA0);
    raise(&mut vgic, 41, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(vgic.hardware_list_register(ZERO, IntId(27), IntId(27)), None);
}

/// Takes the SPIs 40, 41, ... at rising priority, each in the handler of the one before it, and lets their lines fall. With one
/// list register all but the last are left out. Returns the active priorities.
fn nest(vgic: &mut Vgic, lrs: &mut ListRegisters, count: u32) -> u128 {
    let mut priorities = 0;
    for nested in 0..count {
        let priority = 0xA0 - 8 * nested;
        raise(vgic, 40 + nested, u64::from(priority));
        settle(vgic, ZERO, lrs);
        acknowledge(lrs, 0);
        vgic.set_spi_level(IntId(40 + nested), Line::Low);
        priorities |= 1 << (priority / 8);
        note(vgic, lrs, priorities);
    }
    settle(vgic, ZERO, lrs);
    note(vgic, lrs, priorities);
    priorities
}

/// What the owner does after a flush.
pub(super) fn note(vgic: &mut Vgic, lrs: &ListRegisters, group1: u128) {
    if lrs.hcr & virtual_control::LRENPIE != 0 {
        vgic.note_running(ZERO, lrs.vmcr, [0, group1]);
    }
}

/// GICD_ISACTIVER1, from SPI 40 on.
pub(super) fn active(vgic: &Vgic) -> u64 {
    vgic.distributor_read(0x304, AccessSize::Word) >> 8
}

#[test]
fn ends_without_a_list_register_are_counted_once() {
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    nest(&mut vgic, &mut lrs, 6);
    lrs.hcr_dirty = false;
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((active(&vgic), lrs.hcr_dirty), (0b01_1111, false));
    // The best of the rest is in the list register now; the guest ends it, and the one below it in the same breath.
    for left in [0b00_0111, 0b00_0001] {
        end(&mut lrs, 0);
        lrs.hcr |= 1 << virtual_control::EOI_COUNT_SHIFT;
        // A look at them in between, by another vCPU that reads GICD_ISACTIVER, counts nothing twice.
        vgic.sync(ZERO, &mut lrs);
        assert_eq!(lrs.hcr & virtual_control::EOI_COUNT, 0);
        settle(&mut vgic, ZERO, &mut lrs);
        assert_eq!(active(&vgic), left);
        assert!(core::mem::take(&mut lrs.hcr_dirty), "the count must be taken out of the hardware");
        assert_eq!(lrs.hcr & virtual_control::EOI_COUNT, 0);
    }
}

#[test]
fn with_split_ends_only_the_trapped_deactivation_ends() {
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    lrs.vmcr |= virtual_interface::SPLIT_END;
    nest(&mut vgic, &mut lrs, 6);
    // Six ends that drop the priority, five of which found no list register.
    lrs.hcr |= 5 << virtual_control::EOI_COUNT_SHIFT;
    settle(&mut vgic, ZERO, &mut lrs);
    note(&mut vgic, &lrs, 0);
    assert_eq!(active(&vgic), 0b11_1111);
    assert!(lrs.hcr_dirty);
    for (gone, left) in [(42, 0b11_1011), (45, 0b01_1011), (40, 0b01_1010)] {
        vgic.sync(ZERO, &mut lrs);
        vgic.deactivate(ZERO, IntId(gone));
        vgic.flush(ZERO, &mut lrs);
        assert_eq!(active(&vgic), left);
    }
}

#[test]
fn an_end_after_a_change_of_mode_means_what_still_runs() {
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    lrs.vmcr |= virtual_interface::SPLIT_END;
    let priorities = nest(&mut vgic, &mut lrs, 6);
    // The four most important ones are dropped and stay active; then the guest changes to EOImode zero and ends one more.
    let low = 1 << (0xA0 / 8) | 1 << (0x98 / 8);
    note(&mut vgic, &lrs, priorities & low);
    lrs.vmcr &= !virtual_interface::SPLIT_END;
    settle(&mut vgic, ZERO, &mut lrs);
    note(&mut vgic, &lrs, priorities & low);
    assert_eq!(shown(&lrs), [(41, ACTIVE)], "what runs has the list register, as it is what ends next");
    end(&mut lrs, 0);
    lrs.hcr |= 1 << virtual_control::EOI_COUNT_SHIFT;
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(active(&vgic), 0b11_1100);
}

#[test]
fn what_the_cpu_interface_masks_starves_nobody() {
    for masked in [0, 1] {
        let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
        // More important than all else, enabled, pending, and in the group that ICC_IGRPEN<n>_EL1 keeps out.
        write(&mut vgic, 0x084, if masked == 0 { 0xFFFF_0000 } else { 0x0000_FFFF });
        for id in 32..48 {
            raise(&mut vgic, id, 0);
        }
        raise(&mut vgic, 50, 0xA0);
        lrs.vmcr &= !(1 << masked);
        settle(&mut vgic, ZERO, &mut lrs);
        assert!(shown(&lrs).contains(&(50, PENDING)), "{:?}", shown(&lrs));
        assert_eq!(lrs.hcr & virtual_control::NPIE, 0, "nothing that could be due is left out");
        // The write that lets them through does not exit: a maintenance interrupt must tell.
        let enabled = virtual_control::GROUP_ENABLED;
        assert_eq!(lrs.hcr & (enabled[0] | enabled[1]), enabled[masked]);
        lrs.vmcr |= 1 << masked;
        settle(&mut vgic, ZERO, &mut lrs);
        assert_eq!(shown(&lrs), [(32, PENDING), (33, PENDING), (34, PENDING), (35, PENDING)]);
        // And the one that keeps them out again, with the less important one waiting.
        let disabled = virtual_control::GROUP_DISABLED;
        assert_eq!(lrs.hcr & (disabled[0] | disabled[1]), disabled[0] | disabled[1]);
        lrs.vmcr &= !(1 << masked);
        settle(&mut vgic, ZERO, &mut lrs);
        assert!(shown(&lrs).contains(&(50, PENDING)));
    }
}

#[test]
fn active_interrupts_and_masked_ones_leave_room_for_what_is_open() {
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    raise(&mut vgic, 40, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    write(&mut vgic, 0x084, 0xFFFF_FFFE);
    raise(&mut vgic, 32, 0);
    lrs.vmcr = 0b10;
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(40, ACTIVE)], "a masked interrupt drives no activation out");
    raise(&mut vgic, 41, 0x20);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(41, PENDING)]);
}

/// What was made active by hand, and inactive again, and then taken as any other.
#[test]
fn an_interrupt_that_the_guest_took_runs_whatever_it_was_before() {
    let (mut vgic, mut lrs) = (ready(1, 1), list_registers());
    write(&mut vgic, 0x304, 1 << (40 - 32));
    write(&mut vgic, 0x384, 1 << (40 - 32));
    raise(&mut vgic, 40, 0xA0);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.sync(ZERO, &mut lrs);
    write(&mut vgic, 0x304, 1 << (38 - 32));
    vgic.flush(ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(40, ACTIVE)], "38 is as important, and nobody is going to end it");
}

/// Of two that are active at one priority, the guest can be in the handler of the later one only.
#[test]
fn the_later_of_two_activations_at_one_priority_is_the_one_that_runs() {
    for (first, second) in [(40, 41), (41, 40), (40, 70), (70, 40)] {
        let (mut vgic, mut lrs) = (ready(1, 2), list_registers());
        lrs.vmcr |= virtual_interface::SPLIT_END;
        raise(&mut vgic, first, 0xA0);
        settle(&mut vgic, ZERO, &mut lrs);
        acknowledge(&mut lrs, 0);
        raise(&mut vgic, second, 0xA0);
        settle(&mut vgic, ZERO, &mut lrs);
        // The guest drops the priority of the first, and takes the second.
        let number = shown(&lrs).iter().position(|&(id, _)| id == u64::from(second)).unwrap();
        acknowledge(&mut lrs, number);
        settle(&mut vgic, ZERO, &mut lrs);
        raise(&mut vgic, 90, 0x20);
        settle(&mut vgic, ZERO, &mut lrs);
        assert_eq!(shown(&lrs), [(u64::from(second), ACTIVE), (90, PENDING)]);
    }
}
