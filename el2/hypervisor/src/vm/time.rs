//! Which of a guest's counters and timers show its time, and when its memory-mapped timers are polled.
//!
//! Such a timer is a device of the VM, not of a vCPU, but must be as exact as those of the CPU. So each vCPU treats the next deadline of
//! all of them as one of its own: the first vCPU that has a CPU at that time updates the timers' lines, on its own thread's time. A vCPU that is
//! switched off hands the deadline over to the others.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ::vm::GuestCounter;
use abi::bundle::{CpuCounters, TimeAway, VmConfig};
use clock::saved::{self, Away};
use clock::{GuestClock, GuestTicks, Rate, Standstill, VmClock};
use devices::Moment;
use hw::sysreg;
use machine::Timers;
use units::{Pa, Ticks, VcpuSet};

use crate::host::text::{Sentence, sentence};
use crate::host::{self, wall_clock};
use crate::vm::Vm;

/// `clock` as that of a VM whose life begins by what the site file says.
pub(super) fn vm_clock(config: &VmConfig<'_>, clock: GuestClock) -> VmClock {
    let away = match config.time.away {
        TimeAway::Advance => Away::Advance,
        TimeAway::Freeze => Away::Freeze,
    };
    VmClock::new(clock, config.pause_stops_time, away)
}

/// How far this host's CPUs can show `clock`.
fn counters(clock: &GuestClock) -> CpuCounters {
    if clock.hardware_offset().is_some() {
        CpuCounters::Native
    } else if host::get().controls.cnthctl_scaled != 0 {
        CpuCounters::Trapped
    } else {
        CpuCounters::VirtualUntrapped
    }
}

/// The counter of a VM that goes by `clock`, as this host shows it.
pub(super) fn counter(clock: &GuestClock) -> GuestCounter {
    GuestCounter { frequency: clock.frequency(), shown: counters(clock) }
}

/// Says so, if a guest that takes its clock from the virtual counter has a wrong one.
pub(super) fn warn_of_misleading(vm: &Vm, clock: &GuestClock) {
    if vm.config.time.source.misleads(counters(clock)) {
        log::warn!(
            "{}: this CPU cannot trap CNTVCT_EL0 (no FEAT_ECV), and time.source is \"cp15\": a kernel that reads it, as Linux does, \
             has the host's time by a wrong frequency, and only one that uses the physical counter and timer a right one; \
             time.source = \"mmio\" is right for Linux before 6.18",
            vm.config.name
        );
    }
}

/// Says so, if a guest that was restored, and was told of the CPU's timers where it began, has another time here than its virtual
/// counter shows, or had one where it was saved and that went by more quickly.
pub(super) fn warn_of_virtual_counter(vm: &Vm, clock: &GuestClock, saved: &saved::Clock) {
    if vm.plan.timers() == Timers::Memory {
        return;
    }
    if counters(clock) != CpuCounters::VirtualUntrapped {
        if saved.virtual_count > saved.count {
            log::warn!(
                "{}: its guest was saved on a CPU that could not trap CNTVCT_EL0 (no FEAT_ECV), where that ran ahead of its time; here it \
                 shows that time, and goes back by {} ticks: a kernel that reads it may hang",
                vm.config.name,
                saved.virtual_count - saved.count
            );
        }
    } else {
        log::warn!(
            "{}: this CPU cannot trap CNTVCT_EL0 (no FEAT_ECV), and its guest began at another frequency: a kernel that reads it, as \
             Linux does, has the host's time by a wrong frequency; the physical counter and timer are right",
            vm.config.name
        );
    }
}

impl Vm {
    /// What its guest's virtual counter shows, and what time it is, by one look at the host's counter.
    pub(super) fn moment(&self) -> Moment {
        let (now, host) = (Ticks(sysreg::cntpct_el0()), host::get());
        let clock = self.clock();
        let (GuestTicks(count), period) = clock.virtual_counter(now, host.counter, host.controls.cnthctl_scaled != 0);
        // Nothing, where its time passes as real time does: not to be computed at each start.
        let behind = if clock.rate() == Rate::REAL { 0 } else { clock.behind(now, Standstill::IsLeftOut) };
        let (time, step) = (wall_clock::at(now), Duration::from_micros(behind.unsigned_abs()));
        let time = if behind < 0 { time.saturating_add(step) } else { time.saturating_sub(step) };
        Moment { count, period, time, is_known: wall_clock::is_settable(), stood: clock.stood(now).0 }
    }

    /// Shows a word of the page that the guest sees of the device in `slot`, if it has one. Under that device's lock.
    pub(super) fn show_clock(&self, slot: usize, index: usize, word: u64) {
        match self.clock_pages.get(slot).map(|page| page.load(Ordering::Relaxed)) {
            None | Some(0) => {}
            Some(page) => hw::memory::publish_word(Pa(page), index, word),
        }
    }

    /// The guest gets a page of memory for each of its clock pages.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn build_clock_pages(&self) -> Result<(), Sentence> {
        for (row, place) in self.plan.rows().iter().zip(&self.clock_pages) {
            if row.device.shows_a_page() {
                let page = self.ram.lock().add_readable(row.start()).map_err(|error| sentence!("{error}"))?;
                place.store(page.0, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The pages of its clock are about to be given back. The devices are then told that the VM is off, each under its lock: behind
    /// that nobody has the pages any more.
    pub(super) fn forget_clock_pages(&self) {
        self.clock_pages.iter().for_each(|page| page.store(0, Ordering::Relaxed));
    }

    /// The operator has set the time of day.
    pub(crate) fn time_was_set(&self) {
        // One that waits for a state is told the time when that is in.
        let _ = self.deliver(|vm| vm.devices.time_was_set(vm));
    }

    /// Its memory-mapped timer in `slot` is to be looked at when the host's counter shows `at`, or not at all. Under that device's
    /// lock.
    pub(super) fn set_timer(&self, slot: usize, at: Option<Ticks>) {
        self.devices.set_deadline(slot, at, |next| {
            // Pairs with the acquire in `timer_at`.
            self.timer_at.store(next.map_or(u64::MAX, |at| at.0), Ordering::Release);
        });
    }

    /// When the next of its memory-mapped timers is to be looked at, if one is armed.
    #[inline(always)]
    #[must_use]
    pub(crate) fn timer_at(&self) -> Option<Ticks> {
        // Pairs with the release in `set_timer`: whoever finds a deadline finds the clock that it was computed by, or a later one.
        match self.timer_at.load(Ordering::Acquire) {
            u64::MAX => None,
            at => Some(Ticks(at)),
        }
    }

    /// Lets its memory-mapped timers move their lines, if the time of one has come. The vCPUs that are concerned.
    #[inline(always)]
    #[must_use]
    pub(crate) fn look_at_timer(&self, now: Ticks) -> VcpuSet {
        match self.timer_at() {
            Some(at) if at <= now => self.devices.advance_timers(self),
            _ => VcpuSet::EMPTY,
        }
    }
}
