//! A VM as an ELF core, which `gdb` and `crash` open: its memory by guest-physical addresses, and the registers of its vCPUs.
//!
//! It is made from a saved VM (`docs/formats/snapshot.md`) as that arrives, page by page; the format is in `docs/formats/dump.md`.
//! The beginning of a core is known only when all of memory has arrived, because one note is made from a page of it. So room is left
//! for it, and memory is written after that at once. Zeros are not written at all: the file has holes there. Some bytes of a saved VM
//! may stand for gigabytes of one word, so at most [`AT_ONCE`] pages are written at a time: whoever sends the saved VM waits
//! meanwhile, and has to hear that the rest is still wanted.
//!
//! The order of the headers, the note first and one segment directly after it without an alignment, is what `crash` insists on.

use crate::draft::Draft;
use crate::saved::{self, SavedError, Source};
use crate::size;
use abi::crc32c;
use cpu::pstate::{Mode, mode};
use cpu::saved::{Name, SavedRegisters};
use machine::RAM_BASE;
use pack::Boxed;
use snapshot::file::{Content, FileError, PAGE, Reader, Run, Section};
use snapshot::{SavedVcpu, SavedVm};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of an ELF header, and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// A core for AArch64: 64 bits, little-endian, ELF's version.
const IDENTITY: [u8; 16] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ET_CORE: u16 = 4;
const EM_AARCH64: u16 = 183;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_RWX: u32 = 7;

/// Linux's notes of a process that has ended (`include/uapi/linux/elfcore.h`): a thread's registers, its FP registers, its name.
const NT_PRSTATUS: u32 = 1;
const NT_PRFPREG: u32 = 2;
const NT_PRPSINFO: u32 = 3;
/// The note that Linux keeps for whoever reads its memory.
const NT_VMCOREINFO: u32 = 0;
/// A note's head and its name, of up to eight and of up to twelve bytes.
const NOTE_HEAD: usize = 12 + 8;
const INFO_HEAD: usize = 12 + 12;
/// `struct elf_prstatus`, with `pr_pid`, `pr_reg` and `pr_fpvalid` in it.
const STATUS: usize = 392;
const STATUS_PID: usize = 32;
const STATUS_REGISTERS: usize = 112;
const STATUS_FP_VALID: usize = 384;
/// `struct user_fpsimd_state`.
const FP: usize = 528;
/// `struct elf_prpsinfo`, with `pr_fname` and `pr_psargs` in it.
const PROCESS: usize = 136;
const PROCESS_NAME: (usize, usize) = (40, 15);
const PROCESS_ARGUMENTS: (usize, usize) = (56, 79);

/// What a page with Linux's own description of itself begins with (`kernel/vmcore_info.c`), and what is in each of them.
const INFO_BEGIN: &[u8] = b"OSRELEASE=";
const INFO_LINE: &[u8] = b"\nPAGESIZE=";

/// So many pages are written in one go, at most: on a slow disk that takes some seconds.
const AT_ONCE: u64 = 4096;

/// How much of what has come is in the core by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Written {
    /// All of it.
    All,
    /// There is more to write than was written now.
    More,
}

/// What a core is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// The VM's name.
    pub name: String,
    /// How many vCPUs have registers in it: those that were on.
    pub vcpus: usize,
    /// Bytes of memory.
    pub memory: u64,
}

impl Dumped {
    /// What became of it, in a line.
    #[must_use]
    pub fn show(&self, file: &Path) -> String {
        let Self { vcpus, memory, .. } = self;
        let plural = if *vcpus == 1 { "" } else { "s" };
        format!("dumped to {}, {vcpus} vCPU{plural} and {} of memory", file.display(), size::show(*memory))
    }
}

/// A core that is being written: a file with its name only when it is whole ([`Draft`]).
#[derive(Debug)]
pub struct Dumping {
    dump: Dump<Draft>,
    to: PathBuf,
    /// The file that the saved VM is in; without one it comes from the hypervisor.
    from: Option<PathBuf>,
}

impl Dumping {
    /// Begins one, to be `to`, for its owner alone: it holds all of a guest's secrets.
    ///
    /// # Errors
    /// If it cannot be made, or something that is no core has this name.
    pub fn create(to: &Path, from: Option<&Path>) -> Result<Self, SavedError> {
        saved::must_be_none_or(to, "core", is_core)?;
        let draft = Draft::create(to, 0o600).map_err(|source| SavedError::Io { file: to.to_path_buf(), source })?;
        Ok(Self { dump: Dump::new(draft), to: to.to_path_buf(), from: from.map(Path::to_path_buf) })
    }

    /// Takes the next bytes of the saved VM, which may be none: what came before is written on then.
    ///
    /// # Errors
    /// What is wrong with them, or that the core cannot be written.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Written, SavedError> {
        self.dump.take(bytes).map_err(|error| self.wrong(error))
    }

    /// Whether all of the saved VM has come.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.dump.is_whole
    }

    /// It takes its name, if it is whole. Says what it is of.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn keep(self) -> Result<Dumped, SavedError> {
        self.dump.reader.finish().map_err(|error| self.wrong(DumpError::Saved(error)))?;
        let Self { dump: Dump { out: Core { to: draft, dumped, .. }, .. }, to, .. } = self;
        draft.keep().map_err(|source| SavedError::Io { file: to, source })?;
        Ok(dumped)
    }

    fn wrong(&self, error: DumpError) -> SavedError {
        match (error, &self.from) {
            (DumpError::Core(source), _) => SavedError::Io { file: self.to.clone(), source },
            (DumpError::Saved(error), None) => SavedError::Received(error),
            (DumpError::Saved(error), Some(file)) => SavedError::Damaged { file: file.clone(), error },
        }
    }
}

/// Makes a core of a file with a saved VM.
///
/// # Errors
/// What is wrong with either.
pub fn file(from: &Path, to: &Path) -> Result<Dumped, SavedError> {
    let unreadable = |source| SavedError::Io { file: from.to_path_buf(), source };
    let mut source = Source::new(File::open(from).map_err(unreadable)?, from);
    let mut dumping = Dumping::create(to, Some(from))?;
    loop {
        let mut bytes = source.next(usize::MAX)?;
        if bytes.is_empty() {
            return dumping.keep();
        }
        while dumping.take(bytes)? == Written::More {
            bytes = &[];
        }
    }
}

/// A core that is being written to `W`, which is empty.
#[derive(Debug)]
struct Dump<W> {
    out: Core<W>,
    reader: Reader,
    /// What has come and was not read yet.
    input: Vec<u8>,
    is_whole: bool,
}

/// What is written of it.
#[derive(Debug)]
struct Core<W> {
    to: W,
    dumped: Dumped,
    /// Where memory begins in the file, and behind which of its bytes nothing is written yet.
    begin: u64,
    end: u64,
    /// Pages of the last section that are still to be written.
    rest: Vec<Rest>,
    /// How many vCPUs there is room for.
    room: usize,
    state: Option<Boxed<SavedVm>>,
    info: Vec<u8>,
}

/// Pages that hold the same.
#[derive(Debug)]
struct Rest {
    next: u64,
    count: u64,
    page: Box<[u8; PAGE]>,
}

/// Why it cannot be made: the saved VM, or the core.
#[derive(Debug)]
enum DumpError {
    Saved(FileError),
    Core(io::Error),
}

impl From<FileError> for DumpError {
    fn from(error: FileError) -> Self {
        Self::Saved(error)
    }
}

impl From<io::Error> for DumpError {
    fn from(error: io::Error) -> Self {
        Self::Core(error)
    }
}

impl<W: Write + Seek> Dump<W> {
    fn new(to: W) -> Self {
        let (dumped, info) = (Dumped::default(), Vec::new());
        let out = Core { to, dumped, begin: 0, end: 0, rest: Vec::new(), room: 0, state: None, info };
        Self { out, reader: Reader::new(crc32c::compute), input: Vec::new(), is_whole: false }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Written, DumpError> {
        self.input.extend_from_slice(bytes);
        let mut left = AT_ONCE;
        loop {
            self.out.write_on(&mut left)?;
            if left == 0 {
                return Ok(Written::More);
            }
            let mut unread = &*self.input;
            let read = self.reader.read(&mut unread)?;
            let taken = self.input.len() - unread.len();
            self.input.drain(..taken);
            let Some(section) = read else { return Ok(Written::All) };
            match section {
                Section::Vm(vm) => self.out.begin(vm.name, vm.vcpus.into(), vm.memory),
                Section::Memory(runs) => {
                    for run in runs {
                        self.out.memory(&run);
                    }
                }
                Section::State(state) => self.out.state = Some(state),
                Section::End => {
                    self.out.finish()?;
                    self.is_whole = true;
                }
                Section::Machine(_) | Section::Moment(_) => {}
            }
        }
    }
}

impl<W: Write + Seek> Core<W> {
    fn begin(&mut self, name: &str, vcpus: usize, memory: u64) {
        let notes = NOTE_HEAD + PROCESS + vcpus * (NOTE_HEAD + STATUS + NOTE_HEAD + FP) + INFO_HEAD + PAGE;
        self.begin = (HEADER + 2 * PROGRAM_HEADER + notes).next_multiple_of(PAGE) as u64;
        self.room = vcpus;
        self.dumped = Dumped { name: name.to_owned(), vcpus: 0, memory };
    }

    /// Takes note of pages that are to be written.
    fn memory(&mut self, run: &Run<'_>) {
        let mut page = Box::new([0; PAGE]);
        match run.content {
            Content::Fill(0) => return,
            Content::Fill(word) => page.as_chunks_mut::<8>().0.fill(word.to_le_bytes()),
            Content::Page(bytes) => *page = *bytes,
        }
        // Behind the guest's memory is what it has written to disks, which it cannot address.
        let all = self.dumped.memory / PAGE as u64;
        let count = run.count.min(all.saturating_sub(run.first));
        if count == 0 {
            return;
        }
        if self.info.is_empty() {
            self.info = info(&page).unwrap_or_default().to_vec();
        }
        self.end = (run.first + count) * PAGE as u64;
        self.rest.push(Rest { next: run.first, count, page });
    }

    /// Writes what is noted, at most as many pages as are left.
    fn write_on(&mut self, left: &mut u64) -> io::Result<()> {
        while let Some(rest) = self.rest.last_mut().filter(|_| *left > 0) {
            self.to.seek(SeekFrom::Start(self.begin + rest.next * PAGE as u64))?;
            let count = rest.count.min(*left);
            for _ in 0..count {
                self.to.write_all(&*rest.page)?;
            }
            rest.next += count;
            rest.count -= count;
            *left -= count;
            if rest.count == 0 {
                self.rest.pop();
            }
        }
        Ok(())
    }

    /// Memory has ended: the notes, and all that a core begins with.
    fn finish(&mut self) -> io::Result<()> {
        if self.end < self.dumped.memory {
            // The file is as long as it says, with a hole there.
            self.to.seek(SeekFrom::Start(self.begin + self.dumped.memory - 1))?;
            self.to.write_all(&[0])?;
        }
        let mut notes = Vec::new();
        note(&mut notes, b"CORE", NT_PRPSINFO, &process(&self.dumped.name));
        // A state may name more than there are; those it cannot be restored with.
        for vcpu in self.state.iter().flat_map(|state| &state.vcpus).take(self.room) {
            note(&mut notes, b"CORE", NT_PRSTATUS, &status(vcpu));
            note(&mut notes, b"CORE", NT_PRFPREG, &fp(&vcpu.registers));
            self.dumped.vcpus += 1;
        }
        if !self.info.is_empty() {
            note(&mut notes, b"VMCOREINFO", NT_VMCOREINFO, &self.info);
        }
        let place = HEADER + 2 * PROGRAM_HEADER;
        let mut head = Vec::new();
        head.extend(IDENTITY);
        head.extend([ET_CORE.to_le_bytes(), EM_AARCH64.to_le_bytes()].concat());
        head.extend(1_u32.to_le_bytes());
        // No entry; program headers behind this; no sections.
        head.extend([0, HEADER as u64, 0].map(u64::to_le_bytes).concat());
        head.extend(0_u32.to_le_bytes());
        head.extend([HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        let notes_size = notes.len() as u64;
        program_header(&mut head, (PT_NOTE, 0), place as u64, 0, notes_size);
        program_header(&mut head, (PT_LOAD, PF_RWX), self.begin, RAM_BASE.0, self.dumped.memory);
        head.extend(notes);
        self.to.seek(SeekFrom::Start(0))?;
        self.to.write_all(&head)
    }
}

fn program_header(out: &mut Vec<u8>, (kind, flags): (u32, u32), offset: u64, address: u64, size: u64) {
    out.extend([kind, flags].map(u32::to_le_bytes).concat());
    // Its virtual address is the physical one; as many bytes in the file as in memory; no alignment.
    out.extend([offset, address, address, size, size, 0].map(u64::to_le_bytes).concat());
}

fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, contents: &[u8]) {
    out.extend([name.len() as u32 + 1, contents.len() as u32, kind].map(u32::to_le_bytes).concat());
    for part in [[name, &[0]].concat().as_slice(), contents] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

fn put(out: &mut [u8], place: usize, bytes: &[u8]) {
    out.iter_mut().skip(place).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// The VM as if it were a process, of which debuggers show the name.
fn process(name: &str) -> [u8; PROCESS] {
    let mut bytes = [0; PROCESS];
    for (place, length) in [PROCESS_NAME, PROCESS_ARGUMENTS] {
        put(&mut bytes, place, name.as_bytes().get(..length.min(name.len())).unwrap_or_default());
    }
    bytes
}

/// A vCPU as if it were a thread, with its number from 1.
fn status(vcpu: &SavedVcpu) -> [u8; STATUS] {
    let SavedVcpu { number, registers, .. } = vcpu;
    let mut bytes = [0; STATUS];
    put(&mut bytes, STATUS_PID, &(u32::from(*number) + 1).to_le_bytes());
    let values = registers.x.into_iter().chain([stack_pointer(registers), registers.pc, registers.pstate]);
    for (place, value) in (STATUS_REGISTERS..).step_by(8).zip(values) {
        put(&mut bytes, place, &value.to_le_bytes());
    }
    put(&mut bytes, STATUS_FP_VALID, &1_u32.to_le_bytes());
    bytes
}

/// The stack pointer that it was using.
fn stack_pointer(registers: &SavedRegisters) -> u64 {
    let wanted = Name::new(if mode(registers.pstate) == Mode::Kernel { "sp_el1" } else { "sp_el0" });
    registers.system.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, value)| *value)
}

fn fp(registers: &SavedRegisters) -> [u8; FP] {
    let mut bytes = [0; FP];
    for (place, half) in (0..).step_by(8).zip(registers.q.as_flattened()) {
        put(&mut bytes, place, &half.to_le_bytes());
    }
    // 32 bits of each.
    let controls = [registers.fpsr as u32, registers.fpcr as u32].map(u32::to_le_bytes);
    put(&mut bytes, 512, &controls.concat());
    bytes
}

/// What Linux says of itself in a page that it keeps for that, if this is one: `crash` needs it to find its way from a kernel's
/// virtual addresses to physical ones.
fn info(page: &[u8; PAGE]) -> Option<&[u8]> {
    let text = page.split(|&byte| byte == 0).next()?;
    let is_text = text.iter().all(|&byte| byte == b'\n' || byte.is_ascii_graphic() || byte == b' ');
    let is_info = text.starts_with(INFO_BEGIN) && text.windows(INFO_LINE.len()).any(|bytes| bytes == INFO_LINE);
    (is_info && is_text).then_some(text)
}

/// Whether a file that begins so is a core of AArch64.
fn is_core(begin: &[u8]) -> bool {
    let kind = [ET_CORE.to_le_bytes(), EM_AARCH64.to_le_bytes()].concat();
    begin.starts_with(&[IDENTITY.as_slice(), &kind].concat())
}
