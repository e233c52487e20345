//! Hosts and guests of unusual shape: one CPU and eight, little memory and much, more vCPUs than CPUs, many VMs, consoles on PCI.

use anyhow::{Context, Result, ensure};
use croft::kernel::Raw;
use croft::session::{Condition, Outcome, PortBus};
use croft::site::Vm;
use qemu::Machine;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use system::guest::{self, USUAL};
use system::host::Host;
use system::{BOOT, SOON, full, host_tree, place, scenario, skip, spin_table};

/// What this computer's other programs are to keep, in MiB: the hypervisor's idle CPUs zero the host's memory, and so
/// the emulator comes to use all of it.
const KEEP: u64 = 4096;

fn main() -> ExitCode {
    let mut scenarios = vec![
        // A model that no other scenario has: SVE, and neither pointer authentication nor pages of 16 KiB.
        scenario("shapes::one_cpu", || linux_guests(&Host { cpus: 1, cpu: "a64fx", ..Host::default() }, &[2, 1])),
        scenario("shapes::eight_cpus", || linux_guests(&Host { cpus: 8, ..Host::default() }, &[8])),
        scenario("shapes::eight_vcpus_on_two_cpus", || linux_guests(&Host::default(), &[8])),
        scenario("shapes::memory_512m", || large_guest(&Host { memory: 512, ..Host::default() }, 384)),
        scenario("shapes::memory_64g", || much_memory(64 << 10)),
        scenario("shapes::smallest_vm", smallest),
        scenario("shapes::sixty_four_vms", sixty_four),
        scenario("shapes::kernels_of_other_kinds", other_kinds),
        scenario("shapes::consoles_on_pci", consoles_on_pci),
        scenario("shapes::deactivations_trap_with_others", deactivations),
        scenario("shapes::cpus_that_were_used", cpus_that_were_used),
        scenario("shapes::cpus_that_are_unlike", cpus_that_are_unlike),
        scenario("shapes::p7_a5_spin_tables", || spin_tables(false)),
        scenario("shapes::p7_a5_one_spin_table_for_all", || spin_tables(true)),
        scenario("shapes::p7_a9_cpus_that_do_not_come", cpus_that_do_not_come),
    ];
    if full() {
        scenarios.push(scenario("shapes::memory_16g", || {
            large_guest(&Host { memory: 16 << 10, ..Host::default() }, 12 << 10)
        }));
        scenarios.push(scenario("shapes::three_eights_on_two_cpus", || {
            linux_guests(&Host { memory: 2048, ..Host::default() }, &[8, 8, 8])
        }));
    }
    system::run(scenarios)
}

/// Linux guests with so many vCPUs boot, all of them on line, and power off.
fn linux_guests(host: &Host, vcpus: &[u8]) -> Result<()> {
    let mut vms = Vec::new();
    for (index, count) in vcpus.iter().enumerate() {
        vms.push(guest::linux(&format!("guest{index}"), USUAL, *count, "quiet uc.test=poweroff")?);
    }
    let run = host.start(vms)?;
    for (index, count) in vcpus.iter().enumerate() {
        run.console(&format!("guest{index}"))?.expect_unless(&guest::online(*count), &["Kernel panic"], BOOT * 2)?;
    }
    // The log travels on its own: it may come later than what the guests say.
    run.log().expect(&format!(" on {} CPUs", host.cpus), SOON)?;
    run.finish(BOOT)
}

/// Where the port is that croft gives the host, if it does; further arguments for QEMU; the console by which the link goes, if it goes
/// by one; and what is said of the others.
type OddHost<'h> = (Option<PortBus>, Vec<String>, Option<&'h str>, &'h [&'h str]);

/// A GIC that cannot trap ICC_DIR_EL1 by itself (ICH_VTR_EL2.TDS is zero), as those of many CPUs of Armv8.0, and so traps the
/// registers of both groups with it, always: payloads that use them all, and a Linux guest, are as on any other host.
fn deactivations() -> Result<()> {
    const PAYLOADS: [&str; 2] = ["gic", "smp"];
    const LINUX: &str = "linux";
    const TRAPS: &str = "traps";
    let mut vms = PAYLOADS.map(|name| guest::payload(name, name, 2, "")).into_iter().collect::<Result<Vec<_>>>()?;
    vms.push(guest::linux(LINUX, USUAL, 2, "quiet uc.test=load uc.rounds=1")?);
    for (name, words) in [(TRAPS, "role=traps settle=10"), ("partner", "role=partner settle=10")] {
        let mut vm = Vm { affinity: 1 << 3, ..guest::payload(name, "sharing", 1, words)? };
        vm.doors.vmware = true;
        vms.push(vm);
    }
    let run = Host { cpus: 4, memory: 1024, ..Host::default() }.start_checks(vms, "deactivation=common")?;
    for name in PAYLOADS {
        let condition = run.wait_for(name, BOOT, Condition::is_off)?;
        let output = run.console(name)?.transcript();
        let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
        ensure!(passed, "{name} is {condition} and printed:\n{output}");
    }
    run.console(LINUX)?.expect_unless("uc: load passed", &["Kernel panic", "FAILED"], BOOT)?;
    // It does not matter that others have the CPU now and then.
    run.console(TRAPS)?.expect_unless("trapped 16 of 16, then 16 of 16", &["FAILED", "then 0"], BOOT)?;
    let log = run.log().transcript();
    ensure!(log.contains("it traps with ICC_PMR_EL1"), "the log does not say how ICC_DIR_EL1 traps:\n{log}");
    // One of them never ends.
    run.check_log()
}

/// A host whose CPUs are as somebody left them who had them before, in the middle of an interrupt and with a guest (kexec, a loader with a
/// timer): nothing of that comes to us, or keeps interrupts from us, or is a guest's.
fn cpus_that_were_used() -> Result<()> {
    const PAYLOADS: [&str; 3] = ["gic", "smp", "timers"];
    let vms = PAYLOADS.map(|name| guest::payload(name, name, 2, "")).into_iter().collect::<Result<Vec<_>>>()?;
    let run = Host::default().start_checks(vms, "cpus=used")?;
    for name in PAYLOADS {
        let condition = run.wait_for(name, BOOT, Condition::is_off)?;
        let output = run.console(name)?.transcript();
        let passed = output.contains(" passed, 0 failed") && condition == Condition::PoweredOff;
        ensure!(passed, "{name} is {condition} and printed:\n{output}");
    }
    run.finish(SOON)
}

/// A host whose CPUs are not of one kind. What guests are kept from, and which of their registers are switched, follows from the CPU that booted:
/// on one with another feature they would share its registers, so such a one stays off.
fn cpus_that_are_unlike() -> Result<()> {
    let host = Host { cpus: 4, ..Host::default() };
    let run = host.start_checks(vec![guest::payload("guest", "neighbour", 2, "steps=4")?], "cpus=unlike")?;
    let outcome = run.wait_stopped(BOOT);
    let log = run.log().transcript();
    ensure!(outcome == Outcome::PoweredOff, "{outcome}:\n{log}");
    ensure!(run.console("guest")?.transcript().contains("1 passed, 0 failed"), "{log}");
    for cpu in 1..host.cpus {
        let line = format!("CPU {cpu} stays off: it has other features than the CPU that booted");
        ensure!(log.contains(&line), "the log does not say {line:?}:\n{log}");
    }
    ensure!(log.contains(" on 1 CPUs"), "{log}");
    Ok(())
}

/// A host of whose CPUs one waits in a way that nobody knows, and one is not there, whatever the device tree says (P7-A9): both stay off,
/// by name, and the others work.
fn cpus_that_do_not_come() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("cpus.dtb");
    let host = Host { cpus: 4, port: false, ..Host::default() };
    write_tree(&host, &tree, |tree| {
        let place = |tree: &[u8], text: &[u8]| tree.windows(text.len()).position(|window| window == text);
        let second = place(tree, b"cpu@2\0").context("there is no third CPU")?;
        host_tree::replace(&mut tree[second..], b"psci\0", b"pscj\0")?;
        // A property's token, its length, where its name is, its value: of the properties of one word the one that is 3.
        let last = place(tree, b"cpu@3\0").context("there is no fourth CPU")?;
        let is_reg = |bytes: &[u8]| bytes[..8] == cells(&[3, 4]) && bytes[12..] == cells(&[3]);
        let reg = tree[last..].windows(16).position(is_reg).context("it has no reg")?;
        tree[last + reg + 12..last + reg + 16].copy_from_slice(&cells(&[0x33]));
        Ok(())
    })?;
    let arguments = vec!["-dtb".to_owned(), tree.display().to_string()];
    let run = host.start_with_qemu(vec![guest::payload("guest", "neighbour", 2, "steps=4")?], arguments)?;
    let outcome = run.wait_stopped(BOOT);
    let log = run.log().transcript();
    ensure!(outcome == Outcome::PoweredOff, "{outcome}:\n{log}");
    ensure!(run.console("guest")?.transcript().contains("1 passed, 0 failed"), "{log}");
    for line in [
        "the CPU with affinity 0x2 stays off: nobody knows how it is started",
        "the CPU with affinity 0x33 stays off: the firmware refused to start it: -2",
        "on 2 CPUs",
    ] {
        ensure!(log.contains(line), "the log does not say {line:?}:\n{log}");
    }
    Ok(())
}

/// A host whose firmware is not asked to start CPUs, but has them wait in spin tables (P7-A5), with a word for each or one for all: the same
/// hypervisor uses them all.
fn spin_tables(is_shared: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let host = Host { cpus: spin_table::CPUS, memory: 1024, port: false, ..Host::default() };
    let arguments = spin_table::arguments(&host_machine(&host)?, &place::hypervisor()?, folder.path(), is_shared)?;
    let run = host.start_with_qemu(vec![guest::payload("guest", "smp", 4, "")?], arguments)?;
    let outcome = run.wait_stopped(BOOT);
    let log = run.log().transcript();
    ensure!(outcome == Outcome::PoweredOff, "{outcome}:\n{log}");
    ensure!(run.console("guest")?.transcript().contains(" passed, 0 failed"), "{log}");
    ensure!(log.contains("on 4 CPUs") && !log.contains("stays off"), "{log}");
    Ok(())
}

/// Hosts whose virtio consoles are on PCI, beside others, or of no use: the first that can be used carries the link, each of the others
/// that were looked at costs a line, and where none is left the UART carries on.
fn consoles_on_pci() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [narrow, pinless, short, in_ram] =
        ["narrow.dtb", "pinless.dtb", "short.dtb", "in-ram.dtb"].map(|name| folder.path().join(name));
    write_tree(&Host::default(), &narrow, |tree| {
        // The window below 4 GiB has room for half of the console's registers; the one above becomes one for ports.
        let [below, above] =
            [&cells(&[0x200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0])[..], &cells(&[0x300_0000, 0x80])];
        host_tree::replace(tree, &[below, &cells(&[0x2eff_0000])].concat(), &[below, &cells(&[0x2000])].concat())?;
        host_tree::replace(tree, above, &cells(&[0x100_0000, 0x80]))
    })?;
    // The console's pin is another one's.
    let [pin, other] = [1, 5].map(|pin| cells(&[0x800, 0, 0, pin]));
    write_tree(&Host::default(), &pinless, |tree| host_tree::replace(tree, &pin, &other))?;
    // The configuration space ends a page early; it is where RAM is.
    let configuration = cells(&[0x40, 0x1000_0000, 0, 0x1000_0000]);
    write_tree(&Host::default(), &short, |tree| {
        host_tree::replace(tree, &configuration, &cells(&[0x40, 0x1000_0000, 0, 0xf_f000]))
    })?;
    write_tree(&Host::default(), &in_ram, |tree| {
        host_tree::replace(tree, &configuration, &cells(&[0, 0x5000_0000, 0, 0x10_0000]))
    })?;
    let of_tree = |tree: &Path| vec!["-dtb".to_owned(), tree.display().to_string()];
    let device = |device: &str| vec!["-device".to_owned(), device.to_owned()];
    let (mmio, pci) = (Some(PortBus::Mmio), Some(PortBus::Pci));
    let old = "virtio-serial-pci,disable-modern=on,disable-legacy=off";
    let (one_port, not_modern) = ("it has no way to say which port is which", "it lacks a structure of virtio 1");
    let hosts: [OddHost<'_>; 9] = [
        (pci, Vec::new(), Some("PCI 01.0"), &[]),
        // The second one's interrupt is on the same line.
        (pci, device("virtio-serial-pci,max_ports=2,addr=5"), Some("PCI 01.0"), &[]),
        (mmio, device("virtio-serial-pci,max_ports=2"), Some("0xa003e00"), &[]),
        // One of a single port, behind registers in memory, and one as before virtio 1: they are no use.
        (pci, device("virtio-serial-device,max_ports=1"), Some("PCI 01.0"), &[one_port]),
        (None, [device("virtio-serial-pci,max_ports=1"), device(old)].concat(), None, &[one_port, not_modern]),
        (pci, of_tree(&narrow), None, &["the PCI host's windows have no room for its registers"]),
        (pci, of_tree(&pinless), None, &["the device tree's interrupt-map does not say where its interrupt goes"]),
        (pci, of_tree(&short), None, &["its reg must name the configuration space of a whole bus"]),
        (pci, of_tree(&in_ram), None, &["the host's PCI is not used: "]),
    ];
    for (bus, qemu_args, carries, complaints) in hosts {
        let host = Host { port: bus.is_some(), port_bus: bus.unwrap_or_default(), ..Host::default() };
        let run = host.start_with_qemu(vec![guest::payload("guest", "neighbour", 2, "steps=4")?], qemu_args.clone())?;
        let outcome = run.wait_stopped(BOOT);
        let log = run.log().transcript();
        let context = || format!("with {bus:?} and {qemu_args:?}, {outcome}:\n{log}");
        ensure!(outcome == Outcome::PoweredOff, "{}", context());
        ensure!(run.console("guest")?.transcript().contains("1 passed, 0 failed"), "{}", context());
        // What the link went by is asked of the log: the other end of a link that has ended says nothing of it.
        let went = log.lines().find(|line| line.contains("link: it goes by"));
        let as_wanted = match carries {
            Some(place) => went.is_some_and(|line| line.ends_with(&format!("of the virtio console at {place}"))),
            None => went.is_none(),
        };
        ensure!(as_wanted, "the link went by {went:?} {}", context());
        for complaint in complaints {
            ensure!(log.matches(complaint).count() == 1, "not once: {complaint:?} {}", context());
        }
        run.check_log_but(complaints)?;
    }
    Ok(())
}

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

/// The tree of the usual host, with a change made to it.
fn write_tree(host: &Host, file: &Path, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    host_tree::write(&host_machine(host)?, file, change)
}

/// The machine that a host is.
fn host_machine(host: &Host) -> Result<Machine> {
    let mut machine = Machine::new(place::hypervisor()?);
    machine.cpu = host.cpu.to_owned();
    machine.cpus = host.cpus.into();
    machine.memory = u32::try_from(host.memory)?;
    Ok(machine)
}

/// Memory that this computer could give away, in MiB.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes >> 10)
}

/// A Linux guest with most of the host's memory.
fn large_guest(host: &Host, memory: u64) -> Result<()> {
    if available()? < host.memory + KEEP {
        return Err(skip(format!("this computer has no {} MiB to spare", host.memory + KEEP)));
    }
    let mut vm = guest::linux("guest", USUAL, 2, "quiet")?;
    vm.memory = memory << 20;
    let run = host.start(vec![vm])?;
    run.console("guest")?.expect_unless(&guest::online(2), &["Kernel panic"], BOOT)?;
    let said = run.ask("guest", "awk '/MemTotal/ { print \"has\", int($2 / 1024) }' /proc/meminfo", "has ")?;
    let rest = run.console("guest")?.expect("\n", BOOT)?;
    let has: u64 = rest.trim().parse().with_context(|| format!("{said}{rest}"))?;
    ensure!(has <= memory && has > memory * 3 / 4, "of {memory} MiB the guest sees {has}");
    run.console("guest")?.send("exit\n")?;
    run.finish(BOOT)
}

/// A host with this much memory starts and runs a guest; it is over before all of that memory was touched.
fn much_memory(memory: u64) -> Result<()> {
    if available()? < 3 * KEEP {
        return Err(skip(format!("this computer has no {} MiB to spare", 3 * KEEP)));
    }
    let mut vm = guest::payload("guest", "hello", 1, "")?;
    vm.memory = (memory / 2) << 20;
    let host = Host { memory, cpus: 1, ..Host::default() };
    let run = host.start(vec![vm])?;
    let start = Instant::now();
    loop {
        match run.wait_stopped(Duration::from_millis(100)) {
            Outcome::TimedOut { .. } if available()? < KEEP => {
                return Err(skip("this computer's memory was used up before the guest had come to its end"));
            }
            Outcome::TimedOut { .. } if start.elapsed() < BOOT => {}
            _ => break,
        }
    }
    let log = run.log().transcript();
    let total =
        log.lines().find_map(|line| line.split_once(" on 1 CPUs, ")?.1.split_once(" MiB")?.0.parse::<u64>().ok());
    ensure!(total.is_some_and(|total| total > memory - 64), "of {memory} MiB it sees {total:?}:\n{log}");
    run.finish(BOOT)
}

/// Bare-metal guests that say hello.
fn hello(name: &str, memory: u64) -> Result<Vm> {
    let mut vm = guest::payload(name, "hello", 1, "")?;
    vm.memory = memory << 20;
    Ok(vm)
}

/// The least memory that a VM may have is enough for something.
fn smallest() -> Result<()> {
    let run = Host { memory: 512, ..Host::default() }.start(vec![hello("tiny", 2)?])?;
    run.console("tiny")?.expect("payload: 1 passed", BOOT)?;
    run.finish(BOOT)
}

/// Kernels that are no `Image`: an ELF executable, one that lies where the tree usually is, and raw binaries. They are where
/// they want to be, get the tree's address in X0, and find the tree where RAM begins unless they are there themselves.
fn other_kinds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let elf = guest::payload_at("elf", "hello", 0x4028_0000, folder.path())?;
    let mut first = guest::payload_at("elf-at-start", "hello", 0x4000_0000, folder.path())?;
    let initrd = folder.path().join("initrd");
    std::fs::write(&initrd, [7; 5000])?;
    first.initrd = Some(initrd);
    let mut raw = guest::payload("raw", "hello", 1, "")?;
    raw.program = Some(Raw { load: 0x4321_0000, entry: 0x4321_0000 });
    // Entered behind its first page.
    let image = std::fs::read(place::payload("hello")?)?;
    let flat = folder.path().join("flat");
    std::fs::write(&flat, [&[0; 4096], &*image].concat())?;
    let mut entry = Vm::new("raw-with-entry", flat, 64 << 20);
    entry.program = Some(Raw { load: 0x4010_0000, entry: 0x4010_1000 });
    let expected = [
        ("elf", "0x40280000", "tree at 0x40000000, initrd 0x0..0x0"),
        ("elf-at-start", "0x40000000", "tree at 0x42000000, initrd 0x42010000..0x42011388"),
        ("raw", "0x43210000", "tree at 0x40000000, initrd 0x0..0x0"),
        ("raw-with-entry", "0x40101000", "tree at 0x40000000, initrd 0x0..0x0"),
    ];
    let run = Host { memory: 512, ..Host::default() }.start(vec![elf, first, raw, entry])?;
    for (name, at, tree) in expected {
        let console = run.console(name)?;
        console.expect("payload: 1 passed", BOOT)?;
        let said = console.transcript();
        ensure!(said.contains(&format!("hello from EL1 at {at}")) && said.contains(tree), "{name} says:\n{said}");
    }
    run.finish(BOOT)
}

/// As many VMs as a bundle holds, with as many vCPUs as there can be: all that is counted for their state is taken.
fn sixty_four() -> Result<()> {
    let names: Vec<String> = (0..abi::bundle::MAX_VMS).map(|number| format!("vm{number}")).collect();
    let mut vms = Vec::new();
    for name in &names {
        vms.push(Vm { vcpus: 8, ..hello(name, 4)? });
    }
    let run = Host { memory: 512, ..Host::default() }.start(vms)?;
    for name in &names {
        run.console(name)?.expect("payload: 1 passed", BOOT)?;
    }
    run.finish(BOOT)
}
