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
//! UNSAFETY: a loop of arithmetic; writes to memory that was just mapped, and its end; the symbol that the program's entry calls.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "what is measured, and the symbol that the program's entry calls")]

mod measure;

use guest_tools::{exit, start};
use linux_programs::{line, system};

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

/// The program, called by the entry with the stack that the kernel left.
// SAFETY: the name is the entry's, and this is the program's only definition of it.
#[unsafe(no_mangle)]
extern "C" fn tool_main(stack: *const u64) -> ! {
    let boot = system::counter();
    // The measured exec gives the program a second word: it is only to end.
    if start(stack).get(1).is_some() {
        exit(0);
    }
    system::sleep(SETTLING);
    for (_, measure) in ROWS {
        measure();
    }
    print_row("boot", boot * measure::SCALE);
    for (name, measure) in ROWS {
        print_row(name, measure());
    }
    system::power_off()
}

/// Prints a row; the value is in [`measure::SCALE`]ths of ticks.
fn print_row(name: &str, value: u64) {
    line!("linux-bench {name} {}.{}", value / measure::SCALE, value % measure::SCALE * 10 / measure::SCALE);
}
