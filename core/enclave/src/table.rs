//! A VM's enclaves and their states: what may be asked of one when.
//!
//! ```text
//! none -> Created -> (AddPages)* -> Finalised -> Running <-> Suspended -> ... -> none
//! ```
//!
//! Whatever else is asked ends with the status `State`. One that is not what its maker says, or did what it may not do, has failed:
//! it can only be destroyed.

use abi::enclave::{ENCLAVE_BASE, EnclaveStatus, MAX_BLOCKS, MAX_ENCLAVES, MEASUREMENT_SIZE};
use units::{BLOCK_SIZE, Ipa, PAGE_SIZE, Range};

use crate::measure::Measuring;

/// The most pages that an enclave has.
const MAX_PAGES: usize = MAX_BLOCKS * (BLOCK_SIZE / PAGE_SIZE) as usize;

/// The registers of an enclave that does not run. It has no others: no FP/SIMD, and no system registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EnclaveThread {
    /// X0 to X30.
    pub general: [u64; 31],
    /// SP_EL0.
    pub stack: u64,
    /// PC.
    pub pc: u64,
    /// NZCV, as in PSTATE; nothing else of that is its own.
    pub flags: u64,
}

/// The bits of PSTATE that are an enclave's own.
pub const THREAD_FLAGS: u64 = 0xf000_0000;

impl EnclaveThread {
    /// At the entry at this offset, with arguments and nothing else.
    #[must_use]
    pub fn at_entry(entry: u64, arguments: [u64; 3]) -> Self {
        let mut general = [0; 31];
        for (register, argument) in general.iter_mut().zip(arguments) {
            *register = argument;
        }
        Self { general, stack: 0, pc: ENCLAVE_BASE + entry, flags: 0 }
    }
}

/// In which state an enclave is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnclaveState {
    /// Memory is being donated.
    Beginning,
    /// Pages can be added.
    Created,
    /// It can be called.
    Finalised,
    /// It runs.
    Running,
    /// It has called outside.
    CallsOutside,
    /// It was interrupted.
    Interrupted,
    /// It can only be destroyed.
    Failed,
}

/// One enclave.
#[derive(Clone, Debug)]
pub struct Enclave {
    /// By which the guest knows it; never another one's in the life of the VM.
    pub id: u64,
    /// What was the guest's memory.
    pub memory: Range<Ipa>,
    /// How many of its blocks were donated until now.
    pub donated: u64,
    /// Whether its end has begun.
    pub is_closed: bool,
    /// The offset of its entry.
    pub entry: u64,
    /// What can be asked of it.
    pub state: EnclaveState,
    /// Its measurement, until it is final.
    pub measuring: Measuring,
    /// And then.
    pub measurement: [u8; MEASUREMENT_SIZE],
    /// Its registers, while it is suspended.
    pub thread: EnclaveThread,
    pages: [u64; MAX_PAGES / 64],
}

impl Enclave {
    /// One that has no memory yet.
    #[must_use]
    pub fn new(id: u64, memory: Range<Ipa>, entry: u64) -> Self {
        Self {
            id,
            memory,
            donated: 0,
            is_closed: false,
            entry,
            state: EnclaveState::Beginning,
            measuring: Measuring::new(memory.size, entry),
            measurement: [0; MEASUREMENT_SIZE],
            thread: EnclaveThread::at_entry(entry, [0; 3]),
            pages: [0; MAX_PAGES / 64],
        }
    }

    /// Whether this page was added.
    #[must_use]
    pub fn has_page(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        self.pages.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// It was.
    pub fn note_page(&mut self, offset: u64) {
        let page = offset / PAGE_SIZE;
        if let Some(word) = self.pages.get_mut((page / 64) as usize) {
            *word |= 1 << (page % 64);
        }
    }

    /// The block of this number.
    #[must_use]
    pub fn block(&self, number: u64) -> Ipa {
        Ipa(self.memory.start.0 + number * BLOCK_SIZE)
    }
}

/// All of a VM's.
#[derive(Debug, Default)]
pub struct EnclaveTable {
    slots: [Option<Enclave>; MAX_ENCLAVES],
    /// How many there were, for the identifiers.
    made: u64,
}

impl EnclaveTable {
    /// A table in whose VM so many enclaves were made before.
    #[must_use]
    pub fn after(made: u64) -> Self {
        Self { made, ..Self::default() }
    }

    /// How many were made.
    #[must_use]
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// The first of all.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.slots.iter().position(Option::is_some)
    }

    /// Which one the guest means.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn find(&self, id: u64) -> Result<usize, EnclaveStatus> {
        let is_it = |slot: &Option<Enclave>| slot.as_ref().is_some_and(|enclave| enclave.id == id);
        self.slots.iter().position(is_it).ok_or(EnclaveStatus::Unknown)
    }

    /// A new one, and where it is.
    ///
    /// # Errors
    /// `Limit`, or `Address` if some of the memory is an enclave's already.
    pub fn begin(&mut self, memory: Range<Ipa>, entry: u64) -> Result<usize, EnclaveStatus> {
        if self.has_donated(memory) {
            return Err(EnclaveStatus::Address);
        }
        let slot = self.slots.iter().position(Option::is_none).ok_or(EnclaveStatus::Limit)?;
        self.made += 1;
        let enclave = Enclave::new(self.made, memory, entry);
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(enclave);
        }
        Ok(slot)
    }

    /// The one there.
    #[must_use]
    pub fn get(&self, slot: usize) -> Option<&Enclave> {
        self.slots.get(slot)?.as_ref()
    }

    /// The one there.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Enclave> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// It is no more.
    pub fn remove(&mut self, slot: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = None;
        }
    }

    /// All of them are no more.
    pub fn forget(&mut self) {
        *self = Self::after(self.made);
    }

    /// Whether any of it is, or will be, some enclave's.
    #[must_use]
    pub fn has_donated(&self, range: Range<Ipa>) -> bool {
        let end = range.start.0.saturating_add(range.size);
        self.slots.iter().flatten().any(|enclave| {
            let memory = enclave.memory;
            range.start.0 < memory.start.0.saturating_add(memory.size) && memory.start.0 < end
        })
    }
}
