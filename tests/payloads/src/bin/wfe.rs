//! The WFE channel and the watchdog: the checks P4-A0 to P4-A12.
//!
//! `wfe = true` and `vmware = true` in the site file; the latter for the counts of exits and for a value that outlives
//! a reset. P4-A2 is the one for the bare machine (`reference` on the command line): there only that is run.
//!
//! | on the command line | |
//! |---|---|
//! | (nothing) | three lives: the watchdog ends the first, SYSTEM_RESET the second, all tests are run in the third |
//! | `armed=N` | the site file arms all watchdogs for N milliseconds; there is one life |
//! | `counted` | time is counted in instructions, so nothing is ever too busy to be in time |
//! | `rounds=N` | how often each CPU takes the spinlock |
//!
//! The door is open, so silence is a failure, unless the machine does not trap WFE: the other doors say so.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::calls::own::command;
use guest::words;
use payload_rt::interrupt::{is_serror_pending, take_serror};
use payload_rt::test::{Stop, Verdict};
use payload_rt::timer::with_event_stream;
use payload_rt::user::{self, ExceptionLevel};
use payload_rt::{check, check_equal, cpu, gic, machine, println, psci, skip, sysreg, test, tests, timer};

payload_rt::entry!(main);

const SEVL: u32 = 0xd503_20bf;
const WFE: u32 = 0xd503_205f;
const WFI: u32 = 0xd503_207f;

/// What `guestinfo.wfe`, which outlives a reset, says in the second and in the third life.
const AFTER_WATCHDOG: &[u8] = b"1 reset by the watchdog";
const AFTER_RESET: &[u8] = b"1 SYSTEM_RESET";

fn main() {
    if machine::is_reference() {
        test::run(&tests!("wfe": p4_a2_absent_without_a_hypervisor));
    }
    if machine::option("armed").is_some() {
        test::run(&tests!("wfe":
            p4_a0_wfe_traps, p4_a1_detect, p4_a1_requests_skip_the_instruction, p4_a3_an_ordinary_wfe_completes,
            p4_a4_near_misses, p4_a5_event_register, p4_a11_other_waits, what_the_site_file_arms_stays_armed,
        ));
    }
    if test::is_selected("wfe::p4_a12_reset_clears_watchdogs_and_mdscr") && traps() {
        live_twice();
    }
    test::run(&tests!("wfe":
        p4_a0_wfe_traps, p4_a1_detect, p4_a1_requests_skip_the_instruction, p4_a3_an_ordinary_wfe_completes,
        p4_a4_near_misses, p4_a5_event_register, p4_a8_disarm_and_reconfigure, p4_a6_pats_keep_it_quiet,
        p4_a9_level_0, own_watchdogs, own_watchdog_injects_into_its_own,
        no_serror_is_for_a_cpu_that_is_off, p4_a10_spinlock_with_events, p4_a11_other_waits,
        p4_a7_acts_although_masked, p4_a7_acts_during_wfi, p4_a12_reset_clears_watchdogs_and_mdscr,
    ));
}

/// Whether a WFE that would wait reaches the hypervisor here.
fn traps() -> bool {
    guest::detect().is_some()
}

/// Skips the test where the machine does not trap WFE, which the hypervisor has tried when it started; nothing else excuses
/// that nobody answers.
macro_rules! need_traps {
    () => {
        if guest::version().is_some_and(|version| version.features & 4 == 0) {
            skip!("this machine does not trap WFE");
        }
        check!(traps(), "nobody answers to WFE, although the site file opens that door");
    };
}

fn numbered(word: u64) -> [u64; 31] {
    core::array::from_fn(|number| if number == 0 { word } else { 0x2222_0000_0000_0000 + number as u64 })
}

/// How often this VM has exited for a reason, by one call.
fn count(number: u64) -> u64 {
    guest::statistic(number).map_or(0, |(_, count)| count)
}

/// The number of the exit reason called `name`.
fn reason(name: &str) -> u64 {
    let is_it = |number: &u64| {
        guest::statistic(*number)
            .is_some_and(|(known, _)| known.iter().take_while(|byte| **byte != 0).eq(name.as_bytes()))
    };
    (0..64).find(is_it).unwrap_or(64)
}

/// Exits that `body` leads to while the other CPUs are off: calls, ordinary WFEs, WFIs.
fn exits_of(body: impl FnOnce()) -> [u64; 3] {
    let [call, wfe, wfi] = ["call", "wfe", "wfi"].map(reason);
    let before = [wfe, wfi, call].map(count);
    body();
    let after = [call, wfe, wfi].map(count);
    // The count of calls was read last before and first behind: one call was made by that.
    [after[0] - before[2] - 1, after[1] - before[0], after[2] - before[1]]
}

/// [`exits_of`] a body that waits by WFE. A host's interrupt just before it is an event, which that WFE finds: nothing exits, and the
/// body is tried again.
fn exits_of_wait(mut body: impl FnMut()) -> [u64; 3] {
    let mut exits = [0; 3];
    for _ in 0..4 {
        exits = exits_of(&mut body);
        if exits != [0; 3] {
            break;
        }
    }
    exits
}

fn p4_a0_wfe_traps() -> Verdict {
    check!(guest::is_vmware(), "the other door does not answer");
    // The other doors say whether this one is open, which the hypervisor has tried when it started.
    let told = guest::version().is_some_and(|version| version.features & 4 != 0);
    check_equal!(told, traps(), "the feature bit, and whether somebody answers");
    need_traps!();
    Ok(())
}

fn p4_a1_detect() -> Verdict {
    need_traps!();
    for level in [ExceptionLevel::Kernel, ExceptionLevel::User] {
        let end = user::ask(level, &[SEVL, WFE, WFE], numbered(words::DETECT));
        check!(end.is_svc() && end.elr == 16, "{level:?}: ESR {:#x} at {:#x}", end.esr, end.elr);
        let mut expected = numbered(words::AGENT);
        expected[1] = end.x[1];
        check_equal!(end.x, expected, "registers from {level:?}");
        check_equal!((end.spsr >> 28, end.sp), (0xa, 0x5a5a_5a50), "flags and stack pointer");
        // The watchdogs are for the kernel alone here.
        let watchdogs = if level == ExceptionLevel::Kernel { 1 | 4 } else { 0 };
        check_equal!(end.x[1], 1 << 32 | 2 | watchdogs, "version and features for {level:?}");
    }
    Ok(())
}

/// An answered WFE is stepped over: it is one exit. The return from that is an event, which the WFE behind it finds. One that
/// is executed once more would find it itself, and leave the one behind to exit.
fn p4_a1_requests_skip_the_instruction() -> Verdict {
    need_traps!();
    for level in [ExceptionLevel::Kernel, ExceptionLevel::User] {
        let [configure_own, pat_own, query_own] = words::OWN;
        let others = [words::DETECT, words::QUERY, query_own, words::PAT, pat_own];
        for word in [words::CONFIGURE, configure_own].into_iter().chain(others) {
            let mut answer = 0;
            let mut x = numbered(word);
            if machine::option("armed").is_none() {
                // Armed, to log; the other numbers are refused.
                (x[1], x[2]) = (60_000, 0);
            }
            let exits = exits_of_wait(|| answer = user::run(level, &[SEVL, WFE, WFE, WFE], x).x[0]);
            check!(answer != word, "{level:?}: nobody answers to {word:#x}");
            check_equal!(exits, [1, 0, 0], "calls, WFEs and WFIs for {word:#x} from {level:?}");
        }
    }
    if machine::option("armed").is_none() {
        check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
        check_equal!(guest::configure_own_watchdog(0, 0), Some(Ok(0)), "disarming its own");
    }
    Ok(())
}

/// On the bare machine, with the word `reference`: whoever asks finds out that nobody is there, at both levels, and no
/// register is the worse for it.
fn p4_a2_absent_without_a_hypervisor() -> Verdict {
    check_equal!(with_event_stream(guest::detect), None, "detection");
    for level in [ExceptionLevel::Kernel, ExceptionLevel::User] {
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
    for word in [0, 1, words::AGENT, words::DONE, u64::MAX] {
        let mut end = None;
        let exits = exits_of_wait(|| end = Some(user::run(ExceptionLevel::Kernel, &[SEVL, WFE, WFE], numbered(word))));
        let Some(end) = end else { return Ok(()) };
        check!(end.is_svc() && end.elr == 16, "{word:#x}: ESR {:#x} at {:#x}", end.esr, end.elr);
        check_equal!(end.x, numbered(word), "registers");
        check_equal!((end.spsr >> 28, end.sp), (0xa, 0x5a5a_5a50), "flags and stack pointer");
        check_equal!(exits, [0, 1, 0], "calls, WFEs and WFIs for one WFE");
    }
    Ok(())
}

fn p4_a4_near_misses() -> Verdict {
    need_traps!();
    for bit in 0..64 {
        let x = numbered(words::DETECT ^ 1 << bit);
        let end = user::run(ExceptionLevel::Kernel, &[SEVL, WFE, WFE], x);
        check!(end.is_svc() && end.x == x, "bit {bit}: X0 {:#x}", end.x[0]);
    }
    Ok(())
}

fn p4_a5_event_register() -> Verdict {
    need_traps!();
    let end = user::run(ExceptionLevel::Kernel, &[SEVL, WFE], numbered(words::DETECT));
    check!(end.is_svc(), "ESR {:#x}", end.esr);
    check_equal!(end.x, numbered(words::DETECT), "registers after a WFE that found an event");
    check!(guest::detect().is_some(), "nobody is there any more");
    Ok(())
}

/// Pats a watchdog of 200 ms every 50 ms; returns the time just before the last pat, or nothing if some pat came too late.
fn pat_for_two_seconds() -> Result<Option<u64>, Stop> {
    let begin = timer::now();
    check_equal!(guest::configure_watchdog(200, 1), Some(Ok(200)), "configuration");
    let (mut last, mut longest) = (begin, 0);
    for _ in 0..40 {
        timer::sleep(50_000);
        let before = timer::now();
        let pat = guest::pat_watchdog();
        longest = longest.max(timer::now() - last);
        last = before;
        if longest < timer::microseconds(200_000) {
            check_equal!(pat, Some(Ok(200)), "pat");
        }
    }
    if longest >= timer::microseconds(200_000) {
        return Ok(None);
    }
    check!(!is_serror_pending(), "an SError although it was patted");
    Ok(Some(last))
}

fn p4_a6_pats_keep_it_quiet() -> Verdict {
    need_traps!();
    check!(!is_serror_pending(), "an SError is pending before anything was done");
    let mut in_time = None;
    for _ in 0..10 {
        // A CPU that is kept from running for as long as the watchdog waits pats too late, and shows nothing. The SError that
        // it may get then is taken, and all begins anew.
        in_time = pat_for_two_seconds()?;
        if in_time.is_some() {
            break;
        }
        let _ = guest::configure_watchdog(0, 0);
        timer::sleep(1000);
        take_serror();
    }
    let Some(start) = in_time else {
        check!(!machine::is_counted(), "a pat came too late, although nothing else runs");
        skip!("this machine is too busy to pat a watchdog of 200 ms in time");
    };
    let left = guest::query_watchdog();
    let is_soon = timer::now() - start < timer::microseconds(100_000);
    check!(!is_soon || left.is_some_and(|left| left.is_ok_and(|left| left >= 100)), "left: {left:?}");
    // And now not any more: in 200 ms and, where nothing is late by chance, not after 300, or as much more as this CPU was kept from
    // looking.
    let (mut before, mut kept) = (timer::now(), 0);
    let came = timer::wait_until(5000, || {
        compute();
        let now = timer::now();
        kept += (now - before).saturating_sub(timer::microseconds(1000));
        before = now;
        is_serror_pending()
    });
    let milliseconds = |ticks| ticks / timer::microseconds(1000);
    let (took, kept) = (milliseconds(timer::now() - start), milliseconds(kept));
    let _ = guest::configure_watchdog(0, 0);
    check!(
        came && took >= 200 && (took < 300 + kept || !machine::is_counted()),
        "the action came after {took} ms ({came}), {kept} ms of which elsewhere"
    );
    check!(take_serror(), "the SError that was pending could not be taken");
    check!(!is_serror_pending(), "one SError is two");
    Ok(())
}

/// Some thousand instructions between two looks, which reach nobody. An emulator that counts instructions takes longer for one
/// read of a counter than for all of these.
fn compute() {
    for step in 0..2000 {
        core::hint::black_box(step);
    }
}

fn p4_a8_disarm_and_reconfigure() -> Verdict {
    need_traps!();
    check_equal!(guest::query_watchdog(), Some(Err(3)), "a query before it is armed");
    check_equal!(guest::pat_watchdog(), Some(Err(3)), "a pat before it is armed");
    check_equal!(guest::configure_watchdog(100, 5), Some(Err(2)), "an action that there is not");
    check_equal!(guest::configure_watchdog(100, 1 << 40), Some(Err(2)), "an action that there is not");
    check_equal!(guest::configure_watchdog(u64::MAX, 2), Some(Ok(86_400_000)), "a huge time");
    check_equal!(guest::configure_watchdog(1, 0), Some(Ok(10)), "a tiny time");
    // It would act in the waits below, where no CPU stands still so long that it acts between two requests.
    let short = if machine::is_counted() { 100 } else { 30_000 };
    check_equal!(guest::configure_watchdog(short, 2), Some(Ok(short)), "a shorter time");
    check_equal!(guest::configure_watchdog(60_000, 2), Some(Ok(60_000)), "a longer time");
    timer::sleep(150_000);
    check_equal!(guest::configure_watchdog(short, 2), Some(Ok(short)), "a shorter time again");
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    timer::sleep(250_000);
    check_equal!(guest::query_watchdog(), Some(Err(3)), "a query after it was disarmed");
    Ok(())
}

fn p4_a9_level_0() -> Verdict {
    need_traps!();
    for word in [words::CONFIGURE, words::PAT, words::OWN[0], words::OWN[1]] {
        let mut x = numbered(word);
        (x[1], x[2]) = (50, 2);
        let end = user::ask(ExceptionLevel::User, &[SEVL, WFE, WFE], x);
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
    check_equal!(
        guest::own(command::WATCHDOG, [4, 0, 0]).map(|answer| answer.is_ok()),
        Some(true),
        "a query by the other door"
    );
    check_equal!(guest::configure_own_watchdog(0, 0), Some(Ok(0)), "disarming");
    check_equal!(guest::query_own_watchdog(), Some(Err(3)), "a query after it was disarmed");
    Ok(())
}

static MINE: AtomicU64 = AtomicU64::new(0);

fn look_at_mine(_: usize) {
    let answer = guest::query_own_watchdog();
    MINE.store(answer.map_or(99, |answer| answer.err().unwrap_or(98)), Ordering::SeqCst);
}

/// An own watchdog's SError is for the vCPU whose watchdog it is; the VM's is for the first that is on, whoever armed it.
fn own_watchdog_injects_into_its_own() -> Verdict {
    need_traps!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    for (job, own) in [(inject_mine as cpu::Job, true), (inject_the_vms, false)] {
        GOT.store(UNKNOWN, Ordering::SeqCst);
        CAME_HERE.store(false, Ordering::SeqCst);
        check!(cpu::start(1, job).is_ok(), "CPU 1 did not start");
        let (mut here, mut there) = (false, UNKNOWN);
        timer::wait_until(20_000, || {
            here |= take_serror();
            CAME_HERE.store(here, Ordering::SeqCst);
            there = GOT.load(Ordering::SeqCst);
            there != UNKNOWN
        });
        check!(cpu::wait_off(1), "CPU 1 is still on");
        here |= take_serror();
        check_equal!((here, there == 1), (!own, own), "who got an SError, CPU 0 and CPU 1; its own watchdog: {own}");
    }
    Ok(())
}

/// A CPU that is off takes none: its own watchdog's goes to the first that is on. And one that is switched on has none pending, nor
/// asked for, from before.
fn no_serror_is_for_a_cpu_that_is_off() -> Verdict {
    need_traps!();
    if cpu::count() < 2 {
        skip!("there is one CPU");
    }
    // It goes with an SError pending.
    GOT.store(UNKNOWN, Ordering::SeqCst);
    check!(cpu::start(1, leave_with_mine).is_ok() && cpu::wait_off(1), "CPU 1 did not come and go");
    check_equal!(GOT.load(Ordering::SeqCst), 1, "an SError on CPU 1 when it went");
    check!(cpu::start(1, look_for_an_serror).is_ok() && cpu::wait_off(1), "CPU 1 did not come and go again");
    check_equal!(GOT.load(Ordering::SeqCst), 0, "an SError that was pending when CPU 1 was switched off");
    check!(!is_serror_pending(), "an SError for CPU 0");
    // It goes, and then its watchdog acts. Where CPU 1 comes so late that it has acted again by then, it has an SError of this life.
    for _ in 0..10 {
        check!(cpu::start(1, leave_mine_armed).is_ok() && cpu::wait_off(1), "CPU 1 did not come and go");
        let mut start = timer::now();
        let came = timer::wait_until(10_000, || {
            let now = timer::now();
            let came = is_serror_pending();
            // It acted behind the last look that saw nothing, and acts again 300 ms after that.
            start = if came { start } else { now };
            came
        });
        check!(cpu::start(1, look_for_an_serror).is_ok() && cpu::wait_off(1), "CPU 1 did not come and go again");
        let took = timer::now() - start;
        check!(came && take_serror(), "no SError for CPU 0 by the watchdog of CPU 1, which is off");
        if took < timer::microseconds(200_000) {
            check_equal!(GOT.load(Ordering::SeqCst), 0, "an SError that came while CPU 1 was off");
            return Ok(());
        }
    }
    check!(!machine::is_counted(), "CPU 1 came too late, although nothing else runs");
    skip!("this machine is too busy to start a CPU in time");
}

fn leave_with_mine(_: usize) {
    let _ = guest::configure_own_watchdog(20, 1);
    let came = timer::wait_until(10_000, is_serror_pending);
    let _ = guest::configure_own_watchdog(0, 0);
    GOT.store(came.into(), Ordering::SeqCst);
}

fn leave_mine_armed(_: usize) {
    let _ = guest::configure_own_watchdog(300, 1);
}

fn look_for_an_serror(_: usize) {
    let came = is_serror_pending();
    let _ = guest::configure_own_watchdog(0, 0);
    GOT.store(came.into(), Ordering::SeqCst);
}

/// Whether CPU 1 got an SError, once that is known.
static GOT: AtomicU64 = AtomicU64::new(UNKNOWN);
const UNKNOWN: u64 = u64::MAX;
/// Whether CPU 0 got one.
static CAME_HERE: AtomicBool = AtomicBool::new(false);

fn inject_mine(_: usize) {
    let _ = guest::configure_own_watchdog(20, 1);
    let came = timer::wait_until(10_000, is_serror_pending);
    let _ = guest::configure_own_watchdog(0, 0);
    take_serror();
    GOT.store(came.into(), Ordering::SeqCst);
}

fn inject_the_vms(_: usize) {
    let _ = guest::configure_watchdog(20, 1);
    // Until somebody has it, however late that is on a machine with other work.
    timer::wait_until(10_000, || is_serror_pending() || CAME_HERE.load(Ordering::SeqCst));
    let _ = guest::configure_watchdog(0, 0);
    GOT.store(is_serror_pending().into(), Ordering::SeqCst);
}

static LOCK: AtomicBool = AtomicBool::new(false);
static TURNS: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// How often each CPU takes the spinlock.
fn rounds() -> u64 {
    machine::option_number("rounds", 20_000)
}

/// Takes a spinlock [`rounds`] times; a CPU does `wait` when it does not get it, and `wake` after it has released it.
///
/// Where time is counted, CPUs take turns by slices, and the lock is held for long, so that whoever has it loses its CPU with it.
fn take_turns(index: usize, wait: fn(), wake: fn()) {
    let is_counted = machine::is_counted();
    for _ in 0..rounds() {
        while LOCK.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait();
        }
        if is_counted {
            compute();
        }
        // Not atomic on purpose.
        TURNS.store(TURNS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        LOCK.store(false, Ordering::Release);
        wake();
    }
    if index != 0 {
        OTHERS.fetch_add(1, Ordering::SeqCst);
    }
}

fn take_turns_by_events(index: usize) {
    take_turns(index, cpu::wait_for_event, cpu::send_event);
}

fn take_turns_by_spinning(index: usize) {
    take_turns(index, cpu::relax, cpu::relax);
}

/// How many ticks it takes all CPUs to take their turns.
fn time_turns(job: cpu::Job) -> Result<u64, Stop> {
    TURNS.store(0, Ordering::SeqCst);
    OTHERS.store(0, Ordering::SeqCst);
    let others = 1..cpu::count().min(3);
    // They come one by one, and are to begin together.
    LOCK.store(true, Ordering::SeqCst);
    for index in others.clone() {
        check!(cpu::start(index, job).is_ok(), "CPU {index} did not start");
    }
    let begin = timer::now();
    LOCK.store(false, Ordering::SeqCst);
    cpu::send_event();
    job(0);
    let all = others.len() as u64;
    let done = timer::wait_until(60_000, || OTHERS.load(Ordering::SeqCst) == all);
    let took = timer::now() - begin;
    check!(done, "a wake-up was lost");
    check_equal!(TURNS.load(Ordering::SeqCst), rounds() * (1 + all), "turns");
    for index in others {
        check!(cpu::wait_off(index), "CPU {index} is still on");
    }
    Ok(took)
}

/// A lock whose waiters use WFE makes progress; and, where time is counted in instructions, all vCPUs on one CPU, at least
/// half as fast as one whose waiters spin and never reach the hypervisor.
fn p4_a10_spinlock_with_events() -> Verdict {
    need_traps!();
    if cpu::count() == 1 {
        skip!("there is one CPU");
    }
    let events = time_turns(take_turns_by_events)?;
    if machine::is_counted() {
        let spinning = time_turns(take_turns_by_spinning)?;
        check!(events <= 2 * spinning, "{events} ticks with WFE, {spinning} without");
    }
    Ok(())
}

fn p4_a11_other_waits() -> Verdict {
    need_traps!();
    check!(!is_serror_pending(), "an SError is pending: no WFI would wait");
    for word in [words::DETECT, words::CONFIGURE, words::OWN[0]] {
        let mut x = numbered(word);
        (x[1], x[2]) = (60_000, 0);
        // A CPU may end a WFI early, for an interrupt of the host too, which the guest does not see (DDI 0487, D1.6). One that
        // is taken for a call never waits, so one of several that does is enough.
        let mut exits = [0; 3];
        let mut waited = false;
        for _ in 0..16 {
            // The timer's interrupt, though masked, ends the WFI.
            let end = timer::now() + timer::microseconds(2000);
            gic::enable(timer::VIRTUAL_PPI);
            sysreg::cntv_cval_el0::write(end);
            sysreg::cntv_ctl_el0::write(timer::ENABLE);
            let mut ended = None;
            exits = exits_of(|| ended = Some(user::run(ExceptionLevel::Kernel, &[WFI], x)));
            waited = timer::now() >= end;
            timer::stop();
            let Some(ended) = ended else { return Ok(()) };
            check!(ended.is_svc() && ended.x == x, "WFI: ESR {:#x}, X0 {:#x}", ended.esr, ended.x[0]);
            if waited || exits[2] > 0 {
                break;
            }
        }
        check!(waited || exits[2] > 0, "the WFI with {word:#x} neither waited nor came to the hypervisor");
        check_equal!([exits[0], exits[1]], [0, 0], "calls and WFEs for one WFI");
        // WFET X9 and WFIT X9 (FEAT_WFxT), at a time that has passed; undefined where they are not.
        for code in [0xd503_1009, 0xd503_1029] {
            x[9] = 0;
            let mut ended = None;
            let exits = exits_of(|| ended = Some(user::run(ExceptionLevel::Kernel, &[SEVL, WFE, code], x)));
            let Some(ended) = ended else { return Ok(()) };
            check!(ended.is_svc() || ended.esr >> 26 == 0, "{code:#x}: ESR {:#x}", ended.esr);
            check_equal!((ended.x, exits[0]), (x, 0), "registers, and calls for {code:#x}");
        }
    }
    if machine::option("armed").is_none() {
        check_equal!(guest::query_watchdog(), Some(Err(3)), "a query: WFI has armed nothing");
        check_equal!(guest::query_own_watchdog(), Some(Err(3)), "a query about its own");
    }
    Ok(())
}

fn p4_a7_acts_although_masked() -> Verdict {
    need_traps!();
    check!(!is_serror_pending(), "an SError is pending before anything was done");
    let begin = timer::now();
    check_equal!(guest::configure_watchdog(100, 1), Some(Ok(100)), "configuration");
    // All interrupts are masked, and nothing here reaches the hypervisor.
    let came = timer::wait_until(5000, || {
        compute();
        is_serror_pending()
    });
    let took = (timer::now() - begin) / timer::microseconds(1000);
    check!(came && took >= 100, "an SError: {came}, after {took} ms");
    // The time began anew.
    let mut left = None;
    let began_anew = timer::wait_until(5000, || {
        compute();
        left = guest::query_watchdog();
        left.is_some_and(|left| left.is_ok_and(|left| left > 0 && left <= 100))
    });
    check!(began_anew, "left: {left:?}");
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    check!(take_serror(), "the SError that was pending could not be taken");
    Ok(())
}

fn p4_a7_acts_during_wfi() -> Verdict {
    need_traps!();
    check!(!is_serror_pending(), "an SError is pending: no WFI would wait");
    let begin = timer::now();
    check_equal!(guest::configure_watchdog(100, 1), Some(Ok(100)), "configuration");
    // Nothing but the SError ends the sleep before its time.
    let mut slept = 0;
    let exits = exits_of(|| slept = timer::sleep(30_000_000));
    let took = (timer::now() - begin) / timer::microseconds(1000);
    check_equal!(guest::configure_watchdog(0, 0), Some(Ok(0)), "disarming");
    let came = take_serror();
    check!(came && took >= 100 && slept < 30_000_000, "an SError: {came}, after {took} ms, {slept} us of sleep");
    check!((1..1000).contains(&exits[2]), "{} WFIs came to the hypervisor", exits[2]);
    Ok(())
}

/// With `armed=`, the site file has armed the VM's watchdog and each vCPU's own for so long: the guest can make them shorter,
/// neither longer nor disarmed, from no level and by no door.
fn what_the_site_file_arms_stays_armed() -> Verdict {
    need_traps!();
    let armed = machine::option_number("armed", 0);
    type Answer = Option<Result<u64, u64>>;
    type Whose = (fn(u64, u64) -> Answer, fn() -> Answer, u64);
    let whose: [Whose; 2] = [
        (guest::configure_watchdog, guest::query_watchdog, 0),
        (guest::configure_own_watchdog, guest::query_own_watchdog, 4),
    ];
    for (configure, query, other_door) in whose {
        let is_armed = || query().is_some_and(|left| left.is_ok_and(|left| left > 0 && left <= armed));
        check!(is_armed(), "left at the start: {:?}", query());
        check_equal!(configure(0, 0), Some(Err(4)), "disarming");
        check_equal!(configure(0, 2), Some(Err(4)), "disarming");
        check_equal!(
            guest::own(command::WATCHDOG, [other_door | 1, 0, 2]),
            Some(Err(1)),
            "disarming by the other door"
        );
        check_equal!(configure(armed / 2, 0), Some(Err(2)), "another action");
        check!(is_armed(), "left after all that was refused: {:?}", query());
        check_equal!(configure(armed / 2, 2), Some(Ok(armed / 2)), "a shorter time");
        check_equal!(configure(0, 2), Some(Err(4)), "disarming after that");
        check_equal!(configure(u64::MAX, 2), Some(Ok(armed)), "a longer time");
        check!(is_armed(), "left at the end: {:?}", query());
    }
    Ok(())
}

/// Lets the watchdog reset this VM, and in the second life SYSTEM_RESET. All tests are run in the third one.
fn live_twice() {
    let mut reply = [0; 64];
    match guest::ask(b"info-get guestinfo.wfe", &mut reply) {
        Ok(AFTER_WATCHDOG) => {
            let mark: &[u8] = match find() {
                AS_NEW => b"info-set guestinfo.wfe SYSTEM_RESET",
                _ => b"info-set guestinfo.wfe SYSTEM_RESET, and the watchdog's reset left something",
            };
            let _ = guest::ask(mark, &mut [0; 8]);
            // Everything is armed, on two CPUs, for long enough not to act before the third life has looked.
            let _ = guest::configure_watchdog(60_000, 2);
            let _ = guest::configure_own_watchdog(60_000, 2);
            if cpu::count() > 1 {
                let _ = cpu::start(1, |_| {
                    let _ = guest::configure_own_watchdog(60_000, 2);
                });
                let _ = cpu::wait_off(1);
            }
            sysreg::mdscr_el1::write(TDCC);
            println!("SYSTEM_RESET is to reset this VM");
            let _ = psci::simple(psci::SYSTEM_RESET, [0; 3]);
        }
        Ok(text) if text.starts_with(AFTER_RESET) => {
            for (place, value) in FOUND.iter().zip(find()) {
                place.store(value, Ordering::SeqCst);
            }
        }
        _ => {
            let _ = guest::ask(b"info-set guestinfo.wfe reset by the watchdog", &mut [0; 8]);
            println!("the watchdog is to reset this VM");
            sysreg::mdscr_el1::write(TDCC);
            let _ = guest::configure_watchdog(100, 2);
            timer::delay(3_000_000);
            // It did not: the third life's test will not find its mark.
            let _ = guest::configure_watchdog(0, 0);
        }
    }
}

/// MDSCR_EL1.TDCC.
const TDCC: u64 = 1 << 12;
/// What [`find`] finds after a reset.
const AS_NEW: [u64; 4] = [3, 3, 3, 0];
/// What the third life found at its start.
static FOUND: [AtomicU64; 4] = [const { AtomicU64::new(98) }; 4];

/// The answers to queries about the VM's watchdog, CPU 0's own and CPU 1's, 3 being "not armed"; and MDSCR_EL1.
fn find() -> [u64; 4] {
    let why = |answer: Option<Result<u64, u64>>| answer.map_or(99, |answer| answer.err().unwrap_or(0));
    MINE.store(if cpu::count() > 1 { 98 } else { 3 }, Ordering::SeqCst);
    if cpu::count() > 1 && cpu::start(1, look_at_mine).is_ok() {
        let _ = cpu::wait_off(1);
    }
    let (vm, own) = (why(guest::query_watchdog()), why(guest::query_own_watchdog()));
    [vm, own, MINE.load(Ordering::SeqCst), sysreg::mdscr_el1::read()]
}

fn p4_a12_reset_clears_watchdogs_and_mdscr() -> Verdict {
    need_traps!();
    let mut reply = [0; 64];
    check_equal!(guest::ask(b"info-get guestinfo.wfe", &mut reply), Ok(AFTER_RESET), "the mark of the second life");
    let found = FOUND.each_ref().map(|place| place.load(Ordering::SeqCst));
    check_equal!(found, AS_NEW, "the VM's watchdog, CPU 0's, CPU 1's (3: not armed), and MDSCR_EL1");
    Ok(())
}
