//! The reader of flattened device trees.
//!
//! * `blob`: bytes to tokens. * `cells`: values to numbers, addresses and interrupts. * `survey`: the walk. * `pci`: a PCI host.
//!
//! Here the findings become the [`Platform`].

mod blob;
mod cells;
mod pci;
mod survey;

#[cfg(test)]
mod tests;

use crate::pci::MapController;
use crate::{BadPciHost, Console, ConsoleKind, Gicv3, InterruptLine, PciHost, Platform, PlatformError, Timer};
use blob::{Blob, Token};
pub(crate) use pci::line_in_map;
pub(crate) use survey::WindowRow;
use survey::{Survey, TimerNode, strings};
use units::{Pa, Range};

/// How many bytes at the start of a blob [`device_tree_size`] needs.
pub const HEADER_SIZE: usize = 8;
/// The largest blob that is read, in bytes.
pub const MAX_DEVICE_TREE_SIZE: usize = 2 << 20;

/// The length of the blob that begins with these bytes, if it is a device tree and not larger than
/// [`MAX_DEVICE_TREE_SIZE`]. For whoever has only an address, and must know how much to map.
#[must_use]
pub fn device_tree_size(header: [u8; HEADER_SIZE]) -> Option<usize> {
    let [m0, m1, m2, m3, s0, s1, s2, s3] = header;
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    ([m0, m1, m2, m3] == [0xd0, 0x0d, 0xfe, 0xed] && size <= MAX_DEVICE_TREE_SIZE).then_some(size)
}

impl<'t> Platform<'t> {
    /// Reads the flattened device tree `blob`, which lies at the physical address `location`. `blob` has the length that
    /// [`device_tree_size`] said; the platform's strings point into it.
    ///
    /// # Errors
    /// If it is malformed, or something is missing without which there can be no hypervisor.
    pub fn from_device_tree(blob: &'t [u8], location: Pa) -> Result<Self, PlatformError> {
        let blob = Blob::new(blob)?;
        let mut survey = Survey::default();
        survey.walk(&blob)?;
        if survey.cpus.is_empty() {
            return Err(PlatformError::NoCpus);
        }
        if survey.memory.is_empty() {
            return Err(PlatformError::NoMemory);
        }
        let initrd = survey.initrd();
        for (start, size) in blob.reservations() {
            survey.reserve(start, size);
        }
        survey.reserve(location.0, blob.len() as u64);
        if let Some(initrd) = initrd {
            survey.reserve(initrd.start.0, initrd.size);
        }
        if survey.too_many_reserved {
            return Err(PlatformError::TooManyReservedRanges);
        }
        Ok(Self {
            model: first_string(survey.model),
            gic: survey.gic()?,
            timer: survey.timer()?,
            console: survey.console(&blob),
            clock: survey.clock,
            pci: survey.pci(),
            windows: survey.windows,
            cpus: survey.cpus,
            cpus_left_out: survey.cpus_left_out,
            memory: survey.memory,
            reserved: survey.reserved,
            psci: survey.psci,
            initrd,
            bootargs: first_string(survey.chosen.bootargs),
            seed: survey.chosen.rng_seed.or(survey.chosen.kaslr_seed).filter(|seed| !seed.is_empty()),
        })
    }
}

impl crate::Psci {
    /// Finds just the firmware's power interface, also in a device tree of which no [`Platform`] can be made: so that the
    /// machine can be switched off.
    #[must_use]
    pub fn from_device_tree(tree: &[u8]) -> Option<Self> {
        let blob = Blob::new(tree).ok()?;
        let mut survey = Survey::default();
        survey.walk(&blob).ok()?;
        survey.psci
    }
}

impl Console {
    /// Finds just the console, also in a device tree of which no [`Platform`] can be made: so that the reason can be said.
    #[must_use]
    pub fn from_device_tree(blob: &[u8]) -> Option<Self> {
        let blob = Blob::new(blob).ok()?;
        let mut survey = Survey::default();
        survey.walk(&blob).ok()?;
        survey.console(&blob)
    }
}

impl<'t> Survey<'t> {
    fn initrd(&self) -> Option<Range<Pa>> {
        let start = self.chosen.initrd_start?;
        let size = self.chosen.initrd_end?.checked_sub(start).filter(|&size| size != 0)?;
        Range::new(Pa(start), size)
    }

    fn interrupt_cells(&self) -> u32 {
        self.gic.as_ref().map_or(3, |gic| gic.interrupt_cells)
    }

    fn pci(&mut self) -> Option<Result<PciHost<'t>, BadPciHost>> {
        let mut pci = self.pci.take();
        if let (Some(Ok(pci)), Some(gic)) = (&mut pci, &self.gic) {
            let (phandle, address_cells, interrupt_cells) = (gic.phandle, gic.address_cells, gic.interrupt_cells);
            pci.controller = MapController { phandle, address_cells, interrupt_cells };
        }
        pci
    }

    fn gic(&self) -> Result<Gicv3, PlatformError> {
        let gic = match &self.gic {
            Some(gic) if !gic.redistributors.is_empty() => gic,
            None if self.old_gic => return Err(PlatformError::OldGic),
            _ => return Err(PlatformError::NoGicv3),
        };
        if let Some(stride) = gic.stride.filter(|&stride| !Gicv3::is_stride(stride)) {
            return Err(PlatformError::RedistributorStride(stride));
        }
        let maintenance = gic.interrupts.get(0, gic.interrupt_cells).ok_or(PlatformError::NoMaintenanceInterrupt)?;
        Ok(Gicv3 {
            distributor: gic.distributor,
            redistributors: gic.redistributors.clone(),
            stride: gic.stride,
            its: self.its,
            maintenance,
        })
    }

    /// The binding has the interrupts in a fixed order, unless their names are given.
    fn timer(&self) -> Result<Timer, PlatformError> {
        let node = self.timer.as_ref().ok_or(PlatformError::NoTimer)?;
        let find = |name: &[u8], index| self.timer_interrupt(node, name, index);
        Ok(Timer {
            physical: find(b"phys", 1).ok_or(PlatformError::NoTimer)?,
            virtual_: find(b"virt", 2).ok_or(PlatformError::NoTimer)?,
            hypervisor_physical: find(b"hyp-phys", 3).ok_or(PlatformError::NoTimer)?,
            hypervisor_virtual: find(b"hyp-virt", 4),
            frequency: node.frequency,
        })
    }

    fn timer_interrupt(&self, node: &TimerNode<'_>, name: &[u8], index: usize) -> Option<InterruptLine> {
        let index =
            if node.names.is_empty() { index } else { strings(node.names).position(|candidate| candidate == name)? };
        node.interrupts.get(index, self.interrupt_cells())
    }

    /// The UART that /chosen names, else the first PL011, else the first of any kind.
    fn console(&self, blob: &Blob<'_>) -> Option<Console> {
        // Where there is but one there is no choice, and no need to look for the path.
        let named = if self.uarts.len() > 1 { find_stdout(blob, self.chosen.stdout_path) } else { None };
        let uart = (self.uarts.iter().find(|uart| Some(uart.offset) == named))
            .or_else(|| self.uarts.iter().find(|uart| uart.kind == ConsoleKind::Pl011))
            .or_else(|| self.uarts.first())?;
        let interrupt = uart.interrupts.get(0, self.interrupt_cells());
        Some(Console { kind: uart.kind, registers: uart.registers, interrupt })
    }
}

/// The node that `stdout-path` means: a path or an alias, perhaps followed by a colon and options.
fn find_stdout(blob: &Blob<'_>, stdout_path: &[u8]) -> Option<usize> {
    let path = strings(stdout_path).next()?;
    let path = path.split(|&byte| byte == b':').next()?;
    if path.starts_with(b"/") { blob.find(path) } else { blob.find(find_alias(blob, path)?) }
}

/// The path that `/aliases` has for `alias`.
fn find_alias<'t>(blob: &Blob<'t>, alias: &[u8]) -> Option<&'t [u8]> {
    let mut tokens = blob.tokens_at(blob.find(b"/aliases")?);
    tokens.next().ok()??;
    while let Some(Token::Property { name, value }) = tokens.next().ok()? {
        if blob.string(name).ok()? == alias {
            return strings(value).next();
        }
    }
    None
}

/// The first string of a value, as far as it is UTF-8.
fn first_string(value: &[u8]) -> &str {
    let string = strings(value).next().unwrap_or_default();
    match str::from_utf8(string) {
        Ok(string) => string,
        Err(error) => str::from_utf8(string.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default(),
    }
}
