//! Faults in the hypervisor, caused on purpose (`selftest=crash-...`): each is reported as what it is, with a backtrace
//! that leads to its place and with the end of the log, and the host is switched off. The image that ships has none of
//! them.

use anyhow::{Context, Result, ensure};
use croft::session::Outcome;
use object::{Object as _, ObjectSymbol as _};
use qemu::{ExceptionLevel, Machine};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use system::host::{Host, Turn};
use system::{SOON, guest, place, scenario};

/// How long a host may take to crash.
const LIMIT: Duration = Duration::from_secs(120);

/// The argument, what the report says, and the functions that its backtrace begins with.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const CASES: [Case; 5] = [
    ("panic", &["panicked at el2/checks/src/crash_test.rs:", "the self-test panics"], &[]),
    ("undefined", &["ESR 0x2000000 (undefined instruction 0x0)"], &["undefined_instruction", "crash_test"]),
    ("write-code", &["(data abort 0x25)"], &["crash_test"]),
    ("execute-data", &["(instruction abort 0x21)"], &[]),
    ("overflow", &["stack overflow: SP 0x7f0000037", "is in a stack's guard"], &["crash_test"]),
];

fn main() -> ExitCode {
    let trial = |case: Case| scenario(format!("crashes::{}", case.0), move || reported(case));
    let mut scenarios: Vec<_> = CASES.map(trial).into();
    scenarios.push(scenario("crashes::not_in_what_ships", not_in_what_ships));
    scenarios.push(scenario("crashes::beside_vms", beside_vms));
    system::run(scenarios)
}

/// The image that ships does not know the words that make the other one crash: it says so, and goes on.
fn not_in_what_ships() -> Result<()> {
    let words = CASES.map(|(name, ..)| format!("selftest=crash-{name}"));
    let mut machine = host(place::hypervisor()?);
    machine.append = format!("{} selftest=percpu tdcc=hardware all-off=poweroff", words.join(" "));
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let printed = running.console()?.expect_end(LIMIT)?;
    for word in words.iter().map(String::as_str).chain(["selftest=percpu", "tdcc=hardware"]) {
        let said = format!("the boot argument \"{word}\" is unknown; known are link=");
        ensure!(printed.matches(&said).count() == 1, "{said:?} is not there once:\n{printed}");
    }
    ensure!(printed.contains("all VMs are off"), "it did not go on:\n{printed}");
    ensure!(!printed.contains("STOPPED") && !printed.contains("on purpose"), "it crashed:\n{printed}");
    Ok(())
}

/// The lines about VMs wait in rings of their own: the report has the last of them too.
fn beside_vms() -> Result<()> {
    let names = ["one", "two"];
    let vms = names.into_iter().map(|name| guest::payload(name, "kept", 1, "")).collect::<Result<Vec<_>>>()?;
    let run = Host { memory: 512, ..Host::default() }.start_checks(vms, "selftest=crash-panic")?;
    let outcome = run.wait_stopped(LIMIT);
    ensure!(matches!(outcome, Outcome::Panicked(_)), "it ended otherwise: {outcome}");
    run.log().expect("undercroft: stopped", SOON)?;
    let report = run.log().transcript();
    let (_, tail) = report.split_once("last of the log:").with_context(|| format!("no end of the log:\n{report}"))?;
    for name in names {
        let head = format!("last of the log about {name}:");
        let (_, about) = tail.split_once(&head).with_context(|| format!("{head:?} is not there:\n{report}"))?;
        let line = about.lines().nth(1).unwrap_or_default();
        ensure!(line.contains(&format!("INFO: {name}: started (1)")), "what was said of {name} is {line:?}:\n{report}");
    }
    Ok(())
}

/// A small host that runs `image`.
fn host(image: PathBuf) -> Machine {
    let mut machine = Machine::new(image);
    machine.level = ExceptionLevel::El2;
    machine.cpu = "cortex-a72".to_owned();
    machine.cpus = 2;
    machine.memory = 512;
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    machine
}

fn reported((name, says, functions): Case) -> Result<()> {
    let mut machine = host(place::checks()?);
    machine.append = format!("selftest=crash-{name}");
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let report = running.console()?.expect_end(LIMIT)?;
    let status = running.wait_for(Duration::from_secs(10))?.context("QEMU has closed its output and runs on")?;
    ensure!(status.success(), "QEMU ended with {status}:\n{report}");
    // The console's thread may have printed the log before the crash came: what counts is the log's end in the report.
    let (_, log) = report.split_once("last of the log:").with_context(|| format!("no end of the log:\n{report}"))?;
    ensure!(log.matches("selftest: a crash on purpose").count() == 1, "the log's end does not have it once:\n{report}");
    let mut wanted = vec!["undercroft: STOPPED by a fault of its own, CPU "];
    wanted.extend(["thread: selftest", "undercroft: stopped"].iter().chain(says));
    for text in wanted {
        ensure!(report.matches(text).count() == 1, "{text:?} is not there once:\n{report}");
    }
    ensure!(!report.contains("nothing crashed"), "it went on:\n{report}");
    let registers = (0..31).all(|number| report.contains(&format!("x{number:<2} ")));
    ensure!(registers || name == "panic", "the registers are not there:\n{report}");
    let trace = backtrace(&report)?;
    for (address, function) in trace.iter().zip(functions) {
        let symbol = symbol(*address)?;
        ensure!(symbol.contains(function), "{address:#x} is in {symbol}, not in {function}:\n{report}");
    }
    let mut threads = trace.iter().map(|&address| symbol(address)).collect::<Result<Vec<_>>>()?.into_iter();
    let is_test = |name: String| name.contains("crash_test");
    ensure!(name == "execute-data" || threads.any(is_test), "the backtrace does not lead to the test:\n{report}");
    Ok(())
}

/// The offsets of the backtrace, innermost first.
fn backtrace(report: &str) -> Result<Vec<u64>> {
    let (_, rest) = report.split_once("backtrace (offsets in the image):").context("there is no backtrace")?;
    let entry = |line: &str| u64::from_str_radix(line.strip_prefix("  0x")?.split(' ').next()?, 16).ok();
    let trace: Vec<u64> = rest.lines().skip(1).map_while(|line| entry(line.trim_end())).collect();
    ensure!(trace.len() >= 2, "the backtrace has {} entries:\n{report}", trace.len());
    Ok(trace)
}

/// The function of the hypervisor that an offset in its image is in.
fn symbol(offset: u64) -> Result<String> {
    let bytes = std::fs::read(place::checks_symbols()?)?;
    let file = object::File::parse(bytes.as_slice())?;
    let base =
        file.symbols().find(|symbol| symbol.name() == Ok("__image_start")).context("no __image_start")?.address();
    // Mapping symbols ($x, $d) mark code and data, and name no function.
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('$');
    let functions = file.symbols().filter(|symbol| symbol.name().is_ok_and(is_name));
    let before = functions.filter(|symbol| symbol.address() <= base + offset);
    let nearest = before.max_by_key(|symbol| symbol.address()).context("no function is there")?;
    Ok(nearest.name()?.to_owned())
}
