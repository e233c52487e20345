//! Names of features, for people (DDI 0487 A2 and D24.2): which value of which field of an identification register says which.

use super::field::registers::{ISAR0, ISAR1, ISAR2, MMFR1, MMFR2, PFR0, PFR1};
use super::field::signed;

/// A register, the lowest bit of a field, and the features that its values add, each with the first one that has it.
type Row = (usize, u32, &'static [(i8, &'static str)]);

const ROWS: &[Row] = &[
    (PFR0, 16, &[(0, "FEAT_FP"), (1, "FEAT_FP16")]),
    (PFR0, 20, &[(0, "FEAT_AdvSIMD"), (1, "FEAT_FP16")]),
    (PFR0, 48, &[(1, "FEAT_DIT")]),
    (PFR0, 56, &[(1, "FEAT_CSV2"), (2, "FEAT_CSV2_2"), (3, "FEAT_CSV2_3")]),
    (PFR0, 60, &[(1, "FEAT_CSV3")]),
    (PFR1, 0, &[(1, "FEAT_BTI")]),
    (PFR1, 4, &[(1, "FEAT_SSBS"), (2, "FEAT_SSBS2")]),
    (ISAR0, 4, &[(1, "FEAT_AES"), (2, "FEAT_PMULL")]),
    (ISAR0, 8, &[(1, "FEAT_SHA1")]),
    (ISAR0, 12, &[(1, "FEAT_SHA256"), (2, "FEAT_SHA512")]),
    (ISAR0, 16, &[(1, "FEAT_CRC32")]),
    (ISAR0, 20, &[(2, "FEAT_LSE"), (3, "FEAT_LSE128")]),
    (ISAR0, 28, &[(1, "FEAT_RDM")]),
    (ISAR0, 32, &[(1, "FEAT_SHA3")]),
    (ISAR0, 36, &[(1, "FEAT_SM3")]),
    (ISAR0, 40, &[(1, "FEAT_SM4")]),
    (ISAR0, 44, &[(1, "FEAT_DotProd")]),
    (ISAR0, 48, &[(1, "FEAT_FHM")]),
    (ISAR0, 52, &[(1, "FEAT_FlagM"), (2, "FEAT_FlagM2")]),
    (ISAR0, 56, &[(1, "FEAT_TLBIOS"), (2, "FEAT_TLBIRANGE")]),
    (ISAR0, 60, &[(1, "FEAT_RNG")]),
    (ISAR1, 0, &[(1, "FEAT_DPB"), (2, "FEAT_DPB2")]),
    (ISAR1, 4, &[(1, "FEAT_PACQARMA5")]),
    (ISAR1, 8, &[(1, "FEAT_PACIMP")]),
    (ISAR1, 12, &[(1, "FEAT_JSCVT")]),
    (ISAR1, 16, &[(1, "FEAT_FCMA")]),
    (ISAR1, 20, &[(1, "FEAT_LRCPC"), (2, "FEAT_LRCPC2"), (3, "FEAT_LRCPC3")]),
    (ISAR1, 32, &[(1, "FEAT_FRINTTS")]),
    (ISAR1, 36, &[(1, "FEAT_SB")]),
    (ISAR1, 40, &[(1, "FEAT_SPECRES"), (2, "FEAT_SPECRES2")]),
    (ISAR1, 44, &[(1, "FEAT_BF16"), (2, "FEAT_EBF16")]),
    (ISAR1, 48, &[(1, "FEAT_DGH")]),
    (ISAR1, 52, &[(1, "FEAT_I8MM")]),
    (ISAR1, 56, &[(1, "FEAT_XS")]),
    (ISAR2, 0, &[(2, "FEAT_WFxT")]),
    (ISAR2, 4, &[(1, "FEAT_RPRES")]),
    (ISAR2, 12, &[(1, "FEAT_PACQARMA3")]),
    (ISAR2, 16, &[(1, "FEAT_MOPS")]),
    (ISAR2, 20, &[(1, "FEAT_HBC")]),
    (ISAR2, 28, &[(1, "FEAT_CLRBHB")]),
    (ISAR2, 48, &[(1, "FEAT_RPRFM")]),
    (ISAR2, 52, &[(1, "FEAT_CSSC")]),
    (MMFR1, 0, &[(1, "FEAT_HAFDBS")]),
    (MMFR1, 12, &[(1, "FEAT_HPDS"), (2, "FEAT_HPDS2")]),
    (MMFR1, 16, &[(1, "FEAT_LOR")]),
    (MMFR1, 20, &[(1, "FEAT_PAN"), (2, "FEAT_PAN2"), (3, "FEAT_PAN3")]),
    (MMFR1, 44, &[(1, "FEAT_AFP")]),
    (MMFR2, 0, &[(1, "FEAT_TTCNP")]),
    (MMFR2, 4, &[(1, "FEAT_UAO")]),
    (MMFR2, 8, &[(1, "FEAT_LSMAOC")]),
    (MMFR2, 12, &[(1, "FEAT_IESB")]),
    (MMFR2, 16, &[(1, "FEAT_LVA")]),
    (MMFR2, 28, &[(1, "FEAT_TTST")]),
    (MMFR2, 32, &[(1, "FEAT_LSE2")]),
    (MMFR2, 36, &[(1, "FEAT_IDST")]),
    (MMFR2, 48, &[(1, "FEAT_TTL")]),
    (MMFR2, 60, &[(1, "FEAT_E0PD")]),
];

/// The features by which the field at `shift` of the register at `index` is one with the value `before`, or `after`, and not with the
/// other one: each with whether it is lost.
pub fn features(index: usize, shift: u32, before: u64, after: u64) -> impl Iterator<Item = (&'static str, bool)> {
    let row = ROWS.iter().find(|row| (row.0, row.1) == (index, shift));
    let (before, after) = (value(shift, before), value(shift, after));
    let named = row.map_or(&[][..], |row| row.2).iter().rev();
    named.filter_map(move |&(first, name)| match (before >= first, after >= first) {
        (true, false) => Some((name, true)),
        (false, true) => Some((name, false)),
        (true, true) | (false, false) => None,
    })
}

/// A value of a field. Only FP and AdvSIMD of ID_AA64PFR0_EL1 are signed of those that have names here.
fn value(shift: u32, bits: u64) -> i8 {
    if matches!(shift, 16 | 20) && bits == 0xf { signed(bits) } else { bits as i8 }
}
