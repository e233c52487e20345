//! Boots: each of Debian's kernels, on each CPU model, with 1, 2 and 4 vCPUs, to user space and off again, with nothing
//! in its log that the bare machine does not show. On a CPU without known weaknesses Linux says the same of each as there.
//!
//! Several guests share a host, since making a host costs time too. CI boots a selection in which each kernel and each
//! model comes up; `--full` boots all combinations.

use anyhow::{Context, Result, ensure};
use croft::kernel::Raw;
use croft::site::Vm;
use libtest_mimic::Trial;
use std::process::ExitCode;
use system::guest::{self, KERNELS};
use system::host::Host;
use system::{BOOT, bare, full, log, place, scenario, skip};

const MODELS: [&str; 5] = ["cortex-a57", "cortex-a72", "cortex-a76", "neoverse-n2", "max"];
const VCPUS: [u8; 3] = [1, 2, 4];
/// The model which says that it has none of the weaknesses that others have (CSV2, CSV3, SSBS).
const IMMUNE: &str = "max";

/// A guest: its kernel and its number of vCPUs.
type Guest = (&'static str, u8);

/// What CI boots.
const SELECTION: [(&str, &[Guest]); 5] = [
    ("cortex-a57", &[("linux-6.1-cloud", 2), ("linux-6.12-cloud", 1)]),
    ("cortex-a72", &[("linux-6.1", 1), ("linux-6.12", 2)]),
    ("cortex-a76", &[("linux-6.12-cloud", 4), ("linux-6.12-16k", 2)]),
    ("neoverse-n2", &[("linux-6.12-16k", 1), ("linux-6.1-cloud", 4)]),
    ("max", &[("linux-6.1", 2), ("linux-6.12", 4), ("linux-6.12-16k", 1)]),
];

fn main() -> ExitCode {
    let mut scenarios: Vec<Trial> = Vec::new();
    if full() {
        for cpu in MODELS {
            for kernel in KERNELS {
                scenarios.push(trial(cpu, VCPUS.map(|vcpus| (kernel, vcpus)).to_vec()));
            }
        }
    } else {
        scenarios.extend(SELECTION.map(|(cpu, guests)| trial(cpu, guests.to_vec())));
    }
    scenarios.push(scenario("boot::u_boot", u_boot));
    system::run(scenarios)
}

fn trial(cpu: &'static str, guests: Vec<Guest>) -> Trial {
    let names: Vec<String> = guests.iter().map(|(kernel, vcpus)| format!("{kernel}-x{vcpus}")).collect();
    scenario(format!("boot::{cpu}::{}", names.join("+")), move || boot(cpu, &guests))
}

/// Debian's U-Boot, unmodified: it looks for the tree where RAM begins, reads its settings from flash, which is erased, looks into
/// the virtio devices that the tree lists, and comes to its prompt.
fn u_boot() -> Result<()> {
    let mut vm = Vm::new("u-boot", place::boot_loader()?, 128 << 20);
    vm.program = Some(Raw { load: 0x4020_0000, entry: 0x4020_0000 });
    let run = Host { memory: 512, ..Host::default() }.start(vec![vm])?;
    let console = run.console("u-boot")?;
    console.expect("Hit any key to stop autoboot", BOOT)?;
    console.send("\n")?;
    console.expect("=> ", BOOT)?;
    // What it knows of its memory comes from the tree.
    console.send("bdinfo\n")?;
    console.expect("0x0000000008000000", BOOT)?;
    console.expect("=> ", BOOT)?;
    console.send("md.l 4000000 1\n")?;
    console.expect("04000000: ffffffff", BOOT)?;
    // What is typed while it still writes is lost: it looks there for Ctrl-C.
    console.expect("=> ", BOOT)?;
    console.send("poweroff\n")?;
    let starts = run.log().transcript().matches("u-boot: started").count();
    ensure!(starts == 1, "it started {starts} times:\n{}", run.log().transcript());
    run.finish(BOOT)
}

/// Whether this model has the page size that the kernel wants.
fn has_granule(cpu: &str, kernel: &str) -> bool {
    !(kernel.ends_with("-16k") && ["cortex-a57", "cortex-a72"].contains(&cpu))
}

fn boot(cpu: &'static str, guests: &[Guest]) -> Result<()> {
    if let Some((kernel, _)) = guests.iter().find(|(kernel, _)| !has_granule(cpu, kernel)) {
        return Err(skip(format!("{cpu} has no 16 KiB granule (ID_AA64MMFR0_EL1.TGran16), which {kernel} needs")));
    }
    let mut vms = Vec::new();
    for (index, (kernel, vcpus)) in guests.iter().enumerate() {
        vms.push(guest::linux(&format!("guest{index}"), kernel, *vcpus, "uc.test=poweroff")?);
    }
    let run = Host { cpu, ..Host::default() }.start(vms)?;
    for (index, (kernel, vcpus)) in guests.iter().enumerate() {
        let name = format!("guest{index}");
        let console = run.console(&name)?;
        console.expect_unless("\ninit: ", &["Kernel panic"], BOOT).with_context(|| format!("{kernel} as {name}"))?;
        let line = console.expect("\n", BOOT)?;
        ensure!(line.trim_end().ends_with(&guest::online(*vcpus)), "{kernel} with {vcpus} vCPUs says: {line}");
        console.expect("reboot: Power down", BOOT)?;
    }
    let mut wrong = Vec::new();
    let transcripts: Vec<String> =
        run.names().iter().filter_map(|name| Some(run.console(name).ok()?.transcript())).collect();
    run.finish(BOOT)?;
    for ((kernel, vcpus), transcript) in guests.iter().zip(&transcripts) {
        for line in bare::unexplained(transcript, kernel, cpu)? {
            wrong.push(format!("{kernel} with {vcpus} vCPUs on {cpu}: {line}"));
        }
        // A CPU without a weakness is none with a mitigation that nobody can offer: what Linux says of it is said to people.
        if cpu == IMMUNE {
            let bare = bare::printed(kernel, cpu)?;
            let (bare, here) = (log::vulnerabilities(&bare), log::vulnerabilities(transcript));
            ensure!(here.len() > 5, "the guest's kernel says of its CPU: {here:?}");
            wrong.extend(here.difference(&bare).map(|line| format!("{kernel} on {cpu}: {line}, where bare: {bare:?}")));
        }
    }
    ensure!(wrong.is_empty(), "lines that the bare machine does not show:\n{}", wrong.join("\n"));
    Ok(())
}
