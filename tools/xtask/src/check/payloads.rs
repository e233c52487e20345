//! The bare-metal payloads: which VM each runs in, on which machines, and which words of its command line say so.
//!
//! Most payloads run once on each model, as [`usual`] says. What guests may or may not do depends on the site file, so
//! the payloads of the doors run once more for each way in which it can be written ([`VARIANTS`]); their command line
//! says which it is, so that silence at an open door, and an answer at a closed one, are failures.

use super::{Tally, skips};
use crate::compile::{self, Image};
use crate::tree::Tree;
use crate::trial::Trial;
use crate::{disk, net};
use abi::bundle::{Calls, Coherency, Group, Quota, Time, TimeSource};
use abi::watchdog::Action;
use anyhow::Result;
use croft::site::Vm;
use std::time::{Duration, Instant};

/// The machine models that payloads run on: everything that QEMU can emulate, and a core of Armv8.0.
const MODELS: [&str; 2] = [MAX, "cortex-a72"];
/// Everything that QEMU can emulate.
const MAX: &str = "max";
/// More models for the doors, which depend on what a CPU can trap, and for `registers`.
const DOOR_MODELS: [&str; 2] = ["cortex-a57", "cortex-a76"];
/// Shapes of the model that has everything which differ in the registers that are switched, a core whose algorithm is its own, and one
/// that has SVE and no pointer authentication: what `registers` sees there, in place of [`MAX`], whose algorithm is whichever QEMU
/// takes by itself.
const REGISTER_MODELS: [&str; 6] =
    ["max,pauth-impdef=on", "max,pauth-qarma3=on", "max,pauth-qarma5=on", "max,pauth=off", "neoverse-n2", "a64fx"];
/// The doors' payloads. They are run on the bare machine too, where they must find out that nobody is there.
const DOORS: [&str; 2] = ["doors", "wfe"];
/// CPUs of a payload's host.
const CPUS: u8 = 2;
/// vCPUs of a payload's VM: more than there are CPUs, so that they must take turns.
const VCPUS: u8 = 3;
/// Payloads that are no tests by themselves: for the budgets, and for `tests/system`.
const OTHERS: [&str; 6] = ["bench", "greedy", "kept", "moment", "sharing", "starving"];
/// Payloads that are one test each, whatever the command line selects: a name of some test is none of theirs.
const WHOLE: [&str; 4] = ["hello", "hostile", "neighbour", "reset"];
/// How long one payload may take.
const LIMIT: Duration = Duration::from_secs(180);
/// A line of a payload's that begins so says what the hypervisor's log must say somewhere.
const LOG_MARK: &str = "# log: ";
/// As well, with which words the hypervisor must say something about the payload's VM.
const WARNING_MARK: &str = "# warned: ";

/// A payload in a VM of another kind than the usual one.
struct Variant {
    payload: &'static str,
    /// What is different about it.
    what: &'static str,
    models: &'static [&'static str],
    change: fn(&mut Trial),
    words: &'static str,
}

/// How doors can be, beyond all open: closed; one of them open; strict; and what shows only where a vCPU has its CPU alone,
/// where the site file arms watchdogs, or where time is counted.
const VARIANTS: [Variant; 12] = [
    Variant {
        payload: "smp",
        what: "each vCPU on a CPU of its own",
        models: &["max", "cortex-a72"],
        change: |trial| trial.cpus = VCPUS,
        words: "",
    },
    Variant {
        payload: "timers",
        what: "of another frequency",
        models: &["max"],
        change: |trial| scale(trial, 100_000_000, Time { frequency: 24_000_000, ..Time::default() }),
        words: "",
    },
    Variant {
        payload: "scaled",
        what: "faster than its host, by the CPU's timer",
        models: &["max", "cortex-a72"],
        change: |trial| {
            let time = Time { frequency: 1_000_000_000, source: TimeSource::Cp15, ..Time::default() };
            scale(trial, 62_500_000, time);
            // Each vCPU has a CPU of its own, and so no reason to exit for a wait but its time.
            trial.vm.vcpus = CPUS;
        },
        words: "host=62500000 frequency=1000000000 rate=1000000",
    },
    Variant {
        payload: "scaled",
        what: "slower than its host, at half of real time, by the timer in memory, counted",
        models: &["max"],
        change: |trial| {
            let time = Time { frequency: 24_000_000, rate: 500_000, source: TimeSource::Mmio, ..Time::default() };
            scale(trial, 100_000_000, time);
            (trial.vm.vcpus, trial.cpus, trial.icount) = (2, 1, true);
        },
        words: "host=100000000 frequency=24000000 rate=500000 timer=memory reads=500000 trials=10000 ahead=4 seconds=10",
    },
    Variant {
        payload: "coherency",
        what: "strict",
        models: &["max", "cortex-a72"],
        change: |trial| trial.vm.coherency = Coherency::Strict,
        words: "mode=strict",
    },
    Variant {
        payload: "coherency",
        what: "maintained whatever CTR_EL0 says",
        models: &["max"],
        change: |trial| trial.arguments = "cache-maintenance=always",
        words: "mode=always",
    },
    Variant {
        payload: "doors",
        what: "closed",
        models: &["max", "cortex-a57"],
        change: |trial| trial.vm.doors.vmware = false,
        words: "calls=closed",
    },
    Variant {
        payload: "doors",
        what: "closed but for WFE",
        models: &["cortex-a72"],
        change: |trial| (trial.vm.doors.vmware, trial.vm.doors.wfe) = (false, true),
        words: "calls=closed wfe=open",
    },
    Variant {
        payload: "doors",
        what: "strict",
        models: &["max", "cortex-a57"],
        change: |trial| trial.vm.doors.strict = true,
        words: "strict test=p1_a1_,p1_a2,p1_a3,p1_a5,p1_a7,p1_a9",
    },
    Variant {
        payload: "wfe",
        what: "alone on its CPU, armed by the site file",
        models: &["max", "cortex-a57"],
        change: |trial| {
            trial.vm.vcpus = 1;
            trial.vm.doors.watchdog_milliseconds = 60_000;
            trial.vm.doors.vcpu_watchdog_milliseconds = 60_000;
        },
        words: "armed=60000",
    },
    Variant {
        payload: "wfe",
        what: "two vCPUs on one CPU, counted",
        models: &["cortex-a76"],
        change: |trial| (trial.vm.vcpus, trial.cpus, trial.icount) = (2, 1, true),
        words: "counted rounds=2000 test=p4_a6,p4_a7,p4_a8,p4_a10,no_serror",
    },
    Variant {
        payload: "generic-watchdog",
        what: "counted",
        models: &["max"],
        change: |trial| (trial.vm.vcpus, trial.cpus, trial.icount) = (1, 1, true),
        words: "counted test=second,silent_while_refreshed",
    },
];

/// When to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// When all is done.
    Done,
    /// When something has failed.
    Failure,
}

/// Every payload under the hypervisor, on every model, and the variants. A name selects a payload, or tests in all of them;
/// one like `doors::p1_a1` selects tests of that payload.
pub(crate) fn run(tree: &Tree, name: &str, until: Until) -> Result<Tally> {
    let images = compile::payloads(tree)?;
    if let Some(image) = images.iter().find(|image| image.name == "virtio") {
        disk::write(&disk::beside(&image.path))?;
    }
    let payload = name.split("::").next().filter(|payload| images.iter().any(|image| image.name == *payload));
    let chosen = |image: &&Image| match payload {
        Some(payload) => image.name == payload,
        None => !OTHERS.contains(&&*image.name) && (name.is_empty() || !WHOLE.contains(&&*image.name)),
    };
    let options = if payload == Some(name) || name.is_empty() { String::new() } else { format!("test={name}") };
    let mut tally = Tally::default();
    let is_over = |tally: &Tally| until == Until::Failure && tally.failed > 0;
    for model in MODELS.into_iter().chain(DOOR_MODELS).chain(REGISTER_MODELS) {
        for image in images.iter().filter(chosen) {
            if is_over(&tally) {
                return Ok(tally);
            }
            let is_door = DOORS.contains(&&*image.name);
            let is_concerned = match model {
                model if DOOR_MODELS.contains(&model) => is_door || image.name == "registers",
                model if REGISTER_MODELS.contains(&model) => image.name == "registers",
                MAX => image.name != "registers",
                _ => true,
            };
            if !is_concerned {
                continue;
            }
            let title = format!("{} on {model}", image.name);
            let kind = Kind { model, usual: true, all: options.is_empty() };
            tally += under_undercroft(tree, &title, &usual(image, model, &options), Some(kind));
            if is_door {
                let kind = Kind { model, usual: false, all: options.is_empty() };
                tally += on_bare(&format!("{} on the bare {model}", image.name), &bare(image, model, &options), kind);
            }
            let concerned = |variant: &&Variant| variant.payload == image.name && variant.models.contains(&model);
            for variant in VARIANTS.iter().filter(concerned) {
                let mut trial = usual(image, model, "");
                (variant.change)(&mut trial);
                trial.vm.cmdline = format!("{}{}", with_filter(variant.words, &options), words_of_model(image, model));
                let title = format!("{} on {model}, {}", image.name, variant.what);
                // Tests that somebody has chosen come instead of the variant's own, and it may not have what they need.
                let are_its_own = options.is_empty();
                let kind = Kind { model, usual: false, all: false };
                tally += under_undercroft(tree, &title, &trial, are_its_own.then_some(kind));
            }
        }
    }
    Ok(tally)
}

/// A variant's words; tests that are selected by name come instead of its own.
fn with_filter(words: &str, options: &str) -> String {
    if options.is_empty() {
        return words.to_owned();
    }
    let kept: Vec<&str> = words.split(' ').filter(|word| !word.starts_with("test=")).collect();
    format!("{} {options}", kept.join(" "))
}

/// The VM in which a payload usually runs.
fn usual(image: &Image, model: &str, options: &str) -> Trial {
    let mut vm = Vm::new(&*image.name, &image.path, 64 << 20);
    vm.vcpus = VCPUS;
    let words = [words_of_model(image, model), words_of_usual(image, model)].concat();
    vm.cmdline = format!("{} {options}{words}", words_for(&image.name)).trim().to_owned();
    vm.doors.vmware = matches!(&*image.name, "coherency" | "doors" | "wfe" | "storm" | "scaled");
    vm.doors.wfe = matches!(&*image.name, "wfe" | "storm");
    vm.doors.generic_watchdog = image.name == "generic-watchdog";
    vm.enclave = image.name == "enclave";
    vm.doors.watchdog_action = Action::Reset.number();
    if image.name == "coherency" {
        (vm.vcpus, vm.memory) = (4, 192 << 20);
    }
    if image.name == "doors" {
        // What `quota` on its command line means to it.
        vm.doors.quota = Quota { channels: 8, message: 61_000, keys: 7, store: 128 << 10, log: 1024 };
        vm.doors.user_calls = Calls::only(&[Group::Rpc, Group::Hardware, Group::Own]);
    }
    if image.name == "net" {
        vm.ports = net::ports();
    }
    if image.name == "virtio" {
        vm.disks = disk::of(&disk::beside(&image.path));
    }
    let mut trial = Trial {
        vm,
        cpu: model.to_owned(),
        cpus: CPUS,
        icount: false,
        arguments: "",
        limit: LIMIT,
        qemu_args: Vec::new(),
    };
    if image.name == "scaled" {
        scale(&mut trial, 100_000_000, Time { frequency: 24_000_000, ..Time::default() });
    }
    trial
}

/// On a host whose counter has this frequency, in a VM with this time.
fn scale(trial: &mut Trial, host: u32, time: Time) {
    let model = trial.cpu.split(',').next().unwrap_or_default().to_owned();
    trial.cpu = format!("{model},cntfrq={host}");
    trial.vm.time = time;
}

/// The words of the command line that keep a payload from running for minutes, or say what its site file does.
fn words_for(payload: &str) -> &'static str {
    match payload {
        "hostile" => "loops=4000",
        "doors" => "quota",
        "storm" => "calls=20000",
        "scaled" => "host=100000000 frequency=24000000 rate=1000000",
        _ => "",
    }
}

/// The words that say what its CPU can do: only FEAT_ECV traps the virtual counter.
fn words_of_model(image: &Image, model: &str) -> &'static str {
    if image.name == "scaled" && model == "max" { " virtual=scaled" } else { "" }
}

/// Those of the usual VM only: where the CPU does not trap the virtual counter, its device tree has the timer in memory.
fn words_of_usual(image: &Image, model: &str) -> &'static str {
    if image.name == "scaled" && model != "max" { " timer=memory" } else { "" }
}

/// A payload without the hypervisor, at EL1 of one model.
fn bare(image: &Image, model: &str, options: &str) -> Trial {
    let mut vm = Vm::new(&*image.name, &image.path, 128 << 20);
    vm.cmdline = format!("reference {options}").trim().to_owned();
    Trial { vm, cpu: model.to_owned(), cpus: 1, icount: false, arguments: "", limit: LIMIT, qemu_args: Vec::new() }
}

/// Nothing may be skipped there: it is what the others are compared with.
fn on_bare(title: &str, trial: &Trial, kind: Kind<'_>) -> Tally {
    println!("-- {title}");
    let since = Instant::now();
    let tally = match trial.bare() {
        Ok(report) => {
            print!("{}", report.console);
            let mut tally = Tally::of_payload(&trial.vm.name, &report.console);
            tally += not_to_be_skipped(&trial.vm.name, kind, &tally);
            tally
        }
        Err(error) => Tally::failure(format!("{}: {error:#}", trial.vm.name)),
    };
    with_place(tally, title, since)
}

/// Where a payload runs.
#[derive(Clone, Copy)]
struct Kind<'a> {
    model: &'a str,
    /// In its usual VM.
    usual: bool,
    /// With all of its tests.
    all: bool,
}

/// What is wrong with what it has skipped.
fn not_to_be_skipped(name: &str, kind: Kind<'_>, tally: &Tally) -> Tally {
    let mut wrong = Tally::default();
    for what in skips::wrong(name, kind.model, kind.usual, kind.all, tally) {
        wrong += Tally::failure(format!("{name}: {what}"));
    }
    wrong
}

/// `kind` says what may be skipped; anything, if it is nothing.
fn under_undercroft(tree: &Tree, title: &str, trial: &Trial, kind: Option<Kind<'_>>) -> Tally {
    println!("-- {title}");
    let since = Instant::now();
    let name = &trial.vm.name;
    let tally = match trial.under_undercroft(tree) {
        Ok(report) => {
            print!("{}", report.console);
            let mut tally = Tally::of_payload(name, &report.console);
            if let Some(kind) = kind {
                tally += not_to_be_skipped(name, kind, &tally);
            }
            let wrong = report.wrong.into_iter().chain(not_in_the_log(name, &report.console, &report.log));
            wrong.for_each(|what| tally += Tally::failure(format!("{name}: {what}")));
            tally
        }
        Err(error) => Tally::failure(format!("{name}: {error:#}")),
    };
    with_place(tally, title, since)
}

/// What the payload has sent to the hypervisor's log, by its own words, and is not there as its guest's.
fn not_in_the_log(name: &str, console: &str, log: &str) -> Vec<String> {
    let announced = console.lines().filter_map(|line| line.split_once(LOG_MARK));
    let guests = format!("{name}: guest: ");
    let lines: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once(&guests)?.1.trim_end())).collect();
    let missing = announced.map(|(_, text)| text.trim_end()).filter(|text| !lines.contains(text));
    let missing = missing.map(|text| format!("the log has no line \"{text}\" of the guest's"));
    let about = format!("{name}: ");
    let warnings = console.lines().filter_map(|line| Some(line.split_once(WARNING_MARK)?.1.trim_end()));
    let said =
        |text: &str| log.lines().any(|line| line.split_once(&about).is_some_and(|(_, line)| line.starts_with(text)));
    let untold = warnings.filter(|text| !said(text)).map(|text| format!("the log does not say \"{text}\" of it"));
    missing.chain(untold).collect()
}

/// Says with each failure and skip where it was, and how long all of it took.
fn with_place(mut tally: Tally, place: &str, since: Instant) -> Tally {
    let time = since.elapsed();
    println!("-- {place}: {:.1} s", time.as_secs_f64());
    tally.times.push((time, place.to_owned()));
    for text in tally.failures.iter_mut().chain(&mut tally.skipped) {
        text.push_str(&format!(" ({place})"));
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_what_was_sent() {
        let console = "# log: abc\r\n[doors] # log: d e\ntest x ... ok\n";
        let log = "1.2 INFO: doors: guest: abc\n1.3 INFO: doors: guest: d e\n";
        assert!(not_in_the_log("doors", console, log).is_empty());
        for garbled in ["", "1.2 INFO: doors: guest: abcd\n1.3 INFO: doors: guest: d e\n", "abc\nd e\n"] {
            assert!(!not_in_the_log("doors", console, garbled).is_empty(), "{garbled}");
        }
    }

    #[test]
    fn the_log_says_what_was_announced() {
        let console = "# warned: virtio-rng: the driver waits\r\n";
        assert!(
            not_in_the_log("virtio", console, "1.2 WARN: virtio: virtio-rng: the driver waits for ever\n").is_empty()
        );
        for other in [
            "",
            "1.2 WARN: other: virtio-rng: the driver waits\n",
            "1.2 WARN: virtio: guest: virtio-rng: the driver waits\n",
        ] {
            assert_eq!(not_in_the_log("virtio", console, other).len(), 1, "{other}");
        }
    }

    #[test]
    fn a_test_by_name_replaces_a_variants_own() {
        assert_eq!(with_filter("strict test=a,b", ""), "strict test=a,b");
        assert_eq!(with_filter("strict test=a,b", "test=c"), "strict test=c");
    }
}
