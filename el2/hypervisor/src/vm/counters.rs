//! Counting exits, always; timing them when asked to.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use ::vm::exits::Reason;
use stage2::Effects;

use crate::vm::Vm;
use crate::vm::guest_memory::Code;

static TIMED: AtomicBool = AtomicBool::new(false);

/// Counts exits' durations from now on, or no longer.
pub(crate) fn set_timed(timed: bool) {
    TIMED.store(timed, Ordering::Relaxed);
}

/// Whether exits are timed.
#[inline(always)]
pub(crate) fn is_timed() -> bool {
    TIMED.load(Ordering::Relaxed)
}

/// One vCPU's counts. Only its own thread writes; anybody reads.
pub(crate) struct Counters {
    count: [AtomicU64; Reason::COUNT],
    ticks: [AtomicU64; Reason::COUNT],
}

impl Counters {
    /// All zero.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self {
            count: [const { AtomicU64::new(0) }; Reason::COUNT],
            ticks: [const { AtomicU64::new(0) }; Reason::COUNT],
        }
    }

    /// One more exit for `reason`. A load and a store: there is one writer.
    #[inline(always)]
    pub(crate) fn count(&self, reason: Reason) {
        let counter = &self.count[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many exits there were for reason `number`.
    #[must_use]
    pub(crate) fn exits(&self, number: usize) -> u64 {
        self.count.get(number).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many exits there were for whatever reason.
    #[must_use]
    pub(crate) fn all_exits(&self) -> u64 {
        self.count.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How many ticks of the counter were spent on them, while exits were timed.
    #[must_use]
    pub(crate) fn ticks(&self, number: usize) -> u64 {
        self.ticks.get(number).map_or(0, |ticks| ticks.load(Ordering::Relaxed))
    }

    /// `ticks` were spent on an exit for `reason`.
    pub(crate) fn add_ticks(&self, reason: Reason, ticks: u64) {
        let counter = &self.ticks[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(ticks), Ordering::Relaxed);
    }
}

/// What is counted of a VM beside its exits, by numbers behind those of the exits.
const OTHERS: [&str; 9] = [
    "pages-mapped",
    "pages-executable",
    "pages-made-executable",
    "pages-taken-back",
    "lines-cleaned",
    "caches-emptied",
    "blocks-split",
    "blocks-joined",
    "blocks-copied",
];

/// Statistic `number` of a VM: its name, the sum over the VM's vCPUs, and how many statistics there are.
#[must_use]
pub(crate) fn of_vm(vm: &Vm, number: usize) -> Option<(&'static str, u64, u32)> {
    let count = (Reason::COUNT + OTHERS.len()) as u32;
    if let Some(name) = Reason::NAMES.get(number) {
        return Some((name, vm.vcpus().iter().map(|vcpu| vcpu.counters.exits(number)).sum(), count));
    }
    let name = OTHERS.get(number - Reason::COUNT)?;
    let Code { done: Effects { granted, taken, lines, invalidations, splits, promotions }, mapped, executable, copied } =
        vm.ram.lock().code();
    let values = [mapped, executable, granted, taken, lines, invalidations, splits, promotions, copied];
    Some((name, *values.get(number - Reason::COUNT)?, count))
}
