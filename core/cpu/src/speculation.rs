//! What each CPU needs against attacks on its predictors, by MIDR_EL1 and the identification registers.
//!
//! Three attacks, in the words of SMCCC's architecture service (DEN0028 section 7), which numbers the firmware's help:
//! * **Branch targets** (CVE-2017-5715, `SMCCC_ARCH_WORKAROUND_1`): a guest trains where an indirect branch of EL2's,
//!   or of the next guest's, is predicted to go. CPUs with FEAT_CSV2 keep contexts apart; on the others the predictors
//!   have to be flushed, which only firmware can do.
//! * **Branch history** (CVE-2022-23960, `SMCCC_ARCH_WORKAROUND_3`): the targets are EL2's own, but the guest's last
//!   branches choose among them. CPUs with FEAT_CSV2_3 are safe, those with FEAT_ECBHB forget the history at each
//!   exception. On the others it is overwritten before EL2's first indirect branch: by the instruction CLRBHB, by a number
//!   of rounds of a loop that Arm gives for each model, or by firmware.
//! * **Store bypass** (CVE-2018-3639, `SMCCC_ARCH_WORKAROUND_2`): a load is predicted not to depend on an older store.
//!   With FEAT_SSBS each context decides for itself; elsewhere firmware can switch the prediction off.
//!
//! The models and numbers are those of Arm's "Spectre-BHB" and "Cache speculation side-channels" papers, as Linux
//! has them too (`arch/arm64/kernel/proton-pack.c`).

use core::fmt;

use abi::calls::arm::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3};

use crate::id::{HostIds, fields};

/// What firmware says of one of its workarounds (`SMCCC_ARCH_FEATURES`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offer {
    /// It does not know the function: there is none, it is old, or it does not need to know.
    #[default]
    Unknown,
    /// This CPU needs it, and it is there.
    Required,
    /// This CPU is not affected.
    NotRequired,
}

impl Offer {
    /// From what `SMCCC_ARCH_FEATURES` returned: 0, 1, or -2 (only of `SMCCC_ARCH_WORKAROUND_2`), or NOT_SUPPORTED.
    #[must_use]
    pub const fn from_answer(answer: i32) -> Self {
        match answer {
            0 => Self::Required,
            1 | -2 => Self::NotRequired,
            _ => Self::Unknown,
        }
    }
}

/// What firmware offers to this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Firmware {
    /// `SMCCC_ARCH_WORKAROUND_1`.
    pub branch_targets: Offer,
    /// `SMCCC_ARCH_WORKAROUND_2`.
    pub store_bypass: Offer,
    /// `SMCCC_ARCH_WORKAROUND_3`.
    pub branch_history: Offer,
}

/// How EL2 is kept from branches that a guest has trained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BranchTargets {
    /// The CPU keeps contexts apart, or predicts no targets.
    NotAffected,
    /// Firmware makes it forget, at each exit.
    Firmware,
    /// Not at all: only firmware could, and it does not offer to.
    Open,
}

/// How EL2 is kept from a guest's branch history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BranchHistory {
    /// The CPU keeps contexts apart, or has none.
    NotAffected,
    /// Each exception clears it (FEAT_ECBHB).
    Exceptions,
    /// The instruction CLRBHB (FEAT_CLRBHB).
    Instruction,
    /// So many rounds of two taken branches each.
    Loop(u8),
    /// Firmware clears it, at each exit.
    Firmware,
    /// Not at all.
    Open,
}

/// What is done about stores that are bypassed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreBypass {
    /// The CPU does not do it.
    NotAffected,
    /// Whoever runs decides by PSTATE.SSBS (FEAT_SSBS); it is safe after each exception, SCTLR_EL2.DSSBS being 0.
    Ssbs,
    /// Firmware has switched it off, for all that runs here.
    Firmware,
    /// Nothing.
    Open,
}

/// What a CPU gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// See [`BranchTargets`].
    pub branch_targets: BranchTargets,
    /// See [`BranchHistory`].
    pub branch_history: BranchHistory,
    /// See [`StoreBypass`].
    pub store_bypass: StoreBypass,
}

/// Which vectors a CPU gets, and so what a guest's exit costs beyond the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VectorTable {
    /// Nothing.
    Plain,
    /// The history is cleared by so many rounds of the loop, or by CLRBHB if that is 0.
    Clearing(u8),
    /// This function of the firmware's is called.
    Calling(u32),
}

/// An implementer and a part number of MIDR_EL1; variant and revision do not matter here.
const fn model(implementer: u64, part: u64) -> u64 {
    implementer << 24 | part << 4
}

const MODEL: u64 = 0xff00_fff0;

const fn arm(part: u64) -> u64 {
    model(0x41, part)
}

const fn qualcomm(part: u64) -> u64 {
    model(0x51, part)
}

/// In-order cores, which predict too little ahead: A35, A53, A55, A510, A520, Brahma B53, the small Kryos.
const IN_ORDER: [u64; 9] = [
    arm(0xd04),
    arm(0xd03),
    arm(0xd05),
    arm(0xd46),
    arm(0xd80),
    model(0x42, 0x100),
    qualcomm(0x801),
    qualcomm(0x803),
    qualcomm(0x805),
];

/// Of these the two newest, and the oldest Kryo, bypass stores.
const BYPASSING: [u64; 3] = [arm(0xd46), arm(0xd80), qualcomm(0x801)];

/// Address translations carried out before their turn fill the TLB for a guest from another guest's registers: the model, and
/// the last variant and revision that does it (MIDR_EL1 bits 23:20 and 3:0). Arm's errata 1319537 of the A57, 1319367 of the
/// A72, 1165522 of the A76 and 1530923 of the A55, the Kryos like it.
const TRANSLATING: [(u64, u64); 5] = [
    (arm(0xd07), 0xff),      // A57
    (arm(0xd08), 0xff),      // A72
    (arm(0xd0b), 0x20),      // A76 to r2p0
    (arm(0xd05), 0x20),      // A55 to r2p0
    (qualcomm(0x805), 0xde), // Kryo 4xx Silver to rdpe
];

/// Whether the CPU whose MIDR_EL1 is `midr` translates addresses before their turn, also while EL2 changes from one guest to
/// another. Stage 1 has to be closed meanwhile.
#[must_use]
pub fn translates_out_of_context(midr: u64) -> bool {
    let revision = midr >> 16 & 0xf0 | midr & 0xf;
    TRANSLATING.iter().any(|&(model, last)| midr & MODEL == model && revision <= last)
}

/// Safe from trained targets without saying so in CSV2: TSV110.
const SEPARATING: [u64; 1] = [model(0x48, 0xd01)];

/// Rounds of the loop by which the history is overwritten.
const ROUNDS: [(u64, u8); 21] = [
    (arm(0xd07), 8),          // A57
    (arm(0xd08), 8),          // A72
    (model(0xc0, 0xac3), 11), // Ampere1
    (arm(0xd0b), 24),         // A76
    (arm(0xd0e), 24),         // A76AE
    (arm(0xd0d), 24),         // A77
    (arm(0xd0c), 24),         // Neoverse N1
    (qualcomm(0x804), 24),    // Kryo 4xx Gold
    (arm(0xd41), 32),         // A78
    (arm(0xd42), 32),         // A78AE
    (arm(0xd4b), 32),         // A78C
    (arm(0xd44), 32),         // X1
    (arm(0xd4c), 32),         // X1C
    (arm(0xd47), 32),         // A710
    (arm(0xd48), 32),         // X2
    (arm(0xd49), 32),         // Neoverse N2
    (arm(0xd40), 32),         // Neoverse V1
    (arm(0xd4d), 38),         // A715
    (arm(0xd81), 38),         // A720
    (arm(0xd4e), 132),        // X3
    (arm(0xd4f), 132),        // Neoverse V2
];

impl Plan {
    /// For the CPU whose MIDR_EL1 is `midr` and whose identification registers are `ids`.
    #[must_use]
    pub fn new(midr: u64, ids: &HostIds, firmware: &Firmware) -> Self {
        let model = midr & MODEL;
        let branch_targets = branch_targets(model, ids, firmware.branch_targets);
        Self {
            branch_targets,
            branch_history: branch_history(model, ids, firmware.branch_history),
            store_bypass: store_bypass(model, ids, firmware.store_bypass),
        }
    }

    /// The vectors for it. A call that makes the CPU forget all targets makes it forget the history too; and where
    /// targets are open, to clear the history would close a window beside an open door.
    #[must_use]
    pub const fn vectors(&self) -> VectorTable {
        match (self.branch_targets, self.branch_history) {
            (_, BranchHistory::Firmware) => VectorTable::Calling(SMCCC_ARCH_WORKAROUND_3),
            (BranchTargets::Firmware, _) => VectorTable::Calling(SMCCC_ARCH_WORKAROUND_1),
            (BranchTargets::NotAffected, BranchHistory::Loop(rounds)) => VectorTable::Clearing(rounds),
            (BranchTargets::NotAffected, BranchHistory::Instruction) => VectorTable::Clearing(0),
            _ => VectorTable::Plain,
        }
    }

    /// What a guest is told of `SMCCC_ARCH_WORKAROUND_1`, `_2` and `_3`, in this order: the words of [`Offer`], by which it
    /// has the same truth as EL2.
    ///
    /// Required is what its call brings about: the exit for it makes the CPU forget. A store bypass that firmware has
    /// switched off needs nothing more; one that PSTATE.SSBS governs is in the guest's own hands, and no call's business.
    #[must_use]
    pub const fn for_guests(&self) -> [Offer; 3] {
        let targets = match self.branch_targets {
            BranchTargets::NotAffected => Offer::NotRequired,
            BranchTargets::Firmware => Offer::Required,
            BranchTargets::Open => Offer::Unknown,
        };
        let bypass = match self.store_bypass {
            StoreBypass::NotAffected | StoreBypass::Firmware => Offer::NotRequired,
            StoreBypass::Ssbs | StoreBypass::Open => Offer::Unknown,
        };
        let history = match (self.branch_history, self.vectors()) {
            (BranchHistory::NotAffected | BranchHistory::Exceptions, _) => Offer::NotRequired,
            (BranchHistory::Open, _) | (_, VectorTable::Plain) => Offer::Unknown,
            _ => Offer::Required,
        };
        [targets, bypass, history]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.branch_targets {
            BranchTargets::NotAffected => "branch targets are no matter",
            BranchTargets::Firmware => "branch targets are forgotten by firmware",
            BranchTargets::Open => "branch targets are OPEN, for firmware offers nothing",
        })?;
        match (self.branch_history, self.vectors()) {
            (BranchHistory::NotAffected, _) => f.write_str(", branch history is no matter"),
            (BranchHistory::Exceptions, _) => f.write_str(", branch history is cleared by exceptions"),
            (BranchHistory::Open, _) | (_, VectorTable::Plain) => f.write_str(", branch history is OPEN"),
            (_, VectorTable::Clearing(0)) => f.write_str(", branch history is cleared by CLRBHB"),
            (_, VectorTable::Clearing(rounds)) => write!(f, ", branch history is cleared by {rounds} rounds"),
            (_, VectorTable::Calling(_)) => f.write_str(", branch history is cleared by firmware"),
        }?;
        f.write_str(match self.store_bypass {
            StoreBypass::NotAffected => ", store bypass is no matter",
            StoreBypass::Ssbs => ", store bypass is PSTATE.SSBS's",
            StoreBypass::Firmware => ", store bypass is switched off by firmware",
            StoreBypass::Open => ", store bypass is OPEN",
        })
    }
}

fn branch_targets(model: u64, ids: &HostIds, offer: Offer) -> BranchTargets {
    if ids.field(fields::PFR0_CSV2) != 0 || IN_ORDER.contains(&model) || SEPARATING.contains(&model) {
        return BranchTargets::NotAffected;
    }
    match offer {
        Offer::NotRequired => BranchTargets::NotAffected,
        Offer::Required => BranchTargets::Firmware,
        Offer::Unknown => BranchTargets::Open,
    }
}

/// A CPU that nothing is known of counts as affected.
fn branch_history(model: u64, ids: &HostIds, offer: Offer) -> BranchHistory {
    if ids.field(fields::PFR0_CSV2) >= 3 || IN_ORDER.contains(&model) || offer == Offer::NotRequired {
        return BranchHistory::NotAffected;
    }
    if ids.field(fields::MMFR1_ECBHB) != 0 {
        return BranchHistory::Exceptions;
    }
    if ids.field(fields::ISAR2_CLRBHB) != 0 {
        return BranchHistory::Instruction;
    }
    match ROUNDS.iter().find(|(known, _)| *known == model) {
        Some(&(_, rounds)) => BranchHistory::Loop(rounds),
        None if offer == Offer::Required => BranchHistory::Firmware,
        None => BranchHistory::Open,
    }
}

fn store_bypass(model: u64, ids: &HostIds, offer: Offer) -> StoreBypass {
    if IN_ORDER.contains(&model) && !BYPASSING.contains(&model) {
        return StoreBypass::NotAffected;
    }
    if ids.field(fields::PFR1_SSBS) != 0 {
        return StoreBypass::Ssbs;
    }
    match offer {
        Offer::NotRequired => StoreBypass::NotAffected,
        Offer::Required => StoreBypass::Firmware,
        Offer::Unknown => StoreBypass::Open,
    }
}

#[cfg(test)]
mod tests {
    use abi::calls::arm::{SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3};
    extern crate std;
    use super::{
        BranchHistory, BranchTargets, Firmware, Offer, Plan, ROUNDS, StoreBypass, VectorTable, arm,
        translates_out_of_context,
    };
    use crate::id::{HostIds, fields, models};
    use std::string::ToString;
    use std::vec::Vec;

    const SILENT: Firmware =
        Firmware { branch_targets: Offer::Unknown, store_bypass: Offer::Unknown, branch_history: Offer::Unknown };
    const HELPFUL: Firmware =
        Firmware { branch_targets: Offer::Required, store_bypass: Offer::Required, branch_history: Offer::Required };
    /// Variant and revision do not matter, as these show.
    const A57: u64 = 0x411f_d070;
    const A72: u64 = 0x410f_d083;
    const A76: u64 = 0x414f_d0b1;
    const N2: u64 = 0x410f_d490;
    const MAX: u64 = 0x000f_0510;

    fn plan(midr: u64, ids: &HostIds, firmware: &Firmware) -> (BranchTargets, BranchHistory, StoreBypass) {
        let plan = Plan::new(midr, ids, firmware);
        (plan.branch_targets, plan.branch_history, plan.store_bypass)
    }

    /// The table of docs/threat-model.md: the supported models on QEMU, whose firmware offers nothing.
    #[test]
    fn the_supported_models() {
        let open = (BranchTargets::Open, BranchHistory::Loop(8), StoreBypass::Open);
        assert_eq!(plan(A57, &models::CORTEX_A57, &SILENT), open);
        assert_eq!(plan(A72, &models::CORTEX_A72, &SILENT), open);
        let a76 = (BranchTargets::NotAffected, BranchHistory::Loop(24), StoreBypass::Ssbs);
        assert_eq!(plan(A76, &models::CORTEX_A76, &SILENT), a76);
        let n2 = (BranchTargets::NotAffected, BranchHistory::Loop(32), StoreBypass::Ssbs);
        assert_eq!(plan(N2, &models::NEOVERSE_N2, &SILENT), n2);
        let max = (BranchTargets::NotAffected, BranchHistory::NotAffected, StoreBypass::Ssbs);
        assert_eq!(plan(MAX, &models::MAX, &SILENT), max);
    }

    /// Each erratum's range has its end; variants count more than revisions.
    #[test]
    fn translations_out_of_context() {
        let affected = [A57, A72, 0x410f_d0b0, 0x411f_d0bf, 0x412f_d0b0, 0x412f_d050, 0x51df_805e];
        let others = [A76, 0x412f_d0b1, 0x413f_d0b0, 0x412f_d051, 0x51df_805f, 0x410f_d034, 0x410f_d0c1, N2, MAX];
        for midr in affected {
            assert!(translates_out_of_context(midr), "{midr:#x}");
        }
        for midr in others {
            assert!(!translates_out_of_context(midr), "{midr:#x}");
        }
    }

    #[test]
    fn firmware_helps_where_it_can() {
        let helped = (BranchTargets::Firmware, BranchHistory::Loop(8), StoreBypass::Firmware);
        assert_eq!(plan(A57, &models::CORTEX_A57, &HELPFUL), helped);
        // A73: no loop is known, so firmware clears the history too.
        let a73 = Plan::new(0x410f_d090, &models::CORTEX_A72, &HELPFUL);
        assert_eq!(a73.branch_history, BranchHistory::Firmware);
        // Nobody asks for help that is not needed.
        let a76 = (BranchTargets::NotAffected, BranchHistory::Loop(24), StoreBypass::Ssbs);
        assert_eq!(plan(A76, &models::CORTEX_A76, &HELPFUL), a76);
        // A72 r1 in disguise: firmware knows better than a register that says nothing.
        let unneeded = Firmware { branch_targets: Offer::NotRequired, ..SILENT };
        assert_eq!(plan(A72, &models::CORTEX_A72, &unneeded).0, BranchTargets::NotAffected);
    }

    #[test]
    fn in_order_cores_are_not_affected() {
        for part in [0xd03, 0xd04, 0xd05] {
            let expected = (BranchTargets::NotAffected, BranchHistory::NotAffected, StoreBypass::NotAffected);
            assert_eq!(plan(arm(part), &models::CORTEX_A57, &HELPFUL), expected, "{part:#x}");
        }
        assert_eq!(plan(arm(0xd46), &models::NEOVERSE_N2, &SILENT).2, StoreBypass::Ssbs);
    }

    /// A feature of the CPU is better than the loop, and each better one than those before it.
    #[test]
    fn features_take_precedence() {
        let mut ids = models::CORTEX_A76;
        let history = |ids: &HostIds| Plan::new(A76, ids, &HELPFUL).branch_history;
        ids.set_field(fields::ISAR2_CLRBHB, 1);
        assert_eq!(history(&ids), BranchHistory::Instruction);
        ids.set_field(fields::MMFR1_ECBHB, 1);
        assert_eq!(history(&ids), BranchHistory::Exceptions);
        ids.set_field(fields::PFR0_CSV2, 2);
        assert_eq!(history(&ids), BranchHistory::Exceptions);
        ids.set_field(fields::PFR0_CSV2, 3);
        assert_eq!(history(&ids), BranchHistory::NotAffected);
    }

    /// What nobody knows is not said to be safe.
    #[test]
    fn an_unknown_cpu_is_open() {
        let open = (BranchTargets::Open, BranchHistory::Open, StoreBypass::Open);
        assert_eq!(plan(0x7f0f_1230, &models::CORTEX_A57, &SILENT), open);
        assert_eq!(Plan::new(0x7f0f_1230, &models::CORTEX_A57, &SILENT).for_guests(), [Offer::Unknown; 3]);
    }

    #[test]
    fn vectors_follow_the_plan() {
        let vectors = |midr, ids: &HostIds, firmware: &Firmware| Plan::new(midr, ids, firmware).vectors();
        assert_eq!(vectors(MAX, &models::MAX, &HELPFUL), VectorTable::Plain);
        assert_eq!(vectors(A76, &models::CORTEX_A76, &SILENT), VectorTable::Clearing(24));
        assert_eq!(vectors(A57, &models::CORTEX_A57, &SILENT), VectorTable::Plain);
        assert_eq!(vectors(A57, &models::CORTEX_A57, &HELPFUL), VectorTable::Calling(SMCCC_ARCH_WORKAROUND_1));
        assert_eq!(vectors(arm(0xd09), &models::CORTEX_A72, &HELPFUL), VectorTable::Calling(SMCCC_ARCH_WORKAROUND_3));
        let mut ids = models::CORTEX_A76;
        ids.set_field(fields::ISAR2_CLRBHB, 1);
        assert_eq!(vectors(A76, &ids, &SILENT), VectorTable::Clearing(0));
    }

    /// A guest that is told that a call is required gets something for it, and one that is told that it is not needs
    /// none.
    #[test]
    fn guests_are_told_the_truth() {
        let told = |midr, ids: &HostIds, firmware: &Firmware| Plan::new(midr, ids, firmware).for_guests();
        let (unknown, required, not) = (Offer::Unknown, Offer::Required, Offer::NotRequired);
        assert_eq!(told(A57, &models::CORTEX_A57, &SILENT), [unknown, unknown, unknown]);
        assert_eq!(told(A57, &models::CORTEX_A57, &HELPFUL), [required, not, required]);
        assert_eq!(told(A76, &models::CORTEX_A76, &SILENT), [not, unknown, required]);
        assert_eq!(told(MAX, &models::MAX, &SILENT), [not, unknown, not]);
        assert_eq!(told(arm(0xd03), &models::CORTEX_A57, &SILENT), [not, not, not]);
        let offers = [unknown, required, not];
        let mut all = Vec::new();
        for (midr, ids) in [A57, A72, A76, N2, MAX, arm(0xd09)].iter().zip(models::ALL.iter().cycle()) {
            for branch_targets in offers {
                for branch_history in offers {
                    let firmware = Firmware { branch_targets, branch_history, store_bypass: unknown };
                    all.push(Plan::new(*midr, ids.1, &firmware));
                }
            }
        }
        for plan in all {
            let [targets, _, history] = plan.for_guests();
            let does_nothing = plan.vectors() == VectorTable::Plain;
            assert!(!does_nothing || (targets != required && history != required), "{plan:?}");
            assert!(plan.branch_history != BranchHistory::Open || history == unknown, "{plan:?}");
        }
    }

    #[test]
    fn the_log_says_it() {
        let said = |midr, ids: &HostIds, firmware: &Firmware| Plan::new(midr, ids, firmware).to_string();
        assert_eq!(
            said(A57, &models::CORTEX_A57, &SILENT),
            "branch targets are OPEN, for firmware offers nothing, branch history is OPEN, store bypass is OPEN"
        );
        assert_eq!(
            said(A76, &models::CORTEX_A76, &SILENT),
            "branch targets are no matter, branch history is cleared by 24 rounds, store bypass is PSTATE.SSBS's"
        );
        assert!(said(A57, &models::CORTEX_A57, &HELPFUL).contains("history is cleared by firmware"));
    }

    #[test]
    fn no_model_has_two_numbers() {
        let mut models: Vec<u64> = ROUNDS.iter().map(|(model, _)| *model).collect();
        models.sort_unstable();
        models.dedup();
        assert_eq!(models.len(), ROUNDS.len());
    }

    #[test]
    fn answers_of_firmware() {
        let expected = [(0, Offer::Required), (1, Offer::NotRequired), (-2, Offer::NotRequired), (-1, Offer::Unknown)];
        for (answer, offer) in expected {
            assert_eq!(Offer::from_answer(answer), offer);
        }
    }
}
