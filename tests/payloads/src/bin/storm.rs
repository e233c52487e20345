//! Very many calls: random registers at all the doors, from EL0 and EL1, with buffers that wrap around, lead into devices or out of RAM,
//! may not be written, or are unmapped by the other CPU during the call. `vmware = true` and `wfe = true` in the site file.
//!
//! `seed=<n>` and `calls=<n>` say what and how many (100,000 for each level). Nothing of it may change a register that no call changes, or
//! keep the doors from answering afterwards.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::calls::own::{self, command};
use abi::calls::vmware::command::MESSAGE;
use abi::calls::{self, vmware};
use guest::step;
use payload_rt::random::Random;
use payload_rt::test::Verdict;
use payload_rt::user::{self, ExceptionLevel, Page};
use payload_rt::{check, check_equal, cpu, machine, memory, println, sysreg, test, tests};

payload_rt::entry!(main);

/// `MRS XZR, MDCCSR_EL0`, `HVC #0x86`, and a WFE that has to wait; each with its `SVC #0`.
const CODE: [u32; 8] = [0xd533_011f, SVC, 0xd400_10c2, SVC, 0xd503_20bf, 0xd503_205f, 0xd503_205f, SVC];
const SVC: u32 = 0xd400_0001;
/// Where in [`CODE`] each door begins.
const DOORS: [u64; 3] = [0, 2, 4];
/// Channels that a VM may have.
const CHANNELS: usize = 64;
const MAGIC: u64 = vmware::MAGIC as u64;
const OWN_MAGIC: u64 = own::MAGIC as u64;
const OWN_PORT: u64 = own::PORT as u64;
const MARK: u64 = calls::marked(0);
/// MDSCR_EL1.TDCC.
const TDCC: u64 = 1 << 12;
const UART: u64 = 0x0900_0000;

/// Pages of the window that buffers lie in.
const FIRST: u64 = 1;
const COUNT: u64 = 16;
/// The one that the other CPU maps now in this way, now in that.
const RESTLESS: u64 = 10;

fn main() {
    println!("storm: seed {}", seed());
    test::run(&tests!("storm":
        channels_that_nobody_closes, replies_that_nobody_takes, any_registers_from_level_0, any_registers_from_level_1, a_log_that_never_ends,
        the_doors_still_answer,
    ));
}

fn seed() -> u64 {
    machine::option_number("seed", 1)
}

/// The pages of RAM behind the window.
static PAGES: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static CHANGES: AtomicU64 = AtomicU64::new(0);

fn map_window() {
    if PAGES.load(Ordering::SeqCst) == 0 {
        PAGES.store(memory::pages(COUNT), Ordering::SeqCst);
    }
    let pages = PAGES.load(Ordering::SeqCst);
    for number in FIRST..FIRST + COUNT {
        let to = pages + (number - FIRST) * 4096;
        match number {
            3 => user::map(number, to, Page::Missing),
            5 => user::map(number, to, Page::ReadOnly),
            7 => user::map(number, to, Page::Kernel),
            12 => user::map(number, UART, Page::Data),
            _ => user::map(number, to, Page::Data),
        }
    }
    user::load(&CODE);
    // An event stream, so that no WFE waits for ever.
    sysreg::cntkctl_el1::write(1 << 2 | 4 << 4);
}

/// The other CPU: maps one page anew all the time, and calls by itself in between.
fn restless(_: usize) {
    let mut random = Random::new(seed() ^ 0x5a5a);
    let to = PAGES.load(Ordering::SeqCst) + (RESTLESS - FIRST) * 4096;
    while !STOP.load(Ordering::SeqCst) {
        match random.below(5) {
            0 => user::map(RESTLESS, to, Page::Missing),
            1 => user::map(RESTLESS, to, Page::ReadOnly),
            2 => user::map(RESTLESS, to, Page::Kernel),
            3 => user::map(RESTLESS, UART, Page::Data),
            _ => user::map(RESTLESS, to, Page::Data),
        }
        CHANGES.fetch_add(1, Ordering::SeqCst);
        let _ = guest::low(random.below(100), random.word(), [random.below(70), random.word(), random.word()]);
    }
}

/// Somewhere that a buffer may claim to be. What EL1 can reach and this payload needs is not among it.
fn place(random: &mut Random) -> u64 {
    let near = random.below(128).wrapping_sub(64);
    let page = user::address(FIRST + random.below(COUNT + 1));
    match random.below(12) {
        0..8 => page.wrapping_add(near),
        8 => u64::MAX.wrapping_sub(random.below(8192)),
        9 => UART.wrapping_add(near) & !0xff,
        10 => machine::machine().ram.end - random.below(4096),
        // Neither half of the address space has translations there.
        _ => 0x00f0_0000_0000_0000 | random.word() >> 8,
    }
}

/// Registers, most of them nearly right.
fn registers(random: &mut Random) -> [u64; 31] {
    let mut x: [u64; 31] = core::array::from_fn(|_| random.word());
    if random.below(16) == 0 {
        return x;
    }
    x[0] = match random.below(4) {
        0 => OWN_MAGIC,
        _ => random.word() << 32 | MAGIC,
    };
    x[1] = match random.below(5) {
        0 => guest::RPCI,
        1 => random.below(200),
        2 => random.below(0x2_0000),
        3 => random.below(8),
        _ => random.word(),
    };
    x[2] = match random.below(4) {
        0 => random.below(8) << 16 | u64::from(MESSAGE),
        1 => random.below(100),
        2 => random.below(0x1_4000),
        _ => random.word(),
    };
    let (low, high) = (u64::from(vmware::PORT_LOW), u64::from(vmware::PORT_HIGH));
    let flags = u64::from(vmware::PORT_HIGH_WITH_FLAGS);
    let port = [low, low, high, high, flags, OWN_PORT][random.below(6) as usize];
    x[3] = random.below(70) << 16 | port;
    (x[4], x[5]) = match random.below(3) {
        0 => (random.word(), random.word()),
        _ => (place(random), place(random)),
    };
    x[7] = match random.below(6) {
        0..3 => calls::marked(calls::LOW),
        3 => calls::marked(calls::HIGH_OUT),
        4 => calls::marked(calls::HIGH_IN),
        _ => MARK | random.below(64),
    };
    // What a guest may do to itself: a string to our own port goes on for as long as it was asked to, one exit for each part of it.
    if port == OWN_PORT && x[7] & 0x10 != 0 {
        x[2] &= 0xffff;
    }
    // And its watchdog could end this test.
    if x[0] as u32 == OWN_MAGIC as u32 && x[2] as u16 == command::WATCHDOG {
        x[5] = 0;
    }
    x
}

fn storm(level: ExceptionLevel) -> Verdict {
    map_window();
    STOP.store(false, Ordering::SeqCst);
    CHANGES.store(0, Ordering::SeqCst);
    let others = cpu::count() > 1;
    if others {
        check!(cpu::start(1, restless).is_ok(), "CPU 1 did not start");
    }
    let mut random = Random::new(seed() ^ u64::from(level == ExceptionLevel::User) << 32);
    let calls = machine::option_number("calls", 100_000);
    let (mut wrong, mut exceptions) = (None, 0u64);
    for round in 0..calls {
        let mut x = registers(&mut random);
        let door = random.below(16).saturating_sub(13) as usize;
        if door == 2 && random.below(2) == 0 {
            // A word of the channel; of the watchdog's actions only the line in the log.
            let words = guest::words::OWN;
            x[0] = [guest::words::DETECT, guest::words::CONFIGURE, guest::words::PAT, words[0], words[1], words[2]]
                [random.below(6) as usize];
            (x[1], x[2]) = (random.below(2) * random.word(), random.below(2) * 0x100);
        }
        sysreg::mdscr_el1::write(random.below(2) * TDCC);
        let end = user::run_again(level, DOORS[door], x);
        if !end.is_svc() {
            exceptions += 1;
        }
        if end.x[8..] != x[8..] || end.x[7] != x[7] || end.sp != 0x5a5a_5a50 {
            wrong = Some(round);
            break;
        }
    }
    sysreg::mdscr_el1::write(0);
    STOP.store(true, Ordering::SeqCst);
    if others {
        check!(cpu::wait_off(1), "CPU 1 is still on");
        check!(CHANGES.load(Ordering::SeqCst) > 0, "CPU 1 has changed nothing");
    }
    let _ = guest::configure_watchdog(0, 0);
    let _ = guest::configure_own_watchdog(0, 0);
    check_equal!(wrong, None, "the round in which X7 to X30 or SP changed");
    check!(exceptions > 0 && exceptions < calls, "{exceptions} of {calls} calls were exceptions");
    Ok(())
}

fn any_registers_from_level_0() -> Verdict {
    storm(ExceptionLevel::User)
}

fn any_registers_from_level_1() -> Verdict {
    storm(ExceptionLevel::Kernel)
}

/// OPEN again and again, and nobody closes: a VM has 64 channels, and the one that was idle longest is given up for the next.
fn channels_that_nobody_closes() -> Verdict {
    let mut opened = [[0; 3]; CHANNELS];
    let mut first = None;
    for round in 0..1000 {
        let x = guest::message(step::OPEN, guest::RPCI, [0; 3]);
        let channel = [x[3] >> 16, x[4], x[5]];
        check!(x[2] == 0x1_0000 && channel[0] < CHANNELS as u64, "OPEN {round}: X2 {:#x}, number {}", x[2], channel[0]);
        opened[round % CHANNELS] = channel;
        first = first.or(Some(channel));
    }
    // On each a message of the greatest length is begun, and never sent: a VM may have 1 MiB of them.
    let begin = |channel| guest::message(step::SEND_SIZE, 65536, channel)[2] >> 16 & 1 != 0;
    let begun = opened.iter().filter(|&&channel| begin(channel)).count();
    check!((1..=16).contains(&begun), "{begun} messages of 64 KiB begun");
    check!(first.is_some_and(|channel| !begin(channel)), "the first channel, long given up, is taken for one");
    let closed = opened.iter().filter(|&&channel| guest::message(step::CLOSE, 0, channel)[2] >> 16 & 1 != 0).count();
    check_equal!(closed, CHANNELS, "channels closed");
    let mut reply = [0; 64];
    check!(guest::ask(b"info-set guestinfo.storm 1", &mut reply).is_ok(), "no channel after all were closed");
    Ok(())
}

/// The beginning of a message that sets a value, and a value that is nearly as long as a message may be.
static VALUE: [u8; 60_024] = {
    let mut message = [b'v'; 60_024];
    message.split_at_mut(24).0.copy_from_slice(b"info-set guestinfo.long ");
    message
};

/// A value is asked for on all channels, and nobody takes a reply: a VM may have 1 MiB of them, and then errors.
fn replies_that_nobody_takes() -> Verdict {
    let mut reply = [0; 64];
    check_equal!(guest::ask(&VALUE, &mut reply), Ok(&b"1 "[..]), "a long value");
    let ask = *b"info-get guestinfo.long\0";
    let (mut whole, mut refused) = (0, 0);
    let mut channels = [[0; 3]; CHANNELS];
    for channel in &mut channels {
        let x = guest::message(step::OPEN, guest::RPCI, [0; 3]);
        *channel = [x[3] >> 16, x[4], x[5]];
        let _ = guest::message(step::SEND_SIZE, ask.len() as u64, *channel);
        for word in ask.as_chunks::<4>().0 {
            let _ = guest::message(step::SEND_PAYLOAD, u32::from_le_bytes(*word).into(), *channel);
        }
        match guest::message(step::RECEIVE_SIZE, 0, *channel)[1] {
            60_002 => whole += 1,
            15 => refused += 1,
            other => check!(false, "a reply of {other} bytes"),
        }
    }
    check_equal!(whole + refused, CHANNELS, "replies");
    check!((1..=17).contains(&whole), "{whole} replies of 60 KB wait for somebody");
    for channel in channels {
        let _ = guest::message(step::CLOSE, 0, channel);
    }
    check_equal!(guest::ask(b"info-set guestinfo.long ", &mut reply), Ok(&b"1 "[..]), "a short value");
    Ok(())
}

/// Lines for the host's log as fast as they go: most are refused, none blocks.
fn a_log_that_never_ends() -> Verdict {
    map_window();
    let at = PAGES.load(Ordering::SeqCst);
    for word in 0..128 {
        memory::write64(at + 8 * word, 0x2074_6f6e_2064_6964);
    }
    let (mut taken, mut refused, mut strange) = (0, 0, None);
    for _ in 0..20_000 {
        match guest::own(command::LOG, [1000, at, 0]) {
            Some(Ok(_)) => taken += 1,
            Some(Err(3)) => refused += 1,
            other => strange = Some(other),
        }
    }
    check!(strange.is_none(), "a line was answered by {strange:?}");
    check!(taken < 200 && refused > 0, "{taken} lines taken, {refused} refused");
    Ok(())
}

fn the_doors_still_answer() -> Verdict {
    check!(guest::is_vmware(), "nobody answers any more");
    check!(guest::version().is_some(), "our own calls are not answered any more");
    Ok(())
}
