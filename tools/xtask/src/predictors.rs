//! Checks the hypervisor's machine code: the vectors do what keeps a guest's predictions from EL2.
//!
//! QEMU predicts nothing, so no run shows whether a guest's branch history is overwritten, firmware called, or speculation stopped
//! behind the end of a path; the code does. `el2/hw/src/vectors.rs` says what each is for.

use anyhow::{Context, Result, ensure};

use crate::branches::Code;

/// How the branch history is overwritten, as values under masks: CLRBHB; the CPU's area, the rounds, none; a branch to the next
/// instruction for each round; DSB NSH and ISB.
const CLEARING: [(u32, u32); 9] = [
    (0xd503_22df, !0),
    (0xd280_0001, 0xff80_001f),
    (0xf940_0022, 0xffc0_03ff),
    (0xb400_0002, 0xff00_001f),
    (0x1400_0001, !0),
    (0xf100_0442, !0),
    (0x54ff_ffc1, !0),
    (DSB_NSH, !0),
    (ISB, !0),
];
const DSB_NSH: u32 = 0xd503_379f;
const ISB: u32 = 0xd503_3fdf;
const ERET: u32 = 0xd69f_03e0;
const SMC_0: u32 = 0xd400_0003;
/// CBNZ X0, whatever its target.
const CBNZ_X0: u32 = 0xb500_0000;
/// Offsets in a table of vectors: those for exceptions from a lower EL, 32 instructions each.
const LOWER: std::ops::Range<u64> = 0x400..0x800;
const ENTRY: usize = 0x80;
/// So many instructions a path of an exit has at most.
const PATH: u64 = 128;

/// Checks the hypervisor's ELF file.
///
/// # Errors
/// What is missing, and where.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let code = Code::read(elf)?;
    for name in ["leave_clearing", "forget_branch_history"] {
        let at = address(&code, name)?;
        ensure!(clears(&code, at), "{name} at {at:#x} does not overwrite the branch history");
    }
    // What leaves the short path goes by there.
    let (path, leave) = (address(&code, "guest_exit_clearing")?, address(&code, "leave_clearing")?);
    ensure!(
        (path..).step_by(4).take(PATH as usize).any(|at| leads_to(&code, at, leave)),
        "guest_exit_clearing does not leave by leave_clearing"
    );
    let table = address(&code, "exception_vectors_calling")?;
    for at in LOWER.step_by(ENTRY).map(|offset| table + offset) {
        ensure!(calls(&code, at), "the vector at {at:#x} does not call firmware");
    }
    let ends = ends(&code);
    let returns = ends.iter().filter(|at| code.words.get(at) == Some(&ERET)).count();
    // The vectors' three, and the ends of functions: if there are fewer, they were not recognised.
    ensure!(returns >= 3 && ends.len() >= 9, "{returns} ERET were found, and {} ends of assembly in all", ends.len());
    barriers(&code, &ends)
}

/// Checks that barriers stand behind each end of assembly. The image with checks has assembly of its own.
///
/// # Errors
/// Names where there are none.
pub(crate) fn check_barriers(elf: &[u8]) -> Result<()> {
    let code = Code::read(elf)?;
    barriers(&code, &ends(&code))
}

/// Where control leaves assembly for where a register says and does not come back: each RET, BR and ERET there is. Functions of the
/// compiler's have none behind theirs (decision 0022), but no ERET either.
fn ends(code: &Code) -> Vec<u64> {
    let ends = code.words.iter().filter(|&(&at, &word)| word == ERET || is_end(word) && code.is_assembly(at));
    let mut ends: Vec<u64> = ends.map(|(&at, _)| at).collect();
    ends.sort_unstable();
    ends
}

/// Whether a word is RET, BR or ERET, with or without authentication (DDI 0487 C4.1.91, "Unconditional branch (register)").
fn is_end(word: u32) -> bool {
    word >> 25 == 0b110_1011 && matches!(word >> 21 & 0xf, 0 | 2 | 4 | 8)
}

fn barriers(code: &Code, ends: &[u64]) -> Result<()> {
    for &at in ends {
        let name = code.name_at(at).unwrap_or("?");
        ensure!(stops(code, at), "the end of {name} at {at:#x} is not followed by DSB NSH and ISB");
    }
    Ok(())
}

fn address(code: &Code, name: &str) -> Result<u64> {
    code.address_of(name).with_context(|| format!("no {name} in the hypervisor's symbols"))
}

fn clears(code: &Code, at: u64) -> bool {
    let found = |(place, (value, mask))| code.words.get(&place).is_some_and(|word| word & mask == value);
    (at..).step_by(4).zip(CLEARING).all(found)
}

/// Whether at `at` there is a CBNZ of X0 to `target`.
fn leads_to(code: &Code, at: u64, target: u64) -> bool {
    let distance = target.wrapping_sub(at) >> 2 & 0x7_ffff;
    code.words.get(&at) == Some(&(CBNZ_X0 | (distance as u32) << 5))
}

/// Whether the vector at `at` calls firmware before it branches to the path of an exit.
fn calls(code: &Code, at: u64) -> bool {
    let mut words = (at..).step_by(4).take(ENTRY / 4).map_while(|at| code.words.get(&at));
    words.by_ref().take_while(|word| **word >> 26 != 0b00_0101).any(|word| *word == SMC_0)
}

fn stops(code: &Code, at: u64) -> bool {
    [DSB_NSH, ISB].into_iter().zip([4, 8]).all(|(word, behind)| code.words.get(&(at + behind)) == Some(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;

    fn code(words: &[u32]) -> Code {
        Code::of((0x1000..).step_by(4).zip(words.iter().copied()))
    }

    #[test]
    fn each_part_of_the_clearing_is_missed() {
        // movz x1, #0x7f00, lsl #32; ldr x2, [x1, #0x48]; cbz x2, . + 16
        let whole =
            [0xd503_22df, 0xd2cf_e001, 0xf940_2422, 0xb400_0082, 0x1400_0001, 0xf100_0442, 0x54ff_ffc1, DSB_NSH, ISB];
        assert!(clears(&code(&whole), 0x1000) && !clears(&code(&whole), 0x1004));
        for missing in 0..whole.len() {
            let mut words = whole;
            words[missing] = NOP;
            assert!(!clears(&code(&words), 0x1000), "without {:#x}", whole[missing]);
        }
        assert!(!clears(&code(&whole[..8]), 0x1000));
    }

    #[test]
    fn a_vector_that_does_not_call_first_is_found() {
        let mut words = [NOP; 32];
        (words[7], words[10]) = (SMC_0, 0x1400_0010);
        assert!(calls(&code(&words), 0x1000));
        words.swap(7, 11);
        assert!(!calls(&code(&words), 0x1000));
        words[11] = NOP;
        assert!(!calls(&code(&words), 0x1000));
    }

    #[test]
    fn a_way_out_and_what_stands_behind_it() {
        // cbnz x0, . + 0x10; cbnz x1, . + 0x10; cbnz x0, . - 8
        let words = code(&[0xb500_0080, 0xb500_0081, 0xb5ff_ffc0, ERET, DSB_NSH, ISB, ERET, ISB, DSB_NSH]);
        assert!(leads_to(&words, 0x1000, 0x1010) && !leads_to(&words, 0x1000, 0x1014));
        assert!(!leads_to(&words, 0x1004, 0x1014) && leads_to(&words, 0x1008, 0x1000));
        assert!(stops(&words, 0x100c) && !stops(&words, 0x1018));
    }

    #[test]
    fn each_end_of_assembly_needs_barriers_and_none_of_compiled_code() {
        // ret; br x14; eret; retaa; braa x16, x17
        for end in [0xd65f_03c0, 0xd61f_01c0, ERET, 0xd65f_0bff, 0xd71f_0a11] {
            let right = code(&[NOP, end, DSB_NSH, ISB]);
            assert_eq!(ends(&right), [0x1004], "{end:#x}");
            assert!(barriers(&right, &ends(&right)).is_ok(), "{end:#x}");
            for behind in [[NOP, ISB], [DSB_NSH, NOP], [ISB, DSB_NSH]] {
                let lost = code(&[NOP, end, behind[0], behind[1]]);
                assert!(barriers(&lost, &ends(&lost)).is_err(), "{end:#x}, {behind:x?}");
            }
            let compiled = code(&[NOP, end, NOP, end]).with_function(0x1000, 0x1008);
            let expected: &[u64] = if end == ERET { &[0x1004, 0x100c] } else { &[0x100c] };
            assert_eq!(ends(&compiled), expected, "{end:#x}");
        }
        // blr x9; b . + 8; isb
        assert!(ends(&code(&[0xd63f_0120, 0x1400_0002, ISB])).is_empty());
    }
}
