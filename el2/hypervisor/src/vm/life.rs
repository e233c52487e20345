//! Where a VM's life happens: this module performs what [`Life`] decides, and does the long work that it hands out.
//!
//! Every change of a VM's life is made under the lock around it ([`Vm::life`]), and so is each effect: the next holder of the
//! lock finds every decision performed. Loading and taking apart take long and happen without it, on a vCPU's thread; `Life`
//! makes sure that only one thread does so, and that no vCPU is in the guest meanwhile. So nothing is freed while a vCPU may use
//! it, and no other VM waits for any of it.

use core::fmt;
use core::sync::atomic::Ordering;

use ::devices::Change;
use ::vm::stolen::PausedWait;
use ::vm::{Ask, Effect, End, NoState, Saying, Task};
use hw::sync::PreemptGuard;
use hw::sysreg;
use log::Level;
use services::psci::{CpuOffOutcome, PsciError, VmPower};
use units::{ByteOrder, Ticks, VcpuId};

use super::guest_memory::GuestRam;
use super::handle::{VcpuHandle, request};
use super::{Fate, Life, Stop, Then, Vm};
use crate::host::text::{Sentence, sentence};
use crate::host::{self, memory};
use crate::output;
use crate::output::log_sink::Line;
use crate::sched;

impl Vm {
    /// The state of its life, which nobody changes as long as the caller has it.
    pub(crate) fn life(&self) -> PreemptGuard<'_, Life> {
        self.life.lock()
    }

    /// Does to its machine what comes from outside, at a moment when nobody takes its state out or puts one in. Otherwise what comes
    /// between the two would be lost: a line that somebody types, say.
    ///
    /// # Errors
    /// If its machine waits for a state: that would take the place of whatever came before it.
    pub(crate) fn deliver<T>(&self, happens: impl FnOnce(&Self) -> T) -> Result<T, NoState> {
        self.life().deliver(|| happens(self))
    }

    /// Performs what `life`, which is this VM's and which the caller has locked, decided. Says whether that was anything.
    fn perform(&self, life: &Life, effects: &[Effect]) -> bool {
        for effect in effects {
            match *effect {
                Effect::ShowPause => self.show_pause(life),
                Effect::FreezeWatchdogs => self.doors.pause(self),
                Effect::ThawWatchdogs => self.doors.resume(self),
                Effect::ChangeDevices(change) => self.devices.change(self, change),
                Effect::AskAll(ask) => {
                    let what = match ask {
                        Ask::Leave => request::STOP,
                        Ask::StandStill => request::PAUSE,
                    };
                    self.vcpus().iter().for_each(|vcpu| vcpu.request(what));
                }
                Effect::PauseClock => self.clock.lock().pause(Ticks(sysreg::cntpct_el0())),
                Effect::ResumeClock => self.clock.lock().resume(Ticks(sysreg::cntpct_el0())),
                Effect::ServeDevices => {
                    self.console.ask_for_service();
                    self.alarm.watch();
                }
                Effect::Wake(vcpu) => {
                    if let Some(vcpu) = self.vcpus().get(vcpu.index()) {
                        sched::wake(vcpu.thread());
                    }
                }
                Effect::WakeAll => self.vcpus().iter().for_each(|vcpu| sched::wake(vcpu.thread())),
                Effect::Say(saying) => self.say(life, saying),
                Effect::Report => output::vm_changed(),
            }
        }
        !effects.is_empty()
    }

    fn show_pause(&self, life: &Life) {
        // Pairs with the acquire in `is_paused`: a vCPU that finds it set finds its watchdogs standing still, or what was
        // before the pause if it does not.
        self.paused.store(life.is_paused(), Ordering::Release);
    }

    fn say(&self, life: &Life, saying: Saying) {
        match (saying, life.stopped()) {
            (Saying::Started, _) => self.tell(Level::Info, format_args!("started ({})", life.boots())),
            (Saying::Paused, _) => log::info!("{}: paused", self.config.name),
            (Saying::GoesOn, _) => log::info!("{}: goes on", self.config.name),
            (Saying::Stopped, Some(Stop::Crashed(reason))) => {
                self.tell(Level::Error, format_args!("stopped: {reason}"));
            }
            (Saying::Stopped, Some(Stop::Operator)) => self.tell(Level::Info, format_args!("stopped by the operator")),
            (Saying::Stopped, _) => self.tell(Level::Info, format_args!("powered off")),
        }
    }

    /// A line for the log about its life.
    fn tell(&self, level: Level, text: fmt::Arguments<'_>) {
        self.console.tell(&Line::of(level, format_args!("{}: {text}", self.config.name)));
    }

    /// How often it has been started.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.life().boots()
    }

    /// Whether it stands still only until some of its memory has come.
    #[must_use]
    pub(crate) fn is_stalled(&self) -> bool {
        self.life().is_stalled()
    }

    /// Why it is off; `None` while it is not.
    #[must_use]
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.life().stopped().cloned()
    }

    /// Starts it, if it is off. Says whether it was.
    pub(crate) fn start(&self) -> bool {
        let mut life = self.life();
        let effects = life.start();
        self.perform(&life, effects)
    }

    /// Stops it, or makes it start afresh. The first reason counts.
    pub(crate) fn stop(&self, stop: Stop) {
        self.stop_under(&mut self.life(), stop);
    }

    /// What has become of its life number `life`.
    #[must_use]
    pub(crate) fn fate(&self, life: u32) -> Fate {
        self.life().fate(life)
    }

    /// Stops it, if it still lives its life number `life`.
    pub(crate) fn stop_in(&self, number: u32, stop: Stop) {
        let mut life = self.life();
        let effects = life.stop_in(number, stop);
        self.perform(&life, effects);
    }

    /// All of the memory has come of its life number `number`: it stands still for none of it any more. If that life goes on it hears
    /// of that, and goes on or stands still for the operator.
    pub(crate) fn memory_has_come(&self, number: u32, then: Then) {
        let mut life = self.life();
        if life.fate(number) == Fate::Lives {
            self.devices.memory_has_come(self);
            if then == Then::StandsStill {
                self.pause_under(&mut life);
            }
        }
    }

    /// As [`Vm::stop`], under the lock of its life.
    pub(crate) fn stop_under(&self, life: &mut Life, stop: Stop) {
        let effects = life.stop(stop);
        self.perform(life, effects);
    }

    /// Lets its vCPUs stand still, and its watchdogs with them; its clock too, if its site file says so, as soon as they all do.
    /// Says whether it ran.
    pub fn pause(&self) -> bool {
        self.pause_under(&mut self.life())
    }

    /// As [`Vm::pause`], under the lock of its life.
    pub(crate) fn pause_under(&self, life: &mut Life) -> bool {
        let effects = life.pause();
        self.perform(life, effects)
    }

    /// Lets its vCPUs stand still until some of its memory has come, under the lock of its life.
    pub(crate) fn stall_under(&self, life: &mut Life) {
        let effects = life.stall();
        self.perform(life, effects);
    }

    /// Some of its memory has come for which it stood still.
    pub(crate) fn unstall(&self) {
        let mut life = self.life();
        let effects = life.unstall();
        self.perform(&life, effects);
    }

    /// Lets it go on. Says whether it was paused.
    pub fn resume(&self) -> bool {
        let mut life = self.life();
        let effects = life.resume();
        self.perform(&life, effects)
    }

    /// If it powers itself off within so many seconds, it is started again; with `None` it stays off.
    pub(crate) fn start_again_after_power_off(&self, seconds: Option<u32>) {
        let until = seconds.map_or(0, |seconds| host::milliseconds().saturating_add(u64::from(seconds) * 1000));
        self.life().start_again_until(until);
    }

    /// `vcpu` stands still for as long as the VM is paused, or until it is to leave. Its registers are in memory; called by
    /// its thread. What that waited for a CPU meanwhile: nobody stole that time from the guest.
    pub(crate) fn stand_still(&self, vcpu: &VcpuHandle) -> PausedWait {
        let mut life = self.life();
        let mut clock = self.clock.lock();
        clock.leave(Ticks(sysreg::cntpct_el0()));
        let is_left = clock.is_left();
        drop(clock);
        let mut wait = PausedWait::begin(vcpu.thread().wait_time());
        if is_left {
            // Somebody may wait for that, to save it.
            output::wake_reader();
        }
        while life.is_paused() && !vcpu.is_to_stop() {
            wait.lasts(vcpu.thread().wait_time());
            drop(life);
            sched::block(None);
            life = self.life();
        }
        // Under the lock of its life, so that no pause comes between: the clock would stop though this vCPU goes on.
        self.clock.lock().enter();
        drop(life);
        wait
    }

    /// What `vcpu`'s thread does next; waits until there is something.
    pub(crate) fn next_task(&self, vcpu: &VcpuHandle) -> Task {
        loop {
            let mut life = self.life();
            if let Some(task) = life.next_task(vcpu.id) {
                // Under the lock of its life, for the reason that `stand_still` has.
                if matches!(task, Task::Run(_) | Task::GoOn) {
                    self.clock.lock().enter();
                }
                return task;
            }
            drop(life);
            sched::block(None);
        }
    }

    /// `vcpu` has left the guest and is unloaded. The last one to leave ends the VM's life, or begins it anew.
    pub(crate) fn left(&self, vcpu: VcpuId) {
        let mut life = self.life();
        self.clock.lock().leave(Ticks(sysreg::cntpct_el0()));
        let end = life.left(vcpu, host::milliseconds());
        self.carry_out(life, end);
    }

    /// Ends the VM's life, or begins it anew, if no vCPU is in the guest or about to be.
    pub(crate) fn end(&self) {
        let mut life = self.life();
        let end = life.end(host::milliseconds());
        self.carry_out(life, end);
    }

    fn carry_out(&self, life: PreemptGuard<'_, Life>, end: Option<End>) {
        let Some(end) = end else { return };
        self.show_pause(&life);
        drop(life);
        self.take_apart(end);
        match end {
            End::Afresh { wait } => {
                self.tell(Level::Info, format_args!("starts afresh"));
                self.wait_for_its_turn(wait);
                self.boot();
            }
            End::Off => {
                let mut life = self.life();
                let effects = life.is_taken_apart();
                self.perform(&life, effects);
            }
        }
    }

    /// Waits so many milliseconds before it starts afresh: a VM that resets itself again and again, and so has its images loaded
    /// and its memory cleared all the time, is slowed down. What the operator wants is not made to wait.
    fn wait_for_its_turn(&self, milliseconds: u64) {
        if milliseconds == 0 {
            return;
        }
        self.tell(
            Level::Warn,
            format_args!("it resets itself again and again within seconds; it starts again in {milliseconds} ms"),
        );
        let until = sysreg::cntpct_el0().saturating_add(host::ticks(milliseconds * 1000));
        while !self.life().is_to_stop_at_once() && sysreg::cntpct_el0() < until {
            sched::block(Some(Ticks(until)));
        }
    }

    /// Gives its memory back, with what its devices keep unless it starts afresh. No vCPU is in the guest or loaded.
    fn take_apart(&self, end: End) {
        let keeps_annex = matches!(end, End::Afresh { .. });
        self.doors.watchdogs.stop();
        self.forget_clock_pages();
        self.devices.change(self, Change::PowerOff);
        if !keeps_annex {
            self.devices.change(self, Change::Forget);
        }
        for vcpu in self.vcpus() {
            vcpu.clear_requests();
        }
        self.records.store(0, Ordering::Relaxed);
        // Pairs with the release in `build_machine`, and with the acquire in `vttbr`: nobody enters by tables that are about to go.
        let vttbr = self.vttbr.swap(0, Ordering::AcqRel);
        GuestRam::destroy(&self.ram, vttbr, keeps_annex);
        let mut frames = memory::release_guest(self.id);
        if !keeps_annex {
            frames += memory::release_guest(memory::annex_of(self.id));
        }
        self.report(Level::Debug, format_args!("gave {frames} frames back"));
    }

    /// Builds the machine, loads the images, and starts vCPU 0.
    pub(crate) fn boot(&self) {
        let built = self.build();
        if built.is_err() {
            self.take_apart(End::Off);
        }
        let mut life = self.life();
        let effects = match built {
            Ok(start) => life.started(start, host::milliseconds()),
            Err(reason) => life.failed(reason),
        };
        self.perform(&life, effects);
    }

    /// Builds it, which is off, without images: it stands still, for a state to be put in. Not on one of its own threads; they
    /// sleep.
    ///
    /// # Errors
    /// If it is not off, or there is no memory for it.
    pub(crate) fn build_for_state(&self) -> Result<(), Sentence> {
        if !self.life().start_for_state() {
            return Err(sentence!("{} is not off any more", self.config.name));
        }
        let built = self.build_machine();
        if built.is_err() {
            self.take_apart(End::Off);
        }
        let mut life = self.life();
        let effects = match &built {
            Ok(()) => life.is_built(host::milliseconds()),
            Err(reason) => life.failed(reason.clone()),
        };
        self.perform(&life, effects);
        built
    }

    /// PSCI CPU_ON.
    ///
    /// # Errors
    /// What the caller gets instead of success.
    pub(crate) fn cpu_on(&self, target: u64, entry: u64, context: u64, order: ByteOrder) -> Result<(), PsciError> {
        let mut life = self.life();
        let effect = life.cpu_on(target, entry, context, order)?;
        self.perform(&life, &[effect]);
        Ok(())
    }

    /// PSCI CPU_OFF by `vcpu`. An SError that was asked of it and has not become pending is nobody's any more: a CPU that is
    /// switched on has none (PSCI, section 6.4; the one that is pending in HCR_EL2.VSE goes with its registers). Under the lock of its
    /// life, under which watchdogs choose who is on.
    pub(crate) fn cpu_off(&self, vcpu: &VcpuHandle) -> CpuOffOutcome {
        let mut life = self.life();
        vcpu.forget_serror();
        life.cpu_off(vcpu.id)
    }

    /// Looks something up in the state of its CPUs.
    pub(crate) fn with_power_state<R>(&self, look: impl FnOnce(&VmPower) -> R) -> R {
        look(self.life().machine())
    }
}
