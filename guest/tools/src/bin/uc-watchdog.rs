//! `uc-watchdog`: this VM's watchdog, through the WFE channel.
//!
//! `uc-watchdog detect`, `query`, `pat`, `set MILLISECONDS [log|inject|reset|pause|stop]` (0
//! disarms), and `feed MILLISECONDS`,
//! which pats for ever. All but the first two need a VM whose site file lets processes do it.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the symbol that the program's entry calls")]

use guest_tools::{Words, exit, say, sleep_milliseconds, start};

const ACTIONS: [(&str, u64); 5] = [("log", 0), ("inject", 1), ("reset", 2), ("pause", 3), ("stop", 4)];

/// The program, called by the entry with the stack that the kernel left.
// SAFETY: the name is the entry's, and each tool defines it once.
#[unsafe(no_mangle)]
extern "C" fn tool_main(stack: *const u64) -> ! {
    let words = start(stack);
    match words.get(1) {
        Some("detect") => match guest::detect() {
            Some(value) => say!("agent version {}, features {:#x}", value >> 32, value & 0xffff_ffff),
            None => nobody(),
        },
        Some("query") => show(guest::query_watchdog()),
        Some("pat") => show(guest::pat_watchdog()),
        Some("set") => show(set(words)),
        Some("feed") => feed(words),
        _ => usage(),
    }
    exit(0)
}

fn usage() -> ! {
    say!(
        "usage: uc-watchdog detect | query | pat | set MILLISECONDS [log|inject|reset|pause|stop] | feed MILLISECONDS"
    );
    exit(2)
}

fn nobody() -> ! {
    say!("nobody answers to WFE here");
    exit(1)
}

fn set(words: Words) -> Option<Result<u64, u64>> {
    let Some(milliseconds) = words.number(2) else { usage() };
    let name = words.get(3).unwrap_or("reset");
    let Some((_, action)) = ACTIONS.iter().find(|(known, _)| *known == name) else { usage() };
    guest::configure_watchdog(milliseconds, *action)
}

fn feed(words: Words) {
    let Some(milliseconds) = words.number(2) else { usage() };
    loop {
        if let answer @ (None | Some(Err(_))) = guest::pat_watchdog() {
            show(answer);
        }
        sleep_milliseconds(milliseconds);
    }
}

fn show(answer: Option<Result<u64, u64>>) {
    match answer {
        Some(Ok(milliseconds)) => say!("{milliseconds} ms"),
        Some(Err(why)) => {
            let reasons = ["", "not for this caller", "no such action", "not armed", "it must stay armed"];
            say!("refused: {}", reasons.get(why as usize).unwrap_or(&"?"));
            exit(1)
        }
        None => nobody(),
    }
}
