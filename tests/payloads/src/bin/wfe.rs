//! The WFE channel and the watchdog: the checks P4-A0 to P4-A12.
//!
//! `wfe = true` and `vmware = true` in the site file; the latter for the counts of exits and for a value that outlives a
//! reset. P4-A2 is the one for the bare machine: there it is all that is run. Not every machine traps WFE; where this one does not, the tests are skipped and say so.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest::words;
use payload_rt::test::{Stop, Verdict};
use payload_rt::user::{self, Level};
use payload_rt::{check, check_equal, cpu, machine, println, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

const SEVL: u32 = 0xd503_20bf;
const WFE: u32 = 0xd503_205f;
const WFI: u32 = 0xd503_207f;

/// What `guestinfo.wfe`, which outlives a reset, says in the second life.
const RESET_EXPECTED: &[u8] = b"1 reset expected";

fn main() {
    if machine::is_reference() {
        test::run(&tests!("wfe": p4_a2_absent_without_a_hypervisor));
    }
    if traps() {
        bring_reset_about();
        if let Some(Err(why)) = guest::query_watchdog() {
            AT_START.store(why, Ordering::SeqCst);
        }
    }
    test::run(&tests!("wfe":
        p4_a0_wfe_traps, p4_a1_detect, p4_a3_an_ordinary_wfe_completes,
        p4_a4_near_misses, p4_a5_event_register, p4_a8_disarm_and_reconfigure, p4_a6_pats_keep_it_quiet,
        p4_a9_level_0, own_watchdogs, p4_a10_spinlock_with_events, p4_a11_other_waits,
        p4_a7_acts_although_masked, p4_a7_acts_during_wfi, p4_a12_reset_clears_the_watchdog,
    ));
}

/// Whether a WFE that would wait reaches the hypervisor here.
fn traps() -> bool {
    !machine::is_reference() && guest::detect().is_some()
}

macro_rules! need_traps {
    () => {
        if !traps() {
            skip!("WFE does not trap on this machine, or nobody is there");
        }
    };
}

fn numbered(word: u64) -> [u64; 31] {
    core::array::from_fn(|number| if number == 0 { word } else { 0x2222_0000_0000_0000 + number as u64 })
}

/// The event stream, so that no WFE waits for ever.
fn with_event_stream<R>(body: impl FnOnce() -> R) -> R {
    let before = sysreg::cntkctl_el1::read();
    sysreg::cntkctl_el1::write(before | 1 << 2 | 8 << 4);
    let result = body();
    sysreg::cntkctl_el1::write(before);
    result
}

fn p4_a0_wfe_traps() -> Verdict {
    if machine::is_reference() || !guest::is_vmware() {
        skip!("nobody answers here");
    }
    // The other doors say whether this one is open, which the hypervisor has tried when it started.
    let told = guest::version().is_some_and(|version| version.features & 4 != 0);
    check_equal!(told, traps(), "the feature bit, and whether somebody answers");
    // Not a matter of right or wrong: the tests below are skipped where it does not.
    if !traps() {
        skip!("WFE does not trap on this machine, or its door is closed");
    }
    Ok(())
}

fn p4_a1_detect() -> Verdict {
    need_traps!();
    for level in [Level::Kernel, Level::User] {
        let end = user::run(level, &[SEVL, WFE, WFE], numbered(words::DETECT));
        check!(end.is_svc() && end.elr == 16, "{level:?}: ESR {:#x} at {:#x}", end.esr, end.elr);
        let mut expected = numbered(words::AGENT);
        expected[1] = end.x[1];
        check_equal!(end.x, expected, "registers from {level:?}");
        check_equal!((end.spsr >> 28, end.sp), (0xa, 0x5a5a_5a50), "flags and stack pointer");
        // The watchdogs are for the kernel alone here.
        let watchdogs = if level == Level::Kernel { 1 | 4 } else { 0 };
        check_equal!(end.x[1], 1 << 32 | 2 | watchdogs, "version and features for {level:?}");
    }
    Ok(())
}

/// On the bare machine, with the word `reference`: whoever asks finds out that nobody is there, at both levels, and no
/// register is the worse for it.
fn p4_a2_absent_without_a_hypervisor() -> Verdict {
    check_equal!(with_event_stream(guest::detect), None, "detection");
    for level in [Level::Kernel, Level::User] {
        let x = numbered(words::DETECT);
        // The first WFE takes the event, the second one waits for the event stream.
        let end = with_event_stream(|| user::run(level, &[SEVL, WFE, WFE], x));
        check!(end.is_svc() && end.elr == 16, "{level:?}: ESR {:#x} at {:#x}", end.esr, end.elr);
        check_equal!(end.x, x, "registers from {level:?}");
    }
    Ok(())
}

fn p4_a3_an_ordinary_wfe_completes() -> Verdict {
    need_traps!();
    let before = guest::exits("wfe");
    let end = user::run(Level::Kernel, &[SEVL, WFE, WFE], numbered(0));
    let after = guest::exits("wfe");
    check!(end.is_svc() && end.elr == 16, "ESR {:#x} at {:#x}", end.esr, end.elr);
    check_equal!(end.x, numbered(0), "registers");
    let (before, after) = (before.unwrap_or(0), after.unwrap_or(0));
    check_equal!(after - before, 1, "exits for one WFE");
    Ok(())
}

fn p4_a4_near_misses() -> Verdict {
    need_traps!();
    for bit in 0..64 {
        let x = numbered(words::DETECT ^ 1 << bit);
        let end = user::run(Level::Kernel, &[SEVL, WFE, WFE], x);
        check!(end.is_svc() && end.x == x, "bit {bit}: X0 {:#x}", end.x[0]);
    }
    Ok(())
}

fn p4_a5_event_register() -> Verdict {
    need_traps!();
    let end = user::run(Level::Kernel, &[SEVL, WFE], numbered(words::DETECT));
    check!(end.is_svc(), "ESR {:#x}", end.esr);
    check_equal!(end.x, numbered(words::DETECT), "registers after a WFE that found an event");
    check!(guest::detect().is_some(), "nobody is there any more");
    Ok(())
}

/// Pats a watchdog of 200 ms every 50 ms; returns when it was patted last, or nothing if some pat came too late.
fn pat_for_two_seconds() -> Result<Option<u64>, Stop> {
    check_equal!(guest::configure_watchdog(200, 1), Some(Ok(200)), "configuration");
    let (mut last, mut longest) = (timer::now(), 0);
    for _ in 0..40 {
        timer::delay(50_000);
        let pat = guest::pat_watchdog();
        let now = timer::now();
        longest = longest.max(now - last);
        last = now;
        if longest < timer::microseconds(200_000) {
            check_equal!(pat, Some(Ok(200)), "pat");
        }
    }
    if longest >= timer::microseconds(200_000) {
        println!("a pat came after {} us", longest * 1000 / timer::microseconds(1000));
        let _ = guest::configure_watchdog(0, 0);
        return Ok(None);
    }
    check_equal!(serrors(), 0, "SErrors although it was patted");
    Ok(Some(last))
}

fn p4_a6_pats_keep_it_quiet() -> Verdict {
    need_traps!();
    // A CPU that is kept from running for as long as the watchdog waits pats too late, and shows nothing. The SError that it
    // then gets stays pending, so that it cannot be tried again.
    let in_time = (0..10).take_while(|_| serrors() == 0).find_map(|_| pat_for_two_seconds().transpose());
    let Some(start) = in_time.transpose()? else {
        skip!("this machine is too busy to pat a watchdog of 200 ms in time");
    };
    let left = guest::query_watchdog();
    check!(left.is_some_and(|left| left.is_ok_and(|left| left > 100)), "left: {left:?}");
    // And now not any more: between 200 and 300 ms, or as much more as this CPU was kept from looking.
    let (mut before, mut kept) = (timer::now(), 0);
    let came = timer::wait_until(5000, || {
        let now = timer::now();
        kept += (now - before).saturating_sub(timer::microseconds(1000));
        before = now;
        serrors() > 0
    });
    let milliseconds = |ticks| ticks / timer::microseconds(1000);
    let (took, kept) = (milliseconds(timer::now() - start), milliseconds(kept));
    let _ = guest::configure_watchdog(0, 0);
    check!(
        came && (200..300 + kept).contains(&took),
        "the action came after {took} ms ({came}), {kept} ms of which elsewhere"
    );
    Ok(())
}

/// Whether an SError is pending for this CPU, which masks it; ISR_EL1.A. It is taken back by nobody: counted from what was
/// there before.
fn serrors() -> u64 {
    payload_rt::instruction::read_register([3, 0, 12, 1, 0]).map_or(0, |pending| pending >> 8 & 1)
}

fn p4_a8_disarm_and_reconfigure() -> Verdict {
    need_traps!();
    check_equal!(guest::query_watchdog(), Some(Err(3)), "a query before it is armed");
    check_equal!(guest::pat_watchdog(), Some(Err(3)), "a pat before it is armed");
    check_equal!(guest::configure_watchdog(100, 5), Some(Err(2)), "an action that there is not");
    check_equal!(guest::configure_watchdog(100, 1 << 40), Some(Err(2)), "an action that there is not");
    check_equal!(guest::configure_watchdog(u64::MAX, 2), Some(Ok(86_400_000)), "a huge time");
    check_equal!(guest::configure_watchdog(1, 0), Some(Ok(10)), "a tiny time");
    check_equal!(guest::configure_watchdog(100, 2), Some(Ok(100)), "a shorter time");
    check_equal!(guest::configure_watchdog(60_000, 2), Some(Ok(60_000)), "a longer time");
    timer::delay(150_000);
    check_equal!(guest::configure_watchdog(100, 2), Some(Ok(100)), "a shorter time again");
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    timer::delay(250_000);
    check_equal!(guest::query_watchdog(), Some(Err(3)), "a query after it was disarmed");
    Ok(())
}

fn p4_a9_level_0() -> Verdict {
    need_traps!();
    for word in [words::CONFIGURE, words::PAT, words::OWN[0], words::OWN[1]] {
        let mut x = numbered(word);
        (x[1], x[2]) = (50, 2);
        let end = user::run(Level::User, &[SEVL, WFE, WFE], x);
        check!(end.is_svc(), "ESR {:#x}", end.esr);
        check_equal!((end.x[0], end.x[1]), (words::ERROR, 1), "answer to {word:#x}");
    }
    Ok(())
}

/// A watchdog of the vCPU's own: beside the VM's, and nobody else's.
fn own_watchdogs() -> Verdict {
    need_traps!();
    check_equal!(guest::query_own_watchdog(), Some(Err(3)), "a query before it is armed");
    check_equal!(guest::configure_own_watchdog(60_000, 2), Some(Ok(60_000)), "configuration");
    check_equal!(guest::query_watchdog(), Some(Err(3)), "the VM's");
    timer::delay(5_000);
    let left = guest::query_own_watchdog();
    check!(left.is_some_and(|left| left.is_ok_and(|left| left < 60_000)), "left: {left:?}");
    check_equal!(guest::pat_own_watchdog(), Some(Ok(60_000)), "pat");
    if cpu::count() > 1 {
        check!(cpu::start(1, look_at_mine).is_ok(), "CPU 1 did not start");
        check!(cpu::wait_off(1), "CPU 1 is still on");
        check_equal!(MINE.load(Ordering::SeqCst), 3, "why CPU 1 cannot query its own: not armed");
    }
    check_equal!(guest::own(3, [4, 0, 0]).map(|answer| answer.is_ok()), Some(true), "a query by the other door");
    check_equal!(guest::configure_own_watchdog(0, 0), Some(Ok(0)), "disarming");
    check_equal!(guest::query_own_watchdog(), Some(Err(3)), "a query after it was disarmed");
    Ok(())
}

static MINE: AtomicU64 = AtomicU64::new(0);

fn look_at_mine(_: usize) {
    let answer = guest::query_own_watchdog();
    MINE.store(answer.map_or(99, |answer| answer.err().unwrap_or(98)), Ordering::SeqCst);
}

static LOCK: AtomicBool = AtomicBool::new(false);
static TURNS: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

fn take_turns(index: usize) {
    for _ in 0..20_000 {
        while LOCK.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            cpu::wait_for_event();
        }
        // Not atomic on purpose.
        TURNS.store(TURNS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        LOCK.store(false, Ordering::Release);
        cpu::send_event();
    }
    if index != 0 {
        OTHERS.fetch_add(1, Ordering::SeqCst);
    }
}

fn p4_a10_spinlock_with_events() -> Verdict {
    need_traps!();
    let others = 1..cpu::count().min(3);
    if others.is_empty() {
        skip!("there is one CPU");
    }
    for index in others.clone() {
        check!(cpu::start(index, take_turns).is_ok(), "CPU {index} did not start");
    }
    take_turns(0);
    let all = others.len() as u64;
    let done = timer::wait_until(60_000, || OTHERS.load(Ordering::SeqCst) == all);
    check!(done, "a wake-up was lost");
    check_equal!(TURNS.load(Ordering::SeqCst), 20_000 * (1 + all), "turns");
    for index in others {
        check!(cpu::wait_off(index), "CPU {index} is still on");
    }
    Ok(())
}

fn p4_a11_other_waits() -> Verdict {
    need_traps!();
    let calls = guest::exits("call");
    // An interrupt is pending soon, though masked: WFI ends by it.
    sysreg::cntv_tval_el0::write(timer::microseconds(2000));
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    let end = user::run(Level::Kernel, &[WFI], numbered(words::DETECT));
    timer::stop();
    check!(end.is_svc() && end.x == numbered(words::DETECT), "WFI: ESR {:#x}, X0 {:#x}", end.esr, end.x[0]);
    if sysreg::field(sysreg::id_aa64isar2_el1::read(), 4) == 2 {
        // WFET X9 and WFIT X9, at a time that has passed.
        for code in [0xd503_1009, 0xd503_1029] {
            let mut x = numbered(words::DETECT);
            x[9] = 0;
            let end = user::run(Level::Kernel, &[code], x);
            check!(end.is_svc() && end.x == x, "{code:#x}: ESR {:#x}, X0 {:#x}", end.esr, end.x[0]);
        }
    }
    let after = guest::exits("call");
    let asked = (after.unwrap_or(0)).saturating_sub(calls.unwrap_or(0));
    check!(asked < 40, "{asked} calls");
    Ok(())
}

fn p4_a7_acts_although_masked() -> Verdict {
    need_traps!();
    check_equal!(guest::configure_watchdog(100, 0), Some(Ok(100)), "configuration");
    // A log line every 100 ms; the query shows that the time began anew although all interrupts are masked here. It shows 0
    // from the end of the time until the watchdog has acted, which is as soon as it gets a CPU.
    timer::delay(150_000);
    let mut left = None;
    let began_anew = timer::wait_until(5000, || {
        left = guest::query_watchdog();
        left.is_some_and(|left| left.is_ok_and(|left| left > 0 && left <= 100))
    });
    check!(began_anew, "left: {left:?}");
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    Ok(())
}

fn p4_a7_acts_during_wfi() -> Verdict {
    need_traps!();
    check_equal!(guest::configure_watchdog(100, 0), Some(Ok(100)), "configuration");
    sysreg::cntv_tval_el0::write(timer::microseconds(260_000));
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    cpu::wait_for_interrupt();
    timer::stop();
    let left = guest::query_watchdog();
    check!(left.is_some_and(|left| left.is_ok()), "left: {left:?}");
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    Ok(())
}

/// Lets the watchdog reset this VM, unless that has happened. All tests are run in the second life.
fn bring_reset_about() {
    let mut reply = [0; 32];
    if guest::ask(b"info-get guestinfo.wfe", &mut reply) == Ok(RESET_EXPECTED) {
        return;
    }
    let _ = guest::ask(b"info-set guestinfo.wfe reset expected", &mut [0; 8]);
    println!("the watchdog is to reset this VM");
    let _ = guest::configure_watchdog(100, 2);
    timer::delay(3_000_000);
    let _ = guest::configure_watchdog(0, 0);
    let _ = guest::ask(b"info-set guestinfo.wfe none", &mut [0; 8]);
}

fn p4_a12_reset_clears_the_watchdog() -> Verdict {
    need_traps!();
    let mut reply = [0; 32];
    check_equal!(guest::ask(b"info-get guestinfo.wfe", &mut reply), Ok(RESET_EXPECTED), "the mark of the first life");
    check_equal!(AT_START.load(Ordering::SeqCst), 3, "the answer to a query at the start: not armed");
    Ok(())
}

/// Why a query was refused at the start.
static AT_START: AtomicU64 = AtomicU64::new(0);
