//! A vCPU's time: its copy of the VM's clock, and its two timers.
//!
//! Where the guest's counter has the frequency of the host's, and its time passes as real time does, the virtual counter and
//! timer are the hardware's while the vCPU is loaded, by CNTVOFF_EL2. The physical timer always traps and is emulated. The
//! physical counter shows the same count as the virtual one: by CNTPOFF_EL2 where the CPU has it (FEAT_ECV), else it traps and
//! is read here. KVM lets a guest read the host's count until somebody asks for an offset, and traps it then; here every
//! guest's time begins with the guest.
//!
//! Where the guest's time differs, the physical counter always traps, and with FEAT_ECV the virtual counter and timer do as well,
//! so that both counters show one time. Without FEAT_ECV nothing traps those: they are not in the guest's device tree, and a
//! guest that uses them nevertheless sees the host's speed, from the guest's start on.
//!
//! The copy of the clock is taken when the vCPU is switched on, and again after a pause: the VM's own changes only while all of
//! its vCPUs are out of the guest. So the short path of an exit reads it with no lock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use clock::{Counter, CounterScale, EmulatedTimer, GuestClock, GuestTicks, saved};
use cpu::Direction;
use cpu::controls::CNTHCTL_EL1TVCT;
use cpu::sysreg::{Timer, TimerRegister};
use hw::state::{Controls, TimeControls};
use hw::sysreg;
use units::Ticks;

use super::Vcpu;
use crate::host;
use crate::sched;
use crate::vm::handle::request;

/// The clock that a vCPU goes by, and those of its timers that are emulated.
#[derive(Clone, Copy)]
pub(super) struct Time {
    clock: GuestClock,
    physical: EmulatedTimer,
    /// The EL1 virtual timer, of a guest of which it traps; off otherwise, and the hardware's is used.
    virtual_: EmulatedTimer,
    traps_virtual: bool,
}

/// What is saved of it.
pub(super) struct SavedTimes {
    /// The physical timer.
    pub(super) physical: saved::Timer,
    /// CNTV_CTL_EL0 and CNTV_CVAL_EL0, where they trap. They are saved in the place of the hardware's, so that a host on which they
    /// do not trap goes on with them, and the other way round.
    pub(super) trapped_virtual: Option<[u64; 2]>,
}

impl Time {
    /// The time of a vCPU that was just switched on.
    pub(super) fn new(clock: GuestClock) -> Self {
        let off = EmulatedTimer::default();
        let mut time = Self { clock, physical: off, virtual_: off, traps_virtual: false };
        time.adopt(clock);
        time
    }

    fn adopt(&mut self, clock: GuestClock) {
        self.clock = clock;
        self.traps_virtual = clock.hardware_offset().is_none() && host::get().controls.cnthctl_scaled != 0;
    }

    /// Takes out what is saved of it.
    pub(super) fn save(&self) -> SavedTimes {
        // The clock is a copy of the VM's, which is saved there; whether the virtual timer traps follows from it and from the CPU.
        let Self { clock: _, physical, virtual_, traps_virtual } = self;
        let saved::Timer { version: _, control, compare } = virtual_.save();
        SavedTimes { physical: physical.save(), trapped_virtual: traps_virtual.then_some([control, compare]) }
    }

    /// Puts a physical timer in. The clock is adopted when the vCPU goes on.
    pub(super) fn restore_physical(&mut self, saved: &saved::Timer) -> Result<(), saved::Refused> {
        self.physical = EmulatedTimer::restore(saved)?;
        Ok(())
    }

    /// Whether the virtual timer is emulated.
    pub(super) fn traps_virtual(&self) -> bool {
        self.traps_virtual
    }

    /// Puts CNTV_CTL_EL0 and CNTV_CVAL_EL0 in, where they trap.
    pub(super) fn restore_virtual(&mut self, [control, compare]: [u64; 2]) {
        self.virtual_ = EmulatedTimer::from_registers(control, compare);
    }

    /// CNTVOFF_EL2, and CNTPOFF_EL2 where it exists and is used.
    pub(super) fn offset(&self) -> u64 {
        self.clock.virtual_offset().0
    }

    /// Whether a timer's line is up, of those that are emulated.
    pub(super) fn is_asserted(&self, now: Ticks) -> bool {
        self.physical.is_asserted(&self.clock, now) || self.virtual_.is_asserted(&self.clock, now)
    }

    /// When the next line of those timers goes up that is not up at `now`.
    fn next_deadline(&self, now: Ticks) -> Option<Ticks> {
        let physical = next_of(&self.physical, &self.clock, now);
        if !self.traps_virtual {
            return physical;
        }
        earlier(physical, next_of(&self.virtual_, &self.clock, now))
    }

    /// When the next line of those timers goes up; `now` if one is up.
    fn deadline(&self, now: Ticks) -> Option<Ticks> {
        let physical = self.physical.deadline(&self.clock, now);
        if !self.traps_virtual {
            return physical;
        }
        earlier(physical, self.virtual_.deadline(&self.clock, now))
    }
}

/// When the line of `timer` goes up. Nothing more comes of one that is up, until the guest writes a register.
fn next_of(timer: &EmulatedTimer, clock: &GuestClock, now: Ticks) -> Option<Ticks> {
    if timer.is_asserted(clock, now) { None } else { timer.deadline(clock, now) }
}

fn earlier(one: Option<Ticks>, other: Option<Ticks>) -> Option<Ticks> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Whether a guest that goes by `clock` needs other controls than all others, and which.
pub(super) fn scaled_controls(clock: &GuestClock) -> Option<TimeControls> {
    if clock.hardware_offset().is_some() {
        return None;
    }
    let controls = &host::get().controls;
    let cntfrq = if controls.owns_frequency { u32::try_from(clock.frequency().0).ok() } else { None };
    Some(TimeControls { cnthctl: controls.cnthctl_scaled, cntfrq })
}

/// Whether the virtual counter and timer trap for the guest that has these controls.
pub(super) fn traps_virtual(controls: &Controls) -> bool {
    controls.scaled_time.is_some_and(|time| time.cnthctl & CNTHCTL_EL1TVCT != 0)
}

/// What the counter shows, for the short path. The four words belong together, and are written while nobody reads them: by the vCPU's own
/// thread before its guest is entered, and by whoever restores the VM while that thread sleeps, which the lock of the VM's life orders.
pub(super) struct View {
    offset: AtomicU64,
    multiplier: AtomicU64,
    ahead: AtomicU64,
    shift: AtomicU32,
}

impl View {
    pub(super) const fn new() -> Self {
        Self {
            offset: AtomicU64::new(0),
            multiplier: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            shift: AtomicU32::new(0),
        }
    }

    fn show(&self, clock: &GuestClock) {
        let Counter { offset, scale, ahead } = clock.counter();
        let (multiplier, shift) = scale.parts();
        self.offset.store(offset.0, Ordering::Relaxed);
        self.multiplier.store(multiplier, Ordering::Relaxed);
        self.ahead.store(ahead, Ordering::Relaxed);
        self.shift.store(shift, Ordering::Relaxed);
    }

    #[inline(always)]
    fn counter(&self) -> Counter {
        let (multiplier, shift) = (self.multiplier.load(Ordering::Relaxed), self.shift.load(Ordering::Relaxed));
        let scale = CounterScale::from_parts(multiplier, shift & 63).unwrap_or(CounterScale::IDENTITY);
        Counter { offset: Ticks(self.offset.load(Ordering::Relaxed)), scale, ahead: self.ahead.load(Ordering::Relaxed) }
    }
}

impl Vcpu {
    /// Goes by the VM's clock as it is now. It is not loaded: the offset goes into the registers with its state, and the guest would see
    /// the old count in those that do not trap, and the new one in those that do.
    pub(super) fn adopt_clock(&self) {
        let mut time = self.time.lock();
        time.adopt(self.vm.clock());
        self.state.lock().set_time(time.offset(), scaled_controls(&time.clock));
        self.view.show(&time.clock);
    }

    /// The time of a vCPU that is switched on.
    pub(super) fn reset_time(&self) {
        *self.time.lock() = Time::new(self.vm.clock());
        self.adopt_clock();
    }

    /// What the counters that trap show. The exit has put the read of the host's counter behind what the guest did before.
    #[inline(always)]
    #[must_use]
    pub(crate) fn count(&self) -> u64 {
        self.view.counter().guest(Ticks(sysreg::cntpct_el0())).0
    }

    /// The guest reads or writes a register of a timer that traps; what it reads. The vCPU is loaded.
    pub(crate) fn access_timer(
        &self,
        timer: Timer,
        register: TimerRegister,
        direction: Direction,
        value: u64,
    ) -> Option<u64> {
        let now = Ticks(sysreg::cntpct_el0());
        let mut time = self.time.lock();
        let Time { clock, physical, virtual_, .. } = &mut *time;
        let timer = match timer {
            Timer::Physical => physical,
            Timer::Virtual => virtual_,
        };
        if direction == Direction::Read {
            return Some(match register {
                TimerRegister::Control => timer.read_control(clock, now),
                TimerRegister::CompareValue => timer.read_compare(),
                TimerRegister::TimerValue => timer.read_value(clock, now),
            });
        }
        match register {
            TimerRegister::Control => timer.write_control(value),
            TimerRegister::CompareValue => timer.write_compare(value),
            TimerRegister::TimerValue => timer.write_value(value, clock, now),
        }
        // `update_timers` takes it again.
        drop(time);
        self.update_timers();
        None
    }

    /// The lines of the timers that are emulated follow their registers. It is loaded.
    pub(super) fn update_timers(&self) {
        self.update_timers_at(Ticks(sysreg::cntpct_el0()));
    }

    /// The same, as they are at `now`.
    pub(super) fn update_timers_at(&self, now: Ticks) {
        // Before the alarm is set below: its deadline is over then, and the next one is known. For one that has passed, the alarm would go
        // off at once, and again and again.
        let shared = self.vm.look_at_timer(now);
        // A copy, so that the lock is not held while the GIC model's is. Only this thread changes the timers while the vCPU is loaded.
        let time = *self.time.lock();
        let line = |timer: EmulatedTimer| {
            if timer.is_asserted(&time.clock, now) { vgic::Line::High } else { vgic::Line::Low }
        };
        let (physical, virtual_) = (line(time.physical), line(time.virtual_));
        let interrupts = self.vm.plan.timer_interrupts();
        self.with_gic(|gic| {
            let concerned = shared.union(gic.set_ppi_level(self.id, interrupts.physical, physical));
            if time.traps_virtual {
                concerned.union(gic.set_ppi_level(self.id, interrupts.virtual_, virtual_))
            } else {
                concerned
            }
        });
        // Nothing more comes of a line that is up, until the guest writes a register.
        let pending = |timer: EmulatedTimer, line| match line {
            vgic::Line::High => None,
            vgic::Line::Low => timer.deadline(&time.clock, now),
        };
        // By the same `now` as the lines: whatever comes due from then on has an alarm, if one in the past, which goes off at once.
        let own = earlier(pending(time.physical, physical), pending(time.virtual_, virtual_));
        // There is one alarm for all of them: each time it is set, it is for the first, or the others' would be forgotten.
        if let Some(deadline) = earlier(own, self.vm.timer_at()) {
            sched::set_alarm(deadline);
        }
    }

    /// The VM's memory-mapped timer has another deadline, by what this vCPU wrote: it is asked to look at its timers then.
    pub(crate) fn follow_timer(&self) {
        let own = self.time.lock().deadline(Ticks(sysreg::cntpct_el0()));
        // As in `update_timers`: its own deadline keeps its alarm.
        if let Some(deadline) = earlier(own, self.vm.timer_at()) {
            sched::set_alarm(deadline);
        }
    }

    /// Whether the time of one of its timers has come, or that of the VM's memory-mapped one. It is loaded.
    pub(super) fn is_timer_due(&self, now: Ticks) -> bool {
        let is_emulated = self.time.lock().is_asserted(now);
        is_emulated || self.vm.timer_at().is_some_and(|at| at <= now) || self.hardware_timer_is_up(now)
    }

    /// It is switched off: the others look after the memory-mapped timer, of whose deadline they may not know.
    pub(super) fn hand_timer_over(&self) {
        if self.vm.timer_at().is_some() {
            // All of them: whichever is switched off at the same moment hands over, too, and of those that stay on one has been asked.
            for other in self.vm.vcpus().iter().filter(|other| other.id != self.id) {
                other.request(request::TIMER);
            }
        }
    }

    /// Whether the virtual timer's line is up at `now`, where it is the hardware's. It is loaded.
    pub(super) fn hardware_timer_is_up(&self, now: Ticks) -> bool {
        let time = self.time.lock();
        !time.traps_virtual && hardware_timer().is_asserted(&time.clock.unscaled(), now)
    }

    /// The host count at which one of its timers fires next that have not by `now`, or its counter shows `until`. It is loaded.
    pub(super) fn next_deadline(&self, now: Ticks, until: Option<GuestTicks>) -> Option<Ticks> {
        let time = self.time.lock();
        let mut timers = time.next_deadline(now);
        if !time.traps_virtual {
            timers = earlier(timers, next_of(&hardware_timer(), &time.clock.unscaled(), now));
        }
        let until = until.and_then(|count| time.clock.host(count, now));
        earlier(earlier(timers, self.vm.timer_at()), until)
    }
}

/// The virtual timer of the vCPU that is loaded here.
fn hardware_timer() -> EmulatedTimer {
    EmulatedTimer::from_registers(sysreg::cntv_ctl_el0::read(), sysreg::cntv_cval_el0::read())
}
