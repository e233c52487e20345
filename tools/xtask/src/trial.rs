//! Running one VM under the hypervisor, or the same kernel on the bare machine, until it powers off.

use crate::compile::hypervisor_image;
use crate::tree::Tree;
use abi::host_arguments::AllOff;
use anyhow::{Context, Result, bail};
use croft::session::{Options, Outcome, Session};
use croft::site::{Host, Site, Vm};
use qemu::{ExceptionLevel, Machine};
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
    /// Words for the hypervisor's command line.
    pub(crate) arguments: &'static str,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// More arguments for QEMU, as they are.
    pub(crate) qemu_args: Vec<String>,
}

/// What a VM printed, and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The VM's console.
    pub(crate) console: String,
    /// The hypervisor's log; nothing on the bare machine.
    pub(crate) log: String,
    /// What went wrong, with the hypervisor's log; `None` if the VM powered itself off.
    pub(crate) wrong: Option<String>,
}

impl Report {
    /// The console of a VM that must have powered itself off.
    pub(crate) fn good(self) -> Result<String> {
        match self.wrong {
            None => Ok(self.console),
            Some(wrong) => bail!("{wrong}; the VM printed:\n{}", self.console),
        }
    }
}

impl Trial {
    /// One CPU whose virtual nanoseconds are instructions: how everything is measured.
    pub(crate) fn measured(vm: Vm, limit: Duration) -> Trial {
        Trial {
            vm,
            cpu: "cortex-a76,cntfrq=1000000000".into(),
            cpus: 1,
            icount: true,
            arguments: "",
            limit,
            qemu_args: Vec::new(),
        }
    }

    /// Runs the VM under the hypervisor.
    pub(crate) fn under_undercroft(&self, tree: &Tree) -> Result<Report> {
        let name = &self.vm.name;
        let host = Host { cpu: self.cpu.clone(), cpus: self.cpus, memory: 2 << 30, disks: Vec::new() };
        let site = Site::new(format!("(trial {name})"), host, vec![self.vm.clone()]);
        let options = Options {
            image: Some(hypervisor_image(tree)),
            all_off: AllOff::PowerOff,
            boot_arguments: self.arguments.to_owned(),
            icount: self.icount,
            qemu_args: self.qemu_args.clone(),
            ..Options::default()
        };
        let session = Session::start(&site, &options)?;
        let outcome = session.wait_stopped(self.limit);
        let console = session.console(name)?.transcript();
        let log = session.log().transcript();
        let wrong = match outcome {
            Outcome::PoweredOff => None,
            other => Some(format!("{other}; the hypervisor's log:\n{log}")),
        };
        Ok(Report { console, log, wrong })
    }

    /// Runs the VM's kernel on the bare machine, without a hypervisor.
    pub(crate) fn bare(&self) -> Result<Report> {
        let machine = Machine {
            cpu: self.cpu.clone(),
            cpus: self.vm.vcpus.into(),
            memory: u32::try_from(self.vm.memory >> 20).context("the VM's memory")?,
            initrd: self.vm.initrd.clone(),
            append: self.vm.cmdline.clone(),
            icount: self.icount,
            extra_args: self.qemu_args.clone(),
            level: ExceptionLevel::El1,
            ..Machine::new(&self.vm.kernel)
        };
        let mut running = machine.spawn()?;
        let console = running.console()?.expect_end(self.limit)?;
        Ok(Report { console, log: String::new(), wrong: None })
    }
}
