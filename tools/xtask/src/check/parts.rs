//! The parts of the whole, each giving its count.

use super::harness::Harness;
use super::{Each, Part, Tally, payloads};
use crate::compile::{self, BARE_METAL, FOR_UEFI};
use crate::tree::{Tree, words};
use crate::{bench, branches, lint, linux_bench, predictors, shipped, size, stacks, start_calls, starts};
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Runs a part; `name` selects tests.
pub(crate) fn run(tree: &Tree, part: Part, name: &str) -> Result<Tally> {
    match part {
        Part::Lint => Ok(lints(tree)),
        Part::Host => host(tree, name),
        Part::Build => compile::build(tree).map(|()| built(tree)),
        Part::Payloads => payloads::run(tree, name, payloads::Until::Done),
        Part::System => system(tree, name),
        Part::Bench => budgets(tree),
    }
}

/// It is built; the short path of an exit has no indirect branch; no CPU starts with what it remembers; no
/// stack is too small; and the image that ships
/// has nothing of the checks in it, and is no larger than is promised.
fn built(tree: &Tree) -> Tally {
    type Look = (&'static str, fn(&[u8]) -> Result<()>);
    let looks: [Look; 5] = [
        ("short path", branches::check),
        ("predictors", predictors::check),
        ("start calls", start_calls::check),
        ("starts", starts::check),
        ("stacks", stacks::check),
    ];
    let mut tally = Tally::success();
    match compile::hypervisor_elf(tree) {
        Ok(elf) => {
            tally += match compile::checks_elf(tree).and_then(|checks| shipped::check(tree, &elf, &checks)) {
                Ok(()) => Tally::success(),
                Err(error) => Tally::failure(format!("what ships: {error:#}")),
            };
            tally += match size_of_what_ships(tree) {
                Ok(()) => Tally::success(),
                Err(error) => Tally::failure(format!("size of what ships: {error:#}")),
            };
            tally += match compile::checks_elf(tree).and_then(|checks| predictors::check_barriers(&checks)) {
                Ok(()) => Tally::success(),
                Err(error) => Tally::failure(format!("barriers of the image with checks: {error:#}")),
            };
            for (name, look) in looks {
                tally += match look(&elf) {
                    Ok(()) => Tally::success(),
                    Err(error) => Tally::failure(format!("{name}: {error:#}")),
                };
            }
        }
        Err(error) => tally += Tally::failure(format!("no hypervisor to look at: {error:#}")),
    }
    tally
}

fn size_of_what_ships(tree: &Tree) -> Result<()> {
    let image = fs::metadata(compile::hypervisor_image(tree)).context("the image")?;
    let page = fs::read_to_string(tree.path(size::PAGE)).with_context(|| format!("reading {}", size::PAGE))?;
    size::check(image.len(), &page)
}

fn lints(tree: &Tree) -> Tally {
    let mut tally = Tally::default();
    for (name, lint) in lint::LINTS {
        tally += timed(name, || match lint(tree) {
            Ok(()) => Tally::success(),
            Err(error) => Tally::failure(format!("{name}: {error:#}")),
        });
    }
    tally += timed("dependencies", || match lint::dependencies(tree) {
        Ok(None) => Tally::success(),
        Ok(Some(why)) => Tally::skip(format!("dependencies: {why}")),
        Err(error) => Tally::failure(format!("dependencies: {error:#}")),
    });
    tally
}

/// Says how long it took, and what failed at once: what comes behind it takes minutes.
fn timed(name: &str, run: impl FnOnce() -> Tally) -> Tally {
    let since = Instant::now();
    let mut tally = run();
    let time = since.elapsed();
    println!("-- {name}: {:.1} s", time.as_secs_f64());
    tally.failures.iter().for_each(|what| println!("FAILED: {what}"));
    tally.times.push((time, name.to_owned()));
    tally
}

/// Everything but bare metal and whole systems. The whole workspace is named, so that a new crate can't be forgotten.
fn host(tree: &Tree, name: &str) -> Result<Tally> {
    let mut cargo = tree.cargo();
    cargo.args(["test", "--no-fail-fast", "--workspace", "--exclude", "system"]);
    cargo.args(BARE_METAL.iter().chain([&FOR_UEFI]).flat_map(|package| ["--exclude", package]));
    harness(cargo.args(["--", "--format=pretty"]).arg(name), Each::Program)
}

/// The programs of scenarios that take longest, the longest first: what is left for the end is short.
const LONG: [&str; 9] = ["tools", "saved", "life", "percpu", "boot", "watchdog", "readme", "sharing", "devices"];

/// The scenarios of `tests/system`, from two of its programs at a time (decision 0033). Each scenario has an emulated machine of its
/// own, which waits for half of its time for something: two keep two CPUs busy. A program may run one more beside its own, which
/// waits for nearly all of its time.
fn system(tree: &Tree, name: &str) -> Result<Tally> {
    let mut programs = compile::test_programs(tree, "system")?;
    programs.sort_by_key(|(program, _)| LONG.iter().position(|long| long == program).unwrap_or(LONG.len()));
    let queue = Mutex::new(VecDeque::from(programs));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let lane = || {
        let mut tally = Tally::default();
        while let Some((program, file)) = next() {
            let mut command = Command::new(file);
            command.args(["--format=pretty", name]).current_dir(tree.path("tests/system"));
            tally += listen(&mut command, Each::Test, &format!("{program}: "))
                .unwrap_or_else(|error| Tally::failure(format!("{program}: {error:#}")));
        }
        tally
    };
    Ok(thread::scope(|scope| {
        let beside = scope.spawn(lane);
        let mut tally = lane();
        tally += beside.join().unwrap_or_else(|_| Tally::failure("a thread that runs scenarios panicked"));
        tally
    }))
}

/// Runs a command whose output is that of Rust's test harness. It is shown as it comes, with the time of each verdict, and
/// counted. Cargo's own words come the same way, since they say which program the tests are in.
pub(crate) fn harness(command: &mut Command, each: Each) -> Result<Tally> {
    listen(command, each, "")
}

/// As [`harness`]; each line is shown with `whose` before it, for another command may say something at the same time.
fn listen(command: &mut Command, each: Each, whose: &str) -> Result<Tally> {
    let (output, input) = std::io::pipe().context("a pipe for the output of tests")?;
    let starting = format!("starting {}", words(command));
    let mut child = command.stdout(input.try_clone()?).stderr(input).spawn().context(starting)?;
    // The command keeps its ends of the pipe open; with them there would be no end of what is read.
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let mut harness = Harness::new(each, Instant::now());
    for line in BufReader::new(output).lines() {
        let line = line?;
        match harness.line(&line, Instant::now()) {
            Some(time) => println!("{whose}{line} ({:.1} s)", time.as_secs_f64()),
            None => println!("{whose}{line}"),
        }
    }
    let mut tally = harness.end();
    if !child.wait()?.success() && tally.failed == 0 {
        tally += Tally::failure(format!("{} ended before all tests were counted", words(command)));
    }
    Ok(tally)
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
