//! Watchdogs: what happens to guests that hang or misbehave, and that nothing happens to the others.

use abi::calls::vmware::DAEMON_IS_LOST;
use abi::link::Command;
use anyhow::{Context, Result, ensure};
use croft::control::Order;
use croft::session::{Condition, Outcome};
use croft::site::Vm;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use system::core_file::Core;
use system::host::{Host, Run};
use system::memory::Code;
use system::operator::Operator;
use system::{BOOT, SOON, guest, log, scenario};
use watchdog::Action;

/// systemd in a Linux guest gives the watchdog 12 seconds, everybody else gives less, but for those that are another's to end.
const STARVED: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    system::run(vec![
        scenario("watchdog::each_action_of_the_site_file", actions),
        scenario("watchdog::guests_that_are_not_well", modes),
        scenario("watchdog::a_pause_freezes_it", pause),
        scenario("watchdog::of_the_site_file_from_the_first_instruction_on", from_start_to_resume),
        scenario("watchdog::lives_that_begin_before_they_are_watched", whole_lives),
        scenario("watchdog::an_hour_well_fed", fed),
        scenario("watchdog::linux_after_panic_and_without_feeder", linux),
        scenario("watchdog::systemd_that_is_frozen", systemd),
    ])
}

/// A guest that is not well in this way, with the watchdog and action of a site file.
fn starving(name: &str, mode: &str, vcpus: u8, watchdog: u32, action: Action) -> Result<Vm> {
    let mut vm = guest::payload(name, "starving", vcpus, &format!("mode={mode}"))?;
    vm.doors.wfe = true;
    vm.doors.watchdog_milliseconds = watchdog;
    vm.doors.watchdog_action = action.number();
    Ok(vm)
}

/// Each action does what it says, and nothing else happens to the VM.
fn actions() -> Result<()> {
    let mut own = starving("own", "wfi", 1, 0, Action::Pause)?;
    own.doors.vcpu_watchdog_milliseconds = 400;
    let vms = vec![
        own,
        starving("log", "exits", 1, 400, Action::Log)?,
        starving("inject", "serror", 1, 400, Action::Inject)?,
        starving("reset", "spin", 1, 400, Action::Reset)?,
        starving("pause", "wfi", 1, 400, Action::Pause)?,
        starving("stop", "exits", 1, 400, Action::Stop)?,
    ];
    let run = Host::default().start_and_stay(vms)?;
    run.wait_for("reset", STARVED, |condition| matches!(condition, Condition::Running { boots } if *boots >= 2))?;
    let stopped = run.wait_for("stop", STARVED, Condition::is_off)?;
    ensure!(stopped == Condition::Crashed("its watchdog was not patted in time".to_owned()), "stop is {stopped}");
    run.wait_for("pause", STARVED, |condition| *condition == Condition::Paused)?;
    hangs_in_a_wait(&run, "pause")?;
    run.console("inject")?.expect("starving: an SError is pending", STARVED)?;
    for _ in 0..2 {
        run.log().expect("log: watchdog: not patted in time", STARVED)?;
    }
    for name in ["log", "inject"] {
        let condition = run.condition(name)?;
        ensure!(condition == Condition::Running { boots: 1 }, "{name} is {condition}");
    }
    let statistics = run.statistics(STARVED)?;
    let of = |name: &str| section(&statistics, name);
    ensure!(of("pause").contains("400 of 400 ms left to pause, stands still; acted 1 time"), "{statistics}");
    ensure!(of("log").contains("of 400 ms left to log; acted "), "{statistics}");
    ensure!(of("inject").contains("of 400 ms left to inject; acted "), "{statistics}");
    // The paused ones go on when the operator says so, and are watched again.
    run.wait_for("own", STARVED, |condition| *condition == Condition::Paused)?;
    for (name, which) in [("pause", "watchdog"), ("own", "watchdog of vCPU 0")] {
        run.control(Command::ResumeVm { vm: run.vm(name)? })?;
        // It does so for less than a second, in which nobody need see it run.
        run.log().expect(&format!(": {name}: goes on"), STARVED)?;
        run.log().expect(&format!(": {name}: {which}: not patted in time"), STARVED)?;
        run.wait_for(name, STARVED, |condition| *condition == Condition::Paused)?;
    }
    let transcript = run.log().transcript();
    for (name, does) in [
        ("inject", "; vCPU 0 gets an SError"),
        ("reset", "; the VM starts afresh"),
        ("pause", "; the VM is paused (`croft dump` shows where, `croft resume` goes on)"),
        ("stop", "; the VM stops"),
    ] {
        let line = format!("{name}: watchdog: not patted in time{does}");
        ensure!(transcript.contains(&line), "not in the log: {line}\n{transcript}");
    }
    ensure!(run.damage() == 0 && run.refusals().is_empty(), "refused: {:?}", run.refusals());
    Ok(())
}

/// A VM that its watchdog has paused stays as it is when it is dumped, and the core shows its vCPU where it hangs: at a WFI, or just
/// behind it.
fn hangs_in_a_wait(run: &Run, name: &str) -> Result<()> {
    const WFI: u32 = 0xd503_207f;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("hung.core");
    let operator = Operator::new(run, folder.path())?;
    operator.order(&Order::Dump { vm: name.to_owned(), file: file.clone() })?;
    ensure!(run.condition(name)? == Condition::Paused, "it is {}", run.condition(name)?);
    let core = Core::open(&file)?;
    let [thread] = core.threads[..] else { anyhow::bail!("{:?}", core.threads) };
    let around = [0, 4, 8].map(|back| core.instruction(thread.pc - back));
    ensure!(around.iter().any(|found| matches!(found, Ok(WFI))), "{thread:x?}, {around:x?}");
    Ok(())
}

/// The lines of the statistics that are about this VM.
fn section(statistics: &str, name: &str) -> String {
    let mut lines = statistics.lines().skip_while(|line| !line.starts_with(&format!("{name}: ")));
    let first = lines.next().unwrap_or_default().to_owned();
    lines.take_while(|line| line.starts_with("  ")).fold(first, |text, line| text + "\n" + line)
}

/// Whatever a guest does that is not well, its watchdog starts it afresh; the log says whose watchdog it was.
fn modes() -> Result<()> {
    let mut own = starving("own", "spin", 1, 0, Action::Reset)?;
    own.doors.vcpu_watchdog_milliseconds = 400;
    let vms = vec![
        starving("spin", "spin", 1, 400, Action::Reset)?,
        starving("wfi", "wfi", 1, 400, Action::Reset)?,
        starving("exits", "exits", 1, 400, Action::Reset)?,
        starving("stuck", "stuck", 2, 30_000, Action::Reset)?,
        starving("off", "off", 2, 30_000, Action::Reset)?,
        own,
    ];
    let run = Host::default().start_and_stay(vms)?;
    let mut expected = Vec::new();
    for (name, which) in [
        ("spin", "watchdog"),
        ("wfi", "watchdog"),
        ("exits", "watchdog"),
        ("stuck", "watchdog of vCPU 1"),
        ("off", "watchdog of vCPU 1"),
        ("own", "watchdog of vCPU 0"),
    ] {
        run.wait_for(name, STARVED, |condition| matches!(condition, Condition::Running { boots } if *boots >= 2))?;
        expected.push(format!("{name}: {which}: not patted in time; the VM starts afresh"));
    }
    // The last of them may come a moment later than the state that it is about.
    for line in &expected {
        let waited = Instant::now();
        while !run.log().transcript().contains(line) {
            ensure!(waited.elapsed() < SOON, "not in the log: {line}: {}", run.log().transcript());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let complaints = log::complaints(&run.log().transcript());
    let other = complaints.iter().find(|complaint| !expected.iter().any(|line| complaint.contains(line)));
    ensure!(other.is_none(), "the hypervisor complains: {other:?}");
    Ok(())
}

/// What the statistics say of a VM's counter: its count, its frequency, and for how long it stood still.
fn counter(run: &Run, name: &str) -> Result<([u64; 3], bool)> {
    let statistics = run.statistics(STARVED)?;
    let section = section(&statistics, name);
    let line = section.lines().find(|line| line.starts_with("  counter: at ")).unwrap_or_default();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let numbers = numbers.try_into().map_err(|_| anyhow::anyhow!("no counter of {name} in {statistics}"))?;
    Ok((numbers, line.ends_with(", stands still")))
}

/// What a guest says its counter and its real-time clock show, the next time that it says so.
fn said(run: &Run, name: &str) -> Result<[u64; 2]> {
    let console = run.console(name)?;
    console.expect_unless("starving: count ", &["amiss"], STARVED)?;
    let line = console.expect("\n", SOON)?;
    let words: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    words.try_into().map_err(|_| anyhow::anyhow!("{name} says {line:?}"))
}

/// Pauses the guests that count, of which one's time stops; what each said before that.
fn pause_counting(run: &Run) -> Result<[[u64; 2]; 2]> {
    let before = [said(run, "still")?, said(run, "onward")?];
    for name in ["still", "onward"] {
        run.control(Command::PauseVm { vm: run.vm(name)? })?;
        run.wait_for(name, STARVED, |condition| *condition == Condition::Paused)?;
    }
    Ok(before)
}

/// They were paused for some seconds: the one's counter has not moved, as its host and the guest itself see it, and its
/// real-time clock agrees; the other's has. The watchdogs of both stood still.
fn resume_counting(run: &Run, before: [[u64; 2]; 2]) -> Result<()> {
    let ([frozen, hertz, stood], is_still) = counter(run, "still")?;
    let ([onward, ..], runs) = (counter(run, "onward")?.0, !counter(run, "onward")?.1);
    ensure!(is_still && runs, "still {is_still}, onward {runs}");
    let ([later, _, longer], _) = counter(run, "still")?;
    ensure!(
        frozen == later && stood < longer,
        "it shows {frozen}, then {later}; it stood {stood}, then {longer} ticks"
    );
    ensure!(stood > 4 * hertz && onward > before[1][0] + 4 * hertz, "it stood {stood}, the other one is at {onward}");
    for (name, [count, seconds]) in ["still", "onward"].into_iter().zip(before) {
        run.control(Command::ResumeVm { vm: run.vm(name)? })?;
        // What it said before the pause comes first.
        let limit = if name == "still" { frozen } else { onward };
        let mut now = said(run, name)?;
        while now[0] <= limit {
            now = said(run, name)?;
        }
        let ([shown, _, stood], is_still) = counter(run, name)?;
        ensure!(now[0] <= shown && !is_still, "{name} says {now:?}, its host {shown}");
        ensure!((stood > 4 * hertz) == (name == "still"), "{name} stood still for {stood} ticks");
        // By the guest's own two clocks the same time has passed; the one is cut to whole seconds, and read up to a tenth later.
        let (passed, ticks) = (now[1] - seconds, now[0] - count);
        let apart = (passed * hertz).abs_diff(ticks);
        ensure!(apart <= hertz + hertz / 5, "{name}: {passed} s and {ticks} ticks have passed");
        let condition = run.condition(name)?;
        ensure!(condition == Condition::Running { boots: 1 }, "{name} is {condition}");
        run.control(Command::ForceStop { vm: run.vm(name)? })?;
    }
    Ok(())
}

/// While the operator has a VM paused, its watchdog stands still, and so does the time of its tools, which are not lost; when it
/// goes on, so does the watchdog. That holds for guests too that are just setting all of theirs up, again and again, when the pause comes.
fn pause() -> Result<()> {
    const RESTLESS: [&str; 3] = ["restless", "another", "third"];
    // All act after six seconds: less than the pause, in which they would if they did not stand still, and longer than this computer
    // may keep a guest from running.
    let mut vms = vec![starving("guest", "spin", 1, 6000, Action::Reset)?];
    for name in RESTLESS {
        let mut vm = starving(name, "restless", 1, 0, Action::Reset)?;
        vm.cmdline.push_str(" timeout=6000");
        vm.doors.generic_watchdog = true;
        vms.push(vm);
    }
    for name in ["still", "onward"] {
        let mut vm = starving(name, "counting", 2, 6000, Action::Stop)?;
        vm.pause_stops_time = name == "still";
        // Its first signal comes after six seconds, too, and is something amiss.
        vm.doors.generic_watchdog = true;
        vms.push(vm);
    }
    // Of its time twice as much passes.
    let mut tools = starving("tools", "tools", 1, 0, Action::Reset)?;
    tools.doors.vmware = true;
    tools.time.rate *= 2;
    vms.push(tools);
    let run = Host::default().start_and_stay(vms)?;
    let folder = tempfile::tempdir()?;
    let operator = Operator::new(&run, folder.path())?;
    let order = |order: Order| operator.order(&order);
    // It pats nothing: it must not run while the others start.
    run.console("guest")?.expect("starving: spin", BOOT)?;
    order(Order::Pause { vm: "guest".to_owned() })?;
    run.console("tools")?.expect("starving: can be shut down", BOOT)?;
    for name in RESTLESS {
        run.console(name)?.expect("starving: restless", BOOT)?;
        run.control(Command::PauseVm { vm: run.vm(name)? })?;
        run.wait_for(name, STARVED, |condition| *condition == Condition::Paused)?;
    }
    let left = |run: &Run| -> Result<u64> {
        let statistics = run.statistics(STARVED)?;
        let line = statistics.lines().find(|line| line.contains("  watchdog: ")).unwrap_or_default();
        ensure!(line.ends_with("of 6000 ms left to reset, stands still; acted 0 times"), "{statistics}");
        Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
    };
    let counts = pause_counting(&run)?;
    let before = left(&run)?;
    let tools = run.vm("tools")?;
    run.control(Command::PauseVm { vm: tools })?;
    std::thread::sleep(Duration::from_secs(7));
    let (after, condition) = (left(&run)?, run.condition("guest")?);
    // More of its time has passed than tools may be silent for, but none in which it could have run.
    let report = run.report(tools, SOON)?;
    ensure!(report.can_stop && report.heartbeat.is_some_and(|beat| beat < DAEMON_IS_LOST), "{report:?}");
    run.control(Command::ForceStop { vm: tools })?;
    resume_counting(&run, counts)?;
    ensure!(before == after && condition == Condition::Paused, "{before} ms left, then {after}; it is {condition}");
    for name in RESTLESS {
        let condition = run.condition(name)?;
        ensure!(condition == Condition::Paused, "{name}, paused while it set its watchdogs up, is {condition}");
        run.control(Command::ForceStop { vm: run.vm(name)? })?;
    }
    run.control(Command::PauseVm { vm: 0 })?;
    order(Order::Resume { vm: "guest".to_owned() })?;
    run.wait_for("guest", STARVED, |condition| *condition == Condition::Running { boots: 2 })?;
    let log = run.log().transcript();
    let (paused, goes_on) = (log.matches(": guest: paused\n").count(), log.matches(": guest: goes on\n").count());
    ensure!(
        (paused, goes_on) == (1, 1),
        "the log says {paused} times that it is paused and {goes_on} that it goes on:\n{log}"
    );
    ensure!(run.refusals() == ["pause: the VM does not run"], "refused: {:?}", run.refusals());
    Ok(())
}

/// The shortest watchdog that a site file may arm, on a guest whose images take several times as long to load: its time begins
/// when the guest does, which pats in time and is not paused. When it no longer pats, it is, and again after each time that
/// the operator lets it go on. All in instructions.
fn from_start_to_resume() -> Result<()> {
    let initrd = tempfile::NamedTempFile::new()?;
    initrd.as_file().set_len(64 << 20)?;
    let mut vm = starving("guest", "fed", 1, 100, Action::Pause)?;
    vm.cmdline = "mode=fed every=20 pats=20".to_owned();
    vm.initrd = Some(initrd.path().to_path_buf());
    vm.memory = 128 << 20;
    let run = Host { cpus: 1, ..Host::default() }.start_coarse(vec![vm], 3)?;
    run.console("guest")?.expect("starving: patted 20 times in 0 s, 0 in vain", BOOT)?;
    for round in 1..=3 {
        let acted = format!("ms left to pause, stands still; acted {round} time");
        let waited = Instant::now();
        while !section(&run.statistics(STARVED)?, "guest").contains(&acted) {
            ensure!(waited.elapsed() < STARVED, "round {round}: {}", section(&run.statistics(STARVED)?, "guest"));
        }
        run.wait_for("guest", STARVED, |condition| *condition == Condition::Paused)?;
        run.control(Command::ResumeVm { vm: 0 })?;
    }
    let log = run.log().transcript();
    let before = log.split_once("guest: started (1)").map_or(&*log, |(before, _)| before);
    ensure!(!before.contains("not patted in time"), "it was watched before it started:\n{log}");
    ensure!(!log.contains("started (2)"), "it was started afresh:\n{log}");
    Ok(())
}

/// The shortest watchdogs that a site file may arm, which start guests afresh whose images take several times as long to load: the
/// VM's and a vCPU's own. Nobody pats them, and yet each life comes to its guest, which says so.
fn whole_lives() -> Result<()> {
    const LIVES: u32 = 4;
    let initrd = tempfile::NamedTempFile::new()?;
    initrd.as_file().set_len(64 << 20)?;
    let slow = |name: &str, [watchdog, own]: [u32; 2]| -> Result<Vm> {
        let mut vm = starving(name, "spin", 1, watchdog, Action::Reset)?;
        vm.doors.vcpu_watchdog_milliseconds = own;
        vm.initrd = Some(initrd.path().to_path_buf());
        vm.memory = 128 << 20;
        Ok(vm)
    };
    for (name, which, timeouts) in [("whole", "watchdog", [100, 0]), ("own", "watchdog of vCPU 0", [0, 100])] {
        let run = Host { cpus: 1, ..Host::default() }.start_coarse(vec![slow(name, timeouts)?], 3)?;
        run.wait_for(name, BOOT, |condition| matches!(condition, Condition::Running { boots } if *boots >= LIVES))?;
        let log = run.log().transcript();
        let bites = log.matches(&format!(": {name}: {which}: not patted in time")).count();
        ensure!(bites >= LIVES as usize - 1, "{bites} bites:\n{log}");
        let begun = run.console(name)?.transcript().matches("starving: spin").count();
        ensure!(begun >= bites, "{name}: of {bites} lives that its watchdog ended, {begun} began in the guest:\n{log}");
    }
    Ok(())
}

/// A guest sleeps, and pats a watchdog of 30 seconds every 10, for an hour of its time: nothing happens. Then it no longer
/// pats.
fn fed() -> Result<()> {
    let mut vm = starving("guest", "fed", 1, 0, Action::Reset)?;
    vm.cmdline = "mode=fed timeout=30000 every=10000 pats=360".to_owned();
    let run = Host { cpus: 1, ..Host::default() }.start_counted(vec![vm])?;
    run.console("guest")?.expect("starving: patted 360 times in 3600 s, 0 in vain", BOOT * 2)?;
    ensure!(run.condition("guest")? == Condition::Running { boots: 1 }, "it was started afresh");
    run.check_log()?;
    run.wait_for("guest", BOOT, |condition| matches!(condition, Condition::Running { boots } if *boots >= 2))?;
    Ok(())
}

/// The Generic Watchdog for a Linux guest.
fn with_generic_watchdog(mut vm: Vm) -> Vm {
    vm.doors.generic_watchdog = true;
    vm.doors.watchdog_action = Action::Reset.number();
    vm
}

/// Debian's kernels with their own driver of the Generic Watchdog, fed by busybox: they are rebooted when the kernel has panicked
/// (without rebooting by itself) and when the feeder was killed, and know why.
fn linux() -> Result<()> {
    const NAMES: [(&str, &str, &str); 4] = [
        ("lost", "linux-6.12", "panic"),
        ("unfed", "linux-6.12", "kill"),
        ("old-lost", "linux-6.1", "panic"),
        ("old-unfed", "linux-6.1", "kill"),
    ];
    let folder = tempfile::tempdir()?;
    let mut vms = Vec::new();
    for (name, kernel, end) in NAMES {
        let words = format!("uc.test=watchdog uc.end={end} panic=0");
        vms.push(with_generic_watchdog(guest::kernel_with_drivers(name, kernel, 1, &words, folder.path())?));
    }
    let run = Host { memory: 2048, ..Host::default() }.start(vms)?;
    for (name, ..) in NAMES {
        run.console(name)?.expect_unless("uc: watchdog fed", &["FAILED"], BOOT)?;
    }
    for (name, ..) in NAMES.into_iter().filter(|(_, _, end)| *end == "panic") {
        run.console(name)?.expect_unless("Kernel panic", &["FAILED"], STARVED)?;
    }
    for (name, ..) in NAMES {
        run.console(name)?.expect_unless("uc: watchdog passed: reset by the watchdog", &["FAILED"], BOOT)?;
    }
    let warnings = NAMES.map(|(name, ..)| format!(": {name}: Generic Watchdog: not patted in time"));
    ends_with_warnings(run, &warnings.each_ref().map(String::as_str))
}

/// Of a guest that has booted, at most a tenth of the pages that it has touched are executable (P6-A9): what was never executed
/// is maintained for nobody.
fn few_pages_are_executable(run: &Run, name: &str) -> Result<()> {
    let code = Code::read(&run.statistics(STARVED)?, name)?;
    let Code { mapped, executable, .. } = code;
    println!("{name}: {code:?}");
    ensure!(executable > 0 && executable <= mapped / 10, "{name}: {executable} of {mapped} pages are executable");
    Ok(())
}

/// Debian's systemd of two releases as the first process, with RuntimeWatchdogSec: it feeds the Generic Watchdog by itself; when
/// it is frozen, the VM is reset, although its kernel and other processes are well.
fn systemd() -> Result<()> {
    const NAMES: [(&str, &str); 2] = [("bookworm", "linux-6.1"), ("trixie", "linux-6.12")];
    let folder = tempfile::tempdir()?;
    let mut vms = Vec::new();
    for (name, kernel) in NAMES {
        vms.push(with_generic_watchdog(guest::linux_with_systemd(name, kernel, name, folder.path())?));
    }
    let run = Host { memory: 2048, ..Host::default() }.start(vms)?;
    let is_frozen = |name: &str| -> Result<()> {
        let console = run.console(name)?;
        console.expect_unless("uc: inside, the first process is systemd", &["FAILED", "Kernel panic"], BOOT)?;
        console.expect_unless("uc: systemd fed", &["FAILED", "Kernel panic"], BOOT)?;
        console.expect_unless("uc: alive beside a frozen systemd", &["FAILED", "Kernel panic"], STARVED)?;
        few_pages_are_executable(&run, name)
    };
    // One may be reset while the other one still boots.
    std::thread::scope(|scope| {
        let looks = NAMES.map(|(name, _)| (name, scope.spawn(move || is_frozen(name))));
        looks.into_iter().try_for_each(|(name, look)| {
            look.join().unwrap_or_else(|_| Err(anyhow::anyhow!("nobody looks at it any more"))).context(name)
        })
    })?;
    for (name, _) in NAMES {
        let bad = ["FAILED", "Kernel panic"];
        run.console(name)?.expect_unless("uc: systemd passed: reset by the watchdog", &bad, BOOT)?;
        let boots = run.console(name)?.transcript().matches("init: ").count();
        ensure!(boots == 2, "{name} was booted {boots} times");
    }
    let warnings = NAMES.map(|(name, _)| format!(": {name}: Generic Watchdog: not patted in time"));
    ends_with_warnings(run, &warnings.each_ref().map(String::as_str))
}

/// All VMs power themselves off, and the log complains of this and of nothing else, once each.
fn ends_with_warnings(run: Run, expected: &[&str]) -> Result<()> {
    let outcome = run.wait_stopped(BOOT);
    ensure!(outcome == Outcome::PoweredOff, "{outcome}");
    let complaints = log::complaints(&run.log().transcript());
    for text in expected {
        let count = complaints.iter().filter(|line| line.contains(text)).count();
        ensure!(count == 1, "{count} times in the log, \"{text}\": {complaints:?}");
    }
    ensure!(complaints.len() == expected.len(), "the hypervisor complains: {complaints:?}");
    Ok(())
}
