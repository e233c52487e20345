//! A VM's life: reboot, power off, start again, stop by force, CPUs that come and go, idleness and load. None of it may
//! cost the hypervisor a frame, or a neighbour anything.

use abi::link::Command;
use abi::link::request::{Ask, HOST};
use anyhow::{Context, Result, ensure};
use croft::control::Order;
use croft::session::Condition;
use croft::site::Vm;
use std::process::ExitCode;
use std::time::Duration;
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::memory::Memory;
use system::operator::Operator;
use system::{BOOT, SOON, full, log, scenario};

/// A kernel that ends like this is lost.
const PANIC: &[&str] = &["Kernel panic", "FAILED"];

fn main() -> ExitCode {
    let rounds = if full() { 30 } else { 4 };
    system::run(vec![
        scenario("life::reboot", move || reboot(rounds)),
        scenario("life::power_off_and_on", move || power_off_and_on(rounds / 2)),
        scenario("life::one_goes_the_other_stays", one_goes_the_other_stays),
        scenario("life::waits_for_the_operator", waits_for_the_operator),
        scenario("life::forced_stop", forced_stop),
        scenario("life::reboot_by_the_operator", reboot_by_the_operator),
        scenario("life::reboot_by_the_button", reboot_by_the_button),
        scenario("life::hotplug_100_times", hotplug),
        scenario("life::idle", idle),
        scenario("life::load", load),
        scenario("life::no_heap_left", no_heap_left),
        scenario("life::load_under_two_page_sizes", || loads(["linux-6.12-16k", USUAL])),
    ])
}

/// The account of memory, taken once a guest is up.
fn account(run: &Run) -> Result<Memory> {
    Memory::read(&run.statistics(SOON)?)
}

/// A guest that reboots itself as soon as it was looked at: each time it starts afresh, with all of its CPUs, and the
/// hypervisor has as much memory as before. Afterwards the guest's is all given back.
fn reboot(rounds: u32) -> Result<()> {
    let run = Host::default().start_and_stay(vec![guest::linux("guest", USUAL, 2, "quiet uc.test=reboot-count")?])?;
    let (mut first, mut emptied) = (None, 0);
    for boot in 1..=rounds {
        run.console("guest")?.expect_unless(&guest::online(2), PANIC, BOOT)?;
        let condition = run.wait_for("guest", SOON, |condition| *condition == Condition::Running { boots: boot });
        ensure!(condition.is_ok(), "at boot {boot} the guest is {}", run.condition("guest")?);
        let now = account(&run)?;
        let first = *first.get_or_insert(now);
        ensure!(now.hypervisor == first.hypervisor, "boot {boot}: {now:?}, boot 1: {first:?}");
        let limit = (guest::MEMORY >> 10) + 64;
        // What a guest is given may hold its last owner's instructions: the caches are emptied for each of its blocks, and a
        // Linux guest touches more than eight on its way up.
        ensure!(now.emptied >= emptied + 8, "boot {boot}: caches emptied {} times, before: {emptied}", now.emptied);
        emptied = now.emptied;
        ensure!(now.guests <= limit, "a guest of {} MiB has {} KiB", guest::MEMORY >> 20, now.guests);
        run.console("guest")?.expect("uc: rebooting", SOON)?;
        if boot < rounds {
            run.console("guest")?.send("\n")?;
        }
    }
    run.control(Command::ForceStop { vm: 0 })?;
    run.wait_for("guest", SOON, Condition::is_off)?;
    let end = account(&run)?;
    ensure!(end.guests == 0 && end.tables == 0, "a guest that is off still has memory: {end:?}");
    ensure!(Some(end.hypervisor) == first.map(|first| first.hypervisor), "{end:?}, at boot 1: {first:?}");
    // On a quick computer its lives are short, and it has to wait a little.
    run.check_log_but(&["resets itself again and again"])
}

/// The operator starts a guest again and again after it has powered itself off. Each time everything is given back.
fn power_off_and_on(rounds: u32) -> Result<()> {
    let run = Host::default().start_and_stay(vec![guest::linux("guest", USUAL, 2, "quiet uc.test=poweroff")?])?;
    let mut first = None;
    for round in 1..=rounds {
        run.console("guest")?.expect_unless(&guest::online(2), PANIC, BOOT)?;
        run.wait_for("guest", BOOT, |condition| *condition == Condition::PoweredOff)?;
        let now = account(&run)?;
        ensure!(now.guests == 0 && now.tables == 0, "round {round}: a guest that is off still has memory: {now:?}");
        let first = *first.get_or_insert(now);
        ensure!(
            (now.hypervisor, now.free) == (first.hypervisor, first.free),
            "after round {round}: {now:?}, after round 1: {first:?}"
        );
        if round < rounds {
            run.control(Command::Reboot { vm: 0 })?;
            run.wait_for("guest", SOON, |condition| !condition.is_off())?;
        }
    }
    run.check_log()
}

/// One guest powers off; the other goes on, and answers at its prompt.
fn one_goes_the_other_stays() -> Result<()> {
    let vms =
        vec![guest::linux("goes", USUAL, 2, "quiet uc.test=poweroff")?, guest::linux("stays", USUAL, 2, "quiet")?];
    let run = Host::default().start(vms)?;
    run.wait_for("goes", BOOT, |condition| *condition == Condition::PoweredOff)?;
    run.ask("stays", "echo still $((40 + 2))", "still 42")?;
    run.console("stays")?.send("exit\n")?;
    run.finish(SOON)
}

/// A guest that is not to start with the host is off until the operator starts it; a host that ends before that ended well.
fn waits_for_the_operator() -> Result<()> {
    let waiting = |name| guest::linux(name, USUAL, 1, "quiet").map(|vm| Vm { autostart: false, ..vm });
    let run =
        Host::default().start(vec![waiting("later")?, guest::linux("now", USUAL, 1, "quiet")?, waiting("never")?])?;
    run.ask("now", "echo up $((40 + 2))", "up 42")?;
    for name in ["later", "never"] {
        let condition = run.wait_for(name, SOON, Condition::is_off)?;
        ensure!(condition == Condition::NotStarted, "{name} is not to start, but it is said to be {condition}");
    }
    run.control(Command::Reboot { vm: run.vm("later")? })?;
    run.wait_for("later", SOON, |condition| !condition.is_off())?;
    run.ask("later", "echo started $((40 + 2))", "started 42")?;
    for name in ["later", "now"] {
        run.console(name)?.send("exit\n")?;
    }
    run.finish(SOON)
}

/// The operator stops one guest in the middle of its work; the other goes on.
fn forced_stop() -> Result<()> {
    let vms = vec![
        guest::linux("stopped", USUAL, 2, "quiet uc.test=load uc.rounds=100000")?,
        guest::linux("other", USUAL, 1, "quiet")?,
    ];
    let run = Host::default().start_and_stay(vms)?;
    run.console("stopped")?.expect_unless(&guest::online(2), PANIC, BOOT)?;
    run.ask("other", "echo before $((1 + 2))", "before 3")?;
    let before = account(&run)?;
    run.control(Command::ForceStop { vm: run.vm("stopped")? })?;
    let condition = run.wait_for("stopped", SOON, Condition::is_off)?;
    ensure!(condition == Condition::Forced, "stopped by force, but it is said to be {condition}");
    run.ask("other", "echo after $((40 + 2))", "after 42")?;
    let after = account(&run)?;
    ensure!(after.guests < before.guests, "its memory was not given back: {before:?} before, {after:?} after");
    ensure!(after.hypervisor == before.hypervisor, "{before:?} before, {after:?} after");
    run.check_log()
}

/// The operator reboots a guest that is in the middle of its work, and then resets it many times in a row, which is no reset
/// loop of the guest's: there is no warning, and nothing waits.
fn reboot_by_the_operator() -> Result<()> {
    let run = Host::default().start_and_stay(vec![guest::linux(
        "guest",
        USUAL,
        2,
        "quiet uc.test=load uc.rounds=100000",
    )?])?;
    for boots in 1..=3 {
        run.console("guest")?.expect_unless(&guest::online(2), PANIC, BOOT)?;
        run.wait_for("guest", SOON, |condition| *condition == Condition::Running { boots })?;
        run.control(Command::Reboot { vm: 0 })?;
    }
    for boots in 4..=11 {
        run.wait_for("guest", SOON, |condition| *condition == Condition::Running { boots })?;
        run.control(Command::Reset { vm: 0 })?;
    }
    run.wait_for("guest", SOON, |condition| *condition == Condition::Running { boots: 12 })?;
    run.check_log()
}

/// The operator reboots guests without tools, by their power buttons. One listens; when it is off it is started again,
/// although it was the last one on and the host is to go off with the last. One is deaf: when it powers itself off later, for
/// reasons of its own, it stays off.
fn reboot_by_the_button() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vms = vec![
        guest::linux("deaf", USUAL, 1, "quiet")?,
        guest::linux_with_drivers("listens", 1, "quiet uc.test=button", folder.path())?,
    ];
    let run = Host::default().start(vms)?;
    let operator = Operator::new(&run, folder.path())?;
    let reboot = |vm: &str, seconds| operator.order(&Order::Reboot { vm: vm.to_owned(), force: false, seconds });
    run.console("deaf")?.expect_unless("# ", PANIC, BOOT)?;
    let late = reboot("deaf", 2).err().context("a guest that does not know its button has rebooted")?;
    ensure!(late.to_string().contains("did not reboot within 2 s"), "{late}");
    run.console("deaf")?.send("exit\n")?;
    let condition = run.wait_for("deaf", SOON, |condition| *condition != Condition::Running { boots: 1 })?;
    ensure!(condition == Condition::PoweredOff, "a guest that was asked to reboot in vain is {condition}");

    for boots in 2..4 {
        run.console("listens")?.expect_unless("uc: button ready", PANIC, BOOT)?;
        reboot("listens", 120)?;
        ensure!(run.condition("listens")? == Condition::Running { boots }, "it is {}", run.condition("listens")?);
    }
    run.console("listens")?.expect_unless("uc: button ready", PANIC, BOOT)?;
    operator.order(&Order::Stop { vm: "listens".to_owned(), force: false, seconds: 120 })?;
    run.finish(SOON)
}

/// Runs one of the guest's own tests; it must pass, and its kernel must have nothing to complain about meanwhile.
fn passes(run: &Run, name: &str, test: &str, limit: Duration) -> Result<()> {
    let console = run.console(name)?;
    let before = console.expect_unless(&format!("uc: {test} passed"), PANIC, limit)?;
    let after = console.expect("reboot: Power down", SOON)?;
    let during = format!("{before}{after}");
    let during = during.split_once("cpus online").map_or(&*during, |(_, during)| during);
    let complaints = log::suspicious(during);
    ensure!(complaints.is_empty(), "{name} complains during {test}: {complaints:?}");
    Ok(())
}

/// Each CPU but the first goes off line and comes back, 100 times.
fn hotplug() -> Result<()> {
    let vcpus = if full() { 4 } else { 2 };
    let run =
        Host::default().start(vec![guest::linux("guest", USUAL, vcpus, "quiet uc.test=hotplug uc.rounds=100")?])?;
    passes(&run, "guest", "hotplug", BOOT * 4)?;
    let rounds = run.console("guest")?.transcript().matches("uc: hotplug round ").count();
    ensure!(rounds == 100, "{rounds} rounds instead of 100");
    run.finish(SOON)
}

/// A guest sleeps, on a host whose time is counted in instructions and passes at once while everybody sleeps: its clock and the
/// hypervisor's, as its log has it, agree on how long that was, however busy this computer is.
fn idle() -> Result<()> {
    const SLEEP: f64 = 60.0;
    let words = format!("quiet uc.test=idle uc.seconds={SLEEP}");
    let run = Host::default().start_counted(vec![guest::linux("guest", USUAL, 2, &words)?])?;
    let console = run.console("guest")?;
    console.expect_unless("uc: idle passed", PANIC, BOOT * 2)?;
    let last = console.expect("] reboot: Power down", SOON)?;
    run.log().expect("guest: powered off", SOON)?;
    let log = run.log().transcript();
    // Lines of both begin with seconds since their start.
    let logged = |text: &str| log.lines().find(|line| line.contains(text))?.split_whitespace().next()?.parse().ok();
    let (begin, end): (f64, f64) = logged("guest: started").zip(logged("guest: powered off")).context(log.clone())?;
    let (_, guests) = last.rsplit_once('[').context("no time before the last line")?;
    let guests: f64 = guests.split(']').next().unwrap_or_default().trim().parse().with_context(|| last.clone())?;
    let hosts = end - begin;
    ensure!(
        guests > SLEEP && (hosts - guests).abs() < 2.0,
        "{guests} seconds of the guest's were {hosts} of the host's"
    );
    run.check_log()
}

/// VMs of a hypervisor that has nothing left of its heap (`selftest=hunger`): what the operator asks for is done without memory, or
/// refused in a line that says so; a guest that is to start afresh is off if that takes memory; the others do not notice.
fn no_heap_left() -> Result<()> {
    const SET_TIME: Ask<'static> = Ask::SetTime { microseconds: 1_700_000_000_000_000 };
    let mut other = guest::payload("other", "kept", 2, "")?;
    other.doors.vmware = true;
    let again = guest::payload("again", "kept", 2, "")?;
    let run = Host { memory: 512, ..Host::default() }.start_checks(vec![other, again], "selftest=hunger")?;
    let ticks = |name: &str| run.console(name)?.expect_unless("kept: tick ", &["FAILED"], SOON);
    for name in ["other", "again"] {
        ticks(name)?;
    }
    run.control(Command::Reset { vm: run.vm("again")? })?;
    run.log().expect_unless("selftest: the heap is used up", &["STOPPED"], SOON)?;
    let other = run.vm("other")?;
    for ask in [Ask::Save, Ask::Set { key: "guestinfo.new", offset: 0, value: &[b'x'; 500], last: true }] {
        let refused = run.session().ask(other, ask, SOON).err().with_context(|| format!("{ask:?} took no memory"))?;
        ensure!(refused.to_string().contains("no memory left"), "{ask:?}: {refused}");
    }
    // What takes no memory is done, or refused for its own reason, as ever.
    let absent = Ask::Get { key: "guestinfo.new" };
    for (ask, reason) in [
        (Ask::Machine, "no memory left"),
        (absent, "has no value"),
        (Ask::SetGuestTime, "its tools do not answer"),
        (Ask::Restore, "is not off"),
    ] {
        let refused = run.session().ask(other, ask, SOON).err().with_context(|| format!("{ask:?} was done"))?;
        ensure!(refused.to_string().contains(reason), "{ask:?}: {refused}");
    }
    for (vm, ask) in [(other, Ask::Keys), (other, Ask::Guest), (HOST, Ask::Time), (HOST, SET_TIME)] {
        run.session().ask(vm, ask, SOON).with_context(|| format!("{ask:?} took memory"))?;
    }
    // The text is as long as there is memory for it, and the log tells.
    run.statistics(SOON)?;
    run.log().expect_unless("no memory left for the whole of a text", &["STOPPED"], SOON)?;
    for command in [Command::PauseVm { vm: other }, Command::ResumeVm { vm: other }] {
        run.control(command)?;
    }
    run.control(Command::Reset { vm: run.vm("again")? })?;
    let off = run.wait_for("again", SOON, Condition::is_off)?;
    ensure!(off.to_string().contains("no memory"), "a guest whose device tree found no memory is {off}");
    let refused = run.session().ask(run.vm("again")?, Ask::Restore, SOON).err().context("a restore took no memory")?;
    ensure!(refused.to_string().contains("no memory"), "Restore: {refused}");
    for _ in 0..3 {
        ticks("other")?;
    }
    run.control(Command::ForceStop { vm: other })?;
    run.wait_for("other", SOON, Condition::is_off)?;
    let log = run.log().transcript();
    ensure!(!log.contains("STOPPED") && !log.contains("memory allocation"), "the hypervisor stopped:\n{log}");
    Ok(())
}

/// Two guests with twice as many busy vCPUs as there are CPUs compute right, and both come to their end.
fn load() -> Result<()> {
    loads([USUAL, USUAL])
}

fn loads(kernels: [&str; 2]) -> Result<()> {
    let words = if full() { "quiet uc.test=load uc.rounds=50" } else { "quiet uc.test=load uc.rounds=5" };
    let mut vms = Vec::new();
    for (name, kernel) in ["one", "other"].into_iter().zip(kernels) {
        vms.push(guest::linux(name, kernel, 2, words)?);
    }
    let run = Host::default().start(vms)?;
    for name in ["one", "other"] {
        passes(&run, name, "load", BOOT * 2)?;
    }
    run.finish(SOON)
}
