//! What is stolen from a vCPU: for how long its thread could have run its guest, and waited for a CPU that others had (Arm DEN0057). By
//! the host's counter, in which threads' waits are measured.
//!
//! Not all that a thread waits is stolen. While the vCPU is off, or the VM is paused, the thread may be woken and wait for a CPU too, but
//! not to run its guest. Where a pause stops the guest's counter ([`clock::VmClock`]), a guest that was told of that would compute from
//! the two that it ran for less than no time.
//!
//! What a thread has waited in all is a counter ([`Ticks`]), which advances while it waits. The three spans here are counted by it, each of
//! a type of its own, for all fit into one equation in which any two could change places:
//!
//! ```
//! use {units::Ticks, vm::stolen::{NotStolen, Stolen}};
//! let waited = Ticks(100);
//! assert_eq!(NotStolen::when(waited, Stolen(30)).stolen(waited.after(5)), Stolen(35));
//! ```
//!
//! ```compile_fail,E0308
//! use {units::Ticks, vm::stolen::{NotStolen, Stolen}};
//! let _ = NotStolen::when(Stolen(30), Ticks(100));
//! ```
//!
//! ```compile_fail,E0308
//! use {units::Ticks, vm::stolen::{NotStolen, Stolen}};
//! let _ = NotStolen::when(Ticks(100), NotStolen::when(Ticks(100), Stolen(30)));
//! ```

use units::Ticks;

/// Ticks that were stolen from a vCPU, as its record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stolen(pub u64);

/// Ticks that a vCPU's thread has waited and that were not stolen from the vCPU. Wraps: more may have been stolen, elsewhere, than this
/// thread has waited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NotStolen(pub u64);

impl NotStolen {
    /// Of what a thread has `waited` in all: all but what was `stolen`.
    #[must_use]
    pub const fn when(waited: Ticks, stolen: Stolen) -> Self {
        Self(waited.0.wrapping_sub(stolen.0))
    }

    /// What is stolen from a vCPU whose thread has `waited` so much in all, of which so much was not.
    #[inline(always)]
    #[must_use]
    pub const fn stolen(self, waited: Ticks) -> Stolen {
        Stolen(waited.0.wrapping_sub(self.0))
    }
}

/// What a vCPU's thread waits while the vCPU stands still for a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PausedWait {
    begin: Ticks,
    end: Ticks,
}

impl PausedWait {
    /// The vCPU has left its guest, and its thread has waited so much in all.
    #[must_use]
    pub const fn begin(waited: Ticks) -> Self {
        Self { begin: waited, end: waited }
    }

    /// The thread finds that the pause lasts, and has waited so much until now. What it waits after it has found so for the last time
    /// is stolen: the guest could run.
    pub const fn lasts(&mut self, waited: Ticks) {
        self.end = waited;
    }

    /// When nothing was stolen, as its thread's waits go: it had waited `before` in all when it was asked to stand still, and waited in
    /// the pause besides. What it waits beyond that is stolen.
    #[must_use]
    pub const fn over(self, before: Ticks) -> Ticks {
        before.after(self.end.since(self.begin))
    }
}

#[cfg(test)]
mod tests {
    use super::{NotStolen, PausedWait, Stolen};
    use units::Ticks;

    /// It has waited 100, of which 30 were stolen, and comes to a host where it has waited less than was stolen.
    #[test]
    fn what_is_waited_from_now_on_is_stolen_besides() {
        for waited in [100, 10] {
            let kept = NotStolen::when(Ticks(waited), Stolen(30));
            assert_eq!([0, 5].map(|more| kept.stolen(Ticks(waited + more))), [Stolen(30), Stolen(35)]);
        }
    }

    /// It is asked to stand still when it has waited 100, waits 7 until it does, and until the pause was found to last for the last time
    /// 20 and 5 more.
    #[test]
    fn what_is_waited_in_a_pause_is_not_stolen() {
        let begun = || PausedWait::begin(Ticks(107));
        assert_eq!(begun().over(Ticks(100)), Ticks(100), "a pause that nobody found lasting");
        let mut wait = begun();
        wait.lasts(Ticks(127));
        wait.lasts(Ticks(132));
        assert_eq!(wait.over(Ticks(100)), Ticks(125));
    }
}
