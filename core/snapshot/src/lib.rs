//! A VM as one value: all that its guest can see of the machine beside its memory, taken out of a paused VM and put into one.
//!
//! Each part has its own saved type, beside the part; here they come together as [`SavedVm`], with the machine that
//! they belong to, so that a machine of another shape refuses the state. It is written as one section that contains the
//! others (`docs/formats/saved-vm.md`).
//!
//! With what the VM is, and its memory, it is a file ([`file`]).
//!
//! Devices are kept as the bytes that each of them wrote, in the order of the machine's plan: only the device itself
//! can read them.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bounds;
mod cpu_difference;
pub mod file;
mod place;

use alloc::vec::Vec;
use core::fmt;

pub use cpu_difference::{CpuDifference, SavedCpu};
pub use place::{Decimal, Place, PlaceDifference};

use clock::saved::{Away, Clock, Timer};
use cpu::id;
use cpu::saved::SavedRegisters;
use pack::{Boxed, Damaged, Part, Reader, Value, Writer, value};
use units::MAX_VCPUS;
use vm::{SavedLife, SavedWatchdogs};
use vmware::saved::SavedService;

/// The machine that a state belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedMachine {
    /// How many vCPUs it has.
    pub vcpus: u8,
    /// How many bytes of memory.
    pub memory: u64,
    /// How many devices its plan has.
    pub devices: u32,
    /// Its guest was told of the memory-mapped timer alone, which is one of them, and of none of the CPU's.
    pub memory_timer: bool,
    /// The identification registers as its guest reads them.
    pub identification: [u64; id::COUNT],
    /// What else its guest knows of the CPU.
    pub cpu: SavedCpu,
}

impl SavedMachine {
    /// The version of this type, and of its section in a file: another one means another set of fields, or another meaning. 2: more
    /// of the CPU. 3: which timers its guest was told of.
    pub const VERSION: u16 = 3;
}

value!(SavedMachine as "machine" { vcpus, memory, devices, memory_timer, identification, cpu });

/// A VM's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedTime {
    /// What its counters show.
    pub clock: Clock,
    /// What it makes of the time until it is restored.
    pub away: Away,
}

impl SavedTime {
    /// The version of this type, beside that of the clock. 3: what the virtual counter showed.
    pub const VERSION: u16 = 3;
}

value!(SavedTime as "time" { clock, away });

/// A vCPU that is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedVcpu {
    /// Which one.
    pub number: u8,
    /// Its registers.
    pub registers: SavedRegisters,
    /// The EL1 physical timer. The virtual one is among the registers.
    pub physical_timer: Timer,
    /// For how long others had the CPU that it wanted, in ticks of the host on which it was saved.
    pub stolen: u64,
    /// How many of those that host had in a second.
    pub stolen_frequency: u64,
}

impl SavedVcpu {
    /// The version of this type, beside that of the registers.
    pub const VERSION: u16 = 1;

    /// The stolen time in ticks of a host that has so many in a second; never less than it was.
    #[must_use]
    pub fn stolen_here(&self, frequency: u64) -> u64 {
        let ticks = u128::from(self.stolen) * u128::from(frequency);
        // A file may say anything: a frequency of zero too.
        u64::try_from(ticks.div_ceil(u128::from(self.stolen_frequency.max(1)))).unwrap_or(u64::MAX)
    }
}

/// The registers are a section within that of their vCPU.
impl Value for SavedVcpu {
    fn pack(&self, out: &mut Writer) {
        let Self { number, registers, physical_timer, stolen, stolen_frequency } = self;
        number.pack(out);
        out.part(registers);
        physical_timer.pack(out);
        stolen.pack(out);
        stolen_frequency.pack(out);
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(Self {
            number: Value::unpack(from)?,
            registers: from.part()?,
            physical_timer: Value::unpack(from)?,
            stolen: Value::unpack(from)?,
            stolen_frequency: Value::unpack(from)?,
        })
    }
}

impl Part for SavedVcpu {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = Self::VERSION;
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedVm {
    /// What machine it is.
    pub machine: Boxed<SavedMachine>,
    /// Its clock.
    pub time: SavedTime,
    /// Which vCPUs are on, and which are about to be.
    pub life: SavedLife,
    /// Its interrupt controller.
    pub gic: Boxed<vgic::saved::Saved>,
    /// Those of its vCPUs that have registers: all that have begun and not ended.
    pub vcpus: Vec<SavedVcpu>,
    /// The sections of its devices, in the order of the plan.
    pub devices: Vec<u8>,
    /// Its watchdogs.
    pub watchdogs: SavedWatchdogs,
    /// VMware's service, where that door is open.
    pub calls: Option<Boxed<SavedService>>,
}

impl SavedVm {
    /// The version of the whole, and of its section in a file: of which parts it has, and in which order.
    pub const VERSION: u16 = 1;

    /// As bytes.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Damaged> {
        let mut out = Writer::new();
        out.part(self);
        out.finish()
    }

    /// From bytes, all of them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut from = Reader::new(bytes);
        // As it came: see `Reader::part`.
        let vm = from.part();
        if vm.is_ok() && from.left() > 0 {
            return Err(Damaged::Long(Self::NAME));
        }
        vm
    }
}

impl Value for SavedVm {
    fn pack(&self, out: &mut Writer) {
        let Self { machine, time, life, gic, vcpus, devices, watchdogs, calls } = self;
        out.part(&**machine);
        out.part(time);
        out.part(life);
        out.part(&**gic);
        (vcpus.len() as u8).pack(out);
        vcpus.iter().for_each(|vcpu| out.part(vcpu));
        out.list(devices);
        out.part(watchdogs);
        calls.is_some().pack(out);
        if let Some(calls) = calls {
            out.part(&**calls);
        }
    }

    fn unpack(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let (machine, time, life, gic) = (boxed(from)?, from.part()?, from.part()?, boxed(from)?);
        let count = u8::unpack(from)?;
        if usize::from(count) > MAX_VCPUS {
            return Err(Damaged::Many("SavedVm.vcpus", count.into(), MAX_VCPUS));
        }
        let mut vcpus = Vec::new();
        vcpus.try_reserve_exact(count.into()).map_err(|_| Damaged::NoMemory)?;
        for _ in 0..count {
            vcpus.push(from.part()?);
        }
        Ok(Self {
            machine,
            time,
            life,
            gic,
            vcpus,
            devices: from.list(bounds::DEVICES, "SavedVm.devices")?,
            watchdogs: from.part()?,
            calls: if bool::unpack(from)? { Some(boxed(from)?) } else { None },
        })
    }
}

/// A large part, which lies on the stack only as long as it is read.
#[inline(never)]
fn boxed<P: Part>(from: &mut Reader<'_>) -> Result<Boxed<P>, Damaged> {
    from.part().and_then(Boxed::new)
}

impl Part for SavedVm {
    const NAME: &'static str = "vm";
    const VERSION: u16 = Self::VERSION;
}

/// In what a machine differs from the one that a state belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// So many vCPUs were saved, this one has so many.
    Vcpus(u8, u8),
    /// So many bytes of memory.
    Memory(u64, u64),
    /// Its guest was told of the memory-mapped timer alone, and would be of the CPU's here; or the other way round.
    MemoryTimer(bool),
    /// So many devices.
    Devices(u32, u32),
    /// The identification register at this index had that value, here it has this one.
    Identification(usize, u64, u64),
    /// Something else of the CPU.
    Cpu(CpuDifference),
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Vcpus(saved, here) => write!(out, "it was saved with {saved} vCPUs, here it has {here}"),
            Self::Memory(saved, here) => {
                write!(out, "it was saved with {saved} bytes of memory, here it has {here}")
            }
            Self::MemoryTimer(true) => out.write_str(
                "its guest has the memory-mapped timer alone, here it would have the CPU's: time.source = \"mmio\" in the site file is \
                 right for it",
            ),
            Self::MemoryTimer(false) => out.write_str(
                "its guest has the CPU's timers, here it would have the memory-mapped one alone: it needs a host of its frequency or with \
                 FEAT_ECV, and a site file without time.source = \"mmio\"",
            ),
            Self::Devices(saved, here) => write!(out, "it was saved with {saved} devices, here it has {here}"),
            Self::Identification(index, saved, here) => {
                let register = id::encoding(index);
                let (crm, op2) = (register.crm(), register.op2());
                write!(out, "its guest knows ID register S3_0_C0_C{crm}_{op2} as {saved:#x}, here it is {here:#x}")
            }
            Self::Cpu(difference) => write!(out, "{difference}"),
        }
    }
}

impl core::error::Error for Difference {}

/// A feature of the CPU, or a number that it has, which a guest knows otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeatureDifference {
    /// Which register, by its index, and the lowest bit of the field.
    place: (usize, u32),
    saved: u64,
    here: u64,
}

impl fmt::Display for FeatureDifference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { place: (index, shift), saved, here } = self;
        let mut has_name = false;
        for (feature, is_lost) in id::features(index, shift, saved, here) {
            let separator = if has_name { ", " } else { "" };
            write!(out, "{separator}{feature} {}", if is_lost { "is missing" } else { "is new to it" })?;
            has_name = true;
        }
        if has_name {
            return Ok(());
        }
        let register = id::encoding(index);
        let (crm, op2, end) = (register.crm(), register.op2(), shift + 3);
        write!(out, "bits {end}:{shift} of ID register S3_0_C0_C{crm}_{op2} were {saved:#x} and are {here:#x}")
    }
}

impl SavedMachine {
    /// All that a guest of this machine knows otherwise than that of `here` does.
    pub fn features(&self, here: &Self) -> impl Iterator<Item = FeatureDifference> {
        let registers = self.identification.into_iter().zip(here.identification).enumerate();
        registers.flat_map(|(index, (saved, here))| {
            (0..64).step_by(4).filter_map(move |shift| {
                let (saved, here) = (saved >> shift & 0xf, here >> shift & 0xf);
                (saved != here).then_some(FeatureDifference { place: (index, shift), saved, here })
            })
        })
    }

    /// Whether a guest of this machine has the timers that one of `here` is told of.
    ///
    /// # Errors
    /// If not.
    pub const fn compare_timers(&self, here: &Self) -> Result<(), Difference> {
        if self.memory_timer == here.memory_timer { Ok(()) } else { Err(Difference::MemoryTimer(self.memory_timer)) }
    }

    /// In what `here` differs from it, if in anything.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, here: &Self) -> Result<(), Difference> {
        let Self { vcpus, memory, devices, memory_timer: _, identification, cpu } = self;
        if *vcpus != here.vcpus {
            return Err(Difference::Vcpus(*vcpus, here.vcpus));
        }
        if *memory != here.memory {
            return Err(Difference::Memory(*memory, here.memory));
        }
        self.compare_timers(here)?;
        if *devices != here.devices {
            return Err(Difference::Devices(*devices, here.devices));
        }
        for (index, (&saved, &here)) in identification.iter().zip(&here.identification).enumerate() {
            if saved != here {
                return Err(Difference::Identification(index, saved, here));
            }
        }
        cpu.differences(&here.cpu).next().map_or(Ok(()), |difference| Err(Difference::Cpu(difference)))
    }
}

#[cfg(test)]
mod tests;
