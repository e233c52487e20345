//! SMCCC's own functions: the Arm architecture service (DEN0028 section 7).

use abi::calls::arm::{
    PV_TIME_FEATURES, SMCCC_1_1, SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2,
    SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};

use crate::{Facts, NOT_SUPPORTED, Request, SUCCESS, psci, trng};

/// The owner field of these functions.
pub(crate) const OWNER: u32 = 0;

/// How the host stands to one of the speculation workarounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Need {
    /// The host's firmware does not know the function: whether the CPU is vulnerable is left open.
    #[default]
    Unknown,
    /// The CPUs need it and the firmware offers it.
    Required,
    /// The CPUs are not affected.
    NotRequired,
}

impl Need {
    /// What `SMCCC_ARCH_FEATURES` says: 0 call it, 1 no need to, -1 not supported.
    #[must_use]
    pub const fn feature(self) -> u64 {
        match self {
            Self::Unknown => NOT_SUPPORTED,
            Self::Required => SUCCESS,
            Self::NotRequired => 1,
        }
    }
}

/// What the guest is told about each workaround.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Workarounds {
    /// `SMCCC_ARCH_WORKAROUND_1`: branch target injection (CVE-2017-5715).
    pub branch_target: Need,
    /// `SMCCC_ARCH_WORKAROUND_2`: speculative store bypass (CVE-2018-3639).
    pub store_bypass: Need,
    /// `SMCCC_ARCH_WORKAROUND_3`: branch history injection (CVE-2022-23960).
    pub branch_history: Need,
}

/// A workaround that a guest asks for and the host needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workaround {
    /// `SMCCC_ARCH_WORKAROUND_1`.
    BranchTarget,
    /// `SMCCC_ARCH_WORKAROUND_2`: switches the mitigation of the calling CPU on or off.
    StoreBypass {
        /// Whether the mitigation is to be on.
        enable: bool,
    },
    /// `SMCCC_ARCH_WORKAROUND_3`.
    BranchHistory,
}

/// Reads one of these functions.
pub(crate) fn decode(function: u32, arguments: [u64; 3], facts: &Facts) -> Request {
    let known = &facts.workarounds;
    match function {
        SMCCC_VERSION => Request::Answer(SMCCC_1_1.into()),
        SMCCC_ARCH_FEATURES => Request::Answer(feature(arguments[0] as u32, facts)),
        SMCCC_ARCH_WORKAROUND_1 => work_around(known.branch_target, Workaround::BranchTarget),
        SMCCC_ARCH_WORKAROUND_2 => {
            let enable = arguments[0] as u32 != 0;
            work_around(known.store_bypass, Workaround::StoreBypass { enable })
        }
        SMCCC_ARCH_WORKAROUND_3 => work_around(known.branch_history, Workaround::BranchHistory),
        _ => Request::Answer(NOT_SUPPORTED),
    }
}

/// A call of a workaround that is not required is allowed, and does nothing.
const fn work_around(need: Need, workaround: Workaround) -> Request {
    match need {
        Need::Unknown => Request::Answer(NOT_SUPPORTED),
        Need::Required => Request::Workaround(workaround),
        Need::NotRequired => Request::Answer(SUCCESS),
    }
}

/// What `SMCCC_ARCH_FEATURES` answers about `function`. It is the way to find the functions of this service and
/// paravirtualized time; PSCI and TRNG have functions of their own for that and may be asked about here as well.
fn feature(function: u32, facts: &Facts) -> u64 {
    match function {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => SUCCESS,
        SMCCC_ARCH_WORKAROUND_1 => facts.workarounds.branch_target.feature(),
        SMCCC_ARCH_WORKAROUND_2 => facts.workarounds.store_bypass.feature(),
        SMCCC_ARCH_WORKAROUND_3 => facts.workarounds.branch_history.feature(),
        PV_TIME_FEATURES if facts.stolen_time.is_some() => SUCCESS,
        _ if psci::is_implemented(function) || trng::is_implemented(function) => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}
