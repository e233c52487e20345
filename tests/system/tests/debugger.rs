//! CONTRIBUTING's way to a debugger at EL2, as it stands there: gdb waits at a line of the hypervisor, and a guest's call leads there.
//! Only the port is another one, for there may be a second host on this computer.

use anyhow::{Context, Result, ensure};
use std::net::TcpListener;
use std::process::{Command, ExitCode};
use std::time::Duration;
use system::host::Host;
use system::{guest, place, scenario};

/// How long the guest may take that was let go on.
const LIMIT: Duration = Duration::from_secs(120);
/// Where its words stand.
const HEAD: &str = "### A debugger at EL2";

fn main() -> ExitCode {
    system::run(vec![scenario("debugger::contributing_leads_to_el2", leads_to_el2)])
}

fn leads_to_el2() -> Result<()> {
    let text = std::fs::read_to_string(place::project().join("CONTRIBUTING.md"))?;
    let (_, section) = text.split_once(HEAD).context("CONTRIBUTING has no such section")?;
    let block =
        section.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n")).context("there are no commands")?;
    let block = block.replace("\\\n", " ");
    let without_remark = |line: &str| line.split(" #").next().unwrap_or_default().trim().to_owned();
    let lines: Vec<String> = block.lines().map(without_remark).collect();
    let [run, gdb] = lines.as_slice() else { anyhow::bail!("not two commands: {lines:?}") };
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    // `-s` is QEMU's short word for port 1234.
    let words = run.split_whitespace().filter_map(|word| word.strip_prefix("--qemu-arg="));
    let gate = format!("tcp:127.0.0.1:{port}");
    let words: Vec<String> = words
        .flat_map(|word| if word == "-s" { vec!["-gdb", gate.as_str()] } else { vec![word] })
        .map(str::to_owned)
        .collect();
    ensure!(words == ["-S", "-gdb", gate.as_str()], "the machine does not wait for a debugger: {run}");
    let run = Host { memory: 512, ..Host::default() }
        .start_with_qemu(vec![guest::payload("guest", "template", 1, "")?], words)?;
    let look = "-ex 'backtrace 1' -ex delete -ex detach";
    // By itself it gives up after two seconds.
    let patient = "gdb-multiarch -nx -batch -ex 'set remotetimeout 60' -ex 'set tcp connect-timeout 60'";
    let gdb = gdb.replacen("gdb-multiarch", patient, 1).replace(":1234", &format!(":{port}"));
    let named =
        gdb.split("hbreak ").nth(1).and_then(|rest| rest.split(':').next()).context("no breakpoint")?.to_owned();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("exec {gdb} {look}")])
        .current_dir(place::project())
        .env("PATH", place::path_with_debugger()?);
    let output = shell.output().context("starting gdb")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Set in that file, at that line or the next with code, and reached there, in a function that is known by its symbol.
    let place = said.lines().find_map(|line| {
        let (_, place) = line.split_once("Hardware assisted breakpoint 1 at 0x")?.1.split_once(": file ")?;
        Some(place.strip_suffix('.')?.replace(", line ", ":"))
    });
    let place = place.with_context(|| format!("no breakpoint was set. What gdb says:\n{said}"))?;
    let innermost = |said: &str| said.starts_with("#0  dispatch (") && said.contains(&place);
    let is_there = place.contains(&format!("exit/{named}:")) && said.contains("hit Breakpoint 1, ");
    ensure!(
        is_there && said.lines().any(innermost),
        "{named} was not reached, or not at {place}. What gdb says:\n{said}"
    );
    run.finish(LIMIT)
}
