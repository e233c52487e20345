//! The rules for one VM, for `croft` and for the hypervisor alike.

use super::{Calls, Doors, MAX_CMDLINE, MAX_MEMORY, MAX_NAME, MAX_WEIGHT, MIN_MEMORY, VmConfig, VmProblem};
use crate::watchdog::{Action, Actions, MILLISECONDS};
use units::{BLOCK_SIZE, MAX_VCPUS};

/// Whether `name` may be a VM's: 1 to 32 of `a` to `z`, `0` to `9` and `-`. Such a name is safe as a file name, in a
/// log line and on a command line; a leading `-` is refused because it looks like an option there.
///
/// # Errors
/// [`VmProblem::Name`].
pub fn check_name(name: &str) -> Result<(), VmProblem> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = !name.is_empty() && name.len() <= MAX_NAME;
    if fits && !name.starts_with('-') && name.bytes().all(allowed) { Ok(()) } else { Err(VmProblem::Name) }
}

/// Everything about `vm` that can be judged without the rest of the bundle.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_vm(vm: &VmConfig<'_>) -> Result<(), VmProblem> {
    check_name(vm.name)?;
    if vm.vcpus == 0 || usize::from(vm.vcpus) > MAX_VCPUS {
        return Err(VmProblem::Vcpus(u64::from(vm.vcpus)));
    }
    if !vm.memory.is_multiple_of(BLOCK_SIZE) || vm.memory < MIN_MEMORY || vm.memory > MAX_MEMORY {
        return Err(VmProblem::Memory(vm.memory));
    }
    let files = vm.kernel.length.saturating_add(vm.initrd.map_or(0, |initrd| initrd.length));
    if files > vm.memory {
        return Err(VmProblem::DoesNotFit { files, memory: vm.memory });
    }
    if let Some(program) = &vm.program {
        program.check(vm.kernel.length)?;
    }
    vm.disks.check()?;
    vm.ports.check()?;
    if vm.cmdline.len() > MAX_CMDLINE || vm.cmdline.bytes().any(|byte| byte == 0) {
        return Err(VmProblem::Cmdline);
    }
    if vm.weight == 0 || vm.weight > MAX_WEIGHT {
        return Err(VmProblem::Weight(u64::from(vm.weight)));
    }
    vm.time.check()?;
    if vm.affinity == 0 {
        return Err(VmProblem::Affinity);
    }
    check_doors(&vm.doors)
}

fn check_doors(doors: &Doors) -> Result<(), VmProblem> {
    if Action::from_number(doors.watchdog_action.into()).is_none() {
        return Err(VmProblem::WatchdogAction(doors.watchdog_action));
    }
    if doors.watchdog_choices & !Actions::ALL.0 != 0 {
        return Err(VmProblem::WatchdogChoices(doors.watchdog_choices));
    }
    let times = [doors.watchdog_milliseconds, doors.vcpu_watchdog_milliseconds];
    if let Some(wrong) = times.into_iter().find(|&time| time != 0 && !MILLISECONDS.contains(&time.into())) {
        return Err(VmProblem::WatchdogTime(wrong));
    }
    let unknown = (doors.user_calls.0 | doors.kernel_calls.0) & !Calls::ALL.0;
    if unknown != 0 {
        return Err(VmProblem::Calls(unknown));
    }
    doors.quota.check()
}
