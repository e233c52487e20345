//! What happens on an access that stage 2 refused: RAM is mapped, a device answers, or the guest gets an exception.
//!
//! The CPU says where the access went, or the guest's own tables have to be walked. Between the access and that walk
//! the guest may have changed its tables: then it tries [again](Course::Again), and the retry is counted
//! (`cpu::retry`).

use cpu::exit::{DataAbort, FaultKind, InstructionAbort};
use cpu::inject::AbortKind;
use cpu::pstate;
use cpu::translation::Rights;
use units::{Direction, Ipa, Va};

use crate::mmio::{Guest, Registers};

#[cfg(test)]
mod tests;

/// What an access leads to that stage 2 refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Course {
    /// The guest gets this abort, because what is there does not answer, or nothing is.
    Nobody(AbortKind),
    /// The guest gets this abort, because what is there cannot do that. It is the guest's own fault, and trying again would not
    /// help.
    Unable(AbortKind),
    /// The guest tries again: its translation changed meanwhile, and it will find out by itself.
    Again,
    /// RAM is there, which is to be shown, or made executable or writable, if it may be.
    Ram(Ipa),
    /// It is done without anybody doing anything: the maintenance of caches for what is in none.
    Done,
    /// A device is there, or nobody.
    Elsewhere(Ipa),
}

/// What a fetch of an instruction leads to that stage 2 refused. No device has instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// The guest gets this abort: nothing is there that could be executed.
    Nobody(AbortKind),
    /// The guest tries again, as in [`Course::Again`].
    Again,
    /// RAM is there, as in [`Course::Ram`].
    Ram(Ipa),
}

/// What a data access at `far` leads to.
#[must_use]
#[inline(always)]
pub fn data(guest: &impl Guest, registers: Registers<'_>, far: Va, abort: &DataAbort) -> Course {
    match abort.fault.kind {
        _ if abort.fault.is_external() => return Course::Nobody(AbortKind::External),
        FaultKind::Alignment => return Course::Unable(AbortKind::Alignment),
        FaultKind::UnsupportedAtomic => return Course::Unable(AbortKind::UnsupportedAtomic),
        _ => {}
    }
    let Some(ipa) = abort.ipa.or_else(|| place_of(guest, registers, far, abort)) else { return Course::Again };
    if guest.is_ram(ipa) {
        Course::Ram(ipa)
    } else if abort.on_table_walk {
        Course::Nobody(guest.refused_walk(far, ipa))
    } else if abort.cache_maintenance {
        Course::Done
    } else {
        Course::Elsewhere(ipa)
    }
}

/// Where the guest's access at `far` went, which the CPU does not say if it was permission that stage 2 refused. The guest's
/// stage 1 has agreed to the access already, so what PSTATE.PAN thinks of it, or would if it was an unprivileged one, is
/// left aside.
fn place_of(guest: &impl Guest, registers: Registers<'_>, far: Va, abort: &DataAbort) -> Option<Ipa> {
    let rights = if pstate::is_user(registers.pstate) { Rights::User } else { Rights::Kernel };
    // Most cache maintenance asks for no more than to read.
    let direction = if abort.cache_maintenance { Direction::Read } else { abort.direction };
    guest.translate(far, rights, direction).ok().map(|(ipa, _)| ipa)
}

/// What a fetch of the instruction at `far` leads to.
#[must_use]
#[inline(always)]
pub fn fetch(guest: &impl Guest, far: Va, abort: &InstructionAbort) -> Fetch {
    let mut place = abort.ipa;
    if abort.fault.kind == FaultKind::Permission && place.is_none() {
        // The CPU does not say where. Whatever may be executed EL1 may read, if PSTATE.PAN is left aside.
        let Ok((ipa, _)) = guest.translate(far, Rights::Kernel, Direction::Read) else { return Fetch::Again };
        place = Some(ipa);
    }
    if matches!(abort.fault.kind, FaultKind::Translation | FaultKind::Permission)
        && let Some(ipa) = place
        && guest.is_ram(ipa)
    {
        return Fetch::Ram(ipa);
    }
    Fetch::Nobody(match abort.ipa {
        Some(table) if abort.on_table_walk => guest.refused_walk(far, table),
        _ => AbortKind::External,
    })
}
