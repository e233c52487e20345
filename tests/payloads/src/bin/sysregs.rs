//! System registers (Arm ARM D24): what the ID registers hide is really not there, what belongs to EL2 and EL3 is undefined, and the
//! debug registers work.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use payload_rt::fault::{EC_BREAKPOINT, EC_ILLEGAL_STATE, EC_STEP, EC_WATCHPOINT};
use payload_rt::instruction::{execute, read_register, sys, write_register};
use payload_rt::test::Verdict;
use payload_rt::{
    check, check_equal, cpu, debug, gic, instruction, machine, memory, skip, sysreg, test, tests, timer, user,
};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("sysregs":
        id_space_reads, id_same_on_all_cpus, id_writes_are_undefined, mpidr_matches_device_tree, sve_hidden, sme_hidden, mte_hidden,
        performance_counters, lor_hidden, ras_hidden, activity_monitors_hidden, trace_and_profiling_hidden, pauth_as_stated,
        implementation_defined, upper_levels_undefined, counter_control_undefined, ordinary_registers, thread_registers_kept,
        set_way_maintenance, debug_registers, debug_claim_tags, debug_mailboxes_hold_nothing, os_lock, debug_channel, hidden_from_user_too,
        hidden_behind_the_guests_own_enables, aarch32_is_refused, breakpoint, watchpoint, single_step,
    ));
}

type Encoding = [u32; 5];

fn describe(e: Encoding) -> u64 {
    // Printed in hexadecimal this reads like the name: S3_0_C1_C2_0 is 0x30120.
    e.into_iter().fold(0, |sum, part| sum << 4 | u64::from(part))
}

/// Every register of the list must be UNDEFINED to read.
fn all_undefined(registers: &[Encoding], why: &str) -> Verdict {
    for &encoding in registers {
        let outcome = read_register(encoding);
        let undefined = outcome.is_err_and(|fault| fault.is_undefined() && fault.elr == 0);
        check!(undefined, "register {:#x} ({why}): {outcome:x?}, expected UNDEFINED", describe(encoding));
    }
    Ok(())
}

/// Skips on the bare machine if it has the feature; fails if the guest is shown it; else goes on.
macro_rules! expect_hidden {
    ($field:expr, $name:literal) => {
        if $field != 0 {
            if machine::is_reference() {
                skip!(concat!("the bare machine has ", $name));
            }
            check!(false, concat!($name, " is shown, ID field {:#x}"), $field);
        }
    };
}

fn id_space_reads() -> Verdict {
    for crm in 0..8 {
        for op2 in 0..8 {
            let first = read_register([3, 0, 0, crm, op2]);
            // S3_0_C0_C0_{1..4, 7} are not ID registers and are unallocated.
            if crm == 0 && !matches!(op2, 0 | 5 | 6) {
                continue;
            }
            check!(first.is_ok(), "S3_0_C0_C{crm}_{op2}: {first:x?}");
            check_equal!(read_register([3, 0, 0, crm, op2]), first, "S3_0_C0_C{crm}_{op2} read twice");
        }
    }
    Ok(())
}

static DIGEST: AtomicU64 = AtomicU64::new(0);

/// All ID registers in one number.
fn digest_ids(_index: usize) {
    let mut digest = sysreg::midr_el1::read();
    for crm in 1..8 {
        for op2 in 0..8 {
            digest = digest.rotate_left(7) ^ read_register([3, 0, 0, crm, op2]).unwrap_or(0);
        }
    }
    DIGEST.store(digest, Ordering::SeqCst);
}

fn id_same_on_all_cpus() -> Verdict {
    digest_ids(0);
    let expected = DIGEST.load(Ordering::SeqCst);
    for index in 1..cpu::count() {
        check_equal!(cpu::start(index, digest_ids), Ok(()), "CPU_ON of CPU {index}");
        check!(cpu::wait_off(index), "CPU {index} does not end");
        check_equal!(DIGEST.load(Ordering::SeqCst), expected, "ID registers of CPU {index}");
    }
    Ok(())
}

fn id_writes_are_undefined() -> Verdict {
    for encoding in
        [[3, 0, 0, 4, 0], [3, 0, 0, 5, 0], [3, 0, 0, 6, 1], [3, 0, 0, 7, 0], [3, 0, 0, 0, 0], [3, 0, 0, 0, 5]]
    {
        let outcome = write_register(encoding, 0);
        check!(outcome.is_err_and(|fault| fault.is_undefined()), "write to {:#x}: {outcome:x?}", describe(encoding));
    }
    Ok(())
}

fn mpidr_matches_device_tree() -> Verdict {
    check_equal!(gic::own_affinity(), cpu::affinity(0), "MPIDR_EL1 of the boot CPU");
    check!(sysreg::mpidr_el1::read() >> 31 & 1 == 1, "MPIDR_EL1 bit 31 (RES1) is 0");
    Ok(())
}

fn sve_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64pfr0_el1::read(), 32), "SVE");
    check_equal!(sysreg::id_aa64zfr0_el1::read(), 0, "ID_AA64ZFR0_EL1 without SVE");
    all_undefined(&[[3, 0, 1, 2, 0]], "ZCR_EL1, without SVE")?;
    // RDVL X0, #1 and PTRUE P0.B.
    for opcode in [0x04bf_5020, 0x2518_e3e0] {
        let outcome = execute(opcode, &mut [0; 8]);
        check!(outcome.is_err_and(|fault| fault.is_undefined()), "SVE instruction {opcode:#x}: {outcome:x?}");
    }
    Ok(())
}

fn sme_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64pfr1_el1::read(), 24), "SME");
    check_equal!(sysreg::id_aa64smfr0_el1::read(), 0, "ID_AA64SMFR0_EL1 without SME");
    all_undefined(
        &[[3, 0, 1, 2, 6], [3, 3, 4, 2, 2], [3, 3, 13, 0, 5], [3, 0, 1, 2, 4], [3, 1, 0, 0, 6]],
        "without SME",
    )
}

fn mte_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64pfr1_el1::read(), 8), "MTE");
    all_undefined(&[[3, 0, 1, 0, 6], [3, 0, 1, 0, 5], [3, 0, 5, 6, 0], [3, 0, 5, 6, 1]], "without MTE")?;
    // LDG X1, [X0], after STG X1, [X0] with a tag in X1: undefined, or tags read as zero.
    let page = memory::pages(1) + 0x800;
    let store = execute(0xd920_0801, &mut [page, 0x0500_0000_0000_0000 | page, 0, 0, 0, 0, 0, 0]);
    let mut x = [page, page, 0, 0, 0, 0, 0, 0];
    let load = execute(0xd960_0001, &mut x);
    let harmless = load.is_err_and(|fault| fault.is_undefined()) || load.is_ok() && x[1] >> 56 == 0;
    check!(harmless, "LDG: {load:x?}, X1 = {:#x} (STG: {store:x?})", x[1]);
    Ok(())
}

fn performance_counters() -> Verdict {
    let version = sysreg::field(sysreg::id_aa64dfr0_el1::read(), 8);
    if version != 0 && version != 0xf {
        // Shown, then it must work: the cycle counter counts.
        check!(write_register([3, 3, 9, 14, 0], 0).is_ok(), "PMUSERENR_EL0 cannot be written");
        check!(write_register([3, 3, 9, 12, 0], 1).is_ok(), "PMCR_EL0 cannot be written");
        check!(write_register([3, 3, 9, 12, 1], 1 << 31).is_ok(), "PMCNTENSET_EL0 cannot be written");
        let first = read_register([3, 3, 9, 13, 0]);
        timer::delay(1000);
        let second = read_register([3, 3, 9, 13, 0]);
        check!(
            first.is_ok() && second.is_ok() && second.ok() > first.ok(),
            "PMCCNTR_EL0 {first:x?}, a millisecond later {second:x?}"
        );
        return Ok(());
    }
    all_undefined(
        &[
            [3, 3, 9, 12, 0],
            [3, 3, 9, 12, 1],
            [3, 3, 9, 12, 3],
            [3, 3, 9, 12, 5],
            [3, 3, 9, 12, 6],
            [3, 3, 9, 13, 0],
            [3, 3, 9, 13, 1],
            [3, 3, 9, 14, 0],
            [3, 0, 9, 14, 1],
            [3, 3, 14, 8, 0],
            [3, 3, 14, 12, 0],
            [3, 3, 14, 15, 7],
        ],
        "performance counters, hidden",
    )
}

fn lor_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64mmfr1_el1::read(), 16), "limited ordering regions");
    all_undefined(
        &[[3, 0, 10, 4, 0], [3, 0, 10, 4, 1], [3, 0, 10, 4, 2], [3, 0, 10, 4, 3], [3, 0, 10, 4, 7]],
        "without LOR",
    )
}

fn ras_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64pfr0_el1::read(), 28), "RAS");
    all_undefined(&[[3, 0, 5, 3, 0], [3, 0, 5, 3, 1], [3, 0, 5, 4, 0], [3, 0, 5, 4, 1], [3, 0, 5, 4, 2]], "without RAS")
}

fn activity_monitors_hidden() -> Verdict {
    expect_hidden!(sysreg::field(sysreg::id_aa64pfr0_el1::read(), 44), "activity monitors");
    all_undefined(
        &[[3, 3, 13, 2, 0], [3, 3, 13, 2, 1], [3, 3, 13, 2, 3], [3, 3, 13, 4, 0], [3, 3, 13, 12, 0]],
        "without AMU",
    )
}

fn trace_and_profiling_hidden() -> Verdict {
    let features = sysreg::id_aa64dfr0_el1::read();
    expect_hidden!(sysreg::field(features, 4), "trace registers");
    expect_hidden!(sysreg::field(features, 32), "statistical profiling");
    expect_hidden!(sysreg::field(features, 40), "the trace filter");
    expect_hidden!(sysreg::field(features, 44), "the trace buffer");
    all_undefined(
        &[[2, 1, 0, 1, 0], [2, 1, 0, 0, 6], [3, 0, 9, 9, 0], [3, 0, 9, 10, 0], [3, 0, 9, 11, 0], [3, 0, 1, 2, 1]],
        "trace, profiling",
    )
}

fn pauth_as_stated() -> Verdict {
    let (one, two) = (sysreg::id_aa64isar1_el1::read(), sysreg::id_aa64isar2_el1::read());
    let shown = sysreg::field(one, 4) | sysreg::field(one, 8) | sysreg::field(two, 12) != 0;
    let outcome = read_register([3, 0, 2, 1, 0]);
    if shown {
        check!(outcome.is_ok(), "pointer authentication is shown, but APIAKeyLo_EL1: {outcome:x?}");
    } else if !machine::is_reference() {
        check!(
            outcome.is_err_and(|fault| fault.is_undefined()),
            "pointer authentication is hidden, but APIAKeyLo_EL1: {outcome:x?}"
        );
    }
    Ok(())
}

fn implementation_defined() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has registers of its CPU model there");
    }
    all_undefined(
        &[[3, 1, 15, 0, 0], [3, 0, 15, 0, 0], [3, 7, 15, 2, 7], [3, 0, 11, 0, 0], [3, 3, 15, 0, 0]],
        "implementation defined",
    )
}

fn upper_levels_undefined() -> Verdict {
    all_undefined(
        &[
            [3, 4, 1, 1, 0],
            [3, 4, 1, 0, 0],
            [3, 4, 2, 0, 0],
            [3, 4, 2, 1, 0],
            [3, 4, 2, 1, 2],
            [3, 4, 1, 1, 1],
            [3, 4, 1, 1, 2],
            [3, 4, 4, 0, 0],
            [3, 4, 4, 0, 1],
            [3, 4, 5, 2, 0],
            [3, 4, 6, 0, 0],
            [3, 4, 6, 0, 4],
            [3, 4, 12, 0, 0],
            [3, 4, 13, 0, 2],
            [3, 4, 0, 0, 0],
            [3, 4, 0, 0, 5],
            [3, 4, 12, 11, 0],
            [3, 4, 12, 11, 1],
            [3, 4, 12, 12, 0],
            [3, 4, 14, 0, 3],
            [3, 4, 14, 1, 0],
            [3, 4, 14, 3, 0],
            [3, 5, 1, 0, 0],
            [3, 5, 2, 0, 0],
            [3, 5, 12, 0, 0],
            [3, 5, 14, 2, 1],
            [3, 5, 14, 3, 1],
            [3, 6, 1, 1, 0],
            [3, 6, 1, 0, 0],
            [3, 6, 12, 0, 0],
            [3, 6, 4, 0, 0],
            [3, 6, 12, 12, 5],
        ],
        "of EL2 or EL3",
    )?;
    for encoding in [[3, 4, 1, 1, 0], [3, 4, 2, 1, 0], [3, 4, 12, 0, 0], [3, 4, 14, 0, 3], [3, 6, 1, 1, 0]] {
        let outcome = write_register(encoding, 0);
        check!(outcome.is_err_and(|fault| fault.is_undefined()), "write to {:#x}: {outcome:x?}", describe(encoding));
    }
    // TLBI ALLE2, TLBI VMALLS12E1, AT S1E2R, AT S12E1R.
    for opcode in [sys(4, 8, 7, 0), sys(4, 8, 7, 6), sys(4, 7, 8, 0), sys(4, 7, 8, 4)] {
        let outcome = execute(opcode, &mut [0; 8]);
        check!(outcome.is_err_and(|fault| fault.is_undefined()), "system instruction {opcode:#x}: {outcome:x?}");
    }
    Ok(())
}

fn counter_control_undefined() -> Verdict {
    if machine::is_reference() {
        skip!("on the bare machine EL1 is the highest level");
    }
    let frequency = sysreg::cntfrq_el0::read();
    let outcome = write_register([3, 3, 14, 0, 0], frequency / 2);
    check!(outcome.is_err_and(|fault| fault.is_undefined()), "write to CNTFRQ_EL0: {outcome:x?}");
    check_equal!(sysreg::cntfrq_el0::read(), frequency, "CNTFRQ_EL0");
    all_undefined(&[[3, 7, 14, 2, 0], [3, 7, 14, 2, 1], [3, 7, 14, 2, 2]], "secure physical timer")
}

fn ordinary_registers() -> Verdict {
    // ACTLR, AFSR0, AFSR1, AMAIR, ISR, REVIDR, AIDR, CLIDR, CCSIDR, CSSELR, CTR, DCZID, PAR, CNTKCTL, RVBAR is left out: it is EL3's.
    for encoding in [
        [3, 0, 1, 0, 1],
        [3, 0, 5, 1, 0],
        [3, 0, 5, 1, 1],
        [3, 0, 10, 3, 0],
        [3, 0, 12, 1, 0],
        [3, 0, 0, 0, 6],
        [3, 1, 0, 0, 7],
        [3, 1, 0, 0, 1],
        [3, 1, 0, 0, 0],
        [3, 2, 0, 0, 0],
        [3, 3, 0, 0, 1],
        [3, 3, 0, 0, 7],
        [3, 0, 7, 4, 0],
        [3, 0, 14, 1, 0],
    ] {
        let outcome = read_register(encoding);
        check!(outcome.is_ok(), "register {:#x}: {outcome:x?}", describe(encoding));
    }
    for encoding in [[3, 0, 1, 0, 1], [3, 0, 5, 1, 0], [3, 0, 10, 3, 0]] {
        let before = read_register(encoding).unwrap_or(0);
        check!(write_register(encoding, before).is_ok(), "write to {:#x}", describe(encoding));
    }
    Ok(())
}

fn thread_registers_kept() -> Verdict {
    for round in 0..200_u64 {
        let value = 0x0123_4567_89ab_cdef_u64.rotate_left(round as u32);
        sysreg::tpidr_el0::write(value);
        sysreg::contextidr_el1::write(value & 0xffff_ffff);
        sysreg::par_el1::write(value & 0xfff);
        let _ = memory::read32(gic::DISTRIBUTOR + gic::GICD_IIDR);
        timer::delay(50);
        check_equal!(sysreg::tpidr_el0::read(), value, "TPIDR_EL0, round {round}");
        check_equal!(sysreg::contextidr_el1::read(), value & 0xffff_ffff, "CONTEXTIDR_EL1, round {round}");
    }
    Ok(())
}

fn set_way_maintenance() -> Verdict {
    // DC CISW and DC CSW over a few sets; what a guest cleans by set and way must not be lost, however it is done.
    let page = memory::pages(1);
    memory::write64(page, 0x5e7_3a9);
    for opcode in [sys(0, 7, 14, 2), sys(0, 7, 10, 2)] {
        for way in 0..4_u64 {
            for set in 0..8_u64 {
                let outcome = execute(opcode, &mut [way << 30 | set << 6, 0, 0, 0, 0, 0, 0, 0]);
                check!(outcome.is_ok(), "set/way operation {opcode:#x}: {outcome:x?}");
            }
        }
    }
    check_equal!(memory::read64(page), 0x5e7_3a9, "memory afterwards");
    Ok(())
}

fn debug_registers() -> Verdict {
    let features = sysreg::id_aa64dfr0_el1::read();
    let (breakpoints, watchpoints) = (sysreg::field(features, 12) + 1, sysreg::field(features, 20) + 1);
    check!(
        breakpoints >= 2 && watchpoints >= 2,
        "{breakpoints} breakpoints and {watchpoints} watchpoints; the architecture has at least 2"
    );
    for (count, value_register) in [(breakpoints, 4), (watchpoints, 6)] {
        for number in 0..count as u32 {
            let encoding = [2, 0, 0, number, value_register];
            let value = 0x1_2345_6700 + u64::from(number) * 8;
            check!(write_register(encoding, value).is_ok(), "write to {:#x}", describe(encoding));
            check_equal!(read_register(encoding), Ok(value), "register {:#x}", describe(encoding));
            check!(read_register([2, 0, 0, number, value_register + 1]).is_ok(), "control register {number}");
        }
    }
    // MDRAR, OSDLR, MDCCINT.
    for encoding in [[2, 0, 1, 0, 0], [2, 0, 1, 3, 4], [2, 0, 0, 2, 0]] {
        let outcome = read_register(encoding);
        check!(outcome.is_ok(), "register {:#x}: {outcome:x?}", describe(encoding));
    }
    Ok(())
}

/// After the breakpoints above were used, so that a hypervisor that lets go of all debug registers then has let go.
fn debug_claim_tags() -> Verdict {
    const SET: Encoding = [2, 0, 7, 8, 6];
    const CLEAR: Encoding = [2, 0, 7, 9, 6];
    check!(write_register(CLEAR, 0xff).is_ok(), "DBGCLAIMCLR_EL1 cannot be written");
    for (register, value, tags) in [(SET, 0x85, 0x85), (SET, 0x12, 0x97), (CLEAR, 0x81, 0x16), (CLEAR, 0xff, 0)] {
        check!(write_register(register, value).is_ok(), "write to {:#x}", describe(register));
        check_equal!(
            read_register(CLEAR),
            Ok(tags),
            "claim tags after writing {value:#x} to {:#x}",
            describe(register)
        );
        check_equal!(read_register(SET), Ok(0xff), "DBGCLAIMSET_EL1, the tags that there are");
    }
    Ok(())
}

/// What belongs to an external debugger holds nothing that somebody else could find there later.
fn debug_mailboxes_hold_nothing() -> Verdict {
    // OSECCR, OSDTRRX, OSDTRTX, which matter while the OS lock is locked; DBGPRCR, OSDLR; DBGDTR_EL0.
    let registers =
        [[2, 0, 0, 6, 2], [2, 0, 0, 0, 2], [2, 0, 0, 3, 2], [2, 0, 1, 4, 4], [2, 0, 1, 3, 4], [2, 3, 0, 4, 0]];
    sysreg::oslar_el1::write(1);
    for encoding in registers {
        // QEMU's CPUs have no DBGPRCR_EL1.
        if encoding == [2, 0, 1, 4, 4] && read_register(encoding).is_err_and(|fault| fault.is_undefined()) {
            continue;
        }
        check!(write_register(encoding, u64::MAX).is_ok(), "write to {:#x}", describe(encoding));
        check_equal!(read_register(encoding), Ok(0), "register {:#x}", describe(encoding));
    }
    sysreg::oslar_el1::write(0);
    check!(write_register([2, 0, 0, 2, 0], u64::MAX).is_ok(), "MDCCINT_EL1 cannot be written");
    check_equal!(read_register([2, 0, 0, 2, 0]), Ok(3 << 29), "MDCCINT_EL1: RX and TX");
    check!(write_register([2, 0, 0, 2, 0], 0).is_ok(), "MDCCINT_EL1 cannot be written");
    Ok(())
}

fn os_lock() -> Verdict {
    sysreg::oslar_el1::write(1);
    check!(sysreg::oslsr_el1::read() & 2 != 0, "OSLSR_EL1 {:#x} after locking", sysreg::oslsr_el1::read());
    sysreg::oslar_el1::write(0);
    check!(sysreg::oslsr_el1::read() & 2 == 0, "OSLSR_EL1 {:#x} after unlocking", sysreg::oslsr_el1::read());
    check!(sysreg::oslsr_el1::read() & 9 == 8, "OSLSR_EL1.OSLM does not say that the lock is there");
    Ok(())
}

/// How `MRS X0, register` ends at EL0.
fn read_at_el0([op0, op1, crn, crm, op2]: Encoding) -> user::End {
    let instruction =
        0xd520_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | u32::from(op0 > 1) << 20;
    user::run(user::ExceptionLevel::User, &[instruction], [0; 31])
}

fn hidden_from_user_too() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has them");
    }
    // On a CPU without them they are undefined at EL0 as at EL1 (EC 0): a trap by EL1's own enables (EC 0x18) would tell that
    // they are there.
    for encoding in [
        [3, 3, 9, 12, 0],  // PMCR_EL0
        [3, 3, 9, 12, 1],  // PMCNTENSET_EL0
        [3, 3, 9, 12, 2],  // PMCNTENCLR_EL0
        [3, 3, 9, 12, 3],  // PMOVSCLR_EL0
        [3, 3, 9, 12, 5],  // PMSELR_EL0
        [3, 3, 9, 12, 6],  // PMCEID0_EL0
        [3, 3, 9, 12, 7],  // PMCEID1_EL0
        [3, 3, 9, 13, 0],  // PMCCNTR_EL0
        [3, 3, 9, 13, 1],  // PMXEVTYPER_EL0
        [3, 3, 9, 13, 2],  // PMXEVCNTR_EL0
        [3, 3, 9, 14, 0],  // PMUSERENR_EL0
        [3, 3, 9, 14, 3],  // PMOVSSET_EL0
        [3, 3, 14, 8, 0],  // PMEVCNTR0_EL0
        [3, 3, 14, 12, 0], // PMEVTYPER0_EL0
        [3, 3, 14, 15, 7], // PMCCFILTR_EL0
        [3, 3, 13, 2, 0],  // AMCR_EL0
        [3, 3, 13, 2, 3],  // AMUSERENR_EL0
        [3, 3, 13, 4, 0],  // AMEVCNTR00_EL0
        [3, 3, 2, 5, 1],   // GCSPR_EL0
        [3, 0, 9, 9, 0],   // PMSCR_EL1
        [3, 0, 10, 4, 7],  // LORID_EL1
        [3, 0, 5, 3, 0],   // ERRIDR_EL1
        [3, 0, 1, 2, 0],   // ZCR_EL1
        [3, 0, 1, 0, 5],   // RGSR_EL1
        [2, 1, 0, 1, 0],   // TRCPRGCTLR
    ] {
        let end = read_at_el0(encoding);
        check!(end.esr >> 26 == 0 && end.elr == 0, "register {:#x} at EL0: ESR {:#x}", describe(encoding), end.esr);
    }
    // MSR PMUSERENR_EL0, X0 at EL1 must not have changed what EL0 is told.
    let _ = write_register([3, 3, 9, 14, 0], 0);
    let end = read_at_el0([3, 3, 9, 13, 0]);
    check!(end.esr >> 26 == 0, "PMCCNTR_EL0 at EL0 after a write of PMUSERENR_EL0: ESR {:#x}", end.esr);
    Ok(())
}

/// CPACR_EL1, and its fields ZEN and SMEN.
const CPACR: [u32; 5] = [3, 0, 1, 0, 2];
const ZEN: u64 = 3 << 16;
const SMEN: u64 = 3 << 24;
/// SCTLR_EL1.EnTP2.
const ENABLE_TPIDR2: u64 = 1 << 60;

/// Whether the CPU is the one that has everything, whatever of it is hidden.
fn is_max() -> bool {
    let midr = sysreg::midr_el1::read();
    (midr >> 24 & 0xff, midr >> 4 & 0xfff) == (0, 0x51)
}

/// What stays different about features that are hidden (decision 0023): the guest's own enables of SVE and SME, and of TPIDR2_EL0 at
/// EL0, are untrapped, and where they are closed their syndromes tell; where they are open all of it is undefined.
fn hidden_behind_the_guests_own_enables() -> Verdict {
    if machine::is_reference() {
        skip!("the bare machine has them");
    }
    // RDVL X0, #1 and PTRUE P0.B; RDSVL X0, #1 and SMSTART.
    let sve: (u64, u64, [u32; 2]) = (ZEN, 0x19, [0x04bf_5020, 0x2518_e3e0]);
    let sme = (SMEN, 0x1d, [0x04bf_5820, 0xd503_477f]);
    let cpacr = read_register(CPACR).unwrap_or(0);
    for (field, class, opcodes) in [sve, sme] {
        for opcode in opcodes {
            for (open, expected) in [(false, if is_max() { class } else { 0 }), (true, 0)] {
                let _ = write_register(CPACR, if open { cpacr | field } else { cpacr & !field });
                sysreg::isb();
                let kernel = execute(opcode, &mut [0; 8]).map_or_else(|fault| fault.class(), |()| u64::MAX);
                let user = user::run(user::ExceptionLevel::User, &[opcode], [0; 31]).esr >> 26;
                let _ = write_register(CPACR, cpacr);
                sysreg::isb();
                check_equal!([kernel, user], [expected; 2], "classes of {opcode:#x} at EL1 and EL0, open: {open}");
            }
        }
    }
    const SCTLR: [u32; 5] = [3, 0, 1, 0, 0];
    let sctlr = sysreg::sctlr_el1::read();
    for (open, expected) in [(false, if is_max() { 0x18 } else { 0 }), (true, 0)] {
        let _ = write_register(SCTLR, if open { sctlr | ENABLE_TPIDR2 } else { sctlr & !ENABLE_TPIDR2 });
        sysreg::isb();
        let user = read_at_el0([3, 3, 13, 0, 5]).esr >> 26;
        let _ = write_register(SCTLR, sctlr);
        sysreg::isb();
        check_equal!(user, expected, "the class of TPIDR2_EL0 at EL0, open: {open}");
    }
    Ok(())
}

fn aarch32_is_refused() -> Verdict {
    check_equal!(sysreg::id_aa64pfr0_el1::read() & 0xff, 0x11, "ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 state only");
    if machine::is_reference() {
        skip!("the bare machine has AArch32");
    }
    const DEVICE: u64 = 0x0901_0000;
    user::map(1, DEVICE, user::Page::Data);
    gic::enable(timer::VIRTUAL_PPI);
    // SUBS R0, R0, #1; BNE; SVC: some instructions in which an interrupt comes. LDR R1, [R0] of a device, by A32 and T32, where nothing
    // may be loaded; in T32 behind it MOVS R2, #1, which must not be skipped into.
    let count = [0xe250_0001, 0x1aff_fffd, 0xef00_0000];
    let cases: [(&str, user::Set32, &[u32], u64); 3] = [
        ("computing", user::Set32::A32, &count, 1 << 24),
        ("a load in A32", user::Set32::A32, &[0xe590_1000, 0xef00_0000], user::address32(1)),
        ("a load in T32", user::Set32::T32, &[0x2201_6801, 0xdf00_df00], user::address32(1)),
    ];
    for (what, set, code, first) in cases {
        let mut x = [0; 31];
        (x[0], x[1]) = (first, 0x55);
        // On a busy machine the interrupt may come before the code has begun, and then no other does.
        let attempt = || {
            sysreg::cntv_tval_el0::write(timer::microseconds(2000));
            sysreg::cntv_ctl_el0::write(timer::ENABLE);
            let end = user::run32(set, code, x);
            timer::stop();
            end
        };
        let mut end = attempt();
        for _ in 0..20 {
            if end.esr >> 26 != EC_ILLEGAL_STATE && set == user::Set32::A32 && code.len() == count.len() {
                end = attempt();
            }
        }
        check!(end.esr >> 26 == EC_ILLEGAL_STATE, "{what}: ESR {:#x} at {:#x}, SPSR {:#x}", end.esr, end.elr, end.spsr);
        check_equal!(end.x[1] as u32, 0x55, "{what}: R1");
    }
    Ok(())
}

fn debug_channel() -> Verdict {
    // MDCCSR_EL0 is a status register: reading it has no effect and never faults at EL1.
    for _ in 0..10 {
        let outcome = read_register([2, 3, 0, 1, 0]);
        check!(outcome.is_ok(), "MDCCSR_EL0: {outcome:x?}");
    }
    check!(write_register([2, 3, 0, 5, 0], 0x41).is_ok(), "DBGDTRTX_EL0 cannot be written");
    Ok(())
}

const RET: u32 = 0xd65f_03c0;

fn breakpoint() -> Verdict {
    let code = memory::pages(1);
    for address in [code, code + 0x100] {
        memory::write32(address, RET);
        instruction::publish(address);
    }
    for round in 0..3 {
        let outcome = debug::breakpoint(code);
        let right = outcome.is_err_and(|fault| fault.class() == EC_BREAKPOINT && fault.elr == code);
        check!(right, "round {round}: {outcome:x?}, expected a breakpoint at {code:#x}");
    }
    let elsewhere = debug::breakpoint(code + 0x100);
    check!(elsewhere.is_err_and(|fault| fault.class() == EC_BREAKPOINT), "second address: {elsewhere:x?}");
    Ok(())
}

fn watchpoint() -> Verdict {
    let page = memory::pages(1);
    for round in 0..3 {
        let write = debug::watchpoint(page + 64, || memory::write32(page + 64, round));
        let right = write
            .is_err_and(|fault| fault.class() == EC_WATCHPOINT && fault.far == page + 64 && fault.esr & 1 << 6 != 0);
        check!(right, "write: {write:x?}, expected a watchpoint at {:#x}", page + 64);
        check_equal!(memory::read32(page + 64), round, "the write went on");
        let read = debug::watchpoint(page + 64, || {
            let _ = memory::read32(page + 64);
        });
        check!(read.is_err_and(|fault| fault.class() == EC_WATCHPOINT && fault.esr & 1 << 6 == 0), "read: {read:x?}");
    }
    let beside = debug::watchpoint(page + 64, || memory::write32(page + 72, 1));
    check!(beside.is_ok(), "write beside it: {beside:x?}");
    Ok(())
}

fn single_step() -> Verdict {
    for round in 0..3 {
        let fault = debug::step();
        let right = fault.is_some_and(|fault| fault.class() == EC_STEP && fault.elr == 4);
        check!(right, "round {round}: {fault:x?}, expected a step exception behind one instruction");
    }
    Ok(())
}
