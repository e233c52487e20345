//! The times that a guest sees agree, whatever is asked of its VM and however late its threads hear of that: what its counter shows,
//! what was stolen from it, and when a watchdog bites.

use abi::bundle::Doors;
use proptest::prelude::*;
use snapshot::SavedVm;
use units::VcpuId;
use whole_vm::{Cause, Done, VcpuState, WholeVm};

const FIRST: VcpuId = VcpuId(0);
/// Ticks of the host's counter, and here of the guest's too. All times are whole ones of these, by which watchdogs go.
const MILLISECOND: u64 = 1_000;

/// Its guest may set watchdogs up.
fn policy() -> Doors {
    Doors { wfe: true, watchdog_choices: 0x1f, ..Doors::default() }
}

/// What happens, for so many milliseconds.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The guest runs; or its VM stands still, and nobody wakes its threads.
    Pass(u64),
    /// Its threads wait for a CPU: they could run the guest, or were woken for nothing while it stands still.
    Wait(u64),
    /// The VM is paused, and its threads wait that long before they leave the guest.
    Pause(u64),
    /// It goes on, and its threads wait that long before they enter the guest.
    Resume(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let milliseconds = 0..100_u64;
    let event = prop_oneof![
        milliseconds.clone().prop_map(Event::Pass),
        milliseconds.clone().prop_map(Event::Wait),
        milliseconds.clone().prop_map(Event::Pause),
        milliseconds.prop_map(Event::Resume),
    ];
    proptest::collection::vec(event, 0..40)
}

/// What the guest should see, in milliseconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Expected {
    ran: u64,
    stolen: u64,
    /// The part of that for which its watchdogs stood still already: it was asked to pause, and in the guest still.
    frozen: u64,
    /// For how long it stood still.
    paused: u64,
}

impl Expected {
    fn happens(&mut self, event: Event, is_paused: bool) {
        match (event, is_paused) {
            (Event::Pass(time), false) => self.ran += time,
            (Event::Wait(time), false) | (Event::Resume(time), true) => self.stolen += time,
            (Event::Pass(time) | Event::Wait(time), true) => self.paused += time,
            (Event::Pause(time), false) => {
                self.stolen += time;
                self.frozen += time;
            }
            (Event::Pause(_), true) | (Event::Resume(_), false) => {}
        }
    }
}

fn happens(vm: &mut WholeVm, event: Event) {
    let is_paused = vm.place(FIRST) == VcpuState::Standing;
    match event {
        Event::Pass(time) => vm.pass(time * MILLISECOND),
        Event::Wait(time) => vm.wait_for_cpus(time * MILLISECOND),
        Event::Pause(time) if !is_paused => {
            vm.delay(time * MILLISECOND);
            vm.pause();
        }
        Event::Resume(time) if is_paused => {
            vm.delay(time * MILLISECOND);
            vm.resume();
        }
        Event::Pause(_) | Event::Resume(_) => {}
    }
    vm.pass(0);
}

/// Its guest sets a watchdog up that writes a line when so many milliseconds are over.
fn watched(pause_stops_time: bool, timeout: u64) -> WholeVm {
    let mut vm = WholeVm::running(policy(), pause_stops_time);
    let words = [abi::wfe::CONFIGURE, timeout, watchdog::Action::Log.number().into()];
    (0..).zip(words).for_each(|(number, value)| vm.set_register(FIRST, number, value));
    vm.exit(FIRST, Cause { esr: 0x07e0_0001, far: 0, hpfar: 0 });
    assert_eq!(vm.register(FIRST, 0), abi::wfe::DONE);
    vm.take_done();
    vm
}

fn has_bitten(vm: &mut WholeVm) -> bool {
    vm.take_done().iter().any(|done| matches!(done, Done::Bite(_)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A pause adds nothing to what is stolen from a guest. What it ran and what was stolen from it make up what its counter shows,
    /// less the pauses if those stop it; and its watchdogs go by the same.
    #[test]
    fn a_pause_is_nobodys_time(pause_stops_time: bool, timeout in 100..1000_u64, events in events()) {
        let mut vm = watched(pause_stops_time, timeout);
        let begin = vm.count();
        let (mut expected, mut bitten) = (Expected::default(), false);
        for event in events {
            let is_paused = vm.place(FIRST) == VcpuState::Standing;
            expected.happens(event, is_paused);
            happens(&mut vm, event);
            let Expected { ran, stolen, frozen, paused } = expected;
            prop_assert_eq!(vm.stolen(FIRST), stolen * MILLISECOND, "stolen, after {:?}", event);
            let stood = if pause_stops_time { paused } else { 0 };
            prop_assert_eq!(vm.count() - begin, (ran + stolen + paused - stood) * MILLISECOND, "counted, after {:?}", event);
            bitten |= has_bitten(&mut vm);
            // A millisecond later than asked: none acts early, whenever in a millisecond it was set up.
            prop_assert_eq!(bitten, ran + stolen - frozen > timeout, "bitten, after {:?}", event);
        }
    }
}

/// An hour's pause, in which its thread is woken for nothing and waits for its CPU, is not to be seen in any of the three.
#[test]
fn a_long_pause_is_not_stolen() {
    let mut vm = watched(true, 1_000);
    let (begin, hour) = (vm.count(), 3_600_000);
    for event in [Event::Pass(600), Event::Pause(0), Event::Pass(hour), Event::Wait(hour), Event::Resume(30)] {
        happens(&mut vm, event);
    }
    assert_eq!(
        (vm.stolen(FIRST), vm.count() - begin, has_bitten(&mut vm)),
        (30 * MILLISECOND, 630 * MILLISECOND, false)
    );
    happens(&mut vm, Event::Pass(370));
    assert!(!has_bitten(&mut vm));
    happens(&mut vm, Event::Pass(1));
    assert!(has_bitten(&mut vm));
}

/// A VM from which 25 ms were stolen, saved.
fn saved() -> SavedVm {
    let mut vm = watched(true, 1_000);
    [Event::Wait(20), Event::Pause(5)].into_iter().for_each(|event| happens(&mut vm, event));
    assert_eq!(vm.stolen(FIRST), 25 * MILLISECOND);
    vm.save().expect("it stands still")
}

/// What was stolen goes with a VM that is moved, into one that was never started: what its threads wait before its vCPU is in the guest
/// is nobody's loss, and from then on it adds up.
#[test]
fn what_was_stolen_moves_along() {
    let mut there = WholeVm::for_state(policy(), true);
    there.wait_for_cpus(300 * MILLISECOND);
    there.restore(saved()).expect("it is of the same shape");
    there.wait_for_cpus(50 * MILLISECOND);
    assert_eq!((there.place(FIRST), there.stolen(FIRST)), (VcpuState::Out, 25 * MILLISECOND));
    there.delay(3 * MILLISECOND);
    there.resume();
    assert_eq!((there.place(FIRST), there.stolen(FIRST)), (VcpuState::In, 25 * MILLISECOND));
    happens(&mut there, Event::Wait(40));
    assert_eq!(there.stolen(FIRST), 65 * MILLISECOND);
}

/// It does so into one that has run: what was stolen from that one, and what its thread waited, is forgotten. That thread is in the pause
/// of a guest already, so what it waits to go on is stolen.
#[test]
fn what_was_stolen_moves_into_one_that_ran() {
    let mut there = watched(true, 1_000);
    [Event::Wait(300), Event::Pause(7)].into_iter().for_each(|event| happens(&mut there, event));
    there.restore(saved()).expect("it is of the same shape");
    [Event::Wait(50), Event::Resume(3), Event::Pass(10)].into_iter().for_each(|event| happens(&mut there, event));
    assert_eq!(there.stolen(FIRST), 28 * MILLISECOND);
}
