//! Two guests of VMware's service: one that takes all that its quotas allow, again and again, and gives nothing back;
//! and one that uses a little and must not notice. `vmware = true` in the site file; started by `tests/system`.
//!
//! `role=greedy`: channels that are never closed, messages that are never finished, values until there is no room for
//! more, lines for the log until none is accepted, output without end; `greedy: round N` for each round, for ever.
//!
//! `role=polite steps=<n>`: a sum over memory, a value set and read on one channel that stays open all the time, a line for
//! the log; `polite: step N ok`, and at the end the usual last line. Each step takes the same calls.
#![no_std]
#![no_main]

use core::fmt::Write;

use abi::calls::own::command;
use guest::step;
use payload_rt::{machine, memory, println};

payload_rt::entry!(main);

/// More channels than any VM has.
const OPENED: usize = 300;
/// More keys than the site of the test allows.
const KEYS: u64 = 40;
/// Bytes in a value.
const VALUE: usize = 2048;

/// A message in the making.
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    fn new() -> Self {
        Self { bytes: [b'v'; N], length: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            *self.bytes.get_mut(self.length).ok_or(core::fmt::Error)? = byte;
            self.length += 1;
        }
        Ok(())
    }
}

macro_rules! text {
    ($size:literal, $($arguments:tt)*) => {{
        let mut text = Text::<$size>::new();
        // What does not fit would show as a failure of the call.
        let _ = write!(text, $($arguments)*);
        text
    }};
}

fn main() {
    match machine::option("role") {
        Some("greedy") => greedy(),
        Some("polite") => polite(machine::option_number("steps", 100)),
        _ => println!("greedy: FAILED: no role"),
    }
}

fn open() -> Option<[u64; 3]> {
    let x = guest::message(step::OPEN, guest::RPCI, [0; 3]);
    (x[2] == 0x1_0000).then_some([x[3] >> 16, x[4], x[5]])
}

fn greedy() {
    let mut round = 0_u64;
    loop {
        round += 1;
        let mut channels = [None; OPENED];
        for channel in &mut channels {
            *channel = open();
        }
        let opened = channels.iter().flatten().count();
        let begins = |channel: &&[u64; 3]| guest::message(step::SEND_SIZE, 65536, **channel)[2] >> 16 & 1 != 0;
        let begun = channels.iter().flatten().filter(begins).count();
        // The last keys find no room for a key, and long before that there is none for a value.
        let (mut taken, mut no_room, mut too_many) = (0, 0, 0);
        let mut reply = [0; 64];
        for key in 0..2 * KEYS {
            let mut set = text!(2112, "info-set guestinfo.greedy{key} ");
            set.length += if key < KEYS { VALUE } else { 1 };
            match guest::ask(set.as_bytes(), &mut reply) {
                Ok(b"1 ") => taken += 1,
                Ok(b"0 Out of memory") => no_room += 1,
                Ok(b"0 Too many keys") => too_many += 1,
                _ => {}
            }
        }
        // Long lines, one call each, as fast as it goes; then what the tools say by messages.
        let (mut heard, mut unheard) = (0, 0);
        let base = memory::arena().start;
        for word in 0..125 {
            memory::write64(base + 8 * word, 0x2021_7964_6565_7267);
        }
        for _ in 0..100 {
            match guest::own(command::LOG, [1000, base, 0]) {
                Some(Ok(_)) => heard += 1,
                Some(Err(3)) => unheard += 1,
                _ => {}
            }
        }
        for line in 0..100 {
            let text = text!(256, "log greedy line {line} of round {round}: {:.>150}", "");
            match guest::ask(text.as_bytes(), &mut reply) {
                Ok(b"1 ") => heard += 1,
                Ok(b"0 ") => unheard += 1,
                _ => {}
            }
        }
        for line in 0..20 {
            println!("greedy: output {line} of round {round}: {:.>200}", "");
        }
        println!(
            "greedy: round {round}: {opened} opened, {begun} begun, keys {taken} {no_room} {too_many}, lines {heard} {unheard}"
        );
    }
}

fn polite(steps: u64) {
    let wrong = (1..=steps).try_fold((open(), None), |(channel, before), step| match polite_step(channel, step) {
        Ok(calls) if before.is_none_or(|before| before == calls) => {
            println!("polite: step {step} ok");
            Ok((channel, Some(calls)))
        }
        Ok(calls) => {
            println!("polite: step {step} FAILED: {calls} exits for calls, {before:?} before");
            Err(())
        }
        Err(what) => {
            println!("polite: step {step} FAILED: {what}");
            Err(())
        }
    });
    let failed = u32::from(wrong.is_err());
    println!("payload: {} passed, {failed} failed, 0 skipped", 1 - failed);
}

/// One step; how many exits for calls it took.
fn polite_step(channel: Option<[u64; 3]>, step: u64) -> Result<u64, &'static str> {
    let channel = channel.ok_or("no channel")?;
    let base = memory::arena().start;
    let mut sum = 0_u64;
    for position in 0..16_384 {
        memory::write64(base + 8 * position, position ^ step);
    }
    for position in 0..16_384 {
        sum = sum.rotate_left(7) ^ memory::read64(base + 8 * position) ^ position;
    }
    let expected = (0..16_384).fold(0_u64, |sum, _| sum.rotate_left(7) ^ step);
    if sum != expected {
        return Err("memory changed");
    }
    let before = guest::exits("call").ok_or("no statistics")?;
    let mut reply = [0; 64];
    let set = text!(64, "info-set guestinfo.polite value {step:06}");
    match guest::exchange(channel, set.as_bytes(), &mut reply) {
        Ok(2) if reply.starts_with(b"1 ") => {}
        _ => return Err("the value was not taken"),
    }
    let length = guest::exchange(channel, b"info-get guestinfo.polite", &mut reply).map_err(|_| "no answer")?;
    if reply.get(..length) != Some(text!(64, "1 value {step:06}").as_bytes()) {
        return Err("another value came back");
    }
    let line = text!(64, "log polite line {step:06}");
    match guest::exchange(channel, line.as_bytes(), &mut reply) {
        Ok(2) if reply.starts_with(b"1 ") => {}
        _ => return Err("a line for the log was not taken"),
    }
    Ok(guest::exits("call").ok_or("no statistics")? - before)
}
