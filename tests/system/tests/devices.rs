//! The guest's devices through Linux's own drivers: the console in both directions, virtio's console and entropy, the
//! clock, the power button.

use abi::link::{Carrier, Command};
use anyhow::{Result, ensure};
use croft::session::Condition;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use system::guest::{self, USUAL};
use system::host::{Host, Run};
use system::{BOOT, SOON, scenario};

fn main() -> ExitCode {
    system::run(vec![
        scenario("devices::prompt", prompt),
        scenario("devices::two_prompts", two_prompts),
        scenario("devices::wall_clock", wall_clock),
        scenario("devices::virtio_console", virtio_console),
        scenario("devices::ends_in_the_middle_of_output", ends_in_the_middle_of_output),
        scenario("devices::virtio_entropy", virtio_entropy),
        scenario("devices::power_button", power_button),
    ])
}

/// A guest with a shell on its console.
fn shell() -> Result<Run> {
    Host::default().start(vec![guest::linux("guest", USUAL, 2, "quiet")?])
}

/// Ends the shell, and so the guest.
fn exit(run: Run, name: &str) -> Result<()> {
    run.console(name)?.expect("# ", SOON)?;
    run.console(name)?.send("exit\n")?;
    run.finish(SOON)
}

/// A short command, a line longer than any FIFO, and much output: nothing is lost in either direction.
fn prompt() -> Result<()> {
    let run = shell()?;
    run.ask("guest", "echo $((6*7))", "\n42\r\n")?;
    // Linux's driver for the generation identifier, which is built in, has found it and its interrupt.
    run.ask("guest", "grep -c vmgenid /proc/interrupts", "\n1\r\n")?;
    let long = "x".repeat(1000);
    run.ask("guest", &format!("echo {long} | wc -c"), "\n1001\r\n")?;
    let numbers = run.ask("guest", "seq 1 5000; echo $((5000 + 1))", "\n5001\r\n")?;
    let expected: String = (1..=5000).map(|number| format!("{number}\r\n")).collect();
    ensure!(numbers.contains(&format!("\n{expected}")), "not all numbers came, or not in order");
    exit(run, "guest")
}

/// Two guests, each with its own terminal. The link goes by its port, from which nothing is taken for a while, as by a tool that
/// was stopped: what one guest writes meanwhile waits, and all of it comes; what the other is sent does not keep it back.
fn two_prompts() -> Result<()> {
    let vms = vec![guest::linux("one", USUAL, 1, "quiet")?, guest::linux("other", USUAL, 1, "quiet")?];
    let run = Host { port: true, ..Host::default() }.start(vms)?;
    for name in ["one", "other", "one", "other"] {
        run.ask(name, &format!("name={name}$name; echo I am $name"), &format!("\nI am {name}"))?;
    }
    run.ask("one", "echo $name", "\noneone\r\n")?;
    // More than all that is between the guest and us holds.
    run.console("one")?.expect("# ", SOON)?;
    ensure!(run.carrier() == Carrier::Port, "the link goes by {:?}", run.carrier());
    run.hold_port(true);
    run.console("one")?.send("head -c 600000 /dev/zero | tr '\\0' x; echo; echo done-$((6*7))\n")?;
    std::thread::sleep(Duration::from_secs(3));
    // And more than its thread has room for before the consoles' takes it.
    let words = "x".repeat(500);
    for _ in 0..40 {
        run.console("other")?.send(format!("# {words}\n"))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    run.hold_port(false);
    run.console("one")?.expect("\ndone-42", BOOT)?;
    let written = run.console("one")?.transcript().matches('x').count();
    ensure!(written >= 600_000, "of 600,000 bytes {written} came");
    // Its terminal may have lost the end of the last line.
    run.console("other")?.send("\n")?;
    run.ask("other", "echo $name", "\notherother\r\n")?;
    ensure!(run.carrier() == Carrier::Port, "the link goes by {:?}", run.carrier());
    // A guest that ends meanwhile is said to have ended, behind its last words.
    run.console("one")?.send("\n")?;
    run.console("one")?.expect("# ", SOON)?;
    run.hold_port(true);
    run.console("other")?.send("head -c 600000 /dev/zero | tr '\\0' y; echo; echo written-$((6*7))\n")?;
    std::thread::sleep(Duration::from_secs(3));
    run.console("one")?.send("echo last-$((6*7)); exit\n")?;
    std::thread::sleep(Duration::from_secs(3));
    run.hold_port(false);
    run.wait_for("one", SOON, |condition| *condition == Condition::PoweredOff)?;
    ensure!(run.console("one")?.transcript().contains("\nlast-42"), "the last words of `one` are lost");
    run.console("other")?.expect("\nwritten-42", BOOT)?;
    run.ask("other", "echo $name", "\notherother\r\n")?;
    exit(run, "other")
}

/// The guest's real-time clock (PL031) shows the time of day.
fn wall_clock() -> Result<()> {
    let run = shell()?;
    run.ask("guest", "echo now $(cat /sys/class/rtc/rtc0/since_epoch)", "\nnow ")?;
    let line = run.console("guest")?.expect("\r\n", SOON)?;
    let (guest, ours) = (line.trim().parse::<u64>()?, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    ensure!(guest.abs_diff(ours) < 60, "the guest's clock shows {guest}, ours {ours} seconds since 1970");
    exit(run, "guest")
}

/// hvc0 carries text in both directions, and its output goes to its own file.
fn virtio_console() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vm = guest::linux_with_drivers("guest", 2, "quiet", folder.path())?;
    let run = Host::default().start_logged(vec![vm], &folder.path().join("logs"))?;
    // One descriptor stays open: the last close gives the terminal its echo back, and drops what of an echo is not out yet, which
    // Linux sends after it has woken the reader.
    run.ask("guest", "exec 3<>/dev/hvc0; stty -echo <&3; echo open $?", "\nopen 0")?;
    run.ask("guest", "echo hello > /dev/hvc0; echo sent $?", "\nsent 0")?;
    run.virtio_console("guest")?.expect("hello\r\n", SOON)?;
    let file = std::fs::read_to_string(folder.path().join("logs/guest.hvc0"))?;
    ensure!(file == "hello\r\n", "in the file is {file:?}");

    run.ask("guest", "(echo ready; read line; echo \"got $line\" > /dev/ttyAMA0) < /dev/hvc0", "\nready")?;
    run.virtio_console("guest")?.send("from outside\n")?;
    run.console("guest")?.expect("\ngot from outside", SOON)?;

    let numbers: String = (1..=3000).map(|number| format!("{number}\r\n")).collect();
    run.ask("guest", "seq 1 3000 > /dev/hvc0; echo sent $?", "\nsent 0")?;
    let output = run.virtio_console("guest")?.expect("\n3000\r\n", SOON)?;
    ensure!(output == numbers, "not all numbers came through hvc0, or not in order: {output}");
    exit(run, "guest")
}

/// A guest that ends its lives while its virtio console is at work: the device forgets the memory that it worked in.
fn ends_in_the_middle_of_output() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vm = guest::linux_with_drivers("guest", 2, "quiet", folder.path())?;
    let run = Host::default().start(vec![vm])?;
    for end in ["reboot -f", "poweroff -f"] {
        run.ask("guest", "(seq 1 1000000 > /dev/hvc0) & sleep 1; echo on $?", "\non 0")?;
        run.console("guest")?.send(format!("{end}\n"))?;
        if end == "reboot -f" {
            run.console("guest")?.expect("cpus online", BOOT)?;
        }
    }
    run.finish(SOON)
}

/// Linux takes the entropy device for its random numbers, and it gives some.
fn virtio_entropy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = Host::default().start(vec![guest::linux_with_drivers("guest", 1, "quiet", folder.path())?])?;
    run.ask("guest", "echo by $(cat /sys/class/misc/hw_random/rng_current)", "\nby virtio_rng.0")?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        run.ask("guest", "echo bytes $(head -c 24 /dev/hwrng | od -An -v -tx1)", "\nbytes ")?;
        let bytes = run.console("guest")?.expect("\r\n", SOON)?;
        ensure!(bytes.split_whitespace().count() == 24, "24 bytes were asked for, this came: {bytes}");
        seen.push(bytes);
    }
    ensure!(seen.first() != seen.last(), "twice the same: {seen:?}");
    exit(run, "guest")
}

/// The operator presses the button; Linux sees a key and powers off.
fn power_button() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run =
        Host::default().start(vec![guest::linux_with_drivers("guest", 1, "quiet uc.test=button", folder.path())?])?;
    run.console("guest")?.expect_unless("uc: button ready", &["Kernel panic", "FAILED"], BOOT)?;
    run.control(Command::PowerButton { vm: 0 })?;
    run.console("guest")?.expect_unless("uc: button passed", &["FAILED"], SOON)?;
    run.finish(SOON)
}
