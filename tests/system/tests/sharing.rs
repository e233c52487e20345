//! More vCPUs than CPUs: who gets how much CPU time, how soon, and what guests are told of the time that they did not get.
//!
//! Most of it is counted in instructions ([`Host::start_coarse`]), by payloads that count their own loops.

use anyhow::{Context, Result, ensure};
use croft::site::Vm;
use std::process::ExitCode;
use std::time::Duration;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::{BOOT, SOON, full, scenario};

/// Counting takes a while on a busy computer.
const LIMIT: Duration = Duration::from_secs(300);
/// An instruction takes eight nanoseconds.
const SHIFT: u8 = 3;

fn main() -> ExitCode {
    system::run(vec![
        scenario("sharing::weights_are_shares", weights),
        scenario("sharing::an_interactive_guest_is_served_soon", interactive),
        scenario("sharing::a_guest_alone_on_its_cpu_waits_there", native_wait),
        scenario("sharing::sixteen_guests_on_two_cpus", || all_progress(16, 2, 2)),
        scenario("sharing::sixty_four_vcpus_on_four_cpus", || all_progress(64, 4, 4)),
        scenario("sharing::linux_is_told_what_was_stolen", stolen_time),
    ])
}

/// A guest that counts loops for so many milliseconds of its time.
fn counting(name: &str, milliseconds: u64) -> Result<Vm> {
    let mut vm = guest::payload(name, "sharing", 1, &format!("role=count ms={milliseconds}"))?;
    vm.memory = 8 << 20;
    Ok(vm)
}

/// The number that the guest prints behind `word`.
fn number(run: &Run, name: &str, word: &str) -> Result<u64> {
    let console = run.console(name)?;
    console.expect_unless(word, &["FAILED"], LIMIT)?;
    let line = console.expect("\n", SOON)?;
    let first = line.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("{name} says {word}{line}"))
}

/// Four guests with weights 1, 1, 2 and 4 on one CPU, though there is another: each gets its share within 3 %.
fn weights() -> Result<()> {
    const WEIGHTS: [u16; 4] = [100, 100, 200, 400];
    let milliseconds = if full() { 60_000 } else { 10_000 };
    let mut vms = Vec::new();
    for (index, weight) in WEIGHTS.into_iter().enumerate() {
        vms.push(Vm { weight, affinity: 1, ..counting(&format!("guest{index}"), milliseconds)? });
    }
    let run = Host::default().start_coarse(vms, SHIFT)?;
    let counts: Result<Vec<u64>> = (0..4).map(|index| number(&run, &format!("guest{index}"), "counted ")).collect();
    let counts = counts?;
    let (all, weight): (u64, u64) = (counts.iter().sum(), WEIGHTS.iter().map(|&weight| u64::from(weight)).sum());
    for (&count, own) in counts.iter().zip(WEIGHTS) {
        let fair = all * u64::from(own) / weight;
        ensure!(count.abs_diff(fair) * 100 <= fair * 3, "of {counts:?}, weight {own} should have {fair}");
    }
    println!("loops: {counts:?}");
    run.finish(LIMIT)
}

/// A guest that sleeps and wakes among eight that compute, on one CPU: it is late by one of their slices at most.
fn interactive() -> Result<()> {
    // Ten milliseconds for all nine, at least one each.
    const SLICE: u64 = 10_000 / 9;
    let mut vms = vec![guest::payload("interactive", "sharing", 1, "role=interactive settle=300 times=200")?];
    for index in 0..8 {
        vms.push(counting(&format!("guest{index}"), 1500)?);
    }
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    ensure!(late <= SLICE, "it was late by {late} us, a slice has {SLICE}");
    println!("late by {late} us");
    run.finish(LIMIT)
}

/// A guest that has a CPU for itself waits by the CPU's own WFI, whatever goes on elsewhere; those that share one give it
/// away.
fn native_wait() -> Result<()> {
    const AWAKENINGS: u64 = 200;
    let sleeper = |name: &str, role: &str, affinity: u64| -> Result<Vm> {
        let words = format!("role={role} settle=10 times={AWAKENINGS}");
        Ok(Vm { affinity, ..guest::payload(name, "sharing", 1, &words)? })
    };
    // The last one never ends, and so keeps the host up.
    let vms = vec![
        sleeper("alone", "interactive", 0b01)?,
        sleeper("one", "interactive", 0b10)?,
        sleeper("other", "sleep", 0b10)?,
    ];
    let run = Host::default().start_coarse(vms, SHIFT)?;
    for name in ["alone", "one"] {
        number(&run, name, "late by ")?;
    }
    let statistics = run.statistics(SOON)?;
    let (alone, one) = (waits(&statistics, "alone"), waits(&statistics, "one"));
    ensure!(alone == Some(0) && one >= Some(AWAKENINGS), "exits by WFI: {alone:?} and {one:?}:\n{statistics}");
    Ok(())
}

/// How many exits by WFI VM `name` had, in the hypervisor's statistics.
fn waits(statistics: &str, name: &str) -> Option<u64> {
    let line = statistics.lines().find(|line| line.starts_with(&format!("{name}: started")))?;
    let (_, exits) = line.split_once("exits:")?;
    let mut words = exits.split_whitespace();
    match words.find(|word| *word == "wfi") {
        Some(_) => words.next()?.parse().ok(),
        None => Some(0),
    }
}

/// So many guests on so few CPUs: all of them progress, none gets less than an `unfair`th of what is fair.
fn all_progress(guests: u64, cpus: u8, unfair: u64) -> Result<()> {
    let vms: Result<Vec<Vm>> = (0..guests).map(|index| counting(&format!("guest{index}"), 4000)).collect();
    let run = Host { cpus, ..Host::default() }.start_coarse(vms?, SHIFT + 1)?;
    let mut counts = Vec::new();
    for index in 0..guests {
        counts.push(number(&run, &format!("guest{index}"), "counted ")?);
    }
    let fair = counts.iter().sum::<u64>() / guests;
    let least = counts.iter().min().copied().unwrap_or(0);
    ensure!(fair > 100 && least * unfair >= fair, "fair would be {fair}: {counts:?}");
    println!("fair is {fair}, the least {least}");
    run.finish(LIMIT)
}

/// Two Linux guests compute on one CPU: what the kernel counts as stolen is what the hypervisor counted, within 1 %.
fn stolen_time() -> Result<()> {
    const NAMES: [&str; 2] = ["one", "other"];
    let vms: Result<Vec<Vm>> = NAMES.iter().map(|name| guest::linux(name, USUAL, 1, "")).collect();
    let run = Host { cpus: 1, ..Host::default() }.start(vms?)?;
    for name in NAMES {
        run.console(name)?.expect_unless("using stolen time PV", &["Kernel panic", "# "], BOOT * 2)?;
    }
    for name in NAMES {
        run.console(name)?.expect_unless("# ", &["Kernel panic"], BOOT * 2)?;
    }
    for name in NAMES {
        run.console(name)?.send("(while :; do :; done) & sleep 15; kill $!; echo com''puted\n")?;
    }
    for name in NAMES {
        run.console(name)?.expect_unless("computed", &["Kernel panic"], BOOT * 2)?;
    }
    for name in NAMES {
        let said = run.ask(name, "awk '/^cpu / { print \"sto\" \"len\", $9 * 10, \"ms\" }' /proc/stat", "stolen ")?;
        let line = run.console(name)?.expect("\n", SOON)?;
        let told: u64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).context(said)?;
        let statistics = run.statistics(SOON)?;
        let counted = counted(&statistics, name).with_context(|| statistics.clone())?;
        ensure!(counted > 4000, "{name}: only {counted} ms were stolen:\n{statistics}");
        ensure!(told.abs_diff(counted) * 100 <= counted, "{name}: Linux says {told} ms, the hypervisor {counted}");
        println!("{name}: Linux says {told} ms, the hypervisor {counted}");
    }
    for name in NAMES {
        run.console(name)?.send("exit\n")?;
    }
    run.finish(BOOT)
}

/// The milliseconds stolen from the first vCPU of VM `name`, in the hypervisor's statistics.
fn counted(statistics: &str, name: &str) -> Option<u64> {
    let own = statistics.lines().skip_while(|line| !line.contains(&format!("{name}: started")));
    let line = own.into_iter().find(|line| line.contains("vCPU 0: "))?;
    let (before, _) = line.split_once(" s of it stolen")?;
    let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
    Some((seconds * 1000.0).round() as u64)
}
