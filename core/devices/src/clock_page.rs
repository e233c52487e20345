//! VMClock (UAPI.13; Linux's `include/uapi/linux/vmclock-abi.h`): a page that tells a guest the time at one value of its counter, how
//! long a tick takes, and a number that changes whenever everything that the guest has measured about its counter is void. Linux has a
//! driver (`drivers/ptp/ptp_vmclock.c`), which finds the device in a device tree since 7.0.
//!
//! To the guest the page is memory that it can only read, at any time, from any vCPU, also from a process that has mapped it. So it is
//! written like a sequence lock: a count becomes odd, the fields change, the count becomes even; the stores become visible in that
//! order. Nothing is computed when the guest reads: the page is written when something happens that changes its contents, which is rare.
//!
//! The page refers to the guest's virtual counter as the guest reads it: where reads trap, to what the trap answers; where they do not,
//! and the counter runs at another speed than the guest's own, to that speed. The time is that of VMware's time commands: the host's, as
//! far as the guest's time passes as real time does. It is given as TAI, as the specification recommends.
//!
//! The guest has no register to acknowledge the interrupt, so it is an edge, as the generation identifier's is.

use core::time::Duration;

use clock::Period;
use pack::{Damaged, Reader, Writer};

use crate::AccessSize;
use crate::bus::{Access, Change, Device, Moment, Outside};

/// "VCLK".
const MAGIC: u64 = 0x4b4c_4356;
/// How much of the address space it is: a page of the smallest size.
const SIZE: u64 = 0x1000;
const VERSION: u64 = 1;
/// The Arm architecture's virtual counter.
const COUNTER: u64 = 0;
/// International Atomic Time, in seconds since 1970.
const TIME_TYPE: u64 = 1;

/// The offset of TAI is valid; there is a count of generations; an interrupt tells of changes.
const FLAGS: u64 = 1 | 1 << 8 | 1 << 9;
/// The clock ran by another one, and goes on by itself: it was the host's real-time clock, at the start.
const FREE_RUNNING: u64 = 3;
/// What the page says of the time is not to be used.
const UNRELIABLE: u64 = 4;

/// By how many seconds TAI is ahead of UTC since 2017-01-01. A real-time clock knows UTC and nothing of leap seconds, so this is what
/// can be known; whoever computes UTC from the page gets what the real-time clock shows, whether it is still true or not.
pub const TAI_OFFSET: u64 = 37;

/// Words of 64 bits that are written.
const WORDS: usize = 14;
/// Which of them has the sequence count in its upper half.
const SEQUENCE: usize = 1;

/// A clock page whose markers `S` makes, a function that fills what it is given with bytes that nobody can guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockPage<S> {
    source: S,
    /// Even, but while the page is written.
    sequence: u32,
    disruption: u64,
    generation: u64,
    /// What is shown; nothing, while the machine is off.
    shown: Option<Moment>,
    /// For how many ticks the guest's clock had stood still when its marker was made: more than those it has to hear of. No more, but
    /// while its memory comes, in which time nothing is saved.
    told: u64,
    /// The page does not have it yet: it was put in.
    is_behind: bool,
    /// It has changed, and the line is still high.
    has_changed: bool,
}

/// The state of a clock page: all that the guest finds there, so that one that was stopped while it read goes on with the rest of the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedClockPage {
    /// The sequence count, which is even.
    pub sequence: u32,
    /// The marker of disruptions.
    pub disruption: u64,
    /// The count of generations, which does not count: no two are alike.
    pub generation: u64,
    /// What is shown.
    pub shown: Option<ShownMoment>,
    /// The line is high.
    pub has_changed: bool,
}

/// A [`Moment`] that is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShownMoment {
    /// What the virtual counter showed.
    pub count: u64,
    /// How long a tick of that takes: so many times 2^-(64 + `shift`) seconds. 0 where there is no telling.
    pub period: u64,
    /// See there.
    pub shift: u8,
    /// Seconds since 1970 (UTC).
    pub seconds: u64,
    /// And nanoseconds behind them.
    pub nanoseconds: u32,
    /// Whether that came from a clock.
    pub is_known: bool,
    /// For how many ticks of its own the guest's clock had stood still.
    pub stood: u64,
}

impl SavedClockPage {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedClockPage as "clock-page" { sequence, disruption, generation, shown, has_changed });
pack::value!(ShownMoment { count, period, shift, seconds, nanoseconds, is_known, stood });

impl ShownMoment {
    fn of(moment: &Moment) -> Self {
        let &Moment { count, period, time, is_known, stood } = moment;
        let Period { fraction, shift } = period.unwrap_or(NONE);
        let (seconds, nanoseconds) = (time.as_secs(), time.subsec_nanos());
        Self { count, period: fraction, shift, seconds, nanoseconds, is_known, stood }
    }

    fn moment(&self) -> Result<Moment, Damaged> {
        let &Self { count, period, shift, seconds, nanoseconds, is_known, stood } = self;
        if nanoseconds >= 1_000_000_000 || shift > 63 || (period == 0 && shift > 0) {
            return Err(Damaged::Impossible("the clock page shows a time that there is not"));
        }
        let period = (period != 0).then_some(Period { fraction: period, shift });
        Ok(Moment { count, period, time: Duration::new(seconds, nanoseconds), is_known, stood })
    }
}

/// What is written where there is no telling how long a tick takes.
const NONE: Period = Period { fraction: 0, shift: 0 };

impl<S: FnMut(&mut [u8])> ClockPage<S> {
    /// One whose markers `source` makes. It shows nothing yet.
    #[must_use]
    pub const fn new(source: S) -> Self {
        Self {
            source,
            sequence: 0,
            disruption: 0,
            generation: 0,
            shown: None,
            told: 0,
            is_behind: false,
            has_changed: false,
        }
    }

    /// Takes the state out.
    #[must_use]
    pub fn save(&self) -> SavedClockPage {
        let &Self { source: _, sequence, disruption, generation, shown, told: _, is_behind: _, has_changed } = self;
        let shown = shown.as_ref().map(ShownMoment::of);
        SavedClockPage { sequence, disruption, generation, shown, has_changed }
    }

    /// Puts a state in. The page shows it when the machine goes on.
    ///
    /// # Errors
    /// If there can be no such state; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedClockPage) -> Result<(), Damaged> {
        let &SavedClockPage { sequence, disruption, generation, shown, has_changed } = saved;
        if sequence % 2 != 0 {
            return Err(Damaged::Impossible("the sequence count of the clock page is odd"));
        }
        let shown = shown.as_ref().map(ShownMoment::moment).transpose()?;
        (self.sequence, self.disruption, self.generation) = (sequence, disruption, generation);
        (self.shown, self.is_behind, self.has_changed) = (shown, true, has_changed);
        self.told = shown.map_or(0, |shown| shown.stood);
        Ok(())
    }

    /// The host's time of day was set.
    pub fn time_was_set(&mut self, outside: &dyn Outside) {
        self.disrupt();
        self.publish(outside);
    }

    /// All of the guest's memory has come: it stands still for none of it any more, and hears once that it did.
    pub fn memory_has_come(&mut self, outside: &dyn Outside) {
        self.tell_of_standing_still(outside);
    }

    /// If the guest's clock stood still since its marker was made, what it knew of its counter is void. Says whether it did.
    fn tell_of_standing_still(&mut self, outside: &dyn Outside) -> bool {
        let has_stood = self.shown.is_some() && outside.moment().stood != self.told;
        if has_stood {
            self.disrupt();
            self.publish(outside);
        }
        has_stood
    }

    /// Lets the line down: the edge was seen.
    pub const fn lower(&mut self) {
        self.has_changed = false;
    }

    /// The guest reads `size` bytes at `offset`, where it is not shown the page itself.
    #[must_use]
    pub fn read_at(&self, offset: u64, size: AccessSize) -> u64 {
        let word = |index: u64| {
            let index = usize::try_from(index).ok();
            let words = self.shown.as_ref().map(|moment| self.words(moment));
            index.and_then(|index| words?.get(index).copied()).unwrap_or(0)
        };
        let (index, shift) = (offset / 8, offset % 8 * 8);
        // An access may reach into the next word.
        let both = u128::from(word(index)) | u128::from(word(index.saturating_add(1))) << 64;
        (both >> shift) as u64 & size.mask()
    }

    /// What the guest has found out about its counter is void.
    fn disrupt(&mut self) {
        self.disruption = self.another(self.disruption);
    }

    /// A number that is not `before`, and that it never was.
    fn another(&mut self, before: u64) -> u64 {
        let mut bytes = [0; 8];
        (self.source)(&mut bytes);
        let fresh = u64::from_le_bytes(bytes);
        // 0 is what a page says that says nothing.
        if fresh == before || fresh == 0 { before.wrapping_add(1).max(1) } else { fresh }
    }

    /// Shows what is now, and has the guest hear of it, with the marker that was made for that.
    fn publish(&mut self, outside: &dyn Outside) {
        let now = outside.moment();
        self.told = now.stood;
        self.show(now, outside);
        self.has_changed = true;
    }

    fn show(&mut self, now: Moment, outside: &dyn Outside) {
        self.shown = Some(now);
        self.sequence = self.sequence.wrapping_add(2);
        self.write(outside);
    }

    /// Writes the page. The guest may read meanwhile: it finds the count odd, or another one than before, and begins anew.
    fn write(&mut self, outside: &dyn Outside) {
        self.is_behind = false;
        let Some(moment) = &self.shown else { return };
        let words = self.words(moment);
        let sequence = words.get(SEQUENCE).copied().unwrap_or_default();
        // The odd one before.
        outside.show(SEQUENCE, sequence.wrapping_sub(1 << 32));
        for (index, word) in words.into_iter().enumerate().filter(|&(index, _)| index != SEQUENCE) {
            outside.show(index, word);
        }
        outside.show(SEQUENCE, sequence);
    }

    /// What the page holds.
    fn words(&self, moment: &Moment) -> [u64; WORDS] {
        let &Moment { count, period, time, is_known, stood: _ } = moment;
        let status = if is_known && period.is_some() { FREE_RUNNING } else { UNRELIABLE };
        let Period { fraction, shift } = period.unwrap_or(NONE);
        [
            MAGIC | SIZE << 32,
            VERSION | COUNTER << 16 | TIME_TYPE << 24 | u64::from(self.sequence) << 32,
            self.disruption,
            FLAGS,
            // No hint of how leap seconds are smeared here, and none is known to come.
            status << 16 | TAI_OFFSET << 32 | u64::from(shift) << 56,
            count,
            fraction,
            // How wrong the period may be, which nobody knows.
            0,
            0,
            time.as_secs().saturating_add(TAI_OFFSET),
            fraction_of(time),
            // And the time.
            0,
            0,
            self.generation,
        ]
    }
}

/// What is behind the whole second, in units of 2^-64 seconds: at most one too many, and never less.
const fn fraction_of(time: Duration) -> u64 {
    /// A nanosecond in units of 2^-96 seconds, rounded up.
    const NANOSECOND: u128 = (1 << 96) / 1_000_000_000 + 1;
    ((time.subsec_nanos() as u128 * NANOSECOND) >> 32) as u64
}

impl<S: FnMut(&mut [u8]) + Send> Device for ClockPage<S> {
    fn read(&mut self, access: &Access, _outside: &dyn Outside) -> u64 {
        self.read_at(access.offset, access.size)
    }

    fn write(&mut self, _access: &Access, _value: u64, _outside: &dyn Outside) {}

    fn lines(&self) -> u32 {
        self.has_changed.into()
    }

    fn poll(&mut self, _outside: &dyn Outside) {
        self.lower();
    }

    fn change(&mut self, change: Change, outside: &dyn Outside) {
        match change {
            // No guest runs yet that could know another time. The markers stay, as the generation identifier does.
            Change::Reset => {
                if self.disruption == 0 {
                    self.disrupt();
                    self.generation = self.another(0);
                }
                self.publish(outside);
                self.has_changed = false;
            }
            Change::Fork => {
                self.disrupt();
                self.generation = self.another(self.generation);
                self.publish(outside);
            }
            Change::Resume => {
                self.has_changed = false;
                if !self.tell_of_standing_still(outside) && self.is_behind {
                    self.write(outside);
                }
            }
            // Hundreds of markers and interrupts in a second would say no more than the last one, when all has come
            // ([`ClockPage::memory_has_come`]). But what the page says is right whenever it is read.
            Change::Unstall => {
                let now = outside.moment();
                if self.shown.is_some_and(|shown| shown.stood != now.stood) {
                    self.show(now, outside);
                }
            }
            Change::PowerOff => (self.shown, self.has_changed) = (None, false),
            Change::Forget | Change::Pause | Change::Stall => {}
        }
    }

    fn save_to(&self, out: &mut Writer) {
        out.part(&self.save());
    }

    fn restore_from(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        let saved = from.part()?;
        self.restore(&saved)
    }
}

#[cfg(test)]
mod tests;
