//! A vCPU's time: its VM's clock, as this vCPU goes by it, and its two timers.
//!
//! The virtual counter and timer are the hardware's while the vCPU is loaded, by CNTVOFF_EL2. The physical timer always
//! traps and is emulated. The physical counter shows the same count as the virtual one: by CNTPOFF_EL2 where the CPU has
//! it (FEAT_ECV), else it traps and is read here. KVM lets a guest read the host's count until somebody asks for an
//! offset, and traps it then; here every guest's time begins with the guest.
//!
//! The copy of the clock is taken when the vCPU is switched on, and again when it has stood still for a pause: the VM's own
//! changes only while all of its vCPUs are out of the guest. So the short path of an exit reads it with no lock but the vCPU's.

use clock::{EmulatedTimer, GuestClock};
use cpu::Direction;
use cpu::sysreg::PhysicalTimerRegister;
use hw::sysreg;
use units::Ticks;

use super::Vcpu;
use crate::sched;

/// The clock that a vCPU goes by, and the EL1 physical timer.
#[derive(Clone, Copy)]
pub(super) struct Time {
    clock: GuestClock,
    physical: EmulatedTimer,
}

impl Time {
    /// The time of a vCPU that was just switched on.
    pub(super) fn new(clock: GuestClock) -> Self {
        Self { clock, physical: EmulatedTimer::default() }
    }

    /// CNTVOFF_EL2, and CNTPOFF_EL2 where it exists.
    pub(super) fn hardware_offset(&self) -> u64 {
        match self.clock.hardware_offset() {
            Some(Ticks(offset)) => offset,
            None => unreachable!("every clock is as fast as the host's"),
        }
    }

    /// The physical timer.
    pub(super) fn save_physical(&self) -> clock::saved::Timer {
        let Self { clock: _, physical } = self;
        physical.save()
    }

    /// Puts a physical timer in. The clock is adopted when the vCPU goes on.
    pub(super) fn restore_physical(&mut self, saved: &clock::saved::Timer) -> Result<(), clock::saved::Refused> {
        self.physical = EmulatedTimer::restore(saved)?;
        Ok(())
    }

    /// Whether the physical timer's line is up.
    pub(super) fn is_asserted(&self, now: Ticks) -> bool {
        self.physical.is_asserted(&self.clock, now)
    }

    /// When the physical timer's line goes up; `now` if it is up.
    pub(super) fn deadline(&self, now: Ticks) -> Option<Ticks> {
        self.physical.deadline(&self.clock, now)
    }
}

impl Vcpu {
    /// Goes by the VM's clock as it is now. It is not loaded.
    pub(super) fn adopt_clock(&self) {
        let mut time = self.time.lock();
        time.clock = self.vm.clock();
        self.state.lock().controls.cntvoff = time.hardware_offset();
    }

    /// What CNTPCT_EL0 shows. The exit has put the read of the host's counter behind what the guest did before.
    #[inline(always)]
    #[must_use]
    pub(crate) fn physical_count(&self) -> u64 {
        self.time.lock().clock.guest(Ticks(sysreg::cntpct_el0())).0
    }

    /// The same for the short path of an exit, if nobody has the lock: which cannot be, since it is this thread's own.
    #[inline(always)]
    #[must_use]
    pub(crate) fn physical_count_quickly(&self) -> Option<u64> {
        Some(self.time.try_lock_masked()?.clock.guest(Ticks(sysreg::cntpct_el0())).0)
    }

    /// The guest reads or writes CNTP_CTL_EL0, CNTP_CVAL_EL0 or CNTP_TVAL_EL0; what it reads. The vCPU is loaded.
    pub(crate) fn access_physical_timer(
        &self,
        register: PhysicalTimerRegister,
        direction: Direction,
        value: u64,
    ) -> Option<u64> {
        let now = Ticks(sysreg::cntpct_el0());
        let mut time = self.time.lock();
        let Time { clock, physical } = &mut *time;
        if direction == Direction::Read {
            return Some(match register {
                PhysicalTimerRegister::Control => physical.read_control(clock, now),
                PhysicalTimerRegister::CompareValue => physical.read_compare(),
                PhysicalTimerRegister::TimerValue => physical.read_value(clock, now),
            });
        }
        match register {
            PhysicalTimerRegister::Control => physical.write_control(value),
            PhysicalTimerRegister::CompareValue => physical.write_compare(value),
            PhysicalTimerRegister::TimerValue => physical.write_value(value, clock, now),
        }
        drop(time);
        self.update_physical_timer();
        None
    }

    /// The EL1 physical timer's line follows its registers. It is loaded.
    pub(super) fn update_physical_timer(&self) {
        let time = *self.time.lock();
        let now = Ticks(sysreg::cntpct_el0());
        let is_up = time.is_asserted(now);
        let line = if is_up { vgic::Line::High } else { vgic::Line::Low };
        let interrupt = self.vm.plan.timer_interrupts().physical;
        self.with_gic(|gic| gic.set_ppi_level(self.id, interrupt, line));
        if !is_up && let Some(deadline) = time.deadline(now) {
            sched::set_alarm(deadline);
        }
    }

    /// The host count at which the virtual timer fires, if it is armed; `now` if it has. It is loaded.
    pub(super) fn virtual_deadline(&self, now: Ticks) -> Option<Ticks> {
        let timer = EmulatedTimer::from_registers(sysreg::cntv_ctl_el0::read(), sysreg::cntv_cval_el0::read());
        timer.deadline(&self.time.lock().clock, now)
    }
}
