//! Memory of firmware's, by the page.

use core::ptr::NonNull;
use core::slice;
use uefi::boot::{self, AllocateType, MemoryType, PAGE_SIZE};
use units::{Pa, Range};

/// Pages that are ours, zeroed, until they are dropped or firmware is left. Firmware maps memory where it is (UEFI 2.11, section 2.3.6), so
/// that their address is a physical one.
#[derive(Debug)]
pub(crate) struct Pages {
    allocation: NonNull<u8>,
    allocated: usize,
    /// Where in the allocation ours begin, in bytes.
    offset: usize,
    /// How many bytes are ours.
    size: usize,
}

impl Pages {
    /// So many bytes, rounded up to pages.
    ///
    /// # Errors
    /// Firmware's, mostly that it has none.
    pub(crate) fn new(size: u64) -> uefi::Result<Self> {
        Self::aligned(size, PAGE_SIZE as u64)
    }

    /// As [`Pages::new`], at a multiple of `alignment`, a power of two.
    ///
    /// # Errors
    /// As [`Pages::new`].
    pub(crate) fn aligned(size: u64, alignment: u64) -> uefi::Result<Self> {
        let pages = usize::try_from(size.max(1).div_ceil(PAGE_SIZE as u64));
        let more = alignment as usize / PAGE_SIZE - 1;
        let allocated = pages.ok().and_then(|pages| pages.checked_add(more)).ok_or(uefi::Status::OUT_OF_RESOURCES)?;
        let size = (allocated - more) * PAGE_SIZE;
        let allocation = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, allocated)?;
        let address = allocation.as_ptr().addr();
        let offset = address.next_multiple_of(alignment as usize) - address;
        let pages = Self { allocation, allocated, offset, size };
        // SAFETY: the allocation begins at a page, so `offset` is `more` pages at most, and `size` are the others; nobody else knows of it.
        unsafe { pages.start().write_bytes(0, size) };
        Ok(pages)
    }

    fn start(&self) -> *mut u8 {
        self.allocation.as_ptr().wrapping_add(self.offset)
    }

    /// Where they are.
    pub(crate) fn range(&self) -> Range<Pa> {
        Range { start: Pa(self.start().addr() as u64), size: self.size as u64 }
    }

    /// What is in them.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: ours alone for as long as `self` is, initialised when it was made.
        unsafe { slice::from_raw_parts(self.start(), self.size) }
    }

    /// What is in them, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start(), self.size) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it is the allocation of `aligned`, and the slices that were lent have ended. That firmware refuses to take it back
        // changes nothing for us.
        drop(unsafe { boot::free_pages(self.allocation, self.allocated) });
    }
}
