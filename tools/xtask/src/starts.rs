//! Checks the hypervisor's machine code: a CPU drops old translations and instructions before its MMU is switched on.
//!
//! After a warm start or kexec a CPU may still hold translations for VMIDs that guests get now, and instructions of the
//! program that ran before. QEMU keeps neither, so no run shows whether they are dropped; the code does: shortly before
//! each write of SCTLR_EL2 there are, in this order, TLBI ALLE1, IC IALLU, and the barriers that wait for both.

use anyhow::{Result, ensure};
use std::collections::HashMap;

use crate::branches::Code;

/// The ways to start: the boot CPU's and that of all others.
const WAYS: usize = 2;
/// So many instructions before the write the clearing lies at most.
const NEAR: u64 = 24;
const TLBI_ALLE1: u32 = 0xd50c_879f;
const IC_IALLU: u32 = 0xd508_751f;
const DSB_NSH: u32 = 0xd503_379f;
const ISB: u32 = 0xd503_3fdf;
/// MSR SCTLR_EL2 of X0; the other registers follow.
const MSR_SCTLR_EL2: u32 = 0xd51c_1000;

/// Checks the hypervisor's ELF file.
///
/// # Errors
/// Names each place that turns the MMU on with old contents.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let places = places(&Code::read(elf)?.words);
    ensure!(places.len() >= WAYS, "SCTLR_EL2 is written at {} places; {WAYS} were expected", places.len());
    for (at, clear) in places {
        ensure!(clear, "{at:#x} writes SCTLR_EL2 without TLBI ALLE1, IC IALLU, DSB NSH and ISB before it");
    }
    Ok(())
}

/// Where SCTLR_EL2 is written, and whether old contents are dropped before.
fn places(words: &HashMap<u64, u32>) -> Vec<(u64, bool)> {
    let writes = words.iter().filter(|(_, word)| **word & !0x1f == MSR_SCTLR_EL2);
    let mut places: Vec<_> = writes.map(|(&at, _)| (at, is_clear(words, at))).collect();
    places.sort_unstable();
    places
}

fn is_clear(words: &HashMap<u64, u32>, write: u64) -> bool {
    let mut before = (1..=NEAR).filter_map(|back| words.get(&write.checked_sub(back * 4)?));
    // Backwards; each is looked for from where the one before it was found.
    before.any(|word| *word == ISB)
        && before.any(|word| *word == DSB_NSH)
        && before.any(|word| *word == IC_IALLU)
        && before.any(|word| *word == TLBI_ALLE1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_without_clearing_is_found() {
        const NOP: u32 = 0xd503_201f;
        let write = MSR_SCTLR_EL2 | 4;
        let whole = [TLBI_ALLE1, IC_IALLU, DSB_NSH, ISB, NOP, write, ISB];
        let judged = |code: &[u32]| places(&(0x1000..).step_by(4).zip(code.iter().copied()).collect());
        assert_eq!(judged(&whole), [(0x1014, true)]);
        for missing in 0..4 {
            let mut code = whole;
            code[missing] = NOP;
            assert_eq!(judged(&code), [(0x1014, false)], "without {:#x}", whole[missing]);
        }
        assert_eq!(judged(&[NOP, ISB]), []);
    }
}
