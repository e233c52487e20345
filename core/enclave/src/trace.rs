//! What happens to a command on its way, in order, for tests that compare it: the image that ships leaves all of it out.

use core::fmt;

use abi::enclave::{COMMAND_SIZE, EnclaveCompletion, EnclaveStatus};

use crate::backend::Universal;
use crate::parse::EnclaveOperation;

/// One thing that happened.
pub enum Traced<'a> {
    /// The tail's write has trapped.
    Inserted(u32),
    /// The command in this entry was copied out of the queue.
    Retrieved(u32, &'a [u8; COMMAND_SIZE]),
    /// What it describes.
    Parsed(&'a Result<EnclaveOperation, EnclaveStatus>),
    /// It is translated.
    Translated(&'a Universal<'a>),
    /// A command of the mechanism is carried out.
    Native(&'a dyn fmt::Debug),
    /// The completion is in its ring.
    Completed(&'a EnclaveCompletion),
    /// The interrupt is raised.
    Interrupt,
}

/// Who listens.
pub trait EnclaveTrace: Send {
    /// This happened.
    fn note(&mut self, what: &Traced<'_>);
}

/// Nobody.
#[derive(Clone, Copy, Debug)]
pub struct NoTrace;

impl EnclaveTrace for NoTrace {
    #[inline(always)]
    fn note(&mut self, _what: &Traced<'_>) {}
}
