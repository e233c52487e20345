//! The entry from Linux, and the system calls of arm64 Linux that this program makes (numbers: `asm-generic/unistd.h`).

use core::arch::{asm, global_asm};
use core::ptr;

// The kernel starts a program with SP at the word count of its command line.
global_asm!(".global _start", "_start:", "ldr x0, [sp]", "mov x29, xzr", "mov x30, xzr", "bl program", "brk #0");

const CLOSE: u64 = 57;
const PIPE2: u64 = 59;
const READ: u64 = 63;
const WRITE: u64 = 64;
const EXIT: u64 = 93;
const NANOSLEEP: u64 = 101;
const REBOOT: u64 = 142;
const MUNMAP: u64 = 215;
const CLONE: u64 = 220;
const EXECVE: u64 = 221;
const MMAP: u64 = 222;
const MADVISE: u64 = 233;
const WAIT4: u64 = 260;

/// An open file.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor(u32);

impl Descriptor {
    /// The console.
    pub(crate) const OUTPUT: Descriptor = Descriptor(1);
}

/// A pipe: what goes in at `input` comes out at `output`.
pub(crate) struct Pipe {
    pub(crate) output: Descriptor,
    pub(crate) input: Descriptor,
}

impl Pipe {
    pub(crate) fn new() -> Pipe {
        let mut ends = [0u32; 2];
        call(PIPE2, [ends.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
        Pipe { output: Descriptor(ends[0]), input: Descriptor(ends[1]) }
    }
}

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

pub(crate) fn write_all(to: Descriptor, bytes: &[u8]) {
    call(WRITE, [to.0.into(), bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0]);
}

/// Whether there was a byte to read.
pub(crate) fn read_byte(from: Descriptor) -> bool {
    let mut byte = 0u8;
    call(READ, [from.0.into(), ptr::from_mut(&mut byte) as u64, 1, 0, 0, 0]) == 1
}

pub(crate) fn close(what: Descriptor) {
    call(CLOSE, [what.0.into(), 0, 0, 0, 0, 0]);
}

/// The child's number for the parent, 0 for the child. A failure ends the program, since nothing could be measured.
pub(crate) fn fork() -> i64 {
    const SIGCHLD: u64 = 17;
    let child = call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0]);
    assert!(child >= 0);
    child
}

/// Becomes this program anew, with a second word on its command line.
pub(crate) fn exec_self() -> ! {
    let path = c"/bin/linux-bench".as_ptr();
    let words = [path, c"end".as_ptr(), ptr::null()];
    let environment = [ptr::null::<u8>()];
    call(EXECVE, [path as u64, words.as_ptr() as u64, environment.as_ptr() as u64, 0, 0, 0]);
    exit(1)
}

/// Waits until this child has ended; it must have ended well.
pub(crate) fn wait(child: i64) {
    let mut status = 0u32;
    let ended = call(WAIT4, [child as u64, ptr::from_mut(&mut status) as u64, 0, 0, 0, 0]);
    assert!(ended == child && status == 0);
}

pub(crate) fn sleep_nanoseconds(nanoseconds: u64) {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    call(NANOSLEEP, [time.as_ptr() as u64, 0, 0, 0, 0, 0]);
}

/// Fresh memory that is not there yet, and comes in pages of the smallest size.
pub(crate) fn map_small_pages(bytes: usize) -> *mut u8 {
    const READ_WRITE: u64 = 3;
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    const NO_HUGE_PAGES: u64 = 15;
    let memory = call(MMAP, [0, bytes as u64, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0]);
    assert!(memory > 0);
    call(MADVISE, [memory as u64, bytes as u64, NO_HUGE_PAGES, 0, 0, 0]);
    memory as *mut u8
}

pub(crate) fn unmap(memory: *mut u8, bytes: usize) {
    call(MUNMAP, [memory as u64, bytes as u64, 0, 0, 0, 0]);
}

pub(crate) fn exit(code: u64) -> ! {
    loop {
        call(EXIT, [code, 0, 0, 0, 0, 0]);
    }
}

/// Switches the machine off.
pub(crate) fn power_off() -> ! {
    const MAGIC: [u64; 2] = [0xfee1_dead, 672_274_793];
    const POWER_OFF: u64 = 0x4321_fedc;
    call(REBOOT, [MAGIC[0], MAGIC[1], POWER_OFF, 0, 0, 0]);
    exit(1)
}
