//! A file that is being read, as its bytes come.

use alloc::vec::Vec;

use abi::Crc32c;
use abi::bundle::{Blob, SECTOR, Time, check_vm};
use clock::saved::Clock;
use pack::{Boxed, Damaged, Value};
use units::PAGE_SIZE;

use super::memory::Memory;
use super::{BY_PIECES, Description, FileError, HEAD, HEADER, IN_ORDER, Kind, MAGIC, SavedMoment, VERSION};
use crate::{SavedMachine, SavedVm, bounds};

/// What was read.
#[derive(Clone, Debug)]
pub enum Section<'a> {
    /// What the VM is.
    Vm(Boxed<Description<'a>>),
    /// The machine that the state belongs to, with what its guest knows of the CPU.
    Machine(Boxed<SavedMachine>),
    /// When it was taken.
    Moment(SavedMoment),
    /// The state.
    State(Boxed<SavedVm>),
    /// Pages of memory, which follow those of the section before.
    Memory(Memory<'a>),
    /// It is whole, and what was read is what was written.
    End,
}

/// What comes next in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Header,
    Head,
    /// The body of a section, with this checksum.
    Body(Kind, u32),
    Nothing,
}

/// What is known of the VM once its description has come.
#[derive(Clone, Copy, Debug)]
struct Known {
    vcpus: u8,
    memory: u64,
    /// How many bytes are behind that: what is written to its disks.
    changes: u64,
    /// How fast its time passes, in millionths of real time.
    rate: u32,
    /// The most bytes that its state has.
    state: usize,
}

impl Known {
    const fn pages(&self) -> u64 {
        (self.memory + self.changes) / PAGE_SIZE
    }

    fn is_of(&self, machine: &SavedMachine) -> bool {
        (self.vcpus, self.memory) == (machine.vcpus, machine.memory)
    }

    /// By the description it is found out whether the VM's time is what a site file says; the guest goes by the clock.
    fn look_at_clock(&self, clock: &Clock) -> Result<(), FileError> {
        if clock.rate != self.rate {
            return Err(FileError::Rate(clock.rate, self.rate));
        }
        let is_one = u32::try_from(clock.frequency).is_ok_and(|hertz| Time::FREQUENCY.contains(&hertz));
        if is_one { Ok(()) } else { Err(FileError::Frequency(clock.frequency)) }
    }
}

/// Reads a file from bytes as they come.
#[derive(Debug)]
pub struct Reader {
    crc32c: Crc32c,
    next: Next,
    /// What is there of it, and how many bytes it has.
    buffer: Vec<u8>,
    wanted: usize,
    /// Bytes that were taken so far.
    taken: u64,
    before: Option<Kind>,
    sections: u32,
    vm: Option<Known>,
    pages: u64,
    is_handed_out: bool,
    /// It may be a stream whose memory comes by pieces, and whether it is one.
    takes_pieces: bool,
    is_by_pieces: bool,
    failed: Option<FileError>,
}

impl Reader {
    /// Of a file of which nothing was read yet.
    #[must_use]
    pub const fn new(crc32c: Crc32c) -> Self {
        Self {
            crc32c,
            next: Next::Header,
            buffer: Vec::new(),
            wanted: HEADER,
            taken: 0,
            before: None,
            sections: 0,
            vm: None,
            pages: 0,
            is_handed_out: false,
            takes_pieces: false,
            is_by_pieces: false,
            failed: None,
        }
    }

    /// As [`Reader::new`], of a file or of a stream whose memory comes by pieces in any order ([`super::Pieces`]). That each comes
    /// once is for the caller to see to.
    #[must_use]
    pub fn of_stream(crc32c: Crc32c) -> Self {
        Self { takes_pieces: true, ..Self::new(crc32c) }
    }

    /// Whether it is such a stream; known once something was read.
    #[must_use]
    pub const fn is_by_pieces(&self) -> bool {
        self.is_by_pieces
    }

    /// How many pages of memory were read so far.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// How many sections were read so far.
    #[must_use]
    pub const fn sections(&self) -> u32 {
        self.sections
    }

    /// Takes bytes from the begin of `input` until a section is whole, or all; `None` if more have to come for that.
    ///
    /// # Errors
    /// What is wrong with the file. It is the answer from then on.
    pub fn read<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Section<'a>>, FileError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.advance(input) {
            Ok(None) => return Ok(None),
            Ok(Some(_)) => {}
            Err(error) => {
                self.failed = Some(error);
                return Err(error);
            }
        }
        self.is_handed_out = true;
        self.wanted = HEAD;
        self.next = if self.before == Some(Kind::End) { Next::Nothing } else { Next::Head };
        let section = interpret(self.before, &self.buffer, &mut self.vm, (&mut self.pages, self.is_by_pieces));
        if let Err(error) = &section {
            self.failed = Some(*error);
        }
        section.map(Some)
    }

    /// There is nothing more to come.
    ///
    /// # Errors
    /// If there should have been.
    pub fn finish(&self) -> Result<(), FileError> {
        match (self.failed, self.next) {
            (Some(error), _) => Err(error),
            (None, Next::Nothing) => Ok(()),
            (None, Next::Header) if self.taken < MAGIC.len() as u64 => Err(FileError::NoSnapshot),
            (None, _) => Err(FileError::Short(self.taken)),
        }
    }

    /// Takes bytes until a body is there, whose checksum is right.
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Kind>, FileError> {
        loop {
            if matches!(self.next, Next::Nothing) {
                return if input.is_empty() { Ok(None) } else { Err(FileError::Surplus) };
            }
            // A body stays until the next look. That of a state is large, and no other is.
            if core::mem::take(&mut self.is_handed_out) {
                self.buffer.clear();
                if self.before == Some(Kind::State) {
                    self.buffer = Vec::new();
                }
            }
            let count = (self.wanted - self.buffer.len()).min(input.len());
            let (bytes, rest) = input.split_at_checked(count).unwrap_or_default();
            self.buffer.try_reserve(count).map_err(|_| FileError::NoMemory)?;
            self.buffer.extend_from_slice(bytes);
            self.taken += count as u64;
            *input = rest;
            if self.buffer.len() < self.wanted {
                return Ok(None);
            }
            match self.next {
                Next::Header => self.look_at_header()?,
                Next::Head => self.look_at_head()?,
                Next::Body(kind, checksum) => {
                    if (self.crc32c)(0, &self.buffer) != checksum {
                        return Err(FileError::Body(kind.name(), self.sections - 1));
                    }
                    return Ok(Some(kind));
                }
                Next::Nothing => return Ok(None),
            }
            // Header and heads are used up; a body of no bytes is whole at once.
            self.buffer.clear();
        }
    }

    fn field<const COUNT: usize>(&self, place: usize) -> [u8; COUNT] {
        self.buffer.get(place..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; COUNT])
    }

    fn look_at_header(&mut self) -> Result<(), FileError> {
        if self.field(0) != MAGIC {
            return Err(FileError::NoSnapshot);
        }
        let checksum = (self.crc32c)(0, self.buffer.get(..12).unwrap_or_default());
        let order = self.field(10);
        self.is_by_pieces = self.takes_pieces && order == BY_PIECES;
        if checksum != u32::from_le_bytes(self.field(12)) || order != IN_ORDER && !self.is_by_pieces {
            return Err(FileError::Header);
        }
        let version = u16::from_le_bytes(self.field(8));
        if version != VERSION {
            return Err(FileError::Version(version));
        }
        self.next = Next::Head;
        self.wanted = HEAD;
        Ok(())
    }

    fn look_at_head(&mut self) -> Result<(), FileError> {
        let number = self.sections;
        let checksum = (self.crc32c)(0, self.buffer.get(..28).unwrap_or_default());
        let is_whole = checksum == u32::from_le_bytes(self.field(28)) && self.field(14) == [0; 2];
        if !is_whole {
            return Err(FileError::Head(number));
        }
        let kind = Kind::named(&self.field::<12>(0)).ok_or(FileError::Unknown(number))?;
        if u32::from_le_bytes(self.field(24)) != number || !kind.may_follow(self.before) {
            return Err(FileError::Misplaced(kind.name(), number));
        }
        let version = u16::from_le_bytes(self.field(12));
        if version != kind.version() {
            return Err(FileError::SectionVersion(kind.name(), version, kind.version()));
        }
        let length = u32::from_le_bytes(self.field(16)) as usize;
        let most = if kind == Kind::State { self.vm.map_or(0, |vm| vm.state) } else { kind.most() };
        if length > most {
            return Err(FileError::Long(kind.name()));
        }
        let pages = self.vm.map_or(0, |vm| vm.pages());
        if kind == Kind::End && self.pages != pages {
            return Err(FileError::Pages(self.pages, pages));
        }
        self.before = Some(kind);
        self.sections += 1;
        self.next = Next::Body(kind, u32::from_le_bytes(self.field(20)));
        self.wanted = length;
        // All of it at once, and no more: a buffer that grows takes more than what is in it.
        self.buffer.clear();
        self.buffer.try_reserve_exact(length).map_err(|_| FileError::NoMemory)
    }
}

/// What is in a body that came well, of a VM of which so much is known.
#[inline(never)]
fn interpret<'a>(
    kind: Option<Kind>,
    body: &'a [u8],
    vm: &mut Option<Known>,
    (pages, is_by_pieces): (&mut u64, bool),
) -> Result<Section<'a>, FileError> {
    let Some(kind) = kind else { return Err(FileError::Header) };
    let section = match kind {
        Kind::Vm => description(body)?.map(|found| {
            let state = bounds::of_state(found.vcpus, &found.doors);
            let changes = found.disks.changes();
            *vm = Some(Known { vcpus: found.vcpus, memory: found.memory, changes, rate: found.time.rate, state });
            Section::Vm(found)
        }),
        Kind::Machine => machine(body)?.filter(|machine| vm.is_some_and(|vm| vm.is_of(machine))).map(Section::Machine),
        Kind::Moment => unpacked(body).map(Section::Moment),
        Kind::Memory => {
            let all = vm.map_or(0, |vm| vm.pages());
            let parsed = if is_by_pieces {
                Memory::parse_piece(body, all)?.map(|(memory, count)| (memory, pages.saturating_add(count)))
            } else {
                Memory::parse(body, *pages, all)?
            };
            parsed.map(|(memory, end)| {
                *pages = end;
                Section::Memory(memory)
            })
        }
        Kind::State => {
            let state = state(body)?;
            let known = vm.filter(|vm| vm.is_of(&state.machine)).ok_or(FileError::Impossible(kind.name()))?;
            known.look_at_clock(&state.time.clock)?;
            Some(Section::State(state))
        }
        Kind::End => (body == pages.to_le_bytes()).then_some(Section::End),
    };
    section.ok_or(FileError::Impossible(kind.name()))
}

// Each of the large ones has a frame of its own on the stack, which is gone when it is in its box: the hypervisor's threads have
// small ones.

#[inline(never)]
fn description(body: &[u8]) -> Result<Option<Boxed<Description<'_>>>, FileError> {
    describe(body).map(Boxed::new).transpose().map_err(|_| FileError::NoMemory)
}

#[inline(never)]
fn machine(body: &[u8]) -> Result<Option<Boxed<SavedMachine>>, FileError> {
    unpacked(body).map(Boxed::new).transpose().map_err(|_| FileError::NoMemory)
}

#[inline(never)]
fn state(body: &[u8]) -> Result<Boxed<SavedVm>, FileError> {
    SavedVm::from_bytes(body).and_then(Boxed::new).map_err(|damaged| match damaged {
        Damaged::NoMemory => FileError::NoMemory,
        _ => FileError::State(damaged),
    })
}

/// A description of a VM as there can be one, in the only form that is written.
#[inline(never)]
fn describe(bytes: &[u8]) -> Option<Description<'_>> {
    let vm = postcard::from_bytes::<Description<'_>>(bytes).ok()?;
    let no_file = Blob { offset: 0, length: 0, crc32c: 0 };
    // A disk has a sector at least.
    let disks = vm.disks.with(|text| *text, |()| Blob { length: SECTOR, ..no_file });
    check_vm(&vm.with(|text| *text, no_file, None, None, disks)).ok()?;
    let mut again = [0; Kind::Vm.most()];
    let again = postcard::to_slice(&vm, &mut again).ok()?;
    (*again == *bytes).then_some(vm)
}

fn unpacked<T: Value>(bytes: &[u8]) -> Option<T> {
    let mut from = pack::Reader::new(bytes);
    let value = T::unpack(&mut from).ok()?;
    (from.left() == 0).then_some(value)
}
