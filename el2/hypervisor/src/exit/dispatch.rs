//! What a guest's exits lead to: the safe `match` in the middle of the hypervisor.

use ::vm::aborts::{self, Course, Fetch};
use abi::bundle::Coherency;
use clock::GuestTicks;
use cpu::Direction;
use cpu::exit::{DataAbort, Exit, InstructionAbort, WaitKind, Wanted, class_of, decode};
use cpu::inject::{self, AbortKind};
use cpu::retry::{Try, Verdict};
use cpu::sysreg::{self as trapped, Action, OsLockRegister, SgiRegister};
use hw::sysreg;
use hw::vcpu::VcpuContext;
use log::Level;
use services::psci::{Call, CpuOffOutcome, PsciError, Suspension};
use services::{Facts, NOT_SUPPORTED, Request, SUCCESS};
use stage2::{Point, Policy};
use units::{IntId, Ipa, Va};
use vgic::Group;

use crate::exit::mmio::{self, registers};
use crate::exit::{debug, doors};
use crate::host::{self, entropy, speculation};
use crate::sched;
use crate::vcpu::exception::{complete, inject};
use crate::vcpu::{Leave, Vcpu};
use crate::vm::counters::{self, Reason};
use crate::vm::{Allowance, Stop};

/// What the CPU said about a synchronous exit beside its syndrome, read before anybody else's exit could overwrite it.
#[derive(Clone, Copy)]
pub(crate) struct Cause {
    /// FAR_EL2.
    pub(crate) far: Va,
    /// HPFAR_EL2.
    pub(crate) hpfar: u64,
}

/// Handles the synchronous exit that `context` and `cause` describe. `Some` if the vCPU leaves the guest.
///
/// `vcpu` is loaded, and IRQs are let in: wherever no lock is held, its thread may be preempted and go on on another CPU. Its
/// registers are there again by then, so a handler reads and writes them as if it had never left.
pub(crate) fn handle(vcpu: &'static Vcpu, context: &mut VcpuContext, cause: Cause) -> Option<Leave> {
    let exit = decode(context.syndrome, cause.far.0, cause.hpfar);
    let begin = counters::is_timed().then(|| own_time(vcpu));
    let (reason, leave) = dispatch(vcpu, context, cause, exit);
    vcpu.counters.count(reason);
    if let Some(begin) = begin {
        vcpu.counters.add_ticks(reason, own_time(vcpu).wrapping_sub(begin));
    }
    leave
}

/// Ticks of the counter, less those for which others had the CPU that this vCPU wanted.
fn own_time(vcpu: &Vcpu) -> u64 {
    sysreg::cntpct_el0().wrapping_sub(vcpu.thread().wait_time())
}

fn dispatch(vcpu: &'static Vcpu, context: &mut VcpuContext, cause: Cause, exit: Exit) -> (Reason, Option<Leave>) {
    match exit {
        Exit::DataAbort(abort) => (data_abort(vcpu, context, abort), None),
        Exit::InstructionAbort(abort) => (instruction_abort(vcpu, context, abort), None),
        Exit::SystemRegister(access) => {
            if let Some(reason) = doors::debug_register(vcpu, context, access) {
                return (reason, None);
            }
            let action = trapped::classify(access.encoding, access.direction);
            system_register(vcpu, context, action, access.direction, access.rt);
            (Reason::SystemRegister, None)
        }
        Exit::Hvc { immediate: 0 } => (Reason::Hvc, call(vcpu, context)),
        Exit::Hvc { immediate } if u32::from(immediate) == abi::calls::MARK && doors::hvc(vcpu, context) => {
            (Reason::Call, None)
        }
        Exit::Smc { immediate: 0 } => {
            complete(context);
            (Reason::Smc, call(vcpu, context))
        }
        // The calling convention knows no other immediate than 0 (DEN0028 section 2.5): nobody is at that number.
        Exit::Hvc { .. } => {
            context.set_register(0, NOT_SUPPORTED);
            (Reason::Hvc, None)
        }
        Exit::Smc { .. } => {
            complete(context);
            context.set_register(0, NOT_SUPPORTED);
            (Reason::Smc, None)
        }
        Exit::Wfx(kind) => {
            let called = kind == WaitKind::Wfe && doors::wait(vcpu, context);
            complete(context);
            if called {
                return (Reason::Call, None);
            }
            (wait(vcpu, context, kind), None)
        }
        Exit::FloatingPoint => {
            vcpu.load_fp();
            (Reason::FloatingPoint, None)
        }
        Exit::Breakpoint | Exit::Step | Exit::Watchpoint { .. } | Exit::Brk { .. } | Exit::PcAlignment { .. } => {
            let syndrome = context.syndrome;
            inject(context, |state| inject::reflect(state, syndrome, Some(cause.far)));
            (Reason::Other, None)
        }
        _ => {
            if matches!(exit, Exit::Unknown { .. }) {
                vcpu.vm.report(Level::Debug, format_args!("exit of class {:#x}", class_of(context.syndrome)));
            }
            undefined(context);
            (Reason::Other, None)
        }
    }
}

/// The guest's EL0 was found in AArch32 state, which it was told it lacks: whatever it did there is not carried out, and the
/// guest's kernel gets the exception that an illegal execution state gives
/// ([decision 0023](../../../../docs/decisions/0023-what-is-hidden.md)).
pub(crate) fn refuse_aarch32(vcpu: &Vcpu, context: &mut VcpuContext) {
    inject(context, inject::illegal_state);
    vcpu.counters.count(Reason::Other);
}

fn undefined(context: &mut VcpuContext) {
    inject(context, inject::undefined);
}

/// Lets the guest execute its instruction again, as if nothing had happened, because it will then go another way: unless it
/// has tried the same often enough ([`cpu::retry`]), when it gets what `refuse` makes.
pub(crate) fn again(
    vcpu: &'static Vcpu,
    context: &mut VcpuContext,
    far: Va,
    refuse: impl FnOnce(&mut inject::GuestState),
) {
    let VcpuContext { x: registers, pc, pstate, syndrome, .. } = *context;
    let this = Try { pc, far: far.0, syndrome, pstate, registers };
    let verdict = vcpu.tries.lock().again(&this);
    if verdict == Verdict::Enough {
        inject(context, refuse);
    }
}

/// A data access that stage 2 refused.
fn data_abort(vcpu: &'static Vcpu, context: &mut VcpuContext, abort: DataAbort) -> Reason {
    let far = abort.far.unwrap_or(Va(0));
    let refuse = |kind| move |state: &mut inject::GuestState| aborts::refuse(state, &abort, far, kind);
    match aborts::data(&vcpu, registers(context), far, &abort) {
        Course::Nobody(kind) => {
            inject(context, refuse(kind));
            Reason::Nothing
        }
        Course::Unable(kind) => {
            inject(context, refuse(kind));
            Reason::Other
        }
        Course::Again => {
            again(vcpu, context, far, refuse(AbortKind::External));
            Reason::Other
        }
        Course::Ram(ipa) => ram_abort(vcpu, context, far, ipa, abort.wanted(), refuse(AbortKind::External)),
        Course::Done => {
            complete(context);
            Reason::Nothing
        }
        Course::Elsewhere(ipa) => mmio::access(vcpu, context, far, ipa, &abort),
    }
}

/// A fetch of an instruction that stage 2 refused.
fn instruction_abort(vcpu: &'static Vcpu, context: &mut VcpuContext, abort: InstructionAbort) -> Reason {
    let far = abort.far.unwrap_or(Va(context.pc));
    let refuse = |kind| move |state: &mut inject::GuestState| inject::instruction_abort(state, far, kind);
    match aborts::fetch(&vcpu, far, &abort) {
        Fetch::Ram(ipa) => ram_abort(vcpu, context, far, ipa, abort.wanted(), refuse(AbortKind::External)),
        Fetch::Again => {
            again(vcpu, context, far, refuse(AbortKind::External));
            Reason::Other
        }
        Fetch::Nobody(kind) => {
            inject(context, refuse(kind));
            Reason::Nothing
        }
    }
}

/// Whether the guest has come to the same instruction again and again, whatever of its RAM it was refused there.
fn makes_no_progress(vcpu: &'static Vcpu, context: &VcpuContext) -> bool {
    let VcpuContext { x: registers, pc, pstate, .. } = *context;
    vcpu.tries.lock().again(&Try { pc, far: 0, syndrome: 0, pstate, registers }) == Verdict::Enough
}

/// Stage 2 refused the guest its RAM at `ipa`: it is shown to the guest, or made executable or writable, if it may be.
fn ram_abort(
    vcpu: &'static Vcpu,
    context: &mut VcpuContext,
    far: Va,
    ipa: Ipa,
    wanted: Wanted,
    refuse: impl FnOnce(&mut inject::GuestState),
) -> Reason {
    let point = Point::of_guest(sysreg::sctlr_el1::read());
    let is_strict = vcpu.vm.config.coherency == Coherency::Strict;
    // An instruction that stores into its own page wants it writable and executable at once, and so may two vCPUs, each of
    // which takes away what the other needs: where nothing gets done by turns, the page becomes both.
    let policy = (is_strict && makes_no_progress(vcpu, context)).then_some(Policy::OnDemand);
    match vcpu.vm.allow(ipa, wanted, point, policy) {
        Allowance::Now => {}
        // This try has been counted.
        Allowance::Already if is_strict => {}
        Allowance::Already => again(vcpu, context, far, refuse),
        Allowance::Never => inject(context, refuse),
    }
    if wanted == Wanted::Fetch { Reason::Execution } else { Reason::Memory }
}

/// WFIT, without a register in the syndrome, ends at once, as it always may.
fn wait(vcpu: &'static Vcpu, context: &VcpuContext, kind: WaitKind) -> Reason {
    match kind {
        WaitKind::Wfi => {
            vcpu.wait_for_interrupt(None);
            Reason::Wfi
        }
        WaitKind::Wfit { rt } => {
            vcpu.wait_for_interrupt(Some(GuestTicks(rt.map_or(0, |rt| context.register(rt)))));
            Reason::Wfi
        }
        WaitKind::Wfe | WaitKind::Wfet { .. } => {
            sched::yield_now();
            Reason::Wfe
        }
    }
}

fn system_register(vcpu: &'static Vcpu, context: &mut VcpuContext, action: Action, direction: Direction, rt: u8) {
    let value = context.register(rt);
    let result = match action {
        Action::SendSgi(register) => {
            let group = if register == SgiRegister::Sgi1r { Group::One } else { Group::Zero };
            vcpu.with_gic(|gic| gic.send_sgi(vcpu.id, value, group));
            None
        }
        Action::IccDir => {
            vcpu.with_gic(|gic| gic.deactivate(vcpu.id, IntId(value as u32 & 0xff_ffff)));
            None
        }
        Action::IccSre => Some(trapped::ICC_SRE_VALUE),
        Action::Count => Some(vcpu.count()),
        Action::Timer(timer, register) => vcpu.access_timer(timer, register, direction, value),
        Action::OsLock(OsLockRegister::Oslar) => {
            vcpu.set_os_lock(value & 1 != 0);
            None
        }
        Action::OsLock(OsLockRegister::Oslsr) => Some(trapped::oslsr(vcpu.os_lock())),
        Action::Debug(register) => return debug::access(vcpu, context, register, direction, rt),
        Action::DebugChannelStatus | Action::ReadZeroWriteIgnored => Some(0),
        Action::NoOperation => None,
        Action::Identification(index) => Some(host::get().guest_ids.get(index)),
        Action::Undefined => return undefined(context),
    };
    if direction == Direction::Read {
        context.set_register(rt, result.unwrap_or(0));
    }
    complete(context);
}

/// HVC #0 or SMC #0: a call by the SMC calling convention. PC is behind the instruction.
fn call(vcpu: &'static Vcpu, context: &mut VcpuContext) -> Option<Leave> {
    let [function, first, second, third, ..] = context.x;
    let record = Ipa(machine::STOLEN_TIME.0 + vcpu.id.index() as u64 * services::stolen_time::RECORD_SIZE);
    let stolen_time = vcpu.vm.record(vcpu.id).map(|_| record);
    let facts = Facts { workarounds: speculation::workarounds(), stolen_time };
    match services::decode(function, [first, second, third], &facts) {
        Request::Answer(value) => context.set_register(0, value),
        Request::Answers(values) => set_results(context, values),
        Request::Entropy(draw) => {
            let values = draw.answers(|| Some(u64::from_le_bytes(entropy::bytes())));
            set_results(context, values);
        }
        // The exit, or the end of its short path, has seen to it.
        Request::Workaround(_) => {}
        Request::Psci(call) => return power(vcpu, context, call),
    }
    None
}

fn set_results(context: &mut VcpuContext, values: [u64; 4]) {
    for (number, value) in (0..).zip(values) {
        context.set_register(number, value);
    }
}

fn power(vcpu: &'static Vcpu, context: &mut VcpuContext, call: Call) -> Option<Leave> {
    let vm = vcpu.vm;
    let status = |result: Result<(), PsciError>| result.map_or_else(PsciError::value, |()| SUCCESS);
    let result = match call {
        Call::CpuOn { target, entry, context } => status(vm.cpu_on(target, entry, context)),
        Call::CpuOff => {
            // Whether it was the last one shows when its thread has left.
            let (CpuOffOutcome::OthersRun | CpuOffOutcome::NoneLeft) = vm.cpu_off(vcpu.id);
            return Some(Leave::SwitchedOff);
        }
        Call::AffinityInfo { target, level } => {
            let state = vm.with_power_state(|power| power.affinity_info(target, level));
            state.map_or_else(PsciError::value, |state| state.value())
        }
        Call::CpuSuspend { power_state, entry, context } => {
            match vm.with_power_state(|power| power.cpu_suspend(vcpu.id, power_state, entry, context)) {
                Ok(Suspension::Standby) => {
                    vcpu.wait_for_interrupt(None);
                    SUCCESS
                }
                Ok(Suspension::PowerDown(start)) => {
                    vcpu.wait_for_wake_up();
                    return Some(Leave::Resumed(start));
                }
                Err(error) => error.value(),
            }
        }
        Call::SystemOff => {
            vm.stop(Stop::PowerOff);
            return Some(Leave::Stopped);
        }
        Call::SystemReset(_) => {
            vm.stop(Stop::Reset);
            return Some(Leave::Stopped);
        }
    };

    context.set_register(0, result);
    None
}
