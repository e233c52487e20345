//! The sequence: parse, create, park, modify; then whoever comes next may read.
//!
//! What is parsed is kept, and not read again: the tables may be changed by nobody but us meanwhile, and if they were, the changes
//! are made by offsets that were found in what was checked. All mailboxes are made before the first CPU is sent to one, and all
//! CPUs are sent before the first is waited for, so that they come side by side and one that is lost costs its time once.

use arrayvec::ArrayVec;
use units::{Pa, Range};

use crate::acpi::{self, Flaw, Gicc, Memory, Root, Whereabouts};
use crate::original::{self, KnownPlatform, StartProtocol};
use crate::{MAX_CPUS, mailbox};

/// What the sequence does to the machine.
pub trait Machine: Memory {
    /// Who may need it sees what was written to `mailbox`: a CPU whose caches are off.
    fn publish(&mut self, mailbox: Pa);

    /// Sends the CPU `gicc`, which waits by `original`, to the code that waits at `mailbox`. Returns without waiting for it.
    ///
    /// # Errors
    /// If that is refused, by a code that means something to whoever reads the log.
    fn send(&mut self, gicc: &Gicc, original: StartProtocol, mailbox: Pa) -> Result<(), i64>;

    /// Whether a CPU has announced that it waits at `mailbox`.
    fn has_announced(&mut self, mailbox: Pa) -> bool;

    /// Whether the time is over in which CPUs that were sent must have come. It begins with the first call.
    fn is_late(&mut self) -> bool;
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
}

impl Outcome {
    const fn whereabouts(self) -> Whereabouts {
        match self {
            Self::Parked(mailbox) => Whereabouts::Parked(mailbox),
            Self::Boots | Self::Disabled | Self::WasParked(_) => Whereabouts::Left,
            Self::Unknown | Self::NoMailbox | Self::Refused(_) | Self::Late => Whereabouts::Lost,
        }
    }
}

/// What became of the machine's CPUs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversion {
    /// Each CPU that was looked at, in the order of the description.
    pub cpus: ArrayVec<(Gicc, Outcome), MAX_CPUS>,
    /// How many more there are, which are left as they were.
    pub left_out: usize,
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
}

/// Converts the machine whose RSDP is at `rsdp`, on its CPU with the affinity `boot`.
///
/// # Errors
/// Why it is not converted. The boot CPU can be used in any case.
pub fn convert(
    machine: &mut impl Machine,
    rsdp: Pa,
    boot: u64,
    known: &[KnownPlatform],
) -> Result<Conversion, Failure> {
    // Parse.
    let mut root = Root::new(machine, rsdp).map_err(Failure::Description)?;
    let psci = acpi::psci(machine, &root).map_err(Failure::Description)?;
    let mut report = Conversion { cpus: ArrayVec::new(), left_out: 0 };
    let madt = acpi::cpus(machine, &root, |gicc| {
        let outcome = if gicc.mpidr == boot {
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
    // Create.
    let mut waiting: ArrayVec<(usize, StartProtocol, Pa), MAX_CPUS> = ArrayVec::new();
    for (index, (gicc, outcome)) in
        report.cpus.iter_mut().enumerate().filter(|(_, (_, outcome))| *outcome == Outcome::Late)
    {
        match original::of_acpi(psci, gicc, oem, known) {
            StartProtocol::Parking(mailbox) => *outcome = Outcome::WasParked(mailbox),
            StartProtocol::Unknown => *outcome = Outcome::Unknown,
            protocol => match make_mailbox(machine) {
                Some(mailbox) => waiting.push((index, protocol, mailbox)),
                None => *outcome = Outcome::NoMailbox,
            },
        }
    }
    // Park.
    waiting.retain(|&mut (index, protocol, mailbox)| {
        let Some((gicc, outcome)) = report.cpus.get_mut(index) else { return false };
        let sent = machine.send(gicc, protocol, mailbox);
        if let Err(code) = sent {
            *outcome = Outcome::Refused(code);
        }
        sent.is_ok()
    });
    while !waiting.is_empty() {
        // Asked before they are looked at: whoever has come by then is in time.
        let is_late = machine.is_late();
        waiting.retain(|&mut (index, _, mailbox)| {
            let has_come = machine.has_announced(mailbox);
            if has_come && let Some((_, outcome)) = report.cpus.get_mut(index) {
                *outcome = Outcome::Parked(mailbox);
            }
            !has_come
        });
        if is_late {
            break;
        }
    }
    // Modify.
    let whereabouts = report.cpus.iter().map(|&(gicc, outcome)| (gicc, outcome.whereabouts()));
    acpi::name_mailboxes(machine, &mut root, madt, whereabouts).map_err(Failure::Change)?;
    Ok(report)
}

fn make_mailbox(machine: &mut impl Machine) -> Option<Pa> {
    let at = machine.allocate(mailbox::SIZE)?;
    let fresh = mailbox::fresh();
    let range = Range { start: at, size: fresh.len() as u64 };
    machine.write(range)?.copy_from_slice(&fresh);
    machine.publish(at);
    Some(at)
}
