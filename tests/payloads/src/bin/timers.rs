//! The generic timers (Arm ARM D12): both of EL1's timers fire when they should and never before, their status bits, and sleeping until
//! they fire.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use payload_rt::random::Random;
use payload_rt::test::Verdict;
use payload_rt::timer::{ENABLE, IMASK, ISTATUS, PHYSICAL_PPI, VIRTUAL_PPI};
use payload_rt::{
    check, check_equal, cpu, gic, instruction, interrupt, machine, memory, psci, skip, sysreg, test, tests, timer, user,
};

payload_rt::entry!(main);

fn main() {
    test::run(&tests!("timers":
        frequency, counters_start_with_the_machine, counters_agree_on_every_cpu, counters_agree_at_el0, counters_run_together, counter_is_monotonic_across_cpus,
        virtual_fires_on_time, physical_fires_on_time, timers_fire_at_el0,
        both_at_once, timer_value_registers, status_and_mask, condition_can_be_withdrawn, extreme_compare_values,
        wfi_wakes_by_timer, wfi_wakes_with_interrupts_masked, wfi_with_pending_does_not_sleep,
        wfi_sleeps_beside_a_timer_that_fired, who_enables_a_fired_timer_wakes, many_short_sleeps, each_cpu_has_its_own,
    ));
}

fn frequency() -> Verdict {
    let frequency = sysreg::cntfrq_el0::read();
    check!((1_000_000..=10_000_000_000).contains(&frequency), "CNTFRQ_EL0 is {frequency} Hz");
    Ok(())
}

/// A read of the physical counter lies between two of the virtual one.
fn counters_agree() -> Verdict {
    let (before, physical, after) = (timer::now(), timer::physical_now(), timer::now());
    check!((before..=after).contains(&physical), "virtual {before} to {after}, physical {physical} in between");
    Ok(())
}

/// Both counters start at 0 with the machine, which is younger than its host.
fn counters_start_with_the_machine() -> Verdict {
    counters_agree()?;
    let (first, now) = (timer::first_count(), timer::now());
    check!(first < now, "the physical counter was {first} at the first instruction, and the virtual one is {now}");
    Ok(())
}

static AGREES: AtomicU32 = AtomicU32::new(0);

fn counters_agree_here(_index: usize) {
    if (0..100).all(|_| counters_agree().is_ok()) {
        AGREES.fetch_add(1, Ordering::SeqCst);
    }
}

fn counters_agree_on_every_cpu() -> Verdict {
    for index in 1..cpu::count() {
        let started = cpu::start(index, counters_agree_here);
        check!(started.is_ok(), "CPU_ON of CPU {index}: {started:?}");
        check!(cpu::wait_off(index), "CPU {index} does not end");
        check_equal!(AGREES.load(Ordering::SeqCst) as usize, index, "CPUs on which the counters agree");
    }
    Ok(())
}

/// CNTKCTL_EL1: EL0 reaches the counters, its timers, or none of them.
const USER_COUNTERS: u64 = 3;
const USER_TIMERS: u64 = 3 << 8;

/// CNTVCT_EL0, CNTPCT_EL0 and CNTVCT_EL0 once more, at EL0 and with ISBs between; each in another register, the highest
/// included.
fn counters_agree_at_el0() -> Verdict {
    const ISB: u32 = 0xd503_3fdf;
    let read = |op2, register| instruction::mrs(3, 3, 14, 0, op2) & !31 | register;
    let code = [ISB, read(2, 1), ISB, read(1, 30), ISB, read(2, 3)];
    let kept = sysreg::cntkctl_el1::read();
    sysreg::cntkctl_el1::write(kept | USER_COUNTERS);
    let end = user::run(user::ExceptionLevel::User, &code, [7; 31]);
    sysreg::cntkctl_el1::write(kept & !USER_COUNTERS);
    let refused = user::run(user::ExceptionLevel::User, &[read(1, 1)], [7; 31]);
    sysreg::cntkctl_el1::write(kept);
    check!(end.is_svc(), "EL0 ends with ESR_EL1 {:#x} at {:#x}", end.esr, end.elr);
    let (before, physical, after) = (end.x[1], end.x[30], end.x[3]);
    check!((before..=after).contains(&physical), "virtual {before} to {after}, physical {physical} in between");
    check_equal!(refused.esr >> 26, 0x18, "the exception class where EL1 keeps the counter from EL0");
    check_equal!(refused.x[1], 7, "X1 after a read that EL1 did not allow");
    Ok(())
}

/// EL0 sets the physical timer by its own count, and it fires by that.
fn timers_fire_at_el0() -> Verdict {
    const ISB: u32 = 0xd503_3fdf;
    // ADD X1, X1, X2.
    const ADD: u32 = 0x8b02_0021;
    let write = |op2, register| instruction::msr(3, 3, 14, 2, op2) & !31 | register;
    let read = instruction::mrs(3, 3, 14, 0, 1) & !31 | 1;
    let mut x = [0; 31];
    (x[2], x[3]) = (timer::microseconds(500), ENABLE);
    gic::enable(PHYSICAL_PPI);
    let kept = sysreg::cntkctl_el1::read();
    sysreg::cntkctl_el1::write(kept | USER_COUNTERS | USER_TIMERS);
    let end = user::run(user::ExceptionLevel::User, &[ISB, read, ADD, write(2, 1), write(1, 3)], x);
    sysreg::cntkctl_el1::write(kept);
    check!(end.is_svc(), "EL0 ends with ESR_EL1 {:#x} at {:#x}", end.esr, end.elr);
    check_equal!(sysreg::cntp_cval_el0::read(), end.x[1], "CNTP_CVAL_EL0");
    cpu::unmask_interrupts();
    let came = timer::wait_until(2000, || interrupt::seen(0, PHYSICAL_PPI) == 1);
    check!(came, "the physical timer that EL0 has set does not fire");
    let at = interrupt::last_time(0);
    check!(at >= end.x[1], "it fired {} ticks early", end.x[1] - at);
    Ok(())
}

/// Both counters, read together: a CPU that stood still in between reads them again.
fn both_counters() -> (u64, u64) {
    loop {
        let (before, physical, after) = (timer::now(), timer::physical_now(), timer::now());
        if after.wrapping_sub(before) < timer::microseconds(2_000) {
            return (before, physical);
        }
    }
}

fn counters_run_together() -> Verdict {
    let (virtual_start, physical_start) = both_counters();
    timer::delay(20_000);
    let (virtual_end, physical_end) = both_counters();
    let (virtual_ticks, physical_ticks) = (virtual_end - virtual_start, physical_end - physical_start);
    check!(virtual_ticks > 0 && physical_ticks > 0, "a counter stands still");
    let difference = virtual_ticks.abs_diff(physical_ticks);
    // The reads are a moment apart.
    check!(difference < timer::microseconds(5_000), "{virtual_ticks} virtual ticks, {physical_ticks} physical ticks");
    Ok(())
}

static STAMP: [core::sync::atomic::AtomicU64; 2] = [const { core::sync::atomic::AtomicU64::new(0) }; 2];
static BACKWARDS: AtomicU32 = AtomicU32::new(0);

/// Passes the counter's value to and fro; each must be at least what the other has seen.
fn pass_stamps(index: usize) {
    let (mine, theirs) = (&STAMP[index.min(1)], &STAMP[1 - index.min(1)]);
    for _ in 0..20_000 {
        let other = theirs.load(Ordering::SeqCst);
        let now = timer::now();
        if now < other {
            BACKWARDS.fetch_add(1, Ordering::SeqCst);
        }
        mine.store(now, Ordering::SeqCst);
    }
}

fn counter_is_monotonic_across_cpus() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    let started = cpu::start(1, pass_stamps);
    check!(started.is_ok(), "CPU_ON: {started:?}");
    pass_stamps(0);
    check!(cpu::wait_off(1), "CPU 1 does not end");
    check_equal!(BACKWARDS.load(Ordering::SeqCst), 0, "times that the counter was behind another CPU's");
    Ok(())
}

/// Arms a timer `ahead` microseconds from now and expects one interrupt, not before its time.
fn fires(ppi: u32, ahead: u64) -> Verdict {
    let seen = interrupt::seen(0, ppi);
    let compare = if ppi == VIRTUAL_PPI {
        let compare = timer::now() + timer::microseconds(ahead);
        sysreg::cntv_cval_el0::write(compare);
        sysreg::cntv_ctl_el0::write(ENABLE);
        compare
    } else {
        let compare = timer::physical_now() + timer::microseconds(ahead);
        sysreg::cntp_cval_el0::write(compare);
        sysreg::cntp_ctl_el0::write(ENABLE);
        compare
    };
    let came = timer::wait_until(2000, || interrupt::seen(0, ppi) != seen);
    check!(came, "timer {ppi} set {ahead} us ahead did not fire");
    // The handler notes the virtual counter, with which both timers agree.
    check!(interrupt::last_time(0) >= compare, "fired {} ticks early", compare - interrupt::last_time(0));
    check_equal!(interrupt::seen(0, ppi), seen + 1, "interrupts of timer {ppi}");
    Ok(())
}

fn fires_on_time(ppi: u32) -> Verdict {
    gic::enable(ppi);
    cpu::unmask_interrupts();
    for ahead in [0, 1, 10, 100, 1000, 10_000, 50_000] {
        fires(ppi, ahead)?;
    }
    check_equal!(interrupt::spurious(0), 0, "spurious interrupts");
    Ok(())
}

fn virtual_fires_on_time() -> Verdict {
    fires_on_time(VIRTUAL_PPI)
}

fn physical_fires_on_time() -> Verdict {
    fires_on_time(PHYSICAL_PPI)
}

fn both_at_once() -> Verdict {
    gic::enable(VIRTUAL_PPI);
    gic::enable(PHYSICAL_PPI);
    cpu::unmask_interrupts();
    for round in 1..=50 {
        sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(200));
        sysreg::cntp_cval_el0::write(timer::physical_now() + timer::microseconds(200));
        sysreg::cntv_ctl_el0::write(ENABLE);
        sysreg::cntp_ctl_el0::write(ENABLE);
        let both = || interrupt::seen(0, VIRTUAL_PPI) == round && interrupt::seen(0, PHYSICAL_PPI) == round;
        let seen = (interrupt::seen(0, VIRTUAL_PPI), interrupt::seen(0, PHYSICAL_PPI));
        check!(timer::wait_until(2000, both), "round {round}: seen {seen:?} before");
    }
    Ok(())
}

fn timer_value_registers() -> Verdict {
    let ahead = timer::microseconds(500_000);
    let before = timer::now();
    sysreg::cntv_tval_el0::write(ahead);
    let after = timer::now();
    let compare = sysreg::cntv_cval_el0::read();
    check!(
        (before + ahead..=after + ahead).contains(&compare),
        "CVAL {compare:#x} after TVAL {ahead:#x} at {before:#x}"
    );
    let left = sysreg::cntv_tval_el0::read();
    check!(left <= ahead && left > 0, "TVAL reads {left:#x}");
    // Negative: 32 bits, sign-extended when written.
    let before = timer::physical_now();
    sysreg::cntp_tval_el0::write(0xffff_ff00);
    let after = timer::physical_now();
    let compare = sysreg::cntp_cval_el0::read();
    let expected = before.wrapping_sub(0x100)..=after.wrapping_sub(0x100);
    check!(expected.contains(&compare), "CNTP_CVAL {compare:#x}, expected within {expected:x?}");
    sysreg::cntp_ctl_el0::write(ENABLE | IMASK);
    check!(sysreg::cntp_ctl_el0::read() & ISTATUS != 0, "a negative TVAL does not meet the condition");
    let left = sysreg::cntp_tval_el0::read();
    check!(left <= u64::from(u32::MAX), "TVAL reads {left:#x}, more than 32 bits");
    Ok(())
}

fn status_and_mask() -> Verdict {
    gic::enable(VIRTUAL_PPI);
    gic::enable(PHYSICAL_PPI);
    cpu::unmask_interrupts();
    // An hour ahead, then right now: how long this vCPU waits for its CPU in between does not matter.
    sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(3_600_000_000));
    sysreg::cntv_ctl_el0::write(ENABLE | IMASK);
    check_equal!(sysreg::cntv_ctl_el0::read(), ENABLE | IMASK, "CNTV_CTL_EL0 before its time");
    sysreg::cntv_cval_el0::write(timer::now());
    check_equal!(sysreg::cntv_ctl_el0::read(), ENABLE | IMASK | ISTATUS, "CNTV_CTL_EL0 after its time");
    // An hour ahead, then right now: how long this vCPU waits for its CPU in between does not matter.
    sysreg::cntp_cval_el0::write(timer::physical_now() + timer::microseconds(3_600_000_000));
    sysreg::cntp_ctl_el0::write(ENABLE | IMASK);
    check_equal!(sysreg::cntp_ctl_el0::read(), ENABLE | IMASK, "CNTP_CTL_EL0 before its time");
    sysreg::cntp_cval_el0::write(timer::physical_now());
    check_equal!(sysreg::cntp_ctl_el0::read(), ENABLE | IMASK | ISTATUS, "CNTP_CTL_EL0 after its time");
    check_equal!(interrupt::seen(0, VIRTUAL_PPI) + interrupt::seen(0, PHYSICAL_PPI), 0, "interrupts while masked");
    sysreg::cntv_ctl_el0::write(ENABLE);
    check!(
        timer::wait_until(1000, || interrupt::seen(0, VIRTUAL_PPI) == 1),
        "no interrupt after CNTV_CTL_EL0.IMASK was cleared"
    );
    sysreg::cntp_ctl_el0::write(ENABLE);
    check!(
        timer::wait_until(1000, || interrupt::seen(0, PHYSICAL_PPI) == 1),
        "no interrupt after CNTP_CTL_EL0.IMASK was cleared"
    );
    Ok(())
}

fn condition_can_be_withdrawn() -> Verdict {
    for round in 0..20 {
        sysreg::cntv_cval_el0::write(0);
        sysreg::cntv_ctl_el0::write(ENABLE);
        check!(
            timer::wait_until(1000, || gic::read_bit(gic::ISPENDR, VIRTUAL_PPI)),
            "round {round}: condition met, not pending"
        );
        sysreg::cntv_cval_el0::write(u64::MAX);
        check!(
            timer::wait_until(1000, || !gic::read_bit(gic::ISPENDR, VIRTUAL_PPI)),
            "round {round}: withdrawn, still pending"
        );
        gic::enable(VIRTUAL_PPI);
        timer::delay(100);
        check_equal!(gic::acknowledge(), gic::SPURIOUS, "round {round}: acknowledged");
        gic::disable(VIRTUAL_PPI);
    }
    Ok(())
}

fn extreme_compare_values() -> Verdict {
    gic::enable(VIRTUAL_PPI);
    gic::enable(PHYSICAL_PPI);
    cpu::unmask_interrupts();
    for compare in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 62] {
        sysreg::cntv_cval_el0::write(compare);
        sysreg::cntv_ctl_el0::write(ENABLE);
        sysreg::cntp_cval_el0::write(compare);
        sysreg::cntp_ctl_el0::write(ENABLE);
        timer::delay(2000);
        check_equal!(sysreg::cntv_ctl_el0::read() & ISTATUS, 0, "CNTV_CTL_EL0.ISTATUS with compare value {compare:#x}");
        check_equal!(sysreg::cntp_ctl_el0::read() & ISTATUS, 0, "CNTP_CTL_EL0.ISTATUS with compare value {compare:#x}");
        check_equal!(sysreg::cntp_cval_el0::read(), compare, "CNTP_CVAL_EL0");
    }
    check_equal!(interrupt::seen(0, VIRTUAL_PPI) + interrupt::seen(0, PHYSICAL_PPI), 0, "interrupts");
    sysreg::cntv_cval_el0::write(0);
    sysreg::cntp_cval_el0::write(0);
    check!(
        timer::wait_until(1000, || interrupt::seen(0, VIRTUAL_PPI) == 1),
        "virtual timer with compare value 0 does not fire"
    );
    check!(
        timer::wait_until(1000, || interrupt::seen(0, PHYSICAL_PPI) == 1),
        "physical timer with compare value 0 does not fire"
    );
    Ok(())
}

fn wfi_wakes_by_timer() -> Verdict {
    for ppi in [VIRTUAL_PPI, PHYSICAL_PPI] {
        gic::enable(ppi);
        cpu::unmask_interrupts();
        for round in 1..=20 {
            let start = timer::now();
            let ahead = timer::microseconds(1000);
            if ppi == VIRTUAL_PPI {
                sysreg::cntv_cval_el0::write(start + ahead);
                sysreg::cntv_ctl_el0::write(ENABLE);
            } else {
                sysreg::cntp_tval_el0::write(ahead);
                sysreg::cntp_ctl_el0::write(ENABLE);
            }
            let mut deadline = timer::Deadline::after_milliseconds(2000);
            while interrupt::seen(0, ppi) < round {
                interrupt::wait_unless(|| interrupt::seen(0, ppi) >= round);
                let is_late = deadline.passed() && interrupt::seen(0, ppi) < round;
                check!(!is_late, "timer {ppi}, round {round}: slept {} ticks without it", timer::now() - start);
            }
        }
        cpu::mask_interrupts();
    }
    Ok(())
}

fn wfi_wakes_with_interrupts_masked() -> Verdict {
    gic::enable(VIRTUAL_PPI);
    for round in 0..20 {
        sysreg::cntv_cval_el0::write(timer::now() + timer::microseconds(500));
        sysreg::cntv_ctl_el0::write(ENABLE);
        let mut intid = gic::SPURIOUS;
        let mut deadline = timer::Deadline::after_milliseconds(2000);
        while intid == gic::SPURIOUS && !deadline.passed() {
            cpu::wait_for_interrupt();
            intid = gic::acknowledge();
        }
        check_equal!(intid, VIRTUAL_PPI, "round {round}: acknowledged");
        sysreg::cntv_ctl_el0::write(0);
        gic::end(intid);
    }
    Ok(())
}

fn wfi_with_pending_does_not_sleep() -> Verdict {
    gic::enable(5);
    for _ in 0..1000 {
        gic::send(5, gic::Target::Affinity(gic::own_affinity()));
        cpu::wait_for_interrupt();
        check_equal!(gic::acknowledge(), 5, "after WFI");
        gic::end(5);
    }
    Ok(())
}

/// As often as WFI may end for nothing: a look every 10 us would be a hundred times that.
const FEW: u32 = 20;

fn fire(ppi: u32) {
    if ppi == VIRTUAL_PPI {
        sysreg::cntv_cval_el0::write(0);
        sysreg::cntv_ctl_el0::write(ENABLE);
    } else {
        sysreg::cntp_cval_el0::write(0);
        sysreg::cntp_ctl_el0::write(ENABLE);
    }
}

/// Sleeps until the interrupt comes; how many WFIs that took.
fn sleep_until(intid: u32) -> u32 {
    let mut times = 0;
    while gic::acknowledge() != intid {
        cpu::wait_for_interrupt();
        times += 1;
    }
    timer::stop();
    gic::end(intid);
    times
}

/// One timer has fired, and its interrupt is masked; the other one fires in 20 ms.
fn wfi_sleeps_beside_a_timer_that_fired() -> Verdict {
    for (fired, other) in [(VIRTUAL_PPI, PHYSICAL_PPI), (PHYSICAL_PPI, VIRTUAL_PPI)] {
        for is_enabled in [false, true] {
            gic::set_priority(fired, 0xe0);
            sysreg::icc_pmr_el1::write(0xc0);
            if is_enabled {
                gic::enable(fired);
            }
            gic::enable(other);
            fire(fired);
            check!(timer::wait_until(1000, || gic::read_bit(gic::ISPENDR, fired)), "timer {fired} is not pending");
            if other == VIRTUAL_PPI {
                sysreg::cntv_tval_el0::write(timer::microseconds(20_000));
                sysreg::cntv_ctl_el0::write(ENABLE);
            } else {
                sysreg::cntp_tval_el0::write(timer::microseconds(20_000));
                sysreg::cntp_ctl_el0::write(ENABLE);
            }
            let times = sleep_until(other);
            check!(times <= FEW, "with timer {fired} fired, enabled {is_enabled}, WFI ended {times} times");
            gic::disable(fired);
            gic::disable(other);
            gic::set_priority(fired, gic::DEFAULT_PRIORITY);
            sysreg::icc_pmr_el1::write(0xff);
        }
    }
    Ok(())
}

static FIRED: AtomicU32 = AtomicU32::new(0);
static TIMES: AtomicU32 = AtomicU32::new(0);

fn sleep_until_enabled(_index: usize) {
    let ppi = FIRED.load(Ordering::SeqCst);
    gic::disable(ppi);
    fire(ppi);
    TIMES.store(sleep_until(ppi), Ordering::SeqCst);
}

/// The one that sleeps may long have left its CPU.
fn who_enables_a_fired_timer_wakes() -> Verdict {
    if cpu::count() < 2 {
        skip!("needs two CPUs");
    }
    for ppi in [VIRTUAL_PPI, PHYSICAL_PPI] {
        for wait in [0, 100, 5_000, 20_000] {
            FIRED.store(ppi, Ordering::SeqCst);
            let started = cpu::start(1, sleep_until_enabled);
            check!(started.is_ok(), "CPU_ON of CPU 1: {started:?}");
            timer::delay(wait);
            let frame = gic::redistributor(cpu::affinity(1)) + gic::SGI_FRAME;
            // It may not have come so far as to disable it.
            let ends = timer::wait_until(5000, || {
                memory::write32(frame + gic::ISENABLER, 1 << ppi);
                timer::delay(1000);
                psci::affinity_info(cpu::affinity(1), 0) == psci::AFFINITY_OFF
            });
            check!(ends, "timer {ppi}, enabled by another CPU after {wait} us, does not wake its own");
            let times = TIMES.load(Ordering::SeqCst);
            check!(times <= FEW, "timer {ppi}, enabled after {wait} us: WFI ended {times} times");
        }
    }
    Ok(())
}

fn many_short_sleeps() -> Verdict {
    let mut random = Random::new(machine::option_number("seed", 1));
    gic::enable(VIRTUAL_PPI);
    cpu::unmask_interrupts();
    for _ in 0..machine::option_number("loops", 500) {
        fires(VIRTUAL_PPI, random.below(300))?;
    }
    Ok(())
}

static CPUS_DONE: AtomicU32 = AtomicU32::new(0);

/// Twenty sleeps on this CPU's own virtual timer.
fn sleep_here(index: usize) {
    gic::enable(VIRTUAL_PPI);
    cpu::unmask_interrupts();
    for round in 1..=20 {
        sysreg::cntv_tval_el0::write(timer::microseconds(300 + 50 * index as u64));
        sysreg::cntv_ctl_el0::write(ENABLE);
        while interrupt::seen(index, VIRTUAL_PPI) < round {
            interrupt::wait_unless(|| interrupt::seen(index, VIRTUAL_PPI) >= round);
        }
    }
    cpu::mask_interrupts();
    CPUS_DONE.fetch_add(1, Ordering::SeqCst);
}

fn each_cpu_has_its_own() -> Verdict {
    CPUS_DONE.store(0, Ordering::SeqCst);
    for index in 1..cpu::count() {
        let started = cpu::start(index, sleep_here);
        check!(started.is_ok(), "CPU_ON of CPU {index}: {started:?}");
    }
    sleep_here(0);
    for index in 1..cpu::count() {
        check!(cpu::wait_off(index), "CPU {index} does not end its sleeps");
    }
    check_equal!(CPUS_DONE.load(Ordering::SeqCst) as usize, cpu::count(), "CPUs done");
    Ok(())
}
