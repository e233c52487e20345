//! What is asked of a mechanism, in universal steps, and the trait of those who translate them.
//!
//! A step is a bounded amount of work: a page is given in parts of 256 bytes, memory by blocks of 2 MiB. A step that is refused for now
//! is asked again as a whole, so a backend does not change anything by one that it cannot finish.

use core::fmt;

use abi::enclave::MEASUREMENT_SIZE;
use arrayvec::ArrayVec;
use devices::Outside;
use units::{Ipa, VcpuId};

use crate::parse::PageRights;

/// Bytes of a part of a page: what SGX measures at a time.
pub const PART: usize = 256;
/// The most commands of a mechanism that a step becomes.
pub const MAX_NATIVE: usize = 4;

/// One step of the universal API. `slot` is the number of an enclave among those of the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Universal<'a> {
    /// There is an enclave, still without memory.
    Create {
        /// Which one.
        slot: usize,
        /// How much it will have.
        size: u64,
        /// The offset of its entry.
        entry: u64,
    },
    /// A block of the guest's memory is for it.
    Donate {
        /// Which one.
        slot: usize,
        /// By the guest's addresses.
        block: Ipa,
    },
    /// A part of a page.
    Part {
        /// Which one.
        slot: usize,
        /// The part's offset in the enclave.
        offset: u64,
        /// Where it is in what was donated.
        at: Ipa,
        /// What the enclave may do with the page.
        rights: PageRights,
        /// Whether the contents are measured.
        measured: bool,
        /// They.
        bytes: &'a [u8; PART],
    },
    /// All parts of a page were given.
    Page {
        /// Which one.
        slot: usize,
        /// The page's offset in the enclave.
        offset: u64,
        /// Where it is in what was donated.
        at: Ipa,
        /// What the enclave may do with it.
        rights: PageRights,
    },
    /// It is complete, and is what its maker says.
    Finalise {
        /// Which one.
        slot: usize,
        /// What was measured.
        measurement: &'a [u8; MEASUREMENT_SIZE],
    },
    /// It is called.
    Enter {
        /// Which one.
        slot: usize,
        /// X0 to X2.
        arguments: [u64; 3],
    },
    /// It goes on.
    Resume {
        /// Which one.
        slot: usize,
        /// The answer to its call outside.
        answer: u64,
    },
    /// It runs, and is to leave soon, whatever it does. Only for a mechanism of which it was said that it
    /// [runs](Entered::Runs).
    CallOff {
        /// Which one.
        slot: usize,
        /// Who lets it run.
        by: VcpuId,
    },
    /// It ends.
    End {
        /// Which one.
        slot: usize,
    },
    /// A block that was donated is the guest's again, behind the end.
    Release {
        /// Which one.
        slot: usize,
        /// By the guest's addresses.
        block: Ipa,
    },
}

/// Why an enclave has stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// It returns this.
    Returned(u64),
    /// It calls outside with this.
    Outcall(u64),
    /// Somebody else needs the CPU.
    Interrupted,
    /// It did what it may not do.
    Faulted,
    /// The host could not let it run, or its hardware has failed.
    Failed,
}

/// What a mechanism's command has led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// All is done.
    Done,
    /// The enclave can run once a vCPU takes it from the device, which is asked for; its end will be told.
    Runs,
    /// It has run.
    Left(Leave),
}

/// Why a mechanism has not done what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotCarriedOut {
    /// For now only: the step is to be asked again.
    Later,
    /// The memory is not the guest's to give.
    Address,
    /// It says no.
    Mechanism,
}

/// One who speaks to a mechanism.
pub trait EnclaveBackend: Send {
    /// A command of that mechanism.
    type Native<'a>: fmt::Debug;

    /// Whether the host has it.
    fn is_present(&self) -> bool;

    /// The mechanism's own commands for a step, in their order; there may be none.
    fn translate<'a>(&self, step: &Universal<'a>) -> ArrayVec<Self::Native<'a>, MAX_NATIVE>;

    /// Has one of them carried out.
    ///
    /// # Errors
    /// Why it is not; nothing has changed then.
    fn carry_out(&mut self, native: &Self::Native<'_>, outside: &dyn Outside) -> Result<Entered, NotCarriedOut>;

    /// All enclaves are gone by themselves: the machine has started afresh, and its memory was taken from it as a whole.
    fn forget(&mut self);
}

/// A host without any mechanism.
#[derive(Clone, Copy, Debug)]
pub struct NoMechanism;

impl EnclaveBackend for NoMechanism {
    type Native<'a> = ();

    fn is_present(&self) -> bool {
        false
    }

    fn translate<'a>(&self, _step: &Universal<'a>) -> ArrayVec<(), MAX_NATIVE> {
        ArrayVec::new()
    }

    fn carry_out(&mut self, (): &(), _outside: &dyn Outside) -> Result<Entered, NotCarriedOut> {
        Err(NotCarriedOut::Mechanism)
    }

    fn forget(&mut self) {}
}
