//! What others see of a vCPU, and may do with it: its counts, its thread, and requests.
//!
//! The vCPU itself, its registers and list registers, belongs to a room above this one. Only its own thread touches those; others
//! set a request bit and interrupt it.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ::vm::stolen::{NotStolen, Stolen};
use services::stolen_time::STOLEN_OFFSET;
use spin::Once;
use units::{CpuId, Pa, VcpuId};

use crate::sched::{self, NOBODY, Thread};
use crate::vm::counters::Counters;

/// What others ask of a vCPU.
pub(crate) mod request {
    /// Its pending interrupts changed: choose list registers anew.
    pub(crate) const INTERRUPTS: u32 = 1;
    /// Leave the guest for good: the VM stops or starts afresh.
    pub(crate) const STOP: u32 = 2;
    /// A deadline that it set has passed.
    pub(crate) const TIMER: u32 = 4;
    /// Give the guest an SError.
    pub(crate) const SERROR: u32 = 8;
    /// Stand still until the VM goes on.
    pub(crate) const PAUSE: u32 = 16;
    /// Go on with the devices' unfinished work, which the guest pays for in this way.
    pub(crate) const DEVICES: u32 = 32;
}

/// What is saved of a vCPU's handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// What was stolen from it.
    pub(crate) stolen: Stolen,
    /// It is to be given an SError when it goes on.
    pub(crate) pending_error: bool,
}

/// What others see of a vCPU. Lives for ever, as the vCPU does that it is a part of.
pub struct VcpuHandle {
    /// Which one of its VM's it is.
    pub(crate) id: VcpuId,
    /// Exits by reason.
    pub(crate) counters: Counters,
    /// On which CPU its state is in registers; [`NOBODY`] while it is in memory. Its own thread's business.
    pub(crate) loaded_on: AtomicU32,
    /// It is on: its state belongs into the registers of the CPU that its thread runs on. Only its own thread changes that.
    pub(crate) resident: AtomicBool,
    /// What is asked of it ([`request`]).
    pub(crate) requests: AtomicU32,
    /// How often the GIC model has been brought up to date, for threads that wait for it.
    pub(crate) syncs: AtomicU32,
    /// [`NotStolen`], of what its thread has waited for a CPU.
    pub(crate) not_stolen: AtomicU64,
    /// [`Stolen`], as its record says.
    pub(crate) stolen: AtomicU64,
    thread: Once<&'static Thread>,
}

impl VcpuHandle {
    /// Of vCPU `id`, which has no thread yet.
    #[must_use]
    pub(crate) fn new(id: VcpuId) -> Self {
        Self {
            id,
            counters: Counters::new(),
            loaded_on: AtomicU32::new(NOBODY),
            resident: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            syncs: AtomicU32::new(0),
            not_stolen: AtomicU64::new(0),
            stolen: AtomicU64::new(0),
            thread: Once::new(),
        }
    }

    /// Gives it its thread; once.
    pub(crate) fn set_thread(&self, thread: &'static Thread) {
        self.thread.call_once(|| thread);
    }

    /// Changes whenever the GIC model has been brought up to date with its list registers.
    #[must_use]
    pub(crate) fn syncs(&self) -> u32 {
        // Pairs with the release at the end of `Vcpu::with_gic`.
        self.syncs.load(Ordering::Acquire)
    }

    /// Its thread, if there was memory for one.
    #[must_use]
    pub(crate) fn made_thread(&self) -> Option<&'static Thread> {
        self.thread.get().copied()
    }

    /// Its thread.
    #[must_use]
    pub fn thread(&self) -> &'static Thread {
        match self.thread.get() {
            Some(thread) => thread,
            None => unreachable!("a vCPU gets its thread when it is made"),
        }
    }

    /// Asks something of it ([`request`]), wherever it is.
    pub(crate) fn request(&self, what: u32) {
        sched::ask(self.thread(), &self.requests, what);
    }

    /// Whether something is asked of it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn has_requests(&self) -> bool {
        // Pairs with the addition in `sched::ask`: what was written before the bit was set is seen by whoever finds it.
        self.requests.load(Ordering::Acquire) != 0
    }

    /// Whether it is to leave its guest or to stand still, so that what it does on the guest's behalf has to end soon.
    #[must_use]
    pub(crate) fn is_called_off(&self) -> bool {
        // Pairs with the addition in `sched::ask`.
        self.requests.load(Ordering::Acquire) & (request::STOP | request::PAUSE) != 0
    }

    /// Whether it is to leave its guest.
    #[must_use]
    pub(crate) fn is_to_stop(&self) -> bool {
        // Pairs with the addition in `sched::ask`.
        self.requests.load(Ordering::Acquire) & request::STOP != 0
    }

    /// Whether it is on.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        self.resident.load(Ordering::Relaxed)
    }

    /// Whether its state is in some CPU's registers.
    #[must_use]
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded_on().is_some()
    }

    /// On which CPU its state is in registers.
    #[must_use]
    pub(crate) fn loaded_on(&self) -> Option<CpuId> {
        // Pairs with the releases of the vCPU's load and save.
        let cpu = self.loaded_on.load(Ordering::Acquire);
        (cpu != NOBODY).then_some(CpuId(cpu as u16))
    }

    /// The VM starts: nothing has been stolen from this vCPU yet, and its record, which is new, says so.
    pub(crate) fn forget_stolen_time(&self) {
        let nothing = Stolen::default();
        self.not_stolen.store(NotStolen::when(self.thread().wait_time(), nothing).0, Ordering::Relaxed);
        self.stolen.store(nothing.0, Ordering::Relaxed);
    }

    /// What of it goes into a saved VM. It stands still.
    #[must_use]
    pub(crate) fn save(&self) -> Kept {
        let Self {
            // The caller's.
            id: _,
            // Of this host's operator.
            counters: _,
            // It is nowhere, and is switched on wherever it goes on.
            loaded_on: _,
            resident: _,
            requests,
            // Only a change of it means something.
            syncs: _,
            // Of its thread.
            not_stolen: _,
            stolen,
            // This host's.
            thread: _,
        } = self;
        // Pairs with the addition in `sched::ask`. The other requests are made again where it goes on: it looks at its interrupts and
        // timers, its devices take up what is unfinished, and whether it stops or stands still is its VM's life.
        let requests = requests.load(Ordering::Acquire);
        Kept { stolen: Stolen(stolen.load(Ordering::Relaxed)), pending_error: requests & request::SERROR != 0 }
    }

    /// Makes its `stolen` time this, also in its `record`, where it is in its guest's `nanoseconds`. It stands still; from then on
    /// its own thread looks after both.
    pub(crate) fn set_stolen_time(&self, record: Option<Pa>, stolen: Stolen, nanoseconds: u64) {
        self.stolen.store(stolen.0, Ordering::Relaxed);
        if let Some(record) = record {
            hw::memory::write_word(Pa(record.0 + STOLEN_OFFSET), nanoseconds);
        }
    }

    /// Ticks of the counter for which it could have run since the VM's start and did not.
    #[must_use]
    pub(crate) fn stolen_time(&self) -> Stolen {
        Stolen(self.stolen.load(Ordering::Relaxed))
    }

    /// Forgets that it was to be given an SError.
    pub(crate) fn forget_serror(&self) {
        // Pairs with the swap in `Vcpu::heed`, which is this thread's own, and the addition in `sched::ask`.
        self.requests.fetch_and(!request::SERROR, Ordering::AcqRel);
    }

    /// Forgets what was asked before the VM started afresh.
    pub(crate) fn clear_requests(&self) {
        // Pairs with the looks of its thread, which has left the guest: nobody asks anything of a VM that is taken apart.
        self.requests.store(0, Ordering::Release);
    }
}
