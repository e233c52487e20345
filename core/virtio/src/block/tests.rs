//! The device against a naive disk, under requests that are good and bad, at once and piece by piece.

use std::vec;
use std::vec::Vec;

use devices::AccessSize;
use proptest::collection::vec as many;
use proptest::prelude::*;
use proptest::sample::Index;

mod written;

use super::Block;
use crate::memory::GuestMemory;
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, NEXT, Ram, Reluctant, USED, WRITE, start, started};
use crate::{Mmio, Progress, QueueError};

const SECTORS: u64 = 9;
const SERIAL: &str = "serial-of-the-disk-and-more";

/// A disk with something else in each sector, and with a tail that is no whole one.
fn image() -> Vec<u8> {
    (0..SECTORS * 512 + 100).map(|at| (at / 512 * 16 + at % 13 + 1) as u8).collect()
}

fn disk() -> Block<Vec<u8>> {
    Block::new(image(), 1, SERIAL)
}

/// A request as a driver makes it, well or badly.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    /// How many bytes of its header there are, in how many pieces, and how many bytes of data for the device behind it.
    header: usize,
    pieces: usize,
    more: usize,
    /// The lengths of the pieces for data and answer.
    room: Vec<usize>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind =
        prop_oneof![6 => Just(0_u32), 1 => Just(1), 1 => Just(4), 2 => Just(8), 1 => Just(11), 1 => any::<u32>()];
    let sector = prop_oneof![8 => 0..SECTORS + 2, 1 => (0..4_u64).prop_map(|less| u64::MAX - less), 1 => any::<u64>()];
    let header = prop_oneof![8 => Just(16_usize), 1 => 0..16_usize];
    let more = prop_oneof![2 => Just(0_usize), 1 => 1..600_usize];
    // Whole sectors and a byte for the answer, or anything, cut somewhere.
    let whole = prop_oneof![4 => (0..6_usize).prop_map(|sectors| sectors * 512 + 1), 1 => 1..1500_usize];
    let room = (whole, many(any::<Index>(), 0..4)).prop_map(|(whole, cuts)| {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(whole)).chain([whole]).collect();
        ends.sort_unstable();
        let mut before = 0;
        ends.into_iter().map(|end| end - std::mem::replace(&mut before, end)).collect()
    });
    (kind, sector, header, 1..4_usize, more, room).prop_map(|(kind, sector, header, pieces, more, room)| Ask {
        kind,
        sector,
        header,
        pieces,
        more,
        room,
    })
}

impl Ask {
    /// What there is for the device to read: its header, or a part of it, and zeros.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.kind.to_le_bytes().as_slice(), &[0; 4], &self.sector.to_le_bytes()].concat();
        bytes.truncate(self.header);
        bytes.resize(self.header + self.more, 0);
        bytes
    }

    /// What a naive disk does: the data, and the answer.
    fn expected(&self) -> (Vec<u8>, u8) {
        let room = self.room.iter().sum::<usize>() - 1;
        let bytes = self.bytes();
        let Some(header) = bytes.get(..16) else { return (vec![], 1) };
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        match kind {
            0 => {
                let (first, count) = (u128::from(sector), room as u128 / 512);
                if room % 512 != 0 || first + count > u128::from(SECTORS) {
                    return (vec![], 1);
                }
                let start = sector as usize * 512;
                (image()[start..start + room].to_vec(), 0)
            }
            1 => (vec![], 1),
            4 => (vec![], 0),
            8 => (SERIAL.as_bytes()[..room.min(20)].to_vec(), 0),
            _ => (vec![], 2),
        }
    }

    /// Puts it into memory as the only buffer of the ring, with a gap behind each piece. Returns where its room is.
    fn offer(&self, ram: &Ram, number: u16) -> Vec<(u64, usize)> {
        let bytes = self.bytes();
        let piece = bytes.len().div_ceil(self.pieces).max(1);
        let mut at = BUFFERS;
        let mut pieces = Vec::new();
        for part in bytes.chunks(piece) {
            ram.put(at, part);
            pieces.push((at, part.len(), 0));
            at += part.len() as u64 + 3;
        }
        let mut room = Vec::new();
        for &length in &self.room {
            ram.put(at, &vec![0xee; length + 3]);
            pieces.push((at, length, WRITE));
            room.push((at, length));
            at += length as u64 + 3;
        }
        let last = pieces.len() - 1;
        for (index, &(at, length, flags)) in pieces.iter().enumerate() {
            let next = if index == last { 0 } else { NEXT };
            ram.descriptor(DESCRIPTORS, index as u16, (at, length as u32), flags | next, index as u16 + 1);
        }
        ram.offer(8, number, &[0]);
        room
    }

    /// Compares what is in memory with what a naive disk does.
    fn check(&self, ram: &Ram, number: u16, room: &[(u64, usize)]) -> Result<(), TestCaseError> {
        let (data, answer) = self.expected();
        let all: usize = self.room.iter().sum();
        let mut expected = data.clone();
        expected.resize(all - 1, 0xee);
        expected.push(answer);
        let mut found = Vec::new();
        for &(at, length) in room {
            found.extend(ram.get(at, length));
            prop_assert_eq!(ram.get(at + length as u64, 3), vec![0xee; 3], "behind a piece");
        }
        prop_assert_eq!(found, expected);
        let written = if data.len() == all - 1 { all } else { data.len() };
        prop_assert_eq!(ram.used(number % 8), (0, written as u32));
        prop_assert_eq!(ram.half(USED + 2), number + 1);
        Ok(())
    }
}

/// Works until there is nothing more to do.
fn finish<M: GuestMemory>(disk: &mut Mmio<Block<Vec<u8>>>, memory: &M) -> Result<(), QueueError> {
    while disk.process(0, memory)? == Progress::More {}
    Ok(())
}

proptest! {
    /// Any request is answered as by a naive disk: whole, with an error and no byte of data, or as unknown.
    #[test]
    fn requests_are_answered_as_by_a_naive_disk(asks in many(ask(), 1..12)) {
        let ram = Ram::new();
        let mut disk = started(disk(), 0);
        for (number, ask) in (0..).zip(&asks) {
            let room = ask.offer(&ram, number);
            prop_assert_eq!(finish(&mut disk, &ram), Ok(()));
            ask.check(&ram, number, &room)?;
        }
    }

    /// As well where the memory refuses again and again, and the device is moved to another host in each turn.
    #[test]
    fn a_request_goes_on_where_it_was_stopped(asks in many(ask(), 1..4), turn in 4..9_usize, is_moved: bool) {
        let memory = Reluctant::new(Ram::new());
        let mut device = started(disk(), 0);
        // Whoever comes to another host takes a chain from its beginning.
        let turn = if is_moved { turn + 10 } else { turn };
        for (number, ask) in (0..).zip(&asks) {
            let room = ask.offer(&memory.ram, number);
            let mut turns = 0;
            while device.process(0, &memory).unwrap() == Progress::More {
                memory.next_turn(turn);
                turns += 1;
                prop_assert!(turns < 200, "it comes to nothing");
                if is_moved {
                    let saved = device.save().unwrap();
                    device = Mmio::new(disk());
                    device.restore(&saved).unwrap();
                }
            }
            ask.check(&memory.ram, number, &room)?;
        }
    }
}

/// The configuration space says how large the disk is; a tail that is no whole sector is not on it.
#[test]
fn a_disk_says_what_it_is() {
    use AccessSize::{Double, Word};
    let disk = Mmio::new(disk());
    assert_eq!((disk.read(0x100, Double), disk.read(0x10c, Word), disk.read(0x114, Word)), (SECTORS, 254, 512));
    // VIRTIO_BLK_F_SEG_MAX, _RO, _BLK_SIZE, and those of the rings.
    assert_eq!(disk.read(0x010, Word), 1 << 2 | 1 << 5 | 1 << 6 | 3 << 28);
}

/// A request without room for an answer stops the device, and nothing is written; after a reset it works.
#[test]
fn no_room_for_an_answer_is_the_end_until_a_reset() {
    let ram = Ram::new();
    let mut disk = started(disk(), 0);
    ram.put(BUFFERS, &[0; 16]);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16), 0, 0);
    ram.offer(8, 0, &[0]);
    assert_eq!(disk.process(0, &ram), Err(QueueError::NoAnswer));
    assert!(!disk.is_live() && disk.line() && ram.half(USED + 2) == 0);
    disk.reset();
    ram.put(AVAILABLE + 2, &[0; 2]);
    ram.put(USED + 2, &[0; 2]);
    start(&mut disk, 0);
    let ask = Ask { kind: 0, sector: 8, header: 16, pieces: 1, more: 0, room: vec![512, 1] };
    let room = ask.offer(&ram, 0);
    assert_eq!(finish(&mut disk, &ram), Ok(()));
    ask.check(&ram, 0, &room).unwrap();
}

/// Offers a request for 128 KiB.
fn offer_long(ram: &Ram) {
    ram.put(BUFFERS, &[0; 16]);
    ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16), NEXT, 1);
    // The same 32 KiB four times.
    for index in 1..5 {
        ram.descriptor(DESCRIPTORS, index, (BUFFERS + 16, 32 << 10), WRITE | NEXT, index + 1);
    }
    ram.descriptor(DESCRIPTORS, 5, (BUFFERS + 16 + (32 << 10), 1), WRITE, 0);
    ram.offer(8, 0, &[0]);
}

/// A request that was begun is forgotten when the device is reset, and when the driver takes its queue back.
#[test]
fn nobody_goes_on_with_a_request_that_was_taken_back() {
    for is_reset in [true, false] {
        let memory = Reluctant::new(Ram::new());
        let ram = &memory.ram;
        let mut disk = started(Block::new(vec![7; 128 << 10], 1, ""), 0);
        offer_long(ram);
        // The rings, the descriptors and the header are read by then, and the data is not written.
        for _ in 0..12 {
            assert_eq!(disk.process(0, &memory), Ok(Progress::More));
            memory.next_turn(100);
        }
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
        Ask { kind: 0, sector: 8, header: 16, pieces: 1, more: 0, room: vec![512, 1] }.offer(ram, 0);
        assert_eq!(finish(&mut disk, ram), Ok(()));
        assert_eq!((ram.half(USED + 2), ram.used(0)), (1, (0, 513)), "{is_reset}");
    }
}
