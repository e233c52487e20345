//! The tables after the conversion: who waits at a mailbox is named with it, who did not come is disabled, and there is no PSCI any
//! more by which anybody could start them. Everything else of them stays byte for byte.

use units::Pa;

use super::madt::gicc;
use super::root::{seal, word};
use super::{BOOT_ARCH, Flaw, Gicc, Memory, PSCI_COMPLIANT, PSCI_USE_HVC, Root, Table};

/// The version of the parking protocol that there is.
const PARKING_VERSION: u32 = 1;

/// What has become of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whereabouts {
    /// It waits at this mailbox.
    Parked(Pa),
    /// It did not come: it is to be disabled.
    Lost,
    /// It is as firmware has left it: the boot CPU, one that is disabled, one whose mailbox is the firmware's.
    Left,
}

/// Changes MADT and FADT so that they say what has become of `cpus`. `madt` is what [`super::cpus`] returned.
///
/// # Errors
/// If a table cannot be changed. Then CPUs wait whom no table names, and nobody may be told of others.
pub fn name_mailboxes(
    memory: &mut impl Memory,
    root: &mut Root,
    madt: Table,
    cpus: impl Iterator<Item = (Gicc, Whereabouts)>,
) -> Result<(), Flaw> {
    // Room for both before either is changed: a MADT that names mailboxes beside a FADT that names PSCI would be two truths.
    let madt = root.writable(memory, madt)?;
    let fadt = root.find(memory, "FADT")?;
    let fadt = root.writable(memory, fadt)?;
    let bytes = memory.write(fadt.range()).ok_or(Flaw::NoRoom { table: "FADT" })?;
    if let Some(flags) = bytes.get_mut(BOOT_ARCH..).and_then(|rest| rest.first_chunk_mut()) {
        let without = u16::from_le_bytes(*flags) & !(PSCI_COMPLIANT | PSCI_USE_HVC);
        *flags = without.to_le_bytes();
    }
    seal(bytes);
    let bytes = memory.write(madt.range()).ok_or(Flaw::NoRoom { table: "MADT" })?;
    for (gicc, whereabouts) in cpus {
        let Some(structure) = bytes.get_mut(gicc.offset as usize..) else { continue };
        match whereabouts {
            Whereabouts::Parked(mailbox) => {
                put(structure, gicc::PARKING_VERSION, PARKING_VERSION.to_le_bytes());
                put(structure, gicc::PARKED_ADDRESS, mailbox.0.to_le_bytes());
            }
            Whereabouts::Lost => {
                let flags = word(structure, gicc::FLAGS).unwrap_or(0) & !(gicc::ENABLED | gicc::ONLINE_CAPABLE);
                put(structure, gicc::FLAGS, flags.to_le_bytes());
            }
            Whereabouts::Left => {}
        }
    }
    seal(bytes);
    Ok(())
}

fn put<const SIZE: usize>(structure: &mut [u8], at: usize, value: [u8; SIZE]) {
    if let Some(place) = structure.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value;
    }
}
