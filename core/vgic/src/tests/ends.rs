//! What of the activations runs, what is set aside, and which of them an end of interrupt without a list register means.
//!
//! A wrong answer is seen by the guest: what it has ended stays active and never comes again, or something that it still handles
//! comes a second time.

extern crate std;

use super::shortage::{active, note, raise};
use super::{ACTIVE, GROUP1, ONE, PENDING, ZERO, acknowledge, end, list_registers, private, ready, settle, sgi, shown};
use crate::{AccessSize, Line, ListRegisters, Vgic, list_register as field, virtual_control, virtual_interface};
use std::vec::Vec;
use units::{IntId, VcpuSet};

/// One vCPU, and the active priorities of its CPU interface, all of Group 1.
struct Guest {
    vgic: Vgic,
    lrs: ListRegisters,
    priorities: u128,
}

impl Guest {
    fn new(vcpus: usize, list_registers_: usize) -> Self {
        Self { vgic: ready(vcpus, list_registers_), lrs: list_registers(), priorities: 0 }
    }

    /// What the owner does at an exit.
    fn settle(&mut self) -> VcpuSet {
        let others = settle(&mut self.vgic, ZERO, &mut self.lrs);
        note(&mut self.vgic, &self.lrs, self.priorities);
        others
    }

    /// Acknowledges `id`, which is in a list register, at `priority`.
    fn take(&mut self, id: u64, priority: u8) {
        let number = (0..16).find(|&number| {
            self.lrs.used >> number & 1 != 0
                && self.lrs.lr[number] & (field::VIRTUAL | field::PENDING) == id | field::PENDING
        });
        acknowledge(&mut self.lrs, number.unwrap());
        self.priorities |= 1 << (priority / 8);
    }

    /// The SPI `id` is raised at `priority`, taken, and its line falls.
    fn handle(&mut self, id: u32, priority: u8) {
        raise(&mut self.vgic, id, u64::from(priority));
        self.settle();
        self.take(u64::from(id), priority);
        self.vgic.set_spi_level(IntId(id), Line::Low);
        self.settle();
    }

    /// Sets the priority of the SPI `id` by hand.
    fn set_priority(&mut self, id: u64, priority: u8) {
        self.vgic.sync(ZERO, &mut self.lrs);
        self.vgic.distributor_write(0x400 + id, AccessSize::Byte, u64::from(priority));
        self.vgic.flush(ZERO, &mut self.lrs);
        note(&mut self.vgic, &self.lrs, self.priorities);
    }

    /// Ends all that is active in a list register, and in the same breath `others` that have none.
    fn end_all_and(&mut self, others: u64) -> VcpuSet {
        for lr in &mut self.lrs.lr {
            *lr &= !field::ACTIVE;
        }
        self.lrs.hcr |= others << virtual_control::EOI_COUNT_SHIFT;
        settle(&mut self.vgic, ZERO, &mut self.lrs)
    }
}

/// The guest changes the priority of what it handles. No interrupt has its active priority then, and one that is not active must not
/// be taken for it.
#[test]
fn what_runs_goes_on_when_its_priority_is_changed() {
    let mut guest = Guest::new(1, 1);
    guest.handle(40, 0xA0);
    raise(&mut guest.vgic, 41, 0x20);
    guest.settle();
    guest.set_priority(40, 0x80);
    guest.take(41, 0x20);
    guest.vgic.set_spi_level(IntId(41), Line::Low);
    guest.settle();
    guest.end_all_and(1);
    assert_eq!(active(&guest.vgic), 0, "its end is its end");
}

/// While the priority of what runs is changed, it looks as if the next one had overtaken it. It runs all the same.
#[test]
fn what_looked_as_if_it_were_overtaken_runs_when_it_has_its_priority_again() {
    let mut guest = Guest::new(1, 1);
    guest.handle(40, 0xA0);
    guest.set_priority(40, 0x98);
    guest.handle(41, 0x98);
    guest.set_priority(40, 0xA0);
    assert_eq!(shown(&guest.lrs), [(41, ACTIVE)]);
    guest.end_all_and(1);
    assert_eq!(active(&guest.vgic), 0);
}

/// Without a list register the hardware deactivates nothing, so the owner must. Else the timer never fires again.
#[test]
fn the_end_of_a_timers_interrupt_without_a_list_register_reaches_the_physical_one() {
    let mut guest = Guest::new(1, 1);
    guest.vgic.raise_hardware(ZERO, IntId(27), IntId(26));
    guest.settle();
    guest.take(27, 0xA0);
    guest.handle(41, 0x20);
    assert_eq!((shown(&guest.lrs), guest.lrs.deactivate), ([(41, ACTIVE)].to_vec(), 0));
    guest.end_all_and(1);
    assert_eq!((guest.lrs.deactivate, guest.vgic.hardware_linked(ZERO)), (1 << 26, 0));
    assert!(guest.vgic.is_quiet(ZERO));
}

/// The end of an SGI, of an SPI that has the timer's number in its word, or of an activation of the timer's INTID that was no
/// timer's, is not the end of the timer's.
#[test]
fn no_other_end_without_a_list_register_reaches_a_physical_interrupt() {
    let mut guest = Guest::new(1, 1);
    guest.vgic.send_sgi(ZERO, sgi(5, 1), GROUP1);
    guest.settle();
    guest.take(5, 0xA0);
    guest.handle(41, 0x20);
    guest.end_all_and(1);
    assert!(guest.vgic.is_quiet(ZERO));
    assert_eq!(guest.lrs.deactivate, 0);

    let mut guest = Guest::new(1, 1);
    guest.vgic.raise_hardware(ZERO, IntId(27), IntId(26));
    guest.settle();
    guest.take(27, 0xA0);
    guest.handle(59, 0x60);
    guest.handle(41, 0x20);
    guest.end_all_and(1);
    assert_eq!((guest.lrs.deactivate, guest.vgic.hardware_linked(ZERO)), (0, 1 << 27));
    assert_eq!(shown(&guest.lrs), [(27, ACTIVE)]);

    let mut guest = Guest::new(1, 1);
    guest.vgic.redistributor_write(ZERO, private(0x200), AccessSize::Word, 1 << 27);
    guest.settle();
    guest.take(27, 0xA0);
    guest.handle(41, 0x20);
    guest.vgic.raise_hardware(ZERO, IntId(27), IntId(26));
    guest.end_all_and(1);
    assert_eq!((guest.lrs.deactivate, guest.vgic.hardware_linked(ZERO)), (0, 1 << 27));
    assert_eq!(shown(&guest.lrs), [(27, PENDING)], "it has fired, and comes now");
    assert_ne!(guest.lrs.lr[0] & field::HARDWARE, 0);
}

/// A level-sensitive interrupt whose line is still high, and which goes to another vCPU by now.
#[test]
fn whoever_waited_for_what_ended_without_a_list_register_is_told() {
    let mut guest = Guest::new(2, 1);
    guest.handle(40, 0xA0);
    guest.handle(41, 0x20);
    guest.vgic.set_spi_level(IntId(40), Line::High);
    guest.vgic.distributor_write(0x6000 + 8 * 40, AccessSize::Double, 1);
    assert_eq!(guest.end_all_and(1), VcpuSet::only(ONE));
}

/// The guest drops the priority of 40 (EOImode one), takes 41 at the same priority, and so much more on top of it that neither has a
/// list register. What it ends then, with EOImode zero, is 41.
fn overtake(older: impl FnOnce(&mut Guest), later: impl FnOnce(&mut Guest), nested: &[(u32, u8)], taken: u32) {
    let mut guest = Guest::new(1, 5);
    guest.lrs.vmcr |= virtual_interface::SPLIT_END;
    guest.handle(40, 0xA0);
    guest.priorities = 0;
    older(&mut guest);
    raise(&mut guest.vgic, 41, 0xA0);
    later(&mut guest);
    guest.vgic.set_spi_level(IntId(41), Line::Low);
    guest.settle();
    guest.lrs.vmcr &= !virtual_interface::SPLIT_END;
    for &(id, priority) in nested {
        guest.handle(id, priority);
    }
    let loaded: Vec<u64> = shown(&guest.lrs).into_iter().map(|(id, _)| id).collect();
    assert!(loaded.len() == 5 && !loaded.contains(&40) && !loaded.contains(&41), "{loaded:?}");
    guest.end_all_and(1);
    assert_eq!(active(&guest.vgic) & 0b11, 0b01, "40 stays, with {taken} others taken beside 41");
}

/// Whatever else is active, in whichever word of interrupts.
#[test]
fn what_was_overtaken_is_found_among_all_that_is_active() {
    let older = |guest: &mut Guest| {
        guest.vgic.sync(ZERO, &mut guest.lrs);
        guest.vgic.redistributor_write(ZERO, private(0x300), AccessSize::Word, 1 << 20);
        for word in [2, 3] {
            guest.vgic.distributor_write(0x300 + 4 * word, AccessSize::Word, 1 << 20);
        }
        guest.vgic.flush(ZERO, &mut guest.lrs);
    };
    let later = |guest: &mut Guest| {
        guest.settle();
        guest.take(41, 0xA0);
    };
    overtake(older, later, &[(50, 0x80), (51, 0x60), (52, 0x40), (53, 0x20), (54, 0x10)], 0);
}

/// Between two looks at the list registers the guest takes interrupts of all words, each in the handler of the one before.
#[test]
fn what_was_overtaken_is_found_when_much_is_taken_at_once() {
    let later = |guest: &mut Guest| {
        guest.vgic.redistributor_write(ZERO, private(0x400 + 20), AccessSize::Byte, 0x98);
        guest.vgic.redistributor_write(ZERO, private(0x200), AccessSize::Word, 1 << 20);
        raise(&mut guest.vgic, 70, 0x90);
        raise(&mut guest.vgic, 100, 0x88);
        guest.settle();
        for (id, priority) in [(41, 0xA0), (20, 0x98), (70, 0x90), (100, 0x88)] {
            guest.take(id, priority);
        }
        for id in [70, 100] {
            guest.vgic.set_spi_level(IntId(id), Line::Low);
        }
    };
    overtake(|_| (), later, &[(50, 0x40), (51, 0x20)], 3);
}

/// What the guest has interrupted is not overtaken: it keeps its list register before something that nobody is going to end.
#[test]
fn what_was_interrupted_at_another_priority_is_not_overtaken() {
    let mut guest = Guest::new(1, 4);
    for (id, priority) in [(40, 0xA0), (41, 0x80), (42, 0x40)] {
        guest.handle(id, priority);
    }
    guest.set_priority(50, 0);
    guest.vgic.sync(ZERO, &mut guest.lrs);
    guest.vgic.distributor_write(0x304, AccessSize::Word, 1 << (50 - 32));
    guest.vgic.flush(ZERO, &mut guest.lrs);
    raise(&mut guest.vgic, 60, 0x10);
    guest.settle();
    assert_eq!(shown(&guest.lrs), [(42, ACTIVE), (41, ACTIVE), (40, ACTIVE), (60, PENDING)]);
}

/// vCPU 1 deactivates SGIs that vCPU 0 handles, and before vCPU 0 is told it sends another one to itself by the short way.
#[test]
fn what_was_deactivated_from_elsewhere_stays_so_over_an_sgi_that_takes_the_short_way() {
    let mut guest = Guest::new(2, 4);
    guest.vgic.redistributor_write(ZERO, private(0x400 + 5), AccessSize::Byte, 0x20);
    for (id, priority) in [(6, 0xA0), (5, 0x20)] {
        guest.vgic.send_sgi(ZERO, sgi(id, 1), GROUP1);
        guest.settle();
        guest.take(id, priority);
    }
    guest.settle();
    assert_eq!(shown(&guest.lrs), [(5, ACTIVE), (6, ACTIVE)]);
    let told = guest.vgic.redistributor_write(ZERO, private(0x380), AccessSize::Word, 1 << 5 | 1 << 6);
    assert_eq!(told, VcpuSet::only(ZERO));
    // The guest has ended 5 itself meanwhile.
    end(&mut guest.lrs, 0);
    assert_eq!(guest.vgic.sgi_list_register(ZERO, sgi(5, 1), &mut guest.lrs, 0b1101), Some(0));
    guest.take(5, 0x20);
    guest.settle();
    assert_eq!(shown(&guest.lrs), [(5, ACTIVE)], "that is the second 5, and 6 is not active any more");
}

/// The end of what is pending still must be told, or it would not come again: its line is high, or an edge came while its handler ran
/// and there was no room to show that. The end of what is not pending need not be.
#[test]
fn the_end_is_told_of_what_comes_again() {
    const EOI: u64 = field::EOI;
    let told = |guest: &Guest, id: u64| {
        let number = (0..16).find(|&number| guest.lrs.lr[number] & field::VIRTUAL == id);
        guest.lrs.lr[number.unwrap()] & EOI
    };
    let mut guest = Guest::new(1, 2);
    // 40 is edge-triggered, 41 is not.
    guest.vgic.distributor_write(0xC08, AccessSize::Word, 2 << (2 * (40 - 32)));
    guest.vgic.pulse_spi(IntId(40));
    guest.settle();
    guest.take(40, 0xA0);
    guest.settle();
    assert_eq!(told(&guest, 40), 0);
    guest.vgic.pulse_spi(IntId(40));
    for id in [41, 42] {
        raise(&mut guest.vgic, id, 0x20);
    }
    guest.settle();
    assert_eq!(shown(&guest.lrs), [(40, ACTIVE), (41, PENDING)]);
    assert_eq!((told(&guest, 40), told(&guest, 41)), (EOI, EOI));
}

/// A vCPU that has an interrupt in a list register must write that anew when its priority changes.
#[test]
fn a_change_of_priority_is_told_to_whom_it_concerns() {
    let mut guest = Guest::new(2, 4);
    raise(&mut guest.vgic, 40, 0xA0);
    guest.settle();
    for (offset, value, concerned) in [(40, 0xA0, false), (41, 0x20, false), (40, 0x20, true)] {
        let told = guest.vgic.distributor_write(0x400 + offset, AccessSize::Byte, value);
        assert_eq!(told, if concerned { VcpuSet::only(ZERO) } else { VcpuSet::EMPTY }, "{offset}: {value:#x}");
    }
    let told = guest.vgic.distributor_write(0x428, AccessSize::Word, 0x4040_4060);
    assert_eq!(told, VcpuSet::only(ZERO), "among others");
}
