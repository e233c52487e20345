//! The one walk over the tree: recognizes the nodes that matter and keeps what they say.
//!
//! The properties of a node come before its children, so a node is looked at when its first child begins or when it ends.
//! What depends on nodes that may still follow (interrupts, whose format the GIC's node defines; the console, which
//! /chosen names) is kept as it stands and read at the end.

use super::blob::{Blob, NameOffset, Token};
use super::cells::{Bus, CellCounts, Cells, Interrupts, physical_range};
use super::pci::PciNode;
use crate::{
    BadPciHost, BootMethod, Conduit, ConsoleKind, Cpu, InterruptLine, MAX_CPUS, MAX_MEMORY_RANGES,
    MAX_REDISTRIBUTOR_REGIONS, MAX_RESERVED_RANGES, MAX_WINDOW_ROWS, PciHost, PlatformError, Psci, PsciVersion,
};
use abi::calls::arm::CPU_ON_64;
use arrayvec::ArrayVec;
use units::{CpuId, Hz, IntId, Pa, Range};

/// How deep the nodes are that are looked at; nothing we need is deeper.
const MAX_DEPTH: usize = 12;
/// How many UARTs are remembered as candidates for the console.
const MAX_UARTS: usize = 16;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey<'t> {
    pub(super) model: &'t [u8],
    pub(super) chosen: Chosen<'t>,
    pub(super) cpus: ArrayVec<Cpu, MAX_CPUS>,
    pub(super) cpus_left_out: usize,
    pub(super) memory: ArrayVec<Range<Pa>, MAX_MEMORY_RANGES>,
    pub(super) reserved: ArrayVec<Range<Pa>, MAX_RESERVED_RANGES>,
    pub(super) too_many_reserved: bool,
    pub(super) gic: Option<GicNode<'t>>,
    pub(super) old_gic: bool,
    pub(super) its: Option<Range<Pa>>,
    pub(super) clock: Option<Range<Pa>>,
    pub(super) uarts: ArrayVec<UartNode<'t>, MAX_UARTS>,
    pub(super) windows: ArrayVec<WindowRow, MAX_WINDOW_ROWS>,
    pub(super) pci: Option<Result<PciHost<'t>, BadPciHost>>,
    pub(super) psci: Option<Psci>,
    pub(super) timer: Option<TimerNode<'t>>,
}

/// `/chosen`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chosen<'t> {
    pub(super) bootargs: &'t [u8],
    pub(super) stdout_path: &'t [u8],
    pub(super) initrd_start: Option<u64>,
    pub(super) initrd_end: Option<u64>,
    pub(super) rng_seed: Option<&'t [u8]>,
    pub(super) kaslr_seed: Option<&'t [u8]>,
}

/// A GICv3.
#[derive(Debug)]
pub(super) struct GicNode<'t> {
    pub(super) distributor: Range<Pa>,
    pub(super) redistributors: ArrayVec<Range<Pa>, MAX_REDISTRIBUTOR_REGIONS>,
    pub(super) stride: Option<u64>,
    pub(super) interrupts: Interrupts<'t>,
    pub(super) interrupt_cells: u32,
    /// How maps of interrupts name it, and how many cells its unit address has in them.
    pub(super) phandle: u32,
    pub(super) address_cells: u32,
}

/// A UART, and where in the structure block its node is.
#[derive(Debug)]
pub(super) struct UartNode<'t> {
    pub(super) offset: usize,
    pub(super) kind: ConsoleKind,
    pub(super) registers: Range<Pa>,
    pub(super) interrupts: Interrupts<'t>,
}

/// Windows of virtio devices, one beside the other, each of the same size and with the interrupt behind that of the one below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowRow {
    pub(crate) registers: Range<Pa>,
    /// How large each window is.
    pub(crate) size: u64,
    /// The first one's interrupt. All are signalled alike.
    pub(crate) interrupt: InterruptLine,
}

impl WindowRow {
    /// The interrupt of a window so many behind the first, or before it.
    fn interrupt_at(&self, number: i64) -> Option<InterruptLine> {
        let interrupt = u32::try_from(i64::from(self.interrupt.interrupt.0).checked_add(number)?).ok()?;
        Some(InterruptLine { interrupt: IntId(interrupt), ..self.interrupt })
    }

    fn is_followed_by(&self, registers: Range<Pa>, interrupt: InterruptLine) -> bool {
        let count = (self.registers.size / self.size).cast_signed();
        self.registers.end() == registers.start
            && registers.size == self.size
            && self.interrupt_at(count) == Some(interrupt)
    }

    fn follows(&self, registers: Range<Pa>, interrupt: InterruptLine) -> bool {
        registers.end() == self.registers.start
            && registers.size == self.size
            && self.interrupt_at(-1) == Some(interrupt)
    }

    /// Each of them, with its interrupt.
    pub(crate) fn windows(self) -> impl Iterator<Item = (Range<Pa>, InterruptLine)> {
        (0..self.registers.size / self.size).filter_map(move |number| {
            let start = Pa(self.registers.start.0 + number * self.size);
            Some((Range { start, size: self.size }, self.interrupt_at(number.cast_signed())?))
        })
    }
}

/// The architected timer.
#[derive(Debug)]
pub(super) struct TimerNode<'t> {
    pub(super) interrupts: Interrupts<'t>,
    pub(super) names: &'t [u8],
    pub(super) frequency: Option<Hz>,
}

/// The properties that any node is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Compatible,
    Reg,
    Interrupts,
    InterruptsExtended,
    Status,
    DeviceType,
    NumberOfAddressCells,
    NumberOfSizeCells,
    Ranges,
    EnableMethod,
    CpuReleaseAddr,
    Method,
    CpuOn,
    NumberOfInterruptCells,
    InterruptNames,
    InterruptMap,
    InterruptMapMask,
    DmaRanges,
    IommuMap,
    BusRange,
    Phandle,
    NumberOfRedistributorRegions,
    RedistributorStride,
    ClockFrequency,
    DmaCoherent,
    RegShift,
    RegIoWidth,
    Model,
    Bootargs,
    StdoutPath,
    InitrdStart,
    InitrdEnd,
    RngSeed,
    KaslrSeed,
    /// All others.
    Other,
}

impl Key {
    fn new(name: &[u8]) -> Self {
        match name {
            b"compatible" => Self::Compatible,
            b"reg" => Self::Reg,
            b"interrupts" => Self::Interrupts,
            b"interrupts-extended" => Self::InterruptsExtended,
            b"status" => Self::Status,
            b"device_type" => Self::DeviceType,
            b"#address-cells" => Self::NumberOfAddressCells,
            b"#size-cells" => Self::NumberOfSizeCells,
            b"ranges" => Self::Ranges,
            b"enable-method" => Self::EnableMethod,
            b"cpu-release-addr" => Self::CpuReleaseAddr,
            b"method" => Self::Method,
            b"cpu_on" => Self::CpuOn,
            b"#interrupt-cells" => Self::NumberOfInterruptCells,
            b"interrupt-names" => Self::InterruptNames,
            b"interrupt-map" => Self::InterruptMap,
            b"interrupt-map-mask" => Self::InterruptMapMask,
            b"dma-ranges" => Self::DmaRanges,
            b"iommu-map" => Self::IommuMap,
            b"bus-range" => Self::BusRange,
            b"phandle" => Self::Phandle,
            b"#redistributor-regions" => Self::NumberOfRedistributorRegions,
            b"redistributor-stride" => Self::RedistributorStride,
            b"clock-frequency" => Self::ClockFrequency,
            b"dma-coherent" => Self::DmaCoherent,
            b"reg-shift" => Self::RegShift,
            b"reg-io-width" => Self::RegIoWidth,
            b"model" => Self::Model,
            b"bootargs" => Self::Bootargs,
            b"stdout-path" => Self::StdoutPath,
            b"linux,initrd-start" => Self::InitrdStart,
            b"linux,initrd-end" => Self::InitrdEnd,
            b"rng-seed" => Self::RngSeed,
            b"kaslr-seed" => Self::KaslrSeed,
            _ => Self::Other,
        }
    }
}

/// The keys of names that have been met, each at a place that its offset says. A tree has some hundred properties with a
/// few dozen names: most are found here.
#[derive(Debug)]
struct Keys {
    known: [(NameOffset, Key); Self::PLACES],
}

impl Keys {
    const PLACES: usize = 128;

    fn new() -> Self {
        Self { known: [(NameOffset(u32::MAX), Key::Other); Self::PLACES] }
    }

    fn find(&mut self, blob: &Blob<'_>, name: NameOffset) -> Result<Key, PlatformError> {
        let Some(place) = self.known.get_mut(name.0 as usize % Self::PLACES) else { return Ok(Key::Other) };
        if place.0 != name {
            *place = (name, Key::new(blob.string(name)?));
        }
        Ok(place.1)
    }
}

/// What a node's properties say, as far as any node is asked for it.
#[derive(Debug, Default)]
struct Node<'t> {
    offset: usize,
    compatible: &'t [u8],
    device_type: &'t [u8],
    disabled: bool,
    reg: &'t [u8],
    interrupts: Interrupts<'t>,
    interrupt_cells: Option<u32>,
    interrupt_names: &'t [u8],
    interrupt_map: &'t [u8],
    dma_ranges: &'t [u8],
    has_iommu_map: bool,
    interrupt_map_mask: &'t [u8],
    bus_range: &'t [u8],
    phandle: Option<u32>,
    address_cells: Option<u32>,
    size_cells: Option<u32>,
    ranges: Option<&'t [u8]>,
    model: &'t [u8],
    method: &'t [u8],
    enable_method: &'t [u8],
    release_address: &'t [u8],
    redistributor_regions: Option<u32>,
    redistributor_stride: &'t [u8],
    cpu_on: Option<u32>,
    clock_frequency: &'t [u8],
    is_coherent: bool,
    register_shift: Option<u32>,
    register_width: Option<u32>,
    chosen: Chosen<'t>,
}

impl<'t> Node<'t> {
    fn set(&mut self, key: Key, value: &'t [u8]) {
        let cell = || Cells(value).cell();
        match key {
            Key::Compatible => self.compatible = value,
            Key::Reg => self.reg = value,
            Key::Interrupts if !self.interrupts.extended => self.interrupts = Interrupts { value, extended: false },
            Key::InterruptsExtended => self.interrupts = Interrupts { value, extended: true },
            Key::Status => self.disabled = !matches!(value, b"okay\0" | b"ok\0"),
            Key::DeviceType => self.device_type = value,
            Key::NumberOfAddressCells => self.address_cells = cell(),
            Key::NumberOfSizeCells => self.size_cells = cell(),
            Key::Ranges => self.ranges = Some(value),
            Key::EnableMethod => self.enable_method = value,
            Key::CpuReleaseAddr => self.release_address = value,
            Key::Method => self.method = value,
            Key::CpuOn => self.cpu_on = cell(),
            Key::NumberOfInterruptCells => self.interrupt_cells = cell(),
            Key::InterruptNames => self.interrupt_names = value,
            Key::InterruptMap => self.interrupt_map = value,
            Key::DmaRanges => self.dma_ranges = value,
            Key::IommuMap => self.has_iommu_map = true,
            Key::InterruptMapMask => self.interrupt_map_mask = value,
            Key::BusRange => self.bus_range = value,
            Key::Phandle => self.phandle = cell(),
            Key::NumberOfRedistributorRegions => self.redistributor_regions = cell(),
            Key::RedistributorStride => self.redistributor_stride = value,
            Key::ClockFrequency => self.clock_frequency = value,
            Key::DmaCoherent => self.is_coherent = true,
            Key::RegShift => self.register_shift = cell(),
            Key::RegIoWidth => self.register_width = cell(),
            Key::Model => self.model = value,
            Key::Bootargs => self.chosen.bootargs = value,
            Key::StdoutPath => self.chosen.stdout_path = value,
            Key::InitrdStart => self.chosen.initrd_start = Cells(value).whole(),
            Key::InitrdEnd => self.chosen.initrd_end = Cells(value).whole(),
            Key::RngSeed => self.chosen.rng_seed = Some(value),
            Key::KaslrSeed => self.chosen.kaslr_seed = Some(value),
            Key::Interrupts | Key::Other => {}
        }
    }

    fn is_compatible(&self, with: &[u8]) -> bool {
        strings(self.compatible).any(|string| string == with)
    }

    /// How the addresses of its children are written and translated.
    fn bus(&self) -> Bus<'t> {
        let CellCounts { address, size } = CellCounts::DEFAULT;
        let counts =
            CellCounts { address: self.address_cells.unwrap_or(address), size: self.size_cells.unwrap_or(size) };
        Bus { counts, ranges: self.ranges }
    }
}

/// The strings of a list of strings.
pub(super) fn strings(list: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    list.strip_suffix(b"\0").unwrap_or(list).split(|&byte| byte == 0).filter(|string| !string.is_empty())
}

impl<'t> Survey<'t> {
    /// Adds what must not be used.
    pub(super) fn reserve(&mut self, start: u64, size: u64) {
        match Range::new(Pa(start), size) {
            Some(range) if range.is_empty() => {}
            Some(range) => self.too_many_reserved |= self.reserved.try_push(range).is_err(),
            None => self.reserve(start, u64::MAX - start),
        }
    }

    /// Walks over all of the tree. Into what the caller has: a survey is large, and one that is returned lies on the stack twice.
    pub(super) fn walk(&mut self, blob: &Blob<'t>) -> Result<(), PlatformError> {
        let mut tokens = blob.tokens();
        let mut keys = Keys::new();
        // The levels above the current node, and its own as soon as it has been looked at.
        let mut buses = [Bus::EMPTY; MAX_DEPTH];
        // What the node of depth 1 we are in is called.
        let mut section: &[u8] = b"";
        let mut depth = 0_usize;
        // The node whose properties are being read. It stays where it is: moving it costs more than reading it.
        let mut node = Node::default();
        let mut is_open = false;
        loop {
            let offset = tokens.offset();
            let token = tokens.next()?;
            if let Some(Token::Property { name, value }) = token {
                if is_open {
                    node.set(keys.find(blob, name)?, value);
                }
                continue;
            }
            // The properties of the current node are complete.
            if is_open {
                is_open = false;
                let level = depth - 1;
                if let Some((above, own)) = buses.split_at_mut_checked(level)
                    && let Some(own) = own.first_mut()
                {
                    *own = node.bus();
                    self.visit(&node, section, above);
                }
            }
            match token {
                Some(Token::Begin(name)) => {
                    if depth == 1 {
                        section = name;
                    }
                    depth += 1;
                    if depth <= MAX_DEPTH {
                        node = Node { offset, ..Node::default() };
                        is_open = true;
                    }
                }
                Some(Token::End) => {
                    depth = depth.checked_sub(1).ok_or(PlatformError::Malformed("a node too many ends"))?
                }
                _ if depth == 0 => return Ok(()),
                _ => return Err(PlatformError::Malformed("a node does not end")),
            }
        }
    }

    /// Looks at a node below `buses`, inside the node of depth 1 called `section`.
    fn visit(&mut self, node: &Node<'t>, section: &[u8], buses: &[Bus<'t>]) {
        match (buses.len(), section) {
            (0, _) => self.model = node.model,
            (1, b"chosen") => self.chosen = node.chosen,
            (2, b"reserved-memory") => self.visit_reserved(node, buses),
            (2, b"cpus") if node.device_type == b"cpu\0" && !node.disabled => self.visit_cpu(node, buses),
            (1, _) if node.device_type == b"memory\0" && !node.disabled => self.visit_memory(node, buses),
            _ if !node.compatible.is_empty() && !node.disabled => self.visit_device(node, buses),
            _ => {}
        }
    }

    /// The binding wants addresses below /reserved-memory to be the CPUs' own. A tree that says otherwise, or nothing, is
    /// taken by the binding rather than not at all: what is reserved must not be lost.
    fn visit_reserved(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        let Some(parent) = buses.last() else { return };
        let mut reg = Cells(node.reg);
        while let Some((start, size)) = reg.register_block(parent.counts) {
            self.reserve(start, size);
        }
    }

    fn visit_memory(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        let mut reg = Cells(node.reg);
        while let Some(range) = physical_range(&mut reg, buses) {
            if !range.is_empty() {
                add_memory(&mut self.memory, range);
            }
        }
    }

    fn visit_cpu(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        let cells = buses.last().map_or(1, |bus| bus.counts.address);
        let Some(mpidr) = Cells(node.reg).number(cells) else { return };
        // Whoever knows one of several methods may take it (Devicetree Specification 0.4, section 3.8.1): of those that we know, a
        // mailbox is the best, and then what comes first.
        let release = Cells(node.release_address).whole();
        let known = strings(node.enable_method).filter_map(|method| match (method, release) {
            (b"psci", _) => Some(BootMethod::Psci),
            (b"spin-table", Some(at)) => Some(BootMethod::SpinTable(Pa(at))),
            // Its address word is named, as that of a spin table.
            (b"undercroft,mailbox", Some(at)) => Some(BootMethod::Mailbox(Pa(at).align_down(units::PAGE_SIZE))),
            _ => None,
        });
        let is_mailbox = |boot: &BootMethod| matches!(boot, BootMethod::Mailbox(_));
        let mailbox = known.clone().find(is_mailbox);
        let boot = mailbox.or_else(|| known.clone().next()).unwrap_or(BootMethod::Unknown);
        let cpu = Cpu { id: CpuId(self.cpus.len() as u16), mpidr: mpidr & Cpu::AFFINITY_MASK, boot };
        if self.cpus.try_push(cpu).is_err() {
            self.cpus_left_out += 1;
        }
    }

    /// A device that does not see our caches sees other buffers than we do, and one without an interrupt is no use. A window that
    /// would need a row too many stays unknown.
    fn visit_window(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        // How many cells an interrupt has does not matter for the first.
        if node.is_coherent
            && let Some(registers) = physical_range(&mut Cells(node.reg), buses).filter(|range| !range.is_empty())
            && let Some(interrupt) = node.interrupts.get(0, 3)
        {
            match self.windows.last_mut() {
                Some(row) if row.is_followed_by(registers, interrupt) => row.registers.size += registers.size,
                Some(row) if row.follows(registers, interrupt) => {
                    row.registers = Range { start: registers.start, size: row.registers.size + registers.size };
                    row.interrupt = interrupt;
                }
                _ => {
                    let _ = self.windows.try_push(WindowRow { registers, size: registers.size, interrupt });
                }
            }
        }
    }

    fn visit_device(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        // Where there are any there are many, so they are not looked for among all the others.
        if node.compatible == b"virtio,mmio\0" {
            return self.visit_window(node, buses);
        }
        for compatible in strings(node.compatible) {
            let uart = match compatible {
                b"arm,gic-v3" => return self.visit_gic(node, buses),
                b"arm,gic-v3-its" => {
                    self.its = self.its.or_else(|| physical_range(&mut Cells(node.reg), buses));
                    return;
                }
                b"arm,gic-400" | b"arm,cortex-a15-gic" | b"arm,cortex-a9-gic" => {
                    self.old_gic = true;
                    return;
                }
                b"arm,pl031" => {
                    self.clock = self.clock.or_else(|| physical_range(&mut Cells(node.reg), buses));
                    return;
                }
                b"virtio,mmio" => return self.visit_window(node, buses),
                b"pci-host-ecam-generic" => return self.visit_pci(node, buses),
                b"arm,armv8-timer" => return self.visit_timer(node),
                b"arm,psci-1.0" | b"arm,psci-0.2" | b"arm,psci" => return self.visit_psci(node),
                b"arm,pl011" => ConsoleKind::Pl011,
                b"arm,sbsa-uart" => ConsoleKind::Sbsa,
                b"ns16550a" | b"ns16550" | b"snps,dw-apb-uart" => ConsoleKind::Ns16550 {
                    register_shift: node.register_shift.map_or(0, |shift| shift.min(3) as u8),
                    register_width: match node.register_width {
                        Some(2) => 2,
                        Some(4) => 4,
                        _ => 1,
                    },
                },
                _ => continue,
            };
            if let Some(registers) = physical_range(&mut Cells(node.reg), buses) {
                let uart = UartNode { offset: node.offset, kind: uart, registers, interrupts: node.interrupts };
                // One too many is not the console, or too unlikely.
                let _ = self.uarts.try_push(uart);
            }
            return;
        }
    }

    /// The binding: the Distributor, as many regions of Redistributors as a property says, then registers of a GICv2.
    fn visit_gic(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        let mut reg = Cells(node.reg);
        let Some(distributor) = physical_range(&mut reg, buses) else { return };
        let regions = node.redistributor_regions.unwrap_or(1) as usize;
        let redistributors = core::iter::from_fn(|| physical_range(&mut reg, buses))
            .take(regions.min(MAX_REDISTRIBUTOR_REGIONS))
            .collect();
        self.gic.get_or_insert(GicNode {
            distributor,
            redistributors,
            stride: Cells(node.redistributor_stride).whole().filter(|&stride| stride != 0),
            interrupts: node.interrupts,
            interrupt_cells: node.interrupt_cells.unwrap_or(3),
            phandle: node.phandle.unwrap_or(0),
            address_cells: node.address_cells.unwrap_or(0),
        });
    }

    /// The first one. As with windows, one whose devices do not see our caches is no use.
    fn visit_pci(&mut self, node: &Node<'t>, buses: &[Bus<'t>]) {
        if node.is_coherent && self.pci.is_none() {
            let (reg, bus_range, own) = (node.reg, node.bus_range, node.bus());
            let (map, mask) = (node.interrupt_map, node.interrupt_map_mask);
            let (dma_ranges, has_iommu) = (node.dma_ranges, node.has_iommu_map);
            let node = PciNode { reg, bus_range, own, map, mask, dma_ranges, has_iommu };
            self.pci = Some(node.read(buses));
        }
    }

    fn visit_timer(&mut self, node: &Node<'t>) {
        let frequency = Cells(node.clock_frequency).whole().filter(|&frequency| frequency != 0).map(Hz);
        self.timer = Some(TimerNode { interrupts: node.interrupts, names: node.interrupt_names, frequency });
    }

    fn visit_psci(&mut self, node: &Node<'t>) {
        let conduit = match node.method {
            b"smc\0" => Conduit::Smc,
            b"hvc\0" => Conduit::Hvc,
            _ => return,
        };
        let version = if node.is_compatible(b"arm,psci-1.0") {
            PsciVersion::V1_0
        } else if node.is_compatible(b"arm,psci-0.2") {
            PsciVersion::V0_2
        } else {
            PsciVersion::V0_1
        };
        let cpu_on = match (version, node.cpu_on) {
            (PsciVersion::V0_1, Some(number)) => number,
            (PsciVersion::V0_1, None) => return,
            _ => CPU_ON_64,
        };
        self.psci = Some(Psci { conduit, version, cpu_on });
    }
}

/// Adds to a sorted list; merges what touches or overlaps. When the list is full the range is left out, which costs
/// memory and nothing else.
fn add_memory(memory: &mut ArrayVec<Range<Pa>, MAX_MEMORY_RANGES>, mut range: Range<Pa>) {
    let first = memory.partition_point(|other| other.end() < range.start);
    while let Some(&other) = memory.get(first).filter(|other| other.start <= range.end()) {
        let (start, end) = (other.start.min(range.start), other.end().max(range.end()));
        range = Range { start, size: end.0 - start.0 };
        memory.remove(first);
    }
    let _ = memory.try_insert(first, range);
}
