//! Running one VM under the hypervisor, or the same kernel on the bare machine, to its end.
//!
//! The hypervisor is told to write its link as text, so the transcript is what a person would see: every line of a VM's
//! console with the VM's name before it. And it is told to power the host off when the VM has stopped, so the end of
//! QEMU is the end of the trial.

use crate::compile::hypervisor_image;
use crate::tree::Tree;
use anyhow::{Context, Result};
use croft::site::{Host, Site, Vm};
use qemu::{Level, Machine};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What is run, and on which machine.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// The VM.
    pub(crate) vm: Vm,
    /// QEMU's name of the CPU model.
    pub(crate) cpu: String,
    /// How many CPUs the host has.
    pub(crate) cpus: u8,
    /// Whether time is counted in instructions.
    pub(crate) icount: bool,
    /// How long it may take.
    pub(crate) limit: Duration,
}

/// RAM of the host in MiB.
const HOST_MEMORY: u32 = 2048;

impl Trial {
    /// One CPU whose virtual nanoseconds are instructions: how everything is measured.
    pub(crate) fn measured(vm: Vm, limit: Duration) -> Trial {
        Trial { vm, cpu: "cortex-a76,cntfrq=1000000000".into(), cpus: 1, icount: true, limit }
    }

    /// Runs the VM under the hypervisor and gives all that was printed.
    pub(crate) fn under_undercroft(&self, tree: &Tree) -> Result<String> {
        let file = tree.target(format!("trials/{}.bundle", self.vm.name));
        fs::create_dir_all(tree.target("trials"))?;
        let host = Host {
            cpu: self.cpu.clone(),
            cpus: self.cpus,
            memory: u64::from(HOST_MEMORY) << 20,
            lines: croft::site::Lines::default(),
        };
        let site = Site::new("(a trial)", host, vec![self.vm.clone()]);
        fs::write(&file, croft::bundle::make(&site)?).with_context(|| format!("writing {}", file.display()))?;
        let machine = self.machine(hypervisor_image(tree), Some(file), "link=text all-off=poweroff", Level::El2);
        transcript(&machine, self.limit)
    }

    /// Runs the VM's kernel on the bare machine, without a hypervisor.
    pub(crate) fn bare(&self) -> Result<String> {
        let machine = self.machine(self.vm.kernel.clone(), self.vm.initrd.clone(), &self.vm.cmdline, Level::El1);
        transcript(&machine, self.limit)
    }

    fn machine(&self, kernel: PathBuf, initrd: Option<PathBuf>, append: &str, level: Level) -> Machine {
        Machine {
            cpu: self.cpu.clone(),
            cpus: u32::from(if level == Level::El1 { self.vm.vcpus } else { self.cpus }),
            memory: if level == Level::El1 { (self.vm.memory >> 20) as u32 } else { HOST_MEMORY },
            initrd,
            append: append.into(),
            icount: self.icount,
            level,
            ..Machine::new(kernel)
        }
    }
}

/// Runs a machine to its end.
fn transcript(machine: &Machine, limit: Duration) -> Result<String> {
    let mut running = machine.spawn()?;
    let mut console = running.console()?;
    Ok(console.expect_end(limit)?)
}
