//! VMs that are saved to the operator's disk, and restored from there, over the link: as a file (`snapshot::file`), which is sent
//! piece by piece, as fast as the operator's tool asks for the next.
//!
//! A VM that is saved stands still until its state is taken, and then runs on, if it ran before: its memory is held, and sent as
//! it was at that moment ([`GuestRam::hold`]). One that is restored is built when the file has said what it is. Where memory comes
//! by pieces, in any order, the state is put in as soon as it is there, and the guest runs: what it touches and has not come is asked for
//! ([`Transfer::wanted`]), and it stands still until then. A VM of a whole file gets its state after all its memory, and stands still so
//! long. The file may come from anybody: a checksum, the VM's own description and each part of the machine check everything in it.
//!
//! The tool may go away at any moment, and so may the link. So each transfer has a time by which the tool must have asked for
//! more; after that, the VM that was being saved is released, and the one that was being restored is off again, or stopped with that reason
//! if its guest ran already.
//!
//! This is the console thread's work. It is done a few pages at a time; between two requests others have their turn. A few bytes
//! of a file may stand for all of a VM's memory, so a restore too writes only a bounded number of pages for one request. A state
//! is large, and so is the code that decodes it: each step has its own stack frame, which is gone before the next step.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;

use ::vm::needs;
use abi::bundle::VmConfig;
use abi::link::request::{MAX_BULK_CHUNK, MAX_CHUNK, Over};
use arrayvec::ArrayVec;
use clock::saved::Away;
use devices::Stream;
use hw::heap;
use pack::Boxed;
use snapshot::file::{
    Content, Description, FileError, MOST_RUNS, Memory, PAGE, PAGES_OF_A_BLOCK, PAGES_OF_A_PIECE, Reader, SavedMoment,
    Section, Writer,
};
use snapshot::{PlaceDifference, SavedVm, bounds};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE};

use crate::host::text::{Sentence, sentence};
use crate::host::{self, wall_clock};
use crate::link::{arrivals, carrier};
use crate::vcpu::saved::Still;
use crate::vm::guest_memory::GuestRam;
use crate::vm::{Stop, Then, Vm};

mod ends;

/// How long the tool may take between two requests, in milliseconds.
const PATIENCE: u64 = 10_000;
/// At most so many steps for one request: each looks at some pages, or at a block of which the guest has seen none.
const STEPS: usize = 64;
/// Pages that are looked at in a step.
const PAGES: u64 = 16;
/// So many bytes that are typed for a console wait for a VM's state, which is more than a line. What does not fit is lost, as on a real
/// line to a machine that does not listen.
const TYPED: usize = 256;
/// At most so many pages are written for one request.
const PAGES_IN: u64 = STEPS as u64 * PAGES;

/// Bytes of the heap that a VM on its way out takes at most, and one on its way in: the records, a page, a piece, and the file's parts,
/// which in memory are no larger than in a state: those that are kept reach over a piece, and one section is made.
const HEAP_TO_SAVE: usize = size_of::<Saving>() + PAGE + MAX_BULK_CHUNK + bounds::HEAP_TO_WRITE;
const HEAP_TO_RESTORE: usize =
    size_of::<Restoring>() + PAGE + MAX_BULK_CHUNK + 2 * MOST_RUNS * size_of::<Rest>() + bounds::HEAP_TO_READ;
/// And the rest of what the hypervisor has a use for beside its VMs: the statistics as text, the console's own records.
const HEAP_FOR_OTHERS: usize = 64 << 10;
// It is left when VMs are made, with what an allocator loses between pieces of any size.
const _: () = {
    let most = if HEAP_TO_SAVE > HEAP_TO_RESTORE { HEAP_TO_SAVE } else { HEAP_TO_RESTORE };
    let all = arrivals::HEAP + most + HEAP_FOR_OTHERS;
    assert!((all + all / 8) as u64 <= needs::HEAP_OF_OUR_OWN);
};

/// What is under way, if anything is: one VM at a time.
#[derive(Default)]
pub struct Transfer(Option<Under>);

enum Under {
    Saving(Box<Saving>),
    Restoring(Box<Restoring>),
}

/// A VM on its way out.
struct Saving {
    vm: &'static Vm,
    /// Which of its lives it is.
    life: u32,
    ran: bool,
    until: u64,
    /// The request that waits until its vCPUs stand still.
    waits: Option<u32>,
    writer: Writer,
    /// The next page, and whether the end is written behind the last one.
    next: u64,
    has_ended: bool,
    page: Box<[u8; PAGE]>,
    /// Bytes of the file from `from` on: those that were told last, which may be asked for once more, and what stands behind them.
    parts: Vec<Vec<u8>>,
    from: u64,
    /// From where to where was told last.
    told: (u64, u64),
}

/// A VM on its way in.
struct Restoring {
    vm: &'static Vm,
    /// Which of its lives it is, once it is built.
    life: Option<u32>,
    /// Why it was off before.
    before: Stop,
    until: u64,
    reader: Reader,
    taken: u64,
    /// What has come and was not read yet, from a place on.
    input: Vec<u8>,
    read: usize,
    /// What was read and is not written yet.
    runs: Vec<Rest>,
    moment: Option<SavedMoment>,
    state: Option<Boxed<SavedVm>>,
    /// Its guest runs, and its memory comes by pieces.
    has_begun: bool,
    is_whole: bool,
    page: Box<[u8; PAGE]>,
    /// What was typed for it, at its UART and at its virtio console, before it had a state.
    typed: ArrayVec<u8, TYPED>,
    typed_virtio: ArrayVec<u8, TYPED>,
}

/// Pages that are still to be written.
struct Rest {
    next: u64,
    count: u64,
    content: Again,
}

/// What these pages hold.
#[derive(Clone, Copy)]
enum Again {
    Word(u64),
    /// What the page of this number does, which was written.
    Page(u64),
}

/// How much of what has come of a VM's memory is in it by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// All of it.
    All,
    /// There is more to write than was written for this request.
    More,
    /// None: its guest, which ran, has ended its life.
    Over(Over),
}

/// A request that has waited, and what became of it.
pub type Answered = (u32, Result<(), Sentence>);

impl Transfer {
    /// Whether it has to be looked after.
    pub(crate) fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Whether `vm` is about to stand still to be saved, or has no state yet: it cannot go on.
    pub(crate) fn stops(&self, vm: &Vm) -> bool {
        let goes_on = match &self.0 {
            Some(Under::Saving(saving)) => saving.waits.is_none(),
            Some(Under::Restoring(restoring)) => restoring.has_begun,
            None => true,
        };
        self.holds(vm) && !goes_on
    }

    /// Whether `vm` is being saved or restored.
    pub(crate) fn holds(&self, vm: &Vm) -> bool {
        match &self.0 {
            Some(Under::Saving(saving)) => core::ptr::eq(saving.vm, vm),
            Some(Under::Restoring(restoring)) => core::ptr::eq(restoring.vm, vm),
            None => false,
        }
    }

    /// `vm` was paused by the operator: should it stand still to be saved, it does not go on by itself behind that. Says whether it would
    /// have.
    pub(crate) fn keep_paused(&mut self, vm: &Vm) -> bool {
        match &mut self.0 {
            Some(Under::Saving(saving)) if core::ptr::eq(saving.vm, vm) => core::mem::take(&mut saving.ran),
            _ => false,
        }
    }

    fn must_be_free_for(&self, vm: &Vm) -> Result<(), Sentence> {
        vm.must_be_movable()?;
        let vm = match &self.0 {
            None => return Ok(()),
            Some(Under::Saving(saving)) => saving.vm,
            Some(Under::Restoring(restoring)) => restoring.vm,
        };
        Err(sentence!("{} is being saved or restored; one VM can be at a time", vm.config.name))
    }

    /// Begins to save `vm`. The request is answered when its vCPUs stand still ([`Transfer::look_after`]).
    #[inline(never)]
    pub fn save(&mut self, request: u32, vm: &'static Vm) -> Result<(), Sentence> {
        self.must_be_free_for(vm)?;
        let saving = heap::boxed(Saving {
            vm,
            life: vm.boots(),
            ran: false,
            until: host::milliseconds().saturating_add(PATIENCE),
            waits: Some(request),
            writer: Writer::new(hw::memory::crc32c),
            next: 0,
            has_ended: false,
            page: page()?,
            parts: Vec::new(),
            from: 0,
            told: (0, 0),
        });
        let mut saving = saving.ok_or_else(no_memory)?;
        saving.ran = vm.pause();
        // Only now: while there was memory to be found, a guest that resets itself may have begun another life, and whoever took
        // that for none of ours would leave it paused.
        saving.life = vm.boots();
        if !saving.ran && !vm.is_paused() {
            return Err(sentence!("{} is off, or about to be", vm.config.name));
        }
        self.0 = Some(Under::Saving(saving));
        Ok(())
    }

    /// Hands at most `length` bytes of the file from `offset` on to `tell`; fewer if they have to be looked for.
    #[inline(never)]
    pub fn save_next(
        &mut self,
        vm: &Vm,
        offset: u64,
        length: u32,
        tell: &mut impl FnMut(&[u8]),
    ) -> Result<(), Sentence> {
        let Some(Under::Saving(saving)) = &mut self.0 else { return Err(none_is(vm)) };
        if !core::ptr::eq(saving.vm, vm) || saving.waits.is_some() {
            return Err(none_is(vm));
        }
        saving.until = host::milliseconds().saturating_add(PATIENCE);
        saving.give(offset, length as usize, tell)
    }

    /// Whether there is more to come of a VM that is saved.
    #[must_use]
    pub fn has_more(&self) -> bool {
        matches!(&self.0, Some(Under::Saving(saving)) if !saving.has_ended || saving.told.1 < saving.end_of_parts())
    }

    /// Begins to restore `vm`, which is off.
    #[inline(never)]
    pub fn restore(&mut self, vm: &'static Vm) -> Result<(), Sentence> {
        self.must_be_free_for(vm)?;
        let Some(before) = vm.stopped() else {
            return Err(sentence!("{} is not off; stop it before a saved VM takes its place", vm.config.name));
        };
        let restoring = heap::boxed(Restoring {
            vm,
            life: None,
            before,
            until: host::milliseconds().saturating_add(PATIENCE),
            reader: Reader::of_stream(hw::memory::crc32c),
            taken: 0,
            input: Vec::new(),
            read: 0,
            runs: Vec::new(),
            moment: None,
            state: None,
            has_begun: false,
            is_whole: false,
            page: page()?,
            typed: ArrayVec::new(),
            typed_virtio: ArrayVec::new(),
        });
        self.0 = Some(Under::Restoring(restoring.ok_or_else(no_memory)?));
        Ok(())
    }

    /// Bytes for its consoles that came before the state of `vm` did. They wait for it, as far as there is room.
    pub(crate) fn keep_input(&mut self, vm: &Vm, stream: Stream, bytes: &[u8]) {
        if let Some(Under::Restoring(restoring)) = &mut self.0
            && core::ptr::eq(restoring.vm, vm)
        {
            let typed = match stream {
                Stream::Uart => &mut restoring.typed,
                Stream::Virtio => &mut restoring.typed_virtio,
            };
            let fits = bytes.len().min(typed.remaining_capacity());
            let _ = typed.try_extend_from_slice(bytes.get(..fits).unwrap_or_default());
        }
    }

    /// Takes the next piece of the file. If it is refused, all is: the VM is off again.
    #[inline(never)]
    pub fn restore_next(&mut self, vm: &Vm, offset: u64, piece: &[u8]) -> Result<Written, Sentence> {
        let taken = self.restoring(vm)?.take(offset, piece);
        if let Err(why) = &taken {
            self.give_up(why);
        }
        taken
    }

    /// All of the file is there: the state is put in, and the VM goes on, or stands still.
    #[inline(never)]
    pub fn restore_end(&mut self, vm: &Vm, then: Then) -> Result<(), Sentence> {
        let done = self.restoring(vm)?.end(then);
        if let Err(why) = &done {
            self.give_up(why);
        }
        self.0 = None;
        done
    }

    /// The piece of its memory for which `vm` stands still until it comes.
    #[must_use]
    pub fn wanted(&self, vm: &Vm) -> Option<u32> {
        if self.holds(vm) { vm.ram.lock().wanted().map(|piece| piece as u32) } else { None }
    }

    /// Ends what is under way with `vm`: it goes on as it was before, or is off again.
    #[inline(never)]
    pub fn end(&mut self, vm: &Vm) -> Result<(), Sentence> {
        if !self.holds(vm) {
            return Err(none_is(vm));
        }
        self.give_up("nobody wants it any more");
        Ok(())
    }

    /// The page of `vm` of this number, as it was saved or is; `false` if it is zeros. For checks.
    #[inline(never)]
    pub fn page(vm: &Vm, number: u64, into: &mut [u8; PAGE]) -> Result<bool, Sentence> {
        vm.ram.lock().read_kept(address(vm, number), into).map_err(|error| sentence!("{error}"))
    }

    /// Ends whatever is under way. A guest that runs, and of whose memory some is still to come, cannot go on: it hears why.
    pub(crate) fn give_up(&mut self, why: &str) {
        match self.0.take() {
            Some(Under::Saving(saving)) => saving.end(),
            Some(Under::Restoring(restoring)) => restoring.give_up(why),
            None => {}
        }
    }

    /// Looks whether a VM that is to be saved stands still by now, and whether anybody still asks for what is under way.
    #[inline(never)]
    pub fn look_after(&mut self) -> Option<Answered> {
        let now = host::milliseconds();
        let (until, vm) = match &mut self.0 {
            None => return None,
            Some(Under::Saving(saving)) => {
                if let Some(id) = saving.waits
                    && let Some(answer) = saving.stands_still(now)
                {
                    saving.waits = None;
                    let is_refused = answer.is_err();
                    if is_refused {
                        self.give_up("it was not saved");
                    }
                    return Some((id, answer));
                }
                (saving.until, saving.vm)
            }
            Some(Under::Restoring(restoring)) => (restoring.until, restoring.vm),
        };
        if now >= until {
            log::warn!("{}: nobody asks any more for what was to be saved or restored", vm.config.name);
            self.give_up("nobody sends it any more");
        }
        None
    }

    fn restoring(&mut self, vm: &Vm) -> Result<&mut Restoring, Sentence> {
        match &mut self.0 {
            Some(Under::Restoring(restoring)) if core::ptr::eq(restoring.vm, vm) => {
                restoring.until = host::milliseconds().saturating_add(PATIENCE);
                Ok(restoring)
            }
            _ => Err(none_is(vm)),
        }
    }
}

/// Nothing is under way with it.
fn none_is(vm: &Vm) -> Sentence {
    sentence!("{} is not being saved or restored: nobody asked for it, or for too long nothing came", vm.config.name)
}

/// Room for a page.
fn page() -> Result<Box<[u8; PAGE]>, Sentence> {
    heap::boxed([0; PAGE]).ok_or_else(no_memory)
}

fn no_memory() -> Sentence {
    refused(FileError::NoMemory)
}

fn refused(error: FileError) -> Sentence {
    sentence!("{error}")
}

impl Saving {
    /// If its vCPUs stand still, or will not any more: the state is taken, and what comes before memory is written.
    #[inline(never)]
    fn stands_still(&mut self, now: u64) -> Option<Result<(), Sentence>> {
        let still = match Still::of(self.vm) {
            Some(still) => still,
            None if self.has_gone() => return Some(Err(self.went())),
            None if now >= self.until => {
                return Some(Err(sentence!("{}: its vCPUs do not stand still", self.vm.config.name)));
            }
            None => return None,
        };
        let moment = SavedMoment { microseconds: wall_clock::microseconds(), is_known: wall_clock::is_settable() };
        let state = still.save().and_then(|state| {
            self.vm.ram.lock().hold().map_err(|error| sentence!("{error}"))?;
            Ok(state)
        });
        drop(still);
        if state.is_ok() && core::mem::take(&mut self.ran) {
            self.vm.resume();
        }
        Some(state.and_then(|state| {
            let disks = self.vm.config.disks.with(|text| *text, |_| ());
            let description: Description<'_> = self.vm.config.with(|text| *text, (), None, None, disks);
            let begin = self.writer.begin(&description, &state.machine, moment).map_err(refused)?;
            self.keep(begin)?;
            let state = self.writer.state(&state).map_err(refused)?;
            self.keep(state)
        }))
    }

    /// It was stopped, or lives another life: what was to be saved is no longer there.
    fn has_gone(&self) -> bool {
        if self.waits.is_some() {
            !self.vm.is_paused() || self.vm.boots() != self.life
        } else {
            !self.vm.ram.lock().is_held()
        }
    }

    /// Whatever has become of it: its memory is its own again, and it goes on, if it ran.
    fn end(&self) {
        for block in 0..self.vm.memory_and_annex().div_ceil(BLOCK_SIZE) {
            self.vm.ram.lock().let_go(address(self.vm, block * PAGES_OF_A_BLOCK));
        }
        let is_stalled = self.vm.ram.lock().end_hold();
        if is_stalled || self.ran && self.vm.boots() == self.life {
            self.vm.resume();
        }
    }

    fn went(&self) -> Sentence {
        sentence!("{} was stopped while it was being saved", self.vm.config.name)
    }

    fn give(&mut self, offset: u64, length: usize, tell: &mut impl FnMut(&[u8])) -> Result<(), Sentence> {
        let length = length.min(MAX_BULK_CHUNK);
        let longest = if carrier::is_by_port() { MAX_BULK_CHUNK } else { MAX_CHUNK };
        if !(self.told.0..=self.told.1).contains(&offset) {
            return Err(Sentence::from("the pieces of the saved VM were not asked for in order"));
        }
        // Whatever stands before that has arrived.
        while let Some(first) = self.parts.first().filter(|first| self.from + first.len() as u64 <= offset) {
            self.from += first.len() as u64;
            self.parts.remove(0);
        }
        for _ in 0..STEPS {
            if self.end_of_parts() >= offset + length as u64 {
                break;
            }
            let step = self.step();
            // Looked at behind it: of a VM that was stopped meanwhile what was read is no memory any more, or an error.
            if self.has_gone() {
                return Err(self.went());
            }
            self.keep(step?)?;
        }
        let (mut left, mut skipped) = (length, offset.saturating_sub(self.from) as usize);
        for part in &self.parts {
            let bytes = part.get(core::mem::take(&mut skipped)..).unwrap_or_default();
            let bytes = bytes.get(..bytes.len().min(left)).unwrap_or_default();
            bytes.chunks(longest).for_each(&mut *tell);
            left -= bytes.len();
        }
        self.told = (offset, self.told.1.max(offset + (length - left) as u64));
        Ok(())
    }

    fn keep(&mut self, part: Vec<u8>) -> Result<(), Sentence> {
        if !part.is_empty() {
            self.parts.try_reserve(1).map_err(|_| no_memory())?;
            self.parts.push(part);
        }
        Ok(())
    }

    fn end_of_parts(&self) -> u64 {
        self.from + self.parts.iter().map(|part| part.len() as u64).sum::<u64>()
    }

    /// The bytes that come next, of a few pages; none if those have to be written with the next ones, or all is written.
    #[inline(never)]
    fn step(&mut self) -> Result<Vec<u8>, Sentence> {
        let all = self.vm.memory_and_annex() / PAGE_SIZE;
        if self.next == all {
            // Once.
            return if core::mem::replace(&mut self.has_ended, true) {
                Ok(Vec::new())
            } else {
                self.writer.end().map_err(refused)
            };
        }
        let mut out = Vec::new();
        for _ in 0..PAGES {
            let at = address(self.vm, self.next);
            let kept = self.vm.ram.lock().read_kept(at, &mut *self.page);
            let has_content = kept.map_err(|error| sentence!("{error}"))?;
            // What the guest has not seen is zeros to it.
            let (content, count) = if has_content {
                (Content::Page(&self.page), 1)
            } else {
                (Content::Fill(0), (BLOCK_SIZE - at.0 % BLOCK_SIZE) / PAGE_SIZE)
            };
            let mut bytes = self.writer.memory(content, count).map_err(refused)?;
            self.next += count;
            if (self.next * PAGE_SIZE).is_multiple_of(BLOCK_SIZE) && self.vm.ram.lock().was_sent(at) {
                self.vm.resume();
            }
            if out.is_empty() {
                out = bytes;
            } else {
                out.try_reserve(bytes.len()).map_err(|_| refused(FileError::NoMemory))?;
                out.append(&mut bytes);
            }
            if self.next == all || !has_content {
                break;
            }
        }
        Ok(out)
    }
}

impl Restoring {
    #[inline(never)]
    fn take(&mut self, offset: u64, piece: &[u8]) -> Result<Written, Sentence> {
        let Some(known) = self.taken.checked_sub(offset) else {
            return Err(Sentence::from("the pieces of the saved VM did not come in order"));
        };
        // Sent again, for the answer did not arrive; perhaps in other pieces.
        let piece = usize::try_from(known).ok().and_then(|known| piece.get(known..)).unwrap_or_default();
        if let Some(over) = self.has_ended()? {
            return Ok(Written::Over(over));
        }
        let taken = self.take_in(piece);
        if taken.is_err() {
            // It may have ended meanwhile, on another CPU or before this thread had its turn again: its memory is gone then, and that is
            // why something does not fit.
            if let Some(over) = self.has_ended()? {
                return Ok(Written::Over(over));
            }
        }
        taken
    }

    fn take_in(&mut self, piece: &[u8]) -> Result<Written, Sentence> {
        self.taken += piece.len() as u64;
        if self.input.len() - self.read + piece.len() > MAX_BULK_CHUNK {
            return Err(Sentence::from("the pieces of the saved VM came faster than they are asked for"));
        }
        self.input.drain(..self.read);
        self.read = 0;
        self.input.try_reserve_exact(piece.len()).map_err(|_| refused(FileError::NoMemory))?;
        self.input.extend_from_slice(piece);
        let mut left = PAGES_IN;
        loop {
            self.write(&mut left)?;
            if left == 0 {
                return Ok(Written::More);
            }
            if !self.read_on(&mut left)? {
                return Ok(Written::All);
            }
        }
    }

    /// Reads the next section, if all of it is there. Its pages are written, but for those of which there may be any number.
    #[inline(never)]
    fn read_on(&mut self, left: &mut u64) -> Result<bool, Sentence> {
        let Self { vm, reader, input, read, runs: rest, page, .. } = self;
        // What its header says of that is known before the first section for which it matters.
        let (is_by_pieces, mut begins) = (reader.is_by_pieces(), false);
        let mut unread = input.get(*read..).unwrap_or_default();
        let before = unread.len();
        let section = reader.read(&mut unread).map_err(refused)?;
        *read += before - unread.len();
        let Some(section) = section else { return Ok(false) };
        match section {
            Section::Vm(saved) => fits(&saved, &vm.config)?,
            Section::Machine(machine) => {
                machine.compare(&vm.shape()).map_err(|difference| sentence!("{difference}"))?;
                vm.build_for_state()?;
                self.life = Some(vm.boots());
                if is_by_pieces {
                    vm.ram.lock().is_to_come();
                }
            }
            Section::Moment(moment) => self.moment = Some(moment),
            Section::Memory(runs) if is_by_pieces => comes(vm, runs, page, left)?,
            Section::Memory(runs) => {
                let mut last = None;
                for run in runs {
                    let content = match (run.content, last) {
                        // The VM was just built: all of it is zeros.
                        (Content::Fill(0), _) => continue,
                        (Content::Fill(word), _) => Again::Word(word),
                        (Content::Page(bytes), Some((page, number))) if core::ptr::eq(bytes, page) => {
                            Again::Page(number)
                        }
                        (Content::Page(bytes), _) => {
                            load(vm, run.first, bytes)?;
                            *left = left.saturating_sub(1);
                            last = Some((bytes, run.first));
                            continue;
                        }
                    };
                    rest.try_reserve(1).map_err(|_| refused(FileError::NoMemory))?;
                    rest.push(Rest { next: run.first, count: run.count, content });
                }
            }
            Section::State(state) => {
                self.state = Some(state);
                begins = is_by_pieces;
            }
            Section::End => self.is_whole = true,
        }
        if begins {
            self.begin()?;
        }
        Ok(true)
    }

    /// Writes what was read, at most as many pages as are left.
    #[inline(never)]
    fn write(&mut self, left: &mut u64) -> Result<(), Sentence> {
        let Self { vm, runs, page, .. } = self;
        while let Some(run) = runs.last_mut().filter(|_| *left > 0) {
            match run.content {
                Again::Word(word) => page.as_chunks_mut::<8>().0.fill(word.to_le_bytes()),
                Again::Page(number) => {
                    let kept = vm.ram.lock().read_kept(address(vm, number), &mut **page);
                    kept.map_err(|error| sentence!("{error}"))?;
                }
            }
            while run.count > 0 && *left > 0 {
                load(vm, run.next, page)?;
                run.next += 1;
                run.count -= 1;
                *left -= 1;
            }
            if run.count == 0 {
                runs.pop();
            }
        }
        Ok(())
    }

    /// The guest goes on, before its memory has come.
    #[inline(never)]
    fn begin(&mut self) -> Result<(), Sentence> {
        self.put_in()?;
        self.has_begun = true;
        self.vm.resume();
        Ok(())
    }

    /// All has come.
    #[inline(never)]
    fn end(&mut self, then: Then) -> Result<(), Sentence> {
        let name = self.vm.config.name;
        if !self.runs.is_empty() || self.read < self.input.len() {
            return Err(sentence!("{name}: what came of the saved VM has not all been written yet"));
        }
        self.reader.finish().map_err(refused)?;
        // What its guest has done since the last of it came is the guest's own affair.
        if !self.is_whole || !self.vm.ram.lock().has_all_come() {
            return Err(sentence!("{name}: some of its memory is still to come"));
        }
        if self.has_begun {
            log::info!("{name}: all of its memory has come");
            if let Some(life) = self.life {
                self.vm.memory_has_come(life, then);
            }
            return Ok(());
        }
        self.put_in()?;
        if then == Then::GoesOn {
            self.vm.resume();
        }
        Ok(())
    }

    /// Puts the state in.
    #[inline(never)]
    fn put_in(&mut self) -> Result<(), Sentence> {
        let name = self.vm.config.name;
        let (Some(mut state), Some(moment)) = (self.state.take(), self.moment) else {
            return Err(sentence!("{name} has no state yet"));
        };
        let away = away(moment);
        state.time.clock = state.time.clock.after(away, state.time.away);
        let mut still =
            Still::of(self.vm).ok_or_else(|| sentence!("{name} was stopped while it was being restored"))?;
        let put = still.restore(&mut state);
        still.forget_timers_elsewhere();
        drop(still);
        if put.is_err() {
            self.vm.forget_state();
        }
        put?;
        self.vm.has_forked();
        // As if it came now. Whether it was typed for this guest, whoever typed it knows.
        let (typed, typed_virtio) = (core::mem::take(&mut self.typed), core::mem::take(&mut self.typed_virtio));
        let _ = self.vm.deliver(|vm| {
            vm.devices.receive(vm, &typed);
            vm.devices.receive_virtio(vm, &typed_virtio);
        });
        let seconds = away / wall_clock::MICROSECONDS;
        let time = if state.time.away == Away::Freeze { "; its time stood still meanwhile" } else { "" };
        log::info!("{name}: restored, with the state that a VM had {seconds} s ago{time}");
        Ok(())
    }
}

/// A piece comes, or whole blocks of zeros, into a VM whose guest runs.
#[inline(never)]
fn comes(vm: &Vm, mut runs: Memory<'_>, page: &mut [u8; PAGE], left: &mut u64) -> Result<(), Sentence> {
    let wrong = |error| sentence!("{}: {error}", vm.config.name);
    let Some(first) = runs.clone().next() else { return Ok(()) };
    if first.content == Content::Fill(0) && first.count.is_multiple_of(PAGES_OF_A_BLOCK) {
        let block = first.first / PAGES_OF_A_BLOCK;
        let count = first.count / PAGES_OF_A_BLOCK;
        for block in block..block + count {
            let is_wanted = vm.ram.lock().has_come_as_zeros(block as usize);
            if is_wanted.map_err(wrong)? {
                vm.unstall();
            }
        }
        *left = left.saturating_sub(count);
        return Ok(());
    }
    if GuestRam::comes(&vm.ram, first.first, &mut runs, page).map_err(wrong)? {
        vm.unstall();
    }
    *left = left.saturating_sub(PAGES_OF_A_PIECE);
    Ok(())
}

/// How many microseconds have passed since then, as far as clocks know it.
fn away(moment: SavedMoment) -> u64 {
    let is_known = moment.is_known && wall_clock::is_settable();
    if is_known { wall_clock::microseconds().saturating_sub(moment.microseconds) } else { 0 }
}

/// Whether the VM that was saved is one as the site file says of this.
#[inline(never)]
fn fits(saved: &Description<'_>, here: &VmConfig<'_>) -> Result<(), Sentence> {
    let name = here.name;
    if saved.vcpus != here.vcpus || saved.memory != here.memory {
        return Err(sentence!(
            "the saved VM has {} vCPUs and {} MiB of memory, {name} has {} and {}",
            saved.vcpus,
            saved.memory >> 20,
            here.vcpus,
            here.memory >> 20
        ));
    }
    let [changes, has] = [saved.disks.changes(), here.disks.changes()].map(|bytes| bytes >> 20);
    if changes != has {
        return Err(sentence!("the saved VM has {changes} MiB for what is written to its disks, {name} has {has}"));
    }
    let difference = PlaceDifference::compare((saved.time.rate, &saved.doors), (here.time.rate, &here.doors));
    difference.map_err(|difference| sentence!("{name}: {difference}"))
}

/// Where page number `number` is in the guest's memory.
fn address(vm: &Vm, number: u64) -> Ipa {
    Ipa(vm.plan.ram().start.0 + number * PAGE_SIZE)
}

/// A page goes into a VM that was just built.
#[inline(never)]
fn load(vm: &Vm, number: u64, bytes: &[u8; PAGE]) -> Result<(), Sentence> {
    GuestRam::load(&vm.ram, address(vm, number), bytes).map_err(|error| sentence!("{error}"))
}
