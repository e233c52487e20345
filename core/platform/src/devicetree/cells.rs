//! Numbers in properties: lists of 32-bit big-endian cells, of which one or two make an address or a size, as many as the
//! parent node says (Devicetree Specification 0.4, section 2.3).

use crate::InterruptLine;
use units::{IntId, Pa, Range, Trigger};

/// The GIC's INTIDs of the ranges that GICv3.1 added.
const EXTENDED_SPI_BASE: u32 = 4096;
const EXTENDED_PPI_BASE: u32 = 1056;
/// The flags of an interrupt that say what of its line is one; the others are masks of CPUs in the binding of older GICs.
const SENSE: u32 = 0xf;

/// How many cells an address and a size have below some node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CellCounts {
    /// `#address-cells`.
    pub(super) address: u32,
    /// `#size-cells`.
    pub(super) size: u32,
}

impl CellCounts {
    /// What holds where a node says nothing (section 2.3.5).
    pub(super) const DEFAULT: Self = Self { address: 2, size: 1 };
}

/// A property's value, read from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells<'t>(pub(super) &'t [u8]);

impl Cells<'_> {
    /// The next cell.
    pub(super) fn cell(&mut self) -> Option<u32> {
        let (cell, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*cell))
    }

    /// A number of `count` cells: none is 0, more than two are no number (a PCI address, say).
    pub(super) fn number(&mut self, count: u32) -> Option<u64> {
        match count {
            0 => Some(0),
            1 => self.cell().map(u64::from),
            2 => {
                let (cells, rest) = self.0.split_first_chunk()?;
                self.0 = rest;
                Some(u64::from_be_bytes(*cells))
            }
            _ => None,
        }
    }

    /// All there is as one number of one or two cells.
    pub(super) fn whole(mut self) -> Option<u64> {
        match self.0.len() {
            4 => self.number(1),
            8 => self.number(2),
            _ => None,
        }
    }

    /// The next entry of a `reg` property: an address of the parent's bus, and a size. One of no cells at all is none: a
    /// list of those would never end.
    pub(super) fn register_block(&mut self, counts: CellCounts) -> Option<(u64, u64)> {
        if counts.address == 0 && counts.size == 0 {
            return None;
        }
        Some((self.number(counts.address)?, self.number(counts.size)?))
    }
}

/// A level of the tree, as far as addresses below it are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bus<'t> {
    /// How addresses of its children are written.
    pub(super) counts: CellCounts,
    /// How they are translated to addresses of its own parent: `None` not at all, empty unchanged.
    pub(super) ranges: Option<&'t [u8]>,
}

impl Bus<'_> {
    /// The root, or a level of which nothing is known yet.
    pub(super) const EMPTY: Self = Self { counts: CellCounts::DEFAULT, ranges: None };

    /// Translates `address` of a child to an address of the parent, in whose properties addresses have
    /// `parent_address_cells`.
    fn translate(&self, address: u64, parent_address_cells: u32) -> Option<u64> {
        let mut ranges = Cells(self.ranges?);
        if ranges.0.is_empty() {
            return Some(address);
        }
        loop {
            let left = ranges.0.len();
            let child = ranges.number(self.counts.address)?;
            let parent = ranges.number(parent_address_cells)?;
            let size = ranges.number(self.counts.size)?;
            if let Some(offset) = address.checked_sub(child)
                && offset < size
            {
                return parent.checked_add(offset);
            }
            // Entries of no cells at all would never come to an end.
            if ranges.0.len() == left {
                return None;
            }
        }
    }
}

/// The next block of `reg`, as the CPUs see it. `buses` are the levels from the root to the node's parent.
pub(super) fn physical_range(reg: &mut Cells<'_>, buses: &[Bus<'_>]) -> Option<Range<Pa>> {
    let parent = buses.last()?;
    let (address, size) = reg.register_block(parent.counts)?;
    Range::new(Pa(physical_address(address, buses)?), size)
}

/// An address as children of the last of `buses` have it, as the CPUs see it.
pub(super) fn physical_address(mut address: u64, buses: &[Bus<'_>]) -> Option<u64> {
    for [outer, inner] in buses.array_windows().rev() {
        address = inner.translate(address, outer.counts.address)?;
    }
    Some(address)
}

/// The interrupts of a node: `interrupts`, or `interrupts-extended` where each is preceded by its controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Interrupts<'t> {
    /// The value.
    pub(super) value: &'t [u8],
    /// Whether it is that of `interrupts-extended`.
    pub(super) extended: bool,
}

impl Interrupts<'_> {
    /// Interrupt number `index` of the list, each described by `cells` cells of the GIC's binding: kind (0 SPI, 1 PPI,
    /// 2 extended SPI, 3 extended PPI), number, flags. The flags say what of the line is an interrupt: 1 and 2 a rising and a
    /// falling edge, 4 and 8 a high and a low level, 0 nothing. An entry of two cells has none.
    pub(crate) fn get(self, index: usize, cells: u32) -> Option<InterruptLine> {
        let entry = usize::try_from(cells).ok()?.checked_add(usize::from(self.extended))?.checked_mul(4)?;
        let mut entry = Cells(self.value.get(entry.checked_mul(index)?..)?);
        if self.extended {
            entry.cell()?;
        }
        let (kind, number) = (entry.cell()?, entry.cell()?);
        let interrupt = match kind {
            0 if number < 988 => IntId::spi(number),
            1 if number < 16 => IntId::ppi(number),
            2 if number < 1024 => IntId(EXTENDED_SPI_BASE + number),
            3 if number < 64 => IntId(EXTENDED_PPI_BASE + number),
            _ => return None,
        };
        let flags = if cells < 3 { 0 } else { entry.cell()? & SENSE };
        let trigger = match flags {
            1 | 2 => Some(Trigger::Edge),
            4 | 8 => Some(Trigger::Level),
            _ => None,
        };
        Some(InterruptLine { interrupt, trigger })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Bus, CellCounts, Cells, Interrupts, physical_range};
    use std::vec::Vec;
    use units::{IntId, Pa, Trigger};

    fn bytes(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    #[test]
    fn numbers_have_up_to_two_cells() {
        let all = bytes(&[0x8000_0001, 0x9000_0002, 3]);
        let number = |count| Cells(&all).number(count);
        assert_eq!([0, 1, 2, 3].map(number), [Some(0), Some(0x8000_0001), Some(0x8000_0001_9000_0002), None]);
        assert_eq!([4, 8, 12].map(|length| Cells(&all[..length]).whole()), [number(1), number(2), None]);
    }

    #[test]
    fn an_entry_may_have_an_address_or_a_size_alone() {
        let reg = bytes(&[7]);
        let block = |address, size| Cells(&reg).register_block(CellCounts { address, size });
        assert_eq!([block(1, 0), block(0, 1), block(0, 0), block(1, 1)], [Some((7, 0)), Some((0, 7)), None, None]);
    }

    /// The GIC's binding: 988 SPIs, 16 PPIs, and of GICv3.1 1024 and 64 more.
    #[test]
    fn each_kind_of_interrupt_has_its_range() {
        let get = |kind, number| {
            let value = bytes(&[0, 0, 0, kind, number, 4]);
            Interrupts { value: &value, extended: false }.get(1, 3)
        };
        for (kind, first, count) in [(0, 32, 988), (1, 16, 16), (2, 4096, 1024), (3, 1056, 64)] {
            let interrupt = |number| get(kind, number).map(|line| line.interrupt);
            assert_eq!(interrupt(0), Some(IntId(first)), "kind {kind}");
            assert_eq!(interrupt(count - 1), Some(IntId(first + count - 1)), "kind {kind}");
            assert_eq!(get(kind, count), None, "kind {kind}");
        }
        assert_eq!(get(4, 0), None);
    }

    #[test]
    fn flags_say_what_of_a_line_is_an_interrupt() {
        let trigger = |extended, cells, value: &[u32]| {
            Interrupts { value: &bytes(value), extended }.get(0, cells).map(|line| line.trigger)
        };
        let of_flags = |flags| trigger(false, 3, &[0, 1, flags]);
        let [edge, level] = [Trigger::Edge, Trigger::Level].map(|trigger| Some(Some(trigger)));
        assert_eq!([1, 2, 4, 8].map(of_flags), [edge, edge, level, level]);
        assert_eq!([0, 3, 5, 0xff0].map(of_flags), [Some(None); 4], "they say nothing that can be");
        assert_eq!(of_flags(0xf04), level, "a mask of CPUs is beside it");
        assert_eq!(trigger(true, 3, &[0x8005, 0, 1, 1]), edge);
        assert_eq!(trigger(false, 4, &[0, 1, 1, 9]), edge, "further cells are the controller's");
        assert_eq!(trigger(false, 2, &[0, 1]), Some(None));
        assert_eq!(trigger(false, 3, &[0, 1]), None, "it is cut off");
    }

    #[test]
    fn an_address_is_translated_by_the_range_that_has_it() {
        let one = CellCounts { address: 1, size: 1 };
        let ranges = bytes(&[0x100, 0x1000, 0x10, 0x200, 0x2000, 0x10]);
        let inner = Bus { counts: one, ranges: Some(&ranges) };
        let outer = Bus { counts: one, ranges: None };
        let at = |address| {
            let reg = bytes(&[address, 4]);
            physical_range(&mut Cells(&reg), &[outer, inner]).map(|range| range.start)
        };
        let expected = [None, Some(Pa(0x1000)), Some(Pa(0x100f)), None, Some(Pa(0x2008)), None];
        assert_eq!([0xff, 0x100, 0x10f, 0x110, 0x208, 0x210].map(at), expected);
        // No ranges at all: its children have no addresses that a CPU could use.
        let reg = bytes(&[0x100, 4]);
        assert_eq!(physical_range(&mut Cells(&reg), &[outer, Bus { ranges: None, ..inner }]), None);
    }
}
