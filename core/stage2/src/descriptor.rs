//! Descriptors: one 64-bit entry of a table (Arm ARM DDI 0487, section D8.3, stage 2, 4 KiB granule).

use units::{Address, Ipa, Pa};

/// A level of the walk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// Entries of 1 GiB; the root, 1024 of them.
    One = 1,
    /// Entries of 2 MiB.
    Two = 2,
    /// Entries of 4 KiB: pages.
    Three = 3,
}

impl Level {
    /// Bytes that one entry of this level covers.
    #[must_use]
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// How many entries a table of this level has.
    #[must_use]
    pub const fn entries(self) -> usize {
        match self {
            Self::One => 1024,
            Self::Two | Self::Three => 512,
        }
    }

    /// The level below; pages have none, so level 3 is its own.
    #[must_use]
    pub(crate) const fn below(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two | Self::Three => Self::Three,
        }
    }

    const fn shift(self) -> u32 {
        match self {
            Self::One => 30,
            Self::Two => 21,
            Self::Three => 12,
        }
    }

    /// The index of the entry for `ipa` in its table of this level.
    pub(crate) const fn index(self, ipa: Ipa) -> usize {
        (ipa.0 >> self.shift()) as usize & (self.entries() - 1)
    }

    /// Whether `address` is one where an entry of this level can begin.
    pub(crate) fn aligns<A: Address>(self, address: A) -> bool {
        address.raw() & (self.size() - 1) == 0
    }
}

/// The memory type that stage 2 contributes; the guest's stage 1 may make it stricter, never laxer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// Normal, inner and outer write-back, inner shareable: RAM.
    Normal,
    /// Device-nGnRE: registers of a passed-through device or of the GIC.
    Device,
}

bitflags::bitflags! {
    /// What a guest may do with a page.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Permissions: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches, at EL1 and EL0 alike.
        const EXECUTE = 4;
    }
}

bitflags::bitflags! {
    /// The descriptor bits that hardware ignores (58:55) and this hypervisor uses.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Software: u8 {
        /// The caches were made coherent for this page since it last lost its execute permission.
        const MAINTAINED = 1;
        /// The page is write-protected only because what it holds is being saved.
        const HELD = 2;
        /// The page lost its execute permission because the hypervisor stored into it.
        const REWRITTEN = 4;
        /// Not used yet.
        const SPARE = 8;
    }
}

/// Everything a leaf entry says beside its address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// Memory type.
    pub memory: MemoryType,
    /// What the guest may do.
    pub permissions: Permissions,
    /// The hypervisor's own marks.
    pub software: Software,
}

impl Attributes {
    /// RAM as a guest first gets it: readable and writable, not executable until it is executed.
    pub const RAM: Self = Self {
        memory: MemoryType::Normal,
        permissions: Permissions::READ.union(Permissions::WRITE),
        software: Software::empty(),
    };
    /// RAM that the guest has executed from: all permissions, caches made coherent.
    pub const CODE: Self =
        Self { memory: MemoryType::Normal, permissions: Permissions::all(), software: Software::MAINTAINED };
    /// Registers of a device: readable and writable, never executable.
    pub const DEVICE: Self = Self {
        memory: MemoryType::Device,
        permissions: Permissions::READ.union(Permissions::WRITE),
        software: Software::empty(),
    };

    /// The same with other permissions.
    #[must_use]
    pub const fn with_permissions(self, permissions: Permissions) -> Self {
        Self { permissions, ..self }
    }

    /// The same with other marks.
    #[must_use]
    pub const fn with_software(self, software: Software) -> Self {
        Self { software, ..self }
    }
}

/// A table entry as it stands in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor(pub(crate) u64);

const VALID: u64 = 1 << 0;
/// At levels 1 and 2: points to a table. At level 3: is a page, and must be set.
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEMORY_DEVICE_NGNRE: u64 = 0b0001 << 2;
const MEMORY_NORMAL_WRITE_BACK: u64 = 0b1111 << 2;
const MEMORY_MASK: u64 = 0b1111 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const SH_INNER: u64 = 0b11 << 8;
/// The access flag is always set: this hypervisor does not age guest pages.
const ACCESS_FLAG: u64 = 1 << 10;
const ADDRESS_MASK: u64 = 0x0000_ffff_ffff_f000;
/// XN[1:0] = 0b10, not executable at EL1 and EL0, means the same with and without FEAT_XNX.
const EXECUTE_NEVER: u64 = 1 << 54;
const SOFTWARE_SHIFT: u32 = 55;
const SOFTWARE_MASK: u64 = 0xf << SOFTWARE_SHIFT;
const HELD: u64 = (Software::HELD.bits() as u64) << SOFTWARE_SHIFT;

impl Descriptor {
    /// An entry that maps nothing.
    pub(crate) const INVALID: Self = Self(0);

    /// An entry that points to the table at `table`.
    pub(crate) const fn table(table: Pa) -> Self {
        Self(table.0 & ADDRESS_MASK | TABLE_OR_PAGE | VALID)
    }

    /// An entry of `level` that maps to `pa`.
    pub(crate) fn leaf(level: Level, pa: Pa, attributes: Attributes) -> Self {
        let kind = if level == Level::Three { TABLE_OR_PAGE } else { 0 };
        Self(pa.0 & ADDRESS_MASK | attributes.encode() | ACCESS_FLAG | kind | VALID)
    }

    /// The entry with which the `index`th entry of the table below says what this leaf of `level` says of its part.
    ///
    /// What a leaf says beside its address and its kind stands in the same bits at all levels, so none of it is taken apart here:
    /// a split makes 512 of these.
    pub(crate) fn part(self, level: Level, index: usize) -> Self {
        let below = level.below();
        let kind = if below == Level::Three { TABLE_OR_PAGE } else { 0 };
        Self((self.0 + index as u64 * below.size()) | kind)
    }

    pub(crate) const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether an entry of `level` points to a table.
    pub(crate) fn is_table(self, level: Level) -> bool {
        level != Level::Three && self.0 & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
    }

    /// The entry without being one: the hardware ignores all that it says, until it is opened again.
    pub(crate) const fn closed(self) -> Self {
        Self(self.0 & !VALID)
    }

    /// Whether this is what [`Descriptor::closed`] made of some entry.
    pub(crate) const fn is_closed(self) -> bool {
        self.0 & VALID == 0 && self.0 != 0
    }

    /// What it was before it was closed.
    pub(crate) const fn opened(self) -> Self {
        Self(self.0 | VALID)
    }

    /// Of a leaf: as it is, but not writable, with the mark that says so.
    pub(crate) const fn held(self) -> Self {
        if self.0 & (VALID | S2AP_WRITE) == VALID | S2AP_WRITE { Self(self.0 & !S2AP_WRITE | HELD) } else { self }
    }

    /// Of a leaf: what it was before it was held.
    pub(crate) const fn released(self) -> Self {
        if self.0 & (VALID | HELD) == VALID | HELD { Self(self.0 & !HELD | S2AP_WRITE) } else { self }
    }

    /// Where the entry points: its table, or what it maps to.
    pub(crate) const fn address(self) -> Pa {
        Pa(self.0 & ADDRESS_MASK)
    }

    /// What a leaf says of what it maps.
    pub(crate) const fn attributes(self) -> Attributes {
        Attributes::decode(self.0)
    }
}

impl Attributes {
    fn encode(self) -> u64 {
        let mut bits = match self.memory {
            MemoryType::Normal => MEMORY_NORMAL_WRITE_BACK | SH_INNER,
            MemoryType::Device => MEMORY_DEVICE_NGNRE,
        };
        if self.permissions.contains(Permissions::READ) {
            bits |= S2AP_READ;
        }
        if self.permissions.contains(Permissions::WRITE) {
            bits |= S2AP_WRITE;
        }
        if !self.permissions.contains(Permissions::EXECUTE) {
            bits |= EXECUTE_NEVER;
        }
        bits | u64::from(self.software.bits()) << SOFTWARE_SHIFT
    }

    const fn decode(bits: u64) -> Self {
        let memory = if bits & MEMORY_MASK == MEMORY_DEVICE_NGNRE { MemoryType::Device } else { MemoryType::Normal };
        let mut permissions = Permissions::empty();
        if bits & S2AP_READ != 0 {
            permissions = permissions.union(Permissions::READ);
        }
        if bits & S2AP_WRITE != 0 {
            permissions = permissions.union(Permissions::WRITE);
        }
        if bits & EXECUTE_NEVER == 0 {
            permissions = permissions.union(Permissions::EXECUTE);
        }
        let software = Software::from_bits_truncate(((bits & SOFTWARE_MASK) >> SOFTWARE_SHIFT) as u8);
        Self { memory, permissions, software }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attributes, Descriptor, Level, MemoryType, Permissions, Software};
    use units::Pa;

    #[test]
    fn ram_block_has_the_bits_of_the_manual() {
        // Normal WB (0b1111), S2AP read+write, inner shareable, AF, XN, block.
        let block = Descriptor::leaf(Level::Two, Pa(0x8020_0000), Attributes::RAM);
        assert_eq!(block.0, 0x0040_0000_8020_07fd);
        assert!(!block.is_table(Level::Two));
        let page = Descriptor::leaf(Level::Three, Pa(0x8020_1000), Attributes::CODE);
        assert_eq!(page.0, 0x0080_0000_8020_17ff);
        assert!(!page.is_table(Level::Three));
    }

    #[test]
    fn a_part_says_what_the_whole_says() {
        for attributes in [Attributes::RAM, Attributes::CODE, Attributes::DEVICE] {
            for (level, below, pa) in [(Level::One, Level::Two, 7 << 30), (Level::Two, Level::Three, 0xffff_ffe0_0000)]
            {
                let whole = Descriptor::leaf(level, Pa(pa), attributes);
                for index in [0, 1, 511] {
                    let part = Descriptor::leaf(below, Pa(pa + index as u64 * below.size()), attributes);
                    assert_eq!(whole.part(level, index), part);
                }
            }
        }
    }

    #[test]
    fn attributes_survive_encoding() {
        for memory in [MemoryType::Normal, MemoryType::Device] {
            for permissions in 0..8 {
                for software in 0..16 {
                    let attributes = Attributes {
                        memory,
                        permissions: Permissions::from_bits_truncate(permissions),
                        software: Software::from_bits_truncate(software),
                    };
                    assert_eq!(Descriptor::leaf(Level::One, Pa(1 << 30), attributes).attributes(), attributes);
                }
            }
        }
    }
}
