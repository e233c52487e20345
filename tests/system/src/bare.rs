//! The bare machine: the same kernel with the same initial ramdisk, at EL1 and without a hypervisor. A guest's log is
//! compared with its log.

use crate::host::Turn;
use crate::{BOOT, log, place};
use anyhow::{Context, Result};
use qemu::{ExceptionLevel, Machine};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// A kernel, and a CPU model.
type Key = (String, String);

/// What was printed so far, by kernel and CPU model; each combination is booted once a run.
static SEEN: LazyLock<Mutex<HashMap<Key, String>>> = LazyLock::new(Mutex::default);

/// What this kernel prints on the bare machine until it is off.
///
/// # Errors
/// It did not boot.
pub fn printed(kernel: &str, cpu: &str) -> Result<String> {
    let key = (kernel.to_owned(), cpu.to_owned());
    let seen = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = seen().get(&key).cloned();
    if let Some(transcript) = known {
        return Ok(transcript);
    }
    let transcript = boot(kernel, cpu)?;
    seen().insert(key, transcript.clone());
    Ok(transcript)
}

/// Boots this kernel on the bare machine and gives what it printed until it powered off.
fn boot(kernel: &str, cpu: &str) -> Result<String> {
    let mut machine = Machine::new(place::kernel(kernel)?);
    machine.level = ExceptionLevel::El1;
    machine.cpu = cpu.to_owned();
    machine.memory = 256;
    machine.initrd = Some(place::initramfs()?);
    machine.append = "console=ttyAMA0 uc.test=poweroff".to_owned();
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    running.console()?.expect_end(BOOT).with_context(|| format!("{kernel} on the bare {cpu}"))
}

/// The lines of a guest's log that the bare machine does not show. A first look is at one CPU model for all, which a
/// run boots once; only what differs is worth a bare machine of the guest's own model.
///
/// # Errors
/// The bare machine did not boot.
pub fn unexplained(transcript: &str, kernel: &str, cpu: &str) -> Result<Vec<String>> {
    let mut lines = log::suspicious(transcript);
    for model in ["max", cpu] {
        if !lines.is_empty() {
            let known = log::suspicious(&printed(kernel, model)?);
            lines.retain(|line| !known.contains(line));
        }
    }
    Ok(lines.into_iter().collect())
}
