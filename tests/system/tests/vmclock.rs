//! VMClock: the guest learns of exactly those events that disturb its counter; and Linux's own driver, which finds the device in a
//! device tree from 7.0 on. `saved` also checks it when a VM is restored or cloned.

use anyhow::{Context, Result, ensure};
use croft::control::{About, ControlError, Order, Report};
use croft::session::Condition;
use croft::site::Vm;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use system::guest::{self, NEWEST, PLACE_KEPT};
use system::host::{Host, Run};
use system::operator::Operator;
use system::{BOOT, SOON, scenario};

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// What may pass between two looks at clocks on a busy computer.
const LATE: u64 = 60 * SECOND;
/// By how many seconds TAI is ahead of UTC.
const TAI_OFFSET: u64 = 37;

fn main() -> ExitCode {
    system::run(vec![
        scenario("vmclock::what_disrupts_it_and_what_does_not", what_disrupts),
        scenario("vmclock::linux_takes_it_for_a_clock", linux),
    ])
}

/// The operator, and the run.
struct Operated<'r> {
    run: &'r Run,
    operator: Operator,
}

impl<'r> Operated<'r> {
    fn new(run: &'r Run, folder: &Path) -> Result<Self> {
        let about = About { vcpus: vec![1, 1], ..About::default() };
        Ok(Self { run, operator: Operator::with(run, about, folder.join("socket"))? })
    }

    fn order(&self, order: &Order) -> Result<(), ControlError> {
        self.operator.order(order).map(drop)
    }

    fn time(&self) -> Result<u64> {
        self.operator.time()
    }

    fn step(&self, by: i64) -> Result<()> {
        let microseconds = self.time()?.saturating_add_signed(by);
        self.order(&Order::SetTime { microseconds })?;
        Ok(())
    }

    fn pause(&self, vm: &str, seconds: u64) -> Result<()> {
        self.order(&Order::Pause { vm: vm.to_owned() })?;
        thread::sleep(Duration::from_secs(seconds));
        self.order(&Order::Resume { vm: vm.to_owned() })?;
        Ok(())
    }

    /// What the guest `kept` says of VMClock and of its real-time clock; it stops where one of them changes without its interrupt. What
    /// it had said before is passed over.
    fn says(&self, vm: &str) -> Result<Said> {
        let console = self.run.console(vm)?;
        let mut said = Said::default();
        for _ in 0..2 {
            console.expect_unless("kept: tick ", &["FAILED"], SOON)?;
            let text = console.expect_unless(".", &["FAILED"], SOON)?;
            let numbers = text.split(|letter: char| !letter.is_ascii_digit()).filter(|word| !word.is_empty());
            let numbers: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>()?;
            let [_, _, _, clock, _, disruption, life, time] = numbers.try_into().ok().context(text)?;
            said = Said { clock: clock * SECOND, disruption, life, time };
        }
        Ok(said)
    }

    /// The first of what it says for which that is true.
    fn says_after(&self, vm: &str, what: impl Fn(&Said) -> bool) -> Result<Said> {
        for _ in 0..200 {
            let said = self.says(vm)?;
            if what(&said) {
                return Ok(said);
            }
        }
        anyhow::bail!("{vm} does not say what was to be expected")
    }
}

/// Times in microseconds.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Said {
    clock: u64,
    disruption: u64,
    life: u64,
    time: u64,
}

/// A guest whose clocks go on in a pause, and one whose clocks stand still: the host's clock is stepped forward and back, and both are
/// paused. VMClock's time is the host's whatever comes.
fn what_disrupts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vms = vec![guest::payload("goes", "kept", 1, "")?, guest::payload("stands", "kept", 1, "")?];
    vms.iter_mut().filter(|vm| vm.name == "stands").for_each(|vm| vm.pause_stops_time = true);
    let run = Host { cpus: 2, memory: 512, ..Host::default() }.start_and_stay(vms)?;
    for name in ["goes", "stands"] {
        run.console(name)?.expect_unless("kept: pages at ", &["FAILED"], BOOT)?;
    }
    let operator = Operated::new(&run, folder.path())?;
    let mut last = [operator.says("goes")?, operator.says("stands")?];
    for hours in [5_i64, -3, 1000] {
        operator.step(hours * HOUR as i64)?;
        for (name, last) in ["goes", "stands"].into_iter().zip(&mut last) {
            let said = operator.says_after(name, |said| said.disruption != last.disruption)?;
            ensure!(said.life == last.life, "{name}: {last:?}, then {said:?}");
            let stepped = said.time as i64 - last.time as i64 - hours * HOUR as i64;
            ensure!((0..LATE as i64).contains(&stepped), "{name}: not {hours} hours: {last:?}, then {said:?}");
            ensure!(said.time.abs_diff(said.clock) < LATE, "{name}: its two clocks differ: {said:?}");
            *last = said;
        }
    }
    for (name, last) in ["goes", "stands"].into_iter().zip(last) {
        let behind = last.time as i64 - last.clock as i64;
        operator.pause(name, 4)?;
        let since = operator.time()?;
        let said = operator.says_after(name, |said| said.time >= since)?;
        ensure!(said.life == last.life, "{name}: {last:?}, then {said:?}");
        ensure!((said.disruption == last.disruption) == (name == "goes"), "{name}: {last:?}, then {said:?}");
        let behind = said.time as i64 - said.clock as i64 - behind;
        // Each of the two looks is up to a second off, by the clock of whole ones.
        let expected = if name == "goes" { -1_100_000..=1_100_000 } else { 2_900_000..=LATE as i64 };
        ensure!(expected.contains(&behind), "{name}: its clock of whole seconds is {behind} us behind: {said:?}");
        let host = operator.time()?;
        ensure!(said.time <= host && host - said.time < LATE, "{name} has {}, the host {host}", said.time);
    }
    run.check_log()
}

/// A Linux guest with a shell, and the driver.
fn newest() -> Result<Vm> {
    guest::linux("guest", NEWEST, 1, "quiet")
}

/// VMClock's time and the system's at one count of the guest's, as its kernel has them, in nanoseconds since 1970.
fn clocks(run: &Run) -> Result<(i64, i64)> {
    run.ask("guest", "linux-clocks device", "\nuc: device ")?;
    let said = run.console("guest")?.expect(".\r\n", SOON)?;
    let (device, system) = said.trim_end_matches(".\r\n").split_once(" system ").with_context(|| said.clone())?;
    Ok((device.parse()?, system.parse()?))
}

/// The page as Linux shows it to processes, read by the rules of its header: flags, marker of disruptions, count of generations.
fn page(run: &Run) -> Result<[u64; 3]> {
    run.ask("guest", "echo page $(head -c 112 /dev/vmclock0 | od -An -v -tx1)", "\npage ")?;
    let text = run.console("guest")?.expect("\r\n", SOON)?;
    let bytes = text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().context(text.clone())?;
    let word = |at: usize| {
        let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map(u64::from_le_bytes).with_context(|| format!("no word at {at:#x}: {text}"))
    };
    ensure!(bytes.starts_with(b"VCLK") && word(8)? >> 32 & 1 == 0, "{text}");
    Ok([word(0x18)?, word(0x10)?, word(0x68)?])
}

/// How often the driver was told of a change.
fn notices(run: &Run) -> Result<u64> {
    run.ask("guest", "echo told $(grep vmclock /proc/interrupts | tr -s ' ' | cut -d' ' -f3) times", "\ntold ")?;
    Ok(run.console("guest")?.expect(" times\r\n", SOON)?.trim_end_matches(" times\r\n").parse()?)
}

/// Linux finds the device and its interrupt, and has a PTP clock of it, whose time is TAI. It follows the host's clock, and the guest is
/// told; and after a restore on another host it is right at once, as is the system's own time, for which the time away has passed.
fn linux() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("guest.saved");
    // By the link's port: what a kernel has in its memory takes minutes by the UART.
    let host = || Host { cpu: "max,cntfrq=62500000", port: true, ..Host::default() };
    let first = host().start_and_stay(vec![newest()?])?;
    let operator = Operated::new(&first, folder.path())?;
    first.console("guest")?.expect_unless(" cpus online", &["Kernel panic"], BOOT)?;
    first.ask("guest", "echo is $(cat /sys/class/ptp/ptp0/clock_name)", "\nis vmclock0\r\n")?;
    let before = page(&first)?;
    ensure!(before.first() == Some(&0x301), "flags {before:x?}");
    ensure!(notices(&first)? == 0, "it was told of something");
    let is_the_hosts = |operator: &Operated<'_>, device: i64, earliest: u64| {
        let host = operator.time()?;
        let utc = (device / 1000) as u64 - TAI_OFFSET * SECOND;
        ensure!((earliest..=host).contains(&utc), "VMClock shows {utc}, the host {earliest} to {host}");
        anyhow::Ok(())
    };
    let earliest = operator.time()?;
    let (device, system) = clocks(&first)?;
    is_the_hosts(&operator, device, earliest)?;
    // Linux has its time from the real-time clock, which shows whole seconds.
    let ahead = device - system;
    let expected = TAI_OFFSET as i64 * 1_000_000_000;
    ensure!((expected - 1_000_000_000..=expected + 1_000_000_000).contains(&ahead), "{device}, the system {system}");

    operator.step(HOUR as i64)?;
    let (device, system) = clocks(&first)?;
    let stepped = device - system - ahead - (HOUR * 1000) as i64;
    // It is set a moment after it was asked for.
    ensure!(stepped.abs() < LATE as i64 * 1000, "it was stepped by an hour and {stepped} ns");
    let after = page(&first)?;
    ensure!(after[1] != before[1] && after[2] == before[2], "{before:x?}, then {after:x?}");
    ensure!(notices(&first)? == 1, "it was not told of the step");
    operator.step(-(HOUR as i64))?;
    let (device, system) = clocks(&first)?;
    let ahead = device - system;
    let before = page(&first)?;

    operator.order(&Order::Save { vm: "guest".to_owned(), file: file.clone(), compress: false })?;
    first.check_log()?;
    drop(operator);
    drop(first);
    let next = Host { cpu: "max,cntfrq=100000000", ..host() }.start_and_stay(vec![guest::place_of(newest()?)?])?;
    let place = tempfile::tempdir()?;
    let operator = Operated::new(&next, place.path())?;
    next.console("guest")?.expect(PLACE_KEPT, BOOT)?;
    next.wait_for("guest", SOON, Condition::is_off)?;
    // An hour passes at once, of which the operator is told.
    operator.step(HOUR as i64)?;
    let earliest = operator.time()?;
    let told = operator.operator.order(&Order::Restore { vm: None, file, pause: false })?;
    let Some(Report::Progress(told)) = told else { anyhow::bail!("a restore tells {told:?}") };
    ensure!(told.contains(" s have passed for its guest at once"), "{told}");
    next.console("guest")?.send("\n")?;
    let (device, system) = clocks(&next)?;
    is_the_hosts(&operator, device, earliest)?;
    // Both have gone on by what it was away.
    let moved = device - system - ahead;
    ensure!(moved.abs() < 1_000_000_000, "the system's time is {moved} ns behind what it was by VMClock");
    let after = page(&next)?;
    ensure!(after[0] == 0x301 && after[1] != before[1] && after[2] != before[2], "{before:x?}, then {after:x?}");
    ensure!(notices(&next)? > 2, "it was not told of the restore");
    next.check_log()
}
