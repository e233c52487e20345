//! From the RSDP to a table (ACPI 6.5, 5.2.5 to 5.2.8), and back: a table that lies elsewhere now, and is named there.

use units::{Pa, Range};

use super::{Flaw, Oem};

/// Physical memory, as this stage reaches it: with the MMU off, or by firmware's identity map.
pub trait Memory {
    /// The bytes of `range`; `None` where there is no memory, or none that may be read.
    fn read(&self, range: Range<Pa>) -> Option<&[u8]>;

    /// The same, to be changed. `None` also where it cannot be.
    fn write(&mut self, range: Range<Pa>) -> Option<&mut [u8]>;

    /// So many bytes of zeroed memory that nobody else uses from now on, at a multiple of 4 KiB.
    fn allocate(&mut self, bytes: u64) -> Option<Pa>;
}

const RSDP_SIZE: u64 = 36;
/// What the first checksum of the RSDP is about.
const OLD_RSDP_SIZE: usize = 20;
/// Bytes of every table's header.
pub(crate) const HEADER_SIZE: u32 = 36;
/// Where the length stands in it.
const LENGTH: usize = 4;
/// Where its checksum does.
const CHECKSUM: usize = 9;
/// Where the XSDT's address stands in the RSDP.
const XSDT: usize = 24;
/// Where the checksum of all of the RSDP stands.
const EXTENDED_CHECKSUM: usize = 32;
/// More than any table that is read here has.
const MAX_LENGTH: u32 = 1 << 20;

/// The tables that are asked for, by the names that people use and by their signatures.
const SIGNATURES: [(&str, [u8; 4]); 3] = [("XSDT", *b"XSDT"), ("FADT", *b"FACP"), ("MADT", *b"APIC")];

/// Where all tables can be found from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    rsdp: Pa,
    xsdt: Table,
}

/// A table whose header was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    name: &'static str,
    at: Pa,
    length: u32,
}

impl Root {
    /// Checks the RSDP at `rsdp` and the XSDT that it names.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(memory: &impl Memory, rsdp: Pa) -> Result<Self, Flaw> {
        let table = "RSDP";
        let unreadable = Flaw::Unreadable { table, at: rsdp };
        let bytes = read(memory, rsdp, RSDP_SIZE).ok_or(unreadable)?;
        let (Some(signature), Some(old), Some(&revision)) = (bytes.get(..8), bytes.get(..OLD_RSDP_SIZE), bytes.get(15))
        else {
            return Err(unreadable);
        };
        if signature != b"RSD PTR " {
            return Err(Flaw::Signature { table, at: rsdp });
        }
        if revision < 2 {
            return Err(Flaw::Old(revision));
        }
        if sum(old) != 0 || sum(bytes) != 0 {
            return Err(Flaw::Checksum { table });
        }
        let xsdt = Pa(doubleword(bytes, XSDT).ok_or(unreadable)?);
        Ok(Self { rsdp, xsdt: Table::new(memory, "XSDT", xsdt)? })
    }

    /// The first table called `name`: "FADT" or "MADT".
    ///
    /// # Errors
    /// If there is none, or what is wrong with it.
    pub fn find(&self, memory: &impl Memory, name: &'static str) -> Result<Table, Flaw> {
        let signature = signature(name).ok_or(Flaw::Missing(name))?;
        let entries = self.xsdt.bytes(memory)?.get(HEADER_SIZE as usize..).unwrap_or_default();
        for entry in entries.as_chunks::<8>().0 {
            let at = Pa(u64::from_le_bytes(*entry));
            // One that cannot be read may be none of ours.
            if read(memory, at, 4).is_some_and(|found| found == signature) {
                return Table::new(memory, name, at);
            }
        }
        Err(Flaw::Missing(name))
    }

    /// `table`, where its bytes can be changed: where it is, or, if it cannot be written there, a copy of it that is named from now on
    /// in its place. The copy's checksum is right; that of a table that is changed is [`seal`]'s.
    pub(crate) fn writable(&mut self, memory: &mut impl Memory, table: Table) -> Result<Table, Flaw> {
        if memory.write(table.range()).is_some() {
            return Ok(table);
        }
        let copy = copy(memory, table)?;
        self.xsdt = match memory.write(self.xsdt.range()) {
            Some(_) => self.xsdt,
            None => {
                let xsdt = copy_xsdt(memory, self.xsdt, self.rsdp)?;
                Table { at: xsdt, ..self.xsdt }
            }
        };
        let missing = Flaw::Unreadable { table: "XSDT", at: self.xsdt.at };
        let bytes = memory.write(self.xsdt.range()).ok_or(missing)?;
        for entry in bytes.get_mut(HEADER_SIZE as usize..).unwrap_or_default().as_chunks_mut::<8>().0 {
            if u64::from_le_bytes(*entry) == table.at.0 {
                *entry = copy.0.to_le_bytes();
            }
        }
        seal(bytes);
        Ok(Table { at: copy, ..table })
    }
}

impl Table {
    /// Checks the table called `name` at `at`.
    fn new(memory: &impl Memory, name: &'static str, at: Pa) -> Result<Self, Flaw> {
        let unreadable = Flaw::Unreadable { table: name, at };
        let header = read(memory, at, u64::from(HEADER_SIZE)).ok_or(unreadable)?;
        if header.get(..4) != signature(name).as_ref().map(<[u8; 4]>::as_slice) {
            return Err(Flaw::Signature { table: name, at });
        }
        let length = word(header, LENGTH).ok_or(unreadable)?;
        if !(HEADER_SIZE..=MAX_LENGTH).contains(&length) {
            return Err(Flaw::Short { table: name, length, least: HEADER_SIZE });
        }
        let table = Self { name, at, length };
        if sum(table.bytes(memory)?) != 0 {
            return Err(Flaw::Checksum { table: name });
        }
        Ok(table)
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> Range<Pa> {
        Range { start: self.at, size: self.length as u64 }
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// All of its bytes.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn bytes<'m>(&self, memory: &'m impl Memory) -> Result<&'m [u8], Flaw> {
        let unreadable = Flaw::Unreadable { table: self.name, at: self.at };
        read(memory, self.at, u64::from(self.length)).ok_or(unreadable)
    }

    /// Who made it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn oem(&self, memory: &impl Memory) -> Result<Oem, Flaw> {
        let bytes = self.bytes(memory)?;
        let id = bytes.get(10..).and_then(<[u8]>::first_chunk);
        let table = bytes.get(16..).and_then(<[u8]>::first_chunk);
        let unreadable = Flaw::Unreadable { table: self.name, at: self.at };
        id.zip(table).map(|(&id, &table)| Oem { id, table }).ok_or(unreadable)
    }
}

fn copy(memory: &mut impl Memory, table: Table) -> Result<Pa, Flaw> {
    let no_room = Flaw::NoRoom { table: table.name };
    let to = memory.allocate(u64::from(table.length)).ok_or(no_room)?;
    // In pieces: what is read and what is written are the same memory, of which only one can be had at a time.
    let mut done = 0;
    while done < table.length {
        let mut piece = [0; 64];
        let size = piece.len().min((table.length - done) as usize);
        let (from, to) = (offset(table.at, done), offset(to, done));
        let unreadable = Flaw::Unreadable { table: table.name, at: from };
        let piece = piece.get_mut(..size).ok_or(unreadable)?;
        piece.copy_from_slice(read(memory, from, size as u64).ok_or(unreadable)?);
        let target = Range::new(to, size as u64).and_then(|range| memory.write(range)).ok_or(no_room)?;
        target.copy_from_slice(piece);
        done += size as u32;
    }
    Ok(to)
}

/// Copies the XSDT, and names the copy in the RSDP, which must be writable then: nothing names it but firmware.
fn copy_xsdt(memory: &mut impl Memory, xsdt: Table, rsdp: Pa) -> Result<Pa, Flaw> {
    let no_room = Flaw::NoRoom { table: "RSDP" };
    let place = Range { start: rsdp, size: RSDP_SIZE };
    if memory.write(place).is_none() {
        return Err(no_room);
    }
    let copy = copy(memory, xsdt)?;
    let bytes = memory.write(place).ok_or(no_room)?;
    if let Some(address) = bytes.get_mut(XSDT..).and_then(|rest| rest.first_chunk_mut()) {
        *address = copy.0.to_le_bytes();
    }
    seal_at(bytes, EXTENDED_CHECKSUM);
    Ok(copy)
}

const fn offset(at: Pa, bytes: u32) -> Pa {
    Pa(at.0.wrapping_add(bytes as u64))
}

fn read(memory: &impl Memory, at: Pa, bytes: u64) -> Option<&[u8]> {
    memory.read(Range::new(at, bytes)?).filter(|read| read.len() as u64 == bytes)
}

/// The signature of the table that people call `name`.
fn signature(name: &str) -> Option<[u8; 4]> {
    SIGNATURES.iter().find(|(known, _)| *known == name).map(|&(_, signature)| signature)
}

/// Makes the checksum of a table right whose bytes were changed.
pub(crate) fn seal(table: &mut [u8]) {
    seal_at(table, CHECKSUM);
}

fn seal_at(bytes: &mut [u8], checksum: usize) {
    if let Some(byte) = bytes.get_mut(checksum) {
        *byte = 0;
    }
    let rest = sum(bytes);
    if let Some(byte) = bytes.get_mut(checksum) {
        *byte = rest.wrapping_neg();
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub(crate) fn doubleword(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}
