//! The host's real-time clock, which the operator sets while guests run: the clock itself takes it, the guests' own
//! real-time clocks and their alarms follow, and a host that has none says so.

use abi::bundle::{Time, TimeSource};
use anyhow::{Context, Result, ensure};
use croft::control::{Order, Report};
use croft::site::Vm;
use qemu::{ExceptionLevel, Machine};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::operator::Operator;
use system::{BOOT, SOON, host_tree, place, scenario};

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// What may pass between two looks at clocks on a busy computer.
const LATE: u64 = 60;
/// The host's PL031 (QEMU, `hw/arm/virt.c`).
const HOST_CLOCK: u64 = 0x0901_0000;

fn main() -> ExitCode {
    system::run(vec![
        scenario("clock::set_by_the_operator", set_by_the_operator),
        scenario("clock::alarms_follow", alarms_follow),
        scenario("clock::a_host_without_one", a_host_without_one),
        scenario("clock::p5_a12_linux_of_another_frequency", p5_a12_linux_of_another_frequency),
        scenario("clock::p5_a12_linux_by_the_timer_in_memory", p5_a12_linux_by_the_timer_in_memory),
        scenario("clock::p5_a12_linux_by_the_timer_in_memory_cortex_a57", p5_a12_on_an_older_cpu),
    ])
}

/// Steps the clock; gives what time it was set to, in seconds.
fn step(operator: &Operator, forward: bool, by: u64) -> Result<u64> {
    let now = operator.time()?;
    let to = if forward { now + by } else { now - by };
    operator.order(&Order::SetTime { microseconds: to })?;
    let shown = operator.time()?;
    ensure!(shown >= to && shown - to < LATE * SECOND, "set to {to}, it shows {shown}");
    Ok(to / SECOND)
}

/// A time in seconds that was looked at soon after it was `expected`.
fn is_about(what: &str, seen: u64, expected: u64) -> Result<()> {
    // Clocks are read at different moments of a second.
    ensure!(seen + 1 >= expected && seen < expected + LATE, "{what} shows {seen}; {expected} was to be expected");
    Ok(())
}

/// What a guest's real-time clock shows.
fn guest_clock(run: &Run, name: &str) -> Result<u64> {
    run.ask(name, "echo shows $(cat /sys/class/rtc/rtc0/since_epoch)", "\nshows ")?;
    Ok(run.console(name)?.expect("\r\n", SOON)?.trim().parse()?)
}

/// Arguments for QEMU that make it listen at a socket in `folder`.
fn monitor(folder: &Path) -> Vec<String> {
    let socket = format!("socket,id=look,server=on,wait=off,path={}", folder.join("monitor").display());
    ["-chardev", &socket, "-object", "monitor-hmp,id=looker,chardev=look"].map(str::to_owned).to_vec()
}

/// A word of the host's memory, as the emulator itself sees it.
fn host_word(folder: &Path, address: u64) -> Result<u64> {
    let mut stream = UnixStream::connect(folder.join("monitor")).context("the emulator's socket")?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("xp /1wx {address:#x}\n").as_bytes())?;
    let mut said = String::new();
    let mut piece = [0; 256];
    let start = format!("{address:08x}: 0x");
    loop {
        let count = stream.read(&mut piece).context(said.clone())?;
        ensure!(count > 0, "the emulator says {said:?}");
        said.push_str(&String::from_utf8_lossy(piece.get(..count).unwrap_or_default()));
        if let Some((word, _)) = said.split_once(&start).and_then(|(_, rest)| rest.split_once('\r')) {
            return Ok(u64::from_str_radix(word, 16)?);
        }
    }
}

/// Exits of the VM `name` for `reason` so far.
fn exits(run: &Run, name: &str, reason: &str) -> Result<u64> {
    let statistics = run.statistics(SOON)?;
    let line = statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (_, exits) = line.and_then(|line| line.split_once("exits: ")).context("no exits")?;
    let mut words = exits.split_whitespace();
    // One that never came is not in the line.
    Ok(words.find(|word| *word == reason).and_then(|_| words.next()?.parse().ok()).unwrap_or(0))
}

/// A guest of the host's own time, which sleeps three milliseconds by the virtual timer, again and again, and looks at the
/// virtual counter in between.
fn native() -> Result<Vm> {
    guest::payload("native", "sharing", 1, "role=interactive settle=1 times=100000000")
}

/// Two of Linux at once, of different frequency and rate, one slower and one faster than the host, on a CPU that can trap the virtual
/// counter: both take the physical timer, and five seconds of their sleep are five by their real-time clocks, which know nothing of
/// their counters. A neighbour of the host's own time, which shares CPUs with them, pays nothing for theirs: not one exit for a counter
/// or timer.
fn p5_a12_linux_of_another_frequency() -> Result<()> {
    let host = Host { cpu: "max,cntfrq=100000000", ..Host::default() };
    let mut vms = vec![guest::linux("slow", USUAL, 1, "")?, guest::linux("fast", USUAL, 1, "")?];
    // The one's seconds are half as long as real ones, the other's twice as long.
    for (vm, (frequency, rate)) in vms.iter_mut().zip([(24_000_000, 2_000_000), (1_000_000_000, 500_000)]) {
        vm.time = Time { frequency, rate, ..Time::default() };
    }
    vms.push(native()?);
    let run = host.start(vms)?;
    for (name, timer) in [("slow", "24.00MHz (phys)"), ("fast", "1000.00MHz (phys)")] {
        run.console(name)?.expect_unless(&format!("cp15 timer(s) running at {timer}"), &["Kernel panic"], BOOT)?;
    }
    let before = ["system-register", "wfi"].map(|reason| exits(&run, "native", reason));
    for name in ["slow", "fast"] {
        five_seconds(&run, name)?;
        ensure!(exits(&run, name, "system-register")? > 1000, "{name}: its counters do not trap");
    }
    let after = ["system-register", "wfi"].map(|reason| exits(&run, "native", reason));
    let ([Ok(accesses), Ok(sleeps)], [Ok(later_accesses), Ok(later_sleeps)]) = (before, after) else {
        anyhow::bail!("the statistics do not know the neighbour: {}", run.statistics(SOON)?);
    };
    ensure!(later_sleeps > sleeps + 100, "the neighbour slept only {} times", later_sleeps - sleeps);
    ensure!(later_accesses == accesses, "the neighbour's time exited {} times", later_accesses - accesses);
    run.check_log()
}

/// While a Linux guest sleeps for five seconds, as many pass by its counter as by its real-time clock.
fn five_seconds(run: &Run, name: &str) -> Result<()> {
    // Both at a moment of the same second of the counter's, however long the guest may have to wait between two looks.
    let now = "now() { until read a b </proc/uptime; read r </sys/class/rtc/rtc0/since_epoch; read u b </proc/uptime; \
               u=${u%.*}; [ $u = ${a%.*} ]; do :; done; }";
    let sleep = format!("{now}; now; v=$u s=$r; sleep 5; now; echo passed $((u - v)) and $((r - s))");
    run.ask(name, &sleep, "\npassed ")?;
    let passed = run.console(name)?.expect("\r\n", SOON)?;
    let (counter, clock) = passed.split_once(" and ").with_context(|| passed.clone())?;
    let (counter, clock): (u64, u64) = (counter.trim().parse()?, clock.trim().parse()?);
    // A busy computer makes it longer for both. A wrong frequency is off by four times. Each is cut to whole seconds.
    ensure!(
        counter >= 5 && clock >= 4 && counter.abs_diff(clock) <= 1,
        "{name}: a sleep of five seconds took {counter} by its counter and {clock} by its clock"
    );
    Ok(())
}

/// Linux on a CPU that cannot trap the virtual counter, whose device tree has nothing but the timer in memory: its clock and its
/// ticks come from there, with one vCPU, whose own timer it can be, and with two, for which it is the broadcast timer.
fn p5_a12_linux_by_the_timer_in_memory() -> Result<()> {
    let host = Host { cpu: "cortex-a72,cntfrq=100000000", ..Host::default() };
    let mut vms = vec![guest::linux("one", "linux-6.1-cloud", 1, "")?, guest::linux("two", USUAL, 2, "")?];
    for (vm, (frequency, rate)) in vms.iter_mut().zip([(24_000_000, 1_000_000), (1_000_000_000, 500_000)]) {
        vm.time = Time { frequency, rate, ..Time::default() };
    }
    // One that asks for the CPU's timer all the same: that is said where an operator looks.
    let mut misled = guest::payload("misled", "sharing", 1, "role=sleep")?;
    misled.time = Time { frequency: 24_000_000, source: TimeSource::Cp15, ..Time::default() };
    vms.push(misled);
    let run = host.start(vms)?;
    for (name, timer) in [("one", "24.00MHz (virt)"), ("two", "1000.00MHz (virt)")] {
        run.console(name)?.expect_unless(&format!("mmio timer(s) running at {timer}"), &["Kernel panic"], BOOT)?;
    }
    for name in ["one", "two"] {
        run.ask(name, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource", "\narch_sys_counter")?;
        five_seconds(&run, name)?;
    }
    let folder = tempfile::tempdir()?;
    let Some(Report::Vms(listed)) = Operator::new(&run, folder.path())?.order(&Order::List)? else {
        anyhow::bail!("the VMs are not listed");
    };
    let wrong: Vec<&str> = listed.iter().filter(|vm| vm.state.contains("clock is wrong")).map(|vm| &*vm.name).collect();
    ensure!(wrong == ["misled"], "of these a wrong clock is told: {wrong:?}");
    const WARNING: &str = "misled: this CPU cannot trap CNTVCT_EL0";
    ensure!(run.log().transcript().contains(WARNING), "the log does not tell of a wrong clock");
    run.check_log_but(&[WARNING])
}

/// The same with two vCPUs on the other CPU model without FEAT_ECV that is meant to work with Linux before 6.18.
fn p5_a12_on_an_older_cpu() -> Result<()> {
    let host = Host { cpu: "cortex-a57,cntfrq=62500000", ..Host::default() };
    let mut vm = guest::linux("older", USUAL, 2, "")?;
    vm.time = Time { frequency: 100_000_000, ..Time::default() };
    let run = host.start(vec![vm])?;
    run.console("older")?.expect_unless("mmio timer(s) running at 100.00MHz (virt)", &["Kernel panic"], BOOT)?;
    five_seconds(&run, "older")?;
    run.check_log()
}

/// The host's clock is stepped forward and back: it is really set, as the next start would find it, and a guest's clock
/// shows the same, also one that the guest had set to a time of its own.
fn set_by_the_operator() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vms = vec![guest::linux("follows", USUAL, 1, "quiet")?, guest::linux("own", USUAL, 1, "quiet")?];
    let run = Host::default().start_with_qemu(vms, monitor(folder.path()))?;
    let operator = Operator::new(&run, folder.path())?;
    run.console("own")?.expect_unless("# ", &["Kernel panic"], BOOT)?;
    run.console("own")?.send("date -u -s '2001-09-09 01:46:40' >/dev/null; hwclock -u -w; echo set $?\n")?;
    run.console("own")?.expect("\nset 0", SOON)?;
    for (forward, by) in [(true, HOUR), (false, 2 * HOUR), (true, 1000 * 24 * HOUR)] {
        let own_before = guest_clock(&run, "own")?;
        let to = step(&operator, forward, by)?;
        is_about("the host's clock", host_word(folder.path(), HOST_CLOCK)?, to)?;
        is_about("a guest's clock", guest_clock(&run, "follows")?, to)?;
        let by = by / SECOND;
        is_about(
            "a guest's own clock",
            guest_clock(&run, "own")?,
            if forward { own_before + by } else { own_before - by },
        )?;
    }
    let refused =
        operator.order(&Order::SetTime { microseconds: (1 << 32) * SECOND }).err().context("the year 2106")?;
    ensure!(refused.to_string().contains("2106-02-07T06:28:15Z"), "{refused}");
    let refused =
        operator.order(&Order::SetGuestTime { vm: "own".to_owned() }).err().context("a guest without tools")?;
    ensure!(refused.to_string().contains("vmware = true"), "{refused}");
    let log = run.log().transcript();
    let told = log.matches("the operator has set the time of day: ").count();
    ensure!(told == 3, "the log tells of {told} steps: {log}");
    for name in ["follows", "own"] {
        run.console(name)?.expect("# ", SOON)?;
        run.console(name)?.send("exit\n")?;
    }
    run.finish(SOON)
}

/// Two guests wait for their clocks' alarms, in ten and in twenty minutes. The host's clock is stepped past the one, then
/// past the other: each rings when its time has come, and not before.
fn alarms_follow() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vms = vec![guest::linux("soon", USUAL, 1, "quiet")?, guest::linux("late", USUAL, 1, "quiet")?];
    let run = Host::default().start(vms)?;
    let operator = Operator::new(&run, folder.path())?;
    for (name, seconds) in [("soon", 600), ("late", 1200)] {
        let arm = format!(
            "rings() {{ grep rtc /proc/interrupts | tr -s ' ' | cut -d' ' -f3; }}; \
             echo +{seconds} >/sys/class/rtc/rtc0/wakealarm; echo armed $?, $(rings) so far"
        );
        run.ask(name, &arm, "\narmed 0, 0 so far")?;
    }
    let wait_for_it = "until [ $(rings) = 1 ]; do sleep 1; done; echo it ra''ng";
    step(&operator, true, 700 * SECOND)?;
    run.ask("soon", wait_for_it, "\nit rang")?;
    // One step of the clock lets all alarms ring whose time has come: the other one's would have by now.
    run.ask("late", "echo $(rings) by now", "\n0 by now")?;
    step(&operator, true, 600 * SECOND)?;
    run.ask("late", wait_for_it, "\nit rang")?;
    for name in ["soon", "late"] {
        run.console(name)?.expect("# ", SOON)?;
        run.console(name)?.send("exit\n")?;
    }
    run.finish(SOON)
}

/// A host whose device tree names no real-time clock: guests run, and the operator is told that there is nothing to set.
fn a_host_without_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("host.dtb");
    let host = Host::default();
    write_tree(&host, &tree)?;
    let arguments = vec!["-dtb".to_owned(), tree.display().to_string()];
    let run = host.start_with_qemu(vec![guest::linux("guest", USUAL, 1, "quiet")?], arguments)?;
    let operator = Operator::new(&run, folder.path())?;
    run.console("guest")?.expect_unless("# ", &["Kernel panic"], BOOT)?;
    let refused = operator.order(&Order::SetTime { microseconds: HOUR }).err().context("there is no clock")?;
    ensure!(refused.to_string().contains("no real-time clock that could be set"), "{refused}");
    let told = operator.order(&Order::Time)?;
    ensure!(
        matches!(told, Some(Report::Time { microseconds, settable: false }) if microseconds < 24 * HOUR),
        "nobody has told it what time it is: {told:?}"
    );
    run.console("guest")?.send("exit\n")?;
    run.finish(SOON)
}

/// The device tree that the emulator has for this host, with the clock's name changed to one that nobody knows.
fn write_tree(host: &Host, file: &Path) -> Result<()> {
    let mut machine = Machine::new(place::hypervisor()?);
    machine.level = ExceptionLevel::El2;
    machine.cpu = host.cpu.to_owned();
    machine.cpus = host.cpus.into();
    machine.memory = u32::try_from(host.memory)?;
    host_tree::write(&machine, file, |tree| host_tree::replace(tree, b"arm,pl031\0", b"xrm,pl031\0"))
}
