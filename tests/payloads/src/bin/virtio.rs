//! The virtio-mmio devices (virtio 1.3, 4.2): discovery, negotiation, the entropy device, the console's output, a disk, and what happens
//! to a driver that names memory which isn't there.
#![no_std]
#![no_main]

use payload_rt::test::Verdict;
use payload_rt::virtio::{self, BufferDirection, Device, register as r};
use payload_rt::{check, check_equal, gic, machine, memory, println, skip, test, tests, timer};

#[path = "virtio/disk.rs"]
mod disk;
use disk::{
    disk_into_untouched_memory, disk_reads, disk_refuses, disk_says_what_it_is, disk_without_room_for_an_answer,
};

payload_rt::entry!(main);

fn main() {
    announce_warnings();
    test::run(&tests!("virtio":
        transports, version_and_reset, notified_too_early, unknown_feature_is_refused, entropy_differs, entropy_many_buffers, entropy_interrupt,
        disk_says_what_it_is, disk_reads, disk_refuses, disk_without_room_for_an_answer,
        console_output, buffers_in_untouched_memory, disk_into_untouched_memory, queue_in_no_memory, buffer_in_no_memory, descriptor_loop, works_after_all_that,
    ));
}

/// The device, or the test is skipped.
macro_rules! device {
    ($kind:expr, $name:literal) => {{
        let Some(device) = virtio::find($kind) else { skip!(concat!("no virtio ", $name, " device")) };
        check!(
            device.read(r::VERSION) == 2,
            concat!("virtio ", $name, " device of version {}"),
            device.read(r::VERSION)
        );
        device
    }};
}

fn transports() -> Verdict {
    let mut devices = 0;
    for slot in 0..virtio::SLOTS {
        let base = virtio::BASE + slot * virtio::STRIDE;
        // All of them answer, with a device or without: there are drivers that stop at the first that does not.
        let magic = payload_rt::fault::catch(|| memory::read32(base)).unwrap_or(0);
        check_equal!(magic, 0x7472_6976, "magic of slot {slot}");
        if memory::read32(base + r::DEVICE_ID) != 0 {
            devices += 1;
            continue;
        }
        let version = memory::read32(base + r::VERSION);
        check!(version == 2 || machine::is_reference(), "version {version} of the vacant slot {slot}");
        for register in [r::STATUS, r::QUEUE_READY, r::QUEUE_NOTIFY] {
            memory::write32(base + register, 1);
        }
        check_equal!(memory::read32(base + r::STATUS), 0, "status of the vacant slot {slot} after a write");
        check_equal!(memory::read32(base + r::QUEUE_NUM_MAX), 0, "QueueNumMax of the vacant slot {slot}");
    }
    if devices == 0 {
        skip!("no devices");
    }
    Ok(())
}

fn version_and_reset() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    check!(device.start(), "negotiation of VERSION_1 alone fails, status {:#x}", device.read(r::STATUS));
    device.write(r::STATUS, 0);
    check!(
        timer::wait_until(1000, || device.read(r::STATUS) == 0),
        "status {:#x} after a reset",
        device.read(r::STATUS)
    );
    device.write(r::QUEUE_SEL, 0);
    check_equal!(device.read(r::QUEUE_READY), 0, "QueueReady after a reset");
    let most = device.read(r::QUEUE_NUM_MAX);
    // The bare machine's are larger.
    check!(most == 256 || machine::is_reference() && most >= 128, "QueueNumMax {most}");
    device.write(r::QUEUE_SEL, 1000);
    check_equal!(device.read(r::QUEUE_NUM_MAX), 0, "QueueNumMax of queue 1000");
    Ok(())
}

/// What the hypervisor's log is to say of [`notified_too_early`], for the gate to compare.
fn announce_warnings() {
    if test::is_selected("virtio::notified_too_early") && virtio::find(virtio::ENTROPY).is_some() {
        println!("# warned: virtio-rng: the driver notifies queue 0, but Status is 0x3, without FEATURES_OK (8)");
        println!("# warned: virtio-rng: the driver notifies queue 0, but Status is 0xb, without DRIVER_OK (4)");
    }
    if test::is_selected("virtio::disk_without_room_for_an_answer") && virtio::find(virtio::BLOCK).is_some() {
        println!("# warned: virtio-blk: a request has no room for its answer");
    }
}

/// A driver that breaks the order of initialisation waits for ever; the hypervisor's log says why, once in each life of the
/// device, and the device goes on when the driver does.
fn notified_too_early() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    device.write(r::STATUS, 0);
    device.write(r::STATUS, 3);
    device.write(r::QUEUE_NOTIFY, 0);
    check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let mut queue = device.queue(0);
    let buffer = memory::pages(1);
    queue.offer(buffer, 64, BufferDirection::FromDevice);
    check!(!queue.is_done(), "the device works before DRIVER_OK");
    device.ready();
    check!(timer::wait_until(1000, || queue.is_done()), "what was offered before DRIVER_OK is not looked at after it");
    Ok(())
}

fn unknown_feature_is_refused() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    device.write(r::STATUS, 0);
    device.write(r::STATUS, 3);
    for (select, features) in [(0, 1 << 23), (1, 1 | 1 << 31)] {
        device.write(r::DRIVER_FEATURES_SEL, select);
        device.write(r::DRIVER_FEATURES, features);
    }
    device.write(r::STATUS, 3 | 8);
    let accepted = device.read(r::STATUS) & 8 != 0;
    device.write(r::STATUS, 0);
    // QEMU takes the features that it has offered and forgets the others.
    check!(!accepted || machine::is_reference(), "FEATURES_OK with features that were not offered");
    Ok(())
}

fn start(device: Device) -> Result<virtio::Queue, test::Stop> {
    check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let queue = device.queue(0);
    device.ready();
    Ok(queue)
}

fn fill(queue: &mut virtio::Queue, buffer: u64, length: u32) -> Verdict {
    queue.offer(buffer, length, BufferDirection::FromDevice);
    check!(timer::wait_until(5000, || queue.is_done()), "the device does not return the buffer");
    let written = queue.written();
    check!((1..=length).contains(&written), "{written} bytes written into a buffer of {length}");
    Ok(())
}

fn entropy_differs() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let mut queue = start(device)?;
    let buffer = memory::pages(1);
    let mut last = [0; 2];
    for round in 0..8 {
        fill(&mut queue, buffer, 16)?;
        let now = [memory::read64(buffer), memory::read64(buffer + 8)];
        check!(now != last, "the same 16 bytes in rounds {} and {round}", round - 1);
        last = now;
    }
    check_equal!(memory::read64(buffer + 16), 0, "bytes behind the buffer");
    device.write(r::STATUS, 0);
    Ok(())
}

fn entropy_many_buffers() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let mut queue = start(device)?;
    let buffer = memory::pages(2);
    // More than the rings hold, so that the indices wrap around.
    for round in 0..100 {
        fill(&mut queue, buffer + round, 64 + round as u32)?;
    }
    device.write(r::STATUS, 0);
    Ok(())
}

fn entropy_interrupt() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let mut queue = start(device)?;
    gic::set_trigger(device.intid, gic::Trigger::Edge);
    gic::enable(device.intid);
    let buffer = memory::pages(1);
    queue.offer(buffer, 32, BufferDirection::FromDevice);
    let mut intid = gic::SPURIOUS;
    timer::wait_until(5000, || {
        intid = gic::acknowledge();
        intid != gic::SPURIOUS
    });
    let status = device.read(r::INTERRUPT_STATUS);
    device.write(r::INTERRUPT_ACK, status);
    gic::end(intid);
    check_equal!(intid, device.intid, "acknowledged");
    check_equal!(status & 1, 1, "InterruptStatus");
    check_equal!(device.read(r::INTERRUPT_STATUS), 0, "InterruptStatus after InterruptACK");
    check!(queue.is_done(), "interrupt, but the buffer is not in the used ring");
    device.write(r::STATUS, 0);
    Ok(())
}

fn console_output() -> Verdict {
    let device = device!(virtio::CONSOLE, "console");
    check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let _receive = device.queue(0);
    let mut transmit = device.queue(1);
    device.ready();
    let buffer = memory::pages(1);
    let text = b"virtio-console: output works\n";
    for (offset, &byte) in text.iter().enumerate() {
        memory::write8(buffer + offset as u64, byte);
    }
    for _ in 0..3 {
        transmit.offer(buffer, text.len() as u32, BufferDirection::ToDevice);
        check!(timer::wait_until(5000, || transmit.is_done()), "the console does not take its output");
    }
    device.write(r::STATUS, 0);
    Ok(())
}

/// One byte in each of many blocks of RAM that were never touched, of one buffer: each block has to be made ready, which takes
/// long, and a host does it where it can do other things meanwhile.
fn buffers_in_untouched_memory() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let mut blocks = memory::untouched_blocks();
    let mut queue = device.queue(0);
    device.ready();
    let mut used = 0;
    for round in 0..2 {
        let mut places = [0; 8];
        let count = places.iter_mut().zip(&mut blocks).map(|(place, block)| *place = block + 0xfff).count();
        check!(count == 8, "too little RAM that nothing lies in: {used} blocks");
        used += count;
        queue.offer_chain(&places, 1, BufferDirection::FromDevice);
        check!(timer::wait_until(5000, || queue.is_done()), "the device does not return buffer {round}");
        check_equal!(queue.written(), 8, "bytes written");
        check_equal!(device.read(r::STATUS) & virtio::STATUS_NEEDS_RESET, 0, "DEVICE_NEEDS_RESET");
        for place in places {
            check_equal!((memory::read8(place - 1), memory::read8(place + 1)), (0, 0), "beside {place:#x}");
        }
    }
    device.write(r::STATUS, 0);
    Ok(())
}

/// After misuse the device may do nothing or ask for a reset; it must take the reset.
pub(crate) fn takes_reset(device: Device) -> Verdict {
    timer::delay(1000);
    device.write(r::STATUS, 0);
    check!(
        timer::wait_until(1000, || device.read(r::STATUS) == 0),
        "status {:#x} after a reset",
        device.read(r::STATUS)
    );
    Ok(())
}

fn queue_in_no_memory() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let end = machine::machine().ram.end;
    for place in [end, end - 4, 0x0900_0000, 0xffff_ffff_ffff_fff0, 0x7_0000_0000_0000] {
        check!(device.start(), "negotiation fails, status {:#x}", device.read(r::STATUS));
        device.write(r::QUEUE_SEL, 0);
        device.write(r::QUEUE_NUM, 8);
        for register in [r::QUEUE_DESC, r::QUEUE_DRIVER, r::QUEUE_DEVICE] {
            device.write(register, place as u32);
            device.write(register + 4, (place >> 32) as u32);
        }
        device.write(r::QUEUE_READY, 1);
        device.ready();
        device.write(r::QUEUE_NOTIFY, 0);
        takes_reset(device)?;
    }
    Ok(())
}

fn buffer_in_no_memory() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let end = machine::machine().ram.end;
    for (address, length) in
        [(end, 64), (end - 16, 64), (0x0900_0000, 64), (u64::MAX - 7, 64), (0, u32::MAX), (end - 1, u32::MAX)]
    {
        let mut queue = start(device)?;
        queue.offer(address, length, BufferDirection::FromDevice);
        takes_reset(device)?;
    }
    Ok(())
}

fn descriptor_loop() -> Verdict {
    let device = device!(virtio::ENTROPY, "entropy");
    let mut queue = start(device)?;
    let buffer = memory::pages(1);
    // Two descriptors that name each other as next; the second is put there before the first is offered.
    let table = queue.memory();
    memory::write64(table + 16, buffer);
    memory::write64(table + 24, 64 | 3 << 32);
    memory::write64(table, buffer);
    memory::write64(table + 8, 64 | 3 << 32 | 1 << 48);
    memory::write16(table + 0x404, 0);
    memory::write16(table + 0x402, 1);
    device.write(r::QUEUE_NOTIFY, 0);
    takes_reset(device)?;
    // An index far ahead of what can have been offered, and a descriptor number that does not exist.
    queue = start(device)?;
    let table = queue.memory();
    memory::write16(table + 0x404, 0xffff);
    memory::write16(table + 0x402, 0x7fff);
    device.write(r::QUEUE_NOTIFY, 0);
    takes_reset(device)
}

fn works_after_all_that() -> Verdict {
    entropy_differs()
}
