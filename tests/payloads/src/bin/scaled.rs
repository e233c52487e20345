//! A guest whose time is not its host's: another frequency of its counters, or another rate. It checks its count, against the
//! host's where it can see that; that its timers are never early; and every register that traps, at EL1 and EL0.
//!
//! Words on the command line: `frequency` and `rate` (in millionths) are what its site file says, `host` is the frequency of the
//! host's counter, `virtual=scaled` says that the virtual counter and timer trap too, and `timer=memory` that the device tree
//! names the memory-mapped timer alone.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use payload_rt::random::Random;
use payload_rt::test::Verdict;
use payload_rt::timer::{ENABLE, IMASK, ISTATUS, PHYSICAL_PPI, VIRTUAL_PPI};
use payload_rt::{check, check_equal, cpu, fdt, gic, instruction, interrupt, machine, memory, sysreg, test, tests};
use payload_rt::{timer, user, vmclock};

#[path = "scaled/memory_timer.rs"]
mod memory_timer;

use memory_timer::{
    counters as memory_timer_counters, level as memory_timer_level, never_early as memory_timer_never_early,
    outlives_the_cpu_that_set_it as memory_timer_outlives_the_cpu_that_set_it, registers as memory_timer_registers,
    wakes_wfi as memory_timer_wakes_wfi,
};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("scaled":
        p5_a1_device_tree, p5_a11_frequency, p5_a2_each_access_is_one_exit, p5_a2_at_el0, p5_a3_counts_by_its_frequency,
        p5_a3_ten_seconds_of_the_real_time_clock, p5_a4_never_goes_back, p5_a5_never_early, p5_a5_wfi_wakes_by_the_timer,
        p5_a6_extremes, p5_a6_level, p5_a11_virtual_counter, vmclock_tells_the_guests_time,
        virtual_timer_goes_by_its_counter, waits_with_a_timeout,
        memory_timer_counters, memory_timer_registers, memory_timer_never_early, memory_timer_wakes_wfi,
        memory_timer_level, memory_timer_outlives_the_cpu_that_set_it,
    ));
}

fn word(name: &str) -> u64 {
    machine::option_number(name, 0)
}

fn is_virtual_scaled() -> bool {
    machine::option("virtual") == Some("scaled")
}

/// What the guest's counter shows after so many ticks of a counter of the host's speed, rounded down.
fn scaled(host_ticks: u64) -> u64 {
    let guest = u128::from(host_ticks) * u128::from(word("frequency")) * u128::from(word("rate"));
    (guest / (u128::from(word("host")) * 1_000_000)) as u64
}

/// So many microseconds of the host's, in ticks of the guest's counter.
fn real_microseconds(count: u64) -> u64 {
    scaled(word("host") / 1000 * count / 1000).max(1)
}

/// Two real seconds, by the counter of the guest.
fn two_seconds() -> timer::Deadline {
    timer::Deadline::after(real_microseconds(2_000_000), timer::physical_now())
}

/// Waits until `done` or for two real seconds.
fn comes(mut done: impl FnMut() -> bool) -> bool {
    let mut deadline = two_seconds();
    while !done() {
        if deadline.passed_by(timer::physical_now()) {
            return done();
        }
        cpu::relax();
    }
    true
}

/// Sleeps for five milliseconds of the guest's, by the physical timer, whose interrupt is enabled and not taken.
fn sleep() {
    let until = timer::physical_now() + word("frequency") / 200;
    sysreg::cntp_cval_el0::write(until);
    sysreg::cntp_ctl_el0::write(ENABLE);
    while timer::physical_now() < until {
        cpu::wait_for_interrupt();
    }
    sysreg::cntp_ctl_el0::write(0);
}

fn p5_a1_device_tree() -> Verdict {
    if memory_timer::is_there() {
        return memory_timer::device_tree();
    }
    let (mut interrupts, mut names, mut frequency) = (0, 0, 0);
    let mut is_physical = false;
    let walked = fdt::walk(machine::device_tree(), |_, node, property, value| match (node, property) {
        ("timer", "interrupts") => {
            interrupts = value.len() / 12;
            // The second one: PPI 14, which is INTID 30.
            is_physical = value.get(12..24).is_some_and(|cells| fdt::number(cells) == 1 << 32 | 14);
        }
        ("timer", "interrupt-names") => names = if value == b"sec-phys\0phys\0" { 2 } else { 1 },
        ("timer", "clock-frequency") => frequency = fdt::number(value),
        _ => {}
    });
    check!(walked.is_some(), "the device tree cannot be read");
    check_equal!((interrupts, names), (2, 2), "interrupts of the timer's node, and their names");
    check!(is_physical, "the second of them is not the physical timer's");
    check_equal!(frequency, word("frequency"), "its clock-frequency");
    Ok(())
}

fn p5_a11_frequency() -> Verdict {
    check_equal!(sysreg::cntfrq_el0::read(), word("frequency"), "CNTFRQ_EL0");
    Ok(())
}

/// Exits of this VM because of system registers so far.
fn exits() -> u64 {
    guest::exits("system-register").unwrap_or(0)
}

/// `count` accesses, of which each is one exit.
fn one_exit_each(what: &str, count: u64, access: impl Fn()) -> Verdict {
    let before = exits();
    let idle = exits() - before;
    let before = exits();
    (0..count).for_each(|_| access());
    let seen = exits() - before - idle;
    check_equal!(seen, count, "exits by {count} times {what}");
    Ok(())
}

const CNTPCT: [u32; 5] = [3, 3, 14, 0, 1];
const CNTVCT: [u32; 5] = [3, 3, 14, 0, 2];
const CNTPCTSS: [u32; 5] = [3, 3, 14, 0, 5];
const CNTVCTSS: [u32; 5] = [3, 3, 14, 0, 6];

fn read([op0, op1, crn, crm, op2]: [u32; 5], register: u32) -> u32 {
    instruction::mrs(op0, op1, crn, crm, op2) & !31 | register
}

fn p5_a2_each_access_is_one_exit() -> Verdict {
    one_exit_each("CNTPCT_EL0", 20, || {
        let _ = sysreg::cntpct_el0::read();
    })?;
    for (crm, timer) in [(2, "CNTP"), (3, "CNTV")] {
        if crm == 3 && !is_virtual_scaled() {
            break;
        }
        for (op2, register) in [(0, "TVAL"), (1, "CTL"), (2, "CVAL")] {
            one_exit_each(register, 10, || {
                let _ = instruction::read_register([3, 3, 14, crm, op2]);
            })?;
            one_exit_each(register, 10, || {
                let _ = instruction::write_register([3, 3, 14, crm, op2], 0);
            })?;
            // CTL keeps two bits, and CVAL all of them; each of them by itself.
            check!(instruction::read_register([3, 3, 14, crm, op2]).is_ok(), "{timer}_{register}_EL0 is undefined");
        }
        check!(instruction::write_register([3, 3, 14, crm, 2], 0x1234_5678_9abc_def0).is_ok(), "{timer}_CVAL_EL0");
        check_equal!(instruction::read_register([3, 3, 14, crm, 2]), Ok(0x1234_5678_9abc_def0), "{timer}_CVAL_EL0");
        check!(instruction::write_register([3, 3, 14, crm, 1], u64::MAX).is_ok(), "{timer}_CTL_EL0");
        check_equal!(instruction::read_register([3, 3, 14, crm, 1]), Ok(ENABLE | IMASK), "{timer}_CTL_EL0");
        check!(instruction::write_register([3, 3, 14, crm, 1], 0).is_ok(), "{timer}_CTL_EL0");
    }
    if is_virtual_scaled() {
        // FEAT_ECV: the self-synchronised views are of the same count.
        for counter in [CNTVCT, CNTPCTSS, CNTVCTSS] {
            one_exit_each("a counter", 20, || {
                let _ = instruction::read_register(counter);
            })?;
            let before = timer::physical_now();
            let count = instruction::read_register(counter);
            let after = timer::physical_now();
            check!(
                count.is_ok_and(|count| (before..=after).contains(&count)),
                "{before}, then {count:?}, then {after}"
            );
        }
    }
    Ok(())
}

/// CNTKCTL_EL1: EL0 reaches the counters, and the timers.
const USER_COUNTERS: u64 = 3;
const USER_TIMERS: u64 = 3 << 8;

fn p5_a2_at_el0() -> Verdict {
    const ISB: u32 = 0xd503_3fdf;
    let kept = sysreg::cntkctl_el1::read();
    let mut x = [0; 31];
    (x[2], x[3]) = (timer::physical_now() + real_microseconds(1000), ENABLE | IMASK);
    let write = |op2, register| instruction::msr(3, 3, 14, 2, op2) & !31 | register;
    let code = [ISB, read(CNTPCT, 1), write(2, 2), write(1, 3), ISB, read(CNTPCT, 30)];
    let refused = |bits: u64, code: u32| {
        sysreg::cntkctl_el1::write(kept & !(USER_COUNTERS | USER_TIMERS) | bits);
        let end = user::run(user::ExceptionLevel::User, &[code], [7; 31]);
        sysreg::cntkctl_el1::write(kept);
        end.esr >> 26 == 0x18 && end.x[1] == 7
    };
    check!(refused(USER_TIMERS, read(CNTPCT, 1)), "EL1 does not get EL0's read of a counter that it keeps from it");
    check!(refused(USER_COUNTERS, write(2, 1)), "EL1 does not get EL0's write of a timer that it keeps from it");
    let before = timer::physical_now();
    sysreg::cntkctl_el1::write(kept | USER_COUNTERS | USER_TIMERS);
    let end = user::run(user::ExceptionLevel::User, &code, x);
    sysreg::cntkctl_el1::write(kept);
    let after = timer::physical_now();
    check!(end.is_svc(), "EL0 ends with ESR_EL1 {:#x} at {:#x}", end.esr, end.elr);
    check!(
        before <= end.x[1] && end.x[1] <= end.x[30] && end.x[30] <= after,
        "{before} {:?} {after}",
        (end.x[1], end.x[30])
    );
    check_equal!(sysreg::cntp_cval_el0::read(), x[2], "CNTP_CVAL_EL0");
    check_equal!(sysreg::cntp_ctl_el0::read() & 3, ENABLE | IMASK, "CNTP_CTL_EL0");
    Ok(())
}

/// Before FEAT_ECV the virtual counter shows the host's speed: a read of the scaled one between two of it is bounded by them.
fn p5_a3_counts_by_its_frequency() -> Verdict {
    if is_virtual_scaled() {
        // Nothing shows the host's count here: see the test by the real-time clock, in the variant that has the time for it.
        return Ok(());
    }
    for round in 0..200 {
        let (before, count, after) = (timer::now(), timer::physical_now(), timer::now());
        // Both began with the machine, at 0.
        let range = scaled(before).saturating_sub(1)..=scaled(after) + 1;
        check!(range.contains(&count), "round {round}: {count} is not within {range:?}, at {before} of the host's");
        timer::delay(1000);
    }
    Ok(())
}

/// Between two changes of the real-time clock's second is one second of the guest's, whatever its rate. The clock is read every
/// five milliseconds.
fn p5_a3_ten_seconds_of_the_real_time_clock() -> Verdict {
    const PL031: u64 = 0x0901_0000;
    let second = || memory::read32(PL031);
    let change = || {
        let before = second();
        while second() == before {
            sleep();
        }
        (second(), timer::physical_now())
    };
    let seconds = word("seconds");
    if seconds == 0 {
        return Ok(());
    }
    gic::enable(PHYSICAL_PPI);
    let (first, start) = change();
    let mut last = (first, start);
    while u64::from(last.0 - first) < seconds {
        last = change();
    }
    let (passed, counted) = (u64::from(last.0 - first), last.1 - start);
    // Either change may be seen a sleep late; the clock and the counter have nothing but the host's counter in common.
    let (expected, late) = (passed * word("frequency"), word("frequency") / 100);
    check!(counted.abs_diff(expected) < late, "{passed} seconds are {counted} ticks, not {expected}");
    Ok(())
}

/// The latest of what both CPUs have seen.
static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU32 = AtomicU32::new(0);

fn read_in_turn(_index: usize) {
    let mut before = 0;
    for _ in 0..machine::option_number("reads", 40_000) {
        let latest = LATEST.load(Ordering::SeqCst);
        let now = timer::physical_now();
        if now < before || now < latest {
            BACKWARDS.fetch_add(1, Ordering::SeqCst);
        }
        LATEST.fetch_max(now, Ordering::SeqCst);
        before = now;
    }
}

fn p5_a4_never_goes_back() -> Verdict {
    let started = cpu::start(1, read_in_turn);
    check!(started.is_ok(), "CPU_ON: {started:?}");
    read_in_turn(0);
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!(BACKWARDS.load(Ordering::SeqCst), 0, "times that the counter was behind what a CPU had seen");
    Ok(())
}

/// What the handler found.
static SEEN: AtomicU32 = AtomicU32::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static CONTROL: AtomicU64 = AtomicU64::new(0);
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The handler sets the timer to never instead of masking it.
static SETS_COMPARE: AtomicBool = AtomicBool::new(false);

fn note() {
    let count = timer::physical_now();
    let intid = gic::acknowledge();
    if intid != PHYSICAL_PPI {
        return;
    }
    COUNT.store(count, Ordering::SeqCst);
    CONTROL.store(sysreg::cntp_ctl_el0::read(), Ordering::SeqCst);
    LEFT.store(sysreg::cntp_tval_el0::read(), Ordering::SeqCst);
    if SETS_COMPARE.load(Ordering::SeqCst) {
        sysreg::cntp_cval_el0::write(u64::MAX);
    } else {
        sysreg::cntp_ctl_el0::write(ENABLE | IMASK);
    }
    SEEN.fetch_add(1, Ordering::SeqCst);
    gic::end(intid);
}

/// With [`note`] as the handler and the physical timer's interrupt enabled; both as before afterwards.
fn with_note(body: impl FnOnce() -> Verdict) -> Verdict {
    SEEN.store(0, Ordering::SeqCst);
    interrupt::set_handler(note);
    gic::enable(PHYSICAL_PPI);
    cpu::unmask_interrupts();
    let verdict = body();
    cpu::mask_interrupts();
    sysreg::cntp_ctl_el0::write(0);
    SETS_COMPARE.store(false, Ordering::SeqCst);
    interrupt::reset_handler();
    verdict
}

fn p5_a5_never_early() -> Verdict {
    with_note(|| {
        let mut random = Random::new(machine::option_number("seed", 5));
        for round in 1..=machine::option_number("trials", 1000) as u32 {
            let ahead = random.below(real_microseconds(machine::option_number("ahead", 300)) + 2);
            let compare = timer::physical_now() + ahead;
            sysreg::cntp_cval_el0::write(compare);
            sysreg::cntp_ctl_el0::write(ENABLE);
            check!(
                comes(|| SEEN.load(Ordering::SeqCst) == round),
                "round {round}: no interrupt, set {ahead} ticks ahead"
            );
            let (count, left) = (COUNT.load(Ordering::SeqCst), LEFT.load(Ordering::SeqCst) as u32 as i32);
            check!(count >= compare, "round {round}: it came {} ticks early", compare - count);
            check_equal!(
                CONTROL.load(Ordering::SeqCst),
                ENABLE | ISTATUS,
                "round {round}: CNTP_CTL_EL0 in the handler"
            );
            check!(left <= 0, "round {round}: {left} ticks are left in the handler");
        }
        Ok(())
    })
}

fn p5_a5_wfi_wakes_by_the_timer() -> Verdict {
    with_note(|| {
        for round in 1..=20 {
            let compare = timer::physical_now() + real_microseconds(500);
            sysreg::cntp_cval_el0::write(compare);
            sysreg::cntp_ctl_el0::write(ENABLE);
            let mut deadline = two_seconds();
            while SEEN.load(Ordering::SeqCst) < round {
                interrupt::wait_unless(|| SEEN.load(Ordering::SeqCst) == round);
                let is_late = deadline.passed_by(timer::physical_now()) && SEEN.load(Ordering::SeqCst) < round;
                check!(!is_late, "round {round}: slept until {} without it", timer::physical_now());
            }
            check!(timer::physical_now() >= compare, "round {round}: it woke early");
        }
        Ok(())
    })
}

fn p5_a6_extremes() -> Verdict {
    with_note(|| {
        // Never, at the end of the counter, and with it as far off as it can be in the host's.
        for compare in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 60] {
            sysreg::cntp_cval_el0::write(compare);
            sysreg::cntp_ctl_el0::write(ENABLE);
            let end = timer::physical_now() + real_microseconds(1000);
            while timer::physical_now() < end {}
            check_equal!(sysreg::cntp_ctl_el0::read(), ENABLE, "CNTP_CTL_EL0 with CVAL {compare:#x}");
        }
        check_equal!(SEEN.load(Ordering::SeqCst), 0, "interrupts of a timer that is set to never");
        // Negative: at once. The 32 bits are signed, and less than what the counter shows.
        for (round, value) in (1..).zip([0xffff_ffff_u64, 0xffff_0000, 0, 0xffff_ffff_ffff_fff0]) {
            sysreg::cntp_ctl_el0::write(0);
            sysreg::cntp_tval_el0::write(value);
            sysreg::cntp_ctl_el0::write(ENABLE);
            check!(comes(|| SEEN.load(Ordering::SeqCst) == round), "no interrupt at once with TVAL {value:#x}");
        }
        Ok(())
    })
}

fn p5_a6_level() -> Verdict {
    with_note(|| {
        cpu::mask_interrupts();
        let pending = || gic::read_bit(gic::ISPENDR, PHYSICAL_PPI);
        sysreg::cntp_cval_el0::write(0);
        sysreg::cntp_ctl_el0::write(ENABLE | IMASK);
        check_equal!(sysreg::cntp_ctl_el0::read(), ENABLE | IMASK | ISTATUS, "CNTP_CTL_EL0, masked");
        check!(!pending(), "IMASK does not hold the line down");
        for (off, what) in [(0, "disabled"), (ENABLE | IMASK, "masked")] {
            sysreg::cntp_ctl_el0::write(ENABLE);
            check!(comes(pending), "the line does not go up");
            sysreg::cntp_ctl_el0::write(off);
            check!(!pending(), "the line stays up when the timer is {what}");
        }
        // The handler sets the timer to never, and that takes the line down: the interrupt does not come again.
        SETS_COMPARE.store(true, Ordering::SeqCst);
        sysreg::cntp_ctl_el0::write(ENABLE);
        cpu::unmask_interrupts();
        check!(comes(|| SEEN.load(Ordering::SeqCst) == 1), "no interrupt");
        let end = timer::physical_now() + real_microseconds(1000);
        while timer::physical_now() < end {}
        check_equal!(SEEN.load(Ordering::SeqCst), 1, "interrupts");
        Ok(())
    })
}

/// VMClock's page tells the guest's time by the virtual counter, as fast as that is here: the real-time clock's, whether the counter traps
/// or has the host's speed.
fn vmclock_tells_the_guests_time() -> Verdict {
    gic::enable(PHYSICAL_PPI);
    let clock = vmclock::read();
    let disagreement = vmclock::disagreement(&clock, 2, sleep, || memory::read32(0x0901_0000).into());
    check_equal!(disagreement, None, "before, the clock, behind, by {clock:?}");
    let (frequency, rate) = if is_virtual_scaled() { ("frequency", 1_000_000) } else { ("host", word("rate")) };
    let second = (u128::from(clock.period) * u128::from(word(frequency)) * 1_000_000) >> (32 + clock.shift);
    let expected = u128::from(rate) << 32;
    check!(second.abs_diff(expected) < 2_000_000, "a second of its ticks takes {second}, not {expected}, of the unit");
    Ok(())
}

/// With FEAT_ECV it is the same count; without, it runs as fast as the host's, as it is documented to.
fn p5_a11_virtual_counter() -> Verdict {
    for _ in 0..100 {
        let (before, count, after) = (timer::physical_now(), timer::now(), timer::physical_now());
        if is_virtual_scaled() {
            check!((before..=after).contains(&count), "virtual {count}, physical {before} to {after}");
        } else {
            let range = before.saturating_sub(1)..=after + 1;
            check!(range.contains(&scaled(count)), "virtual {count} is not of the host's speed: physical {range:?}");
        }
    }
    Ok(())
}

/// To a guest that ignores its device tree: the virtual timer fires by the virtual counter, whatever that shows.
fn virtual_timer_goes_by_its_counter() -> Verdict {
    gic::enable(VIRTUAL_PPI);
    cpu::unmask_interrupts();
    for round in 1..=20 {
        let ahead = if is_virtual_scaled() { real_microseconds(500) } else { word("host") / 2000 };
        let compare = timer::now() + ahead;
        sysreg::cntv_cval_el0::write(compare);
        sysreg::cntv_ctl_el0::write(ENABLE);
        while interrupt::seen(0, VIRTUAL_PPI) < round {
            interrupt::wait_unless(|| interrupt::seen(0, VIRTUAL_PPI) == round);
        }
        check!(interrupt::last_time(0) >= compare, "round {round}: it came early");
    }
    cpu::mask_interrupts();
    sysreg::cntv_ctl_el0::write(0);
    Ok(())
}

/// WFIT and WFET wait by the guest's count: never for ever, and not by the host's.
fn waits_with_a_timeout() -> Verdict {
    const WFIT: u32 = 0xd503_1020;
    const WFET: u32 = 0xd503_1000;
    for wait in [WFIT, WFET] {
        if !is_virtual_scaled() {
            // A CPU without FEAT_ECV has none of them.
            check!(instruction::execute(wait, &mut [0; 8]).is_err(), "{wait:#x} is executed");
            continue;
        }
        let waits = || guest::exits("wfi").unwrap_or(0);
        let before = waits();
        for round in 0..20 {
            let until = timer::physical_now() + real_microseconds(1000);
            let mut x = [until; 8];
            loop {
                let ended = instruction::execute(wait, &mut x);
                check!(ended.is_ok(), "{wait:#x}: {ended:?}");
                if wait == WFET || timer::physical_now() >= until {
                    break;
                }
            }
            let late = timer::physical_now().saturating_sub(until);
            // By the host's count it would take several times as long as this machine has run.
            check!(late < real_microseconds(10_000_000), "{wait:#x}, round {round}: it ends {late} ticks late");
        }
        // Where the hardware's count is behind the guest's, it would wait too long: each of these exits. Where it is ahead, a wait is
        // over for the CPU before it begins, and does not trap (DDI 0487 C6.2, WFIT): the guest goes round in the loop above.
        if wait == WFIT && scaled(1000) > 1000 {
            check!(waits() >= before + 20, "of 20 times WFIT {} were seen", waits() - before);
        }
    }
    Ok(())
}
