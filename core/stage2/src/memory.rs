//! What the tables need from their surroundings: memory for table pages, and the TLBs.

use units::{Ipa, Pa};

use crate::Level;

/// Memory that holds tables. EL2 sees it as Normal, inner write-back, so that walkers and EL2 agree without maintenance.
pub trait TableMemory {
    /// A zeroed page of 4 KiB for a table.
    fn allocate(&mut self) -> Option<Pa>;
    /// Two zeroed pages, 8 KiB in all, aligned to 8 KiB, for the root.
    fn allocate_root(&mut self) -> Option<Pa>;
    /// Takes back a page from [`TableMemory::allocate`]. No walker can reach it any more.
    fn free(&mut self, table: Pa);
    /// Takes back the two pages from [`TableMemory::allocate_root`].
    fn free_root(&mut self, root: Pa);
    /// Reads entry `index` of the table at `table`. `index` is below 512, in the root below 1024.
    fn read(&self, table: Pa, index: usize) -> u64;
    /// Writes entry `index` of the table at `table` by one 64-bit store, which walkers see whole or not at all (a plain
    /// aligned store that the compiler can neither split nor leave out). No barrier: see [`TlbOps`].
    fn write(&mut self, table: Pa, index: usize, value: u64);
}

/// Which cached translations of the VM are to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// Those for the `count` addresses from `start`, [`Level::size`] apart. Together they name every changed entry.
    Entries {
        /// The first address, aligned to an entry.
        start: Ipa,
        /// The level of all entries, which are leaves: good as TTL hint where there is FEAT_TTL.
        level: Level,
        /// How many; 1 to [`Invalidation::MAX_ENTRIES`].
        count: usize,
    },
    /// Everything of this VMID.
    All,
}

impl Invalidation {
    /// Above this number of addresses, forgetting the whole VM is the cheaper thing to do.
    pub const MAX_ENTRIES: usize = 32;

    /// The addresses to invalidate one by one; nothing for [`Invalidation::All`].
    pub fn addresses(self) -> impl Iterator<Item = Ipa> {
        let (start, level, count) = match self {
            Self::Entries { start, level, count } => (start, level, count),
            Self::All => (Ipa(0), Level::Three, 0),
        };
        (0..count as u64).map(move |nth| Ipa(start.0 + nth * level.size()))
    }
}

/// The TLBs of all CPUs, as far as one VM is concerned.
pub trait TlbOps {
    /// Orders table writes before this call before those after it, as every CPU's walker sees them: DSB ISHST.
    fn publish(&mut self);

    /// Removes translations from all TLBs and waits until they are gone and no walk that started earlier is under way.
    ///
    /// With this VM's VTTBR_EL2 loaded: DSB ISHST; for [`Invalidation::Entries`] one TLBI IPAS2E1IS for each of
    /// [`Invalidation::addresses`] (not the IPAS2LE1IS form: tables may have gone too), DSB ISH, TLBI VMALLE1IS (for
    /// the combined entries, which IPAS2E1IS need not find); for [`Invalidation::All`] one TLBI VMALLS12E1IS instead;
    /// then DSB ISH and ISB. If another VM's VTTBR_EL2 was loaded, an ISB is needed between loading and TLBI.
    fn invalidate(&mut self, what: Invalidation);
}
