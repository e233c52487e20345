//! The life of each kind of interrupt, from its cause to its end.

use super::saved::HERE;
use super::{
    ACTIVE, BOTH, GROUP1, ONE, PENDING, SPI, SPI_WORD, ZERO, acknowledge, end, list_registers, private, read, ready,
    settle, sgi, shown, write,
};
use crate::{AccessSize, Direction, Group, Line, Vgic, list_register as field};
use units::{IntId, VcpuId, VcpuSet};

const TIMER: IntId = IntId(27);
const PHYSICAL: IntId = IntId(26);

#[test]
fn a_level_stays_pending_until_its_line_falls() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    assert_eq!(vgic.set_spi_level(SPI, Line::High), VcpuSet::only(ZERO));
    assert_eq!(vgic.set_spi_level(SPI, Line::High), VcpuSet::EMPTY);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, PENDING)]);
    assert_eq!(lrs.dirty, 1);
    assert_eq!(lrs.lr[0], 32 | field::GROUP1 | 0xA0 << 48 | field::EOI | field::PENDING);
    // Ended without a cure: the maintenance interrupt samples the line again.
    acknowledge(&mut lrs, 0);
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, PENDING)]);
    // Cured in the handler: nothing is left, and no maintenance interrupt is wanted.
    acknowledge(&mut lrs, 0);
    assert_eq!(vgic.set_spi_level(SPI, Line::Low), VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, ACTIVE)]);
    assert_eq!(lrs.lr[0] & field::EOI, 0);
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.dirty), (0, 0));
    assert!(vgic.is_quiet(ZERO));
}

#[test]
fn a_level_that_falls_untaken_is_withdrawn() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(vgic.set_spi_level(SPI, Line::Low), VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.dirty, lrs.lr[0]), (0, 1, 0));
}

/// Its line fell in the handler, and before the vCPU was told of that, the handler ended.
#[test]
fn a_list_register_that_asks_for_maintenance_is_emptied_with_its_interrupt() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    for interrupt in [32, 33] {
        vgic.set_spi_level(IntId(interrupt), Line::High);
    }
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, PENDING), (33, PENDING)]);
    acknowledge(&mut lrs, 0);
    acknowledge(&mut lrs, 1);
    vgic.set_spi_level(IntId(33), Line::Low);
    end(&mut lrs, 1);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, BOTH)]);
    assert_eq!((lrs.lr[1], lrs.dirty & 0b10), (0, 0b10), "it would ask again and again");
}

/// A level and ISPENDR, a timer and ISPENDR: one of two reasons is enough, and so are both.
#[test]
fn what_is_pending_for_two_reasons_is_pending() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    write(&mut vgic, 0x200 + SPI_WORD, 1);
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    vgic.redistributor_write(ZERO, private(0x200), AccessSize::Word, 1 << TIMER.0);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1);
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 1 << TIMER.0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(27, PENDING), (32, PENDING)]);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1);
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 1 << TIMER.0);
}

#[test]
fn an_edge_is_taken_once_and_a_second_one_is_kept() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write(&mut vgic, 0xC08, 2);
    assert_eq!(vgic.pulse_spi(SPI), VcpuSet::only(ZERO));
    assert_eq!(vgic.pulse_spi(SPI), VcpuSet::EMPTY, "it was pending already");
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    assert_eq!(vgic.pulse_spi(SPI), VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, BOTH)]);
    end(&mut lrs, 0);
    acknowledge(&mut lrs, 0);
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert!(vgic.is_quiet(ZERO));
}

/// While its vCPU sleeps, and has left its CPU, a line stands in for a timer that has fired.
#[test]
fn a_line_stands_in_for_a_timer_that_has_fired() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    let enable =
        |vgic: &mut Vgic, offset| vgic.redistributor_write(ZERO, private(offset), AccessSize::Word, 1 << TIMER.0);
    enable(&mut vgic, 0x180);
    assert_eq!(vgic.raise_stand_in(ZERO, TIMER), Some(VcpuSet::EMPTY), "nobody waits for it");
    // A line cannot stand in for an edge: its vCPU has to hear of that.
    for trigger in [2, 0] {
        let value = trigger << (2 * (TIMER.0 - 16));
        let concerned = vgic.redistributor_write(ZERO, private(0xC04), AccessSize::Word, value);
        assert_eq!(concerned, VcpuSet::only(ZERO));
    }
    assert_eq!(enable(&mut vgic, 0x100), VcpuSet::only(ZERO), "whoever enables it wakes the vCPU");
    assert!(vgic.has_deliverable(ZERO, 0xFF00_0003));
    vgic.set_ppi_level(ZERO, TIMER, Line::Low);
    assert!(!vgic.has_deliverable(ZERO, 0xFF00_0003));
    // While it is active, another one would be in the way of its end.
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.sync(ZERO, &mut lrs);
    assert_eq!(vgic.raise_stand_in(ZERO, TIMER), Some(VcpuSet::EMPTY));
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 0);
    // An edge would be remembered.
    vgic.redistributor_write(ZERO, private(0xC04), AccessSize::Word, 2 << (2 * (TIMER.0 - 16)));
    assert_eq!(vgic.raise_stand_in(ZERO, TIMER), None);
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 0);
    assert_eq!(vgic.raise_stand_in(ONE, IntId(32)), None);
}

/// The end of an interrupt deactivates what has the priority and the group that it drops: those of the acknowledgement.
#[test]
fn an_active_interrupt_keeps_the_priority_and_group_of_its_acknowledgement() {
    let (mut vgic, mut lrs) = (ready(2, 4), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    assert_eq!(vgic.distributor_write(0x420, AccessSize::Byte, 0x40), VcpuSet::only(ZERO));
    assert_eq!(write(&mut vgic, 0x080 + SPI_WORD, 0xFFFF_FFFE), VcpuSet::only(ZERO));
    assert_eq!((read(&vgic, 0x420) & 0xFF, read(&vgic, 0x080 + SPI_WORD) & 1), (0x40, 0));
    // It is pending again, with the new ones, and so is loaded as active alone until its end.
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.lr[0], 32 | field::GROUP1 | 0xA0 << 48 | field::EOI | field::ACTIVE);
    // Neither a second change nor the way through a saved state makes a difference.
    vgic.sync(ZERO, &mut lrs);
    vgic.distributor_write(0x420, AccessSize::Byte, 0x80);
    let saved = vgic.save().unwrap();
    let bank = &saved.shared[0];
    assert_eq!((bank.kept, bank.kept_priority[0], bank.kept_group, bank.priority[0]), (1, 0xA0, 1, 0x80));
    vgic = Vgic::restore(HERE, &saved).unwrap();
    lrs.forget(vgic.usual_control());
    vgic.flush(ZERO, &mut lrs);
    assert_eq!(lrs.lr[0], 32 | field::GROUP1 | 0xA0 << 48 | field::EOI | field::ACTIVE);
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.lr[0], 32 | 0x80 << 48 | field::EOI | field::PENDING);
    acknowledge(&mut lrs, 0);
    vgic.set_spi_level(SPI, Line::Low);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.lr[0], 32 | 0x80 << 48 | field::ACTIVE);
    end(&mut lrs, 0);
    vgic.sync(ZERO, &mut lrs);
    // Nothing is said of what is not active any more; what is activated by hand begins anew.
    assert_eq!(vgic.save().unwrap().shared[0].kept, 0);
    write(&mut vgic, 0x300 + SPI_WORD, 1);
    assert_eq!(vgic.save().unwrap().shared[0].kept, 0);
}

#[test]
fn a_rising_line_is_an_edge_and_a_pulse_is_no_level() {
    let mut vgic = ready(1, 4);
    write(&mut vgic, 0xC08, 2);
    vgic.set_spi_level(SPI, Line::High);
    vgic.set_spi_level(SPI, Line::Low);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1);
    assert_eq!(vgic.pulse_spi(IntId(33)), VcpuSet::EMPTY);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1);
    for wrong in [IntId(31), IntId(128), IntId(u32::MAX)] {
        assert_eq!(vgic.pulse_spi(wrong), VcpuSet::EMPTY);
        assert_eq!(vgic.set_spi_level(wrong, Line::High), VcpuSet::EMPTY);
    }
}

#[test]
fn sgis_reach_their_targets() {
    let mut vgic = ready(4, 4);
    assert_eq!(vgic.send_sgi(ZERO, sgi(5, 0b1011), GROUP1), VcpuSet(0b1011));
    assert_eq!(vgic.send_sgi(ZERO, sgi(5, 0b1111), GROUP1), VcpuSet(0b0100), "the others have it already");
    assert_eq!(vgic.send_sgi(ONE, sgi(6, 0xFF) | 1 << 40, GROUP1), VcpuSet(0b1101));
    for elsewhere in [1 << 16, 1 << 32, 1 << 48, 1 << 44] {
        assert_eq!(vgic.send_sgi(ZERO, sgi(7, 0xF) | elsewhere, GROUP1), VcpuSet::EMPTY);
    }
    assert_eq!(vgic.send_sgi(ZERO, sgi(8, 0xF), Group::Zero), VcpuSet::EMPTY, "they are in Group 1");
    assert_eq!(vgic.redistributor_read(ONE, private(0x200), AccessSize::Word), 1 << 5);
}

#[test]
fn a_disabled_interrupt_waits() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write(&mut vgic, 0x180 + SPI_WORD, 1);
    assert_eq!(vgic.set_spi_level(SPI, Line::High), VcpuSet::EMPTY);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.used, 0);
    assert_eq!(write(&mut vgic, 0x100 + SPI_WORD, 1), VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, PENDING)]);
    assert_eq!(write(&mut vgic, 0x180 + SPI_WORD, 1), VcpuSet::only(ZERO), "it must be withdrawn");
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.used, 0);
    // The same for its group.
    write(&mut vgic, 0x100 + SPI_WORD, 1);
    assert_eq!(write(&mut vgic, 0, 0b01), VcpuSet::EMPTY);
    assert_eq!(write(&mut vgic, 0, 0b10), VcpuSet::only(ZERO));
}

#[test]
fn a_cleared_latch_is_withdrawn_even_from_a_list_register() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write(&mut vgic, 0x200 + SPI_WORD, 1);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1, "seen through the list register");
    assert_eq!(vgic.distributor_needs(0x200 + SPI_WORD, Direction::Read), VcpuSet::only(ZERO));
    assert_eq!(write(&mut vgic, 0x280 + SPI_WORD, 1), VcpuSet::only(ZERO));
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.used, 0);
}

#[test]
fn an_spi_moves_to_another_vcpu_once_the_first_lets_go() {
    let mut vgic = ready(2, 4);
    let (mut zero, mut one) = (list_registers(), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    settle(&mut vgic, ZERO, &mut zero);
    let set = vgic.distributor_write(0x6100, AccessSize::Double, 1);
    assert_eq!(set, VcpuSet(0b11));
    settle(&mut vgic, ONE, &mut one);
    assert_eq!(one.used, 0, "vCPU 0 may be taking it at this moment");
    assert_eq!(settle(&mut vgic, ZERO, &mut zero), VcpuSet::only(ONE));
    settle(&mut vgic, ONE, &mut one);
    assert_eq!((zero.used, shown(&one)), (0, [(32, PENDING)].to_vec()));
}

/// In whichever words they are, and with their like in other words or alone.
#[test]
fn all_spis_that_a_vcpu_lets_go_are_told_to_the_next() {
    for spis in [&[32][..], &[64], &[96], &[32, 64], &[64, 96], &[32, 96], &[32, 64, 96], &[127]] {
        let mut vgic = ready(2, 4);
        let (mut zero, mut one) = (list_registers(), list_registers());
        for &spi in spis {
            vgic.set_spi_level(IntId(spi), Line::High);
        }
        settle(&mut vgic, ZERO, &mut zero);
        for &spi in spis {
            vgic.distributor_write(0x6000 + 8 * u64::from(spi), AccessSize::Double, 1);
        }
        assert_eq!(settle(&mut vgic, ZERO, &mut zero), VcpuSet::only(ONE), "{spis:?}");
        settle(&mut vgic, ONE, &mut one);
        let there: Vec<(u64, u64)> = spis.iter().map(|&spi| (u64::from(spi), PENDING)).collect();
        assert_eq!((zero.used, shown(&one)), (0, there));
    }
}

/// Two list registers that stay as they are, of an edge that came again while it was handled and of a level.
#[test]
fn what_is_loaded_beside_another_is_as_it_is_alone() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write(&mut vgic, 0xC08, 0b1000);
    vgic.pulse_spi(IntId(33));
    settle(&mut vgic, ZERO, &mut lrs);
    assert!(!vgic.is_quiet(ZERO));
    acknowledge(&mut lrs, 0);
    vgic.pulse_spi(IntId(33));
    vgic.set_spi_level(IntId(34), Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(33, BOTH), (34, PENDING)]);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((shown(&lrs).len(), lrs.dirty), (2, 0));
}

/// Whose SPI another vCPU lets go is told, and nobody else for whom something is pending.
#[test]
fn an_spi_that_is_let_go_concerns_only_whom_it_goes_to() {
    let (mut vgic, mut lrs) = (ready(3, 4), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    for (spi, vcpu) in [(32, 1), (33, 2)] {
        vgic.distributor_write(0x6000 + 8 * spi, AccessSize::Double, vcpu);
    }
    vgic.set_spi_level(IntId(33), Line::High);
    assert_eq!(vgic.sync(ZERO, &mut lrs), VcpuSet::only(ONE));
}

#[test]
fn an_spi_without_a_target_stays_pending() {
    let (mut vgic, mut lrs) = (ready(2, 4), list_registers());
    vgic.distributor_write(0x6100, AccessSize::Double, 5);
    assert_eq!(vgic.set_spi_level(SPI, Line::High), VcpuSet::EMPTY);
    assert_eq!(read(&vgic, 0x200 + SPI_WORD), 1);
    let set = vgic.distributor_write(0x6100, AccessSize::Double, 1 << 31 | 5);
    assert_eq!(set, VcpuSet(0b11), "whoever is on says now what it has enabled");
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(32, PENDING)]);
}

#[test]
fn a_ppi_has_a_line_of_its_own_on_each_vcpu() {
    let mut vgic = ready(2, 4);
    assert_eq!(vgic.set_ppi_level(ONE, IntId(23), Line::High), VcpuSet::only(ONE));
    assert_eq!(vgic.redistributor_read(ONE, private(0x200), AccessSize::Word), 1 << 23);
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 0);
    assert_eq!(vgic.set_ppi_level(ONE, IntId(3), Line::High), VcpuSet::EMPTY);
    assert_eq!(vgic.set_ppi_level(VcpuId(2), IntId(23), Line::High), VcpuSet::EMPTY);
}

#[test]
fn a_timer_ends_without_us() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    assert_eq!(vgic.raise_hardware(ZERO, TIMER, PHYSICAL), VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.lr[0], 27 | 26 << 32 | 0xA0 << 48 | field::HARDWARE | field::GROUP1 | field::PENDING);
    assert_eq!(vgic.hardware_linked(ZERO), 1 << 27);
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), AccessSize::Word), 1 << 27);
    acknowledge(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.lr[0] >> 62, lrs.lr[0] & field::HARDWARE), (ACTIVE, field::HARDWARE));
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.deactivate, vgic.hardware_linked(ZERO)), (0, 0, 0));
}

#[test]
fn a_timer_stopped_before_it_was_taken_is_withdrawn() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    vgic.sync(ZERO, &mut lrs);
    assert!(vgic.lower_hardware(ZERO, TIMER));
    assert!(!vgic.lower_hardware(ZERO, TIMER));
    vgic.flush(ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.lr[0]), (0, 0));
}

#[test]
fn a_ready_made_list_register_is_taken_over() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    // Twice, as the second finds the ledger of the first still open.
    for number in 0..2 {
        let value = vgic.hardware_list_register(ZERO, TIMER, PHYSICAL).unwrap();
        lrs.lr[number] = value;
        lrs.used |= 1 << number;
        acknowledge(&mut lrs, number);
        if number == 0 {
            end(&mut lrs, number);
        }
    }
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(27, ACTIVE)]);
    assert_eq!(lrs.lr[0] & field::HARDWARE, field::HARDWARE);
    assert_eq!(lrs.dirty, 0b11, "it moved to the first list register, and the second was emptied");
    let word = AccessSize::Word;
    assert_eq!(vgic.redistributor_read(ZERO, private(0x300), word), 1 << 27);
}

#[test]
fn a_ready_made_list_register_can_still_be_withdrawn() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    lrs.lr[0] = vgic.hardware_list_register(ZERO, TIMER, PHYSICAL).unwrap();
    lrs.used = 1;
    let set = vgic.redistributor_write(ZERO, private(0x180), AccessSize::Word, 1 << 27);
    assert_eq!(set, VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(lrs.used, 0);
    assert_eq!(vgic.hardware_list_register(ZERO, TIMER, PHYSICAL), None, "disabled");
}

#[test]
fn deactivating_a_timer_by_hand_frees_the_physical_one() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    // Whether or not the caller syncs first.
    let set = vgic.redistributor_write(ZERO, private(0x380), AccessSize::Word, 1 << 27);
    assert_eq!(set, VcpuSet::only(ZERO));
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.deactivate), (0, 1 << 26));
}

#[test]
fn deactivating_another_by_hand_leaves_a_timer_linked() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.sync(ZERO, &mut lrs);
    vgic.redistributor_write(ZERO, private(0x380), AccessSize::Word, 1 << 20);
    vgic.flush(ZERO, &mut lrs);
    assert_eq!((lrs.lr[0] >> 62, lrs.lr[0] & field::HARDWARE, lrs.deactivate), (ACTIVE, field::HARDWARE, 0));
}

/// A linked list register is pending or active, never both.
#[test]
fn a_timer_made_pending_by_hand_while_it_is_active_ends_as_another_interrupt() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.redistributor_write(ZERO, private(0x200), AccessSize::Word, 1 << 27);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.lr[0] >> 62, lrs.lr[0] & field::HARDWARE), (BOTH, 0));
    assert_eq!((lrs.deactivate, vgic.hardware_linked(ZERO)), (1 << 26, 0));
}

#[test]
fn a_vcpu_that_moves_leaves_its_timer_behind() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.sync(ZERO, &mut lrs);
    assert_eq!(vgic.detach_hardware(ZERO), 1 << 26);
    // It fires again where the vCPU went, while the guest still handles the first; and is made pending by hand, too.
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    vgic.redistributor_write(ZERO, private(0x200), AccessSize::Word, 1 << 27);
    vgic.flush(ZERO, &mut lrs);
    assert_eq!((lrs.lr[0] >> 62, lrs.lr[0] & (field::HARDWARE | field::EOI)), (ACTIVE, field::EOI));
    assert_eq!(lrs.deactivate, 0, "the second waits for the end of the first");
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.lr[0] >> 62, lrs.lr[0] & field::HARDWARE), (PENDING, field::HARDWARE));
}

#[test]
fn a_trapped_deactivation_works_from_any_vcpu() {
    let mut vgic = ready(2, 4);
    let (mut zero, mut one) = (list_registers(), list_registers());
    vgic.set_spi_level(SPI, Line::High);
    settle(&mut vgic, ZERO, &mut zero);
    acknowledge(&mut zero, 0);
    vgic.sync(ONE, &mut one);
    assert_eq!(vgic.deactivate(ONE, SPI), VcpuSet::only(ZERO));
    vgic.flush(ONE, &mut one);
    settle(&mut vgic, ZERO, &mut zero);
    assert_eq!(shown(&zero), [(32, PENDING)], "the line is still high");
    assert_eq!(vgic.deactivate(ONE, IntId(1020)), VcpuSet::EMPTY);
}

#[test]
fn wfi_ends_for_what_the_cpu_interface_would_signal() {
    let mut vgic = ready(1, 4);
    let vmcr = |mask: u64, groups: u64| mask << 24 | groups;
    assert!(!vgic.has_deliverable(ZERO, vmcr(0xF8, 3)));
    vgic.set_spi_level(SPI, Line::High);
    assert!(vgic.has_deliverable(ZERO, vmcr(0xF8, 2)));
    assert!(!vgic.has_deliverable(ZERO, vmcr(0xF8, 1)), "it is in Group 1");
    assert!(!vgic.has_deliverable(ZERO, vmcr(0xA0, 3)), "it is masked");
    vgic.redistributor_write(ZERO, 0x14, AccessSize::Word, 2);
    assert!(!vgic.has_deliverable(ZERO, vmcr(0xF8, 2)), "the Redistributor sleeps");
    assert!(vgic.has_wake_request(ZERO));
}

extern crate std;
use std::vec::Vec;
