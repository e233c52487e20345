//! The system calls of arm64 Linux that this program makes (numbers: `asm-generic/unistd.h`).

use core::arch::asm;
use core::fmt;
use core::ptr;
use core::sync::atomic::AtomicU64;
use guest_tools::exit;

const READ: u64 = 63;
const WRITE: u64 = 64;
const TIMERFD_CREATE: u64 = 85;
const TIMERFD_SETTIME: u64 = 86;
const NANOSLEEP: u64 = 101;
const CLOCK_GETTIME: u64 = 113;
const CLOCK_NANOSLEEP: u64 = 115;
const SCHED_SETAFFINITY: u64 = 122;
const SCHED_GETAFFINITY: u64 = 123;
const CLONE: u64 = 220;
const MMAP: u64 = 222;

const REALTIME: u64 = 0;
const MONOTONIC: u64 = 1;
/// TIMER_ABSTIME and TFD_TIMER_ABSTIME.
const ABSOLUTE: u64 = 1;
const SECOND: u64 = 1_000_000_000;

/// A system call. Negative results are errors.
fn call(number: u64, arguments: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the functions below give the kernel only pointers to live memory of the size that the call expects.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number, inout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}

/// The result of a call that cannot fail here; if it does, that is a failure of the test.
fn must(what: &str, result: i64) -> u64 {
    if result < 0 {
        crate::line!("uc: clocks FAILED: {what}: error {}", -result);
        exit(1)
    }
    result as u64
}

/// A line that is printed as one.
pub(crate) struct Line {
    text: [u8; 256],
    length: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { text: [0; 256], length: 0 }
    }

    pub(crate) fn print(&self) {
        let mut left = self.text.get(..self.length).unwrap_or_default();
        while !left.is_empty() {
            let written = call(WRITE, [1, left.as_ptr() as u64, left.len() as u64, 0, 0, 0]);
            if written <= 0 {
                exit(3)
            }
            left = left.get(written as usize..).unwrap_or_default();
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.text.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

fn clock(which: u64) -> u64 {
    let mut time = [0_u64; 2];
    must("clock_gettime", call(CLOCK_GETTIME, [which, ptr::from_mut(&mut time) as u64, 0, 0, 0, 0]));
    time[0] * SECOND + time[1]
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    clock(MONOTONIC)
}

/// CLOCK_REALTIME in nanoseconds.
pub(crate) fn real_time() -> u64 {
    clock(REALTIME)
}

/// The virtual counter, which Linux lets every process read. The barrier keeps the read where it is written.
pub(crate) fn counter() -> u64 {
    let count;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {count}, cntvct_el0", count = out(reg) count, options(nostack)) };
    count
}

const fn parts(nanoseconds: u64) -> [u64; 2] {
    [nanoseconds / SECOND, nanoseconds % SECOND]
}

/// Sleeps for so many nanoseconds.
pub(crate) fn sleep(nanoseconds: u64) {
    let time = parts(nanoseconds);
    must("nanosleep", call(NANOSLEEP, [ptr::from_ref(&time) as u64, 0, 0, 0, 0, 0]));
}

/// Sleeps until CLOCK_MONOTONIC is there.
pub(crate) fn sleep_until(moment: u64) {
    let time = parts(moment);
    must("clock_nanosleep", call(CLOCK_NANOSLEEP, [MONOTONIC, ABSOLUTE, ptr::from_ref(&time) as u64, 0, 0, 0]));
}

/// A timer of CLOCK_MONOTONIC as a file.
pub(crate) struct TimerFile(u64);

impl TimerFile {
    /// One that expires at `first` and every `period` from then on.
    pub(crate) fn new(first: u64, period: u64) -> Self {
        let file = must("timerfd_create", call(TIMERFD_CREATE, [MONOTONIC, 0, 0, 0, 0, 0]));
        let times = [parts(period), parts(first)];
        must("timerfd_settime", call(TIMERFD_SETTIME, [file, ABSOLUTE, ptr::from_ref(&times) as u64, 0, 0, 0]));
        Self(file)
    }

    /// Waits until it has expired; how often it has since the last time.
    pub(crate) fn wait(&self) -> u64 {
        let mut count = 0_u64;
        must("reading a timerfd", call(READ, [self.0, ptr::from_mut(&mut count) as u64, 8, 0, 0, 0]));
        count
    }
}

/// A child that does `work` and ends then.
pub(crate) fn spawn(work: impl FnOnce()) {
    const SIGCHLD: u64 = 17;
    if must("clone", call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0])) == 0 {
        work();
        exit(0)
    }
}

/// The CPUs that this process may use, a bit each, of the first 64.
pub(crate) fn cpus() -> u64 {
    let mut mask = [0_u64; 16];
    must("sched_getaffinity", call(SCHED_GETAFFINITY, [0, 128, ptr::from_mut(&mut mask) as u64, 0, 0, 0]));
    mask[0]
}

/// From now on this process runs on that CPU.
pub(crate) fn stay_on(cpu: u32) {
    let mask = [1_u64 << cpu];
    must("sched_setaffinity", call(SCHED_SETAFFINITY, [0, 8, ptr::from_ref(&mask) as u64, 0, 0, 0]));
}

/// A page of zeros that this process and its children share.
pub(crate) fn shared_page() -> &'static [AtomicU64; 512] {
    const READ_WRITE: u64 = 3;
    const SHARED_ANONYMOUS: u64 = 0x21;
    let page = must("mmap", call(MMAP, [0, 4096, READ_WRITE, SHARED_ANONYMOUS, u64::MAX, 0]));
    // SAFETY: fresh memory of that size, aligned to a page, that stays as long as the process.
    unsafe { &*(page as *const [AtomicU64; 512]) }
}
