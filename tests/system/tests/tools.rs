//! VMware's guest tools, Debian's own packages, in guests of two releases: everything that they print about their
//! hypervisor, their daemon, and what happens when any of them is killed. One boot serves many checks, since real
//! programs are slow to start under emulation.
//!
//! The texts are those that the tools print on VMware's own products, and on other machines.

use abi::calls::vmware::DAEMON_IS_LOST;
use abi::link::request::Ask;
use anyhow::{Context, Result, ensure};
use croft::control::{self, About, Order, Place, Server};
use croft::session::{Condition, Outcome, Report, Told};
use croft::site::Vm;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use system::guest;
use system::host::{Host, Run};
use system::{BOOT, SOON, full, scenario};
use tempfile::TempDir;

/// How long a program of the tools may take, and everything that a check does with several of them.
const PROGRAM: Duration = Duration::from_secs(120);
/// A guest whose console ends like this is lost.
const BAD: &[&str] = &["Kernel panic", "FAILED", "Segmentation fault"];

fn main() -> ExitCode {
    let mut scenarios = Vec::new();
    for combination in COMBINATIONS {
        let (name, in_ci) = (format!("tools::{}", combination.name()), combination.in_ci);
        if full() || in_ci == Ci::Whole {
            scenarios.push(scenario(name.clone(), move || tools(&combination)));
        }
        if full() || in_ci == Ci::FiveMinutes {
            scenarios.push(scenario(format!("{name}_five_minutes"), move || five_minutes(&combination)));
        }
    }
    let clocks: Vec<_> = COMBINATIONS.into_iter().filter(|one| full() || one.in_ci == Ci::Clock).collect();
    for two in clocks.chunks(2) {
        let names: Vec<_> = two.iter().map(Combination::name).collect();
        let two = two.to_vec();
        scenarios.push(scenario(format!("tools::{}_clocks", names.join("_and_")), move || clocks_are_stepped(&two)));
    }
    scenarios.push(scenario("tools::not_vmware", not_vmware));
    scenarios.push(scenario("tools::tdcc_in_hardware", tdcc_in_hardware));
    system::run(scenarios)
}

/// A release of Debian's.
#[derive(Debug)]
struct Release {
    name: &'static str,
    /// The kernel that it comes with.
    kernel: &'static str,
    /// A part of what it calls itself.
    system: &'static str,
    /// What `vmware-toolbox-cmd -v` says, and the daemon's shorter form of it.
    version: &'static str,
    short_version: &'static str,
}

const BOOKWORM: Release = Release {
    name: "bookworm",
    kernel: "6.1",
    system: "Debian GNU/Linux 12 (bookworm)",
    version: "12.2.0.41219 (build-21223074)",
    short_version: "12.2.0",
};
const TRIXIE: Release = Release {
    name: "trixie",
    kernel: "6.12",
    system: "Debian GNU/Linux 13 (trixie)",
    version: "12.5.0.51152 (build-24276846)",
    short_version: "12.5.0",
};

/// What of a combination CI has time for; with `--full` everything is tried with all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ci {
    /// All that the tools do.
    Whole,
    /// What they make of a host whose clock is stepped.
    Clock,
    /// Five minutes of the daemon.
    FiveMinutes,
    Nothing,
}

/// A release's packages on a kernel, which may be the other release's.
#[derive(Clone, Copy)]
struct Combination {
    release: &'static Release,
    kernel: &'static str,
    vcpus: u8,
    cpu: &'static str,
    in_ci: Ci,
}

/// Each release with each kernel, with one vCPU and with more than there are CPUs. Between them they have all that a CPU can
/// trap: everything (a57, a76), or what is needed (max).
const COMBINATIONS: [Combination; 8] = [
    Combination { release: &BOOKWORM, kernel: "6.1", vcpus: 1, cpu: "cortex-a57", in_ci: Ci::Whole },
    Combination { release: &BOOKWORM, kernel: "6.1", vcpus: 4, cpu: "max", in_ci: Ci::Nothing },
    Combination { release: &BOOKWORM, kernel: "6.12", vcpus: 1, cpu: "max", in_ci: Ci::FiveMinutes },
    Combination { release: &BOOKWORM, kernel: "6.12", vcpus: 4, cpu: "cortex-a76", in_ci: Ci::Clock },
    Combination { release: &TRIXIE, kernel: "6.1", vcpus: 1, cpu: "max", in_ci: Ci::Clock },
    Combination { release: &TRIXIE, kernel: "6.1", vcpus: 4, cpu: "cortex-a57", in_ci: Ci::FiveMinutes },
    Combination { release: &TRIXIE, kernel: "6.12", vcpus: 1, cpu: "cortex-a76", in_ci: Ci::Nothing },
    Combination { release: &TRIXIE, kernel: "6.12", vcpus: 4, cpu: "max", in_ci: Ci::Whole },
];

impl Combination {
    fn name(&self) -> String {
        let Self { release, kernel, vcpus, cpu, .. } = self;
        format!("{}_{kernel}_{vcpus}_vcpus_{cpu}", release.name)
    }

    fn vm(&self, folder: &Path) -> Result<Vm> {
        let kernel = format!("linux-{}-cloud", self.kernel);
        let mut vm = guest::linux_with_tools(self.release.name, &kernel, self.release.name, self.vcpus, folder)?;
        vm.doors.vmware = true;
        (vm.doors.wfe, vm.doors.watchdog_user) = (true, true);
        Ok(vm)
    }

    fn host(&self) -> Host {
        Host { cpu: self.cpu, ..Host::default() }
    }

    /// The counter's frequency, which is what the tools call the CPU's speed.
    fn speed(&self) -> &'static str {
        if self.cpu == "max" { "1000 MHz" } else { "62 MHz" }
    }
}

impl Release {
    fn vm(&self, folder: &Path) -> Result<Vm> {
        guest::linux_with_tools(self.name, &format!("linux-{}-cloud", self.kernel), self.name, 1, folder)
    }
}

/// A guest at its prompt.
struct Guest<'r> {
    run: &'r Run,
    name: &'static str,
}

impl Guest<'_> {
    /// Makes the tools' surroundings.
    fn prepare(&self) -> Result<()> {
        self.run.ask(
            self.name,
            &format!("name={}; . /tests/vmware-tools; echo ready $?", self.name),
            "\nready 0\r\n",
        )?;
        Ok(())
    }

    /// What a command prints, and its exit status.
    fn answer(&self, command: &str) -> Result<(String, u8)> {
        let console = self.run.console(self.name)?;
        console.expect_unless("# ", BAD, PROGRAM)?;
        console.send(format!("t {command}\n"))?;
        console.expect_unless("uc: output\r\n", BAD, PROGRAM)?;
        let said = console.expect_unless("uc: status ", BAD, PROGRAM).with_context(|| command.to_owned())?;
        let said = said.strip_suffix("uc: status ").unwrap_or(&said).replace("\r\n", "\n");
        let status = console.expect("\r\n", PROGRAM)?.trim().parse()?;
        Ok((said.trim_end_matches('\n').to_owned(), status))
    }

    /// Checks what a command prints, and its exit status.
    fn says(&self, command: &str, text: &str, status: u8) -> Result<()> {
        let (said, ended) = self.answer(command)?;
        ensure!(
            (&*said, ended) == (text, status),
            "{} `{command}` says {said:?} with status {ended}, not {text:?} with {status}",
            self.name
        );
        Ok(())
    }

    /// Runs one of the checks that the guest makes itself.
    fn passes(&self, check: &str, words: &str) -> Result<String> {
        let console = self.run.console(self.name)?;
        console.expect_unless("# ", BAD, PROGRAM)?;
        console.send(format!("{words}\n"))?;
        console.expect_unless(&format!("uc: {check} passed"), BAD, PROGRAM * 2)?;
        Ok(console.expect("\r\n", PROGRAM)?)
    }
}

/// The tools of a release, from the first question to the daemon that is killed.
fn tools(combination: &Combination) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let release = combination.release;
    let run = combination.host().start(vec![combination.vm(folder.path())?])?;
    let guest = Guest { run: &run, name: release.name };
    guest.prepare()?;
    table(&guest, combination)?;
    our_own_tools(&guest)?;
    guest.passes("big", "big_values")?;
    guest.passes("eight", if full() { "eight 20" } else { "eight 3" })?;
    let killed = guest.passes("killed", if full() { "killed_callers 200" } else { "killed_callers 80" })?;
    println!("{}: {}", release.name, killed.trim());
    values_from_outside(&guest)?;
    daemon(&guest, release)?;
    time(&guest)?;
    operator(&guest, combination)?;
    run.finish(BOOT)
}

/// What each program says, row by row.
fn table(guest: &Guest<'_>, combination: &Combination) -> Result<()> {
    guest.says("systemd-detect-virt", "vmware", 0)?;
    guest.says("vmware-checkvm", "VMware software version 6 (good)", 0)?;
    guest.says("vmware-checkvm -p", "ESX Server", 0)?;
    guest.says("vmware-rpctool 'info-set guestinfo.x hello world'", "", 0)?;
    guest.says("vmware-rpctool 'info-get guestinfo.x'", "hello world", 0)?;
    guest.says("vmware-rpctool 'info-get guestinfo.nope'", "No value found", 1)?;
    guest.says("vmware-rpctool nonsense", "Unknown command", 1)?;
    guest.says("vmware-toolbox-cmd -v", combination.release.version, 0)?;
    host_time(guest)?;
    guest.says("vmware-toolbox-cmd stat speed", combination.speed(), 0)?;
    let no_statistics = "UpdateInfo failed: VMware Guest API is not enabled on the host";
    guest.says("vmware-toolbox-cmd stat sessionid", no_statistics, 75)?;
    guest.says("vmware-toolbox-cmd timesync status", "Disabled", 69)?;
    guest.says("vmware-toolbox-cmd timesync enable", "Enabled", 0)?;
    guest.says("vmware-toolbox-cmd timesync status", "Enabled", 0)?;
    guest.says("vmware-toolbox-cmd timesync disable", "Disabled", 0)?;
    guest.says("vmware-toolbox-cmd device list", "", 0)?;
    guest.says("vmtoolsd --cmd 'info-get guestinfo.x'", "hello world", 0)
}

/// `uc-info` and `uc-watchdog`, as ordinary processes: what they say of an open door, of the watchdogs, and when nobody can
/// hear them.
fn our_own_tools(guest: &Guest<'_>) -> Result<()> {
    let features =
        ["calls", "rpc-channels", "wfe-channel", "watchdog", "own-watchdog"].map(|name| format!("feature {name}"));
    guest.says("sh -c 'uc-info | grep feature'", &features.join("\n"), 0)?;
    guest.says("sh -c 'uc-info | grep -e ^Under -e ^vmware'", "Undercroft calls 1.0\nvmware-abi yes", 0)?;
    guest.says("sh -c 'uc-info | grep -c \"^count .* [0-9]\"'", "23", 0)?;
    guest.says("sh -c 'uc-info >/dev/full'", "", 3)?;
    guest.says("uc-watchdog detect", "agent version 1, features 0x7", 0)?;
    guest.says("uc-watchdog query", "refused: not armed", 1)?;
    guest.says("uc-watchdog set 600000 log", "600000 ms", 0)?;
    guest.says("uc-watchdog pat", "600000 ms", 0)?;
    guest.says("sh -c 'uc-watchdog feed 100 & sleep 1; kill $! && echo it feeds'", "it feeds", 0)?;
    guest.says("uc-watchdog set 0", "0 ms", 0)?;
    guest.says("uc-watchdog feed 100", "refused: not armed", 1)?;
    guest.says("sh -c 'uc-watchdog set 1000 bark | head -c 18'", "usage: uc-watchdog", 0)?;
    guest.says("taskset 1 uc-watchdog own query", "refused: not armed", 1)?;
    guest.says("taskset 1 uc-watchdog own set 600000 log", "600000 ms", 0)?;
    guest.says("taskset 1 uc-watchdog own pat", "600000 ms", 0)?;
    guest.says("uc-watchdog query", "refused: not armed", 1)?;
    guest.says("taskset 1 uc-watchdog own set 0", "0 ms", 0)?;
    guest.says("sh -c 'uc-watchdog detect >/dev/full'", "", 3)
}

/// `22 Nov 2026 17:50:01`: this computer's time of day, which the emulated host's clock has too.
fn host_time(guest: &Guest<'_>) -> Result<()> {
    let command = "vmware-toolbox-cmd stat hosttime";
    let (said, status) = guest.answer(command)?;
    ensure!(status == 0, "`{command}` ends with {status}: {said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    let [day, month, year, clock] = words[..] else { anyhow::bail!("`{command}` says {said:?}") };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month).with_context(|| said.clone())? as u64 + 1;
    let parts: Vec<u64> = clock.split(':').map(str::parse).collect::<Result<_, _>>().context(said.clone())?;
    let [hour, minute, second] = parts[..] else { anyhow::bail!("`{command}` says {said:?}") };
    let days = days_since_1970(year.parse()?, month, day.parse()?);
    let theirs = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(theirs.abs_diff(ours) < 120, "`{command}` says {said:?}, which is {theirs}; it is {ours}");
    Ok(())
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let months: u64 = lengths.iter().take(month.saturating_sub(1) as usize).sum();
    years + months + day.saturating_sub(1)
}

/// The operator reads what the guest has set, and the guest what the operator has.
fn values_from_outside(guest: &Guest<'_>) -> Result<()> {
    let vm = guest.run.vm(guest.name)?;
    let big = guest.run.value(vm, "guestinfo.big", SOON)?;
    ensure!(big.len() == 60_000, "the guest's value has {} bytes", big.len());
    guest.says("vmware-rpctool \"info-set guestinfo.copy $(get_value big)\"", "", 0)?;
    ensure!(guest.run.value(vm, "guestinfo.copy", SOON)? == big, "two values of the guest's should be the same");
    guest.run.set_value(vm, "guestinfo.outside", b"from outside", SOON)?;
    guest.says("vmware-rpctool 'info-get guestinfo.outside'", "from outside", 0)?;
    let long: Vec<u8> = (0..60_000).map(|index| b'a' + (index % 23) as u8).collect();
    guest.run.set_value(vm, "guestinfo.outside", &long, SOON)?;
    guest.says("count_value outside", "60001", 0)?;
    guest.says("vmware-rpctool \"info-set guestinfo.copy $(get_value outside)\"", "", 0)?;
    ensure!(guest.run.value(vm, "guestinfo.copy", SOON)? == long, "the operator's value came back changed");
    let said = guest.run.value(vm, "guestinfo.nope", SOON).err().context("a value that nobody has set")?;
    ensure!(said.to_string() == format!("{} has no value for guestinfo.nope", guest.name), "{said}");
    let said = guest.run.set_value(vm, "nope", b"", SOON).err().context("a key without the prefix")?;
    ensure!(said.to_string().contains("a key is guestinfo. and a name"), "{said}");
    let keys = guest.run.session().ask(vm, Ask::Keys, SOON)?;
    ensure!(keys.contains(&Told::Key("guestinfo.big".to_owned(), 60_000)), "{keys:?}");
    Ok(())
}

/// Waits until the tools' report is what `good` wants.
fn wait_for_report(guest: &Guest<'_>, good: impl Fn(&Report) -> bool) -> Result<Report> {
    let vm = guest.run.vm(guest.name)?;
    let begin = Instant::now();
    loop {
        let report = guest.run.report(vm, SOON)?;
        if good(&report) {
            return Ok(report);
        }
        ensure!(begin.elapsed() < PROGRAM, "{} reports {report:?}", guest.name);
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The daemon reports, is killed, comes again, and stays.
fn daemon(guest: &Guest<'_>, release: &Release) -> Result<()> {
    guest.says("forget_address", "", 0)?;
    guest.says("start_daemon", "", 0)?;
    guest.passes("address", "wait_for_address")?;
    guest.says("vmware-rpctool 'info-get guestinfo.vmtools.versionString'", release.short_version, 0)?;
    let report = wait_for_report(guest, |report| {
        let beats = report.heartbeat.is_some_and(|beat| beat < DAEMON_IS_LOST);
        beats && report.uptime > 0 && !report.host_name.is_empty() && !report.system.is_empty()
    })?;
    ensure!(
        (&*report.version, &*report.host_name, &*report.address, report.can_stop)
            == (release.short_version, release.name, "10.0.2.15", true)
            && report.system.contains(release.system),
        "{report:?}"
    );
    // Killed without a word, it leaves its channels open.
    guest.says("forget_address", "", 0)?;
    ensure!(guest.answer("kill_daemon")?.1 == 0, "the daemon was not killed");
    guest.says("start_daemon", "", 0)?;
    guest.passes("address", "wait_for_address")?;
    // Its channels are lost under it: it opens new ones, and all begins anew.
    guest.says("forget_address", "", 0)?;
    guest.run.session().ask(guest.run.vm(guest.name)?, Ask::Reconnect, SOON)?;
    guest.passes("address", "wait_for_address")?;
    stays(guest, 15)?;
    guest.says("cat /tmp/daemon", "", 0)
}

/// For so many seconds of the guest's time the daemon is there, and what it has reported too.
fn stays(guest: &Guest<'_>, seconds: u64) -> Result<()> {
    let uptime = || -> Result<u64> {
        let (said, _) = guest.answer("cut -d. -f1 /proc/uptime")?;
        Ok(said.trim().parse()?)
    };
    let begin = uptime()?;
    while uptime()? < begin + seconds {
        guest.says("sleep 5", "", 0)?;
        guest.says("vmware-rpctool 'info-get guestinfo.ip'", "10.0.2.15", 0)?;
        guest.says("kill -0 $daemon", "", 0)?;
    }
    Ok(())
}

/// Five minutes of the daemon, in the guest's time: in instructions, so that no computer is too busy for it, and what is slept
/// takes no time. Its address is reported, and it polls all the time.
fn five_minutes(combination: &Combination) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let release = combination.release;
    let run = Host { cpus: 1, ..combination.host() }.start_counted(vec![combination.vm(folder.path())?])?;
    let guest = Guest { run: &run, name: release.name };
    guest.prepare()?;
    guest.says("start_daemon", "", 0)?;
    guest.passes("address", "wait_for_address")?;
    stays(&guest, 300)?;
    guest.says("cat /tmp/daemon", "", 0)?;
    let report = run.report(0, SOON)?;
    ensure!(
        (&*report.version, &*report.host_name, &*report.address) == (release.short_version, release.name, "10.0.2.15")
            && report.system.contains(release.system)
            && report.heartbeat.is_some_and(|beat| beat < DAEMON_IS_LOST),
        "{report:?}"
    );
    run.check_log()
}

/// A guest's clock that is an hour behind is set by its daemon, once the guest's administrator has allowed that.
fn time(guest: &Guest<'_>) -> Result<()> {
    let off_by = || -> Result<u64> {
        let (said, _) = guest.answer("date +%s")?;
        Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().abs_diff(said.trim().parse()?))
    };
    guest.says("date -s @$(($(date +%s) - 3600)) +ok", "ok", 0)?;
    let before = off_by()?;
    ensure!(before > 3000, "the clock should be an hour behind, not {before} s");
    guest.says("vmware-toolbox-cmd timesync enable", "Enabled", 0)?;
    let begin = Instant::now();
    while off_by()? > 120 {
        ensure!(begin.elapsed() < PROGRAM, "the clock is still {} s behind", off_by()?);
    }
    guest.says("vmware-toolbox-cmd timesync disable", "Disabled", 0)
}

/// Orders as croft's other commands give them, over its own socket.
struct Operator {
    folder: TempDir,
    _server: Server,
}

impl Operator {
    fn new(run: &Run, vcpus: u8) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let about = About { vcpus: vec![vcpus], ..About::default() };
        let server = control::serve(run.session(), about, &Place::at(&folder.path().join("socket"))?)?;
        Ok(Self { folder, _server: server })
    }

    fn order(&self, order: &Order) -> Result<Vec<control::Report>> {
        let mut told = Vec::new();
        control::perform(control::connect(&self.folder.path().join("socket"))?, order, |report| told.push(report))?;
        // The first says that the host has heard the order, and nothing else.
        ensure!(told.first() == Some(&control::Report::Output(Vec::new())), "{told:?}");
        told.remove(0);
        Ok(told)
    }

    /// The host's time of day, in seconds.
    fn time(&self) -> Result<i64> {
        match self.order(&Order::Time)?.as_slice() {
            [control::Report::Time { microseconds, .. }] => Ok((microseconds / 1_000_000) as i64),
            other => anyhow::bail!("{other:?}"),
        }
    }

    /// Steps the host's clock by so many seconds.
    fn step(&self, by: i64) -> Result<()> {
        let to = u64::try_from((self.time()? + by) * 1_000_000)?;
        self.order(&Order::SetTime { microseconds: to }).map(drop)
    }
}

/// [`the_hosts_clock_is_stepped`] for each of these at once: their guests sleep most of the time.
fn clocks_are_stepped(combinations: &[Combination]) -> Result<()> {
    std::thread::scope(|scope| {
        let start = |one| scope.spawn(move || the_hosts_clock_is_stepped(one));
        let threads: Vec<_> = combinations.iter().map(start).collect();
        let ends = threads.into_iter().zip(combinations).map(|(thread, one)| {
            let end = thread.join().unwrap_or_else(|_| anyhow::bail!("a panic"));
            end.with_context(|| one.name())
        });
        // All of them are waited for, and the first that failed is told.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

/// The host's clock is stepped under a guest whose site file says `time-sync = true`. The stock daemon follows forward by
/// itself, within a minute, which is its period; it never follows back, until the operator says so.
fn the_hosts_clock_is_stepped(combination: &Combination) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let release = combination.release;
    let mut vm = combination.vm(folder.path())?;
    vm.doors.time_sync = true;
    let run = combination.host().start(vec![vm])?;
    let operator = Operator::new(&run, combination.vcpus)?;
    let guest = Guest { run: &run, name: release.name };
    guest.prepare()?;
    guest.says("systemd-detect-virt", "vmware", 0)?;
    guest.says("vmware-checkvm", "VMware software version 6 (good)", 0)?;
    guest.says("vmware-toolbox-cmd -v", release.version, 0)?;
    guest.says("vmware-toolbox-cmd timesync status", "Enabled", 0)?;
    guest.passes("big", "big_values")?;
    guest.passes("eight", "eight 1")?;
    // How many seconds the guest's clock is ahead of the host's.
    let ahead = || -> Result<i64> {
        let (said, _) = guest.answer("date +%s")?;
        Ok(said.trim().parse::<i64>()? - operator.time()?)
    };
    let asked = operator.order(&Order::SetGuestTime { vm: release.name.to_owned() });
    let refused = asked.err().context("there is no daemon yet")?;
    ensure!(refused.to_string().ends_with("its tools do not answer"), "{refused}");
    guest.says("start_daemon", "", 0)?;
    guest.passes("address", "wait_for_address")?;
    let before = ahead()?;
    ensure!(before.abs() < 60, "before all this, the guest is {before} s ahead of the host");
    operator.step(3600)?;
    let after = ahead()?;
    // The daemon's minute may just be over: then it has followed already.
    let follows = after < -3500 || after.abs() < 60;
    ensure!(follows, "the host's clock was stepped by an hour, and the guest is {after} s ahead of it");
    let begin = Instant::now();
    while ahead()?.abs() > 60 {
        ensure!(begin.elapsed() < PROGRAM, "the guest is still {} s ahead", ahead()?);
        guest.says("sleep 2", "", 0)?;
    }
    // A second after its period has passed once more, it is still where it was.
    operator.step(-3600)?;
    guest.says("sleep 62", "", 0)?;
    let after = ahead()?;
    ensure!(after > 3500, "the host's clock was stepped back by an hour, and the guest is {after} s ahead of it");
    operator.order(&Order::SetGuestTime { vm: release.name.to_owned() })?;
    let after = ahead()?;
    ensure!(after.abs() < 60, "its tools have set its clock, and it is {after} s ahead of the host's");
    // The other way round, a guest that is behind is set at once too.
    operator.step(3600)?;
    operator.order(&Order::SetGuestTime { vm: release.name.to_owned() })?;
    let after = ahead()?;
    ensure!(after.abs() < 60, "its tools have set its clock, and it is {after} s ahead of the host's");
    guest.says("cat /tmp/daemon", "", 0)?;
    operator.order(&Order::Stop { vm: release.name.to_owned(), force: false, seconds: 120 })?;
    run.finish(BOOT)
}

/// The operator reboots the guest and shuts it down, by its tools, over croft's own socket.
fn operator(guest: &Guest<'_>, combination: &Combination) -> Result<()> {
    let release = combination.release;
    let operator = Operator::new(guest.run, combination.vcpus)?;
    let console = guest.run.console(guest.name)?;
    let vm = release.name.to_owned();
    let order = |order: Order, end: &str| -> Result<()> {
        let told = operator.order(&order)?;
        let said = |what| control::Report::Progress(format!("{}: {what}", release.name));
        ensure!(told == ["its tools were asked", end].map(said), "{told:?}");
        Ok(())
    };
    order(Order::Reboot { vm: vm.clone(), force: false, seconds: 120 }, "running, boot 2")?;
    console.expect_unless("uc: shutdown -r now", BAD, PROGRAM)?;
    ensure!(guest.run.condition(guest.name)? == Condition::Running { boots: 2 }, "it should have rebooted");
    guest.prepare()?;
    let report = guest.run.report(guest.run.vm(guest.name)?, SOON)?;
    ensure!(!report.can_stop && report.version.is_empty(), "of the time before the reboot: {report:?}");
    guest.says("start_daemon", "", 0)?;
    wait_for_report(guest, |report| report.can_stop)?;
    let told = operator.order(&Order::List)?;
    let [control::Report::Vms(vms)] = told.as_slice() else { anyhow::bail!("{told:?}") };
    let [shown] = vms.as_slice() else { anyhow::bail!("{vms:?}") };
    let known = shown.guest.clone().context("no report")?;
    ensure!(
        (&*shown.name, &*shown.state, shown.vcpus, &*known.tools)
            == (release.name, "running, boot 2", combination.vcpus, release.short_version),
        "{shown:?}"
    );
    order(Order::Stop { vm, force: false, seconds: 120 }, "powered off")?;
    console.expect_unless("uc: shutdown -h now", BAD, PROGRAM)?;
    Ok(())
}

/// Without `vmware = true` every tool says that it is not on VMware, and nothing crashes.
fn not_vmware() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = Host { cpu: "cortex-a57", ..Host::default() }.start(vec![TRIXIE.vm(folder.path())?])?;
    let guest = Guest { run: &run, name: TRIXIE.name };
    guest.prepare()?;
    // What systemd says of a hypervisor that names itself and that it does not know; without a name it would be "none".
    guest.says("systemd-detect-virt", "vm-other", 0)?;
    all_say_no(&guest)?;
    guest.says("uc-info", "no hypervisor answers here", 1)?;
    guest.says("uc-watchdog detect", "nobody answers to WFE here", 1)?;
    let said = run.report(0, SOON).err().context("a report without VMware's ABI")?;
    ensure!(said.to_string().contains("vmware = true"), "{said}");
    run.console(guest.name)?.expect("# ", PROGRAM)?;
    run.console(guest.name)?.send("exit\n")?;
    run.finish(BOOT)
}

/// The test of these tests: a hypervisor that lets Linux' MDSCR_EL1.TDCC through to the hardware must be seen to fail. This
/// also shows that the emulated machine has that bit's priority over EL2's traps.
fn tdcc_in_hardware() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut vm = BOOKWORM.vm(folder.path())?;
    vm.doors.vmware = true;
    let run = Host { cpu: "cortex-a57", ..Host::default() }.start_checks(vec![vm], "tdcc=hardware")?;
    let guest = Guest { run: &run, name: BOOKWORM.name };
    guest.prepare()?;
    guest.says("systemd-detect-virt", "vmware", 0)?;
    all_say_no(&guest)?;
    run.console(guest.name)?.expect("# ", PROGRAM)?;
    run.console(guest.name)?.send("exit\n")?;
    let outcome = run.wait_stopped(BOOT);
    ensure!(outcome == Outcome::PoweredOff, "{outcome}");
    Ok(())
}

/// Every tool says that it is not on VMware, and the guest goes on.
fn all_say_no(guest: &Guest<'_>) -> Result<()> {
    let outside = |program: &str| {
        format!("Error: {program} must be run inside a virtual machine on a VMware hypervisor product.")
    };
    guest.says("vmware-checkvm", &outside("vmware-checkvm"), 1)?;
    guest.says("vmware-rpctool 'info-get guestinfo.x'", &outside("vmware-rpctool"), 255)?;
    guest.says("vmware-toolbox-cmd -v", "vmware-toolbox-cmd must be run inside a virtual machine.", 1)?;
    guest.says("vmtoolsd", "", 1)?;
    guest.says("echo still here", "still here", 0)
}
