//! A disk that may be written, against a naive one: what is written is read, wherever the device is stopped or moved; what is discarded or
//! zeroed makes room; and where there is none, the driver hears of it and nothing else changes.

use std::vec;
use std::vec::Vec;

use devices::Change;
use proptest::collection::vec as many;
use proptest::prelude::*;

use super::{finish, image};
use crate::block::Block;
use crate::memory::GuestMemory;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, NEXT, Ram, Reluctant, USED, WRITE, World, start, started};
use crate::{Device, Mmio, Progress};

/// Nine sectors that are in the image, and three blocks with them: the last one is none as a whole.
const SECTORS: u64 = 21;
/// Behind another disk's.
const START: u64 = 3 * 4096;

fn original() -> Vec<u8> {
    let mut all = image();
    all.truncate(9 * 512);
    all.extend((9 * 512..SECTORS * 512).map(|at| (at / 512 * 11 + at % 7) as u8));
    all
}

/// With a list of a page, and so many pages behind it.
fn disk(pages: u64) -> Block<Vec<u8>> {
    Block::with_changes(original(), 1, "data-of-twenty-bytes", START..START + (1 + pages) * 4096)
}

/// A request: its type, and from which sector to which; what is written, and whether room may be given back.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    count: u64,
    byte: u8,
    flags: u32,
    pieces: usize,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![4 => Just(0_u32), 6 => Just(1), 2 => Just(11), 3 => Just(13), 1 => Just(4)];
    (kind, 0..SECTORS + 1, 0..18_u64, 1..=255_u8, 0..2_u32, 1..5_usize).prop_map(
        |(kind, sector, count, byte, flags, pieces)| Ask {
            kind,
            sector,
            count,
            byte,
            flags: if kind == 13 { flags } else { 0 },
            pieces,
        },
    )
}

impl Ask {
    /// What there is for the device to read behind the header.
    fn data(&self) -> Vec<u8> {
        match self.kind {
            1 => (0..self.count * 512).map(|at| self.byte ^ (at / 512) as u8).collect(),
            11 | 13 => {
                let (count, flags) = (self.count as u32, self.flags);
                [&self.sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
            }
            _ => vec![],
        }
    }

    /// Puts it into memory as the only buffer of the ring. Returns where what is read goes, and the answer.
    fn offer(&self, ram: &Ram, number: u16) -> (u64, u64) {
        let sector = if matches!(self.kind, 11 | 13) { 0 } else { self.sector };
        let bytes = [&self.kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), &self.data()].concat();
        let (mut at, mut pieces) = (BUFFERS, Vec::new());
        for part in bytes.chunks(bytes.len().div_ceil(self.pieces)) {
            ram.put(at, part);
            pieces.push((at, part.len() as u32, 0));
            at += part.len() as u64 + 5;
        }
        let room = at;
        if self.kind == 0 {
            let bytes = self.count * 512;
            ram.put(at, &vec![0xee; bytes as usize]);
            pieces.push((at, bytes as u32, WRITE));
            at += bytes;
        }
        ram.put(at, &[0xee]);
        pieces.push((at, 1, WRITE));
        for (index, &(at, length, flags)) in (0..).zip(&pieces) {
            let next = if usize::from(index) + 1 == pieces.len() { 0 } else { NEXT };
            ram.descriptor(DESCRIPTORS, index, (at, length), flags | next, index + 1);
        }
        ram.offer(8, number, &[0]);
        (room, at)
    }

    /// What a naive disk does.
    fn perform(&self, naive: &mut [u8]) -> (Vec<u8>, u8) {
        let range = self.sector as usize * 512..(self.sector + self.count) as usize * 512;
        if self.kind == 4 {
            return (vec![], 0);
        }
        let Some(place) = naive.get_mut(range) else { return (vec![], 1) };
        match self.kind {
            0 => return (place.to_vec(), 0),
            1 => place.copy_from_slice(&self.data()),
            13 => place.fill(0),
            _ => {}
        }
        (vec![], 0)
    }
}

/// The pages that blocks have, those that are free, and the spare one.
fn known(ram: &Ram, device: &Mmio<Block<Vec<u8>>>) -> Vec<u32> {
    let annex = ram.annex.borrow();
    let word = |at: u64| u32::from_le_bytes(annex[(START + at) as usize..][..4].try_into().unwrap());
    let changes = device.save().unwrap().device.changes;
    let mut pages: Vec<u32> = (0..3).map(|block| word(block * 4)).filter(|&word| word != u32::MAX).collect();
    let mut free = changes.free;
    while free != 0 && pages.len() < 9 {
        pages.push(free);
        free = word(u64::from(free) * 4096);
    }
    pages.push(changes.spare);
    pages.retain(|&page| page != 0);
    pages
}

/// All that is on the disk, by one request.
fn contents<M: GuestMemory>(
    device: &mut Mmio<Block<Vec<u8>>>,
    memory: &M,
    ram: &Ram,
    number: u16,
    more: &dyn Fn(),
) -> Vec<u8> {
    let ask = Ask { kind: 0, sector: 0, count: SECTORS, byte: 0, flags: 0, pieces: 1 };
    let (room, answer) = ask.offer(ram, number);
    while device.process(0, memory).unwrap() == Progress::More {
        more();
    }
    assert_eq!(ram.get(answer, 1), [0]);
    ram.get(room, SECTORS as usize * 512)
}

proptest! {
    /// Any requests, in turns that end anywhere, with the device moved to another host in between: what is read is what a naive disk
    /// has. What was discarded is taken from the disk: there it may be anything.
    #[test]
    fn what_is_written_is_read(asks in many(ask(), 1..14), turn in 6..30_usize, is_moved: bool) {
        let memory = Reluctant::new(Ram::new());
        let mut device = started(disk(3), 0);
        let mut naive = original();
        let mut number = 0;
        for ask in &asks {
            let (room, answer) = ask.offer(&memory.ram, number);
            memory.hold();
            number += 1;
            let mut turns = 0;
            while device.process(0, &memory).unwrap() == Progress::More {
                memory.next_turn(turn + if is_moved { 12 } else { 0 });
                turns += 1;
                prop_assert!(turns < 2000, "it comes to nothing");
                if is_moved {
                    let saved = device.save().unwrap();
                    device = Mmio::new(disk(3));
                    device.restore(&saved).unwrap();
                }
            }
            let (data, expected) = ask.perform(&mut naive);
            prop_assert_eq!(memory.ram.get(answer, 1), [expected]);
            prop_assert_eq!(memory.ram.get(room, data.len()), data);
            if ask.kind == 11 && expected == 0 {
                let all = contents(&mut device, &memory, &memory.ram, number, &|| { memory.next_turn(100); });
                number += 1;
                let range = ask.sector as usize * 512..(ask.sector + ask.count) as usize * 512;
                naive[range.clone()].copy_from_slice(&all[range]);
                prop_assert_eq!(&all, &naive, "what was not discarded is as it was");
            }
        }
        let all = contents(&mut device, &memory, &memory.ram, number, &|| { memory.next_turn(100); });
        prop_assert_eq!(all, naive);
        let mut pages = known(&memory.ram, &device);
        pages.sort_unstable();
        prop_assert_eq!(pages, (1..device.save().unwrap().device.changes.next).collect::<Vec<_>>(), "each page is in one place");
        let annex = memory.ram.annex.borrow();
        prop_assert!(annex[..START as usize].iter().chain(&annex[START as usize + 4 * 4096..]).all(|&byte| byte == 0));
    }

    /// Whatever a file says of the list and the pages: nothing but this disk's memory is touched, and each request has an answer.
    #[test]
    fn forged_lists_harm_nobody_else(
        words in many(prop_oneof![0..6_u32, any::<u32>()], 3),
        links in many(prop_oneof![0..6_u32, any::<u32>()], 3),
        next in 1..=4_u32,
        free in prop_oneof![0..6_u32, any::<u32>()],
        spare in prop_oneof![0..6_u32, any::<u32>()],
        asks in many(ask(), 1..14),
    ) {
        let ram = Ram::new();
        ram.annex.borrow_mut().fill(0x77);
        for (index, word) in words.iter().enumerate() {
            ram.annex.borrow_mut()[START as usize + index * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        for (index, link) in links.iter().enumerate() {
            ram.annex.borrow_mut()[START as usize + (1 + index) * 4096..][..4].copy_from_slice(&link.to_le_bytes());
        }
        let mut device = started(disk(3), 0);
        let mut saved = device.save().unwrap();
        let changes = &mut saved.device.changes;
        (changes.next, changes.free, changes.spare) = (next, free, spare);
        device.restore(&saved).unwrap();
        for (number, ask) in (0..).zip(&asks) {
            let (_, answer) = ask.offer(&ram, number);
            prop_assert_eq!(finish(&mut device, &ram), Ok(()));
            prop_assert!(ram.get(answer, 1)[0] <= 1);
        }
        let annex = ram.annex.borrow();
        let others = annex[..START as usize].iter().chain(&annex[START as usize + 4 * 4096..]);
        prop_assert!(others.into_iter().all(|&byte| byte == 0x77), "another disk's");
    }
}

/// A disk for one test, on memory that refuses nothing.
struct Written {
    ram: Ram,
    device: Mmio<Block<Vec<u8>>>,
    number: u16,
}

impl Written {
    fn new(pages: u64) -> Self {
        Self { ram: Ram::new(), device: started(disk(pages), 0), number: 0 }
    }

    /// The answer.
    fn ask(&mut self, kind: u32, sector: u64, count: u64, flags: u32) -> u8 {
        let ask = Ask { kind, sector, count, byte: 0x5a, flags, pieces: 1 };
        let (_, answer) = ask.offer(&self.ram, self.number);
        self.number += 1;
        finish(&mut self.device, &self.ram).unwrap();
        self.ram.get(answer, 1)[0]
    }

    fn begin_anew(&mut self) {
        self.ram.put(AVAILABLE + 2, &[0; 2]);
        self.ram.put(USED + 2, &[0; 2]);
        start(&mut self.device, 0);
        self.number = 0;
    }

    fn contents(&mut self) -> Vec<u8> {
        self.number += 1;
        contents(&mut self.device, &self.ram, &self.ram, self.number - 1, &|| ())
    }
}

/// A write for which there is no page fails, and changes nothing; one into a block that has a page does not. What is discarded or zeroed
/// makes room for another block.
#[test]
fn a_full_disk_says_so_and_what_is_given_back_is_room() {
    let mut disk = Written::new(1);
    assert_eq!(disk.ask(1, 2, 1, 0), 0);
    let before = disk.contents();
    assert_eq!(before[1024..1536], [0x5a; 512]);
    assert_eq!(disk.ask(1, 8, 1, 0), 1, "another block");
    assert_eq!(disk.contents(), before);
    assert_eq!(disk.ask(1, 7, 1, 0), 0, "the same block");
    assert_eq!(disk.ask(11, 0, 8, 0), 0);
    assert_eq!(disk.contents(), original(), "what is discarded is as in the image");
    assert_eq!((disk.ask(1, 8, 1, 0), disk.ask(1, 0, 1, 0)), (0, 1));
    // Zeros take no page, and those of a block that has one give it back, if they may.
    assert_eq!((disk.ask(13, 0, 8, 0), disk.ask(13, 8, 8, 0), disk.ask(1, 0, 1, 0)), (0, 0, 1));
    assert_eq!((disk.ask(13, 8, 8, 1), disk.ask(1, 0, 1, 0)), (0, 0));
    let all = disk.contents();
    assert_eq!((&all[..512], &all[512..8192]), (&[0x5a; 512][..], &[0; 7680][..]));
    // The last block is not whole: all that there is of it is.
    assert_eq!(
        (disk.ask(11, 0, 8, 0), disk.ask(1, 16, 5, 0), disk.ask(11, 16, 5, 0), disk.ask(1, 0, 1, 0)),
        (0, 0, 0, 0)
    );
}

/// Of a range in several blocks each is zeroed as it was asked for.
#[test]
fn zeros_in_several_blocks_give_all_their_pages_back() {
    let mut disk = Written::new(3);
    assert_eq!([0, 8, 16].map(|sector| disk.ask(1, sector, 1, 0)), [0; 3]);
    assert_eq!(disk.ask(13, 0, 21, 1), 0);
    assert_eq!(disk.contents(), [0; 21 * 512]);
    assert_eq!(known(&disk.ram, &disk.device).len(), 3);
    assert_eq!([0, 8, 16].map(|sector| disk.ask(1, sector, 1, 0)), [0; 3]);
}

/// A word for each block, in whole pages: a page has those of 4 MiB.
#[test]
fn a_list_has_a_word_for_each_block() {
    for (sectors, list) in [(1, 1), (8 << 10, 1), ((8 << 10) + 1, 2), (40 << 10, 5)] {
        let disk = Mmio::new(Block::with_changes(vec![0; sectors * 512], 1, "", 0..16 * 4096));
        assert_eq!(disk.save().unwrap().device.changes.next, list, "{sectors} sectors");
    }
}

/// Many times around: no page is lost.
#[test]
fn pages_come_back_each_time() {
    let mut disk = Written::new(3);
    for round in 0..20 {
        for block in [0, 1, 2] {
            assert_eq!(disk.ask(1, block * 8, 1, 0), 0, "round {round}");
        }
        let order = if round % 2 == 0 { [0, 1, 2] } else { [2, 0, 1] };
        for block in order {
            assert_eq!(
                disk.ask(
                    if round % 3 == 0 { 13 } else { 11 },
                    block * 8,
                    if block == 2 { 5 } else { 8 },
                    u32::from(round % 3 == 0)
                ),
                0
            );
        }
    }
}

/// Memory that refuses each access at first, as while a VM is saved: no page is lost by what is done again, and none is given twice.
#[test]
fn what_is_done_again_loses_no_page() {
    let memory = Reluctant::new(Ram::new());
    let mut device = started(disk(3), 0);
    let write = |sector| Ask { kind: 1, sector, count: 1, byte: sector as u8 + 1, flags: 0, pieces: 1 };
    let discard = Ask { kind: 11, sector: 0, count: 16, byte: 0, flags: 0, pieces: 1 };
    let asks = [write(0), write(8), write(16), discard.clone(), write(8), write(0), discard, write(9), write(1)];
    for (number, ask) in (0..).zip(&asks) {
        let (_, answer) = ask.offer(&memory.ram, number);
        memory.hold();
        while device.process(0, &memory).unwrap() == Progress::More {
            memory.next_turn(100);
        }
        assert_eq!(memory.ram.get(answer, 1), [0], "{ask:?}");
        let mut pages = known(&memory.ram, &device);
        pages.sort_unstable();
        assert_eq!(pages, (1..device.save().unwrap().device.changes.next).collect::<Vec<_>>(), "after {ask:?}");
    }
    let mut expected = original();
    for sector in [1, 9, 16] {
        expected[sector * 512..][..512].fill(sector as u8 + 1);
    }
    let all = contents(&mut device, &memory, &memory.ram, asks.len() as u16, &|| {
        memory.next_turn(100);
    });
    assert_eq!(all, expected);
}

/// A reset leaves what was written; when the machine is off, it is as it was at first. (Its memory is zeros again then.)
#[test]
fn what_is_written_stays_until_the_machine_is_off() {
    let mut disk = Written::new(3);
    assert_eq!(disk.ask(1, 2, 1, 0), 0);
    let written = disk.contents();
    let world = World::with_room(0);
    for change in [Change::Reset, Change::PowerOff] {
        devices::Device::change(&mut disk.device, change, &world);
        disk.begin_anew();
        assert_eq!(disk.contents(), written, "{change:?}");
    }
    devices::Device::change(&mut disk.device, Change::Forget, &world);
    assert_eq!(disk.device.save().unwrap().device.changes.next, 1);
}

/// That there is no room is told once, and once more after a reset of the driver.
#[test]
fn a_full_disk_is_told_once() {
    let mut disk = Written::new(0);
    let world = World::with_room(0);
    for told in [1, 2] {
        for _ in 0..3 {
            assert_eq!(disk.ask(1, 2, 1, 0), 1);
            disk.device.device_mut().exchange(&world);
            assert_eq!(world.requests.borrow().len(), told);
        }
        disk.device.reset();
        disk.begin_anew();
    }
    assert!(
        world.requests.borrow()[0]
            .contains("a write to the disk data-of-twenty-bytes failed: the 0 MiB for what is written to it")
    );
}

/// Requests that are no good: flags that there are not, more than one range, less than one, and a range that is not on the disk.
#[test]
fn bad_ranges_are_answered() {
    let mut disk = Written::new(3);
    assert_eq!((disk.ask(11, 0, 8, 1), disk.ask(13, 0, 8, 2)), (2, 2));
    assert_eq!((disk.ask(11, SECTORS, 1, 0), disk.ask(13, u64::MAX, 2, 0), disk.ask(13, 0, SECTORS + 1, 0)), (1, 1, 1));
    assert_eq!((disk.ask(11, SECTORS, 0, 0), disk.ask(13, 0, 0, 1)), (0, 0));
    for (length, answer) in [(15, 1), (17, 1), (32, 1), (16, 0)] {
        let header = [&13_u32.to_le_bytes()[..], &[0; 12]].concat();
        let range = [&[0; 8][..], &1_u32.to_le_bytes(), &[0; 20]].concat();
        disk.ram.put(BUFFERS, &[&header[..], &range[..length]].concat());
        disk.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16 + length as u32), NEXT, 1);
        disk.ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 0x1000, 1), WRITE, 0);
        disk.ram.offer(8, disk.number, &[0]);
        disk.number += 1;
        finish(&mut disk.device, &disk.ram).unwrap();
        assert_eq!(disk.ram.get(BUFFERS + 0x1000, 1), [answer], "{length} bytes");
    }
    let all = disk.contents();
    assert_eq!((&all[..512], &all[512..]), (&[0; 512][..], &original()[512..]));
}

/// What a driver is told of such a disk.
#[test]
fn the_configuration_is_that_of_a_disk_that_is_written() {
    use devices::AccessSize::{Byte, Double, Half, Word};
    let disk = Mmio::new(disk(3));
    assert_eq!((disk.read(0x100, Double), disk.read(0x10c, Word), disk.read(0x114, Word)), (SECTORS, 254, 512));
    // VIRTIO_BLK_F_SEG_MAX, _BLK_SIZE, _FLUSH, _TOPOLOGY, _DISCARD, _WRITE_ZEROES, and those of the rings.
    let features = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14 | 3 << 28;
    assert_eq!(disk.read(0x010, Word), features);
    assert_eq!((disk.read(0x118, Byte), disk.read(0x11a, Half)), (3, 8));
    let limits = [0x124, 0x128, 0x12c, 0x130, 0x134].map(|at| disk.read(at, Word));
    assert_eq!(limits, [SECTORS, 1, 8, SECTORS, 1]);
    assert_eq!(disk.read(0x138, Word), 1);
}
