//! What a Linux guest's clocks and timers do under load, watched from inside.
//!
//! ```text
//! linux-clocks watch           for ever: a process a CPU, one for timerfd, one for long sleeps, and one that reports
//! linux-clocks talk MS         a numbered line every MS milliseconds, for ever
//! linux-clocks sample WORD     the guest's clock and the host's, at the same moment
//! linux-clocks device          what time it is by /dev/ptp0, and by the system when its counter showed the same
//! ```
//!
//! Nothing here measures how late anything is, since a busy computer makes everything late. But a clock that goes back, a timer
//! that fires early and one that counts wrongly are wrong on every computer. Each such error is a line `uc: clocks FAILED: ...`.
//! The checks are counted, and the counts printed every second, so that a reader sees that nothing has stopped.
//!
//! A sample lies between two looks at the guest's clock, which say how exact it is. The host's time is asked for by VMware's
//! call, which goes by the host's counter and knows nothing of the guest's.
//!
//! UNSAFETY: the symbol that the program's entry calls.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the symbol that the program's entry calls")]

mod watch;

use abi::calls::vmware::command;
use core::fmt::Write;
use guest_tools::{Words, exit, start};
use linux_programs::{Line, line, system};

/// How many looks a sample takes at most, and how close together (in nanoseconds) two of the guest's must be.
const LOOKS: u32 = 4000;
const CLOSE: u64 = 20_000;

/// The program, called by the entry with the stack that the kernel left.
// SAFETY: the name is the entry's, and this is the program's only definition of it.
#[unsafe(no_mangle)]
extern "C" fn tool_main(stack: *const u64) -> ! {
    let words = start(stack);
    match words.get(1) {
        Some("watch") => watch::all(),
        Some("talk") => talk(words.number(2).unwrap_or(20)),
        Some("sample") => sample(words),
        Some("device") => device(),
        _ => {
            line!("usage: linux-clocks watch | talk MILLISECONDS | sample WORD | device");
            exit(2)
        }
    }
}

/// The host's time in microseconds.
fn host_time() -> u64 {
    let x = guest::low(command::GET_TIME_FULL_WITH_LAG.into(), 0, [0; 3]);
    (x[4] << 32 | x[3]).wrapping_mul(1_000_000).wrapping_add(x[1])
}

/// Of many looks at both clocks that whose two looks at the guest's are closest together.
fn sample(words: Words) -> ! {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..LOOKS {
        let before = system::monotonic();
        let host = host_time();
        let width = system::monotonic() - before;
        if width < best.0 {
            best = (width, before, host);
        }
        if width <= CLOSE {
            break;
        }
    }
    let (width, before, host) = best;
    line!("uc: sample {} {before} {width} {host} {}.", words.get(2).unwrap_or("-"), system::real_time());
    exit(0)
}

/// One look at the counter, from which the kernel computes both times, in nanoseconds.
fn device() -> ! {
    let [device, real] = system::ptp_and_real_time();
    line!("uc: device {device} system {real}.");
    exit(0)
}

/// Numbered lines, each with a text that follows from its number.
fn talk(milliseconds: u64) -> ! {
    let mut number = 0_u64;
    loop {
        let mut line = Line::new();
        let _ = write!(line, "line {number} ");
        let mut word = number;
        for _ in 0..48 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let _ = line.write_char(char::from(b'a' + (word >> 33) as u8 % 26));
        }
        let _ = writeln!(line, ".");
        line.print();
        number += 1;
        system::sleep(milliseconds * 1_000_000);
    }
}
