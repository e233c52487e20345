//! What a guest's HVC and SMC instructions reach.
//!
//! A guest calls its firmware by the SMC calling convention (SMCCC, DEN0028): a function number in W0, arguments behind
//! it, results in X0 to X3. Both conduits, HVC and SMC, lead here, and none of these calls ever reaches the host's
//! firmware by itself: every function on the short list below is answered, everything else gets `NOT_SUPPORTED`.
//!
//! * SMCCC itself, version 1.1: what is there, and the speculation workarounds the host has.
//! * PSCI 1.1 (DEN0022): power of CPUs and of the machine. [`psci::VmPower`] is the state behind it.
//! * TRNG 1.0 (DEN0098): entropy. [`random`] makes it, and all other random numbers of guests.
//! * Paravirtualized time (DEN0057): stolen time, for a vCPU that has a record of it.
//!
//! Version 1.1, not 1.2 or later: 1.2 promises nothing that a guest of ours uses, and makes Linux ask for (and log the
//! absence of) a SoC identity.
//!
//! [`decode`] only reads the registers. What it cannot answer from constants it returns as a typed [`Request`], for the
//! caller to carry out. It is on the path of every call, so a call answered from constants costs a few compares: the
//! function numbers are matched whole, and no table is walked.
#![no_std]
#![forbid(unsafe_code)]

mod arch;
pub mod psci;
pub mod random;
pub mod stolen_time;
pub mod trng;

pub use arch::{Need, Workaround, Workarounds};

use units::Ipa;

/// `NOT_SUPPORTED`: the answer of SMCCC, PSCI and TRNG to what they do not know.
pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// `SUCCESS` of SMCCC, PSCI and TRNG.
pub const SUCCESS: u64 = 0;
/// `INVALID_PARAMETERS` of PSCI and TRNG (DEN0022 section 5.2.2, DEN0098 section 2.1).
pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;

/// What the answers depend on besides the call: facts about the host and about the calling vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Which speculation workarounds the host's firmware offers, as this vCPU is to see them.
    pub workarounds: Workarounds,
    /// Where the calling vCPU's stolen time record lies, if it has one.
    pub stolen_time: Option<Ipa>,
}

/// What a call asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Nothing is to be done: X0 gets this, X1 to X3 keep their values.
    Answer(u64),
    /// X0 to X3 get these, and nothing else is to be done.
    Answers([u64; 4]),
    /// A power call that changes or reads the VM's state. Its answer comes from [`psci::VmPower`].
    Psci(psci::Call),
    /// Random bits: hand this and a source of entropy to [`trng::Draw::answers`].
    Entropy(trng::Draw),
    /// A speculation workaround that needs the host's firmware (or a sequence of instructions) on this very CPU. The
    /// guest's X0 to X3 may be changed by it; nothing is returned.
    Workaround(Workaround),
}

/// Reads a call: `function` is the guest's X0, `arguments` its X1, X2 and X3.
///
/// Owner ranges follow DEN0028 section 6: 0 Arm architecture, 4 standard secure (PSCI, TRNG), 5 standard hypervisor
/// (paravirtualized time). Yielding calls, CPU and SiP and OEM services, trusted applications and the vendor's
/// hypervisor range are all refused.
#[inline]
#[must_use]
pub fn decode(function: u64, arguments: [u64; 3], facts: &Facts) -> Request {
    // The number is 32 bits wide; the upper half of X0 is to be ignored (DEN0028 section 3.1).
    let function = function as u32;
    if function == abi::calls::arm::PSCI_VERSION {
        return Request::Answer(psci::VERSION);
    }
    match (function >> 24) & 0x3f {
        arch::OWNER => arch::decode(function, arguments, facts),
        psci::OWNER => match function & 0xffff {
            0..=0x1f => psci::decode(function, arguments),
            _ => trng::decode(function, arguments),
        },
        stolen_time::OWNER => Request::Answer(stolen_time::answer(function, arguments, facts)),
        _ => Request::Answer(NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests;
