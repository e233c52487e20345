//! What a switch costs, and that it costs the same however many VMs there are: rows of `cargo xtask bench`.
//!
//! Two guests of one CPU give it to each other ([the payload `sharing`](../../../tests/payloads/src/bin/sharing.rs)): what one of
//! them counts in a turn is two switches with everything that belongs to them, since instructions of all exception levels and of
//! both guests advance the same clock. The host has four CPUs, three of which sleep. The crowd is the same pair on the same CPU
//! among 64 VMs, all others asleep.

use crate::bench::{Row, parse};
use crate::compile::{checks_image, hypervisor_image};
use crate::tree::Tree;
use abi::host_arguments::AllOff;
use anyhow::{Context, Result, ensure};
use croft::session::{Options, Session};
use croft::site::{Host, Site, Vm};
use qemu::{ExceptionLevel, Machine};
use std::time::Duration;

/// A measurement takes seconds; the crowd's start takes longest.
const LIMIT: Duration = Duration::from_secs(180);
/// One nanosecond a tick, as QEMU counts.
const CPU: &str = "cortex-a76,cntfrq=1000000000";
/// The same on the model that has everything: more is switched there.
const MAX: &str = "max,cntfrq=1000000000";
/// The host's CPUs.
const CPUS: u8 = 4;
/// VMs of the crowd.
const CROWD: u8 = 64;

/// All rows.
pub(crate) fn measure(tree: &Tree) -> Result<Vec<Row>> {
    let mut rows = threads(tree, PORT)?;
    let on_pci = threads(tree, PORT_ON_PCI)?;
    let pair = |words: &str| {
        let mut pair = vec![
            guest(tree, "measure", &format!("settle=220 {words}")),
            guest(tree, "partner", &format!("settle=200 {words}")),
        ];
        pair.iter_mut().for_each(|vm| vm.affinity = 1);
        pair
    };
    let take = |rows: &[Row], name: &str, of: &'static str| -> Result<Row> {
        let row = rows.iter().find(|row| row.name == of).with_context(|| format!("{name} was not measured"))?;
        Ok(Row { name: name.to_owned(), ..row.clone() })
    };
    rows.push(take(&on_pci, "link-port-pci", "link-port")?);
    rows.push(take(&run(tree, CPU, pair(""))?, "vcpu-switch", "turn")?);
    rows.push(take(&run(tree, CPU, pair("fp"))?, "vcpu-switch-fp", "turn")?);
    rows.push(take(&run(tree, MAX, pair(""))?, "vcpu-switch-max", "turn")?);
    let mut crowd = pair("");
    crowd.extend((2..CROWD).map(|number| Vm { name: format!("sleep{number}"), ..guest(tree, "sleep", "") }));
    let crowd = run(tree, CPU, crowd)?;
    rows.push(take(&crowd, "null-hvc-64-vms", "call")?);
    rows.push(take(&crowd, "vcpu-switch-64-vms", "turn")?);
    Ok(rows)
}

/// A guest in this role.
fn guest(tree: &Tree, role: &str, words: &str) -> Vm {
    let mut vm = Vm::new(role, tree.target("payloads/sharing.img"), 8 << 20);
    vm.cmdline = format!("role={role} {words}").trim().to_owned();
    vm
}

/// Starts these VMs on such CPUs and reads what the first one counts.
fn run(tree: &Tree, cpu: &str, vms: Vec<Vm>) -> Result<Vec<Row>> {
    let host = Host { cpu: cpu.into(), cpus: CPUS, memory: 1 << 30, disks: Vec::new() };
    let options =
        Options { image: Some(hypervisor_image(tree)), all_off: AllOff::PowerOff, icount: true, ..Options::default() };
    let session = Session::start(&Site::new("(switches)", host, vms), &options)?;
    let printed = session.console("measure")?.expect("payload:", LIMIT);
    let printed = printed.with_context(|| format!("the hypervisor's log:\n{}", session.log().transcript()))?;
    Ok(parse(&printed, "bench "))
}

/// Where a port for the link is. Its device works within the write that notifies it: beside the CPUs, it would be done at another
/// instruction each time.
const PORT: [&str; 3] =
    ["virtio-mmio.force-legacy=false", "virtio-mmio.ioeventfd=off", "virtio-serial-device,max_ports=2"];
const PORT_ON_PCI: [&str; 3] =
    ["virtio-mmio.force-legacy=false", "virtio-pci.ioeventfd=off", "virtio-serial-pci,max_ports=2"];

/// Two threads of the hypervisor, and its link, which it measures itself.
fn threads(tree: &Tree, [modern, at_once, device]: [&str; 3]) -> Result<Vec<Row>> {
    // The link's port, which somebody reads at once and all of: a device that waits for its reader is not repeatable.
    let port = ["-global", modern, "-global", at_once, "-device", device, "-chardev", "file,id=link,path=/dev/null"];
    let port = port.into_iter().chain(["-device", "virtserialport,chardev=link,name=undercroft.link"]);
    let machine = Machine {
        cpu: CPU.into(),
        cpus: 1,
        memory: 256,
        append: "selftest=switch".into(),
        extra_args: port.map(str::to_owned).collect(),
        icount: true,
        level: ExceptionLevel::El2,
        ..Machine::new(checks_image(tree))
    };
    let mut running = machine.spawn()?;
    let printed = running.console()?.expect_end(LIMIT)?;
    let rows = parse(&printed, "bench ");
    ensure!(rows.len() == 3, "selftest=switch measured only {rows:?}; it printed:\n{printed}");
    Ok(rows)
}
