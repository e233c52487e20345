//! What an exit leads to: the `match` of the hypervisor's `exit/dispatch.rs`, performed on fields.

use abi::bundle::Calls;
use cpu::exit::{DataAbort, Exit, InstructionAbort, WaitKind, decode};
use cpu::inject::{self, AbortKind, GuestState};
use cpu::pstate;
use cpu::retry::{Try, Verdict};
use cpu::sysreg::{self as trapped, Action, OsLockRegister, SgiRegister, Timer, TimerRegister};
use cpu::translation::{Memory, Rights};
use machine::{Target, redistributor};
use services::psci::{Call, PsciError, Suspension};
use services::{Facts, NOT_SUPPORTED, Request, SUCCESS};
use units::{Direction, Ipa, Va, VcpuId, VcpuSet};
use vgic::Group;
use vm::aborts::{self, Course, Fetch};
use vm::mmio::{self, Operation, Refusal, StackPointer, Written};
use vm::{Bite, Saying, Stop};

use crate::hardware::Shared;
use crate::whole::{VcpuState, WholeVm};

/// What a CPU says about an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// The guest goes on behind its instruction.
    Completed,
    /// It executes it again.
    Again,
    /// It got an exception, with this ESR_EL1.
    Injected(u64),
    /// It sees this of its RAM.
    Shown(Ipa),
    /// It waits for an interrupt, and there is one or not.
    Waits(bool),
    /// A device answered.
    Read(Target, u64),
    /// A device was told.
    Written(Target, u64),
    /// The vCPU left its guest.
    Left,
    /// A watchdog bit.
    Bite(Bite),
    /// The log has a line.
    Said(Saying),
    /// The guest's own line.
    Logged(usize),
}

/// The guest's stage 1: all of what 40 bits reach is where it is, and RAM is Normal memory. An address beyond is not mapped;
/// a tag is no part of it.
pub(crate) fn translate(
    shared: &Shared,
    ram: units::Range<Ipa>,
    va: Va,
    rights: Rights,
    direction: Direction,
) -> Result<(Ipa, Memory), AbortKind> {
    shared.work.count();
    let address = va.0 << 8 >> 8;
    if address >> 40 != 0 {
        return Err(AbortKind::Translation(3));
    }
    let ipa = Ipa(address);
    // The last MiB of RAM is the kernel's alone, and the one before is not written.
    let from_end = ram.start.0.saturating_add(ram.size).wrapping_sub(address);
    match from_end >> 20 {
        0 if rights == Rights::User => Err(AbortKind::Permission(3)),
        1 if direction == Direction::Write => Err(AbortKind::Permission(2)),
        _ => Ok((ipa, if ram.contains(ipa) { Memory::Normal } else { Memory::Device })),
    }
}

/// The guest, as `core/vm` asks about it.
struct Asked<'a> {
    vm: &'a WholeVm,
    id: VcpuId,
}

impl mmio::Guest for Asked<'_> {
    fn device(&self, ipa: Ipa) -> Option<Target> {
        self.vm.plan.find(ipa)
    }

    fn is_ram(&self, ipa: Ipa) -> bool {
        self.vm.plan.ram().contains(ipa)
    }

    fn translate(&self, va: Va, rights: Rights, direction: Direction) -> Result<(Ipa, Memory), AbortKind> {
        translate(&self.vm.shared, self.vm.plan.ram(), va, rights, direction)
    }

    fn refused_walk(&self, _: Va, table: Ipa) -> AbortKind {
        AbortKind::ExternalOnWalk((table.0 >> 12) as u8 & 3)
    }

    fn word(&self, ipa: Ipa) -> Option<[u8; 4]> {
        self.vm.shared.work.count();
        let mut bytes = [0; 4];
        let mut memory = self.vm.shared.memory.borrow_mut();
        memory.show(ipa);
        memory.read(ipa, &mut bytes).ok().map(|()| bytes)
    }

    fn stack_pointer(&self, which: StackPointer) -> u64 {
        self.vm.vcpus[self.id.index()].registers.sp[usize::from(which == StackPointer::El1)]
    }

    fn sctlr_el1(&self) -> u64 {
        self.vm.vcpus[self.id.index()].registers.state.sctlr_el1
    }

    fn dczid_el0(&self) -> u64 {
        4
    }
}

impl WholeVm {
    /// A vCPU that is in its guest exits. Nothing happens if it is not there.
    ///
    /// # Panics
    /// If `core/` does: never.
    pub fn exit(&mut self, id: VcpuId, cause: Cause) {
        if self.place(id) != VcpuState::In {
            return;
        }
        match decode(cause.esr, cause.far, cause.hpfar) {
            Exit::DataAbort(abort) => self.data_abort(id, cause, &abort),
            Exit::InstructionAbort(abort) => self.instruction_abort(id, cause, &abort),
            Exit::SystemRegister(access) => {
                if !self.debug_register(id, cause, &access) {
                    let action = trapped::classify(access.encoding, access.direction);
                    self.system_register(id, action, access.direction, access.rt);
                }
            }
            Exit::Hvc { immediate: 0 } => self.call(id),
            Exit::Hvc { immediate: 0x86 } if self.hvc(id) => {}
            Exit::Smc { immediate: 0 } => {
                self.complete(id);
                self.call(id);
            }
            Exit::Hvc { .. } => self.set(id, 0, NOT_SUPPORTED),
            Exit::Smc { .. } => {
                self.complete(id);
                self.set(id, 0, NOT_SUPPORTED);
            }
            Exit::Wfx(kind) => {
                let called = kind == WaitKind::Wfe && self.word(id);
                self.complete(id);
                if !called {
                    self.wait(id);
                }
            }
            Exit::FloatingPoint => {}
            Exit::Breakpoint | Exit::Step | Exit::Watchpoint { .. } | Exit::Brk { .. } | Exit::PcAlignment { .. } => {
                self.inject(id, |state| inject::reflect(state, cause.esr, Some(Va(cause.far))));
            }
            _ => self.inject(id, inject::undefined),
        }
        // As the hypervisor: what a device has not finished goes on before the guest does, a share at a time.
        if std::mem::take(&mut self.is_unfinished) {
            self.poll();
        }
        self.settle();
    }

    pub(crate) fn set(&mut self, id: VcpuId, number: u8, value: u64) {
        self.vcpus[id.index()].registers.set(number, value);
    }

    pub(crate) fn complete(&mut self, id: VcpuId) {
        self.vcpus[id.index()].registers.complete();
        self.done.push(Done::Completed);
    }

    pub(crate) fn inject(&mut self, id: VcpuId, exception: impl FnOnce(&mut GuestState)) {
        let state = &mut self.vcpus[id.index()].registers.state;
        exception(state);
        assert!(pstate::is_kernel(state.pstate), "an exception is taken to EL1");
        let esr = state.esr_el1;
        self.done.push(Done::Injected(esr));
    }

    fn again(&mut self, id: VcpuId, cause: Cause, refuse: impl FnOnce(&mut GuestState)) {
        let registers = &mut self.vcpus[id.index()].registers;
        let this = Try {
            pc: registers.state.pc,
            far: cause.far,
            syndrome: cause.esr,
            pstate: registers.state.pstate,
            registers: registers.x,
        };
        match registers.tries.again(&this) {
            Verdict::Again => self.done.push(Done::Again),
            Verdict::Enough => self.inject(id, refuse),
        }
    }

    fn data_abort(&mut self, id: VcpuId, cause: Cause, abort: &DataAbort) {
        let far = abort.far.unwrap_or(Va(0));
        let refuse = |kind| move |state: &mut GuestState| aborts::refuse(state, abort, far, kind);
        let guest = Asked { vm: self, id };
        match aborts::data(&guest, self.vcpus[id.index()].registers.seen(), far, abort) {
            Course::Nobody(kind) | Course::Unable(kind) => self.inject(id, refuse(kind)),
            Course::Again => self.again(id, cause, refuse(AbortKind::External)),
            Course::Ram(ipa) => self.touch(id, cause, ipa, refuse(AbortKind::External)),
            Course::Done => self.complete(id),
            Course::Elsewhere(ipa) => self.access(id, cause, far, ipa, abort),
        }
    }

    fn instruction_abort(&mut self, id: VcpuId, cause: Cause, abort: &InstructionAbort) {
        let far = abort.far.unwrap_or(Va(self.vcpus[id.index()].registers.state.pc));
        let refuse = |kind| move |state: &mut GuestState| inject::instruction_abort(state, far, kind);
        match aborts::fetch(&Asked { vm: self, id }, far, abort) {
            Fetch::Nobody(kind) => self.inject(id, refuse(kind)),
            Fetch::Again => self.again(id, cause, refuse(AbortKind::External)),
            Fetch::Ram(ipa) => self.touch(id, cause, ipa, refuse(AbortKind::External)),
        }
    }

    fn touch(&mut self, id: VcpuId, cause: Cause, ipa: Ipa, refuse: impl FnOnce(&mut GuestState)) {
        if self.show(ipa) {
            self.done.push(Done::Shown(ipa));
        } else {
            self.again(id, cause, refuse);
        }
    }

    /// A device is accessed, or nobody.
    fn access(&mut self, id: VcpuId, cause: Cause, far: Va, ipa: Ipa, abort: &DataAbort) {
        let direction = abort.direction;
        let refuse = |at, kind| move |state: &mut GuestState| inject::data_abort(state, at, kind, direction);
        let Some(target) = self.plan.find(ipa) else { return self.inject(id, refuse(far, AbortKind::External)) };
        let guest = Asked { vm: self, id };
        let seen = self.vcpus[id.index()].registers.seen();
        let result = match abort.access {
            Some(register) => {
                mmio::described(&guest, seen, target, far, register, direction).map(|one| (vec![one], None))
            }
            None => mmio::undescribed(&guest, seen, far, direction)
                .map(|operations| (operations.iter().collect(), operations.writeback)),
        };
        match result {
            Ok((operations, writeback)) => {
                for operation in operations {
                    self.make(id, &operation, direction);
                }
                let registers = &mut self.vcpus[id.index()].registers;
                match writeback {
                    Some((Written::Register(number), value)) => registers.set(number, value),
                    Some((Written::StackPointer(which), value)) => {
                        registers.sp[usize::from(which == StackPointer::El1)] = value;
                    }
                    None => {}
                }
                self.complete(id);
            }
            Err(Refusal::Abort(at, kind)) => self.inject(id, refuse(at, kind)),
            Err(Refusal::Unable { why, .. }) => self.inject(id, refuse(far, mmio::abort_of(why))),
            Err(Refusal::Again) => self.again(id, cause, refuse(far, AbortKind::External)),
        }
    }

    fn make(&mut self, id: VcpuId, operation: &Operation, direction: Direction) {
        match direction {
            Direction::Read => {
                let value = self.read(operation);
                assert_eq!(value & !operation.size.mask(), 0, "a device answers more than it was asked");
                self.done.push(Done::Read(operation.target, value));
                self.set(id, operation.rt(), operation.loaded(value));
            }
            Direction::Write => {
                let value = operation.stored(self.vcpus[id.index()].registers.get(operation.rt()));
                self.done.push(Done::Written(operation.target, value));
                self.write(id, operation, value);
            }
        }
    }

    fn read(&mut self, operation: &Operation) -> u64 {
        let &Operation { target, size, .. } = operation;
        let needs = match target {
            Target::Distributor(offset) => self.shared.gic.borrow().distributor_needs(offset, Direction::Read),
            Target::Redistributors(offset) => {
                let (frame, offset) = redistributor(offset);
                self.shared.gic.borrow().redistributor_needs(frame, offset, Direction::Read)
            }
            Target::Device(_) => VcpuSet::EMPTY,
        };
        // Whoever holds a part of it in list registers folds that back first.
        self.refresh(needs);
        let gic = self.shared.gic.borrow();
        match target {
            Target::Distributor(offset) => gic.distributor_read(offset, size),
            Target::Redistributors(offset) => {
                let (frame, offset) = redistributor(offset);
                gic.redistributor_read(frame, offset, size)
            }
            Target::Device(place) => {
                drop(gic);
                let outside = self.surroundings();
                let value = self.devices.bus.read(place, size, &outside);
                let (concerned, unfinished) = (outside.concerned(), outside.unfinished());
                self.after(concerned, unfinished);
                value
            }
        }
    }

    fn write(&mut self, id: VcpuId, operation: &Operation, value: u64) {
        let &Operation { target, size, .. } = operation;
        match target {
            Target::Distributor(offset) => self.with_gic(id, |gic| gic.distributor_write(offset, size, value)),
            Target::Redistributors(offset) => {
                let (frame, offset) = redistributor(offset);
                self.with_gic(id, |gic| gic.redistributor_write(frame, offset, size, value));
            }
            Target::Device(place) => {
                let outside = self.surroundings();
                self.devices.bus.write(place, size, value, &outside);
                let (concerned, unfinished) = (outside.concerned(), outside.unfinished());
                self.after(concerned, unfinished);
            }
        }
    }

    fn wait(&mut self, id: VcpuId) {
        let vmcr = self.vcpus[id.index()].registers.list.vmcr;
        let gic = self.shared.gic.borrow();
        let ends = gic.has_deliverable(id, vmcr) || gic.has_wake_request(id);
        drop(gic);
        self.done.push(Done::Waits(ends));
    }

    fn system_register(&mut self, id: VcpuId, action: Action, direction: Direction, rt: u8) {
        let value = self.vcpus[id.index()].registers.get(rt);
        let result = match action {
            Action::SendSgi(register) => {
                let group = if register == SgiRegister::Sgi1r { Group::One } else { Group::Zero };
                self.with_gic(id, |gic| gic.send_sgi(id, value, group));
                None
            }
            Action::IccDir => {
                self.with_gic(id, |gic| gic.deactivate(id, Self::interrupt(value)));
                None
            }
            Action::IccSre => Some(trapped::ICC_SRE_VALUE),
            Action::Count => Some(self.clock.clock().guest(self.now).0),
            // The virtual one is the hardware's.
            Action::Timer(Timer::Physical, register) => self.timer(id, register, direction, value),
            Action::Timer(Timer::Virtual, _) => None,
            Action::OsLock(OsLockRegister::Oslar) => {
                self.vcpus[id.index()].registers.os_lock = value & 1 != 0;
                None
            }
            Action::OsLock(OsLockRegister::Oslsr) => Some(trapped::oslsr(self.vcpus[id.index()].registers.os_lock)),
            // Debug registers are the hardware's.
            Action::Debug(_) | Action::DebugChannelStatus | Action::ReadZeroWriteIgnored => Some(0),
            Action::NoOperation => None,
            Action::Identification(index) => Some(index as u64),
            Action::Undefined => return self.inject(id, inject::undefined),
        };
        if direction == Direction::Read {
            self.set(id, rt, result.unwrap_or(0));
        }
        self.complete(id);
    }

    fn timer(&mut self, id: VcpuId, register: TimerRegister, direction: Direction, value: u64) -> Option<u64> {
        let (clock, now) = (self.clock.clock(), self.now);
        let timer = &mut self.vcpus[id.index()].registers.physical;
        if direction == Direction::Read {
            return Some(match register {
                TimerRegister::Control => timer.read_control(&clock, now),
                TimerRegister::CompareValue => timer.read_compare(),
                TimerRegister::TimerValue => timer.read_value(&clock, now),
            });
        }
        match register {
            TimerRegister::Control => timer.write_control(value),
            TimerRegister::CompareValue => timer.write_compare(value),
            TimerRegister::TimerValue => timer.write_value(value, &clock, now),
        }
        self.update_timer(id);
        None
    }

    /// HVC #0 or SMC #0.
    fn call(&mut self, id: VcpuId) {
        let [function, first, second, third, ..] = self.vcpus[id.index()].registers.x;
        match services::decode(function, [first, second, third], &Facts::default()) {
            Request::Answer(value) => self.set(id, 0, value),
            Request::Answers(values) => self.set_results(id, values),
            Request::Entropy(draw) => self.set_results(id, draw.answers(|| Some(4))),
            Request::Workaround(_) => {}
            Request::Psci(call) => self.power(id, call),
        }
    }

    fn set_results(&mut self, id: VcpuId, values: [u64; 4]) {
        (0..).zip(values).for_each(|(number, value)| self.set(id, number, value));
    }

    fn power(&mut self, id: VcpuId, call: Call) {
        let result = match call {
            Call::CpuOn { target, entry, context } => match self.life.cpu_on(target, entry, context) {
                Ok(effect) => {
                    self.perform(&[effect]);
                    SUCCESS
                }
                Err(error) => error.value(),
            },
            Call::CpuOff => {
                let _ = self.life.cpu_off(id);
                self.vcpus[id.index()].is_to_leave = true;
                return self.done.push(Done::Left);
            }
            Call::AffinityInfo { target, level } => {
                self.life.machine().affinity_info(target, level).map_or_else(PsciError::value, |state| state.value())
            }
            Call::CpuSuspend { power_state, entry, context } => match self.suspended(id, power_state, entry, context) {
                Ok(Suspension::Standby) => {
                    self.wait(id);
                    SUCCESS
                }
                Ok(Suspension::PowerDown(start)) => return self.enter_at(start),
                Err(error) => error.value(),
            },
            Call::SystemOff => return self.stop(Stop::PowerOff),
            Call::SystemReset(_) => return self.stop(Stop::Reset),
        };
        self.set(id, 0, result);
    }

    fn suspended(&self, id: VcpuId, state: u32, entry: u64, context: u64) -> Result<Suspension, PsciError> {
        self.life.machine().cpu_suspend(id, state, entry, context)
    }

    /// What a process may call, and a kernel: everything.
    #[must_use]
    pub const fn every_call() -> Calls {
        Calls::ALL
    }
}
