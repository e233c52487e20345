//! Mistakes and damage: each gives one clear line that says what is wrong, and nothing is left running. What `croft`
//! refuses before anything is started is tested beside it (`tools/croft/tests`); here is what only the hypervisor itself
//! can notice. Bundles are given to QEMU as they are, and the hypervisor speaks plain text.

use abi::bundle::{Program, Segment, VmSource};
use anyhow::{Context, Result, ensure};
use croft::bundle;
use croft::site::{Disk, Disks, Lines, Site, Vm};
use qemu::{ExceptionLevel, Machine};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use system::host::{Host, Turn};
use system::{guest, host_tree, place, scenario};

/// How long a host may take that has nothing to run.
const SHORT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    system::run(vec![
        scenario("errors::no_bundle", || refused(None, "there is no initial ramdisk")),
        scenario("errors::not_a_bundle", || refused(Some(vec![7; 10_000]), "this is no bundle")),
        scenario("errors::truncated_bundle", || refused(Some(truncated(&good()?)), "the bundle is cut off")),
        scenario("errors::header_damaged", || refused(Some(flipped(good()?, 20)), "header is damaged")),
        scenario("errors::manifest_damaged", || refused(Some(flipped(good()?, 70)), "manifest is damaged")),
        scenario("errors::one_kernel_damaged", one_kernel_damaged),
        scenario("errors::one_disk_damaged", one_disk_damaged),
        scenario("errors::more_memory_than_the_host_has", more_memory_than_there_is),
        scenario("errors::the_largest_site_that_fits", the_largest_that_fits),
        scenario("errors::heap_for_some", heap_for_some),
        scenario("errors::started_at_el1", || {
            does_not_start(|machine| machine.level = ExceptionLevel::El1, "needs EL2")
        }),
        scenario("errors::cpu_without_el2", || {
            does_not_start(|machine| machine.cpu = "a64fx,has_el2=off".into(), "needs EL2")
        }),
        scenario("errors::old_interrupt_controller", || {
            does_not_start(|machine| machine.extra_args.extend(["-machine".into(), "gic-version=2".into()]), "GIC")
        }),
        scenario("errors::timer_of_another_interrupt", timer_of_another_interrupt),
        scenario("errors::too_little_memory", || does_not_start(|machine| machine.memory = 16, "memory")),
        scenario("errors::unknown_boot_argument", unknown_boot_argument),
        scenario("errors::kernels_that_cannot_run", kernels_that_cannot_run),
    ])
}

/// A bundle with nothing wrong: a guest that says hello and powers off.
fn good() -> Result<Vec<u8>> {
    bundle_of(vec![guest::payload("one", "hello", 1, "")?])
}

fn bundle_of(vms: Vec<Vm>) -> Result<Vec<u8>> {
    let site = Site { file: "site".into(), host: None, vms, lines: Lines::default() };
    Ok(bundle::make(&site)?)
}

fn truncated(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().take(bytes.len() - 5000).collect()
}

fn flipped(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
    bytes
}

/// A host for these tests, with a file as initial ramdisk. It switches itself off when there is nothing to run.
fn machine(folder: &Path, ramdisk: Option<Vec<u8>>) -> Result<Machine> {
    let mut machine = Machine::new(place::hypervisor()?);
    machine.cpu = "cortex-a76".to_owned();
    machine.memory = 512;
    machine.append = "all-off=poweroff".to_owned();
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    if let Some(bytes) = ramdisk {
        let file = folder.join("site.bundle");
        std::fs::write(&file, bytes)?;
        machine.initrd = Some(file);
    }
    Ok(machine)
}

/// Runs the machine until it has switched itself off, and gives what it printed.
fn run(machine: &Machine) -> Result<String> {
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let transcript = running.console()?.expect_end(SHORT)?;
    let status = running.wait_for(Duration::from_secs(10))?.context("QEMU has closed its output and runs on")?;
    ensure!(status.success(), "QEMU ended with {status}:\n{transcript}");
    Ok(transcript)
}

/// Exactly one line of the transcript is an error, and it says this.
fn one_error(transcript: &str, text: &str) -> Result<()> {
    let errors: Vec<&str> = transcript.lines().filter(|line| line.contains("ERROR: ")).collect();
    ensure!(errors.len() == 1, "{} errors instead of one:\n{transcript}", errors.len());
    ensure!(errors.iter().any(|line| line.contains(text)), "{text:?} is not what it says:\n{transcript}");
    Ok(())
}

/// The hypervisor starts, does not like its bundle, says so, and switches the host off.
fn refused(ramdisk: Option<Vec<u8>>, text: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let transcript = run(&machine(folder.path(), ramdisk)?)?;
    ensure!(transcript.contains("INFO: Undercroft "), "it did not start:\n{transcript}");
    one_error(&transcript, text)
}

/// The hypervisor says why it does not start on this machine, in one line, and switches it off.
fn does_not_start(change: impl FnOnce(&mut Machine), text: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machine = machine(folder.path(), Some(good()?))?;
    change(&mut machine);
    let transcript = run(&machine)?;
    let lines: Vec<&str> = transcript.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    ensure!(lines.len() == 1, "{} lines instead of one:\n{transcript}", lines.len());
    let says = lines.iter().any(|line| line.starts_with("undercroft: does not start: ") && line.contains(text));
    ensure!(says, "{text:?} is not what it says:\n{transcript}");
    Ok(())
}

/// A device tree whose EL2 timer has PPI 12 instead of 10: that interrupt would be lost.
fn timer_of_another_interrupt() -> Result<()> {
    const EL2_TIMER: [u8; 12] = [0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 4];
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("host.dtb");
    let other = |machine: &Machine| {
        host_tree::write(machine, &tree, |bytes| {
            let mut changed = EL2_TIMER;
            changed[7] = 12;
            host_tree::replace(bytes, &EL2_TIMER, &changed)
        })
    };
    other(&machine(folder.path(), None)?)?;
    let change = |machine: &mut Machine| machine.extra_args.extend(["-dtb".to_owned(), tree.display().to_string()]);
    does_not_start(change, "are 28, 27 and 25; they must be 26, 27 and 25")
}

/// Of two VMs one has a damaged kernel: that one alone stays off, the other runs to its end.
fn one_kernel_damaged() -> Result<()> {
    let vms = vec![guest::payload("bad", "neighbour", 1, "steps=3")?, guest::payload("good", "hello", 1, "")?];
    let kernel = std::fs::read(place::payload("neighbour")?)?;
    let mut bytes = bundle_of(vms)?;
    let probe = kernel.get(..4096).context("the payload is shorter than a page")?;
    let at =
        bytes.windows(probe.len()).position(|window| window == probe).context("the kernel is not in the bundle")?;
    bytes = flipped(bytes, at + 2000);
    let folder = tempfile::tempdir()?;
    let transcript = run(&machine(folder.path(), Some(bytes))?)?;
    one_error(&transcript, "bad: stopped: kernel: the ")?;
    let damaged = transcript.contains("are damaged: their checksum is wrong");
    ensure!(damaged && has_passed(&transcript, "good"), "{transcript}");
    ensure!(!transcript.contains("[bad] "), "the damaged kernel was started:\n{transcript}");
    Ok(())
}

/// As well, a damaged disk: in its last sector, which nobody would read for long.
fn one_disk_damaged() -> Result<()> {
    const MARK: &[u8] = b"the last sector of a disk";
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk.img");
    std::fs::write(&image, [&[0; 512 * 9], MARK, &[0; 512 - MARK.len()]].concat())?;
    let mut bad = guest::payload("bad", "neighbour", 1, "steps=3")?;
    bad.disks = Disks::of([Disk::of_image(image, "root".to_owned())]).context("one is not too many")?;
    let mut bytes = bundle_of(vec![bad, guest::payload("good", "hello", 1, "")?])?;
    let at = bytes.windows(MARK.len()).position(|window| window == MARK).context("the disk is not in the bundle")?;
    bytes = flipped(bytes, at);
    let transcript = run(&machine(folder.path(), Some(bytes))?)?;
    one_error(&transcript, "bad: disk root: the 5120 bytes at ")?;
    let damaged = transcript.contains("are damaged: their checksum is wrong");
    ensure!(damaged && transcript.contains("[good] payload: 1 passed"), "{transcript}");
    ensure!(
        !transcript.contains("[bad] "),
        "a VM with a damaged disk was started:
{transcript}"
    );
    Ok(())
}

/// The bundle of another, larger host: nothing is started, not even what there would be memory for, and the line has the numbers.
fn more_memory_than_there_is() -> Result<()> {
    let mut large = guest::payload("large", "hello", 1, "")?;
    large.memory = 8 << 30;
    refuses_as_too_large(512, 1, vec![large, guest::payload("small", "hello", 1, "")?], "8256 MiB for their RAM")
}

/// A host with so many MiB starts none of these VMs, and says why in one line.
fn refuses_as_too_large(memory: u32, cpus: u32, vms: Vec<Vm>, text: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machine = machine(folder.path(), Some(bundle_of(vms)?))?;
    (machine.memory, machine.cpus) = (memory, cpus);
    let transcript = run(&machine)?;
    one_error(&transcript, "no VM can be started: the VMs do not fit: ")?;
    ensure!(transcript.contains(text), "{text:?} is not what it says:\n{transcript}");
    ensure!(transcript.contains(&format!("and the host has {memory}; give it ")), "{transcript}");
    ensure!(!transcript.contains(": started ("), "something was started:\n{transcript}");
    Ok(())
}

/// Many small VMs, for which tables and stacks are a good part of what they take: on the smallest host for which croft accepts
/// them each one starts while all others run; with a MiB less neither croft nor the hypervisor begins.
fn the_largest_that_fits() -> Result<()> {
    const CPUS: u8 = 2;
    let mut vms = Vec::new();
    for number in 0..40 {
        let mut vm = guest::payload(&format!("vm{number}"), "starving", 2, "mode=wfi")?;
        vm.memory = 8 << 20;
        vms.push(vm);
    }
    let accepts = |memory: u32| {
        let host = croft::site::Host {
            cpu: "cortex-a76".to_owned(),
            cpus: CPUS,
            memory: u64::from(memory) << 20,
            disks: Vec::new(),
        };
        bundle::make(&Site::new("site", host, vms.clone()))
    };
    let (mut too_small, mut enough) = (256, 1024);
    while enough - too_small > 1 {
        let middle = u32::midpoint(too_small, enough);
        if accepts(middle).is_ok() { enough = middle } else { too_small = middle }
    }
    let said = accepts(too_small).err().context("256 MiB cannot be enough for 320")?.to_string();
    ensure!(said.contains("320 MiB for their RAM, 80 for its tables"), "{said}");
    refuses_as_too_large(too_small, CPUS.into(), vms.clone(), "320 MiB for their RAM, 80 for its tables")?;

    let run = Host { cpu: "cortex-a76", cpus: CPUS, memory: enough.into(), ..Host::default() }.start_and_stay(vms)?;
    for number in 0..40 {
        run.console(&format!("vm{number}"))?.expect("starving: wfi", SHORT)?;
    }
    let log = run.log().transcript();
    ensure!(!log.contains("ERROR: "), "{log}");
    Ok(())
}

/// What the VM of this name says. In readable output a line of one VM's ends where another has something to say, and goes on later
/// behind its name: the pieces are put together.
fn said_by(transcript: &str, name: &str) -> String {
    let name = format!("[{name}] ");
    transcript.lines().filter_map(|line| line.strip_prefix(&name)).collect()
}

/// Whether the VM of this name, which runs the payload `hello`, has come to its end.
fn has_passed(transcript: &str, name: &str) -> bool {
    said_by(transcript, name).contains("payload: 1 passed")
}

/// The heap is too small for all VMs, which the sum should have told (`heap=small` makes it so): those for which it is not are not
/// made, in a line each, and the others run to their end.
fn heap_for_some() -> Result<()> {
    const COUNT: usize = 64;
    let vms: Result<Vec<Vm>> = (0..COUNT)
        .map(|number| {
            let mut vm = guest::payload(&format!("vm{number}"), "hello", 4, "")?;
            vm.memory = 4 << 20;
            Ok(vm)
        })
        .collect();
    let folder = tempfile::tempdir()?;
    let mut machine = machine(folder.path(), Some(bundle_of(vms?)?))?;
    machine.kernel = place::checks()?;
    machine.append.push_str(" heap=small");
    let transcript = run(&machine)?;
    let of = |text: &str| transcript.lines().filter(|line| line.contains(text)).count();
    let (refused, errors) = (of("KiB of the hypervisor's heap are not left for it"), of("ERROR: "));
    let passed = (0..COUNT).filter(|number| has_passed(&transcript, &format!("vm{number}"))).count();
    println!("{passed} VMs ran, {refused} were refused");
    ensure!(passed > 0 && refused > 0 && passed + refused == COUNT && errors == refused, "{transcript}");
    Ok(())
}

/// Kernels that croft refuses, in a bundle that it did not make: the hypervisor finds out by itself, says of each VM what is
/// wrong, and starts the one with which nothing is.
fn kernels_that_cannot_run() -> Result<()> {
    let good = std::fs::read(place::payload("hello")?)?;
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image.get_mut(at..at + bytes.len()).context("a header")?.copy_from_slice(bytes);
        anyhow::Ok(image)
    };
    let (crooked, pages) = (changed(8, &[4])?, changed(24, &[0b1100])?);
    let mut cut = changed(0, b"MZ")?;
    let pe = u32::try_from(cut.len())?;
    cut.get_mut(60..64).context("a header")?.copy_from_slice(&pe.to_le_bytes());
    fn source<'a>(name: &'a str, kernel: &'a [u8], program: Option<Program>) -> VmSource<'a> {
        VmSource { program, ..VmSource::new(name, kernel, 64 << 20) }
    }
    let size = good.len() as u64;
    let program = |address, entry| Program::new(entry, &[Segment { address, file_bytes: size, size }]);
    let bundle = abi::bundle::write(
        "test",
        &[
            source("crooked", &crooked, None),
            source("pages", &pages, None),
            source("cut", &cut, None),
            source("outside", &good, program(0x10_0000, 0x10_0000)),
            source("entry", &good, program(0x4010_0000, 0x4010_0002)),
            source("good", &good, None),
        ],
    )?;
    let folder = tempfile::tempdir()?;
    let mut machine = machine(folder.path(), Some(bundle))?;
    machine.cpu = "cortex-a72".to_owned();
    let transcript = run(&machine)?;
    let said = [
        "crooked: stopped: kernel: the kernel's header asks for a place 0x4 bytes behind",
        "pages: stopped: kernel: the kernel is built for pages of 16 KiB, which the host's CPUs do not have",
        "cut: stopped: kernel: the kernel is cut off: the file has",
        "outside: stopped: kernel: the segment of",
        "entry: stopped: kernel: the entry 0x40100002 is in no segment",
    ];
    for text in said {
        ensure!(transcript.contains(text), "{text:?} is not said:\n{transcript}");
    }
    ensure!(has_passed(&transcript, "good"), "{transcript}");
    for name in ["crooked", "pages", "cut", "outside", "entry"] {
        ensure!(said_by(&transcript, name).is_empty(), "{name}, which cannot run, was started:\n{transcript}");
    }
    Ok(())
}

/// A word that nobody knows is named, and does no harm.
fn unknown_boot_argument() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machine = machine(folder.path(), Some(good()?))?;
    machine.append.push_str(" all-off=never verbose");
    let transcript = run(&machine)?;
    let said = ["\"all-off=never\" is unknown", "\"verbose\" is unknown"];
    ensure!(said.iter().all(|text| transcript.contains(text)), "{transcript}");
    ensure!(has_passed(&transcript, "one"), "{transcript}");
    Ok(())
}
