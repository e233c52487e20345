//! The hypervisor's ground floor: the checks P3-A1 to P3-A12 of the specification, which it runs on itself (the boot
//! argument `selftest=percpu`) on four CPUs, on models with and without FEAT_LSE.

use anyhow::{Result, ensure};
use qemu::{Level, Machine};
use std::process::ExitCode;
use std::time::Duration;
use system::host::Turn;
use system::{place, scenario};

/// A hundred thousand moves of threads take a while on a busy machine.
const LIMIT: Duration = Duration::from_secs(400);

fn main() -> ExitCode {
    let trial = |cpu: &'static str| scenario(format!("percpu::{cpu}"), move || self_test(cpu));
    system::run(["cortex-a72", "cortex-a76"].map(trial).into())
}

fn self_test(cpu: &str) -> Result<()> {
    let mut machine = Machine::new(place::hypervisor()?);
    machine.level = Level::El2;
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
    ensure!(checks("... ok") == 13 && printed.contains("selftest: 13 passed, 0 failed"), "it printed:\n{printed}");
    Ok(())
}
