//! Registers that must be the guest's own whatever happens between two of its instructions: general registers, FP and
//! SIMD, pointer authentication keys, thread registers; across exits, across time in which other guests run, and on two
//! CPUs with different contents.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use payload_rt::instruction::{execute, read_register, write_register};
use payload_rt::test::Verdict;
use payload_rt::{
    check, check_equal, cpu, general, gic, machine, memory, psci, simd, skip, sysreg, test, tests, timer,
};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("registers":
        simd_survives_exits, simd_survives_sleep, simd_survives_preemption, simd_on_each_cpu, simd_control_registers,
        simd_trap_is_the_guests_own, pauth_keys_survive, pauth_on_each_cpu, el1_state_on_each_cpu,
        general_registers_across_each_exit, deferred_error_on_each_cpu, context_numbers_on_each_cpu,
    ));
}

/// One of each kind of exit.
fn exits() {
    psci::simple(psci::VERSION, [0; 3]);
    let _ = sysreg::id_aa64pfr0_el1::read();
    let _ = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
    let _ = memory::read32(0x0901_0000);
    gic::send(9, gic::Target::Affinity(gic::own_affinity()));
}

/// Sleeps for half a millisecond.
fn sleep() {
    gic::enable(timer::VIRTUAL_PPI);
    sysreg::cntv_tval_el0::write(timer::microseconds(500));
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    let end = timer::now() + timer::microseconds(500);
    while timer::now() < end {
        cpu::wait_for_interrupt();
    }
    sysreg::cntv_ctl_el0::write(0);
}

fn simd_survives_exits() -> Verdict {
    for seed in 1..200_u64 {
        let seed = seed.wrapping_mul(0x0101_0101_0101_0101);
        simd::fill(seed);
        exits();
        check_equal!(simd::difference(seed), 0, "bits changed in V0 to V31, seed {seed:#x}");
    }
    Ok(())
}

fn simd_survives_sleep() -> Verdict {
    for seed in 1..50_u64 {
        simd::fill(seed << 32);
        sleep();
        check_equal!(simd::difference(seed << 32), 0, "bits changed in V0 to V31, round {seed}");
    }
    Ok(())
}

fn simd_survives_preemption() -> Verdict {
    // Long enough for any scheduler's time slice to end several times.
    for seed in [0x1234, 0xabcd] {
        simd::fill(seed);
        let mut end = timer::Deadline::after_milliseconds(150);
        while !end.passed() {
            check_equal!(simd::difference(seed), 0, "bits changed in V0 to V31");
        }
    }
    Ok(())
}

static WRONG: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU32 = AtomicU32::new(0);

fn on_all(job: cpu::Job) -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    WRONG.store(0, Ordering::SeqCst);
    RUNS.store(0, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check_equal!(cpu::start(index, job), Ok(()), "CPU_ON of CPU {index}");
    }
    job(0);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not end");
    }
    check_equal!(WRONG.load(Ordering::SeqCst), 0, "bits changed, over all CPUs");
    check_equal!(RUNS.load(Ordering::SeqCst) as usize, cpu::count(), "CPUs that ran");
    Ok(())
}

fn keep_simd(index: usize) {
    let seed = 0x1111_1111_1111_1111_u64.wrapping_mul(index as u64 + 1);
    simd::fill(seed);
    for _ in 0..50 {
        exits();
        sleep();
        WRONG.fetch_or(simd::difference(seed), Ordering::SeqCst);
    }
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn simd_on_each_cpu() -> Verdict {
    on_all(keep_simd)
}

fn simd_control_registers() -> Verdict {
    // Rounding towards minus infinity, flush to zero; the saturation and the inexact flag.
    for (fpcr, fpsr) in [(0x0180_0000, 0x0800_0010), (0, 0), (0x0240_0000, 0x0800_009f)] {
        simd::set_control(fpcr, fpsr);
        exits();
        sleep();
        let found = simd::control();
        simd::set_control(0, 0);
        check_equal!(found, (fpcr, fpsr), "FPCR and FPSR");
    }
    Ok(())
}

fn simd_trap_is_the_guests_own() -> Verdict {
    // With CPACR_EL1.FPEN = 0 FMOV D0, X0 traps to EL1 with EC 7.
    for _ in 0..3 {
        simd::fill(77);
        simd::set_trap(true);
        exits();
        let outcome = execute(0x9e67_0000, &mut [0; 8]);
        simd::set_trap(false);
        check!(
            outcome.is_err_and(|fault| fault.class() == 7),
            "FMOV with CPACR_EL1.FPEN = 0: {outcome:x?}, expected EC 7"
        );
        check_equal!(simd::difference(77), 0, "bits changed in V0 to V31");
    }
    Ok(())
}

/// The ten halves of the five keys: APIA, APIB, APDA, APDB, APGA.
fn keys() -> impl Iterator<Item = [u32; 5]> {
    let register = |number: u32| [3, 0, 2, 1 + number / 4, number % 4];
    (0..8).map(register).chain([[3, 0, 2, 3, 0], [3, 0, 2, 3, 1]])
}

fn has_pauth() -> bool {
    let (one, two) = (sysreg::id_aa64isar1_el1::read(), sysreg::id_aa64isar2_el1::read());
    sysreg::field(one, 4) | sysreg::field(one, 8) | sysreg::field(two, 12) != 0
}

/// The generic authentication code of `value` under the current key (`PACGA X0, X0, X1`).
fn code_of(value: u64) -> u64 {
    let mut x = [value, 0x5a5a, 0, 0, 0, 0, 0, 0];
    let outcome = execute(0x9ac1_3000, &mut x);
    if outcome.is_ok() { x[0] } else { 0 }
}

/// Sets all keys from `seed`, lets much happen, and returns the bits that are then wrong.
fn keep_keys(seed: u64) -> u64 {
    let value = |index: usize| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(index as u32 * 5);
    for (index, key) in keys().enumerate() {
        if write_register(key, value(index)).is_err() {
            return u64::MAX;
        }
    }
    sysreg::isb();
    let code = code_of(seed);
    let mut wrong = 0;
    for _ in 0..20 {
        exits();
        sleep();
        for (index, key) in keys().enumerate() {
            wrong |= read_register(key).unwrap_or(!value(index)) ^ value(index);
        }
        wrong |= code_of(seed) ^ code;
    }
    wrong
}

fn pauth_keys_survive() -> Verdict {
    if !has_pauth() {
        skip!("no pointer authentication");
    }
    check_equal!(keep_keys(42), 0, "bits changed in the keys or their codes");
    // Other keys, other codes.
    let one = sysreg::id_aa64isar1_el1::read();
    let generic =
        (sysreg::field(one, 24) | sysreg::field(one, 28) | sysreg::field(sysreg::id_aa64isar2_el1::read(), 8)) != 0;
    if generic {
        let first = code_of(1);
        keep_keys(43);
        check!(code_of(1) != first, "PACGA gives {first:#x} under either key");
    }
    Ok(())
}

fn keep_keys_here(index: usize) {
    WRONG.fetch_or(keep_keys(1000 + index as u64), Ordering::SeqCst);
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn pauth_on_each_cpu() -> Verdict {
    if !has_pauth() {
        skip!("no pointer authentication");
    }
    on_all(keep_keys_here)
}

/// Registers that a CPU's own software sets, each with the bits that hold: TPIDR_EL0, TPIDRRO_EL0, CONTEXTIDR_EL1, AFSR1 is left out,
/// AMAIR is left out, CNTKCTL_EL1, SP_EL0, CSSELR_EL1, CNTP_CVAL, CNTV_CVAL, DBGBVR0, DBGWVR1.
const OWN: [([u32; 5], u64); 10] = [
    ([3, 3, 13, 0, 2], u64::MAX),
    ([3, 3, 13, 0, 3], u64::MAX),
    ([3, 0, 13, 0, 1], 0xffff_ffff),
    ([3, 0, 14, 1, 0], 3),
    ([3, 0, 4, 1, 0], u64::MAX),
    ([3, 2, 0, 0, 0], 2),
    ([3, 3, 14, 2, 2], u64::MAX >> 2),
    ([3, 3, 14, 3, 2], u64::MAX >> 2),
    ([2, 0, 0, 0, 4], 0xffff_fffc),
    ([2, 0, 0, 1, 6], 0xffff_fffc),
];

fn keep_own_registers(index: usize) {
    let value =
        |number: usize, mask: u64| 0x0f1e_2d3c_4b5a_6978_u64.rotate_left((number * 7 + index * 13) as u32) & mask;
    let (mut wrong, mut written) = (0, 0);
    for (number, &(register, mask)) in OWN.iter().enumerate() {
        written |= u64::from(write_register(register, value(number, mask)).is_err());
    }
    for _ in 0..20 {
        exits();
        timer::delay(500);
        for (number, &(register, mask)) in OWN.iter().enumerate() {
            let found = read_register(register).unwrap_or(!value(number, mask));
            if found & mask != value(number, mask) {
                wrong |= 1 << number;
            }
        }
    }
    sysreg::cntkctl_el1::write(0);
    WRONG.fetch_or(wrong | written << 32, Ordering::SeqCst);
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn el1_state_on_each_cpu() -> Verdict {
    // In what is reported each bit stands for one register of the list; bit 32 for a write that faulted.
    on_all(keep_own_registers)
}

/// What an instruction is given, and which registers it changes; all others must hold.
struct Case {
    name: &'static str,
    given: &'static [(usize, Given)],
    changes: &'static [usize],
}

/// What a register holds before the instruction, where it matters.
#[derive(Clone, Copy)]
enum Given {
    Value(u64),
    /// The end of RAM less this: memory that nothing has touched.
    BelowEnd(u64),
    /// The virtual count in 20 milliseconds.
    Later,
}

const VERSION: (usize, Given) = (0, Given::Value(psci::VERSION as u64));
const CASES: [Case; 19] = [
    Case { name: "nothing", given: &[], changes: &[] },
    Case { name: "hvc", given: &[VERSION], changes: &[0] },
    Case { name: "hvc_of_nobody", given: &[], changes: &[0] },
    Case { name: "smc", given: &[VERSION], changes: &[0] },
    Case { name: "identification", given: &[], changes: &[5] },
    Case { name: "identification_in_link", given: &[], changes: &[30] },
    Case { name: "identification_dropped", given: &[], changes: &[] },
    Case { name: "debug_channel", given: &[], changes: &[] },
    Case { name: "breakpoint", given: &[], changes: &[28] },
    Case { name: "physical_count", given: &[], changes: &[17] },
    Case { name: "sgi", given: &[(9, Given::Value(0x0100_0000))], changes: &[] },
    Case { name: "device_word", given: &[(6, Given::Value(0x0901_0fe0))], changes: &[7] },
    Case { name: "device_pair", given: &[(6, Given::Value(0x0901_0fe0))], changes: &[18, 19] },
    Case { name: "device_writeback", given: &[(6, Given::Value(0x0901_0fe0))], changes: &[6, 20] },
    Case { name: "device_store", given: &[(6, Given::Value(0x0901_0010))], changes: &[] },
    Case { name: "memory", given: &[(10, Given::BelowEnd(0x20_0000))], changes: &[11] },
    Case { name: "wait_for_interrupt", given: &[], changes: &[] },
    Case { name: "wait_for_event", given: &[], changes: &[] },
    Case { name: "time", given: &[(13, Given::Later)], changes: &[12] },
];

fn general_registers_across_each_exit() -> Verdict {
    check_equal!(CASES.len(), general::PROBES.len(), "probes that are tried");
    cpu::mask_interrupts();
    for round in 1..=4_u64 {
        for case in &CASES {
            let mut before: general::Registers = core::array::from_fn(|number| {
                (1 + number as u64 + (round << 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(number as u32)
            });
            before[31] = (round * 5 % 16) << 28;
            for &(number, given) in case.given {
                before[number] = match given {
                    Given::Value(value) => value,
                    Given::BelowEnd(distance) => machine::machine().ram.end - round * distance,
                    Given::Later => timer::now() + timer::microseconds(20_000),
                };
            }
            if case.name == "wait_for_interrupt" {
                gic::enable(timer::VIRTUAL_PPI);
                sysreg::cntv_tval_el0::write(timer::microseconds(500));
                sysreg::cntv_ctl_el0::write(timer::ENABLE);
            }
            let mut after = before;
            let moved = general::across(case.name, &mut after);
            sysreg::cntv_ctl_el0::write(0);
            check_equal!(moved, 0, "{}: SP moved", case.name);
            for (number, (before, after)) in before.iter().zip(after).enumerate() {
                let may = case.changes.contains(&number);
                check!(may || *before == after, "{}: X{number} (31: NZCV) was {before:#x}, is {after:#x}", case.name);
                // What was random before cannot stay what it was.
                check!(!may || *before != after, "{}: X{number} was not written", case.name);
            }
        }
    }
    Ok(())
}

/// SCXTNUM_EL0 and SCXTNUM_EL1.
const CONTEXT_NUMBERS: [[u32; 5]; 2] = [[3, 3, 13, 0, 7], [3, 0, 13, 0, 7]];

fn keep_context_numbers(index: usize) {
    let value = |number: usize| 0x1234_5678_9abc_def0_u64.rotate_left((8 * index + 4 * number) as u32);
    let mut wrong = 0;
    for (number, register) in CONTEXT_NUMBERS.into_iter().enumerate() {
        wrong |= u64::from(write_register(register, value(number)).is_err());
    }
    for _ in 0..20 {
        sleep();
        for (number, register) in CONTEXT_NUMBERS.into_iter().enumerate() {
            wrong |= u64::from(read_register(register) != Ok(value(number))) << 1;
        }
    }
    WRONG.fetch_or(wrong << (2 * index), Ordering::SeqCst);
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn context_numbers_on_each_cpu() -> Verdict {
    let (zero, one) = (sysreg::id_aa64pfr0_el1::read(), sysreg::id_aa64pfr1_el1::read());
    if sysreg::field(zero, 56) < 2 && sysreg::field(one, 32) < 2 {
        skip!("no context numbers");
    }
    // In what is reported each CPU has two bits: a write faulted, a number changed.
    on_all(keep_context_numbers)
}

/// DISR_EL1: what an ESB has deferred. Not offered, but no control keeps a guest from it where the CPU has it.
const DISR_EL1: [u32; 5] = [3, 0, 12, 1, 1];

fn keep_deferred_error(index: usize) {
    let value = 0x0012_3456 + 0x0001_0001 * index as u64;
    let written = write_register(DISR_EL1, value).is_ok();
    for _ in 0..20 {
        sleep();
        if written && read_register(DISR_EL1) != Ok(value) {
            WRONG.fetch_or(1 << index, Ordering::SeqCst);
        }
    }
    let _ = write_register(DISR_EL1, 0);
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn deferred_error_on_each_cpu() -> Verdict {
    if read_register(DISR_EL1).is_err() {
        skip!("no DISR_EL1");
    }
    // In what is reported each bit stands for a CPU.
    on_all(keep_deferred_error)
}
