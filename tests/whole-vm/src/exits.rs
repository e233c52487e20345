//! What an exit leads to, performed on fields: `core/vm` decides ([`exits::decide`]), as it does for the hypervisor's
//! `exit/dispatch.rs`, and here are the effects.

use abi::bundle::{Calls, Coherency, Doors as Policy};
use cpu::inject::AbortKind;
use cpu::pstate;
use cpu::sysreg::{self as trapped, CommonRegister, GroupZero, Timer, TimerRegister};
use cpu::translation::{Memory, Rights};
use machine::{Target, redistributor};
use services::{Facts, SUCCESS};
use units::{Direction, IntId, Ipa, Va, VcpuId, VcpuSet};
use vgic::{common_registers, virtual_interface};
use vm::exits::{self, Cause, DebugState, Decision, Effect, Exception, Next, Powered, Sink, Source};
use vm::mmio::{self, Operation, Operations, Refusal, StackPointer, Written};
use vm::progress::{self, Allowance, NextTry, Stay, Subject};
use vm::{Bite, Caller, Saying, Stop, doors};

use crate::hardware::{POINTS, Shared};
use crate::whole::{VcpuState, WholeVm};

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
    /// It lets others have its CPU.
    GivesWay,
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

    fn translate(&self, va: Va, rights: Rights, direction: Direction) -> Result<(Ipa, Memory), Refusal> {
        translate(&self.vm.shared, self.vm.plan.ram(), va, rights, direction).map_err(|kind| Refusal::Abort(va, kind))
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

    fn doors(&self) -> &Policy {
        &self.vm.policy
    }

    fn debug(&self) -> DebugState {
        DebugState { breakpoints: POINTS, watchpoints: POINTS, ..self.vm.vcpus[self.id.index()].registers.debug }
    }

    fn facts(&self) -> Facts {
        Facts::default()
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
        let guest = Asked { vm: self, id };
        let Decision { reason: _, next, effect } =
            exits::decide(&guest, self.vcpus[id.index()].registers.seen(), cause);
        if next == Next::Behind {
            self.complete(id);
        }
        self.carry_out(id, cause, effect);
        // As the hypervisor: what a device has not finished goes on before the guest does, a share at a time.
        if std::mem::take(&mut self.is_unfinished) {
            self.poll();
        }
        self.settle();
    }

    fn carry_out(&mut self, id: VcpuId, cause: Cause, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Inject(exception, _) => self.inject(id, exception),
            Effect::Again { far, refused } => {
                let next = self.again(id, Subject::Access(far, cause.esr));
                self.go_on(id, next, refused);
            }
            Effect::Map { far, ipa, wanted, refused } => {
                let refusal = progress::RefusedRam::new(Coherency::OnDemand, cause.esr);
                assert_eq!(refusal.policy(|| self.again(id, Subject::Turn(ipa, wanted))), None, "it is not strict");
                let allowance = if self.show(ipa) { Allowance::Now } else { Allowance::Already };
                if allowance == Allowance::Now {
                    self.done.push(Done::Shown(ipa));
                }
                let next = refusal.after(allowance, || self.again(id, Subject::Access(far, cause.esr)));
                if allowance != Allowance::Now {
                    self.go_on(id, next, refused);
                }
            }
            Effect::Access(operations, direction) => self.access(id, &operations, direction),
            Effect::Read { rt, from } => {
                let value = self.value(id, from);
                self.set(id, rt, value);
            }
            Effect::Write(sink) => self.put(id, sink),
            // They are there all the time.
            Effect::LoadDebug | Effect::LoadFloatingPoint => {}
            Effect::Call(call, door) => self.call(id, call, door),
            Effect::Watchdog { scope, level, request } => {
                let now = self.milliseconds();
                let result = self.watchdogs.carry_out(Caller { level, vcpu: id, scope }, request, now);
                self.answer(id, &doors::word_of(result));
            }
            Effect::Answer(values) => self.answer(id, values.values()),
            Effect::Entropy(draw) => self.answer(id, &draw.answers(|| Some(4))),
            Effect::SwitchOn { target, entry, context, order } => {
                let result = self.life.cpu_on(target, entry, context, order).map(|effect| self.perform(&[effect]));
                self.answer(id, &[exits::status_of(result)]);
            }
            Effect::SwitchOff => {
                let _ = self.life.cpu_off(id);
                self.vcpus[id.index()].is_to_leave = true;
                self.done.push(Done::Left);
            }
            Effect::Power(call) => match call.look(self.life.machine(), id) {
                Powered::Status(status) => self.answer(id, &[status]),
                Powered::Standby => {
                    self.wait(id);
                    self.answer(id, &[SUCCESS]);
                }
                Powered::PowerDown(start) => self.enter_at(start),
            },
            Effect::PowerOff => self.stop(Stop::PowerOff),
            Effect::Reset => self.stop(Stop::Reset),
            // However long it would wait: time passes elsewhere.
            Effect::Wait(_) => self.wait(id),
            Effect::GiveWay => self.done.push(Done::GivesWay),
        }
    }

    pub(crate) fn set(&mut self, id: VcpuId, number: u8, value: u64) {
        self.vcpus[id.index()].registers.set(number, value);
    }

    pub(crate) fn complete(&mut self, id: VcpuId) {
        self.vcpus[id.index()].registers.complete();
        self.done.push(Done::Completed);
    }

    pub(crate) fn inject(&mut self, id: VcpuId, exception: Exception) {
        let state = &mut self.vcpus[id.index()].registers.state;
        exception.take(state);
        assert!(pstate::is_kernel(state.pstate), "an exception is taken to EL1");
        let esr = state.esr_el1;
        self.done.push(Done::Injected(esr));
    }

    fn answer(&mut self, id: VcpuId, values: &[u64]) {
        (0..).zip(values).for_each(|(number, &value)| self.set(id, number, value));
    }

    /// Nothing came of what it tried.
    fn again(&mut self, id: VcpuId, subject: Subject) -> NextTry {
        let registers = &mut self.vcpus[id.index()].registers;
        let mut tries = registers.tries;
        let next = progress::again(Stay::InGuest, || progress::count(&mut tries, registers.seen(), subject));
        registers.tries = tries;
        next
    }

    fn go_on(&mut self, id: VcpuId, next: NextTry, refused: Exception) {
        match next {
            NextTry::Again => self.done.push(Done::Again),
            NextTry::Refused => self.inject(id, refused),
        }
    }

    fn access(&mut self, id: VcpuId, operations: &Operations, direction: Direction) {
        for operation in operations.iter() {
            self.make(id, &operation, direction);
        }
        let registers = &mut self.vcpus[id.index()].registers;
        match operations.writeback {
            Some((Written::Register(number), value)) => registers.set(number, value),
            Some((Written::StackPointer(which), value)) => {
                registers.sp[usize::from(which == StackPointer::El1)] = value;
            }
            None => {}
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
                let outside = self.surroundings(place.slot);
                let value = self.devices.bus().read(place, size, &outside);
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
                let outside = self.surroundings(place.slot);
                self.devices.bus().write(place, size, value, &outside);
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

    fn value(&mut self, id: VcpuId, from: Source) -> u64 {
        match from {
            Source::Value(value) => value,
            Source::Count => self.clock.clock().guest(self.now).0,
            Source::Timer(timer, register) => self.timer(id, timer, register),
            Source::OsLock => trapped::oslsr(self.vcpus[id.index()].registers.os_lock),
            Source::Identification(index) => index as u64,
            Source::Debug(bank, number) => *self.vcpus[id.index()].registers.point(bank, number),
            Source::GroupZero(register) => self.group_zero(id, register, None),
            Source::Common(register) => self.common(id, register, None),
        }
    }

    /// What a host that does not tell of Group 0 does for its guest. No priority is active here: interrupts end in list registers alone.
    fn group_zero(&mut self, id: VcpuId, register: GroupZero, written: Option<u64>) -> u64 {
        let list = &mut self.vcpus[id.index()].registers.list;
        match (register, written) {
            (GroupZero::BinaryPoint, None) => return list.vmcr >> virtual_interface::BINARY_POINT_0_SHIFT & 7,
            (GroupZero::BinaryPoint, Some(value)) => {
                let shift = virtual_interface::BINARY_POINT_0_SHIFT;
                list.vmcr = list.vmcr & !(7 << shift) | (value & 7) << shift;
                return 0;
            }
            (GroupZero::Enable, None) => return list.vmcr & 1,
            (GroupZero::Enable, Some(value)) => list.vmcr = list.vmcr & !1 | value & 1,
            (GroupZero::ActivePriorities(_), _) => return 0,
            (GroupZero::Acknowledge | GroupZero::HighestPending | GroupZero::End, _) => {}
        }
        let (vmcr, mut value) = (list.vmcr, 0);
        self.with_gic(id, |gic| match register {
            GroupZero::Acknowledge => {
                value = gic.acknowledge_group_0(id, vmcr, &mut [0; 2]).into();
                VcpuSet::EMPTY
            }
            GroupZero::HighestPending => {
                value = gic.highest_pending_in_group_0(id, vmcr).into();
                VcpuSet::EMPTY
            }
            GroupZero::End => gic.end_group_0(id, IntId(written.unwrap_or(0) as u32 & 0xff_ffff), vmcr, &mut [0; 2]),
            _ => VcpuSet::EMPTY,
        });
        value
    }

    /// What a host that cannot trap ICC_DIR_EL1 by itself does for its guest: one with priorities of five bits.
    fn common(&mut self, id: VcpuId, register: CommonRegister, written: Option<u64>) -> u64 {
        let vmcr = &mut self.vcpus[id.index()].registers.list.vmcr;
        match (register, written) {
            (CommonRegister::Control, None) => return common_registers::control(*vmcr, 4 << 29),
            (CommonRegister::Control, Some(value)) => *vmcr = common_registers::with_control(*vmcr, value),
            (CommonRegister::PriorityMask, None) => return common_registers::priority_mask(*vmcr),
            (CommonRegister::PriorityMask, Some(value)) => {
                *vmcr = common_registers::with_priority_mask(*vmcr, value, 5);
            }
            (CommonRegister::RunningPriority, _) => {
                return self.shared.gic.borrow().running_priority([0; 2]);
            }
        }
        0
    }

    fn put(&mut self, id: VcpuId, sink: Sink) {
        match sink {
            Sink::Sgi(value, group) => self.with_gic(id, |gic| gic.send_sgi(id, value, group)),
            Sink::Deactivate(interrupt) => self.with_gic(id, |gic| gic.deactivate(id, interrupt)),
            Sink::Timer(timer, register, value) => self.set_timer(id, timer, register, value),
            Sink::OsLock(is_held) => self.vcpus[id.index()].registers.os_lock = is_held,
            Sink::Debug(sink) => self.vcpus[id.index()].registers.set_debug(sink),
            Sink::GroupZero(register, value) => {
                self.group_zero(id, register, Some(value));
            }
            Sink::Common(register, value) => {
                self.common(id, register, Some(value));
            }
        }
    }

    fn timer(&self, id: VcpuId, timer: Timer, register: TimerRegister) -> u64 {
        let (clock, now) = (self.clock.clock(), self.now);
        let physical = self.vcpus[id.index()].registers.physical;
        match (timer, register) {
            // That one is the hardware's.
            (Timer::Virtual, _) => 0,
            (Timer::Physical, TimerRegister::Control) => physical.read_control(&clock, now),
            (Timer::Physical, TimerRegister::CompareValue) => physical.read_compare(),
            (Timer::Physical, TimerRegister::TimerValue) => physical.read_value(&clock, now),
        }
    }

    fn set_timer(&mut self, id: VcpuId, timer: Timer, register: TimerRegister, value: u64) {
        let (clock, now) = (self.clock.clock(), self.now);
        let physical = &mut self.vcpus[id.index()].registers.physical;
        match (timer, register) {
            (Timer::Virtual, _) => return,
            (Timer::Physical, TimerRegister::Control) => physical.write_control(value),
            (Timer::Physical, TimerRegister::CompareValue) => physical.write_compare(value),
            (Timer::Physical, TimerRegister::TimerValue) => physical.write_value(value, &clock, now),
        }
        self.update_timer(id);
    }

    /// What a process may call, and a kernel: everything.
    #[must_use]
    pub const fn every_call() -> Calls {
        Calls::ALL
    }
}
