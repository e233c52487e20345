//! Which way an access moves data, and how wide it is.

/// Which way an access moves data: seen from whoever makes it, be that a CPU or a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the register or the memory.
    Read,
    /// Into the register or the memory.
    Write,
}

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

/// In which order the bytes of a value lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ByteOrder {
    /// The lowest byte first.
    Little,
    /// The highest byte first.
    Big,
}

/// One general-purpose register's part of a load or store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegisterAccess {
    /// Number of the register, 31 for XZR.
    pub rt: u8,
    /// How many bytes of memory: 1, 2, 4 or 8.
    pub bytes: u8,
    /// A load extends the sign.
    pub sign_extend: bool,
    /// A load writes all 64 bits of the register; otherwise it clears the upper half.
    pub sixty_four: bool,
}

impl RegisterAccess {
    /// What a load of `value` leaves in the register: `value` cut to the access's size and extended as it asks.
    #[must_use]
    pub const fn loaded(self, value: u64) -> u64 {
        let unused = self.unused_bits();
        let value = value << unused;
        let extended = if self.sign_extend { ((value as i64) >> unused) as u64 } else { value >> unused };
        if self.sixty_four { extended } else { extended & 0xffff_ffff }
    }

    /// What a store of a register that holds `value` puts into memory: the low bytes.
    #[must_use]
    pub const fn stored(self, value: u64) -> u64 {
        let unused = self.unused_bits();
        value << unused >> unused
    }

    /// How many bits of a 64-bit value the access leaves out.
    const fn unused_bits(self) -> u32 {
        64_u32.wrapping_sub(8 * self.bytes as u32) & 63
    }
}

impl ByteOrder {
    /// Between the value in a register and the one that a little-endian device sees, in either direction. What lies above
    /// the access's size is not kept.
    #[must_use]
    #[inline(always)]
    pub const fn arrange(self, size: AccessSize, value: u64) -> u64 {
        match self {
            Self::Little => value & size.mask(),
            Self::Big => value.swap_bytes() >> (64 - 8 * size.bytes() as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AccessSize, ByteOrder, RegisterAccess};

    #[test]
    fn big_endian_values_are_turned_within_their_size() {
        let value = 0x1122_3344_5566_7788;
        let turned = [
            (AccessSize::Byte, 0x88),
            (AccessSize::Half, 0x8877),
            (AccessSize::Word, 0x8877_6655),
            (AccessSize::Double, 0x8877_6655_4433_2211),
        ];
        for (size, expected) in turned {
            assert_eq!(ByteOrder::Big.arrange(size, value), expected, "{size:?}");
            assert_eq!(ByteOrder::Big.arrange(size, expected), value & size.mask(), "{size:?}, and back");
            assert_eq!(ByteOrder::Little.arrange(size, value), value & size.mask(), "{size:?}");
        }
    }

    #[test]
    fn sizes_round_trip() {
        for sas in 0..4 {
            let size = AccessSize::from_sas(sas);
            assert_eq!(AccessSize::from_bytes(size.bytes() as u64), Some(size));
        }
        assert_eq!(AccessSize::from_bytes(3), None);
        // ESR_EL2.ISS.SAS; what lies above it is not looked at.
        assert_eq!([0, 1, 2, 3, 0b100, 0b1110].map(|sas| AccessSize::from_sas(sas).bytes()), [1, 2, 4, 8, 1, 4]);
    }

    #[test]
    fn a_load_is_cut_and_extended_and_a_store_is_cut() {
        let access = |bytes, sign_extend, sixty_four| RegisterAccess { rt: 0, bytes, sign_extend, sixty_four };
        let value = 0x8182_8384_8586_8788;
        // LDRB, LDRH, LDR W, LDR X.
        let cut = [(1, 0x88), (2, 0x8788), (4, 0x8586_8788), (8, value)];
        for (bytes, expected) in cut {
            assert_eq!(access(bytes, false, true).loaded(value), expected, "{bytes}");
            assert_eq!(access(bytes, true, true).stored(value), expected, "{bytes}");
        }
        // LDRSB, LDRSH and LDRSW, of W and X.
        let signed = [(1, 0xffff_ffff_ffff_ff88), (2, 0xffff_ffff_ffff_8788), (4, 0xffff_ffff_8586_8788)];
        for (bytes, expected) in signed {
            assert_eq!(access(bytes, true, true).loaded(value), expected, "{bytes}");
            assert_eq!(access(bytes, true, false).loaded(value), expected & 0xffff_ffff, "{bytes}");
            assert_eq!(access(bytes, true, true).loaded(0x11), 0x11, "{bytes}");
        }
    }
}
