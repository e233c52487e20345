//! Memory as it comes out of the allocator: a type for what may be used, another for what must be zeroed first.

use units::{Pa, Range};

/// Memory that its owner may use: it holds nothing of anybody else. There is one such value per piece of memory and it
/// cannot be copied; dropping it does not free the memory, which is done by range.
#[derive(PartialEq, Eq, Debug)]
pub struct Extent {
    range: Range<Pa>,
}

impl Extent {
    pub(crate) const fn new(range: Range<Pa>) -> Self {
        Self { range }
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> Range<Pa> {
        self.range
    }

    /// Its first byte.
    #[must_use]
    pub const fn start(&self) -> Pa {
        self.range.start
    }
}

/// Memory that still holds what somebody else left there.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "this memory is allocated: zero it and call scrubbed(), or hand it back"]
pub struct Unscrubbed {
    extent: Extent,
}

impl Unscrubbed {
    pub(crate) const fn new(range: Range<Pa>) -> Self {
        Self { extent: Extent::new(range) }
    }

    /// Where it is, for whoever zeroes it.
    #[must_use]
    pub const fn range(&self) -> Range<Pa> {
        self.extent.range
    }

    /// The caller has zeroed all of it, and every later access by anybody sees the zeroes.
    #[must_use]
    pub fn scrubbed(self) -> Extent {
        self.extent
    }
}

/// What an allocation yields.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "this memory is allocated: use it or hand it back"]
pub enum Allocation {
    /// Known to be zero (or, at a first touch, known to hold only what the guest has put there).
    Clean(Extent),
    /// To be zeroed first.
    Unscrubbed(Unscrubbed),
}

impl Allocation {
    pub(crate) const fn new(range: Range<Pa>, clean: bool) -> Self {
        if clean { Self::Clean(Extent::new(range)) } else { Self::Unscrubbed(Unscrubbed::new(range)) }
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> Range<Pa> {
        match self {
            Self::Clean(extent) => extent.range(),
            Self::Unscrubbed(dirty) => dirty.range(),
        }
    }

    /// The memory, after `zero` has zeroed it if that was needed.
    pub fn scrub_with(self, zero: impl FnOnce(Range<Pa>)) -> Extent {
        match self {
            Self::Clean(extent) => extent,
            Self::Unscrubbed(dirty) => {
                zero(dirty.range());
                dirty.scrubbed()
            }
        }
    }
}
