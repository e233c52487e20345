//! The system calls of arm64 Linux that these programs make (numbers: `asm-generic/unistd.h`). One that fails fails the test: the
//! program says so and ends.

use core::arch::asm;
use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::AtomicU64;
use guest_tools::{exit, system_call};

const IOCTL: u64 = 29;
const OPENAT: u64 = 56;
const CLOSE: u64 = 57;
const PIPE2: u64 = 59;
const READ: u64 = 63;
const WRITE: u64 = 64;
const TIMERFD_CREATE: u64 = 85;
const TIMERFD_SETTIME: u64 = 86;
const NANOSLEEP: u64 = 101;
const CLOCK_GETTIME: u64 = 113;
const CLOCK_NANOSLEEP: u64 = 115;
const SCHED_SETAFFINITY: u64 = 122;
const SCHED_GETAFFINITY: u64 = 123;
const REBOOT: u64 = 142;
const GETPID: u64 = 172;
const MUNMAP: u64 = 215;
const CLONE: u64 = 220;
const EXECVE: u64 = 221;
const MMAP: u64 = 222;
const MADVISE: u64 = 233;
const WAIT4: u64 = 260;

const REALTIME: u64 = 0;
const MONOTONIC: u64 = 1;
/// TIMER_ABSTIME and TFD_TIMER_ABSTIME.
const ABSOLUTE: u64 = 1;
const SECOND: u64 = 1_000_000_000;
/// PROT_READ and PROT_WRITE.
const READ_WRITE: u64 = 3;

/// A system call: what the kernel answers, or its error's number.
fn call<const N: usize>(number: u64, arguments: [u64; N]) -> Result<u64, u64> {
    // SAFETY: the functions below give the kernel only pointers to live memory of the size that the call expects.
    unsafe { system_call(number, arguments) }
}

/// A system call that cannot fail here.
fn must<const N: usize>(what: &str, number: u64, arguments: [u64; N]) -> u64 {
    call(number, arguments).unwrap_or_else(|error| fail(what, error))
}

/// Ends the program, and the machine if that has no other.
fn fail(what: &str, error: u64) -> ! {
    crate::line!("uc: system FAILED: {what}: error {error}");
    if call(GETPID, []) == Ok(1) { power_off() } else { exit(1) }
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct File(u64);

impl File {
    /// The console.
    pub const OUTPUT: File = File(1);

    /// Writes all of it. Whoever cannot say what is to be said ends.
    pub fn write(self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            match call(WRITE, [self.0, left.as_ptr() as u64, left.len() as u64]) {
                Ok(written) if written > 0 => left = left.get(written as usize..).unwrap_or_default(),
                _ => exit(guest_tools::NOT_WRITTEN),
            }
        }
    }

    /// Whether there was a byte to read.
    #[must_use]
    pub fn read_byte(self) -> bool {
        let mut byte = 0_u8;
        call(READ, [self.0, ptr::from_mut(&mut byte) as u64, 1]) == Ok(1)
    }

    /// Closes it.
    pub fn close(self) {
        must("close", CLOSE, [self.0]);
    }
}

/// A pipe: what goes in at `input` comes out at `output`.
#[derive(Clone, Copy, Debug)]
pub struct Pipe {
    /// To read.
    pub output: File,
    /// To write.
    pub input: File,
}

impl Pipe {
    /// A new one.
    #[must_use]
    pub fn new() -> Pipe {
        let mut ends = [0_u32; 2];
        must("pipe2", PIPE2, [ends.as_mut_ptr() as u64, 0]);
        let [output, input] = ends.map(|end| File(end.into()));
        Pipe { output, input }
    }
}

impl Default for Pipe {
    fn default() -> Self {
        Self::new()
    }
}

/// The child's number for the parent, 0 for the child.
#[must_use]
pub fn fork() -> u64 {
    const SIGCHLD: u64 = 17;
    must("clone", CLONE, [SIGCHLD, 0, 0, 0, 0])
}

/// A child that does `work` and ends then.
pub fn spawn(work: impl FnOnce()) {
    if fork() == 0 {
        work();
        exit(0)
    }
}

/// Becomes the program at `path`, with a second word on its command line.
pub fn become_program(path: &CStr, word: &CStr) -> ! {
    let words = [path.as_ptr(), word.as_ptr(), ptr::null()];
    let environment = [ptr::null::<u8>()];
    let arguments = [path.as_ptr() as u64, words.as_ptr() as u64, environment.as_ptr() as u64];
    must("execve", EXECVE, arguments);
    exit(1)
}

/// Waits until this child has ended; it must have ended well.
pub fn wait(child: u64) {
    let mut status = 0_u32;
    let ended = must("wait4", WAIT4, [child, ptr::from_mut(&mut status) as u64, 0, 0]);

    if ended != child || status != 0 {
        fail("a child", status.into());
    }
}

/// Switches the machine off.
pub fn power_off() -> ! {
    const MAGIC: [u64; 2] = [0xfee1_dead, 672_274_793];
    const POWER_OFF: u64 = 0x4321_fedc;
    let _ = call(REBOOT, [MAGIC[0], MAGIC[1], POWER_OFF, 0]);
    exit(1)
}

fn map(bytes: usize, flags: u64) -> u64 {
    must("mmap", MMAP, [0, bytes as u64, READ_WRITE, flags, u64::MAX, 0])
}

/// Fresh memory that is not there yet, and comes in pages of the smallest size.
#[must_use]
pub fn map_small_pages(bytes: usize) -> *mut u8 {
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    const NO_HUGE_PAGES: u64 = 15;
    let memory = map(bytes, PRIVATE_ANONYMOUS);
    // A kernel that has no huge pages does not know of this.
    let _ = call(MADVISE, [memory, bytes as u64, NO_HUGE_PAGES]);
    memory as *mut u8
}

/// Gives it back.
///
/// # Safety
/// Nothing refers to it any more.
pub unsafe fn unmap(memory: *mut u8, bytes: usize) {
    must("munmap", MUNMAP, [memory as u64, bytes as u64]);
}

/// A page of zeros that this process and its children share.
#[must_use]
pub fn shared_page() -> &'static [AtomicU64; 512] {
    const SHARED_ANONYMOUS: u64 = 0x21;
    let page = map(4096, SHARED_ANONYMOUS);
    // SAFETY: fresh memory of that size, aligned to a page, that stays as long as the process.
    unsafe { &*(page as *const [AtomicU64; 512]) }
}

/// The virtual counter, which Linux lets every process read. The barrier keeps the read where it is written.
#[must_use]
pub fn counter() -> u64 {
    let count;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {count}, cntvct_el0", count = out(reg) count, options(nomem, nostack)) };
    count
}

fn clock(which: u64) -> u64 {
    let mut time = [0_u64; 2];
    must("clock_gettime", CLOCK_GETTIME, [which, ptr::from_mut(&mut time) as u64]);
    time[0] * SECOND + time[1]
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic() -> u64 {
    clock(MONOTONIC)
}

/// CLOCK_REALTIME in nanoseconds.
#[must_use]
pub fn real_time() -> u64 {
    clock(REALTIME)
}

/// The time of the first PTP clock, and CLOCK_REALTIME when its counter showed the same: one look at the counter, from which the kernel
/// computes both. In nanoseconds.
#[must_use]
pub fn ptp_and_real_time() -> [u64; 2] {
    /// From where a path without a beginning is looked for; this one has one.
    const NOWHERE: u64 = (-100_i64).cast_unsigned();
    /// `_IOWR('=', 8, struct ptp_sys_offset_precise)`: PTP_SYS_OFFSET_PRECISE.
    const SYS_OFFSET_PRECISE: u64 = 0xc040_3d08;
    let device = must("open", OPENAT, [NOWHERE, c"/dev/ptp0".as_ptr() as u64, 0]);
    // Seconds, and nanoseconds with a reserved word, of the device, of CLOCK_REALTIME, and of the raw monotonic clock; two words more
    // are reserved.
    let mut times = [0_u64; 8];
    must("PTP_SYS_OFFSET_PRECISE", IOCTL, [device, SYS_OFFSET_PRECISE, ptr::from_mut(&mut times) as u64]);
    File(device).close();
    let [device, device_rest, real, real_rest, ..] = times;
    [(device, device_rest), (real, real_rest)].map(|(seconds, rest)| seconds * SECOND + (rest & 0xffff_ffff))
}

const fn parts(nanoseconds: u64) -> [u64; 2] {
    [nanoseconds / SECOND, nanoseconds % SECOND]
}

/// Sleeps for so many nanoseconds.
pub fn sleep(nanoseconds: u64) {
    let time = parts(nanoseconds);
    must("nanosleep", NANOSLEEP, [ptr::from_ref(&time) as u64, 0]);
}

/// Sleeps until CLOCK_MONOTONIC is there.
pub fn sleep_until(moment: u64) {
    let time = parts(moment);
    must("clock_nanosleep", CLOCK_NANOSLEEP, [MONOTONIC, ABSOLUTE, ptr::from_ref(&time) as u64, 0]);
}

/// A timer of CLOCK_MONOTONIC as a file.
#[derive(Debug)]
pub struct TimerFile(u64);

impl TimerFile {
    /// One that expires at `first` and every `period` from then on.
    #[must_use]
    pub fn new(first: u64, period: u64) -> Self {
        let file = must("timerfd_create", TIMERFD_CREATE, [MONOTONIC, 0]);
        let times = [parts(period), parts(first)];
        must("timerfd_settime", TIMERFD_SETTIME, [file, ABSOLUTE, ptr::from_ref(&times) as u64, 0]);
        Self(file)
    }

    /// Waits until it has expired; how often it has since the last time.
    #[must_use]
    pub fn wait(&self) -> u64 {
        let mut count = 0_u64;
        must("reading a timerfd", READ, [self.0, ptr::from_mut(&mut count) as u64, 8]);
        count
    }
}

/// The CPUs that this process may use, a bit each, of the first 64.
#[must_use]
pub fn cpus() -> u64 {
    let mut mask = [0_u64; 16];
    must("sched_getaffinity", SCHED_GETAFFINITY, [0, 128, ptr::from_mut(&mut mask) as u64]);
    mask[0]
}

/// From now on this process runs on that CPU.
pub fn stay_on(cpu: u32) {
    let mask = [1_u64 << cpu];
    must("sched_setaffinity", SCHED_SETAFFINITY, [0, 8, ptr::from_ref(&mask) as u64]);
}
