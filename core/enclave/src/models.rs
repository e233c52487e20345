//! **Models.** Translations for mechanisms that this project does not drive: SGX, SEV and TrustZone. Each has the commands of its
//! mechanism, by their names, for the universal steps. What carries them out is a [`Player`]: it writes them down nowhere but in the trace,
//! refuses those that come in an order which the mechanism would refuse, and answers a call by a function. **Nothing is isolated**, no
//! instruction of these mechanisms is executed, and no image that ships has them. They are here so that a test can show what the
//! specification asks for: that the guest's side is the same to the bit, and the mechanism's own commands are not.

use core::fmt;

use abi::enclave::MAX_ENCLAVES;
use arrayvec::ArrayVec;
use devices::Outside;
use devices::memory::Bytes;
use units::Ipa;

use crate::backend::{EnclaveBackend, Entered, Leave, MAX_NATIVE, NotCarriedOut, Universal};

/// What an enclave computes, of which there is no code: from the arguments of a call, or from the answer to a call outside.
pub type ModelProgram = fn(ModelCall) -> Leave;

/// How it is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModelCall {
    /// Anew, with these.
    Enter([u64; 3]),
    /// With this answer.
    Resume(u64),
}

/// How far an enclave of a model is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    #[default]
    None,
    Made,
    Ready,
}

/// What a command does to a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Play {
    /// There is an enclave.
    Make(usize),
    /// It gets something.
    Load(usize),
    /// It is complete.
    Complete(usize),
    /// It runs.
    Run(usize, ModelCall),
    /// It is no more.
    Drop(usize),
    /// Memory, which is nobody's yet or nobody's any more.
    Memory,
}

/// Plays a mechanism.
#[derive(Clone, Copy, Debug)]
pub struct Player {
    stages: [Stage; MAX_ENCLAVES],
    program: ModelProgram,
}

impl Player {
    /// One whose enclaves all compute this.
    #[must_use]
    pub fn new(program: ModelProgram) -> Self {
        Self { stages: [Stage::None; MAX_ENCLAVES], program }
    }

    fn play(&mut self, play: Play) -> Result<Entered, NotCarriedOut> {
        let (slot, before, after) = match play {
            Play::Memory => return Ok(Entered::Done),
            Play::Make(slot) => (slot, Stage::None, Stage::Made),
            Play::Load(slot) => (slot, Stage::Made, Stage::Made),
            Play::Complete(slot) => (slot, Stage::Made, Stage::Ready),
            Play::Run(slot, _) => (slot, Stage::Ready, Stage::Ready),
            Play::Drop(slot) => {
                self.stages.get_mut(slot).map(core::mem::take);
                return Ok(Entered::Done);
            }
        };
        let stage = self.stages.get_mut(slot).filter(|stage| **stage == before).ok_or(NotCarriedOut::Mechanism)?;
        *stage = after;
        Ok(if let Play::Run(_, call) = play { Entered::Left((self.program)(call)) } else { Entered::Done })
    }
}

/// A command of a modelled mechanism, and what it does to the model.
pub trait ModelNative: fmt::Debug {
    /// That.
    fn play(&self) -> Play;
}

macro_rules! model {
    ($(#[$doc:meta])* $name:ident, $native:ident, $translate:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(pub Player);

        impl EnclaveBackend for $name {
            type Native<'a> = $native<'a>;

            fn is_present(&self) -> bool {
                true
            }

            fn translate<'a>(&self, step: &Universal<'a>) -> ArrayVec<$native<'a>, MAX_NATIVE> {
                $translate(step)
            }

            fn carry_out(&mut self, native: &$native<'_>, _outside: &dyn Outside) -> Result<Entered, NotCarriedOut> {
                self.0.play(native.play())
            }

            fn forget(&mut self) {
                self.0.stages = Default::default();
            }
        }
    };
}

model! {
    /// **A model** of Intel's SGX: its pages are the processor's own, measured by parts of 256 bytes.
    SgxModel, Sgx, sgx
}
model! {
    /// **A model** of AMD's SEV: an enclave is a VM whose launch is measured, in pages of the guest's that are assigned to it.
    SevModel, Sev, sev
}
model! {
    /// **A model** of TrustZone with an operating system that speaks GlobalPlatform's API: an enclave is a trusted application.
    TrustZoneModel, TrustZone, trustzone
}

fn all<T, const COUNT: usize>(all: [T; COUNT]) -> ArrayVec<T, MAX_NATIVE> {
    all.into_iter().take(MAX_NATIVE).collect()
}

/// Leaves of ENCLS and ENCLU (Intel SDM volume 3D, chapter 38).
#[expect(missing_docs, reason = "the names are the mechanism's")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sgx<'a> {
    Ecreate {
        secs: usize,
        size: u64,
    },
    Eadd {
        secs: usize,
        offset: u64,
        secinfo: u64,
    },
    /// Into the page that was added; hardware copies it with EADD.
    Fill {
        secs: usize,
        offset: u64,
        bytes: Bytes<'a>,
    },
    Eextend {
        secs: usize,
        offset: u64,
    },
    Einit {
        secs: usize,
        enclavehash: Bytes<'a>,
    },
    Eenter {
        secs: usize,
        arguments: [u64; 3],
    },
    Eresume {
        secs: usize,
        answer: u64,
    },
    Eremove {
        secs: usize,
    },
}

fn sgx<'a>(step: &Universal<'a>) -> ArrayVec<Sgx<'a>, MAX_NATIVE> {
    match *step {
        Universal::Create { slot: secs, size, .. } => all([Sgx::Ecreate { secs, size }]),
        // The pages are the processor's: the guest's memory only holds their place.
        Universal::Donate { .. } | Universal::Release { .. } | Universal::Page { .. } => ArrayVec::new(),
        // An interrupt of its processor's does that.
        Universal::CallOff { .. } => ArrayVec::new(),
        Universal::Part { slot: secs, offset, rights, measured, bytes, .. } => {
            let mut natives = ArrayVec::new();
            if offset % units::PAGE_SIZE == 0 {
                natives.push(Sgx::Eadd { secs, offset, secinfo: rights.bits() });
            }
            natives.push(Sgx::Fill { secs, offset, bytes: Bytes(bytes) });
            if measured {
                natives.push(Sgx::Eextend { secs, offset });
            }
            natives
        }
        Universal::Finalise { slot: secs, measurement } => all([Sgx::Einit { secs, enclavehash: Bytes(measurement) }]),
        Universal::Enter { slot: secs, arguments } => all([Sgx::Eenter { secs, arguments }]),
        Universal::Resume { slot: secs, answer } => all([Sgx::Eresume { secs, answer }]),
        Universal::End { slot: secs } => all([Sgx::Eremove { secs }]),
    }
}

impl ModelNative for Sgx<'_> {
    fn play(&self) -> Play {
        match *self {
            Self::Ecreate { secs, .. } => Play::Make(secs),
            Self::Eadd { secs, .. } | Self::Fill { secs, .. } | Self::Eextend { secs, .. } => Play::Load(secs),
            Self::Einit { secs, .. } => Play::Complete(secs),
            Self::Eenter { secs, arguments } => Play::Run(secs, ModelCall::Enter(arguments)),
            Self::Eresume { secs, answer } => Play::Run(secs, ModelCall::Resume(answer)),
            Self::Eremove { secs } => Play::Drop(secs),
        }
    }
}

/// Commands of the secure processor (AMD 55766), and instructions.
#[expect(missing_docs, reason = "the names are the mechanism's")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sev<'a> {
    LaunchStart {
        asid: usize,
    },
    RmpUpdate {
        asid: Option<usize>,
        page: Ipa,
    },
    /// Into a page that is assigned; hardware encrypts it in place.
    Fill {
        asid: usize,
        page: Ipa,
        bytes: Bytes<'a>,
    },
    LaunchUpdate {
        asid: usize,
        page: Ipa,
    },
    LaunchMeasure {
        asid: usize,
    },
    LaunchFinish {
        asid: usize,
        measurement: Bytes<'a>,
    },
    Vmrun {
        asid: usize,
        call: ModelCall,
    },
    Decommission {
        asid: usize,
    },
}

fn sev<'a>(step: &Universal<'a>) -> ArrayVec<Sev<'a>, MAX_NATIVE> {
    match *step {
        Universal::Create { slot: asid, .. } => all([Sev::LaunchStart { asid }]),
        Universal::Donate { slot, block } => all([Sev::RmpUpdate { asid: Some(slot), page: block }]),
        Universal::Part { slot: asid, at, bytes, .. } => all([Sev::Fill { asid, page: at, bytes: Bytes(bytes) }]),
        Universal::Page { slot: asid, at, .. } => all([Sev::LaunchUpdate { asid, page: at }]),
        Universal::Finalise { slot: asid, measurement } => all([Sev::LaunchMeasure { asid }])
            .into_iter()
            .chain([Sev::LaunchFinish { asid, measurement: Bytes(measurement) }])
            .collect(),
        Universal::Enter { slot: asid, arguments } => all([Sev::Vmrun { asid, call: ModelCall::Enter(arguments) }]),
        Universal::Resume { slot: asid, answer } => all([Sev::Vmrun { asid, call: ModelCall::Resume(answer) }]),
        Universal::CallOff { .. } => ArrayVec::new(),
        Universal::End { slot: asid } => all([Sev::Decommission { asid }]),
        Universal::Release { block, .. } => all([Sev::RmpUpdate { asid: None, page: block }]),
    }
}

impl ModelNative for Sev<'_> {
    fn play(&self) -> Play {
        match *self {
            Self::LaunchStart { asid } => Play::Make(asid),
            Self::RmpUpdate { .. } => Play::Memory,
            Self::Fill { asid, .. } | Self::LaunchUpdate { asid, .. } | Self::LaunchMeasure { asid } => {
                Play::Load(asid)
            }
            Self::LaunchFinish { asid, .. } => Play::Complete(asid),
            Self::Vmrun { asid, call } => Play::Run(asid, call),
            Self::Decommission { asid } => Play::Drop(asid),
        }
    }
}

/// What a client does by GlobalPlatform's TEE Client API, and by OP-TEE's messages below it.
#[expect(missing_docs, reason = "the names are the mechanism's")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrustZone<'a> {
    OpenContext { context: usize },
    RegisterSharedMemory { memory: Ipa },
    InvokeLoad { context: usize, offset: u64, bytes: Bytes<'a> },
    OpenSession { context: usize, uuid: Bytes<'a> },
    InvokeCommand { context: usize, arguments: [u64; 3] },
    ReturnFromRpc { context: usize, answer: u64 },
    CloseSession { context: usize },
    UnregisterSharedMemory { memory: Ipa },
}

fn trustzone<'a>(step: &Universal<'a>) -> ArrayVec<TrustZone<'a>, MAX_NATIVE> {
    match *step {
        Universal::Create { slot: context, .. } => all([TrustZone::OpenContext { context }]),
        Universal::Donate { block, .. } => all([TrustZone::RegisterSharedMemory { memory: block }]),
        Universal::Part { slot: context, offset, bytes, .. } => {
            all([TrustZone::InvokeLoad { context, offset, bytes: Bytes(bytes) }])
        }
        Universal::Page { .. } | Universal::CallOff { .. } => ArrayVec::new(),
        Universal::Finalise { slot: context, measurement } => {
            // The first 16 bytes name the application.
            let uuid = Bytes(measurement.first_chunk::<16>().map_or(measurement.as_slice(), |uuid| uuid.as_slice()));
            all([TrustZone::OpenSession { context, uuid }])
        }
        Universal::Enter { slot: context, arguments } => all([TrustZone::InvokeCommand { context, arguments }]),
        Universal::Resume { slot: context, answer } => all([TrustZone::ReturnFromRpc { context, answer }]),
        Universal::End { slot: context } => all([TrustZone::CloseSession { context }]),
        Universal::Release { block, .. } => all([TrustZone::UnregisterSharedMemory { memory: block }]),
    }
}

impl ModelNative for TrustZone<'_> {
    fn play(&self) -> Play {
        match *self {
            Self::OpenContext { context } => Play::Make(context),
            Self::RegisterSharedMemory { .. } | Self::UnregisterSharedMemory { .. } => Play::Memory,
            Self::InvokeLoad { context, .. } => Play::Load(context),
            Self::OpenSession { context, .. } => Play::Complete(context),
            Self::InvokeCommand { context, arguments } => Play::Run(context, ModelCall::Enter(arguments)),
            Self::ReturnFromRpc { context, answer } => Play::Run(context, ModelCall::Resume(answer)),
            Self::CloseSession { context } => Play::Drop(context),
        }
    }
}
