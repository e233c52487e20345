//! The doors, for every debug register and every way to continue.

use super::{
    Abort, After, DebugAccess, WatchdogRequest, after, debug_access, detected, features, hvc, status_of, word_of,
};
use ::vmware::{Door, ExceptionLevel, Outcome, WatchdogCall, Whose};
use abi::bundle::Doors as Policy;
use abi::calls::{self, own, vmware};
use abi::wfe as words;
use core::cell::Cell;
use cpu::exit::SystemRegister;
use cpu::inject::AbortKind;
use cpu::{Direction, SysregEncoding};
use proptest::prelude::{any, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};
use units::Va;
use watchdog::{Refused, Request, Scope};

const STATUS: SysregEncoding = SysregEncoding::new(2, 3, 0, 1, 0);
const CALL: [u64; 2] = [vmware::PORT_LOW as u64, calls::marked(calls::LOW)];

fn open() -> Policy {
    Policy { vmware: true, ..Policy::default() }
}

fn read(encoding: SysregEncoding, rt: u8) -> SystemRegister {
    SystemRegister { encoding, direction: Direction::Read, rt }
}

fn encoding() -> impl Strategy<Value = SysregEncoding> {
    let debug = (0_u8..8, 0_u8..16, 0_u8..16, 0_u8..8);
    let any = (0_u8..4, 0_u8..8, 0_u8..16, 0_u8..16, 0_u8..8);
    prop_oneof![
        3 => Just(STATUS),
        3 => debug.prop_map(|(op1, crn, crm, op2)| SysregEncoding::new(2, op1, crn, crm, op2)),
        // DBGDTR_EL0 and DBGDTRTX_EL0, which are of the channel too.
        2 => Just(SysregEncoding::new(2, 3, 0, 5, 0)),
        1 => any.prop_map(|(op0, op1, crn, crm, op2)| SysregEncoding::new(op0, op1, crn, crm, op2)),
    ]
}

proptest! {
    /// A call is one in an open VM alone, by reading the status into XZR, with the registers of a call. Nothing else than the
    /// channel goes to the guest's kernel, and a call never does.
    #[test]
    fn what_an_access_is(
        encoding in encoding(),
        is_read in any::<bool>(),
        rt in prop_oneof![Just(31_u8), 0..31_u8],
        registers in prop_oneof![Just(CALL), any::<[u64; 2]>()],
        (vmware, strict, is_user, forbidden) in any::<(bool, bool, bool, bool)>(),
    ) {
        let policy = Policy { vmware, strict, ..Policy::default() };
        let direction = if is_read { Direction::Read } else { Direction::Write };
        let level = if is_user { ExceptionLevel::User } else { ExceptionLevel::Kernel };
        let access = SystemRegister { encoding, direction, rt };
        let asked = Cell::new(false);
        let got = debug_access(&policy, &access, registers, level, || {
            asked.set(true);
            forbidden
        });
        let is_status = encoding == STATUS && is_read;
        let is_channel = encoding.op0() == 2 && encoding.op1() == 3;
        let call = ::vmware::decode(Door::DebugChannel { rt }, registers[0], registers[1]);
        let expected = if !vmware {
            DebugAccess::Other
        } else if let (true, Some(call)) = (is_status, call) {
            DebugAccess::Call(call)
        } else if is_channel && (strict || is_user && forbidden) {
            DebugAccess::Refused
        } else if is_status {
            DebugAccess::Status
        } else {
            DebugAccess::Other
        };
        assert_eq!(got, expected);
        assert!(!asked.get() || is_user && is_channel, "MDSCR_EL1 matters to processes alone");
    }
}

/// Word by word what a guest meets: the property above says the same in the code's own order.
#[test]
fn the_status_by_who_reads_it_and_how() {
    let look = |policy: &Policy, rt, registers, level, forbidden| {
        debug_access(policy, &read(STATUS, rt), registers, level, || forbidden)
    };
    let strict = Policy { strict: true, ..open() };
    assert!(
        matches!(look(&open(), 31, CALL, ExceptionLevel::User, true), DebugAccess::Call(..)),
        "TDCC does not close the door"
    );
    assert!(matches!(look(&strict, 31, CALL, ExceptionLevel::Kernel, false), DebugAccess::Call(..)));
    assert_eq!(look(&open(), 4, CALL, ExceptionLevel::Kernel, true), DebugAccess::Status);
    assert_eq!(look(&open(), 4, CALL, ExceptionLevel::User, false), DebugAccess::Status);
    assert_eq!(look(&open(), 4, CALL, ExceptionLevel::User, true), DebugAccess::Refused);
    assert_eq!(look(&strict, 4, CALL, ExceptionLevel::Kernel, false), DebugAccess::Refused);
    assert_eq!(
        look(&open(), 31, [CALL[0], calls::LOW.into()], ExceptionLevel::Kernel, false),
        DebugAccess::Status,
        "no mark"
    );
    assert_eq!(look(&Policy::default(), 31, CALL, ExceptionLevel::Kernel, false), DebugAccess::Other);
}

#[test]
fn hvc_calls_where_the_door_is_open_and_needs_no_mark() {
    let registers = [CALL[0], calls::LOW.into()];
    assert_eq!(hvc(&open(), registers).map(|call| call.port), Some(vmware::PORT_LOW));
    assert_eq!(hvc(&Policy::default(), registers), None);
    assert_eq!(hvc(&open(), [CALL[0], !0]), None);
}

#[test]
fn a_guest_goes_on_behind_what_is_done_and_at_what_is_not() {
    let status = AbortKind::Permission(3).status() as u8;
    let fault = |direction| Outcome::Fault { address: 0x1000, status, direction };
    let abort = |direction| Some(Abort { address: Va(0x1000), kind: AbortKind::Permission(3), direction });
    for (door, back, done) in [(Door::DebugChannel { rt: 31 }, 0, After::StepOver), (Door::Hvc, 4, After::Behind)] {
        assert_eq!(after(door, &Outcome::Done), done);
        assert_eq!(after(door, &Outcome::Again), After::Again { back, abort: None });
        let writes = After::Again { back, abort: abort(Direction::Write) };
        assert_eq!(after(door, &fault(Direction::Write)), writes, "what comes in is stored");
        let reads = After::Again { back, abort: abort(Direction::Read) };
        assert_eq!(after(door, &fault(Direction::Read)), reads);
    }
}

#[test]
fn both_doors_ask_the_same_of_watchdogs() {
    for (scope, whose) in [(Scope::Vm, Whose::Vm), (Scope::Own, Whose::Caller)] {
        let pairs = [
            (Request::Pat(scope), WatchdogCall::Pat, WatchdogRequest::Pat),
            (Request::Query(scope), WatchdogCall::Query, WatchdogRequest::Query),
            (
                Request::Configure { scope, timeout: 70, action: 3 },
                WatchdogCall::Configure { milliseconds: 70, action: 3 },
                WatchdogRequest::Configure { timeout: 70, action: 3 },
            ),
        ];
        for (word, call, ask) in pairs {
            assert_eq!(WatchdogRequest::by_word(word), Some((scope, ask)));
            assert_eq!(WatchdogRequest::by_call(call, whose), (scope, ask));
        }
    }
    assert_eq!(WatchdogRequest::by_word(Request::Detect), None);
}

#[test]
fn answers_about_watchdogs() {
    assert_eq!(word_of(Ok(70)), [words::DONE, 70]);
    let refusals = [Refused::Level, Refused::Action, Refused::NotArmed, Refused::MustStay];
    assert_eq!(refusals.map(|refused| word_of(Err(refused))), refusals.map(|refused| [words::ERROR, refused.number()]));
    let statuses = [own::status::REFUSED, own::status::ARGUMENT, own::status::UNAVAILABLE, own::status::REFUSED];
    assert_eq!(refusals.map(status_of), statuses);
}

/// Either way of asking tells a process of watchdogs only if it may set them up.
#[test]
fn what_there_is() {
    for (policy, level, may) in [
        (open(), ExceptionLevel::Kernel, true),
        (open(), ExceptionLevel::User, false),
        (Policy { watchdog_user: true, ..open() }, ExceptionLevel::User, true),
    ] {
        let by_word = words::VERSION | words::features::CALLS;
        let all = words::features::WATCHDOG | words::features::OWN_WATCHDOG;
        assert_eq!(detected(&policy, level), by_word | if may { all } else { 0 });
        let all = if may { own::features::WATCHDOG | own::features::OWN_WATCHDOG } else { 0 };
        assert_eq!(features(&policy, level, true), all);
        assert_eq!(features(&Policy { wfe: true, ..policy }, level, true), all | own::features::WFE);
        assert_eq!(features(&Policy { wfe: true, ..policy }, level, false), all);
    }
    assert_eq!(detected(&Policy::default(), ExceptionLevel::Kernel) & words::features::CALLS, 0);
}
