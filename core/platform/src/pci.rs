//! A PCI host whose configuration space lies in memory (ECAM), as the binding `pci-host-ecam-generic` describes it.
//!
//! What is needed to use a function on its first bus: where the bus's configuration space is, in which windows registers may be
//! placed, and which of the interrupt controller's lines each function's pin leads to (the map of section 2.4 of the Devicetree
//! Specification 0.4). The map stays as it stands, and is searched for a pin when one is wanted.

use arrayvec::ArrayVec;
use units::{Pa, Range};

use crate::InterruptLine;
use crate::devicetree::line_in_map;

/// How many windows are used, the first ones. QEMU's `virt` has two.
pub const MAX_PCI_WINDOWS: usize = 4;

/// A PCI host.
#[derive(Clone, Debug)]
pub struct PciHost<'t> {
    /// The configuration space of its first bus: 4 KiB for each of 8 functions of 32 devices.
    pub configuration: Range<Pa>,
    /// The windows for memory.
    pub windows: ArrayVec<PciWindow, MAX_PCI_WINDOWS>,
    /// The number of its first bus.
    pub(crate) bus: u8,
    /// `interrupt-map` and `interrupt-map-mask`.
    pub(crate) map: &'t [u8],
    pub(crate) mask: &'t [u8],
    /// The interrupt controller of the map's entries.
    pub(crate) controller: MapController,
}

/// How the map's entries speak of the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct MapController {
    /// Its phandle.
    pub(crate) phandle: u32,
    /// How many cells its unit address and its interrupts take.
    pub(crate) address_cells: u32,
    pub(crate) interrupt_cells: u32,
}

/// Addresses of the PCI bus at which the CPUs reach memory of functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciWindow {
    /// Where it is for the CPUs.
    pub memory: Range<Pa>,
    /// Where it begins on the bus.
    pub bus_address: u64,
}

/// Why a PCI host cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPciHost {
    /// `reg`.
    #[error("its reg must name the configuration space of a whole bus, 1 MiB at a multiple of 4 KiB")]
    Configuration,
    /// `ranges`.
    #[error("its ranges name no window for memory")]
    Windows,
    /// `dma-ranges`, or `iommu-map`.
    #[error("its dma-ranges or iommu-map say that its devices reach memory at other addresses than the CPUs")]
    Dma,
}

impl PciHost<'_> {
    /// Bytes of a bus's configuration space.
    pub const BUS_SIZE: u64 = 1 << 20;

    /// The line that pin `pin` (1 to 4 for INTA to INTD) of device number `device` of the first bus leads to.
    #[inline(never)]
    #[must_use]
    pub fn interrupt(&self, device: u8, pin: u8) -> Option<InterruptLine> {
        let address = u32::from(self.bus) << 16 | u32::from(device & 31) << 11;
        line_in_map(self.map, self.mask, [address, 0, 0, pin.into()], self.controller)
    }
}

impl PciWindow {
    /// Where the CPUs find `size` bytes at `address` of the bus, if all of them are in this window.
    #[must_use]
    pub fn find(&self, address: u64, size: u64) -> Option<Range<Pa>> {
        let start = self.memory.start.0.checked_add(address.checked_sub(self.bus_address)?)?;
        Range::new(Pa(start), size).filter(|&range| self.memory.contains_range(range))
    }
}
