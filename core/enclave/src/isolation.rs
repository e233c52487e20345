//! Isolation by the hypervisor: the enclave's memory leaves the guest's stage 2, and it runs at EL0 in a stage 2 of its own, with
//! nothing but CPU and memory. Its commands are the bus's `Isolation`; the owner of the guest's memory carries them out.

use abi::enclave::ENCLAVE_BASE;
use arrayvec::ArrayVec;
use devices::Outside;
use devices::memory::{Bytes, Isolation, NotIsolated};
use units::Ipa;

use crate::backend::{EnclaveBackend, Entered, MAX_NATIVE, NotCarriedOut, Universal};
use crate::parse::PageRights;

/// The translation to isolation by the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct ByIsolation;

impl EnclaveBackend for ByIsolation {
    type Native<'a> = Isolation<'a>;

    fn is_present(&self) -> bool {
        true
    }

    fn translate<'a>(&self, step: &Universal<'a>) -> ArrayVec<Isolation<'a>, MAX_NATIVE> {
        let one = match *step {
            Universal::Create { slot, .. } => Isolation::Open { enclave: slot },
            Universal::Donate { block, .. } => Isolation::Take { block },
            Universal::Part { at, bytes, .. } => Isolation::Store { at, bytes: Bytes(bytes) },
            Universal::Page { slot, offset, at, rights } => Isolation::Show {
                enclave: slot,
                at: Ipa(ENCLAVE_BASE + offset),
                page: at,
                writable: rights == PageRights::ReadWrite,
                executable: rights == PageRights::ReadExecute,
            },
            // What it is was compared already, and nobody below has to know.
            Universal::Finalise { .. } => return ArrayVec::new(),
            Universal::Enter { slot, .. } | Universal::Resume { slot, .. } => Isolation::Enter { enclave: slot },
            Universal::CallOff { by, .. } => Isolation::CallOff { by },
            Universal::End { slot } => Isolation::Close { enclave: slot },
            Universal::Release { block, .. } => Isolation::Return { block },
        };
        ArrayVec::from_iter([one])
    }

    fn carry_out(&mut self, native: &Isolation<'_>, outside: &dyn Outside) -> Result<Entered, NotCarriedOut> {
        let memory = outside.memory();
        match memory.isolate(native) {
            Ok(()) if matches!(native, Isolation::Enter { .. }) => Ok(Entered::Runs),
            Ok(()) => Ok(Entered::Done),
            Err(_) if memory.is_refused_for_now() => Err(NotCarriedOut::Later),
            Err(NotIsolated::Memory) => Err(NotCarriedOut::Address),
            Err(NotIsolated::Host) => Err(NotCarriedOut::Mechanism),
        }
    }

    /// The tables go with the guest's memory.
    fn forget(&mut self) {}
}
