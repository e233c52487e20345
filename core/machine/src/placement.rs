//! Where kernel, device tree and initrd go in a guest's RAM.
//!
//! An `Image` says how far above a 2 MiB boundary it wants to be, and whether that must be the first one. Many kernels
//! that are not Linux come as one and yet know QEMU's `virt` by heart: they look for the device tree where RAM begins,
//! and were linked for 2 MiB further on. So an image that may lie anywhere gets both ([`Placement::of_image`]).
//!
//! Other programs (ELF files, raw binaries) have fixed addresses; tree and initrd get what is left
//! ([`Placement::of_program`]).

use crate::MachinePlan;
use crate::image::{Base, ImageHeader};
use arrayvec::ArrayVec;
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Range};

/// How much memory is set aside for the device tree.
pub const DEVICE_TREE_SIZE: u64 = 64 << 10;
/// How many pieces a program may have.
pub const MAX_SEGMENTS: usize = 16;
/// An initrd must lie in a window of this size, aligned to 1 GiB, that holds the kernel too.
const INITRD_WINDOW: u64 = 32 << 30;
/// A program does not say what it uses of the memory behind it, and an image whose `image_size` is 0 neither (booting.rst: as
/// much as possible is to be free there). So what lies behind is this far from the start of RAM, or in the middle where there is
/// less, as on QEMU's `virt`.
const FREE_BEHIND: u64 = 128 << 20;

/// A piece of a program: the bytes of its file go to the start of the range, the rest of it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it is in memory.
    pub range: Range<Ipa>,
    /// How many bytes of it are in the file.
    pub file_bytes: u64,
}

/// What does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// The kernel is larger than RAM.
    #[error("the kernel needs {needed:#x} bytes from the start of memory, and the VM has {available:#x}")]
    KernelDoesNotFit {
        /// Bytes from the start of RAM to the kernel's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// No room for the device tree.
    #[error("with the kernel and the device tree {needed:#x} bytes are needed, and the VM has {available:#x}")]
    DeviceTreeDoesNotFit {
        /// Bytes from the start of RAM to the tree's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// No room for the initrd.
    #[error("with the kernel and the initrd {needed:#x} bytes are needed, and the VM has {available:#x}")]
    InitrdDoesNotFit {
        /// Bytes from the start of RAM to the initrd's end.
        needed: u64,
        /// Bytes of RAM.
        available: u64,
    },
    /// The initrd lies too far from the kernel.
    #[error("the initrd would end {0:#x} bytes behind the kernel's first gigabyte; 32 GiB is the limit")]
    InitrdTooFar(u64),
    /// Nothing to load, or too much.
    #[error("the program has {0} segments to load; it needs 1 to 16")]
    SegmentCount(usize),
    /// A segment whose bytes do not fit into it.
    #[error("the segment at {at} has {file} bytes in the file and only {size} in memory")]
    SegmentSize {
        /// Where it goes.
        at: Ipa,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        size: u64,
    },
    /// A segment that is not in RAM.
    #[error("the segment of {size:#x} bytes at {at} is not inside the VM's RAM, which is {:#x} bytes at {}", .ram.size, .ram.start)]
    SegmentOutside {
        /// Where it goes.
        at: Ipa,
        /// Bytes in memory.
        size: u64,
        /// The VM's RAM.
        ram: Range<Ipa>,
    },
    /// Two segments in one place.
    #[error("the segments of {:#x} bytes at {} and of {:#x} bytes at {} overlap", .0.size, .0.start, .1.size, .1.start)]
    SegmentsOverlap(Range<Ipa>, Range<Ipa>),
    /// The first instruction is nowhere.
    #[error("the entry {0} is in no segment of the program, or no multiple of 4")]
    Entry(Ipa),
    /// No gap between the segments is large enough.
    #[error("there is no room for {what} of {size:#x} bytes beside the program's segments")]
    NoGap {
        /// What has no place.
        what: &'static str,
        /// Its size.
        size: u64,
    },
}

/// Where a guest's parts go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The kernel's memory: an image's file goes to the start of it; a program's segments are all inside.
    pub kernel: Range<Ipa>,
    /// The first instruction.
    pub entry: Ipa,
    /// The device tree's place; its address goes to X0.
    pub device_tree: Range<Ipa>,
    /// The initrd's place, if there is one.
    pub initrd: Option<Range<Ipa>>,
}

impl Placement {
    /// Places a kernel of `kernel_bytes` with this header, the device tree and an initrd of `initrd_bytes` (0: none)
    /// into the RAM of `plan`.
    ///
    /// If the kernel may lie anywhere, the tree is where RAM begins, and the kernel behind it, from the next 2 MiB boundary
    /// if it would overlap otherwise; the initrd comes last. Where RAM is too small for that, and with a kernel that wants
    /// the start of RAM, the order is kernel, tree, initrd. The tree is aligned to its own size either way, so that it
    /// crosses no 2 MiB boundary, as kernels before 4.2 want it. What lies behind a kernel that does not say how much memory it
    /// uses is as far behind as `virt` has it, or as the RAM allows.
    ///
    /// # Errors
    /// What does not fit.
    pub fn of_image(
        plan: &MachinePlan,
        header: &ImageHeader,
        kernel_bytes: u64,
        initrd_bytes: u64,
    ) -> Result<Self, PlacementError> {
        if header.base == Base::Anywhere {
            let step = if header.text_offset < DEVICE_TREE_SIZE { BLOCK_SIZE } else { 0 };
            let start = header.text_offset.saturating_add(step);
            if let Ok(placed) = Self::in_order(plan, header, [start, kernel_bytes, initrd_bytes], Some(0)) {
                return Ok(placed);
            }
        }
        Self::in_order(plan, header, [header.text_offset, kernel_bytes, initrd_bytes], None)
    }

    /// With the kernel `start` bytes from the start of RAM, and the tree at `tree` or behind the kernel.
    fn in_order(
        plan: &MachinePlan,
        header: &ImageHeader,
        [start, kernel_bytes, initrd_bytes]: [u64; 3],
        tree: Option<u64>,
    ) -> Result<Self, PlacementError> {
        let ram = plan.ram();
        let available = ram.size;
        let size = header.image_size.unwrap_or(0).max(kernel_bytes);

        // All sums saturate: what reaches the top of the space is larger than any RAM.
        let kernel_end = start.saturating_add(size);
        if kernel_end > available {
            return Err(PlacementError::KernelDoesNotFit { needed: kernel_end, available });
        }
        let behind = match header.image_size {
            Some(_) => kernel_end,
            None => {
                let needed = initrd_bytes.saturating_add(PAGE_SIZE + 2 * DEVICE_TREE_SIZE);
                (available / 2).min(FREE_BEHIND).min(available.saturating_sub(needed)).max(kernel_end)
            }
        };
        let tree_start = tree.unwrap_or(behind.next_multiple_of(DEVICE_TREE_SIZE));
        let tree_end = tree_start + DEVICE_TREE_SIZE;
        if tree_end > available {
            return Err(PlacementError::DeviceTreeDoesNotFit { needed: tree_end, available });
        }
        let initrd_start = tree_end.max(behind).next_multiple_of(PAGE_SIZE);
        let initrd_end = initrd_start.saturating_add(initrd_bytes);
        if initrd_bytes != 0 && initrd_end > available {
            return Err(PlacementError::InitrdDoesNotFit { needed: initrd_end, available });
        }
        if initrd_end > INITRD_WINDOW {
            return Err(PlacementError::InitrdTooFar(initrd_end));
        }

        let part = |start: u64, size: u64| Range { start: Ipa(ram.start.0 + start), size };
        let kernel = part(start, size);
        Ok(Self {
            kernel,
            entry: kernel.start,
            device_tree: part(tree_start, DEVICE_TREE_SIZE),
            initrd: (initrd_bytes != 0).then(|| part(initrd_start, initrd_bytes)),
        })
    }

    /// Places the device tree and an initrd of `initrd_bytes` (0: none) beside a program with these segments.
    ///
    /// The tree is where RAM begins, unless a segment is there.
    ///
    /// # Errors
    /// Segments that overlap or are not in RAM, an entry outside of them, and what finds no room beside them.
    pub fn of_program(
        plan: &MachinePlan,
        segments: &[Segment],
        entry: Ipa,
        initrd_bytes: u64,
    ) -> Result<Self, PlacementError> {
        let ram = plan.ram();
        let kernel = check_program(ram, segments, entry)?;
        let middle = Ipa(ram.start.0 + (ram.size / 2).min(FREE_BEHIND));
        let mut taken: ArrayVec<Range<Ipa>, { MAX_SEGMENTS + 1 }> =
            segments.iter().map(|segment| segment.range).collect();
        let device_tree = find_gap(ram, &taken, &[ram.start, middle], DEVICE_TREE_SIZE, DEVICE_TREE_SIZE)
            .ok_or(PlacementError::NoGap { what: "the device tree", size: DEVICE_TREE_SIZE })?;
        taken.push(device_tree);
        let initrd = match initrd_bytes {
            0 => None,
            size => Some(
                find_gap(ram, &taken, &[middle], size, PAGE_SIZE)
                    .ok_or(PlacementError::NoGap { what: "the initrd", size })?,
            ),
        };
        Ok(Self { kernel, entry, device_tree, initrd })
    }
}

/// The memory from a program's first segment to its last.
fn check_program(ram: Range<Ipa>, segments: &[Segment], entry: Ipa) -> Result<Range<Ipa>, PlacementError> {
    if segments.is_empty() || segments.len() > MAX_SEGMENTS {
        return Err(PlacementError::SegmentCount(segments.len()));
    }
    let mut hull = Range { start: ram.end(), size: 0 };
    let mut end = ram.start;
    for (index, &Segment { range, file_bytes }) in segments.iter().enumerate() {
        let Range { start: at, size } = range;
        if size == 0 || file_bytes > size {
            return Err(PlacementError::SegmentSize { at, file: file_bytes, size });
        }
        if Range::new(at, size).is_none_or(|range| !ram.contains_range(range)) {
            return Err(PlacementError::SegmentOutside { at, size, ram });
        }
        if let Some(other) = segments.iter().take(index).find(|other| other.range.overlaps(range)) {
            return Err(PlacementError::SegmentsOverlap(other.range, range));
        }
        hull.start = hull.start.min(at);
        end = end.max(range.end());
    }
    if !entry.is_aligned(4) || !segments.iter().any(|segment| segment.range.contains(entry)) {
        return Err(PlacementError::Entry(entry));
    }
    hull.size = end.0 - hull.start.0;
    Ok(hull)
}

/// `size` bytes of `ram`, aligned, that overlap nothing `taken`: from one of the `wanted` places on, or behind what is taken,
/// rather in the upper part of memory.
fn find_gap(ram: Range<Ipa>, taken: &[Range<Ipa>], wanted: &[Ipa], size: u64, alignment: u64) -> Option<Range<Ipa>> {
    let middle = wanted.last().copied().unwrap_or(ram.start);
    let behind = || taken.iter().map(|range| range.end());
    let starts = wanted.iter().copied().chain(behind().filter(|end| *end >= middle)).chain(behind()).chain([ram.start]);
    let places = starts.filter_map(|start| Range::new(start.align_up(alignment)?, size));
    let mut free = places.filter(|place| ram.contains_range(*place) && !taken.iter().any(|one| one.overlaps(*place)));
    free.next()
}

#[cfg(test)]
mod tests;
