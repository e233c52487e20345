//! Who owns the host's RAM, at run time: the one frame allocator, and what is built directly on it.
//!
//! Policy is `core/frames`; here is the lock around it and the hypervisor's own use of memory: the heap, stacks, table
//! frames. Zeroing happens outside the lock: memory that is being zeroed belongs to the thread that zeroes it.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ::vm::needs;
use frames::{
    Allocation, BlockState, CarvedBlock, Extent, FrameAllocator, FramesError, Owner, Release, Runs, Usage, VmUsage,
};
use hw::sync::PreemptLock;
use hw::{cache, mmu, nopreempt, stack, sysreg};
use platform::Platform;
use units::{BLOCK_SIZE, GIGABYTE, PAGE_SIZE, Pa, Range, Va, VmId};

/// How much of a guest's block is zeroed at a time: between two pieces a thread may be preempted.
pub(crate) const PIECE: u64 = BLOCK_SIZE / 32;

/// How many blocks are given to a guest under the allocator's lock, or taken from it: nobody waits for a whole VM's memory.
const GIVEN_AT_ONCE: usize = (GIGABYTE / BLOCK_SIZE) as usize;
const TAKEN_AT_ONCE: usize = 64;

// What is counted before a site is accepted is what is taken here.
const _: () = assert!(size_of::<BlockState>() == 8 && size_of::<CarvedBlock>() as u64 <= needs::RECORD);
const _: () = assert!(stack::SIZE == needs::STACK);

static FRAMES: PreemptLock<Option<FrameAllocator<'static>>> = PreemptLock::new(None);
static STACKS: AtomicU64 = AtomicU64::new(0);
static SPARE: AtomicUsize = AtomicUsize::new(0);

/// Takes all RAM under control but what the platform reserves and the image itself; starts the heap.
///
/// # Errors
/// When there is too little memory, or its description contradicts itself.
#[inline(never)]
pub(crate) fn init(platform: &Platform<'_>) -> Result<(), FramesError> {
    let first = platform.memory.first().map_or(Pa(0), |range| range.start);
    let end = platform.memory.last().map_or(Pa(0), |range| range.end());
    let span = Range { start: first, size: end.0 - first.0 };
    let image = stack::image().whole();

    // The allocator's own metadata: the first place in RAM where it fits between what is taken.
    let blocks = frames::metadata_len(span);
    let divided = needs::divided_blocks(span.size) as usize;
    let bytes = (blocks * size_of::<BlockState>() + divided * size_of::<CarvedBlock>()) as u64 + 64;
    let metadata =
        find_gap(platform, bytes.next_multiple_of(PAGE_SIZE)).ok_or(FramesError::OutOfBlocks { wanted: 1, free: 0 })?;
    let (states, carved) = hw::memory::claim_metadata::<BlockState, CarvedBlock>(
        metadata,
        (blocks, BlockState::ABSENT),
        (divided, CarvedBlock::UNUSED),
    );
    let mut frames = FrameAllocator::new(states, carved, span)?;
    for &range in &platform.memory {
        frames.add_memory(range)?;
    }
    for &range in platform.reserved.iter().chain([&image, &metadata]) {
        frames.reserve(range)?;
    }
    *FRAMES.lock() = Some(frames);
    mmu::set_frame_source(|| allocate_frames(Owner::Hypervisor, 1).ok().map(|extent| extent.start()));
    grow_heap(1)
}

/// The first `size` bytes of RAM, page-aligned, that overlap neither the image nor anything reserved.
pub(crate) fn find_gap(platform: &Platform<'_>, size: u64) -> Option<Range<Pa>> {
    let taken = || platform.reserved.iter().copied().chain([stack::image().whole()]);
    platform.memory.iter().find_map(|memory| {
        let mut candidate = Range::new(memory.start.align_up(PAGE_SIZE)?, size)?;
        while memory.contains_range(candidate) {
            match taken().find(|range| range.overlaps(candidate)) {
                None => return Some(candidate),
                Some(obstacle) => candidate = Range::new(obstacle.end().align_up(PAGE_SIZE)?, size)?,
            }
        }
        None
    })
}

/// Runs `work` with the allocator.
fn with<R>(work: impl FnOnce(&mut FrameAllocator<'static>) -> Result<R, FramesError>) -> Result<R, FramesError> {
    match FRAMES.lock().as_mut() {
        Some(frames) => work(frames),
        None => Err(FramesError::OutOfFrames),
    }
}

fn grow_heap(blocks: usize) -> Result<(), FramesError> {
    let range = with(|frames| frames.allocate_blocks(Owner::Hypervisor, blocks))?.range();
    hw::heap::add(hw::memory::claim_unzeroed(range.start, range.size));
    Ok(())
}

/// Makes sure that the heap can hold `bytes` more, whole blocks: called before VMs are made. In one piece if there is one, for
/// the list of a large VM's blocks is longer than a block.
///
/// # Errors
/// When there is no memory for it.
#[inline(never)]
pub(crate) fn prepare_heap(bytes: u64) -> Result<(), FramesError> {
    let blocks = bytes.div_ceil(BLOCK_SIZE) as usize;
    if blocks > 0 && grow_heap(blocks).is_err() {
        (0..blocks).try_for_each(|_| grow_heap(1))?;
    }
    Ok(())
}

/// How many bytes of free blocks VMs can have at any moment: one that an idle CPU is zeroing is nobody's until it is done.
pub(crate) fn least_free(cpus: usize) -> u64 {
    let usage = usage();
    ((usage.free + usage.scrubbing) * PAGE_SIZE).saturating_sub(cpus as u64 * BLOCK_SIZE)
}

/// `count` contiguous zeroed frames for `owner`, aligned to their size.
///
/// # Errors
/// When there are none.
pub(crate) fn allocate_frames(owner: Owner, count: usize) -> Result<Extent, FramesError> {
    with(|frames| frames.allocate_frames(owner, count)).map(|allocation| allocation.scrub_with(cache::zero))
}

/// A zeroed block for the hypervisor.
///
/// # Errors
/// When there is none.
pub(crate) fn allocate_block() -> Result<Extent, FramesError> {
    with(|frames| frames.allocate_blocks(Owner::Hypervisor, 1)).map(|allocation| allocation.scrub_with(cache::zero))
}

/// Gives frames back.
pub(crate) fn free_frames(owner: Owner, range: Range<Pa>) {
    if let Err(error) = with(|frames| frames.free(owner, range)) {
        log::error!("cannot free {range:?} of {owner:?}: {error}");
    }
}

/// RAM for a guest, not yet zeroed.
///
/// # Errors
/// When there is not enough, or in too many pieces; the guest may have some of it then, which is to be released.
pub(crate) fn allocate_guest(vm: VmId, blocks: usize) -> Result<Runs, FramesError> {
    with(|frames| match frames.free_blocks() {
        free if free < blocks => Err(FramesError::OutOfBlocks { wanted: blocks, free }),
        _ => Ok(()),
    })?;
    let mut runs = Runs::new();
    let mut missing = blocks;
    while missing > 0 {
        let part = missing.min(GIVEN_AT_ONCE);
        for run in with(|frames| frames.allocate_guest(vm, part))? {
            match runs.last_mut() {
                Some(last) if last.range().end() == run.start => last.blocks += run.blocks,
                _ => runs.try_push(run).map_err(|_| FramesError::Fragmented(blocks))?,
            }
        }
        missing -= part;
    }
    Ok(runs)
}

/// Whether a guest's block has to be zeroed before the guest may see it.
///
/// # Errors
/// When the block is not the guest's.
pub(crate) fn needs_zeroing(vm: VmId, block: Pa) -> Result<bool, FramesError> {
    Ok(matches!(with(|frames| frames.first_touch(vm, block))?, Allocation::Unscrubbed(_)))
}

/// Zeroes a piece of a guest's block: [`PIECE`] bytes from `offset` on; the last piece makes it clean. Pieces are taken one
/// after the other from the first.
///
/// # Errors
/// When the block is not the guest's.
pub(crate) fn zero_piece(vm: VmId, block: Pa, offset: u64) -> Result<(), FramesError> {
    cache::zero(Range { start: Pa(block.0 + offset), size: PIECE });
    if offset + PIECE == BLOCK_SIZE { is_written(vm, block) } else { Ok(()) }
}

/// All of a guest's block was written over, before the guest saw it: it is clean.
///
/// # Errors
/// When the block is not the guest's.
pub(crate) fn is_written(vm: VmId, block: Pa) -> Result<(), FramesError> {
    if let Allocation::Unscrubbed(unscrubbed) = with(|frames| frames.first_touch(vm, block))? {
        let extent = unscrubbed.scrubbed();
        with(|frames| frames.mark_clean(vm, &extent))?;
    }
    Ok(())
}

/// Copies a piece of one block to the same place in another one: [`PIECE`] bytes from `offset` on. Both are a guest's.
pub(crate) fn copy_piece(from: Pa, to: Pa, offset: u64) {
    hw::memory::copy_frames(Range { start: Pa(from.0 + offset), size: PIECE }, Pa(to.0 + offset));
}

/// So many blocks are left when all VMs have all that they may come to need.
pub(crate) fn set_spare(bytes: u64) {
    SPARE.store((bytes / BLOCK_SIZE) as usize, Ordering::Relaxed);
}

/// How many blocks no VM can come to need.
pub(crate) fn spare_blocks() -> usize {
    SPARE.load(Ordering::Relaxed)
}

/// The account of what a VM has beside its guest's memory, which a reset does not end: behind those of all VMs.
pub(crate) const fn annex_of(vm: VmId) -> VmId {
    VmId(vm.0 + abi::bundle::MAX_VMS as u16)
}
const _: () = assert!(2 * abi::bundle::MAX_VMS <= frames::MAX_VMS);

/// Takes everything back that exists for `vm`; returns how many frames that was.
pub(crate) fn release_guest(vm: VmId) -> u64 {
    let mut release = Release::default();
    while !with(|frames| Ok(frames.release_some(vm, &mut release, TAKEN_AT_ONCE))).unwrap_or(true) {}
    release.frames
}

/// Who has how much.
pub(crate) fn usage() -> Usage {
    with(|frames| Ok(frames.usage())).unwrap_or_default()
}

/// What one VM has, with what it has beside its guest's memory.
pub(crate) fn vm_usage(vm: VmId) -> VmUsage {
    with(|frames| {
        let (mut all, annex) = (frames.vm_usage(vm), frames.vm_usage(annex_of(vm)));
        all.guest += annex.guest;
        Ok(all)
    })
    .unwrap_or_default()
}

/// Zeroes one dirty free block, if there is one, with IRQs let in; the work of idle CPUs. Says whether it did.
pub(crate) fn scrub_one() -> bool {
    let Ok(Some(block)) = with(|frames| Ok(frames.next_dirty_free_block())) else { return false };
    hw::sync::with_irqs(|| {
        let begin = sysreg::cntpct_el0();
        cache::zero(block.range());
        nopreempt::add_zeroed(block.range().size, sysreg::cntpct_el0().wrapping_sub(begin));
    });
    let extent = block.scrubbed();
    with(|frames| frames.return_clean(extent)).is_ok()
}

/// Whether idle CPUs have nothing to zero.
#[must_use]
pub fn is_scrubbed() -> bool {
    let usage = usage();
    usage.free.saturating_sub(usage.free_clean) < BLOCK_SIZE / PAGE_SIZE
}

/// A fresh thread stack; returns its top.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn allocate_stack() -> Result<Va, FramesError> {
    let mut pages = [Pa(0); stack::FRAMES];
    for page in &mut pages {
        *page = allocate_frames(Owner::Hypervisor, 1)?.start();
    }
    let slot = STACKS.fetch_add(1, Ordering::Relaxed);
    stack::map(slot, pages).map_err(|_| FramesError::OutOfFrames)
}
