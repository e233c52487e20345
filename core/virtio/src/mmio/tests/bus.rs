//! The transport as a device on the bus: registers, lines, bytes from and to the outside, and what it asks for.

use std::string::{String, ToString};
use std::vec::Vec;

use devices::{Access, Change, Device, Stream};
use pack::{Reader, Writer};

use super::{SIZE, WORD, negotiate, set, started_console};
use crate::block::Block;
use crate::console::{Console, TRANSMIT};
use crate::entropy::Entropy;
use crate::mmio::{Mmio, Vacant, register};
use crate::testing::{AVAILABLE, BUFFERS, DESCRIPTORS, NEXT, WRITE, World, started};

fn at(offset: u64) -> Access {
    Access { frame: 0, offset, size: WORD }
}

fn read(device: &mut dyn Device, offset: u64, world: &World) -> u64 {
    device.read(&at(offset), world)
}

fn write(device: &mut dyn Device, offset: u64, value: u64, world: &World) {
    device.write(&at(offset), value, world);
}

fn poll(device: &mut dyn Device, world: &World) {
    device.poll(world);
}

/// A console whose output goes out, started at the usual place.
fn connected() -> Mmio<Console> {
    let mut mmio = Mmio::new(Console::connected(Stream::Virtio));
    negotiate(&mut mmio, 1 << 32, TRANSMIT);
    set(&mut mmio, register::QUEUE_READY, 1);
    mmio
}

/// Output goes out with the notification; what finds no room waits, and goes out when somebody polls.
#[test]
fn output_goes_out_as_far_as_there_is_room() {
    let world = World::with_room(8);
    let mut mmio = connected();
    // What the driver offers before it is ready is looked at when it is.
    world.ram.put(BUFFERS, b"hello world");
    world.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 5), 0, 0);
    world.ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 5, 6), 0, 0);
    world.ram.offer(SIZE, 0, &[0]);
    write(&mut mmio, register::STATUS, 15, &world);
    assert_eq!((&world.sent.borrow()[..], mmio.lines()), (&b"hello"[..], 1));
    assert_eq!(world.requests.take(), Vec::<String>::new(), "all is out");
    assert_eq!(read(&mut mmio, register::INTERRUPT_STATUS, &world), 1);
    write(&mut mmio, register::INTERRUPT_ACK, 1, &world);
    assert_eq!(mmio.lines(), 0);
    world.ram.offer(SIZE, 1, &[1]);
    write(&mut mmio, register::QUEUE_NOTIFY, u64::from(TRANSMIT), &world);
    assert_eq!((&world.sent.borrow()[..], world.requests.take()), (&b"hello wo"[..], Vec::from(["Poll".to_string()])));
    world.room.set(100);
    poll(&mut mmio, &world);
    assert_eq!((&world.sent.borrow()[..], world.requests.take()), (&b"hello world"[..], Vec::new()));
    assert_eq!((read(&mut mmio, register::STATUS, &world), read(&mut mmio, register::VERSION, &world)), (15, 2));
}

/// Where nobody listens, output is taken from the guest, and lost.
#[test]
fn a_console_without_a_listener_takes_everything() {
    let world = World::with_room(0);
    let mut mmio = started_console(TRANSMIT);
    world.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 5000), 0, 0);
    world.ram.offer(SIZE, 0, &[0]);
    write(&mut mmio, register::QUEUE_NOTIFY, u64::from(TRANSMIT), &world);
    poll(&mut mmio, &world);
    assert_eq!((mmio.device().output_pending(), world.ram.half(crate::testing::USED + 2)), (0, 1));
}

/// A share of work is done in the guest's call, and the rest is asked for; it never asks for room.
#[test]
fn long_work_goes_on_later() {
    let world = World::with_room(0);
    let mut mmio = Mmio::new(Entropy::new(|bytes: &mut [u8]| bytes.fill(0xee)));
    negotiate(&mut mmio, 1 << 32, 0);
    set(&mut mmio, register::QUEUE_READY, 1);
    world.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 300), WRITE, 0);
    world.ram.offer(SIZE, 0, &[0]);
    write(&mut mmio, register::STATUS, 15, &world);
    assert_eq!((mmio.lines(), world.requests.take()), (0, Vec::from(["GoOn".to_string()])));
    poll(&mut mmio, &world);
    assert_eq!((mmio.lines(), world.requests.take()), (1, Vec::new()));
}

/// A driver's mistake is told with the device's name, by whichever way it comes.
#[test]
fn a_mistake_is_reported() {
    let world = World::with_room(0);
    let mut early = connected();
    write(&mut early, register::QUEUE_NOTIFY, 0, &world);
    let mut wrong = Mmio::new(Console::new());
    negotiate(&mut wrong, 1 << 32, 0);
    set(&mut wrong, register::QUEUE_DRIVER_LOW, AVAILABLE + 1);
    write(&mut wrong, register::QUEUE_READY, 1, &world);
    let mut broken = started_console(TRANSMIT);
    world.ram.offer(SIZE, 0, &[SIZE]);
    write(&mut broken, register::QUEUE_NOTIFY, u64::from(TRANSMIT), &world);
    let said = world.requests.take();
    assert!(said.len() == 3 && said.iter().all(|line| line.starts_with("virtio-console: ")), "{said:?}");
    // Stopped, it does nothing when it is polled.
    poll(&mut broken, &world);
    assert_eq!(world.requests.take(), Vec::<String>::new());
}

/// A machine that starts afresh or is off has no driver; one that pauses keeps it. Its state goes through bytes.
#[test]
fn what_happens_to_the_machine() {
    let world = World::with_room(0);
    for (change, status) in [(Change::Reset, 0), (Change::PowerOff, 0), (Change::Pause, 15), (Change::Fork, 15)] {
        let mut mmio = started_console(TRANSMIT);
        mmio.change(change, &world);
        assert_eq!(read(&mut mmio, register::STATUS, &world), status, "{change:?}");
    }
    let mut out = Writer::new();
    started_console(TRANSMIT).save_to(&mut out);
    let bytes = out.finish().unwrap();
    let mut other = Mmio::new(Console::new());
    other.restore_from(&mut Reader::new(&bytes)).unwrap();
    assert!(other.is_live());
    assert!(other.restore_from(&mut Reader::new(&bytes[1..])).is_err());
}

#[test]
fn a_vacant_window_is_silent() {
    let world = World::with_room(0);
    let mut vacant = Vacant;
    assert_eq!(read(&mut vacant, 0, &world), 0x7472_6976);
    assert_eq!((read(&mut vacant, 8, &world), vacant.lines()), (0, 0));
}

/// Nothing of a disk waits to get out: whoever was answered need not be looked at again.
#[test]
fn a_disk_asks_for_nothing() {
    let world = World::with_room(0);
    let mut disk = started(Block::new([7; 512], 1, ""), 0);
    world.ram.descriptor(DESCRIPTORS, 0, (BUFFERS, 16), NEXT, 1);
    world.ram.descriptor(DESCRIPTORS, 1, (BUFFERS + 16, 513), WRITE, 0);
    world.ram.offer(8, 0, &[0]);
    Device::write(&mut disk, &at(register::QUEUE_NOTIFY), 0, &world);
    assert_eq!(world.ram.used(0), (0, 513));
    assert!(world.requests.borrow().is_empty());
}
