//! What a guest's exit leads to: one decision, from plain values.
//!
//! [`decide`] gets what the CPU says about a synchronous exit ([`Cause`]) and the guest's registers, and asks about the guest
//! only what decides ([`Guest`]). It answers with a [`Decision`]: what is to be done, whether the guest goes on behind its
//! instruction, and by which [`Reason`] the exit is counted. Nothing is done here. The hypervisor's `exit/dispatch.rs` performs
//! the [`Effect`] on the hardware and under its locks; the VM of the tests (`tests/whole-vm`) performs the same effects on fields.
//!
//! A decision that is a value in memory costs an exit 20 to 40 instructions, because it has room for any of them. So [`handle`]
//! gives each to its performer where it is made: the compiler then knows which it is, and nothing of it is left. [`decide`] is
//! that with a performer who returns what he is given.
//!
//! The hypervisor's short path (`exit/fast.rs`) answers some exits before anybody comes here, in the same way: the payloads compare
//! both.

mod debug;
mod reason;
#[cfg(test)]
mod tests;

pub use debug::{DebugSink, DebugState};
pub use reason::Reason;

use core::fmt;

use a64::Unsupported;
use abi::bundle::Doors as Policy;
use abi::wfe as words;
use clock::GuestTicks;
use cpu::Direction;
use cpu::debug::{DebugBank, MDSCR_TDCC};
use cpu::exit::{self, DataAbort, Exit, InstructionAbort, SystemRegister, WaitKind, Wanted, class_of};
use cpu::inject::{self, AbortKind, GuestState};
use cpu::pstate;
use cpu::sysreg::{
    Action, CommonRegister, GroupZero, ICC_SRE_VALUE, OsLockRegister, SgiRegister, Timer, TimerRegister, classify,
};
use services::psci::{AffinityState, Call, PsciError, Start, Suspension, VmPower};
use services::trng::Draw;
use services::{NOT_SUPPORTED, Request, SUCCESS};
use units::{ByteOrder, IntId, Ipa, Va, VcpuId};
use vgic::Group;
use vmware::{Access, Door, ExceptionLevel};
use watchdog::Scope;

use self::debug::Way;
use crate::aborts::{self, Course, Fetch};
use crate::doors::{self, DebugAccess, WatchdogRequest};
use crate::mmio::{Guest, Operations, Refusal, Registers, abort_of, described, undescribed};

/// What the CPU says about a synchronous exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cause {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

/// A guest that has exited, and whoever performs what that leads to.
pub trait Exited: Sized {
    /// What is left when that is done.
    type Done;

    /// Whom to ask about the guest.
    fn guest(&self) -> &impl Guest;

    /// The guest's registers.
    fn registers(&self) -> Registers<'_>;

    /// Performs the decision. To be inlined: it stands at the end of each arm.
    fn perform(self, decision: Decision) -> Self::Done;
}

/// What an exit leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// By which the exit is counted.
    pub reason: Reason,
    /// Where the guest goes on, if the effect does not move it.
    pub next: Next,
    /// What is to be done then.
    pub effect: Effect,
}

/// Where PC is to be before the effect of an exit is performed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Where it is: the instruction is executed again, or PC is behind it already.
    Here,
    /// Behind the instruction, at which it still is.
    Behind,
}

/// What is to be done. Registers are the guest's general-purpose ones; number 31 is XZR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing more.
    Nothing,
    /// The guest gets an exception in place of its instruction, and the log a line if there is a remark.
    Inject(Exception, Option<Remark>),
    /// The guest executes its instruction again, because it will then go another way: unless it has tried the same often enough
    /// (`cpu::retry`), when it gets this exception.
    Again {
        /// The address that its instruction is about.
        far: Va,
        /// What it gets in the end.
        refused: Exception,
    },
    /// RAM is shown to the guest, or made executable or writable, if it may be; if not, it gets the exception.
    Map {
        /// The address that its instruction is about.
        far: Va,
        /// Where the RAM is.
        ipa: Ipa,
        /// What it is wanted for.
        wanted: Wanted,
        /// What the guest gets if it may not have that.
        refused: Exception,
    },
    /// Registers of devices are loaded or stored, then the base register is written back.
    Access(Operations, Direction),
    /// A register gets what was read.
    Read {
        /// The register.
        rt: u8,
        /// From where.
        from: Source,
    },
    /// A system register gets a value.
    Write(Sink),
    /// The vCPU's debug registers are loaded, and the guest makes its access again, untrapped.
    LoadDebug,
    /// The vCPU's FP/SIMD registers are loaded.
    LoadFloatingPoint,
    /// A call of VMware's guest ABI; [`doors::after`] says where the guest goes on.
    Call(Access, Door),
    /// A request to one of the guest's watchdogs by the WFE channel; X0 and X1 get [`doors::word_of`] the answer.
    Watchdog {
        /// Of which.
        scope: Scope,
        /// By whom.
        level: ExceptionLevel,
        /// What is asked.
        request: WatchdogRequest,
    },
    /// The first registers get these values.
    Answer(Results),
    /// X0 to X3 get random bits.
    Entropy(Draw),
    /// A vCPU is switched on, and X0 gets [`status_of`] that.
    SwitchOn {
        /// Its affinity, as the guest gave it.
        target: u64,
        /// Where it is to begin.
        entry: u64,
        /// Its X0 then.
        context: u64,
        /// Its data's byte order then, which is its caller's.
        order: ByteOrder,
    },
    /// This vCPU is switched off, and leaves its guest.
    SwitchOff,
    /// The VM's power states are looked at, and say what happens.
    Power(PowerCall),
    /// The VM stops, for good.
    PowerOff,
    /// The VM starts afresh.
    Reset,
    /// The vCPU waits for an interrupt, or until the guest's virtual counter shows this.
    Wait(Option<GuestTicks>),
    /// The vCPU lets others have its CPU, if any want it.
    GiveWay,
}

/// Where the value of a register comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// It is this.
    Value(u64),
    /// The guest's count.
    Count,
    /// A register of a timer.
    Timer(Timer, TimerRegister),
    /// Whether the OS lock is held, as [`cpu::sysreg::oslsr`] says it.
    OsLock,
    /// The breakpoint or watchpoint register with this number.
    Debug(DebugBank, u8),
    /// The identification register with this index among those that guests see.
    Identification(usize),
    /// A register of the CPU interface for Group 0.
    GroupZero(GroupZero),
    /// A register of the CPU interface for both groups.
    Common(CommonRegister),
}

/// What a guest writes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sink {
    /// A software-generated interrupt of this group, to those that the value says.
    Sgi(u64, Group),
    /// The end of an active interrupt.
    Deactivate(IntId),
    /// A register of the CPU interface for Group 0.
    GroupZero(GroupZero, u64),
    /// A register of the CPU interface for both groups.
    Common(CommonRegister, u64),
    /// A register of a timer.
    Timer(Timer, TimerRegister, u64),
    /// The OS lock, taken or released.
    OsLock(bool),
    /// A debug register.
    Debug(DebugSink),
}

/// What a call leaves in X0 and the registers behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Results {
    /// For X0.
    One(u64),
    /// For X0 and X1.
    Two([u64; 2]),
    /// For X0 to X3.
    Four([u64; 4]),
}

impl Results {
    /// The values, X0's first.
    #[must_use]
    #[inline(always)]
    pub const fn values(&self) -> &[u64] {
        match self {
            Self::One(value) => core::slice::from_ref(value),
            Self::Two(values) => values,
            Self::Four(values) => values,
        }
    }
}

/// An exception that a guest gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// The instruction does not exist for it.
    Undefined,
    /// It is in a state that it was told it lacks.
    IllegalState,
    /// The one that was taken to EL2 in its place: ESR_EL2, and FAR_EL2 if that says something.
    Reflected(u64, Option<Va>),
    /// A load or store failed.
    Data(Va, AbortKind, Direction),
    /// Cache maintenance, or a translation by instruction, failed.
    Maintenance(Va, AbortKind),
    /// A fetch failed.
    Instruction(Va, AbortKind),
}

impl Exception {
    /// Takes it.
    #[inline(always)]
    pub const fn take(self, state: &mut GuestState) {
        match self {
            Self::Undefined => inject::undefined(state),
            Self::IllegalState => inject::illegal_state(state),
            Self::Reflected(esr, far) => inject::reflect(state, esr, far),
            Self::Data(far, kind, direction) => inject::data_abort(state, far, kind, direction),
            Self::Maintenance(far, kind) => inject::maintenance_abort(state, far, kind),
            Self::Instruction(far, kind) => inject::instruction_abort(state, far, kind),
        }
    }
}

/// What the log says of an exit, for whoever looks for the reason of an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remark {
    /// The CPU gave a class of exits that is not known here.
    Class(u8),
    /// An instruction that makes no sense on a device.
    Unable {
        /// The instruction.
        word: u32,
        /// Where it went.
        far: Va,
        /// What is wrong with it.
        why: Unsupported,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(f, "exit of class {class:#x}"),
            Self::Unable { word, far, why } => write!(f, "{word:#010x} at {far} on a device: {why:?}"),
        }
    }
}

/// A call that looks at the VM's power states and changes none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerCall {
    /// Is this CPU on?
    Affinity {
        /// Its affinity, as the guest gave it.
        target: u64,
        /// The lowest level that counts.
        level: u32,
    },
    /// The vCPU suspends itself.
    Suspend {
        /// Which power state.
        power_state: u32,
        /// Where it is to wake up from one that loses its registers.
        entry: u64,
        /// Its X0 then.
        context: u64,
        /// Its data's byte order, then as now.
        order: ByteOrder,
    },
}

/// What a [`PowerCall`] leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Powered {
    /// X0 gets this.
    Status(u64),
    /// The vCPU waits for an interrupt, and X0 gets [`SUCCESS`] then.
    Standby,
    /// The vCPU waits to be woken up, and begins anew.
    PowerDown(Start),
}

impl PowerCall {
    /// What it leads to where `power` is the state of the VM's CPUs, and `vcpu` calls.
    #[must_use]
    pub fn look(self, power: &VmPower, vcpu: VcpuId) -> Powered {
        match self {
            Self::Affinity { target, level } => {
                let state = power.affinity_info(target, level);
                Powered::Status(state.map_or_else(PsciError::value, AffinityState::value))
            }
            Self::Suspend { power_state, entry, context, order } => {
                match power.cpu_suspend(vcpu, power_state, entry, context, order) {
                    Ok(Suspension::Standby) => Powered::Standby,
                    Ok(Suspension::PowerDown(start)) => Powered::PowerDown(start),
                    Err(error) => Powered::Status(error.value()),
                }
            }
        }
    }
}

/// X0 after a power call that has no other result.
#[must_use]
pub fn status_of(result: Result<(), PsciError>) -> u64 {
    result.map_or_else(PsciError::value, |()| SUCCESS)
}

impl Decision {
    #[inline(always)]
    const fn here(reason: Reason, effect: Effect) -> Self {
        Self { reason, next: Next::Here, effect }
    }

    #[inline(always)]
    const fn behind(reason: Reason, effect: Effect) -> Self {
        Self { reason, next: Next::Behind, effect }
    }

    #[inline(always)]
    const fn inject(reason: Reason, exception: Exception) -> Self {
        Self::here(reason, Effect::Inject(exception, None))
    }

    #[inline(always)]
    const fn again(reason: Reason, far: Va, refused: Exception) -> Self {
        Self::here(reason, Effect::Again { far, refused })
    }

    #[inline(always)]
    fn map(far: Va, ipa: Ipa, wanted: Wanted, refused: Exception) -> Self {
        let reason = if wanted == Wanted::Fetch { Reason::Execution } else { Reason::Memory };
        Self::here(reason, Effect::Map { far, ipa, wanted, refused })
    }
}

/// What an exit leads to from the guest's AArch32 state, in which its EL0 may be found, though it was told that it lacks it: whatever
/// it did there is not carried out (decision 0023 in `docs/decisions`).
pub const FROM_AARCH32: Decision = Decision::inject(Reason::Other, Exception::IllegalState);

/// What the exit leads to that `cause` describes, by a guest with these registers.
#[must_use]
pub fn decide(guest: &impl Guest, registers: Registers<'_>, cause: Cause) -> Decision {
    handle(Asked { guest, registers }, cause)
}

/// A guest that is only asked.
struct Asked<'a, G> {
    guest: &'a G,
    registers: Registers<'a>,
}

impl<G: Guest> Exited for Asked<'_, G> {
    type Done = Decision;

    fn guest(&self) -> &impl Guest {
        self.guest
    }

    fn registers(&self) -> Registers<'_> {
        self.registers
    }

    fn perform(self, decision: Decision) -> Decision {
        decision
    }
}

/// Has performed what the exit leads to that `cause` describes.
#[inline(always)]
pub fn handle<E: Exited>(exited: E, cause: Cause) -> E::Done {
    let exit = exit::decode(cause.esr, cause.far, cause.hpfar);
    match exit {
        Exit::DataAbort(abort) => data_abort(exited, &abort),
        Exit::InstructionAbort(abort) => instruction_abort(exited, &abort),
        Exit::SystemRegister(access) => system_register(exited, cause.esr, access),
        Exit::Hvc { immediate } => hvc(exited, immediate),
        Exit::Smc { immediate: 0 } => call(exited, Reason::Smc, Next::Behind),
        Exit::Smc { .. } => exited.perform(Decision::behind(Reason::Smc, UNKNOWN_CALL)),
        Exit::Wfx(kind) => wait(exited, kind),
        Exit::FloatingPoint => exited.perform(Decision::here(Reason::FloatingPoint, Effect::LoadFloatingPoint)),
        Exit::Breakpoint | Exit::Step | Exit::Watchpoint { .. } | Exit::Brk { .. } | Exit::PcAlignment { .. } => {
            let exception = Exception::Reflected(cause.esr, Some(Va(cause.far)));
            exited.perform(Decision::inject(Reason::Other, exception))
        }
        _ => {
            let remark = matches!(exit, Exit::Unknown { .. }).then(|| Remark::Class(class_of(cause.esr)));
            exited.perform(Decision::here(Reason::Other, Effect::Inject(Exception::Undefined, remark)))
        }
    }
}

#[inline(always)]
fn level(registers: Registers<'_>) -> ExceptionLevel {
    if pstate::is_user(registers.pstate) { ExceptionLevel::User } else { ExceptionLevel::Kernel }
}

/// A data access that stage 2 refused.
#[inline(always)]
fn data_abort<E: Exited>(exited: E, abort: &DataAbort) -> E::Done {
    let far = abort.far.unwrap_or(Va(0));
    let refused = |kind| match abort.cache_maintenance {
        true => Exception::Maintenance(far, kind),
        false => Exception::Data(far, kind, abort.direction),
    };
    match aborts::data(exited.guest(), exited.registers(), far, abort) {
        Course::Nobody(kind) => exited.perform(Decision::inject(Reason::Nothing, refused(kind))),
        Course::Unable(kind) => exited.perform(Decision::inject(Reason::Other, refused(kind))),
        Course::Again => exited.perform(Decision::again(Reason::Other, far, refused(AbortKind::External))),
        Course::Ram(ipa) => exited.perform(Decision::map(far, ipa, abort.wanted(), refused(AbortKind::External))),
        Course::Done => exited.perform(Decision::behind(Reason::Nothing, Effect::Nothing)),
        Course::Elsewhere(ipa) => device(exited, far, ipa, abort),
    }
}

/// A fetch of an instruction that stage 2 refused.
#[inline(always)]
fn instruction_abort<E: Exited>(exited: E, abort: &InstructionAbort) -> E::Done {
    let far = abort.far.unwrap_or(Va(exited.registers().pc));
    let refused = |kind| Exception::Instruction(far, kind);
    match aborts::fetch(exited.guest(), far, abort) {
        Fetch::Ram(ipa) => exited.perform(Decision::map(far, ipa, abort.wanted(), refused(AbortKind::External))),
        Fetch::Again => exited.perform(Decision::again(Reason::Other, far, refused(AbortKind::External))),
        Fetch::Nobody(kind) => exited.perform(Decision::inject(Reason::Nothing, refused(kind))),
    }
}

/// The guest accessed `ipa` (at its `far`), which is not RAM. Never from AArch32 state, of which nothing here knows how long an
/// instruction is and where its IT block ends: such an exit is [refused](FROM_AARCH32) before anybody looks at it.
#[inline(always)]
fn device<E: Exited>(exited: E, far: Va, ipa: Ipa, abort: &DataAbort) -> E::Done {
    let direction = abort.direction;
    let Some(target) = exited.guest().device(ipa) else {
        let exception = Exception::Data(far, AbortKind::External, direction);
        return exited.perform(Decision::inject(Reason::Nothing, exception));
    };
    match abort.access {
        Some(register) => {
            let operation = described(exited.guest(), exited.registers(), target, far, register, direction);
            access(exited, far, direction, operation.map(Operations::single))
        }
        None => {
            let operations = undescribed(exited.guest(), exited.registers(), far, direction);
            access(exited, far, direction, operations)
        }
    }
}

/// Devices are accessed, or it was found out why not.
#[inline(always)]
fn access<E: Exited>(exited: E, far: Va, direction: Direction, found: Result<Operations, Refusal>) -> E::Done {
    match found {
        Ok(operations) => exited.perform(Decision::behind(Reason::Device, Effect::Access(operations, direction))),
        Err(Refusal::Abort(at, kind)) => {
            exited.perform(Decision::inject(Reason::Device, Exception::Data(at, kind, direction)))
        }
        Err(Refusal::Unable { word, why }) => {
            let exception = Exception::Data(far, abort_of(why), direction);
            let remark = Some(Remark::Unable { word, far, why });
            exited.perform(Decision::here(Reason::Device, Effect::Inject(exception, remark)))
        }
        Err(Refusal::Again) => {
            let refused = Exception::Data(far, AbortKind::External, direction);
            exited.perform(Decision::again(Reason::Device, far, refused))
        }
    }
}

/// A trapped MSR, MRS or SYS: a door's first, and then what the register is.
#[inline(always)]
fn system_register<E: Exited>(exited: E, esr: u64, access: SystemRegister) -> E::Done {
    let SystemRegister { encoding, direction, rt } = access;
    let registers = exited.registers();
    let (guest, called) = (exited.guest(), [registers.register(3), registers.register(7)]);
    let is_forbidden = || guest.debug().mdscr & MDSCR_TDCC != 0;
    let door = doors::debug_access(guest.doors(), &access, called, level(registers), is_forbidden);
    match door {
        DebugAccess::Call(call) => {
            let effect = Effect::Call(call, Door::DebugChannel { rt });
            return exited.perform(Decision::here(Reason::Call, effect));
        }
        DebugAccess::Refused => {
            return exited.perform(Decision::inject(Reason::SystemRegister, Exception::Reflected(esr, None)));
        }
        DebugAccess::Status => {
            let effect = Effect::Read { rt, from: Source::Value(doors::TRANSMIT_FULL) };
            return exited.perform(Decision::behind(Reason::SystemRegister, effect));
        }
        DebugAccess::Other => {}
    }
    let value = registers.register(rt);
    match classify(encoding, direction) {
        Action::SendSgi(register) => {
            let group = if register == SgiRegister::Sgi1r { Group::One } else { Group::Zero };
            write(exited, Sink::Sgi(value, group))
        }
        Action::IccDir => write(exited, Sink::Deactivate(IntId(value as u32 & 0xff_ffff))),
        Action::GroupZero(register) if direction == Direction::Read => {
            read(exited, access, Source::GroupZero(register))
        }
        Action::GroupZero(register) => write(exited, Sink::GroupZero(register, value)),
        Action::Common(register) if direction == Direction::Read => read(exited, access, Source::Common(register)),
        Action::Common(register) => write(exited, Sink::Common(register, value)),
        Action::IccSre => read(exited, access, Source::Value(ICC_SRE_VALUE)),
        Action::Count => read(exited, access, Source::Count),
        Action::Timer(timer, register) if direction == Direction::Read => {
            read(exited, access, Source::Timer(timer, register))
        }
        Action::Timer(timer, register) => write(exited, Sink::Timer(timer, register, value)),
        Action::OsLock(OsLockRegister::Oslar) => write(exited, Sink::OsLock(value & 1 != 0)),
        Action::OsLock(OsLockRegister::Oslsr) => read(exited, access, Source::OsLock),
        Action::Debug(register) => {
            let state = exited.guest().debug();
            match debug::access(&state, register, direction, value) {
                Way::Load => exited.perform(Decision::here(Reason::SystemRegister, Effect::LoadDebug)),
                Way::Shown(value) => read(exited, access, Source::Value(value)),
                Way::Read(bank, number) => read(exited, access, Source::Debug(bank, number)),
                Way::Write(sink) => write(exited, Sink::Debug(sink)),
                Way::Undefined => exited.perform(Decision::inject(Reason::SystemRegister, Exception::Undefined)),
            }
        }
        Action::DebugChannelStatus | Action::ReadZeroWriteIgnored => read(exited, access, Source::Value(0)),
        Action::NoOperation => exited.perform(Decision::behind(Reason::SystemRegister, Effect::Nothing)),
        Action::Identification(index) => read(exited, access, Source::Identification(index)),
        Action::Undefined => exited.perform(Decision::inject(Reason::SystemRegister, Exception::Undefined)),
    }
}

/// A system register that reads as this. What is written to it is lost.
#[inline(always)]
fn read<E: Exited>(exited: E, access: SystemRegister, from: Source) -> E::Done {
    match access.direction {
        Direction::Read => {
            let effect = Effect::Read { rt: access.rt, from };
            exited.perform(Decision::behind(Reason::SystemRegister, effect))
        }
        Direction::Write => exited.perform(Decision::behind(Reason::SystemRegister, Effect::Nothing)),
    }
}

#[inline(always)]
fn write<E: Exited>(exited: E, sink: Sink) -> E::Done {
    exited.perform(Decision::behind(Reason::SystemRegister, Effect::Write(sink)))
}

/// The calling convention knows no other immediate than 0 (DEN0028 section 2.5): nobody is at that number.
const UNKNOWN_CALL: Effect = Effect::Answer(Results::One(NOT_SUPPORTED));

/// HVC: PC is behind it already.
#[inline(always)]
fn hvc<E: Exited>(exited: E, immediate: u16) -> E::Done {
    if immediate == 0 {
        return call(exited, Reason::Hvc, Next::Here);
    }
    let registers = exited.registers();
    if u32::from(immediate) == abi::calls::MARK
        && let Some(call) = doors::hvc(exited.guest().doors(), [registers.register(3), registers.register(7)])
    {
        return exited.perform(Decision::here(Reason::Call, Effect::Call(call, Door::Hvc)));
    }
    exited.perform(Decision::here(Reason::Hvc, UNKNOWN_CALL))
}

/// HVC #0 or SMC #0: a call by the SMC calling convention. Not inlined, for the shorter ones of the other exits.
#[inline(never)]
fn call<E: Exited>(exited: E, reason: Reason, next: Next) -> E::Done {
    let registers = exited.registers();
    let [function, first, second, third, ..] = *registers.x;
    // PSCI, section 6.4: a CPU starts in the byte order that its caller has at EL1.
    let order = || pstate::byte_order(registers.pstate, exited.guest().sctlr_el1());
    let request = services::decode(function, [first, second, third], &exited.guest().facts());
    let effect = match request {
        Request::Answer(value) => Effect::Answer(Results::One(value)),
        Request::Answers(values) => Effect::Answer(Results::Four(values)),
        Request::Entropy(draw) => Effect::Entropy(draw),
        // The exit, or the end of its short path, has seen to it.
        Request::Workaround(_) => Effect::Nothing,
        Request::Psci(Call::CpuOn { target, entry, context }) => {
            Effect::SwitchOn { target, entry, context, order: order() }
        }
        Request::Psci(Call::CpuOff) => Effect::SwitchOff,
        Request::Psci(Call::AffinityInfo { target, level }) => Effect::Power(PowerCall::Affinity { target, level }),
        Request::Psci(Call::CpuSuspend { power_state, entry, context }) => {
            Effect::Power(PowerCall::Suspend { power_state, entry, context, order: order() })
        }
        Request::Psci(Call::SystemOff) => Effect::PowerOff,
        Request::Psci(Call::SystemReset(_)) => Effect::Reset,
    };
    exited.perform(Decision { reason, next, effect })
}

/// A waiting instruction, of which a WFE may be a request by the WFE channel.
#[inline(always)]
fn wait<E: Exited>(exited: E, kind: WaitKind) -> E::Done {
    let registers = exited.registers();
    match kind {
        WaitKind::Wfi => exited.perform(Decision::behind(Reason::Wfi, Effect::Wait(None))),
        // Without a register in the syndrome it ends at once, as it always may.
        WaitKind::Wfit { rt } => {
            let until = GuestTicks(rt.map_or(0, |rt| registers.register(rt)));
            exited.perform(Decision::behind(Reason::Wfi, Effect::Wait(Some(until))))
        }
        WaitKind::Wfe => {
            let decision = match request(exited.guest().doors(), registers) {
                Some(effect) => Decision::behind(Reason::Call, effect),
                None => Decision::behind(Reason::Wfe, Effect::GiveWay),
            };
            exited.perform(decision)
        }
        WaitKind::Wfet { .. } => exited.perform(Decision::behind(Reason::Wfe, Effect::GiveWay)),
    }
}

/// What a WFE asks for by the WFE channel, if it does.
#[inline(always)]
fn request(policy: &Policy, registers: Registers<'_>) -> Option<Effect> {
    let [first, second, third, ..] = *registers.x;
    if !policy.wfe {
        return None;
    }
    let level = level(registers);
    Some(match WatchdogRequest::by_word(watchdog::Request::decode(first, second, third)?) {
        None => Effect::Answer(Results::Two([words::AGENT, doors::detected(policy, level)])),
        Some((scope, request)) => Effect::Watchdog { scope, level, request },
    })
}
