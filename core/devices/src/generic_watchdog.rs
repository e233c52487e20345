//! The Generic Watchdog of Arm's Base System Architecture (DEN0094, section "Generic Watchdog"; SBSA before it): the one
//! that every server operating system has a driver for.
//!
//! Two register frames: the control frame (WCS, WOR, WCV) and the refresh frame (WRR), so that a kernel can hand the
//! second one to a process that refreshes it. Each explicit refresh (a write to WRR, WCS or WOR) sets the compare value
//! to the system counter plus the offset and clears both signals. When the counter passes the compare value, the first
//! signal, WS0, is raised and the compare value is set once more; when that passes too, the second, WS1. WS0 is an
//! interrupt of the guest's; WS1 is for an agent above the guest, which here is the hypervisor.
//!
//! This is revision 1 of the architecture: the offset has 48 bits. Times are counts of the guest's system counter, called
//! `now`; the device has no clock. A reset of the machine disables the watchdog. WS1 stays readable in the life that
//! follows the one in which it was raised, which is how drivers know why they are booted.
//!
//! While the machine is paused so is the watchdog ([`GenericWatchdog::pause`]): it has as much time left afterwards as
//! before, and one that is refreshed while it is paused has its whole time.

use pack::{Damaged, Reader, Writer};

use crate::access::{extract, register_offset, written};
use crate::bus::{Access, Change, Device, Outside, Request};
use crate::saved::Unfit;
use crate::{AccessSize, Effect};

/// Register offsets.
mod register {
    /// In the control frame: control and status.
    pub(super) const WCS: u64 = 0x000;
    /// Offset, two words.
    pub(super) const WOR: u64 = 0x008;
    pub(super) const WOR_HIGH: u64 = 0x00c;
    /// Compare value, two words.
    pub(super) const WCV: u64 = 0x010;
    pub(super) const WCV_HIGH: u64 = 0x014;
    /// In the refresh frame: refresh.
    pub(super) const WRR: u64 = 0x000;
    /// In both: identification.
    pub(super) const W_IIDR: u64 = 0xfcc;
}

/// Architecture version 1 in bits 19:16, implementer Arm (JEP106 0x43b), as QEMU's machine `sbsa-ref` has it (`SBSA_GWDT_ID` in
/// include/hw/watchdog/sbsa_gwdt.h).
const IDENTIFICATION: u32 = 0x0001_043b;
/// The offset's width.
const OFFSET_MASK: u64 = (1 << 48) - 1;
/// WCS.
const ENABLE: u32 = 1;
const WS0: u32 = 1 << 1;
const WS1: u32 = 1 << 2;

/// A Generic Watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GenericWatchdog {
    enabled: bool,
    first: bool,
    second: bool,
    /// The second signal was raised in this life of the machine.
    expired: bool,
    offset: u64,
    compare: u64,
    /// The count at which the machine was paused, while it is.
    paused: Option<u64>,
}

/// The state of a Generic Watchdog. Times are counts of the guest's counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedGenericWatchdog {
    /// WCS.EN.
    pub enabled: bool,
    /// WCS.WS0.
    pub first: bool,
    /// WCS.WS1.
    pub second: bool,
    /// The second signal was raised in this life of the machine.
    pub expired: bool,
    /// WOR, of 48 bits.
    pub offset: u64,
    /// WCV.
    pub compare: u64,
    /// The count at which the machine was paused, while it is.
    pub paused: Option<u64>,
}

impl SavedGenericWatchdog {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

// The section's name is the site key's. With another one, each file that there is would be refused for a word.
pack::value!(SavedGenericWatchdog as "sbsa-watchdog" { enabled, first, second, expired, offset, compare, paused });

impl GenericWatchdog {
    /// The number of the control frame in the watchdog's row of the plan; the binding of the device tree has it first too.
    pub const CONTROL_FRAME: usize = 0;
    /// And that of the refresh frame.
    pub const REFRESH_FRAME: usize = 1;

    /// Takes the state out.
    #[must_use]
    pub const fn save(&self) -> SavedGenericWatchdog {
        let &Self { enabled, first, second, expired, offset, compare, paused } = self;
        SavedGenericWatchdog { enabled, first, second, expired, offset, compare, paused }
    }

    /// A watchdog with this state.
    ///
    /// # Errors
    /// If no watchdog can be in such a state.
    pub const fn restored(saved: &SavedGenericWatchdog) -> Result<Self, Unfit> {
        let &SavedGenericWatchdog { enabled, first, second, expired, offset, compare, paused } = saved;
        if offset & !OFFSET_MASK != 0 {
            return Err(Unfit("the offset of the Generic Watchdog has more than 48 bits"));
        }
        Ok(Self { enabled, first, second, expired, offset, compare, paused })
    }

    /// A watchdog after power on: disabled.
    #[must_use]
    pub const fn new() -> Self {
        Self { enabled: false, first: false, second: false, expired: false, offset: 0, compare: 0, paused: None }
    }

    /// What a reset of the machine does.
    pub const fn reset(&mut self) {
        *self = Self { second: self.expired, ..Self::new() };
    }

    /// The machine is off: nobody is watched, until it starts again.
    pub const fn disable(&mut self) {
        self.enabled = false;
        self.paused = None;
    }

    /// The level of WS0's interrupt.
    #[must_use]
    pub const fn line(&self) -> bool {
        self.first
    }

    /// The first count at which [`GenericWatchdog::advance`] has something to do.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        if self.enabled && !self.second && self.paused.is_none() { Some(self.compare.saturating_add(1)) } else { None }
    }

    /// The counter has come to `now`. Says whether the second signal rises by that; it rises once.
    pub const fn advance(&mut self, now: u64) -> bool {
        if !self.enabled || self.second || self.paused.is_some() || now <= self.compare {
            return false;
        }
        if !self.first {
            self.first = true;
            // From when the first period ended, not from when somebody looked.
            self.compare = self.compare.saturating_add(1).saturating_add(self.offset);
            if now <= self.compare {
                return false;
            }
        }
        self.second = true;
        self.expired = true;
        true
    }

    /// The machine is paused at `now`.
    pub const fn pause(&mut self, now: u64) {
        if self.paused.is_none() {
            self.paused = Some(now);
        }
    }

    /// The machine goes on at `now`.
    pub const fn resume(&mut self, now: u64) {
        if let Some(since) = self.paused.take() {
            self.compare = self.compare.saturating_add(now.saturating_sub(since));
        }
    }

    /// Both signals were raised, and whoever the second one is for has dealt with it: two periods begin anew, as by the guest's
    /// refresh at `now`.
    pub const fn begin_anew(&mut self, now: u64) {
        self.refresh(now);
    }

    /// The guest reads `size` bytes at `offset` of the control frame.
    #[must_use]
    pub fn read_control(&self, offset: u64, size: AccessSize) -> u64 {
        let word = |at| match at {
            register::WCS => self.status(),
            register::WOR => low(self.offset),
            register::WOR_HIGH => high(self.offset),
            register::WCV => low(self.compare),
            register::WCV_HIGH => high(self.compare),
            register::W_IIDR => IDENTIFICATION,
            _ => 0,
        };
        if size == AccessSize::Double {
            return u64::from(word(offset)) | u64::from(word(offset + 4)) << 32;
        }
        extract(word(register_offset(offset)), offset, size)
    }

    /// The guest writes `size` bytes at `offset` of the control frame.
    pub fn write_control(&mut self, offset: u64, size: AccessSize, value: u64, now: u64) -> Effect {
        let Some(word) = written(offset, size, value) else { return Effect::None };
        match offset {
            register::WCS => {
                self.enabled = word & ENABLE != 0;
                self.refresh(now);
            }
            register::WOR | register::WOR_HIGH => {
                self.offset = OFFSET_MASK & merge(self.offset, offset == register::WOR_HIGH, size, word, value);
                self.refresh(now);
            }
            // No refresh: the signals stay, and so does the offset.
            register::WCV | register::WCV_HIGH => {
                self.compare = merge(self.compare, offset == register::WCV_HIGH, size, word, value);
            }
            _ => return Effect::None,
        }
        Effect::AlarmChanged
    }

    /// The guest reads `size` bytes at `offset` of the refresh frame.
    #[must_use]
    pub fn read_refresh(&self, offset: u64, size: AccessSize) -> u64 {
        match register_offset(offset) {
            register::W_IIDR => extract(IDENTIFICATION, offset, size),
            _ => 0,
        }
    }

    /// The guest writes `size` bytes at `offset` of the refresh frame.
    pub fn write_refresh(&mut self, offset: u64, size: AccessSize, value: u64, now: u64) -> Effect {
        if offset != register::WRR || written(offset, size, value).is_none() {
            return Effect::None;
        }
        self.refresh(now);
        Effect::AlarmChanged
    }

    /// An explicit refresh. During a pause time stands still.
    const fn refresh(&mut self, now: u64) {
        let now = match self.paused {
            Some(since) if since < now => since,
            _ => now,
        };
        self.compare = now.saturating_add(self.offset);
        self.first = false;
        self.second = false;
        self.expired = false;
    }

    fn status(&self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.enabled, ENABLE) | bit(self.first, WS0) | bit(self.second, WS1)
    }
}

impl Device for GenericWatchdog {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        match access.frame {
            Self::CONTROL_FRAME => self.read_control(access.offset, access.size),
            Self::REFRESH_FRAME => self.read_refresh(access.offset, access.size),
            // It has no more.
            _ => 0,
        }
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        let (offset, size, now) = (access.offset, access.size, outside.count());
        let effect = match access.frame {
            Self::CONTROL_FRAME => self.write_control(offset, size, value, now),
            Self::REFRESH_FRAME => self.write_refresh(offset, size, value, now),
            _ => Effect::None,
        };
        if effect == Effect::AlarmChanged {
            self.ask(outside);
        }
    }

    fn lines(&self) -> u32 {
        self.line().into()
    }

    /// Nothing: whoever acts on its second signal looks at its deadline, and calls [`advance`](Self::advance), alone.
    fn poll(&mut self, _outside: &dyn Outside) {}

    fn change(&mut self, change: Change, outside: &dyn Outside) {
        match change {
            Change::Reset => self.reset(),
            Change::PowerOff => self.disable(),
            Change::Pause | Change::Stall => self.pause(outside.count()),
            Change::Fork | Change::Forget => {}
            Change::Resume | Change::Unstall => {
                self.resume(outside.count());
                self.ask(outside);
            }
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        *self = Self::restored(&from.part()?)?;
        Ok(())
    }
}

impl GenericWatchdog {
    /// Asks to be looked after at its deadline.
    fn ask(&self, outside: &dyn Outside) {
        if let Some(at) = self.deadline() {
            outside.request(Request::DeadlineAt(at));
        }
    }
}

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// What a register of two words becomes: `word` in one of them, or `value` in both where the access is as wide as that.
fn merge(before: u64, in_high: bool, size: AccessSize, word: u32, value: u64) -> u64 {
    match (in_high, size) {
        (false, AccessSize::Double) => value,
        (false, _) => before & !0xffff_ffff | u64::from(word),
        (true, _) => before & 0xffff_ffff | u64::from(word) << 32,
    }
}

#[cfg(test)]
mod tests {
    use super::{GenericWatchdog, register};
    use crate::{AccessSize, Effect};
    use proptest::prelude::*;

    const WORD: AccessSize = AccessSize::Word;
    const DOUBLE: AccessSize = AccessSize::Double;

    fn armed(offset: u64, now: u64) -> GenericWatchdog {
        let mut watchdog = GenericWatchdog::new();
        assert_eq!(watchdog.write_control(register::WOR, DOUBLE, offset, now), Effect::AlarmChanged);
        assert_eq!(watchdog.write_control(register::WCS, WORD, 1, now), Effect::AlarmChanged);
        watchdog
    }

    fn status(watchdog: &GenericWatchdog) -> u64 {
        watchdog.read_control(register::WCS, WORD)
    }

    #[test]
    fn two_periods_two_signals() {
        let mut watchdog = armed(100, 1000);
        assert_eq!(
            (status(&watchdog), watchdog.read_control(register::WCV, DOUBLE), watchdog.deadline()),
            (1, 1100, Some(1101))
        );
        assert!(!watchdog.advance(1100));
        assert_eq!((status(&watchdog), watchdog.line()), (1, false));
        assert!(!watchdog.advance(1101));
        assert_eq!((status(&watchdog), watchdog.line(), watchdog.deadline()), (3, true, Some(1202)));
        assert!(!watchdog.advance(1201));
        assert!(watchdog.advance(1202));
        assert_eq!((status(&watchdog), watchdog.line(), watchdog.deadline()), (7, true, None));
        assert!(!watchdog.advance(u64::MAX), "it rises once");
    }

    #[test]
    fn each_explicit_refresh_begins_anew() {
        for which in 0..4 {
            let mut watchdog = armed(100, 0);
            assert!(watchdog.advance(1000), "both at once, if nobody looked in between");
            let effect = match which {
                0 => watchdog.write_refresh(register::WRR, WORD, 0x1234, 2000),
                1 => watchdog.write_control(register::WCS, WORD, 1, 2000),
                2 => watchdog.write_control(register::WOR, WORD, 100, 2000),
                _ => watchdog.write_control(register::WOR_HIGH, WORD, 0, 2000),
            };
            assert_eq!((effect, status(&watchdog), watchdog.line()), (Effect::AlarmChanged, 1, false));
            assert_eq!(watchdog.deadline(), Some(2101));
        }
    }

    #[test]
    fn the_compare_value_can_be_written_without_a_refresh() {
        let mut watchdog = armed(100, 0);
        assert!(!watchdog.advance(101));
        let _ = watchdog.write_control(register::WCV, WORD, 5000, 150);
        let _ = watchdog.write_control(register::WCV_HIGH, WORD, 1, 150);
        assert_eq!((status(&watchdog), watchdog.deadline()), (3, Some((1 << 32) + 5001)));
        assert_eq!(watchdog.read_control(register::WCV, WORD), 5000);
        assert_eq!(watchdog.read_control(register::WCV_HIGH, WORD), 1);
    }

    #[test]
    fn the_offset_has_48_bits() {
        let mut watchdog = armed(u64::MAX, 0);
        assert_eq!(watchdog.read_control(register::WOR, DOUBLE), (1 << 48) - 1);
        assert_eq!(watchdog.read_control(register::WOR_HIGH, WORD), 0xffff);
        let _ = watchdog.write_control(register::WOR, WORD, 0x8765_4321, 0);
        assert_eq!(watchdog.read_control(register::WOR, DOUBLE), 0xffff_8765_4321);
        assert_eq!(watchdog.read_control(register::WOR + 2, AccessSize::Half), 0x8765);
    }

    #[test]
    fn it_is_known_by_its_version_and_a_disabled_one_is_silent() {
        let mut watchdog = GenericWatchdog::new();
        assert_eq!(watchdog.read_control(register::W_IIDR, WORD), 0x0001_043b);
        assert_eq!(watchdog.read_refresh(register::W_IIDR, WORD), watchdog.read_control(register::W_IIDR, WORD));
        assert_eq!((watchdog.read_refresh(register::WRR, WORD), watchdog.deadline()), (0, None));
        assert!(!watchdog.advance(u64::MAX));
        assert_eq!(watchdog.write_refresh(4, WORD, 1, 0), Effect::None);
        assert_eq!(watchdog.write_control(0x800, WORD, 1, 0), Effect::None);
        assert_eq!(watchdog.write_control(register::WCS + 1, AccessSize::Byte, 1, 0), Effect::None);
        assert_eq!(status(&watchdog), 0);
    }

    #[test]
    fn the_next_life_knows_that_it_expired_and_the_one_after_that_does_not() {
        let mut watchdog = armed(10, 0);
        assert!(watchdog.advance(50));
        watchdog.disable();
        assert_eq!(watchdog.deadline(), None);
        watchdog.reset();
        assert_eq!((status(&watchdog), watchdog.line(), watchdog.deadline()), (4, false, None));
        watchdog.reset();
        assert_eq!(status(&watchdog), 0);
        let mut told = armed(10, 0);
        assert!(told.advance(50));
        let _ = told.write_refresh(register::WRR, WORD, 0, 60);
        told.reset();
        assert_eq!(status(&told), 0, "it recovered before the reset");
    }

    /// A vCPU that has refreshed it, and is heard only when another one has paused the machine.
    #[test]
    fn a_refresh_from_before_the_pause_counts_from_when_it_was() {
        let mut watchdog = armed(50, 0);
        watchdog.pause(100);
        let _ = watchdog.write_refresh(register::WRR, WORD, 0, 60);
        watchdog.resume(200);
        assert_eq!(watchdog.deadline(), Some(60 + 50 + 100 + 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Refresh,
        Control(bool),
        Offset(u64),
        Compare(u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Refresh),
            any::<bool>().prop_map(Step::Control),
            (0u64..300).prop_map(Step::Offset),
            (0u64..3000).prop_map(Step::Compare),
            (0u64..200).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against the architecture's rules, applied at each tick of the counter by somebody who does nothing else.
        #[test]
        fn it_agrees_with_one_that_counts_every_tick(steps in prop::collection::vec(step(), 1..40)) {
            let (mut now, mut watchdog) = (0u64, GenericWatchdog::new());
            let (mut enabled, mut first, mut second, mut offset, mut compare) = (false, false, false, 0u64, 0u64);
            for step in steps {
                let mut refresh = true;
                match step {
                    Step::Refresh => { let _ = watchdog.write_refresh(0, WORD, 0, now); }
                    Step::Control(on) => { let _ = watchdog.write_control(register::WCS, WORD, on.into(), now); enabled = on; }
                    Step::Offset(value) => {
                        let _ = watchdog.write_control(register::WOR, DOUBLE, value, now);
                        offset = value;
                    }
                    Step::Compare(value) => {
                        let _ = watchdog.write_control(register::WCV, DOUBLE, value, now);
                        (compare, refresh) = (value, false);
                        // What is due at once is due before time goes on.
                        now += 1;
                    }
                    Step::Wait(length) => {
                        refresh = false;
                        for _ in 0..length {
                            now += 1;
                            if enabled && !second && now > compare {
                                if first { second = true; } else { (first, compare) = (true, compare + 1 + offset); }
                                if !second && now > compare { second = true; }
                            }
                        }
                    }
                }
                if refresh { (compare, first, second) = (now + offset, false, false); }
                if enabled && !second && now > compare {
                    if first { second = true; } else { (first, compare) = (true, compare + 1 + offset); }
                    if !second && now > compare { second = true; }
                }
                let _ = watchdog.advance(now);
                let expected = u64::from(enabled) | u64::from(first) << 1 | u64::from(second) << 2;
                prop_assert_eq!((status(&watchdog), watchdog.line()), (expected, first));
                prop_assert_eq!(watchdog.read_control(register::WCV, DOUBLE), compare);
            }
        }

        #[test]
        fn a_pause_adds_its_length(offset in 0u64..1000, start in 0u64..1000, length in 0u64..10_000) {
            let mut watchdog = armed(offset, start);
            watchdog.pause(start);
            prop_assert_eq!((watchdog.deadline(), watchdog.advance(u64::MAX), watchdog.line()), (None, false, false));
            watchdog.resume(start + length);
            prop_assert_eq!(watchdog.deadline(), Some(start + offset + length + 1));
        }

        /// Whatever a vCPU still does to it that has not stopped yet: the whole time is left when the machine goes on.
        #[test]
        fn what_is_refreshed_during_a_pause_begins_when_it_ends(
            offset in 0u64..1000, late in 0u64..500, length in 500u64..10_000, which in 0usize..4,
        ) {
            let mut watchdog = GenericWatchdog::new();
            let _ = watchdog.write_control(register::WOR, DOUBLE, offset, 0);
            watchdog.pause(100);
            watchdog.pause(100 + late);
            let now = 100 + late;
            match which {
                0 => { let _ = watchdog.write_control(register::WCS, WORD, 1, now); }
                1 => {
                    let _ = watchdog.write_control(register::WCS, WORD, 1, 0);
                    let _ = watchdog.write_refresh(register::WRR, WORD, 0, now);
                }
                2 => {
                    let _ = watchdog.write_control(register::WCS, WORD, 1, 0);
                    let _ = watchdog.write_control(register::WOR, DOUBLE, offset, now);
                }
                _ => {
                    let _ = watchdog.write_control(register::WCS, WORD, 1, 0);
                    watchdog.begin_anew(now);
                }
            }
            prop_assert_eq!((watchdog.deadline(), watchdog.advance(u64::MAX)), (None, false));
            watchdog.resume(100 + length);
            prop_assert_eq!(watchdog.deadline(), Some(100 + length + offset + 1));
            watchdog.pause(0);
            watchdog.reset();
            prop_assert_eq!(watchdog, GenericWatchdog::new(), "a pause survives a reset");
        }

        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..0x1000, 0u64..4, any::<u64>(), any::<u64>()), 0..50),
        ) {
            let mut watchdog = GenericWatchdog::new();
            for (write, control, offset, size, value, now) in accesses {
                let size = AccessSize::from_sas(size);
                let offset = offset & !(size.bytes() as u64 - 1);
                let _ = match (write, control) {
                    (true, true) => watchdog.write_control(offset, size, value, now) == Effect::None,
                    (true, false) => watchdog.write_refresh(offset, size, value, now) == Effect::None,
                    (false, true) => watchdog.read_control(offset, size) == 0,
                    (false, false) => watchdog.read_refresh(offset, size) == 0,
                };
                let _ = watchdog.advance(now);
                prop_assert!(!watchdog.advance(now), "one look at a time sees all of it");
            }
        }
    }
}
