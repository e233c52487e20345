//! The cost of a Linux guest: the only process of a Linux system times what kernels do all day.
//!
//! It is the first process of its initramfs (`rdinit=/bin/linux-bench`), so nothing else runs. It is written without a C
//! library, on Linux's system calls alone, because then it can be built with what builds the hypervisor.
//!
//! It counts with the virtual counter, which QEMU with `-icount shift=0` and a counter of 1 GHz advances by one an
//! instruction. Everything is measured twice; the second pass, in a settled system, is printed: lines
//! `linux-bench <name> <ticks>`. Each value is the median of [`BATCHES`] short batches, so that the kernel's timer tick, which
//! falls into some of them, does not show. Then it powers the machine off.
//!
//! UNSAFETY: system calls, and memory that they hand out. Every call here is one that cannot touch Rust's own objects but
//! through the pointers given to it, and those point to live memory of the size that is given.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "system calls and the program's entry are made of it")]

mod measure;
mod system;

use system::{Descriptor, exit, power_off, write_all};

/// How many means are taken; the median of them counts.
const BATCHES: usize = 301;

/// Before anything is measured, the kernel gets this many nanoseconds to end what it does in the background after boot.
const SETTLING: u64 = 20_000_000_000;

/// A row: its name, and what measures it.
type Row = (&'static str, fn() -> u64);

const ROWS: [Row; 5] = [
    ("fork-exec", measure::fork_exec),
    ("pipe", measure::pipe),
    ("page-fault", measure::page_fault),
    ("usleep", measure::usleep),
    ("cpu-loop", measure::cpu_loop),
];

/// Rust's side of the entry: `arguments` is how many words the command line has.
#[unsafe(no_mangle)]
extern "C" fn program(arguments: u64) -> ! {
    let boot = measure::counter();
    // The measured exec gives the program a second word: it is only to end.
    if arguments > 1 {
        exit(0);
    }
    system::sleep_nanoseconds(SETTLING);
    for (_, measure) in ROWS {
        measure();
    }
    print_row("boot", boot * measure::SCALE);
    for (name, measure) in ROWS {
        print_row(name, measure());
    }
    power_off()
}

/// Prints a row; the value is in [`measure::SCALE`]ths of ticks.
fn print_row(name: &str, value: u64) {
    let mut digits = [0; 20];
    let mut place = digits.len();
    let mut rest = value / measure::SCALE;
    loop {
        place -= 1;
        digits[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let tenth = [b'.', b'0' + (value % measure::SCALE * 10 / measure::SCALE) as u8, b'\n'];
    for text in [&b"linux-bench "[..], name.as_bytes(), b" ", &digits[place..], &tenth] {
        write_all(Descriptor::OUTPUT, text);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write_all(Descriptor::OUTPUT, b"linux-bench panicked\n");
    power_off()
}
