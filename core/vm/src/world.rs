//! A world of threads like the hypervisor's, in which a VM lives and is watched while its tests let things happen.
//!
//! The world does what `el2/hypervisor` does: a thread takes the lock, says what happened, performs the effects, and
//! releases the lock. What happens without the lock (loading, taking apart, the guest) lies between two steps of a
//! thread, and anything may come there.

use crate::doors::WatchdogRequest;
use crate::{
    Ask, Bite, Caller, Consequence, Effect, End, Life, SavedLife, SavedWatchdogs, Saying, Stop, Task, Watchdogs, Which,
};
use abi::bundle::Doors as Policy;
use devices::Change;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::sample::select;
use services::psci::{SavedPower, Start, VmPower};
use std::vec;
use std::vec::Vec;
use units::{ByteOrder, Ipa, MAX_VCPUS, Range, VcpuId, VcpuSet};
use vmware::ExceptionLevel;
use watchdog::{Action, Actions, Refused, SavedWatchdog, Scope};

pub(crate) const VCPUS: usize = 3;
pub(crate) const RAM: Range<Ipa> = Range { start: Ipa(0x4000_0000), size: 0x1000_0000 };

pub(crate) type Reason = &'static str;

/// What a vCPU's thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thread {
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

/// What a watchdog is in a few words: armed for so long, by the site file or not, and so long ago by a clock that stands still
/// while the VM does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Armed {
    timeout: u64,
    action: Action,
    elapsed: u64,
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Start,
    Stop(Stop<Reason>),
    Pause,
    Resume,
    /// It stands still until some of its memory has come, and then that has.
    Stall,
    Unstall,
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
    /// It sets a watchdog up, the VM's or its own, for so many milliseconds.
    Arm(usize, Scope, u64, Action),
    Pat(usize, Scope),
    /// The thread of the watchdogs looks at one of them.
    Look(Which),
    /// The operator has it built for a state, if it is off; and that is put in, with the registers of these vCPUs, a bit each.
    Build,
    PutIn(u8),
    /// The images turn out to be bad, if they are being loaded.
    BadImages,
    /// Threads may wake up for no reason.
    WakeForNothing(usize),
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
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
        2 => Just(Event::Stall),
        2 => Just(Event::Unstall),
        1 => (0..8_000_u64).prop_map(Event::Button),
        2 => (0..6_000_u64).prop_map(Event::Wait),
        2 => (0..400_u64).prop_map(Event::Wait),
        30 => (0..VCPUS).prop_map(Event::Step),
        5 => (0..VCPUS, 0..VCPUS as u64 + 1).prop_map(|(by, target)| Event::CpuOn(by, target)),
        3 => (0..VCPUS).prop_map(Event::CpuOff),
        1 => (0..VCPUS).prop_map(Event::SystemOff),
        1 => (0..VCPUS).prop_map(Event::SystemReset),
        2 => (0..VCPUS, scope(), 10..500_u64, select(&Action::LIST[..]))
            .prop_map(|(id, scope, timeout, action)| Event::Arm(id, scope, timeout, action)),
        3 => (0..VCPUS, scope()).prop_map(|(id, scope)| Event::Pat(id, scope)),
        6 => (0..=VCPUS).prop_map(|slot| Event::Look(Which::called(VCPUS as u8).nth(slot).unwrap())),
        2 => Just(Event::Build),
        2 => (1..1_u8 << VCPUS).prop_map(Event::PutIn),
        1 => Just(Event::BadImages),
        2 => (0..VCPUS).prop_map(Event::WakeForNothing),
    ]
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Vm), Just(Scope::Own)]
}

/// What a site file may say of watchdogs.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    (select(&[0, 300][..]), select(&[0, 200][..]), 0..5_u8).prop_map(|(vm, own, action)| Policy {
        watchdog_milliseconds: vm,
        vcpu_watchdog_milliseconds: own,
        watchdog_action: action,
        ..Policy::default()
    })
}

pub(crate) struct World {
    pub(crate) life: Life<Reason>,
    pub(crate) threads: [Thread; VCPUS],
    asked_to_leave: [bool; VCPUS],
    asked_to_stand: [bool; VCPUS],
    pub(crate) watchdogs: Watchdogs,
    /// What they should be, the VM's first.
    model: [Option<Armed>; VCPUS + 1],
    policy: Policy,
    /// vCPUs that have begun since their threads were told to run them.
    begun: [bool; VCPUS],
    pub(crate) serrors: [u32; VCPUS],
    pub(crate) bites: Vec<Bite>,
    /// What is seen without the lock.
    shows_pause: bool,
    clock_is_paused: bool,
    devices_are_paused: bool,
    pub(crate) now: u64,
    pub(crate) until: u64,
    images_are_bad: bool,
    pub(crate) said: Vec<Saying>,
    pub(crate) changes: u32,
    /// Which life a start of a vCPU belongs to, and which lives were loaded.
    lives: u64,
    /// The first reason that this life, or the one that is being loaded, was given to stop.
    first: Option<Stop<Reason>>,
    again_until: u64,
    /// The life whose first vCPU has begun.
    watched_life: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::watched(Policy::default())
    }

    /// One whose site file says this of watchdogs. It lets the guest choose any action.
    pub(crate) fn watched(policy: Policy) -> Self {
        let policy = Policy { watchdog_choices: Actions::ALL.0, ..policy };
        Self {
            life: Life::new(VmPower::new(VCPUS as u8, RAM)),
            threads: [Thread::Asleep; VCPUS],
            asked_to_leave: [false; VCPUS],
            asked_to_stand: [false; VCPUS],
            watchdogs: Watchdogs::new(&policy),
            model: [None; VCPUS + 1],
            policy,
            begun: [false; VCPUS],
            serrors: [0; VCPUS],
            bites: Vec::new(),
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
            watched_life: 0,
        }
    }

    /// A VM that runs, vCPU 0 in its guest.
    pub(crate) fn running() -> Self {
        Self::new().run()
    }

    pub(crate) fn run(self) -> Self {
        let mut world = self;
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
                    assert!(self.shows_pause, "whoever finds them frozen must find the VM paused");
                    self.watchdogs.pause(self.now);
                    // One that is late already has no time left then, not less than none.
                    self.model.iter_mut().flatten().for_each(|armed| armed.elapsed = armed.elapsed.min(armed.timeout));
                }
                Effect::ThawWatchdogs => {
                    assert!(!self.clock_is_paused, "a deadline is never while the clock stands");
                    self.watchdogs.resume(self.now);
                }
                Effect::ChangeDevices(change) => {
                    self.devices_are_paused = matches!(change, Change::Pause | Change::Stall);
                }
                Effect::AskAll(ask) => {
                    let asked = match ask {
                        Ask::Leave => &mut self.asked_to_leave,
                        Ask::StandStill => {
                            assert!(self.is_frozen(), "one may act before the vCPUs stand still");
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
                    Some(Task::GoOn) => {
                        assert!(!self.life.is_paused() && self.life.machine().is_on(vcpu));
                        self.begun[id] = true;
                        Thread::Inside
                    }
                    Some(Task::Run(start)) => {
                        assert_eq!(start.vcpu, vcpu);
                        assert_eq!(start.context, self.lives, "switched on in another life");
                        assert!(!self.life.is_paused(), "a paused VM let a vCPU begin");
                        assert!(self.life.machine().is_on(vcpu));
                        self.begun[id] = false;
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
                self.watchdogs.stop();
                self.model = [None; VCPUS + 1];
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
                if !core::mem::replace(&mut self.begun[id], true) {
                    self.vcpu_begins(vcpu);
                }
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

    pub(crate) fn steps(&mut self, id: usize, times: usize) {
        for _ in 0..times {
            self.happen(Event::Step(id));
        }
    }

    pub(crate) fn in_guest(&self, id: usize) -> bool {
        self.threads[id] == Thread::InGuest
    }

    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Start => {
                let was_off = self.life.stopped().is_some();
                let effects = self.life.start();
                assert_eq!(!effects.is_empty(), was_off, "only what is off can be started, and that always can");
                self.perform(effects);
            }
            Event::Stop(stop) => self.stop(stop),
            Event::Pause => {
                let (runs, is_stalled) = (self.life.is_running(), self.life.is_stalled());
                let effects = self.life.pause();
                assert!(is_stalled || effects.is_empty() != runs);
                self.perform(effects);
            }
            Event::Resume => {
                let is_stalled = self.life.is_stalled();
                let effects = self.life.resume();
                assert!(!is_stalled || effects.is_empty(), "the operator let it go on without its memory");
                self.perform(effects);
            }
            Event::Stall => {
                let effects = self.life.stall();
                self.perform(effects);
            }
            Event::Unstall => {
                let is_stalled = self.life.is_stalled();
                let effects = self.life.unstall();
                assert!(is_stalled || effects.is_empty(), "what comes let a VM go on that does not wait for it");
                self.perform(effects);
            }
            Event::Button(in_time) => {
                self.again_until = self.now + in_time;
                self.life.start_again_until(self.again_until);
            }
            Event::Wait(milliseconds) => {
                self.now += milliseconds;
                if !self.life.is_paused() {
                    self.model.iter_mut().flatten().for_each(|armed| armed.elapsed += milliseconds);
                }
                if self.now >= self.until
                    && let Some(thread) = self.threads.iter_mut().find(|thread| **thread == Thread::WaitingAsleep)
                {
                    *thread = Thread::Waiting;
                }
            }
            Event::Step(id) => self.step(id),
            Event::CpuOn(by, target) if self.in_guest(by) => {
                if let Ok(effect) = self.life.cpu_on(target, RAM.start.0, self.lives, ByteOrder::Little) {
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
            Event::Arm(id, scope, timeout, action) if self.in_guest(id) => {
                let granted = self.watchdogs.configure(caller(id, scope), timeout, action.number().into(), self.now);
                let slot = slot(id, scope);
                let most = self.armed_by_the_site_file(slot).unwrap_or(timeout);
                assert_eq!(granted, Ok(timeout.min(most)));
                self.model[slot] = Some(Armed { timeout: timeout.min(most), action, elapsed: 0 });
            }
            Event::Pat(id, scope) if self.in_guest(id) => {
                let armed = &mut self.model[slot(id, scope)];
                let patted = self.watchdogs.pat(caller(id, scope), self.now);
                assert_eq!(patted.ok(), armed.map(|armed| armed.timeout));
                armed.iter_mut().for_each(|armed| armed.elapsed = 0);
            }
            Event::Look(which) => self.look(which),
            Event::Build => self.build(),
            Event::PutIn(bits) => self.put_in(bits),
            Event::BadImages => self.images_are_bad = self.threads.contains(&Thread::Loading),
            Event::WakeForNothing(id) => self.wake(id),
            Event::CpuOn(..)
            | Event::CpuOff(_)
            | Event::SystemOff(_)
            | Event::SystemReset(_)
            | Event::Arm(..)
            | Event::Pat(..) => {}
        }
        self.check();
    }

    /// By the console's thread, at once: so nothing comes between.
    fn build(&mut self) {
        let was_off = self.life.stopped().is_some();
        assert_eq!(self.life.start_for_state(), was_off, "only what is off can be built, and that always can");
        if was_off {
            self.lives += 1;
            self.watched_life = self.lives;
            let effects = self.life.is_built(self.now);
            self.perform(effects);
        }
    }

    fn put_in(&mut self, bits: u8) {
        if !self.life.awaits_state() {
            return;
        }
        let mut vcpus = VcpuSet::EMPTY;
        (0..VCPUS).filter(|id| bits >> id & 1 != 0).for_each(|id| vcpus.insert(VcpuId(id as u8)));
        let power = SavedPower { count: VCPUS as u8, on: bits, pending: 0 };
        let done = self.life.restore(&SavedLife { power, starts: [None; MAX_VCPUS] }, vcpus);
        assert!(done.is_ok() && !self.life.awaits_state());
        // With the rest of the state come watchdogs that nobody has armed but the site file, of a life that has begun.
        let mut saved = SavedWatchdogs { has_begun: true, ..self.watchdogs.save(self.now) };
        let action = Action::LIST[usize::from(self.policy.watchdog_action)];
        let has_begun = |slot: usize| slot == 0 || vcpus.contains(VcpuId(slot as u8 - 1));
        for slot in (0..=VCPUS).filter(|&slot| has_begun(slot)) {
            if let Some(timeout) = self.armed_by_the_site_file(slot) {
                let place = if slot == 0 { &mut saved.vm } else { &mut saved.own[slot - 1] };
                let acted = place.acted;
                *place = SavedWatchdog { timeout, action: action.number(), remaining: Some(timeout), acted };
                self.model[slot] = Some(Armed { timeout, action, elapsed: 0 });
            }
        }
        assert_eq!(self.watchdogs.restore(&saved, vcpus), Ok(()));
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.watchdogs.all().all(|(_, watchdog)| watchdog.status(self.now).is_paused)
    }

    /// For how long the site file arms it, if it does.
    fn armed_by_the_site_file(&self, slot: usize) -> Option<u64> {
        let timeout =
            if slot == 0 { self.policy.watchdog_milliseconds } else { self.policy.vcpu_watchdog_milliseconds };
        (timeout != 0).then_some(timeout.into())
    }

    /// `vcpu` is about to enter the guest.
    fn vcpu_begins(&mut self, vcpu: VcpuId) {
        self.watchdogs.vcpu_started(vcpu, self.now);
        let action = Action::LIST[usize::from(self.policy.watchdog_action)];
        let is_first = self.watched_life != self.lives;
        self.watched_life = self.lives;
        for slot in [is_first.then_some(0), Some(1 + vcpu.index())].into_iter().flatten() {
            if let Some(timeout) = self.armed_by_the_site_file(slot) {
                self.model[slot] = Some(Armed { timeout, action, elapsed: 0 });
            }
        }
    }

    /// The watchdogs' thread looks, and performs what follows under the lock of the VM's life.
    fn look(&mut self, which: Which) {
        let slot = match which {
            Which::Vm => 0,
            Which::Own(vcpu) => 1 + vcpu.index(),
            Which::Device => return,
        };
        let due = self.model[slot].filter(|armed| self.life.is_running() && armed.elapsed > armed.timeout);
        let bite = self.watchdogs.look(&self.life, which, self.now);
        assert_eq!(bite.is_some(), due.is_some(), "{:?} of {:?}", self.model[slot], self.life);
        let (Some(bite), Some(armed)) = (bite, due) else { return };
        self.bites.push(bite);
        let is_to_stay = self.armed_by_the_site_file(slot).is_some();
        self.model[slot] = match armed.action {
            // The look was a millisecond behind.
            Action::Log | Action::Inject => Some(Armed { elapsed: 1, ..armed }),
            Action::Pause if is_to_stay => Some(Armed { elapsed: 0, ..armed }),
            Action::Reset | Action::Pause | Action::Stop => None,
        };
        match bite.consequence() {
            Consequence::Nothing => {}
            Consequence::SError(vcpu) => {
                let power = self.life.machine();
                let can_take_it = power.is_on(vcpu) || (0..VCPUS as u8).all(|id| !power.is_on(VcpuId(id)));
                assert!(can_take_it, "{vcpu:?} is off, and another is on");
                self.serrors[vcpu.index()] += 1;
            }
            Consequence::Pause => self.happen(Event::Pause),
            Consequence::Stop(stop) => self.stop(stop),
        }
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
            assert!(self.is_frozen(), "a watchdog goes on during a pause");
            assert_eq!(self.watchdogs.next_look(), None);
            assert!(self.clock_is_paused && self.devices_are_paused);
            for id in 0..VCPUS {
                let runs = matches!(self.threads[id], Thread::Inside | Thread::InGuest);
                let asked = self.asked_to_stand[id] || self.asked_to_leave[id];
                assert!(!runs || asked, "vCPU {id} runs on during a pause");
            }
        } else if self.life.is_running() {
            assert!(!self.is_frozen() && !self.clock_is_paused && !self.devices_are_paused);
            let due = self.model.iter().flatten().map(|armed| self.now + armed.timeout + 1 - armed.elapsed);
            assert_eq!(self.watchdogs.next_look(), due.min(), "{:?}", self.model);
        }
    }

    /// Lets all threads do what they have to, nobody wanting more, until none is awake but in its guest.
    pub(crate) fn settle(&mut self) {
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
    pub(crate) fn check_at_rest(&mut self) {
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
        // Whoever was switched on during the pause begins after it; and a state is put in sooner or later.
        self.put_in(1);
        self.happen(Event::Unstall);
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
            assert!(!self.is_frozen());
        }
    }
}

pub(crate) fn start(vcpu: u8, life: u64) -> Start {
    Start { vcpu: VcpuId(vcpu), entry: RAM.start, context: life, order: ByteOrder::Little }
}

fn slot(id: usize, scope: Scope) -> usize {
    if scope == Scope::Vm { 0 } else { 1 + id }
}

fn caller(id: usize, scope: Scope) -> Caller {
    Caller { level: ExceptionLevel::Kernel, vcpu: VcpuId(id as u8), scope }
}

impl Watchdogs {
    pub(crate) fn configure(&mut self, caller: Caller, timeout: u64, action: u64, now: u64) -> Result<u64, Refused> {
        self.carry_out(caller, WatchdogRequest::Configure { timeout, action }, now)
    }

    pub(crate) fn pat(&mut self, caller: Caller, now: u64) -> Result<u64, Refused> {
        self.carry_out(caller, WatchdogRequest::Pat, now)
    }

    pub(crate) fn query(&mut self, caller: Caller, now: u64) -> Result<u64, Refused> {
        self.carry_out(caller, WatchdogRequest::Query, now)
    }
}
