//! What a guest's exits lead to, carried out.
//!
//! `core/vm` decides ([`exits::handle`]): it says whether the guest goes on behind its instruction, what is to be done, and by
//! which reason the exit is counted. This module performs that, on the vCPU that is loaded here: it changes the guest's registers,
//! asks the interrupt controller, the timers and the devices, and lets the guest see its RAM.

use ::vm::doors as decided;
use ::vm::exits::{self, Cause, DebugSink, Decision, Effect, Exception, Exited, Next, Powered, Sink, Source};
use ::vm::mmio::{Guest, Registers};
use ::vm::progress::{self, NextTry, RefusedRam, Stay, Subject};
use cpu::Direction;
use cpu::exit::Wanted;
use cpu::sysreg as trapped;
use hw::sysreg;
use hw::vcpu::VcpuContext;
use log::Level;
use services::SUCCESS;
use services::psci::CpuOffOutcome;
use stage2::Point;
use units::{Ipa, Va};

use crate::exit::{doors, mmio};
use crate::host::{self, entropy};
use crate::sched;
use crate::vcpu::exception::{self, complete};
use crate::vcpu::{Leave, Vcpu};
use crate::vm::Stop;
use crate::vm::counters::{self, Reason};

/// A guest that has exited here.
struct Here<'a> {
    vcpu: &'static Vcpu,
    context: &'a mut VcpuContext,
}

impl Exited for Here<'_> {
    type Done = (Reason, Option<Leave>);

    #[inline(always)]
    fn guest(&self) -> &impl Guest {
        &self.vcpu
    }

    #[inline(always)]
    fn registers(&self) -> Registers<'_> {
        Registers { x: &self.context.x, pc: self.context.pc, pstate: self.context.pstate }
    }

    #[inline(always)]
    fn perform(self, decision: Decision) -> (Reason, Option<Leave>) {
        let Decision { reason, next, effect } = decision;
        if next == Next::Behind {
            complete(self.context);
        }
        (reason, perform(self.vcpu, self.context, effect))
    }
}

/// Handles the synchronous exit that `cause` describes, which was read before anybody else's exit could overwrite it. `Some` if the
/// vCPU leaves the guest.
///
/// `vcpu` is loaded, and IRQs are let in: wherever no lock is held, its thread may be preempted and go on on another CPU. Its
/// registers are there again by then, so a handler reads and writes them as if it had never left.
pub(crate) fn handle(vcpu: &'static Vcpu, context: &mut VcpuContext, cause: Cause) -> Option<Leave> {
    let begin = counters::is_timed().then(|| own_time(vcpu));
    let (reason, leave) = dispatch(vcpu, context, cause);
    vcpu.counters.count(reason);
    if let Some(begin) = begin {
        vcpu.counters.add_ticks(reason, own_time(vcpu).wrapping_sub(begin));
    }
    leave
}

/// Not inlined: the compiler would make two of it, one for exits that are timed.
#[inline(never)]
fn dispatch(vcpu: &'static Vcpu, context: &mut VcpuContext, cause: Cause) -> (Reason, Option<Leave>) {
    exits::handle(Here { vcpu, context }, cause)
}

/// Ticks of the counter, less those for which others had the CPU that this vCPU wanted.
fn own_time(vcpu: &Vcpu) -> u64 {
    sysreg::cntpct_el0().wrapping_sub(vcpu.thread().wait_time().0)
}

/// The guest's EL0 was found in AArch32 state, which it was told it lacks
/// ([decision 0023](../../../../docs/decisions/0023-what-is-hidden.md)).
pub(crate) fn refuse_aarch32(vcpu: &'static Vcpu, context: &mut VcpuContext) {
    let (reason, _) = Here { vcpu, context }.perform(exits::FROM_AARCH32);
    vcpu.counters.count(reason);
}

#[inline(always)]
fn perform(vcpu: &'static Vcpu, context: &mut VcpuContext, effect: Effect) -> Option<Leave> {
    match effect {
        Effect::Nothing => {}
        Effect::Inject(exception, remark) => {
            if let Some(remark) = remark {
                vcpu.vm.report(Level::Debug, format_args!("{remark}"));
            }
            inject(context, exception);
        }
        Effect::Again { far, refused } => {
            let next = again(vcpu, context, far);
            go_on(context, next, refused);
        }
        Effect::Map { far, ipa, wanted, refused } => map(vcpu, context, far, ipa, wanted, refused),
        Effect::Access(operations, direction) => mmio::access(vcpu, context, &operations, direction),
        Effect::Read { rt, from } => {
            let value = read(vcpu, from);
            context.set_register(rt, value);
        }
        Effect::Write(sink) => write(vcpu, sink),
        Effect::LoadDebug => vcpu.with_state(|state| state.load_debug(&host::get().features)),
        Effect::LoadFloatingPoint => vcpu.load_fp(),
        Effect::Call(call, door) => doors::carry_out(vcpu, context, call, door),
        Effect::Watchdog { scope, level, request } => {
            let caller = ::vm::Caller { level, vcpu: vcpu.id, scope };
            let result = vcpu.vm.doors.watchdogs.carry_out(vcpu.vm, caller, request);
            answer(context, &decided::word_of(result));
        }
        Effect::Answer(values) => answer(context, values.values()),
        Effect::Entropy(draw) => answer(context, &draw.answers(|| Some(u64::from_le_bytes(entropy::bytes())))),
        Effect::SwitchOn { target, entry, context: first, order } => {
            answer(context, &[exits::status_of(vcpu.vm.cpu_on(target, entry, first, order))]);
        }
        Effect::SwitchOff => {
            // Whether it was the last one shows when its thread has left.
            let (CpuOffOutcome::OthersRun | CpuOffOutcome::NoneLeft) = vcpu.vm.cpu_off(vcpu);
            return Some(Leave::SwitchedOff);
        }
        Effect::Power(call) => match vcpu.vm.with_power_state(|power| call.look(power, vcpu.id)) {
            Powered::Status(status) => answer(context, &[status]),
            Powered::Standby => {
                vcpu.wait_for_interrupt(None);
                answer(context, &[SUCCESS]);
            }
            Powered::PowerDown(start) => {
                vcpu.wait_for_wake_up();
                return Some(Leave::Resumed(start));
            }
        },
        Effect::PowerOff => {
            vcpu.vm.stop(Stop::PowerOff);
            return Some(Leave::Stopped);
        }
        Effect::Reset => {
            vcpu.vm.stop(Stop::Reset);
            return Some(Leave::Stopped);
        }
        Effect::Wait(until) => vcpu.wait_for_interrupt(until),
        Effect::GiveWay => sched::yield_now(),
    }
    None
}

fn answer(context: &mut VcpuContext, values: &[u64]) {
    for (register, &value) in context.x.iter_mut().zip(values) {
        *register = value;
    }
}

fn inject(context: &mut VcpuContext, exception: Exception) {
    exception::inject(context, |state| exception.take(state));
}

/// Lets the guest execute its instruction again, as if nothing had happened, or gives it what `refused` is.
#[inline(always)]
fn go_on(context: &mut VcpuContext, next: NextTry, refused: Exception) {
    match next {
        NextTry::Again => {}
        NextTry::Refused => inject(context, refused),
    }
}

/// Counts a try of the guest's. Not inlined: it has all registers in it.
#[inline(never)]
fn count(vcpu: &'static Vcpu, context: &VcpuContext, subject: Subject) -> NextTry {
    let registers = Registers { x: &context.x, pc: context.pc, pstate: context.pstate };
    progress::count(&mut vcpu.tries.lock(), registers, subject)
}

/// Nothing came of the guest's access to `far`.
#[inline(never)]
fn again(vcpu: &'static Vcpu, context: &VcpuContext, far: Va) -> NextTry {
    let stay = if vcpu.is_called_off() { Stay::CalledOff } else { Stay::InGuest };
    progress::again(stay, || count(vcpu, context, Subject::Access(far, context.syndrome)))
}

/// Stage 2 refused the guest its RAM at `ipa`: it is shown to the guest, or made executable or writable, if it may be.
#[inline(always)]
fn map(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, ipa: Ipa, wanted: Wanted, refused: Exception) {
    let point = Point::of_guest(sysreg::sctlr_el1::read());
    let refusal = RefusedRam::new(vcpu.vm.config.coherency, context.syndrome);
    let policy = refusal.policy(|| count(vcpu, context, Subject::Turn(ipa, wanted)));
    let allowance = vcpu.vm.allow(ipa, wanted, point, policy);
    let next = refusal.after(allowance, || again(vcpu, context, far));
    go_on(context, next, refused);
}

#[inline(always)]
fn read(vcpu: &'static Vcpu, from: Source) -> u64 {
    match from {
        Source::Value(value) => value,
        Source::Count => vcpu.count(),
        Source::Timer(timer, register) => vcpu.access_timer(timer, register, Direction::Read, 0).unwrap_or(0),
        Source::OsLock => trapped::oslsr(vcpu.os_lock()),
        Source::GroupZero(register) => vcpu.access_group_zero(register, None),
        Source::Common(register) => vcpu.access_common(register, None),
        Source::Identification(index) => host::get().guest_ids.get(index),
        // It is there: the guest has no more of them than each CPU.
        Source::Debug(bank, number) => {
            vcpu.with_state(|state| state.read_debug(bank, number, &host::get().features)).unwrap_or(0)
        }
    }
}

#[inline(always)]
fn write(vcpu: &'static Vcpu, sink: Sink) {
    match sink {
        Sink::Sgi(value, group) => vcpu.with_gic(|gic| gic.send_sgi(vcpu.id, value, group)),
        Sink::Deactivate(interrupt) => vcpu.with_gic(|gic| gic.deactivate(vcpu.id, interrupt)),
        Sink::GroupZero(register, value) => {
            let _ = vcpu.access_group_zero(register, Some(value));
        }
        Sink::Common(register, value) => {
            let _ = vcpu.access_common(register, Some(value));
        }
        Sink::Timer(timer, register, value) => {
            let _ = vcpu.access_timer(timer, register, Direction::Write, value);
        }
        Sink::OsLock(is_held) => vcpu.set_os_lock(is_held),
        Sink::Debug(sink) => write_debug(vcpu, sink),
    }
}

fn write_debug(vcpu: &'static Vcpu, sink: DebugSink) {
    let features = &host::get().features;
    vcpu.with_state(|state| match sink {
        DebugSink::Mdscr(value) => state.write_mdscr(value, features),
        DebugSink::Mdccint(value) => state.controls.mdccint = value,
        DebugSink::Claim(tags) => state.controls.claim = tags,
        DebugSink::Point(bank, number, value) => {
            let _ = state.write_debug(bank, number, value, features);
        }
    });
}
