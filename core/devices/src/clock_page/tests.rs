//! What the page says, when it changes, and that a reader at any moment gets consistent values.

extern crate std;

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::vec::Vec;

use clock::{Period, Rate};
use pack::{Reader, Writer};
use proptest::prelude::*;
use units::{AccessSize, Hz, IntId, Line, VcpuId};

use super::{ClockPage, SavedClockPage, ShownMoment, TAI_OFFSET};
use crate::bus::{Access, Change, Device, Moment, Outside, Request, Stream, Wired};
use crate::memory::{GuestMemory, NoMemory};

const WHAT: IntId = IntId::spi(15);

/// What a reader by the rules of the specification makes of a page; nothing, if it has to begin anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Read {
    sequence: u32,
    disruption: u64,
    generation: u64,
    status: u8,
    count: u64,
    /// The time at which the counter showed 0, in units of 2^-64 seconds, modulo 2^128; and what is added for a tick.
    time: u128,
    period: Period,
    tai_offset: i16,
}

/// All fields are asked for by where they are and how long, as the header has them.
fn read(bytes: &[u8]) -> Option<Read> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let sequence = half(0x0c);
    if sequence % 2 != 0 || half(0) != 0x4b4c_4356 {
        return None;
    }
    assert_eq!((half(4), bytes[8], bytes[9], bytes[10], bytes[11]), (0x1000, 1, 0, 0, 1), "constants");
    assert_eq!(word(0x18), 1 | 1 << 8 | 1 << 9, "offset of TAI, generations, notification; and no errors are known");
    assert_eq!((bytes[0x23], bytes[0x26]), (0, 0), "nothing of leap seconds");
    assert!([0x38, 0x40, 0x58, 0x60].iter().all(|&at| word(at) == 0));
    let (count, period) = (word(0x28), Period { fraction: word(0x30), shift: bytes[0x27] });
    Some(Read {
        sequence,
        disruption: word(0x10),
        generation: word(0x68),
        status: bytes[0x22],
        count,
        time: u128::from(word(0x48)) << 64 | u128::from(word(0x50)),
        period,
        tai_offset: i16::from_le_bytes([bytes[0x24], bytes[0x25]]),
    })
}

impl Read {
    /// UTC in nanoseconds since 1970, when the counter shows `count`.
    fn utc(&self, count: u64) -> u128 {
        let ticks = u128::from(count.wrapping_sub(self.count));
        let time = self.time + ((ticks * u128::from(self.period.fraction)) >> self.period.shift);
        let (seconds, fraction) = ((time >> 64) as i128 - i128::from(self.tai_offset), time as u64);
        seconds as u128 * 1_000_000_000 + ((u128::from(fraction) * 1_000_000_000) >> 64)
    }
}

/// An outside that keeps the page, and every state of it that a guest could have seen.
struct World {
    moment: Cell<Moment>,
    page: RefCell<[u64; 14]>,
    seen: RefCell<Vec<[u64; 14]>>,
    lines: RefCell<Vec<Line>>,
}

const START: Moment = Moment {
    count: 0,
    period: Some(Period { fraction: 0x8970_5f41_36b4_a597, shift: 29 }),
    time: Duration::new(1_700_000_000, 500_000_000),
    is_known: true,
    stood: 0,
};

impl World {
    fn new() -> Self {
        Self { moment: Cell::new(START), page: RefCell::default(), seen: RefCell::default(), lines: RefCell::default() }
    }

    fn bytes(page: [u64; 14]) -> Vec<u8> {
        page.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn read(&self) -> Read {
        read(&Self::bytes(*self.page.borrow())).expect("it is not being written")
    }
}

impl Outside for World {
    fn seconds(&self) -> u64 {
        self.moment.get().time.as_secs()
    }

    fn count(&self) -> u64 {
        self.moment.get().count
    }

    fn moment(&self) -> Moment {
        self.moment.get()
    }

    fn show(&self, index: usize, word: u64) {
        self.page.borrow_mut()[index] = word;
        self.seen.borrow_mut().push(*self.page.borrow());
    }

    fn caller(&self) -> Option<VcpuId> {
        None
    }

    fn memory(&self) -> &dyn GuestMemory {
        &NoMemory
    }

    fn has_room(&self, _stream: Stream) -> bool {
        false
    }

    fn send_byte(&self, _stream: Stream, _byte: u8) -> bool {
        false
    }

    fn send(&self, _stream: Stream, _bytes: &[u8]) -> usize {
        0
    }

    fn set_line(&self, interrupt: IntId, line: Line) {
        assert_eq!(interrupt, WHAT);
        self.lines.borrow_mut().push(line);
    }

    fn request(&self, _request: Request<'_>) {}
}

type Filler = fn(&mut [u8]);

/// No randomness: each marker is the one before, and one more.
fn device() -> Wired<ClockPage<Filler>> {
    let zeros: Filler = |bytes| bytes.fill(0);
    Wired::new(ClockPage::new(zeros), [WHAT])
}

fn started() -> (World, Wired<ClockPage<Filler>>) {
    let (world, mut device) = (World::new(), device());
    device.change(Change::Reset, &world);
    (world, device)
}

#[test]
fn a_page_says_what_time_it_is_by_the_counter() {
    let (world, device) = started();
    let page = world.read();
    assert_eq!((page.status, page.tai_offset, TAI_OFFSET), (3, 37, 37));
    assert_eq!(page.utc(0), 1_700_000_000_500_000_000);
    assert_eq!(page.utc(3_000_000_000), 1_700_000_003_499_999_999, "at 1 GHz, rounded down");
    assert_ne!((page.disruption, page.generation), (0, 0));
    assert!(world.lines.borrow().is_empty(), "nobody is there who could be told");
    // Whoever cannot read it as memory reads the same, in any pieces.
    let bytes = World::bytes(*world.page.borrow());
    for (size, count) in [(AccessSize::Byte, 1), (AccessSize::Half, 2), (AccessSize::Word, 4), (AccessSize::Double, 8)]
    {
        for at in 0..=bytes.len() - count {
            let mut expected = [0; 8];
            expected[..count].copy_from_slice(&bytes[at..at + count]);
            assert_eq!(
                device.device().read_at(at as u64, size),
                u64::from_le_bytes(expected),
                "{count} bytes at {at:#x}"
            );
        }
    }
    for at in [0x70, 0xff8, u64::MAX] {
        assert_eq!(device.device().read_at(at, AccessSize::Double), 0, "{at:#x}");
    }
}

/// What is unknown is not pretended, and a driver refuses to use it.
#[test]
fn without_a_clock_the_page_is_unreliable() {
    for moment in [Moment { is_known: false, ..START }, Moment { period: None, ..START }] {
        let (world, mut device) = (World::new(), device());
        world.moment.set(moment);
        device.change(Change::Reset, &world);
        assert_eq!(world.read().status, 4, "{moment:?}");
    }
}

/// While its memory comes a guest stands still for each piece that it needs. It always finds the right time, and hears of all that
/// once: when all has come, or in a pause that comes before that.
#[test]
fn a_guest_whose_memory_comes_hears_once_that_it_stood_still() {
    for is_paused_before in [false, true] {
        let (world, mut device) = started();
        let before = world.read();
        let mut stood = 0;
        for _ in 0..300 {
            device.change(Change::Stall, &world);
            stood += 5;
            let time = START.time + Duration::from_secs(stood);
            world.moment.set(Moment { stood, time, ..START });
            device.change(Change::Unstall, &world);
            let now = world.read();
            assert_eq!((now.disruption, now.generation), (before.disruption, before.generation), "no marker for each");
            assert_eq!(now.utc(0), before.utc(0) + u128::from(stood) * 1_000_000_000, "but the time is right");
        }
        let is_told = |lines: Vec<Line>| lines.iter().filter(|&&line| line == Line::High).count();
        assert_eq!(is_told(world.lines.take()), 0);
        if is_paused_before {
            device.change(Change::Pause, &world);
            device.change(Change::Resume, &world);
            assert_eq!(is_told(world.lines.take()), 1);
            device.work(&world, ClockPage::lower);
        }
        device.work(&world, |page| page.memory_has_come(&world));
        let after = world.read();
        assert_ne!(after.disruption, before.disruption);
        assert_eq!(after.generation, before.generation);
        assert_eq!(is_told(world.lines.take()), usize::from(!is_paused_before));
        // Not again, when it has heard.
        device.work(&world, |page| page.memory_has_come(&world));
        device.change(Change::Pause, &world);
        device.change(Change::Resume, &world);
        assert_eq!(world.read().disruption, after.disruption);
    }
    // One whose clock never stood still hears of nothing.
    let (world, mut device) = started();
    let before = world.read();
    device.change(Change::Stall, &world);
    device.change(Change::Unstall, &world);
    device.work(&world, |page| page.memory_has_come(&world));
    assert_eq!(world.read().sequence, before.sequence);
}

/// The table of decision 0031: what changes which marker, and whether the guest hears of it.
#[test]
fn what_disrupts_and_what_does_not() {
    let changes = |work: &dyn Fn(&World, &mut Wired<ClockPage<Filler>>)| {
        let (world, mut device) = started();
        let before = world.read();
        work(&world, &mut device);
        let after = world.read();
        let lines = world.lines.take();
        let is_told = lines.iter().filter(|&&line| line == Line::High).count();
        (
            after.disruption != before.disruption,
            after.generation != before.generation,
            after.sequence != before.sequence,
            is_told,
        )
    };
    let nothing = (false, false, false, 0);
    let pause = |stood: u64| {
        move |world: &World, device: &mut Wired<ClockPage<Filler>>| {
            device.change(Change::Pause, world);
            world.moment.set(Moment { stood, time: START.time + Duration::from_secs(9), ..START });
            device.change(Change::Resume, world);
        }
    };
    assert_eq!(changes(&pause(0)), nothing, "a pause in which the counter goes on");
    assert_eq!(changes(&pause(5)), (true, false, true, 1), "one in which it stands still");
    assert_eq!(changes(&|world, device| device.change(Change::Fork, world)), (true, true, true, 1));
    assert_eq!(changes(&|world, device| device.work(world, |page| page.time_was_set(world))), (true, false, true, 1));
    let reset = |world: &World, device: &mut Wired<ClockPage<Filler>>| {
        device.change(Change::PowerOff, world);
        device.change(Change::Reset, world);
    };
    assert_eq!(changes(&reset), (false, false, true, 0), "a new life has no markers that it knows");
    // Each change has an edge of its own.
    let twice = |world: &World, device: &mut Wired<ClockPage<Filler>>| {
        for _ in 0..2 {
            device.work(world, |page| page.time_was_set(world));
            device.work(world, ClockPage::lower);
        }
    };
    assert_eq!(changes(&twice), (true, false, true, 2));
}

/// A guest that was stopped while it read the page finds the rest of the same; one that goes on a second time, what its host knows.
#[test]
fn a_page_that_was_moved_is_the_same_until_it_forks() {
    let (world, device) = started();
    let before = *world.page.borrow();
    let (other, mut moved) = (World::new(), self::device());
    other.moment.set(Moment { count: 7, period: Period::of(Hz(24_000_000), Rate::REAL), ..START });
    moved.change(Change::Reset, &other);
    assert_ne!(*other.page.borrow(), before);
    moved.work(&other, |page| page.restore(&device.device().save())).expect("it is a state");
    assert_eq!(moved.device().save(), device.device().save());
    moved.change(Change::Resume, &other);
    assert_eq!((*other.page.borrow(), moved.device().save()), (before, device.device().save()));
    assert!(other.lines.borrow().is_empty());
    moved.change(Change::Fork, &other);
    let (before, after) = (world.read(), other.read());
    assert!(after.disruption != before.disruption && after.generation != before.generation);
    assert_eq!((after.sequence, after.count), (before.sequence + 2, 7));
    assert_eq!(after.utc(7 + 24_000_000), 1_700_000_001_499_999_999);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let shown = |shown| SavedClockPage { shown: Some(shown), ..SavedClockPage::default() };
    let wrong = [
        SavedClockPage { sequence: 3, ..SavedClockPage::default() },
        shown(ShownMoment { nanoseconds: 1_000_000_000, ..ShownMoment::default() }),
        shown(ShownMoment { period: 1, shift: 64, ..ShownMoment::default() }),
        shown(ShownMoment { shift: 1, ..ShownMoment::default() }),
    ];
    let (_, device) = started();
    for saved in wrong {
        let mut page = *device.device();
        assert!(page.restore(&saved).is_err(), "{saved:?}");
        assert_eq!(page, *device.device(), "nothing has changed");
    }
}

/// A marker is what the source says, unless that tells nothing new.
#[test]
fn markers_come_from_the_source_and_never_twice() {
    let mut drawn = [7_u64, 5, 7, 6, 0, 6].into_iter();
    let page = ClockPage::new(move |bytes: &mut [u8]| {
        bytes.copy_from_slice(&drawn.next().expect("so many were asked for").to_le_bytes());
    });
    let (world, mut device) = (World::new(), Wired::new(page, [WHAT]));
    let markers = |world: &World| (world.read().disruption, world.read().generation);
    device.change(Change::Reset, &world);
    assert_eq!(markers(&world), (7, 5));
    device.change(Change::Fork, &world);
    assert_eq!(markers(&world), (8, 6), "7 was there");
    device.change(Change::Fork, &world);
    assert_eq!(markers(&world), (9, 7), "0 says nothing, and 6 was there");
}

/// A reader that meets an update begins anew: it must meet none for nothing.
#[test]
fn a_page_that_is_right_is_left_alone() {
    let (world, mut device) = started();
    world.seen.take();
    device.change(Change::Pause, &world);
    device.change(Change::Resume, &world);
    assert!(world.seen.take().is_empty());
    // One write, if the guest's clock stood still.
    device.change(Change::Pause, &world);
    world.moment.set(Moment { stood: 5, ..START });
    device.change(Change::Resume, &world);
    let sequences = world.seen.take().iter().map(|page| page[1] >> 32).collect::<Vec<_>>();
    assert_eq!(sequences.iter().filter(|&&sequence| sequence % 2 != 0).count(), 14, "{sequences:?}");
}

/// What the machine calls, whatever the device: registers in any size, and its line, which falls when somebody looks.
#[test]
fn on_the_bus_it_is_read_and_its_line_falls() {
    let (world, mut device) = started();
    let access = Access { frame: 0, offset: 0, size: AccessSize::Word };
    assert_eq!(device.read(&access, &world), 0x4b4c_4356);
    device.change(Change::Fork, &world);
    device.poll(&world);
    assert_eq!(world.lines.take(), [Line::High, Line::Low]);
}

#[test]
fn states_at_the_limits_are_taken() {
    let widest = ShownMoment { period: 1, shift: 63, nanoseconds: 999_999_999, ..ShownMoment::default() };
    for shown in [widest, ShownMoment::default()] {
        let saved = SavedClockPage { shown: Some(shown), ..SavedClockPage::default() };
        let mut page = *device().device();
        assert_eq!((page.restore(&saved), page.save()), (Ok(()), saved));
    }
}

proptest! {
    /// Whoever reads at any moment of an update, field after field, and finds the same even count before and behind, has read the one
    /// moment or the other, whole. Each of its looks may see any of the states from its last look on.
    #[test]
    fn no_reader_sees_two_moments(counts in (any::<u64>(), any::<u64>()), looks in proptest::collection::vec(0..40_usize, 16)) {
        let (world, mut device) = started();
        world.seen.take();
        let old = *world.page.borrow();
        world.moment.set(Moment { count: counts.0, time: Duration::from_secs(counts.1 >> 1), ..START });
        device.change(Change::Fork, &world);
        let mut states = std::vec![old];
        states.extend(world.seen.take());
        let last = states.len() - 1;
        prop_assert!(states.iter().all(|state| state[0] == old[0] && state[3] == old[3]), "constants");
        let mut at = looks[0].min(last);
        let begin = states[at][1];
        let mut fields = [0; 14];
        for (index, field) in fields.iter_mut().enumerate() {
            // Most of the time nothing changes between two looks.
            at = (at + looks[index + 1].saturating_sub(30)).min(last);
            *field = states[at][index];
        }
        at = (at + looks[15].saturating_sub(30)).min(last);
        if begin >> 32 & 1 == 0 && states[at][1] == begin {
            fields[1] = begin;
            prop_assert!(fields == old || fields == states[last], "{:x?} of {:x?} and {:x?}", fields, old, states[last]);
        }
    }

    #[test]
    fn any_state_comes_back(numbers in any::<[u64; 6]>(), shown in any::<Option<(u64, u8, u32)>>(), flags in any::<[bool; 2]>()) {
        let [sequence, disruption, generation, count, seconds, stood] = numbers;
        let [is_known, has_changed] = flags;
        let shown = shown.map(|(period, shift, nanoseconds)| ShownMoment {
            count,
            period: period.max(1),
            shift: shift % 64,
            seconds,
            nanoseconds: nanoseconds % 1_000_000_000,
            is_known,
            stood,
        });
        let saved = SavedClockPage { sequence: sequence as u32 & !1, disruption, generation, shown, has_changed };
        let mut page = *device().device();
        page.restore(&saved).expect("it can be");
        prop_assert_eq!(page.save(), saved);
        let mut out = Writer::new();
        page.save_to(&mut out);
        let bytes = out.finish().expect("there is memory");
        let mut other = *device().device();
        other.restore_from(&mut Reader::new(&bytes)).expect("it was just written");
        prop_assert_eq!(other.save(), saved);
    }
}
