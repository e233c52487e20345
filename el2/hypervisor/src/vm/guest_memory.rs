//! A guest's RAM: which host memory it is, and the stage 2 tables that map it for the guest. Behind it, in the same numbers and by the same
//! rules, but for the guest nowhere, is the VM's annex: what its devices keep, which stays when the guest resets.
//!
//! All of the RAM is allocated when a VM starts. Each block is zeroed and mapped at its first touch ([`GuestRam::prepare`]), so a
//! start costs nothing for memory that the VM never uses.
//!
//! To zero a block takes long, and a guest chooses how many it touches. So at most one piece of a block is prepared at a time
//! under the lock around the RAM, and an access to a block that is not mapped yet is refused ([`RamError::NotShown`]): the caller
//! releases all locks, prepares the block piece by piece, and tries again.
//!
//! `stage2` decides what the guest may execute (`core/stage2/src/coherency.rs`): its first fetch from a page comes here
//! ([`GuestRam::allow`]), and whatever the hypervisor stores into the guest goes through [`GuestRam::rewrite`], after which the
//! guest cannot execute the old contents.
//!
//! While a VM is saved and runs on, its RAM is held: [`hold`]. While one is restored and runs already, its RAM is to come: [`coming`].

extern crate alloc;

use alloc::vec::Vec;
use core::{fmt, mem};

use ::vm::needs;
use cpu::exit::Wanted;
use frames::{FramesError, Owner};
use hw::sync::PreemptLock;
use hw::{cache, memory as physical, tlb};
use stage2::{
    Allowed, Attributes, Caches, Effects, Hardware, Invalidation, Permissions, Point, Policy, Promotion, Rules, Stage2,
    Stage2Error, Step, TableMemory, TlbOps, Writable,
};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Pa, Range, VmId};

use crate::host::memory;

mod coming;
mod enclaves;
mod hold;

use coming::Coming;
use enclaves::Enclaves;
use hold::{Hold, Kept};

/// What can be wrong with an access to a guest's RAM, or with getting it.
#[derive(Debug)]
pub(crate) enum RamError {
    /// Not RAM.
    Outside(Ipa),
    /// RAM of a block that has to be prepared first.
    NotReady(Missing),
    /// A piece of RAM that is not to come, or not so.
    NotToCome(Ipa),
    /// It was RAM, and is an enclave's.
    Taken(Ipa),
    /// Some of it is still to come.
    StillToCome,
    /// The host has not enough memory.
    Frames(FramesError),
    /// The hypervisor has not enough memory for its list of blocks.
    Heap,
    /// The tables cannot be made.
    Tables(Stage2Error),
}

impl RamError {
    /// Whether it is the host that has not what it takes, whatever the guest asked for.
    #[must_use]
    pub(crate) const fn is_the_hosts(&self) -> bool {
        matches!(self, Self::Frames(_) | Self::Heap | Self::Tables(_))
    }
}

impl fmt::Display for RamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(ipa) => write!(f, "{ipa} is not in the VM's RAM"),
            Self::NotToCome(ipa) => write!(f, "what comes for {ipa} is not what is still to come there"),
            Self::Taken(ipa) => write!(f, "{ipa} is an enclave's"),
            Self::StillToCome => f.write_str("some of its memory is still to come"),
            Self::NotReady(missing) => write!(f, "{} is not ready yet", missing.at),
            Self::Frames(error) => write!(f, "memory: {error}"),
            Self::Heap => f.write_str("the hypervisor has no memory left for the list of its blocks"),
            Self::Tables(error) => write!(f, "stage 2: {error}"),
        }
    }
}

/// What RAM is to be ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// To be read, or executed, and to be seen by a guest.
    Look,
    /// To be stored into, too.
    Store,
}

/// RAM that is not ready: what has to be prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Missing {
    /// In the block around here.
    pub(crate) at: Ipa,
    /// What for.
    pub(crate) what: Use,
}

/// One VM's RAM.
pub(crate) struct GuestRam {
    vm: VmId,
    range: Range<Ipa>,
    /// Where each 2 MiB block is, and whether the guest has seen it; empty while the VM is off.
    blocks: Vec<Block>,
    /// Those of the annex, and how many it has. `Shown` says of one that it can be used.
    annex: Vec<Block>,
    annex_blocks: usize,
    tables: Option<Stage2>,
    vttbr: u64,
    policy: Policy,
    /// What was done to execute permissions and caches since the VM was made.
    done: Effects,
    /// How many pages the guest sees, and how many of these are executable.
    mapped: u64,
    executable: u64,
    /// It is as it was at some moment until it was sent, and how many blocks were copied for that since the VM was made.
    hold: Option<Hold>,
    copied: u64,
    /// Some of it is still to come.
    coming: Option<Coming>,
    /// Who has what was taken of it.
    enclaves: Enclaves,
}

/// Which of a guest's pages are executable, and what was done for that.
pub(crate) struct Code {
    /// What was done to execute permissions and caches since the VM was made.
    pub(crate) done: Effects,
    /// How many pages of RAM the guest sees now.
    pub(crate) mapped: u64,
    /// How many of these are executable.
    pub(crate) executable: u64,
    /// How many blocks were copied because the guest stored into them while it was saved, since the VM was made.
    pub(crate) copied: u64,
}

#[derive(Clone, Copy)]
struct Block {
    pa: Pa,
    state: State,
    kept: Kept,
}

// What is counted before a site is accepted.
const _: () = assert!(size_of::<Block>() as u64 <= needs::HEAP_OF_A_BLOCK);

/// What the guest has of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has not touched it.
    Untouched,
    /// So many bytes of it are zeroed, all under the lock of the RAM, by whoever wants the block.
    Zeroing(u32),
    /// It sees it.
    Shown,
    /// Its contents are the guest's; it is not mapped until the guest touches it again.
    Hidden,
    /// Its contents are the guest's, and come by pieces: a bit says of each of the 32 whether it is there by now.
    ToCome(u32),
    /// It is an enclave's.
    Taken,
}

/// How far [`GuestRam::prepare`] has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// The guest sees the block.
    Shown,
    /// There is more to do.
    Unfinished,
    /// There is no memory for a copy, so it has to wait until the block was sent; or it has to wait until the piece has come.
    Stalled,
}

struct Tables(VmId);

impl TableMemory for Tables {
    fn allocate(&mut self) -> Option<Pa> {
        memory::allocate_frames(Owner::Tables(self.0), 1).ok().map(|frame| frame.start())
    }

    fn allocate_root(&mut self) -> Option<Pa> {
        memory::allocate_frames(Owner::Tables(self.0), 2).ok().map(|frames| frames.start())
    }

    fn free(&mut self, table: Pa) {
        memory::free_frames(Owner::Tables(self.0), Range { start: table, size: PAGE_SIZE });
    }

    fn free_root(&mut self, root: Pa) {
        memory::free_frames(Owner::Tables(self.0), Range { start: root, size: 2 * PAGE_SIZE });
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        physical::read_entry(table, index)
    }

    fn write(&mut self, table: Pa, index: usize, value: u64) {
        physical::write_entry(table, index, value);
    }
}

/// As many blocks as are wanted of the host's memory, in the place of what `blocks` are.
fn allocate(owner: VmId, count: usize, blocks: &mut Vec<Block>) -> Result<(), RamError> {
    let runs = memory::allocate_guest(owner, count).map_err(RamError::Frames)?;
    blocks.clear();
    blocks.try_reserve_exact(count).map_err(|_| RamError::Heap)?;
    for run in &runs {
        let places = (0..run.blocks as u64).map(|nth| Pa(run.start.0 + nth * BLOCK_SIZE));
        blocks.extend(places.map(|pa| Block { pa, state: State::Untouched, kept: Kept::Nothing }));
    }
    Ok(())
}

struct Tlb(u64);

impl TlbOps for Tlb {
    fn publish(&mut self) {
        hw::sysreg::dsb_ish();
    }

    fn invalidate(&mut self, what: Invalidation) {
        tlb::with_vttbr(self.0, || match what {
            Invalidation::All => tlb::invalidate_vmid(),
            entries => tlb::invalidate_ipas(entries.addresses()),
        });
    }
}

struct HostCaches;

impl Caches for HostCaches {
    fn carry_out(&mut self, step: Step) -> u64 {
        cache::carry_out(step)
    }
}

impl GuestRam {
    /// RAM at `range` of VM `vm`, which is off, and so many bytes of annex, whole blocks.
    #[must_use]
    pub(crate) fn new(vm: VmId, range: Range<Ipa>, annex: u64, policy: Policy) -> Self {
        let (blocks, done) = (Vec::new(), Effects::default());
        Self {
            vm,
            range,
            blocks,
            annex: Vec::new(),
            annex_blocks: (annex / BLOCK_SIZE) as usize,
            tables: None,
            vttbr: 0,
            policy,
            done,
            mapped: 0,
            executable: 0,
            hold: None,
            copied: 0,
            coming: None,
            enclaves: Enclaves::default(),
        }
    }

    /// When pages become executable.
    #[must_use]
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Which pages are executable, and what was done for that.
    #[must_use]
    pub(crate) fn code(&self) -> Code {
        Code { done: self.done, mapped: self.mapped, executable: self.executable, copied: self.copied }
    }

    /// Changes the tables, with all that this needs, and counts what was done.
    fn change<R>(
        &mut self,
        at: Ipa,
        change: impl FnOnce(&mut Stage2, &mut Hardware<'_, Tables, Tlb, HostCaches>) -> Result<(R, Effects), Stage2Error>,
    ) -> Result<R, RamError> {
        let tables = self.tables.as_mut().ok_or(RamError::Outside(at))?;
        let (memory, tlb, caches) = (&mut Tables(self.vm), &mut Tlb(self.vttbr), &mut HostCaches);
        let (result, effects) = change(tables, &mut Hardware { memory, tlb, caches }).map_err(RamError::Tables)?;
        self.done = self.done.and(effects);
        self.executable = (self.executable + effects.granted).saturating_sub(effects.taken);
        Ok(result)
    }

    fn rules(&self, policy: Policy, point: Point) -> Rules {
        Rules { policy, caches: cache::kind(), point }
    }

    /// Lets the guest have what stage 2 refused it at `ipa`, if it may, by `policy`. `Unmapped` if it has to be prepared.
    ///
    /// # Errors
    /// When there is no memory for tables.
    pub(crate) fn allow(
        &mut self,
        ipa: Ipa,
        wanted: Wanted,
        policy: Policy,
        point: Point,
    ) -> Result<Allowed, RamError> {
        let rules = self.rules(policy, point);
        self.change(ipa, |tables, hardware| {
            let allowed = tables.allow(hardware, ipa, wanted, rules)?;
            let effects = if let Allowed::Now { effects, .. } = allowed { effects } else { Effects::default() };
            Ok((allowed, effects))
        })
    }

    /// Makes the whole block around `ipa` executable, of which most is. Takes the lock for a piece at a time, as [`GuestRam::show`].
    ///
    /// # Errors
    /// When there is no memory for tables.
    pub(crate) fn promote(ram: &PreemptLock<Self>, ipa: Ipa, point: Point) -> Result<(), RamError> {
        loop {
            let mut ram = ram.lock();
            // The lock was free since the last piece, and a device's store may have taken execution from a page of the block again: what
            // is missing is looked for anew.
            let rules = ram.rules(ram.policy, point);
            let preparation = ram.change(ipa, |tables, hardware| {
                Ok(match tables.promote(hardware, ipa, rules)? {
                    Promotion::Unfinished(effects) => (Preparation::Unfinished, effects),
                    Promotion::Finished(effects) => (Preparation::Shown, effects),
                })
            })?;
            if preparation == Preparation::Shown {
                return Ok(());
            }
        }
    }

    /// The one door by which the hypervisor stores into the guest: `store` gets each part of `to..to + length` as a place from
    /// which no CPU executes, and the part's offset.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    fn rewrite(&mut self, to: Ipa, length: usize, mut store: impl FnMut(&Writable<'_>, usize)) -> Result<(), RamError> {
        // What the guest's caches see of it shows when it fetches.
        let rules = self.rules(self.policy, Point::Coherency);
        // All under one lock: between taking execution away and the store, another vCPU's fetch would make the page executable as it was.
        let mut done = 0;
        while done < length {
            let at = to.checked_add(done as u64).ok_or(RamError::Outside(to))?;
            let part = self.span(at).min(length - done);
            self.find(at, Use::Store)?;
            let range = Range { start: at, size: part as u64 };
            self.change(at, |tables, hardware| tables.rewrite(hardware, range, rules, |place| store(place, done)))?;
            done += part;
        }
        Ok(())
    }

    /// Gets memory and empty tables; returns the tables' root. The lock is not held while that takes time. An annex that there is from before
    /// stays as it is.
    ///
    /// # Errors
    /// When the host has not enough memory; or some of that annex was still to come, which nobody sends any more.
    pub(crate) fn build(ram: &PreemptLock<Self>) -> Result<Pa, RamError> {
        let mut off = ram.lock();
        let (vm, count) = (off.vm, (off.range.size / BLOCK_SIZE) as usize);
        if off.annex.iter().any(|block| matches!(block.state, State::ToCome(_))) {
            return Err(RamError::StillToCome);
        }
        // An empty list meanwhile: whoever asks hears that there is no RAM. Nobody else builds, for the VM's life lets one thread do so.
        let (mut blocks, mut annex) = (mem::take(&mut off.blocks), mem::take(&mut off.annex));
        let annex_blocks = off.annex_blocks;
        drop(off);
        allocate(vm, count, &mut blocks)?;
        if annex.is_empty() {
            allocate(memory::annex_of(vm), annex_blocks, &mut annex)?;
        }
        let tables = Stage2::new(&mut Tables(vm)).map_err(RamError::Tables)?;
        let root = tables.root();
        // Together: whoever finds a block maps it, and needs the tables, and the VMID by which to invalidate.
        let mut ram = ram.lock();
        ram.vttbr = stage2::vttbr_el2(root, vm.0 + 1);
        ram.tables = Some(tables);
        ram.blocks = blocks;
        ram.annex = annex;
        Ok(root)
    }

    /// A page of zeroes at `at`, outside the RAM, that the guest can only read; it goes with the VM's memory.
    ///
    /// # Errors
    /// When the host has not enough memory.
    pub(crate) fn add_readable(&mut self, at: Ipa) -> Result<Pa, RamError> {
        let page = memory::allocate_frames(Owner::Tables(self.vm), 1).map_err(RamError::Frames)?.start();
        let tables = self.tables.as_mut().ok_or(RamError::Outside(at))?;
        let attributes = Attributes::RAM.with_permissions(Permissions::READ);
        tables
            .map(&mut Tables(self.vm), &mut Tlb(self.vttbr), at, page, PAGE_SIZE, attributes)
            .map_err(RamError::Tables)?;
        Ok(page)
    }

    /// Forgets the memory, the annex too unless that is kept, which the caller then releases, and frees the tables, without the lock: nobody
    /// gets at them any more, and there may be many. No vCPU is loaded.
    pub(crate) fn destroy(ram: &PreemptLock<Self>, vttbr: u64, keeps_annex: bool) {
        let mut off = ram.lock();
        let (vm, tables) = (off.vm, off.tables.take());
        off.blocks.clear();
        if !keeps_annex {
            off.annex.clear();
        }
        // Its copies go with all else that the VM has.
        off.annex.iter_mut().for_each(|block| block.kept = Kept::Nothing);
        off.hold = None;
        off.coming = None;
        let enclaves = mem::take(&mut off.enclaves);
        (off.mapped, off.executable) = (0, 0);
        drop(off);
        enclaves.destroy(vm);
        // This also makes the CPUs forget what they know of the VMID, and so it comes before the caller gives the blocks to others: the VM's
        // next life has the same one.
        if let Some(tables) = tables {
            tables.destroy(&mut Tables(vm), &mut Tlb(vttbr));
        }
    }

    /// Hides all RAM from the guest, as behind a restore: what it touches is shown to it again, with what is in it, and becomes
    /// executable where it executes it. What it was executing before says nothing of what it will. Its vCPUs stand still.
    ///
    /// # Errors
    /// When the tables cannot be changed.
    pub(crate) fn hide(&mut self) -> Result<(), RamError> {
        let (range, pages) = (self.range, self.executable);
        self.change(range.start, |tables, hardware| {
            let effects = Effects { taken: pages, ..Effects::default() };
            tables.unmap(hardware.memory, hardware.tlb, range).map(|()| ((), effects))
        })?;
        for block in self.blocks.iter_mut().filter(|block| block.state == State::Shown) {
            block.state = State::Hidden;
        }
        self.mapped = 0;
        Ok(())
    }

    /// Where `ipa` is.
    ///
    /// # Errors
    /// When it is not RAM, or its block is not ready.
    fn find(&self, ipa: Ipa, what: Use) -> Result<Pa, RamError> {
        // What lies behind it is not the guest's: a driver that names it must not reach it.
        if self.range.contains(ipa) { self.place(ipa, what) } else { Err(RamError::Outside(ipa)) }
    }

    /// As [`GuestRam::find`], also in the annex.
    fn place(&self, ipa: Ipa, what: Use) -> Result<Pa, RamError> {
        let block = self.block(self.index(ipa)).ok_or(RamError::Outside(ipa))?;
        let missing = Missing { at: ipa, what };
        if !block.is_ready(what) && !self.is_piece_ready(block, missing) {
            return Err(if block.state == State::Taken { RamError::Taken(ipa) } else { RamError::NotReady(missing) });
        }
        Ok(Pa(block.pa.0 + ipa.0.wrapping_sub(self.range.start.0) % BLOCK_SIZE))
    }

    /// Which of the blocks `ipa` is in; none of them, if it is not RAM. Those of the annex follow.
    fn index(&self, ipa: Ipa) -> usize {
        (ipa.0.wrapping_sub(self.range.start.0) / BLOCK_SIZE) as usize
    }

    /// Which block of the annex the one of this number is, if it is one.
    fn in_annex(&self, index: usize) -> Option<usize> {
        index.checked_sub((self.range.size / BLOCK_SIZE) as usize)
    }

    fn block(&self, index: usize) -> Option<&Block> {
        match self.in_annex(index) {
            Some(nth) => self.annex.get(nth),
            None => self.blocks.get(index),
        }
    }

    fn block_mut(&mut self, index: usize) -> Option<&mut Block> {
        match self.in_annex(index) {
            Some(nth) => self.annex.get_mut(nth),
            None => self.blocks.get_mut(index),
        }
    }

    fn all_blocks(&mut self) -> impl Iterator<Item = &mut Block> {
        self.blocks.iter_mut().chain(&mut self.annex)
    }

    /// Whose the block of this number is, for the frame allocator.
    fn account(&self, index: usize) -> VmId {
        if self.in_annex(index).is_some() { memory::annex_of(self.vm) } else { self.vm }
    }

    /// Where byte `at` of the annex is, among the addresses behind the RAM.
    fn annex_at(&self, at: u64) -> Ipa {
        Ipa(self.range.start.0.saturating_add(self.range.size).saturating_add(at))
    }

    /// Copies what is at `at` in the annex into `into`; both ends are in one page.
    ///
    /// # Errors
    /// When some of it is not in the annex, or not ready.
    pub(crate) fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), RamError> {
        physical::read(self.place_in_annex(at, into.len(), Use::Look)?, into);
        Ok(())
    }

    /// Copies `bytes` to `at` in the annex; both ends are in one page.
    ///
    /// # Errors
    /// As [`GuestRam::read_annex`].
    pub(crate) fn write_annex(&mut self, at: u64, bytes: &[u8]) -> Result<(), RamError> {
        physical::write_frame(self.place_in_annex(at, bytes.len(), Use::Store)?, bytes);
        Ok(())
    }

    fn place_in_annex(&self, at: u64, length: usize, what: Use) -> Result<Pa, RamError> {
        let ipa = self.annex_at(at);
        let is_in_a_page = at % PAGE_SIZE + length as u64 <= PAGE_SIZE;
        if is_in_a_page { self.place(ipa, what) } else { Err(RamError::Outside(ipa)) }
    }

    /// Whether what is missing is ready.
    #[must_use]
    pub(crate) fn is_ready(&self, missing: Missing) -> bool {
        let block = self.block(self.index(missing.at));
        block.is_some_and(|block| block.is_ready(missing.what) || self.is_piece_ready(block, missing))
    }

    /// Whether what is missing is ready in a block that comes by pieces.
    fn is_piece_ready(&self, block: &Block, missing: Missing) -> bool {
        matches!(block.state, State::ToCome(came) if self.has_piece(missing.at, came))
    }

    /// How many bytes from `at` on are ready, or not, together.
    fn span(&self, at: Ipa) -> usize {
        let is_in_pieces = self.block(self.index(at)).is_some_and(|block| matches!(block.state, State::ToCome(_)));
        let unit = if is_in_pieces { memory::PIECE } else { BLOCK_SIZE };
        (unit - at.0 % unit) as usize
    }

    /// Does the next bounded piece of what is needed until a block is ready: zeroes or copies a part of it, or maps it.
    ///
    /// # Errors
    /// When it is not RAM, or there is no memory for tables.
    pub(crate) fn prepare(&mut self, missing: Missing) -> Result<Preparation, RamError> {
        let Missing { at: ipa, what } = missing;
        let index = self.index(ipa);
        let (vm, owner) = (self.vm, self.account(index));
        let block = self.block_mut(index).ok_or(RamError::Outside(ipa))?;
        let zeroed = match block.state {
            State::Shown => return self.prepare_held(index, what),
            // A guest cannot be shown it without being let store there.
            State::Hidden if block.is_held() => return self.copy_piece(index),
            State::Untouched if memory::needs_zeroing(owner, block.pa).map_err(RamError::Frames)? => 0,
            State::Untouched | State::Hidden => BLOCK_SIZE,
            State::Zeroing(bytes) => bytes.into(),
            State::ToCome(came) => return self.prepare_piece(ipa, came),
            State::Taken => return Err(RamError::Taken(ipa)),
        };
        if zeroed < BLOCK_SIZE {
            memory::zero_piece(owner, block.pa, zeroed).map_err(RamError::Frames)?;
            block.state = State::Zeroing((zeroed + memory::PIECE) as u32);
            return Ok(Preparation::Unfinished);
        }
        if owner != vm {
            block.state = State::Shown;
            return Ok(Preparation::Shown);
        }
        let (at, place) = (ipa.align_down(BLOCK_SIZE), Range { start: block.pa, size: BLOCK_SIZE });
        let rules = self.rules(self.policy, Point::Unification);
        self.change(at, |tables, hardware| Ok(((), tables.show(hardware, at, place, rules)?)))?;
        // Only now: where there was no memory for a table it is shown the next time that it is touched.
        if let Some(block) = self.block_mut(index) {
            block.state = State::Shown;
        }
        self.mapped += BLOCK_SIZE / PAGE_SIZE;
        Ok(Preparation::Shown)
    }

    /// Splits `ipa..ipa + length` at boundaries of blocks, or of pieces that come, and calls `visit` with each part's place, its offset from `ipa`
    /// and its length.
    fn for_each_part(&self, ipa: Ipa, length: usize, mut visit: impl FnMut(Pa, usize, usize)) -> Result<(), RamError> {
        let mut done = 0;
        while done < length {
            let at = ipa.checked_add(done as u64).ok_or(RamError::Outside(ipa))?;
            let part = self.span(at).min(length - done);
            visit(self.find(at, Use::Look)?, done, part);
            done += part;
        }
        Ok(())
    }

    /// Copies guest memory at `from` into `into`.
    ///
    /// # Errors
    /// When some of it is not RAM, or not shown yet; what comes before it may have been copied.
    pub(crate) fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), RamError> {
        let length = into.len();
        self.for_each_part(from, length, |pa, offset, part| {
            if let Some(into) = into.get_mut(offset..offset + part) {
                physical::read(pa, into);
            }
        })
    }

    /// Copies `bytes` to guest memory at `to`.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub(crate) fn write(&mut self, to: Ipa, bytes: &[u8]) -> Result<(), RamError> {
        self.rewrite(to, bytes.len(), |place, offset| physical::write(place, bytes.get(offset..).unwrap_or_default()))
    }

    /// Whether what is at `at` can be stored into.
    ///
    /// # Errors
    /// When it is not RAM, or not ready for that.
    pub(crate) fn is_writable(&self, at: Ipa) -> Result<(), RamError> {
        self.find(at, Use::Store).map(drop)
    }

    /// Where at most `length` bytes at `from` are, as far as they are together, and how many those are.
    ///
    /// # Errors
    /// As [`GuestRam::read`].
    pub(crate) fn source(&self, from: Ipa, length: usize) -> Result<(Pa, usize), RamError> {
        Ok((self.find(from, Use::Look)?, self.span(from).min(length)))
    }

    /// Copies `length` bytes at `from`, which the caller has found as its [source](Self::source), to guest memory at `to`.
    ///
    /// # Errors
    /// As [`GuestRam::write`].
    pub(crate) fn take_over(&mut self, from: Pa, to: Ipa, length: usize) -> Result<(), RamError> {
        self.rewrite(to, length, |place, offset| physical::pass_on(Pa(from.0 + offset as u64), place))
    }

    /// Reads a 16-bit ring index, before all later reads: the entries that it counts are those that the guest wrote before it.
    ///
    /// # Errors
    /// When it is not RAM, not aligned, or not shown yet.
    pub(crate) fn load_index(&self, at: Ipa) -> Result<u16, RamError> {
        if at.is_aligned(2) { self.find(at, Use::Look).map(physical::read_index) } else { Err(RamError::Outside(at)) }
    }

    /// Stores a 16-bit ring index, behind all earlier stores.
    ///
    /// # Errors
    /// As [`GuestRam::load_index`].
    pub(crate) fn store_index(&mut self, at: Ipa, value: u16) -> Result<(), RamError> {
        if !at.is_aligned(2) {
            return Err(RamError::Outside(at));
        }
        self.rewrite(at, size_of::<u16>(), |place, _| physical::write_index(place, value))
    }

    /// Makes ready what is missing. Takes the lock for a piece at a time: between two, the thread may be preempted, if the
    /// caller holds none. Says whether it is ready, or has to wait until it was sent.
    ///
    /// # Errors
    /// As [`GuestRam::prepare`].
    pub(crate) fn make_ready(ram: &PreemptLock<Self>, missing: Missing) -> Result<bool, RamError> {
        // A guard in the loop's condition would live until the end of its body.
        loop {
            let preparation = ram.lock().prepare(missing)?;
            if preparation != Preparation::Unfinished {
                return Ok(preparation == Preparation::Shown);
            }
        }
    }

    /// Copies an image, or a page into the annex, to `at` before the guest runs, and cleans it to memory, where a guest looks whose caches
    /// are off. Takes the lock for a piece at a time.
    ///
    /// # Errors
    /// As [`GuestRam::prepare`].
    pub(crate) fn load(ram: &PreemptLock<Self>, at: Ipa, bytes: &[u8]) -> Result<(), RamError> {
        let mut done = 0;
        while done < bytes.len() {
            let to = Ipa(at.0 + done as u64);
            let part = ((memory::PIECE - to.0 % memory::PIECE) as usize).min(bytes.len() - done);
            let missing = Missing { at: to, what: Use::Store };
            if !Self::make_ready(ram, missing)? {
                return Err(RamError::NotReady(missing));
            }
            let piece = bytes.get(done..done + part).unwrap_or_default();
            let mut ram = ram.lock();
            if !ram.range.contains(to) {
                // A page at a time, as it was saved.
                physical::write_frame(ram.place(to, Use::Store)?, piece);
                done += part;
                continue;
            }
            ram.rewrite(to, part, |place, offset| {
                physical::write(place, piece.get(offset..).unwrap_or_default());
                cache::clean(place.range());
            })?;
            done += part;
        }
        Ok(())
    }
}
