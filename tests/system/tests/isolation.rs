//! Guests do not notice each other: what one prints beside others is exactly what it prints alone, even when one of the
//! others does everything to the machine that a guest can do.

use anyhow::{Result, ensure};
use croft::session::Condition;
use libtest_mimic::Trial;
use std::process::ExitCode;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::{BOOT, full, log, scenario};

/// What the neighbour is asked to do.
const STEPS: &str = "steps=40";

fn main() -> ExitCode {
    let (seeds, loops) = if full() { (1..=20, 20_000) } else { (1..=2, 3000) };
    let mut scenarios: Vec<Trial> = vec![scenario("isolation::two_busy_neighbours", two_neighbours)];
    for seed in seeds {
        scenarios.push(scenario(format!("isolation::hostile_seed_{seed}"), move || hostile(seed, loops)));
    }
    let calls = if full() { 5_000_000 } else { 500_000 };
    scenarios.push(scenario("isolation::a_storm_of_calls", move || storm(calls)));
    system::run(scenarios)
}

/// What the neighbour prints when nobody else is there.
fn alone() -> Result<String> {
    let run = Host::default().start(vec![guest::payload("neighbour", "neighbour", 2, STEPS)?])?;
    let output = to_its_end(&run, "neighbour")?;
    ensure!(output.contains("step 40 checksum ok") && output.contains("1 passed, 0 failed"), "{output}");
    run.finish(BOOT)?;
    Ok(output)
}

/// All that a guest prints until it powers itself off.
fn to_its_end(run: &Run, name: &str) -> Result<String> {
    let condition = run.wait_for(name, BOOT, Condition::is_off)?;
    let output = run.console(name)?.transcript();
    ensure!(condition == Condition::PoweredOff, "{name} is {condition}:\n{output}");
    Ok(output)
}

/// Two of them, with more vCPUs than the host has CPUs.
fn two_neighbours() -> Result<()> {
    let expected = alone()?;
    let names = ["one", "other"];
    let mut vms = Vec::new();
    for name in names {
        vms.push(guest::payload(name, "neighbour", 2, STEPS)?);
    }
    let run = Host::default().start(vms)?;
    for name in names {
        let output = to_its_end(&run, name)?;
        ensure!(output == expected, "{name} printed:\n{output}\nbut alone:\n{expected}");
    }
    run.finish(BOOT)
}

/// A payload and a Linux guest compute beside a guest that scribbles over all it can reach.
fn hostile(seed: u32, loops: u32) -> Result<()> {
    let expected = alone()?;
    let vms = vec![
        guest::payload("neighbour", "neighbour", 2, STEPS)?,
        guest::payload("hostile", "hostile", 2, &format!("seed={seed} loops={loops}"))?,
        guest::linux("linux", USUAL, 2, "quiet uc.test=load uc.rounds=5")?,
    ];
    let run = Host { cpu: "max", ..Host::default() }.start_and_stay(vms)?;
    let output = to_its_end(&run, "neighbour")?;
    ensure!(output == expected, "the neighbour printed:\n{output}\nbut alone:\n{expected}");

    run.console("linux")?.expect_unless("uc: load passed", &["Kernel panic", "FAILED"], BOOT * 2)?;
    let linux = to_its_end(&run, "linux")?;
    let complaints = log::suspicious(linux.split_once("cpus online").map_or("", |(_, during)| during));
    ensure!(complaints.is_empty(), "linux complains: {complaints:?}");

    run.wait_for("hostile", BOOT * 2, Condition::is_off)?;
    let of_others: Vec<String> = log::complaints(&run.log().transcript());
    let of_others: Vec<&String> = of_others.iter().filter(|line| !line.contains(": hostile: ")).collect();
    ensure!(of_others.is_empty(), "the hypervisor complains of others: {of_others:?}");
    ensure!(run.damage() == 0, "the link was damaged");
    Ok(())
}

/// A guest calls with any registers, a million times and more, through all of its doors; its neighbour computes, prints what
/// it prints when it is alone, and has not one exit for calls or WFE.
fn storm(calls: u32) -> Result<()> {
    let expected = alone()?;
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut storm = guest::payload("storm", "storm", 2, &format!("seed={seed} calls={calls}"))?;
    storm.doors.vmware = true;
    storm.doors.wfe = true;
    let vms = vec![guest::payload("neighbour", "neighbour", 2, STEPS)?, storm];
    let run = Host { cpu: "max", ..Host::default() }.start_and_stay(vms)?;
    let output = to_its_end(&run, "neighbour")?;
    ensure!(output == expected, "seed {seed}: the neighbour printed:\n{output}\nbut alone:\n{expected}");
    run.wait_for("storm", BOOT * if full() { 20 } else { 2 }, Condition::is_off)?;
    let output = to_its_end(&run, "storm")?;
    ensure!(output.contains("payload: 6 passed, 0 failed, 0 skipped"), "seed {seed}: the storm printed:\n{output}");
    let of_others: Vec<String> = log::complaints(&run.log().transcript());
    let of_others: Vec<&String> = of_others.iter().filter(|line| !line.contains(": storm: ")).collect();
    ensure!(of_others.is_empty(), "seed {seed}: the hypervisor complains of others: {of_others:?}");
    let statistics = run.statistics(BOOT)?;
    let exits = |name: &str| statistics.lines().find(|line| line.starts_with(&format!("{name}: "))).unwrap_or_default();
    let has = |name: &str, reason: &str| exits(name).split_whitespace().any(|word| word == reason);
    ensure!(!has("neighbour", "call") && !has("neighbour", "wfe"), "exits of the neighbour: {}", exits("neighbour"));
    ensure!(has("storm", "call"), "exits of the storm: {}", exits("storm"));
    ensure!(run.damage() == 0, "seed {seed}: the link was damaged");
    Ok(())
}
