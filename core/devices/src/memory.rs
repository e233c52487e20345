//! The guest's memory, as a device sees it.

use core::fmt;

use units::{Ipa, VcpuId};

/// An access reached outside the guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is not in the guest's memory; a buffer has to lie in it as a whole")]
pub struct Fault(pub Ipa);

/// Bytes whose number alone is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes", self.0.len())
    }
}

/// What has to be done to a guest's memory, and to tables that are not the guest's, so that some of it is an enclave's: the commands of
/// the mechanism that isolates by the hypervisor. Enclaves have numbers, below `abi::enclave::MAX_ENCLAVES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation<'a> {
    /// There is an enclave of this number, with tables of its own, which map nothing.
    Open {
        /// Its number.
        enclave: usize,
    },
    /// The block of 2 MiB around `block` leaves the guest: neither it nor a device of it reaches the block any more.
    Take {
        /// A multiple of 2 MiB.
        block: Ipa,
    },
    /// Bytes for what was taken, within one page.
    Store {
        /// Where, by the guest's addresses from before.
        at: Ipa,
        /// What.
        bytes: Bytes<'a>,
    },
    /// The enclave sees a page of what was taken. All of it was stored.
    Show {
        /// Its number.
        enclave: usize,
        /// Where it sees it.
        at: Ipa,
        /// The page, by the guest's addresses from before.
        page: Ipa,
        /// It may store there.
        writable: bool,
        /// It may execute what is there; never both.
        executable: bool,
    },
    /// The enclave may run: who lets it is asked by `Request::Run`. The device hears of its end from whoever did.
    Enter {
        /// Its number.
        enclave: usize,
    },
    /// The enclave that runs is to leave soon, whatever it does. The device hears of its end as of any.
    CallOff {
        /// Who lets it run.
        by: VcpuId,
    },
    /// Its tables are no more, and nothing of them is in any TLB.
    Close {
        /// Its number.
        enclave: usize,
    },
    /// The block is the guest's again, and reads as zeroes.
    Return {
        /// A multiple of 2 MiB.
        block: Ipa,
    },
}

/// Why [`GuestMemory::isolate`] has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotIsolated {
    /// The memory is not the guest's to give; or it may be another time, if it is [refused for now](GuestMemory::is_refused_for_now).
    Memory,
    /// The guest has done nothing wrong: the host has not what it takes.
    Host,
}

/// The memory of one guest. Its vCPUs may change any byte at any time, so a caller copies what it needs once and
/// checks the copy.
///
/// Implementations check every access against the guest's own RAM. They order nothing: the queue does, with fences.
pub trait GuestMemory {
    /// Copies the bytes from `from` on into `into`.
    ///
    /// # Errors
    /// If any of them lies outside the guest's memory; `into` is then undefined.
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault>;

    /// Copies `bytes` to `to`.
    ///
    /// # Errors
    /// If any byte would lie outside the guest's memory; some of the others may have been written.
    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault>;

    /// Reads a little-endian ring index in one access. `at` is a multiple of 2.
    ///
    /// # Errors
    /// If it lies outside the guest's memory.
    fn load_u16(&self, at: Ipa) -> Result<u16, Fault>;

    /// Writes a little-endian ring index in one access. `at` is a multiple of 2.
    ///
    /// # Errors
    /// If it lies outside the guest's memory.
    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault>;

    /// Sees to it that what is at `at` can be stored into, without storing anything.
    ///
    /// # Errors
    /// If it lies outside the guest's memory, or is refused for now.
    fn make_ready(&self, at: Ipa) -> Result<(), Fault> {
        let _ = at;
        Ok(())
    }

    /// Reads what lies at `at` in the memory that a VM has beside the guest's, and that no guest sees, for what its devices keep. `at` and
    /// the bytes from there on are in one page of 4 KiB.
    ///
    /// # Errors
    /// If it has no such memory, or not so much; `into` is then undefined. It may be refused for now, as all that is the guest's.
    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        let _ = into;
        Err(Fault(Ipa(at)))
    }

    /// Writes there, likewise. It is refused for now only if something has to be made ready, never for what it costs: what a device has taken
    /// from the guest it can always put away.
    ///
    /// # Errors
    /// If there is no such memory; nothing was written then.
    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let _ = bytes;
        Err(Fault(Ipa(at)))
    }

    /// Takes memory from the guest for an enclave, or does something to such memory, or to who sees it.
    ///
    /// # Errors
    /// If it is not the guest's to give, or the host cannot; nothing has changed then. It may be refused for now, as an access.
    fn isolate(&self, what: &Isolation<'_>) -> Result<(), NotIsolated> {
        let _ = what;
        Err(NotIsolated::Host)
    }

    /// Whether the last access was refused for now only: enough was done for the guest in one go, or something has to be made
    /// ready first. The work stops where it is, and goes on there when it is called for again; the driver did nothing wrong.
    fn is_refused_for_now(&self) -> bool {
        false
    }
}

/// The memory of a guest that has none: for a device that needs none, alone in a test.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, from: Ipa, _into: &mut [u8]) -> Result<(), Fault> {
        Err(Fault(from))
    }

    fn write(&self, to: Ipa, _bytes: &[u8]) -> Result<(), Fault> {
        Err(Fault(to))
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        Err(Fault(at))
    }

    fn store_u16(&self, at: Ipa, _value: u16) -> Result<(), Fault> {
        Err(Fault(at))
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn read(&self, from: Ipa, into: &mut [u8]) -> Result<(), Fault> {
        (**self).read(from, into)
    }

    fn write(&self, to: Ipa, bytes: &[u8]) -> Result<(), Fault> {
        (**self).write(to, bytes)
    }

    fn load_u16(&self, at: Ipa) -> Result<u16, Fault> {
        (**self).load_u16(at)
    }

    fn store_u16(&self, at: Ipa, value: u16) -> Result<(), Fault> {
        (**self).store_u16(at, value)
    }

    fn make_ready(&self, at: Ipa) -> Result<(), Fault> {
        (**self).make_ready(at)
    }

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        (**self).read_annex(at, into)
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        (**self).write_annex(at, bytes)
    }

    fn isolate(&self, what: &Isolation<'_>) -> Result<(), NotIsolated> {
        (**self).isolate(what)
    }

    fn is_refused_for_now(&self) -> bool {
        (**self).is_refused_for_now()
    }
}
