//! The memory-mapped timer, where the device tree names that: the registers of its two frames in all widths, its counters, which
//! are the CPU's, and its two interrupts.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use payload_rt::foreign::{self, Tables};
use payload_rt::random::Random;
use payload_rt::test::Verdict;
use payload_rt::timer::{ENABLE, IMASK, ISTATUS};
use payload_rt::{check, check_equal, cpu, fdt, gic, interrupt, machine, memory, sysreg, timer};

use crate::{comes, real_microseconds, two_seconds, word};

/// Its frames, and the interrupts of its physical and its virtual timer.
const CONTROL: u64 = 0x0912_0000;
const FRAME: u64 = 0x0913_0000;
const INTERRUPTS: [u32; 2] = [32 + 12, 32 + 13];

const CNTTIDR: u64 = CONTROL + 0x08;
const CNTACR: u64 = CONTROL + 0x40;
const CNTVOFF: u64 = CONTROL + 0x80;
const CNTPCT: u64 = FRAME;
const CNTVCT: u64 = FRAME + 0x08;
const CNTFRQ: u64 = FRAME + 0x10;
/// The registers of each timer.
const TIMERS: [u64; 2] = [FRAME + 0x20, FRAME + 0x30];
const CVAL: u64 = 0x0;
const TVAL: u64 = 0x8;
const CTL: u64 = 0xc;

pub(crate) fn is_there() -> bool {
    machine::option("timer") == Some("memory")
}

pub(crate) fn device_tree() -> Verdict {
    let (mut timers, mut place, mut frame, mut interrupts, mut number) = (0, 0, 0, [0; 4], 1);
    let walked = fdt::walk(machine::device_tree(), |_, node, property, value| match (node, property) {
        ("timer", _) => timers += 1,
        ("timer@9120000", "compatible") if value == b"arm,armv7-timer-mem\0" => timers += 0x100,
        ("timer@9120000", "reg") => place = value.get(..8).map_or(0, fdt::number),
        ("frame@9130000", "reg") => frame = value.get(..8).map_or(0, fdt::number),
        ("frame@9130000", "frame-number") => number = fdt::number(value),
        ("frame@9130000", "interrupts") => {
            for (seen, cells) in interrupts.iter_mut().zip(value.chunks(12)) {
                *seen = cells.get(4..8).map_or(0, fdt::number) + 32;
            }
        }
        _ => {}
    });
    check!(walked.is_some(), "the device tree cannot be read");
    check_equal!(timers, 0x100, "nodes of timers: 1 in memory, and properties of another one");
    check_equal!((place, frame, number), (CONTROL, FRAME, 0), "its frames, and the number of the second one");
    check_equal!(interrupts, [44, 45, 0, 0], "its interrupts");
    Ok(())
}

/// The count of the CPU's counter is between what it was before and after.
fn is_the_count(what: &str, read: impl Fn() -> u64) -> Verdict {
    for _ in 0..50 {
        let (before, count, after) = (timer::physical_now(), read(), timer::physical_now());
        check!((before..=after).contains(&count), "{what} is {count}, CNTPCT_EL0 {before} before and {after} after");
    }
    Ok(())
}

/// Both words, as Linux reads them: until the high one is the same before and after the low one.
fn two_words(register: u64) -> u64 {
    loop {
        let high = memory::read32(register + 4);
        let low = memory::read32(register);
        if memory::read32(register + 4) == high {
            return u64::from(high) << 32 | u64::from(low);
        }
    }
}

pub(crate) fn counters() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    check_equal!(memory::read32(CNTTIDR) & 0xf, 0b0011, "CNTTIDR: frame 0, with a virtual timer");
    check_equal!(memory::read32(CNTTIDR) >> 4, 0, "CNTTIDR: other frames");
    for register in [CNTFRQ, CONTROL] {
        check_equal!(u64::from(memory::read32(register)), word("frequency"), "CNTFRQ at {register:#x}");
    }
    memory::write32(CNTACR, u32::MAX);
    check_equal!(memory::read32(CNTACR), 0x3f, "CNTACR0");
    for register in [CNTPCT, CNTVCT] {
        is_the_count("a double word", || memory::read64(register))?;
        is_the_count("two words", || two_words(register))?;
    }
    if sysreg::field(sysreg::id_aa64mmfr0_el1::read(), 8) != 0 {
        // In the other byte order: LDR W1, [X0].
        for register in [CNTVCT, CNTPCT + 4] {
            let (shift, mut x) = (register % 8 * 8, [register, 0, 0, 0, 0, 0, 0, 0]);
            let before = timer::physical_now() >> shift;
            let fault = foreign::execute(0xb940_0001, &mut x, Tables::None);
            let passed = (timer::physical_now() >> shift) - before;
            check_equal!(fault, (0, 0), "ESR and FAR of a big-endian load of {register:#x}");
            let (count, before) = ((x[1] as u32).swap_bytes(), before as u32);
            let is_between = u64::from(count.wrapping_sub(before)) <= passed;
            check!(is_between, "{register:#x} is {count:#x} big-endian, {before:#x} before, {passed:#x} later after");
        }
    }
    // The virtual counter is behind by its offset, which is written in one frame and read in both.
    memory::write64(CNTVOFF, 1 << 40 | 12345);
    check_equal!(memory::read64(FRAME + 0x18), 1 << 40 | 12345, "CNTVOFF of the timer frame");
    is_the_count("CNTVCT and its offset", || memory::read64(CNTVCT).wrapping_add(1 << 40 | 12345))?;
    is_the_count("CNTPCT beside an offset", || memory::read64(CNTPCT))?;
    memory::write64(CNTVOFF, 0);
    // What the frame's owner takes away is not there.
    memory::write32(CNTACR, 0x3f & !1);
    check_equal!(memory::read64(CNTPCT), 0, "CNTPCT without CNTACR0.RPCT");
    is_the_count("CNTVCT", || memory::read64(CNTVCT))?;
    memory::write32(CNTACR, 0x3f);
    Ok(())
}

pub(crate) fn registers() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    let now = || memory::read64(CNTPCT);
    for timer in TIMERS {
        memory::write32(timer + CTL, 0);
        memory::write64(timer + CVAL, 0x1234_5678_9abc_def0);
        check_equal!(memory::read64(timer + CVAL), 0x1234_5678_9abc_def0, "CVAL at {timer:#x}");
        check_equal!(memory::read32(timer + CVAL + 4), 0x1234_5678, "its high word");
        memory::write32(timer + CVAL, 7);
        memory::write32(timer + CVAL + 4, 0);
        check_equal!(memory::read64(timer + CVAL), 7, "CVAL, written as two words");
        memory::write32(timer + CTL, u32::MAX);
        check_equal!(u64::from(memory::read32(timer + CTL)), ENABLE | IMASK | ISTATUS, "CTL, masked, of the past");
        let before = now();
        memory::write32(timer + TVAL, 0x7fff_0000);
        let after = now();
        let compare = memory::read64(timer + CVAL);
        let range = before + 0x7fff_0000..=after + 0x7fff_0000;
        check!(range.contains(&compare), "CVAL is {compare:#x} after a write of TVAL, not in {range:x?}");
        check_equal!(u64::from(memory::read32(timer + CTL)), ENABLE | IMASK, "CTL, masked, of the future");
        check!((1..=0x7fff_0000).contains(&memory::read32(timer + TVAL)), "TVAL counts up");
        memory::write32(timer + TVAL, 0xffff_fff0);
        check!(memory::read32(timer + TVAL) as i32 <= -16, "TVAL that was negative");
        memory::write32(timer + CTL, 0);
    }
    Ok(())
}

static SEEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static COUNT: AtomicU64 = AtomicU64::new(0);
static CONTROLS: AtomicU64 = AtomicU64::new(0);

/// Masks the timer whose interrupt it is, as Linux does.
fn note() {
    let intid = gic::acknowledge();
    let Some(which) = INTERRUPTS.iter().position(|&interrupt| interrupt == intid) else { return };
    let (seen, timer) = (&SEEN[which], TIMERS[which]);
    COUNT.store(memory::read64(CNTPCT), Ordering::SeqCst);
    CONTROLS.store(memory::read32(timer + CTL).into(), Ordering::SeqCst);
    memory::write32(timer + CTL, (ENABLE | IMASK) as u32);
    seen.fetch_add(1, Ordering::SeqCst);
    gic::end(intid);
}

fn with_note(body: impl FnOnce() -> Verdict) -> Verdict {
    SEEN.iter().for_each(|seen| seen.store(0, Ordering::SeqCst));
    interrupt::set_handler(note);
    for interrupt in INTERRUPTS {
        gic::set_trigger(interrupt, gic::Trigger::Level);
        gic::route(interrupt, gic::own_affinity());
        gic::enable(interrupt);
    }
    cpu::unmask_interrupts();
    let verdict = body();
    cpu::mask_interrupts();
    TIMERS.iter().for_each(|timer| memory::write32(timer + CTL, 0));
    INTERRUPTS.into_iter().for_each(gic::disable);
    interrupt::reset_handler();
    verdict
}

fn seen(which: usize) -> u32 {
    SEEN[which].load(Ordering::SeqCst)
}

pub(crate) fn never_early() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    with_note(|| {
        let mut random = Random::new(machine::option_number("seed", 7));
        for round in 1..=machine::option_number("trials", 1000).min(300) as u32 {
            for (which, timer) in TIMERS.into_iter().enumerate() {
                let ahead = random.below(real_microseconds(300) + 2);
                let compare = memory::read64(CNTPCT) + ahead;
                memory::write64(timer + CVAL, compare);
                memory::write32(timer + CTL, ENABLE as u32);
                check!(comes(|| seen(which) == round), "round {round}: no interrupt {which}, {ahead} ticks ahead");
                let count = COUNT.load(Ordering::SeqCst);
                check!(count >= compare, "round {round}: it came {} ticks early", compare - count);
                check_equal!(CONTROLS.load(Ordering::SeqCst), ENABLE | ISTATUS, "round {round}: CTL in the handler");
            }
        }
        Ok(())
    })
}

pub(crate) fn wakes_wfi() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    with_note(|| {
        for round in 1..=20 {
            let compare = memory::read64(CNTPCT) + real_microseconds(500);
            memory::write64(TIMERS[1] + CVAL, compare);
            memory::write32(TIMERS[1] + CTL, ENABLE as u32);
            let mut deadline = two_seconds();
            while seen(1) < round {
                interrupt::wait_unless(|| seen(1) == round);
                let is_late = deadline.passed_by(timer::physical_now()) && seen(1) < round;
                check!(!is_late, "round {round}: slept until {} without it", memory::read64(CNTPCT));
            }
            check!(memory::read64(CNTPCT) >= compare, "round {round}: it woke early");
        }
        Ok(())
    })
}

/// Its line is a level: it goes down with its cause, and a timer that is masked or off has none.
pub(crate) fn level() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    with_note(|| {
        cpu::mask_interrupts();
        for (timer, interrupt) in TIMERS.into_iter().zip(INTERRUPTS) {
            let pending = || gic::read_bit(gic::ISPENDR, interrupt);
            memory::write64(timer + CVAL, 0);
            memory::write32(timer + CTL, (ENABLE | IMASK) as u32);
            check!(!pending(), "IMASK does not hold line {interrupt} down");
            memory::write32(timer + CTL, ENABLE as u32);
            check!(comes(pending), "line {interrupt} does not go up");
            memory::write64(timer + CVAL, u64::MAX);
            check!(!pending(), "line {interrupt} stays up when its time is never");
            memory::write64(timer + CVAL, 0);
            check!(comes(pending), "line {interrupt} does not go up again");
            memory::write32(timer + CTL, 0);
            check!(!pending(), "line {interrupt} stays up when the timer is off");
        }
        Ok(())
    })
}

/// CPU 1 sets the timer, when CPU 0 sleeps, and is off before it fires.
fn set_and_leave(_index: usize) {
    let begin = memory::read64(CNTPCT) + real_microseconds(5_000);
    while memory::read64(CNTPCT) < begin {
        cpu::relax();
    }
    memory::write64(TIMERS[0] + CVAL, memory::read64(CNTPCT) + real_microseconds(20_000));
    memory::write32(TIMERS[0] + CTL, ENABLE as u32);
}

/// The timer is the machine's, not that of the CPU that set it.
pub(crate) fn outlives_the_cpu_that_set_it() -> Verdict {
    if !is_there() {
        return Ok(());
    }
    with_note(|| {
        for round in 1..=3 {
            let started = cpu::start(1, set_and_leave);
            check!(started.is_ok(), "CPU_ON: {started:?}");
            // It sleeps when the timer is set, and so has not looked at it by itself.
            while seen(0) < round {
                interrupt::wait_unless(|| seen(0) == round);
            }
            check!(cpu::wait_off(1), "CPU 1 does not end");
        }
        Ok(())
    })
}
