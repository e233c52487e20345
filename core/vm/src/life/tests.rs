//! A VM's life against random events, and the races that were known.

use super::{Ask, Effect, End, Fate, Life, Saying, Stop, Task};
use crate::SavedLife;
use crate::world::{Event, RAM, Reason, Thread, VCPUS, World, event, policy, start};
use devices::Change;
use proptest::collection;
use proptest::prelude::{any, proptest};
use services::psci::{SavedPower, VmPower};
use std::vec::Vec;
use units::{VcpuId, VcpuSet};

proptest! {
    /// Whatever comes in which order: never two lives at once, nobody inside while it is worked on, the first reason counts, a
    /// paused VM begins nothing, no thread is forgotten, and a watchdog bites when its guest has run for its time without a pat,
    /// and only then.
    #[test]
    fn no_order_of_events_breaks_a_life(policy in policy(), events in collection::vec(event(), 1..160)) {
        let mut world = World::watched(policy);
        for event in events {
            world.happen(event);
        }
        world.settle();
        world.check_at_rest();
    }

    /// Every stop of a life that has begun leads to an end: off, or another life.
    #[test]
    fn every_stop_ends_off_or_in_a_new_life(before in collection::vec(event(), 0..100), stop in any::<bool>()) {
        let mut world = World::running();
        for event in before {
            world.happen(event);
        }
        world.settle();
        if world.life.stopped().is_some() {
            return Ok(());
        }
        let lives = world.life.boots();
        world.happen(Event::Stop(if stop { Stop::Operator } else { Stop::Restart }));
        world.settle();
        if stop {
            assert_eq!(world.life.stopped(), Some(&Stop::Operator));
        } else {
            assert_eq!((world.life.boots(), world.life.is_running()), (lives + 1, true));
        }
    }
}

#[test]
fn a_life_from_start_to_power_off() {
    let mut world = World::running();
    assert!(world.life.is_running());
    assert_eq!(world.life.boots(), 1);
    world.happen(Event::SystemOff(0));
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::PowerOff));
    assert_eq!(world.said, [Saying::Started, Saying::Stopped]);
    assert_eq!(world.changes, 2);
}

#[test]
fn the_last_cpu_that_switches_itself_off_ends_it() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 1));
    world.steps(1, 2);
    world.happen(Event::CpuOff(0));
    world.settle();
    assert!(world.in_guest(1) && world.life.is_running());
    world.happen(Event::CpuOff(1));
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::PowerOff));
}

/// The caller of CPU_ON may be gone before the other has begun: the VM goes on.
#[test]
fn a_cpu_that_was_switched_on_and_has_not_begun_keeps_it_alive() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 2));
    world.happen(Event::CpuOff(0));
    world.steps(0, 2);
    assert_eq!(world.life.stopped(), None);
    world.steps(2, 2);
    assert!(world.in_guest(2));
}

#[test]
fn a_stop_while_images_are_loaded_comes_when_they_are() {
    let mut world = World::new();
    world.happen(Event::Start);
    world.steps(0, 1);
    assert_eq!(world.threads[0], Thread::Loading);
    world.happen(Event::Stop(Stop::Operator));
    world.happen(Event::Stop(Stop::Restart));
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::Operator));
    assert_eq!((world.life.boots(), world.threads.contains(&Thread::InGuest)), (1, false));
}

/// A vCPU of another number than 0 may be the last to leave, and loads the next life; vCPU 0's thread, awake for whatever
/// reason, ends that one as soon as it has begun. Nobody is told to begin it again.
#[test]
fn a_life_that_ends_as_it_begins_leaves_no_start_behind() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 1));
    world.steps(1, 2);
    world.happen(Event::CpuOff(0));
    world.steps(0, 2);
    world.happen(Event::SystemReset(1));
    world.steps(1, 3);
    assert_eq!(world.threads[1], Thread::Loading);
    world.happen(Event::Stop(Stop::Operator));
    world.steps(1, 1);
    world.steps(0, 3);
    assert_eq!(world.life.stopped(), Some(&Stop::Operator));
    assert_eq!(world.life.starts, [None; units::MAX_VCPUS]);
    world.happen(Event::Start);
    world.settle();
    assert!(world.in_guest(0));
    world.happen(Event::CpuOn(0, 1));
    world.settle();
    world.happen(Event::CpuOff(0));
    world.settle();
    assert_eq!(world.threads[0], Thread::Asleep);
}

/// What is asked of a VM that powers itself off is no reason for its next life to end, whether it comes while its vCPU leaves,
/// while it is taken apart, or when it is off.
#[test]
fn a_stop_that_comes_too_late_does_not_stop_the_next_life() {
    for (steps, thread) in [(0, Thread::Leaving), (1, Thread::TakingApart(End::Off)), (2, Thread::Idle)] {
        let mut world = World::running();
        world.happen(Event::SystemOff(0));
        world.steps(0, steps);
        assert_eq!(world.threads[0], thread);
        world.happen(Event::Stop(Stop::Operator));
        world.settle();
        assert_eq!(world.life.stopped(), Some(&Stop::PowerOff));
        world.happen(Event::Start);
        world.settle();
        assert!(world.life.is_running() && world.in_guest(0), "it came with the thread in {thread:?}");
    }
}

#[test]
fn a_stop_while_it_waits_for_its_turn_is_not_made_to_wait() {
    let mut world = World::running();
    for _ in 0..4 {
        world.happen(Event::SystemReset(0));
        world.settle();
    }
    world.happen(Event::SystemReset(0));
    world.steps(0, 2);
    assert_eq!(world.threads[0], Thread::Waiting);
    world.steps(0, 5);
    assert_eq!(world.threads[0], Thread::WaitingAsleep);
    world.happen(Event::Stop(Stop::Operator));
    world.steps(0, 1);
    assert_eq!(world.threads[0], Thread::Loading);
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::Operator));
}

/// Only short lives that the guest itself ends are counted, from when the images were loaded.
#[test]
fn who_resets_itself_again_and_again_waits() {
    let reset = |stop: &Stop<Reason>, length: u64| {
        let mut world = World::running();
        let mut waits = Vec::new();
        for _ in 0..7 {
            world.happen(Event::Wait(length));
            world.happen(Event::Stop(stop.clone()));
            world.steps(0, 3);
            waits.push(world.until - world.now);
            world.happen(Event::Wait(60_000));
            world.steps(0, 5);
            assert!(world.in_guest(0));
        }
        waits
    };
    assert_eq!(reset(&Stop::Reset, 4_999), [0, 0, 0, 0, 500, 1_000, 2_000]);
    assert_eq!(reset(&Stop::Reset, 5_000), [0; 7]);
    assert_eq!(reset(&Stop::Restart, 1), [0; 7]);
}

#[test]
fn what_has_ended_does_not_end_again() {
    let ram = VmPower::new(1, RAM);
    let mut life = Life::<Reason>::new(ram);
    assert_eq!(life.end(0), None, "it is off");
    let _ = life.start();
    assert_eq!(life.end(0), None, "its images are being loaded");
    let _ = life.next_task(VcpuId(0));
    let _ = life.started(start(0, 1), 0);
    let _ = life.stop(Stop::Operator);
    assert_eq!(life.end(0), Some(End::Off));
    assert_eq!(life.end(0), None, "it is being taken apart");
}

/// Both the last vCPU that leaves and vCPU 0's thread may find that the life is to end: one of them does it.
#[test]
fn a_life_is_ended_once() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 1));
    world.steps(1, 2);
    world.happen(Event::CpuOff(0));
    world.steps(0, 1);
    world.happen(Event::Stop(Stop::Operator));
    world.steps(1, 1);
    // Thread 0 asks before vCPU 1 has said that it left, and is told nothing.
    world.steps(0, 1);
    world.steps(2, 1);
    assert_eq!(world.threads, [Thread::Asleep, Thread::Leaving, Thread::Asleep]);
    world.steps(1, 1);
    world.happen(Event::WakeForNothing(0));
    world.steps(0, 1);
    assert_eq!(world.threads, [Thread::Asleep, Thread::TakingApart(End::Off), Thread::Asleep]);
}

/// A stop that finds nobody in the guest is vCPU 0's thread's to carry out.
#[test]
fn a_stop_during_a_pause_that_nobody_is_in_is_carried_out() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 1));
    world.happen(Event::CpuOff(0));
    world.happen(Event::Pause);
    world.settle();
    assert_eq!(world.threads, [Thread::Asleep; VCPUS]);
    assert!(world.life.is_paused());
    world.happen(Event::Stop(Stop::Operator));
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::Operator));
    assert!(!world.life.is_paused());
}

#[test]
fn who_was_switched_on_before_a_pause_begins_after_it() {
    let mut world = World::running();
    world.happen(Event::CpuOn(0, 1));
    world.happen(Event::Pause);
    world.settle();
    assert_eq!(world.threads, [Thread::StandingAsleep, Thread::Asleep, Thread::Asleep]);
    world.happen(Event::Resume);
    world.settle();
    assert!(world.in_guest(0) && world.in_guest(1));
}

/// Its watchdogs would begin again while it is taken apart.
#[test]
fn a_paused_vm_that_stops_does_not_go_on() {
    let mut world = World::running();
    world.happen(Event::Pause);
    world.happen(Event::Stop(Stop::Operator));
    assert!(world.life.resume().is_empty());
    assert!(world.is_frozen());
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::Operator));
}

#[test]
fn a_power_off_after_the_button_starts_it_again_in_time_only() {
    for (delay, again) in [(2_999, true), (3_000, false)] {
        let mut world = World::running();
        world.happen(Event::Button(3_000));
        world.happen(Event::Wait(delay));
        world.happen(Event::SystemOff(0));
        world.settle();
        assert_eq!(world.life.is_running(), again, "after {delay} ms");
        assert_eq!(world.life.boots(), 1 + u32::from(again));
        if again {
            // Once.
            world.happen(Event::SystemOff(0));
            world.settle();
            assert_eq!(world.life.stopped(), Some(&Stop::PowerOff));
        }
    }
}

#[test]
fn bad_images_say_why_and_forget_what_was_to_stop_them() {
    let mut world = World::new();
    world.happen(Event::Start);
    world.steps(0, 1);
    world.happen(Event::BadImages);
    world.happen(Event::Stop(Stop::Restart));
    world.settle();
    assert_eq!(world.life.stopped(), Some(&Stop::Crashed("bad images")));
    assert_eq!(world.life.boots(), 0);
    world.happen(Event::Start);
    world.settle();
    assert!(world.life.is_running());
}

/// It may be one of hundreds. What the operator wants meanwhile counts more than that it is over.
#[test]
fn a_stall_is_told_to_nobody_and_leaves_a_pause_alone() {
    let mut life = World::running().life;
    let is_told = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Say(_) | Effect::Report));
    let effects = life.stall();
    assert!(effects.contains(&Effect::AskAll(Ask::StandStill)) && !is_told(effects) && life.is_paused());
    assert!(effects.contains(&Effect::ChangeDevices(Change::Stall)), "by which its clock page knows it from a pause");
    assert!(life.stall().is_empty() && life.resume().is_empty(), "what it waits for has not come");
    let effects = life.unstall();
    assert!(effects.contains(&Effect::WakeAll) && !is_told(effects) && life.is_running());
    assert!(effects.contains(&Effect::ChangeDevices(Change::Unstall)));
    assert!(life.unstall().is_empty());
    life.stall();
    assert_eq!(life.pause(), [Effect::Say(Saying::Paused), Effect::Report]);
    assert!(life.unstall().is_empty() && life.is_paused());
    assert!(life.resume().contains(&Effect::ChangeDevices(Change::Resume)) && life.is_running());
    life.stall();
    life.stop(Stop::Operator);
    assert!(life.unstall().is_empty());
}

/// A life that a state was put into, with vCPU 0.
fn restored() -> Life<Reason> {
    let mut life = Life::new(VmPower::new(1, RAM));
    assert!(life.start_for_state());
    life.is_built(0);
    let power = SavedPower { count: 1, on: 1, pending: 0 };
    life.restore(&SavedLife { power, starts: Default::default() }, VcpuSet::only(VcpuId(0))).expect("it fits");
    life.resume();
    assert_eq!(life.next_task(VcpuId(0)), Some(Task::GoOn));
    life
}

/// Also of a life that it was not built for.
#[test]
fn a_life_before_the_one_that_it_lives_has_ended() {
    let mut world = World::running();
    let first = world.life.boots();
    world.happen(Event::Stop(Stop::Reset));
    world.settle();
    assert!(world.life.is_running() && world.life.boots() == first + 1);
    assert_eq!((world.life.fate(first), world.life.fate(first + 1)), (Fate::Afresh, Fate::Lives));
    assert!(world.life.stop_in(first, Stop::Crashed("late")).is_empty() && world.life.is_running());
}

/// From the moment in which its guest asks for a reset, it is said of a life that the next one begins, and whoever wants to stop
/// that life stops no other: not while its vCPU leaves, nor while its memory is given back, nor when the next one has begun.
#[test]
fn what_ends_a_life_is_known_at_any_moment_and_stops_no_other() {
    let mut life = restored();
    let first = life.boots();
    assert_eq!(life.fate(first), Fate::Lives);
    life.stop(Stop::Reset);
    assert!(life.fate(first) == Fate::Afresh && life.stop_in(first, Stop::Crashed("late")).is_empty());
    assert!(matches!(life.left(VcpuId(0), 5), Some(End::Afresh { .. })));
    assert!(life.fate(first) == Fate::Afresh && life.stop_in(first, Stop::Crashed("late")).is_empty());
    assert!(!life.is_to_stop_at_once(), "the life that begins was stopped");
    life.started(start(0, 1), 6);
    assert!(life.fate(first) == Fate::Afresh && life.stop_in(first, Stop::Crashed("late")).is_empty());
    assert!(life.fate(life.boots()) == Fate::Lives && life.is_running());
    // The life that is meant is stopped.
    assert!(!life.stop_in(life.boots(), Stop::Operator).is_empty());
    assert_eq!(life.fate(life.boots()), Fate::Ends(Stop::Operator));

    for stop in [Stop::PowerOff, Stop::Operator, Stop::Crashed("no memory")] {
        let mut life = restored();
        let first = life.boots();
        life.stop(stop.clone());
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()), "its vCPU is still in the guest");
        assert_eq!(life.left(VcpuId(0), 5), Some(End::Off));
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()), "it is being taken apart");
        life.is_taken_apart();
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()));
        life.start();
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()), "it is started again, and its images are being loaded");
        life.started(start(0, 1), 6);
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()), "another life has begun");
        life.stop(Stop::Reset);
        assert_eq!(life.fate(first), Fate::Ends(stop.clone()), "another life ends");
        life.next_task(VcpuId(0));
        life.end(7);
        assert_eq!((life.fate(first), life.boots()), (Fate::Ends(stop), first + 1), "a third life begins");
        assert!(life.stop_in(first, Stop::Crashed("late")).is_empty() && !life.is_to_stop_at_once());
    }
    // A start whose images cannot be loaded changes nothing about a life that was stopped before.
    let mut life = restored();
    let first = life.boots();
    life.stop(Stop::Operator);
    life.left(VcpuId(0), 5);
    life.is_taken_apart();
    life.start();
    life.failed("no image");
    assert_eq!(life.fate(first), Fate::Ends(Stop::Operator));
    // A reset whose images cannot be loaded any more.
    let mut life = restored();
    let first = life.boots();
    life.stop(Stop::Reset);
    life.left(VcpuId(0), 5);
    life.failed("no image");
    assert_eq!(life.fate(first), Fate::Ends(Stop::Crashed("no image")));
}

/// A guest powers itself off, and is started again because the operator has asked for that: it has powered itself off, whenever
/// somebody asks what has become of it.
#[test]
fn a_power_off_that_is_followed_by_a_start_is_one_end() {
    let powered_off = Fate::Ends(Stop::PowerOff);
    let mut life = restored();
    let first = life.boots();
    life.start_again_until(100);
    life.stop(Stop::PowerOff);
    assert_eq!(life.fate(first), powered_off, "its vCPU is still in the guest");
    assert!(matches!(life.left(VcpuId(0), 5), Some(End::Afresh { .. })));
    assert_eq!(life.fate(first), powered_off, "it is taken apart, and its images are loaded");
    life.started(start(0, 1), 6);
    assert_eq!(life.fate(first), powered_off, "another life has begun");

    // By CPU_OFF of its last vCPU, which is told as no reason before.
    let mut life = restored();
    let first = life.boots();
    life.start_again_until(100);
    assert_eq!(life.fate(first), Fate::Lives);
    assert!(matches!(life.left(VcpuId(0), 5), Some(End::Afresh { .. })));
    assert_eq!(life.fate(first), powered_off);
}
