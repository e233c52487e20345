//! A VM's life: off, loading its images, running, stopping, being taken apart, then off again or in a new life.
//!
//! The work is done by the VM's own vCPU threads. vCPU 0's thread loads the images; each vCPU that is switched on runs the
//! guest; when the VM is to stop, every vCPU is asked to leave, and the last one to leave takes the machine apart and, for a
//! reset, loads it again. What a thread has to do next is a [`Task`] or an [`End`]: those take long, so a thread does them
//! without the lock, and says when it is done ([`Life::started`], [`Life::failed`], [`Life::is_taken_apart`]). All else is an
//! [`Effect`], which is performed under the lock.
//!
//! This is hard because the guest, the operator and watchdogs may request something at any moment. These hold in whatever order
//! events come:
//!
//! * No vCPU is in the guest while it is loaded or taken apart, and only one thread does either.
//! * The first reason to stop counts; a reason never outlives the life that it was given for.
//! * A paused VM lets no vCPU begin, and its watchdogs stand still before the first vCPU does.
//! * A vCPU that was switched on in one life never begins in the next.
//! * A VM that is built for a saved state ([`Life::start_for_state`]) stands still, and cannot be resumed, before the state is in it.
//! * A thread that has something to do is woken after that was recorded.

use devices::Change;
use fair::{By, Restarts};
use services::psci::{CpuOffOutcome, PsciError, Start, VmPower};
use units::{ByteOrder, MAX_VCPUS, VcpuId, VcpuSet};

pub(crate) mod saved;
#[cfg(test)]
mod tests;

/// Why a VM stops; `R` is the sentence of one that cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop<R> {
    /// It starts afresh, because its guest wants it to, or a watchdog.
    Reset,
    /// It starts afresh, because the operator wants it to.
    Restart,
    /// The guest powered itself off.
    PowerOff,
    /// The operator stopped it.
    Operator,
    /// It cannot go on.
    Crashed(R),
}

/// Where a VM is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase<R> {
    /// Off, for this reason.
    Off(Stop<R>),
    /// Its images are being loaded, perhaps after those of another life were taken apart.
    Booting,
    Running,
    /// It waits for its vCPUs to leave.
    Stopping(Stop<R>),
    /// It is taken apart, and is off then.
    Ending(Stop<R>),
}

/// What has become of one of a VM's lives: one answer for each end, whatever happens to the VM afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate<R> {
    /// It goes on.
    Lives,
    /// It ends, or has ended, for this reason. If another life has begun since, that was somebody's wish.
    Ends(Stop<R>),
    /// It ends, or has ended, by a reset.
    Afresh,
}

impl<R: Clone> Fate<R> {
    fn after(stop: &Stop<R>) -> Self {
        match stop {
            Stop::Reset | Stop::Restart => Self::Afresh,
            Stop::PowerOff | Stop::Operator | Stop::Crashed(_) => Self::Ends(stop.clone()),
        }
    }
}

/// What a thread of a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Load the images.
    Boot,
    /// Run the vCPU.
    Run(Start),
    /// Run the vCPU, with the registers that were put in.
    GoOn,
    /// Call [`Life::end`]: nobody is in the guest who could be the last to leave it.
    End,
}

/// How a life ends: what the thread that ends it does, without the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It takes the machine apart; the VM is off then.
    Off,
    /// It takes the machine apart, waits for so many milliseconds, or until [`Life::is_to_stop_at_once`], and loads the
    /// images again.
    Afresh {
        /// How long a VM that resets itself again and again is made to wait.
        wait: u64,
    },
}

/// What vCPUs are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// To leave the guest for good.
    Leave,
    /// To stand still until the VM goes on.
    StandStill,
}

/// What the log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Saying {
    /// The VM has started.
    Started,
    /// It is paused.
    Paused,
    /// It goes on after a pause.
    GoesOn,
    /// It is off, for the reason that [`Life::stopped`] has.
    Stopped,
}

/// What has to happen besides, under the lock that the [`Life`] is under, and in the order given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Whoever looks without the lock sees whether the VM is paused, as [`Life::is_paused`] says it.
    ShowPause,
    /// The watchdogs stand still, and those that are set up until the vCPUs do.
    FreezeWatchdogs,
    /// The watchdogs go on.
    ThawWatchdogs,
    /// The devices are told.
    ChangeDevices(Change),
    /// Every vCPU is asked for something, wherever it is, and its thread woken.
    AskAll(Ask),
    /// The clock may stop, once all vCPUs stand still.
    PauseClock,
    /// The clock goes on.
    ResumeClock,
    /// Its devices are looked after again: what came for them meanwhile has waited.
    ServeDevices,
    /// This vCPU's thread is woken.
    Wake(VcpuId),
    /// All vCPUs' threads are woken.
    WakeAll,
    /// The log has a line.
    Say(Saying),
    /// The operator's side is told that something changed.
    Report,
}

/// A VM's vCPUs stand still, its devices by this `change`, and whoever is interested is told so, which are the last [`TOLD`].
///
/// The watchdogs first: a vCPU that has not stopped yet may still set one up, whose time then begins with the VM's going on.
const fn stands_still(change: Change) -> [Effect; 7] {
    [
        Effect::ShowPause,
        Effect::FreezeWatchdogs,
        Effect::ChangeDevices(change),
        Effect::AskAll(Ask::StandStill),
        Effect::PauseClock,
        Effect::Say(Saying::Paused),
        Effect::Report,
    ]
}

/// A VM goes on, its devices by this `change`, and whoever is interested is told so, which are the last [`TOLD`].
///
/// The clock before the watchdogs, whose deadlines are never while it stands, and before the vCPUs, which copy it.
const fn goes_on(change: Change) -> [Effect; 8] {
    [
        Effect::ShowPause,
        Effect::ResumeClock,
        Effect::ThawWatchdogs,
        Effect::ChangeDevices(change),
        Effect::ServeDevices,
        Effect::WakeAll,
        Effect::Say(Saying::GoesOn),
        Effect::Report,
    ]
}

/// How many of those tell somebody.
const TOLD: usize = 2;
const PAUSES: [Effect; 7] = stands_still(Change::Pause);
const RESUMES: [Effect; 8] = goes_on(Change::Resume);
const STALLS: [Effect; 7] = stands_still(Change::Stall);
const UNSTALLS: [Effect; 8] = goes_on(Change::Unstall);

/// All of them but those that tell somebody.
fn untold(effects: &'static [Effect]) -> &'static [Effect] {
    effects.get(..effects.len().saturating_sub(TOLD)).unwrap_or_default()
}

/// Nothing happens.
const NOTHING: &[Effect] = &[];
const FIRST: VcpuId = VcpuId(0);

/// A VM's life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Life<R> {
    phase: Phase<R>,
    machine: VmPower,
    /// vCPUs that were switched on and have not begun.
    starts: [Option<Start>; MAX_VCPUS],
    /// vCPUs whose threads are in the guest or on their way out.
    inside: VcpuSet,
    /// vCPU 0's thread is to load the images.
    boot: bool,
    /// vCPUs that have not begun in this life and have registers all the same: those that were put in.
    put_in: VcpuSet,
    /// Its vCPUs are to stand still.
    is_paused: bool,
    /// That is only until some of its memory has come, and nobody is told of it.
    is_stalled: bool,
    /// It stands still without a state, which is to be put in.
    awaits_state: bool,
    /// It is to stop as soon as it has started: asked for while its images were being loaded.
    stop_next: Option<Stop<R>>,
    /// If it powers itself off before this time, in milliseconds, it is started again: the operator's reboot of a guest
    /// without tools, which only has a power button.
    again_until: u64,
    /// How often it has been started, and when it was last, in milliseconds.
    boots: u32,
    started_at: u64,
    /// The number of the last life in which it was built for a state, and why that ended.
    built: u32,
    built_ended: Option<Stop<R>>,
    /// How many short lives it has had.
    restarts: Restarts,
}

impl<R: Clone + PartialEq> Life<R> {
    /// Of a VM that is off and has never been started, with CPUs that `machine` describes.
    #[must_use]
    pub fn new(machine: VmPower) -> Self {
        Self {
            phase: Phase::Off(Stop::PowerOff),
            machine,
            starts: [None; MAX_VCPUS],
            inside: VcpuSet::EMPTY,
            boot: false,
            put_in: VcpuSet::EMPTY,
            is_paused: false,
            is_stalled: false,
            awaits_state: false,
            stop_next: None,
            again_until: 0,
            boots: 0,
            started_at: 0,
            built: 0,
            built_ended: None,
            restarts: Restarts::default(),
        }
    }

    /// Why it is off; `None` while it is not.
    #[must_use]
    pub const fn stopped(&self) -> Option<&Stop<R>> {
        match &self.phase {
            Phase::Off(stop) => Some(stop),
            _ => None,
        }
    }

    /// Whether its guest runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running && !self.is_paused
    }

    /// Whether its vCPUs are to stand still.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether that is only until some of its memory has come.
    #[must_use]
    pub const fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// How often it has been started.
    #[must_use]
    pub const fn boots(&self) -> u32 {
        self.boots
    }

    /// Starts it, if it is off. No effects if it is not.
    pub fn start(&mut self) -> &'static [Effect] {
        if !matches!(self.phase, Phase::Off(_)) {
            return NOTHING;
        }
        self.phase = Phase::Booting;
        self.boot = true;
        &[Effect::Wake(FIRST)]
    }

    /// Takes hold of it, if it is off, to build it for a state that was saved: whoever is told so builds it, and says
    /// [`Life::is_built`], or [`Life::failed`]. Says whether it was off.
    pub fn start_for_state(&mut self) -> bool {
        let is_off = matches!(self.phase, Phase::Off(_));
        if is_off {
            self.phase = Phase::Booting;
        }
        is_off
    }

    /// It is built, at `now` in milliseconds, without images. It stands still with nobody in it until a state is put in
    /// ([`Life::restore`]), and it is let go on.
    pub fn is_built(&mut self, now: u64) -> &'static [Effect] {
        self.boots = self.boots.wrapping_add(1);
        self.started_at = now;
        (self.built, self.built_ended) = (self.boots, None);
        self.machine.reset();
        if let Some(stop) = self.stop_next.take() {
            self.phase = Phase::Stopping(stop);
            return &[Effect::Wake(FIRST), Effect::Report];
        }
        self.phase = Phase::Running;
        self.is_paused = true;
        self.awaits_state = true;
        const STANDS: &[Effect] = &[
            Effect::ShowPause,
            Effect::FreezeWatchdogs,
            Effect::ChangeDevices(Change::Pause),
            Effect::PauseClock,
            Effect::Report,
        ];
        STANDS
    }

    /// Stops it, or makes it start afresh. The first reason counts.
    pub fn stop(&mut self, stop: Stop<R>) -> &'static [Effect] {
        match self.phase {
            Phase::Running => {
                self.phase = Phase::Stopping(stop);
                // Under the lock: a vCPU that leaves at once must not clear the requests before all are made, or the VM's
                // next life would find one.
                &[Effect::AskAll(Ask::Leave)]
            }
            Phase::Booting => {
                self.stop_next.get_or_insert(stop);
                // Perhaps it waits for its turn to start afresh.
                &[Effect::WakeAll]
            }
            // Kept for later, it would stop a life that nobody asked to stop.
            Phase::Off(_) | Phase::Stopping(_) | Phase::Ending(_) => NOTHING,
        }
    }

    /// What has become of its life number `life`, the last one in which it was built for a state, or the one that it lives.
    #[must_use]
    pub fn fate(&self, life: u32) -> Fate<R> {
        match (&self.built_ended, &self.phase) {
            // What has come since is another life's: the operator may have started it again.
            (Some(stop), _) if self.built == life => Fate::after(stop),
            _ if self.boots != life => Fate::Afresh,
            (_, Phase::Running) => Fate::Lives,
            (_, Phase::Booting) => Fate::Afresh,
            (_, Phase::Stopping(stop) | Phase::Ending(stop) | Phase::Off(stop)) => Fate::after(stop),
        }
    }

    /// Stops it, if that life of it goes on which has the number `life`: a reason that was found in one is none for the next.
    pub fn stop_in(&mut self, life: u32, stop: Stop<R>) -> &'static [Effect] {
        if self.fate(life) == Fate::Lives { self.stop(stop) } else { NOTHING }
    }

    /// Lets its vCPUs stand still, and its watchdogs with them. No effects if it does not run.
    pub fn pause(&mut self) -> &'static [Effect] {
        if self.phase == Phase::Running && core::mem::take(&mut self.is_stalled) {
            // It stands still already, and goes on when the operator says so.
            return &[Effect::Say(Saying::Paused), Effect::Report];
        }
        if !self.is_running() {
            return NOTHING;
        }
        self.is_paused = true;
        &PAUSES
    }

    /// As [`Life::pause`], until some of its memory has come ([`Life::unstall`]): that may be hundreds of times, and nobody is told.
    pub fn stall(&mut self) -> &'static [Effect] {
        if !self.is_running() {
            return NOTHING;
        }
        self.is_paused = true;
        self.is_stalled = true;
        untold(&STALLS)
    }

    /// Some of its memory has come. It goes on, unless it stands still for another reason.
    pub fn unstall(&mut self) -> &'static [Effect] {
        if self.phase != Phase::Running || !core::mem::take(&mut self.is_stalled) {
            return NOTHING;
        }
        self.is_paused = false;
        untold(&UNSTALLS)
    }

    /// Lets it go on. No effects if it is not paused, has no state yet, or stops: its watchdogs are not to begin again then.
    pub fn resume(&mut self) -> &'static [Effect] {
        if self.phase != Phase::Running || !self.is_paused || self.is_stalled || self.awaits_state {
            return NOTHING;
        }
        self.is_paused = false;
        &RESUMES
    }

    /// If it powers itself off before `until`, in milliseconds, it is started again. With 0 it stays off.
    pub const fn start_again_until(&mut self, until: u64) {
        self.again_until = until;
    }

    /// What `vcpu`'s thread does next; `None` if it sleeps until it is woken.
    pub fn next_task(&mut self, vcpu: VcpuId) -> Option<Task> {
        if vcpu == FIRST && core::mem::take(&mut self.boot) {
            return Some(Task::Boot);
        }
        if vcpu == FIRST && matches!(self.phase, Phase::Stopping(_)) && self.inside.is_empty() {
            return Some(Task::End);
        }
        // What is paused does not begin either: its clock may stand still, by which no vCPU can go.
        if !self.is_running() {
            return None;
        }
        if self.put_in.contains(vcpu) {
            self.put_in.remove(vcpu);
            self.inside.insert(vcpu);
            return Some(Task::GoOn);
        }
        let start = self.starts.get_mut(vcpu.index())?.take()?;
        self.machine.started(vcpu);
        self.inside.insert(vcpu);
        Some(Task::Run(start))
    }

    /// `vcpu` has left the guest and is in memory, at `now` in milliseconds. If it was the last one and the VM's life ends
    /// with that: how, and its thread ends it.
    pub fn left(&mut self, vcpu: VcpuId, now: u64) -> Option<End> {
        self.inside.remove(vcpu);
        self.end(now)
    }

    /// Ends its life at `now`, in milliseconds, if no vCPU is in the guest or about to be. `None` if it goes on, or has ended.
    pub fn end(&mut self, now: u64) -> Option<End> {
        if !self.inside.is_empty() {
            return None;
        }
        let stop = match &self.phase {
            Phase::Stopping(stop) => stop.clone(),
            // A vCPU was switched on and has not begun yet: the VM goes on.
            Phase::Running if self.starts.iter().any(Option::is_some) || !self.put_in.is_empty() => return None,
            Phase::Running => Stop::PowerOff,
            Phase::Off(_) | Phase::Booting | Phase::Ending(_) => return None,
        };
        // Before it may become a restart, which is how the operator's wish is done: the guest has powered itself off.
        if self.built == self.boots {
            self.built_ended = Some(stop.clone());
        }
        let is_to_start_again = now < core::mem::take(&mut self.again_until);
        let stop = if stop == Stop::PowerOff && is_to_start_again { Stop::Restart } else { stop };
        self.starts = [None; MAX_VCPUS];
        self.put_in = VcpuSet::EMPTY;
        self.is_paused = false;
        self.is_stalled = false;
        self.awaits_state = false;
        let length = now.saturating_sub(self.started_at);
        let by = match stop {
            Stop::Reset => By::Guest,
            Stop::Restart => By::Operator,
            Stop::PowerOff | Stop::Operator | Stop::Crashed(_) => {
                self.phase = Phase::Ending(stop);
                return Some(End::Off);
            }
        };
        self.phase = Phase::Booting;
        Some(End::Afresh { wait: self.restarts.wait(length, by) })
    }

    /// Whether it is to stop as soon as it has started, so that it need not wait for its turn to start.
    #[must_use]
    pub const fn is_to_stop_at_once(&self) -> bool {
        self.stop_next.is_some()
    }

    /// Its images are loaded, at `now` in milliseconds, and vCPU 0 is to `start`.
    pub fn started(&mut self, start: Start, now: u64) -> &'static [Effect] {
        self.phase = match self.stop_next.take() {
            None => Phase::Running,
            Some(stop) => Phase::Stopping(stop),
        };
        self.boots = self.boots.wrapping_add(1);
        self.started_at = now;
        self.machine.reset();
        // Under the same lock: were it kept later, another thread might have ended this life before, and the next would have
        // two beginnings.
        if let Some(first) = self.starts.first_mut() {
            *first = Some(start);
        }
        &[Effect::Say(Saying::Started), Effect::Wake(FIRST), Effect::Report]
    }

    /// Its images could not be loaded, and what there was of them is taken apart again.
    pub fn failed(&mut self, reason: R) -> &'static [Effect] {
        self.stop_next = None;
        // Of a life that a reset has ended no other one comes.
        if let Some(Stop::Reset | Stop::Restart) = self.built_ended
            && self.built == self.boots
        {
            self.built_ended = Some(Stop::Crashed(reason.clone()));
        }
        self.phase = Phase::Off(Stop::Crashed(reason));
        &[Effect::Say(Saying::Stopped), Effect::Report]
    }

    /// It is taken apart, after [`End::Off`].
    pub fn is_taken_apart(&mut self) -> &'static [Effect] {
        let Phase::Ending(stop) = &self.phase else { return NOTHING };
        self.phase = Phase::Off(stop.clone());
        &[Effect::Say(Saying::Stopped), Effect::Report]
    }

    /// PSCI CPU_ON, called by a vCPU of this VM. Its effect is to wake the other's thread.
    ///
    /// # Errors
    /// What the caller gets instead of success.
    pub fn cpu_on(&mut self, target: u64, entry: u64, context: u64, order: ByteOrder) -> Result<Effect, PsciError> {
        let start = self.machine.cpu_on(target, entry, context, order)?;
        if let Some(slot) = self.starts.get_mut(start.vcpu.index()) {
            *slot = Some(start);
        }
        Ok(Effect::Wake(start.vcpu))
    }

    /// PSCI CPU_OFF by `vcpu`, which then leaves.
    pub fn cpu_off(&mut self, vcpu: VcpuId) -> CpuOffOutcome {
        self.machine.cpu_off(vcpu)
    }

    /// The state of its CPUs, to look something up.
    #[must_use]
    pub const fn machine(&self) -> &VmPower {
        &self.machine
    }
}
