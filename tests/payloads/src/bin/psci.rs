//! PSCI (DEN0022): every function that a guest may use, and every way to use it wrongly.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use payload_rt::foreign::{self, Tables};
use payload_rt::instruction::hvc;
use payload_rt::psci::{
    AFFINITY_INFO_64, AFFINITY_OFF, AFFINITY_ON, ALREADY_ON, CPU_OFF, CPU_ON_32, CPU_ON_64, CPU_SUSPEND_64, FEATURES,
    INVALID_ADDRESS, INVALID_PARAMETERS, MIGRATE_INFO_TYPE, NOT_SUPPORTED, ON_PENDING, SMCCC_VERSION, SUCCESS,
    SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2_64, VERSION,
};
use payload_rt::test::Verdict;
use payload_rt::{check, check_equal, cpu, gic, machine, psci, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("psci":
        version, features, unknown_functions, migrate_info, affinity_info, affinity_info_errors, cpu_on_errors, cpu_on_bad_entry,
        cpu_on_passes_context_and_state, cpu_on_32_bit, cpu_on_twice, off_and_on, all_cpus_off_and_on, suspend_standby, suspend_errors,
        suspend_powerdown, starts_in_the_callers_byte_order, system_reset2_errors, calls_keep_registers,
    ));
}

/// No CPU of any machine of ours has this affinity.
const NO_CPU: u64 = 0x7f_00ff_ffff;

fn version() -> Verdict {
    let version = psci::simple(VERSION, [0; 3]);
    check!((0x1_0001..0x2_0000).contains(&version), "PSCI_VERSION {version:#x}, expected 1.1 or a later 1.x");
    Ok(())
}

fn features() -> Verdict {
    let required = [
        VERSION,
        CPU_SUSPEND_64,
        CPU_SUSPEND_64 & !(1 << 30),
        CPU_OFF,
        CPU_ON_32,
        CPU_ON_64,
        AFFINITY_INFO_64,
        AFFINITY_INFO_64 & !(1 << 30),
        SYSTEM_OFF,
        SYSTEM_RESET,
        FEATURES,
    ];
    for function in required {
        let answer = psci::features(function);
        check!(answer >= 0, "PSCI_FEATURES({function:#x}) = {answer}");
    }
    for function in [0x8400_001f, 0xc400_001f, 0x8400_ffff, 0, 0x1234_5678, u32::MAX, VERSION | 1 << 30] {
        check_equal!(psci::features(function), NOT_SUPPORTED, "PSCI_FEATURES({function:#x})");
    }
    if machine::is_reference() {
        return Ok(());
    }
    for function in [SYSTEM_RESET2_64, SYSTEM_RESET2_64 & !(1 << 30), SMCCC_VERSION] {
        let answer = psci::features(function);
        check!(answer >= 0, "PSCI_FEATURES({function:#x}) = {answer}");
    }
    Ok(())
}

fn unknown_functions() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine leaves unknown functions undefined");
    }
    for function in
        [0x8400_001f, 0xc400_001e, 0x8400_ffff, 0xc400_ffff, VERSION | 1 << 30, CPU_OFF | 1 << 30, SYSTEM_OFF | 1 << 30]
    {
        check_equal!(psci::simple(function, [0; 3]), NOT_SUPPORTED, "function {function:#x}");
    }
    Ok(())
}

fn migrate_info() -> Verdict {
    let answer = psci::simple(MIGRATE_INFO_TYPE, [0; 3]);
    check!(
        answer == 2 || answer == NOT_SUPPORTED,
        "MIGRATE_INFO_TYPE = {answer}, expected 2 (nothing to migrate) or NOT_SUPPORTED"
    );
    Ok(())
}

fn affinity_info() -> Verdict {
    check_equal!(psci::affinity_info(cpu::affinity(0), 0), AFFINITY_ON, "AFFINITY_INFO of this CPU");
    for index in 1..cpu::count() {
        check_equal!(psci::affinity_info(cpu::affinity(index), 0), AFFINITY_OFF, "AFFINITY_INFO of CPU {index}");
    }
    Ok(())
}

fn affinity_info_errors() -> Verdict {
    check_equal!(psci::affinity_info(NO_CPU, 0), INVALID_PARAMETERS, "AFFINITY_INFO of no CPU");
    for level in [4, 5, 0xff, u64::MAX] {
        let answer = psci::affinity_info(cpu::affinity(0), level);
        check!(
            answer == INVALID_PARAMETERS || machine::is_reference(),
            "AFFINITY_INFO with lowest level {level:#x} = {answer}"
        );
    }
    Ok(())
}

fn cpu_on_errors() -> Verdict {
    check_equal!(psci::cpu_on(NO_CPU, cpu::entry_address(), 0), INVALID_PARAMETERS, "CPU_ON of no CPU");
    check_equal!(psci::cpu_on(cpu::affinity(0), cpu::entry_address(), 0), ALREADY_ON, "CPU_ON of this CPU");
    let beyond = cpu::affinity(cpu::count() - 1) + 1;
    check_equal!(
        psci::cpu_on(beyond, cpu::entry_address(), 0),
        INVALID_PARAMETERS,
        "CPU_ON of the CPU behind the last"
    );
    Ok(())
}

fn cpu_on_bad_entry() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine does not look at the entry address");
    }
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    for entry in [0x0900_0000, machine::machine().ram.end, 1 << 47, !3] {
        check_equal!(psci::cpu_on(cpu::affinity(1), entry, 0), INVALID_ADDRESS, "CPU_ON at {entry:#x}");
    }
    check_equal!(psci::affinity_info(cpu::affinity(1), 0), AFFINITY_OFF, "AFFINITY_INFO of CPU 1");
    Ok(())
}

static RUNS: AtomicU32 = AtomicU32::new(0);
static LEVEL: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);

fn count_run(index: usize) {
    LEVEL.store((sysreg::currentel::read() >> 2) as u32 | (index as u32) << 8, Ordering::SeqCst);
    RUNS.fetch_add(1, Ordering::SeqCst);
}

fn run_until_stopped(index: usize) {
    count_run(index);
    while STOP.load(Ordering::SeqCst) == 0 {
        cpu::relax();
    }
}

fn cpu_on_passes_context_and_state() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    for index in 1..cpu::count() {
        check_equal!(cpu::start(index, count_run), Ok(()), "CPU_ON of CPU {index}");
        check!(cpu::wait_off(index), "CPU {index} does not switch off");
        // The index is the context; the runtime finds the CPU's stack and job by it.
        check_equal!(
            LEVEL.load(Ordering::SeqCst),
            1 | (index as u32) << 8,
            "exception level and context of CPU {index}"
        );
        let (daif, sctlr) = cpu::initial_state(index);
        check_equal!(daif, 0x3c0, "DAIF at the start of CPU {index}");
        check_equal!(sctlr & 0x1005, 0, "MMU and cache bits of SCTLR_EL1 at the start of CPU {index}");
    }
    Ok(())
}

fn cpu_on_32_bit() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    let runs = RUNS.load(Ordering::SeqCst);
    cpu::set_job(1, count_run);
    // The upper halves of the arguments of a 32-bit call are not looked at.
    let answer = psci::simple(
        CPU_ON_32,
        [cpu::affinity(1) | 0xdead << 32, cpu::entry_address() | 0xdead << 32, 1 | 0xdead << 32],
    );
    if answer != SUCCESS && machine::is_reference() {
        cpu::take_job(1);
        skip!("the bare machine takes 64-bit arguments in a 32-bit call");
    }
    check_equal!(answer, SUCCESS, "32-bit CPU_ON");
    timer::wait_until(10_000, || RUNS.load(Ordering::SeqCst) != runs);
    check!(cpu::wait_off(1), "CPU 1 does not switch off");
    check_equal!(RUNS.load(Ordering::SeqCst), runs + 1, "runs");
    Ok(())
}

fn cpu_on_twice() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    for round in 0..20 {
        let runs = RUNS.load(Ordering::SeqCst);
        STOP.store(0, Ordering::SeqCst);
        cpu::set_job(1, run_until_stopped);
        let first = psci::cpu_on(cpu::affinity(1), cpu::entry_address(), 1);
        check_equal!(first, SUCCESS, "first CPU_ON, round {round}");
        let second = psci::cpu_on(cpu::affinity(1), cpu::entry_address(), 1);
        let came_up = timer::wait_until(5000, || RUNS.load(Ordering::SeqCst) == runs + 1);
        let third = psci::cpu_on(cpu::affinity(1), cpu::entry_address(), 1);
        let status = psci::affinity_info(cpu::affinity(1), 0);
        STOP.store(1, Ordering::SeqCst);
        check!(cpu::wait_off(1), "CPU 1 does not switch off");
        check!(came_up, "CPU 1 did not come up in round {round}");
        let refused = second == ALREADY_ON || second == ON_PENDING;
        check!(refused || machine::is_reference(), "second CPU_ON = {second}, round {round}");
        check_equal!(third, ALREADY_ON, "CPU_ON of a running CPU");
        check_equal!(status, AFFINITY_ON, "AFFINITY_INFO of a running CPU");
    }
    Ok(())
}

fn off_and_on() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    let runs = RUNS.load(Ordering::SeqCst);
    for round in 1..=machine::option_number("loops", 100) as u32 {
        check_equal!(cpu::start(1, count_run), Ok(()), "CPU_ON in round {round}");
        check!(cpu::wait_off(1), "CPU 1 does not switch off in round {round}");
        check_equal!(RUNS.load(Ordering::SeqCst), runs + round, "runs");
    }
    Ok(())
}

fn all_cpus_off_and_on() -> Verdict {
    let runs = RUNS.load(Ordering::SeqCst);
    let others = cpu::count() - 1;
    for round in 1..=30 {
        for index in 1..cpu::count() {
            check_equal!(cpu::start(index, count_run), Ok(()), "CPU_ON of CPU {index} in round {round}");
        }
        for index in 1..cpu::count() {
            check!(cpu::wait_off(index), "CPU {index} does not switch off in round {round}");
        }
        check_equal!(RUNS.load(Ordering::SeqCst), runs + round * others as u32, "runs");
    }
    Ok(())
}

/// Arms the virtual timer half a millisecond ahead, with the interrupt masked in PSTATE.
fn arm_wake_up() {
    gic::enable(timer::VIRTUAL_PPI);
    sysreg::cntv_tval_el0::write(timer::microseconds(500));
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
}

fn end_wake_up() {
    let intid = gic::acknowledge();
    sysreg::cntv_ctl_el0::write(0);
    gic::end(intid);
}

fn suspend_standby() -> Verdict {
    for round in 0..20 {
        arm_wake_up();
        let answer = psci::simple(CPU_SUSPEND_64, [0, 0, 0]);
        check_equal!(answer, SUCCESS, "CPU_SUSPEND to standby, round {round}");
        let due = timer::wait_until(1000, || sysreg::cntv_ctl_el0::read() & timer::ISTATUS != 0);
        check!(due, "the wake-up event never came, round {round}");
        end_wake_up();
    }
    Ok(())
}

fn suspend_errors() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine does not look at the power state closely");
    }
    // Reserved bits of the original format: 15:0 is the state ID, 16 the type, 25:24 the level.
    for state in [1 << 31, 1 << 26, 1 << 17, 3 << 24] {
        arm_wake_up();
        let answer = psci::simple(CPU_SUSPEND_64, [state, cpu::entry_address(), 0]);
        timer::wait_until(100, || sysreg::cntv_ctl_el0::read() & timer::ISTATUS != 0);
        end_wake_up();
        check_equal!(answer, INVALID_PARAMETERS, "CPU_SUSPEND with power state {state:#x}");
    }
    arm_wake_up();
    let answer = psci::simple(CPU_SUSPEND_64, [1 << 16, 0x0900_0000, 0]);
    end_wake_up();
    check!(
        answer == INVALID_ADDRESS || answer == SUCCESS,
        "CPU_SUSPEND to power-down with a device as entry = {answer}"
    );
    Ok(())
}

/// 1 = woke at the entry, 2 = the call returned.
static WOKE: AtomicU32 = AtomicU32::new(0);
static ANSWER: AtomicU32 = AtomicU32::new(0);

fn woken_at_entry(_index: usize) {
    WOKE.store(1, Ordering::SeqCst);
    end_wake_up();
}

/// Suspends this CPU with power-down; it comes back either through the entry, as `woken_at_entry`, or by the call's return.
fn suspend_with_powerdown(index: usize) {
    cpu::set_job(index, woken_at_entry);
    arm_wake_up();
    let answer = psci::simple(CPU_SUSPEND_64, [1 << 16, cpu::entry_address(), index as u64]);
    cpu::take_job(index);
    ANSWER.store(answer as u32, Ordering::SeqCst);
    WOKE.store(2, Ordering::SeqCst);
    end_wake_up();
}

fn suspend_powerdown() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    for round in 0..20 {
        WOKE.store(0, Ordering::SeqCst);
        ANSWER.store(0, Ordering::SeqCst);
        check_equal!(cpu::start(1, suspend_with_powerdown), Ok(()), "CPU_ON in round {round}");
        check!(cpu::wait_off(1), "CPU 1 does not wake in round {round}");
        check!(WOKE.load(Ordering::SeqCst) != 0, "CPU 1 switched off without waking in round {round}");
        check_equal!(ANSWER.load(Ordering::SeqCst), 0, "CPU_SUSPEND to power-down, round {round}");
    }
    Ok(())
}

/// SCTLR_EL1.EE.
const BIG_ENDIAN: u64 = 1 << 25;

/// The last thing that CPU 1 does, once it was started.
fn nothing(_index: usize) {}

/// Suspends this CPU with power-down while its data is big-endian.
fn suspend_big_endian(index: usize) {
    cpu::set_job(index, woken_at_entry);
    arm_wake_up();
    let mut x = [u64::from(CPU_SUSPEND_64), 1 << 16, cpu::entry_address(), index as u64, 0, 0, 0, 0];
    foreign::execute(hvc(0), &mut x, Tables::BigEndian(0));
    cpu::take_job(index);
    ANSWER.store(x[0] as u32, Ordering::SeqCst);
    WOKE.store(2, Ordering::SeqCst);
    end_wake_up();
}

/// A CPU starts with its caller's byte order (PSCI, section 6.4), by CPU_ON and behind a suspension.
fn starts_in_the_callers_byte_order() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine starts all CPUs little-endian");
    }
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    if sysreg::field(sysreg::id_aa64mmfr0_el1::read(), 8) == 0 {
        skip!("the CPU is little-endian alone");
    }
    let order = || cpu::initial_state(1).1 & BIG_ENDIAN;
    cpu::set_job(1, nothing);
    let mut x = [u64::from(CPU_ON_64), cpu::affinity(1), cpu::entry_address(), 1, 0, 0, 0, 0];
    let (esr, _) = foreign::execute(hvc(0), &mut x, Tables::BigEndian(0));
    check_equal!((x[0], esr), (0, 0), "CPU_ON by a big-endian caller, and its ESR");
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!(order(), BIG_ENDIAN, "SCTLR_EL1.EE of a CPU that a big-endian one has started");
    check_equal!(cpu::start(1, nothing), Ok(()), "CPU_ON by a little-endian caller");
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!(order(), 0, "SCTLR_EL1.EE of a CPU that a little-endian one has started");
    // A suspension may end at once, by the call's return, and says nothing then.
    for _ in 0..20 {
        WOKE.store(0, Ordering::SeqCst);
        check_equal!(cpu::start(1, suspend_big_endian), Ok(()), "CPU_ON");
        check!(cpu::wait_off(1), "CPU 1 does not wake");
        if WOKE.load(Ordering::SeqCst) == 1 {
            check_equal!(order(), BIG_ENDIAN, "SCTLR_EL1.EE behind a suspension by a big-endian CPU");
            return Ok(());
        }
    }
    check!(false, "no suspension was a power-down: {:#x}", ANSWER.load(Ordering::SeqCst));
    Ok(())
}

fn system_reset2_errors() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has no SYSTEM_RESET2");
    }
    // Architectural types other than 0 are reserved; vendor types (bit 31) are ours to refuse.
    for kind in [1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        let answer = psci::simple(SYSTEM_RESET2_64, [kind, 0, 0]);
        check!(answer == INVALID_PARAMETERS || answer == NOT_SUPPORTED, "SYSTEM_RESET2 of type {kind:#x} = {answer}");
    }
    Ok(())
}

fn calls_keep_registers() -> Verdict {
    // SMCCC 1.1: X4 to X17 come back as they were.
    for function in [VERSION, FEATURES, AFFINITY_INFO_64] {
        let mut x = [u64::from(function), 0, 0, 0, 0x4444, 0x5555, 0x6666, 0x7777];
        let outcome = payload_rt::instruction::execute(hvc(0), &mut x);
        check_equal!(outcome, Ok(()), "HVC with function {function:#x}");
        check_equal!(
            [x[4], x[5], x[6], x[7]],
            [0x4444, 0x5555, 0x6666, 0x7777],
            "X4 to X7 after function {function:#x}"
        );
    }
    Ok(())
}
