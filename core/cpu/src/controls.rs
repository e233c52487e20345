//! The traps and enables of EL2 while a guest runs, for HCR_EL2.E2H = 0.
//!
//! [`controls`] computes them once from the host's identification registers, because a control bit of a feature that
//! the CPU lacks is RES0 or the register does not exist. Registers that may not exist are `Option`s: `None` must not
//! be written. What the scheduler changes at run time is a constant of its own: [`HCR_TWI`], [`HCR_TWE`], [`HCR_VSE`],
//! [`CPTR_TFP`].
//!
//! Each feature that [`crate::id`] hides is made undefined by:
//!
//! | hidden feature | control |
//! |---|---|
//! | SVE | CPTR_EL2.TZ: class 0x19 |
//! | SME, TPIDR2_EL0, SMPRI_EL1, SMIDR_EL1 | CPTR_EL2.TSM: class 0x1d; HFGxTR_EL2.nTPIDR2_EL0, nSMPRI_EL1; HCR_EL2.TID1 |
//! | performance monitors | MDCR_EL2.TPM, TPMCR |
//! | statistical profiling | MDCR_EL2.TPMS, E2PB = 0 |
//! | trace, trace filter, trace buffer | CPTR_EL2.TTA, MDCR_EL2.TTRF, E2TB = 0 |
//! | branch records | HDFGxTR_EL2.nBRBCTL, nBRBDATA, nBRBIDR; HFGITR_EL2.nBRBIALL, nBRBINJ |
//! | activity monitors | CPTR_EL2.TAM |
//! | limited ordering regions | HCR_EL2.TLOR |
//! | RAS error records | HCR_EL2.TERR, FIEN = 0 |
//! | memory partitioning | MPAM2_EL2.TRAPMPAM0EL1, TRAPMPAM1EL1 |
//! | memory tagging | HCR_EL2.ATA = 0, TID5 |
//! | double lock, power requests | MDCR_EL2.TDOSA |
//! | debug registers that are not the vCPU's own | HDFGxTR_EL2, MDCR_EL2.TDCC; or TDA for all: see [`crate::debug`] |
//! | memory copy instructions | HCRX_EL2.MSCEn = 0 |
//! | 64-byte loads and stores, ACCDATA_EL1 | HCRX_EL2.EnALS, EnAS0, EnASR = 0: class 0x0a; HFGxTR_EL2.nACCDATA_EL1 |
//! | TCR2, SCTLR2, FPMR, PACM, GCS, 128-bit tables | the HCRX_EL2 enables of the same names = 0 |
//! | permission indirection and overlay, MAIR2, AMAIR2, RCWMASK, GCS | the n-bits of HFGxTR_EL2 = 0 |
//! | non-maskable interrupts | HCRX_EL2.TALLINT |
//! | AT S1E1A | HFGITR_EL2.ATS1E1A |
//! | implementation defined registers, ACTLR_EL1 | HCR_EL2.TIDCP, TACR |
//! | everything of FEAT_FGT2 | its n-bits = 0 |
//!
//! At EL0 EL1's own traps come first, with a syndrome that tells of the feature. Those whose enables are registers that trap are
//! therefore open: [`PMUSERENR`], [`AMUSERENR`], [`GCSCRE0`].
//!
//! No control exists for: WFET and WFIT (they trap as WFE and WFI do, and may always complete at once), CNTVCTSS_EL0
//! and CNTPCTSS_EL0 (they read like their plain forms), DISR_EL1 (with HCR_EL2.AMO the guest reaches VDISR_EL2, which
//! is switched with it), TLBI and DSB variants, the arithmetic on tags of FEAT_MTE, 52-bit addresses (stage 2 bounds
//! them), entering AArch32 at EL0 (what comes to EL2 from there is refused). Where a performance feature of that kind
//! exists, using it harms nobody but the guest.

use crate::debug;
use crate::id::{HostIds, Part, State, Trap, fields};

/// HCR_EL2.TWI: trap WFI. Set for a vCPU whose CPU others may need; clear for one that has a CPU of its own.
pub const HCR_TWI: u64 = 1 << 13;
/// HCR_EL2.TWE: trap WFE.
pub const HCR_TWE: u64 = 1 << 14;
/// HCR_EL2.VSE: a virtual SError is pending; the hardware clears it when the guest takes it.
pub const HCR_VSE: u64 = 1 << 8;
/// CPTR_EL2.TFP: floating point and Advanced SIMD trap, so that their registers are switched only when used.
pub const CPTR_TFP: u64 = 1 << 10;
/// MDCR_EL2.TDA: trap the debug registers, for a guest that may call through the debug channel.
pub const MDCR_TDA: u64 = 1 << 9;
/// CNTHCTL_EL2.EL1PCTEN: the physical counter does not trap.
pub const CNTHCTL_EL1PCTEN: u64 = 1 << 0;
/// CNTHCTL_EL2.ECV: EL1 and EL0 read CNTPCT_EL0 less CNTPOFF_EL2.
pub const CNTHCTL_ECV: u64 = 1 << 12;
/// CNTHCTL_EL2.EL1TVT (FEAT_ECV): the CNTV timer traps.
pub const CNTHCTL_EL1TVT: u64 = 1 << 13;
/// CNTHCTL_EL2.EL1TVCT (FEAT_ECV): CNTVCT_EL0 traps.
pub const CNTHCTL_EL1TVCT: u64 = 1 << 14;
/// HSTR_EL2: nothing. It traps AArch32 coprocessor registers only.
pub const HSTR: u64 = 0;

/// PMUSERENR_EL0: EL0 reaches all counters (EN), as far as EL1 is concerned. The other bits say less; QEMU takes them for more
/// than EL2's trap.
pub const PMUSERENR: u64 = 1;
/// AMUSERENR_EL0: EL0 reaches the activity monitors (EN), as far as EL1 is concerned.
pub const AMUSERENR: u64 = 1;
/// GCSCRE0_EL1: EL0 reaches GCSPR_EL0 (nTR), as far as EL1 is concerned; no control stack is enabled.
pub const GCSCRE0: u64 = 1 << 10;

const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_PTW: u64 = 1 << 2;
const HCR_FMO: u64 = 1 << 3;
const HCR_IMO: u64 = 1 << 4;
const HCR_AMO: u64 = 1 << 5;
const HCR_FB: u64 = 1 << 9;
const HCR_BSU_INNER: u64 = 1 << 10;
const HCR_TID1: u64 = 1 << 16;
const HCR_TID3: u64 = 1 << 18;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_TSW: u64 = 1 << 22;
/// EL1 is AArch64. Alone it is HCR_EL2 as EL2 begins with: no E2H, which changes what other registers mean, and nothing for a guest yet.
pub const HCR_RW: u64 = 1 << 31;
const HCR_TLOR: u64 = 1 << 35;
const HCR_TERR: u64 = 1 << 36;
const HCR_TEA: u64 = 1 << 37;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
/// NV, E2H and TGE.
const HCR_NEVER: u64 = 1 << 42 | 1 << 34 | 1 << 27;
const HCR_ALWAYS: u64 = HCR_VM | HCR_FMO | HCR_IMO | HCR_AMO;
const HCR_ENSCXT: u64 = 1 << 53;
const HCR_TID5: u64 = 1 << 58;

const MDCR_TPMCR: u64 = 1 << 5;
const MDCR_TPM: u64 = 1 << 6;
const MDCR_TDOSA: u64 = 1 << 10;
const MDCR_TDRA: u64 = 1 << 11;
const MDCR_TPMS: u64 = 1 << 14;
const MDCR_TTRF: u64 = 1 << 19;
const MDCR_TDCC: u64 = 1 << 27;

/// RES1 bits without SVE and SME; with them, bits 8 (TZ) and 12 (TSM) trap, which is what we want as well.
const CPTR_BASE: u64 = 0x33ff;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;

const HCRX_TALLINT: u64 = 1 << 6;
const HFGITR_ATS1E1A: u64 = 1 << 62;
const MPAM2_TRAP: u64 = 1 << 48 | 1 << 49;

/// `value` for HCR_EL2 as it may be written on a guest's account: without what would change EL2's own translation and where
/// its exceptions go (E2H, TGE, and NV, which makes EL1 believe in an EL2), with stage 2, without which a guest reaches all
/// memory, and with physical interrupts and SErrors for EL2 (FMO, IMO, AMO; DDI 0487 D24.2, HCR_EL2).
#[must_use]
#[inline(always)]
pub const fn guest_hcr(value: u64) -> u64 {
    value & !HCR_NEVER | HCR_ALWAYS
}

/// `value` for MDCR_EL2 without what would bring a guest's breakpoints to EL2, and into EL2's own code (TDE).
#[must_use]
#[inline(always)]
pub const fn guest_mdcr(value: u64) -> u64 {
    const TDE: u64 = 1 << 8;
    value & !TDE
}

/// The fine-grained trap registers (FEAT_FGT). A zero n-bit traps, so zero is the safe value for what is yet unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FineGrainedTraps {
    /// HFGRTR_EL2.
    pub hfgrtr: u64,
    /// HFGWTR_EL2.
    pub hfgwtr: u64,
    /// HFGITR_EL2.
    pub hfgitr: u64,
    /// HDFGRTR_EL2.
    pub hdfgrtr: u64,
    /// HDFGWTR_EL2.
    pub hdfgwtr: u64,
    /// HAFGRTR_EL2; exists only where [`GuestControls::has_activity_monitors`].
    pub hafgrtr: u64,
}

/// Values for the control registers of EL2 while a guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestControls {
    /// HCR_EL2, without [`HCR_TWI`] and [`HCR_TWE`].
    pub hcr: u64,
    /// MDCR_EL2, with HPMN at `event_counters`.
    pub mdcr: u64,
    /// CPTR_EL2, without [`CPTR_TFP`].
    pub cptr: u64,
    /// CNTHCTL_EL2: the CNTP timer traps, and CNTPCT_EL0 does unless the CPU subtracts the guest's offset (EL1PCTEN,
    /// EL1PCEN; DDI 0487 D24.10.2).
    pub cnthctl: u64,
    /// Whether CNTPOFF_EL2 exists and is subtracted (FEAT_ECV). Without it the hardware's physical counter is the host's.
    pub has_physical_offset: bool,
    /// CNTHCTL_EL2 for a guest whose time the hardware cannot show: both of its counters and timers trap, or as much of that
    /// as the CPU can. Before FEAT_ECV nothing traps the virtual ones.
    pub cnthctl_scaled: u64,
    /// Whether EL2 is the highest exception level, to which CNTFRQ_EL0 belongs (DDI 0487 D24.10.1).
    pub owns_frequency: bool,
    /// HSTR_EL2.
    pub hstr: u64,
    /// HCRX_EL2, if there is one.
    pub hcrx: Option<u64>,
    /// The fine-grained traps, if there are any.
    pub fine_grained: Option<FineGrainedTraps>,
    /// Whether the registers of FEAT_FGT2 (HFGRTR2_EL2, HFGWTR2_EL2, HFGITR2_EL2, HDFGRTR2_EL2, HDFGWTR2_EL2) exist; each
    /// is to be zero.
    pub has_fine_grained_2: bool,
    /// Whether AMUSERENR_EL0 exists, which is to be [`AMUSERENR`], and HAFGRTR_EL2 along with the fine-grained traps.
    pub has_activity_monitors: bool,
    /// Whether PMUSERENR_EL0 exists, which is to be [`PMUSERENR`].
    pub has_performance_monitors: bool,
    /// Whether GCSCRE0_EL1 exists, which is to be [`GCSCRE0`].
    pub has_control_stacks: bool,
    /// MPAM2_EL2, if there is one.
    pub mpam2: Option<u64>,
}

/// Computes the controls for a host. `event_counters` is PMCR_EL0.N, or 0 on a CPU without performance monitors.
#[must_use]
pub fn controls(host: &HostIds, event_counters: u8) -> GuestControls {
    let has = |field| host.field(field) != 0;
    let traps = |trap| host.has(Part::Trapped(trap));
    let fine_grained = has(fields::MMFR0_FGT).then(|| FineGrainedTraps {
        hdfgrtr: debug::FINE_TRAPS,
        // DBGAUTHSTATUS_EL1 can only be read, and its bit is reserved here.
        hdfgwtr: debug::FINE_TRAPS & !(1 << 6),
        hfgitr: if traps(Trap::CheckedTranslation) { HFGITR_ATS1E1A } else { 0 },
        ..FineGrainedTraps::default()
    });
    // CPUs with FEAT_ECV have the fine-grained traps too; their registers are moved together.
    let has_physical_offset = host.field(fields::MMFR0_ECV) >= 2 && fine_grained.is_some();
    GuestControls {
        hcr: hcr(host),
        mdcr: mdcr(host, event_counters),
        cptr: CPTR_BASE | CPTR_TTA | if traps(Trap::ActivityMonitors) { CPTR_TAM } else { 0 },
        cnthctl: if has_physical_offset { CNTHCTL_EL1PCTEN | CNTHCTL_ECV } else { 0 },
        has_physical_offset,
        cnthctl_scaled: if has(fields::MMFR0_ECV) { CNTHCTL_EL1TVT | CNTHCTL_EL1TVCT } else { 0 },
        owns_frequency: !has(fields::PFR0_EL3),
        hstr: HSTR,
        hcrx: has(fields::MMFR1_HCX).then(|| if traps(Trap::InterruptMask) { HCRX_TALLINT } else { 0 }),
        fine_grained,
        has_fine_grained_2: host.field(fields::MMFR0_FGT) >= 2,
        has_activity_monitors: traps(Trap::ActivityMonitors),
        has_performance_monitors: traps(Trap::PerformanceMonitors),
        has_control_stacks: traps(Trap::ControlStack),
        mpam2: traps(Trap::Partitioning).then_some(MPAM2_TRAP),
    }
}

/// HCR_EL2.
fn hcr(host: &HostIds) -> u64 {
    // Stage 2 on; set/way invalidation also cleans; a stage 1 walk that hits device memory faults instead of reading it.
    let mut hcr = HCR_VM | HCR_SWIO | HCR_PTW;
    // Interrupts and SErrors come to EL2, and the guest gets virtual ones.
    hcr |= HCR_FMO | HCR_IMO | HCR_AMO;
    // A vCPU may move: its TLB, cache and barrier instructions reach the inner shareable domain.
    hcr |= HCR_FB | HCR_BSU_INNER;
    // What must not reach the machine: identification, SMC, implementation defined registers, ACTLR, set/way.
    hcr |= HCR_TID3 | HCR_TSC | HCR_TIDCP | HCR_TACR | HCR_TSW;
    hcr |= HCR_RW;
    for (part, bits) in [
        (Part::Trapped(Trap::OrderingRegions), HCR_TLOR),
        // Synchronous external aborts come to EL2, which decides whether the host or the guest is ill.
        (Part::Trapped(Trap::ErrorRecords), HCR_TERR | HCR_TEA),
        (Part::Trapped(Trap::ScalableMatrices), HCR_TID1),
        (Part::Trapped(Trap::Tags), HCR_TID5),
        // What is switched is enabled: both come from the same rows of the policy.
        (Part::Switched(State::PointerKeys), HCR_APK | HCR_API),
        (Part::Switched(State::ContextNumbers), HCR_ENSCXT),
    ] {
        if host.has(part) {
            hcr |= bits;
        }
    }
    hcr
}

/// MDCR_EL2. Breakpoints, watchpoints and single step stay the guest's own (TDE = 0).
fn mdcr(host: &HostIds, event_counters: u8) -> u64 {
    let traps = |trap| host.has(Part::Trapped(trap));
    let mut mdcr = MDCR_TDOSA | MDCR_TDRA;
    if traps(Trap::PerformanceMonitors) {
        // HPMN must not exceed the number of counters, and not be zero where there are some.
        mdcr |= MDCR_TPM | MDCR_TPMCR | u64::from(event_counters & 31);
    }
    if traps(Trap::Profiling) {
        mdcr |= MDCR_TPMS;
    }
    if host.field(fields::MMFR0_FGT) != 0 {
        mdcr |= MDCR_TDCC;
    }
    if traps(Trap::TraceFilter) {
        mdcr |= MDCR_TTRF;
    }
    // E2PB and E2TB are zero: EL2 owns the profiling and the trace buffer.
    mdcr
}

#[cfg(test)]
mod tests {
    use super::{CPTR_BASE, HCR_TWE, HCR_TWI, HCR_VSE, HFGITR_ATS1E1A, controls, guest_hcr, guest_mdcr};
    use crate::id::{COUNT, HostIds, fields, models};

    #[test]
    fn an_armv8_0_host_gets_the_plain_controls() {
        let controls = controls(&models::CORTEX_A57, 6);
        // VM, SWIO, PTW, FMO, IMO, AMO, FB, BSU = inner; TID3, TSC, TIDCP, TACR, TSW; RW.
        assert_eq!(controls.hcr, 0x8000_0000 | 0x007c_0000 | 0x0600 | 0x3f);
        // TPMCR, TPM, TDOSA, TDRA and six counters.
        assert_eq!(controls.mdcr, 0x0c66);
        assert_eq!(controls.cptr, 0x0010_33ff);
        assert_eq!((controls.cnthctl, controls.hstr), (0, 0));
        // A guest with another time: the physical counter and timer trap here anyway, and nothing traps the virtual ones.
        assert_eq!((controls.cnthctl_scaled, controls.owns_frequency), (0, true));
        assert_eq!((controls.hcrx, controls.fine_grained, controls.mpam2), (None, None, None));
        assert!(!controls.has_fine_grained_2 && !controls.has_activity_monitors);
    }

    /// The offset's register is moved together with those of the fine-grained traps.
    #[test]
    fn the_physical_counter_has_an_offset_only_beside_fine_grained_traps() {
        let has_offset = |traps, virtualization| {
            let mut host = models::CORTEX_A57;
            host.set_field(fields::MMFR0_FGT, traps);
            host.set_field(fields::MMFR0_ECV, virtualization);
            controls(&host, 6).has_physical_offset
        };
        assert_eq!(
            [has_offset(0, 2), has_offset(1, 1), has_offset(0, 0), has_offset(1, 2)],
            [false, false, false, true]
        );
    }

    /// What is trapped on a read is trapped on a write, but for a register that cannot be written, whose bit is reserved there.
    #[test]
    fn debug_registers_trap_in_both_directions() {
        let traps = controls(&models::MAX, 6).fine_grained.unwrap();
        assert_eq!((traps.hdfgrtr & 1 << 6, traps.hdfgwtr), (1 << 6, traps.hdfgrtr & !(1 << 6)));
    }

    #[test]
    fn a_host_with_everything_traps_what_is_hidden() {
        let controls = controls(&models::MAX, 6);
        // TLOR, TERR, TEA, APK, API, EnSCXT, and TID1 because of SME.
        assert_eq!(controls.hcr & !0xffff_ffff, 0x20_0338_0000_0000);
        assert_eq!(controls.hcr >> 16 & 1, 1);
        assert_eq!(controls.hcrx, Some(1 << 6));
        // ECV and EL1PCTEN: the physical counter of a guest starts when it does, and needs no trap for it.
        assert_eq!((controls.cnthctl, controls.has_physical_offset), (1 | 1 << 12, true));
        // Without EL1PCTEN, EL1PCEN and ECV, and with EL1TVT and EL1TVCT, all of them trap.
        assert_eq!(controls.cnthctl_scaled, 3 << 13);
        assert_eq!(controls.fine_grained.map(|traps| traps.hfgitr), Some(HFGITR_ATS1E1A));
        assert!(!controls.has_fine_grained_2);
    }

    #[test]
    fn each_hidden_feature_has_its_trap() {
        let with = |field, value| {
            let mut host = models::CORTEX_A76;
            host.set_field(field, value);
            controls(&host, 6)
        };
        let plain = controls(&models::CORTEX_A76, 6);
        assert_eq!(with(fields::PFR0_AMU, 1).cptr, plain.cptr | 1 << 30);
        assert!(with(fields::PFR0_AMU, 1).has_activity_monitors);
        assert_eq!(with(fields::DFR0_PMSVER, 1).mdcr, plain.mdcr | 1 << 14);
        assert_eq!(with(fields::DFR0_TRACEFILT, 1).mdcr, plain.mdcr | 1 << 19);
        assert_eq!(with(fields::DFR0_PMUVER, 15).mdcr, 0xc00);
        assert_eq!(with(fields::PFR1_MTE, 2).hcr, plain.hcr | 1 << 58);
        assert_eq!(with(fields::PFR1_MTE, 1).hcr, plain.hcr);
        assert_eq!(with(fields::ISAR2_APA3, 5).hcr, plain.hcr | 3 << 40);
        assert_eq!(with(fields::PFR0_MPAM, 1).mpam2, Some(3 << 48));
        assert_eq!(with(fields::PFR1_MPAM_FRAC, 1).mpam2, Some(3 << 48));
        assert_eq!(with(fields::MMFR1_HCX, 1).hcrx, Some(0));
        assert!(with(fields::MMFR0_FGT, 2).has_fine_grained_2);
        // The traps of the virtual counter come before the offset of the physical one; behind EL3 the frequency is firmware's.
        assert_eq!((with(fields::MMFR0_ECV, 1).cnthctl, with(fields::MMFR0_ECV, 1).cnthctl_scaled), (0, 3 << 13));
        assert!(!with(fields::PFR0_EL3, 1).owns_frequency);
        // SVE and SME trap with the bits that are RES1 without them.
        assert_eq!(with(fields::PFR0_SVE, 1).cptr & CPTR_BASE, CPTR_BASE);
    }

    #[test]
    fn nothing_that_is_written_for_a_guest_changes_el2() {
        // By the manual's numbers: VM, FMO, IMO and AMO are set; TGE, E2H and NV are clear; the rest is as it was.
        let (always, never) = (1 | 1 << 3 | 1 << 4 | 1 << 5, 1 << 27 | 1 << 34 | 1 << 42);
        for value in [0, u64::MAX, 0x5555_5555_5555_5555, controls(&models::MAX, 6).hcr] {
            let hcr = guest_hcr(value);
            assert_eq!(hcr & (always | never), always);
            assert_eq!((hcr ^ value) & !(always | never), 0);
            assert_eq!(guest_mdcr(value), value & !(1 << 8));
        }
        for (name, host) in models::ALL {
            let controls = controls(host, 6);
            let filtered = (guest_hcr(controls.hcr), guest_mdcr(controls.mdcr));
            assert_eq!(filtered, (controls.hcr, controls.mdcr), "{name}: the filter takes nothing that is meant");
        }
    }

    #[test]
    fn dangerous_bits_are_never_set() {
        for host in [HostIds([0; COUNT]), HostIds([u64::MAX; COUNT])] {
            let hcr = controls(&host, 31).hcr;
            // TGE, TDZ, HCD, CD, ID, E2H, NV, NV1, NV2, FIEN, ATA, and what the scheduler owns.
            for bit in [27, 28, 29, 32, 33, 34, 42, 43, 45, 47, 56] {
                assert_eq!(hcr & 1 << bit, 0, "bit {bit}");
            }
            assert_eq!(hcr & (HCR_TWI | HCR_TWE | HCR_VSE), 0);
        }
    }
}
