//! Cores of guests, as an independent ELF reader sees them.

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::{ET_CORE, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use std::fs;
use std::path::Path;

/// NT_PRSTATUS, and where `pr_pid` and `pr_reg` are in it.
const STATUS: u32 = 1;
const NUMBER: usize = 32;
const REGISTERS: usize = 112;

/// What a core says of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thread {
    /// Its number, from 0.
    pub number: u32,
    /// X0 to X30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
    /// Where it is.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
}

/// A guest's vCPUs and its memory.
#[derive(Debug)]
pub struct Core {
    bytes: Vec<u8>,
    /// All vCPUs that were on.
    pub threads: Vec<Thread>,
    /// Where memory begins, in the guest and in the file, and how many bytes there are.
    memory: (u64, usize, usize),
}

impl Core {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none.
    pub fn open(file: &Path) -> Result<Self> {
        let bytes = fs::read(file)?;
        let header = FileHeader64::<LittleEndian>::parse(bytes.as_slice())?;
        let endian = header.endian()?;
        ensure!(header.e_type(endian) == ET_CORE, "it is no core");
        let (mut threads, mut memory) = (Vec::new(), None);
        for segment in header.program_headers(endian, bytes.as_slice())? {
            if segment.p_type(endian) == PT_LOAD {
                let place =
                    (segment.p_paddr(endian), segment.p_offset(endian) as usize, segment.p_filesz(endian) as usize);
                ensure!(memory.replace(place).is_none(), "a guest has one piece of memory");
            }
            let Some(mut notes) = segment.notes(endian, bytes.as_slice())? else { continue };
            while let Some(note) = notes.next()? {
                if note.name() == b"CORE" && note.n_type(endian).0 == STATUS {
                    threads.push(thread(note.desc()).context("a vCPU's registers are cut off")?);
                }
            }
        }
        let memory = memory.context("it has no memory")?;
        Ok(Self { bytes, threads, memory })
    }

    /// Memory at a guest-physical address.
    ///
    /// # Errors
    /// If there is none.
    pub fn memory(&self, address: u64, size: usize) -> Result<&[u8]> {
        let (start, place, all) = self.memory;
        let offset = address.checked_sub(start).filter(|offset| *offset <= all as u64).map(|offset| offset as usize);
        let found = offset.filter(|offset| offset + size <= all).and_then(|offset| self.bytes.get(place + offset..));
        found.and_then(|bytes| bytes.get(..size)).with_context(|| format!("no memory at {address:#x}"))
    }

    /// The instruction at an address, with the MMU off or mapping it to itself.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn instruction(&self, address: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.memory(address, 4)?.try_into()?))
    }
}

fn thread(status: &[u8]) -> Option<Thread> {
    let pid = u32::from_le_bytes(status.get(NUMBER..)?.first_chunk().copied()?);
    let (words, _) = status.get(REGISTERS..)?.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let mut x = [0; 31];
    for place in &mut x {
        *place = words.next()?;
    }
    Some(Thread { number: pid.checked_sub(1)?, x, sp: words.next()?, pc: words.next()?, pstate: words.next()? })
}
