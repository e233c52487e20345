//! Translating a guest's address by the guest's own stage 1.
//!
//! The CPU translates, by an AT instruction with the rights of the access in question (`cpu::translation`), so that
//! TLBs, dirty flags and all features that the guest has enabled apply as they do for the guest. Only the level at
//! which a walk left the guest's RAM must be found by walking its tables here (`cpu::table_walk`).

use cpu::Direction;
use cpu::inject::AbortKind;
use cpu::table_walk::{self, Regime};
use cpu::translation::{Memory, Outcome, Rights, outcome};
use hw::sysreg;
use hw::tlb::{Stage1, translate_stage1};
use units::{Ipa, Va};

use crate::host;
use crate::vcpu::Vcpu;
use crate::vm::guest_memory::{Missing, RamError, Use};

/// What the guest is told when the walk of its own tables for `va` came to `table`, where no RAM is.
pub(crate) fn refused_walk(vcpu: &'static Vcpu, va: Va, table: Ipa) -> AbortKind {
    let level = table_walk::refused_level(&regime(), va, table, |at| descriptor(vcpu, at));
    level.map_or(AbortKind::External, AbortKind::ExternalOnWalk)
}

/// The loaded vCPU's translation regime.
fn regime() -> Regime {
    Regime {
        tcr_el1: sysreg::tcr_el1::read(),
        ttbr0_el1: sysreg::ttbr0_el1::read(),
        ttbr1_el1: sysreg::ttbr1_el1::read(),
        sctlr_el1: sysreg::sctlr_el1::read(),
    }
}

/// The bytes of a descriptor in the guest's RAM, which becomes ready as if the guest had read it.
fn descriptor(vcpu: &'static Vcpu, at: Ipa) -> Option<[u8; 8]> {
    let mut bytes = [0; 8];
    read_ram(vcpu, at, &mut bytes).map(|()| bytes)
}

/// Reads the guest's RAM within a page, which becomes ready piece by piece, as if the guest had touched it; nothing, if it has to be waited
/// for.
pub(crate) fn read_ram(vcpu: &'static Vcpu, at: Ipa, into: &mut [u8]) -> Option<()> {
    touch_and_read(vcpu, at, into).ok()
}

/// See [`read_ram`].
fn touch_and_read(vcpu: &'static Vcpu, at: Ipa, into: &mut [u8]) -> Result<(), RamError> {
    if !vcpu.vm.plan.ram().contains(at) {
        return Err(RamError::Outside(at));
    }
    // Before the lock, under which no memory is made ready. What is still to come then is refused by the read, and the guest makes its
    // access again.
    vcpu.vm.touch(Missing { at, what: Use::Look });
    vcpu.vm.ram.lock().read(at, into)
}

/// Where the guest's `va` is for an access with these rights, and what memory the guest says it is, by its own tables.
///
/// # Errors
/// See [`Refused`].
pub(crate) fn translate(
    vcpu: &'static Vcpu,
    va: Va,
    rights: Rights,
    direction: Direction,
) -> Result<(Ipa, Memory), Refused> {
    translate_by(va, rights, direction, |at, bytes| touch_and_read(vcpu, at, bytes))
}

/// Why nothing is said about where an address is.
pub(crate) enum Refused {
    /// The guest's own tables have this abort for the access.
    Abort(AbortKind),
    /// A table is in memory that has to be made ready first, or to be waited for.
    NotReady(Missing),
}

/// As [`translate`], for callers that hold a lock: no memory is made ready.
///
/// # Errors
/// See [`Refused`].
pub(crate) fn translate_shown(
    vcpu: &'static Vcpu,
    va: Va,
    rights: Rights,
    direction: Direction,
) -> Result<(Ipa, Memory), Refused> {
    translate_by(va, rights, direction, |at, bytes| vcpu.vm.ram.lock().read(at, bytes))
}

/// Where `va` is, for which `read` gives the bytes of descriptors that the CPU does not find.
fn translate_by(
    va: Va,
    rights: Rights,
    direction: Direction,
    mut read: impl FnMut(Ipa, &mut [u8; 8]) -> Result<(), RamError>,
) -> Result<(Ipa, Memory), Refused> {
    match look_up(va, rights, direction) {
        Outcome::Place { ipa, memory } => Ok((ipa, memory)),
        Outcome::Refused(kind) => Err(Refused::Abort(kind)),
        Outcome::NoTable => {
            let mut missing = None;
            let result = without_table(va, rights, direction, |at| {
                let mut bytes = [0; 8];
                let result = read(at, &mut bytes);
                if let Err(RamError::NotReady(place)) = result {
                    missing = Some(place);
                }
                result.ok().map(|()| bytes)
            });
            result.map_err(|kind| missing.map_or(Refused::Abort(kind), Refused::NotReady))
        }
    }
}

/// [`translate`], when stage 2 does not map a table: there is no memory, or memory that the guest has not touched yet, which
/// following its tables by `read` makes ready.
#[cold]
fn without_table(
    va: Va,
    rights: Rights,
    direction: Direction,
    read: impl FnMut(Ipa) -> Option<[u8; 8]>,
) -> Result<(Ipa, Memory), AbortKind> {
    if let Some(level) = table_walk::level_without_memory(&regime(), va, read) {
        return Err(AbortKind::ExternalOnWalk(level));
    }
    // The CPU has the last word: another vCPU may have changed the tables since, and following them here made memory ready, and no more. If
    // it finds none again, the guest is changing them.
    match look_up(va, rights, direction) {
        Outcome::Place { ipa, memory } => Ok((ipa, memory)),
        Outcome::Refused(kind) => Err(kind),
        Outcome::NoTable => Err(AbortKind::External),
    }
}

/// Whether what lies at `va`, by the guest's tables, is Normal memory, or whether that cannot be told at once.
#[inline(always)]
#[must_use]
pub(crate) fn may_be_normal(va: Va) -> bool {
    !matches!(
        look_up(va, Rights::Kernel, Direction::Read),
        Outcome::Refused(_) | Outcome::Place { memory: Memory::Device, .. }
    )
}

#[inline(always)]
fn look_up(va: Va, rights: Rights, direction: Direction) -> Outcome {
    let ask = |access| outcome(translate_stage1(va.0, access), va);
    let as_kernel = match direction {
        Direction::Read => Stage1::KernelRead,
        Direction::Write => Stage1::KernelWrite,
    };
    match (rights, direction) {
        (Rights::User, Direction::Read) => ask(Stage1::UserRead),
        (Rights::User, Direction::Write) => ask(Stage1::UserWrite),
        (Rights::Kernel, _) => ask(as_kernel),
        (Rights::KernelAlone, Direction::Read) if host::get().translates_alone => ask(Stage1::KernelAloneRead),
        (Rights::KernelAlone, Direction::Write) if host::get().translates_alone => ask(Stage1::KernelAloneWrite),
        // FEAT_PAN without FEAT_PAN2, as CPUs of Armv8.1 have it.
        (Rights::KernelAlone, _) => ask(as_kernel).unless_for_user(|| ask(Stage1::UserRead)),
    }
}
