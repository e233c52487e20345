//! The plan: what the guest's physical address space holds, and the lookup for an address that stage 2 does not map.

use alloc::vec;
use alloc::vec::Vec;

use abi::bundle::MAX_NAME;
use arrayvec::ArrayString;
use devices::bus::{MAX_LINES, Place};
use units::{BLOCK_SIZE, Hz, IntId, Ipa, MAX_VCPUS, PAGE_SIZE, Range, Trigger, VcpuId};
use vgic::INTIDS;
use virtio::{TRANSPORTS, VirtioKind, WINDOW_SIZE};

/// Where RAM begins.
pub const RAM_BASE: Ipa = Ipa(0x4000_0000);
/// How many virtio devices a machine can have: as many transports as QEMU's `virt` machine.
pub const MAX_VIRTIO: usize = TRANSPORTS;
/// The most frames that a device has.
pub(crate) const MAX_FRAMES: usize = 4;

/// The page with the vCPUs' records of stolen time (DEN0057), which is memory that the guest can only read. No device tree
/// names it: the guest asks for it.
pub const STOLEN_TIME: Ipa = Ipa(0x090a_0000);

/// The flash banks, which begin at 0: two of 64 MiB each.
const FLASH: Range<Ipa> = Range { start: Ipa(0), size: 0x0800_0000 };
/// The GIC's Distributor.
pub const DISTRIBUTOR: Range<Ipa> = Range { start: Ipa(0x0800_0000), size: 0x1_0000 };
const REDISTRIBUTORS: Ipa = Ipa(0x080a_0000);
/// One vCPU's Redistributor: RD_base, then SGI_base, 64 KiB each (GIC IHI 0069H 12.10).
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const PL011: Ipa = Ipa(UART_BASE);
/// Where the UART is, for code that cannot wait for the plan: the short path of an exit.
pub const UART_BASE: u64 = 0x0900_0000;
const PL031: Ipa = Ipa(0x0901_0000);
const PL061: Ipa = Ipa(0x0903_0000);
/// The Generic Watchdog's frames, in pages of their own whatever the guest's page size is. QEMU's machine has no such device, and
/// nothing else there.
const GENERIC_WATCHDOG_CONTROL: Ipa = Ipa(0x0910_0000);
const GENERIC_WATCHDOG_REFRESH: Ipa = Ipa(0x0911_0000);
/// The memory-mapped timer's frames, likewise.
const TIMER_CONTROL: Ipa = Ipa(0x0912_0000);
const TIMER_FRAME: Ipa = Ipa(TIMER_BASE);
/// Where its timer frame is, for the short path of an exit.
pub const TIMER_BASE: u64 = 0x0913_0000;
/// The generation identifier, likewise.
const GENERATION: Ipa = Ipa(0x0914_0000);
/// The clock page, likewise: memory that the guest can only read, and a device that answers where it writes.
pub const CLOCK_PAGE: Ipa = Ipa(0x0915_0000);
/// The enclave device, likewise.
const ENCLAVE: Ipa = Ipa(0x0916_0000);
const PERIPHERAL_SIZE: u64 = 0x1000;
const VIRTIO: Ipa = Ipa(0x0a00_0000);
const VIRTIO_FIRST_SPI: u32 = 16;

/// What the owner of a VM asks for.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The VM's name, for messages.
    pub name: &'a str,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// How many bits a guest's physical address has: what the host's stage 2 offers.
    pub ipa_bits: u32,
    /// The virtio devices, in the order of their transports.
    pub virtio: &'a [VirtioKind],
    /// Whether it has the Generic Watchdog of Arm's Base System Architecture.
    pub generic_watchdog: bool,
    /// Whether it has the enclave device.
    pub enclave: bool,
    /// The frequency of the guest's counter.
    pub counter_frequency: Hz,
    /// Which counter and timers the guest is told of.
    pub timers: Timers,
}

/// Which counter and timers a guest is told of. It may use the others all the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timers {
    /// The CPU's, of which kernels prefer the virtual ones.
    Cpu,
    /// The CPU's physical ones alone.
    Physical,
    /// The memory-mapped ones alone.
    Memory,
}

/// Why there can be no such machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MachineError {
    /// The name is empty or too long.
    #[error("the name has {0} bytes; it needs 1 to {MAX_NAME}")]
    Name(usize),
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs asked for; a VM has 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// RAM is empty or no whole number of 2 MiB blocks.
    #[error("{0:#x} bytes of memory asked for; memory is a multiple of 2 MiB, and at least that")]
    MemorySize(u64),
    /// RAM goes beyond the address space that stage 2 offers.
    #[error("{memory:#x} bytes of memory from 1 GiB on do not fit into this host's {bits}-bit guest addresses")]
    MemoryTooLarge {
        /// What was asked for, in bytes.
        memory: u64,
        /// What the host has.
        bits: u32,
    },
    /// Too many virtio devices.
    #[error("{0} virtio devices asked for; a VM has at most {MAX_VIRTIO}")]
    Virtio(usize),
    /// A device has no frame, or too many.
    #[error("a device has {0} frames; it needs 1 to {MAX_FRAMES}")]
    Frames(usize),
    /// A device's frame is empty, or reaches past the end of the address space.
    #[error("the device at {0} is empty, or reaches past the end of the address space")]
    Frame(Ipa),
    /// Two devices, or a device and something else, at one address.
    #[error("what is at {0} and the device at {1} overlap; each needs addresses of its own")]
    Overlap(Ipa, Ipa),
    /// A device has too many interrupt lines.
    #[error("a device has {0} interrupt lines; it can have {MAX_LINES}")]
    Lines(usize),
    /// An interrupt that is no SPI, none that the interrupt controller has, or another device's.
    #[error(
        "INTID {0} is another device's, or none that a device can have; devices have SPIs, INTIDs 32 to {last}, one a line",
        last = INTIDS - 1
    )]
    Interrupt(u32),
}

/// A kind of device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// The banks of flash memory: erased, and nothing can be written to them. Not in the tree: a driver would find no chip.
    Flash,
    /// A UART.
    Pl011,
    /// A real time clock.
    Pl031,
    /// A GPIO controller; the first one has the power button.
    Pl061,
    /// A Generic Watchdog: its control frame, then its refresh frame.
    GenericWatchdog,
    /// A memory-mapped generic timer: its control frame, then its timer frame.
    Timer,
    /// The generation identifier.
    Generation,
    /// VMClock: the page that tells what time it is by the guest's counter.
    ClockPage,
    /// The enclave device.
    Enclave,
    /// A virtio device behind the MMIO transport.
    Virtio(VirtioKind),
    /// The virtio-mmio transports without a device, all in one frame. Not in the tree.
    VacantVirtio,
}

impl DeviceKind {
    /// Whether the guest sees a page of memory at its first frame, which the device writes and the guest only reads.
    #[must_use]
    pub const fn shows_a_page(self) -> bool {
        match self {
            Self::ClockPage => true,
            Self::Flash
            | Self::Pl011
            | Self::Pl031
            | Self::Pl061
            | Self::GenericWatchdog
            | Self::Timer
            | Self::Generation
            | Self::Enclave
            | Self::Virtio(_)
            | Self::VacantVirtio => false,
        }
    }
}

/// An interrupt line of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wire {
    /// Where it leads to.
    pub interrupt: IntId,
    /// How it is signalled.
    pub trigger: Trigger,
}

impl Wire {
    /// A line that leads to SPI number `spi`.
    #[must_use]
    pub const fn spi(spi: u32, trigger: Trigger) -> Self {
        Self { interrupt: IntId::spi(spi), trigger }
    }
}

/// A device of the machine: one row of the plan. Its number in the plan is that of its slot on the bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What it is.
    pub device: DeviceKind,
    /// The guest addresses it answers at: its frames, in the order in which it counts them.
    pub frames: Vec<Range<Ipa>>,
    /// Its interrupt lines, in the order in which it counts them.
    pub lines: Vec<Wire>,
}

impl Row {
    /// A device with one frame and at most one line.
    #[must_use]
    pub fn simple(device: DeviceKind, frame: Range<Ipa>, line: Option<Wire>) -> Self {
        Self { device, frames: vec![frame], lines: line.into_iter().collect() }
    }

    /// Where it begins, by which it is known.
    #[must_use]
    pub fn start(&self) -> Ipa {
        self.frames.first().map_or(Ipa(0), |frame| frame.start)
    }
}

/// What answers at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The GIC's Distributor, so far behind its first register.
    Distributor(u64),
    /// The Redistributors of all vCPUs, so far behind the first one's first register.
    Redistributors(u64),
    /// A device on the bus.
    Device(Place),
}

impl Target {
    /// How far behind the first register of what answers.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::Distributor(offset) | Self::Redistributors(offset) | Self::Device(Place { offset, .. }) => offset,
        }
    }
}

/// The Redistributor frame that an offset into their region is in, and the offset within it.
#[must_use]
pub const fn redistributor(offset: u64) -> (VcpuId, u64) {
    (VcpuId((offset / REDISTRIBUTOR_SIZE) as u8), offset % REDISTRIBUTOR_SIZE)
}

/// A frame of a device, for the lookup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    range: Range<Ipa>,
    slot: usize,
    frame: usize,
}

/// The architected timers' interrupts: the PPIs that the Server Base System Architecture recommends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerInterrupts {
    /// EL1 physical timer as seen from Secure state: there is none, but the tree's binding has a place for it.
    pub secure_physical: IntId,
    /// EL1 physical timer.
    pub physical: IntId,
    /// EL1 virtual timer.
    pub virtual_: IntId,
    /// EL2 physical timer: there is none for a guest, but the tree's binding has a place for it.
    pub hypervisor_physical: IntId,
}

impl TimerInterrupts {
    /// The same on every machine.
    pub const ARCHITECTED: Self = Self {
        secure_physical: IntId::ppi(13),
        physical: IntId::ppi(14),
        virtual_: IntId::ppi(11),
        hypervisor_physical: IntId::ppi(10),
    };
}

/// One VM's machine.
#[derive(Clone, Debug)]
pub struct MachinePlan {
    name: ArrayString<MAX_NAME>,
    vcpus: u8,
    ram: Range<Ipa>,
    counter_frequency: Hz,
    timers: Timers,
    redistributors: Range<Ipa>,
    rows: Vec<Row>,
    /// All frames of all rows, sorted by address.
    windows: Vec<Window>,
}

impl MachinePlan {
    /// The machine for `spec`, with the devices of QEMU's `virt`.
    ///
    /// # Errors
    /// What `spec` asks for and cannot be had.
    pub fn new(spec: Spec<'_>) -> Result<Self, MachineError> {
        if spec.virtio.len() > MAX_VIRTIO {
            return Err(MachineError::Virtio(spec.virtio.len()));
        }
        Self::with_devices(spec, virt(spec))
    }

    /// The machine for `spec`, with these devices instead of those that it lists.
    ///
    /// # Errors
    /// What `spec` asks for and cannot be had, or what two of the devices cannot both have.
    pub fn with_devices(spec: Spec<'_>, rows: Vec<Row>) -> Result<Self, MachineError> {
        let name = ArrayString::from(spec.name).map_err(|_| MachineError::Name(spec.name.len()))?;
        if name.is_empty() {
            return Err(MachineError::Name(0));
        }
        if spec.vcpus == 0 || usize::from(spec.vcpus) > MAX_VCPUS {
            return Err(MachineError::Vcpus(spec.vcpus));
        }
        if spec.memory_bytes == 0 || !spec.memory_bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(MachineError::MemorySize(spec.memory_bytes));
        }
        let too_large = MachineError::MemoryTooLarge { memory: spec.memory_bytes, bits: spec.ipa_bits };
        let ram = Range::new(RAM_BASE, spec.memory_bytes).ok_or(too_large)?;
        let limit = 1_u64.checked_shl(spec.ipa_bits).unwrap_or(u64::MAX);
        if ram.end() > Ipa(limit) {
            return Err(too_large);
        }
        let redistributors = Range { start: REDISTRIBUTORS, size: u64::from(spec.vcpus) * REDISTRIBUTOR_SIZE };
        let windows = lay_out(&rows, &[DISTRIBUTOR, redistributors, ram])?;
        check_lines(&rows)?;
        let Spec { vcpus, counter_frequency, timers, .. } = spec;
        Ok(Self { name, vcpus, ram, counter_frequency, timers, redistributors, rows, windows })
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many virtual CPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Its memory.
    #[must_use]
    pub fn ram(&self) -> Range<Ipa> {
        self.ram
    }

    /// The frequency of its counter.
    #[must_use]
    pub fn counter_frequency(&self) -> Hz {
        self.counter_frequency
    }

    /// Which counter and timers the guest is told of.
    #[must_use]
    pub fn timers(&self) -> Timers {
        self.timers
    }

    /// Its timers' interrupts.
    #[must_use]
    pub fn timer_interrupts(&self) -> TimerInterrupts {
        TimerInterrupts::ARCHITECTED
    }

    /// The Redistributors of all vCPUs, one behind the other.
    #[must_use]
    pub fn redistributors(&self) -> Range<Ipa> {
        self.redistributors
    }

    /// All devices on the bus; the index is the number of the slot.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The first device of this kind.
    #[must_use]
    pub fn first(&self, device: DeviceKind) -> Option<&Row> {
        self.rows.iter().find(|row| row.device == device)
    }

    /// What answers at `ipa`.
    ///
    /// On the path of every emulated access: the GIC is found in four instructions, the rest by binary search.
    #[inline]
    #[must_use]
    pub fn find(&self, ipa: Ipa) -> Option<Target> {
        let in_distributor = ipa.0.wrapping_sub(DISTRIBUTOR.start.0);
        if in_distributor < DISTRIBUTOR.size {
            return Some(Target::Distributor(in_distributor));
        }
        let in_redistributors = ipa.0.wrapping_sub(REDISTRIBUTORS.0);
        if in_redistributors < self.redistributors.size {
            return Some(Target::Redistributors(in_redistributors));
        }
        self.search(ipa).map(Target::Device)
    }

    /// The binary search.
    fn search(&self, ipa: Ipa) -> Option<Place> {
        let behind = self.windows.partition_point(|window| window.range.start <= ipa);
        let &Window { range, slot, frame } = self.windows.get(behind.checked_sub(1)?)?;
        let offset = ipa.0 - range.start.0;
        (offset < range.size).then_some(Place { slot, frame, offset })
    }
}

/// The devices of QEMU's `virt` machine, as far as `spec` wants them, by their addresses.
///
/// All of its 32 virtio transports answer, with a device or without: there are drivers that look into each of them, and
/// end at the first abort. So do its flash banks: boot loaders look for their settings there.
fn virt(spec: Spec<'_>) -> Vec<Row> {
    let peripheral = |start| Range { start, size: PERIPHERAL_SIZE };
    let level = |spi| Wire::spi(spi, Trigger::Level);
    let transports = |first: usize, count: usize| Range {
        start: Ipa(VIRTIO.0 + first as u64 * WINDOW_SIZE),
        size: count as u64 * WINDOW_SIZE,
    };
    let mut rows = vec![
        Row::simple(DeviceKind::Flash, FLASH, None),
        Row::simple(DeviceKind::Pl011, peripheral(PL011), Some(level(1))),
        Row::simple(DeviceKind::Pl031, peripheral(PL031), Some(level(2))),
        Row::simple(DeviceKind::Pl061, peripheral(PL061), Some(level(7))),
    ];
    if spec.generic_watchdog {
        let frames = vec![peripheral(GENERIC_WATCHDOG_CONTROL), peripheral(GENERIC_WATCHDOG_REFRESH)];
        rows.push(Row { device: DeviceKind::GenericWatchdog, frames, lines: vec![level(10)] });
    }
    if spec.timers == Timers::Memory {
        let frames = vec![peripheral(TIMER_CONTROL), peripheral(TIMER_FRAME)];
        rows.push(Row { device: DeviceKind::Timer, frames, lines: vec![level(12), level(13)] });
    }
    rows.push(Row::simple(DeviceKind::Generation, peripheral(GENERATION), Some(Wire::spi(14, Trigger::Edge))));
    rows.push(Row::simple(DeviceKind::ClockPage, peripheral(CLOCK_PAGE), Some(Wire::spi(15, Trigger::Edge))));
    if spec.enclave {
        rows.push(Row::simple(DeviceKind::Enclave, peripheral(ENCLAVE), Some(level(11))));
    }
    for (number, &kind) in spec.virtio.iter().enumerate() {
        let line = Wire::spi(VIRTIO_FIRST_SPI + number as u32, Trigger::Edge);
        rows.push(Row::simple(DeviceKind::Virtio(kind), transports(number, 1), Some(line)));
    }
    let vacant = MAX_VIRTIO - spec.virtio.len();
    if vacant > 0 {
        rows.push(Row::simple(DeviceKind::VacantVirtio, transports(spec.virtio.len(), vacant), None));
    }
    rows
}

/// All frames of `rows`, sorted by address, if none overlaps another one or what else the machine has.
fn lay_out(rows: &[Row], others: &[Range<Ipa>]) -> Result<Vec<Window>, MachineError> {
    let mut windows = Vec::new();
    for (slot, row) in rows.iter().enumerate() {
        if row.frames.is_empty() || row.frames.len() > MAX_FRAMES {
            return Err(MachineError::Frames(row.frames.len()));
        }
        for (frame, &range) in row.frames.iter().enumerate() {
            if range.is_empty() || Range::new(range.start, range.size).is_none() {
                return Err(MachineError::Frame(range.start));
            }
            windows.push(Window { range, slot, frame });
        }
    }
    windows.sort_unstable_by_key(|window| window.range.start);
    let mut behind = windows.iter();
    behind.next();
    for (low, high) in windows.iter().zip(behind) {
        if low.range.overlaps(high.range) {
            return Err(MachineError::Overlap(low.range.start, high.range.start));
        }
    }
    let records = Range { start: STOLEN_TIME, size: PAGE_SIZE };
    for &other in others.iter().chain([&records]) {
        if let Some(window) = windows.iter().find(|window| window.range.overlaps(other)) {
            return Err(MachineError::Overlap(other.start, window.range.start));
        }
    }
    Ok(windows)
}

/// Whether the lines of `rows` lead to SPIs that there are, and no two of them to the same.
fn check_lines(rows: &[Row]) -> Result<(), MachineError> {
    let mut taken = Vec::new();
    for row in rows {
        if row.lines.len() > MAX_LINES {
            return Err(MachineError::Lines(row.lines.len()));
        }
        for line in &row.lines {
            if line.interrupt.is_private() || line.interrupt.0 >= INTIDS || taken.contains(&line.interrupt) {
                return Err(MachineError::Interrupt(line.interrupt.0));
            }
            taken.push(line.interrupt);
        }
    }
    Ok(())
}
