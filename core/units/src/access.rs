//! How wide an access is.

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

#[cfg(test)]
mod tests {
    use super::AccessSize;

    #[test]
    fn sizes_round_trip() {
        for sas in 0..4 {
            let size = AccessSize::from_sas(sas);
            assert_eq!(AccessSize::from_bytes(size.bytes() as u64), Some(size));
        }
        assert_eq!(AccessSize::from_bytes(3), None);
    }
}
