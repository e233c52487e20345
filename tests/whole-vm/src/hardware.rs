//! The fake of `el2/hw` and the rest of the host: a vCPU's registers, memory, the outer ends of the devices.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use clock::EmulatedTimer;
use cpu::debug::DebugBank;
use cpu::inject::GuestState;
use cpu::retry::Tries;
use devices::{Moment, Outside, Request, Stream};
use units::{BLOCK_SIZE, IntId, Ipa, Line, PAGE_SIZE, Range, VcpuId, VcpuSet};
use vgic::{ListRegisters, Vgic};
use virtio::{Fault, GuestMemory};
use vm::exits::{DebugSink, DebugState};

use crate::whole::CHANGES;

/// More than the plan has.
pub(crate) const MOST_DEVICES: usize = 32;
/// How often a device may access memory under its lock, as in the hypervisor.
const ACCESSES: u16 = 2048;
/// How many breakpoints each vCPU has, and how many watchpoints.
pub(crate) const POINTS: u8 = 4;
/// How many bytes of output are kept: more than that, and the console takes nothing until it is emptied.
const ROOM: usize = 256;

/// How much was done: each look at memory, at the guest's tables and at the interrupt controller counts.
#[derive(Debug, Default)]
pub struct Work(Cell<u64>);

impl Work {
    pub(crate) fn count(&self) {
        self.0.set(self.0.get() + 1);
    }

    /// What was done since this was asked last.
    pub fn take(&self) -> u64 {
        self.0.take()
    }
}

/// A vCPU's registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) x: [u64; 31],
    /// PC, PSTATE and the EL1 registers of exceptions.
    pub(crate) state: GuestState,
    /// SP_EL0 and SP_EL1.
    pub(crate) sp: [u64; 2],
    /// How many breakpoints and watchpoints there are, and what is in the other debug registers.
    pub(crate) debug: DebugState,
    /// What is in the registers of breakpoints and watchpoints.
    pub(crate) points: [[u64; 16]; 4],
    pub(crate) os_lock: bool,
    pub(crate) serror: bool,
    pub(crate) physical: EmulatedTimer,
    pub(crate) list: ListRegisters,
    /// The host's own count of tries, which no state has in it.
    pub(crate) tries: Tries,
}

impl Registers {
    pub(crate) fn get(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, number: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    pub(crate) const fn seen(&self) -> vm::mmio::Registers<'_> {
        vm::mmio::Registers { x: &self.x, pc: self.state.pc, pstate: self.state.pstate }
    }

    /// A register of a breakpoint or watchpoint.
    pub(crate) fn point(&mut self, bank: DebugBank, number: u8) -> &mut u64 {
        let bank = match bank {
            DebugBank::BreakpointValue => 0,
            DebugBank::BreakpointControl => 1,
            DebugBank::WatchpointValue => 2,
            DebugBank::WatchpointControl => 3,
        };
        &mut self.points[bank][usize::from(number)]
    }

    pub(crate) fn set_debug(&mut self, sink: DebugSink) {
        match sink {
            DebugSink::Mdscr(value) => self.debug.mdscr = value,
            DebugSink::Mdccint(value) => self.debug.mdccint = value,
            DebugSink::Claim(tags) => self.debug.claim = tags,
            DebugSink::Point(bank, number, value) => *self.point(bank, number) = value,
        }
    }

    pub(crate) const fn complete(&mut self) {
        self.state.pc = self.state.pc.wrapping_add(4);
        self.state.pstate = cpu::pstate::after_a64_instruction(self.state.pstate);
    }
}

/// The guest's RAM: pages that were written, in blocks of which the guest sees those that it has touched.
#[derive(Debug)]
pub(crate) struct Memory {
    range: Range<Ipa>,
    pages: BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>,
    shown: BTreeSet<u64>,
}

/// Why memory cannot be accessed.
pub(crate) enum Refused {
    /// It is not RAM.
    Outside,
    /// The guest does not see it yet.
    NotShown(Ipa),
}

impl Memory {
    pub(crate) const fn new(range: Range<Ipa>) -> Self {
        Self { range, pages: BTreeMap::new(), shown: BTreeSet::new() }
    }

    /// What the page at `at` holds, if anything was written into it.
    pub(crate) fn page(&self, at: Ipa) -> Option<&[u8; PAGE_SIZE as usize]> {
        self.pages.get(&(at.0 / PAGE_SIZE)).map(|page| &**page)
    }

    /// A page is loaded, of which the guest sees nothing yet.
    pub(crate) fn load(&mut self, at: Ipa, page: [u8; PAGE_SIZE as usize]) {
        self.pages.insert(at.0 / PAGE_SIZE, Box::new(page));
    }

    /// All of it, or all but what devices keep.
    pub(crate) fn forget(&mut self, keeps_annex: bool) {
        let end = self.range.end().0 / PAGE_SIZE;
        self.pages.retain(|&page, _| keeps_annex && page >= end);
        self.shown.clear();
    }

    /// Where byte `at` of what devices keep is: behind the RAM.
    fn annex(&self, at: u64) -> Ipa {
        Ipa(self.range.end().0 + at)
    }

    /// Shows the block around `ipa` to the guest. Says whether that was news.
    pub(crate) fn show(&mut self, ipa: Ipa) -> bool {
        self.range.contains(ipa) && self.shown.insert(ipa.0 / BLOCK_SIZE)
    }

    fn check(&self, at: Ipa, length: usize) -> Result<(), Refused> {
        let whole = Range::new(at, length as u64).ok_or(Refused::Outside)?;
        let last = Ipa(at.0 + (length as u64).saturating_sub(1));
        if length > 0 && !(self.range.contains(whole.start) && self.range.contains(last)) {
            return Err(Refused::Outside);
        }
        let mut blocks = at.0 / BLOCK_SIZE..=last.0 / BLOCK_SIZE;
        match blocks.find(|block| !self.shown.contains(block)) {
            Some(block) => Err(Refused::NotShown(Ipa((block * BLOCK_SIZE).max(at.0)))),
            None => Ok(()),
        }
    }

    pub(crate) fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Refused> {
        self.check(from, into.len())?;
        self.copy_from(from, into);
        Ok(())
    }

    fn copy_from(&self, from: Ipa, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(from.0..) {
            *byte = self.pages.get(&(at / PAGE_SIZE)).map_or(0, |page| page[(at % PAGE_SIZE) as usize]);
        }
    }

    pub(crate) fn write(&mut self, to: Ipa, bytes: &[u8]) -> Result<(), Refused> {
        self.check(to, bytes.len())?;
        self.copy_to(to, bytes);
        Ok(())
    }

    fn copy_to(&mut self, to: Ipa, bytes: &[u8]) {
        for (&byte, at) in bytes.iter().zip(to.0..) {
            let page = self.pages.entry(at / PAGE_SIZE).or_insert_with(|| Box::new([0; PAGE_SIZE as usize]));
            page[(at % PAGE_SIZE) as usize] = byte;
        }
    }

    /// All that was ever written, for comparisons.
    pub(crate) fn contents(&self) -> (&BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>, &BTreeSet<u64>) {
        (&self.pages, &self.shown)
    }
}

/// What devices share with the rest of the machine.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) gic: RefCell<Vgic>,
    pub(crate) memory: RefCell<Memory>,
    /// What the UART and the virtio console have sent, and nobody has taken.
    pub(crate) sent: [RefCell<Vec<u8>>; 2],
    /// The pages that the guest sees of its clock, as words, by the slots of their devices.
    pub(crate) pages: RefCell<[[u64; 14]; MOST_DEVICES]>,
    pub(crate) work: Work,
}

impl Shared {
    fn stream(&self, stream: Stream) -> &RefCell<Vec<u8>> {
        match stream {
            Stream::Uart => &self.sent[0],
            Stream::Virtio => &self.sent[1],
        }
    }
}

/// What is outside of a device, for one call of it.
pub(crate) struct Surroundings<'a> {
    shared: &'a Shared,
    /// Which device's, by its number on the bus.
    slot: usize,
    moment: Moment,
    left: Cell<u16>,
    is_refused: Cell<bool>,
    missing: Cell<Option<Ipa>>,
    concerned: Cell<VcpuSet>,
    is_unfinished: Cell<bool>,
}

impl<'a> Surroundings<'a> {
    pub(crate) const fn new(shared: &'a Shared, slot: usize, moment: Moment) -> Self {
        Self {
            shared,
            slot,
            moment,
            left: Cell::new(ACCESSES),
            is_refused: Cell::new(false),
            missing: Cell::new(None),
            concerned: Cell::new(VcpuSet::EMPTY),
            is_unfinished: Cell::new(false),
        }
    }

    /// vCPUs whose interrupts have changed.
    pub(crate) const fn concerned(&self) -> VcpuSet {
        self.concerned.get()
    }

    /// Whether the device has more to do, and where memory has to be shown first.
    pub(crate) fn unfinished(&self) -> Option<Option<Ipa>> {
        self.is_unfinished.get().then(|| self.missing.get())
    }

    fn access<T>(&self, at: Ipa, access: impl FnOnce(&mut Memory) -> Result<T, Refused>) -> Result<T, Fault> {
        self.shared.work.count();
        let Some(left) = self.left.get().checked_sub(1) else {
            self.is_refused.set(true);
            return Err(Fault(at));
        };
        self.left.set(left);
        self.is_refused.set(false);
        access(&mut self.shared.memory.borrow_mut()).map_err(|refused| {
            if let Refused::NotShown(place) = refused {
                self.is_refused.set(true);
                self.missing.set(Some(place));
            }
            Fault(at)
        })
    }
}

impl GuestMemory for Surroundings<'_> {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        self.access(from, |memory| memory.read(from, into))
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        self.access(to, |memory| memory.write(to, bytes))
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        self.write(at, &value.to_le_bytes())
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        assert!(at % PAGE_SIZE + into.len() as u64 <= PAGE_SIZE && at < CHANGES, "{at} is not in a page of the annex");
        self.access(Ipa(at), |memory| {
            memory.copy_from(memory.annex(at), into);
            Ok(())
        })
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        assert!(at % PAGE_SIZE + bytes.len() as u64 <= PAGE_SIZE && at < CHANGES, "{at} is not in a page of the annex");
        self.is_refused.set(false);
        let mut memory = self.shared.memory.borrow_mut();
        let to = memory.annex(at);
        memory.copy_to(to, bytes);
        Ok(())
    }

    fn is_refused_for_now(&self) -> bool {
        self.is_refused.get()
    }
}

impl Outside for Surroundings<'_> {
    fn seconds(&self) -> u64 {
        self.moment.time.as_secs()
    }

    fn count(&self) -> u64 {
        self.moment.count
    }

    fn moment(&self) -> Moment {
        self.moment
    }

    fn show(&self, index: usize, word: u64) {
        self.shared.work.count();
        self.shared.pages.borrow_mut()[self.slot][index] = word;
    }

    fn caller(&self) -> Option<VcpuId> {
        None
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn has_room(&self, stream: Stream) -> bool {
        self.shared.stream(stream).borrow().len() < ROOM
    }

    fn send_byte(&self, stream: Stream, byte: u8) -> bool {
        assert!(self.has_room(stream), "a device sends when there is no room");
        self.shared.stream(stream).borrow_mut().push(byte);
        self.has_room(stream)
    }

    fn send(&self, stream: Stream, bytes: &[u8]) -> usize {
        let mut sent = self.shared.stream(stream).borrow_mut();
        let count = bytes.len().min(ROOM - sent.len());
        sent.extend(&bytes[..count]);
        count
    }

    fn set_line(&self, interrupt: IntId, line: Line) {
        self.shared.work.count();
        let concerned = self.shared.gic.borrow_mut().set_spi_level(interrupt, line);
        self.concerned.set(self.concerned.get().union(concerned));
    }

    fn request(&self, request: Request<'_>) {
        if let Request::GoOn = request {
            self.is_unfinished.set(true);
        }
    }
}
