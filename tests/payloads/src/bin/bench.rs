//! The bench: instructions per operation, the rows of the budget. `bench <name> <instructions>`, one line each; how it counts is told in
//! `payload_rt::bench`. Everything is measured twice; the second pass, with all translations and blocks in place, is printed.
#![no_std]
#![no_main]

use guest::step;
use payload_rt::virtio::{self, BufferDirection};
use payload_rt::{bench, gic, machine, memory, println, psci, sysreg, timer, uart};

payload_rt::entry!(main);

/// A row: its name, and what returns tenths of instructions.
type Row = (&'static str, fn() -> u64);

const ROWS: [Row; 23] = [
    ("null-hvc", || bench::call(psci::VERSION)),
    ("smccc-version", || bench::call(psci::SMCCC_VERSION)),
    ("id-register", bench::id_register),
    ("gicd-iidr", || bench::load(gic::DISTRIBUTOR + gic::GICD_IIDR)),
    ("gicd-isenabler", || bench::load(gic::DISTRIBUTOR + gic::ISENABLER + 4)),
    ("self-sgi", bench::self_sgi),
    ("virtual-timer", bench::virtual_timer),
    ("self-sgi-polled", bench::self_sgi_polled),
    ("virtual-timer-polled", bench::virtual_timer_polled),
    ("null-mdccsr", bench::version_by_debug_channel),
    ("null-hvc-0x86", bench::version_by_hvc),
    ("physical-count", bench::physical_count),
    ("wfe-unmatched", bench::ordinary_wfe),
    ("wfe-detect", bench::detection_by_wfe),
    ("rpc-100", rpc_of_100_bytes),
    ("rpc-60000", rpc_of_60_000_bytes),
    ("data-fault", bench::first_load),
    ("fetch-fault", bench::first_fetch),
    ("fetch-fault-split", bench::first_fetch_from_a_block),
    ("fetch-fault-join", bench::fetch_from_most_of_a_block),
    ("uart-input", || bench::load(uart::BASE)),
    ("uart-flags", || bench::load(uart::BASE + uart::FR)),
    // Last, because the console's thread is busy with it for a while.
    ("uart-data", bench::transmit),
];

/// The frame of the memory-mapped timer, and its virtual counter there.
const TIMER_FRAME: u64 = 0x0913_0000;
const CNTVCT: u64 = 0x08;

/// What is measured in a guest whose time is scaled, whose virtual counter is the host's, since its CPU has no FEAT_ECV.
const SCALED: [Row; 4] = [
    ("scaled-count", bench::physical_count),
    ("memory-count", || bench::load(TIMER_FRAME + CNTVCT)),
    ("scaled-timer-write", bench::physical_timer_write),
    ("scaled-timer", bench::physical_timer_polled),
];

/// What is measured in a guest with a disk, which costs the start of one without nothing.
const DISK: [Row; 2] = [("disk-read", read_of_4_kib), ("virtio-notify", notification_of_nothing)];

/// A notification of a queue in which nothing is offered.
fn notification_of_nothing() -> u64 {
    let Some(device) = virtio::find(virtio::BLOCK).filter(virtio::Device::start) else { return 0 };
    let _queue = device.queue(0);
    device.ready();
    let tenths = bench::store_zero(device.base + virtio::register::QUEUE_NOTIFY);
    device.write(virtio::register::STATUS, 0);
    tenths
}

/// A read of eight sectors, from the driver's first store to the sight of its buffer in the used ring. Nothing else is on its way.
fn read_of_4_kib() -> u64 {
    const READS: u64 = 32;
    let Some(device) = virtio::find(virtio::BLOCK).filter(virtio::Device::start) else { return 0 };
    let mut queue = device.queue(0);
    device.ready();
    let (page, buffer) = (memory::pages(1), memory::pages(1));
    memory::write64(page, 0);
    memory::write64(page + 8, 3);
    memory::write8(page + 16, 1);
    memory::write64(buffer, 0);
    let pieces = [
        (page, 16, BufferDirection::ToDevice),
        (buffer, 4096, BufferDirection::FromDevice),
        (page + 16, 1, BufferDirection::FromDevice),
    ];
    let start = timer::now();
    for _ in 0..READS {
        queue.offer_pieces(&pieces);
        while !queue.is_done() {}
    }
    let end = timer::now();
    device.write(virtio::register::STATUS, 0);
    let is_good = memory::read8(page + 16) == 0 && memory::read64(buffer) != 0 && queue.written() == 4097;
    if is_good { (end - start) * 10 / READS } else { 0 }
}

/// What is measured in a guest with ports of a network.
const NET: [Row; 2] = [("net-64", || frame_of(64)), ("net-1500", || frame_of(1500))];

/// A frame of so many bytes from one port to another, from the sending driver's first store to the sight of the frame by the receiving one, whose
/// buffers are there. Nobody wants an interrupt.
fn frame_of(bytes: u32) -> u64 {
    /// VIRTIO_F_EVENT_IDX: no interrupt is asked for that way, and no notification of buffers for what arrives.
    const EVENT_INDEX: u32 = 1 << 29;
    const FRAMES: u64 = 32;
    let [Some(from), Some(to)] = [0, 1].map(|port| virtio::find_nth(virtio::NET, port)) else { return 0 };
    if !from.start_with(EVENT_INDEX) || !to.start_with(EVENT_INDEX) {
        return 0;
    }
    let (_, mut sent, mut arrived, _) = (from.queue(0), from.queue(1), to.queue(0), to.queue(1));
    from.ready();
    to.ready();
    // The driver asks for interrupts after entries that do not come.
    [&sent, &arrived].iter().for_each(|queue| memory::write16(queue.memory() + 0x404 + 2 * 64, 0x4000));
    let (frame, room) = (memory::pages(1), memory::pages(1));
    for (offset, byte) in (0..).zip([0x52, 0x54, 0, 0xaa, 0xbb, 2, 0x52, 0x54, 0, 0xaa, 0xbb, 1, 8]) {
        memory::write8(frame + 12 + offset, byte);
    }
    memory::write64(room, 0);
    for _ in 0..FRAMES {
        arrived.put(room, 2048, BufferDirection::FromDevice);
    }
    let start = timer::now();
    for number in 1..=FRAMES as u16 {
        sent.offer(frame, 12 + bytes, BufferDirection::ToDevice);
        while arrived.returned() != number {}
    }
    let end = timer::now();
    let is_good = sent.is_done() && arrived.written() == 12 + bytes && memory::read8(room + 12) == 0x52;
    [from, to].iter().for_each(|device| device.write(virtio::register::STATUS, 0));
    if is_good { (end - start) * 10 / FRAMES } else { 0 }
}

/// What is measured on the CPU that has everything, and whose instruction caches need no maintenance.
const COHERENT: [Row; 2] =
    [("null-hvc-max", || bench::call(psci::VERSION)), ("fetch-fault-elided", bench::first_fetch)];

/// The host's count when this machine's was 0, which only its host knows; 0 without one.
fn host_count_at_zero() -> u64 {
    guest::clock().map_or(0, |(_, lag)| lag)
}

/// Messages in one measurement.
const MESSAGES: u64 = 32;

/// A message of 100 bytes on an open channel, four bytes a call, and its reply: 29 calls and what the library does between
/// them.
fn rpc_of_100_bytes() -> u64 {
    let mut message = [b'x'; 100];
    message[..20].copy_from_slice(b"info-set guestinfo.b");
    message[20] = b' ';
    exchange_all(|channel| guest::exchange(channel, &message, &mut [0; 8]).is_ok())
}

/// A message of 60,000 bytes on an open channel as one bulk transfer, and its reply: 5 calls.
fn rpc_of_60_000_bytes() -> u64 {
    const LENGTH: u64 = 60_000;
    let buffer = memory::pages(15);
    for (offset, &byte) in (0..).zip(b"info-set guestinfo.b ".iter().chain(core::iter::repeat_n(&b'x', 59_979))) {
        memory::write8(buffer + offset, byte);
    }
    exchange_all(|channel| {
        let offered = guest::message(step::SEND_SIZE, LENGTH, channel)[2] == 0x81_0000;
        let taken = bench::bulk_out(channel, buffer, LENGTH);
        let replied = guest::message(step::RECEIVE_SIZE, 0, channel)[1] == 2;
        let good = guest::message(step::RECEIVE_PAYLOAD, 1, channel)[1] as u16 == u16::from_le_bytes(*b"1 ");
        let _ = guest::message(step::RECEIVE_STATUS, 1, channel);
        offered && taken && replied && good
    })
}

/// Tenths of instructions of one exchange on an open channel; 0 when one failed.
fn exchange_all(exchange: impl Fn([u64; 3]) -> bool) -> u64 {
    let x = guest::message(step::OPEN, guest::RPCI, [0; 3]);
    let channel = [x[3] >> 16, x[4], x[5]];
    let start = timer::now();
    let all = (0..MESSAGES).all(|_| exchange(channel));
    let end = timer::now();
    let _ = guest::message(step::CLOSE, 0, channel);
    if all { (end - start) * 10 / MESSAGES } else { 0 }
}

fn main() {
    match machine::option("rows") {
        Some("scaled") => return print(&SCALED),
        Some("coherent") => return print(&COHERENT),
        Some("disk") => return print(&DISK),
        Some("net") => return print(&NET),
        _ => {}
    }
    let frequency = sysreg::cntfrq_el0::read();
    if frequency != 1_000_000_000 {
        println!("# the counter runs at {frequency} Hz, not 1 GHz: these are ticks, not instructions");
    }
    if !bench::timer_fires() {
        println!("test bench ... FAILED: the virtual timer does not fire");
        println!("payload: 0 passed, 1 failed, 0 skipped");
        return;
    }
    println!("bench reset-to-guest {}.0", timer::first_count() + host_count_at_zero());
    print(&ROWS);
}

/// How long the guest sleeps before each row, in microseconds: several turns of the hypervisor's console thread, one every 5 ms.
/// Then nothing is left that a row gave the thread to do, and nothing of it is counted with another row.
const REST: u64 = 30_000;

fn print<const N: usize>(rows: &[Row; N]) {
    let measure = || {
        rows.map(|(_, measure)| {
            timer::sleep(REST);
            gic::disable(timer::VIRTUAL_PPI);
            measure()
        })
    };
    measure();
    for ((name, _), tenths) in rows.iter().zip(measure()) {
        // What failed has no row, and the gate misses it.
        if tenths > 0 {
            println!("bench {name} {}.{}", tenths / 10, tenths % 10);
        }
    }
    println!("payload: {N} passed, 0 failed, 0 skipped");
}
