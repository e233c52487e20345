//! Hosts that start by UEFI firmware, Debian's EDK2, from a disk with our loader: what runs there, and what is said where it cannot.

use anyhow::{Result, ensure};
use croft::boot_disk::{self, Parts};
use croft::session::PortBus;
use qemu::{ExceptionLevel, Firmware, Machine};
use std::fs;
use std::process::ExitCode;
use system::guest::{self, USUAL};
use system::host::{Host, Turn};
use system::{BOOT, SOON, place, scenario};

fn main() -> ExitCode {
    system::run(vec![
        // EDK2 runs with HCR_EL2.E2H where there is FEAT_VHE, and leaves it so; on A72 there is none.
        scenario("uefi::four_cpus", || linux(&Host { cpus: 4, cpu: "max", memory: 4096, ..at_firmware() })),
        scenario("uefi::without_vhe", || linux(&Host { cpu: "cortex-a72", ..at_firmware() })),
        scenario("uefi::what_is_wrong_is_said", refusals),
    ])
}

/// By the port on PCI: it has been in firmware's hands.
fn at_firmware() -> Host {
    Host { firmware: true, port: true, port_bus: PortBus::Pci, ..Host::default() }
}

/// A Linux guest boots with all of the host's CPUs, and powers off; the hypervisor has found them all.
fn linux(host: &Host) -> Result<()> {
    let run = host.start(vec![guest::linux("guest", USUAL, host.cpus, "quiet uc.test=poweroff")?])?;
    run.console("guest")?.expect_unless(&guest::online(host.cpus), &["Kernel panic"], BOOT * 2)?;
    run.log().expect(&format!(" on {} CPUs", host.cpus), SOON)?;
    run.finish(BOOT)
}

/// What is wrong with a disk, or with the machine, and what the loader says of it.
struct Wrong {
    name: &'static str,
    arguments: &'static str,
    image: fn(&[u8]) -> Vec<u8>,
    machine: fn(&mut Machine),
    says: &'static str,
}

const RIGHT: Wrong = Wrong { name: "", arguments: "", image: <[u8]>::to_vec, machine: |_| {}, says: "" };

const WRONG: [Wrong; 7] = [
    Wrong {
        name: "no bundle",
        arguments: "bundle=/undercroft/none.bundle",
        says: "\\undercroft\\none.bundle: there is no such file on the volume that BOOTAA64.EFI was loaded from",
        ..RIGHT
    },
    Wrong { name: "a folder", arguments: "bundle=\\EFI", says: "\\EFI: that is a folder, and no file", ..RIGHT },
    Wrong { name: "no path", arguments: "image=", says: "the word `image=` names no file", ..RIGHT },
    Wrong { name: "another file", image: |_| b"#!/bin/sh\n".repeat(9), says: "it is no arm64 Image", ..RIGHT },
    Wrong {
        name: "a damaged image",
        image: |image| [image, &[0; 8 << 20]].concat(),
        says: "it is cut off or damaged",
        ..RIGHT
    },
    Wrong {
        name: "ACPI alone",
        machine: |machine| machine.extra_args.extend(["-machine", "acpi=on"].map(str::to_owned)),
        says: "firmware describes the machine by ACPI alone",
        ..RIGHT
    },
    Wrong {
        name: "EL1",
        machine: |machine| machine.level = ExceptionLevel::El1,
        says: "firmware runs at EL1, and the hypervisor needs EL2",
        ..RIGHT
    },
];

/// Each problem is said in words, and firmware goes on: it has its machine back, and tries what else it could boot.
fn refusals() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = fs::read(place::hypervisor()?)?;
    let loader = fs::read(place::hypervisor()?.with_file_name("BOOTAA64.EFI"))?;
    for wrong in WRONG {
        let disk = folder.path().join("disk.img");
        let image = (wrong.image)(&image);
        let parts = Parts { loader: &loader, image: &image, bundle: b"never read", arguments: wrong.arguments };
        fs::write(&disk, boot_disk::make(&parts)?)?;
        let firmware = Some(Firmware { flash: place::firmware()?, disk });
        let mut machine = Machine { firmware, cpu: "cortex-a76".into(), memory: 512, ..Machine::new("") };
        machine.extra_args = ["-run-with", "exit-with-parent=on", "-net", "none"].map(str::to_owned).to_vec();
        (wrong.machine)(&mut machine);
        let _turn = Turn::take()?;
        let mut running = machine.spawn()?;
        let mut console = running.console()?;
        console.expect("undercroft: not started: ", BOOT * 2)?;
        let more = console.expect("BdsDxe: ", BOOT)?;
        let text = console.transcript();
        // The console breaks lines where it is full.
        let plain: String = text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect();
        ensure!(plain.contains(wrong.says), "{}: {:?} is not said:\n{text}\n{more:?}", wrong.name, wrong.says);
    }
    Ok(())
}
