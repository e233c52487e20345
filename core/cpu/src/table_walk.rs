//! At which level a guest's own table walk failed.
//!
//! When a walk of stage 1 tables leaves the guest's memory, the CPU comes to EL2 and says which page it was refused
//! (HPFAR_EL2), but not at which level of the guest's tables; the level in ESR_EL2 is that of stage 2. A guest on a
//! machine of its own would get "synchronous External abort on translation table walk, level n" (DDI 0487, ESR_EL1.DFSC).
//! [`refused_level`] finds that n: it follows the same tables from the same registers (DDI 0487 D8.2, the VMSAv8-64
//! translation process) until the next descriptor lies in the refused page.
//!
//! 48-bit addresses are covered, which is what guests are offered. SCTLR_EL1.EE is the byte order of the tables too.

use crate::pstate::SCTLR_EE;
use units::{Ipa, PAGE_SIZE, Va};

/// The registers that a walk starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regime {
    /// TCR_EL1.
    pub tcr_el1: u64,
    /// TTBR0_EL1.
    pub ttbr0_el1: u64,
    /// TTBR1_EL1.
    pub ttbr1_el1: u64,
    /// SCTLR_EL1.
    pub sctlr_el1: u64,
}

/// What the registers say about one half of the address space.
struct Half {
    root: u64,
    /// Bits of an address that the tables translate.
    bits: u32,
    /// Bits of an address within a page.
    granule: u32,
}

/// Bits 47:1 of a TTBR.
const TTBR_ADDRESS: u64 = 0x0000_ffff_ffff_fffe;
/// Bits 47:12 of a descriptor.
const TABLE_ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bits 1:0 of a descriptor that leads to another table.
const TABLE: u64 = 3;

impl Regime {
    /// The half that `va` is in, which its bit 55 tells whatever tag the top byte holds.
    fn half(&self, va: Va) -> Option<Half> {
        let upper = va.0 >> 55 & 1 != 0;
        let (size, granule, root) = if upper {
            (self.tcr_el1 >> 16, [0, 14, 12, 16], self.ttbr1_el1)
        } else {
            (self.tcr_el1, [12, 16, 14, 0], self.ttbr0_el1)
        };
        let field = if upper { self.tcr_el1 >> 30 } else { self.tcr_el1 >> 14 };
        let granule = *granule.get((field & 3) as usize)?;
        let bits = 64 - (size & 0x3f) as u32;
        // Below 16 an address has more than 48 bits; beyond 39 (48 with small translation tables) no table is left.
        (granule != 0 && bits <= 48 && bits > granule).then_some(Half { root, bits, granule })
    }
}

/// The level, 0 to 3, at which a walk for `va` reads its descriptor from the page `refused`. `read` gives the eight bytes
/// at an address, or nothing if there is no memory. `None` if the walk never comes there: the tables have changed, or are
/// of a kind that guests are not offered.
pub fn refused_level(
    regime: &Regime,
    va: Va,
    refused: Ipa,
    mut read: impl FnMut(Ipa) -> Option<[u8; 8]>,
) -> Option<u8> {
    let is_there = |at: Ipa| at.align_down(PAGE_SIZE) != refused.align_down(PAGE_SIZE);
    match walk(regime, va, |at| if is_there(at) { read(at).ok_or(Stop::Elsewhere) } else { Err(Stop::Here) }) {
        End::Stopped(Stop::Here, level) => Some(level),
        _ => None,
    }
}

/// The level, 0 to 3, at which a walk for `va` comes to where `read` finds no memory; `None` if it never does.
pub fn level_without_memory(regime: &Regime, va: Va, mut read: impl FnMut(Ipa) -> Option<[u8; 8]>) -> Option<u8> {
    match walk(regime, va, |at| read(at).ok_or(Stop::Here)) {
        End::Stopped(_, level) => Some(level),
        End::Walked => None,
    }
}

/// Why a walk does not go on.
enum Stop {
    /// It came to what was looked for.
    Here,
    /// It came to something else that is no memory.
    Elsewhere,
}

/// How a walk ended.
enum End {
    /// At a page, a block or a hole, or there is no such walk.
    Walked,
    /// At this level, because a descriptor could not be read.
    Stopped(Stop, u8),
}

/// Follows the tables for `va`. `read` gives the bytes of a descriptor.
fn walk(regime: &Regime, va: Va, mut read: impl FnMut(Ipa) -> Result<[u8; 8], Stop>) -> End {
    let Some(half) = regime.half(va) else { return End::Walked };
    let stride = half.granule - 3;
    let levels = (half.bits - half.granule).div_ceil(stride);
    let mut table = half.root & TTBR_ADDRESS;
    for level in 4 - levels..4 {
        let low = half.granule + stride * (3 - level);
        let width = stride.min(half.bits - low);
        // The first table may be smaller than a page, and is aligned to its size.
        table &= !((8 << width) - 1);
        let bytes = match read(Ipa(table + 8 * (va.0 >> low & ((1 << width) - 1)))) {
            Ok(bytes) => bytes,
            Err(stop) => return End::Stopped(stop, level as u8),
        };
        let entry =
            if regime.sctlr_el1 & SCTLR_EE == 0 { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) };
        if entry & TABLE != TABLE {
            return End::Walked;
        }
        table = entry & TABLE_ADDRESS;
    }
    End::Walked
}

#[cfg(test)]
mod tests {
    use super::{Regime, SCTLR_EE, level_without_memory, refused_level};
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::vec;
    use std::vec::Vec;
    use units::{Ipa, Va};

    /// TCR_EL1 for one granule (as a power of two) and size in both halves.
    fn tcr(granule: u32, bits: u32) -> u64 {
        let size = u64::from(64 - bits);
        let (lower, upper) = match granule {
            12 => (0, 2),
            14 => (2, 1),
            _ => (1, 3),
        };
        size | size << 16 | lower << 14 | upper << 30
    }

    fn shallow(granule: u32, bits: u32, root: u64, va: u64) -> Option<u8> {
        let regime = Regime { tcr_el1: tcr(granule, bits), ttbr0_el1: root, ttbr1_el1: root, sctlr_el1: 0 };
        let page = if va >> 55 & 1 != 0 { root + 0x1000 } else { root };
        refused_level(&regime, Va(va), Ipa(page), |_| None)
    }

    #[test]
    fn a_walk_starts_at_the_level_that_the_sizes_give() {
        // Table D8-11 and its neighbours: where the first table is, by granule and number of bits.
        for (granule, bits, level) in [
            (12, 48, 0),
            (12, 40, 0),
            (12, 39, 1),
            (12, 31, 1),
            (12, 30, 2),
            (14, 48, 0),
            (14, 47, 1),
            (14, 36, 2),
            (16, 48, 1),
            (16, 42, 2),
            (16, 29, 3),
        ] {
            assert_eq!(shallow(granule, bits, 0x8000_0000, 0), Some(level), "granule 2^{granule}, {bits} bits");
        }
    }

    /// TG0 and TG1 have the granules in different orders, and each has a number for none; the size of each half is its own.
    #[test]
    fn each_half_has_a_granule_and_a_size_of_its_own() {
        let (lower, upper) = (0, 0xff80_0000_0000_0000);
        let level = |tcr_el1, va| {
            let regime = Regime { tcr_el1, ttbr0_el1: 0x8000_0000, ttbr1_el1: 0x9000_0000, sctlr_el1: 0 };
            level_without_memory(&regime, Va(va), |_| None)
        };
        // 42 bits, which begin at level 0 with 4 KiB, at 1 with 16 KiB, and at 2 with 64 KiB.
        for (number, first) in [(0, Some(0)), (1, Some(2)), (2, Some(1)), (3, None)] {
            assert_eq!(level(22 | number << 14 | 16 << 16 | 2 << 30, lower), first, "TG0 = {number}");
        }
        for (number, first) in [(0, None), (1, Some(1)), (2, Some(0)), (3, Some(2))] {
            assert_eq!(level(16 | 22 << 16 | number << 30, upper), first, "TG1 = {number}");
        }
        // 12 bits: so few that a page has none left for a table; and 13.
        assert_eq!(level(52 | 16 << 16 | 2 << 30, lower), None);
        assert_eq!(level(51 | 16 << 16 | 2 << 30, lower), Some(3));
    }

    /// A first table that is smaller than a page is aligned to its size, whatever stands below that in its register.
    #[test]
    fn the_first_table_is_aligned_to_its_size() {
        for (ttbr0_el1, first) in [(0x8000_0008, 0x8000_0000), (0x8000_0018, 0x8000_0010), (0x8000_0021, 0x8000_0020)] {
            // 31 bits: a table of two descriptors at level 1.
            let regime = Regime { tcr_el1: tcr(12, 31), ttbr0_el1, ttbr1_el1: 0, sctlr_el1: 0 };
            let mut read = Vec::new();
            let level = level_without_memory(&regime, Va(0), |at| {
                read.push(at.0);
                None
            });
            assert_eq!((level, read), (Some(1), vec![first]));
        }
    }

    #[test]
    fn sizes_and_granules_that_do_not_exist_have_no_level() {
        assert_eq!(shallow(12, 49, 0x8000_0000, 0), None);
        let regime = Regime { tcr_el1: tcr(12, 39) | 3 << 14, ttbr0_el1: 0x8000_0000, ttbr1_el1: 0, sctlr_el1: 0 };
        assert_eq!(refused_level(&regime, Va(0), Ipa(0x8000_0000), |_| None), None);
    }

    #[test]
    fn blocks_and_holes_end_the_walk() {
        let regime = Regime { tcr_el1: tcr(12, 39), ttbr0_el1: 0x4000_0000, ttbr1_el1: 0, sctlr_el1: 0 };
        for entry in [0_u64, 0x8000_0701, 2] {
            assert_eq!(refused_level(&regime, Va(0), Ipa(0x9000_0000), |_| Some(entry.to_le_bytes())), None);
            assert_eq!(level_without_memory(&regime, Va(0), |_| Some(entry.to_le_bytes())), None);
        }
        assert_eq!(refused_level(&regime, Va(0), Ipa(0x9000_0000), |_| None), None);
    }

    proptest! {
        /// Tables are laid out for an address; the walk is refused at a random one of them.
        #[test]
        fn the_refused_table_is_found_at_its_level(
            granule in prop::sample::select(vec![12_u32, 14, 16]),
            bits in 25_u32..=48,
            address: u64,
            upper: bool,
            tag: u8,
            which in 0_u32..4,
            big_endian: bool,
        ) {
            let stride = granule - 3;
            let start = 4 - (bits - granule).div_ceil(stride);
            let (mut memory, mut table, mut tables) = (HashMap::new(), 0x8000_0000_u64, Vec::new());
            let low = address & ((1 << bits) - 1);
            let sign = if upper { u64::MAX << bits } else { 0 };
            let va = (low | sign) & 0x00ff_ffff_ffff_ffff | u64::from(tag) << 56;
            for level in start..4 {
                let shift = granule + stride * (3 - level);
                let index = low >> shift & ((1 << stride) - 1);
                let next = table + (1 << 20);
                memory.insert(table + 8 * index, next | 3);
                tables.push((level, table + 8 * index));
                table = next;
            }
            let (level, place) = tables[which as usize % tables.len()];
            let regime = Regime {
                tcr_el1: tcr(granule, bits),
                ttbr0_el1: 0x8000_0000,
                ttbr1_el1: 0x8000_0000 | 5 << 48,
                sctlr_el1: if big_endian { SCTLR_EE } else { 0 },
            };
            let bytes = |entry: u64| if big_endian { entry.to_be_bytes() } else { entry.to_le_bytes() };
            let read = |at: Ipa| (at.0 >> 12 != place >> 12).then(|| memory.get(&at.0).copied().map(bytes)).flatten();
            prop_assert_eq!(refused_level(&regime, Va(va), Ipa(place), read), Some(level as u8));
            prop_assert_eq!(level_without_memory(&regime, Va(va), read), Some(level as u8));
        }

        #[test]
        fn nothing_that_a_guest_sets_panics(registers: [u64; 4], va: u64, refused: u64, entry: u64) {
            let [tcr_el1, ttbr0_el1, ttbr1_el1, sctlr_el1] = registers;
            let regime = Regime { tcr_el1, ttbr0_el1, ttbr1_el1, sctlr_el1 };
            let _ = refused_level(&regime, Va(va), Ipa(refused), |_| Some((entry | 3).to_le_bytes()));
            let _ = level_without_memory(&regime, Va(va), |_| Some((entry | 3).to_be_bytes()));
        }
    }
}
