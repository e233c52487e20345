//! The stage before the hypervisor's core: it brings all CPUs from whatever firmware offers to mailboxes, and has the device tree say
//! so (docs/spec/7-mailboxes.md).
//!
//! `core/bringup` decides; here is the machine. This is the only part of the hypervisor that knows how firmware starts CPUs: the core
//! reads the tree that this stage has written, and knows mailboxes alone. What else firmware is called for, to switch the machine off
//! and about predictors, has nothing to do with starting.
//!
//! It runs on the boot CPU, when EL2's memory is mapped and nobody has taken any of it yet. All that it needs, mailboxes and the new
//! tree, comes out of one range of RAM that nothing else has. The new tree has the mailboxes in it reserved, and whoever reads it reserves the
//! tree.
#![no_std]
#![forbid(unsafe_code)]

use bringup::acpi::Memory;
use bringup::convert::{Boots, Failure, Machine, Outcome, TreeConversion, convert_tree};
use bringup::original::StartProtocol;
use bringup::{mailbox, tree};
use hw::{boot, cache, memory, pen, sysreg};
use platform::{Conduit, Platform, PsciVersion};
use smccc::{Smc, psci};
use units::{PAGE_SIZE, Pa, Range};

/// No code of PSCI's: there is no reserved memory at the address at which a CPU is said to wait.
const NO_MEMORY_THERE: i64 = -100;
/// No code of PSCI's: a way to send a CPU that this machine cannot have.
const NO_WAY: i64 = -101;

/// How much memory [`run`] needs for a platform that `tree` describes.
#[must_use]
pub fn room(platform: &Platform<'_>, tree: &[u8]) -> u64 {
    let tree = (tree::room(tree, platform.cpus.len()) as u64).next_multiple_of(PAGE_SIZE);
    tree + platform.cpus.len() as u64 * mailbox::SIZE
}

/// Brings the CPUs of `platform`, which `tree` describes, to mailboxes, and writes a tree that says so. `region` is RAM that nobody has,
/// of [`room`]'s size, and stays the mailboxes'. CPUs that were sent have `patience` ticks to come.
///
/// # Errors
/// Why there is no such tree. The boot CPU can be used.
#[inline(never)]
pub fn run(platform: &Platform<'_>, tree: &[u8], region: Range<Pa>, patience: u64) -> Result<TreeConversion, Failure> {
    let boots =
        Boots { mpidr: sysreg::mpidr_el1() & platform::Cpu::AFFINITY_MASK, level: boot::exception_level() as u8 };
    let cpus = platform.cpus.iter().map(|cpu| (cpu.mpidr, cpu.boot));
    let mut host = Host { platform, region, used: 0, patience, deadline: None };
    // Before PSCI 0.2 its functions had numbers of the description's.
    let conduit = platform.psci.filter(|psci| psci.version >= PsciVersion::V0_2).map(|psci| psci.conduit);
    convert_tree(&mut host, tree, cpus, conduit, boots)
}

/// Names the CPUs that stay off. Not in [`run`], whose frame on the stack is large.
#[inline(never)]
pub fn tell(report: &TreeConversion) {
    for &(mpidr, outcome) in &report.cpus {
        match outcome {
            Outcome::Boots | Outcome::Disabled | Outcome::Parked(_) | Outcome::WasParked(_) => {}
            _ => log::warn!("the CPU with affinity {mpidr:#x} stays off: {outcome}"),
        }
    }
}

/// The machine on which this runs.
struct Host<'p> {
    platform: &'p Platform<'p>,
    region: Range<Pa>,
    /// How much of the region is given out.
    used: u64,
    /// How long who was sent may take.
    patience: u64,
    /// When who has not come is late; `None` until it is asked for.
    deadline: Option<u64>,
}

impl Host<'_> {
    /// A range of what was given out. Nothing else reads or writes there while the slice lives: who waits at a mailbox is sent there
    /// when all of it is written.
    fn given(&self, range: Range<Pa>) -> Option<Range<Pa>> {
        let given = Range { start: self.region.start, size: self.used };
        given.contains_range(range).then_some(range)
    }
}

impl Memory for Host<'_> {
    fn read(&self, range: Range<Pa>) -> Option<&[u8]> {
        let range = self.given(range)?;
        Some(memory::constant(range.start, range.size))
    }

    fn write(&mut self, range: Range<Pa>) -> Option<&mut [u8]> {
        let range = self.given(range)?;
        Some(memory::claim_unzeroed(range.start, range.size))
    }

    fn allocate(&mut self, bytes: u64) -> Option<Pa> {
        let size = bytes.next_multiple_of(PAGE_SIZE);
        let start = Pa(self.region.start.0 + self.used);
        if size > self.region.size - self.used {
            return None;
        }
        self.used += size;
        cache::zero(Range { start, size });
        Some(start)
    }
}

impl Machine for Host<'_> {
    fn publish(&mut self, mailbox: Pa) {
        pen::furnish(mailbox);
    }

    fn send(&mut self, mpidr: u64, original: StartProtocol, mailbox: Pa) -> Result<(), i64> {
        let entry = pen::entry(mailbox);
        match original {
            StartProtocol::Psci(Conduit::Smc) => cpu_on(mpidr, entry, mailbox),
            StartProtocol::SpinTable(at) => {
                let word = Range { start: at, size: 8 };
                let is_in = |ranges: &[Range<Pa>]| ranges.iter().any(|range| range.contains_range(word));
                let platform = self.platform;
                let is_initrd = platform.initrd.is_some_and(|initrd| initrd.overlaps(word));
                // What is not reserved is somebody's soon, and the loop that looks there is likely to be near.
                if at.0 % 8 != 0 || !is_in(&platform.memory) || !is_in(&platform.reserved) || is_initrd {
                    return Err(NO_MEMORY_THERE);
                }
                pen::release(at, entry);
                Ok(())
            }
            // By HVC we would call ourselves.
            StartProtocol::Psci(Conduit::Hvc)
            | StartProtocol::Parking(_)
            | StartProtocol::Custom(_)
            | StartProtocol::Unknown => Err(NO_WAY),
        }
    }

    fn announcement(&mut self, mailbox: Pa) -> u64 {
        pen::announcement(mailbox)
    }

    fn is_late(&mut self) -> bool {
        let now = sysreg::cntpct_el0();
        let deadline = *self.deadline.get_or_insert(now.saturating_add(self.patience));
        now > deadline
    }
}

/// PSCI's CPU_ON (DEN0022).
fn cpu_on(mpidr: u64, entry: Pa, context: Pa) -> Result<(), i64> {
    psci::cpu_on::<Smc>(mpidr, entry.0, context.0).map_err(|error| match error {
        psci::error::Error::NotSupported => -1,
        psci::error::Error::InvalidParameters => -2,
        psci::error::Error::Denied => -3,
        psci::error::Error::AlreadyOn => -4,
        psci::error::Error::OnPending => -5,
        psci::error::Error::InternalFailure => -6,
        psci::error::Error::NotPresent => -7,
        psci::error::Error::Disabled => -8,
        psci::error::Error::InvalidAddress => -9,
        psci::error::Error::Unknown(code) => code,
    })
}
