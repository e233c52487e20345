//! The other services behind HVC: discovery (SMCCC, DEN0028) and entropy (TRNG, DEN0098); and what SMC does, which no guest owns.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use payload_rt::fault::{self, Fault};
use payload_rt::psci::{NOT_SUPPORTED, SMCCC_ARCH_FEATURES, SMCCC_VERSION, SUCCESS};
use payload_rt::random::Random;
use payload_rt::test::Verdict;
use payload_rt::{
    MAX_CPUS, check, check_equal, cpu, instruction, machine, memory, psci, skip, sysreg, test, tests, timer,
};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("services":
        smccc_version, arch_features, workarounds_are_told_truthfully, workarounds_keep_registers, unknown_services, random_function_numbers, hvc_immediates, smc_does_not_reach_the_firmware,
        trng_version_and_features, trng_uuid, trng_gives_different_bits, trng_fills_by_size, trng_bad_sizes,
        stolen_time_is_offered, stolen_time_records_are_apart, stolen_time_grows_while_others_run, stolen_time_is_read_only,
    ));
}

const PV_TIME_FEATURES: u32 = 0xc500_0020;
const PV_TIME_ST: u32 = 0xc500_0021;

fn stolen_time_is_offered() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    let offered = psci::simple(SMCCC_ARCH_FEATURES, [u64::from(PV_TIME_FEATURES), 0, 0]);
    check_equal!(offered, SUCCESS, "SMCCC_ARCH_FEATURES(PV_TIME_FEATURES)");
    for (function, expected) in [(PV_TIME_FEATURES, SUCCESS), (PV_TIME_ST, SUCCESS), (0xc500_0022, NOT_SUPPORTED)] {
        let answer = psci::simple(PV_TIME_FEATURES, [u64::from(function), 0, 0]);
        check_equal!(answer, expected, "PV_TIME_FEATURES({function:#x})");
    }
    let record = record();
    check!(record.is_multiple_of(64) && !machine::machine().ram.contains(&record), "the record is at {record:#x}");
    // Revision and attributes.
    check_equal!(memory::read64(record), 0, "the record's first word");
    Ok(())
}

/// Where the calling vCPU's record is.
fn record() -> u64 {
    psci::simple(PV_TIME_ST, [0; 3]) as u64
}

/// The address that each CPU got last.
static RECORDS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn note_record(index: usize) {
    RECORDS[index].store(record(), Ordering::SeqCst);
}

/// What was stolen from all CPUs that have noted their records.
fn stolen() -> u64 {
    let records = RECORDS.iter().map(|record| record.load(Ordering::Relaxed)).filter(|&record| record != 0);
    records.map(|record| memory::read64(record + 8)).sum()
}

/// The others are to end.
static ENOUGH: AtomicBool = AtomicBool::new(false);

fn stolen_time_records_are_apart() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    if cpu::count() < 2 {
        skip!("one CPU");
    }
    // Switched off and on again it is the same record.
    let mut seen = [0; 2];
    for address in &mut seen {
        RECORDS[1].store(0, Ordering::SeqCst);
        check_equal!(cpu::start(1, note_record), Ok(()), "start of CPU 1");
        check!(cpu::wait_off(1), "CPU 1 does not end");
        *address = RECORDS[1].load(Ordering::SeqCst);
    }
    check_equal!(seen[0], seen[1], "CPU 1's record");
    check!(seen[0].abs_diff(record()) >= 64, "the records of CPU 0 and 1: {:#x} and {:#x}", record(), seen[0]);
    Ok(())
}

fn stolen_time_grows_while_others_run() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    if cpu::count() < 3 {
        skip!("{} CPUs: nobody has to wait", cpu::count());
    }
    ENOUGH.store(false, Ordering::SeqCst);
    note_record(0);
    for other in 1..cpu::count() {
        let job = |index| {
            note_record(index);
            while !ENOUGH.load(Ordering::Relaxed) {
                cpu::relax();
            }
        };
        check_equal!(cpu::start(other, job), Ok(()), "start of CPU {other}");
    }
    let (begin, before) = (timer::now(), stolen());
    let mut last = before;
    let mut forwards = true;
    // More vCPUs than CPUs, all busy: some must wait for some of the time.
    let grew = timer::wait_until(20_000, || {
        let now = stolen();
        forwards &= now >= last;
        last = now;
        now > before + 10_000_000
    });
    let elapsed = u128::from(timer::now() - begin) * 1_000_000_000 / u128::from(sysreg::cntfrq_el0::read());
    let most = elapsed * cpu::count() as u128;
    ENOUGH.store(true, Ordering::SeqCst);
    for other in 1..cpu::count() {
        check!(cpu::wait_off(other), "CPU {other} does not end");
    }
    check!(grew, "{} ns were stolen in 20 s", last - before);
    check!(forwards, "it went backwards");
    check!(u128::from(last - before) <= most, "{} ns were stolen in {elapsed} ns", last - before);
    Ok(())
}

fn stolen_time_is_read_only() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    let record = record();
    let outcome = fault::catch(|| memory::write64(record, 1));
    check!(outcome.is_err_and(|fault| fault.class() == fault::EC_DATA_ABORT), "a store: {outcome:x?}");
    check_equal!(memory::read64(record), 0, "the record's first word");
    Ok(())
}

const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_FEATURES: u32 = 0x8400_0051;
const TRNG_GET_UUID: u32 = 0x8400_0052;
const TRNG_RND_32: u32 = 0x8400_0053;
const TRNG_RND_64: u32 = 0xc400_0053;
const TRNG_INVALID_PARAMETERS: i64 = -2;

fn smccc_version() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    let version = psci::simple(SMCCC_VERSION, [0; 3]);
    check!((0x1_0001..0x2_0000).contains(&version), "SMCCC_VERSION {version:#x}, expected 1.1 or a later 1.x");
    Ok(())
}

fn arch_features() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    for function in [SMCCC_VERSION, SMCCC_ARCH_FEATURES] {
        let answer = psci::simple(SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0]);
        check_equal!(answer, SUCCESS, "SMCCC_ARCH_FEATURES({function:#x})");
    }
    for function in [0x8000_7000_u32, 0x1234, 0xffff_ffff] {
        let answer = psci::simple(SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0]);
        check_equal!(answer, NOT_SUPPORTED, "SMCCC_ARCH_FEATURES({function:#x})");
    }
    Ok(())
}

/// SMCCC_ARCH_WORKAROUND_1 (branch targets), 2 (store bypass) and 3 (branch history).
const WORKAROUNDS: [u32; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

/// What the guest is told of each, as SMCCC_ARCH_FEATURES has it: 0 call it, 1 no need to, -1 nobody knows it.
fn told() -> [i64; 3] {
    WORKAROUNDS.map(|function| psci::simple(SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0]))
}

/// The answers agree with each other, with what the guest sees of the CPU, and with what is known of the model. The
/// emulated machine's firmware offers nothing.
fn workarounds_are_told_truthfully() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    let [targets, bypass, history] = told();
    let midr = sysreg::midr_el1::read();
    let (implementer, part) = (midr >> 24 & 0xff, midr >> 4 & 0xfff);
    let keeps_contexts_apart = sysreg::id_aa64pfr0_el1::read() >> 56 & 0xf != 0;
    check_equal!(targets, if keeps_contexts_apart { 1 } else { NOT_SUPPORTED }, "branch targets, MIDR_EL1 {midr:#x}");
    let expected = match (implementer, part) {
        // The loop is EL2's, and can be asked for.
        (0x41, 0xd0b | 0xd49) => SUCCESS,
        // Without help against trained targets it would be of no use.
        (0x41, 0xd07 | 0xd08) => NOT_SUPPORTED,
        // The model with everything has FEAT_CSV2_3.
        (0, _) => 1,
        _ => skip!("nothing is known of MIDR_EL1 {midr:#x}"),
    };
    check_equal!(history, expected, "branch history, MIDR_EL1 {midr:#x}");
    check_equal!(bypass, NOT_SUPPORTED, "store bypass: PSTATE.SSBS is the guest's own, and firmware does not help");
    // PSCI_FEATURES is not the place to ask.
    for function in WORKAROUNDS {
        check_equal!(psci::features(function), NOT_SUPPORTED, "PSCI_FEATURES({function:#x})");
    }
    Ok(())
}

/// A workaround that is offered can be called by HVC and by SMC, on every CPU, and changes no more than X0 to X3; one that
/// is not is refused.
fn workarounds_keep_registers() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    for (function, told) in WORKAROUNDS.into_iter().zip(told()) {
        let expected = if told == NOT_SUPPORTED { NOT_SUPPORTED } else { SUCCESS };
        for by_smc in [false, true] {
            let (answer, kept) = call_between(function, by_smc);
            check_equal!(answer, expected, "{function:#x}, by SMC: {by_smc}");
            check!(kept, "{function:#x}, by SMC: {by_smc}: a register is lost");
        }
    }
    Ok(())
}

/// Calls `function` with X4 to X7 full of patterns; its result, and whether they are as they were.
fn call_between(function: u32, by_smc: bool) -> (i64, bool) {
    let mut x = [u64::from(function), 1, 2, 3, 0x4444_4444_4444_4444, 0x5555, 0xaaaa_5555_aaaa_5555, u64::MAX];
    let before = x;
    let outcome = instruction::execute(if by_smc { instruction::smc(0) } else { instruction::hvc(0) }, &mut x);
    (x[0] as i64, outcome.is_ok() && x[4..] == before[4..])
}

fn unknown_services() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    // Yielding calls, SiP, OEM, standard hypervisor, vendor hypervisor, applications, trusted OS.
    for function in [
        0,
        0x0200_0000,
        0x8200_00ff,
        0xc200_0000,
        0x8300_0000,
        0x8500_00ff,
        0x8600_1234,
        0xb000_0000,
        0xb200_0000,
        0xffff_0000,
    ] {
        let answer = psci::simple(function, [0; 3]) as i32;
        check_equal!(answer, -1, "function {function:#x}");
    }
    Ok(())
}

/// Functions that would end this payload, or start code where there is none, or wait for a wake-up that does not come.
fn is_drastic(function: u32) -> bool {
    matches!(function & 0xbfff_ffff, 0x8400_0001..=0x8400_0003 | 0x8400_0008..=0x8400_0009 | 0x8400_000c..=0x8400_000e | 0x8400_0012)
}

fn random_function_numbers() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine knows PSCI only");
    }
    let mut random = Random::new(machine::option_number("seed", 1));
    for _ in 0..machine::option_number("loops", 3000) {
        let function = match random.below(3) {
            0 => random.word() as u32,
            1 => 0x8400_0000 | random.word() as u32 & 0x4000_00ff,
            _ => random.word() as u32 & 0xff00_000f,
        };
        // A vendor range of the hypervisor's own may come to mean more than a number; the arguments stay harmless.
        if !is_drastic(function) {
            psci::simple(function, [0, 0, 0]);
        }
    }
    check!(psci::simple(psci::VERSION, [0; 3]) > 0, "PSCI_VERSION afterwards");
    Ok(())
}

fn undefined_or_answered(outcome: Result<(), Fault>) -> bool {
    // The address is the instruction's own, also where the trap to the hypervisor would return behind it.
    outcome.is_ok() || outcome.is_err_and(|fault| fault.is_undefined() && fault.elr == 0)
}

fn hvc_immediates() -> Verdict {
    for immediate in [1, 2, 0x4a48, 0x8000, 0xffff] {
        let mut x = [u64::from(psci::VERSION), 0, 0, 0, 0, 0, 0, 0];
        let outcome = instruction::execute(instruction::hvc(immediate), &mut x);
        check!(undefined_or_answered(outcome), "HVC #{immediate:#x}: {outcome:x?}");
    }
    Ok(())
}

fn smc_does_not_reach_the_firmware() -> Verdict {
    for immediate in [0, 1, 0xffff] {
        for function in [psci::VERSION, SMCCC_VERSION, 0xc200_0000, 0xb200_0001] {
            let mut x = [u64::from(function), 0, 0, 0, 0, 0, 0, 0];
            let outcome = instruction::execute(instruction::smc(immediate), &mut x);
            let refused = outcome.is_ok() && (x[0] as i32 == -1 || function < 0xb000_0000);
            let undefined = outcome.is_err_and(|fault| fault.is_undefined() && fault.elr == 0);
            check!(refused || undefined, "SMC #{immediate:#x} with {function:#x}: {outcome:x?}, X0 {:#x}", x[0]);
        }
    }
    Ok(())
}

fn has_trng() -> bool {
    // On the bare machine the call itself is undefined.
    fault::catch(|| psci::simple(TRNG_VERSION, [0; 3])).is_ok_and(|version| version >= 0x1_0000)
}

fn trng_version_and_features() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no TRNG");
    }
    let version = psci::simple(TRNG_VERSION, [0; 3]);
    check_equal!(version, 0x1_0000, "TRNG_VERSION");
    for function in [TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND_32, TRNG_RND_64] {
        let answer = psci::simple(TRNG_FEATURES, [u64::from(function), 0, 0]);
        check!(answer >= 0, "TRNG_FEATURES({function:#x}) = {answer}");
    }
    check_equal!(psci::simple(TRNG_FEATURES, [0x8400_005f, 0, 0]), NOT_SUPPORTED, "TRNG_FEATURES of no function");
    Ok(())
}

fn trng_uuid() -> Verdict {
    if !has_trng() {
        skip!("no TRNG");
    }
    let uuid = psci::call(TRNG_GET_UUID, [0; 3]);
    check!(uuid[0] as u32 != u32::MAX, "TRNG_GET_UUID returns NOT_SUPPORTED");
    check!(uuid.iter().any(|&word| word != 0), "TRNG_GET_UUID returns nothing but zeros");
    check_equal!(psci::call(TRNG_GET_UUID, [0; 3]), uuid, "TRNG_GET_UUID again");
    Ok(())
}

fn trng_gives_different_bits() -> Verdict {
    if !has_trng() {
        skip!("no TRNG");
    }
    let (mut last, mut ever, mut always) = ([0; 4], 0, u64::MAX);
    for round in 0..100 {
        let answer = psci::call(TRNG_RND_64, [192, 0, 0]);
        check_equal!(answer[0], 0, "TRNG_RND64 of 192 bits, round {round}; status");
        check!(answer != last, "the same 192 bits twice");
        check!(answer[1] != answer[2] && answer[2] != answer[3], "equal words {answer:x?}");
        (last, ever, always) = (answer, ever | answer[1], always & answer[1]);
    }
    check!(ever == u64::MAX && always == 0, "bits that never change: ever {ever:#x}, always {always:#x}");
    Ok(())
}

fn trng_fills_by_size() -> Verdict {
    if !has_trng() {
        skip!("no TRNG");
    }
    for bits in [1, 8, 63, 64, 65, 128, 191, 192] {
        for _ in 0..20 {
            let [status, x1, x2, x3] = psci::call(TRNG_RND_64, [bits, 0, 0]);
            check_equal!(status, 0, "TRNG_RND64 of {bits} bits; status");
            // X3 holds the lowest bits; what was not asked for is zero.
            let words = [x3, x2, x1];
            for (index, word) in words.into_iter().enumerate() {
                let wanted = bits.saturating_sub(64 * index as u64).min(64);
                let excess = if wanted == 64 { 0 } else { word >> wanted };
                check_equal!(excess, 0, "TRNG_RND64 of {bits} bits; bits beyond them");
            }
        }
    }
    for bits in [1, 32, 33, 96] {
        let [status, x1, x2, x3] = psci::call(TRNG_RND_32, [bits, 0, 0]);
        check_equal!(status as u32, 0, "TRNG_RND32 of {bits} bits; status");
        check!((x1 | x2 | x3) >> 32 == 0, "TRNG_RND32 of {bits} bits: {x1:#x} {x2:#x} {x3:#x}");
    }
    Ok(())
}

fn trng_bad_sizes() -> Verdict {
    if !has_trng() {
        skip!("no TRNG");
    }
    for bits in [0, 193, 1 << 32, u64::MAX] {
        check_equal!(psci::simple(TRNG_RND_64, [bits, 0, 0]), TRNG_INVALID_PARAMETERS, "TRNG_RND64 of {bits:#x} bits");
    }
    for bits in [0, 97, 192] {
        check_equal!(psci::simple(TRNG_RND_32, [bits, 0, 0]), TRNG_INVALID_PARAMETERS, "TRNG_RND32 of {bits} bits");
    }
    Ok(())
}
