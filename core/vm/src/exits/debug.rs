//! What a trapped access to a debug register leads to (`core/cpu/src/debug.rs` says which trap).
//!
//! Breakpoints, watchpoints and single step are the guest's own. A CPU with fine-grained traps lets it reach their registers once
//! it has used one: the first access loads them, and is made again. On other CPUs each access to a debug register traps, and is
//! made on the guest's behalf, since the registers that must not be reached trap only together with them.

use cpu::debug::{CLAIM_TAGS, DebugBank, DebugPolicy, MDCCINT_BITS};
use cpu::sysreg::DebugRegister;
use units::Direction;

#[cfg(test)]
mod tests;

/// What a vCPU's debug registers are, as far as that decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DebugState {
    /// How they are kept from the guest.
    pub policy: DebugPolicy,
    /// MDSCR_EL1 as the guest sees it.
    pub mdscr: u64,
    /// MDCCINT_EL1 as the guest sees it.
    pub mdccint: u64,
    /// The claim tags that are set.
    pub claim: u64,
    /// How many breakpoints the guest has.
    pub breakpoints: u8,
    /// How many watchpoints.
    pub watchpoints: u8,
}

/// What a guest writes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugSink {
    /// MDSCR_EL1 as the guest sees it.
    Mdscr(u64),
    /// MDCCINT_EL1 as the guest sees it.
    Mdccint(u64),
    /// The claim tags that are set.
    Claim(u64),
    /// The breakpoint or watchpoint register with this number.
    Point(DebugBank, u8, u64),
}

/// What an access leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// The registers are loaded, and the access is made again: it does not trap then.
    Load,
    /// It reads this.
    Shown(u64),
    /// It reads the breakpoint or watchpoint register with this number.
    Read(DebugBank, u8),
    /// It writes this.
    Write(DebugSink),
    /// The register does not exist for the guest.
    Undefined,
}

/// The guest reads `register`, or writes `value` to it.
pub(super) fn access(state: &DebugState, register: DebugRegister, direction: Direction, value: u64) -> Way {
    let (shown, sink) = match register {
        DebugRegister::Mdscr if state.policy != DebugPolicy::Natural => (state.mdscr, DebugSink::Mdscr(value)),
        DebugRegister::Mdscr => return Way::Load,
        DebugRegister::Mdccint => (state.mdccint, DebugSink::Mdccint(value & MDCCINT_BITS)),
        // It says which tags there are; the other one says which are set.
        DebugRegister::ClaimSet => (CLAIM_TAGS, DebugSink::Claim(state.claim | value & CLAIM_TAGS)),
        DebugRegister::ClaimClear => (state.claim, DebugSink::Claim(state.claim & !value)),
        DebugRegister::Point(bank, number) => return point(state, bank, number, direction, value),
    };
    match direction {
        Direction::Read => Way::Shown(shown),
        Direction::Write => Way::Write(sink),
    }
}

fn point(state: &DebugState, bank: DebugBank, number: u8, direction: Direction, value: u64) -> Way {
    if state.policy != DebugPolicy::TrapAll {
        return Way::Load;
    }
    let count = match bank {
        DebugBank::BreakpointValue | DebugBank::BreakpointControl => state.breakpoints,
        DebugBank::WatchpointValue | DebugBank::WatchpointControl => state.watchpoints,
    };
    if number >= count {
        return Way::Undefined;
    }
    match direction {
        Direction::Read => Way::Read(bank, number),
        Direction::Write => Way::Write(DebugSink::Point(bank, number, value)),
    }
}
