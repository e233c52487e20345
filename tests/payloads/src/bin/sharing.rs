//! Guests that share CPUs: what one of several VMs does. The word `role=` on the command line says what; the bench and
//! `tests/system` start the VMs and compare what they print.
//!
//! | role | what it does |
//! |---|---|
//! | `measure` | counts what a switch of vCPUs and a null call cost, and ends |
//! | `partner` | gives its CPU away, for ever; with the word `fp` it uses an FP register in between; starts after `settle=<ms>`, as `measure` does |
//! | `sleep` | sleeps, for ever |
//! | `count` | counts loops for `ms=<n>` of its virtual time, says how many, and how long it had a CPU; computes for `around=<ms>` before and after that, so that others who started earlier or later have the same company while they count |
//! | `record` | says what its record has of stolen time when it begins, and then computes, for ever |
//! | `bursts` | sleeps for `sleeps=<ms>` and computes for `ms=<n>`, in turn, for ever |
//! | `full` | writes to every line of 64 bytes of its memory, then sleeps and wakes again and again, for ever |
//! | `traps` | reads ICC_PMR_EL1, which traps on some hosts, before and after others had its CPU, and says which of the reads were exits |
//! | `interactive` | after `settle=<ms>`, sleeps and wakes `times=<n>` times, and says how late it was at most |
#![no_std]
#![no_main]

use payload_rt::{bench, cpu, gic, machine, memory, println, psci, sysreg, timer};

/// A block of 2 MiB.
const BLOCK: u64 = 2 << 20;
/// Where the record of stolen time is (DEN0057).
const PV_TIME_ST: u32 = 0xc500_0021;

payload_rt::entry!(main);

fn main() {
    let result = match machine::option("role") {
        Some("measure") => measure(),
        Some("partner") => partner(uses_fp()),
        Some("sleep") => loop {
            cpu::wait_for_interrupt();
        },
        Some("full") => full(),
        Some("count") => count(),
        Some("record") => record(),
        Some("bursts") => bursts(),
        Some("traps") => traps(),
        Some("interactive") => interactive(),
        _ => Err(
            "the command line has no role=measure, partner, sleep, full, count, record, bursts, traps or interactive",
        ),
    };
    match result {
        Ok(()) => println!("payload: 1 passed, 0 failed, 0 skipped"),
        Err(why) => {
            println!("test sharing ... FAILED: {why}");
            println!("payload: 0 passed, 1 failed, 0 skipped");
        }
    }
}

/// No page of its memory is like another, but for a few around its image.
fn full() -> ! {
    let arena = memory::pages(memory::ARENA_PAGES);
    let blocks = (arena..arena + memory::ARENA_PAGES * 4096).step_by(BLOCK as usize).chain(memory::untouched_blocks());
    for block in blocks {
        for line in (block..block + BLOCK).step_by(64) {
            memory::write64(line, line.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }
    gic::enable(timer::VIRTUAL_PPI);
    loop {
        sleep(timer::microseconds(1000));
    }
}

/// Until the other guests sleep and the host has nothing left to tidy up.
fn settle() {
    gic::enable(timer::VIRTUAL_PPI);
    sleep(timer::microseconds(machine::option_number("settle", 100) * 1000));
}

fn partner(fp: bool) -> ! {
    settle();
    loop {
        bench::give_way(fp);
    }
}

fn uses_fp() -> bool {
    machine::machine().command_line.split_ascii_whitespace().any(|word| word == "fp")
}

/// Sleeps until the virtual timer fires, and returns how late it is by then, in ticks.
fn sleep(ticks: u64) -> u64 {
    let deadline = timer::now() + ticks;
    sysreg::cntv_cval_el0::write(deadline);
    sysreg::cntv_ctl_el0::write(timer::ENABLE);
    while gic::acknowledge() != timer::VIRTUAL_PPI {
        cpu::wait_for_interrupt();
    }
    let late = timer::now().saturating_sub(deadline);
    // The virtual one alone: to stop the physical one too would be an exit.
    sysreg::cntv_ctl_el0::write(0);
    gic::end(timer::VIRTUAL_PPI);
    late
}

fn measure() -> Result<(), &'static str> {
    settle();
    let rows = || (bench::turns(uses_fp()), bench::call(psci::VERSION));
    rows();
    let (turn, call) = rows();
    println!("bench turn {}.{}", turn / 10, turn % 10);
    println!("bench call {}.{}", call / 10, call % 10);
    Ok(())
}

fn count() -> Result<(), &'static str> {
    let millisecond = timer::microseconds(1000);
    let around = machine::option_number("around", 0) * millisecond;
    let start = timer::now() + around;
    let end = start + machine::option_number("ms", 1000) * millisecond;
    spin_until(start);
    let before = had();
    let loops = spin_until(end);
    let after = had();
    spin_until(end + around);
    println!("counted {loops}");
    println!("had {} us", (after - before) / 1000);
    Ok(())
}

fn record() -> ! {
    let stolen = memory::read64(psci::simple(PV_TIME_ST, [0; 3]) as u64 + 8);
    println!("stolen at first {} us", stolen / 1000);
    loop {
        bench::spin(1000);
    }
}

fn bursts() -> ! {
    let milliseconds = |name, usual| timer::microseconds(machine::option_number(name, usual) * 1000);
    gic::enable(timer::VIRTUAL_PPI);
    loop {
        sleep(milliseconds("sleeps", 50));
        spin_until(timer::now() + milliseconds("ms", 15));
    }
}

/// For how many nanoseconds it has had a CPU, but for a constant: all the time that was not stolen from it.
///
/// The counter and the record belong together only if the vCPU kept its CPU between the two: a turn of all others in there,
/// of 16 ms with 16 of them, would be taken off the one and not be in the other.
fn had() -> u64 {
    // The second word of the record is the time.
    let record = psci::simple(PV_TIME_ST, [0; 3]) as u64 + 8;
    loop {
        let stolen = memory::read64(record);
        let now = u128::from(timer::now());
        if memory::read64(record) == stolen {
            return (now * 1_000_000_000 / u128::from(sysreg::cntfrq_el0::read())) as u64 - stolen;
        }
    }
}

/// Computes until the counter reaches `end`; in how many loops.
fn spin_until(end: u64) -> u64 {
    let mut loops = 0;
    while timer::now() < end {
        bench::spin(1000);
        loops += 1;
    }
    loops
}

/// What traps does so for as long as the guest runs, however often its vCPU has left its CPU and come back: also if nothing is pending for
/// it, so that nobody looks at its interrupts then.
fn traps() -> Result<(), &'static str> {
    const READS: u64 = 16;
    settle();
    let exits = || guest::exits("system-register").ok_or("the hypervisor does not say how many exits there were");
    let trapped = || {
        let before = exits()?;
        (0..READS).for_each(|_| {
            let _ = sysreg::icc_pmr_el1::read();
        });
        Ok::<_, &'static str>(exits()? - before)
    };
    let before = trapped()?;
    (0..100).for_each(|_| bench::give_way(false));
    println!("trapped {before} of {READS}, then {} of {READS}", trapped()?);
    Ok(())
}

fn interactive() -> Result<(), &'static str> {
    settle();
    let mut latest = 0;
    for _ in 0..machine::option_number("times", 100) {
        latest = latest.max(sleep(timer::microseconds(3000)));
        bench::spin(1000);
    }
    println!("late by {} us", latest * 1_000_000 / sysreg::cntfrq_el0::read());
    Ok(())
}
