//! What is stolen from a vCPU: for how long its thread could have run its guest, and waited for a CPU that others had (Arm DEN0057). By
//! the host's counter, in which threads' waits are measured.
//!
//! Not all that a thread waits is stolen. While the vCPU is off, or the VM is paused, the thread may be woken and wait for a CPU too, but
//! not to run its guest. Where a pause stops the guest's counter ([`clock::VmClock`]), a guest that was told of that would compute from
//! the two that it ran for less than no time.

/// Of what a thread has waited in all, how much was not stolen: `stolen` of it was.
#[must_use]
pub const fn not_stolen(waited: u64, stolen: u64) -> u64 {
    waited.wrapping_sub(stolen)
}

/// What is stolen from a vCPU whose thread has waited so much in all, of which so much was [`not_stolen`].
#[inline(always)]
#[must_use]
pub const fn stolen(waited: u64, not_stolen: u64) -> u64 {
    waited.wrapping_sub(not_stolen)
}

/// What a vCPU's thread waits while the vCPU stands still for a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PausedWait {
    begin: u64,
    end: u64,
}

impl PausedWait {
    /// The vCPU has left its guest, and its thread has waited so much in all.
    #[must_use]
    pub const fn begin(waited: u64) -> Self {
        Self { begin: waited, end: waited }
    }

    /// The thread finds that the pause lasts, and has waited so much until now. What it waits after it has found so for the last time
    /// is stolen: the guest could run.
    pub const fn lasts(&mut self, waited: u64) {
        self.end = waited;
    }

    /// How long the thread waited in the pause, of which nothing is stolen.
    #[must_use]
    pub const fn ticks(self) -> u64 {
        self.end.wrapping_sub(self.begin)
    }
}
