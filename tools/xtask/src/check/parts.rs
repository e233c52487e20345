//! The parts of the whole, each giving its count.

use super::{Part, Tally};
use crate::compile::{self, BARE_METAL, Image};
use crate::tree::{Tree, words};
use crate::trial::Trial;
use crate::{bench, branches, lint, linux_bench};
use abi::bundle::{Calls, Quota};
use anyhow::{Context, Result};
use croft::site::Vm;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The machine models that payloads run on: everything that QEMU can emulate, and a core of Armv8.0.
const PAYLOAD_MODELS: [&str; 2] = ["max", "cortex-a72"];
/// More models for the doors, which depend on what a CPU can trap.
const DOOR_MODELS: [&str; 2] = ["cortex-a57", "cortex-a76"];
/// Shapes of the model that has everything which differ in the registers that are switched: what `registers` sees there.
const REGISTER_MODELS: [&str; 3] = ["max,pauth-qarma3=on", "max,pauth-qarma5=on", "max,pauth=off"];
/// The doors' payloads.
const DOORS: [&str; 2] = ["doors", "wfe"];
/// CPUs of a payload's host.
const PAYLOAD_CPUS: u8 = 2;
/// vCPUs of a payload's VM: more than there are CPUs, so that they must take turns.
const PAYLOAD_VCPUS: u8 = 3;
/// Payloads that are run on the bare machine too, where they must find out that nobody is there.
const ON_BARE: [&str; 2] = DOORS;
/// Payloads that are no tests by themselves: for the budgets, and for `tests/system`.
const OTHERS: [&str; 4] = ["bench", "greedy", "sharing", "starving"];
/// How long one payload may take.
const PAYLOAD_LIMIT: Duration = Duration::from_secs(180);

/// Runs a part; `name` selects tests.
pub(crate) fn run(tree: &Tree, part: Part, name: &str) -> Result<Tally> {
    match part {
        Part::Lint => Ok(lints(tree)),
        Part::Host => host(tree, name),
        Part::Build => compile::build(tree).map(|()| built(tree)),
        Part::Payloads => payloads(tree, name),
        Part::System => system(tree, name),
        Part::Bench => budgets(tree),
    }
}

/// It is built; and the short path of an exit has no indirect branch.
fn built(tree: &Tree) -> Tally {
    let mut tally = Tally::success();
    tally += match compile::hypervisor_elf(tree).and_then(|elf| branches::check(&elf)) {
        Ok(()) => Tally::success(),
        Err(error) => Tally::failure(format!("short path: {error:#}")),
    };
    tally
}

/// A lint: its name, and what runs it.
type Lint = (&'static str, fn(&Tree) -> Result<()>);

fn lints(tree: &Tree) -> Tally {
    let mut tally = Tally::default();
    let lints: [Lint; 5] = [
        ("formatting", lint::formatted),
        ("layout", lint::layout),
        ("clippy (host)", lint::clippy_host),
        ("clippy (bare metal)", lint::clippy_bare_metal),
        ("check and doc (bare metal, each folder)", lint::in_its_folder),
    ];
    for (name, lint) in lints {
        tally += match lint(tree) {
            Ok(()) => Tally::success(),
            Err(error) => Tally::failure(format!("{name}: {error:#}")),
        };
    }
    tally += match lint::dependencies(tree) {
        Ok(None) => Tally::success(),
        Ok(Some(why)) => Tally::skip(format!("dependencies: {why}")),
        Err(error) => Tally::failure(format!("dependencies: {error:#}")),
    };
    tally
}

/// Everything but bare metal and whole systems. The whole workspace is named, so that a new crate can't be forgotten.
fn host(tree: &Tree, name: &str) -> Result<Tally> {
    let mut cargo = tree.cargo();
    cargo.args(["test", "--no-fail-fast", "--workspace", "--exclude", "system"]);
    cargo.args(BARE_METAL.iter().flat_map(|package| ["--exclude", package]));
    harness(cargo.args(["--", "--format=pretty"]).arg(name))
}

/// The scenarios of `tests/system`, one at a time: each has an emulated machine of its own, with two threads.
fn system(tree: &Tree, name: &str) -> Result<Tally> {
    let mut cargo = tree.cargo();
    cargo.args(["test", "--no-fail-fast", "-p", "system", "--", "--format=pretty", "--test-threads=1"]);
    harness(cargo.arg(name))
}

/// Runs a command whose output is that of Rust's test harness. It is shown as it comes, and counted.
fn harness(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    let mut text = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    let mut tally = Tally::of_harness(&text);
    if !child.wait()?.success() && tally.failed == 0 {
        tally += Tally::failure(format!("{} ended before all tests were counted", words(command)));
    }
    Ok(tally)
}

/// Every payload under the hypervisor, on every model. A name selects a payload, or tests in
/// all of them.
fn payloads(tree: &Tree, name: &str) -> Result<Tally> {
    let images = compile::payloads(tree)?;
    let is_payload = images.iter().any(|image| image.name == name);
    let chosen = |image: &&Image| if is_payload { image.name == name } else { !OTHERS.contains(&&*image.name) };
    let options = if is_payload || name.is_empty() { String::new() } else { format!("test={name}") };
    let mut tally = Tally::default();
    for model in PAYLOAD_MODELS.into_iter().chain(DOOR_MODELS).chain(REGISTER_MODELS) {
        let concerned = |image: &&Image| match model {
            model if DOOR_MODELS.contains(&model) => DOORS.contains(&&*image.name),
            model if REGISTER_MODELS.contains(&model) => image.name == "registers",
            _ => true,
        };
        for image in images.iter().filter(chosen).filter(concerned) {
            println!("-- {} on {model}", image.name);
            tally += with_place(payload(tree, image, model, &options), model);
            if ON_BARE.contains(&&*image.name) {
                println!("-- {} on the bare {model}", image.name);
                tally += with_place(on_bare(image, model, &options), &format!("the bare {model}"));
            }
        }
    }
    Ok(tally)
}

/// Says with each failure and skip where it was.
fn with_place(mut tally: Tally, place: &str) -> Tally {
    for text in tally.failures.iter_mut().chain(&mut tally.skipped) {
        text.push_str(&format!(" (on {place})"));
    }
    tally
}

/// One payload without the hypervisor, at EL1 of one model.
fn on_bare(image: &Image, model: &str, options: &str) -> Tally {
    let mut vm = Vm::new(&*image.name, &image.path, 128 << 20);
    vm.cmdline = format!("reference {options}").trim().to_owned();
    let trial = Trial { vm, cpu: model.to_owned(), cpus: 1, icount: false, limit: PAYLOAD_LIMIT };
    match trial.bare() {
        Ok(report) => {
            print!("{}", report.console);
            Tally::of_payload(&image.name, &report.console)
        }
        Err(error) => Tally::failure(format!("{}: {error:#}", image.name)),
    }
}

/// One payload on one model.
fn payload(tree: &Tree, image: &Image, model: &str, options: &str) -> Tally {
    let mut vm = Vm::new(&*image.name, &image.path, 64 << 20);
    vm.vcpus = PAYLOAD_VCPUS;
    vm.cmdline = format!("{} {options}", words_for(&image.name)).trim().to_owned();
    vm.doors.vmware = matches!(&*image.name, "doors" | "wfe" | "storm");
    vm.doors.wfe = matches!(&*image.name, "wfe" | "storm");
    if image.name == "timers" && model == "max" {
        // FEAT_ECV: the physical counter can start with the VM, too.
        vm.cmdline.push_str(" counters=one");
    }
    vm.doors.generic_watchdog = image.name == "watchdog";
    vm.doors.watchdog_action = abi::bundle::WATCHDOG_RESET;
    if image.name == "doors" {
        // What `quota` on its command line means to it.
        vm.doors.quota = Quota { channels: 8, message: 61_000, keys: 4, store: 128 << 10, log: 1024 };
        vm.doors.user_calls = Calls(Calls::ALL.0 & !Calls::TIME);
    }
    let trial = Trial { vm, cpu: model.to_owned(), cpus: PAYLOAD_CPUS, icount: false, limit: PAYLOAD_LIMIT };
    let report = match trial.under_undercroft(tree) {
        Ok(report) => report,
        Err(error) => return Tally::failure(format!("{}: {error:#}", image.name)),
    };
    print!("{}", report.console);
    let mut tally = Tally::of_payload(&image.name, &report.console);
    if let Some(wrong) = report.wrong {
        tally += Tally::failure(format!("{}: {wrong}", image.name));
    }
    tally
}

/// The words of the command line that keep a payload from running for minutes.
fn words_for(payload: &str) -> &'static str {
    match payload {
        "hostile" => "loops=4000",
        "doors" => "quota",
        "storm" => "calls=20000",
        _ => "",
    }
}

/// Each budget is a test, and each bound on what a Linux guest loses.
fn budgets(tree: &Tree) -> Result<Tally> {
    let rows = bench::measure(tree)?;
    bench::show(&rows);
    let mut tally = verdicts(bench::budgets(), bench::violations(&rows));
    let (bare, guest) = linux_bench::measure(tree)?;
    linux_bench::show(&bare, &guest);
    tally += verdicts(linux_bench::bounds(), linux_bench::violations(&bare, &guest));
    Ok(tally)
}

fn verdicts(all: usize, violations: Vec<String>) -> Tally {
    let mut tally = Tally { passed: all.saturating_sub(violations.len()), ..Tally::default() };
    violations.into_iter().for_each(|what| tally += Tally::failure(what));
    tally
}
