//! The list of what a guest may see. One row a field, one line of reason a row.
//!
//! A limit is the highest value that we know and vouch for, so a host with more shows that much and no more. Field
//! names and values are those of DDI 0487 D24.2 (ID_AA64*_EL1).
//!
//! Two kinds of feature are shown: pure instructions, whose whole state is in registers that the world switch saves anyway; and
//! features of EL1 whose state is among the registers that it saves. Everything with registers, interrupts or memory of its own
//! is hidden until it is virtualised. Where a feature cannot be trapped, showing it is preferred to a guest that can use what it
//! was told it lacks.
//!
//! The same row says what a feature adds beside instructions ([`Part`]): registers that are switched with the vCPU, or something
//! that traps. EL2's enables and traps ([`crate::controls`]) and the world switch
//! ([`HostIds::switched`](super::HostIds::switched)) both follow from that, so that none of them can know of a feature that the
//! others do not.

use super::field::{registers, signed};
use super::part::{Part, State, Trap};
use super::{HostIds, Inputs};

/// How much of a field a guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    /// The host's value, but at most this; unsigned.
    AtMost(u64),
    /// The same for a signed field, where 15 is -1 and means "not implemented".
    SignedAtMost(i8),
    /// This value on every host.
    Always(u64),
    /// The code for the size of the guest's physical address space, or the host's if that is smaller.
    AddressBits,
    /// The host's number, whatever it is: a count of registers that the guest owns.
    Count,
}
use Limit::{AddressBits, Always, AtMost, Count, SignedAtMost};

/// One field that we know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its lowest bit.
    pub(super) shift: u32,
    /// How much of it is seen.
    pub(super) limit: Limit,
    /// What else it brings along.
    brings: &'static [Part],
    /// The host has that from the first of these values to the second.
    present: (u64, u64),
}

impl Row {
    /// The same row, whose feature brings `parts` along.
    const fn brings(self, parts: &'static [Part]) -> Self {
        Self { brings: parts, ..self }
    }

    /// The same row, where the host has what the row brings from value `first` to value `last`.
    const fn present(self, first: u64, last: u64) -> Self {
        Self { present: (first, last), ..self }
    }
}

const fn row(shift: u32, limit: Limit) -> Row {
    Row { shift, limit, brings: &[], present: (1, 15) }
}

/// A field that guests read as zero, whose feature traps, or is switched because nothing traps it.
const fn hidden(shift: u32, parts: &'static [Part]) -> Row {
    row(shift, AtMost(0)).brings(parts)
}

const POINTER_KEYS: &[Part] = &[Part::Switched(State::PointerKeys)];
const CONTEXT_NUMBERS: &[Part] = &[Part::Switched(State::ContextNumbers)];
const PARTITIONING: &[Part] = &[Part::Trapped(Trap::Partitioning)];

/// ID_AA64PFR0_EL1. Hidden without a row: EL2, EL3, SEL2, RME.
const PFR0: &[Row] = &[
    row(0, Always(1)),        // EL0: AArch64 only. AArch32 would need its own registers switched.
    row(4, Always(1)),        // EL1: AArch64 only, as HCR_EL2.RW makes it.
    row(16, SignedAtMost(1)), // FP: with half precision.
    row(20, SignedAtMost(1)), // AdvSIMD: the same.
    row(24, Always(1)),       // GIC: the system registers of our own model, version 3.
    // RAS: error records trap. An ESB of the guest may defer an SError, and nothing traps that.
    hidden(28, &[Part::Trapped(Trap::ErrorRecords), Part::Switched(State::DeferredError)]),
    hidden(32, &[Part::Trapped(Trap::ScalableVectors)]),  // SVE.
    hidden(40, PARTITIONING),                             // MPAM.
    hidden(44, &[Part::Trapped(Trap::ActivityMonitors)]), // AMU.
    row(48, AtMost(1)),                                   // DIT: one bit of PSTATE.
    // CSV2: a property of the predictors, of which 3 says the most. It holds between VMs: each has a VMID of its own.
    row(56, AtMost(3)).brings(CONTEXT_NUMBERS).present(2, 15),
    row(60, AtMost(1)), // CSV3: a property of speculation; 1 is the highest value that there is.
];

/// ID_AA64PFR1_EL1. Hidden without a row: RAS_frac, RNDR_trap, MTE_frac, THE, MTEX, DF2, PFAR.
const PFR1: &[Row] = &[
    row(0, AtMost(1)), // BT: branch targets, PSTATE.BTYPE and bits of SCTLR_EL1.
    row(4, AtMost(2)), // SSBS: one bit of PSTATE, and MSR access to it.
    // MTE: from 2 on there are tags in memory, and GMID_EL1; with 1 only instructions.
    hidden(8, &[Part::Trapped(Trap::Tags)]).present(2, 15),
    hidden(16, PARTITIONING),                                  // MPAM_frac.
    hidden(24, &[Part::Trapped(Trap::ScalableMatrices)]),      // SME.
    row(32, AtMost(2)).brings(CONTEXT_NUMBERS).present(2, 15), // CSV2_frac: the same of a CPU with CSV2 = 1.
    hidden(36, &[Part::Trapped(Trap::InterruptMask)]),         // NMI.
    hidden(44, &[Part::Trapped(Trap::ControlStack)]),          // GCS.
];

/// ID_AA64DFR0_EL1. Hidden without a row: TraceVer, PMSS, SEBEP, TraceBuffer, MTPMU, BRBE, ExtTrcBuff, HPMN0.
const DFR0: &[Row] = &[
    row(0, AtMost(9)), // DebugVer: up to Armv8.4; later ones add registers.
    // PMUVer: 15 is a unit that the architecture does not know.
    hidden(8, &[Part::Trapped(Trap::PerformanceMonitors)]).present(1, 14),
    row(12, Count),                                  // BRPs: breakpoints, switched with the vCPU.
    row(20, Count),                                  // WRPs: watchpoints, likewise.
    row(28, Count),                                  // CTX_CMPs: which of the breakpoints compare contexts.
    hidden(32, &[Part::Trapped(Trap::Profiling)]),   // PMSVer.
    row(36, Always(15)),                             // DoubleLock: not implemented; OSDLR_EL1 is trapped and ignored.
    hidden(40, &[Part::Trapped(Trap::TraceFilter)]), // TraceFilt.
];

/// ID_AA64ISAR0_EL1. Hidden: TME, and LSE128 of Atomic.
const ISAR0: &[Row] = &[
    row(4, AtMost(2)),  // AES, with PMULL.
    row(8, AtMost(1)),  // SHA1.
    row(12, AtMost(2)), // SHA2, with SHA512.
    row(16, AtMost(1)), // CRC32.
    row(20, AtMost(2)), // Atomic: LSE; 3 (128 bit) waits until its aborts are understood.
    row(28, AtMost(1)), // RDM.
    row(32, AtMost(1)), // SHA3.
    row(36, AtMost(1)), // SM3.
    row(40, AtMost(1)), // SM4.
    row(44, AtMost(1)), // DP: dot product.
    row(48, AtMost(1)), // FHM.
    row(52, AtMost(2)), // TS: flag manipulation.
    row(56, AtMost(2)), // TLB: outer shareable and range invalidation, confined to the VM by its VMID.
    row(60, AtMost(1)), // RNDR: stateless.
];

/// ID_AA64ISAR1_EL1. Hidden: LS64.
const ISAR1: &[Row] = &[
    row(0, AtMost(2)),                       // DPB: DC CVAP and CVADP.
    row(4, AtMost(5)).brings(POINTER_KEYS),  // APA: pointer authentication. 6 (PAuth_LR) is not known.
    row(8, AtMost(5)).brings(POINTER_KEYS),  // API: the same with another algorithm.
    row(12, AtMost(1)),                      // JSCVT.
    row(16, AtMost(1)),                      // FCMA.
    row(20, AtMost(3)),                      // LRCPC.
    row(24, AtMost(1)).brings(POINTER_KEYS), // GPA: generic authentication.
    row(28, AtMost(1)).brings(POINTER_KEYS), // GPI: the same with another algorithm.
    row(32, AtMost(1)),                      // FRINTTS.
    row(36, AtMost(1)),                      // SB.
    row(40, AtMost(2)),                      // SPECRES: restricts prediction for the VM's own contexts only.
    row(44, AtMost(2)),                      // BF16.
    row(48, AtMost(1)),                      // DGH: a hint.
    row(52, AtMost(1)),                      // I8MM.
    row(56, AtMost(1)),                      // XS: variants of TLBI and DSB that cannot be trapped on their own.
];

/// ID_AA64ISAR2_EL1. Hidden without a row: WFxT, MOPS, SYSREG_128, SYSINSTR_128.
const ISAR2: &[Row] = &[
    row(4, AtMost(1)),                       // RPRES: precision of estimates, with a bit of FPCR.
    row(8, AtMost(1)).brings(POINTER_KEYS),  // GPA3: generic authentication, third algorithm.
    row(12, AtMost(5)).brings(POINTER_KEYS), // APA3: pointer authentication, third algorithm.
    row(20, AtMost(1)),                      // BC: conditional branch with a hint.
    row(24, AtMost(1)),                      // PAC_frac: a property of the codes.
    row(28, AtMost(1)),                      // CLRBHB: a hint.
    row(40, AtMost(1)),                      // PRFMSLC: a hint.
    row(48, AtMost(1)),                      // RPRFM: a hint.
    row(52, AtMost(1)),                      // CSSC: integer arithmetic.
    row(56, AtMost(1)),                      // LUT: vector table look-up.
    hidden(60, &[Part::Trapped(Trap::CheckedTranslation)]), // ATS1A.
];

/// ID_AA64ISAR3_EL1. Hidden: CPA, TLBIW, PACM, LSFE.
const ISAR3: &[Row] = &[
    row(4, AtMost(1)),  // FAMINMAX: vector arithmetic.
    row(28, AtMost(1)), // FPRCVT: conversions.
];

/// ID_AA64MMFR0_EL1. Hidden: SNSMem, TGran16_2, TGran64_2, TGran4_2 (no stage 2), ExS, FGT, ECV.
const MMFR0: &[Row] = &[
    row(0, AddressBits),      // PARange: what stage 2 maps at most.
    row(4, AtMost(2)),        // ASIDBits.
    row(8, AtMost(1)),        // BigEnd.
    row(16, AtMost(1)),       // BigEndEL0.
    row(20, AtMost(1)),       // TGran16: 2 is 52-bit addresses.
    row(24, SignedAtMost(0)), // TGran64.
    row(28, SignedAtMost(0)), // TGran4: 1 is 52-bit addresses.
];

/// ID_AA64MMFR1_EL1. Hidden without a row: VMIDBits, VH, XNX, TWED, HCX, TIDCP1, CMOW: matters of EL2, or with traps of their own.
const MMFR1: &[Row] = &[
    row(0, AtMost(2)),                                   // HAFDBS: access flag and dirty state at stage 1.
    row(12, AtMost(2)),                                  // HPDS: bits of TCR_EL1.
    hidden(16, &[Part::Trapped(Trap::OrderingRegions)]), // LO.
    row(20, AtMost(3)),                                  // PAN: one bit of PSTATE, and AT S1E1RP and WP.
    row(24, AtMost(1)),                                  // SpecSEI: a property of the host that a guest should know.
    row(36, AtMost(2)),                                  // ETS: an ordering guarantee.
    row(44, AtMost(1)),                                  // AFP: bits of FPCR.
    row(48, AtMost(1)),                                  // nTLBPA: a property of the TLB.
    row(60, AtMost(1)),                                  // ECBHB: a property of the predictors.
];

/// ID_AA64MMFR2_EL1. Hidden: IESB, VARange (52-bit), NV, FWB, EVT.
const MMFR2: &[Row] = &[
    row(0, AtMost(1)),  // CnP: a bit of TTBRn_EL1; VMIDs are the same on all CPUs.
    row(4, AtMost(1)),  // UAO: one bit of PSTATE.
    row(8, AtMost(1)),  // LSM: bits of SCTLR_EL1.
    row(20, AtMost(1)), // CCIDX: the format of CCSIDR_EL1, which does not trap.
    row(28, AtMost(1)), // ST: small translation tables.
    row(32, AtMost(1)), // AT: single-copy atomicity of unaligned accesses.
    row(36, AtMost(1)), // IDS: the syndrome of an identification register read at EL0.
    row(48, AtMost(1)), // TTL: a hint in TLB invalidation.
    row(52, AtMost(2)), // BBM: a property of the TLB.
    row(60, AtMost(1)), // E0PD: bits of TCR_EL1.
];

/// The fields of the register at `index` that we know. All other registers are zero for guests: those of AArch32, PFR2,
/// ZFR0, SMFR0, FPFR0, DFR1, DFR2, AFR0, AFR1, MMFR3 (TCR2, SCTLR2, permission indirection and overlay, 128-bit
/// tables), MMFR4, and all that are reserved.
pub(super) const fn shown(index: usize) -> &'static [Row] {
    match index {
        registers::PFR0 => PFR0,
        registers::PFR1 => PFR1,
        registers::DFR0 => DFR0,
        registers::ISAR0 => ISAR0,
        registers::ISAR1 => ISAR1,
        registers::ISAR2 => ISAR2,
        registers::ISAR3 => ISAR3,
        registers::MMFR0 => MMFR0,
        registers::MMFR1 => MMFR1,
        registers::MMFR2 => MMFR2,
        _ => &[],
    }
}

/// Whether a host has `part`: by any of the fields that may say so.
pub(super) fn has(host: &HostIds, part: Part) -> bool {
    host.0.iter().enumerate().any(|(index, &register)| {
        shown(index).iter().any(|row| {
            let (first, last) = row.present;
            row.brings.contains(&part) && (first..=last).contains(&(register >> row.shift & 0xf))
        })
    })
}

/// What a guest reads in the register at `index` where the host reads `host`.
pub(super) fn guest_value(index: usize, host: u64, inputs: Inputs) -> u64 {
    shown(index).iter().fold(0, |value, row| {
        let field = host >> row.shift & 0xf;
        let seen = match row.limit {
            AtMost(limit) => field.min(limit),
            SignedAtMost(limit) => (signed(field).min(limit) as u64) & 0xf,
            Always(constant) => constant,
            AddressBits => field.min(parange(inputs.ipa_bits)),
            Count => field,
        };
        value | seen << row.shift
    })
}

/// What two CPUs have in common in the register at `index`. Only fields that mean something to us are compared; the
/// others are equal or count as absent.
pub(super) fn common(index: usize, one: u64, other: u64) -> u64 {
    (0..64).step_by(4).fold(0, |value, shift| {
        let (a, b) = (one >> shift & 0xf, other >> shift & 0xf);
        let is_signed = shown(index).iter().any(|row| row.shift == shift && matches!(row.limit, SignedAtMost(_)));
        let less = if is_signed && signed(b) < signed(a) || !is_signed && b < a { b } else { a };
        value | less << shift
    })
}

/// The code of ID_AA64MMFR0_EL1.PARange for at most `bits` address bits.
const fn parange(bits: u8) -> u64 {
    match bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        // 52 bits need a granule that can; 48 is what we vouch for.
        _ => 5,
    }
}
