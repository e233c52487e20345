//! Saved VMs as files: one exists complete, or not at all, and is checked before it is used.

use crate::compressed::{Compressor, ExpandError, Expanded};
use crate::draft::Draft;
use crate::session::HostTime;
use abi::bundle::{Doors, Time};
use abi::crc32c;
use clock::saved::Away;
use pack::Value as _;
use snapshot::file::{FileError, MAGIC, Reader, SavedMoment, Section};
use snapshot::{Decimal, Place, PlaceDifference, SavedMachine};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

mod index;

pub use index::Index;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It cannot be read or written.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else has the name of the file to be.
    #[error("{}: something that is no {what} has this name, and would be lost: name another file", .file.display())]
    InTheWay {
        /// The file.
        file: PathBuf,
        /// What may have the name.
        what: &'static str,
    },
    /// A link has that name: what is written would take its place, and what it leads to would stay.
    #[error("{}: this is a symbolic link, which would be replaced; name what it leads to", .file.display())]
    Link {
        /// The link.
        file: PathBuf,
    },
    /// What is to be read twice, and cannot be.
    #[error("{}: this is no regular file; a saved VM is looked at whole, and then read once more", .file.display())]
    NoFile {
        /// The file.
        file: PathBuf,
    },
    /// What it holds.
    #[error("{}: {error}", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: FileError,
    },
    /// It was looked at, and is another one now.
    #[error("{}: it has changed while a VM was restored from it", .file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The machine that it was saved on, or the VM itself, and those that are here.
    #[error("{0}")]
    Misfit(String),
    /// Two machines, of which one was to go on as the other.
    #[error("{0}")]
    OtherShape(String),
    /// What the hypervisor sends is no saved VM.
    #[error("what came from the hypervisor is wrong: {0}")]
    Received(#[from] FileError),
}

/// A saved VM that is being written; a file with its name only when it is whole ([`Draft`]).
#[derive(Debug)]
pub struct Writing {
    draft: Draft,
    to: PathBuf,
    bytes: u64,
    compressor: Option<Compressor>,
}

impl Writing {
    /// Begins one, to be `to`, for its owner alone: it holds all of a guest's secrets. Its memory is compressed if `compress` says so.
    ///
    /// # Errors
    /// If it cannot be made, or something that is no saved VM has this name.
    pub fn create(to: &Path, compress: bool) -> Result<Self, SavedError> {
        must_be_none_or(to, "saved VM", |begin| begin.starts_with(&MAGIC))?;
        let draft = Draft::create(to, 0o600).map_err(|source| SavedError::Io { file: to.to_path_buf(), source })?;
        Ok(Self { draft, to: to.to_path_buf(), bytes: 0, compressor: compress.then(Compressor::new) })
    }

    /// Writes more of what the hypervisor sends.
    ///
    /// # Errors
    /// If the disk is full, or the like.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SavedError> {
        let packed = self.compressor.as_mut().map(|compressor| compressor.take(bytes));
        let bytes = packed.as_deref().unwrap_or(bytes);
        self.bytes += bytes.len() as u64;
        self.draft.write_all(bytes).map_err(|source| SavedError::Io { file: self.to.clone(), source })
    }

    /// It is whole, and takes its name. Says how many bytes it has.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn keep(self) -> Result<u64, SavedError> {
        let Self { draft, to, bytes, .. } = self;
        draft.keep().map_err(|source| SavedError::Io { file: to, source })?;
        Ok(bytes)
    }
}

/// What is written may take a name that nothing has, or an empty file, or one of its kind: `what`, as its first bytes tell.
pub(crate) fn must_be_none_or(to: &Path, what: &'static str, is_one: fn(&[u8]) -> bool) -> Result<(), SavedError> {
    let Ok(found) = to.symlink_metadata() else { return Ok(()) };
    if found.is_symlink() {
        return Err(SavedError::Link { file: to.to_path_buf() });
    }
    let mut begin = Vec::new();
    let read = |file: File| file.take(64).read_to_end(&mut begin);
    let is_read = found.is_file() && File::open(to).and_then(read).is_ok();
    if is_read && (begin.is_empty() || is_one(&begin)) {
        Ok(())
    } else {
        Err(SavedError::InTheWay { file: to.to_path_buf(), what })
    }
}

/// Opens a file that may hold a saved VM. Nothing else is opened: a pipe that nobody writes into would never be.
///
/// # Errors
/// If it is not there, or no file.
pub fn open(file: &Path) -> Result<File, SavedError> {
    let wrong = |source| SavedError::Io { file: file.to_path_buf(), source };
    if !file.metadata().map_err(wrong)?.is_file() {
        return Err(SavedError::NoFile { file: file.to_path_buf() });
    }
    File::open(file).map_err(wrong)
}

/// A saved VM in a file, as the hypervisor knows it: whatever is compressed there is not.
#[derive(Debug)]
pub struct Source<'a, R> {
    expanded: Expanded<R>,
    file: &'a Path,
}

impl<'a, R: Read> Source<'a, R> {
    /// From the begin of what `from` reads, called `file` in messages.
    pub const fn new(from: R, file: &'a Path) -> Self {
        Self { expanded: Expanded::new(from), file }
    }

    /// How many bytes of the file came so far.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.expanded.taken()
    }

    /// The bytes that come next, at most so many; none at the end. What is of two sections never comes together.
    ///
    /// # Errors
    /// What is wrong with the file, or with what is compressed in it.
    pub fn next(&mut self, most: usize) -> Result<&[u8], SavedError> {
        self.expanded.next(most).map_err(|error| match error {
            ExpandError::Io(source) => SavedError::Io { file: self.file.to_path_buf(), source },
            ExpandError::Damaged(error) => SavedError::Damaged { file: self.file.to_path_buf(), error },
        })
    }
}

/// Looks at a saved VM as it comes, and keeps nothing of it but where its sections stand.
#[derive(Debug)]
pub struct Check {
    reader: Reader,
    name: String,
    rate: u32,
    doors: Doors,
    machine: Option<SavedMachine>,
    moment: Option<SavedMoment>,
    away: Away,
    counter: u64,
    index: Index,
    /// Sections that were read.
    sections: u32,
    is_whole: bool,
}

/// The longest jump of its counter, in seconds, that Linux as it comes does not take for a CPU that stood still: twice
/// `kernel.watchdog_thresh`.
const LONGEST_JUMP: u64 = 20;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The VM's name.
    pub name: String,
    file: PathBuf,
    rate: u32,
    doors: Doors,
    machine: Option<SavedMachine>,
    moment: Option<SavedMoment>,
    away: Away,
    /// The frequency of its counter.
    counter: u64,
    index: Index,
}

impl Contents {
    /// Where its memory is in the file.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// What its guest makes of the time that it was away, if it goes on on a host that says what time it is: for a guest whose counter
    /// jumps by more than Linux bears in silence, what to expect, and what to do about it.
    #[must_use]
    pub fn jump(&self, now: HostTime) -> Option<String> {
        let moment = self.moment.filter(|moment| moment.is_known && now.settable && self.away == Away::Advance)?;
        let passed = u128::from(now.microseconds.saturating_sub(moment.microseconds)) * u128::from(self.rate);
        let seconds = u64::try_from(passed / 1_000_000_000_000).ok().filter(|&seconds| seconds > LONGEST_JUMP)?;
        Some(format!(
            "{seconds} s have passed for its guest at once: Linux takes more than {LONGEST_JUMP} s for a CPU that stood still, and may \
             print a soft lockup and an RCU stall once; time.away = \"freeze\" in the site file that a VM begins with keeps its clocks still"
        ))
    }

    /// What its guest makes of the host's counter in the place that `here` describes, if it may have a wrong clock there.
    #[must_use]
    pub fn wrong_clock(&self, here: &[u8]) -> Option<String> {
        let place = Place::unpack(&mut pack::Reader::new(here)).ok().filter(|place| place.misleads(self.counter))?;
        let rate = match place.rate {
            Time::REAL => String::new(),
            rate => format!(", and its time passes at a rate of {}", Decimal(rate)),
        };
        Some(format!(
            "this CPU cannot trap CNTVCT_EL0 (no FEAT_ECV), which counts at {} Hz, while its guest's counter counts at {} Hz{rate}: a kernel that \
             takes its clock from there, as Linux does, has a wrong one; the physical counter and timer are right",
            place.counter, self.counter
        ))
    }

    /// Whether its guest finds the CPU that it knows, and the ways to call and the time that it has, in the place of the VM `name`, which
    /// `here` describes as the hypervisor did.
    ///
    /// # Errors
    /// All that it would miss, or not know.
    pub fn must_fit(&self, name: &str, here: &[u8]) -> Result<(), SavedError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let Place { machine: here, rate, doors, .. } = place_of(name, here)?;
        let file = self.file.display();
        let features = machine.features(&here).map(|feature| feature.to_string());
        let others = machine.cpu.differences(&here.cpu).map(|difference| difference.to_string());
        let differences: Vec<String> = features.chain(others).collect();
        if !differences.is_empty() {
            let all = differences.join(", ");
            return Err(SavedError::Misfit(format!("{file}: the guest knows a CPU that this is not: {all}")));
        }
        let misfit = |difference| SavedError::Misfit(format!("{file}: {name} is no place for it: {difference}"));
        machine.compare_timers(&here).map_err(|difference| misfit(difference.to_string()))?;
        PlaceDifference::compare((self.rate, &self.doors), (rate, &doors))
            .map_err(|difference| misfit(difference.to_string()))
    }
}

/// What a hypervisor says of the VM `name`.
fn place_of(name: &str, bytes: &[u8]) -> Result<Place, SavedError> {
    Place::unpack(&mut pack::Reader::new(bytes)).map_err(|error| SavedError::Misfit(format!("{name}: {error}")))
}

/// Whether two VMs of a host, each with what the hypervisor says of it, have the same machine, time and ways to call.
///
/// # Errors
/// What each has.
pub fn machines_must_agree(one: (&str, &[u8]), other: (&str, &[u8])) -> Result<(), SavedError> {
    let (vm, place) = (place_of(one.0, one.1)?, place_of(other.0, other.1)?);
    let difference = PlaceDifference::compare((vm.rate, &vm.doors), (place.rate, &place.doors));
    let (machine, place) = (vm.machine, place.machine);
    let [(vm, _), (name, _)] = [one, other];
    if machine.compare(&place).is_ok() {
        return difference.map_err(|difference| {
            SavedError::OtherShape(format!("{name} is no place for a clone of {vm}: {difference}"))
        });
    }
    if let Err(difference) = machine.compare_timers(&place) {
        let [(vm, _), (name, _)] = [one, other];
        return Err(SavedError::OtherShape(format!("{name} is no place for a clone of {vm}: {difference}")));
    }
    Err(SavedError::OtherShape(format!(
        "{name} is no place for a clone of {vm}: that has {} vCPUs, {} MiB of memory and {} devices, {name} has {}, {} and {}",
        machine.vcpus,
        machine.memory >> 20,
        machine.devices,
        place.vcpus,
        place.memory >> 20,
        place.devices
    )))
}

impl Default for Check {
    fn default() -> Self {
        Self::new()
    }
}

impl Check {
    /// Nothing has come yet.
    #[must_use]
    pub fn new() -> Self {
        let (reader, doors) = (Reader::new(crc32c::compute), Doors::default());
        let (machine, moment, away, index) = (None, None, Away::Advance, Index::default());
        let (name, sections) = (String::new(), 0);
        Self { reader, name, rate: 0, doors, machine, moment, away, counter: 0, index, sections, is_whole: false }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), FileError> {
        while let Some(section) = self.reader.read(&mut bytes)? {
            self.sections += 1;
            match section {
                Section::Vm(vm) => {
                    vm.name.clone_into(&mut self.name);
                    (self.rate, self.doors) = (vm.time.rate, vm.doors);
                }
                Section::End => self.is_whole = true,
                Section::Machine(machine) => self.machine = Some((*machine).clone()),
                Section::Moment(moment) => self.moment = Some(moment),
                Section::State(state) => (self.away, self.counter) = (state.time.away, state.time.clock.frequency),
                Section::Memory(runs) => self.index.take(runs),
            }
        }
        Ok(())
    }

    /// Whether all of it has come.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Looks at a whole file, and says what is in it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn file(from: &mut impl Read, file: &Path) -> Result<Contents, SavedError> {
        Self::file_while(from, file, |_| Ok(()))
    }

    /// As [`Check::file`], and says again and again how many bytes were looked at.
    ///
    /// # Errors
    /// As there, and what is returned for these bytes.
    pub fn file_while<E: From<SavedError>>(
        from: &mut impl Read,
        file: &Path,
        mut seen: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Contents, E> {
        let (mut check, mut source) = (Self::new(), Source::new(from, file));
        let damaged = |error| SavedError::Damaged { file: file.to_path_buf(), error };
        loop {
            match source.next(usize::MAX)? {
                [] => break,
                bytes => {
                    let before = check.sections;
                    check.take(bytes).map_err(damaged)?;
                    if check.sections > before {
                        check.index.section_ends(check.sections, source.taken());
                        seen(source.taken())?;
                    }
                }
            }
        }
        check.reader.finish().map_err(damaged)?;
        let Self { name, rate, doors, machine, moment, away, counter, index, .. } = check;
        Ok(Contents { name, file: file.to_path_buf(), rate, doors, machine, moment, away, counter, index })
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Contents, Index, SavedError, Writing, machines_must_agree, open};
    use crate::session::HostTime;
    use abi::bundle::Doors;
    use clock::saved::Away;
    use pack::Value;
    use snapshot::file::SavedMoment;
    use snapshot::{Place, SavedCpu, SavedMachine};
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for place in [&pipe, folder.path(), Path::new("/dev/null")] {
            assert!(matches!(open(place), Err(SavedError::NoFile { .. })), "{}", place.display());
        }
        assert!(matches!(open(&folder.path().join("none")), Err(SavedError::Io { .. })));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(open(&folder.path().join("file")).is_ok());
    }

    #[test]
    fn only_a_saved_vm_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.saved");
        fs::write(&file, b"UCSAVED\0 before").unwrap();
        let mut writing = Writing::create(&file, false).unwrap();
        writing.write(b"all of it").unwrap();
        assert_eq!(writing.keep().unwrap(), 9);
        assert_eq!(fs::read(&file).unwrap(), b"all of it");
        // In an empty file there is nothing to lose; a link is said to be one, wherever it leads.
        let empty = folder.path().join("empty");
        fs::write(&empty, "").unwrap();
        Writing::create(&empty, false).unwrap();
        for to in ["vm.saved", "nowhere"] {
            let link = folder.path().join(format!("to-{to}"));
            std::os::unix::fs::symlink(to, &link).unwrap();
            assert!(matches!(Writing::create(&link, false), Err(SavedError::Link { .. })), "{to}");
        }
        for taken in [folder.path(), &file] {
            assert!(matches!(Writing::create(taken, false), Err(SavedError::InTheWay { .. })), "{}", taken.display());
        }
        assert!(matches!(Writing::create(&folder.path().join("no/vm.saved"), false), Err(SavedError::Io { .. })));
    }

    /// What the site file says otherwise of two VMs is said before either is touched.
    #[test]
    fn another_rate_or_other_doors_are_no_place() {
        let of = |rate, vmware| {
            let cpu = SavedCpu::default();
            let machine = SavedMachine {
                vcpus: 1,
                memory: 2 << 20,
                devices: 3,
                memory_timer: false,
                identification: [0; 56],
                cpu,
            };
            let mut out = pack::Writer::new();
            let doors = Doors { vmware, ..Doors::default() };
            Place { machine, rate, doors, counter: 62_500_000, traps: false }.pack(&mut out);
            out.finish().unwrap()
        };
        let (vm, slow, open) = (of(1_000_000, false), of(500_000, false), of(1_000_000, true));
        let refusal = |place: &[u8]| machines_must_agree(("web", &vm), ("db", place)).unwrap_err().to_string();
        assert!(machines_must_agree(("web", &vm), ("db", &vm)).is_ok());
        let said = "db is no place for a clone of web: its time passes at a rate of 1.0, here at 0.5: time.rate in the site file \
                    must be the same";
        assert_eq!(refusal(&slow), said);
        assert!(refusal(&open).starts_with("db is no place for a clone of web: it calls its hypervisor in other ways"));
        let mut machine = Place::unpack(&mut pack::Reader::new(&vm)).unwrap().machine;
        // Before its devices are counted.
        (machine.memory_timer, machine.devices) = (true, 4);
        let with_timer = Contents { machine: Some(machine.clone()), ..saved_at(None, Away::Advance) };
        let said = with_timer.must_fit("db", &vm).unwrap_err().to_string();
        assert!(said.contains("db is no place for it: its guest has the memory-mapped timer alone"), "{said}");
        assert!(said.contains("time.source = \"mmio\""), "{said}");
        (machine.memory_timer, machine.devices) = (false, 3);
        let found = Contents { machine: Some(machine), ..saved_at(None, Away::Advance) };
        assert!(found.must_fit("db", &vm).is_ok());
        let said = found.wrong_clock(&vm).unwrap();
        assert!(said.contains("counts at 62500000 Hz, while its guest's counter counts at 24000000 Hz: a"), "{said}");
        let said = Contents { counter: 62_500_000, ..found.clone() }.wrong_clock(&slow).unwrap();
        assert!(said.contains("counts at 62500000 Hz, and its time passes at a rate of 0.5: a"), "{said}");
        assert_eq!(Contents { counter: 62_500_000, ..found.clone() }.wrong_clock(&vm), None);
        let said = found.must_fit("db", &slow).unwrap_err().to_string();
        assert!(
            said.starts_with("web.saved: db is no place for it: its time passes at a rate of 1.0, here at 0.5"),
            "{said}"
        );
    }

    fn saved_at(moment: Option<SavedMoment>, away: Away) -> Contents {
        let (name, file) = ("web".to_owned(), Path::new("web.saved").to_path_buf());
        let (doors, index) = (Doors::default(), Index::default());
        Contents { name, file, rate: 1_000_000, doors, machine: None, moment, away, counter: 24_000_000, index }
    }

    #[test]
    fn a_long_jump_of_a_guests_counter_is_told() {
        let known = SavedMoment { microseconds: 1_000_000_000, is_known: true };
        let now = |seconds| HostTime { microseconds: seconds * 1_000_000, settable: true };
        let saved = saved_at(Some(known), Away::Advance);
        assert_eq!((saved.jump(now(900)), saved.jump(now(1_020))), (None, None));
        let told = saved.jump(now(1_021)).unwrap();
        assert!(
            told.starts_with("21 s have passed for its guest") && told.contains("time.away = \"freeze\""),
            "{told}"
        );
        // Half as fast, half as much.
        let slow = Contents { rate: 500_000, ..saved.clone() };
        assert_eq!(slow.jump(now(1_041)), None);
        assert!(slow.jump(now(1_042)).unwrap().starts_with("21 s"));
        // Where no clock tells, or the guest's stand still, nothing jumps.
        let others =
            [None, Some(SavedMoment { is_known: false, ..known })].map(|moment| saved_at(moment, Away::Advance));
        for quiet in others.iter().chain([&saved_at(Some(known), Away::Freeze)]) {
            assert_eq!(quiet.jump(now(u64::MAX / 1_000_000)), None, "{quiet:?}");
        }
        assert_eq!(saved.jump(HostTime { settable: false, ..now(5_000) }), None);
    }

    #[test]
    fn what_is_no_saved_vm_is_said_to_be_none() {
        let path = Path::new("vm.saved");
        let look = |bytes: &[u8]| Check::file(&mut &*bytes, path).unwrap_err().to_string();
        assert_eq!(look(b""), "vm.saved: this is no saved VM; `croft save VM FILE` makes one");
        assert_eq!(look(&[0x7f; 100]), "vm.saved: this is no saved VM; `croft save VM FILE` makes one");
    }
}
