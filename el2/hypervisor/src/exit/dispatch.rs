//! What a guest's exits lead to, carried out.
//!
//! `core/vm` decides ([`exits::handle`]): it says whether the guest goes on behind its instruction, what is to be done, and by
//! which reason the exit is counted. This module performs that, on the vCPU that is loaded here: it changes the guest's registers,
//! asks the interrupt controller, the timers and the devices, and lets the guest see its RAM.

use ::vm::doors as decided;
use ::vm::exits::{self, Cause, Decision, Effect, Exception, Exited, Next, Powered, Sink, Source};
use ::vm::mmio::{Guest, Registers};
use abi::bundle::Coherency;
use cpu::Direction;
use cpu::exit::{Fault, FaultKind, Wanted};
use cpu::retry::{Try, Verdict};
use cpu::sysreg as trapped;
use hw::sysreg;
use hw::vcpu::VcpuContext;
use log::Level;
use services::SUCCESS;
use services::psci::CpuOffOutcome;
use stage2::{Point, Policy};
use units::{Ipa, Va};

use crate::exit::{debug, doors, mmio};
use crate::host::{self, entropy};
use crate::sched;
use crate::vcpu::exception::{self, complete};
use crate::vcpu::{Leave, Vcpu};
use crate::vm::counters::{self, Reason};
use crate::vm::{Allowance, Stop};

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
    sysreg::cntpct_el0().wrapping_sub(vcpu.thread().wait_time())
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
        Effect::Again { far, refused } => again(vcpu, context, far, refused),
        Effect::Map { far, ipa, wanted, refused } => map(vcpu, context, far, ipa, wanted, refused),
        Effect::Access(operations, direction) => mmio::access(vcpu, context, &operations, direction),
        Effect::Read { rt, from } => {
            let value = read(vcpu, from);
            context.set_register(rt, value);
        }
        Effect::Write(sink) => write(vcpu, sink),
        Effect::Debug { register, direction, rt } => debug::access(vcpu, context, register, direction, rt),
        Effect::LoadFloatingPoint => vcpu.load_fp(),
        Effect::Call(call, door) => doors::carry_out(vcpu, context, call, door),
        Effect::Watchdog { scope, level, request } => {
            let caller = ::vm::Caller { level, vcpu: vcpu.id, scope };
            let result = vcpu.vm.doors.watchdogs.carry_out(vcpu.vm, caller, request);
            answer(context, &decided::word_of(result));
        }
        Effect::Answer(values) => answer(context, values.values()),
        Effect::Entropy(draw) => answer(context, &draw.answers(|| Some(u64::from_le_bytes(entropy::bytes())))),
        Effect::SwitchOn { target, entry, context: first } => {
            answer(context, &[exits::status_of(vcpu.vm.cpu_on(target, entry, first))]);
        }
        Effect::SwitchOff => {
            // Whether it was the last one shows when its thread has left.
            let (CpuOffOutcome::OthersRun | CpuOffOutcome::NoneLeft) = vcpu.vm.cpu_off(vcpu.id);
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

/// Lets the guest execute its instruction again, as if nothing had happened, because it will then go another way: unless it
/// has tried the same often enough ([`cpu::retry`]), when it gets what `refused` is. A try before which it stands still or stops, perhaps
/// to wait for its memory, does not count.
fn again(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, refused: Exception) {
    if vcpu.is_called_off() {
        return;
    }
    let VcpuContext { x: registers, pc, pstate, syndrome, .. } = *context;
    let this = Try { pc, far: far.0, syndrome, pstate, registers };
    let verdict = vcpu.tries.lock().again(&this);
    if verdict == Verdict::Enough {
        inject(context, refused);
    }
}

/// Whether the guest has come to the same instruction again and again, whatever of its RAM it was refused there.
#[inline(never)]
fn makes_no_progress(vcpu: &'static Vcpu, context: &VcpuContext) -> bool {
    let VcpuContext { x: registers, pc, pstate, .. } = *context;
    vcpu.tries.lock().again(&Try { pc, far: 0, syndrome: 0, pstate, registers }) == Verdict::Enough
}

/// Stage 2 refused the guest its RAM at `ipa`: it is shown to the guest, or made executable or writable, if it may be.
#[inline(always)]
fn map(vcpu: &'static Vcpu, context: &mut VcpuContext, far: Va, ipa: Ipa, wanted: Wanted, refused: Exception) {
    let point = Point::of_guest(sysreg::sctlr_el1::read());
    let is_strict = vcpu.vm.config.coherency == Coherency::Strict;
    // An instruction that stores into its own page wants it writable and executable at once, and so may two vCPUs, each of
    // which takes away what the other needs: where nothing gets done by turns, the page becomes both. What is not shown at all yet is
    // no such turn: a restored guest may come to one instruction ten times before all that it needs is there, tables of pages first.
    let takes_turns = is_strict && Fault::from_status(context.syndrome as u8).kind == FaultKind::Permission;
    let policy = (takes_turns && makes_no_progress(vcpu, context)).then_some(Policy::OnDemand);
    match vcpu.vm.allow(ipa, wanted, point, policy) {
        Allowance::Now => {}
        // This try has been counted.
        Allowance::Already if takes_turns => {}
        Allowance::Already => again(vcpu, context, far, refused),
        Allowance::Never => inject(context, refused),
    }
}

#[inline(always)]
fn read(vcpu: &'static Vcpu, from: Source) -> u64 {
    match from {
        Source::Value(value) => value,
        Source::Count => vcpu.count(),
        Source::Timer(timer, register) => vcpu.access_timer(timer, register, Direction::Read, 0).unwrap_or(0),
        Source::OsLock => trapped::oslsr(vcpu.os_lock()),
        Source::Identification(index) => host::get().guest_ids.get(index),
    }
}

#[inline(always)]
fn write(vcpu: &'static Vcpu, sink: Sink) {
    match sink {
        Sink::Sgi(value, group) => vcpu.with_gic(|gic| gic.send_sgi(vcpu.id, value, group)),
        Sink::Deactivate(interrupt) => vcpu.with_gic(|gic| gic.deactivate(vcpu.id, interrupt)),
        Sink::Timer(timer, register, value) => {
            let _ = vcpu.access_timer(timer, register, Direction::Write, value);
        }
        Sink::OsLock(is_held) => vcpu.set_os_lock(is_held),
    }
}
