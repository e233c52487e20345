//! Calls through the debug channel and HVC #0x86: the checks P1-A1 to P1-A15, except A14, which needs a Linux guest.
//!
//! The numbers of the calls are written out here: this payload checks `abi::calls`, from which the hypervisor, the guests'
//! library and the other payloads take them, so that a wrong number there is found.
//!
//! The command line says what the site file does, so that silence at an open door is a failure, and so is an answer at a closed
//! one:
//!
//! | word | site file |
//! |---|---|
//! | (nothing) | `vmware = true` |
//! | `calls=closed` | without it |
//! | `strict` | `vmware-strict = true`: an access that is no call is always an exception |
//! | `quota` | the bounds that [`quotas_are_kept`] and [`levels_call_what_they_may`] name |
//! | `wfe=open` | `wfe = true`, which is the payload `wfe`'s subject; without the word that door must be closed |
//! | `reference` | none: this is the bare machine |
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest::words;
use payload_rt::test::Verdict;
use payload_rt::timer::with_event_stream;
use payload_rt::user::{self, End, ExceptionLevel, Page};
use payload_rt::{
    check, check_equal, cpu, debug, instruction, machine, memory, println, random, skip, sysreg, test, tests, timer,
};

payload_rt::entry!(main);

/// `MRS XZR, MDCCSR_EL0`.
const STATUS: u32 = 0xd533_011f;
/// `HVC #0x86`.
const HVC: u32 = 0xd400_10c2;
/// X7 of a low call.
const LOW: u64 = 0x86_0000_000e;
const MAGIC: u64 = 0x564d_5868;
/// W0 of our own calls.
const OWN_MAGIC: u64 = 0x3176_4355;
/// MDSCR_EL1.TDCC, as Linux sets it.
const TDCC: u64 = 1 << 12;
/// ESR_EL1 of the instruction, when it is an exception.
const ESR_STATUS: u64 = 0x6220_c3e3;
const NO_COMMAND: u64 = 0xffff_ffff;

fn main() {
    if machine::is_reference() {
        test::run(&tests!("doors": absent_without_a_hypervisor));
    }
    if machine::option("calls") == Some("closed") {
        test::run(&tests!("doors": absent_without_a_hypervisor, closed_to_hvc, wfe_as_the_site_file_says));
    }
    announce_log();
    test::run(&tests!("doors":
        p1_a1_version_from_el1, p1_a2_version_from_el0, p1_a3_version_from_el0_although_tdcc_is_set,
        p1_a3_tdcc_stays_away_when_vcpus_take_turns, p1_a4_mdscr_reads_back, p1_a4_mdscr_is_0_when_a_cpu_comes,
        p1_a5_no_call_with_tdcc_is_an_exception, p1_a6_near_misses_are_no_calls,
        p1_a7_no_call_without_tdcc_reads_the_status, p1_a8_who_does_not_call_does_not_exit,
        p1_a9_a_register_as_destination_is_no_call, p1_a10_breakpoint_watchpoint_and_step_work,
        p1_a11_string_across_pages, p1_a11_hvc_faults_at_the_instruction, p1_a12_commands_for_kernels, p1_a13_hvc,
        p1_a15_cpus_at_once, rpc_round_trip, bulk_round_trip_across_pages, bulk_in_untouched_memory, bulk_faults_like_an_access,
        random_registers_harm_nobody, levels_call_what_they_may, quotas_are_kept, wfe_as_the_site_file_says,
    ));
}

/// Whether the command line has this word.
fn says(word: &str) -> bool {
    machine::machine().command_line.split_ascii_whitespace().any(|other| other == word)
}

/// On the bare machine, and at a closed door: a call reads the status and changes nothing, or is an exception where the
/// kernel wants it to be; the library concludes that nobody is there.
fn absent_without_a_hypervisor() -> Verdict {
    check!(!guest::is_vmware() && guest::version().is_none(), "somebody answers");
    for x in [version(), own_version()] {
        for (level, tdcc) in [
            (ExceptionLevel::Kernel, 0),
            (ExceptionLevel::Kernel, TDCC),
            (ExceptionLevel::User, 0),
            (ExceptionLevel::User, TDCC),
        ] {
            sysreg::mdscr_el1::write(tdcc);
            let end = user::run(level, &[STATUS], x);
            sysreg::mdscr_el1::write(0);
            if level == ExceptionLevel::User && tdcc != 0 {
                check_equal!((end.esr, end.elr), (ESR_STATUS, 0), "the exception from {level:?}");
            } else {
                check!(end.is_svc(), "{level:?}, TDCC {tdcc:#x}: ESR {:#x} at {:#x}", end.esr, end.elr);
            }
            check_equal!(end.x, x, "registers from {level:?}, TDCC {tdcc:#x}");
        }
    }
    Ok(())
}

/// At a closed door HVC #0x86 is like every HVC but #0: NOT_SUPPORTED, and nothing else changes.
fn closed_to_hvc() -> Verdict {
    for mut x in [version(), own_version()] {
        for x7 in [0x0e, LOW, 0x18, 0x1c] {
            x[7] = x7;
            let end = user::run(ExceptionLevel::Kernel, &[HVC], x);
            check!(end.is_svc() && end.elr == 8, "ESR {:#x} at {:#x}", end.esr, end.elr);
            check_equal!((end.x[0] as i64, &end.x[1..]), (-1, &x[1..]), "registers with X7 {x7:#x}");
        }
    }
    let end = user::run(ExceptionLevel::User, &[HVC], version());
    check_equal!((end.esr >> 26, end.elr, end.x), (0, 0, version()), "HVC at EL0");
    Ok(())
}

/// The door of WFE is open or closed by itself: closed, a WFE with a word in X0 is one without.
fn wfe_as_the_site_file_says() -> Verdict {
    let is_open = machine::option("wfe") == Some("open");
    let all = [words::DETECT, words::CONFIGURE, words::PAT, words::QUERY].into_iter().chain(words::OWN);
    for word in all {
        let mut x = numbered();
        // A watchdog of a minute, to log: nothing comes of it if it should be armed.
        (x[0], x[1], x[2]) = (word, 60_000, 0);
        for level in [ExceptionLevel::Kernel, ExceptionLevel::User] {
            let end = with_event_stream(|| user::ask(level, &[0xd503_20bf, 0xd503_205f, 0xd503_205f], x));
            check!(end.is_svc() && end.elr == 16, "{level:?}: ESR {:#x} at {:#x}", end.esr, end.elr);
            if !is_open {
                check_equal!(end.x, x, "registers after a WFE from {level:?}");
            } else {
                check!(end.x[0] != word && end.x[2..] == x[2..], "{level:?}: X0 {:#x} after {word:#x}", end.x[0]);
            }
        }
    }
    if is_open {
        let calls = guest::detect().map(|features| features & 2 != 0);
        check_equal!(calls, Some(machine::option("calls") != Some("closed")), "the feature bit of the other doors");
        check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
        check_equal!(guest::configure_own_watchdog(0, 0), Some(Ok(0)), "disarming its own");
    } else if let Some(version) = guest::version() {
        check_equal!(version.features & 4, 0, "the feature bit of the WFE channel");
    }
    Ok(())
}

/// Registers of the version of our own calls.
fn own_version() -> [u64; 31] {
    let mut x = numbered();
    (x[0], x[2], x[3], x[7]) = (OWN_MAGIC, 0, 0x5543, LOW);
    x
}

fn numbered() -> [u64; 31] {
    core::array::from_fn(|number| 0x1111_0000_0000_0000 + number as u64)
}

/// Registers of GETVERSION, with garbage where it does not matter.
fn version() -> [u64; 31] {
    let mut x = numbered();
    x[0] = 0xffff_0000_0000 | MAGIC;
    x[1] = 0xa9b2_a797;
    x[2] = 0xffff_0000_000a;
    x[3] = 0xabcd_0000_5658;
    x[7] = LOW;
    x
}

/// The answer to [`version`] and nothing else.
fn check_version(end: &End, before: &[u64; 31]) -> Verdict {
    check!(end.is_svc(), "it ended with ESR {:#x} at {:#x}", end.esr, end.elr);
    check_equal!(end.elr, 8, "where it ended");
    let mut expected = *before;
    expected[..3].copy_from_slice(&[6, MAGIC, 2]);
    check_equal!(end.x, expected, "registers");
    check_equal!((end.sp, end.spsr >> 28), (0x5a5a_5a50, 0xa), "stack pointer and flags");
    Ok(())
}

fn p1_a1_version_from_el1() -> Verdict {
    check_version(&user::run(ExceptionLevel::Kernel, &[STATUS], version()), &version())
}

fn p1_a2_version_from_el0() -> Verdict {
    sysreg::mdscr_el1::write(0);
    check_version(&user::run(ExceptionLevel::User, &[STATUS], version()), &version())
}

fn p1_a3_version_from_el0_although_tdcc_is_set() -> Verdict {
    sysreg::mdscr_el1::write(TDCC);
    let end = user::run(ExceptionLevel::User, &[STATUS], version());
    sysreg::mdscr_el1::write(0);
    check_version(&end, &version())
}

static TURNS_ARE_OVER: AtomicBool = AtomicBool::new(false);

/// Computes until it is told that it is enough.
fn keep_busy(_: usize) {
    while !TURNS_ARE_OVER.load(Ordering::SeqCst) {
        cpu::relax();
    }
}

/// As [`p1_a3_version_from_el0_although_tdcc_is_set`], after this vCPU's registers were moved to memory and back: the others
/// are busy, and there are more of them than CPUs, so one of them runs here while this one sleeps.
fn p1_a3_tdcc_stays_away_when_vcpus_take_turns() -> Verdict {
    if cpu::count() == 1 {
        skip!("there is one CPU");
    }
    TURNS_ARE_OVER.store(false, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check!(cpu::start(index, keep_busy).is_ok(), "CPU {index} did not start");
    }
    sysreg::mdscr_el1::write(TDCC);
    let mut verdict = Ok(());
    for _ in 0..20 {
        timer::sleep(3000);
        verdict = verdict.and(check_version(&user::run(ExceptionLevel::User, &[STATUS], version()), &version()));
    }
    let seen = sysreg::mdscr_el1::read();
    sysreg::mdscr_el1::write(0);
    TURNS_ARE_OVER.store(true, Ordering::SeqCst);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} is still on");
    }
    check_equal!(seen, TDCC, "MDSCR_EL1");
    verdict
}

fn p1_a4_mdscr_reads_back() -> Verdict {
    sysreg::mdscr_el1::write(TDCC);
    let seen = sysreg::mdscr_el1::read();
    sysreg::mdscr_el1::write(0);
    check_equal!(seen, TDCC, "MDSCR_EL1");
    check_equal!(sysreg::mdscr_el1::read(), 0, "MDSCR_EL1 afterwards");
    Ok(())
}

static MDSCR_AT_START: AtomicU64 = AtomicU64::new(u64::MAX);

/// A CPU that is switched on begins with MDSCR_EL1 = 0, whatever it was when it was switched off.
fn p1_a4_mdscr_is_0_when_a_cpu_comes() -> Verdict {
    if cpu::count() == 1 {
        skip!("there is one CPU");
    }
    for round in 0..2 {
        let started = cpu::start(1, |_| {
            MDSCR_AT_START.store(sysreg::mdscr_el1::read(), Ordering::SeqCst);
            sysreg::mdscr_el1::write(TDCC | 1 << 13);
        });
        check!(started.is_ok() && cpu::wait_off(1), "CPU 1 did not come, or not go");
        check_equal!(MDSCR_AT_START.load(Ordering::SeqCst), 0, "MDSCR_EL1 in round {round}");
    }
    Ok(())
}

fn p1_a5_no_call_with_tdcc_is_an_exception() -> Verdict {
    sysreg::mdscr_el1::write(TDCC);
    let mut x = numbered();
    x[7] = 0;
    let end = user::run(ExceptionLevel::User, &[STATUS], x);
    // So are the other registers of the channel, MDCCSR_EL0's neighbours DBGDTRRX_EL0 and DBGDTR_EL0.
    let data = user::run(ExceptionLevel::User, &[0xd533_0500], x);
    let kernel = user::run(ExceptionLevel::Kernel, &[STATUS], x);
    sysreg::mdscr_el1::write(0);
    check_equal!((end.esr, end.elr, end.x), (ESR_STATUS, 0, x), "exception and registers");
    check_equal!((data.esr >> 26, data.elr), (0x18, 0), "reading DBGDTRRX_EL0");
    if says("strict") {
        check_equal!((kernel.esr, kernel.elr, kernel.x), (ESR_STATUS, 0, x), "exception and registers at EL1");
    } else {
        check!(kernel.is_svc() && kernel.x == x, "EL1 got ESR {:#x}", kernel.esr);
    }
    Ok(())
}

fn p1_a6_near_misses_are_no_calls() -> Verdict {
    sysreg::mdscr_el1::write(TDCC);
    let calls = guest::exits("call").unwrap_or(0);
    let marks = [0x85u64, 0x87, 0x186, 0].map(|mark| mark << 32 | 0x0e);
    let bits = (5..32).map(|bit| LOW | 1 << bit);
    let mut wrong = None;
    for x7 in marks.into_iter().chain([0x86, LOW | 3, 0x8600_000e]).chain(bits) {
        let mut x = version();
        x[7] = x7;
        let end = user::run(ExceptionLevel::User, &[STATUS], x);
        if (end.esr, end.x) != (ESR_STATUS, x) {
            wrong = Some(x7);
        }
    }
    sysreg::mdscr_el1::write(0);
    check_equal!(wrong, None, "X7 that was taken for a call");
    // Only the calls that ask for the statistics were ones.
    let after = guest::exits("call").unwrap_or(0);
    check!(after - calls < 40, "{} calls", after - calls);
    // Right form, wrong magic or port: a port where nothing is.
    for (x0, port) in [(MAGIC ^ 1, 0x5658), (MAGIC, 0x5657), (MAGIC, 0x60), (0, 0x5543)] {
        let mut x = version();
        (x[0], x[3]) = (x0, port);
        let end = user::run(ExceptionLevel::User, &[STATUS], x);
        x[0] = NO_COMMAND;
        check!(end.is_svc() && end.x == x, "port {port:#x}: ESR {:#x}, X0 {:#x}", end.esr, end.x[0]);
    }
    Ok(())
}

fn p1_a7_no_call_without_tdcc_reads_the_status() -> Verdict {
    sysreg::mdscr_el1::write(0);
    let mut x = numbered();
    x[7] = 0;
    // MRS X5, MDCCSR_EL0.
    for level in [ExceptionLevel::User, ExceptionLevel::Kernel] {
        let end = user::run(level, &[0xd533_0105], x);
        if says("strict") {
            check_equal!((end.esr, end.elr, end.x), (0x6220_c0a3, 0, x), "exception at {level:?}");
        } else {
            let mut expected = x;
            expected[5] = 1 << 29;
            check!(end.is_svc(), "{level:?} got ESR {:#x}", end.esr);
            check_equal!(end.x, expected, "registers, TXfull in X5");
        }
    }
    Ok(())
}

fn p1_a8_who_does_not_call_does_not_exit() -> Verdict {
    let before = guest::exits("call").unwrap_or(0);
    // 10^6 rounds: MOVZ X0, #16, LSL #16; SUBS X0, X0, #1; B.NE.
    let end = user::run(ExceptionLevel::User, &[0xd2a0_0200, 0xf100_0400, 0x54ff_ffe1], numbered());
    check!(end.is_svc(), "ESR {:#x}", end.esr);
    let own = guest::exits("call").unwrap_or(0);
    let again = guest::exits("call").unwrap_or(0);
    check_equal!(own - before, again - own, "calls beyond those that asked");
    Ok(())
}

fn p1_a9_a_register_as_destination_is_no_call() -> Verdict {
    sysreg::mdscr_el1::write(TDCC);
    let end = user::run(ExceptionLevel::User, &[0xd533_0103], version());
    sysreg::mdscr_el1::write(0);
    check_equal!((end.esr & !0x3e0, end.elr, end.x), (ESR_STATUS & !0x3e0, 0, version()), "MRS X3, MDCCSR_EL0");
    Ok(())
}

fn p1_a10_breakpoint_watchpoint_and_step_work() -> Verdict {
    let code = memory::pages(1);
    memory::write32(code, 0xd65f_03c0);
    instruction::publish(code);
    check!(debug::breakpoint(code).is_err_and(|fault| fault.esr >> 26 == 0x31), "no breakpoint exception");
    check!(debug::watchpoint(code, || memory::write64(code + 8, 1)).is_ok(), "a watchpoint where none is");
    let hit = debug::watchpoint(code + 8, || memory::write64(code + 8, 1));
    check!(hit.is_err_and(|fault| fault.esr >> 26 == 0x35), "no watchpoint exception");
    check!(debug::step().is_some_and(|fault| fault.esr >> 26 == 0x33 && fault.elr == 4), "no step exception");
    // All registers of the kind keep what is written, and those that are not there are undefined.
    let dfr0 = sysreg::id_aa64dfr0_el1::read();
    let (breakpoints, watchpoints) = ((dfr0 >> 12 & 15) as u32 + 1, (dfr0 >> 20 & 15) as u32 + 1);
    for (count, op2) in [(breakpoints, 4), (watchpoints, 6)] {
        for number in 0..count {
            let value = 0x4000_0000 + 0x1000 * u64::from(number);
            let written = instruction::write_register([2, 0, 0, number, op2], value);
            check!(written.is_ok(), "register {number} of {op2}");
        }
        for number in 0..count {
            let read = instruction::read_register([2, 0, 0, number, op2]).unwrap_or(0);
            check_equal!(read, 0x4000_0000 + 0x1000 * u64::from(number), "register {number} of {op2}");
        }
    }
    Ok(())
}

/// Registers of a string to the log port.
fn string(at: u64, length: u64) -> [u64; 31] {
    let mut x = numbered();
    (x[2], x[3], x[4], x[7]) = (length, 0x5543, at, 0x86_0000_0018);
    x
}

/// Letter number `offset` of the strings: no two of 64 neighbours are alike, and no page is like another.
fn letter(offset: u64) -> u8 {
    b'!' + (offset % 89) as u8
}

/// Where the string of [`p1_a11_string_across_pages`] begins in its two pages, and how long it is.
const STRING: (u64, u64) = (4096 - 128, 300);

/// Says what the hypervisor's log is to say of that string, for the gate to compare: what is taken of a page makes a line.
fn announce_log() {
    if !test::is_selected("doors::p1_a11_string_across_pages") {
        return;
    }
    let (start, length) = STRING;
    for (from, to) in [(start, 4096), (4096, start + length)] {
        let mut line = [0; 256];
        let line = &mut line[..(to - from) as usize];
        line.iter_mut().zip(from..).for_each(|(byte, offset)| *byte = letter(offset));
        println!("# log: {}", core::str::from_utf8(line).unwrap_or("?"));
    }
}

fn p1_a11_string_across_pages() -> Verdict {
    let pages = memory::pages(2);
    for offset in 0..8192 {
        memory::write8(pages + offset, letter(offset));
    }
    user::map(1, pages, Page::ReadOnly);
    user::map(2, pages + 4096, Page::ReadOnly);
    let (start, length) = STRING;
    let at = user::address(1) + start;
    let end = user::run(ExceptionLevel::User, &[STATUS], string(at, length));
    check!(end.is_svc() && end.elr == 8, "ESR {:#x} at {:#x}", end.esr, end.elr);
    let mut expected = string(at, length);
    (expected[2], expected[4]) = (0, at + length);
    check_equal!(end.x, expected, "registers");
    // The second page is missing, or the kernel's own.
    for (page, status) in [(Page::Missing, 0x07), (Page::Kernel, 0x0f)] {
        user::map(2, pages + 4096, page);
        let end = user::run(ExceptionLevel::User, &[STATUS], string(at, length));
        check_equal!((end.esr, end.elr), (0x9200_0000 | status, 0), "data abort, at the instruction");
        check_equal!(
            (end.far, end.x[2], end.x[4]),
            (user::address(2), length - 128, user::address(2)),
            "FAR, X2 and X4"
        );
    }
    user::map(2, pages + 4096, Page::ReadOnly);
    Ok(())
}

/// As the debug channel, HVC #0x86 begins anew after a fault, and for what is left of a string: PC is behind an HVC when it
/// is taken, and has to be moved back.
fn p1_a11_hvc_faults_at_the_instruction() -> Verdict {
    let pages = memory::pages(2);
    for offset in 0..8192 {
        memory::write8(pages + offset, letter(offset));
    }
    user::map(1, pages, Page::Data);
    user::map(2, pages + 4096, Page::Missing);
    let mut x = string(user::address(2) - 16, 40);
    x[7] = 0x18;
    let end = user::run(ExceptionLevel::Kernel, &[HVC], x);
    check_equal!((end.esr, end.elr, end.far), (0x9600_0007, 0, user::address(2)), "data abort, at the instruction");
    check_equal!((end.x[2], end.x[4]), (24, user::address(2)), "X2 and X4");
    user::map(2, pages + 4096, Page::Data);
    let end = user::run(ExceptionLevel::Kernel, &[HVC], x);
    check!(end.is_svc() && end.elr == 8, "with all pages: ESR {:#x} at {:#x}", end.esr, end.elr);
    check_equal!((end.x[2], end.x[4]), (0, user::address(2) + 24), "X2 and X4");
    // A bulk transfer changes nothing before its fault.
    let channel = open();
    let _ = guest::low(0x1_001e, 24, channel);
    user::map(2, pages + 4096, Page::Missing);
    let mut x = bulk(0x18, channel, user::address(2) - 8, 24);
    x[7] = 0x18;
    let end = user::run(ExceptionLevel::Kernel, &[HVC], x);
    check_equal!((end.esr, end.elr, end.far), (0x9600_0007, 0, user::address(2)), "data abort of a bulk transfer");
    check_equal!(end.x, x, "registers");
    let _ = guest::low(0x6_001e, 0, channel);
    Ok(())
}

fn p1_a12_commands_for_kernels() -> Verdict {
    let mut x = version();
    x[2] = 85;
    let user = user::run(ExceptionLevel::User, &[STATUS], x);
    check_equal!((user.x[0], &user.x[1..]), (NO_COMMAND, &x[1..]), "from EL0");
    check_equal!(user::run(ExceptionLevel::Kernel, &[STATUS], x).x[0], 0, "from EL1");
    Ok(())
}

fn p1_a13_hvc() -> Verdict {
    let mut x = version();
    x[7] = 0x0e;
    check_version(&user::run(ExceptionLevel::Kernel, &[HVC], x), &x)?;
    // Another immediate, and no call at all, are no calls of this kind: NOT_SUPPORTED, as for all unknown ones.
    let mut none = x;
    none[7] = 0x0f;
    for (code, x) in [(0xd400_10a2, x), (HVC, none)] {
        let end = user::run(ExceptionLevel::Kernel, &[code], x);
        check!(end.is_svc() && end.x[0] as i64 == -1 && end.x[1..] == x[1..], "{code:#x}: ESR {:#x}", end.esr);
    }
    let end = user::run(ExceptionLevel::User, &[HVC], x);
    check_equal!((end.esr >> 26, end.elr, end.x), (0, 0, x), "HVC at EL0");
    Ok(())
}

static HAMMERED: AtomicU64 = AtomicU64::new(0);
static MIXED: AtomicU32 = AtomicU32::new(0);

/// Calls of one CPU: as many as P1-A15 asks for.
const CALLS: u64 = 100_000;
/// Pairs of messages among them: 25 calls each, one for every four bytes there and back, so this is half of all.
const MESSAGES: u64 = 2000;

/// Half of the calls have nothing in common with those of other CPUs but the way; the other half are messages on a channel
/// of this CPU's own, which all CPUs' calls carry on by turns, to one store. Each reply is this CPU's, and each value
/// in the store is one that some CPU has written as a whole.
fn hammer(index: usize) {
    for round in 0..CALLS / 2 {
        let argument = (index as u64) << 28 | round;
        // An unknown command leaves X1 alone.
        let x = guest::low(0x77, argument, [index as u64, round, 9]);
        if x[..6] != [NO_COMMAND, argument, 0x77, (index as u64) << 16 | 0x5658, round, 9] {
            MIXED.fetch_add(1, Ordering::SeqCst);
        }
    }
    let channel = open();
    let mut reply = [0; 32];
    let own = [b"info-set guestinfo.own0 ", b"info-set guestinfo.own1 ", b"info-set guestinfo.own2 "];
    for round in 0..MESSAGES {
        let text = [round / 1000 % 10, round / 100 % 10, round / 10 % 10, round % 10].map(|digit| b'0' + digit as u8);
        // This CPU's own value, in every second round; else the one that all share, which is twice the same.
        let (set, value): (&[u8], [u8; 10]) = match round % 2 {
            0 => (own[index % 3], padded(index, text, *b"mine ")),
            _ => (
                b"info-set guestinfo.test ",
                padded(index, text, [b'a' + index as u8, text[0], text[1], text[2], text[3]]),
            ),
        };
        let mut message = [0; 34];
        message[..set.len()].copy_from_slice(set);
        message[set.len()..set.len() + 10].copy_from_slice(&value);
        let sent = guest::exchange(channel, &message[..set.len() + 10], &mut reply);
        let mut good = sent == Ok(2) && reply[..2] == *b"1 ";
        let get = &mut message[..set.len() - 1];
        get[5..8].copy_from_slice(b"get");
        let got = guest::exchange(channel, get, &mut reply);
        good &= got == Ok(12) && reply[..2] == *b"1 ";
        good &= match round % 2 {
            0 => reply[2..12] == value,
            _ => reply[2..7] == reply[7..12] && (b'a'..b'd').contains(&reply[2]),
        };
        if !good {
            MIXED.fetch_add(1, Ordering::SeqCst);
        }
    }
    let _ = guest::low(0x6_001e, 0, channel);
    HAMMERED.fetch_add(1, Ordering::SeqCst);
}

/// A value of ten bytes: who, the round, and five more.
fn padded(index: usize, text: [u8; 4], more: [u8; 5]) -> [u8; 10] {
    let mut value = [b'a' + index as u8; 10];
    value[1..5].copy_from_slice(&text);
    value[5..].copy_from_slice(&more);
    value
}

fn p1_a15_cpus_at_once() -> Verdict {
    let others = 1..cpu::count().min(3);
    if others.is_empty() {
        skip!("there is one CPU");
    }
    for index in others.clone() {
        check!(cpu::start(index, hammer).is_ok(), "CPU {index} did not start");
    }
    hammer(0);
    let all = 1 + others.len() as u64;
    let done = timer::wait_until(120_000, || HAMMERED.load(Ordering::SeqCst) == all);
    check!(done, "{} of {all} CPUs came to their ends", HAMMERED.load(Ordering::SeqCst));
    for index in others {
        check!(cpu::wait_off(index), "CPU {index} is still on");
    }
    check_equal!(MIXED.load(Ordering::SeqCst), 0, "wrong answers");
    Ok(())
}

fn rpc_round_trip() -> Verdict {
    let mut reply = [0; 64];
    check_equal!(guest::ask(b"info-set guestinfo.test one two", &mut reply), Ok(&b"1 "[..]), "info-set");
    check_equal!(guest::ask(b"info-get guestinfo.test", &mut reply), Ok(&b"1 one two"[..]), "info-get");
    check_equal!(guest::ask(b"info-get guestinfo.none", &mut reply), Ok(&b"0 No value found"[..]), "no value");
    check!(guest::version().is_some() && guest::clock().is_some(), "our own calls");
    Ok(())
}

/// A bulk call on an open channel.
fn bulk(code: u64, channel: [u64; 3], at: u64, length: u64) -> [u64; 31] {
    let [id, high, low] = channel;
    let mut x = numbered();
    let addresses = if code == 0x18 { [at, low, high] } else { [high, at, low] };
    x[..4].copy_from_slice(&[MAGIC, 0x1_0000, length, id << 16 | 0x5659]);
    x[4..7].copy_from_slice(&addresses);
    x[7] = 0x86 << 32 | code;
    x
}

fn open() -> [u64; 3] {
    let x = guest::low(0x1e, 0xc943_5052, [0; 3]);
    [x[3] >> 16, x[4], x[5]]
}

const LENGTH: u64 = 60_000;

fn bulk_round_trip_across_pages() -> Verdict {
    let pages = memory::pages(16);
    let text = b"info-set guestinfo.large ";
    for (offset, &byte) in (0..).zip(text) {
        memory::write8(pages + 100 + offset, byte);
    }
    for offset in text.len() as u64..LENGTH {
        memory::write8(pages + 100 + offset, letter(offset));
    }
    for page in 0..16 {
        user::map(1 + page, pages + 4096 * page, Page::Data);
    }
    let channel = open();
    check_equal!(guest::low(0x1_001e, LENGTH, channel)[2], 0x81_0000, "status of SENDSIZE");
    let x = bulk(0x18, channel, user::address(1) + 100, LENGTH);
    let end = user::run(ExceptionLevel::User, &[STATUS], x);
    check!(end.is_svc() && end.x == x, "ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
    check_equal!(guest::low(0x3_001e, 0, channel)[1], 2, "length of the reply");
    // The answer is the value, behind "1 ".
    let get = b"info-get guestinfo.large";
    let _ = guest::low(0x1_001e, get.len() as u64, channel);
    for part in get.chunks(4) {
        let word = part.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let _ = guest::low(0x2_001e, word, channel);
    }
    let length = LENGTH - text.len() as u64 + 2;
    check_equal!(guest::low(0x3_001e, 0, channel)[1], length, "length of the value");
    for offset in (0..16 * 4096).step_by(8) {
        memory::write64(pages + offset, 0);
    }
    let x = bulk(0x1c, channel, user::address(1) + 7, length);
    let end = user::run(ExceptionLevel::User, &[STATUS], x);
    check!(end.is_svc() && end.x == x, "ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
    check_equal!((memory::read8(pages + 7), memory::read8(pages + 8)), (b'1', b' '), "first bytes");
    for offset in 2..length {
        let expected = letter(offset - 2 + text.len() as u64);
        check_equal!(memory::read8(pages + 7 + offset), expected, "byte {offset} of the value");
    }
    check_equal!((memory::read8(pages + 6), memory::read8(pages + 7 + length)), (0, 0), "the bytes around it");
    check_equal!(guest::low(0x6_001e, 0, channel)[2], 0x1_0000, "status of CLOSE");
    Ok(())
}

/// Buffers of whose pages each lies in a block of RAM that was never touched: both doors begin the call anew until all of them are
/// ready, and then it was made once.
fn bulk_in_untouched_memory() -> Verdict {
    const PAGES: u64 = 4;
    let mut blocks = memory::untouched_blocks();
    let mut map = || {
        let mut places = [0; PAGES as usize];
        let count = places.iter_mut().zip(&mut blocks).map(|(place, block)| *place = block).count();
        (1..).zip(places).for_each(|(number, place)| user::map(number, place, Page::Data));
        (count == PAGES as usize).then_some(places)
    };
    let channel = open();
    let mut reply = [0; 64];
    for (level, code, call) in [(ExceptionLevel::User, STATUS, 0x86 << 32), (ExceptionLevel::Kernel, HVC, 0)] {
        // Zeroes: no command.
        check!(map().is_some(), "too little RAM that nothing lies in");
        let _ = guest::low(0x1_001e, PAGES * 4096, channel);
        let mut x = bulk(0x18, channel, user::address(1), PAGES * 4096);
        x[7] = call | 0x18;
        let end = user::run(level, &[code], x);
        check!(end.is_svc() && end.x == x, "{level:?} sends: ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
        let length = guest::low(0x3_001e, 0, channel)[1];
        check!((2..100).contains(&length), "the reply to no command has {length} bytes");

        // What comes back crosses a page.
        check!(map().is_some(), "too little RAM that nothing lies in");
        let mut x = bulk(0x1c, channel, user::address(2) - 1, length);
        x[7] = call | 0x1c;
        let end = user::run(level, &[code], x);
        check!(end.is_svc() && end.x == x, "{level:?} receives: ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
    }
    check_equal!(guest::low(0x6_001e, 0, channel)[2], 0x1_0000, "status of CLOSE");
    check_equal!(guest::ask(b"info-get guestinfo.none", &mut reply), Ok(&b"0 No value found"[..]), "after all that");
    Ok(())
}

fn bulk_faults_like_an_access() -> Verdict {
    let pages = memory::pages(2);
    user::map(1, pages, Page::Data);
    let channel = open();
    let _ = guest::low(0x1_001e, 24, channel);
    for (page, level, esr) in [
        (Page::Missing, ExceptionLevel::User, 0x9200_0007u64),
        (Page::Kernel, ExceptionLevel::User, 0x9200_000f),
        (Page::Missing, ExceptionLevel::Kernel, 0x9600_0007),
    ] {
        user::map(2, pages + 4096, page);
        let x = bulk(0x18, channel, user::address(2) - 8, 24);
        let end = user::run(level, &[STATUS], x);
        check_equal!((end.esr, end.elr, end.far, end.x), (esr, 0, user::address(2), x), "{page:?} from {level:?}");
    }
    // A destination that may only be read, and memory that is none.
    memory::write64(pages + 4088, u64::from_le_bytes(*b"info-get"));
    user::map(2, pages + 4096, Page::Data);
    for (offset, &byte) in (0..).zip(b" guestinfo.test ") {
        memory::write8(pages + 4096 + offset, byte);
    }
    let end = user::run(ExceptionLevel::User, &[STATUS], bulk(0x18, channel, user::address(2) - 8, 24));
    check!(end.is_svc() && end.x[1] == 0x1_0000, "ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
    let length = guest::low(0x3_001e, 0, channel)[1];
    user::map(2, pages + 4096, Page::ReadOnly);
    let x = bulk(0x1c, channel, user::address(2), length);
    let end = user::run(ExceptionLevel::User, &[STATUS], x);
    check_equal!((end.esr, end.far, end.x), (0x9200_004f, user::address(2), x), "read-only destination");
    user::map(2, 0x0900_0000, Page::Data);
    let end = user::run(ExceptionLevel::User, &[STATUS], x);
    check!(end.is_svc() && end.x[1] == 0, "a device: ESR {:#x}, X1 {:#x}", end.esr, end.x[1]);
    user::map(2, pages + 4096, Page::Missing);
    let _ = guest::low(0x6_001e, 0, channel);
    Ok(())
}

fn random_registers_harm_nobody() -> Verdict {
    let mut random = random::Random::new(machine::option_number("seed", 1));
    let data = memory::pages(1);
    user::map(1, data, Page::Data);
    for round in 0..machine::option_number("loops", 20_000) {
        let mut x: [u64; 31] = core::array::from_fn(|_| random.word());
        x[7] = 0x86 << 32 | x[7] & 0x3f;
        if round & 1 == 0 {
            x[0] = MAGIC;
            x[2] = if round & 2 == 0 { x[2] & 0x7_0000 | 0x1e } else { x[2] & 0xffff };
            x[3] = x[3] & 0x7_0000 | if round & 4 == 0 { 0x5658 } else { 0x5659 };
            x[4] = user::address(1) + x[4] % 8192;
            x[5] = user::address(1) + x[5] % 8192;
        }
        let level = if round & 8 == 0 { ExceptionLevel::User } else { ExceptionLevel::Kernel };
        let end = user::run(level, &[STATUS], x);
        check_equal!(&end.x[7..], &x[7..], "X7 to X30 in round {round}");
    }
    check!(guest::is_vmware(), "nobody answers any more");
    Ok(())
}

/// With the word `quota`, the site file keeps the time from EL0.
fn levels_call_what_they_may() -> Verdict {
    if !says("quota") {
        skip!("no `quota` on the command line");
    }
    let mut x = version();
    x[2] = 46;
    let user = user::run(ExceptionLevel::User, &[STATUS], x);
    check_equal!((user.x[0], &user.x[1..]), (NO_COMMAND, &x[1..]), "registers at EL0");
    let kernel = user::run(ExceptionLevel::Kernel, &[STATUS], x);
    check!(kernel.x[0] == MAGIC && kernel.x[3] | kernel.x[4] << 32 > 1_700_000_000, "X0 {:#x} at EL1", kernel.x[0]);
    check_version(&user::run(ExceptionLevel::User, &[STATUS], version()), &version())
}

/// With the word `quota`, the site file grants 8 channels, messages of 61,000 bytes, 7 keys, 128 KiB in them, and 1 KiB
/// of log a second. What is too much is an error, and what was there stays.
fn quotas_are_kept() -> Verdict {
    if !says("quota") {
        skip!("no `quota` on the command line");
    }
    let mut reply = [0; 64];
    check_equal!(guest::ask(b"info-set guestinfo.test kept", &mut reply), Ok(&b"1 "[..]), "a value");
    // One channel more than there are: the first one is given up, the last one works.
    let channels: [[u64; 3]; 9] = core::array::from_fn(|_| open());
    check_equal!(guest::low(0x1_001e, 4, channels[0])[2], 0x4_0000, "status of the first channel");
    check_equal!(guest::low(0x1_001e, 61_000, channels[8])[2], 0x81_0000, "the longest message");
    check_equal!(guest::low(0x1_001e, 61_001, channels[8])[2], 0, "a longer one");
    for channel in channels {
        let _ = guest::low(0x6_001e, 0, channel);
    }
    // Keys, of which earlier tests have left some.
    let (mut taken, mut refused) = (0, 0);
    for key in
        [b"info-set guestinfo.a 1", b"info-set guestinfo.b 1", b"info-set guestinfo.c 1", b"info-set guestinfo.d 1"]
    {
        let said = guest::ask(key, &mut reply);
        taken += u32::from(said == Ok(b"1 "));
        refused += u32::from(said == Ok(b"0 Too many keys"));
    }
    check_equal!(taken + refused, 4, "keys taken or refused");
    check!((1..4).contains(&refused), "{refused} of 4 keys were refused");
    // The log: a burst is let through, then it is enough.
    let mut line = [b'.'; 200];
    line[..4].copy_from_slice(b"log ");
    let mut heard = 0;
    for _ in 0..200 {
        if guest::ask(&line, &mut reply) == Ok(&b"1 "[..]) {
            heard += 1;
        }
    }
    check!((1..100).contains(&heard), "{heard} of 200 lines were taken");
    check_equal!(guest::ask(b"info-get guestinfo.test", &mut reply), Ok(&b"1 kept"[..]), "the value");
    Ok(())
}
