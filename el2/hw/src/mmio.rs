//! Device registers: a [`Region`] is a block of them that EL2 has mapped, and the only way to access them.
//!
//! Each access is one load or store in inline assembly, which keeps it a single plain register access, whose trap
//! syndrome is complete should we ourselves run under another hypervisor.
//!
//! A region is opened in this crate alone, for a driver that this crate hands out. A device that does DMA follows the addresses
//! that are written to it, so its driver is made here too, over memory that nobody else uses; code above cannot write an address
//! into a register.

use drivers::{Registers, TooSmall};
use units::{Pa, Range};

use crate::{boot, mmu, stack};

/// A block of device registers. All accesses are inside it.
#[derive(Debug)]
pub struct Region {
    start: u64,
    size: u64,
}

/// Why a block of registers cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// It is empty, or does not begin at a multiple of eight bytes.
    Misplaced,
    /// EL2 has not mapped it as a device's: it is memory, or not in the platform's list of devices.
    NoDevice,
    /// It is smaller than such a device's.
    TooSmall,
}

impl From<TooSmall> for RegionError {
    fn from(_: TooSmall) -> Self {
        Self::TooSmall
    }
}

impl RegionError {
    /// A sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Misplaced => "its registers must begin at a multiple of 8 bytes, and be some",
            Self::NoDevice => "its registers are not where devices are, but in memory",
            Self::TooSmall => "it has fewer registers than such a device",
        }
    }
}

impl Region {
    /// The registers at `range`, which the platform's list of devices names.
    ///
    /// # Errors
    /// When they are not mapped as a device's. Before the MMU is on nothing is mapped: then it is enough that they are not in our
    /// image. If they turn out to be RAM, they cannot be mapped as a device's, and nothing starts.
    #[inline(never)]
    pub(crate) fn open(range: Range<Pa>) -> Result<Self, RegionError> {
        if range.is_empty() || !range.start.is_aligned(8) {
            return Err(RegionError::Misplaced);
        }
        let is_free = if boot::is_virtual() { mmu::is_device(range) } else { !stack::image().whole().overlaps(range) };
        if is_free { Ok(Self { start: range.start.0, size: range.size }) } else { Err(RegionError::NoDevice) }
    }

    /// As [`Region::open`], for what was not listed: it is mapped first, if nothing else is there. For registers that stand in the
    /// platform's windows, or that it names by itself.
    #[inline(never)]
    pub(crate) fn open_later(range: Range<Pa>) -> Result<Self, RegionError> {
        if mmu::map_device(range) { Self::open(range) } else { Err(RegionError::NoDevice) }
    }

    /// A region that was opened before, of which only the start was kept: where that is read often, and the size is known.
    #[inline(always)]
    pub(crate) const fn opened_before(start: Pa, size: u64) -> Self {
        Self { start: start.0, size }
    }

    /// Where it begins.
    pub(crate) const fn start(&self) -> Pa {
        Pa(self.start)
    }

    /// The address of `width` bytes at `offset`, which is a multiple of that: an unaligned access to a device is a fault.
    #[inline(always)]
    const fn address(&self, offset: u64, width: u64) -> Option<u64> {
        if self.size >= width && offset <= self.size - width && offset.is_multiple_of(width) {
            Some(self.start + offset)
        } else {
            None
        }
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $ty:ty, $load:literal, $store:literal) => {
        #[inline(always)]
        fn $read(&self, offset: u64) -> $ty {
            let Some(address) = self.address(offset, size_of::<$ty>() as u64) else { return 0 };
            let value: $ty;
            // SAFETY: the address is inside a region, so it is a device's, and mapped; what it answers is a plain number.
            unsafe { core::arch::asm!($load, out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
            value
        }

        #[inline(always)]
        fn $write(&self, offset: u64, value: $ty) {
            let Some(address) = self.address(offset, size_of::<$ty>() as u64) else { return };
            // SAFETY: as above. Only drivers that this crate makes write, and addresses for DMA only of memory that is theirs.
            unsafe { core::arch::asm!($store, in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
        }
    };
}

impl Registers for Region {
    #[inline(always)]
    fn size(&self) -> u64 {
        self.size
    }

    access!(read8, write8, u8, "ldrb {0:w}, [{1}]", "strb {0:w}, [{1}]");
    access!(read16, write16, u16, "ldrh {0:w}, [{1}]", "strh {0:w}, [{1}]");
    access!(read32, write32, u32, "ldr {0:w}, [{1}]", "str {0:w}, [{1}]");
    access!(read64, write64, u64, "ldr {0}, [{1}]", "str {0}, [{1}]");
}
