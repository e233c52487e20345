//! What a guest knows of its CPU beside its features: it reads it once, when it starts, and acts upon it for life.
//!
//! A kernel works around the errata of the CPU that MIDR_EL1 names; it, and every process with code of its own, keeps caches coherent by
//! the lines and rules of CTR_EL0; memory is zeroed by blocks of the size in DCZID_EL0; and firmware was asked which workarounds for
//! speculation are needed. All of that is the host's, the same for all its VMs. So a VM that knows another CPU does not go on here:
//! it would miss a workaround, execute what is stale, or leave bytes as they are.

use core::fmt;

use pack::value;

/// What a guest knows of its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SavedCpu {
    /// MIDR_EL1.
    pub midr: u64,
    /// CTR_EL0.
    pub cache_type: u64,
    /// DCZID_EL0.
    pub zero_block: u64,
    /// What it is answered for SMCCC_ARCH_WORKAROUND_1, 2 and 3: 0, call it; 1, no need to; all ones, not supported.
    pub workarounds: [u32; 3],
}

value!(SavedCpu { midr, cache_type, zero_block, workarounds });

/// CTR_EL0.IminLine, L1Ip, DminLine, IDC and DIC: the others are of no consequence to what is right.
const CACHE_TYPE: u64 = 0xf | 3 << 14 | 0xf << 16 | 1 << 28 | 1 << 29;
/// DCZID_EL0.BS and DZP.
const ZERO_BLOCK: u64 = 0x1f;

/// Something that a guest knows otherwise of its CPU: as it was saved, and as it is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuDifference {
    /// MIDR_EL1.
    Kind(u64, u64),
    /// CTR_EL0.
    Caches(u64, u64),
    /// DCZID_EL0.
    ZeroBlock(u64, u64),
    /// The answer for the workaround of this number.
    Workaround(usize, u32, u32),
}

impl fmt::Display for CpuDifference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kind(saved, here) => write!(
                out,
                "its guest works around the errata of a CPU whose MIDR_EL1 is {saved:#x}, here it is {here:#x}: a CPU of the \
                 same kind and revision is right"
            ),
            Self::Caches(saved, here) => write!(
                out,
                "its guest keeps caches coherent by a CTR_EL0 of {saved:#x}, here it is {here:#x}: a CPU with the same lines, \
                 L1Ip, IDC and DIC is right"
            ),
            Self::ZeroBlock(saved, here) => write!(
                out,
                "its guest zeroes memory by a DCZID_EL0 of {saved:#x}, here it is {here:#x}: a CPU with the same block is right"
            ),
            Self::Workaround(number, saved, here) => write!(
                out,
                "its guest was told that SMCCC_ARCH_WORKAROUND_{number} is {}, here it is {}: the same CPU and firmware are right",
                answer(saved),
                answer(here)
            ),
        }
    }
}

impl core::error::Error for CpuDifference {}

const fn answer(answer: u32) -> &'static str {
    match answer {
        0 => "to be called",
        1 => "not needed",
        _ => "not there",
    }
}

impl SavedCpu {
    /// All that a guest of this CPU knows otherwise than one of `here`.
    pub fn differences(&self, here: &Self) -> impl Iterator<Item = CpuDifference> {
        let Self { midr, cache_type, zero_block, workarounds } = *self;
        let registers = [
            (midr ^ here.midr != 0, CpuDifference::Kind(midr, here.midr)),
            ((cache_type ^ here.cache_type) & CACHE_TYPE != 0, CpuDifference::Caches(cache_type, here.cache_type)),
            ((zero_block ^ here.zero_block) & ZERO_BLOCK != 0, CpuDifference::ZeroBlock(zero_block, here.zero_block)),
        ];
        let answers = (1..).zip(workarounds.into_iter().zip(here.workarounds));
        let answers =
            answers.map(|(number, (saved, here))| (saved != here, CpuDifference::Workaround(number, saved, here)));
        registers.into_iter().chain(answers).filter_map(|(differs, difference)| differs.then_some(difference))
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuDifference, SavedCpu};
    use std::string::ToString;
    use std::vec::Vec;

    const CPU: SavedCpu =
        SavedCpu { midr: 0x410f_d083, cache_type: 0x8444_c004, zero_block: 4, workarounds: [0, 1, u32::MAX] };

    #[test]
    fn each_difference_is_said_with_both_values() {
        let all = |here: SavedCpu| CPU.differences(&here).map(|difference| difference.to_string()).collect::<Vec<_>>();
        assert_eq!(all(CPU), Vec::<&str>::new());
        let expected = [
            "its guest works around the errata of a CPU whose MIDR_EL1 is 0x410fd083, here it is 0x411fd084: a CPU of the same \
             kind and revision is right",
            "its guest keeps caches coherent by a CTR_EL0 of 0x8444c004, here it is 0xb444c004: a CPU with the same lines, L1Ip, \
             IDC and DIC is right",
            "its guest zeroes memory by a DCZID_EL0 of 0x4, here it is 0x14: a CPU with the same block is right",
            "its guest was told that SMCCC_ARCH_WORKAROUND_1 is to be called, here it is not there: the same CPU and firmware \
             are right",
            "its guest was told that SMCCC_ARCH_WORKAROUND_2 is not needed, here it is to be called: the same CPU and firmware \
             are right",
        ];
        let here = SavedCpu {
            midr: 0x411f_d084,
            cache_type: 0xb444_c004,
            zero_block: 0x14,
            workarounds: [u32::MAX, 0, u32::MAX],
        };
        assert_eq!(all(here), expected);
    }

    /// Each bit of a register makes a difference, or is of no consequence: ERG and CWG, the lines of tags, reserved ones.
    #[test]
    fn what_is_of_no_consequence_makes_no_difference() {
        for bit in 0..64 {
            let found: Vec<_> = CPU.differences(&SavedCpu { cache_type: CPU.cache_type ^ 1 << bit, ..CPU }).collect();
            let matters = matches!(bit, 0..4 | 14..20 | 28 | 29);
            assert_eq!(!found.is_empty(), matters, "CTR_EL0, bit {bit}: {found:?}");
            let found: Vec<_> = CPU.differences(&SavedCpu { zero_block: CPU.zero_block ^ 1 << bit, ..CPU }).collect();
            assert_eq!(!found.is_empty(), bit < 5, "DCZID_EL0, bit {bit}: {found:?}");
            let here = CPU.midr ^ 1 << bit;
            let found: Vec<_> = CPU.differences(&SavedCpu { midr: here, ..CPU }).collect();
            assert_eq!(found, [CpuDifference::Kind(CPU.midr, here)]);
        }
    }
}
