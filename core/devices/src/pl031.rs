//! The real-time clock: a PrimeCell PL031 (Arm DDI 0224), a counter of seconds with one alarm.
//!
//! The guest's clock is the host's plus an offset, which the load register sets. Every call is told what time it is, in
//! seconds since 1970 by the host's clock; the device keeps no time itself. The counter is 32 bits wide and wraps, as
//! the hardware's does. A reset of the VM keeps the offset, as a battery would: keep the device across it and call
//! [`Pl031::reset`].

use pack::{Damaged, Reader, Writer};

use crate::access::{extract, identification, register_offset, written};
use crate::bus::{Access, Change, Device, Outside, Request};
use crate::{AccessSize, Effect};

/// Register offsets (DDI 0224 table 3-1).
mod register {
    pub(super) const DR: u64 = 0x00;
    pub(super) const MR: u64 = 0x04;
    pub(super) const LR: u64 = 0x08;
    pub(super) const CR: u64 = 0x0c;
    pub(super) const IMSC: u64 = 0x10;
    pub(super) const RIS: u64 = 0x14;
    pub(super) const MIS: u64 = 0x18;
    pub(super) const ICR: u64 = 0x1c;
}

/// Part 0x031, designer Arm (0x41), revision 1 (r1p3), as QEMU's `virt` has it (`pl031_id` in hw/rtc/pl031.c).
const PERIPHERAL_ID: u32 = 0x0014_1031;

/// A PL031. Times are seconds since 1970 by the host's clock, called `now`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pl031 {
    /// Guest's counter minus the host's time, modulo 2^32.
    offset: u32,
    /// The value last written to the load register.
    load: u32,
    matches: u32,
    enabled_interrupt: bool,
    raised: bool,
    /// The host's time at which the counter next equals the match register; none until the guest sets one.
    alarm: Option<u64>,
}

/// The state of a PL031. Any value is one that a guest can bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedPl031 {
    /// The guest's counter minus the host's time, modulo 2^32.
    pub offset: u32,
    /// RTCLR.
    pub load: u32,
    /// RTCMR.
    pub matches: u32,
    /// RTCIMSC.
    pub enabled_interrupt: bool,
    /// RTCRIS.
    pub raised: bool,
    /// When the alarm rings, in seconds since 1970.
    pub alarm: Option<u64>,
}

impl SavedPl031 {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedPl031 as "pl031" { offset, load, matches, enabled_interrupt, raised, alarm });

impl Pl031 {
    /// Takes the state out.
    #[must_use]
    pub const fn save(&self) -> SavedPl031 {
        let &Self { offset, load, matches, enabled_interrupt, raised, alarm } = self;
        SavedPl031 { offset, load, matches, enabled_interrupt, raised, alarm }
    }

    /// A clock with this state.
    #[must_use]
    pub const fn restored(saved: &SavedPl031) -> Self {
        let &SavedPl031 { offset, load, matches, enabled_interrupt, raised, alarm } = saved;
        Self { offset, load, matches, enabled_interrupt, raised, alarm }
    }

    /// A clock that shows the host's time.
    #[must_use]
    pub const fn new() -> Self {
        Self { offset: 0, load: 0, matches: 0, enabled_interrupt: false, raised: false, alarm: None }
    }

    /// What a reset of the VM does: the alarm goes, the time stays.
    pub const fn reset(&mut self) {
        *self = Self { offset: self.offset, load: self.load, ..Self::new() };
    }

    /// The level of RTCINTR, as of the last call that was told the time.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.raised && self.enabled_interrupt
    }

    /// When [`advance`](Self::advance) has to be called for the alarm's interrupt; `None` if the guest waits for none.
    #[must_use]
    pub const fn next_alarm(&self) -> Option<u64> {
        if self.enabled_interrupt && !self.raised { self.alarm } else { None }
    }

    /// Time has passed: raises the alarm if it is due.
    pub fn advance(&mut self, now: u64) {
        if let Some(alarm) = self.alarm
            && now >= alarm
        {
            self.raised = true;
            // The counter comes by the same value again once it has wrapped, in 136 years.
            self.alarm = alarm.checked_add(1 << 32);
        }
    }

    /// The guest reads `size` bytes at `offset`.
    pub fn read(&mut self, offset: u64, size: AccessSize, now: u64) -> u64 {
        self.advance(now);
        let at = register_offset(offset);
        let value = match at {
            register::DR => self.counter(now),
            register::MR => self.matches,
            register::LR => self.load,
            // Bit 0 says that the clock runs; it can't be stopped.
            register::CR => 1,
            register::IMSC => u32::from(self.enabled_interrupt),
            register::RIS => u32::from(self.raised),
            register::MIS => u32::from(self.line()),
            _ => identification(at, PERIPHERAL_ID).unwrap_or(0),
        };
        extract(value, offset, size)
    }

    /// The guest writes `size` bytes at `offset`.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64, now: u64) -> Effect {
        self.advance(now);
        let Some(value) = written(offset, size, value) else { return Effect::None };
        match offset {
            register::MR => {
                self.matches = value;
                self.set_alarm(now);
            }
            register::LR => {
                self.load = value;
                self.offset = value.wrapping_sub(low_word(now));
                if self.alarm.is_some() {
                    self.set_alarm(now);
                }
            }
            register::IMSC => self.enabled_interrupt = value & 1 != 0,
            register::ICR if value & 1 != 0 => self.raised = false,
            _ => return Effect::None,
        }
        Effect::AlarmChanged
    }

    const fn counter(&self, now: u64) -> u32 {
        low_word(now).wrapping_add(self.offset)
    }

    fn set_alarm(&mut self, now: u64) {
        let wait = self.matches.wrapping_sub(self.counter(now));
        self.alarm = now.checked_add(u64::from(wait));
        self.advance(now);
    }
}

impl Device for Pl031 {
    fn read(&mut self, access: &Access, outside: &dyn Outside) -> u64 {
        Self::read(self, access.offset, access.size, outside.seconds())
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        if Self::write(self, access.offset, access.size, value, outside.seconds()) == Effect::AlarmChanged
            && let Some(at) = self.next_alarm()
        {
            outside.request(Request::AlarmAt(at));
        }
    }

    fn lines(&self) -> u32 {
        self.line().into()
    }

    /// Called for whatever reason, also for an alarm whose time was thought to have come: the operator may have set the time
    /// of day back meanwhile, so it is asked for again.
    fn poll(&mut self, outside: &dyn Outside) {
        self.advance(outside.seconds());
        if let Some(at) = self.next_alarm() {
            outside.request(Request::AlarmAt(at));
        }
    }

    fn change(&mut self, change: Change, _outside: &dyn Outside) {
        match change {
            Change::Reset => self.reset(),
            Change::PowerOff
            | Change::Forget
            | Change::Pause
            | Change::Resume
            | Change::Stall
            | Change::Unstall
            | Change::Fork => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        *self = Self::restored(&from.part()?);
        Ok(())
    }
}

/// The counter's view of a time: modulo 2^32.
const fn low_word(now: u64) -> u32 {
    (now & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::{Pl031, register};
    use crate::{AccessSize, Effect};

    const WORD: AccessSize = AccessSize::Word;
    const NOW: u64 = 1_700_000_000;

    #[test]
    fn shows_the_hosts_time_until_the_guest_sets_another() {
        let mut clock = Pl031::new();
        assert_eq!(clock.read(register::DR, WORD, NOW), NOW);
        assert_eq!(clock.write(register::LR, WORD, 1000, NOW), Effect::AlarmChanged);
        assert_eq!(clock.read(register::DR, WORD, NOW + 5), 1005);
        clock.reset();
        assert_eq!(clock.read(register::DR, WORD, NOW + 6), 1006);
    }

    /// As a battery would have it.
    #[test]
    fn a_reset_keeps_the_time_and_forgets_the_alarm() {
        let mut clock = Pl031::new();
        let _ = clock.write(register::LR, WORD, 1000, NOW);
        let _ = clock.write(register::MR, WORD, 1000, NOW);
        let _ = clock.write(register::IMSC, WORD, 1, NOW);
        assert!(clock.line());
        clock.reset();
        assert_eq!((clock.line(), clock.next_alarm()), (false, None));
        let registers = [register::DR, register::MR, register::LR, register::CR, register::IMSC, register::RIS];
        assert_eq!(registers.map(|register| clock.read(register, WORD, NOW + 1)), [1001, 0, 1000, 1, 0, 0]);
    }

    #[test]
    fn registers_show_what_was_set_and_what_rings() {
        let mut clock = Pl031::new();
        let _ = clock.write(register::MR, WORD, NOW + 1, NOW);
        let shown = |clock: &mut Pl031, now| {
            [register::MR, register::IMSC, register::RIS, register::MIS].map(|at| clock.read(at, WORD, now))
        };
        assert_eq!(shown(&mut clock, NOW), [NOW + 1, 0, 0, 0]);
        assert_eq!(shown(&mut clock, NOW + 1), [NOW + 1, 0, 1, 0], "it rings, and is not let through");
        let _ = clock.write(register::IMSC, WORD, 0xffff_ffff, NOW + 1);
        assert_eq!(shown(&mut clock, NOW + 1), [NOW + 1, 1, 1, 1]);
        assert_eq!(clock.write(register::ICR, WORD, 2, NOW + 1), Effect::None, "bit 0 clears");
        assert!(clock.line());
        assert_eq!(clock.write(register::CR, WORD, 0, NOW + 1), Effect::None, "it cannot be stopped");
        assert_eq!(clock.read(register::DR, WORD, NOW + 2), NOW + 2);
        let _ = clock.write(register::ICR, WORD, 1, NOW + 1);
        let _ = clock.write(register::IMSC, WORD, 2, NOW + 1);
        assert_eq!(shown(&mut clock, NOW + 1), [NOW + 1, 0, 0, 0]);
    }

    #[test]
    fn the_alarm_rings_once_when_due() {
        let mut clock = Pl031::new();
        assert_eq!(clock.next_alarm(), None);
        let _ = clock.write(register::MR, WORD, NOW + 10, NOW);
        assert_eq!(clock.next_alarm(), None);
        let _ = clock.write(register::IMSC, WORD, 1, NOW);
        assert_eq!(clock.next_alarm(), Some(NOW + 10));
        clock.advance(NOW + 9);
        assert!(!clock.line());
        clock.advance(NOW + 10);
        assert!(clock.line());
        assert_eq!(clock.next_alarm(), None);
        let _ = clock.write(register::ICR, WORD, 1, NOW + 11);
        assert!(!clock.line());
        assert_eq!(clock.next_alarm(), Some(NOW + 10 + (1 << 32)));
    }

    #[test]
    fn setting_the_time_moves_the_alarm() {
        let mut clock = Pl031::new();
        let _ = clock.write(register::IMSC, WORD, 1, NOW);
        let _ = clock.write(register::MR, WORD, 500, NOW);
        let _ = clock.write(register::LR, WORD, 490, NOW);
        assert_eq!(clock.next_alarm(), Some(NOW + 10));
    }

    #[test]
    fn identification_is_that_of_qemus_virt() {
        let mut clock = Pl031::new();
        let id: [u64; 8] = core::array::from_fn(|index| clock.read(0xfe0 + 4 * index as u64, WORD, NOW));
        assert_eq!(id, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn an_alarm_at_the_present_second_is_due() {
        let mut clock = Pl031::new();
        let _ = clock.write(register::IMSC, WORD, 1, NOW);
        let _ = clock.write(register::MR, WORD, NOW, NOW);
        assert!(clock.line());
        assert_eq!(clock.read(register::MIS, WORD, NOW), 1);
    }
}
