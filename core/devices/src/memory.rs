//! The guest's memory, as a device sees it.

use units::Ipa;

/// An access reached outside the guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is not in the guest's memory; a buffer has to lie in it as a whole")]
pub struct Fault(pub Ipa);

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

    fn read_annex(&self, at: u64, into: &mut [u8]) -> Result<(), Fault> {
        (**self).read_annex(at, into)
    }

    fn write_annex(&self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        (**self).write_annex(at, bytes)
    }

    fn is_refused_for_now(&self) -> bool {
        (**self).is_refused_for_now()
    }
}
