//! PSCI 1.1 (DEN0022): how a guest switches its CPUs and itself on and off.
//!
//! [`decode`](crate::decode) reads a call into a [`Call`]; [`VmPower`] is the state of one VM's CPUs, pure bookkeeping:
//! it says which vCPU is to start where, and the caller starts it. Suspension is offered in the original power state
//! format (section 5.4.2.1), at the level of the single CPU, platform-coordinated.
//!
//! What PSCI leaves optional and a virtual machine has no use for is not offered: `MIGRATE` and its kin (there is no
//! Trusted OS), `CPU_FREEZE`, `CPU_DEFAULT_SUSPEND`, `NODE_HW_STATE`, `SYSTEM_SUSPEND`, statistics, `MEM_PROTECT`.

mod power;

pub use power::{AffinityState, CpuOffOutcome, SavedPower, Start, Suspension, VmPower};

use abi::calls::arm::{
    AFFINITY_INFO_32, AFFINITY_INFO_64, CPU_OFF, CPU_ON_32, CPU_ON_64, CPU_SUSPEND_32, CPU_SUSPEND_64,
    MIGRATE_INFO_TYPE, PSCI_1_1, PSCI_FEATURES, PSCI_VERSION, SMCCC_VERSION, SYSTEM_OFF, SYSTEM_RESET,
    SYSTEM_RESET2_32, SYSTEM_RESET2_64,
};

use crate::{INVALID_PARAMETERS, NOT_SUPPORTED, Request, SUCCESS};

/// The owner field of PSCI's functions (and TRNG's): standard secure services.
pub(crate) const OWNER: u32 = 4;

/// What `PSCI_VERSION` answers.
pub const VERSION: u64 = PSCI_1_1 as u64;

/// `MIGRATE_INFO_TYPE`: there is no Trusted OS, or one that needs no migration (section 5.9).
const NO_MIGRATION: u64 = 2;
/// The one architectural kind of `SYSTEM_RESET2` (section 5.12).
const SYSTEM_WARM_RESET: u32 = 0;

/// A power call that [`VmPower`] or whoever runs the VM must carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `CPU_ON`: for [`VmPower::cpu_on`].
    CpuOn {
        /// The affinity fields of the CPU meant, as in `MPIDR_EL1`.
        target: u64,
        /// Where it is to start, an address of the guest.
        entry: u64,
        /// What it is to find in X0.
        context: u64,
    },
    /// `CPU_OFF`: for [`VmPower::cpu_off`]. Does not return to the guest when it succeeds.
    CpuOff,
    /// `CPU_SUSPEND`: for [`VmPower::cpu_suspend`].
    CpuSuspend {
        /// Which power state, in the original format.
        power_state: u32,
        /// Where the CPU is to wake up from a powerdown state.
        entry: u64,
        /// What it is to find in X0 then.
        context: u64,
    },
    /// `AFFINITY_INFO`: for [`VmPower::affinity_info`].
    AffinityInfo {
        /// The affinity fields of the CPU or group of CPUs meant.
        target: u64,
        /// The lowest affinity level that counts: 0 for a single CPU.
        level: u32,
    },
    /// `SYSTEM_OFF`: the VM is done. Does not return.
    SystemOff,
    /// `SYSTEM_RESET` and `SYSTEM_RESET2`: the VM starts afresh. Does not return.
    SystemReset(Reset),
}

/// What a reset keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// Nothing.
    Cold,
    /// Memory's content may be kept (and need not).
    Warm,
}

/// Why a power call is refused. The text follows section 5.2.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PsciError {
    /// `INVALID_PARAMETERS`.
    #[error("no such CPU, affinity level or power state in this VM")]
    InvalidParameters,
    /// `ALREADY_ON`.
    #[error("the CPU is already on")]
    AlreadyOn,
    /// `ON_PENDING`.
    #[error("the CPU has been switched on and is still starting")]
    OnPending,
    /// `INVALID_ADDRESS`.
    #[error("the entry point is not a word-aligned address in the VM's memory")]
    InvalidAddress,
}

impl PsciError {
    /// What X0 gets.
    #[must_use]
    pub const fn value(self) -> u64 {
        match self {
            Self::InvalidParameters => INVALID_PARAMETERS,
            Self::AlreadyOn => -4_i64 as u64,
            Self::OnPending => -5_i64 as u64,
            Self::InvalidAddress => -9_i64 as u64,
        }
    }
}

/// Whether `function` is one of those offered.
pub(crate) const fn is_implemented(function: u32) -> bool {
    matches!(
        function,
        PSCI_VERSION
            | CPU_SUSPEND_32
            | CPU_SUSPEND_64
            | CPU_OFF
            | CPU_ON_32
            | CPU_ON_64
            | AFFINITY_INFO_32
            | AFFINITY_INFO_64
            | MIGRATE_INFO_TYPE
            | SYSTEM_OFF
            | SYSTEM_RESET
            | PSCI_FEATURES
            | SYSTEM_RESET2_32
            | SYSTEM_RESET2_64
    )
}

/// Reads one of these functions but `PSCI_VERSION`, which is answered before all others. The 32-bit form of a call sees only
/// the lower halves of its arguments (DEN0028 section 3.1).
pub(crate) fn decode(function: u32, arguments: [u64; 3]) -> Request {
    let [first, second, third] = arguments;
    let low = |argument: u64| u64::from(argument as u32);
    match function {
        CPU_SUSPEND_32 => suspend(first, low(second), low(third)),
        CPU_SUSPEND_64 => suspend(first, second, third),
        CPU_OFF => Request::Psci(Call::CpuOff),
        CPU_ON_32 => Request::Psci(Call::CpuOn { target: low(first), entry: low(second), context: low(third) }),
        CPU_ON_64 => Request::Psci(Call::CpuOn { target: first, entry: second, context: third }),
        AFFINITY_INFO_32 => affinity_info(low(first), second),
        AFFINITY_INFO_64 => affinity_info(first, second),
        MIGRATE_INFO_TYPE => Request::Answer(NO_MIGRATION),
        SYSTEM_OFF => Request::Psci(Call::SystemOff),
        SYSTEM_RESET => Request::Psci(Call::SystemReset(Reset::Cold)),
        PSCI_FEATURES => Request::Answer(features(first as u32)),
        SYSTEM_RESET2_32 | SYSTEM_RESET2_64 => reset2(first as u32),
        _ => Request::Answer(NOT_SUPPORTED),
    }
}

/// The power state is a 32-bit argument in both forms.
const fn suspend(power_state: u64, entry: u64, context: u64) -> Request {
    Request::Psci(Call::CpuSuspend { power_state: power_state as u32, entry, context })
}

/// The level is a 32-bit argument in both forms.
const fn affinity_info(target: u64, level: u64) -> Request {
    Request::Psci(Call::AffinityInfo { target, level: level as u32 })
}

/// `PSCI_FEATURES` (section 5.15). All feature flags are 0: for `CPU_SUSPEND` that means the original format of power
/// states and no OS-initiated mode.
const fn features(function: u32) -> u64 {
    // SMCCC_VERSION is none of PSCI's own: it is how SMCCC 1.1 is found (DEN0028 appendix A).
    if is_implemented(function) || function == SMCCC_VERSION { SUCCESS } else { NOT_SUPPORTED }
}

/// `SYSTEM_RESET2`: types with bit 31 set are the vendor's, of which there are none. The cookie in the next argument
/// belongs to those and is ignored.
const fn reset2(reset_type: u32) -> Request {
    match reset_type {
        SYSTEM_WARM_RESET => Request::Psci(Call::SystemReset(Reset::Warm)),
        _ => Request::Answer(INVALID_PARAMETERS),
    }
}
