//! The CPUs of the MADT: its GICC structures (ACPI 6.5, 5.2.12.14).

use units::Pa;

use super::root::{HEADER_SIZE, doubleword, word};
use super::{Flaw, Memory, Root, Table};

/// Where the structures begin: behind the header, the local interrupt controller's address and flags.
const FIRST: u32 = HEADER_SIZE + 8;
/// The type of a GICC structure.
const GICC: u8 = 0x0B;
/// The least that a GICC structure has, since ACPI 5.1: up to its MPIDR.
const LEAST: u8 = 76;

/// Offsets in a GICC structure.
pub(crate) mod gicc {
    pub(crate) const NUMBER: usize = 4;
    pub(crate) const FLAGS: usize = 12;
    pub(crate) const PARKING_VERSION: usize = 16;
    pub(crate) const PARKED_ADDRESS: usize = 24;
    pub(crate) const MPIDR: usize = 68;
    /// In its flags.
    pub(crate) const ENABLED: u32 = 1 << 0;
    /// In its flags, since ACPI 6.5: it is off, and may come later.
    pub(crate) const ONLINE_CAPABLE: u32 = 1 << 3;
}

/// A CPU, as its GICC structure describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gicc {
    /// Where the structure stands in the MADT, in bytes.
    pub(crate) offset: u32,
    /// Its number of a CPU interface, by which a mailbox means it.
    pub number: u32,
    /// Its affinity, as in MPIDR_EL1, the other bits zero.
    pub mpidr: u64,
    /// Whether it may be used.
    pub is_enabled: bool,
    parking_version: u32,
    parked_address: u64,
}

impl Gicc {
    /// The mailbox at which firmware has parked it.
    #[must_use]
    pub fn parking(&self) -> Option<Pa> {
        (self.parking_version != 0 && self.parked_address != 0).then_some(Pa(self.parked_address))
    }

    fn new(offset: u32, structure: &[u8]) -> Option<Self> {
        Some(Self {
            offset,
            number: word(structure, gicc::NUMBER)?,
            mpidr: doubleword(structure, gicc::MPIDR)? & 0xff_00ff_ffff,
            is_enabled: word(structure, gicc::FLAGS)? & gicc::ENABLED != 0,
            parking_version: word(structure, gicc::PARKING_VERSION)?,
            parked_address: doubleword(structure, gicc::PARKED_ADDRESS)?,
        })
    }
}

/// Gives `each` every CPU of the MADT, in its order; returns that table. `each` may have been called before an error is found.
///
/// # Errors
/// If there is no MADT, or what is wrong with it.
pub fn cpus(memory: &impl Memory, root: &Root, mut each: impl FnMut(Gicc)) -> Result<Table, Flaw> {
    let table = root.find(memory, "MADT")?;
    if table.length() < FIRST {
        return Err(Flaw::Short { table: "MADT", length: table.length(), least: FIRST });
    }
    let bytes = table.bytes(memory)?;
    let mut offset = FIRST;
    while offset < table.length() {
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let (kind, length) = match rest {
            [kind, length, ..] => (*kind, *length),
            // A byte alone.
            _ => return Err(Flaw::Structure { offset, length: 0 }),
        };
        let damaged = Flaw::Structure { offset, length };
        // One without a length would be looked at for ever.
        if length < 2 {
            return Err(damaged);
        }
        let structure = rest.get(..usize::from(length)).ok_or(damaged)?;
        if kind == GICC {
            if length < LEAST {
                return Err(damaged);
            }
            each(Gicc::new(offset, structure).ok_or(damaged)?);
        }
        offset += u32::from(length);
    }
    Ok(table)
}
