//! What a guest does at its doors (`core/vmware`, `core/watchdog`): whether an access is a call, what happens if it is not, where
//! the guest continues afterwards, and its requests to watchdogs, which can come by both.
//!
//! The doors are open where the site file says so. A VM without open doors has none of their traps.

use abi::bundle::Doors as Policy;
use abi::calls::own;
use abi::wfe as words;
use cpu::Direction;
use cpu::exit::SystemRegister;
use cpu::inject::AbortKind;
use cpu::sysreg::{self, Action};
use units::Va;
use vmware::{Access, Door, ExceptionLevel, Outcome};
use watchdog::{Refused, Request, Scope};

#[cfg(test)]
mod tests;

/// MDCCSR_EL0.TXfull: the channel takes nothing, so that a guest doesn't mistake it for a console.
pub const TRANSMIT_FULL: u64 = 1 << 29;

/// What an access to a debug register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugAccess {
    /// A call.
    Call(Access),
    /// It goes to the guest's kernel, as an exception.
    Refused,
    /// A look at the debug channel, which is [full](TRANSMIT_FULL).
    Status,
    /// Nothing of the doors': it does what it does in a VM without them.
    Other,
}

/// What `access` is, by a guest at `level` with these X3 and X7. `is_forbidden` says whether the guest's kernel keeps the debug
/// channel from its processes (MDSCR_EL1.TDCC), and is asked only where that decides.
///
/// A call is looked for first: that the kernel forbids the channel does not close the door.
#[must_use]
#[inline(always)]
pub fn debug_access(
    policy: &Policy,
    access: &SystemRegister,
    [x3, x7]: [u64; 2],
    level: ExceptionLevel,
    is_forbidden: impl FnOnce() -> bool,
) -> DebugAccess {
    // The channel's registers, which are all that EL0 knows of the debug registers.
    if !policy.vmware || access.encoding.op0() != 2 || access.encoding.op1() != 3 {
        return DebugAccess::Other;
    }
    let is_status = access.direction == Direction::Read
        && sysreg::classify(access.encoding, access.direction) == Action::DebugChannelStatus;
    if is_status && let Some(call) = vmware::decode(Door::DebugChannel { rt: access.rt }, x3, x7) {
        return DebugAccess::Call(call);
    }
    if policy.strict || level == ExceptionLevel::User && is_forbidden() {
        return DebugAccess::Refused;
    }
    if is_status { DebugAccess::Status } else { DebugAccess::Other }
}

/// The call that `HVC #0x86` makes with these X3 and X7, if it is one.
#[must_use]
#[inline(always)]
pub const fn hvc(policy: &Policy, [x3, x7]: [u64; 2]) -> Option<Access> {
    if policy.vmware { vmware::decode(Door::Hvc, x3, x7) } else { None }
}

/// An abort that the guest gets, as if a load or a store had stood in the place of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// For this address.
    pub address: Va,
    /// Why.
    pub kind: AbortKind,
    /// Whether it was a load or a store.
    pub direction: Direction,
}

/// Where a guest goes on after a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Behind the instruction, where PC is already.
    Behind,
    /// Behind the instruction, at which PC still is.
    StepOver,
    /// At the instruction, so many bytes before PC; and first it gets this abort.
    Again {
        /// How far PC goes back.
        back: u64,
        /// What its kernel has to mend first.
        abort: Option<Abort>,
    },
}

/// Where a guest that called by `door` goes on.
#[must_use]
#[inline(always)]
pub fn after(door: Door, outcome: &Outcome) -> After {
    // The preferred return address of HVC is behind it, that of a trap is the instruction itself.
    let back = if door == Door::Hvc { 4 } else { 0 };
    match *outcome {
        Outcome::Done if back != 0 => After::Behind,
        Outcome::Done => After::StepOver,
        Outcome::Again => After::Again { back, abort: None },
        Outcome::Fault { address, status, direction } => {
            let abort = Abort { address: Va(address), kind: AbortKind::from_status(status), direction };
            After::Again { back, abort: Some(abort) }
        }
    }
}

/// What a guest asks of one of its watchdogs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchdogRequest {
    /// Arms it for so many milliseconds, or disarms it with 0.
    Configure {
        /// Until it acts.
        timeout: u64,
        /// What it does then, by number.
        action: u64,
    },
    /// Begins its time anew.
    Pat,
    /// How long is left?
    Query,
}

impl WatchdogRequest {
    /// What a word of the WFE channel asks, and of which watchdog; `None` if it only asks whether anybody is there.
    #[must_use]
    pub const fn by_word(request: Request) -> Option<(Scope, Self)> {
        Some(match request {
            Request::Detect => return None,
            Request::Configure { scope, timeout, action } => (scope, Self::Configure { timeout, action }),
            Request::Pat(scope) => (scope, Self::Pat),
            Request::Query(scope) => (scope, Self::Query),
        })
    }

    /// What one of our own calls asks, and of which watchdog.
    #[must_use]
    pub const fn by_call(request: vmware::WatchdogCall, whose: vmware::Whose) -> (Scope, Self) {
        let scope = match whose {
            vmware::Whose::Vm => Scope::Vm,
            vmware::Whose::Caller => Scope::Own,
        };
        let ask = match request {
            vmware::WatchdogCall::Query => Self::Query,
            vmware::WatchdogCall::Configure { milliseconds, action } => {
                Self::Configure { timeout: milliseconds, action: action as u64 }
            }
            vmware::WatchdogCall::Pat => Self::Pat,
        };
        (scope, ask)
    }
}

/// X0 and X1 of the WFE channel's answer to a [`WatchdogRequest`].
#[must_use]
pub const fn word_of(result: Result<u64, Refused>) -> [u64; 2] {
    match result {
        Ok(milliseconds) => [words::DONE, milliseconds],
        Err(refused) => [words::ERROR, refused.number()],
    }
}

/// The status of one of our own calls that was refused.
#[must_use]
pub const fn status_of(refused: Refused) -> u64 {
    match refused {
        Refused::Level | Refused::MustStay => own::status::REFUSED,
        Refused::Action => own::status::ARGUMENT,
        Refused::NotArmed => own::status::UNAVAILABLE,
    }
}

/// X1 of the WFE channel's answer to whoever asks whether anybody is there: the version, and what there is for a caller of this
/// level.
#[must_use]
#[inline(always)]
pub const fn detected(policy: &Policy, level: ExceptionLevel) -> u64 {
    let mut value = words::VERSION;
    if may_set_watchdogs_up(policy, level) {
        value |= words::features::WATCHDOG | words::features::OWN_WATCHDOG;
    }
    if policy.vmware {
        value |= words::features::CALLS;
    }
    value
}

/// What there is besides the calls for a caller of this level, in the words of our own calls, on a host on which WFE traps or
/// not.
#[must_use]
pub const fn features(policy: &Policy, level: ExceptionLevel, wfe_traps: bool) -> u64 {
    let mut features = 0;
    if policy.wfe && wfe_traps {
        features |= own::features::WFE;
    }
    if may_set_watchdogs_up(policy, level) {
        features |= own::features::WATCHDOG | own::features::OWN_WATCHDOG;
    }
    features
}

/// A process must not disarm its kernel's watchdog, unless the site file lets it.
#[must_use]
#[inline(always)]
pub(crate) const fn may_set_watchdogs_up(policy: &Policy, level: ExceptionLevel) -> bool {
    matches!(level, ExceptionLevel::Kernel) || policy.watchdog_user
}
