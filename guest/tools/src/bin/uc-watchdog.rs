//! `uc-watchdog`: this VM's watchdog, through the WFE channel.
//!
//! `uc-watchdog detect`, `query`, `pat`, `set MILLISECONDS [log|inject|reset|pause|stop]` (0 disarms), and `feed MILLISECONDS`,
//! which pats for ever. With `own` before one of the last four, it uses the watchdog of the vCPU that runs the program: bind the
//! program to one vCPU (`taskset`), or the kernel may move it to another between two calls. All but `detect` and `query` need a
//! VM whose site file lets processes do it (`watchdog-user = true`). Ends with status 1 if nobody answers or the request is
//! refused, 2 if it was called wrongly, 3 if its output could not be written.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the symbol that the program's entry calls")]

use guest::{Action, Refused};
use guest_tools::{Words, exit, say, sleep_milliseconds, start};

type Answer = Option<Result<u64, u64>>;

/// The calls to one of the watchdogs.
struct Calls {
    query: fn() -> Answer,
    pat: fn() -> Answer,
    configure: fn(u64, u64) -> Answer,
}

/// The VM's, which any vCPU pats.
const OF_VM: Calls =
    Calls { query: guest::query_watchdog, pat: guest::pat_watchdog, configure: guest::configure_watchdog };
/// The calling vCPU's own.
const OWN: Calls =
    Calls { query: guest::query_own_watchdog, pat: guest::pat_own_watchdog, configure: guest::configure_own_watchdog };

/// The program, called by the entry with the stack that the kernel left.
// SAFETY: the name is the entry's, and each tool defines it once.
#[unsafe(no_mangle)]
extern "C" fn tool_main(stack: *const u64) -> ! {
    let words = start(stack);
    let (calls, first) = if words.get(1) == Some("own") { (OWN, 2) } else { (OF_VM, 1) };
    match words.get(first) {
        Some("detect") if first == 1 => match guest::detect() {
            Some(value) => say!("agent version {}, features {:#x}", value >> 32, value & 0xffff_ffff),
            None => nobody(),
        },
        Some("query") => show((calls.query)()),
        Some("pat") => show((calls.pat)()),
        Some("set") => show(set(&calls, words, first + 1)),
        Some("feed") => feed(&calls, words, first + 1),
        _ => usage(),
    }
    exit(0)
}

fn usage() -> ! {
    say!(
        "usage: uc-watchdog detect | [own] query | [own] pat | \
         [own] set MILLISECONDS [log|inject|reset|pause|stop] | [own] feed MILLISECONDS"
    );
    exit(2)
}

fn nobody() -> ! {
    say!("nobody answers to WFE here");
    exit(1)
}

fn set(calls: &Calls, words: Words, first: usize) -> Answer {
    let Some(milliseconds) = words.number(first) else { usage() };
    let action = words.get(first + 1).map_or(Some(Action::Reset), Action::from_name);
    let Some(action) = action else { usage() };
    (calls.configure)(milliseconds, action.number().into())
}

fn feed(calls: &Calls, words: Words, first: usize) {
    let Some(milliseconds) = words.number(first) else { usage() };
    loop {
        if let answer @ (None | Some(Err(_))) = (calls.pat)() {
            show(answer);
        }
        sleep_milliseconds(milliseconds);
    }
}

fn show(answer: Answer) {
    match answer {
        Some(Ok(milliseconds)) => say!("{milliseconds} ms"),
        Some(Err(why)) => {
            let reason = match Refused::from_number(why) {
                Some(Refused::Level) => "not for this caller",
                Some(Refused::Action) => "no such action",
                Some(Refused::NotArmed) => "not armed",
                Some(Refused::MustStay) => "it must stay armed",
                None => "?",
            };
            say!("refused: {reason}");
            exit(1)
        }
        None => nobody(),
    }
}
