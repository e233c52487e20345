//! When the thread wakes, for which VM, and how often.

use units::{Ticks, VmId};

use super::{Agenda, Due, Looks, Planned, look_at};

#[global_allocator]
static HEAP: scarce::Heap = scarce::Heap;

const ONE: VmId = VmId(0);
const OTHER: VmId = VmId(5);

#[test]
fn a_look_is_only_brought_forward_and_never_before_it_may_be() {
    let at = |deadline, from, next: Option<u64>| look_at(Ticks(deadline), Ticks(from), next.map(Ticks)).map(|at| at.0);
    assert_eq!(at(50, 0, None), Some(50));
    assert_eq!(at(50, 80, None), Some(80), "it was looked at too often");
    assert_eq!(at(50, 0, Some(60)), Some(50));
    assert_eq!(at(50, 0, Some(50)), None);
    assert_eq!(at(50, 0, Some(40)), None, "the thread finds out then");
    assert_eq!(at(50, 80, Some(70)), None);
}

#[test]
fn the_thread_is_woken_for_the_first_look_of_all() {
    let mut agenda = Agenda::new();
    agenda.reserve(8);
    let planned = |look, is_first| Planned { look: Ticks(look), is_first };
    assert_eq!(agenda.bring_forward(ONE, Ticks(100)), planned(100, true));
    assert_eq!(agenda.bring_forward(OTHER, Ticks(100)), planned(100, false));
    assert_eq!(agenda.bring_forward(OTHER, Ticks(70)), planned(70, true));
    assert_eq!(agenda.bring_forward(OTHER, Ticks(90)), planned(70, false), "it stays as it was");
    assert_eq!(agenda.take_due(Ticks(69)), Due::Sleep(Some(Ticks(70))));
    assert_eq!(agenda.take_due(Ticks(70)), Due::Look(OTHER));
    assert_eq!(agenda.take_due(Ticks(70)), Due::Sleep(Some(Ticks(100))));
    assert_eq!(agenda.take_due(Ticks(100)), Due::Look(ONE));
    assert_eq!(agenda.take_due(Ticks(100)), Due::Sleep(None), "each is looked at once");
}

#[test]
fn looks_come_at_a_limited_rate() {
    let mut looks = Looks::new(Ticks(100));
    let next = [1000; 10].map(|now| looks.take(Ticks(now)).0);
    assert_eq!(next[..7], [400, 500, 600, 700, 800, 900, 1000].map(|at: u64| at), "{next:?}");
    assert!(next[7..].iter().all(|&at| at == 1100), "{next:?}");
    assert_eq!(looks.take(Ticks(1100)), Ticks(1200));
}

/// The hypervisor makes room at its start: nothing is allocated where a guest sets up a watchdog.
#[test]
fn there_is_room_for_the_vms_that_it_was_made_for() {
    let mut agenda = Agenda::new();
    agenda.reserve(8);
    scarce::with_only(0, || {
        (0..8).for_each(|vm| {
            agenda.bring_forward(VmId(vm), Ticks(100));
        });
    });
    assert_eq!(agenda.take_due(Ticks(100)), Due::Look(ONE));
}
