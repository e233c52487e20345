//! Debian guests that travel: saved on one host and restored on the next, around hosts whose counters run at 62.5 MHz, 1 GHz, 24 MHz and
//! 100 MHz, under full CPU load. A second stays a second, nothing fires early, nothing is lost.
//!
//! What the guest does is in `guest/tests/travel`; its clocks and timers are watched from inside by `linux-clocks`. The assertions never
//! measure speed: the guest's clock is compared with the host's by samples of both with known accuracy, and with this computer's by its
//! time before a question and after the answer. So a busy computer makes a check less exact, but never wrong; where a check must not
//! lose all meaning, its accuracy is checked too.

use abi::bundle::TimeAway;
use abi::calls::vmware::DAEMON_IS_LOST;
use anyhow::{Context, Result, bail, ensure};
use croft::control::{About, Order};
use croft::session::Condition;
use croft::site::Vm;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use system::guest::{self, PLACE_KEPT};
use system::host::{Host, Run};
use system::operator::Operator;
use system::{BOOT, SOON, full, log, scenario};

/// The VM that travels, which is the host name of its guest too.
const NAME: &str = "traveller";
/// A console on which this comes is that of a guest that is lost.
const BAD: &[&str] =
    &["FAILED", "Kernel panic", "Oops", "Segmentation fault", "rcu: INFO", "soft lockup", "blocked for more than"];
/// The hosts, in the order in which it comes to them.
const FREQUENCIES: [u64; 4] = [62_500_000, 1_000_000_000, 24_000_000, 100_000_000];
/// How often it moves, and at how many places its clocks are compared.
const ROUNDS: u32 = 20;
/// How many seconds of its own it stays somewhere at least.
const STAY: usize = 2;
/// By as much of a second may a second be wrong.
const WRONG: f64 = 1e-4;
/// By how much the time of day may differ between hosts, each of which reads whole seconds of a clock of whole seconds.
const CLOCKS: f64 = 2.0;
/// How many seconds a host at this place counts while this computer counts one. QEMU's counter advances at whole nanoseconds, rounded
/// down (`gt_cntfrq_period_ns`): its 24 MHz are 24.39 MHz.
fn pace(place: u32) -> f64 {
    const SECOND: u64 = 1_000_000_000;
    let frequency = FREQUENCIES[place as usize % FREQUENCIES.len()];
    SECOND as f64 / (frequency * (SECOND / frequency)) as f64
}

/// How long something may take that a guest does under load.
const LOADED: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let mut scenarios = Vec::new();
    for shape in SHAPES {
        if let Some(rounds) = if full() { Some(moves()) } else { shape.rounds } {
            scenarios.push(scenario(format!("travel::{}", shape.name), move || travel(&shape, rounds)));
        }
    }
    system::run(scenarios)
}

/// How often each shape moves where all are to be tried: `UNDERCROFT_MOVES`, for a part of what takes hours.
fn moves() -> u32 {
    std::env::var("UNDERCROFT_MOVES").ok().and_then(|moves| moves.parse().ok()).unwrap_or(ROUNDS)
}

/// A guest, and its hosts.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    kernel: &'static str,
    vcpus: u8,
    cpus: u8,
    /// What it makes of the time that it is away.
    away: TimeAway,
    /// How often it moves in CI.
    rounds: Option<u32>,
}

/// As many vCPUs as CPUs, and more. The kernel of one whose time passes while it is away takes that for a CPU that stood still, if it
/// was 20 s: so it has more patience than a move can take, and those whose time stands still have as little as they can.
const SHAPES: [Shape; 4] = [
    Shape { name: "1_vcpu", kernel: "linux-6.1-cloud", vcpus: 1, cpus: 1, away: TimeAway::Freeze, rounds: None },
    Shape { name: "2_vcpus", kernel: "linux-6.12-cloud", vcpus: 2, cpus: 2, away: TimeAway::Advance, rounds: None },
    Shape {
        name: "4_vcpus_on_2_cpus",
        kernel: "linux-6.1-cloud",
        vcpus: 4,
        cpus: 2,
        away: TimeAway::Advance,
        rounds: None,
    },
    Shape {
        name: "2_vcpus_on_1_cpu",
        kernel: "linux-6.12-cloud",
        vcpus: 2,
        cpus: 1,
        away: TimeAway::Freeze,
        rounds: None,
    },
];

impl Shape {
    fn host(&self, round: u32) -> Host {
        let cpu = match FREQUENCIES[round as usize % FREQUENCIES.len()] {
            62_500_000 => "max,cntfrq=62500000",
            1_000_000_000 => "max,cntfrq=1000000000",
            24_000_000 => "max,cntfrq=24000000",
            _ => "max,cntfrq=100000000",
        };
        Host { cpu, cpus: self.cpus, memory: 1024, port: true, ..Host::default() }
    }

    /// The VM with its guest.
    fn vm(&self, folder: &Path) -> Result<Vm> {
        let patience = if self.away == TimeAway::Advance { 300 } else { 20 };
        let words = format!("quiet uc.test=travel uc.tools={NAME} uc.patience={patience}");
        let mut vm = guest::linux_under_load(NAME, self.kernel, self.vcpus, &words, folder)?;
        vm.doors.vmware = true;
        vm.time.away = self.away;
        Ok(vm)
    }
}

/// A host, with the socket that croft's commands use.
struct Stop {
    run: Run,
    operator: Operator,
}

/// What the guest's clock and its host's showed at the same moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The guest's CLOCK_MONOTONIC, in seconds: between this and [`Sample::width`] later.
    guest: f64,
    width: f64,
    /// The host's time of day, in seconds.
    host: f64,
    /// The guest's.
    real: f64,
    /// Before the guest was asked, and after it had answered.
    asked: Instant,
    answered: Instant,
}

/// What a guest was seen to have done by now: looks and sleeps of each CPU, expired timers, long sleeps; and rounds of three kinds of
/// work, which take longer.
type Counts = Vec<u64>;
const WORK: usize = 3;

impl Stop {
    fn new(run: Run, folder: &Path, name: &str) -> Result<Self> {
        let operator = Operator::with(&run, About::default(), folder.join(format!("{name}.socket")))?;
        Ok(Self { run, operator })
    }

    fn order(&self, order: &Order) -> Result<()> {
        let done = self.operator.order(order);
        done.map(drop).with_context(|| format!("{order:?}\n--- log:\n{}", self.run.log().transcript()))
    }

    /// The next line that begins like this, in its words.
    fn said(&self, start: &str) -> Result<Vec<String>> {
        let console = self.run.console(NAME)?;
        console.expect_unless(start, BAD, LOADED)?;
        let rest = console.expect_unless("\n", BAD, LOADED)?;
        let rest = rest.trim_end().strip_suffix('.').with_context(|| format!("half a line: {start}{rest}"))?;
        Ok(rest.split_whitespace().map(str::to_owned).collect())
    }

    /// Asks the guest; gives the words of its answer.
    fn ask(&self, order: &str, number: u32, value: &str) -> Result<Vec<String>> {
        self.run.console(NAME)?.send(format!("{order} {number} {value}\n"))?;
        self.said(&format!("uc: {order} {number} "))
    }

    fn sample(&self, number: u32) -> Result<Sample> {
        let asked = Instant::now();
        let words = self.ask("sample", number, "")?;
        let answered = Instant::now();
        let mut numbers = words.iter().map(|word| word.parse::<u64>());
        let mut next = || Ok::<_, anyhow::Error>(numbers.next().context("a number")?? as f64);
        let (guest, width, host, real) = (next()? / 1e9, next()? / 1e9, next()? / 1e6, next()? / 1e9);
        Ok(Sample { guest, width, host, real, asked, answered })
    }

    /// What `linux-clocks` has looked at, and the other work that is done.
    fn counts(&self, number: u32) -> Result<Counts> {
        let words = [self.said("uc: watched ")?, self.ask("work", number, "")?].concat();
        words.iter().map(|word| word.parse().with_context(|| format!("{words:?}"))).collect()
    }

    /// Calls and values, from inside and from outside, those that were set elsewhere too.
    fn calls(&self, number: u32) -> Result<()> {
        let vm = self.run.vm(NAME)?;
        let (outside, inside) = (format!("outside-{number}"), format!("inside-{number}"));
        if number > 0 {
            let before = self.run.value(vm, "guestinfo.inside", SOON)?;
            ensure!(
                before == format!("inside-{}", number - 1).as_bytes(),
                "it brought another value along: {before:?}"
            );
        } else {
            self.run.set_value(vm, "guestinfo.kept", b"from-the-first", SOON)?;
        }
        self.run.set_value(vm, "guestinfo.outside", outside.as_bytes(), SOON)?;
        let said = self.ask("rpc", number, &inside)?;
        ensure!(said == [&*outside, "from-the-first"], "the guest's values are {said:?} at place {number}");
        let value = self.run.value(vm, "guestinfo.inside", SOON)?;
        ensure!(value == inside.as_bytes(), "the guest has set {value:?} at place {number}");
        self.tools_are_there()
    }

    /// The guest's tools poll, and have reported who they are.
    fn tools_are_there(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let report = self.run.report(self.run.vm(NAME)?, SOON)?;
            let beats = report.heartbeat.is_some_and(|beat| beat < DAEMON_IS_LOST);
            if beats && report.host_name == NAME && report.address == "10.0.2.15" && report.can_stop {
                return Ok(());
            }
            ensure!(begin.elapsed() < LOADED, "the guest's tools report {report:?}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// It stays for some seconds; everything goes on, and its clock goes as its host's does.
    fn stay(&self, number: u32) -> Result<(Sample, Sample)> {
        let before = self.sample(2 * number)?;
        let counts = self.counts(number)?;
        self.calls(number)?;
        for _ in 0..STAY {
            self.said("uc: watched ")?;
        }
        let later = self.counts(number)?;
        let watched = counts.len() - WORK;
        let goes_on = counts.iter().zip(&later).take(watched).all(|(before, after)| before < after);
        ensure!(goes_on, "something stands still at place {number}: {counts:?}, then {later:?}");
        let after = self.sample(2 * number + 1)?;
        compare(&[(before, after)])?;
        let (least, most) =
            ((after.asked - before.answered).as_secs_f64(), (after.answered - before.asked).as_secs_f64());
        let (least, most) = (least * pace(number), most * pace(number));
        let passed = after.guest - before.guest;
        ensure!(
            passed + after.width > least * (1.0 - WRONG) && passed - before.width < most * (1.0 + WRONG),
            "{passed} s passed for it, and by this computer's clock {least} to {most}: {before:?}, {after:?}"
        );
        Ok((before, after))
    }

    /// It is saved, and what this host still had of its console is shown. A line that it is sent just before may be answered here or
    /// there.
    fn leave(&self, file: &Path, number: u32) -> Result<()> {
        self.run.console(NAME)?.send(format!("word {number} underway\n"))?;
        self.order(&Order::Pause { vm: NAME.to_owned() })?;
        self.order(&Order::Save { vm: NAME.to_owned(), file: file.to_path_buf(), compress: false })?;
        self.order(&Order::Stop { vm: NAME.to_owned(), force: true, seconds: 60 })?;
        self.run.check_log()
    }

    /// It comes from the file.
    fn arrive(&self, file: &Path) -> Result<()> {
        self.run.console(NAME)?.expect(PLACE_KEPT, BOOT)?;
        self.run.wait_for(NAME, SOON, Condition::is_off)?;
        self.order(&Order::Restore { vm: None, file: file.to_path_buf(), pause: false })
    }
}

/// Between the two samples of these pairs as much time has passed for the guest as for its host, to the ten thousandth part.
fn compare(pairs: &[(Sample, Sample)]) -> Result<()> {
    let sum = |of: &dyn Fn(Sample, Sample) -> f64| pairs.iter().map(|&(before, after)| of(before, after)).sum::<f64>();
    let passed = sum(&|before, after| after.guest - before.guest);
    let host = sum(&|before, after| after.host - before.host);
    let (more, less) = (sum(&|_, after| after.width), sum(&|before, _| before.width));
    ensure!(
        passed + more > host * (1.0 - WRONG) && passed - less < host * (1.0 + WRONG),
        "{passed} s passed for it, and {host} s for its host: {pairs:?}"
    );
    ensure!(more.max(less) < host * WRONG, "they were compared to {more} and {less} s in {host} s only: {pairs:?}");
    Ok(())
}

/// The guest travels, and is looked at on every host. In the end it says what its kernel and stress-ng had to complain about, and
/// what it has printed on all its ways is put together.
fn travel(shape: &Shape, rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (folder, file) = (folder.path(), folder.path().join("traveller.saved"));
    let began = Instant::now();
    let start = |round: u32, vm: Vm| -> Result<Stop> {
        let name = format!("host-{round}");
        Stop::new(shape.host(round).start_and_stay_logged(vec![vm], &folder.join(&name))?, folder, &name)
    };
    let mut stop = start(0, shape.vm(folder)?)?;
    let console = stop.run.console(NAME)?;
    console.expect_unless("uc: travel begins", BAD, BOOT)?;
    let begin = stop.counts(rounds)?;
    let mut stays = vec![stop.stay(0)?];
    for round in 1..=rounds {
        stop.leave(&file, round)?;
        drop(stop);
        stop = start(round, guest::place_of(shape.vm(folder)?)?)?;
        stop.arrive(&file)?;
        stays.push(stop.stay(round).with_context(|| format!("after {round} moves"))?);
    }
    let passed = all_in_all(shape, &stays)?;
    let end = stop.counts(rounds)?;
    ensure!(begin.iter().zip(&end).all(|(before, after)| before < after), "no work is done: {begin:?}, then {end:?}");
    ends_well(&stop, shape, rounds)?;
    drop(stop);
    let lines = is_whole(folder, rounds)?;
    println!(
        "{}: {rounds} moves, {passed:.3} s of its own in {:.0} s, looks, sleeps, timers and work {end:?}, {lines} lines",
        shape.name,
        began.elapsed().as_secs_f64(),
    );
    Ok(())
}

/// All stays together, and what lay between them. Gives the time that has passed for the guest.
fn all_in_all(shape: &Shape, stays: &[(Sample, Sample)]) -> Result<f64> {
    compare(stays).context("all stays together")?;
    for pair in stays.windows(2) {
        let [(_, left), (came, _)] = pair else { continue };
        ensure!(left.guest < came.guest, "its clock went back on the way: {left:?}, then {came:?}");
    }
    let (Some(&(first, _)), Some(&(_, last))) = (stays.first(), stays.last()) else { bail!("it was nowhere") };
    let passed = last.guest - first.guest;
    if shape.away == TimeAway::Advance {
        compare(&[(first, last)]).context("on its ways too")?;
        for one in stays.iter().flat_map(|&(before, after)| [before, after]) {
            ensure!((one.real - one.host).abs() < CLOCKS, "its time of day is not its host's: {one:?}");
        }
        let (least, most) = ((last.asked - first.answered).as_secs_f64(), (last.answered - first.asked).as_secs_f64());
        let at_places =
            (0..).zip(stays).map(|(place, &(came, left))| (place, (left.answered - came.asked).as_secs_f64()));
        let fast: f64 = at_places.map(|(place, stay)| stay * (pace(place) - 1.0)).sum();
        ensure!(
            passed > least - CLOCKS && passed < most + fast + CLOCKS,
            "{passed} s passed for it, and for this computer {least} to {most}"
        );
    }
    Ok(passed)
}

/// It ends; neither stress-ng nor its kernel has anything to complain about.
fn ends_well(stop: &Stop, shape: &Shape, rounds: u32) -> Result<()> {
    let console = stop.run.console(NAME)?;
    console.send("end\n")?;
    console.expect_unless("uc: travel passed", BAD, LOADED)?;
    stop.run.wait_for(NAME, LOADED, Condition::is_off)?;
    let transcript = console.transcript();
    let of =
        |start: &str| transcript.lines().filter_map(|line| line.strip_prefix(start)).collect::<Vec<_>>().join("\n");
    let stress = of("uc: stress says: ");
    ensure!(stress.contains("successful run completed"), "stress-ng says:\n{stress}");
    let kernel = of("uc: kernel: ");
    let mut bad = log::suspicious(&kernel);
    bad.extend(kernel.lines().filter(|line| is_complaint(line)).map(str::to_owned));
    ensure!(bad.is_empty(), "the kernel complains: {bad:#?}\n{kernel}");
    // A kernel that knows how hears of each restore, which also shows that its log is there.
    if shape.kernel.contains("6.12") {
        let told = kernel.matches("crng reseeded due to virtual machine fork").count();
        ensure!(told == rounds as usize, "the kernel was told of {told} of {rounds} restores:\n{kernel}");
    }
    stop.run.check_log()
}

/// Whether a line of the kernel's is about a CPU that stood still, a clock that is wrong, or a task that hangs.
fn is_complaint(line: &str) -> bool {
    const WORDS: [&str; 8] =
        ["lockup", "unstable", "blocked for more than", "hung", "clocksource", "time jump", "skew", "detected"];
    let small = line.to_lowercase();
    WORDS.iter().any(|word| small.contains(word))
}

/// What the guest has printed on all hosts: each numbered line is there once, in its place, as it was printed, and so is its answer to
/// each line that it was sent just before it left. Gives how many numbered lines there are.
fn is_whole(folder: &Path, rounds: u32) -> Result<u64> {
    let mut all = String::new();
    for round in 0..=rounds {
        let text = fs::read(folder.join(format!("host-{round}/{NAME}.console")))?;
        let text = String::from_utf8(text).context("bytes that nobody printed")?;
        // The payload that kept its place came first.
        let own = if round == 0 { Some(&*text) } else { text.split_once(PLACE_KEPT).map(|(_, own)| own) };
        all.push_str(own.context("nothing came")?);
    }
    let bad: Vec<&str> = all.lines().filter(|line| BAD.iter().any(|bad| line.contains(bad))).collect();
    ensure!(bad.is_empty(), "the guest says {bad:?}");
    let mut expected = 0;
    for line in all.split("\r\n").filter(|line| line.starts_with("line ")) {
        let right = numbered_line(expected);
        ensure!(line == right, "line {expected} is {line:?}, not {right:?}");
        expected += 1;
    }
    let words = all.split("\r\n").filter_map(|line| line.strip_prefix("uc: word "));
    let typed = (1..=rounds).map(|round| format!("{round} underway."));
    ensure!(words.clone().eq(typed), "of what was typed before it left it has read {:?}", words.collect::<Vec<_>>());
    if expected < u64::from(rounds) * STAY as u64 {
        bail!("the guest has printed {expected} lines");
    }
    let others = all.split("\r\n").filter(|line| !(line.starts_with("line ") || line.starts_with("uc: ")));
    let torn: Vec<&str> = others.filter(|line| line.contains("line ") || line.contains("uc: ")).collect();
    ensure!(torn.is_empty(), "lines are torn: {torn:?}");
    Ok(expected)
}

/// What `linux-clocks talk` prints.
fn numbered_line(number: u64) -> String {
    let mut word = number;
    let letters = (0..48).map(|_| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((word >> 33) as u8) % 26)
    });
    format!("line {number} {}.", letters.collect::<String>())
}
