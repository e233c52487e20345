//! Which watchdogs a look lets act, in which order, and when the next look is.

use std::vec::Vec;

use abi::bundle::Doors as Policy;
use clock::{GuestClock, GuestTicks};
use units::{Hz, Ticks, VcpuId};
use watchdog::Action;

use super::{Round, RoundStep};
use crate::world::{Event, World};
use crate::{AtExpiry, Bite, Consequence, Watchdogs, Which};

const MEGAHERTZ: Hz = Hz(1_000_000);
const VCPUS: u8 = 2;
/// Whose time is over long since.
const LATE: Ticks = Ticks(5_000_000);

/// A policy by which the VM's watchdog and both vCPUs' are armed from the beginning.
fn policy(action: Action) -> Policy {
    Policy {
        watchdog_milliseconds: 1000,
        vcpu_watchdog_milliseconds: 300,
        watchdog_action: action.number(),
        generic_watchdog: true,
        ..Policy::default()
    }
}

fn armed(policy: &Policy) -> Watchdogs {
    let mut watchdogs = Watchdogs::new(policy);
    (0..VCPUS).for_each(|id| watchdogs.vcpu_started(VcpuId(id), 0));
    watchdogs
}

fn clock() -> GuestClock {
    GuestClock::like_the_hosts(Ticks(0), MEGAHERTZ)
}

/// All steps of a look at `now`, each performed on a VM that runs; of the Generic Watchdogs so many `signals` have risen.
fn steps(policy: &Policy, watchdogs: &mut Watchdogs, now: Ticks, signals: usize, next: Option<u64>) -> Vec<RoundStep> {
    let (mut world, mut round, mut steps) = (World::running(), Round::new(policy, VCPUS), Vec::new());
    while steps.len() < 40 {
        let step = round.next(watchdogs, &world.life, &clock(), now);
        steps.push(step);
        match step {
            RoundStep::Act(bite) => match bite.consequence::<&str>() {
                Consequence::Pause => world.happen(Event::Pause),
                Consequence::Stop(stop) => world.happen(Event::Stop(stop)),
                Consequence::Nothing | Consequence::SError(_) => {}
            },
            RoundStep::Devices(_) => round.expired(signals, next.map(GuestTicks)),
            RoundStep::LetIn => {}
            RoundStep::Done(_) => return steps,
        }
    }
    panic!("it does not end: {steps:?}")
}

fn acts(action: Action) -> impl Fn(Which) -> RoundStep {
    move |which| {
        RoundStep::Act(Bite {
            which,
            action,
            // vCPU 0 alone is on.
            patient: VcpuId(0),
        })
    }
}

#[test]
fn all_that_are_due_act_and_between_two_others_are_let_in() {
    let policy = policy(Action::Log);
    let act = acts(Action::Log);
    let [own, other] = [0, 1].map(|id| Which::Own(VcpuId(id)));
    let mut watchdogs = armed(&policy);
    // That of vCPU 1 has been patted, and the VM's has time left.
    let caller = crate::Caller { level: vmware::ExceptionLevel::Kernel, vcpu: VcpuId(1), scope: watchdog::Scope::Own };
    watchdogs.pat(caller, 200).unwrap();
    let first = steps(&policy, &mut watchdogs, Ticks(301_000), 0, None);
    let devices = RoundStep::Devices(AtExpiry::Stay);
    // The next is that of vCPU 1, a millisecond behind 500.
    assert_eq!(first, [act(own), RoundStep::LetIn, devices, RoundStep::Done(Some(Ticks(501_000)))]);
    let second = steps(&policy, &mut watchdogs, LATE, 2, None);
    let expected = [
        act(Which::Vm),
        RoundStep::LetIn,
        act(own),
        RoundStep::LetIn,
        act(other),
        RoundStep::LetIn,
        devices,
        act(Which::Device),
        act(Which::Device),
    ];
    assert_eq!(second[..9], expected);
    assert!(matches!(second[9..], [RoundStep::Done(Some(next))] if next.0 > LATE.0), "{second:?}");
}

/// However long those take who are let in, each acts once in a look: one with a short time does not hold up the others.
#[test]
fn a_watchdog_that_is_due_again_meanwhile_waits_for_the_next_look() {
    let policy = policy(Action::Log);
    let (world, mut round, mut watchdogs) = (World::running(), Round::new(&policy, VCPUS), armed(&policy));
    let steps =
        (5..12).map(|second| round.next(&mut watchdogs, &world.life, &clock(), Ticks(second * 1_000_000 + second)));
    let acted = steps.filter_map(|step| match step {
        RoundStep::Act(bite) => Some(bite.which),
        _ => None,
    });
    assert_eq!(acted.collect::<Vec<_>>(), [Which::Vm, Which::Own(VcpuId(0)), Which::Own(VcpuId(1))]);
}

/// Nobody is let in between the signal of a device and what it leads to: a pause would lose it.
#[test]
fn whoever_ends_or_pauses_it_is_the_last_to_act() {
    for action in [Action::Reset, Action::Pause, Action::Stop] {
        let policy = policy(action);
        let late = steps(&policy, &mut armed(&policy), LATE, 2, Some(9_000_000));
        assert_eq!(late, [acts(action)(Which::Vm), RoundStep::LetIn, RoundStep::Done(None)], "{action:?}");
        let at_expiry = if action == Action::Pause { AtExpiry::BeginAnew } else { AtExpiry::Stay };
        let devices = steps(&policy, &mut armed(&policy), Ticks(0), 2, Some(9_000_000));
        let expected = [RoundStep::Devices(at_expiry), acts(action)(Which::Device), RoundStep::Done(None)];
        assert_eq!(devices, expected, "{action:?}");
    }
}

#[test]
fn the_next_look_is_at_the_first_deadline_of_any() {
    let policy = policy(Action::Log);
    let next =
        |policy: &Policy, watchdogs: &mut Watchdogs, device| match steps(policy, watchdogs, Ticks(0), 0, device)[..] {
            [RoundStep::Devices(_), RoundStep::Done(next)] => next,
            ref others => panic!("{others:?}"),
        };
    assert_eq!(next(&policy, &mut armed(&policy), Some(9_000_000)), Some(Ticks(301_000)));
    assert_eq!(next(&policy, &mut armed(&policy), Some(200_000)), Some(Ticks(200_000)));
    assert_eq!(next(&policy, &mut Watchdogs::new(&policy), Some(200_000)), Some(Ticks(200_000)));
    assert_eq!(next(&policy, &mut Watchdogs::new(&policy), None), None);
    // Without the device nobody is asked about it.
    let without = Policy { generic_watchdog: false, ..policy };
    let steps = steps(&without, &mut armed(&without), Ticks(0), 1, Some(1));
    assert_eq!(steps, [RoundStep::Done(Some(Ticks(301_000)))]);
}

#[test]
fn a_vm_that_does_not_run_is_left_alone_and_not_looked_at_again() {
    let policy = policy(Action::Log);
    let mut world = World::running();
    world.happen(Event::Pause);
    let mut round = Round::new(&policy, VCPUS);
    let step = round.next(&mut armed(&policy), &world.life, &clock(), LATE);
    assert_eq!(step, RoundStep::Done(None));
}

/// While the clock stands still there is no such time.
#[test]
fn a_clock_that_stands_still_has_no_next_look() {
    let policy = policy(Action::Log);
    let mut clock = clock::VmClock::new(clock(), true, clock::saved::Away::Freeze);
    clock.pause(Ticks(0));
    let mut round = Round::new(&policy, VCPUS);
    let (mut watchdogs, world) = (armed(&policy), World::running());
    let mut next = || round.next(&mut watchdogs, &world.life, &clock.clock(), LATE);
    assert_eq!([next(), next()], [RoundStep::Devices(AtExpiry::Stay), RoundStep::Done(None)]);
}
