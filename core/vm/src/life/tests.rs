//! A VM's life against random events, in a world of threads like the hypervisor's; and the races that were known.
//!
//! The world does what `el2/hypervisor` does: a thread takes the lock, says what happened, performs the effects, and lets go.
//! What happens without the lock (loading, taking apart, the guest) lies between two steps of a thread, and anything may come
//! there.

use super::{Ask, Effect, End, Life, Saying, Stop, Task};
use proptest::collection;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use services::psci::{Start, VmPower};
use std::vec;
use std::vec::Vec;
use units::{Ipa, Range, VcpuId};

const VCPUS: usize = 3;
const RAM: Range<Ipa> = Range { start: Ipa(0x4000_0000), size: 0x1000_0000 };

type Reason = &'static str;

/// What a vCPU's thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    /// About to ask for its next task.
    Idle,
    /// It sleeps, and does nothing until it is woken.
    Asleep,
    /// It was told to end a life, and has not done so.
    AboutToEnd,
    TakingApart(End),
    /// It waits for the VM's turn to start afresh, and looks again when it is woken, or the time is over.
    Waiting,
    WaitingAsleep,
    Loading,
    /// It has a vCPU that may enter its guest once it has looked at what is asked of it.
    Inside,
    InGuest,
    /// It stands still, and looks again when it is woken.
    Standing,
    StandingAsleep,
    /// It is out of the guest, and has not said so.
    Leaving,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Watchdogs {
    Off,
    Watching,
    Frozen,
}

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    Start,
    Stop(Stop<Reason>),
    Pause,
    Resume,
    /// The operator presses the power button, and wants the VM again if it is off so many milliseconds later.
    Button(u64),
    /// Time passes.
    Wait(u64),
    /// A thread takes its next step, if it is awake.
    Step(usize),
    /// A vCPU in its guest calls.
    CpuOn(usize, u64),
    CpuOff(usize),
    SystemOff(usize),
    SystemReset(usize),
    /// The images turn out to be bad, if they are being loaded.
    BadImages,
    /// Threads may wake up for no reason.
    WakeForNothing(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let stop = prop_oneof![
        Just(Stop::Reset),
        Just(Stop::Restart),
        Just(Stop::Operator),
        Just(Stop::Crashed("broken")),
        Just(Stop::PowerOff)
    ];
    prop_oneof![
        3 => Just(Event::Start),
        2 => stop.prop_map(Event::Stop),
        2 => Just(Event::Pause),
        2 => Just(Event::Resume),
        1 => (0..8_000_u64).prop_map(Event::Button),
        2 => (0..6_000_u64).prop_map(Event::Wait),
        30 => (0..VCPUS).prop_map(Event::Step),
        5 => (0..VCPUS, 0..VCPUS as u64 + 1).prop_map(|(by, target)| Event::CpuOn(by, target)),
        3 => (0..VCPUS).prop_map(Event::CpuOff),
        1 => (0..VCPUS).prop_map(Event::SystemOff),
        1 => (0..VCPUS).prop_map(Event::SystemReset),
        1 => Just(Event::BadImages),
        2 => (0..VCPUS).prop_map(Event::WakeForNothing),
    ]
}

struct World {
    life: Life<Reason>,
    threads: [Thread; VCPUS],
    asked_to_leave: [bool; VCPUS],
    asked_to_stand: [bool; VCPUS],
    watchdogs: Watchdogs,
    /// What is seen without the lock.
    shows_pause: bool,
    clock_is_paused: bool,
    devices_are_paused: bool,
    now: u64,
    until: u64,
    images_are_bad: bool,
    said: Vec<Saying>,
    changes: u32,
    /// Which life a start of a vCPU belongs to, and which lives were loaded.
    lives: u64,
    /// The first reason that this life, or the one that is being loaded, was given to stop.
    first: Option<Stop<Reason>>,
    again_until: u64,
}

impl World {
    fn new() -> Self {
        Self {
            life: Life::new(VmPower::new(VCPUS as u8, RAM)),
            threads: [Thread::Asleep; VCPUS],
            asked_to_leave: [false; VCPUS],
            asked_to_stand: [false; VCPUS],
            watchdogs: Watchdogs::Off,
            shows_pause: false,
            clock_is_paused: false,
            devices_are_paused: false,
            now: 0,
            until: 0,
            images_are_bad: false,
            said: Vec::new(),
            changes: 0,
            lives: 0,
            first: None,
            again_until: 0,
        }
    }

    /// A VM that runs, vCPU 0 in its guest.
    fn running() -> Self {
        let mut world = Self::new();
        world.happen(Event::Start);
        world.steps(0, 4);
        assert_eq!(world.threads[0], Thread::InGuest);
        world
    }

    fn wake(&mut self, id: usize) {
        self.threads[id] = match self.threads[id] {
            Thread::Asleep => Thread::Idle,
            Thread::StandingAsleep => Thread::Standing,
            Thread::WaitingAsleep => Thread::Waiting,
            other => other,
        };
    }

    fn perform(&mut self, effects: &[Effect]) {
        for effect in effects {
            match *effect {
                Effect::ShowPause => self.shows_pause = self.life.is_paused(),
                Effect::FreezeWatchdogs => {
                    assert!(self.shows_pause, "who finds them frozen must find the VM paused");
                    self.watchdogs = Watchdogs::Frozen;
                }
                Effect::ThawWatchdogs => {
                    assert!(!self.clock_is_paused, "a deadline is never while the clock stands");
                    self.watchdogs = Watchdogs::Watching;
                }
                Effect::PauseDevices => self.devices_are_paused = true,
                Effect::ResumeDevices => self.devices_are_paused = false,
                Effect::AskAll(ask) => {
                    let asked = match ask {
                        Ask::Leave => &mut self.asked_to_leave,
                        Ask::StandStill => {
                            assert_eq!(self.watchdogs, Watchdogs::Frozen, "one may act before the vCPUs stand still");
                            &mut self.asked_to_stand
                        }
                    };
                    *asked = [true; VCPUS];
                    (0..VCPUS).for_each(|id| self.wake(id));
                }
                Effect::PauseClock => self.clock_is_paused = true,
                Effect::ResumeClock => self.clock_is_paused = false,
                Effect::ServeDevices => assert!(!self.devices_are_paused),
                Effect::Wake(vcpu) => self.wake(vcpu.index()),
                Effect::WakeAll => {
                    assert!(!self.clock_is_paused || !self.life.is_running(), "vCPUs copy the clock when they go on");
                    (0..VCPUS).for_each(|id| self.wake(id));
                }
                Effect::Say(saying) => self.said.push(saying),
                Effect::Report => self.changes += 1,
            }
        }
    }

    fn stop(&mut self, stop: Stop<Reason>) {
        // What comes while it is off, or about to be, is for no life.
        let counts = self.life.stopped().is_none() && !self.threads.contains(&Thread::TakingApart(End::Off));
        if counts {
            self.first.get_or_insert(stop.clone());
        }
        let effects = self.life.stop(stop);
        self.perform(effects);
    }

    /// What a thread does with an [`End`], if it was given one.
    fn ends(&mut self, id: usize, end: Option<End>) {
        self.threads[id] = Thread::Idle;
        let Some(end) = end else { return };
        self.shows_pause = self.life.is_paused();
        let by_itself = self.first.take().unwrap_or(Stop::PowerOff);
        let stop = match by_itself {
            Stop::PowerOff if self.now < self.again_until => Stop::Restart,
            other => other,
        };
        self.again_until = 0;
        let is_afresh = matches!(stop, Stop::Reset | Stop::Restart);
        assert_eq!(matches!(end, End::Afresh { .. }), is_afresh, "it stops for {stop:?}, the first reason");
        if let End::Afresh { wait } = end {
            assert!(wait == 0 || stop == Stop::Reset, "the operator does not wait");
        } else {
            self.first = Some(stop);
        }
        self.threads[id] = Thread::TakingApart(end);
    }

    fn step(&mut self, id: usize) {
        let vcpu = VcpuId(id as u8);
        match self.threads[id] {
            Thread::Asleep | Thread::StandingAsleep | Thread::WaitingAsleep => {}
            Thread::Idle => {
                self.threads[id] = match self.life.next_task(vcpu) {
                    None => Thread::Asleep,
                    Some(Task::Boot) => Thread::Loading,
                    Some(Task::End) => Thread::AboutToEnd,
                    Some(Task::Run(start)) => {
                        assert_eq!(start.vcpu, vcpu);
                        assert_eq!(start.context, self.lives, "switched on in another life");
                        assert!(!self.life.is_paused(), "a paused VM let a vCPU begin");
                        assert!(self.life.machine().is_on(vcpu));
                        self.watchdogs = Watchdogs::Watching;
                        Thread::Inside
                    }
                };
            }
            Thread::AboutToEnd => {
                let end = self.life.end(self.now);
                self.ends(id, end);
            }
            Thread::TakingApart(end) => {
                self.asked_to_leave = [false; VCPUS];
                self.asked_to_stand = [false; VCPUS];
                self.watchdogs = Watchdogs::Off;
                self.clock_is_paused = false;
                self.devices_are_paused = false;
                if let End::Afresh { wait } = end {
                    self.until = self.now + wait;
                    self.threads[id] = Thread::Waiting;
                } else {
                    let stop = self.first.take();
                    let effects = self.life.is_taken_apart();
                    assert_eq!(self.life.stopped(), stop.as_ref(), "off for another reason than the first");
                    self.perform(effects);
                    self.threads[id] = Thread::Idle;
                }
            }
            Thread::Waiting => {
                let is_over = self.now >= self.until || self.life.is_to_stop_at_once();
                self.threads[id] = if is_over { Thread::Loading } else { Thread::WaitingAsleep };
            }
            Thread::Loading => {
                let effects = if core::mem::take(&mut self.images_are_bad) {
                    self.first = None;
                    self.life.failed("bad images")
                } else {
                    self.lives += 1;
                    self.life.started(start(0, self.lives), self.now)
                };
                self.perform(effects);
                self.threads[id] = Thread::Idle;
            }
            Thread::Inside | Thread::InGuest => {
                self.threads[id] = if self.asked_to_leave[id] {
                    Thread::Leaving
                } else if core::mem::take(&mut self.asked_to_stand[id]) {
                    Thread::Standing
                } else {
                    Thread::InGuest
                };
            }
            Thread::Standing => {
                let stays = self.life.is_paused() && !self.asked_to_leave[id];
                self.threads[id] = if stays { Thread::StandingAsleep } else { Thread::Inside };
            }
            Thread::Leaving => {
                let end = self.life.left(vcpu, self.now);
                self.ends(id, end);
            }
        }
    }

    fn steps(&mut self, id: usize, times: usize) {
        for _ in 0..times {
            self.happen(Event::Step(id));
        }
    }

    fn in_guest(&self, id: usize) -> bool {
        self.threads[id] == Thread::InGuest
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start => {
                let was_off = self.life.stopped().is_some();
                let effects = self.life.start();
                assert_eq!(!effects.is_empty(), was_off, "only what is off can be started, and that always can");
                self.perform(effects);
            }
            Event::Stop(stop) => self.stop(stop),
            Event::Pause => {
                let runs = self.life.is_running();
                let effects = self.life.pause();
                assert_eq!(!effects.is_empty(), runs);
                self.perform(effects);
            }
            Event::Resume => {
                let effects = self.life.resume();
                self.perform(effects);
            }
            Event::Button(in_time) => {
                self.again_until = self.now + in_time;
                self.life.start_again_until(self.again_until);
            }
            Event::Wait(milliseconds) => {
                self.now += milliseconds;
                if self.now >= self.until
                    && let Some(thread) = self.threads.iter_mut().find(|thread| **thread == Thread::WaitingAsleep)
                {
                    *thread = Thread::Waiting;
                }
            }
            Event::Step(id) => self.step(id),
            Event::CpuOn(by, target) if self.in_guest(by) => {
                if let Ok(effect) = self.life.cpu_on(target, RAM.start.0, self.lives) {
                    self.perform(&[effect]);
                }
            }
            Event::CpuOff(id) if self.in_guest(id) => {
                let _ = self.life.cpu_off(VcpuId(id as u8));
                self.threads[id] = Thread::Leaving;
            }
            Event::SystemOff(id) if self.in_guest(id) => {
                self.stop(Stop::PowerOff);
                self.threads[id] = Thread::Leaving;
            }
            Event::SystemReset(id) if self.in_guest(id) => {
                self.stop(Stop::Reset);
                self.threads[id] = Thread::Leaving;
            }
            Event::BadImages => self.images_are_bad = self.threads.contains(&Thread::Loading),
            Event::WakeForNothing(id) => self.wake(id),
            Event::CpuOn(..) | Event::CpuOff(_) | Event::SystemOff(_) | Event::SystemReset(_) => {}
        }
        self.check();
    }

    /// What holds between any two steps.
    fn check(&self) {
        let works = |thread: &&Thread| {
            matches!(thread, Thread::TakingApart(_) | Thread::Waiting | Thread::WaitingAsleep | Thread::Loading)
        };
        let lives = |thread: &&Thread| {
            matches!(
                thread,
                Thread::Inside | Thread::InGuest | Thread::Standing | Thread::StandingAsleep | Thread::Leaving
            )
        };
        let working = self.threads.iter().filter(works).count();
        let inside = self.threads.iter().filter(lives).count();
        assert!(working <= 1, "two threads load or take apart: {:?}", self.threads);
        assert!(working == 0 || inside == 0, "it is worked on while a vCPU is in it: {:?}", self.threads);
        assert!(self.life.stopped().is_none() || inside == 0, "it is off with a vCPU in it");
        assert_eq!(self.shows_pause, self.life.is_paused());
        if self.life.is_paused() {
            assert!(matches!(self.watchdogs, Watchdogs::Frozen), "a watchdog goes on during a pause");
            assert!(self.clock_is_paused && self.devices_are_paused);
            for id in 0..VCPUS {
                let runs = matches!(self.threads[id], Thread::Inside | Thread::InGuest);
                let asked = self.asked_to_stand[id] || self.asked_to_leave[id];
                assert!(!runs || asked, "vCPU {id} runs on during a pause");
            }
        } else if self.life.is_running() {
            assert!(self.watchdogs != Watchdogs::Frozen && !self.clock_is_paused && !self.devices_are_paused);
        }
    }

    /// Lets all threads do what they have to, nobody wanting more, until none is awake but in its guest.
    fn settle(&mut self) {
        for _ in 0..200 {
            let busy: Vec<_> = (0..VCPUS)
                .filter(|&id| match self.threads[id] {
                    Thread::Asleep | Thread::StandingAsleep => false,
                    Thread::InGuest => self.asked_to_leave[id] || self.asked_to_stand[id],
                    _ => true,
                })
                .collect();
            if busy.is_empty() {
                return;
            }
            for id in busy {
                self.happen(Event::Step(id));
            }
            self.happen(Event::Wait(100));
        }
        panic!("it does not come to rest: {:?}", self.threads);
    }

    /// What holds when nobody has anything to do: nobody was forgotten.
    fn check_at_rest(&mut self) {
        for id in 0..VCPUS {
            if self.threads[id] == Thread::Asleep {
                let task = self.life.clone().next_task(VcpuId(id as u8));
                assert_eq!(task, None, "the thread of vCPU {id} was not woken for it");
            }
        }
        if self.life.stopped().is_some() {
            return;
        }
        assert!(self.first.is_none(), "it was to stop for {:?} and did not: {:?}", self.first, self.threads);
        let waits = self.life.is_paused();
        let lives = self.threads.iter().any(|thread| matches!(thread, Thread::InGuest | Thread::StandingAsleep));
        assert!(lives || waits, "it is neither off nor does anybody run: {:?}", self.threads);
        // Whoever was switched on during the pause begins after it.
        self.happen(Event::Resume);
        for _ in 0..200 {
            for id in 0..VCPUS {
                if !self.in_guest(id) {
                    self.happen(Event::Step(id));
                }
            }
        }
        if self.life.is_running() {
            assert!(self.threads.contains(&Thread::InGuest), "it runs with nobody in it: {:?}", self.threads);
            assert_eq!(self.watchdogs, Watchdogs::Watching);
        }
    }
}

fn start(vcpu: u8, life: u64) -> Start {
    Start { vcpu: VcpuId(vcpu), entry: RAM.start, context: life }
}

proptest! {
    /// Whatever comes in which order: never two lives at once, nobody inside while it is worked on, the first reason counts, a
    /// paused VM begins nothing, and no thread is forgotten.
    #[test]
    fn no_order_of_events_breaks_a_life(events in collection::vec(event(), 1..160)) {
        let mut world = World::new();
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
    assert_eq!(world.watchdogs, Watchdogs::Frozen);
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
