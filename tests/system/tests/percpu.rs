//! The hypervisor's lowest layer: the checks P3-A1 to P3-A12 (docs/spec), which it runs on itself (the boot argument `selftest=percpu`) on four CPUs,
//! on models with and without FEAT_LSE; what CPUs do at mailboxes (`selftest=mailboxes`); and guests whose threads are moved in the middle of
//! everything that EL2 does for them (`selftest=wander`).

use abi::bundle::{Time, TimeSource};
use anyhow::{Result, ensure};
use croft::session::Condition;
use croft::site::Vm;
use libtest_mimic::Trial;
use qemu::{ExceptionLevel, Machine};
use std::process::ExitCode;
use std::time::Duration;
use system::guest::{self, USUAL};
use system::host::{Host, Turn};
use system::memory::Code;
use system::{place, scenario};

/// A hundred thousand moves of threads take a while on a busy machine.
const LIMIT: Duration = Duration::from_secs(400);
/// Less than a VM's state is out.
const BETWEEN_BYTES: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let trial = |cpu: &'static str| scenario(format!("percpu::{cpu}"), move || self_test(cpu));
    let mut scenarios: Vec<Trial> = ["cortex-a72", "cortex-a76"].map(trial).into();
    scenarios.push(scenario("percpu::mailboxes", mailboxes));
    scenarios.push(scenario("percpu::guests_that_never_stay", wandering));
    scenarios.push(scenario("percpu::guests_that_are_taken_out_and_put_back", scrubbing));
    scenarios.push(scenario("percpu::exits_that_call_firmware", calling));
    scenarios.push(scenario("percpu::enclaves_end_when_all_is_taken_out", scrubbed_enclaves));
    system::run(scenarios)
}

fn self_test(cpu: &str) -> Result<()> {
    let mut machine = Machine::new(place::checks()?);
    machine.level = ExceptionLevel::El2;
    machine.cpu = cpu.to_owned();
    machine.cpus = 4;
    machine.memory = 256;
    machine.append = "selftest=percpu".to_owned();
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let printed = running.console()?.expect_end(LIMIT)?;
    let checks =
        |result: &str| printed.lines().filter(|line| line.contains("test p3_") && line.ends_with(result)).count();
    ensure!(checks("... ok") == 21 && printed.contains("selftest: 21 passed, 0 failed"), "it printed:\n{printed}");
    // While the UART took nothing a line was lost, which the log says, and nothing after it.
    let seen = |text: &str| printed.lines().any(|line| line.contains(text));
    ensure!(
        seen("the UART took nothing") && seen("this line is seen") && seen("so is this") && !seen("this line is lost"),
        "it printed:\n{printed}"
    );
    ensure!(seen("1 interrupts came that no driver handles"), "it printed:\n{printed}");
    Ok(())
}

/// Seven CPUs that wait at mailboxes, on a machine that is started by PSCI: P7-A2, A3, A7, A8 and A11.
fn mailboxes() -> Result<()> {
    let mut machine = Machine::new(place::checks()?);
    machine.level = ExceptionLevel::El2;
    machine.cpus = 8;
    machine.memory = 256;
    machine.append = "selftest=mailboxes".to_owned();
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let printed = running.console()?.expect_end(LIMIT)?;
    let passed = printed.lines().filter(|line| line.contains("test p7_") && line.ends_with("... ok")).count();
    ensure!(passed == 7 && printed.contains("selftest: 7 passed, 0 failed"), "it printed:\n{printed}");
    Ok(())
}

/// Payloads and a Linux guest whose vCPUs go to another CPU at each preemption, thousands of times, also while EL2 handles
/// their exits: everything that they check about their registers, memory, interrupts and calls is as if they had stayed.
fn wandering() -> Result<()> {
    const PAYLOADS: [&str; 6] = ["registers", "gic", "memory", "mmio", "doors", "services"];
    const LINUX: &str = "linux";
    let mut vms = Vec::new();
    for name in PAYLOADS {
        let mut vm = guest::payload(name, name, 2, "")?;
        vm.doors.vmware = name == "doors";
        vms.push(vm);
    }
    vms.push(guest::linux(LINUX, USUAL, 2, "quiet uc.test=load uc.rounds=1")?);
    let run = Host { cpus: 4, memory: 2048, ..Host::default() }.start_checks(vms, "selftest=wander")?;
    for name in PAYLOADS {
        let condition = run.wait_for(name, LIMIT, Condition::is_off)?;
        let output = run.console(name)?.transcript();
        let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
        ensure!(passed, "{name} is {condition} and printed:\n{output}");
    }
    run.console(LINUX)?.expect_unless("uc: load passed", &["Kernel panic", "FAILED"], LIMIT)?;
    run.wait_for(LINUX, LIMIT, Condition::is_off)?;
    let log = run.log().transcript();
    let preempted = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("handlers were preempted ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    let preempted = preempted.max().unwrap_or(0);
    ensure!(preempted >= 10_000, "exits' handlers were preempted only {preempted} times:\n{log}");
    println!("preempted {preempted} times");
    run.finish(LIMIT)
}

/// Payloads and a Linux guest that are paused, taken out, made as after power on, and put back, hundreds of times, at any moment:
/// everything that they check about their registers, timers, interrupts, devices and calls is as if nothing had happened.
fn scrubbing() -> Result<()> {
    const PAYLOADS: [&str; 7] = ["registers", "gic", "timers", "memory", "virtio", "doors", "services"];
    const SCALED: &str = "scaled";
    const LINUX: &str = "linux";
    // The sums of the test `load`, and beside them numbers that leave by hvc0, random bytes that come in, and what is typed.
    const WORK: &str = "word() { echo 2; }; (for r in $(seq 0 19); do seq $((r*100+1)) $((r*100+100)) >/dev/hvc0; \
                        head -c 4096 /dev/hwrng | wc -c; done >/tmp/got) & . /tests/load >/tmp/load & \
                        echo ready; cat >/tmp/typed";
    const LOOK: &str =
        "wait; cat /tmp/load; echo got $(sort -u /tmp/got); seq 200 | cmp - /tmp/typed && echo all $((199+1)) typed";
    let folder = tempfile::tempdir()?;
    let mut vms = Vec::new();
    for name in PAYLOADS {
        let mut vm = guest::payload(name, name, 2, "")?;
        vm.doors.vmware = name == "doors";
        vms.push(vm);
    }
    // Of another time, so that all of its timers are values of ours.
    let words = "host=100000000 frequency=24000000 rate=1000000 virtual=scaled timer=memory reads=5000 trials=200";
    let mut scaled = guest::payload(SCALED, SCALED, 2, words)?;
    scaled.time = Time { frequency: 24_000_000, source: TimeSource::Mmio, ..Time::default() };
    scaled.doors.vmware = true;
    vms.push(scaled);
    vms.push(guest::linux_with_drivers(LINUX, 2, "quiet", folder.path())?);
    let run = Host { cpu: "max,cntfrq=100000000", cpus: 4, memory: 2048, ..Host::default() }
        .start_checks(vms, "selftest=scrub")?;
    for name in PAYLOADS.into_iter().chain([SCALED]) {
        let condition = run.wait_for(name, LIMIT, Condition::is_off)?;
        let output = run.console(name)?.transcript();
        let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
        ensure!(passed, "{name} is {condition} and printed:\n{output}\n{}", run.log().transcript());
    }
    let console = run.console(LINUX)?;
    console.expect_unless("# ", &["Kernel panic"], LIMIT)?;
    console.send(format!("{WORK}\n"))?;
    // From here on it is `cat` that reads, and no longer the shell, which keeps what it has read too early.
    console.expect("\nready\r\n", LIMIT)?;
    // One byte after the other, so that some of them come while the state is out.
    for byte in (1..=200).flat_map(|number| format!("{number}\n").into_bytes()) {
        console.send([byte])?;
        std::thread::sleep(BETWEEN_BYTES);
    }
    console.send("\x04")?;
    console.expect("# ", LIMIT)?;
    console.send(format!("{LOOK}\n"))?;
    console.expect_unless("uc: load passed", &["Kernel panic", "FAILED", "rcu:", "lockup"], LIMIT)?;
    console.expect("\ngot 4096\r\n", LIMIT)?;
    console.expect_unless("all 200 typed\r\n", &["differ", "EOF"], LIMIT)?;
    console.expect("# ", LIMIT)?;
    let numbers: String = (1..=2000).map(|number| format!("{number}\r\n")).collect();
    let output = run.virtio_console(LINUX)?.expect("2000\r\n", LIMIT)?;
    ensure!(output == numbers, "not all numbers came through hvc0, or not in order: {output}");
    only_what_is_touched(&run.statistics(LIMIT)?, LINUX)?;
    console.send("poweroff -f\n")?;
    run.wait_for(LINUX, LIMIT, Condition::is_off)?;
    let log = run.log().transcript();
    let times = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("scrubbed and put back ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    let times = times.max().unwrap_or(0);
    ensure!(times >= 100 && !log.contains("selftest:"), "they were put back only {times} times, or wrongly:\n{log}");
    println!("put back {times} times");
    // What the payloads do wrong on purpose is told.
    run.check_log_but(&["virtio: "])
}

/// Enclaves are not taken out with the rest: their memory returns.
fn scrubbed_enclaves() -> Result<()> {
    const NAME: &str = "enclave";
    let vm = Vm { enclave: true, ..guest::payload(NAME, NAME, 2, "role=scrubbed")? };
    let run = Host { cpu: "max", cpus: 4, ..Host::default() }.start_checks(vec![vm], "selftest=scrub")?;
    let condition = run.wait_for(NAME, LIMIT, Condition::is_off)?;
    let output = run.console(NAME)?.transcript();
    let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
    ensure!(passed, "{NAME} is {condition} and printed:\n{output}\n{}", run.log().transcript());
    run.check_log()
}

/// A guest that was put back a moment ago, as often before, sees only what it has touched since, and executes few pages of that
/// (P6-A9).
fn only_what_is_touched(statistics: &str, name: &str) -> Result<()> {
    let code = Code::read(statistics, name)?;
    println!("{name}: {code:?}");
    let Code { mapped, executable, made_executable, joined: _ } = code;
    ensure!(mapped < guest::MEMORY / 4096 / 2, "{mapped} pages of {name} are mapped:\n{statistics}");
    ensure!(executable <= mapped / 5, "{executable} of {mapped} pages of {name} are executable");
    ensure!(made_executable > 20 * executable, "{made_executable} pages of {name} became executable:\n{statistics}");
    Ok(())
}

/// Vectors that call firmware at each exit, as CPUs need it that do not keep contexts apart. This machine's firmware knows
/// nothing of the kind, and says so in X0; guests lose no register by it, and no exit.
fn calling() -> Result<()> {
    const PAYLOADS: [&str; 3] = ["registers", "services", "enclave"];
    let vms = PAYLOADS.map(|name| {
        let vm = guest::payload(name, name, 2, "")?;
        Ok(Vm { enclave: name == "enclave", ..vm })
    });
    let vms = vms.into_iter().collect::<Result<_>>()?;
    let run = Host { cpu: "cortex-a72", ..Host::default() }.start_checks(vms, "vectors=calling")?;
    for name in PAYLOADS {
        let condition = run.wait_for(name, LIMIT, Condition::is_off)?;
        let output = run.console(name)?.transcript();
        let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
        ensure!(passed, "{name} is {condition} and printed:\n{output}");
    }
    let log = run.log().transcript();
    ensure!(log.contains("speculation: every exit calls firmware"), "the log does not say that exits call:\n{log}");
    Ok(())
}
