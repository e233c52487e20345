//! A guest that does its own work while others misbehave: every CPU computes a checksum over its own memory and keeps
//! patterns in its SIMD registers and in all other registers that nobody else may reach; the boot CPU prints a line for
//! each finished step. `steps=<n>` says how many (20).
//!
//! `neighbour: step N checksum ok`, or `... FAILED: what`; then the usual last line.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use payload_rt::instruction::{read_register, write_register};
use payload_rt::{MAX_CPUS, cpu, machine, memory, println, simd, timer};

payload_rt::entry!(main);

/// Words of memory that each CPU works on: 1 MiB.
const WORDS: u64 = 128 * 1024;

static FAILURES: AtomicU32 = AtomicU32::new(0);
static STEPS: AtomicU64 = AtomicU64::new(20);
static DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn area(index: usize) -> u64 {
    memory::arena().start + WORDS * 8 * index as u64
}

fn seed(index: usize, step: u64) -> u64 {
    (step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(8 * index as u32)
}

/// The word at `position` of a step: cheap to make, different everywhere.
fn word(seed: u64, position: u64) -> u64 {
    (seed ^ position).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(23)
}

fn mix(sum: u64, value: u64) -> u64 {
    (sum ^ value).rotate_left(17).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Registers that hold what is written to them, where they exist, with the bits that hold: the ten halves of the pointer authentication
/// keys, SCXTNUM_EL0 and SCXTNUM_EL1, TPIDR_EL0, CONTEXTIDR_EL1, DBGBVR0_EL1, DBGWVR1_EL1.
const OWN: [([u32; 5], u64); 16] = [
    ([3, 0, 2, 1, 0], u64::MAX),
    ([3, 0, 2, 1, 1], u64::MAX),
    ([3, 0, 2, 1, 2], u64::MAX),
    ([3, 0, 2, 1, 3], u64::MAX),
    ([3, 0, 2, 2, 0], u64::MAX),
    ([3, 0, 2, 2, 1], u64::MAX),
    ([3, 0, 2, 2, 2], u64::MAX),
    ([3, 0, 2, 2, 3], u64::MAX),
    ([3, 0, 2, 3, 0], u64::MAX),
    ([3, 0, 2, 3, 1], u64::MAX),
    ([3, 3, 13, 0, 7], u64::MAX),
    ([3, 0, 13, 0, 7], u64::MAX),
    ([3, 3, 13, 0, 2], u64::MAX),
    ([3, 0, 13, 0, 1], 0xffff_ffff),
    ([2, 0, 0, 0, 4], 0xffff_fffc),
    ([2, 0, 0, 1, 6], 0xffff_fffc),
];
/// DBGCLAIMSET_EL1 and DBGCLAIMCLR_EL1.
const CLAIM: [u32; 5] = [2, 0, 7, 8, 6];
const UNCLAIM: [u32; 5] = [2, 0, 7, 9, 6];

/// What each register of [`OWN`] should hold, for those that exist.
fn give_registers(seed: u64) -> [Option<u64>; OWN.len()] {
    let _ = write_register(UNCLAIM, 0xff);
    let _ = write_register(CLAIM, seed & 0xff);
    core::array::from_fn(|number| {
        let (register, bits) = OWN[number];
        let value = word(seed, number as u64) & bits;
        write_register(register, value).is_ok().then_some(value)
    })
}

/// Whether all of them hold it still.
fn registers_hold(seed: u64, given: &[Option<u64>; OWN.len()]) -> bool {
    let claimed = read_register(UNCLAIM) == Ok(seed & 0xff);
    claimed
        && OWN.iter().zip(given).all(|(&(register, bits), given)| {
            given.is_none_or(|value| read_register(register).is_ok_and(|found| found & bits == value))
        })
}

/// One step: write, read back twice, compare the sums with the one that needs no memory. What was wrong, if anything.
fn step(index: usize, number: u64) -> Option<&'static str> {
    let (base, seed, start) = (area(index), seed(index, number), timer::now());
    let registers = give_registers(seed);
    simd::fill(seed);
    let mut expected = 0;
    for position in 0..WORDS {
        let value = word(seed, position);
        memory::write64(base + 8 * position, value);
        expected = mix(expected, value);
    }
    for _ in 0..2 {
        let sum = (0..WORDS).fold(0, |sum, position| mix(sum, memory::read64(base + 8 * position)));
        if sum != expected {
            return Some("memory changed");
        }
    }
    if simd::difference(seed) != 0 {
        return Some("SIMD registers changed");
    }
    if !registers_hold(seed, &registers) {
        return Some("registers changed");
    }
    (timer::now() <= start).then_some("the counter does not count")
}

fn work(index: usize) {
    for number in 1..=STEPS.load(Ordering::SeqCst) {
        let wrong = step(index, number);
        if let Some(what) = wrong {
            FAILURES.fetch_add(1, Ordering::SeqCst);
            println!("neighbour: step {number} on CPU {index} FAILED: {what}");
        } else if index == 0 {
            println!("neighbour: step {number} checksum ok");
        }
        DONE[index].store(number, Ordering::SeqCst);
    }
}

fn main() {
    STEPS.store(machine::option_number("steps", 20), Ordering::SeqCst);
    for index in 1..cpu::count() {
        if cpu::start(index, work).is_err() {
            FAILURES.fetch_add(1, Ordering::SeqCst);
            println!("neighbour: CPU {index} FAILED: it does not come up");
        }
    }
    work(0);
    for (index, steps) in DONE.iter().enumerate().take(cpu::count()).skip(1) {
        // Each wait is ten seconds; a CPU that makes progress may take as many as it likes.
        let mut last = u64::MAX;
        while !cpu::wait_off(index) {
            let done = steps.load(Ordering::SeqCst);
            if done == last {
                FAILURES.fetch_add(1, Ordering::SeqCst);
                println!("neighbour: CPU {index} FAILED: it makes no progress");
                break;
            }
            last = done;
        }
    }
    let failures = FAILURES.load(Ordering::SeqCst);
    let passed = if failures == 0 { 1 } else { 0 };
    println!("payload: {passed} passed, {failures} failed, 0 skipped");
}
