//! What time it is by `/dev/ptp0`, and by the system's clock when its counter showed the same: one look at the counter, from which the
//! kernel computes both (PTP_SYS_OFFSET_PRECISE). It prints `linux-clock: device <seconds>.<nanoseconds>, system <the same>`, or why
//! not.
//!
//! It is written like `linux-bench`, without a C library, and is a separate program, so that it does not change the benchmark's.
//!
//! UNSAFETY: system calls, which get pointers to live memory of the size that they expect.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "system calls and the program's entry are made of it")]

use core::arch::{asm, global_asm};

global_asm!(".global _start", "_start:", "mov x29, xzr", "mov x30, xzr", "bl program", "brk #0");

const IOCTL: u64 = 29;
const OPENAT: u64 = 56;
const WRITE: u64 = 64;
const EXIT: u64 = 93;
/// `_IOWR('=', 8, struct ptp_sys_offset_precise)`.
const SYS_OFFSET_PRECISE: u64 = 0xc040_3d08;

/// `struct ptp_sys_offset_precise`: seconds, and nanoseconds with a reserved word, of the device, of CLOCK_REALTIME, and of the raw
/// monotonic clock; two words are reserved.
#[repr(C)]
struct Precise([u64; 8]);

/// A system call. Negative results are errors.
fn call(number: u64, [a, b, c]: [u64; 3]) -> i64 {
    let result;
    // SAFETY: the callers below give the kernel only pointers to live memory of the size that the call expects.
    unsafe {
        asm!("svc #0", in("x8") number, inout("x0") a => result, in("x1") b, in("x2") c, in("x3") 0, options(nostack));
    }
    result
}

fn print(text: &[u8]) {
    call(WRITE, [1, text.as_ptr() as u64, text.len() as u64]);
}

/// A number in decimal, with zeros in front up to `width`.
fn print_number(number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let (mut place, mut rest) = (digits.len(), number);
    while rest > 0 || digits.len() - place < width {
        place -= 1;
        digits[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    print(&digits[place..]);
}

fn exit(code: u64) -> ! {
    loop {
        call(EXIT, [code, 0, 0]);
    }
}

fn fail(what: &[u8], error: i64) -> ! {
    print(b"linux-clock: ");
    print(what);
    print(b" fails with error ");
    print_number(error.unsigned_abs(), 1);
    print(b"\n");
    exit(1)
}

/// The program, behind its entry.
#[unsafe(no_mangle)]
extern "C" fn program() -> ! {
    /// From where a path without a beginning is looked for; this one has one.
    const NOWHERE: u64 = (-100_i64).cast_unsigned();
    let device = call(OPENAT, [NOWHERE, c"/dev/ptp0".as_ptr() as u64, 0]);
    if device < 0 {
        fail(b"open", device);
    }
    let mut times = Precise([0; 8]);
    let done = call(IOCTL, [device.cast_unsigned(), SYS_OFFSET_PRECISE, (&raw mut times) as u64]);
    if done < 0 {
        fail(b"PTP_SYS_OFFSET_PRECISE", done);
    }
    // Written by the kernel, which the compiler does not know of.
    let Precise(words) = core::hint::black_box(times);
    for (name, at) in [(&b"linux-clock: device "[..], 0), (b", system ", 2)] {
        print(name);
        print_number(words[at], 1);
        print(b".");
        print_number(words[at + 1] & 0xffff_ffff, 9);
    }
    print(b".\n");
    exit(0)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print(b"linux-clock: panicked\n");
    exit(1)
}
