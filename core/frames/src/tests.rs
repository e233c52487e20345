//! The allocator against a naive map of every frame, which also knows what each frame holds; and the special cases.

extern crate std;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;
use std::vec;
use std::vec::Vec;
use units::{BLOCK_SIZE, GIGABYTE, PAGE_SIZE, Pa, Range, VmId};

use crate::{
    Allocation, BlockState, CarvedBlock, FrameAllocator, FramesError, Owner, Release, Unscrubbed, Usage, metadata_len,
};

/// Not a multiple of a gigabyte, nor of a block.
const BASE: u64 = 0x4020_3000;
const BASE_BLOCK: u64 = 0x4020_0000;
const BLOCKS: usize = 12;
const FRAMES: usize = BLOCKS * 512;

fn range(start: u64, size: u64) -> Range<Pa> {
    Range::new(Pa(start), size).unwrap()
}

fn frames(first: usize, count: usize) -> Range<Pa> {
    range(BASE_BLOCK + first as u64 * PAGE_SIZE, count as u64 * PAGE_SIZE)
}

fn numbers(range: Range<Pa>) -> core::ops::Range<usize> {
    let first = ((range.start.0 - BASE_BLOCK) / PAGE_SIZE) as usize;
    first..first + (range.size / PAGE_SIZE) as usize
}

fn allocator(span: Range<Pa>, records: usize) -> FrameAllocator<'static> {
    let metadata = vec![BlockState::default(); metadata_len(span)].leak();
    let carved = vec![CarvedBlock::UNUSED; records].leak();
    FrameAllocator::new(metadata, carved, span).unwrap()
}

/// Frees all that a VM has, a few blocks at a time: no call frees more. Returns how many frames that were.
fn release(frames: &mut FrameAllocator<'_>, vm: u16) -> u64 {
    let mut release = Release::default();
    loop {
        let before = release.frames;
        let is_all = frames.release_some(VmId(vm), &mut release, 3);
        assert!(release.frames - before <= 3 * 512, "{} frames at once", release.frames - before);
        frames.audit().unwrap();
        if is_all {
            return release.frames;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        first: usize,
        count: usize,
    },
    Reserve {
        start: u64,
        size: u64,
    },
    Reclaim {
        first: usize,
        count: usize,
    },
    Guest {
        vm: u16,
        count: usize,
    },
    Blocks {
        owner: Owner,
        count: usize,
    },
    Frames {
        owner: Owner,
        power: u32,
    },
    /// Frees a live allocation, or part of it.
    FreeLive {
        which: usize,
        skip: usize,
        keep: usize,
    },
    /// Frees anything at all.
    FreeAny {
        owner: Owner,
        first: usize,
        count: usize,
    },
    ReleaseAll {
        vm: u16,
    },
    Touch {
        vm: u16,
        frame: usize,
    },
    Lend,
    Return {
        clean: bool,
    },
}

fn owners() -> impl Strategy<Value = Owner> {
    let vm = || (0..3_u16).prop_map(VmId);
    prop_oneof![
        Just(Owner::Hypervisor),
        Just(Owner::Shared),
        Just(Owner::Enclave),
        vm().prop_map(Owner::Guest),
        vm().prop_map(Owner::Tables)
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let span = 0..FRAMES as u64 * PAGE_SIZE;
    prop_oneof![
        1 => (0..FRAMES, 1..1500_usize).prop_map(|(first, count)| Step::Add { first, count }),
        1 => (span, 1..3_000_000_u64).prop_map(|(start, size)| Step::Reserve { start: start + BASE_BLOCK, size }),
        1 => (0..FRAMES, 1..1500_usize).prop_map(|(first, count)| Step::Reclaim { first, count }),
        3 => (0..3_u16, 1..6_usize).prop_map(|(vm, count)| Step::Guest { vm, count }),
        2 => (owners(), 1..3_usize).prop_map(|(owner, count)| Step::Blocks { owner, count }),
        5 => (owners(), 0..7_u32).prop_map(|(owner, power)| Step::Frames { owner, power }),
        5 => (any::<usize>(), 0..3_usize, 1..4_usize)
            .prop_map(|(which, skip, keep)| Step::FreeLive { which, skip, keep }),
        1 => (owners(), 0..FRAMES, 1..600_usize)
            .prop_map(|(owner, first, count)| Step::FreeAny { owner, first, count }),
        1 => (0..3_u16).prop_map(|vm| Step::ReleaseAll { vm }),
        4 => (0..3_u16, 0..FRAMES).prop_map(|(vm, frame)| Step::Touch { vm, frame }),
        2 => Just(Step::Lend),
        2 => any::<bool>().prop_map(|clean| Step::Return { clean }),
    ]
}

/// Every frame: who has it, and whose bytes are in it (0: zeroes).
struct World {
    allocator: FrameAllocator<'static>,
    owner: Vec<Option<Owner>>,
    content: Vec<u32>,
    /// The mark that each VM's bytes bear now; a new one after each release.
    vm_mark: [u32; 3],
    next_mark: u32,
    lent: Vec<Unscrubbed>,
    live: Vec<(Owner, Range<Pa>)>,
}

impl World {
    fn new() -> Self {
        Self {
            allocator: allocator(range(BASE, FRAMES as u64 * PAGE_SIZE - (BASE - BASE_BLOCK)), BLOCKS),
            owner: vec![None; FRAMES],
            content: vec![1; FRAMES],
            vm_mark: [2, 3, 4],
            next_mark: 5,
            lent: Vec::new(),
            live: Vec::new(),
        }
    }

    fn all(&self, range: core::ops::Range<usize>, owner: Option<Owner>) -> bool {
        self.owner[range].iter().all(|&one| one == owner)
    }

    fn is_free_block(&self, block: usize) -> bool {
        let lent = self.lent.iter().any(|lent| numbers(lent.range()).contains(&(block * 512)));
        self.all(block * 512..block * 512 + 512, Some(Owner::Free)) && !lent
    }

    fn free_blocks(&self) -> usize {
        (0..BLOCKS).filter(|&block| self.is_free_block(block)).count()
    }

    /// An allocation must be of free memory, and honest about what it holds; its owner then writes to it.
    fn allocated(&mut self, owner: Owner, allocation: Allocation) -> Result<(), TestCaseError> {
        let at = numbers(allocation.range());
        prop_assert!(self.all(at.clone(), Some(Owner::Free)));
        let clean = matches!(allocation, Allocation::Clean(_));
        let extent = allocation.scrub_with(|range| self.content[numbers(range)].fill(0));
        prop_assert!(self.content[at.clone()].iter().all(|&mark| mark == 0), "clean was {}", clean);
        self.owner[at.clone()].fill(Some(owner));
        self.content[at].fill(self.next_mark);
        self.next_mark += 1;
        self.live.push((owner, extent.range()));
        Ok(())
    }

    fn freed(&mut self, range: Range<Pa>) {
        self.owner[numbers(range)].fill(Some(Owner::Free));
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Add { first, count } => {
                let at = first..(first + count).min(FRAMES);
                let absent = self.all(at.clone(), None);
                let result = self.allocator.add_memory(frames(at.start, at.len()));
                prop_assert_eq!(result.is_ok(), absent);
                if absent {
                    self.owner[at].fill(Some(Owner::Free));
                }
            }
            Step::Reserve { start, size } => self.reserve(range(start, size))?,
            Step::Reclaim { first, count } => {
                let mut reclaimed = 0;
                for owner in self.owner[first..(first + count).min(FRAMES)].iter_mut() {
                    if *owner == Some(Owner::Reserved) {
                        *owner = Some(Owner::Free);
                        reclaimed += 1;
                    }
                }
                prop_assert_eq!(self.allocator.reclaim(frames(first, count)), reclaimed);
            }
            Step::Guest { vm, count } => {
                let possible = count <= self.free_blocks();
                let result = self.allocator.allocate_guest(VmId(vm), count);
                prop_assert_eq!(result.is_ok(), possible);
                let owner = Owner::Guest(VmId(vm));
                for run in result.into_iter().flatten() {
                    prop_assert!(self.all(numbers(run.range()), Some(Owner::Free)));
                    self.owner[numbers(run.range())].fill(Some(owner));
                    self.live.push((owner, run.range()));
                }
            }
            Step::Blocks { owner, count } => {
                if let Ok(allocation) = self.allocator.allocate_blocks(owner, count) {
                    prop_assert!(!matches!(owner, Owner::Guest(_)));
                    self.allocated(owner, allocation)?;
                }
            }
            Step::Frames { owner, power } => match self.allocator.allocate_frames(owner, 1 << power) {
                Ok(allocation) => {
                    prop_assert!(allocation.range().start.is_aligned(PAGE_SIZE << power));
                    self.allocated(owner, allocation)?;
                }
                Err(_) => prop_assert_eq!(self.free_blocks(), 0),
            },
            Step::FreeLive { which, skip, keep } => {
                if self.live.is_empty() {
                    return Ok(());
                }
                let (owner, whole) = self.live.swap_remove(which % self.live.len());
                let unit = if whole.size >= BLOCK_SIZE { BLOCK_SIZE } else { PAGE_SIZE };
                let first = (skip as u64 * unit).min(whole.size - unit);
                let size = (keep as u64 * unit).min(whole.size - first);
                let part = range(whole.start.0 + first, size);
                // It may have been freed by other steps, and in part be somebody else's again.
                self.free(owner, part)?;
            }
            Step::FreeAny { owner, first, count } => self.free(owner, frames(first, count.min(FRAMES - first)))?,
            Step::ReleaseAll { vm } => {
                let mine = |owner| [Some(Owner::Guest(VmId(vm))), Some(Owner::Tables(VmId(vm)))].contains(&owner);
                let had = self.owner.iter().filter(|&&owner| mine(owner)).count();
                self.owner.iter_mut().filter(|owner| mine(**owner)).for_each(|owner| *owner = Some(Owner::Free));
                prop_assert_eq!(release(&mut self.allocator, vm), had as u64);
                self.vm_mark[usize::from(vm)] = self.next_mark;
                self.next_mark += 1;
            }
            Step::Touch { vm, frame } => self.touch(vm, frame)?,
            Step::Lend => {
                if let Some(dirty) = self.allocator.next_dirty_free_block() {
                    prop_assert!(self.is_free_block(numbers(dirty.range()).start / 512));
                    self.lent.push(dirty);
                }
            }
            Step::Return { clean } => {
                let Some(dirty) = self.lent.pop() else { return Ok(()) };
                let result = if clean {
                    self.content[numbers(dirty.range())].fill(0);
                    self.allocator.return_clean(dirty.scrubbed())
                } else {
                    self.allocator.return_dirty(dirty)
                };
                prop_assert_eq!(result, Ok(()));
            }
        }
        Ok(())
    }

    fn reserve(&mut self, wanted: Range<Pa>) -> Result<(), TestCaseError> {
        let first = ((wanted.start.0 - BASE_BLOCK) / PAGE_SIZE) as usize;
        let end = ((wanted.end().0 - BASE_BLOCK).div_ceil(PAGE_SIZE) as usize).min(FRAMES);
        let lent = self.lent.iter().any(|lent| numbers(lent.range()).any(|frame| (first..end).contains(&frame)));
        let takes = |owner: &Option<Owner>| matches!(owner, None | Some(Owner::Free | Owner::Reserved));
        let possible = !lent && self.owner[first..end].iter().all(takes);
        prop_assert_eq!(self.allocator.reserve(wanted).is_ok(), possible);
        if possible {
            self.owner[first..end].iter_mut().flatten().for_each(|owner| *owner = Owner::Reserved);
            self.content[first..end].fill(self.next_mark);
            self.next_mark += 1;
        }
        Ok(())
    }

    fn free(&mut self, owner: Owner, part: Range<Pa>) -> Result<(), TestCaseError> {
        let owned = self.all(numbers(part), Some(owner));
        if self.allocator.free(owner, part).is_ok() {
            prop_assert!(owned, "freed what is another's");
            self.freed(part);
        } else if part.start.is_aligned(BLOCK_SIZE) && part.size == BLOCK_SIZE {
            prop_assert!(!owned, "did not free what is its own");
        }
        Ok(())
    }

    /// A guest sees only zeroes, or what it wrote itself.
    fn touch(&mut self, vm: u16, frame: usize) -> Result<(), TestCaseError> {
        let Ok(block) = self.allocator.first_touch(VmId(vm), frames(frame, 1).start) else {
            // Not the VM's, or a frame that was scrubbed when it was allocated.
            return Ok(());
        };
        let at = numbers(block.range());
        let mark = self.vm_mark[usize::from(vm)];
        prop_assert!(self.all(at.clone(), Some(Owner::Guest(VmId(vm)))));
        let extent = block.scrub_with(|range| self.content[numbers(range)].fill(0));
        prop_assert!(self.content[at.clone()].iter().all(|&held| held == 0 || held == mark));
        prop_assert_eq!(self.allocator.mark_clean(VmId(vm), &extent), Ok(()));
        self.content[at].fill(mark);
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.allocator.audit(), Ok(()));
        for (frame, &owner) in self.owner.iter().enumerate() {
            prop_assert_eq!(self.allocator.owner_of(frames(frame, 1).start), owner, "frame {}", frame);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn agrees_with_a_map_of_every_frame(list in proptest::collection::vec(steps(), 1..60)) {
        let mut world = World::new();
        world.step(Step::Add { first: 100, count: 2000 })?;
        world.step(Step::Add { first: 2500, count: 3200 })?;
        for step in list {
            world.step(step)?;
            world.check()?;
        }
    }
}

/// 4 GiB from 1 GiB on, with an image in the first.
fn machine() -> FrameAllocator<'static> {
    let ram = range(GIGABYTE, 4 * GIGABYTE);
    let mut frames = allocator(ram, 8);
    frames.add_memory(ram).unwrap();
    frames.reserve(range(GIGABYTE + 0x20_0000, 0x12_3456)).unwrap();
    frames
}

#[test]
fn guests_get_aligned_gigabytes_first_and_small_guests_leave_them_whole() {
    let mut frames = machine();
    let small = frames.allocate_guest(VmId(0), 256).unwrap();
    assert_eq!(small.len(), 1);
    assert!(small[0].range().end() <= Pa(2 * GIGABYTE));
    let large = frames.allocate_guest(VmId(1), 2 * 512 + 100).unwrap();
    assert_eq!(large[0].start, Pa(2 * GIGABYTE));
    assert_eq!(large.iter().map(|run| run.blocks).sum::<usize>(), 1124);
    frames.audit().unwrap();
    assert_eq!(release(&mut frames, 1), 1124 * 512);
    assert_eq!(release(&mut frames, 1), 0);
    frames.audit().unwrap();
}

#[test]
fn small_needs_come_from_the_block_that_is_reserved_in_part() {
    let mut frames = machine();
    let free = frames.free_blocks();
    let one = frames.allocate_frames(Owner::Hypervisor, 1).unwrap();
    assert_eq!(one.range().start, Pa(GIGABYTE + 0x20_0000 + 0x12_4000));
    assert_eq!(frames.free_blocks(), free);
    // Another owner gets another block.
    let other = frames.allocate_frames(Owner::Tables(VmId(3)), 2).unwrap();
    assert_eq!(frames.free_blocks(), free - 1);
    assert_eq!(frames.vm_usage(VmId(3)).tables, 2);
    assert_eq!(frames.free(Owner::Tables(VmId(3)), other.range()), Ok(()));
    assert_eq!(frames.free_blocks(), free);
    let again = frames.free(Owner::Tables(VmId(3)), other.range());
    assert_eq!(again, Err(FramesError::NotOwned(other.range().start, Owner::Tables(VmId(3)))));
}

#[test]
fn what_was_reserved_in_a_clean_block_comes_back_dirty() {
    let ram = range(GIGABYTE, BLOCK_SIZE);
    let mut frames = allocator(ram, 1);
    frames.add_memory(ram).unwrap();
    let dirty = frames.next_dirty_free_block().unwrap();
    frames.return_clean(dirty.scrubbed()).unwrap();
    frames.reserve(range(GIGABYTE, PAGE_SIZE)).unwrap();
    assert!(matches!(frames.allocate_frames(Owner::Hypervisor, 1), Ok(Allocation::Clean(_))));
    assert_eq!(frames.reclaim(range(GIGABYTE, PAGE_SIZE)), 1);
    assert!(matches!(frames.allocate_frames(Owner::Hypervisor, 1), Ok(Allocation::Unscrubbed(_))));
}

#[test]
fn without_records_partly_used_blocks_are_taken_whole() {
    let ram = range(GIGABYTE, GIGABYTE);
    let mut frames = allocator(ram, 1);
    frames.add_memory(ram).unwrap();
    frames.reserve(range(GIGABYTE, 1)).unwrap();
    frames.reserve(range(GIGABYTE + 8 * BLOCK_SIZE, 1)).unwrap();
    assert_eq!(frames.usage().reserved, 513);
    assert_eq!(frames.allocate_frames(Owner::Shared, 1).unwrap().range().start, Pa(GIGABYTE + PAGE_SIZE));
    assert_eq!(frames.allocate_frames(Owner::Hypervisor, 1), Err(FramesError::OutOfFrames));
    frames.audit().unwrap();
}

#[test]
fn many_far_apart_regions_are_all_found() {
    let mut frames = allocator(range(0, 64 * GIGABYTE), 4);
    for number in 0..24 {
        frames.add_memory(range((number * 5 % 24) * 2 * GIGABYTE, BLOCK_SIZE)).unwrap();
    }
    assert_eq!(frames.allocate_guest(VmId(0), 24).unwrap().len(), 24);
    assert_eq!(frames.free_blocks(), 0);
    release(&mut frames, 0);
    while let Some(dirty) = frames.next_dirty_free_block() {
        frames.return_clean(dirty.scrubbed()).unwrap();
    }
    let all = 24 * 512;
    assert_eq!(frames.usage(), Usage { total: all, free: all, free_clean: all, ..Usage::default() });
    assert!(matches!(frames.allocate_blocks(Owner::Hypervisor, 1), Ok(Allocation::Clean(_))));
}

#[test]
fn errors_name_what_is_wrong() {
    let mut frames = machine();
    assert!(matches!(frames.add_memory(range(2 * GIGABYTE, PAGE_SIZE)), Err(FramesError::Overlap(_))));
    assert!(matches!(frames.add_memory(range(64 * GIGABYTE, PAGE_SIZE)), Err(FramesError::OutsideSpan(_))));
    assert_eq!(frames.allocate_frames(Owner::Hypervisor, 3), Err(FramesError::BadCount(3)));
    assert_eq!(frames.allocate_frames(Owner::Hypervisor, 128), Err(FramesError::BadCount(128)));
    assert_eq!(frames.allocate_frames(Owner::Reserved, 1), Err(FramesError::BadOwner(Owner::Reserved)));
    assert_eq!(frames.allocate_guest(VmId(128), 1), Err(FramesError::BadVm(VmId(128))));
    let free = frames.free_blocks();
    assert_eq!(frames.allocate_guest(VmId(0), free + 1), Err(FramesError::OutOfBlocks { wanted: free + 1, free }));
    assert!(matches!(frames.free(Owner::Hypervisor, range(GIGABYTE + 1, 4096)), Err(FramesError::Unaligned(_))));
}

#[test]
fn metadata_is_for_each_block_of_which_a_part_lies_in_the_span() {
    assert_eq!(metadata_len(range(BASE, FRAMES as u64 * PAGE_SIZE - (BASE - BASE_BLOCK))), BLOCKS);
    assert_eq!(metadata_len(range(BASE_BLOCK + BLOCK_SIZE - 1, 2)), 2);
}

/// Whoever may have frames at all has a hint of its own, the last VM too.
#[test]
fn every_owner_gets_frames() {
    let mut frames = allocator(range(0, 200 * BLOCK_SIZE), 200);
    frames.add_memory(range(0, 200 * BLOCK_SIZE)).unwrap();
    let vms = (0..64).map(VmId).flat_map(|vm| [Owner::Guest(vm), Owner::Tables(vm)]);
    for owner in vms.chain([Owner::Hypervisor, Owner::Shared, Owner::Enclave]) {
        assert!(frames.allocate_frames(owner, 1).is_ok(), "{owner:?}");
    }
    frames.audit().unwrap();
}

#[test]
fn ram_that_is_added_twice_is_found_wherever_it_is() {
    let mut frames = allocator(range(0, 8 * BLOCK_SIZE), 8);
    frames.add_memory(range(2 * BLOCK_SIZE, 2 * BLOCK_SIZE)).unwrap();
    // Alone; two alike; behind blocks that are none; and of a block that is RAM in part only.
    for (first, count) in [(3, 1), (2, 2), (1, 2), (2, 4), (0, 8)] {
        let twice = frames.add_memory(range(first * BLOCK_SIZE, count * BLOCK_SIZE));
        let taken = first.max(2) * BLOCK_SIZE;
        assert_eq!(twice, Err(FramesError::Overlap(Pa(taken))), "{count} blocks from {first} on");
    }
    assert_eq!(frames.usage().total, 2 * 512);
    frames.audit().unwrap();
}

#[test]
fn a_block_that_becomes_ram_piece_by_piece_can_be_had_as_a_whole() {
    let mut frames = allocator(range(0, 4 * BLOCK_SIZE), 4);
    let parts = [range(BLOCK_SIZE, 100 * PAGE_SIZE), range(BLOCK_SIZE + 100 * PAGE_SIZE, 412 * PAGE_SIZE)];
    frames.add_memory(parts[0]).unwrap();
    assert_eq!(frames.free_blocks(), 0);
    frames.add_memory(parts[1]).unwrap();
    assert_eq!(frames.allocate_guest(VmId(0), 1).unwrap()[0].start, Pa(BLOCK_SIZE));
}

/// RAM that comes in pieces side by side is searched as one: a run may lie across.
#[test]
fn pieces_of_ram_that_touch_are_one() {
    for order in [[0, 1], [1, 0]] {
        let mut frames = allocator(range(0, 8 * BLOCK_SIZE), 0);
        for piece in order {
            frames.add_memory(range(piece * 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)).unwrap();
        }
        assert_eq!(frames.allocate_guest(VmId(0), 4).unwrap().len(), 1);
    }
}

/// What was reserved as a whole comes back in part, by a record; where there is none left, not at all.
#[test]
fn a_part_of_a_reserved_block_comes_back() {
    let ram = range(0, 4 * BLOCK_SIZE);
    let part = range(BLOCK_SIZE + 3 * PAGE_SIZE, 100 * PAGE_SIZE);
    for (records, free) in [(1, 100), (0, 0)] {
        let mut frames = allocator(ram, records);
        frames.add_memory(ram).unwrap();
        frames.reserve(range(BLOCK_SIZE, BLOCK_SIZE)).unwrap();
        assert_eq!(frames.reclaim(part), free);
        let usage = Usage { total: 4 * 512, free: 3 * 512, spare: free, reserved: 512 - free, ..Usage::default() };
        assert_eq!(frames.usage(), usage);
        frames.audit().unwrap();
        let given = if free == 0 { Owner::Reserved } else { Owner::Free };
        let owners = [part.start.0 - PAGE_SIZE, part.start.0, part.end().0 - 1, part.end().0];
        let found = owners.map(|address| frames.owner_of(Pa(address)).unwrap());
        assert_eq!(found, [Owner::Reserved, given, given, Owner::Reserved]);
        // The rest, and with it the whole block.
        assert_eq!(frames.reclaim(range(BLOCK_SIZE, BLOCK_SIZE)), 512 - free);
        assert_eq!(frames.free_blocks(), 4);
        frames.audit().unwrap();
    }
}

#[test]
fn blocks_are_given_up_to_the_last_and_none_is_not_a_number() {
    let ram = range(0, 4 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    for wanted in [0, 5] {
        let refused = Err(FramesError::OutOfBlocks { wanted, free: 4 });
        assert_eq!(frames.allocate_blocks(Owner::Hypervisor, wanted), refused);
    }
    assert_eq!(frames.allocate_blocks(Owner::Hypervisor, 4).unwrap().range(), ram);
    frames.audit().unwrap();
}

/// A guest's block is clean from when it was scrubbed, which only its own VM says.
#[test]
fn whether_a_block_is_clean_is_known() {
    let ram = range(0, 4 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    let start = frames.allocate_guest(VmId(1), 2).unwrap()[0].start;
    let Ok(Allocation::Unscrubbed(dirty)) = frames.first_touch(VmId(1), start) else { panic!("it is clean") };
    assert!(!frames.is_clean(start));
    let scrubbed = dirty.scrubbed();
    assert_eq!(frames.mark_clean(VmId(2), &scrubbed), Err(FramesError::NotOwned(start, Owner::Guest(VmId(2)))));
    assert!(!frames.is_clean(start));
    frames.mark_clean(VmId(1), &scrubbed).unwrap();
    assert!(frames.is_clean(start) && !frames.is_clean(Pa(start.0 + BLOCK_SIZE)));
    assert!(matches!(frames.first_touch(VmId(1), start), Ok(Allocation::Clean(_))));
}

/// One block after the other is lent to be zeroed, and what became dirty since is found again, wherever it lies.
#[test]
fn what_is_dirty_is_found_where_it_is() {
    let ram = range(0, 6 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    let guest = frames.allocate_guest(VmId(0), 2).unwrap()[0];
    for expected in 2..6 {
        let dirty = frames.next_dirty_free_block().unwrap();
        assert_eq!(dirty.range().start, Pa(expected * BLOCK_SIZE));
        frames.return_clean(dirty.scrubbed()).unwrap();
    }
    assert!(frames.next_dirty_free_block().is_none());
    frames.free(Owner::Guest(VmId(0)), range(guest.start.0 + BLOCK_SIZE, BLOCK_SIZE)).unwrap();
    assert_eq!(frames.next_dirty_free_block().unwrap().range().start, Pa(BLOCK_SIZE));
}

/// 2.5 GiB from the middle of a gigabyte on. Its whole gigabytes are the second's and the third's.
fn from_the_middle() -> FrameAllocator<'static> {
    let ram = range(3 * GIGABYTE / 2, 5 * GIGABYTE / 2);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    frames
}

#[test]
fn one_gigabyte_is_an_aligned_one_wherever_the_first_block_is() {
    let run = from_the_middle().allocate_guest(VmId(0), 512).unwrap()[0];
    assert_eq!((run.start, run.blocks), (Pa(2 * GIGABYTE), 512));
}

/// What is more than whole gigabytes, and not all that is wanted, stays for those who want less.
#[test]
fn of_a_gigabyte_and_a_half_the_gigabyte_is_taken() {
    let mut frames = from_the_middle();
    frames.reserve(range(2 * GIGABYTE + 700 * BLOCK_SIZE, BLOCK_SIZE)).unwrap();
    let runs = frames.allocate_guest(VmId(0), 1000).unwrap();
    assert_eq!((runs[0].start, runs[0].blocks), (Pa(2 * GIGABYTE), 512));
    assert_eq!(runs.iter().map(|run| run.blocks).sum::<usize>(), 1000);
    frames.audit().unwrap();
}

#[test]
fn of_runs_that_are_alike_the_first_is_taken() {
    let ram = range(0, 5 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    frames.reserve(range(2 * BLOCK_SIZE, BLOCK_SIZE)).unwrap();
    let runs = frames.allocate_guest(VmId(0), 4).unwrap();
    assert_eq!([runs[0].start, runs[1].start], [Pa(0), Pa(3 * BLOCK_SIZE)]);
}

/// RAM that was added first is given first, if it does not touch what came later.
#[test]
fn pieces_of_ram_that_are_apart_are_searched_in_their_order() {
    let mut frames = allocator(range(0, 8 * BLOCK_SIZE), 0);
    for first in [6, 0] {
        frames.add_memory(range(first * BLOCK_SIZE, 2 * BLOCK_SIZE)).unwrap();
    }
    assert_eq!(frames.allocate_guest(VmId(0), 1).unwrap()[0].start, Pa(6 * BLOCK_SIZE));
}

#[test]
fn a_release_frees_as_much_at_once_as_it_may() {
    let ram = range(0, 8 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    frames.allocate_guest(VmId(0), 5).unwrap();
    let mut release = Release::default();
    let freed = [false, false, true].map(|last| {
        assert_eq!(frames.release_some(VmId(0), &mut release, 3), last);
        release.frames / 512
    });
    assert_eq!(freed, [3, 5, 5]);
}

#[test]
fn a_block_that_was_not_lent_does_not_come_back() {
    let ram = range(0, 2 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    let block = frames.allocate_blocks(Owner::Hypervisor, 1).unwrap().scrub_with(|_| ());
    let start = block.start();
    assert_eq!(frames.return_clean(block), Err(FramesError::NotOwned(start, Owner::Free)));
    assert_eq!(frames.owner_of(start), Some(Owner::Hypervisor));
    frames.audit().unwrap();
}

#[test]
fn a_block_that_is_said_to_be_clean_twice_is_clean() {
    let ram = range(0, BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    let start = frames.allocate_guest(VmId(0), 1).unwrap()[0].start;
    let block = frames.first_touch(VmId(0), start).unwrap().scrub_with(|_| ());
    for _ in 0..2 {
        frames.mark_clean(VmId(0), &block).unwrap();
        assert!(frames.is_clean(start));
    }
}

/// Nothing is nobody's, even in a block that cannot be divided; and behind the last block is nothing.
#[test]
fn no_memory_is_added_and_reserved_as_nothing() {
    let ram = range(0, 2 * BLOCK_SIZE);
    let mut frames = allocator(ram, 0);
    frames.add_memory(ram).unwrap();
    let before = frames.usage();
    frames.reserve(range(BLOCK_SIZE + PAGE_SIZE, 0)).unwrap();
    assert_eq!(frames.add_memory(range(BLOCK_SIZE + PAGE_SIZE, 1)), Ok(()), "it holds no whole frame");
    assert_eq!(frames.usage(), before);
    assert_eq!([2 * BLOCK_SIZE - 1, 2 * BLOCK_SIZE].map(|at| frames.owner_of(Pa(at))), [Some(Owner::Free), None]);
}

/// An owner's frames come out of the block that served it last, whoever had frames since: that block is looked at first.
#[test]
fn each_owner_goes_on_where_it_was() {
    let vms = (0..64).map(VmId).flat_map(|vm| [Owner::Guest(vm), Owner::Tables(vm)]);
    let owners: Vec<_> = vms.chain([Owner::Hypervisor, Owner::Shared, Owner::Enclave]).collect();
    let ram = range(0, 2 * owners.len() as u64 * BLOCK_SIZE);
    let mut frames = allocator(ram, 2 * owners.len());
    frames.add_memory(ram).unwrap();
    let mut last = Vec::new();
    for &owner in &owners {
        let first = frames.allocate_frames(owner, 64).unwrap().range();
        (1..8).for_each(|_| drop(frames.allocate_frames(owner, 64).unwrap()));
        last.push(frames.allocate_frames(owner, 1).unwrap().range().start);
        // Now there is room in the first one too.
        frames.free(owner, first).unwrap();
    }
    for (owner, last) in owners.into_iter().zip(last) {
        let next = frames.allocate_frames(owner, 1).unwrap().range().start;
        assert_eq!(next, Pa(last.0 + PAGE_SIZE), "{owner:?}");
    }
    frames.audit().unwrap();
}
