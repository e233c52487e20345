//! Kernels that are no `Image`: ELF executables, which say themselves where they go, and raw binaries, of which the site file
//! says it.
//!
//! Of an ELF file only the parts that a boot loader uses matter: the loadable segments at their *physical* addresses
//! (System V ABI, "Program Header"), and the entry. The entry is a virtual address; where the two differ, it is moved
//! as the segment is that holds it.

use super::KernelError;
use abi::bundle::{MAX_SEGMENTS, Program, Segment};
use machine::image::ImageHeader;
use object::Endianness;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Where the site file puts a raw binary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Raw {
    /// The address of its first byte.
    pub load: u64,
    /// The address of its first instruction.
    pub entry: u64,
}

type Header = FileHeader64<Endianness>;

/// A raw binary. If it has the header of an `Image` all the same, that says how much memory it takes.
pub(super) fn of_raw(bytes: &[u8], raw: Raw) -> Result<Program, KernelError> {
    if bytes.is_empty() {
        return Err(KernelError::Program("the file is empty".to_owned()));
    }
    let said = ImageHeader::parse(bytes).ok().and_then(|header| header.image_size).unwrap_or(0);
    let file_bytes = bytes.len() as u64;
    let segment = Segment { address: raw.load, file_bytes, size: said.max(file_bytes) };
    Program::new(raw.entry, &[segment]).ok_or_else(|| KernelError::Program("it has too many pieces".to_owned()))
}

/// An ELF executable: the program, and the bytes of its segments one behind the other.
pub(super) fn of_elf(file: &[u8]) -> Result<(Vec<u8>, Program), KernelError> {
    let wrong = |what: &str| KernelError::Program(format!("it is an ELF file {what}"));
    check_identification(file)?;
    let header = Header::parse(file).map_err(|_| wrong("whose header is cut off"))?;
    let endian = header.endian().map_err(|_| wrong("of an unknown byte order"))?;
    match header.e_machine(endian) {
        elf::EM_AARCH64 => {}
        other => return Err(wrong(&format!("for {}; one for AArch64 is wanted", machine_name(other)))),
    }
    match header.e_type(endian) {
        elf::ET_EXEC | elf::ET_DYN => {}
        elf::ET_REL => return Err(wrong("that was not linked yet (an object file or a kernel module)")),
        elf::ET_CORE => return Err(wrong("of another kind: a core dump")),
        other => return Err(wrong(&format!("of the unknown type {}", other.0))),
    }
    let segments =
        header.program_headers(endian, file).map_err(|_| wrong("that is cut off: its program headers end outside"))?;
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Err(wrong("for an operating system to load (PT_INTERP), and no kernel"));
    }
    let loaded =
        segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD && segment.p_memsz(endian) > 0);
    let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
    for segment in loaded.clone() {
        let content = segment.data(endian, file).map_err(|()| {
            let end = segment.p_offset(endian).saturating_add(segment.p_filesz(endian));
            wrong(&format!("that is cut off: a segment ends at {end}, and the file has {} bytes", file.len()))
        })?;
        bytes.extend_from_slice(content);
        let (address, file_bytes) = (segment.p_paddr(endian), content.len() as u64);
        pieces.push(Segment { address, file_bytes, size: segment.p_memsz(endian) });
    }
    if bytes.is_empty() {
        return Err(wrong("with nothing to load (PT_LOAD)"));
    }
    let entry = physical(header.e_entry(endian), loaded, endian);
    let most = format!("with {} segments to load; at most {MAX_SEGMENTS} can be", pieces.len());
    Ok((bytes, Program::new(entry, &pieces).ok_or_else(|| wrong(&most))?))
}

/// What `object` would say of these is right, and not for people.
fn check_identification(file: &[u8]) -> Result<(), KernelError> {
    let wrong = |what: &str| Err(KernelError::Program(format!("it is an ELF file {what}")));
    match (file.get(4), file.get(5)) {
        (None, _) | (_, None) => wrong("that is cut off"),
        (Some(1), _) => wrong("of 32 bits; one of 64 bits for AArch64 is wanted"),
        (_, Some(2)) => wrong("that is big-endian; only little-endian guests are supported"),
        (Some(2), Some(1)) => Ok(()),
        _ => wrong("of an unknown class or byte order"),
    }
}

/// The physical address of the entry.
fn physical<'a>(
    entry: u64,
    mut segments: impl Iterator<Item = &'a ProgramHeader64<Endianness>>,
    endian: Endianness,
) -> u64 {
    let offset = |segment: &ProgramHeader64<Endianness>| entry.wrapping_sub(segment.p_vaddr(endian));
    let holder = segments.find(|segment| offset(segment) < segment.p_memsz(endian));
    holder.map_or(entry, |segment| segment.p_paddr(endian).wrapping_add(offset(segment)))
}

fn machine_name(machine: elf::Machine) -> String {
    match machine {
        elf::EM_ARM => "32-bit Arm".to_owned(),
        elf::EM_X86_64 | elf::EM_386 => "x86".to_owned(),
        elf::EM_RISCV => "RISC-V".to_owned(),
        other => format!("machine {}", other.0),
    }
}

#[cfg(test)]
pub(super) mod tests;
