//! The disk (virtio 1.3, 5.2): what it says of itself, each of its requests, well made and badly, and where its data goes.
//!
//! What is on it everybody knows: 64 sectors of words, each of them the multiple of a constant.

use payload_rt::test::{Stop, Verdict};
use payload_rt::virtio::{self, BufferDirection, Device, Queue, register as r};
use payload_rt::{check, check_equal, memory, skip, timer};

/// Sectors of 512 bytes.
const SECTORS: u64 = 64;
const SECTOR: u64 = 512;
/// The serial number that the site file gives it.
const SERIAL: &[u8; 20] = b"payload-1.disk_A\0\0\0\0";

/// Types of requests.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_SERIAL: u32 = 8;
const DISCARD: u32 = 11;

/// What stands for an answer that has not come, and for data that has not.
const NOTHING: u8 = 0xee;

/// Word number `index` of the disk.
fn word(index: u64) -> u64 {
    (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A disk that is ready.
struct Disk {
    device: Device,
    queue: Queue,
    /// The header, and behind it the answer.
    header: u64,
}

fn disk() -> Result<Disk, Stop> {
    let Some(device) = virtio::find(virtio::BLOCK) else { skip!("no virtio disk") };
    check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let queue = device.queue(0);
    device.ready();
    Ok(Disk { device, queue, header: memory::pages(1) })
}

impl Disk {
    /// Makes a request with room at these places. Returns the answer, and how many bytes were written.
    fn ask(&mut self, kind: u32, sector: u64, room: &[(u64, u32)]) -> Result<(u8, u32), Stop> {
        let answer = self.header + 16;
        memory::write32(self.header, kind);
        memory::write32(self.header + 4, 0);
        memory::write64(self.header + 8, sector);
        memory::write8(answer, NOTHING);
        let direction = if kind == WRITE { BufferDirection::ToDevice } else { BufferDirection::FromDevice };
        let mut pieces = [(self.header, 16, BufferDirection::ToDevice); 64];
        let (mine, rest) = pieces.split_at_mut(1 + room.len());
        mine.iter_mut().skip(1).zip(room).for_each(|(piece, &(at, length))| *piece = (at, length, direction));
        if let Some(last) = rest.first_mut() {
            *last = (answer, 1, BufferDirection::FromDevice);
        }
        self.queue.offer_pieces(pieces.get(..room.len() + 2).unwrap_or(&[]));
        check!(timer::wait_until(5000, || self.queue.is_done()), "request {kind} of sector {sector} is not answered");
        Ok((memory::read8(answer), self.queue.written()))
    }
}

pub(crate) fn disk_says_what_it_is() -> Verdict {
    let disk = disk()?;
    let config = |offset: u64| disk.device.read(0x100 + offset);
    check_equal!((config(0), config(4)), (SECTORS as u32, 0), "capacity");
    check_equal!(config(20), 512, "block size");
    check!(config(12) >= 126, "at most {} segments", config(12));
    disk.device.write(r::DEVICE_FEATURES_SEL, 0);
    let features = disk.device.read(r::DEVICE_FEATURES);
    check!(features & 1 << 5 != 0, "VIRTIO_BLK_F_RO is not among {features:#x}");
    disk.device.write(r::STATUS, 0);
    Ok(())
}

/// All of it, sector by sector, in one request, and into 61 pieces of odd lengths; with the serial number in between.
pub(crate) fn disk_reads() -> Verdict {
    let mut disk = disk()?;
    let buffer = memory::pages(9);
    for sector in 0..SECTORS {
        check_equal!(disk.ask(READ, sector, &[(buffer, 512)])?, (0, 513), "answer for sector {sector}");
        for index in 0..SECTOR / 8 {
            let found = memory::read64(buffer + 8 * index);
            check_equal!(found, word(sector * 64 + index), "word {index} of sector {sector}");
        }
    }
    let serial = buffer + 0x8000;
    check_equal!(disk.ask(GET_SERIAL, 0, &[(serial, 20)])?, (0, 21), "answer for the serial number");
    for (offset, &byte) in (0..).zip(SERIAL) {
        check_equal!(memory::read8(serial + offset), byte, "byte {offset} of the serial number");
    }
    let all = (SECTORS * SECTOR) as u32;
    let mut pieces = [(0, 0); 61];
    let mut at = 0;
    let last = pieces.len() as u32 - 1;
    for (index, piece) in (0..).zip(&mut pieces) {
        let length = if index == last { all - at } else { 501 + index };
        *piece = (buffer + u64::from(at), length);
        at += length;
    }
    for room in [&[(buffer, all)][..], &pieces] {
        (0..u64::from(all) / 8).for_each(|index| memory::write64(buffer + 8 * index, 0));
        check_equal!(disk.ask(READ, 0, room)?, (0, all + 1), "answer for all of it in {} pieces", room.len());
        for index in 0..u64::from(all) / 8 {
            check_equal!(memory::read64(buffer + 8 * index), word(index), "word {index} in {} pieces", room.len());
        }
    }
    disk.device.write(r::STATUS, 0);
    Ok(())
}

/// What it cannot do is answered, and no byte of data is touched; what comes behind works.
pub(crate) fn disk_refuses() -> Verdict {
    let mut disk = disk()?;
    let buffer = memory::pages(2);
    let wrong = [
        ("behind the end", READ, SECTORS, 512, 1),
        ("across the end", READ, SECTORS - 1, 1024, 1),
        ("far behind the end", READ, u64::MAX, 512, 1),
        ("a sector and a half", READ, 0, 768, 1),
        ("a write", WRITE, 0, 512, 1),
        ("a discard", DISCARD, 0, 16, 2),
        ("an unknown request", 0x1234_5678, 0, 512, 2),
    ];
    for (what, kind, sector, length, answer) in wrong {
        (0..1024).for_each(|offset| memory::write8(buffer + offset, NOTHING));
        let written = if kind == WRITE { 1 } else { 0 };
        check_equal!(disk.ask(kind, sector, &[(buffer, length)])?, (answer, written), "{what}");
        for offset in 0..1024 {
            check_equal!(memory::read8(buffer + offset), NOTHING, "{what}: byte {offset} of the data");
        }
    }
    check_equal!(disk.ask(FLUSH, 0, &[])?, (0, 1), "a flush");
    check_equal!(disk.ask(READ, 7, &[(buffer, 512)])?, (0, 513), "a read after all that");
    check_equal!(memory::read64(buffer), word(7 * 64), "what was read");
    disk.device.write(r::STATUS, 0);
    Ok(())
}

/// One sector each into blocks of RAM that were never touched, of one request.
pub(crate) fn disk_into_untouched_memory() -> Verdict {
    let mut disk = disk()?;
    let mut room = [(0, 512); 6];
    // The first ones the entropy device has had.
    let blocks = memory::untouched_blocks().skip(16);
    let count = room.iter_mut().zip(blocks).map(|(place, block)| place.0 = block + 0xe00).count();
    check!(count == 6, "too little RAM that nothing lies in: {count} blocks");
    check_equal!(disk.ask(READ, 1, &room)?, (0, 6 * 512 + 1), "answer");
    for (sector, (place, _)) in (1..).zip(room) {
        check_equal!(memory::read64(place), word(sector * 64), "sector {sector}");
        check_equal!((memory::read8(place - 1), memory::read8(place + 512)), (0, 0), "beside sector {sector}");
    }
    disk.device.write(r::STATUS, 0);
    Ok(())
}

/// A request that cannot be answered stops the device, which takes a reset and works then.
pub(crate) fn disk_without_room_for_an_answer() -> Verdict {
    let mut disk = disk()?;
    memory::write64(disk.header, READ.into());
    memory::write64(disk.header + 8, 0);
    disk.queue.offer_pieces(&[(disk.header, 16, BufferDirection::ToDevice)]);
    let needs_reset = || disk.device.read(r::STATUS) & virtio::STATUS_NEEDS_RESET != 0;
    check!(timer::wait_until(1000, needs_reset), "the device goes on, status {:#x}", disk.device.read(r::STATUS));
    check!(!disk.queue.is_done(), "the request is done");
    crate::takes_reset(disk.device)?;
    disk_says_what_it_is()
}
