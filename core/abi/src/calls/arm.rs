//! The numbers of calls that Arm has defined, by HVC or SMC: SMCCC's own (DEN0028), PSCI's (DEN0022),
//! the random number generator's (DEN0098) and those of paravirtualized time (DEN0057). Guests make them, the
//! hypervisor answers them, and makes some of them itself, of the firmware below it.
//!
//! A function that has two forms, by the width of what it is given, has two numbers here.

/// Which version of SMCCC there is.
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC 1.1, the first with an architecture service.
pub const SMCCC_1_1: u32 = 0x1_0001;
/// Whether there is a function, and how it stands.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// Against branch target injection (CVE-2017-5715).
pub const SMCCC_ARCH_WORKAROUND_1: u32 = 0x8000_8000;
/// Against speculative store bypass (CVE-2018-3639).
pub const SMCCC_ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
/// Against branch history injection (CVE-2022-23960).
pub const SMCCC_ARCH_WORKAROUND_3: u32 = 0x8000_3fff;

/// Which version of PSCI there is: the call that means nothing but the way there and back.
pub const PSCI_VERSION: u32 = 0x8400_0000;
/// PSCI 1.1.
pub const PSCI_1_1: u32 = 0x1_0001;
/// Suspends the calling CPU.
pub const CPU_SUSPEND_32: u32 = 0x8400_0001;
/// The same.
pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
/// Switches the calling CPU off.
pub const CPU_OFF: u32 = 0x8400_0002;
/// Switches another CPU on.
pub const CPU_ON_32: u32 = 0x8400_0003;
/// The same.
pub const CPU_ON_64: u32 = 0xc400_0003;
/// Whether a CPU is on.
pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
/// The same.
pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
/// Whether there is a Trusted OS that has to be moved before its CPU is switched off.
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// Switches the machine off.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// Starts the machine afresh.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// Whether there is a function of PSCI's.
pub const PSCI_FEATURES: u32 = 0x8400_000a;
/// Starts the machine afresh, in the way that is asked for.
pub const SYSTEM_RESET2_32: u32 = 0x8400_0012;
/// The same.
pub const SYSTEM_RESET2_64: u32 = 0xc400_0012;

/// Which version of TRNG there is.
pub const TRNG_VERSION: u32 = 0x8400_0050;
/// Whether there is a function of TRNG's.
pub const TRNG_FEATURES: u32 = 0x8400_0051;
/// Which generator it is.
pub const TRNG_GET_UUID: u32 = 0x8400_0052;
/// Gives up to 96 random bits.
pub const TRNG_RND_32: u32 = 0x8400_0053;
/// Gives up to 192 random bits.
pub const TRNG_RND_64: u32 = 0xc400_0053;

/// Whether there is a function of paravirtualized time.
pub const PV_TIME_FEATURES: u32 = 0xc500_0020;
/// Where the calling vCPU's record of stolen time is.
pub const PV_TIME_ST: u32 = 0xc500_0021;
