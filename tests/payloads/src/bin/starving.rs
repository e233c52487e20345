//! A guest that hangs or misbehaves as `mode=` says, while its watchdogs are armed by the site file (`watchdog = 300` or so) or by
//! itself; the test that started it watches the result. It never ends by itself, not even in the mode `fed`.
//!
//! | mode | |
//! |---|---|
//! | `spin` | loops with all interrupts masked |
//! | `wfi` | waits for an interrupt, of which none is enabled |
//! | `exits` | loops over calls and device accesses, each of which reaches the hypervisor |
//! | `stuck` | vCPU 1 arms its own watchdog and loops; vCPU 0 is well and pats the VM's |
//! | `off` | vCPU 1 arms its own watchdog and switches itself off; vCPU 0 is well and pats the VM's |
//! | `serror` | as `spin`, until an SError is pending; then it says so |
//! | `restless` | arms the VM's watchdog, its vCPU's own and, with half the time, the Generic Watchdog, all the time, and is well |
//! | `lowering` | brings the deadlines of all its watchdogs and its clock's alarm forward a little, again and again; is well |
//! | `breaking` | breaks its virtio devices again and again, by what it sets up and by what it offers, each time in a way that the log knows |
//! | `feeding` | gives its entropy device one byte in each block of its untouched memory, 64 blocks at a time; then it switches its only vCPU off |
//! | `calling` | VMware's service takes and gives messages, and takes strings, in pages that each are in an untouched block; then it is off, as above |
//! | `reading` | reads its disk, a sector into each block of its untouched memory; then it is off, as above |
//! | `chains` | gives its device `kind=` chains of 256 descriptors of `length=` bytes each, for ever |
//! | `flood` | writes to its virtio console, for ever: as much as there can be offered, in one buffer again and again |
//! | `chatter` | writes to its UART, for ever |
//! | `executing` | executes an instruction in each block of its untouched memory, so that each has a table of pages; resets the VM then |
//! | `resetting` | resets the VM at once |
//! | `tools` | says as VMware's tools do that it can shut itself down, and polls for the host's requests, for ever |
//! | `counting` | sleeps, pats and refreshes the Generic Watchdog, and says again and again what its counter and its real-time clock show |
//! | `fed` | sleeps and pats, `pats=` times every `every=` milliseconds; then says so and goes on as `wfi` |
//!
//! `calling` and `reading` begin after `settle=` milliseconds. `action=` is what a watchdog does that the guest arms itself, by number; `timeout=`
//! its time in milliseconds.
#![no_std]
#![no_main]

use guest::step;
use payload_rt::{cpu, gic, instruction, machine, memory, println, psci, sysreg, timer, user, virtio};

payload_rt::entry!(main);

/// Between two polls.
const POLL_MICROSECONDS: u64 = 100_000;
/// WOR and WCS of the Generic Watchdog.
const WATCHDOG_OFFSET: u64 = 0x0910_0008;
const WATCHDOG_STATUS: u64 = 0x0910_0000;
/// WCS.WS0.
const FIRST_SIGNAL: u32 = 1 << 1;
/// WRR, WCV, and the PL031's data and match registers.
const GENERIC_WATCHDOG_REFRESH: u64 = 0x0911_0000;
const WATCHDOG_COMPARE: u64 = 0x0910_0010;
const CLOCK: u64 = 0x0901_0000;
const UART: u64 = 0x0900_0000;
const CLOCK_MATCH: u64 = 0x0901_0004;
const CLOCK_MASK: u64 = 0x0901_0010;
/// X0 of a call to VMware's service; the ports of payloads in one piece and of strings, in X3; the directions, in X7; and what X1
/// says of a payload that was taken.
const MAGIC: u64 = 0x564d_5868;
const HIGH_PORT: u64 = 0x5659;
const OWN_PORT: u64 = 0x5543;
const SENDS: u64 = 0x18;
const RECEIVES: u64 = 0x1c;
const ACCEPTED: u64 = 0x1_0000;
const PSCI_VERSION: u32 = 0x8400_0000;
const SYSTEM_RESET: u32 = 0x8400_0009;

fn main() {
    let mode = machine::option("mode").unwrap_or("spin");
    println!("starving: {mode}");
    match mode {
        "wfi" => sleep_for_ever(),
        "exits" => loop {
            let _ = psci::simple(PSCI_VERSION, [0; 3]);
            let _ = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
            let _ = memory::read64(gic::DISTRIBUTOR + gic::GICD_IROUTER + 8 * 40);
            let _ = sysreg::id_aa64isar2_el1::read();
        },
        "stuck" => beside_the_other(arm_and_spin),
        "off" => beside_the_other(arm_and_go),
        "serror" => {
            // ISR_EL1.A.
            while !instruction::read_register([3, 0, 12, 1, 0]).is_ok_and(|pending| pending >> 8 & 1 != 0) {}
            println!("starving: an SError is pending");
            spin();
        }
        "restless" => loop {
            let _ = guest::configure_watchdog(timeout(), 2);
            arm();
            // It acts when this is over for the second time.
            memory::write32(WATCHDOG_OFFSET, timer::microseconds(timeout() * 500) as u32);
            memory::write32(WATCHDOG_STATUS, 1);
        },
        "tools" => poll(),
        "lowering" => lower(),
        "breaking" => break_devices(),
        "feeding" => feed_untouched(),
        "calling" => call_from_untouched(),
        "reading" => read_into_untouched(),
        "chains" => offer_chains(),
        "flood" => flood(),
        "executing" => {
            execute_everywhere();
            let _ = psci::simple(SYSTEM_RESET, [0; 3]);
        }
        "chatter" => loop {
            memory::write32(UART, b'c'.into());
        },
        "resetting" => {
            let _ = psci::simple(SYSTEM_RESET, [0; 3]);
        }
        "counting" => count(),
        "fed" => {
            feed();
            sleep_for_ever();
        }
        _ => spin(),
    }
}

/// As the tools' daemon, which is never asked anything in time: it polls, and fetches nothing.
fn poll() -> ! {
    let said = guest::ask(b"tools.capability.statechange ", &mut [0; 8]).is_ok();
    let opened = guest::message(step::OPEN, guest::TCLO, [0; 3]);
    println!("starving: {}", if said { "can be shut down" } else { "no service" });
    loop {
        let _ = guest::message(step::SEND_SIZE, 0, [opened[3] >> 16, opened[4], opened[5]]);
        let end = sysreg::cntpct_el0::read() + timer::microseconds(POLL_MICROSECONDS);
        while sysreg::cntpct_el0::read() < end {}
    }
}

/// By both timers in turn. Says so if the two counters do not agree, or a sleep was shorter than it should be.
fn count() -> ! {
    let nap = timer::microseconds(100_000);
    gic::enable(timer::PHYSICAL_PPI);
    gic::enable(timer::VIRTUAL_PPI);
    memory::write64(WATCHDOG_OFFSET, timer::microseconds(6_000_000));
    memory::write32(WATCHDOG_STATUS, 1);
    for round in 0_u64.. {
        let start = timer::now();
        if round % 2 == 0 {
            sysreg::cntp_cval_el0::write(start + nap);
            sysreg::cntp_ctl_el0::write(timer::ENABLE);
        } else {
            sysreg::cntv_cval_el0::write(start + nap);
            sysreg::cntv_ctl_el0::write(timer::ENABLE);
        }
        let ppi = if round % 2 == 0 { timer::PHYSICAL_PPI } else { timer::VIRTUAL_PPI };
        while !gic::read_bit(gic::ISPENDR, ppi) {
            cpu::wait_for_interrupt();
        }
        let (before, physical, after) = (timer::now(), timer::physical_now(), timer::now());
        timer::stop();
        let _ = guest::pat_watchdog();
        if memory::read32(WATCHDOG_STATUS) & FIRST_SIGNAL != 0 {
            println!("starving: amiss: the Generic Watchdog's time was over");
        }
        memory::write32(GENERIC_WATCHDOG_REFRESH, 0);
        let (count, seconds) = both_clocks();
        println!("starving: count {count} seconds {seconds}");
        if !(before..=after).contains(&physical) || before < start + nap {
            println!("starving: amiss: it slept from {start}, {before} {physical} {after}");
        }
    }
    sleep_for_ever()
}

/// What the counter and the real-time clock show at one moment: nobody has kept this CPU from running between the two.
fn both_clocks() -> (u64, u32) {
    loop {
        let (before, seconds, after) = (timer::now(), memory::read32(CLOCK), timer::now());
        if after - before < timer::microseconds(100_000) {
            return (before, seconds);
        }
    }
}

/// Each write makes some deadline nearer than any before; some are over at once.
fn lower() -> ! {
    memory::write32(CLOCK_MASK, 1);
    loop {
        for nearer in 0..10_000 {
            let _ = guest::configure_watchdog(60_000 - nearer, 0);
            let _ = guest::configure_own_watchdog(50_000 - nearer, 0);
            memory::write64(WATCHDOG_OFFSET, timer::microseconds(40_000_000 - nearer * 1000));
            memory::write32(WATCHDOG_STATUS, 1);
            memory::write64(WATCHDOG_COMPARE, timer::now());
            memory::write32(GENERIC_WATCHDOG_REFRESH, 0);
            memory::write32(CLOCK_MATCH, memory::read32(CLOCK) + 20_000 - nearer as u32);
        }
    }
}

/// Each device in turn, once by the set-up of a queue (one of three entries, which no device has) and once by a notification: of a buffer
/// that is nowhere, of a descriptor that there is not, of a request that has no room for its answer.
fn break_devices() -> ! {
    const NOWHERE: u64 = 1 << 39;
    let page = memory::pages(1);
    let transmit = 1;
    loop {
        for (kind, number) in [(virtio::CONSOLE, transmit), (virtio::ENTROPY, 0), (virtio::BLOCK, 0)] {
            let Some(device) = virtio::find(kind) else { continue };
            device.write(virtio::register::STATUS, 0);
            device.write(virtio::register::QUEUE_NUM, 3);
            device.write(virtio::register::QUEUE_READY, 1);
            (page..page + 4096).step_by(8).for_each(|word| memory::write64(word, 0));
            if device.start() {
                let mut queue = device.queue_in(page, number);
                device.ready();
                match kind {
                    virtio::CONSOLE => queue.offer(NOWHERE, 1, virtio::BufferDirection::ToDevice),
                    virtio::ENTROPY => {
                        // As many as the queue has, and so the first one that it has not.
                        memory::write16(page + 0x404, 64);
                        memory::write16(page + 0x402, 1);
                        sysreg::dsb();
                        device.write(virtio::register::QUEUE_NOTIFY, number);
                    }
                    _ => queue.offer(page, 16, virtio::BufferDirection::ToDevice),
                }
            }
        }
    }
}

/// Each block has to be made ready first, which takes long.
fn feed_untouched() -> ! {
    let mut fed = 0;
    if let Some(device) = virtio::find(virtio::ENTROPY)
        && device.start()
    {
        let mut queue = device.queue(0);
        device.ready();
        let mut blocks = memory::untouched_blocks();
        loop {
            let mut places = [0; 64];
            let count = places.iter_mut().zip(&mut blocks).map(|(place, block)| *place = block).count();
            let Some(places @ [_, ..]) = places.get(..count) else { break };
            queue.offer_chain(places, 1, virtio::BufferDirection::FromDevice);
            while !queue.is_done() {
                cpu::relax();
            }
            fed += count;
        }
    }
    println!("starving: fed {fed} blocks");
    switch_off()
}

fn switch_off() -> ! {
    let _ = psci::simple(psci::CPU_OFF, [0; 3]);
    spin()
}

fn settle() {
    timer::delay(machine::option_number("settle", 100) * 1000);
}

/// A message of as many pages as it can have, its reply and a string: each page that the service reads or writes is in a block that
/// has to be made ready first, and no two of them in the same.
fn call_from_untouched() -> ! {
    const PAGES: usize = 16;
    const LENGTH: u64 = 4096 * (PAGES as u64 - 1);
    let mut blocks = memory::untouched_blocks();
    let mut map = |count: usize| {
        let places =
            (1..).zip(blocks.by_ref().take(count)).map(|(page, place)| user::map(page, place, user::Page::Data));
        places.count() == count
    };
    let opened = guest::message(step::OPEN, guest::RPCI, [0; 3]);
    let channel @ [id, high, low] = [opened[3] >> 16, opened[4], opened[5]];
    settle();
    println!("starving: it begins");
    let mut messages = 0;
    while map(PAGES) {
        // Zeroes, which are no command, from the middle of a page to the middle of one.
        let _ = guest::message(step::SEND_SIZE, LENGTH, channel);
        let sent = call([MAGIC, ACCEPTED, LENGTH, id << 16 | HIGH_PORT, user::address(1) + 2048, low, high, SENDS]);
        let length = guest::message(step::RECEIVE_SIZE, 0, channel)[1];
        if !map(2) {
            break;
        }
        let taken = call([MAGIC, ACCEPTED, length, id << 16 | HIGH_PORT, high, user::address(2) - 1, low, RECEIVES]);
        if !map(2) {
            break;
        }
        let said = call([0, 0, 512, OWN_PORT, user::address(2) - 256, 0, 0, SENDS]);
        if (sent[1], taken[1], said[2]) != (ACCEPTED, ACCEPTED, 0) {
            println!("starving: FAILED: {:#x}, {:#x}, {} left", sent[1], taken[1], said[2]);
        }
        messages += 1;
    }
    println!("starving: all is ready: {} blocks, for {messages} messages", messages * 20);
    switch_off()
}

/// `HVC #0x86` with these values in X0 to X7, and what is in the registers behind it.
fn call(values: [u64; 8]) -> [u64; 31] {
    const HVC: u32 = 0xd400_10c2;
    let mut x = [0; 31];
    x.iter_mut().zip(values).for_each(|(register, value)| *register = value);
    user::run(user::ExceptionLevel::Kernel, &[HVC], x).x
}

/// As [`feed_untouched`], by reads from the disk.
fn read_into_untouched() -> ! {
    /// All that fit into a chain with a header and a status.
    const AT_ONCE: usize = 62;
    let mut read = 0;
    if let Some(device) = virtio::find(virtio::BLOCK)
        && device.start()
    {
        let mut queue = device.queue(0);
        device.ready();
        // A header of zeroes: to read, from the first sector on.
        let header = memory::pages(1);
        let status = header + 16;
        let mut blocks = memory::untouched_blocks();
        settle();
        println!("starving: it begins");
        loop {
            use virtio::BufferDirection::{FromDevice, ToDevice};
            let mut pieces = [(header, 16, ToDevice); AT_ONCE + 2];
            let sectors = pieces[1..=AT_ONCE].iter_mut().zip(&mut blocks);
            let count = sectors.map(|(piece, block)| *piece = (block, 512, FromDevice)).count();
            let Some(end) = pieces.get_mut(count + 1).filter(|_| count > 0) else { break };
            *end = (status, 1, FromDevice);
            memory::write8(status, 0xff);
            queue.offer_pieces(&pieces[..count + 2]);
            while !queue.is_done() {
                cpu::relax();
            }
            if memory::read8(status) != 0 {
                println!("starving: FAILED: the disk says {}", memory::read8(status));
            }
            read += count;
        }
    }
    println!("starving: all is ready: {read} blocks, for a sector each");
    switch_off()
}

fn execute_everywhere() {
    const RET: u32 = 0xd65f_03c0;
    let mut count = 0;
    for block in memory::untouched_blocks() {
        memory::write32(block, RET);
        sysreg::dsb();
        sysreg::isb();
        memory::call(block);
        count += 1;
    }
    println!("starving: executed in {count} blocks");
}

/// The next buffer is offered as soon as one is done.
fn flood() -> ! {
    let Some(device) = virtio::find(virtio::CONSOLE).filter(|device| device.start()) else { spin() };
    let _receive = device.queue(0);
    let mut transmit = device.queue(1);
    device.ready();
    let buffer = memory::pages(1);
    for at in (0..4096).step_by(8) {
        memory::write64(buffer + at, 0x0a61_6161_6161_6161);
    }
    loop {
        transmit.offer_chain(&[buffer; 64], 4096, virtio::BufferDirection::ToDevice);
        while !transmit.is_done() {
            cpu::relax();
        }
    }
}

/// The longest chains that there can be, the same one 128 times at once. No length at all uses up no share of bytes.
fn offer_chains() -> ! {
    use virtio::register as r;
    let kind = machine::option_number("kind", virtio::ENTROPY.into()) as u32;
    let length = machine::option_number("length", 0) as u32;
    // Receive, for the console, is what somebody else would have to feed.
    let (number, write) = if kind == virtio::CONSOLE { (1, 0) } else { (0, 2) };
    let Some(device) = virtio::find(kind).filter(|device| device.start()) else { spin() };
    let (at, buffer) = (memory::pages(3), memory::pages(1));
    memory::write64(buffer, 1);
    device.write(r::QUEUE_SEL, number);
    device.write(r::QUEUE_NUM, 256);
    for (register, offset) in [(r::QUEUE_DESC, 0), (r::QUEUE_DRIVER, 0x1000), (r::QUEUE_DEVICE, 0x2000)] {
        device.write(register, (at + offset) as u32);
        device.write(register + 4, ((at + offset) >> 32) as u32);
    }
    for index in 0..256_u64 {
        memory::write64(at + 16 * index, buffer);
        memory::write32(at + 16 * index + 8, length);
        let flags = if index == 255 { write } else { write | 1 | (index as u32 + 1) << 16 };
        memory::write32(at + 16 * index + 12, flags);
        memory::write16(at + 0x1004 + 2 * index, 0);
    }
    device.write(r::QUEUE_READY, 1);
    device.ready();
    let mut next = 0_u16;
    for round in 0_u64.. {
        next = next.wrapping_add(128);
        sysreg::dsb();
        memory::write16(at + 0x1002, next);
        sysreg::dsb();
        device.write(r::QUEUE_NOTIFY, number);
        while memory::read16(at + 0x2002) != next {
            cpu::relax();
        }
        if round == 4 {
            println!("starving: the device takes chains");
        }
    }
    spin()
}

fn spin() -> ! {
    loop {
        cpu::relax();
    }
}

fn sleep_for_ever() -> ! {
    gic::disable(timer::VIRTUAL_PPI);
    loop {
        cpu::wait_for_interrupt();
    }
}

fn timeout() -> u64 {
    machine::option_number("timeout", 300)
}

/// Sleeps and pats. The virtual timer ends each sleep; its interrupt is taken by hand.
fn feed() {
    let (pats, every) = (machine::option_number("pats", 10), machine::option_number("every", 100));
    gic::enable(timer::VIRTUAL_PPI);
    if machine::option("timeout").is_some() {
        let armed = guest::configure_watchdog(timeout(), machine::option_number("action", 2));
        println!("starving: armed: {armed:?}");
    }
    let mut failed = 0;
    let start = timer::now();
    for _ in 0..pats {
        sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(1000) * every);
        sysreg::cntv_ctl_el0::write(timer::ENABLE);
        let intid = loop {
            cpu::wait_for_interrupt();
            let intid = gic::acknowledge();
            if intid != gic::SPURIOUS {
                break intid;
            }
        };
        timer::stop();
        gic::end(intid);
        if !matches!(guest::pat_watchdog(), Some(Ok(_))) {
            failed += 1;
        }
    }
    let seconds = (timer::now() - start) / timer::microseconds(1_000_000);
    println!("starving: patted {pats} times in {seconds} s, {failed} in vain");
}

/// vCPU 0 is well.
fn beside_the_other(job: fn(usize)) -> ! {
    let started = cpu::start(1, job);
    println!("starving: the other vCPU: {started:?}");
    loop {
        let _ = guest::pat_watchdog();
        timer::delay(20_000);
    }
}

fn arm_and_spin(_: usize) {
    arm();
    spin();
}

fn arm_and_go(_: usize) {
    arm();
}

fn arm() {
    let _ = guest::configure_own_watchdog(timeout(), machine::option_number("action", 2));
}
