//! A VM as a file: what it is, what its CPU can do, when it was taken, its state, and its memory (`docs/formats/snapshot.md`).
//!
//! A file is a header and sections. Each section has a head, with a checksum of its own, that says what the section is, of which
//! version, how long it is, and the checksum of what is in it. So an error in a file is noticed at the first wrong section,
//! before that is used; and a file that ends early has no section `end`.
//!
//! Neither side holds a whole file in memory: [`Writer`] gives a section at a time, of memory a few pages, and [`Reader`] takes
//! bytes as they arrive and gives back each complete section. The bytes may come from anybody. Reading takes at most the memory
//! of the largest section of such a VM, and of the value that is made of it; a lack of memory is an error
//! ([`FileError::NoMemory`]).
//!
//! Equal VMs are equal bytes, and a file that is read and written again is the same: a reader accepts only the form of each
//! section that the writer produces.

mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use core::fmt;

pub use memory::{Content, MOST as MOST_OF_MEMORY, Memory, RUNS as MOST_RUNS, Run};
pub use reader::{Reader, Section};
pub use writer::{Pieces, Writer};

use crate::place::Decimal;
use crate::{SavedMachine, SavedVm, bounds};
use abi::bundle::Time;
use pack::{Damaged, value};
use units::{BLOCK_SIZE, PAGE_SIZE};

/// What a file begins with.
pub const MAGIC: [u8; 8] = *b"UCSAVED\0";
/// The version of header and heads that is written, and the only one that is read. Sections have their own.
pub const VERSION: u16 = 2;
/// Bytes of the header: magic, version, order, and the CRC-32C of these twelve.
pub const HEADER: usize = 16;
/// The order of sections of memory in a file: from the first page to the last.
const IN_ORDER: [u8; 2] = [0, 0];
/// In a stream that is no file: each section is one piece, or whole blocks of zeros, and they come in any order.
const BY_PIECES: [u8; 2] = [1, 0];
/// Pages of a piece, by which memory comes in a stream: 64 KiB.
pub const PAGES_OF_A_PIECE: u64 = 16;
/// Pages of a block.
pub const PAGES_OF_A_BLOCK: u64 = BLOCK_SIZE / PAGE_SIZE;
/// At most so many blocks of zeros are one section of a stream: a GiB.
pub const MOST_ZEROS: u64 = 512;
/// Bytes of a section's head.
pub const HEAD: usize = 32;
/// Bytes of a page.
pub const PAGE: usize = PAGE_SIZE as usize;

/// What a VM is, without its files.
pub type Description<'a> = abi::bundle::Vm<&'a str, (), ()>;

/// When a state was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedMoment {
    /// Microseconds since 1970 by the host's clock.
    pub microseconds: u64,
    /// The host has a real-time clock; otherwise that was since the host's start, and says nothing to another one.
    pub is_known: bool,
}

value!(SavedMoment { microseconds, is_known });

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Vm,
    Machine,
    Moment,
    State,
    Memory,
    End,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Vm, Self::Machine, Self::Moment, Self::State, Self::Memory, Self::End];

    const fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Machine => "machine",
            Self::Moment => "moment",
            Self::State => "state",
            Self::Memory => "memory",
            Self::End => "end",
        }
    }

    const fn version(self) -> u16 {
        match self {
            // 2: what becomes of the time away. 3: whether it starts with its host. 4: disks. 5: what is written to them. 6: disks of the
            // host's. 7: networks. 8: whether it has the enclave device.
            Self::Vm => 8,
            Self::Machine => SavedMachine::VERSION,
            Self::State => SavedVm::VERSION,
            Self::Moment | Self::Memory | Self::End => 1,
        }
    }

    /// At most this many bytes in one.
    const fn most(self) -> usize {
        match self {
            Self::Vm => 4 << 10,
            Self::Machine => 1 << 10,
            Self::Moment | Self::End => 64,
            // Of any VM. Less of one whose site file does not let its guest have so much.
            Self::State => bounds::STATE,
            Self::Memory => memory::MOST,
        }
    }

    /// Whether a section of this kind may stand behind one of the other kind; behind none if it is the first.
    fn may_follow(self, before: Option<Self>) -> bool {
        match self {
            Self::Vm => before.is_none(),
            Self::Machine => before == Some(Self::Vm),
            Self::Moment => before == Some(Self::Machine),
            Self::State => before == Some(Self::Moment),
            Self::Memory => matches!(before, Some(Self::State | Self::Memory)),
            Self::End => before == Some(Self::Memory),
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| {
            let (text, rest) = name.split_at_checked(kind.name().len()).unwrap_or_default();
            text == kind.name().as_bytes() && rest.iter().all(|&byte| byte == 0)
        })
    }
}

/// What is wrong with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileError {
    /// Something else.
    NoSnapshot,
    /// Its header.
    Header,
    /// It has this version, which is not known here.
    Version(u16),
    /// The head of the section with this number, from 0.
    Head(u32),
    /// What is in the section of this kind and number.
    Body(&'static str, u32),
    /// The section of this number has a name that is not known here.
    Unknown(u32),
    /// This section has that version; the other one is known here.
    SectionVersion(&'static str, u16, u16),
    /// A section of this kind, of the number, stands where none may.
    Misplaced(&'static str, u32),
    /// A section of this kind is longer than any is.
    Long(&'static str),
    /// What is in a section of this kind is none of its values, although its checksum is right.
    Impossible(&'static str),
    /// As [`FileError::Impossible`], of the state, with what is wrong.
    State(Damaged),
    /// Its clock has this rate, in millionths of real time, and by its description the VM has that one.
    Rate(u32, u32),
    /// Its clock has this frequency, which no VM may have.
    Frequency(u64),
    /// So many of so many pages are there where the memory ends.
    Pages(u64, u64),
    /// It ends after so many bytes, in a section or before one.
    Short(u64),
    /// There is more behind its end.
    Surplus,
    /// No memory for a section.
    NoMemory,
}

impl fmt::Display for FileError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshot => out.write_str("this is no saved VM; `croft save VM FILE` makes one"),
            Self::Header => out.write_str("the saved VM is damaged: the checksum of its header is wrong"),
            Self::Version(version) => write!(
                out,
                "the saved VM has format version {version}; version {VERSION} is known here: use the release that wrote it"
            ),
            Self::Head(number) => {
                write!(out, "the saved VM is damaged: the checksum of the head of section {number} is wrong")
            }
            Self::Body(name, number) => {
                write!(out, "the saved VM is damaged: the checksum of section {number}, {name}, is wrong")
            }
            Self::Unknown(number) => {
                write!(out, "section {number} of the saved VM is of a kind that is not known here")
            }
            Self::SectionVersion(name, version, known) => write!(
                out,
                "section {name} of the saved VM has version {version}; version {known} is known here: use the release that \
                 wrote it"
            ),
            Self::Misplaced(name, number) => {
                write!(out, "the saved VM is damaged: section {number}, {name}, stands where none may")
            }
            Self::Long(name) => write!(out, "the saved VM is damaged: a section {name} is longer than any may be"),
            Self::Impossible(name) => {
                write!(out, "section {name} of the saved VM holds what no VM could have had")
            }
            Self::State(damaged) => write!(out, "{damaged}"),
            Self::Rate(clock, vm) => write!(
                out,
                "the saved VM is damaged: its clock runs at a rate of {}, and it says that its time passes at {}",
                Decimal(*clock),
                Decimal(*vm)
            ),
            Self::Frequency(hertz) => write!(
                out,
                "the saved VM is damaged: its clock counts at {hertz} Hz; a VM's counts at {} to {} Hz",
                Time::FREQUENCY.start(),
                Time::FREQUENCY.end()
            ),
            Self::Pages(found, all) => {
                write!(out, "the saved VM is damaged: {found} of its {all} pages of memory are there")
            }
            Self::Short(bytes) => write!(out, "the saved VM is incomplete: it ends after {bytes} bytes"),
            Self::Surplus => out.write_str("the saved VM is damaged: there is more behind its end"),
            Self::NoMemory => out.write_str("there is no memory left for a section of the saved VM"),
        }
    }
}

impl core::error::Error for FileError {}
