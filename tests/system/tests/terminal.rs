//! The demonstration as a person meets it: `cargo xtask run` on a terminal, two guests to type at, and the keys between.

use anyhow::{Result, ensure};
use std::process::{Command, ExitCode};
use system::host::Turn;
use system::terminal::Terminal;
use system::{BOOT, SOON, place, scenario};

fn main() -> ExitCode {
    system::run(vec![scenario("terminal::demonstration", demonstration)])
}

fn demonstration() -> Result<()> {
    place::kernel("linux-6.12-cloud")?;
    place::hypervisor()?;
    let _turn = Turn::take()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["xtask", "run"]).current_dir(place::project()).env("TERM", "xterm");
    let mut terminal = Terminal::start(command)?;
    ensure!(terminal.is_cooked()?, "a new terminal is not as a shell wants it");

    terminal.expect("cpus online", BOOT * 2)?;
    terminal.expect("# ", SOON)?;
    ensure!(!terminal.is_cooked()?, "the terminal would keep keys from the guest");
    terminal.press("me=first; echo I am $me of $(nproc)\r")?;
    terminal.expect("\nI am first of 2", SOON)?;
    // Ctrl-C is the guest's: it ends a program there, and not the demonstration.
    terminal.expect("# ", SOON)?;
    terminal.press("(echo asleep; sleep 1000)\r")?;
    terminal.expect("\nasleep\r\n", SOON)?;
    terminal.press("\x03")?;
    terminal.expect("# ", SOON)?;

    terminal.press("\x1dn")?;
    terminal.expect("# ", BOOT)?;
    terminal.press("me=${me}second; echo I am $me\r")?;
    terminal.expect("\nI am second", SOON)?;
    terminal.press("\x1d0")?;
    terminal.press("\recho back at $me\r")?;
    terminal.expect("\nback at first", SOON)?;

    terminal.press("\x1dl")?;
    terminal.expect("db: started (1)", SOON)?;
    terminal.press("\x1ds")?;
    terminal.expect("exits", SOON)?;
    terminal.press("\x1dq")?;
    let status = terminal.end(SOON)?;
    ensure!(status.success(), "it ended with {status}; shown is:\n{}", terminal.shown());
    ensure!(terminal.is_cooked()?, "the terminal was not put back");
    Ok(())
}
