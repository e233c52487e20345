//! The sequence: parse, create, park, modify; then whoever comes next may read.
//!
//! What is parsed is kept, and not read again: the tables may be changed by nobody but us meanwhile, and if they were, the changes
//! are made by offsets that were found in what was checked. All mailboxes are made before the first CPU is sent to one, and all
//! CPUs are sent before the first is waited for, so that they come side by side and one that is lost costs its time once.

use arrayvec::ArrayVec;
use platform::{BootMethod, Conduit};
use units::{Pa, Range};

use crate::acpi::{self, Flaw, Gicc, Memory, Root, Whereabouts};
use crate::original::{self, KnownPlatform, StartProtocol};
use crate::tree::{self, BadTree};
use crate::{MAX_CPUS, mailbox};

/// What the sequence does to the machine.
pub trait Machine: Memory {
    /// Puts the code that waits into the firmware's half of `mailbox`, and makes all of it seen by a CPU whose caches are off.
    fn publish(&mut self, mailbox: Pa);

    /// Sends the CPU with the affinity `mpidr`, which waits by `original`, to the code that waits at `mailbox`. Returns without
    /// waiting for it.
    ///
    /// # Errors
    /// If that is refused, by a code that means something to whoever reads the log.
    fn send(&mut self, mpidr: u64, original: StartProtocol, mailbox: Pa) -> Result<(), i64>;

    /// What stands at `mailbox` where a CPU announces that it waits there.
    fn announcement(&mut self, mailbox: Pa) -> u64;

    /// Whether the time is over in which CPUs that were sent must have come. It begins with the first call.
    fn is_late(&mut self) -> bool;
}

/// The CPU that does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boots {
    /// Its affinity fields.
    pub mpidr: u64,
    /// Its exception level, at which all others must come.
    pub level: u8,
}

/// What became of a CPU, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is the boot CPU.
    Boots,
    /// The description has it disabled.
    Disabled,
    /// It waits at this mailbox of ours.
    Parked(Pa),
    /// Firmware has parked it by the same protocol already.
    WasParked(Pa),
    /// Nobody knows how it waits. It is disabled in the description.
    Unknown,
    /// There is no memory for its mailbox. It is disabled in the description.
    NoMailbox,
    /// It was refused by this code. It is disabled in the description.
    Refused(i64),
    /// It has not come in time. It is disabled in the description.
    Late,
    /// It has come at this exception level, which is not the boot CPU's. It is disabled in the description.
    WrongLevel(u8),
}

impl Outcome {
    const fn whereabouts(self) -> Whereabouts {
        match self {
            Self::Parked(mailbox) => Whereabouts::Parked(mailbox),
            Self::Boots | Self::Disabled | Self::WasParked(_) => Whereabouts::Left,
            Self::Unknown | Self::NoMailbox | Self::Refused(_) | Self::Late | Self::WrongLevel(_) => Whereabouts::Lost,
        }
    }
}

impl core::fmt::Display for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Boots => write!(f, "it boots"),
            Self::Disabled => write!(f, "it is disabled"),
            Self::Parked(mailbox) | Self::WasParked(mailbox) => write!(f, "it waits at mailbox {:#x}", mailbox.0),
            Self::Unknown => write!(f, "nobody knows how it is started"),
            Self::NoMailbox => write!(f, "there is no memory for its mailbox"),
            Self::Refused(code) => write!(f, "the firmware refused to start it: {code}"),
            Self::Late => write!(f, "it was started, and did not come in time"),
            Self::WrongLevel(level) => write!(f, "it came at EL{level}, which is not the boot CPU's"),
        }
    }
}

/// What became of the CPUs of a machine that ACPI describes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversion {
    /// Each CPU that was looked at, in the order of the description.
    pub cpus: ArrayVec<(Gicc, Outcome), MAX_CPUS>,
    /// How many more there are, which are left as they were.
    pub left_out: usize,
    /// Where all mailboxes are, also those of CPUs that did not come, which may come yet: to be reserved.
    pub mailboxes: Range<Pa>,
}

/// What became of the CPUs of a machine that a device tree describes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeConversion {
    /// Each CPU that was looked at, by its affinity fields, in the order of the description.
    pub cpus: ArrayVec<(u64, Outcome), MAX_CPUS>,
    /// Where the tree is that names mailboxes.
    pub tree: Pa,
}

/// Why a machine is not converted, or not to its end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// What firmware describes is no good. Nothing was done.
    #[error("the description is not converted: {0}")]
    Description(Flaw),
    /// CPUs wait at mailboxes that the description could not be made to name: nobody can start them.
    #[error("the description cannot be changed: {0}")]
    Change(Flaw),
    /// There is no memory for a tree that names mailboxes. Nothing was done.
    #[error("there is no memory for a device tree that names mailboxes")]
    NoMemory,
    /// Two CPUs of a device tree have these affinity fields. Nothing was done.
    #[error("two CPUs have the affinity {0:#x}")]
    Twice(u64),
    /// A device tree is no good, or there is no room for it. Nothing was done.
    #[error("the device tree: {0}")]
    Tree(BadTree),
}

/// A CPU that is to be parked.
struct Candidate {
    mpidr: u64,
    /// Which number means it in its mailbox.
    number: u32,
    /// Whether that stands there from the beginning.
    is_preset: bool,
    original: StartProtocol,
    outcome: Outcome,
}

/// Converts the machine whose RSDP is at `rsdp`.
///
/// # Errors
/// Why it is not converted. The boot CPU can be used in any case.
pub fn convert(
    machine: &mut impl Machine,
    rsdp: Pa,
    boots: Boots,
    known: &[KnownPlatform],
) -> Result<Conversion, Failure> {
    // Parse.
    let mut root = Root::new(machine, rsdp).map_err(Failure::Description)?;
    let psci = acpi::psci(machine, &root).map_err(Failure::Description)?;
    let mailboxes = Range { start: Pa(0), size: 0 };
    let mut report = Conversion { cpus: ArrayVec::new(), left_out: 0, mailboxes };
    let madt = acpi::cpus(machine, &root, |gicc| {
        let outcome = if gicc.mpidr == boots.mpidr {
            Outcome::Boots
        } else if gicc.is_enabled {
            Outcome::Late
        } else {
            Outcome::Disabled
        };
        if report.cpus.try_push((gicc, outcome)).is_err() {
            report.left_out += 1;
        }
    })
    .map_err(Failure::Description)?;
    let oem = madt.oem(machine).map_err(Failure::Description)?;
    let mut candidates: ArrayVec<Candidate, MAX_CPUS> = report
        .cpus
        .iter()
        .map(|&(gicc, outcome)| Candidate {
            mpidr: gicc.mpidr,
            number: gicc.number,
            is_preset: false,
            original: original::of_acpi(psci, &gicc, oem, known),
            outcome,
        })
        .collect();
    report.mailboxes = park(machine, boots.level, &mut candidates);
    for ((_, outcome), candidate) in report.cpus.iter_mut().zip(&candidates) {
        *outcome = candidate.outcome;
    }
    // Modify.
    let whereabouts = report.cpus.iter().map(|&(gicc, outcome)| (gicc, outcome.whereabouts()));
    acpi::name_mailboxes(machine, &mut root, madt, whereabouts).map_err(Failure::Change)?;
    Ok(report)
}

/// Converts a machine that `tree` describes, which lies in memory for as long as it is read. It has been parsed already: `cpus` are its
/// CPUs, by their affinity fields, with what it says of each, and `psci` what it says of the firmware.
///
/// # Errors
/// Why it is not converted. The boot CPU can be used in any case.
pub fn convert_tree(
    machine: &mut impl Machine,
    tree: &[u8],
    cpus: impl Iterator<Item = (u64, BootMethod)>,
    psci: Option<Conduit>,
    boots: Boots,
) -> Result<TreeConversion, Failure> {
    let mut candidates: ArrayVec<Candidate, MAX_CPUS> = ArrayVec::new();
    let cpus = cpus.map(|(mpidr, boot)| (mpidr & platform::Cpu::AFFINITY_MASK, boot));
    for ((mpidr, boot), number) in cpus.zip(0..MAX_CPUS as u32) {
        let outcome = if mpidr == boots.mpidr { Outcome::Boots } else { Outcome::Late };
        if candidates.iter().any(|other| other.mpidr == mpidr) {
            return Err(Failure::Twice(mpidr));
        }
        candidates.push(Candidate { mpidr, number, is_preset: true, original: original::of_tree(boot, psci), outcome });
    }
    // Before anybody is sent, and once as if all had come: a CPU that waits at a mailbox that no tree names would be lost.
    let room = tree::room(tree, candidates.len());
    let place = machine.allocate(room as u64).ok_or(Failure::NoMemory)?;
    let new = Range { start: place, size: room as u64 };
    let to = machine.write(new).ok_or(Failure::NoMemory)?;
    let as_if = |mpidr: u64| match find(&candidates, mpidr) {
        Some(_) => Whereabouts::Parked(place),
        None => Whereabouts::Left,
    };
    tree::name_mailboxes(tree, to, new, as_if).map_err(Failure::Tree)?;
    let reserved = park(machine, boots.level, &mut candidates);
    // Modify.
    let whereabouts =
        |mpidr: u64| find(&candidates, mpidr).map_or(Whereabouts::Left, |candidate| candidate.outcome.whereabouts());
    let to = machine.write(new).ok_or(Failure::NoMemory)?;
    tree::name_mailboxes(tree, to, reserved, whereabouts).map_err(Failure::Tree)?;
    Ok(TreeConversion {
        cpus: candidates.iter().map(|candidate| (candidate.mpidr, candidate.outcome)).collect(),
        tree: place,
    })
}

fn find(candidates: &[Candidate], mpidr: u64) -> Option<&Candidate> {
    candidates.iter().find(|candidate| candidate.mpidr == mpidr & platform::Cpu::AFFINITY_MASK)
}

/// Brings those that are late now, for they were never sent, to mailboxes. Returns where these are, also those of CPUs that did not
/// come: they may come yet.
fn park(machine: &mut impl Machine, level: u8, candidates: &mut [Candidate]) -> Range<Pa> {
    // Create.
    let mut mailboxes = Range { start: Pa(0), size: 0 };
    let mut waiting: ArrayVec<(usize, Pa), MAX_CPUS> = ArrayVec::new();
    for (index, cpu) in candidates.iter_mut().enumerate().filter(|(_, cpu)| cpu.outcome == Outcome::Late) {
        match cpu.original {
            StartProtocol::Parking(mailbox) => cpu.outcome = Outcome::WasParked(mailbox),
            StartProtocol::Unknown => cpu.outcome = Outcome::Unknown,
            _ => match make_mailbox(machine, cpu) {
                Some(mailbox) => {
                    let first = if waiting.is_empty() { mailbox } else { mailboxes.start.min(mailbox) };
                    let end = mailboxes.end().max(Pa(mailbox.0 + mailbox::SIZE));
                    mailboxes = Range { start: first, size: end.0 - first.0 };
                    waiting.push((index, mailbox));
                }
                None => cpu.outcome = Outcome::NoMailbox,
            },
        }
    }
    for (&(_, mailbox), &(_, next)) in waiting.iter().zip(waiting.iter().cycle().skip(1)) {
        // It could be written a moment ago.
        let _ = put(machine, mailbox, mailbox::NEXT, &next.0.to_le_bytes());
        machine.publish(mailbox);
    }
    // Park.
    waiting.retain(|&mut (index, mailbox)| {
        let Some(cpu) = candidates.get_mut(index) else { return false };
        let sent = machine.send(cpu.mpidr, cpu.original, mailbox);
        if let Err(code) = sent {
            cpu.outcome = Outcome::Refused(code);
        }
        sent.is_ok()
    });
    while !waiting.is_empty() {
        // Asked before they are looked at: whoever has come by then is in time.
        let is_late = machine.is_late();
        waiting.retain(|&mut (index, mailbox)| {
            let came_at = mailbox::level(machine.announcement(mailbox));
            if let Some(came_at) = came_at
                && let Some(cpu) = candidates.get_mut(index)
            {
                cpu.outcome = if came_at == level { Outcome::Parked(mailbox) } else { Outcome::WrongLevel(came_at) };
            }
            came_at.is_none()
        });
        if is_late {
            break;
        }
    }
    mailboxes
}

fn make_mailbox(machine: &mut impl Machine, cpu: &Candidate) -> Option<Pa> {
    let at = machine.allocate(mailbox::SIZE)?;
    let number = if cpu.is_preset { cpu.number } else { mailbox::NOBODY };
    put(machine, at, mailbox::NUMBER, &mailbox::fresh(number))?;
    put(machine, at, mailbox::OWN_NUMBER, &cpu.number.to_le_bytes())?;
    put(machine, at, mailbox::OWNER, &cpu.mpidr.to_le_bytes())?;
    Some(at)
}

fn put(machine: &mut impl Machine, page: Pa, offset: usize, bytes: &[u8]) -> Option<()> {
    let range = Range { start: Pa(page.0 + offset as u64), size: bytes.len() as u64 };
    machine.write(range)?.copy_from_slice(bytes);
    Some(())
}
