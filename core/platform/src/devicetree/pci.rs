//! The node of a PCI host, and the map of its interrupts.

use arrayvec::ArrayVec;
use units::{PAGE_SIZE, Pa, Range};

use super::cells::{Bus, CellCounts, Cells, Interrupts, physical_address, physical_range};
use crate::pci::MapController;
use crate::{BadPciHost, InterruptLine, MAX_PCI_WINDOWS, PciHost, PciWindow};

/// Cells of an address on the PCI bus, and of a size there.
const ADDRESS_CELLS: u32 = 3;
const SIZE: CellCounts = CellCounts { address: ADDRESS_CELLS, size: 2 };
/// Which space an address is in: bits 25:24 of its first cell. 1 is for ports, 0 configuration.
const SPACE: u32 = 3 << 24;
const MEMORY_32: u32 = 2 << 24;
const MEMORY_64: u32 = 3 << 24;

/// What the node says, as it stands.
#[derive(Debug)]
pub(super) struct PciNode<'t> {
    pub(super) reg: &'t [u8],
    pub(super) bus_range: &'t [u8],
    pub(super) own: Bus<'t>,
    pub(super) map: &'t [u8],
    pub(super) mask: &'t [u8],
    pub(super) dma_ranges: &'t [u8],
    pub(super) has_iommu: bool,
}

impl<'t> PciNode<'t> {
    /// The host. `buses` are the levels from the root to the node's parent.
    pub(super) fn read(&self, buses: &[Bus<'_>]) -> Result<PciHost<'t>, BadPciHost> {
        let whole = physical_range(&mut Cells(self.reg), buses).ok_or(BadPciHost::Configuration)?;
        if whole.size < PciHost::BUS_SIZE || !whole.start.is_aligned(PAGE_SIZE) {
            return Err(BadPciHost::Configuration);
        }
        // Where memory is for its devices is told them as the CPUs see it.
        if self.has_iommu || !self.reaches_memory_as_cpus(buses) {
            return Err(BadPciHost::Dma);
        }
        let windows = self.windows(buses);
        if windows.is_empty() {
            return Err(BadPciHost::Windows);
        }
        Ok(PciHost {
            configuration: Range { start: whole.start, size: PciHost::BUS_SIZE },
            windows,
            bus: Cells(self.bus_range).cell().unwrap_or(0) as u8,
            map: self.map,
            mask: self.mask,
            // Known when the controller's node is.
            controller: MapController::default(),
        })
    }

    /// Whether memory has the same addresses on the bus as for the CPUs, as far as the node says. Without the property it has.
    fn reaches_memory_as_cpus(&self, buses: &[Bus<'_>]) -> bool {
        let (mut ranges, parent_cells) = (Cells(self.dma_ranges), parent_cells(buses));
        while !ranges.0.is_empty() {
            let (Some(_), Some(address)) = (ranges.cell(), ranges.number(2)) else { return false };
            let (Some(memory), Some(_)) = (ranges.number(parent_cells), ranges.number(SIZE.size)) else { return false };
            if physical_address(memory, buses) != Some(address) {
                return false;
            }
        }
        true
    }

    fn windows(&self, buses: &[Bus<'_>]) -> ArrayVec<PciWindow, MAX_PCI_WINDOWS> {
        let mut windows = ArrayVec::new();
        let Some(ranges) = self.own.ranges.filter(|_| self.own.counts == SIZE) else { return windows };
        let mut ranges = Cells(ranges);
        let parent_cells = parent_cells(buses);
        while let (Some(space), Some(bus_address)) = (ranges.cell(), ranges.number(2)) {
            let (Some(start), Some(size)) = (ranges.number(parent_cells), ranges.number(SIZE.size)) else { break };
            if !matches!(space & SPACE, MEMORY_32 | MEMORY_64) || bus_address.checked_add(size).is_none() {
                continue;
            }
            if let Some(start) = physical_address(start, buses)
                && let Some(memory) = Range::new(Pa(start), size).filter(|range| !range.is_empty())
            {
                let _ = windows.try_push(PciWindow { memory, bus_address });
            }
        }
        windows
    }
}

/// How many cells an address has on the bus that the node is on.
fn parent_cells(buses: &[Bus<'_>]) -> u32 {
    buses.last().map_or(2, |bus| bus.counts.address)
}

/// The line that the map has for `wanted`: a unit address of three cells, and a pin. An entry is such four cells, a controller with
/// a unit address of its own, and one of its interrupts. How long an entry of another controller is nobody knows here: with the first
/// of those the map ends.
pub(crate) fn line_in_map(
    map: &[u8],
    mask: &[u8],
    wanted: [u32; 4],
    controller: MapController,
) -> Option<InterruptLine> {
    let mut masks = Cells(mask);
    let mask = [(); 4].map(|()| masks.cell().unwrap_or(u32::MAX));
    let skipped = usize::try_from(controller.address_cells).ok()?.checked_mul(4)?;
    let length = usize::try_from(controller.interrupt_cells).ok()?.checked_mul(4)?;
    let mut map = Cells(map);
    // Each round takes at least five cells.
    loop {
        let [a, b, c, d] = [(); 4].map(|()| map.cell());
        let entry = [a?, b?, c?, d?];
        if map.cell()? != controller.phandle {
            return None;
        }
        let value = map.0.get(skipped..skipped.checked_add(length)?)?;
        if entry.iter().zip(wanted).zip(mask).all(|((&entry, wanted), mask)| entry & mask == wanted & mask) {
            return Interrupts { value, extended: false }.get(0, controller.interrupt_cells);
        }
        map = Cells(map.0.get(skipped + length..)?);
    }
}
