//! Tests by name, and the protocol on the UART: `test <name> ... ok`, `... FAILED: why`, `... skipped: why`, and at the end
//! `payload: N passed, N failed, N skipped`; then the machine is switched off, whatever the result.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use spin::Mutex;

use crate::{cpu, gic, interrupt, machine, print, println, psci, timer, uart};

/// A reason in words; what does not fit is cut off.
struct Text {
    bytes: [u8; 200],
    length: usize,
}

impl Text {
    const EMPTY: Self = Self { bytes: [0; 200], length: 0 };

    fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self::EMPTY;
        // Overlong text is cut, not an error.
        let _ = text.write_fmt(arguments);
        text
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("(not text)")
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes().filter(u8::is_ascii) {
            *self.bytes.get_mut(self.length).ok_or(fmt::Error)? = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Why the running test stopped.
static REASON: Mutex<Text> = Mutex::new(Text::EMPTY);

/// How a test stops without passing; the reason is kept by [`stop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The machine did something else than it should.
    Failed,
    /// The machine lacks what the test needs.
    Skipped,
}

/// Notes the reason and returns `how`; the macros below call this.
pub fn stop(how: Stop, reason: fmt::Arguments<'_>) -> Stop {
    *REASON.lock() = Text::new(reason);
    how
}

/// What a test returns.
pub type Verdict = Result<(), Stop>;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// `theme::what`.
    pub name: &'static str,
    /// The test itself; it starts with interrupts masked and the GIC as [`gic::initialise_cpu`] leaves it.
    pub run: fn() -> Verdict,
}

/// Makes the list of tests of a theme: `tests!("gic": sgi_to_self, priorities)`.
#[macro_export]
macro_rules! tests {
    ($theme:literal: $($name:ident),* $(,)?) => {
        [$($crate::test::Test { name: concat!($theme, "::", stringify!($name)), run: $name }),*]
    };
}

/// Fails the test with a reason unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::test::stop($crate::test::Stop::Failed, format_args!($($reason)+)));
        }
    };
}

/// Fails the test unless both are equal, naming what they are.
#[macro_export]
macro_rules! check_equal {
    ($left:expr, $right:expr, $what:literal $($arguments:tt)*) => {
        let (left, right) = ($left, $right);
        $crate::check!(left == right, "{}: got {:#x?}, expected {:#x?}", format_args!($what $($arguments)*), left, right);
    };
}

/// Skips the test with a reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {
        return Err($crate::test::stop($crate::test::Stop::Skipped, format_args!($($reason)+)))
    };
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether the command line selects the test of this name: all of them without `test=`.
#[must_use]
pub fn is_selected(name: &str) -> bool {
    machine::option("test").unwrap_or("").split(',').any(|part| name.contains(part))
}

/// Runs the tests that the command line selects and switches the machine off.
pub fn run(tests: &[Test]) -> ! {
    for test in tests.iter().filter(|test| is_selected(test.name)) {
        quiesce();
        print!("test {} ... ", test.name);
        RUNNING.store(true, Ordering::SeqCst);
        let verdict = (test.run)();
        cpu::mask_interrupts();
        RUNNING.store(false, Ordering::SeqCst);
        match verdict {
            Ok(()) => {
                PASSED.fetch_add(1, Ordering::SeqCst);
                println!("ok");
            }
            Err(Stop::Failed) => {
                FAILED.fetch_add(1, Ordering::SeqCst);
                println!("FAILED: {}", REASON.lock().as_str());
            }
            Err(Stop::Skipped) => {
                SKIPPED.fetch_add(1, Ordering::SeqCst);
                println!("skipped: {}", REASON.lock().as_str());
            }
        }
    }
    println!("{}", summary().as_str());
    psci::system_off()
}

/// Interrupts masked, timers off, GIC as at the start, counts cleared, no SError left by a test that failed.
fn quiesce() {
    cpu::mask_interrupts();
    interrupt::take_serror();
    timer::stop();
    gic::initialise_distributor();
    gic::initialise_cpu();
    interrupt::reset_handler();
    interrupt::clear();
}

fn summary() -> Text {
    let [passed, failed, skipped] = [&PASSED, &FAILED, &SKIPPED].map(|count| count.load(Ordering::SeqCst));
    Text::new(format_args!("payload: {passed} passed, {failed} failed, {skipped} skipped"))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    FAILED.fetch_add(1, Ordering::SeqCst);
    let place = info.location().map_or("", |location| location.file());
    let line = info.location().map_or(0, |location| location.line());
    let start = if RUNNING.load(Ordering::SeqCst) { "" } else { "\ntest panic ... " };
    let cpu = cpu::index();
    uart::print_last_words(format_args!("{start}FAILED: CPU {cpu}: {} ({place}:{line})\n", info.message()));
    uart::print_last_words(format_args!("{}\n", summary().as_str()));
    psci::system_off()
}
