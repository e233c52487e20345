//! What the device tree says about the machine, and what the command line asks for.
//!
//! The command line selects what runs: `test=<part of a name>[,...] seed=<n> loops=<n>`, and what else a payload looks for.

use core::ops::Range;

use spin::Once;

use crate::{MAX_CPUS, fdt};

/// The machine as the device tree describes it.
#[derive(Debug)]
pub struct Machine {
    /// MPIDR affinity of each CPU, in the order of the tree, which starts with the boot CPU.
    pub cpus: [u64; MAX_CPUS],
    /// How many of `cpus` are there.
    pub cpu_count: usize,
    /// The first memory node.
    pub ram: Range<u64>,
    /// The initial ramdisk; empty when there is none.
    pub initrd: Range<u64>,
    /// The device tree itself.
    pub device_tree: Range<u64>,
    /// The kernel command line.
    pub command_line: &'static str,
}

static MACHINE: Once<Machine> = Once::new();

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

/// Where the payload's own image lies, BSS and stacks included.
#[must_use]
pub fn image() -> Range<u64> {
    (&raw const image_start) as u64..(&raw const image_end) as u64
}

/// The machine; an empty one if there was no readable tree.
#[must_use]
pub fn machine() -> &'static Machine {
    read(0)
}

/// The device tree itself; empty if there was none.
#[must_use]
pub fn device_tree() -> &'static [u8] {
    match machine().device_tree.start {
        0 => &[],
        start => blob(start),
    }
}

/// Reads the tree at `address`, the first time it is called.
pub(crate) fn read(address: u64) -> &'static Machine {
    MACHINE.call_once(|| {
        let mut machine =
            Machine { cpus: [0; MAX_CPUS], cpu_count: 1, ram: 0..0, initrd: 0..0, device_tree: 0..0, command_line: "" };
        if address != 0 && address.is_multiple_of(8) {
            fill(&mut machine, blob(address));
        }
        machine
    })
}

fn blob(address: u64) -> &'static [u8] {
    let start = address as *const u8;
    // SAFETY: the boot protocol puts a device tree at this address; nothing writes to it while the payload runs.
    let header = unsafe { core::slice::from_raw_parts(start, fdt::HEADER_SIZE) };
    let size = fdt::total_size(header).unwrap_or(0);
    // SAFETY: as above, and the header states this size.
    unsafe { core::slice::from_raw_parts(start, size) }
}

fn fill(machine: &mut Machine, blob: &'static [u8]) {
    let start = blob.as_ptr() as u64;
    machine.device_tree = start..start + blob.len() as u64;
    let mut cpus = 0;
    let walked = fdt::walk(blob, |depth, node, property, value| match (depth, node.split('@').next(), property) {
        (2, Some("memory"), "reg") if machine.ram.is_empty() => {
            let base = fdt::number(value);
            machine.ram = base..base + fdt::number(value.get(8..).unwrap_or(&[]));
        }
        (2, Some("chosen"), "bootargs") => machine.command_line = fdt::string(value),
        (2, Some("chosen"), "linux,initrd-start") => machine.initrd.start = fdt::number(value),
        (2, Some("chosen"), "linux,initrd-end") => machine.initrd.end = fdt::number(value),
        (3, Some("cpu"), "reg") if cpus < MAX_CPUS => {
            machine.cpus[cpus] = fdt::number(value);
            cpus += 1;
        }
        _ => {}
    });
    if walked.is_none() {
        crate::println!("# malformed device tree");
    }
    machine.cpu_count = cpus.max(1);
}

/// The value of `key=value` on the command line.
#[must_use]
pub fn option(key: &str) -> Option<&'static str> {
    machine().command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The number in `key=number` (decimal) on the command line, or `default`.
#[must_use]
pub fn option_number(key: &str, default: u64) -> u64 {
    option(key).and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Whether the command line says (`counted`) that time is counted in instructions: nothing is too late by chance.
#[must_use]
pub fn is_counted() -> bool {
    machine().command_line.split_ascii_whitespace().any(|word| word == "counted")
}

/// Whether the command line says (`reference`) that this is the bare emulated machine, of which some things must not be expected.
#[must_use]
pub fn is_reference() -> bool {
    machine().command_line.split_ascii_whitespace().any(|word| word == "reference")
}
