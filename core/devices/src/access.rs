//! How wide an access is, and how the 32-bit registers of a PrimeCell answer accesses of other widths.

/// The width of one load or store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AccessSize {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl AccessSize {
    /// The size of `bytes` bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            8 => Some(Self::Double),
            _ => None,
        }
    }

    /// The size that the syndrome field `ESR_EL2.ISS.SAS` (its low two bits) stands for.
    #[must_use]
    pub const fn from_sas(sas: u64) -> Self {
        match sas & 0b11 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// How many bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// All ones in the bits that an access of this size carries.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }
}

/// The offset of the 32-bit register that `offset` lies in.
pub(crate) const fn register_offset(offset: u64) -> u64 {
    offset & !3
}

/// The part of a 32-bit register's value that a read at `offset` of this size sees.
pub(crate) fn extract(register: u32, offset: u64, size: AccessSize) -> u64 {
    (u64::from(register) >> (8 * (offset & 3))) & size.mask()
}

/// What a write at `offset` of this size means for the 32-bit register there. PrimeCell peripherals sit on APB, which
/// has no byte lanes: a store reaches a register only at the register's own address, and only its low 32 bits do.
pub(crate) fn written(offset: u64, size: AccessSize, value: u64) -> Option<u32> {
    if offset & 3 == 0 { u32::try_from(value & size.mask() & 0xffff_ffff).ok() } else { None }
}

/// The eight identification bytes at the end of a PrimeCell's page (PeriphID0-3 at 0xfe0, CellID0-3 at 0xff0), one a
/// word; `None` if `offset` isn't there.
pub(crate) fn identification(offset: u64, peripheral: u32) -> Option<u32> {
    /// What every PrimeCell answers in CellID, lowest byte first.
    const CELL: u32 = 0xb105_f00d;
    let byte = |id: u32, base: u64| id.to_le_bytes().get(((offset - base) / 4) as usize).copied().map(u32::from);
    match offset {
        0xfe0..0xff0 => byte(peripheral, 0xfe0),
        0xff0..0x1000 => byte(CELL, 0xff0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_reads_see_their_part_and_narrow_writes_only_the_register_itself() {
        assert_eq!(extract(0x1234_5678, 0x41, AccessSize::Byte), 0x56);
        assert_eq!(extract(0x1234_5678, 0x42, AccessSize::Half), 0x1234);
        assert_eq!(extract(0x1234_5678, 0x40, AccessSize::Double), 0x1234_5678);
        assert_eq!(written(0x40, AccessSize::Byte, 0x1ff), Some(0xff));
        assert_eq!(written(0x41, AccessSize::Byte, 0xff), None);
        assert_eq!(written(0x40, AccessSize::Double, u64::MAX), Some(u32::MAX));
    }

    #[test]
    fn sizes_round_trip() {
        for sas in 0..4 {
            let size = AccessSize::from_sas(sas);
            assert_eq!(AccessSize::from_bytes(size.bytes() as u64), Some(size));
        }
        assert_eq!(AccessSize::from_bytes(3), None);
    }
}
