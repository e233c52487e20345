//! The short ways around sync and flush: when they may be taken, and what they leave behind.

use super::{
    ACTIVE, GROUP1, ONE, PENDING, ZERO, acknowledge, end, list_registers, private, ready, settle, sgi, shown, write,
};
use crate::{AccessSize, ListRegisters, Vgic, list_register as field};
use units::{IntId, VcpuId, VcpuSet};

const TIMER: IntId = IntId(27);
const PHYSICAL: IntId = IntId(26);
const WORD: AccessSize = AccessSize::Word;

fn write_own(vgic: &mut Vgic, offset: u64, value: u64) {
    vgic.redistributor_write(ZERO, private(offset), WORD, value);
}

/// By which of the guest's registers, and by which of its list registers, a timer's interrupt is uncommon in two ways.
#[test]
fn two_reasons_against_the_short_way_are_as_good_as_one() {
    type Prepare = fn(&mut Vgic, &mut ListRegisters);
    let both: [Prepare; 5] = [
        |vgic, _| [0x200, 0x300].iter().for_each(|&at| write_own(vgic, at, 1 << 27)),
        |vgic, lrs| {
            write_own(vgic, 0x200, 1 << 27);
            settle(vgic, ZERO, lrs);
            write_own(vgic, 0x300, 1 << 27);
        },
        |vgic, lrs| {
            write_own(vgic, 0x200, 1 << 27);
            settle(vgic, ZERO, lrs);
            acknowledge(lrs, 0);
            write_own(vgic, 0x200, 1 << 27);
            settle(vgic, ZERO, lrs);
        },
        |vgic, _| {
            write_own(vgic, 0x200, 1 << 27);
            vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
        },
        |vgic, _| {
            write_own(vgic, 0x300, 1 << 27);
            vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
        },
    ];
    for (number, prepare) in both.into_iter().enumerate() {
        let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
        prepare(&mut vgic, &mut lrs);
        assert_eq!(vgic.hardware_list_register(ZERO, TIMER, PHYSICAL), None, "{number}");
    }
}

/// Why an interrupt is uncommon, and what makes it so.
type Uncommon = (&'static str, Box<dyn Fn(&mut Vgic)>);

/// What makes interrupt `id` of vCPU 0 uncommon, each in its own way.
fn uncommon(id: u32) -> [Uncommon; 6] {
    let bit = 1 << id;
    [
        ("it is disabled", Box::new(move |vgic| write_own(vgic, 0x180, bit))),
        ("its group is disabled", {
            Box::new(|vgic| {
                write(vgic, 0, 0b01);
            })
        }),
        ("its other group is disabled", {
            Box::new(move |vgic| {
                write_own(vgic, 0x080, !bit & 0xFFFF_FFFF);
                write(vgic, 0, 0b10);
            })
        }),
        ("it is latched", Box::new(move |vgic| write_own(vgic, 0x200, bit))),
        ("it is active", Box::new(move |vgic| write_own(vgic, 0x300, bit))),
        ("the vCPU sleeps", {
            Box::new(|vgic| {
                vgic.redistributor_write(ZERO, 0x14, WORD, 2);
            })
        }),
    ]
}

#[test]
fn a_timer_takes_the_short_way_only_if_nothing_is_uncommon() {
    let short = |vgic: &mut Vgic| vgic.hardware_list_register(ZERO, TIMER, PHYSICAL);
    let common = 27 | 26 << 32 | 0xA0 << 48 | field::HARDWARE | field::GROUP1 | field::PENDING;
    assert_eq!(short(&mut ready(1, 4)), Some(common));
    for (why, prepare) in uncommon(TIMER.0) {
        let mut vgic = ready(1, 4);
        prepare(&mut vgic);
        assert_eq!(short(&mut vgic), None, "{why}");
        assert_eq!(vgic.hardware_linked(ZERO), 0, "nothing has changed");
    }
    let mut vgic = ready(1, 4);
    for (vcpu, interrupt, physical) in [(VcpuId(8), 27, 26), (ZERO, 32, 26), (ZERO, 27, 32)] {
        assert_eq!(vgic.hardware_list_register(vcpu, IntId(interrupt), IntId(physical)), None);
        assert!(vgic.raise_hardware(vcpu, IntId(interrupt), IntId(physical)).is_empty());
        assert!(!vgic.lower_hardware(vcpu, IntId(interrupt)));
    }
    assert_eq!(
        (vgic.hardware_linked(ZERO), vgic.hardware_linked(VcpuId(8)), vgic.detach_hardware(VcpuId(8))),
        (0, 0, 0)
    );
    // It is pending already, by the long way; or by ISPENDR, in a list register.
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    assert_eq!(short(&mut vgic), None);
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write_own(&mut vgic, 0x200, 1 << 27);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(short(&mut vgic), None);
    acknowledge(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((shown(&lrs), short(&mut vgic)), ([(27, ACTIVE)].to_vec(), None));
}

#[test]
fn an_sgi_takes_the_short_way_only_if_nothing_is_uncommon() {
    let short = |vgic: &mut Vgic, value, free| vgic.sgi_list_register(ZERO, value, &mut list_registers(), free);
    let own = sgi(5, 1);
    assert_eq!(short(&mut ready(2, 4), own, 0b1100), Some(2), "the first that is free");
    assert_eq!(short(&mut ready(2, 4), own, 0), None, "none is");
    for (why, prepare) in uncommon(5) {
        let mut vgic = ready(2, 4);
        prepare(&mut vgic);
        assert_eq!(short(&mut vgic, own, 0b1111), None, "{why}");
    }
    for other in [0, 1 << 1, 0b11, 1 << 15 | 1, 1 << 16 | 1, 1 << 32 | 1, 1 << 40 | 1, 1 << 44 | 1, 1 << 48 | 1] {
        assert_eq!(short(&mut ready(2, 4), sgi(5, other), 0b1111), None, "{other:#x} is not itself alone");
    }
    let mut lrs = list_registers();
    assert_eq!(ready(2, 4).sgi_list_register(VcpuId(8), sgi(5, 1 << 8), &mut lrs, 0b1111), None);
}

/// One behind the other, as a kernel does that wakes itself: each finds the ledger of those before it open, and closes it.
#[test]
fn sgis_that_were_handled_make_room_and_others_stay() {
    let (mut vgic, mut lrs) = (ready(2, 4), list_registers());
    vgic.flush(ZERO, &mut lrs);
    assert!(lrs.at_rest);
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(5, 1), &mut lrs, 0b1111), Some(0));
    assert_eq!((lrs.lr[0], lrs.used, lrs.at_rest), (5 | 0xA0 << 48 | field::GROUP1 | field::PENDING, 1, false));
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(5, 1), &mut lrs, 0b1110), None, "it is there already");
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(6, 1), &mut lrs, 0b1110), Some(1));
    // The guest handles both; 6 comes again, and a timer beside it, which is no SGI and stays in the ledger.
    lrs.lr[2] = vgic.hardware_list_register(ZERO, TIMER, PHYSICAL).unwrap();
    lrs.used |= 0b100;
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(6, 1), &mut lrs, 0b1111), Some(0));
    assert_eq!((lrs.used, lrs.lr[0] & field::VIRTUAL), (0b101, 6));
    assert_eq!(vgic.redistributor_read(ZERO, private(0x200), WORD), 1 << 27 | 1 << 6, "5 is not pending any more");
    (lrs.lr[2], lrs.lr[1]) = (0, 0);
    acknowledge(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(6, ACTIVE)]);
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(6, 1), &mut lrs, 0b1110), None, "it is active");
    end(&mut lrs, 0);
    settle(&mut vgic, ZERO, &mut lrs);
    assert!(vgic.is_quiet(ZERO));
}

#[test]
fn an_sgi_that_was_handled_takes_nothing_of_others_along() {
    let (mut vgic, mut lrs) = (ready(2, 8), list_registers());
    let own = |vgic: &Vgic, offset| vgic.redistributor_read(ZERO, private(offset), WORD);
    vgic.set_ppi_level(ZERO, IntId(16), crate::Line::High);
    for id in [5, 6, 7] {
        vgic.send_sgi(ZERO, sgi(id, 1), GROUP1);
    }
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 1);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!(shown(&lrs), [(5, PENDING), (6, ACTIVE), (7, PENDING), (16, PENDING)]);
    // 5 is handled; so is 16, which is no SGI and stays in the ledger until the next sync.
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(8, 1), &mut lrs, 0b1111_1001), Some(0));
    assert_eq!((lrs.used, own(&vgic, 0x300)), (0b1111, 1 << 6));
    assert_eq!(own(&vgic, 0x200) & 0x1FF, 1 << 7 | 1 << 8);
    let timer = vgic.hardware_list_register(ZERO, TIMER, PHYSICAL);
    assert!(timer.is_some() && vgic.hardware_linked(ZERO) == 1 << 27);
    assert_eq!(own(&vgic, 0x300), 1 << 6, "what is active stays so beside a timer");
    let disabled = vgic.redistributor_write(ZERO, private(0x180), WORD, 1 << 7);
    assert_eq!(disabled, VcpuSet::only(ZERO), "7 is in a list register still");
}

#[test]
fn the_short_ways_are_as_good_for_the_second_vcpu_and_for_group_0() {
    let (mut vgic, mut lrs) = (ready(2, 4), list_registers());
    assert_eq!(vgic.sgi_list_register(VcpuId(1), sgi(5, 0b10), &mut lrs, 0b1111), Some(0));
    write_own(&mut vgic, 0x080, !(1 << 27));
    let value = vgic.hardware_list_register(ZERO, TIMER, PHYSICAL).unwrap();
    assert_eq!(value & field::GROUP1, 0);
    write_own(&mut vgic, 0x080, !(1 << 6));
    let mut lrs = list_registers();
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(6, 1), &mut lrs, 0b1111), Some(0));
    assert_eq!(vgic.sgi_list_register(ZERO, sgi(7, 1), &mut lrs, 0b1110), Some(1));
    assert_eq!((lrs.lr[0] & field::GROUP1, lrs.lr[1] & field::GROUP1), (0, field::GROUP1));
}

#[test]
fn a_vcpu_that_is_not_there_deactivates_nothing() {
    let mut vgic = ready(2, 4);
    write(&mut vgic, 0x304, 1);
    for vcpu in [2, 7] {
        assert_eq!(vgic.deactivate(VcpuId(vcpu), IntId(32)), VcpuSet::EMPTY);
    }
    assert_eq!(vgic.distributor_read(0x304, WORD), 1);
}

/// What a vCPU's owner keeps of physical interrupts: handed over once, over a reset too.
#[test]
fn physical_interrupts_are_handed_back_over_a_reset() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    write_own(&mut vgic, 0x380, 1 << 27);
    vgic.sync(ZERO, &mut lrs);
    vgic.raise_hardware(ZERO, IntId(30), IntId(29));
    vgic.reset();
    for deactivate in [1 << 26 | 1 << 29, 0] {
        vgic.flush(ZERO, &mut lrs);
        assert_eq!((core::mem::take(&mut lrs.deactivate), lrs.used), (deactivate, 0));
    }
}

/// It may leave its CPU only if nothing of that CPU is its own.
#[test]
fn whose_timer_has_fired_is_not_at_rest() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    write_own(&mut vgic, 0x180, 1 << 27);
    vgic.raise_hardware(ZERO, TIMER, PHYSICAL);
    settle(&mut vgic, ZERO, &mut lrs);
    assert_eq!((lrs.used, lrs.at_rest), (0, false));
    assert_eq!(vgic.detach_hardware(ZERO), 1 << 26);
    settle(&mut vgic, ZERO, &mut lrs);
    assert!(lrs.at_rest);
}

#[test]
fn an_owner_that_has_emptied_the_hardware_may_forget() {
    let (mut vgic, mut lrs) = (ready(1, 4), list_registers());
    vgic.set_spi_level(IntId(32), crate::Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    vgic.sync(ZERO, &mut lrs);
    lrs.deactivate = 1;
    lrs.hcr_dirty = true;
    lrs.forget(vgic.usual_control());
    assert_eq!(lrs.hcr, ListRegisters::new().hcr);
    assert_eq!((lrs.used, lrs.dirty, lrs.deactivate, lrs.hcr_dirty, lrs.at_rest), (0, 0, 0, false, false));
    vgic.flush(ZERO, &mut lrs);
    assert_eq!((shown(&lrs), lrs.dirty), ([(32, PENDING)].to_vec(), 1), "it is written, whatever was there");
    assert_eq!(ListRegisters::default().hcr, ListRegisters::new().hcr);
}

/// What wakes a vCPU out of a power-down: what is pending, enabled and routed to it, and that nobody has in hand.
#[test]
fn only_what_could_be_taken_is_a_wake_request() {
    let mut vgic = ready(2, 4);
    let (mut zero, mut one) = (list_registers(), list_registers());
    assert!(!vgic.has_wake_request(ZERO) && !vgic.has_wake_request(VcpuId(9)));
    vgic.set_ppi_level(ONE, IntId(23), crate::Line::High);
    assert!(!vgic.has_wake_request(ZERO) && vgic.has_wake_request(ONE));
    settle(&mut vgic, ONE, &mut one);
    acknowledge(&mut one, 0);
    vgic.sync(ONE, &mut one);
    assert!(!vgic.has_wake_request(ONE), "it is active, so it cannot be taken again");
    vgic.set_spi_level(IntId(64), crate::Line::High);
    assert!(vgic.has_wake_request(ZERO) && !vgic.has_wake_request(ONE));
    settle(&mut vgic, ZERO, &mut zero);
    acknowledge(&mut zero, 0);
    settle(&mut vgic, ZERO, &mut zero);
    vgic.distributor_write(0x6000 + 8 * 64, AccessSize::Double, 1);
    assert!(!vgic.has_wake_request(ONE), "vCPU 0 has it in hand");
    write_own(&mut vgic, 0x200, 1 << 20);
    assert!(vgic.has_wake_request(ZERO));
    assert!(vgic.is_quiet(VcpuId(9)) && !vgic.is_quiet(ZERO));
}

extern crate std;
use std::boxed::Box;
use std::vec::Vec;

/// An activation by hand belongs to whoever has the interrupt in hand, else to whom it is routed, else to vCPU 0.
#[test]
fn an_activation_by_hand_finds_its_vcpu() {
    let mut vgic = ready(3, 4);
    let mut lrs = [list_registers(), list_registers(), list_registers()];
    let mut settle_all = |vgic: &mut Vgic| -> Vec<Vec<(u64, u64)>> {
        for (vcpu, lrs) in (0..).zip(&mut lrs) {
            settle(vgic, VcpuId(vcpu), lrs);
        }
        lrs.iter().map(shown).collect()
    };
    vgic.distributor_write(0x6100, AccessSize::Double, 2);
    vgic.set_spi_level(IntId(32), crate::Line::High);
    settle_all(&mut vgic);
    // 32 is in hand at 2, and goes to 1 next; 33 goes to 1; 34 to nobody.
    for (spi, vcpu) in [(32, 1), (33, 1), (34, 9)] {
        vgic.distributor_write(0x6000 + 8 * spi, AccessSize::Double, vcpu);
    }
    write(&mut vgic, 0x304, 0b111);
    assert_eq!(vgic.distributor_read(0x304, WORD), 0b111);
    let held = settle_all(&mut vgic);
    assert_eq!(held, [[(34, ACTIVE)], [(33, ACTIVE)], [(32, ACTIVE)]], "32 is pending, too, and 1 has to wait for it");
    write(&mut vgic, 0x304, 0b111);
    assert_eq!(vgic.distributor_read(0x304, WORD), 0b111, "they were active already");
}
