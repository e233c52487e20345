//! The operations, each as a function that gives its cost in [`SCALE`]ths of ticks.

use crate::BATCHES;
use core::arch::asm;
use guest_tools::exit;
use linux_programs::system::{self, Pipe, counter};

/// Results are in hundredths.
pub(crate) const SCALE: u64 = 100;

/// The median over [`BATCHES`] batches of `rounds` operations each.
fn median(rounds: u64, mut batch: impl FnMut()) -> u64 {
    let mut means = [0; BATCHES];
    for mean in &mut means {
        let start = counter();
        batch();
        *mean = (counter() - start) * SCALE / rounds;
    }
    means.sort_unstable();
    means[BATCHES / 2]
}

/// A child is made, becomes another program, ends, and is waited for.
pub(crate) fn fork_exec() -> u64 {
    const ROUNDS: u64 = 1;
    median(ROUNDS, || {
        for _ in 0..ROUNDS {
            match system::fork() {
                0 => system::become_program(c"/bin/linux-bench", c"end"),
                child => system::wait(child),
            }
        }
    })
}

/// A byte goes to another process and one comes back: two switches.
pub(crate) fn pipe() -> u64 {
    const ROUNDS: u64 = 10;
    let (there, back) = (Pipe::new(), Pipe::new());
    let child = system::fork();
    if child == 0 {
        // Once nobody else can write, the read gives nothing and the child ends.
        there.input.close();
        while there.output.read_byte() {
            back.input.write(b"y");
        }
        exit(0);
    }
    let value = median(ROUNDS, || {
        for _ in 0..ROUNDS {
            there.input.write(b"x");
            let _ = back.output.read_byte();
        }
    });
    for end in [there.input, there.output, back.input, back.output] {
        end.close();
    }
    system::wait(child);
    value
}

/// The first write to a page of fresh memory.
pub(crate) fn page_fault() -> u64 {
    const PAGES: usize = 64;
    const PAGE: usize = 4096;
    let mut means = [0; BATCHES];
    for mean in &mut means {
        let memory = system::map_small_pages(PAGES * PAGE);
        let start = counter();
        for page in 0..PAGES {
            // SAFETY: inside the mapping, which is writable.
            unsafe { memory.add(page * PAGE).write_volatile(1) };
        }
        *mean = (counter() - start) * SCALE / PAGES as u64;
        // SAFETY: nothing else knows of it.
        unsafe { system::unmap(memory, PAGES * PAGE) };
    }
    means.sort_unstable();
    means[BATCHES / 2]
}

/// A sleep of a millisecond, with the slack of 50 microseconds that Linux gives timers by default.
pub(crate) fn usleep() -> u64 {
    const ROUNDS: u64 = 1;
    median(ROUNDS, || {
        for _ in 0..ROUNDS {
            system::sleep(1_000_000);
        }
    })
}

/// 2,000 rounds of a loop of three instructions, which need nothing from anybody.
pub(crate) fn cpu_loop() -> u64 {
    const ROUNDS: u64 = 1;
    median(ROUNDS, || {
        for _ in 0..ROUNDS {
            // SAFETY: arithmetic on registers of its own.
            unsafe {
                asm!(
                    "2:", "add {sum}, {sum}, {left}", "subs {left}, {left}, #1", "b.ne 2b",
                    left = inout(reg) 2000u64 => _, sum = inout(reg) 0u64 => _,
                    options(nomem, nostack)
                );
            }
        }
    })
}
