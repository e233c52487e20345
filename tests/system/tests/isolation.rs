//! Guests do not notice each other: what one prints beside others is exactly what it prints alone, even when another
//! one does everything to the machine that a guest can do.

use abi::bundle::Quota;
use abi::link::Carrier;
use anyhow::{Context, Result, ensure};
use croft::session::{Condition, Outcome};
use croft::site::Vm;
use libtest_mimic::Trial;
use std::process::ExitCode;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::memory::Memory;
use system::{BOOT, SOON, full, log, scenario};

/// What the neighbour is asked to do.
const STEPS: &str = "steps=40";

fn main() -> ExitCode {
    let (seeds, loops) = if full() { (1..=20, 20_000) } else { (1..=2, 3000) };
    let mut scenarios: Vec<Trial> = vec![scenario("isolation::two_busy_neighbours", two_neighbours)];
    scenarios.push(scenario("isolation::nothing_survives_a_reset", nothing_survives_a_reset));
    for seed in seeds {
        scenarios.push(scenario(format!("isolation::hostile_seed_{seed}"), move || hostile(seed, loops)));
    }
    let calls = if full() { 5_000_000 } else { 150_000 };
    scenarios.push(scenario("isolation::a_storm_of_calls", move || storm(calls)));
    scenarios.push(scenario("isolation::a_guest_at_its_limits", at_its_limits));
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

/// Two of them, with more vCPUs than the host has CPUs: two CPUs of a usual sort, and one CPU of each sort that differs in the
/// registers which are switched, where each writes its own values into all that it can reach. One host has a port for the link.
fn two_neighbours() -> Result<()> {
    let expected = alone()?;
    let one = |cpu| Host { cpu, cpus: 1, ..Host::default() };
    let with_port = Host { port: true, ..one("max") };
    let of_sorts =
        ["max,pauth-qarma3=on", "max,pauth-qarma5=on", "max,pauth=off", "neoverse-n2", "cortex-a72"].map(one);
    for host in [Host::default(), with_port].into_iter().chain(of_sorts) {
        let names = ["one", "other"];
        let mut vms = Vec::new();
        for name in names {
            vms.push(guest::payload(name, "neighbour", 2, STEPS)?);
        }
        let run = host.start(vms)?;
        for name in names {
            let output = to_its_end(&run, name)?;
            ensure!(output == expected, "on {host:?} {name} printed:\n{output}\nbut alone:\n{expected}");
        }
        let carrier = if host.port { Carrier::Port } else { Carrier::Uart };
        ensure!(run.carrier() == carrier, "on {host:?} the link goes by {:?}", run.carrier());
        run.finish(BOOT)?;
    }
    Ok(())
}

/// A guest fills whatever it can reach and resets itself, by both calls; nothing of a life is left in the next one: in RAM, the
/// GIC, the timers, nor in any register that is switched, on CPUs that differ in those. On one of them the link's port is shut
/// between two lives: the link goes on by the UART, both ways.
fn nothing_survives_a_reset() -> Result<()> {
    for cpu in ["max,pauth-qarma3=on", "max,pauth-impdef=on", "max,pauth=off", "cortex-a72"] {
        let port = cpu == "cortex-a72";
        let run =
            Host { cpu, cpus: 1, port, ..Host::default() }.start(vec![guest::payload("guest", "reset", 2, "")?])?;
        for (life, word) in ["r", "w", "o"].into_iter().enumerate() {
            run.console("guest")?
                .expect_unless("reset: boot clean", &["FAILED"], BOOT)
                .with_context(|| format!("life {life} on {cpu}"))?;
            if port && life == 1 {
                ensure!(run.carrier() == Carrier::Port, "the link goes by {:?}", run.carrier());
                run.shut_port();
                run.log().expect("it goes by the UART", BOOT)?;
                ensure!(run.carrier() == Carrier::Uart, "the link goes by {:?}", run.carrier());
            }
            run.console("guest")?.send(word)?;
        }
        let output = to_its_end(&run, "guest")?;
        ensure!(output.contains("payload: 1 passed, 0 failed"), "on {cpu}: {output}");
        let outcome = run.wait_stopped(BOOT);
        ensure!(outcome == Outcome::PoweredOff, "on {cpu}: {outcome}");
        run.check_log_but(if port { &["it goes by the UART"] } else { &[] })?;
    }
    Ok(())
}

/// A payload and a Linux guest compute beside a guest that scribbles over all it can reach, and prints a frame that would have
/// the neighbour stopped. With one seed the link goes by the UART, with the next by its port.
fn hostile(seed: u32, loops: u32) -> Result<()> {
    let expected = alone()?;
    let vms = vec![
        guest::payload("neighbour", "neighbour", 2, STEPS)?,
        guest::payload("hostile", "hostile", 2, &format!("seed={seed} loops={loops}"))?,
        guest::linux("linux", USUAL, 2, "quiet uc.test=load uc.rounds=5")?,
    ];
    let port = seed.is_multiple_of(2);
    let run = Host { cpu: "max", port, ..Host::default() }.start_and_stay(vms)?;
    run.console("hostile")?.expect("a frame it is not: ", BOOT)?;
    let output = to_its_end(&run, "neighbour")?;
    ensure!(run.carrier() == if port { Carrier::Port } else { Carrier::Uart }, "the link goes by {:?}", run.carrier());
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

/// What was seen of the guest that uses VMware's service modestly.
struct Polite {
    output: String,
    /// Its lines in the hypervisor's log.
    lines: usize,
    /// How often it left for the hypervisor on its own account, by reason.
    exits: Vec<(String, u64)>,
    /// Milliseconds, which are millions of instructions, that its vCPU ran.
    ran: u64,
}

/// Steps that it makes.
const POLITE_STEPS: usize = 400;

impl Polite {
    fn vm() -> Result<Vm> {
        let mut vm = guest::payload("polite", "greedy", 1, &format!("role=polite steps={POLITE_STEPS}"))?;
        vm.doors.vmware = true;
        Ok(vm)
    }

    /// Looks at it when it is off.
    fn of(run: &Run) -> Result<Self> {
        let output = to_its_end(run, "polite")?;
        let statistics = run.statistics(SOON)?;
        let mut section = statistics.lines().skip_while(|line| !line.starts_with("polite: "));
        let (_, exits) = section.next().and_then(|line| line.split_once("exits: ")).context("no exits")?;
        let words: Vec<&str> = exits.split_whitespace().collect();
        let exits = words.chunks(2).filter_map(|pair| Some((pair.first()?.to_string(), pair.get(1)?.parse().ok()?)));
        let ran = section
            .next()
            .and_then(|line| line.split_once(": ran ")?.1.split_once(" s"))
            .context(statistics.clone())?;
        let log = run.log().transcript();
        let lines = (1..=POLITE_STEPS).filter(|step| log.contains(&format!(": polite: guest: polite line {step:06}")));
        Ok(Self {
            output,
            lines: lines.count(),
            // Interrupts come when the CPU is wanted by others too, and a full console is somebody else's pace.
            exits: exits.filter(|(reason, _)| reason != "interrupt").collect(),
            ran: ran.0.replace('.', "").parse()?,
        })
    }
}

/// A guest takes all that it may have of VMware's service, the log and its console, and never gives anything back. Another one
/// that uses the same service is none the poorer: it makes the same steps with the same exits, in as many instructions within
/// two in a hundred, its channel is never given up, and none of its lines is missing from the log. The hypervisor's memory is
/// bounded by the quotas. All in instructions, on one CPU.
fn at_its_limits() -> Result<()> {
    let host = Host { cpus: 1, ..Host::default() };
    let run = host.start_counted(vec![Polite::vm()?])?;
    let alone = Polite::of(&run)?;
    ensure!(alone.output.contains("payload: 1 passed, 0 failed"), "alone: {}", alone.output);
    ensure!(alone.lines == POLITE_STEPS, "alone, {} of its lines are in the log", alone.lines);
    run.check_log()?;
    drop(run);

    let mut greedy = guest::payload("greedy", "greedy", 1, "role=greedy")?;
    greedy.doors.vmware = true;
    greedy.doors.quota = Quota { channels: 64, message: 65536, keys: 48, store: 64 << 10, log: 64 << 10 };
    let run = host.start_counted(vec![Polite::vm()?, greedy])?;
    run.console("greedy")?.expect("greedy: round 1: ", BOOT)?;
    let first = Memory::read(&run.statistics(SOON)?)?;
    let beside = Polite::of(&run)?;
    let rounds = run.console("greedy")?.transcript();
    let rounds: Vec<&str> = rounds.lines().filter(|line| line.contains("greedy: round ")).collect();
    let last = Memory::read(&run.statistics(SOON)?)?;
    println!(
        "{} rounds; ran {} ms alone, {} ms beside it; the last: {:?}",
        rounds.len(),
        alone.ran,
        beside.ran,
        rounds.last()
    );
    ensure!(
        beside.output == alone.output,
        "beside a greedy guest it printed:\n{}\nbut alone:\n{}",
        beside.output,
        alone.output
    );
    ensure!(
        beside.lines == POLITE_STEPS,
        "beside a greedy guest, {} of {POLITE_STEPS} lines are in the log",
        beside.lines
    );
    ensure!(beside.exits == alone.exits, "exits beside: {:?}, alone: {:?}", beside.exits, alone.exits);
    ensure!(
        beside.ran.abs_diff(alone.ran) * 100 <= alone.ran * 2,
        "beside a greedy guest its steps take {} million instructions, alone {}",
        beside.ran,
        alone.ran
    );
    ensure!(rounds.len() > 3, "the greedy one came round {} times only", rounds.len());
    for round in &rounds {
        let numbers: Vec<u32> = round.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [opened, begun, taken, no_room, too_many, heard, unheard] = numbers[..] else {
            anyhow::bail!("{round}");
        };
        // Each OPEN gives the channel up that was idle longest; 16 messages of 64 KiB are all that may be on their way.
        ensure!(opened == 300 && (1..=16).contains(&begun), "{round}");
        ensure!(taken > 0 && no_room > 0 && too_many > 0 && taken + no_room + too_many == 80, "{round}");
        ensure!(unheard > 0 && heard + unheard == 200, "{round}");
    }
    ensure!(
        last.hypervisor <= first.hypervisor + 64,
        "the hypervisor's memory grew: {last:?}, after a round {first:?}"
    );
    run.check_log()
}
