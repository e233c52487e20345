//! The memory-mapped generic timer (DDI 0487 chapter I2, "System Level Implementation of the Generic Timer"): a control frame,
//! CNTCTLBase, and one timer frame, CNTBase0, with a physical and a virtual timer.
//!
//! It is for a guest whose time is not its host's, on a CPU that cannot trap CNTVCT_EL0. Linux before 6.18 reads its clock from
//! this frame where its device tree names no other timer, and an access to memory traps on every CPU. Linux looks for the
//! virtual counter and takes a frame with a virtual timer first, so the frame has one.
//!
//! Counts are those of the guest's counter, which the owner of the machine passes in: this device and the timers of the vCPUs
//! show one time. It has no clock of its own, and asks to be polled at the count at which its next line goes up.
//!
//! CNTACR0 says which registers of the frame are accessible; the others read as 0 and ignore writes. The architecture leaves its
//! value after a reset open, and has firmware set it; there is none here, so all can be reached. A second view of the frame
//! (CNTEL0Base0), other frames and the secure registers are not there. The double words are read and written in one piece, or as
//! two words.

use clock::{EmulatedTimer, GuestTicks, saved};
use pack::{Damaged, Reader, Writer};
use units::Hz;

use crate::AccessSize;
use crate::access::{extract, register_offset, written};
use crate::bus::{Access, Change, Device, Outside, Request};
use crate::saved::Unfit;

/// Register offsets.
mod register {
    /// In the control frame: what the frames have.
    pub(super) const CNTTIDR: u64 = 0x008;
    /// What of frame 0 can be reached.
    pub(super) const CNTACR0: u64 = 0x040;
    /// The virtual offset of frame 0, two words, which can be written there.
    pub(super) const CNTVOFF0: u64 = 0x080;
    pub(super) const CNTVOFF0_HIGH: u64 = 0x084;
    /// In both frames: the counters' frequency; in the control frame it is the first register.
    pub(super) const CNTFRQ: u64 = 0x010;
    pub(super) const CONTROL_CNTFRQ: u64 = 0x000;
    /// In the timer frame, two words each: the counters, and the offset again.
    pub(super) const CNTPCT: u64 = 0x000;
    pub(super) const CNTPCT_HIGH: u64 = 0x004;
    pub(super) const CNTVCT: u64 = 0x008;
    pub(super) const CNTVCT_HIGH: u64 = 0x00c;
    pub(super) const CNTVOFF: u64 = 0x018;
    pub(super) const CNTVOFF_HIGH: u64 = 0x01c;
    /// The physical timer's four words, and the virtual one's.
    pub(super) const CNTP: u64 = 0x020;
    pub(super) const CNTV: u64 = 0x030;
    /// Within those: CVAL, two words; TVAL; CTL.
    pub(super) const CVAL: u64 = 0x0;
    pub(super) const CVAL_HIGH: u64 = 0x4;
    pub(super) const TVAL: u64 = 0x8;
    pub(super) const CTL: u64 = 0xc;
}

/// CNTTIDR: frame 0 is there, with virtual counter and timer, and without a second view.
const IDENTIFICATION: u32 = 0b011;
/// CNTACR: RPCT, RVCT, RFRQ, RVOFF, RWVT and RWPT.
const RPCT: u32 = 1 << 0;
const RVCT: u32 = 1 << 1;
const RFRQ: u32 = 1 << 2;
const RVOFF: u32 = 1 << 3;
const RWVT: u32 = 1 << 4;
const RWPT: u32 = 1 << 5;
const ALL: u32 = 0x3f;
/// Its lines, in the order of the device tree's binding.
const PHYSICAL: u32 = 1 << 0;
const VIRTUAL: u32 = 1 << 1;

/// A memory-mapped generic timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryTimer {
    frequency: u32,
    access: u32,
    offset: u64,
    physical: EmulatedTimer,
    virtual_: EmulatedTimer,
    /// The levels of its lines, as they were when somebody looked at the time last.
    lines: u32,
}

/// The state of a memory-mapped generic timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedMemoryTimer {
    /// CNTFRQ: a guest learns it once, so it goes along to another host.
    pub frequency: u32,
    /// CNTACR0.
    pub access: u32,
    /// CNTVOFF0.
    pub offset: u64,
    /// The physical timer.
    pub physical: saved::Timer,
    /// The virtual timer.
    pub virtual_: saved::Timer,
    /// Which lines were up: bit 0 of the physical timer, bit 1 of the virtual one.
    pub lines: u32,
}

impl SavedMemoryTimer {
    /// The version of this type: another one means another set of fields, or another meaning.
    pub const VERSION: u16 = 1;
}

pack::value!(SavedMemoryTimer as "memory-timer" { frequency, access, offset, physical, virtual_, lines });

impl MemoryTimer {
    /// The number of the control frame in the timer's row of the plan.
    pub const CONTROL_FRAME: usize = 0;
    /// And that of the timer frame.
    pub const TIMER_FRAME: usize = 1;

    /// A timer as after a reset, of a counter with this frequency.
    #[must_use]
    pub fn new(frequency: Hz) -> Self {
        let off = EmulatedTimer::from_registers(0, 0);
        let frequency = u32::try_from(frequency.0).unwrap_or(0);
        Self { frequency, access: ALL, offset: 0, physical: off, virtual_: off, lines: 0 }
    }

    /// Takes the state out.
    #[must_use]
    pub const fn save(&self) -> SavedMemoryTimer {
        let &Self { frequency, access, offset, physical, virtual_, lines } = self;
        SavedMemoryTimer { frequency, access, offset, physical: physical.save(), virtual_: virtual_.save(), lines }
    }

    /// A timer with this state.
    ///
    /// # Errors
    /// If no timer can be in such a state.
    pub fn restored(saved: &SavedMemoryTimer) -> Result<Self, Unfit> {
        let &SavedMemoryTimer { frequency, access, offset, physical, virtual_, lines } = saved;
        if access & !ALL != 0 {
            return Err(Unfit("CNTACR0 of the memory-mapped timer has more than 6 bits"));
        }
        if lines & !(PHYSICAL | VIRTUAL) != 0 {
            return Err(Unfit("the memory-mapped timer has more than two lines"));
        }
        let timer = |saved| {
            EmulatedTimer::restore(saved).map_err(|_| Unfit("a timer of the memory-mapped timer's frame is no timer"))
        };
        Ok(Self { frequency, access, offset, physical: timer(&physical)?, virtual_: timer(&virtual_)?, lines })
    }

    /// What the virtual timer and counter go by.
    const fn virtual_count(&self, count: u64) -> GuestTicks {
        GuestTicks(count.wrapping_sub(self.offset))
    }

    /// The first count at which a line goes up that is down now; `None` if no line ever does.
    #[must_use]
    pub fn deadline(&self, count: u64) -> Option<u64> {
        let away = |timer: &EmulatedTimer, shown: GuestTicks| {
            let distance = timer.fires_at()?.0.checked_sub(shown.0).filter(|&distance| distance > 0)?;
            count.checked_add(distance)
        };
        let both = [away(&self.physical, GuestTicks(count)), away(&self.virtual_, self.virtual_count(count))];
        both.into_iter().flatten().min()
    }

    /// The guest's counter shows `count`: the lines follow.
    pub const fn advance(&mut self, count: u64) {
        let physical = if self.physical.is_asserted_at(GuestTicks(count)) { PHYSICAL } else { 0 };
        let virtual_ = if self.virtual_.is_asserted_at(self.virtual_count(count)) { VIRTUAL } else { 0 };
        self.lines = physical | virtual_;
    }

    /// The guest reads `size` bytes at `offset` of a frame.
    #[must_use]
    pub fn read_frame(&self, frame: usize, offset: u64, size: AccessSize, count: u64) -> u64 {
        let word = |at| match frame {
            Self::CONTROL_FRAME => self.read_control(at),
            Self::TIMER_FRAME => self.read_timer(at, count),
            _ => 0,
        };
        if size == AccessSize::Double {
            return u64::from(word(offset)) | u64::from(word(offset.wrapping_add(4))) << 32;
        }
        extract(word(register_offset(offset)), offset, size)
    }

    /// The guest writes `size` bytes at `offset` of a frame. The lines do not follow yet.
    pub fn write_frame(&mut self, frame: usize, offset: u64, size: AccessSize, value: u64, count: u64) {
        let Some(word) = written(offset, size, value) else { return };
        let mut write = |at, word| match frame {
            Self::CONTROL_FRAME => self.write_control(at, word),
            Self::TIMER_FRAME => self.write_timer(at, word, count),
            // It has no more.
            _ => {}
        };
        write(offset, word);
        if size == AccessSize::Double {
            write(offset.wrapping_add(4), high(value));
        }
    }

    fn read_control(&self, offset: u64) -> u32 {
        match offset {
            register::CONTROL_CNTFRQ => self.frequency,
            register::CNTTIDR => IDENTIFICATION,
            register::CNTACR0 => self.access,
            register::CNTVOFF0 => low(self.offset),
            register::CNTVOFF0_HIGH => high(self.offset),
            _ => 0,
        }
    }

    fn write_control(&mut self, offset: u64, word: u32) {
        match offset {
            register::CNTACR0 => self.access = word & ALL,
            register::CNTVOFF0 => self.offset = with_low(self.offset, word),
            register::CNTVOFF0_HIGH => self.offset = with_high(self.offset, word),
            _ => {}
        }
    }

    fn read_timer(&self, offset: u64, count: u64) -> u32 {
        let shown = self.virtual_count(count);
        let (needed, value) = match offset {
            register::CNTPCT => (RPCT, low(count)),
            register::CNTPCT_HIGH => (RPCT, high(count)),
            register::CNTVCT => (RVCT, low(shown.0)),
            register::CNTVCT_HIGH => (RVCT, high(shown.0)),
            register::CNTFRQ => (RFRQ, self.frequency),
            register::CNTVOFF => (RVOFF, low(self.offset)),
            register::CNTVOFF_HIGH => (RVOFF, high(self.offset)),
            register::CNTP..register::CNTV => {
                (RWPT, read_register(&self.physical, offset - register::CNTP, GuestTicks(count)))
            }
            register::CNTV..0x40 => (RWVT, read_register(&self.virtual_, offset - register::CNTV, shown)),
            _ => (0, 0),
        };
        if self.access & needed == needed { value } else { 0 }
    }

    fn write_timer(&mut self, offset: u64, word: u32, count: u64) {
        let shown = self.virtual_count(count);
        match offset {
            register::CNTP..register::CNTV if self.access & RWPT != 0 => {
                write_register(&mut self.physical, offset - register::CNTP, word, GuestTicks(count));
            }
            register::CNTV..0x40 if self.access & RWVT != 0 => {
                write_register(&mut self.virtual_, offset - register::CNTV, word, shown);
            }
            _ => {}
        }
    }

    /// Looks at the time, and asks to be polled when there is more to do.
    fn look(&mut self, outside: &dyn Outside) {
        let count = outside.count();
        self.advance(count);
        outside.request(Request::TimerAt(self.deadline(count)));
    }
}

fn read_register(timer: &EmulatedTimer, register: u64, shown: GuestTicks) -> u32 {
    match register {
        register::CVAL => low(timer.read_compare()),
        register::CVAL_HIGH => high(timer.read_compare()),
        register::TVAL => low(timer.value_at(shown)),
        register::CTL => low(timer.control_at(shown)),
        _ => 0,
    }
}

fn write_register(timer: &mut EmulatedTimer, register: u64, word: u32, shown: GuestTicks) {
    match register {
        register::CVAL => timer.write_compare(with_low(timer.read_compare(), word)),
        register::CVAL_HIGH => timer.write_compare(with_high(timer.read_compare(), word)),
        register::TVAL => timer.write_value_at(word.into(), shown),
        register::CTL => timer.write_control(word.into()),
        _ => {}
    }
}

impl Device for MemoryTimer {
    fn read(&mut self, access: &Access, outside: &dyn Outside) -> u64 {
        self.read_frame(access.frame, access.offset, access.size, outside.count())
    }

    fn write(&mut self, access: &Access, value: u64, outside: &dyn Outside) {
        self.write_frame(access.frame, access.offset, access.size, value, outside.count());
        self.look(outside);
    }

    fn lines(&self) -> u32 {
        self.lines
    }

    fn poll(&mut self, outside: &dyn Outside) {
        self.look(outside);
    }

    fn change(&mut self, change: Change, outside: &dyn Outside) {
        match change {
            Change::Reset | Change::PowerOff => {
                *self = Self::new(Hz(self.frequency.into()));
                self.look(outside);
            }
            // Its time stands still or goes on with the guest's counter.
            Change::Forget | Change::Pause | Change::Stall | Change::Fork => {}
            // Where that stood still, or the state was put in, its deadline is another one of the host's.
            Change::Resume | Change::Unstall => self.look(outside),
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

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn with_low(value: u64, word: u32) -> u64 {
    value & !0xffff_ffff | u64::from(word)
}

fn with_high(value: u64, word: u32) -> u64 {
    value & 0xffff_ffff | u64::from(word) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WORD: AccessSize = AccessSize::Word;
    const DOUBLE: AccessSize = AccessSize::Double;
    const CONTROL: usize = MemoryTimer::CONTROL_FRAME;
    const TIMER: usize = MemoryTimer::TIMER_FRAME;
    /// CNTP_CVAL, CNTP_TVAL and CNTP_CTL; the virtual timer's are behind them.
    const CVAL: u64 = 0x20;
    const TVAL: u64 = 0x28;
    const CTL: u64 = 0x2c;
    const TO_VIRTUAL: u64 = 0x10;

    fn timer() -> MemoryTimer {
        MemoryTimer::new(Hz(24_000_000))
    }

    #[test]
    fn it_says_what_it_has() {
        let timer = timer();
        assert_eq!(timer.read_frame(CONTROL, 0x008, WORD, 5), 3, "CNTTIDR");
        assert_eq!(timer.read_frame(CONTROL, 0x000, WORD, 5), 24_000_000, "CNTFRQ");
        assert_eq!(timer.read_frame(TIMER, 0x010, WORD, 5), 24_000_000, "CNTFRQ");
        assert_eq!(timer.read_frame(CONTROL, 0x044, WORD, 5), 0, "CNTACR1 of a frame that is not there");
        assert_eq!(timer.read_frame(TIMER, 0x014, WORD, 5), 0, "CNTEL0ACR");
        assert_eq!(timer.read_frame(2, 0, WORD, 5), 0);
    }

    #[test]
    fn counters_are_words_and_double_words() {
        let mut timer = timer();
        let count = 0x1234_5678_9abc_def0;
        for (offset, size, expected) in [
            (0x0, DOUBLE, count),
            (0x0, WORD, count & 0xffff_ffff),
            (0x4, WORD, count >> 32),
            (0x8, DOUBLE, count),
            (0xc, WORD, count >> 32),
            (0x6, AccessSize::Half, count >> 48),
        ] {
            assert_eq!(timer.read_frame(TIMER, offset, size, count), expected, "{offset:#x}");
        }
        timer.write_frame(TIMER, 0, DOUBLE, 77, 5);
        assert_eq!(timer.read_frame(TIMER, 0, DOUBLE, 6), 6, "a counter can only be read");
        timer.write_frame(CONTROL, 0x80, DOUBLE, 1 << 32 | 1, 5);
        assert_eq!(timer.read_frame(TIMER, 0x8, DOUBLE, 3 << 32 | 7), 2 << 32 | 6, "the virtual count is behind");
        assert_eq!(timer.read_frame(TIMER, 0x18, DOUBLE, 7), 1 << 32 | 1, "CNTVOFF");
        timer.write_frame(TIMER, 0x18, DOUBLE, 0, 5);
        assert_eq!(timer.read_frame(CONTROL, 0x80, DOUBLE, 7), 1 << 32 | 1, "it can only be read there");
    }

    #[test]
    fn what_cntacr_takes_away_is_not_there() {
        let mut timer = timer();
        timer.write_frame(TIMER, CVAL, DOUBLE, 100, 0);
        timer.write_frame(TIMER, CVAL + TO_VIRTUAL, DOUBLE, 200, 0);
        timer.write_frame(CONTROL, 0x40, WORD, u64::MAX, 0);
        assert_eq!(timer.read_frame(CONTROL, 0x40, WORD, 0), 0x3f, "only the bits that there are stick");
        for (bit, offset, shown) in [
            (0, 0x0, 50),
            (1, 0x8, 50),
            (2, 0x10, 24_000_000),
            (3, 0x18, 9),
            (4, CVAL + TO_VIRTUAL, 200),
            (5, CVAL, 100),
        ] {
            timer.write_frame(CONTROL, 0x80, DOUBLE, if bit == 3 { 9 } else { 0 }, 0);
            timer.write_frame(CONTROL, 0x40, WORD, 1 << bit, 0);
            assert_eq!(timer.read_frame(TIMER, offset, WORD, 50), shown, "CNTACR bit {bit}");
            timer.write_frame(CONTROL, 0x40, WORD, 0x3f & !(1 << bit), 0);
            assert_eq!(timer.read_frame(TIMER, offset, WORD, 50), 0, "CNTACR bit {bit} is off");
            timer.write_frame(TIMER, offset, WORD, 1, 50);
        }
        timer.write_frame(CONTROL, 0x40, WORD, 0x3f, 0);
        assert_eq!(timer.read_frame(TIMER, CVAL, DOUBLE, 50), 100, "nothing was written that could not be reached");
        assert_eq!(timer.read_frame(TIMER, CVAL + TO_VIRTUAL, DOUBLE, 50), 200);
    }

    #[test]
    fn both_timers_fire_and_have_a_line_each() {
        for (to, line) in [(0, PHYSICAL), (TO_VIRTUAL, VIRTUAL)] {
            let mut timer = timer();
            timer.write_frame(TIMER, TVAL + to, WORD, 10, 100);
            assert_eq!(timer.deadline(100), None, "it is off");
            timer.write_frame(TIMER, CTL + to, WORD, 1, 100);
            timer.advance(100);
            assert_eq!((timer.deadline(100), timer.lines()), (Some(110), 0));
            assert_eq!(timer.read_frame(TIMER, CTL + to, WORD, 109), 1);
            timer.advance(110);
            assert_eq!((timer.deadline(110), timer.lines()), (None, line));
            assert_eq!(timer.read_frame(TIMER, CTL + to, WORD, 110), 5, "ISTATUS");
            assert_eq!(timer.read_frame(TIMER, TVAL + to, WORD, 112), 0xffff_fffe);
            timer.write_frame(TIMER, CTL + to, WORD, 3, 113);
            timer.advance(113);
            assert_eq!((timer.read_frame(TIMER, CTL + to, WORD, 113), timer.lines()), (7, 0), "IMASK");
            timer.write_frame(TIMER, CVAL + to + 4, WORD, 1, 113);
            timer.write_frame(TIMER, CTL + to, WORD, 1, 113);
            assert_eq!(timer.deadline(113), Some(1 << 32 | 110));
        }
    }

    /// Each half of a register of 64 bits can be written and read alone, and leaves the other one as it is.
    #[test]
    fn halves_are_written_and_read_alone() {
        for (frame, register) in [(CONTROL, 0x80), (TIMER, CVAL), (TIMER, CVAL + TO_VIRTUAL)] {
            let mut timer = timer();
            timer.write_frame(frame, register, DOUBLE, 0x1111_2222_3333_4444, 0);
            timer.write_frame(frame, register, WORD, 0x5555_6666, 0);
            assert_eq!(timer.read_frame(frame, register, DOUBLE, 0), 0x1111_2222_5555_6666);
            timer.write_frame(frame, register + 4, WORD, 0x7777_8888, 0);
            assert_eq!(timer.read_frame(frame, register, DOUBLE, 0), 0x7777_8888_5555_6666);
            assert_eq!(timer.read_frame(frame, register, WORD, 0), 0x5555_6666);
            assert_eq!(timer.read_frame(frame, register + 4, WORD, 0), 0x7777_8888);
        }
    }

    #[test]
    fn never_is_never() {
        let mut timer = timer();
        timer.write_frame(TIMER, CVAL, DOUBLE, u64::MAX, 7);
        timer.write_frame(TIMER, CTL, WORD, 1, 7);
        assert_eq!(timer.deadline(7), Some(u64::MAX));
        timer.write_frame(TIMER, CTL, WORD, 0, 7);
        timer.write_frame(CONTROL, 0x80, DOUBLE, u64::MAX, 7);
        timer.write_frame(TIMER, CVAL + TO_VIRTUAL, DOUBLE, u64::MAX, 7);
        timer.write_frame(TIMER, CTL + TO_VIRTUAL, WORD, 1, 7);
        // The virtual count is 8; it gets there only by the physical one's beginning anew.
        assert_eq!(timer.deadline(7), Some(u64::MAX - 1));
        assert_eq!(timer.deadline(u64::MAX - 1), None);
    }

    #[test]
    fn what_no_guest_can_bring_about_is_refused() {
        let good = timer().save();
        assert_eq!(MemoryTimer::restored(&good), Ok(timer()));
        assert!(MemoryTimer::restored(&SavedMemoryTimer { access: 0x40, ..good }).is_err());
        assert!(MemoryTimer::restored(&SavedMemoryTimer { lines: 4, ..good }).is_err());
        let odd = saved::Timer { control: 4, ..good.physical };
        assert!(MemoryTimer::restored(&SavedMemoryTimer { physical: odd, ..good }).is_err());
        assert!(MemoryTimer::restored(&SavedMemoryTimer { virtual_: odd, ..good }).is_err());
    }

    proptest! {
        /// Whatever was written: no line goes up before the deadline, and one does at it; nothing panics, no width shows more than
        /// itself; and its state comes back.
        #[test]
        fn a_line_goes_up_at_the_deadline_and_not_before(
            writes in prop::collection::vec((0usize..3, 0u64..0x100, 0u64..4, any::<u64>()), 0..40),
            near in any::<bool>(), count in any::<u64>(),
        ) {
            let mut timer = timer();
            let count = if near { count >> 40 } else { count };
            for (frame, offset, size, value) in writes {
                let size = AccessSize::from_sas(size);
                let offset = offset & !(size.bytes() as u64 - 1);
                let value = if near && offset != CTL && offset != CTL + TO_VIRTUAL { value >> 40 } else { value };
                timer.write_frame(frame, offset, size, value, count);
                prop_assert_eq!(timer.read_frame(frame, offset, size, count) & !size.mask(), 0);
            }
            timer.advance(count);
            let lines = timer.lines();
            if let Some(deadline) = timer.deadline(count) {
                prop_assert!(deadline > count);
                timer.advance(deadline - 1);
                prop_assert_eq!(timer.lines() & !lines, 0);
                timer.advance(deadline);
                prop_assert!(timer.lines() & !lines != 0);
            }
            prop_assert_eq!(MemoryTimer::restored(&timer.save()), Ok(timer));
            let mut out = Writer::new();
            timer.save_to(&mut out);
            let bytes = out.finish().unwrap();
            let mut other = MemoryTimer::new(Hz(1));
            other.restore_from(&mut Reader::new(&bytes)).unwrap();
            prop_assert_eq!(other, timer);
        }
    }
}
