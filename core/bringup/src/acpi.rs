//! The ACPI tables that name CPUs and how they start (ACPI 6.5): RSDP and XSDT lead to the FADT (5.2.9), whose ARM_BOOT_ARCH says
//! whether there is PSCI, and to the MADT (5.2.12), whose GICC structures say of each CPU where it is parked.
//!
//! The crates that read ACPI give values and not places, but what is read here is changed afterwards. So these are offsets in bytes
//! that are checked whenever they are used. A table is read only after its signature, length and checksum were found right, so that a
//! table that was being written, or is none, is not changed.

mod change;
mod madt;
mod root;

pub use change::{Whereabouts, name_mailboxes};
pub use madt::{Gicc, cpus};
pub use root::{Memory, Root, Table};

use platform::Conduit;
use units::Pa;

/// Why a description is not converted: it is left as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// Where a table should be there is no memory that can be read.
    #[error("{table}: nothing can be read at {at}")]
    Unreadable {
        /// Which table.
        table: &'static str,
        /// Where.
        at: Pa,
    },
    /// Another signature stands there.
    #[error("{table}: there is another signature at {at}")]
    Signature {
        /// Which table.
        table: &'static str,
        /// Where.
        at: Pa,
    },
    /// Its bytes do not add up to zero.
    #[error("{table}: its checksum is wrong")]
    Checksum {
        /// Which table.
        table: &'static str,
    },
    /// It is shorter than what it must hold.
    #[error("{table}: it has {length} bytes, and must have {least}")]
    Short {
        /// Which table.
        table: &'static str,
        /// How long it says that it is.
        length: u32,
        /// What it must have.
        least: u32,
    },
    /// ACPI 1.0 has no XSDT, and no Arm.
    #[error("the RSDP is of revision {0}: there is no XSDT")]
    Old(u8),
    /// The XSDT does not name it.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// A structure of the MADT that says to have so many bytes, at this offset.
    #[error("MADT: the structure at offset {offset} says that it has {length} bytes")]
    Structure {
        /// Where in the table.
        offset: u32,
        /// What it says.
        length: u8,
    },
    /// A table cannot be written, and there is no memory for another one.
    #[error("{table}: it cannot be written, and there is no memory for a copy")]
    NoRoom {
        /// Which table.
        table: &'static str,
    },
}

/// Who made a table: OEM ID and OEM table ID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Oem {
    /// Six bytes.
    pub id: [u8; 6],
    /// Eight bytes.
    pub table: [u8; 8],
}

/// Where ARM_BOOT_ARCH stands in the FADT, 16 bits, since ACPI 5.1.
pub(crate) const BOOT_ARCH: usize = 129;
/// ARM_BOOT_ARCH.PSCI_COMPLIANT.
pub(crate) const PSCI_COMPLIANT: u16 = 1 << 0;
/// ARM_BOOT_ARCH.PSCI_USE_HVC.
pub(crate) const PSCI_USE_HVC: u16 = 1 << 1;

/// How PSCI is called, by the FADT; `None` if there is none.
///
/// # Errors
/// If there is no FADT, or none of Arm's.
pub fn psci(memory: &impl Memory, root: &Root) -> Result<Option<Conduit>, Flaw> {
    let fadt = root.find(memory, "FADT")?;
    let bytes = fadt.bytes(memory)?;
    let flags = bytes.get(BOOT_ARCH..).and_then(<[u8]>::first_chunk).map(|flags| u16::from_le_bytes(*flags));
    let least = BOOT_ARCH as u32 + 2;
    let flags = flags.ok_or(Flaw::Short { table: "FADT", length: fadt.length(), least })?;
    let conduit = if flags & PSCI_USE_HVC == 0 { Conduit::Smc } else { Conduit::Hvc };
    Ok((flags & PSCI_COMPLIANT != 0).then_some(conduit))
}
