//! States that do not fit, or that no guest could have reached, are refused. `tests/against_naive.rs` shows that a
//! restored state behaves as the saved one.

use super::{ONE, SPI, ZERO, acknowledge, list_registers, ready, settle, vgic};
use crate::saved::{Saved, Unfit};
use crate::{Config, Vgic};
use units::IntId;

pub(super) const HERE: Config = Config {
    vcpus: 2,
    list_registers: 4,
    priority_bits: 5,
    preemption_bits: 5,
    tells_of_group_0: true,
    traps_deactivation: true,
};

fn saved() -> Saved {
    ready(2, 4).save().unwrap()
}

fn refusal(change: impl FnOnce(&mut Saved)) -> Unfit {
    let mut changed = saved();
    change(&mut changed);
    Vgic::restore(HERE, &changed).unwrap_err()
}

#[test]
fn what_is_still_loaded_or_linked_is_not_saved() {
    let mut vgic = ready(2, 4);
    let mut lrs = list_registers();
    vgic.pulse_spi(SPI);
    vgic.set_spi_level(SPI, crate::Line::High);
    settle(&mut vgic, ZERO, &mut lrs);
    acknowledge(&mut lrs, 0);
    assert_eq!(vgic.save(), Err(Unfit::NotSettled(ZERO)));
    vgic.sync(ZERO, &mut lrs);
    assert_eq!(vgic.save().unwrap().vcpus[0].active, [0, 1, 0, 0]);
    vgic.raise_hardware(ONE, IntId(27), IntId(26));
    assert_eq!(vgic.save(), Err(Unfit::NotSettled(ONE)));
    vgic.detach_hardware(ONE);
    assert!(vgic.save().is_ok());
    // A timer that the guest handles.
    let mut lrs = list_registers();
    vgic.raise_hardware(ONE, IntId(27), IntId(26));
    settle(&mut vgic, ONE, &mut lrs);
    acknowledge(&mut lrs, 0);
    vgic.sync(ONE, &mut lrs);
    assert_eq!(vgic.save(), Err(Unfit::NotSettled(ONE)));
}

#[test]
fn a_host_that_has_less_is_refused() {
    let saved = Vgic::new(Config { priority_bits: 7, preemption_bits: 6, ..HERE }).save().unwrap();
    assert_eq!(Vgic::restore(HERE, &saved).unwrap_err(), Unfit::PriorityBits(7));
    let wide = Config { priority_bits: 7, ..HERE };
    assert_eq!(Vgic::restore(wide, &saved).unwrap_err(), Unfit::PreemptionBits(6));
    let one = vgic(1, 4).save().unwrap();
    assert_eq!(Vgic::restore(HERE, &one).unwrap_err(), Unfit::Vcpus(1));
}

/// It may go to a host that has more, and back again.
#[test]
fn the_guest_keeps_its_bits() {
    let saved = vgic(2, 4).save().unwrap();
    let there =
        Vgic::restore(Config { priority_bits: 8, preemption_bits: 7, list_registers: 16, ..HERE }, &saved).unwrap();
    assert_eq!(there.save().as_ref(), Ok(&saved));
    assert_eq!(Vgic::restore(HERE, &there.save().unwrap()).unwrap().save(), Ok(saved));
}

#[test]
fn what_nobody_can_have_saved_is_refused() {
    let impossible = |change: fn(&mut Saved)| match refusal(change) {
        Unfit::Impossible(what) => what,
        other => panic!("{other}"),
    };
    assert!(impossible(|saved| saved.groups = 4).contains("control register"));
    assert!(impossible(|saved| saved.preemption_bits = 0).contains("control register"));
    assert!(impossible(|saved| saved.preemption_bits = 4).contains("control register"));
    assert!(impossible(|saved| saved.priority_bits = 4).contains("control register"));
    assert!(impossible(|saved| saved.shared[2].priority[31] = 1).contains("priority"));
    assert!(impossible(|saved| saved.vcpus[1].private.priority[0] = 4).contains("priority"));
    assert!(impossible(|saved| saved.router[95] = 1 << 24).contains("IROUTER"));
    assert!(impossible(|saved| saved.vcpus[0].private.edge = 0xFFFE).contains("SGI"));
    assert!(impossible(|saved| saved.vcpus[0].declines = 4).contains("two groups"));
    assert!(impossible(|saved| saved.vcpus[0].interface = 4).contains("two groups"));
    assert!(impossible(|saved| saved.vcpus[0].set_aside[0] = 1).contains("set aside"));
    assert!(impossible(|saved| saved.shared[0].kept = 1).contains("acknowledged with"));
    assert!(impossible(|saved| saved.vcpus[1].private.kept = 1).contains("acknowledged with"));
    assert!(impossible(|saved| saved.shared[1].kept_group = 2).contains("acknowledged with"));
    assert!(impossible(|saved| saved.shared[2].kept_priority[7] = 8).contains("acknowledged with"));
    assert!(
        impossible(|saved| {
            saved.vcpus[1].active[2] = 1;
            saved.shared[1].kept = 1;
            saved.shared[1].kept_priority[0] = 1;
        })
        .contains("a priority has bits")
    );
    assert!(
        impossible(|saved| {
            saved.vcpus[0].active[2] = 1;
            saved.vcpus[1].active[2] = 1;
        })
        .contains("two vCPUs")
    );
}

#[test]
fn refusals_are_sentences() {
    for (unfit, text) in [
        (Unfit::NotSettled(ONE), "vCPU 1 still has interrupts in its list registers"),
        (Unfit::Vcpus(3), "the interrupt controller was saved with 3 vCPUs"),
        (Unfit::PriorityBits(7), "its guest knows 7 priority bits, this CPU has fewer"),
        (Unfit::PreemptionBits(6), "its guest knows 6 preemption bits, this CPU has fewer"),
        (Unfit::Impossible("a bit"), "the interrupt controller's state is damaged: a bit"),
    ] {
        assert_eq!(std::format!("{unfit}"), text);
    }
}

extern crate std;
