//! The driver of the host's disks against a device that says anything.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use drivers::virtio::block::{BUFFER, DESCRIPTORS, Disk, HEAD, MOST_CLEARED, SLOTS, SlotTransport, Slots};
use drivers::virtio::queue::Rings;
use drivers::virtio::{Shape, Transport, register};
use units::DiskRequest;

use super::input::Input;

/// Entries of a ring.
const ENTRIES: usize = (SLOTS * DESCRIPTORS) as usize;

/// What the device says.
struct Says {
    words: Vec<u32>,
    status: Cell<u32>,
    used: RefCell<[(u32, u32); ENTRIES]>,
    used_count: Cell<u16>,
    answer: Cell<u8>,
    /// How many chains it was shown.
    published: Cell<u16>,
}

#[derive(Clone)]
struct Device(Rc<Says>);

impl Rings for Device {
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

impl Slots for Device {
    fn offer(&mut self, place: u16, slot: u16, _: [u8; HEAD], length: u32, _: bool) {
        assert!(usize::from(place) < ENTRIES && slot < SLOTS && length <= BUFFER);
    }

    fn publish(&mut self, count: u16) {
        assert_eq!(count, self.0.published.get().wrapping_add(1));
        self.0.published.set(count);
    }

    fn used_count(&self) -> u16 {
        self.0.used_count.get()
    }

    fn used(&self, place: u16) -> (u32, u32) {
        self.0.used.borrow()[usize::from(place)]
    }

    fn answer(&self, slot: u16) -> u8 {
        assert!(slot < SLOTS);
        self.0.answer.get()
    }

    fn fill(&mut self, slot: u16, offset: u32, bytes: &[u8]) {
        assert!(slot < SLOTS && u64::from(offset) + bytes.len() as u64 <= u64::from(BUFFER));
    }

    fn copy(&self, slot: u16, _: u32, _: &mut [u8]) {
        assert!(slot < SLOTS);
    }
}

impl Transport for Device {
    type Rings = Self;

    fn read(&self, register: u64) -> u32 {
        match register {
            register::STATUS => self.0.status.get(),
            _ => self.0.words.get(register as usize / 4 % self.0.words.len()).copied().unwrap_or(0),
        }
    }

    fn write(&self, register: u64, value: u32) {
        if register == register::STATUS {
            self.0.status.set(value);
        }
    }

    fn accept(&self, _: u64) {}

    fn lay_out(&mut self, _: u16, _: Shape) -> Option<Self> {
        None
    }
}

impl SlotTransport for Device {
    type Slots = Self;

    fn lay_out_slots(&mut self, _: u16) -> Option<Self> {
        Some(self.clone())
    }
}

fn wish(input: &mut Input<'_>) -> DiskRequest {
    let kind = input.byte();
    let sector = if kind & 8 == 0 { input.byte().into() } else { input.double() };
    let count = if kind & 16 == 0 { u32::from(input.byte()) * 512 } else { input.word() };
    match kind % 8 {
        0..=2 => DiskRequest::Read(sector, count),
        3 | 4 => DiskRequest::Write(sector, count),
        5 => DiskRequest::Flush,
        6 => DiskRequest::Discard(sector, count),
        _ => DiskRequest::Zero(sector, count, kind & 32 != 0),
    }
}

/// Nothing is asked for that the disk does not have; a slot comes back once for each time that it was given, and to nobody else; a device
/// that lies is left, and has nothing.
pub fn device(data: &[u8]) {
    let mut input = Input(data);
    // Registers that lead somewhere: it has what all have (bit 32 of the features is bit 0 of both halves here), and some size.
    let mut words: Vec<u32> = (0..80).map(|_| if input.byte() & 3 == 0 { input.word() } else { 4096 }).collect();
    words[register::DEVICE_FEATURES as usize / 4] |= 1;
    let (used, used_count) = (RefCell::new([(0, 0); ENTRIES]), Cell::new(0));
    let (status, answer, published) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let says = Device(Rc::new(Says { words, status, used, used_count, answer, published }));
    let Ok(mut disk) = Disk::start(says.clone()) else { return };
    let facts = *disk.facts();
    assert!(facts.block.is_power_of_two() && facts.block >= 512 && facts.sectors <= u64::MAX / 512);
    assert!(facts.most >= facts.block && facts.most <= BUFFER && facts.most.is_multiple_of(facts.block));
    assert!([facts.discard, facts.zero].into_iter().flatten().all(|limits| limits.most <= MOST_CLEARED));
    let (mut given, mut now) = ([false; SLOTS as usize], 0_u64);
    while !input.is_empty() {
        match input.byte() % 8 {
            0..=2 => {
                let (slot, wish) = (u16::from(input.byte()) % (SLOTS + 2), wish(&mut input));
                if disk.offer(slot, wish) {
                    let (first, count) = wish.range().unwrap_or_default();
                    assert!(first.checked_add(count).is_some_and(|end| end <= facts.sectors), "{wish:?}");
                    assert!(!(disk.is_broken() || wish.changes() && facts.is_read_only), "{wish:?}");
                    assert!(!core::mem::replace(&mut given[usize::from(slot)], true), "it has it already");
                }
            }
            3 => {
                // It answers one request, mostly one that it has.
                let (slot, how) = (input.byte(), input.byte());
                let has = || (0_u16..).zip(&given).filter(|(_, given)| **given).map(|(slot, _)| slot);
                let any = has().cycle().nth(slot.into()).unwrap_or(u16::from(slot) % SLOTS);
                let first = if how & 7 == 0 { input.word() } else { u32::from(any * DESCRIPTORS) };
                let written = if how & 24 == 0 { u32::from(input.byte()) * 512 } else { u32::from(how >> 5 & 1) };
                let count = says.0.used_count.get();
                says.0.used.borrow_mut()[usize::from(count) % ENTRIES] = (first, written);
                says.0.used_count.set(count.wrapping_add(1));
                says.0.answer.set(how >> 6);
            }
            4 if input.byte() == 0 => says.0.used_count.set(input.half()),
            5 => {
                now += u64::from(input.byte());
                if disk.is_silent(now, 100) {
                    assert!(given.contains(&true), "it has nothing to answer");
                    disk.give_up();
                }
            }
            6 => disk.fill(input.byte().into(), 0, &[0; 16]),
            _ => {
                let was_broken = disk.is_broken();
                match disk.take() {
                    Ok(Some((slot, _))) => {
                        assert!(!was_broken && core::mem::take(&mut given[usize::from(slot)]), "it has not got that");
                    }
                    Ok(None) => {}
                    Err(_) => assert!(!was_broken && disk.is_broken()),
                }
            }
        }
        if disk.is_broken() {
            given.fill(false);
            assert_eq!(says.0.status.get(), 0, "it is reset");
        }
        assert_eq!(usize::from(disk.under_way()), given.iter().filter(|given| **given).count());
    }
}
