//! A guest that makes no progress: when it may try its instruction again, and when it has tried often enough.
//!
//! Some exits end in "execute it again", as the guest will then go another way. What it tried is remembered and counted
//! (`cpu::retry`), so that none repeats for ever: after a number of equal tries it gets an exception. For RAM that stage 2 refused
//! ([`RefusedRam`]) there is one more way out. A VM whose pages are strictly either writable or executable may have an instruction that
//! needs a page to be both. Where it comes to the same place again and again, the page becomes both; also where it does other things
//! in between, if it stores into its own page.

use abi::bundle::Coherency;
use cpu::exit::{Fault, FaultKind, Wanted};
use cpu::retry::{To, Tries, Try, Turn, Verdict};
use stage2::Policy;
use units::{Ipa, PAGE_SIZE, Va};

use crate::mmio::Registers;

#[cfg(test)]
mod tests;

/// What the guest does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextTry {
    /// It executes its instruction again.
    Again,
    /// It has tried the same often enough, or may not have it: it gets the exception.
    Refused,
}

/// What a try is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// What the CPU says of it: FAR_EL2 and ESR_EL2.
    Access(Va, u64),
    /// The instruction, whatever of its RAM it was refused; and this is what it wants of the page there.
    Turn(Ipa, Wanted),
}

/// A guest with these registers is about to try again.
#[must_use]
pub fn count(tries: &mut Tries, registers: Registers<'_>, subject: Subject) -> NextTry {
    let Registers { x, pc, pstate } = registers;
    let (far, syndrome) = match subject {
        Subject::Access(far, syndrome) => (far.0, syndrome),
        Subject::Turn(..) => (0, 0),
    };
    let turn = match subject {
        Subject::Turn(at, Wanted::Write) => Some((at, To::Store)),
        Subject::Turn(at, Wanted::Fetch) => Some((at, To::Execute)),
        Subject::Turn(..) | Subject::Access(..) => None,
    };
    let of_turn = turn.map(|(at, to)| tries.turn(Turn { pc, page: at.0 / PAGE_SIZE, to }));
    match (tries.again(&Try { pc, far, syndrome, pstate, registers: *x }), of_turn) {
        (Verdict::Enough, _) | (_, Some(Verdict::Enough)) => NextTry::Refused,
        (Verdict::Again, _) => NextTry::Again,
    }
}

/// Whether a vCPU stays in its guest for the time being.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stay {
    /// As far as anybody knows.
    InGuest,
    /// It is to stand still or to leave, perhaps to wait for its memory, before it tries again.
    CalledOff,
}

/// Nothing came of the guest's instruction: it tries again, unless `count` says that it has tried often enough. A try before which
/// it stands still does not count.
#[must_use]
pub fn again(stay: Stay, count: impl FnOnce() -> NextTry) -> NextTry {
    match stay {
        Stay::InGuest => count(),
        Stay::CalledOff => NextTry::Again,
    }
}

/// What became of RAM that stage 2 refused the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowance {
    /// The guest may go on.
    Now,
    /// It could before: another vCPU's fault came first.
    Already,
    /// It may not.
    Never,
}

/// RAM that stage 2 refused the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusedRam {
    takes_turns: bool,
}

impl RefusedRam {
    /// With this ESR_EL2, in a VM of which the site file says `coherency`.
    ///
    /// An instruction that stores into its own page wants it writable and executable at once, and so may two vCPUs, each of which
    /// takes away what the other needs. What is not shown at all yet is no such turn: a restored guest may come to one instruction ten
    /// times before all that it needs is there, tables of pages first.
    #[must_use]
    #[inline(always)]
    pub fn new(coherency: Coherency, syndrome: u64) -> Self {
        let is_permission = || Fault::from_status(syndrome as u8).kind == FaultKind::Permission;
        Self { takes_turns: coherency == Coherency::Strict && is_permission() }
    }

    /// By which policy the guest gets it, if not by the VM's own: where nothing gets done by turns, of which `count` is told, the page
    /// becomes both.
    #[must_use]
    #[inline(always)]
    pub fn policy(self, count: impl FnOnce() -> NextTry) -> Option<Policy> {
        (self.takes_turns && count() == NextTry::Refused).then_some(Policy::OnDemand)
    }

    /// What the guest does when it has got this; `again` says that where nothing came of it. A turn has been counted already.
    #[must_use]
    #[inline(always)]
    pub fn after(self, allowance: Allowance, again: impl FnOnce() -> NextTry) -> NextTry {
        match allowance {
            Allowance::Now => NextTry::Again,
            Allowance::Already if self.takes_turns => NextTry::Again,
            Allowance::Already => again(),
            Allowance::Never => NextTry::Refused,
        }
    }
}
