//! The device against a backend that a test holds in its hand: it ends what was begun when it is told to, in any order, well or badly.

use std::vec;
use std::vec::Vec;

use devices::AccessSize;
use proptest::collection::vec as many;
use proptest::prelude::*;

use super::{Backend, DiskOutcome, DiskRequest, Facts, HostBlock};
use crate::Mmio;
use crate::device::Progress;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, NEXT, Ram, Reluctant, USED, WRITE, start, started};

const SECTORS: u64 = 64;
/// Less than the longest requests have.
const ROOM: usize = 2048;
/// Requests that the ring has descriptors for, two each, and bytes of memory for each.
const AT_ONCE: usize = 4;
const PLACE: u64 = 0x2000;

/// The backend. It belongs to the device, and the test finds it there.
struct Hand {
    /// What is on the disk.
    bytes: Vec<u8>,
    buffers: Vec<[u8; ROOM]>,
    under_way: Vec<Option<DiskRequest>>,
    outcomes: Vec<Option<DiskOutcome>>,
    /// All that was begun, in order.
    begun: Vec<DiskRequest>,
    facts: Facts,
}

impl Hand {
    fn new(slots: usize, change: impl FnOnce(&mut Facts)) -> Self {
        let mut facts = Facts {
            sectors: SECTORS,
            block: 512,
            is_read_only: false,
            has_cache: true,
            discard: Some((32, 1)),
            zero: Some(16),
            slots,
            room: ROOM,
        };
        change(&mut facts);
        Self {
            bytes: contents(),
            buffers: vec![[0; ROOM]; slots],
            under_way: vec![None; slots],
            outcomes: vec![None; slots],
            begun: vec![],
            facts,
        }
    }

    /// The slots that have something under way.
    fn busy(&self) -> Vec<usize> {
        (0..).zip(&self.under_way).filter_map(|(slot, wish)| wish.map(|_| slot)).collect()
    }

    /// Ends what is under way in a slot.
    fn end(&mut self, slot: usize, outcome: DiskOutcome) {
        let wish = self.under_way[slot].take().expect("it is under way");
        let range = |sector: u64, bytes: u32| {
            let start = sector as usize * 512;
            start..start + bytes as usize
        };
        if outcome == DiskOutcome::Done {
            match wish {
                DiskRequest::Read(sector, bytes) => {
                    self.buffers[slot][..bytes as usize].copy_from_slice(&self.bytes[range(sector, bytes)]);
                }
                DiskRequest::Write(sector, bytes) => {
                    self.bytes[range(sector, bytes)].copy_from_slice(&self.buffers[slot][..bytes as usize]);
                }
                DiskRequest::Zero(sector, count, _) | DiskRequest::Discard(sector, count) => {
                    self.bytes[range(sector, count * 512)].fill(0);
                }
                DiskRequest::Flush => {}
            }
        }
        self.outcomes[slot] = Some(outcome);
    }
}

impl Backend for Hand {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn fill(&mut self, slot: usize, offset: usize, bytes: &[u8]) {
        assert!(self.under_way[slot].is_none(), "the buffer is the backend's");
        self.buffers[slot][offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn copy(&mut self, slot: usize, offset: usize, into: &mut [u8]) {
        assert!(self.under_way[slot].is_none(), "the buffer is the backend's");
        into.copy_from_slice(&self.buffers[slot][offset..offset + into.len()]);
    }

    fn begin(&mut self, slot: usize, wish: DiskRequest) {
        let (first, count) = wish.range().unwrap_or_default();
        assert!(first + count <= SECTORS, "{wish:?}");
        if let DiskRequest::Read(_, bytes) | DiskRequest::Write(_, bytes) = wish {
            assert!(bytes as usize <= ROOM, "{wish:?}");
        }
        assert_eq!((self.under_way[slot], self.outcomes[slot]), (None, None), "the slot is taken");
        self.under_way[slot] = Some(wish);
        self.begun.push(wish);
    }

    fn send(&mut self) {}

    fn outcome(&mut self, slot: usize) -> Option<DiskOutcome> {
        self.outcomes[slot].take()
    }
}

fn contents() -> Vec<u8> {
    (0..SECTORS as usize * 512).map(|at| (at / 512 * 3 + at % 7 + 1) as u8).collect()
}

fn disk(hand: Hand) -> Mmio<HostBlock<Hand>> {
    let has_cache = hand.facts.has_cache;
    let mut disk = started(HostBlock::new(hand, "host"), 0);
    // As a driver that accepts what is offered.
    disk.device_mut().flushes = has_cache;
    disk
}

/// The backend of a disk.
fn hand(disk: &mut Mmio<HostBlock<Hand>>) -> &mut Hand {
    &mut disk.device_mut().backend
}

/// A request, and what is to be written.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    data: Vec<u8>,
    /// Room for what is read, without the answer.
    room: usize,
}

fn read(sector: u64, room: usize) -> Ask {
    Ask { kind: 0, sector, data: vec![], room }
}

fn write(sector: u64, data: Vec<u8>) -> Ask {
    Ask { kind: 1, sector, data, room: 0 }
}

fn flush() -> Ask {
    Ask { kind: 4, sector: 0, data: vec![], room: 0 }
}

fn range(kind: u32, sector: u64, count: u32, flags: u32) -> Ask {
    let range = u128::from(sector) | u128::from(count) << 64 | u128::from(flags) << 96;
    Ask { kind, sector: 0, data: range.to_le_bytes().to_vec(), room: 0 }
}

/// Puts requests into the ring, from number `first` on.
fn offer(ram: &Ram, first: u16, asks: &[Ask]) {
    let mut heads = vec![];
    for (place, ask) in (0_u16..).zip(asks) {
        let at = BUFFERS + u64::from(place) * PLACE;
        let head = [ask.kind.to_le_bytes().as_slice(), &[0; 4], &ask.sector.to_le_bytes(), &ask.data].concat();
        let room = at + head.len() as u64;
        ram.put(at, &head);
        ram.put(room, &vec![0xee; ask.room + 1]);
        ram.descriptor(DESCRIPTORS, 2 * place, (at, head.len() as u32), NEXT, 2 * place + 1);
        ram.descriptor(DESCRIPTORS, 2 * place + 1, (room, ask.room as u32 + 1), WRITE, 0);
        heads.push(2 * place);
    }
    ram.offer(8, first, &heads);
}

/// What came of the request in this place: its answer, and what was read.
fn came(ram: &Ram, place: usize, ask: &Ask) -> (u8, Vec<u8>) {
    let room = BUFFERS + place as u64 * PLACE + 16 + ask.data.len() as u64;
    let mut bytes = ram.get(room, ask.room + 1);
    (bytes.pop().expect("the answer"), bytes)
}

/// Lets all that is under way end well, and whatever comes of it.
fn settle(disk: &mut Mmio<HostBlock<Hand>>, ram: &Ram) {
    loop {
        let progress = disk.process(0, ram).expect("a driver that keeps the rules");
        let busy = hand(disk).busy();
        if busy.is_empty() && progress == Progress::Idle {
            return;
        }
        busy.into_iter().for_each(|slot| hand(disk).end(slot, DiskOutcome::Done));
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let sectors = || (0..SECTORS + 2, 0..10_usize);
    prop_oneof![
        3 => sectors().prop_map(|(sector, count)| read(sector, count * 512)),
        3 => (sectors(), any::<u8>()).prop_map(|((sector, count), byte)| {
            write(sector, (0..count * 512).map(|at| (at as u8).wrapping_mul(5) ^ byte).collect())
        }),
        1 => (any::<bool>(), 0..SECTORS, 0..20_u32, 0..4_u32)
            .prop_map(|(zero, sector, count, flags)| range(if zero { 13 } else { 11 }, sector, count, flags)),
        1 => Just(flush()),
        1 => (any::<u64>(), 0..1500_usize).prop_map(|(sector, room)| read(sector, room)),
        1 => any::<u32>().prop_map(|kind| Ask { kind, ..flush() }),
    ]
}

/// What a naive disk does: the answer, and what is read.
fn naive(bytes: &mut [u8], ask: &Ask) -> (u8, Vec<u8>) {
    let place = |length: usize| {
        let start = usize::try_from(ask.sector).ok()?.checked_mul(512)?;
        let end =
            start.checked_add(length).filter(|&end| end <= SECTORS as usize * 512 && length.is_multiple_of(512))?;
        Some(start..end)
    };
    let untouched = vec![0xee; ask.room];
    match ask.kind {
        0 => place(ask.room).map_or((1, untouched), |at| (0, bytes[at].to_vec())),
        1 => place(ask.data.len()).map_or((1, untouched), |at| {
            bytes[at].copy_from_slice(&ask.data);
            (0, vec![])
        }),
        4 => (0, vec![]),
        11 | 13 if ask.data.len() == 16 => {
            let value = u128::from_le_bytes(ask.data[..].try_into().expect("a range"));
            let (sector, count, flags) = (value as usize, (value >> 64) as u32 as usize, (value >> 96) as u32);
            let (allowed, most) = if ask.kind == 13 { (1, 16) } else { (0, 32) };
            if flags & !allowed != 0 {
                return (2, vec![]);
            }
            if sector + count > SECTORS as usize || count > most {
                return (1, vec![]);
            }
            bytes[sector * 512..(sector + count) * 512].fill(0);
            (0, vec![])
        }
        _ => (2, vec![]),
    }
}

proptest! {
    /// Requests are answered as by a naive disk, one after the other or several at once that do not touch each other, in whatever order
    /// the backend ends them, and wherever the guest's memory makes them stop.
    #[test]
    fn requests_are_answered_as_by_a_naive_disk(
        groups in many((many(ask(), 1..AT_ONCE + 1), any::<u64>()), 1..8),
        turn in 20..60_usize,
        slots in 1..6_usize,
    ) {
        let memory = Reluctant::new(Ram::new());
        let mut disk = disk(Hand::new(slots, |_| ()));
        let (mut bytes, mut number) = (contents(), 0_u16);
        for (asks, mut order) in groups {
            // What is under way at once may end in any order, so of those that change something there is one, and nothing beside it.
            let is_alone = asks.iter().any(|ask| ask.kind != 0);
            let asks = if is_alone { &asks[..1] } else { &asks[..] };
            offer(&memory.ram, number, asks);
            number = number.wrapping_add(asks.len() as u16);
            for _ in 0..2000 {
                memory.next_turn(turn);
                let progress = disk.process(0, &memory).expect("a driver that keeps the rules");
                let busy = hand(&mut disk).busy();
                if progress == Progress::Idle && busy.is_empty() {
                    break;
                }
                if !busy.is_empty() && progress != Progress::More {
                    hand(&mut disk).end(busy[order as usize % busy.len()], DiskOutcome::Done);
                    order = order.rotate_right(3);
                }
            }
            prop_assert_eq!(memory.ram.half(USED + 2), number, "all are answered");
            for (place, ask) in asks.iter().enumerate() {
                let (answer, read) = naive(&mut bytes, ask);
                let (found, data) = came(&memory.ram, place, ask);
                prop_assert_eq!(found, answer, "{:?}", ask);
                if answer == 0 || ask.kind == 0 {
                    prop_assert_eq!(&data[..read.len()], &read[..], "{:?}", ask);
                }
            }
            prop_assert!(hand(&mut disk).bytes == bytes);
        }
    }
}

/// As many as there are slots for are under way at once, and each is answered when it ends.
#[test]
fn several_requests_are_under_way_and_end_in_any_order() {
    let (mut disk, ram) = (disk(Hand::new(3, |_| ())), Ram::new());
    let asks: Vec<_> = (0..4).map(|number| read(number, 512)).collect();
    offer(&ram, 0, &asks);
    assert_eq!(disk.process(0, &ram), Ok(Progress::Blocked));
    assert_eq!(hand(&mut disk).busy(), [0, 1, 2]);
    hand(&mut disk).end(1, DiskOutcome::Done);
    assert_eq!(disk.process(0, &ram), Ok(Progress::Blocked));
    assert_eq!((ram.half(USED + 2), ram.used(0)), (1, (2, 513)), "the second is answered");
    assert_eq!(hand(&mut disk).busy(), [0, 1, 2], "and the fourth begun");
    settle(&mut disk, &ram);
    for (place, ask) in asks.iter().enumerate() {
        assert_eq!(came(&ram, place, ask), (0, contents()[place * 512..][..512].to_vec()));
    }
}

/// An error of the backend's is the answer to that request, and to no other.
#[test]
fn an_error_reaches_its_request_alone() {
    let (mut disk, ram) = (disk(Hand::new(3, |_| ())), Ram::new());
    let asks = [write(1, vec![9; 5 * 512]), read(9, 512), flush()];
    offer(&ram, 0, &asks);
    assert_eq!(disk.process(0, &ram), Ok(Progress::Blocked));
    hand(&mut disk).end(0, DiskOutcome::Failed);
    hand(&mut disk).end(2, DiskOutcome::Failed);
    settle(&mut disk, &ram);
    assert_eq!([0, 1, 2].map(|place| came(&ram, place, &asks[place]).0), [1, 0, 1]);
    assert_eq!(hand(&mut disk).begun.len(), 3, "the rest of the write was not begun");
    assert!(disk.is_live() && hand(&mut disk).bytes == contents());
}

/// A flush is passed on, and answered when the backend has done it. Where there is no cache there is nothing to flush, and none is
/// offered. A driver that asks for none has each write flushed before it is answered.
#[test]
fn a_flush_is_the_backends() {
    let (mut one, ram) = (disk(Hand::new(2, |_| ())), Ram::new());
    offer(&ram, 0, &[flush()]);
    assert_eq!(one.process(0, &ram), Ok(Progress::Blocked));
    assert_eq!((ram.half(USED + 2), hand(&mut one).begun.clone()), (0, vec![DiskRequest::Flush]));
    settle(&mut one, &ram);
    assert_eq!(came(&ram, 0, &flush()).0, 0);
    let without = Mmio::new(HostBlock::new(Hand::new(1, |facts| facts.has_cache = false), "a"));
    let offers = |disk: &Mmio<_>| disk.read(0x010, AccessSize::Word) >> 9 & 1;
    assert_eq!((offers(&one), offers(&without)), (1, 0));

    let (mut two, ram) = (disk(Hand::new(2, |_| ())), Ram::new());
    two.device_mut().flushes = false;
    let asks = [write(1, vec![9; 5 * 512])];
    offer(&ram, 0, &asks);
    let _ = two.process(0, &ram);
    for _ in 0..2 {
        hand(&mut two).end(0, DiskOutcome::Done);
        let _ = two.process(0, &ram);
    }
    assert_eq!(hand(&mut two).busy(), [0]);
    assert_eq!(ram.half(USED + 2), 0, "it waits for the flush");
    assert_eq!(hand(&mut two).begun, [DiskRequest::Write(1, 2048), DiskRequest::Write(5, 512), DiskRequest::Flush]);
    hand(&mut two).end(0, DiskOutcome::Failed);
    let _ = two.process(0, &ram);
    assert_eq!(came(&ram, 0, &asks[0]).0, 1, "what was not flushed is no good");
}

/// What a driver took back ends by itself, and is answered to nobody. What is asked for afterwards begins behind it.
#[test]
fn what_was_taken_back_is_waited_for() {
    for is_reset in [true, false] {
        let (mut disk, ram) = (disk(Hand::new(2, |_| ())), Ram::new());
        offer(&ram, 0, &[write(1, vec![9; 512]), read(2, 512)]);
        assert_eq!(disk.process(0, &ram), Ok(Progress::Blocked));
        if is_reset {
            disk.reset();
            start(&mut disk, 0);
        } else {
            for ready in [0, 1] {
                let _ = disk.write(0x044, AccessSize::Word, ready);
            }
        }
        ram.put(AVAILABLE + 2, &[0; 2]);
        ram.put(USED + 2, &[0; 2]);
        let ask = read(1, 512);
        offer(&ram, 0, std::slice::from_ref(&ask));
        hand(&mut disk).end(1, DiskOutcome::Done);
        assert_eq!(disk.process(0, &ram), Ok(Progress::Blocked));
        assert_eq!(
            (hand(&mut disk).busy(), hand(&mut disk).begun.len(), ram.half(USED + 2)),
            (vec![0], 2, 0),
            "it waits"
        );
        hand(&mut disk).end(0, DiskOutcome::Done);
        settle(&mut disk, &ram);
        assert_eq!((came(&ram, 0, &ask), ram.half(USED + 2)), ((0, vec![9; 512]), 1));
    }
}

/// What cannot be written is not, and offers nothing of that; a disk of larger blocks takes whole ones.
#[test]
fn a_disk_is_as_its_backend() {
    let (mut one, ram) = (disk(Hand::new(2, |facts| facts.is_read_only = true)), Ram::new());
    let asks = [write(1, vec![9; 512]), range(11, 0, 1, 0), range(13, 0, 1, 0), read(1, 512)];
    offer(&ram, 0, &asks);
    settle(&mut one, &ram);
    assert_eq!([0, 1, 2, 3].map(|place| came(&ram, place, &asks[place]).0), [1, 2, 2, 0]);
    assert_eq!(one.read(0x010, AccessSize::Word) & 0xff_ffff, 1 << 2 | 1 << 5 | 1 << 6);

    let (mut two, ram) = (disk(Hand::new(2, |facts| facts.block = 1024)), Ram::new());
    let asks = [write(1, vec![9; 1024]), write(2, vec![9; 512]), read(2, 1024), range(13, 1, 2, 0)];
    offer(&ram, 0, &asks);
    settle(&mut two, &ram);
    assert_eq!([0, 1, 2, 3].map(|place| came(&ram, place, &asks[place]).0), [1, 1, 0, 1]);
    assert_eq!((two.read(0x100, AccessSize::Double), two.read(0x114, AccessSize::Word)), (SECTORS, 1024));
    assert!(hand(&mut two).bytes == contents());
    // It cannot go on elsewhere.
    let saved = two.save().expect("a state");
    assert!(two.restore(&saved).is_err());
}
