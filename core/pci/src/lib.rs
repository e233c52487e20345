//! The functions of a PCI bus, as far as a virtio device of the host's needs it: which are there, where their registers are, and
//! where those are put if nobody has done it (PCI Local Bus Specification 3.0, chapter 6; virtio 1.3, section 4.1).
//!
//! An emulator that starts an `Image` assigns no addresses, and most firmware does. So on a bus on which anything answers in memory,
//! registers stay where they are, which has to be in one of the host's windows. On one where nothing does, they get a place in a
//! window, one behind the other, whatever stands in them.
//!
//! A function is not trusted with what it says: lists have an end, sizes are powers of two, structures lie in the registers that they
//! name. What is wrong has a sentence, and costs the use of that function. All of it runs once, at the start, over any block of
//! registers as a trait object: the code is there once, and compiled for size, as long as it is not inlined elsewhere.
#![no_std]
#![forbid(unsafe_code)]

mod bars;
#[cfg(test)]
mod tests;

pub use bars::BarPlaces;

use drivers::Registers;
use units::{Pa, Range};

/// Where a function's configuration space has what is used.
mod register {
    pub(crate) const VENDOR: u64 = 0x00;
    pub(crate) const DEVICE: u64 = 0x02;
    pub(crate) const COMMAND: u64 = 0x04;
    pub(crate) const STATUS: u64 = 0x06;
    pub(crate) const HEADER_TYPE: u64 = 0x0e;
    pub(crate) const BAR0: u64 = 0x10;
    pub(crate) const ROM: u64 = 0x30;
    pub(crate) const CAPABILITIES: u64 = 0x34;
    pub(crate) const INTERRUPT_PIN: u64 = 0x3d;
}

/// Bits of the command: it answers in its ports, in its memory; it does DMA; it raises no INTx.
const PORTS: u16 = 1;
const MEMORY: u16 = 1 << 1;
const DMA: u16 = 1 << 2;
const SILENT: u16 = 1 << 10;
/// Of the status: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// Of the header's type: the device has further functions. The rest is the type, 0 for what is no bridge.
const SEVERAL: u8 = 1 << 7;

/// Who makes virtio devices, and from which number on they are, by their kind (section 4.1.2).
const VIRTIO: u16 = 0x1af4;
const KINDS: u16 = 0x1040;

/// The older number of a kind of virtio device, which those have that can also be driven as before virtio 1: of those kinds that are
/// looked for.
const fn older(kind: u16) -> Option<u16> {
    match kind {
        2 => Some(0x1001),
        3 => Some(0x1003),
        _ => None,
    }
}

/// Capabilities begin behind the header, and have four bytes at least: there are at most so many.
const FIRST: u8 = 0x40;
const MOST: usize = (0x100 - FIRST as usize) / 4;
/// Their numbers.
const MSI: u8 = 0x05;
const VENDORS_OWN: u8 = 0x09;
const MSI_X: u8 = 0x11;
/// Bits of the first word of two: it interrupts by messages.
const MSI_ENABLED: u32 = 1 << 16;
const MSI_X_ENABLED: u32 = 1 << 31;

/// A bus's configuration space, in words of four bytes. What is narrower is a part of one.
pub trait Configuration {
    /// Reads the word at `offset`.
    fn read(&self, offset: u64) -> u32;
    /// Writes it.
    fn write(&self, offset: u64, value: u32);
}

impl<R: Registers> Configuration for R {
    fn read(&self, offset: u64) -> u32 {
        self.read32(offset)
    }

    fn write(&self, offset: u64, value: u32) {
        self.write32(offset, value);
    }
}

/// Why a function is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFunction {
    /// It is a bridge, by its header.
    Header,
    /// Its capabilities lead into each other.
    Loop,
    /// One of the structures of virtio 1 is missing, or too small.
    Structure,
    /// A structure is not in the registers that it names.
    Outside,
    /// They are no memory, or their size is none.
    Registers,
    /// No window has room for them.
    NoRoom,
    /// They have none in a window, and others of the bus have.
    HalfPlaced,
    /// It does not keep the address that it is given.
    Forgetful,
    /// It has no INTx.
    NoPin,
}

impl BadFunction {
    /// A sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Header => "its header is not that of a device",
            Self::Loop => "its list of capabilities has no end",
            Self::Structure => "it lacks a structure of virtio 1; with QEMU it must not have disable-modern=on",
            Self::Outside => "a structure is not within the registers that it names",
            Self::Registers => "its registers are not in memory, or of a size that cannot be",
            Self::NoRoom => "the PCI host's windows have no room for its registers",
            Self::HalfPlaced => "firmware gave addresses to other devices of the bus, and not to this one",
            Self::Forgetful => "its registers are not where they were put",
            Self::NoPin => "it has no interrupt pin",
        }
    }
}

/// A function of the bus whose configuration space `bus` is.
#[derive(Clone, Copy)]
pub struct Function<'b> {
    bus: &'b dyn Configuration,
    number: u8,
}

impl core::fmt::Debug for Function<'_> {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(out, "{:02x}.{}", self.device(), self.number & 7)
    }
}

/// The first virtio device of this kind (its device ID of section 5) of the bus from function number `first` on.
#[inline(never)]
#[must_use]
pub fn virtio_from(bus: &dyn Configuration, kind: u16, first: u16) -> Option<Function<'_>> {
    functions(bus).find(|function| u16::from(function.number) >= first && function.is_virtio(kind))
}

/// The functions of the bus whose configuration space `bus` is, in their order.
pub fn functions(bus: &dyn Configuration) -> impl Iterator<Item = Function<'_>> {
    (0..=u8::MAX).map(move |number| Function { bus, number }).filter(|function| {
        let first = Function { bus, number: function.number & !7 };
        function.is_there() && (function.number == first.number || first.is_there() && first.has_several())
    })
}

impl<'b> Function<'b> {
    /// Function number `number` of the bus, if it is there: the device's number, and three bits.
    #[must_use]
    pub fn new(bus: &'b dyn Configuration, number: u8) -> Option<Self> {
        Some(Self { bus, number }).filter(Self::is_there)
    }

    /// Its number on the bus.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Which device it is of.
    #[must_use]
    pub fn device(&self) -> u8 {
        self.number >> 3
    }

    fn at(&self, register: u64) -> u64 {
        u64::from(self.number) << 12 | register & 0xfff
    }

    fn read8(&self, register: u64) -> u8 {
        (self.read32(register & !3) >> (8 * (register & 3))) as u8
    }

    fn read16(&self, register: u64) -> u16 {
        (self.read32(register & !3) >> (8 * (register & 2))) as u16
    }

    fn read32(&self, register: u64) -> u32 {
        self.bus.read(self.at(register))
    }

    fn write32(&self, register: u64, value: u32) {
        self.bus.write(self.at(register), value);
    }

    /// Reads it back: it has arrived then, before anything else is done with the function. Of the status beside it, zeros change
    /// nothing.
    fn set_command(&self, command: u16) {
        self.write32(register::COMMAND, command.into());
        self.read16(register::COMMAND);
    }

    fn is_there(&self) -> bool {
        !matches!(self.read16(register::VENDOR), 0 | u16::MAX)
    }

    fn has_several(&self) -> bool {
        self.read8(register::HEADER_TYPE) & SEVERAL != 0
    }

    /// Whether it answers in memory.
    fn is_placed(&self) -> bool {
        self.read16(register::COMMAND) & MEMORY != 0
    }

    /// Whether it is a virtio device of this kind.
    fn is_virtio(&self, kind: u16) -> bool {
        let device = self.read16(register::DEVICE);
        self.read16(register::VENDOR) == VIRTIO && (device == KINDS + kind || Some(device) == older(kind))
    }

    /// Lets it raise no interrupt by its pin, which may share the line of one that is used.
    #[inline(never)]
    pub fn silence(&self) {
        self.set_command(self.read16(register::COMMAND) | SILENT);
    }

    /// Lets it do nothing: it does not answer, does no DMA, and raises no interrupt.
    #[inline(never)]
    pub fn close(&self) {
        self.set_command(self.read16(register::COMMAND) & !(PORTS | MEMORY | DMA) | SILENT);
    }

    /// Lets it do DMA. It was reset before.
    pub fn allow_dma(&self) {
        self.set_command(self.read16(register::COMMAND) | DMA);
    }

    /// Its interrupt pin, 1 to 4.
    ///
    /// # Errors
    /// If there is none.
    pub fn pin(&self) -> Result<u8, BadFunction> {
        Some(self.read8(register::INTERRUPT_PIN)).filter(|pin| (1..=4).contains(pin)).ok_or(BadFunction::NoPin)
    }

    /// Finds the structures of a virtio device, puts its registers where the CPUs reach them, and lets it answer there. It does no DMA
    /// then, and interrupts by its pin.
    ///
    /// # Errors
    /// If it cannot be used. It does not answer then.
    #[inline(never)]
    pub fn open(&self, places: &mut BarPlaces<'_>) -> Result<Structures, BadFunction> {
        // While it answers, its addresses must not be touched; and a device that firmware left running ends here.
        self.close();
        if self.read8(register::HEADER_TYPE) & !SEVERAL != 0 {
            return Err(BadFunction::Header);
        }
        let found = self.capabilities()?;
        let [Some(common), Some(notify), Some(isr), Some(device)] = found.places else {
            return Err(BadFunction::Structure);
        };
        let mut bars = [None; 6];
        let mut place = |claim: Claim| {
            let bar = bars.get_mut(usize::from(claim.bar)).ok_or(BadFunction::Structure)?;
            let registers = match *bar {
                Some(registers) => registers,
                None => *bar.insert(places.place(self, claim.bar)?),
            };
            let end = claim.offset.checked_add(claim.length).ok_or(BadFunction::Outside)?;
            if u64::from(end) > registers.size {
                return Err(BadFunction::Outside);
            }
            Ok(Structure { registers, offset: claim.offset.into(), length: claim.length.into() })
        };
        let [common, notify, isr, device] = [place(common)?, place(notify)?, place(isr)?, place(device)?];
        places.place_others(self, bars.map(|bar| bar.is_some()))?;
        self.set_command((self.read16(register::COMMAND) | MEMORY) & !SILENT);
        Ok(Structures { common, notify, isr, device, notify_multiplier: found.notify_multiplier })
    }

    /// Walks the list of capabilities; messages in the place of a pin's interrupt are switched off.
    fn capabilities(&self) -> Result<Found, BadFunction> {
        let mut found = Found { places: [None; 4], notify_multiplier: 0 };
        if self.read16(register::STATUS) & HAS_CAPABILITIES == 0 {
            return Ok(found);
        }
        let mut at = self.read8(register::CAPABILITIES) & !3;
        for _ in 0..MOST {
            if at < FIRST {
                return Ok(found);
            }
            let here = u64::from(at);
            let head = self.read32(here);
            // The lower half cannot be written.
            match head as u8 {
                MSI => self.write32(here, head & !MSI_ENABLED),
                MSI_X => self.write32(here, head & !MSI_X_ENABLED),
                VENDORS_OWN => self.structure(here, &mut found),
                _ => {}
            }
            at = (head >> 8) as u8 & !3;
        }
        Err(BadFunction::Loop)
    }

    /// A structure of virtio (section 4.1.4): its length, its kind, the registers that it is in, where there, and how long. Of each kind
    /// the first holds that can be used.
    fn structure(&self, here: u64, found: &mut Found) {
        let claim = Claim { bar: self.read8(here + 4), offset: self.read32(here + 8), length: self.read32(here + 12) };
        let Some(kind) = usize::from(self.read8(here + 3)).checked_sub(1) else { return };
        let (Some(place), Some(&least)) = (found.places.get_mut(kind), Structures::LEAST.get(kind)) else { return };
        // One with a reserved number of registers is to be passed over, or in ports, and whoever comes up short is of no use.
        if place.is_none() && claim.bar < 6 && !bars::is_of_ports(self, claim.bar) && claim.length >= least {
            if kind == Structures::NOTIFY {
                found.notify_multiplier = self.read32(here + 16);
            }
            *place = Some(claim);
        }
    }
}

/// What a capability says of a structure.
#[derive(Clone, Copy)]
struct Claim {
    bar: u8,
    offset: u32,
    length: u32,
}

struct Found {
    places: [Option<Claim>; 4],
    notify_multiplier: u32,
}

/// Where a structure is: in a block of registers that the CPUs reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structure {
    /// The whole block.
    pub registers: Range<Pa>,
    /// Where it begins there.
    pub offset: u64,
    /// How many bytes it has. All are in the block.
    pub length: u64,
}

/// The structures of a virtio device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Structures {
    /// What all devices have.
    pub common: Structure,
    /// Where queues are notified.
    pub notify: Structure,
    /// Why it interrupts.
    pub isr: Structure,
    /// What is special to its kind.
    pub device: Structure,
    /// How far the notifications of queues are apart.
    pub notify_multiplier: u32,
}

impl Structures {
    const NOTIFY: usize = 1;
    /// How many bytes of each are used at least.
    const LEAST: [u32; 4] = [0x38, 2, 1, 8];
}
