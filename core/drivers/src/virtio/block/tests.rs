//! The driver against a device that says what a test wants it to say.

extern crate std;

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::virtio::queue::Rings;
use crate::virtio::{Shape, probe};

const SECTORS: u64 = 1 << 33;

/// A chain as the device finds it: its slot, head, length, and whether it writes.
type Chain = (u16, [u8; HEAD], u32, bool);

/// A device.
#[derive(Default)]
struct Fake {
    features: u64,
    select: Cell<u32>,
    accepted: Cell<u64>,
    status: Cell<u32>,
    notified: Cell<u32>,
    config: RefCell<BTreeMap<u64, u32>>,
    /// It has too few entries in its ring.
    is_small: bool,
    /// What it was offered, and has not answered.
    chains: RefCell<Vec<Chain>>,
    published: Cell<u16>,
    /// Its ring.
    used: RefCell<Vec<(u32, u32)>>,
    used_count: Cell<u16>,
    answers: RefCell<[u8; SLOTS as usize]>,
    buffers: RefCell<Vec<Vec<u8>>>,
}

#[derive(Clone)]
struct Link(Rc<Fake>);

impl Link {
    fn new(features: u64, config: &[(u64, u32)]) -> Self {
        let mut all = BTreeMap::from([(0, SECTORS as u32), (4, (SECTORS >> 32) as u32)]);
        all.extend(config.iter().copied());
        Self(Rc::new(Fake {
            features: features | 1 << 32,
            config: RefCell::new(all),
            used: RefCell::new(vec![(0, 0); usize::from(SLOTS * DESCRIPTORS)]),
            buffers: RefCell::new(vec![vec![0; BUFFER as usize]; SLOTS.into()]),
            answers: RefCell::new([NO_ANSWER; SLOTS as usize]),
            ..Fake::default()
        }))
    }

    /// Says that the chain beginning with descriptor `first` is used.
    fn says(&self, first: u32, written: u32) {
        let count = self.0.used_count.get();
        self.0.used.borrow_mut()[usize::from(count % (SLOTS * DESCRIPTORS))] = (first, written);
        self.0.used_count.set(count.wrapping_add(1));
    }

    /// Answers the request in a slot as a device does.
    fn ends(&self, slot: u16, answer: u8) {
        let place = self.0.chains.borrow().iter().position(|chain| chain.0 == slot).expect("it was offered");
        let (_, _, length, writes) = self.0.chains.borrow_mut().remove(place);
        self.0.answers.borrow_mut()[usize::from(slot)] = answer;
        self.says(u32::from(slot * DESCRIPTORS), 1 + if writes { length } else { 0 });
    }
}

impl Rings for Link {
    fn offer(&mut self, _: u16, _: u16, _: u32) {}

    fn publish(&mut self, _: u16) {}

    fn set_interrupts(&mut self, _: bool) {}

    fn used_count(&self) -> u16 {
        0
    }

    fn used(&self, _: u16) -> (u32, u32) {
        (0, 0)
    }

    fn fill(&mut self, _: u16, _: u32, _: &[u8]) {}

    fn copy(&self, _: u16, _: &mut [u8]) {}
}

impl Slots for Link {
    fn offer(&mut self, place: u16, slot: u16, head: [u8; HEAD], length: u32, device_writes: bool) {
        assert_eq!(place, self.0.published.get() % (SLOTS * DESCRIPTORS));
        self.0.answers.borrow_mut()[usize::from(slot)] = NO_ANSWER;
        self.0.chains.borrow_mut().push((slot, head, length, device_writes));
    }

    fn publish(&mut self, count: u16) {
        self.0.published.set(count);
    }

    fn used_count(&self) -> u16 {
        self.0.used_count.get()
    }

    fn used(&self, place: u16) -> (u32, u32) {
        self.0.used.borrow()[usize::from(place)]
    }

    fn answer(&self, slot: u16) -> u8 {
        self.0.answers.borrow()[usize::from(slot)]
    }

    fn fill(&mut self, slot: u16, offset: u32, bytes: &[u8]) {
        self.0.buffers.borrow_mut()[usize::from(slot)][offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn copy(&self, slot: u16, offset: u32, into: &mut [u8]) {
        into.copy_from_slice(&self.0.buffers.borrow()[usize::from(slot)][offset as usize..][..into.len()]);
    }
}

impl Transport for Link {
    type Rings = Self;

    fn read(&self, register: u64) -> u32 {
        let fake = &self.0;
        match register {
            register::MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            register::VERSION => 2,
            register::DEVICE_ID => DEVICE_ID,
            register::DEVICE_FEATURES => (fake.features >> (32 * fake.select.get())) as u32,
            register::STATUS => fake.status.get(),
            register::CONFIG.. => fake.config.borrow().get(&(register - register::CONFIG)).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn write(&self, register: u64, value: u32) {
        match register {
            register::DEVICE_FEATURES_SEL => self.0.select.set(value),
            register::STATUS => self.0.status.set(value),
            register::QUEUE_NOTIFY => self.0.notified.set(self.0.notified.get() + 1),
            _ => {}
        }
    }

    fn accept(&self, features: u64) {
        assert_eq!(features & !self.0.features, 0, "more than it has");
        self.0.accepted.set(features);
    }

    fn lay_out(&mut self, _: u16, _: Shape) -> Option<Self> {
        None
    }
}

impl SlotTransport for Link {
    type Slots = Self;

    fn lay_out_slots(&mut self, queue: u16) -> Option<Self> {
        (queue == 0 && !self.0.is_small).then(|| self.clone())
    }
}

const ALL: u64 = READ_ONLY | FLUSH | DISCARD | ZERO | BLOCK_SIZE | SIZE_MAX;

/// A disk that can do all but be read only.
fn disk() -> (Link, Disk<Link>) {
    let config = [(8, 1 << 20), (20, 512), (36, 1000), (44, 8), (48, 100)];
    let link = Link::new(ALL & !READ_ONLY, &config);
    assert_eq!(probe(&link), Ok(Some(DEVICE_ID)));
    let disk = Disk::start(link.clone()).expect("it is good");
    (link, disk)
}

#[test]
fn a_disk_says_what_it_is() {
    let (link, disk) = disk();
    let limits = |most, alignment| Some(Limits { most, alignment });
    let (discard, zero) = (limits(1000, 8), limits(100, 1));
    let facts =
        Facts { sectors: SECTORS, block: 512, most: BUFFER, is_read_only: false, has_cache: true, discard, zero };
    assert_eq!((disk.facts(), link.0.status.get()), (&facts, 15));
    assert_eq!(link.0.accepted.get(), 1 << 32 | ALL & !READ_ONLY);
    // What it does not have it need not say, and what is reserved is not taken.
    let link = Link::new(READ_ONLY | 1 << 28 | 1 << 12, &[(20, 7), (36, 9)]);
    let plain = Disk::start(link.clone()).expect("it is good");
    let facts = Facts { is_read_only: true, has_cache: false, discard: None, zero: None, ..facts };
    assert_eq!((plain.facts(), link.0.accepted.get()), (&facts, 1 << 32 | READ_ONLY));
    let large = Disk::start(Link::new(BLOCK_SIZE | SIZE_MAX, &[(20, 4096), (8, 10_000)])).expect("it is good");
    assert_eq!((large.facts().block, large.facts().most), (4096, 8192), "whole blocks");
}

/// What may be cleared at once is what a device does in a time that others can wait for, whatever it says of itself.
#[test]
fn no_request_clears_more_than_a_little() {
    let disk = Disk::start(Link::new(ALL & !READ_ONLY, &[(8, 1 << 20), (20, 512), (36, u32::MAX), (48, u32::MAX)]));
    let mut disk = disk.expect("it is good");
    let most = [disk.facts().discard, disk.facts().zero].map(|limits| limits.expect("it can").most);
    assert_eq!(most, [MOST_CLEARED; 2]);
    assert!(disk.offer(0, DiskRequest::Zero(0, MOST_CLEARED, false)));
    assert!(!disk.offer(1, DiskRequest::Discard(0, MOST_CLEARED + 1)));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for config in [[(20, 0), (8, 4096)], [(20, 256), (8, 4096)], [(20, 513), (8, 4096)], [(20, 4096), (8, 2048)]] {
        let link = Link::new(BLOCK_SIZE | SIZE_MAX, &config);
        assert_eq!(Disk::start(link.clone()).err(), Some(Unusable::Disk), "{config:?}");
        assert_eq!(link.0.status.get() & 128, 128, "it hears of that");
    }
    let mut link = Link::new(0, &[]);
    Rc::get_mut(&mut link.0).expect("alone").is_small = true;
    assert_eq!(Disk::start(link).err(), Some(Unusable::Queue(0)));
}

#[test]
fn requests_say_what_is_wanted() {
    let (link, mut disk) = disk();
    let wishes = [
        DiskRequest::Read(5, 1024),
        DiskRequest::Write(1 << 32, 512),
        DiskRequest::Flush,
        DiskRequest::Discard(8, 1000),
        DiskRequest::Zero(9, 100, true),
    ];
    for (slot, wish) in (0..).zip(wishes) {
        disk.fill(slot, 0, &[7; 16]);
        assert!(disk.offer(slot, wish), "{wish:?}");
        assert!(!disk.offer(slot, DiskRequest::Flush), "the device has it");
    }
    assert!(disk.offer_serial(5) && !disk.offer_serial(5));
    disk.notify();
    let said = |number: u32, sector: u64| (u128::from(number) | u128::from(sector) << 64).to_le_bytes();
    let expected = [
        (0, said(0, 5), 1024, true),
        (1, said(1, 1 << 32), 512, false),
        (2, said(4, 0), 0, true),
        (3, said(11, 0), 16, false),
        (4, said(13, 0), 16, false),
        (5, said(8, 0), 20, true),
    ];
    assert_eq!((*link.0.chains.borrow()).as_slice(), expected);
    let ranges = [3, 4].map(|slot: usize| u128::from_le_bytes(link.0.buffers.borrow()[slot][..16].try_into().unwrap()));
    assert_eq!(ranges, [8 | 1000 << 64, 9 | 100 << 64 | 1 << 96]);
    assert_eq!((disk.under_way(), link.0.notified.get()), (6, 1));
    for (slot, answer, outcome) in
        [(4, 2, DiskOutcome::Unknown), (0, 0, DiskOutcome::Done), (2, 1, DiskOutcome::Failed)]
    {
        link.ends(slot, answer);
        assert_eq!(disk.take(), Ok(Some((slot, outcome))));
        assert_eq!(disk.take(), Ok(None));
        assert!(disk.offer(slot, DiskRequest::Flush), "it is ours again");
    }
}

/// Nothing is asked for that is not on the disk, or that the disk does not have.
#[test]
fn what_cannot_be_is_not_asked_for() {
    let (link, mut disk) = disk();
    let wrong = [
        DiskRequest::Read(0, 0),
        DiskRequest::Read(0, 100),
        DiskRequest::Read(0, BUFFER + 512),
        DiskRequest::Read(SECTORS, 512),
        DiskRequest::Write(SECTORS - 1, 1024),
        DiskRequest::Write(u64::MAX, 512),
        DiskRequest::Discard(0, 0),
        DiskRequest::Discard(0, 1001),
        DiskRequest::Discard(SECTORS - 1, 2),
        DiskRequest::Zero(u64::MAX, 1, false),
        DiskRequest::Zero(0, 101, false),
    ];
    assert!(wrong.into_iter().all(|wish| !disk.offer(0, wish)));
    assert!(
        !disk.offer_serial(SLOTS)
            && !disk.offer(SLOTS, DiskRequest::Flush)
            && !disk.offer(u16::MAX, DiskRequest::Flush)
    );
    let mut plain = Disk::start(Link::new(READ_ONLY, &[])).expect("it is good");
    let wrong =
        [DiskRequest::Write(0, 512), DiskRequest::Flush, DiskRequest::Discard(0, 1), DiskRequest::Zero(0, 1, false)];
    assert!(wrong.into_iter().all(|wish| !plain.offer(0, wish)) && plain.offer(0, DiskRequest::Read(0, 512)));
    assert!(link.0.chains.borrow().is_empty());
}

/// A device that lies is reset and no longer used; what it has is nobody's.
#[test]
fn a_device_that_lies_is_left() {
    let unknown = "it has answered a request that it was not given";
    let lies: [(&[(u32, u32)], &str); 7] = [
        (&[(4, 1)], unknown),
        (&[(1, 1)], unknown),
        (&[(u32::MAX, 1)], unknown),
        (&[(u32::from(SLOTS * DESCRIPTORS), 1)], unknown),
        (&[(0, 514)], "it has written more than a request has room for"),
        (&[(0, 513), (0, 513)], "it has answered more requests than it was given"),
        (&[(0, u32::MAX)], "it has written more than a request has room for"),
    ];
    for (lie, said) in lies {
        let (link, mut disk) = disk();
        assert!(disk.offer(0, DiskRequest::Read(0, 512)));
        lie.iter().for_each(|&(first, written)| link.says(first, written));
        link.0.answers.borrow_mut()[0] = 0;
        assert_eq!(disk.take(), Err(Broken(said)), "{lie:?}");
        assert!(disk.is_broken() && link.0.status.get() == 0 && disk.under_way() == 0);
        assert_eq!((disk.take(), disk.offer(1, DiskRequest::Flush), disk.offer_serial(1)), (Ok(None), false, false));
        let before = link.0.notified.get();
        disk.notify();
        assert_eq!(link.0.notified.get(), before);
    }
    // Twice the same, where another is under way.
    let (link, mut disk) = disk();
    assert!(disk.offer(0, DiskRequest::Flush) && disk.offer(1, DiskRequest::Flush));
    link.ends(0, 0);
    assert_eq!(disk.take(), Ok(Some((0, DiskOutcome::Done))));
    link.says(0, 1);
    assert_eq!(disk.take(), Err(Broken(unknown)));
}

/// One that is left may still read what it was given: that stays as it was.
#[test]
fn what_a_device_was_given_stays_when_it_is_left() {
    let (link, mut disk) = disk();
    disk.fill(0, 0, b"given");
    assert!(disk.offer(0, DiskRequest::Write(0, 512)));
    disk.give_up();
    disk.fill(0, 0, b"later");
    assert_eq!(&link.0.buffers.borrow()[0][..5], b"given");
    // What was read before is there.
    let mut read = [0; 5];
    disk.copy(0, 0, &mut read);
    assert_eq!(&read, b"given");
}

/// A device that has requests, and answers none while somebody looks often enough, is silent; one that is at work on what takes long may be
/// so for longer. A look that comes late, because all stood still, is one look.
#[test]
fn a_device_that_does_not_answer_is_silent() {
    let looks_until = |disk: &mut Disk<Link>| (1..1000_u64).find(|look| disk.is_silent(look * 10, 10));
    let (link, mut disk) = disk();
    assert_eq!(looks_until(&mut disk), None, "it has nothing");
    for (wish, looks) in [
        (DiskRequest::Read(0, 512), QUICK_LOOKS),
        (DiskRequest::Write(0, 512), QUICK_LOOKS),
        (DiskRequest::Flush, SLOW_LOOKS),
        (DiskRequest::Discard(0, 8), SLOW_LOOKS),
        (DiskRequest::Zero(0, 8, false), SLOW_LOOKS),
    ] {
        assert!(disk.offer(7, wish));
        assert_eq!(looks_until(&mut disk), Some(u64::from(looks) + 1), "{wish:?}");
        // An answer to any request shows that it is at work.
        assert!(disk.offer(8, DiskRequest::Read(0, 512)));
        link.ends(8, 0);
        assert!(matches!(disk.take(), Ok(Some((8, _)))));
        assert_eq!(looks_until(&mut disk), Some(u64::from(looks) + 1), "{wish:?}");
        link.ends(7, 0);
        assert!(matches!(disk.take(), Ok(Some((7, _)))));
        assert_eq!(looks_until(&mut disk), None);
    }
    // However often somebody looks, and however late.
    assert!(disk.offer(0, DiskRequest::Read(0, 512)));
    assert!((0..1000).all(|_| !disk.is_silent(1000, 10)));
    assert!(!disk.is_silent(1_000_000, 10) && !disk.is_silent(1_000_009, 10));
}

/// Answers that are none, and reads that say that all is well and wrote less than that, have failed: the buffer would show what was in it
/// before.
#[test]
fn what_is_no_answer_has_failed() {
    for (answer, written, outcome) in [
        (0, 513, DiskOutcome::Done),
        (0, 512, DiskOutcome::Failed),
        (0, 0, DiskOutcome::Failed),
        (NO_ANSWER, 513, DiskOutcome::Failed),
        (3, 513, DiskOutcome::Failed),
        (2, 1, DiskOutcome::Unknown),
    ] {
        let (link, mut disk) = disk();
        assert!(disk.offer(0, DiskRequest::Read(0, 512)));
        link.0.answers.borrow_mut()[0] = answer;
        link.says(0, written);
        assert_eq!(disk.take(), Ok(Some((0, outcome))), "{answer} {written}");
    }
}

/// The buffer of a request that the device has is left alone.
#[test]
fn a_buffer_is_ours_or_the_devices() {
    let (link, mut disk) = disk();
    disk.fill(3, 512, b"ours");
    assert!(disk.offer(3, DiskRequest::Write(0, 1024)));
    disk.fill(3, 512, b"late");
    let mut read = [0; 4];
    disk.copy(3, 512, &mut read);
    assert_eq!((read, &link.0.buffers.borrow()[3][512..516]), ([0; 4], &b"ours"[..]));
    link.ends(3, 0);
    assert_eq!(disk.take(), Ok(Some((3, DiskOutcome::Done))));
    disk.copy(3, 512, &mut read);
    assert_eq!(&read, b"ours");
}

/// The rings' counts have 16 bits.
#[test]
fn counts_begin_anew() {
    let (link, mut disk) = disk();
    for number in 0..70_000_u32 {
        let slot = (number % 5) as u16;
        assert!(disk.offer(slot, DiskRequest::Flush));
        link.ends(slot, 0);
        assert_eq!(disk.take(), Ok(Some((slot, DiskOutcome::Done))));
    }
}
