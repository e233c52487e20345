//! Its life: the operator's requests, and what each vCPU's thread then does until no thread has anything to do.

use devices::Change;
use machine::Row;
use services::psci::Start;
use units::{ByteOrder, Ipa, VcpuId};
use vgic::{Power, Vgic};
use vm::stolen::{PausedWait, Stolen};
use vm::{Ask, Effect, End, Stop, Task};

use crate::exits::Done;
use crate::hardware::Registers;
use crate::whole::{GIC, HOST, Reason, VCPUS, VcpuState, WholeVm};

/// More turns than any life takes to come to rest: each vCPU leaves, the last one takes apart and loads, and one begins.
const TURNS: usize = 64;

impl WholeVm {
    /// The operator starts it.
    pub fn start(&mut self) {
        let effects = self.life.start();
        self.perform(effects);
        self.settle();
    }

    /// The operator stops it, or something else does.
    pub fn stop(&mut self, stop: Reason) {
        let effects = self.life.stop(stop);
        self.perform(effects);
        self.settle();
    }

    /// The operator pauses it.
    pub fn pause(&mut self) {
        let effects = self.life.pause();
        self.perform(effects);
        self.settle();
    }

    /// And lets it go on.
    pub fn resume(&mut self) {
        let effects = self.life.resume();
        self.perform(effects);
        self.settle();
    }

    /// Whether it is off, and why.
    #[must_use]
    pub const fn stopped(&self) -> Option<&Stop<&'static str>> {
        self.life.stopped()
    }

    pub(crate) fn perform(&mut self, effects: &[Effect]) {
        for effect in effects {
            match *effect {
                Effect::FreezeWatchdogs => {
                    self.watchdogs.pause(self.milliseconds());
                    self.service.pause(self.milliseconds());
                }
                Effect::ThawWatchdogs => {
                    self.watchdogs.resume(self.milliseconds());
                    self.service.resume(self.milliseconds());
                }
                Effect::ChangeDevices(change) => self.change(change),
                Effect::AskAll(ask) => {
                    for vcpu in self.vcpus.iter_mut().filter(|vcpu| vcpu.place != VcpuState::Out) {
                        match ask {
                            Ask::Leave => vcpu.is_to_leave = true,
                            Ask::StandStill => vcpu.is_to_stand = true,
                        }
                    }
                }
                Effect::PauseClock => self.clock.pause(self.now),
                Effect::ResumeClock => self.clock.resume(self.now),
                Effect::ServeDevices => self.poll(),
                Effect::Say(saying) => self.done.push(Done::Said(saying)),
                // Whoever looks, looks after each event.
                Effect::ShowPause | Effect::Wake(_) | Effect::WakeAll | Effect::Report => {}
            }
        }
    }

    /// Lets every thread do what it has to, until none has anything to do but run its guest.
    ///
    /// # Panics
    /// If that takes for ever.
    pub(crate) fn settle(&mut self) {
        let delay = std::mem::take(&mut self.delay);
        self.threads_wait(delay);
        for _ in 0..TURNS {
            if !(0..VCPUS).map(VcpuId).any(|id| self.turn(id)) {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.life);
    }

    /// What the thread of a vCPU does next. Says whether it had anything to do.
    fn turn(&mut self, id: VcpuId) -> bool {
        let vcpu = &mut self.vcpus[id.index()];
        match vcpu.place {
            VcpuState::In | VcpuState::Standing if std::mem::take(&mut vcpu.is_to_leave) => {
                vcpu.is_to_stand = false;
                self.leaves(id);
            }
            VcpuState::In if std::mem::take(&mut vcpu.is_to_stand) => {
                vcpu.place = VcpuState::Standing;
                vcpu.standing = Some((vcpu.waited, PausedWait::begin(vcpu.waited)));
                self.unload(id);
            }
            VcpuState::Standing if !self.life.is_paused() => {
                vcpu.place = VcpuState::In;
                if let Some((before, wait)) = vcpu.standing.take() {
                    vcpu.nothing_is_stolen(wait.over(before));
                }
                vcpu.stolen = vcpu.not_stolen.stolen(vcpu.waited);
                self.clock.enter();
                self.update_timer(id);
            }
            VcpuState::In | VcpuState::Standing => return false,
            VcpuState::Out => match self.life.next_task(id) {
                None => return false,
                Some(Task::Boot) => self.load(),
                Some(Task::End) => {
                    let end = self.life.end(self.host_milliseconds());
                    self.ends(end);
                }
                Some(Task::Run(start)) => self.begins(start),
                Some(Task::GoOn) => {
                    let vcpu = &mut self.vcpus[id.index()];
                    vcpu.place = VcpuState::In;
                    vcpu.nothing_is_stolen(vcpu.waited);
                    self.clock.enter();
                    self.update_timer(id);
                }
            },
        }
        true
    }

    /// Its images are loaded.
    fn load(&mut self) {
        let start = Start { vcpu: VcpuId(0), entry: self.plan.ram().start, context: 0, order: ByteOrder::Little };
        let effects = self.life.started(start, self.host_milliseconds());
        self.perform(effects);
    }

    /// A vCPU begins in its guest.
    fn begins(&mut self, start: Start) {
        let id = start.vcpu;
        let vcpu = &mut self.vcpus[id.index()];
        vcpu.registers = Registers::default();
        vcpu.place = VcpuState::In;
        vcpu.nothing_is_stolen(vcpu.waited);
        self.enter_at(start);
        self.clock.enter();
        let concerned = self.shared.gic.borrow_mut().set_power(id, Power::On);
        self.watchdogs.vcpu_started(id, self.milliseconds());
        self.refresh(concerned);
        self.with_gic(id, |_| units::VcpuSet::EMPTY);
    }

    /// Its registers are those with which a vCPU starts.
    pub(crate) fn enter_at(&mut self, start: Start) {
        let registers = &mut self.vcpus[start.vcpu.index()].registers;
        let list = std::mem::take(&mut registers.list);
        *registers = Registers { list, ..Registers::default() };
        registers.x[0] = start.context;
        registers.state.pc = start.entry.0;
        registers.state.pstate = cpu::reset::PSTATE;
        registers.state.sctlr_el1 = cpu::reset::sctlr_el1(start.order);
    }

    /// A vCPU's state is in memory, and nothing of it on a CPU.
    fn unload(&mut self, id: VcpuId) {
        let registers = &mut self.vcpus[id.index()].registers;
        // Which tries were alike is the host's, and begins anew.
        registers.tries = cpu::retry::Tries::new();
        let mut gic = self.shared.gic.borrow_mut();
        let concerned = gic.sync(id, &mut registers.list);
        let _ = gic.detach_hardware(id);
        registers.list.forget(gic.usual_control());
        drop(gic);
        registers.list.lr = Default::default();
        self.clock.leave(self.now);
        self.refresh(concerned);
    }

    /// A vCPU leaves its guest for good.
    fn leaves(&mut self, id: VcpuId) {
        if self.vcpus[id.index()].place == VcpuState::In {
            self.unload(id);
        }
        self.vcpus[id.index()].place = VcpuState::Out;
        self.vcpus[id.index()].standing = None;
        let concerned = self.shared.gic.borrow_mut().set_power(id, Power::Off);
        self.refresh(concerned);
        let end = self.life.left(id, self.host_milliseconds());
        self.ends(end);
    }

    /// The machine is taken apart, if its life ends, and loaded again if it starts afresh.
    fn ends(&mut self, end: Option<End>) {
        let Some(end) = end else { return };
        self.watchdogs.stop();
        self.clock.resume(self.now);
        self.change(Change::PowerOff);
        let keeps_annex = matches!(end, End::Afresh { .. });
        if !keeps_annex {
            self.change(Change::Forget);
        }
        self.shared.memory.borrow_mut().forget(keeps_annex);
        self.is_unfinished = false;
        *self.shared.gic.borrow_mut() = Vgic::new(GIC);
        self.change(Change::Reset);
        self.service.restart();
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.stolen = Stolen::default());
        match end {
            End::Off => {
                let effects = self.life.is_taken_apart();
                self.perform(effects);
            }
            End::Afresh { wait } => {
                self.now.0 += wait * (HOST.0 / 1000);
                self.load();
            }
        }
    }

    /// The devices of its machine, in the order of the plan.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        self.plan.rows()
    }

    /// The first byte of RAM.
    #[must_use]
    pub fn ram(&self) -> Ipa {
        self.plan.ram().start
    }
}
