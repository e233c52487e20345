//! More vCPUs than CPUs: which vCPU gets how much CPU time, how soon, and what guests are told of the time that they
//! did not get.
//!
//! Most of it is counted in instructions ([`Host::start_coarse`]), by payloads that count their own loops.

use abi::link::Command;
use anyhow::{Context, Result, ensure};
use croft::session::Condition;
use croft::site::{Disk, Disks, Vm};
use std::process::ExitCode;
use std::time::Duration;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::{BOOT, SOON, scenario};

/// Counting takes a while on a busy computer.
const LIMIT: Duration = Duration::from_secs(300);
/// An instruction takes eight nanoseconds.
const SHIFT: u8 = 3;

/// Any of the CPUs that there are for guests.
const ANY: u64 = u64::MAX;
/// 1:1:2:4, twice.
const UNLIKE: [Part; 8] = [
    (100, ANY, 0.125),
    (100, ANY, 0.125),
    (200, ANY, 0.25),
    (400, ANY, 0.5),
    (100, ANY, 0.125),
    (100, ANY, 0.125),
    (200, ANY, 0.25),
    (400, ANY, 0.5),
];
/// The first cannot have more than a CPU, whatever its weight; the others share the other one.
const TOO_HEAVY: [Part; 5] =
    [(10_000, ANY, 1.0), (100, ANY, 0.25), (100, ANY, 0.25), (100, ANY, 0.25), (100, ANY, 0.25)];
/// Two have the first CPU only, one the second; whoever may have both makes up for it.
const MASKS: [Part; 5] = [(100, 1, 0.4), (100, 1, 0.4), (100, ANY, 0.4), (100, ANY, 0.4), (100, 2, 0.4)];

fn main() -> ExitCode {
    system::run(vec![
        scenario("sharing::weights_are_shares", weights),
        scenario("sharing::an_interactive_guest_is_served_soon", interactive),
        scenario("sharing::who_uses_little_waits_for_nobody_who_has_slept", beside_bursts),
        scenario("sharing::what_a_device_does_in_one_go_is_bounded_by_what_it_costs", long_chains),
        scenario("sharing::who_floods_a_console_pays_for_it_whatever_it_weighs", floods_by_weight),
        scenario("sharing::as_many_as_there_can_be_that_flood_consoles_pay_for_it", floods_of_many),
        scenario("sharing::a_call_makes_a_block_ready_at_a_time", beside_calls),
        scenario("sharing::a_read_of_a_disk_makes_a_block_ready_at_a_time", beside_reads),
        scenario("sharing::a_vm_that_starts_afresh_keeps_nobody_waiting", large_reset),
        scenario("sharing::a_guest_alone_on_its_cpu_waits_there", native_wait),
        scenario("sharing::sixteen_guests_on_two_cpus", || across(2, &[(100, ANY, 1.0 / 8.0); 16], 5)),
        scenario("sharing::sixty_four_vcpus_on_four_cpus", || across(4, &[(100, ANY, 1.0 / 16.0); 64], 5)),
        scenario("sharing::three_guests_on_two_cpus", || across(2, &[(100, ANY, 2.0 / 3.0); 3], 5)),
        scenario("sharing::unlike_weights_on_two_cpus", || across(2, &UNLIKE, 5)),
        scenario("sharing::one_too_heavy_for_its_share", || across(2, &TOO_HEAVY, 5)),
        scenario("sharing::masks_that_overlap", || across(2, &MASKS, 5)),
        scenario("sharing::what_sixty_three_others_cause_costs_nobody_else", what_others_cause),
        scenario("sharing::linux_is_told_what_was_stolen", stolen_time),
        scenario("sharing::neither_a_start_nor_a_pause_is_stolen", others_time),
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

/// Four guests with weights 1, 1, 2 and 4 on one CPU, though there is another: each gets its share within 3 %, while all four
/// compute. One that starts counting before the others do has the CPU to itself for a while.
fn weights() -> Result<()> {
    across(2, &[(100, 1, 0.125), (100, 1, 0.125), (200, 1, 0.25), (400, 1, 0.5)], 3)
}

/// By how many microseconds a guest may be late that has used little: it comes first, as soon as the hypervisor may interrupt what
/// it does for the others. A slice of theirs has 1,111 us, a whole block that is made ready takes 480, a piece of one 15.
const MOST: u64 = 200;
/// The same beside devices with as many descriptors as there can be: each looks at a whole chain in one go. Which of their turns it
/// meets is chance: the same code let it wait for 147 us at most in 300 times, for 207 in 1,500 and for 224 in 4,000. A device that is
/// not bounded by what it costs makes it wait for 2,100 and more.
const MOST_BESIDE_DEVICES: u64 = 400;

/// A guest that sleeps and wakes beside two that sleep for long and then compute for long, which is what one does that resets itself
/// again and again, too: it waits for a shortest slice of 1 ms of each that woke just before it. Its CPU idles in between, so it had
/// more than they had when they wake, and was late by 5 ms beside one of them, and by 13 beside one and the console's thread.
fn beside_bursts() -> Result<()> {
    const SHORTEST_SLICE: u64 = 1000;
    let interactive = guest::payload("interactive", "sharing", 1, "role=interactive settle=100 times=300")?;
    let mut vms = vec![Vm { memory: 8 << 20, ..interactive }];
    for (name, sleeps) in [("one", 50), ("other", 53)] {
        let bursts = guest::payload(name, "sharing", 1, &format!("role=bursts sleeps={sleeps} ms=15"))?;
        vms.push(Vm { memory: 8 << 20, ..bursts });
    }
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    println!("late by {late} us");
    ensure!(late <= MOST + 2 * SHORTEST_SLICE, "it was late by {late} us");
    Ok(())
}

/// A guest that sleeps and wakes beside three whose devices get as many descriptors as there can be, which say nearly nothing:
/// whatever it is counted by, what a device does before anybody else may run costs no more than so much.
fn long_chains() -> Result<()> {
    let mut vms = vec![guest::payload("interactive", "sharing", 1, "role=interactive settle=300 times=300")?];
    let cases = [("output", "kind=3 length=0"), ("nothing", "kind=4 length=0"), ("bytes", "kind=4 length=1")];
    for (name, words) in cases {
        vms.push(guest::payload(name, "starving", 1, &format!("mode=chains {words}"))?);
    }
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    println!("late by {late} us");
    ensure!(late <= MOST_BESIDE_DEVICES, "it was late by {late} us, more than {MOST_BESIDE_DEVICES}");
    for (name, _) in cases {
        run.console(name)?.expect("the device takes chains", LIMIT)?;
    }
    Ok(())
}

/// A guest that sleeps and wakes among seven that compute and one whose device has much untouched memory made ready, on one
/// CPU: it is never late by much, whatever the others do. While the feeding one is paused, none of its memory is made ready.
fn interactive() -> Result<()> {
    let mut vms = vec![guest::payload("interactive", "sharing", 1, "role=interactive settle=300 times=200")?];
    for index in 0..7 {
        vms.push(counting(&format!("guest{index}"), 1500)?);
    }
    let feeding = guest::payload("feeding", "starving", 1, "mode=feeding")?;
    vms.push(Vm { memory: 384 << 20, ..feeding });
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    run.control(Command::PauseVm { vm: run.vm("feeding")? })?;
    run.wait_for("feeding", SOON, |condition| *condition == Condition::Paused)?;
    ensure!(late <= MOST, "it was late by {late} us, more than {MOST}");
    println!("late by {late} us");
    let shown = || blocks(&run.statistics(SOON)?, "feeding");
    let before = shown()?;
    for index in 0..7 {
        number(&run, &format!("guest{index}"), "counted ")?;
    }
    let after = shown()?;
    // One may have been under way.
    ensure!(after <= before + 1, "of the paused guest's blocks, {} were made ready", after - before);
    run.control(Command::ResumeVm { vm: run.vm("feeding")? })?;
    // Many were left for later, or this would show nothing.
    let fed = number(&run, "feeding", "starving: fed ")?;
    ensure!(fed > after + 32, "{fed} blocks were fed, and {after} were ready before the pause ended");
    // Its last vCPU has switched itself off, and so it is off.
    run.wait_for("feeding", SOON, |condition| *condition == Condition::PoweredOff)?;
    run.finish(LIMIT)
}

/// A guest that sleeps and wakes beside one whose untouched memory is made ready for what it has the hypervisor do, and that then
/// switches itself off. The first one is never late by much: between two pieces of a block it may come first.
fn beside_untouched(other: Vm) -> Result<()> {
    /// It measures for so long, less than the other one's memory takes.
    const TIMES: u64 = 100;
    /// Less than a whole block takes. A piece of what the service takes in one go is half of [`MOST`].
    const MOST_HERE: u64 = 350;
    let words = format!("role=interactive settle=300 times={TIMES}");
    let name = other.name.clone();
    let other = Vm { memory: 1 << 30, ..other };
    let run = Host { cpus: 1, memory: 2048, ..Host::default() }
        .start_coarse(vec![guest::payload("interactive", "sharing", 1, &words)?, other], SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    let ready = number(&run, &name, "starving: all is ready: ")?;
    println!("late by {late} us, beside one for which {ready} blocks were made ready");
    ensure!(ready > 400, "only {ready} blocks were made ready");
    ensure!(late <= MOST_HERE, "it was late by {late} us, more than {MOST_HERE}");
    for name in ["interactive", &name] {
        run.wait_for(name, SOON, |condition| *condition == Condition::PoweredOff)?;
    }
    let log = run.log().transcript();
    let off = |name: &str| log.find(&format!("{name}: powered off")).with_context(|| log.clone());
    ensure!(off("interactive")? < off(&name)?, "the other one was done before it had slept {TIMES} times:\n{log}");
    run.finish(LIMIT)
}

/// VMware's service reads messages and strings, and writes replies, each page of them in a block of its own. Where the blocks of a
/// call were made ready under the service's lock, all in one go, its neighbour was late by 1,400 us.
fn beside_calls() -> Result<()> {
    let mut calling = guest::payload("calling", "starving", 1, "mode=calling settle=280")?;
    calling.doors.vmware = true;
    beside_untouched(calling)
}

/// A disk fills buffers of a sector, each in a block of its own.
fn beside_reads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk");
    std::fs::write(&image, vec![7; 1 << 20])?;
    let mut reading = guest::payload("reading", "starving", 1, "mode=reading settle=280")?;
    reading.disks = Disks::of([Disk::of_image(image, "full".to_owned())]).context("too many disks")?;
    beside_untouched(reading)
}

/// A guest that sleeps and wakes beside one with 1.5 GiB, which has a table of pages for each block of it, and resets itself: all
/// that is taken apart, given back and allocated again, and none of it in one go.
fn large_reset() -> Result<()> {
    let vms = vec![
        guest::payload("interactive", "sharing", 1, "role=interactive settle=300 times=1000")?,
        Vm { memory: 1536 << 20, ..guest::payload("large", "starving", 1, "mode=executing")? },
    ];
    let run = Host { cpus: 1, memory: 2048, ..Host::default() }.start_coarse(vms, SHIFT)?;
    let late = number(&run, "interactive", "late by ")?;
    println!("late by {late} us");
    let log = run.log().transcript();
    ensure!(log.contains("large: started (2)"), "it was not started afresh meanwhile:\n{log}");
    ensure!(late <= MOST, "it was late by {late} us, more than {MOST}");
    Ok(())
}

/// A guest that computes, and others on the same CPU that write as much as they can: to the virtio console, and to the UART. What
/// of its share the first one had.
fn beside_floods(weight: u16, milliseconds: u64, others: &[(u16, &str)]) -> Result<f64> {
    let mut vms = vec![Vm { weight, ..counting("victim", milliseconds)? }];
    for (number, &(weight, mode)) in others.iter().enumerate() {
        let vm = guest::payload(&format!("{mode}{number}"), "starving", 1, &format!("mode={mode}"))?;
        vms.push(Vm { weight, memory: 8 << 20, ..vm });
    }
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT + 1)?;
    let had = number(&run, "victim", "had ")? as f64;
    let all: u64 = others.iter().map(|&(weight, _)| u64::from(weight)).sum::<u64>() + u64::from(weight);
    let part = had / (milliseconds as f64 * 1000.0 * f64::from(weight) / all as f64);
    println!("of its share, {weight} of {all}, it had {:.1} %", part * 100.0);
    Ok(part)
}

/// What the hypervisor does for a guest's output comes out of that guest's share, whatever the two weigh beside the thread
/// that does it. Where that thread had its own weight of 100, a victim of weight 1 had a tenth of its share.
fn floods_by_weight() -> Result<()> {
    for mode in ["flood", "chatter"] {
        for (own, other, milliseconds) in
            [(1, 1, 1000), (10, 10, 1000), (100, 100, 1000), (1, 100, 3000), (100, 1, 500)]
        {
            let had = beside_floods(own, milliseconds, &[(other, mode)])?;
            ensure!(had >= 0.92, "beside {mode} of weight {other}, one of {own} had {:.1} % of its share", had * 100.0);
        }
    }
    Ok(())
}

/// The same where as many do so as there can be.
fn floods_of_many() -> Result<()> {
    let others: Vec<(u16, &str)> = (0..63).map(|number| (1, ["flood", "chatter"][number % 2])).collect();
    let had = beside_floods(1, 3000, &others)?;
    ensure!(had >= 0.92, "beside 63 that flood their consoles it had {:.1} % of its share", had * 100.0);
    Ok(())
}

/// A guest that has a CPU for itself waits by the CPU's own WFI, whatever goes on elsewhere; those that share one give it
/// away. So the one is said to have run while it slept, and the others are not.
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
    let (alone, one) = (Times::of(&run, "alone")?, Times::of(&run, "one")?);
    println!("alone: {alone:?}, beside another: {one:?}");
    ensure!(alone.ran > 4 * one.ran, "it ran while it slept, or the other did: {alone:?} and {one:?}");
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

/// A guest's weight and the CPUs it may run on, and what is fair: parts of a CPU.
type Part = (u16, u64, f64);

/// Each of these guests on `cpus` CPUs gets what is fair, or less by at most so many percent. In time, not in loops: counting
/// instructions, QEMU runs one CPU after the other, and whenever there is an interrupt it begins again, with a smaller part
/// for each. The first CPU of two so executes more than twice what the second one does.
fn across(cpus: u8, parts: &[Part], percent: u32) -> Result<()> {
    let mut vms = Vec::new();
    for (index, &(weight, affinity, _)) in parts.iter().enumerate() {
        let mut vm = counting(&format!("guest{index}"), 4000)?;
        vm.cmdline.push_str(" around=1000");
        vms.push(Vm { weight, affinity, ..vm });
    }
    let run = Host { cpus, ..Host::default() }.start_coarse(vms, SHIFT + 1)?;
    let mut got = Vec::new();
    for (index, (_, _, part)) in parts.iter().enumerate() {
        let had = number(&run, &format!("guest{index}"), "had ")?;
        got.push(had as f64 / (4_000_000.0 * part));
    }
    let least = got.iter().copied().fold(f64::INFINITY, f64::min);
    let most = got.iter().copied().fold(0.0, f64::max);
    println!("of what is fair the least got {:.1} %, the most {:.1} %", least * 100.0, most * 100.0);
    ensure!(least * 100.0 >= f64::from(100 - percent), "parts of what is fair: {got:.3?}");
    run.finish(LIMIT)
}

/// As many guests as a host can have. 57 bring watchdogs' and clocks' deadlines forward all the time, four break their devices,
/// two reset themselves: what the hypervisor has to do something about besides. One computes on the same CPU, and has
/// its share, but for what the console's thread has, which counts as a guest more. No line about anybody is lost in
/// the log, but for those about whoever causes too many.
fn what_others_cause() -> Result<()> {
    const OTHERS: [(&str, usize); 3] = [("lowering", 57), ("breaking", 4), ("resetting", 2)];
    /// In how many ways a guest breaks its devices, and with which words the log says so.
    const WAYS: [&str; 6] = [
        "virtio-console: queue 0 was made ready",
        "virtio-console: 0x8000000000",
        "virtio-rng: queue 0 was made ready",
        "virtio-rng: descriptor 64 does not exist",
        "virtio-blk: queue 0 was made ready",
        "virtio-blk: a request has no room",
    ];
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk");
    std::fs::write(&image, vec![7; 4096])?;
    let mut vms = vec![counting("victim", 4000)?];
    for (mode, count) in OTHERS {
        for number in 0..count {
            let mut vm = guest::payload(&format!("{mode}{number}"), "starving", 1, &format!("mode={mode}"))?;
            vm.memory = 8 << 20;
            (vm.doors.wfe, vm.doors.generic_watchdog) = (true, true);
            if mode == "breaking" {
                vm.disks = Disks::of([Disk::of_image(image.clone(), "d".to_owned())]).context("too many disks")?;
            }
            vms.push(vm);
        }
    }
    let names: Vec<String> = vms.iter().map(|vm| vm.name.clone()).collect();
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vms, SHIFT + 1)?;
    let had = number(&run, "victim", "had ")? as f64 / (4_000_000.0 / 64.0);
    println!("of its share it had {:.1} %", had * 100.0);
    // 98.5 % would be fair, 28 % is what it had when the looks at deadlines were without a pace. Where its last turn ends within
    // its four seconds moves this by one or two percent with every change of the hypervisor's code.
    ensure!(had >= 0.92, "beside 63 others that make work for the hypervisor it had {:.1} % of its share", had * 100.0);
    let log = run.log().transcript();
    for name in &names {
        ensure!(log.contains(&format!("{name}: started (1)")), "not in the log: {name} was started\n{log}");
    }
    let torn = |line: &&str| line.split_once(' ').is_none_or(|(time, _)| time.parse::<f64>().is_err());
    let torn: Vec<&str> = log.lines().rev().skip(1).filter(torn).collect();
    ensure!(torn.is_empty(), "torn lines: {torn:?}");
    for number in 0..4 {
        let of = |what: &str| log.lines().filter(|line| line.contains(&format!(": breaking{number}: {what}"))).count();
        let (lines, counts) = (of("virtio-"), log.matches(&format!("breaking{number}: ")).count());
        ensure!((10..60).contains(&lines), "{lines} lines about breaking{number}");
        for way in WAYS {
            ensure!(of(way) > 0, "breaking{number} has not broken a device so: {way}\n{log}");
        }
        ensure!(counts > lines + 1, "the lines about breaking{number} that were left out are not counted:\n{log}");
    }
    for name in ["resetting0", "resetting1"] {
        let said = log
            .contains(&format!("{name}: it resets itself again and again within seconds; it starts again in 500 ms"));
        ensure!(said && !log.contains(&format!("{name}: started (20)")), "{name} was not slowed down:\n{log}");
    }
    Ok(())
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

/// What a guest waits for its neighbour is stolen; what its vCPU's thread waits while it loads the guest's images, and how long a pause
/// lasts, is not. What that thread waited, and how long the neighbour ran, the hypervisor counts by itself.
fn others_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let images = folder.path().join("images");
    std::fs::write(&images, vec![7; 64 << 20])?;
    let guest = |name| guest::payload(name, "sharing", 1, "role=record");
    let late = Vm { memory: 128 << 20, initrd: Some(images), ..guest("late")? };
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vec![guest("other")?, late], SHIFT)?;
    let at_first = number(&run, "late", "stolen at first ")? / 1000;
    let begun = Times::of(&run, "late")?;
    let loading = begun.waited - begun.stolen;
    println!("{loading} ms were waited while its images were loaded, of which {at_first} were stolen: {begun:?}");
    ensure!(loading > 100 && at_first * 10 < loading, "{at_first} of {loading} ms were stolen before it began");

    let shared = run_for(&run, "late", 500)?.since(begun);
    println!("beside its neighbour: {shared:?}");
    ensure!(shared.stolen * 2 > shared.ran, "it shared its CPU, and little was stolen: {shared:?}");
    ensure!(shared.waited.abs_diff(shared.stolen) * 20 <= shared.waited, "it waited, and was in no pause: {shared:?}");

    let (pause, resume) = (Command::PauseVm { vm: run.vm("late")? }, Command::ResumeVm { vm: run.vm("late")? });
    run.control(pause)?;
    run.wait_for("late", SOON, |condition| *condition == Condition::Paused)?;
    let (before, company) = (Times::of(&run, "late")?, Times::of(&run, "other")?);
    let alone = run_for(&run, "other", 8000)?.since(company);
    run.control(resume)?;
    let paused = run_for(&run, "late", 100)?.since(before);
    println!("its neighbour ran for {} ms in a pause: {paused:?}", alone.ran);
    // Behind the pause as much is stolen as it runs, for as long as nobody looks.
    ensure!(paused.stolen < alone.ran / 2 + paused.ran, "in a pause of {} ms, and behind it: {paused:?}", alone.ran);
    // Both are rounded.
    ensure!(paused.stolen <= paused.waited + 1, "more was stolen than it waited: {paused:?}");
    Ok(())
}

/// What the hypervisor's statistics say of a VM's first vCPU, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    ran: u64,
    waited: u64,
    stolen: u64,
}

impl Times {
    fn of(run: &Run, name: &str) -> Result<Self> {
        let statistics = run.statistics(SOON)?;
        let mut own = statistics.lines().skip_while(|line| !line.starts_with(&format!("{name}: started")));
        let line = own.find(|line| line.contains("vCPU 0: ran ")).with_context(|| statistics.clone())?;
        let mut times = line.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
        let mut next =
            || times.next().map(|seconds| (seconds * 1000.0).round() as u64).with_context(|| line.to_owned());
        Ok(Self { ran: next()?, waited: next()?, stolen: next()? })
    }

    const fn since(self, before: Self) -> Self {
        Self { ran: self.ran - before.ran, waited: self.waited - before.waited, stolen: self.stolen - before.stolen }
    }
}

/// Lets VM `name` run for so many milliseconds more, and says how long it has by then.
fn run_for(run: &Run, name: &str, milliseconds: u64) -> Result<Times> {
    let begin = Times::of(run, name)?;
    for _ in 0..5000 {
        let now = Times::of(run, name)?;
        if now.ran >= begin.ran + milliseconds {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("{name} does not run: {begin:?}, and then {:?}", Times::of(run, name)?)
}

/// How many blocks VM `name` is shown, in the hypervisor's statistics.
fn blocks(statistics: &str, name: &str) -> Result<u64> {
    let mut own = statistics.lines().skip_while(|line| !line.starts_with(&format!("{name}: started")));
    let line = own.find(|line| line.contains("  code: ")).with_context(|| statistics.to_owned())?;
    let (before, _) = line.split_once(" pages executable").with_context(|| line.to_owned())?;
    Ok(before.rsplit(' ').next().unwrap_or_default().parse::<u64>()? / 512)
}

/// The milliseconds stolen from the first vCPU of VM `name`, in the hypervisor's statistics.
fn counted(statistics: &str, name: &str) -> Option<u64> {
    let own = statistics.lines().skip_while(|line| !line.starts_with(&format!("{name}: started")));
    let line = own.into_iter().find(|line| line.contains("vCPU 0: "))?;
    let (before, _) = line.split_once(" s of it stolen")?;
    let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
    Some((seconds * 1000.0).round() as u64)
}
