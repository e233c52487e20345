//! What each kind of exit leads to, arm by arm, and what holds for all.

use std::string::ToString;

use ::vmware::ExceptionLevel;
use a64::Unsupported;
use abi::bundle::Doors as Policy;
use abi::calls::{self, vmware};
use abi::wfe as words;
use clock::GuestTicks;
use cpu::SysregEncoding;
use cpu::debug::{DebugBank, DebugPolicy, MDSCR_TDCC};
use cpu::exit::{ESR_IL, Wanted, class};
use cpu::inject::{AbortKind, GuestState};
use cpu::sysreg::{CommonRegister, GroupZero, ICC_SRE_VALUE, Timer, TimerRegister};
use machine::{RAM_BASE, UART_BASE};
use proptest::prelude::*;
use services::psci::VmPower;
use services::{NOT_SUPPORTED, SUCCESS};
use units::{ByteOrder, Direction, IntId, Range, Va, VcpuId};
use vgic::Group;
use watchdog::Scope;

use super::{
    Cause, DebugSink, Decision, Effect, Exception, FROM_AARCH32, Next, PowerCall, Powered, Reason, Remark, Results,
    Sink, Source, decide, status_of,
};
use crate::doors::{TRANSMIT_FULL, WatchdogRequest};
use crate::mmio::Registers;
use crate::mmio::tests::{CODE, Fake, KERNEL, LDXR_W1_AT_X3, RECORD, STP_W1_W2_AT_X3, USER};

/// What registers hold where a test says nothing of them.
const FILL: u64 = 0x1122_3344_5566_7788;

fn x(first: &[u64]) -> [u64; 31] {
    let mut x = [FILL; 31];
    x[..first.len()].copy_from_slice(first);
    x
}

fn with(policy: Policy) -> Fake {
    let mut guest = Fake::new(0);
    guest.doors = policy;
    guest
}

/// The syndrome of this class, of a 32-bit instruction.
const fn esr(class: u8, iss: u64) -> u64 {
    (class as u64) << 26 | ESR_IL | iss
}

const HVC: u64 = esr(class::HVC64, 0);
const SMC: u64 = esr(class::SMC64, 0);
const WFX: u64 = esr(class::WFX, 0);

const fn cause(esr: u64) -> Cause {
    Cause { esr, far: 0, hpfar: 0 }
}

/// An exit by a kernel with these first registers.
fn exit(guest: &Fake, esr: u64, first: &[u64]) -> Decision {
    decide(guest, Registers { x: &x(first), pc: CODE, pstate: KERNEL }, cause(esr))
}

const fn here(reason: Reason, effect: Effect) -> Decision {
    Decision { reason, next: Next::Here, effect }
}

const fn behind(reason: Reason, effect: Effect) -> Decision {
    Decision { reason, next: Next::Behind, effect }
}

const fn injected(reason: Reason, exception: Exception) -> Decision {
    here(reason, Effect::Inject(exception, None))
}

const fn one(value: u64) -> Effect {
    Effect::Answer(Results::One(value))
}

#[test]
fn a_call_has_number_0_and_an_smc_is_stepped_over() {
    const VERSION: &[u64] = &[0x8400_0000];
    let guest = Fake::new(0);
    assert_eq!(exit(&guest, HVC, VERSION), here(Reason::Hvc, one(0x1_0001)));
    assert_eq!(exit(&guest, SMC, VERSION), behind(Reason::Smc, one(0x1_0001)));
    for immediate in [1, 0x85, 0x87, 0xffff] {
        assert_eq!(exit(&guest, HVC | immediate, VERSION), here(Reason::Hvc, one(NOT_SUPPORTED)));
        assert_eq!(exit(&guest, SMC | immediate, VERSION), behind(Reason::Smc, one(NOT_SUPPORTED)));
    }
    assert_eq!(exit(&guest, SMC | 0x86, VERSION), behind(Reason::Smc, one(NOT_SUPPORTED)), "that door is HVC's");
}

#[test]
fn a_call_by_its_function() {
    let guest = Fake::new(0);
    let effect = |first: &[u64]| {
        let Decision { reason, next, effect } = exit(&guest, HVC, first);
        assert_eq!((reason, next), (Reason::Hvc, Next::Here));
        assert_eq!(exit(&guest, SMC, first), behind(Reason::Smc, effect));
        effect
    };
    assert_eq!(effect(&[0x8400_0002]), Effect::SwitchOff);
    assert_eq!(
        effect(&[0xc400_0003, 1, 2, 3]),
        Effect::SwitchOn { target: 1, entry: 2, context: 3, order: ByteOrder::Little }
    );
    assert_eq!(effect(&[0xc400_0004, 1, 0]), Effect::Power(PowerCall::Affinity { target: 1, level: 0 }));
    let suspend = PowerCall::Suspend { power_state: 0x1_0000, entry: 2, context: 3, order: ByteOrder::Little };
    assert_eq!(effect(&[0xc400_0001, 0x1_0000, 2, 3]), Effect::Power(suspend));
    assert_eq!(effect(&[0x8400_0008]), Effect::PowerOff);
    assert_eq!(effect(&[0x8400_0009]), Effect::Reset);
    assert_eq!(effect(&[0xc400_0012, 0]), Effect::Reset, "SYSTEM_RESET2");
    assert!(matches!(effect(&[0xc400_0053, 64]), Effect::Entropy(_)));
    assert!(matches!(effect(&[0x8400_0052]), Effect::Answer(Results::Four(_) | Results::One(_))), "TRNG_GET_UUID");
    assert_eq!(effect(&[0xc500_0021]), one(RECORD.0), "where its stolen time is, which the guest is asked for");
    assert_eq!(effect(&[0x8600_0000]), one(NOT_SUPPORTED));
}

/// PSCI, section 6.4: a CPU begins in its caller's byte order, which is EL1's.
#[test]
fn a_call_in_either_byte_order() {
    for (sctlr_el1, order) in [(cpu::pstate::SCTLR_EE, ByteOrder::Big), (cpu::pstate::SCTLR_E0E, ByteOrder::Little)] {
        let mut guest = Fake::new(0);
        guest.sctlr_el1 = sctlr_el1;
        let on = Effect::SwitchOn { target: 1, entry: 2, context: 3, order };
        assert_eq!(exit(&guest, HVC, &[0xc400_0003, 1, 2, 3]).effect, on);
        let suspend = PowerCall::Suspend { power_state: 0x1_0000, entry: 2, context: 3, order };
        assert_eq!(exit(&guest, HVC, &[0xc400_0001, 0x1_0000, 2, 3]).effect, Effect::Power(suspend));
    }
}

#[test]
fn answers_are_as_many_registers_as_they_are() {
    assert_eq!(Results::One(1).values(), [1]);
    assert_eq!(Results::Two([1, 2]).values(), [1, 2]);
    assert_eq!(Results::Four([1, 2, 3, 4]).values(), [1, 2, 3, 4]);
}

#[test]
fn the_power_states_say_what_a_call_leads_to() {
    let ram = Range { start: RAM_BASE, size: 0x20_0000 };
    let mut power = VmPower::new(2, ram);
    power.started(VcpuId(0));
    let affinity = |power: &VmPower, target| PowerCall::Affinity { target, level: 0 }.look(power, VcpuId(0));
    let invalid = Powered::Status(-2_i64 as u64);
    assert_eq!(affinity(&power, 0), Powered::Status(0), "on");
    assert_eq!(affinity(&power, 1), Powered::Status(1), "off");
    assert_eq!(affinity(&power, 2), invalid);
    let suspend = |power_state, entry| {
        PowerCall::Suspend { power_state, entry, context: 7, order: ByteOrder::Big }.look(&power, VcpuId(0))
    };
    assert_eq!(suspend(0, RAM_BASE.0), Powered::Standby);
    match suspend(0x1_0000, RAM_BASE.0) {
        Powered::PowerDown(start) => {
            assert_eq!((start.vcpu, start.entry, start.context), (VcpuId(0), RAM_BASE, 7));
            assert_eq!(start.order, ByteOrder::Big);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(suspend(0x1_0000, 0), Powered::Status(_)), "it cannot wake up where no RAM is");
    assert_eq!(status_of(Ok(())), SUCCESS);
    let first = power.cpu_on(1, RAM_BASE.0, 0, ByteOrder::Little).map(drop);
    assert_eq!(status_of(first), SUCCESS);
    let second = power.cpu_on(1, RAM_BASE.0, 0, ByteOrder::Little).map(drop);
    assert_eq!(status_of(second), second.unwrap_err().value());
    assert_ne!(status_of(second), SUCCESS);
}

/// X3 and X7 of a call of VMware's to the low port.
fn vmware_call() -> [u64; 8] {
    let mut first = [0; 8];
    (first[0], first[3], first[7]) = (vmware::MAGIC.into(), vmware::PORT_LOW.into(), calls::marked(calls::LOW));
    first
}

#[test]
fn hvc_86_is_a_door_where_it_is_open() {
    let call = HVC | u64::from(calls::MARK);
    let open = with(Policy { vmware: true, ..Policy::default() });
    let Decision { reason: Reason::Call, next: Next::Here, effect: Effect::Call(_, door) } =
        exit(&open, call, &vmware_call())
    else {
        panic!("it is open")
    };
    assert_eq!(door, ::vmware::Door::Hvc);
    assert_eq!(exit(&open, call, &[]), here(Reason::Hvc, one(NOT_SUPPORTED)), "nothing that is a call");
    assert_eq!(exit(&Fake::new(0), call, &vmware_call()), here(Reason::Hvc, one(NOT_SUPPORTED)), "it is closed");
}

/// ISS of an MSR or MRS with this Rt.
const fn moves([op0, op1, crn, crm, op2]: [u64; 5], rt: u64, direction: Direction) -> u64 {
    let is_read = matches!(direction, Direction::Read) as u64;
    esr(class::SYSTEM_REGISTER, op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | is_read)
}

const STATUS: [u64; 5] = [2, 3, 0, 1, 0];

#[test]
fn the_debug_channel_is_a_door_first() {
    let look = |guest: &Fake, rt, first: &[u64], pstate| {
        let registers = Registers { x: &x(first), pc: CODE, pstate };
        decide(guest, registers, cause(moves(STATUS, rt, Direction::Read)))
    };
    let mut open = with(Policy { vmware: true, ..Policy::default() });
    // MDCCSR_EL0.TXfull is bit 29.
    assert_eq!(TRANSMIT_FULL, 0x2000_0000);
    let full = behind(Reason::SystemRegister, Effect::Read { rt: 31, from: Source::Value(TRANSMIT_FULL) });
    assert_eq!(look(&open, 31, &[], KERNEL), full);
    assert_eq!(look(&open, 31, &[], USER), full);
    open.debug.mdscr = MDSCR_TDCC;
    let refused = injected(Reason::SystemRegister, Exception::Reflected(moves(STATUS, 31, Direction::Read), None));
    assert_eq!(look(&open, 31, &[], USER), refused, "the kernel keeps it from its processes");
    assert_eq!(look(&open, 31, &[], KERNEL), full);
    for pstate in [USER, KERNEL] {
        let called = look(&open, 31, &vmware_call(), pstate);
        let Decision { reason: Reason::Call, next: Next::Here, effect: Effect::Call(_, door) } = called else {
            panic!("{called:?}")
        };
        assert_eq!(door, ::vmware::Door::DebugChannel { rt: 31 });
    }
    let strict = with(Policy { vmware: true, strict: true, ..Policy::default() });
    assert_eq!(look(&strict, 31, &[], KERNEL), refused);
    let closed = behind(Reason::SystemRegister, Effect::Read { rt: 5, from: Source::Value(0) });
    assert_eq!(look(&Fake::new(0), 5, &vmware_call(), KERNEL), closed, "in a VM without doors the channel is empty");
}

#[test]
fn each_system_register() {
    use Direction::{Read, Write};
    let guest = Fake::new(0);
    let effect = |encoding, direction| {
        let Decision { reason, next, effect } =
            exit(&guest, moves(encoding, 4, direction), &[0, 0, 0, 0, 0x1_0000_0021]);
        assert_eq!((reason, next), (Reason::SystemRegister, Next::Behind));
        effect
    };
    let value = 0x1_0000_0021;
    let read = |from| Effect::Read { rt: 4, from };
    let write = Effect::Write;
    assert_eq!(effect([3, 0, 12, 11, 5], Write), write(Sink::Sgi(value, Group::One)));
    assert_eq!(effect([3, 0, 12, 11, 6], Write), write(Sink::Sgi(value, Group::Zero)), "ICC_ASGI1R_EL1");
    assert_eq!(effect([3, 0, 12, 11, 7], Write), write(Sink::Sgi(value, Group::Zero)), "ICC_SGI0R_EL1");
    assert_eq!(effect([3, 0, 12, 11, 1], Write), write(Sink::Deactivate(IntId(0x21))), "24 bits of it");
    assert_eq!(effect([3, 0, 12, 8, 0], Read), read(Source::GroupZero(GroupZero::Acknowledge)));
    assert_eq!(effect([3, 0, 12, 12, 6], Write), write(Sink::GroupZero(GroupZero::Enable, value)));
    let control = CommonRegister::Control;
    assert_eq!(effect([3, 0, 12, 12, 4], Read), read(Source::Common(control)), "ICC_CTLR_EL1");
    assert_eq!(effect([3, 0, 12, 12, 4], Write), write(Sink::Common(control, value)));
    assert_eq!(effect([3, 0, 12, 12, 5], Read), read(Source::Value(ICC_SRE_VALUE)));
    assert_eq!(effect([3, 0, 12, 12, 5], Write), Effect::Nothing);
    assert_eq!(effect([3, 3, 14, 0, 1], Read), read(Source::Count));
    for (crm, timer) in [(2, Timer::Physical), (3, Timer::Virtual)] {
        for (op2, register) in
            [(0, TimerRegister::TimerValue), (1, TimerRegister::Control), (2, TimerRegister::CompareValue)]
        {
            assert_eq!(effect([3, 3, 14, crm, op2], Read), read(Source::Timer(timer, register)));
            assert_eq!(effect([3, 3, 14, crm, op2], Write), write(Sink::Timer(timer, register, value)));
        }
    }
    assert_eq!(effect([2, 0, 1, 0, 4], Write), write(Sink::OsLock(true)));
    assert_eq!(effect([2, 0, 1, 1, 4], Read), read(Source::OsLock));
    assert_eq!(effect([3, 0, 1, 0, 1], Read), read(Source::Value(0)), "ACTLR_EL1");
    assert_eq!(effect([3, 0, 1, 0, 1], Write), Effect::Nothing);
    assert_eq!(effect([1, 0, 7, 6, 2], Write), Effect::Nothing, "DC ISW");
    assert_eq!(effect([3, 0, 0, 4, 0], Read), read(Source::Identification(24)));
    let mut guest = guest;
    guest.debug.mdscr = 0x8000;
    let mdscr = |guest: &Fake, direction| exit(guest, moves([2, 0, 0, 2, 2], 4, direction), &[0, 0, 0, 0, value]);
    let shown = Effect::Read { rt: 4, from: Source::Value(0x8000) };
    assert_eq!(mdscr(&guest, Read), behind(Reason::SystemRegister, shown));
    assert_eq!(
        mdscr(&guest, Write),
        behind(Reason::SystemRegister, Effect::Write(Sink::Debug(DebugSink::Mdscr(value))))
    );
    guest.debug.policy = DebugPolicy::Natural;
    assert_eq!(mdscr(&guest, Read), here(Reason::SystemRegister, Effect::LoadDebug));
    // DBGBVR1_EL1 and DBGWCR1_EL1, of which it has no second.
    (guest.debug.policy, guest.debug.breakpoints, guest.debug.watchpoints) = (DebugPolicy::TrapAll, 2, 1);
    let point = |op2, direction| exit(&guest, moves([2, 0, 0, 1, op2], 4, direction), &[0, 0, 0, 0, value]);
    let from = Source::Debug(DebugBank::BreakpointValue, 1);
    assert_eq!(point(4, Read), behind(Reason::SystemRegister, Effect::Read { rt: 4, from }));
    let sink = Sink::Debug(DebugSink::Point(DebugBank::BreakpointValue, 1, value));
    assert_eq!(point(4, Write), behind(Reason::SystemRegister, Effect::Write(sink)));
    assert_eq!(point(7, Write), injected(Reason::SystemRegister, Exception::Undefined));
    let undefined = injected(Reason::SystemRegister, Exception::Undefined);
    assert_eq!(exit(&guest, moves([3, 0, 12, 11, 5], 4, Read), &[]), undefined);
    assert_eq!(exit(&guest, moves([3, 0, 0, 4, 0], 4, Write), &[]), undefined);
    assert_eq!(exit(&guest, moves([3, 7, 15, 15, 7], 4, Read), &[]), undefined);
}

#[test]
fn the_os_lock_is_bit_0_and_xzr_is_0() {
    let oslar = [2, 0, 1, 0, 4];
    let lock = |rt, first: &[u64]| exit(&Fake::new(0), moves(oslar, rt, Direction::Write), first).effect;
    assert_eq!(lock(0, &[u64::MAX - 1]), Effect::Write(Sink::OsLock(false)));
    assert_eq!(lock(0, &[1]), Effect::Write(Sink::OsLock(true)));
    assert_eq!(lock(31, &[1]), Effect::Write(Sink::OsLock(false)));
}

#[test]
fn waiting_is_stepped_over_first() {
    let guest = Fake::new(0);
    let [wfi, wfe, wfit, wfet] = [0, 1, 2, 3].map(|kind| WFX | kind);
    let with_x6 = 1 << 2 | 6 << 5;
    let first = [0, 0, 0, 0, 0, 0, 99];
    assert_eq!(exit(&guest, wfi, &first), behind(Reason::Wfi, Effect::Wait(None)));
    assert_eq!(exit(&guest, wfit | with_x6, &first), behind(Reason::Wfi, Effect::Wait(Some(GuestTicks(99)))));
    assert_eq!(
        exit(&guest, wfit, &first),
        behind(Reason::Wfi, Effect::Wait(Some(GuestTicks(0)))),
        "it may end at once"
    );
    assert_eq!(exit(&guest, wfe, &first), behind(Reason::Wfe, Effect::GiveWay));
    assert_eq!(exit(&guest, wfet | with_x6, &first), behind(Reason::Wfe, Effect::GiveWay));
}

#[test]
fn a_wfe_alone_may_be_a_request_and_where_the_channel_is_open() {
    let open = with(Policy { wfe: true, ..Policy::default() });
    let configure = [words::CONFIGURE_OWN, 500, 2];
    let wfe = WFX | 1;
    let request = |pstate, first: &[u64]| decide(&open, Registers { x: &x(first), pc: CODE, pstate }, cause(wfe));
    for (pstate, level) in [(KERNEL, ExceptionLevel::Kernel), (USER, ExceptionLevel::User)] {
        let asked = WatchdogRequest::Configure { timeout: 500, action: 2 };
        let effect = Effect::Watchdog { scope: Scope::Own, level, request: asked };
        assert_eq!(request(pstate, &configure), behind(Reason::Call, effect));
    }
    let query = Effect::Watchdog { scope: Scope::Vm, level: ExceptionLevel::Kernel, request: WatchdogRequest::Query };
    assert_eq!(request(KERNEL, &[words::QUERY]), behind(Reason::Call, query));
    let detected = |pstate| match request(pstate, &[words::DETECT]) {
        Decision { reason: Reason::Call, next: Next::Behind, effect: Effect::Answer(Results::Two([agent, what])) } => {
            assert_eq!(agent, words::AGENT);
            what
        }
        other => panic!("{other:?}"),
    };
    assert_ne!(detected(KERNEL), detected(USER), "a process may not set watchdogs up here");
    let plain = behind(Reason::Wfe, Effect::GiveWay);
    assert_eq!(request(KERNEL, &[words::DETECT ^ 1 << 40]), plain);
    assert_eq!(exit(&Fake::new(0), wfe, &configure), plain, "it is closed");
    assert_eq!(exit(&open, WFX | 3, &configure), plain, "WFET");
    assert_eq!(exit(&open, WFX, &configure), behind(Reason::Wfi, Effect::Wait(None)), "WFI");
    assert_eq!(exit(&open, WFX | 2, &configure), behind(Reason::Wfi, Effect::Wait(Some(GuestTicks(0)))), "WFIT");
}

/// ISS of a data abort by a translation fault, level 3.
const LOAD: u64 = 7;
const STORE: u64 = 1 << 6;
const MAINTENANCE: u64 = 1 << 8;
const ON_WALK: u64 = 1 << 7;
/// ISV and a size of four bytes, to or from W1.
const WORD_OF_X1: u64 = 1 << 24 | 2 << 22 | 1 << 16;

fn abort(guest: &Fake, class: u8, iss: u64, far: u64, ipa: u64) -> Decision {
    let registers = Registers { x: &x(&[0, 0, 0, far]), pc: CODE, pstate: KERNEL };
    decide(guest, registers, Cause { esr: esr(class, iss), far, hpfar: ipa >> 12 << 4 })
}

fn data(guest: &Fake, iss: u64, far: u64, ipa: u64) -> Decision {
    abort(guest, class::DATA_ABORT_LOWER, iss, far, ipa)
}

#[test]
fn a_data_abort_by_what_is_there() {
    use Direction::{Read, Write};
    let guest = Fake::new(0);
    let ram = RAM_BASE.0;
    let data = |iss, far, ipa| data(&guest, iss, far, ipa);
    let external = |far, direction| Exception::Data(Va(far), AbortKind::External, direction);
    let map = |wanted, refused| Effect::Map { far: Va(CODE), ipa: RAM_BASE, wanted, refused };
    assert_eq!(data(LOAD, CODE, ram), here(Reason::Memory, map(Wanted::Read, external(CODE, Read))));
    assert_eq!(data(LOAD | STORE, CODE, ram), here(Reason::Memory, map(Wanted::Write, external(CODE, Write))));
    let maintenance = data(LOAD | STORE | MAINTENANCE, CODE, ram);
    let Effect::Map { refused, .. } = maintenance.effect else { panic!("{maintenance:?}") };
    assert_eq!(refused, Exception::Maintenance(Va(CODE), AbortKind::External));
    assert_eq!(data(LOAD | STORE | MAINTENANCE, UART_BASE, UART_BASE), behind(Reason::Nothing, Effect::Nothing));
    assert_eq!(data(0x10, CODE, ram), injected(Reason::Nothing, external(CODE, Read)), "it did not answer");
    let unable = Exception::Data(Va(CODE), AbortKind::UnsupportedAtomic, Read);
    assert_eq!(data(0x35, CODE, ram), injected(Reason::Other, unable));
    let on_walk = Exception::Data(Va(CODE), AbortKind::ExternalOnWalk(2), Read);
    assert_eq!(data(LOAD | ON_WALK, CODE, UART_BASE), injected(Reason::Nothing, on_walk));
    // A permission fault, where the guest has unmapped the page meanwhile.
    let far = 0x7000_0000;
    let again = Effect::Again { far: Va(far), refused: external(far, Read) };
    assert_eq!(data(0xf, far, 0), here(Reason::Other, again));
    assert_eq!(data(LOAD, far, 0x3000_0000), injected(Reason::Nothing, external(far, Read)), "nobody is there");
}

#[test]
fn a_fetch_by_what_is_there() {
    let guest = Fake::new(0);
    let fetch = |iss, far, ipa| abort(&guest, class::INSTRUCTION_ABORT_LOWER, iss, far, ipa);
    let external = |far| Exception::Instruction(Va(far), AbortKind::External);
    let map = Effect::Map { far: Va(CODE), ipa: RAM_BASE, wanted: Wanted::Fetch, refused: external(CODE) };
    assert_eq!(fetch(7, CODE, RAM_BASE.0), here(Reason::Execution, map));
    let walk = fetch(7 | ON_WALK, CODE, RAM_BASE.0);
    assert_eq!(walk.reason, Reason::Memory, "a table is read, and not executed");
    assert!(matches!(walk.effect, Effect::Map { wanted: Wanted::Walk, .. }), "{walk:?}");
    assert_eq!(fetch(7, UART_BASE, UART_BASE), injected(Reason::Nothing, external(UART_BASE)));
    let far = 0x7000_0000;
    assert_eq!(fetch(0xf, far, 0), here(Reason::Other, Effect::Again { far: Va(far), refused: external(far) }));
    // FnV: FAR_EL2 says nothing, and the instruction is where PC is.
    let unknown = fetch(0x10 | 1 << 10, 0xdead, 0);
    assert_eq!(unknown, injected(Reason::Nothing, external(CODE)));
}

#[test]
fn a_device_is_accessed_or_the_guest_hears_why_not() {
    use Direction::{Read, Write};
    let at = UART_BASE + 0x18;
    let accessed = |decision: Decision| {
        let Effect::Access(operations, direction) = decision.effect else { panic!("{decision:?}") };
        assert_eq!((decision.reason, decision.next), (Reason::Device, Next::Behind));
        (operations.iter().map(|operation| operation.rt()).collect::<std::vec::Vec<_>>(), direction)
    };
    let guest = Fake::new(STP_W1_W2_AT_X3);
    assert_eq!(accessed(data(&guest, LOAD | WORD_OF_X1, at, at)), (std::vec![1], Read));
    assert_eq!(accessed(data(&guest, LOAD | STORE | WORD_OF_X1, at, at)), (std::vec![1], Write));
    assert_eq!(guest.questions(), 0, "the syndrome says it all");
    assert_eq!(accessed(data(&guest, LOAD | STORE, at, at)), (std::vec![1, 2], Write));
    let unaligned = Exception::Data(Va(at + 2), AbortKind::Alignment, Read);
    assert_eq!(data(&guest, LOAD | WORD_OF_X1, at + 2, at), injected(Reason::Device, unaligned));
    let again = Effect::Again { far: Va(at), refused: Exception::Data(Va(at), AbortKind::External, Read) };
    assert_eq!(data(&guest, LOAD, at, at), here(Reason::Device, again), "a store does not load");
    let exclusive = Fake::new(LDXR_W1_AT_X3);
    let refused = Exception::Data(Va(at), AbortKind::UnsupportedAtomic, Read);
    let remark = Remark::Unable { word: LDXR_W1_AT_X3, far: Va(at), why: Unsupported::Exclusive };
    assert_eq!(data(&exclusive, LOAD, at, at), here(Reason::Device, Effect::Inject(refused, Some(remark))));
    assert!(remark.to_string().contains("on a device: Exclusive"), "{remark}");
}

#[test]
fn what_is_the_guests_own_is_handed_on_to_it() {
    let guest = Fake::new(0);
    for class in
        [class::BREAKPOINT_LOWER, class::STEP_LOWER, class::WATCHPOINT_LOWER, class::BRK64, class::PC_ALIGNMENT]
    {
        let cause = Cause { esr: esr(class, 0x22), far: 0x1234, hpfar: 0 };
        let decision = decide(&guest, Registers { x: &x(&[]), pc: CODE, pstate: KERNEL }, cause);
        assert_eq!(decision, injected(Reason::Other, Exception::Reflected(cause.esr, Some(Va(0x1234)))));
    }
}

#[test]
fn whatever_else_it_is_does_not_exist_for_the_guest() {
    let guest = Fake::new(0);
    assert_eq!(
        exit(&guest, esr(class::FLOATING_POINT, 0), &[]),
        here(Reason::FloatingPoint, Effect::LoadFloatingPoint)
    );
    for class in [class::SVE, class::SME, class::POINTER_AUTHENTICATION, class::LS64, class::ERET, class::CP15_32] {
        assert_eq!(exit(&guest, esr(class, 0), &[]), injected(Reason::Other, Exception::Undefined), "{class:#x}");
    }
    let remark = Some(Remark::Class(0x3f));
    assert_eq!(exit(&guest, esr(0x3f, 0), &[]), here(Reason::Other, Effect::Inject(Exception::Undefined, remark)));
    assert_eq!(Remark::Class(0x3f).to_string(), "exit of class 0x3f");
    assert_eq!(FROM_AARCH32, injected(Reason::Other, Exception::IllegalState));
}

#[test]
fn each_exception_is_what_it_says() {
    let taken = |exception: Exception| {
        let mut state = GuestState { pc: CODE, pstate: KERNEL, vbar_el1: 0x8000, ..GuestState::default() };
        exception.take(&mut state);
        assert_eq!((state.pc, state.elr_el1), (0x8200, CODE));
        ((state.esr_el1 >> 26) as u8, state.esr_el1 & 0x1ff, state.far_el1)
    };
    let at = Va(0x5000);
    let (data, fetch) = (class::DATA_ABORT_CURRENT, class::INSTRUCTION_ABORT_CURRENT);
    assert_eq!(taken(Exception::Undefined), (class::UNKNOWN, 0, 0));
    assert_eq!(taken(Exception::IllegalState), (class::ILLEGAL_STATE, 0, 0));
    assert_eq!(taken(Exception::Reflected(esr(class::BRK64, 5), Some(at))), (class::BRK64, 5, at.0));
    assert_eq!(taken(Exception::Reflected(esr(class::SYSTEM_REGISTER, 5), None)), (class::SYSTEM_REGISTER, 5, 0));
    assert_eq!(taken(Exception::Data(at, AbortKind::External, Direction::Read)), (data, 0x10, at.0));
    assert_eq!(taken(Exception::Data(at, AbortKind::Alignment, Direction::Write)), (data, STORE | 0x21, at.0));
    assert_eq!(taken(Exception::Maintenance(at, AbortKind::External)), (data, MAINTENANCE | STORE | 0x10, at.0));
    assert_eq!(taken(Exception::Instruction(at, AbortKind::External)), (fetch, 0x10, at.0));
}

#[test]
fn each_reason_has_a_name_of_its_own() {
    let names = Reason::NAMES;
    assert!(names.iter().enumerate().all(|(index, name)| !names[..index].contains(name)));
    assert_eq!(names[Reason::Interrupt as usize], "interrupt");
    assert_eq!(names[Reason::Call as usize], "call");
    assert_eq!(names[Reason::Other as usize], "other");
}

proptest! {
    /// Whatever the CPU says, and whatever the guest has in its registers: the guest goes on, and what it is refused is not stepped
    /// over. Only what makes that another exit next time leaves it where it is.
    #[test]
    fn any_exit(
        class in prop_oneof![any::<u8>(), proptest::sample::select(&[0x01_u8, 0x16, 0x17, 0x18, 0x20, 0x24][..])],
        iss in 0..1_u64 << 25,
        far in prop_oneof![any::<u64>(), Just(UART_BASE), Just(CODE)],
        ipa in prop_oneof![any::<u64>(), Just(UART_BASE), Just(RAM_BASE.0)],
        fill in prop_oneof![any::<u64>(), Just(words::PAT), 0x8400_0000..0x8400_0020_u64],
        pstate in proptest::sample::select(&[KERNEL, USER][..]),
        (vmware, wfe, strict) in any::<(bool, bool, bool)>(),
    ) {
        let guest = with(Policy { vmware, wfe, strict, ..Policy::default() });
        let registers = Registers { x: &[fill; 31], pc: CODE, pstate };
        let class = class & 0x3f;
        let decision = decide(&guest, registers, Cause { esr: esr(class, iss), far, hpfar: ipa >> 8 });
        prop_assert!(guest.questions() <= 5);
        let stays = matches!(
            decision.effect,
            Effect::Inject(..) | Effect::Again { .. } | Effect::Map { .. } | Effect::LoadDebug | Effect::Call(..)
                | Effect::LoadFloatingPoint
        );
        // HVC is the one after which PC is behind it already.
        let goes_on = decision.next == Next::Behind || class == class::HVC64;
        prop_assert_eq!(stays && decision.next == Next::Behind, false);
        prop_assert!(stays || goes_on, "{decision:?} repeats for ever");
    }
}

/// The encodings above are those of the decoder.
#[test]
fn an_encoding_is_found_in_its_syndrome() {
    let iss = moves([3, 1, 14, 2, 5], 31, Direction::Write);
    assert_eq!(SysregEncoding::from_syndrome(iss), SysregEncoding::new(3, 1, 14, 2, 5));
}
