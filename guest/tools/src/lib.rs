//! What Undercroft's command-line tools for guests have in common: the entry from Linux, output, and the detection that
//! no hypervisor answers.
//!
//! The tools are static programs without a C library that need neither privileges nor a driver. Where no hypervisor
//! answers, Linux kills a process that reads the debug channel's status with SIGILL; [`start`] catches that, says so and
//! ends the program with status 1.
//!
//! UNSAFETY: system calls, given only pointers to live memory, and the command line as the kernel leaves it on the stack.
#![no_std]
#![expect(unsafe_code, reason = "system calls and the program's entry are made of it")]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};

// The kernel starts a program with SP at the word count of its command line, the words behind it.
global_asm!(".global _start", "_start:", "mov x0, sp", "mov x29, xzr", "mov x30, xzr", "bl tool_main", "brk #0");

const EINTR: u64 = 4;
const WRITE: u64 = 64;
const EXIT: u64 = 93;
const NANOSLEEP: u64 = 101;
const SIGACTION: u64 = 134;
const SIGILL: u64 = 4;

/// A system call of up to six arguments: what the kernel answers, or its error's number.
///
/// # Safety
/// What the call does touches nothing of Rust's but through pointers in the arguments, to live memory of the size that it expects.
pub unsafe fn system_call<const N: usize>(number: u64, arguments: [u64; N]) -> Result<u64, u64> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    let result: i64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number, inout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    if result < 0 { Err(result.unsigned_abs()) } else { Ok(result as u64) }
}

/// As [`system_call`].
fn call<const N: usize>(number: u64, arguments: [u64; N]) -> Result<u64, u64> {
    // SAFETY: the functions below give the kernel only pointers to live memory of the size that the call expects.
    unsafe { system_call(number, arguments) }
}

/// Ends the program.
pub fn exit(code: u64) -> ! {
    loop {
        let _ = call(EXIT, [code]);
    }
}

/// Waits.
pub fn sleep_milliseconds(milliseconds: u64) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    // One that is interrupted is shorter, which does no harm.
    let _ = call(NANOSLEEP, [time.as_ptr() as u64, 0]);
}

/// The standard output.
#[derive(Clone, Copy, Debug)]
pub struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut left = text.as_bytes();
        while !left.is_empty() {
            match call(WRITE, [1, left.as_ptr() as u64, left.len() as u64]) {
                Ok(written) if written > 0 => left = left.get(written as usize..).unwrap_or(&[]),
                Err(EINTR) => {}
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// The status of a program whose output could not be written, all of it.
pub const NOT_WRITTEN: u64 = 3;

/// Prints a line. A program that cannot say what it has to say ends with [`NOT_WRITTEN`]: a full disk or a reader that has gone
/// must not look like success.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use core::fmt::Write as _;
        if writeln!($crate::Output, $($text)*).is_err() {
            $crate::exit($crate::NOT_WRITTEN)
        }
    }};
}

extern "C" fn nobody_answers() -> ! {
    say!("no hypervisor answers here");
    exit(1)
}

/// The words of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Words(*const u64);

impl Words {
    /// Word `index`, 0 being the program's name.
    #[must_use]
    pub fn get(self, index: usize) -> Option<&'static str> {
        // SAFETY: the kernel leaves the count here.
        let count = unsafe { *self.0 };
        if index as u64 >= count {
            return None;
        }
        // SAFETY: so many pointers to texts that end with zero follow; they stay as long as the program runs.
        let text = unsafe { CStr::from_ptr(*self.0.add(1 + index) as *const c_char) };
        text.to_str().ok()
    }

    /// Word `index` as a number.
    #[must_use]
    pub fn number(self, index: usize) -> Option<u64> {
        self.get(index)?.parse().ok()
    }
}

/// Prepares the program: an undefined instruction means that nobody answers. `stack` is what the entry was called with.
#[must_use]
pub fn start(stack: *const u64) -> Words {
    let handler: extern "C" fn() -> ! = nobody_answers;
    // Handler, flags, restorer (none: the handler does not return), mask.
    let action = [handler as usize as u64, 0, 0, 0];
    let _ = call(SIGACTION, [SIGILL, action.as_ptr() as u64, 0, 8]);
    Words(stack)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say!("this program has a defect");
    exit(2)
}
