//! The watchers, each a process, and what they share: the latest times that any has seen, and counts.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, Ordering};
use linux_programs::system::{self, TimerFile};
use linux_programs::{Line, line};

/// Looks at the clocks between two sleeps.
const BURST: u64 = 50;
/// The longest of the short sleeps, in nanoseconds.
const SHORT: u64 = 8_000_000;
/// A long one, which is most often under way when the VM stands still.
const LONG: u64 = 900_000_000;
/// The timer's period.
const PERIOD: u64 = 7_000_000;
const MOST_CPUS: usize = 8;

/// What is shared.
#[derive(Clone, Copy)]
struct Seen {
    /// The latest CLOCK_MONOTONIC and virtual count of anybody's.
    time: &'static AtomicU64,
    count: &'static AtomicU64,
    /// How often each CPU has looked, and slept.
    looks: &'static [AtomicU64],
    sleeps: &'static [AtomicU64],
    /// How often the timer expired, and how many long sleeps there were.
    ticks: &'static AtomicU64,
    long: &'static AtomicU64,
}

/// Runs all of them, and reports.
pub(crate) fn all() -> ! {
    let page = system::shared_page();
    let seen = Seen {
        time: &page[0],
        count: &page[1],
        ticks: &page[2],
        long: &page[3],
        looks: &page[8..8 + MOST_CPUS],
        sleeps: &page[24..24 + MOST_CPUS],
    };
    let cpus = system::cpus();
    let each = || (0..MOST_CPUS as u32).filter(move |cpu| cpus >> cpu & 1 != 0);
    for cpu in each() {
        system::spawn(move || seen.on(cpu));
    }
    system::spawn(move || seen.timer());
    system::spawn(move || seen.long());
    loop {
        let mut line = Line::new();
        let _ = write!(line, "uc: watched");
        for cpu in each() {
            let of = |counts: &[AtomicU64]| counts[cpu as usize].load(Ordering::Relaxed);
            let _ = write!(line, " {} {}", of(seen.looks), of(seen.sleeps));
        }
        let _ = writeln!(line, " {} {}.", seen.ticks.load(Ordering::Relaxed), seen.long.load(Ordering::Relaxed));
        line.print();
        system::sleep(1_000_000_000);
    }
}

/// A look at a clock, which is no earlier than any that somebody had before.
fn look(what: &str, cpu: u32, latest: &AtomicU64, read: fn() -> u64) -> u64 {
    let before = latest.load(Ordering::SeqCst);
    let now = read();
    if now < before {
        line!("uc: clocks FAILED: {what} went back on CPU {cpu}: {now} after {before}");
    }
    latest.fetch_max(now, Ordering::SeqCst);
    now
}

impl Seen {
    /// On one CPU: looks and short sleeps in turn.
    fn on(self, cpu: u32) -> ! {
        system::stay_on(cpu);
        let (looks, sleeps) = (&self.looks[cpu as usize], &self.sleeps[cpu as usize]);
        let time = || look("CLOCK_MONOTONIC", cpu, self.time, system::monotonic);
        let mut random = u64::from(cpu) + 1;
        loop {
            for _ in 0..BURST {
                time();
                look("the counter", cpu, self.count, system::counter);
            }
            looks.fetch_add(BURST, Ordering::Relaxed);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let length = 1 + (random >> 33) % SHORT;
            let begin = time();
            if random >> 32 & 1 == 0 {
                system::sleep(length);
            } else {
                system::sleep_until(begin + length);
            }
            check_sleep("a sleep", begin, length, time());
            sleeps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A periodic timer. At each moment it has expired as often as its period has passed: not more often when it says so, and not
    /// less often than at the moment when it was asked.
    fn timer(self) -> ! {
        let first = system::monotonic() + PERIOD;
        let timer = TimerFile::new(first, PERIOD);
        let times = |moment: u64| if moment < first { 0 } else { (moment - first) / PERIOD + 1 };
        let mut total = 0;
        loop {
            let before = times(system::monotonic());
            total += timer.wait();
            let after = times(system::monotonic());
            if total < before || total > after {
                line!("uc: clocks FAILED: a timer expired {total} times, not {before} to {after}");
            }
            self.ticks.store(total, Ordering::Relaxed);
        }
    }

    /// Long sleeps.
    fn long(self) -> ! {
        loop {
            let begin = system::monotonic();
            system::sleep(LONG);
            check_sleep("a long sleep", begin, LONG, system::monotonic());
            self.long.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn check_sleep(what: &str, begin: u64, length: u64, end: u64) {
    if end < begin + length {
        line!("uc: clocks FAILED: {what} of {length} ns took {}", end.saturating_sub(begin));
    }
}
