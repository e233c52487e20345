//! What is asked of a disk, and how that ends: by a guest of its device, and by that of the host's disk.

/// Bytes of a sector: the unit of all numbers of a disk, whatever its own blocks are.
pub const SECTOR: u64 = 512;

/// What is asked of a disk. Sectors have [`SECTOR`] bytes; the data is in a buffer that belongs to the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskRequest {
    /// So many bytes, whole sectors, from a sector on into the buffer.
    Read(u64, u32),
    /// The same from the buffer.
    Write(u64, u32),
    /// All that was written and answered is to be where it outlives the power.
    Flush,
    /// So many sectors from one on are of no use to anybody.
    Discard(u64, u32),
    /// So many are zeros from now on; what they take may be given back.
    Zero(u64, u32, bool),
}

impl DiskRequest {
    /// The first sector, and how many there are; none, for what is about no sector.
    #[must_use]
    pub const fn range(self) -> Option<(u64, u64)> {
        match self {
            Self::Read(first, bytes) | Self::Write(first, bytes) => Some((first, bytes as u64 / SECTOR)),
            Self::Discard(first, count) | Self::Zero(first, count, _) => Some((first, count as u64)),
            Self::Flush => None,
        }
    }

    /// The same, from sector `first` on.
    #[must_use]
    pub const fn from(self, first: u64) -> Self {
        match self {
            Self::Read(_, bytes) => Self::Read(first, bytes),
            Self::Write(_, bytes) => Self::Write(first, bytes),
            Self::Discard(_, count) => Self::Discard(first, count),
            Self::Zero(_, count, may_give_back) => Self::Zero(first, count, may_give_back),
            Self::Flush => Self::Flush,
        }
    }

    /// Whether something on the disk is another thing afterwards.
    #[must_use]
    pub const fn changes(self) -> bool {
        matches!(self, Self::Write(..) | Self::Discard(..) | Self::Zero(..))
    }
}

/// How that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOutcome {
    /// As it was asked for.
    Done,
    /// With an error, or with an answer that is none.
    Failed,
    /// The disk does not know such a request.
    Unknown,
}
