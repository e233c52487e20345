//! Checks the hypervisor's machine code: nothing but the stage before its core calls firmware to start a CPU (P7-A13).
//!
//! The core knows mailboxes alone (`core/bringup`, `el2/stage`). It does call firmware, to switch the machine off and about predictors,
//! so that it has no SMC at all cannot be asked. But no function that has one, or an HVC, may form the number of PSCI's CPU_ON: with
//! 0xc400 as its upper half, which all of PSCI's 64-bit functions have, or as 0x84000003. That the stage forms it beside an SMC is
//! asked, too: else nothing was looked at.

use anyhow::{Result, bail, ensure};
use std::collections::HashMap;

use crate::branches::Code;

/// SMC #0 and HVC #0.
const CALLS: [u32; 2] = [0xd400_0003, 0xd400_0002];
/// MOVK of a 32-bit register, with a shift of 16, by the immediate; the register is in the lowest five bits.
const fn upper_half(immediate: u32) -> u32 {
    0x72a0_0000 | immediate << 5
}
/// MOVZ of 3.
const MOVE_3: u32 = 0x5280_0060;
/// What the names of the stage's functions have in them.
const STAGE: &str = "stage..";

/// Checks the hypervisor's ELF file.
///
/// # Errors
/// Names each function that could start a CPU.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let code = Code::read(elf)?;
    judge(&code.words, |at| code.name_at(at))
}

fn judge<'c>(words: &HashMap<u64, u32>, name_at: impl Fn(u64) -> Option<&'c str>) -> Result<()> {
    // By function: whether it calls, and whether it forms the number.
    let mut functions: HashMap<&str, (bool, bool)> = HashMap::new();
    for (&at, &word) in words {
        let (calls, forms) = (CALLS.contains(&word), forms_start(words, at, word));
        if calls || forms {
            let function = functions.entry(name_at(at).unwrap_or("?")).or_default();
            *function = (function.0 | calls, function.1 | forms);
        }
    }
    let mut starting: Vec<&str> =
        functions.iter().filter(|(_, both)| **both == (true, true)).map(|(&name, _)| name).collect();
    starting.sort_unstable();
    ensure!(
        starting.iter().any(|name| name.contains(STAGE)),
        "no function of the stage calls firmware to start a CPU: nothing was looked at"
    );
    starting.retain(|name| !name.contains(STAGE));
    if !starting.is_empty() {
        bail!("these can call firmware to start a CPU, and are not the stage's: {}", starting.join(", "));
    }
    Ok(())
}

/// Whether the instruction `word` at `at` completes a number by which PSCI is asked to start a CPU.
fn forms_start(words: &HashMap<u64, u32>, at: u64, word: u32) -> bool {
    let register = word & 0x1f;
    match word & !0x1f {
        upper if upper == upper_half(0xc400) => true,
        upper if upper == upper_half(0x8400) => {
            (1..=4).any(|back| words.get(&at.wrapping_sub(4 * back)) == Some(&(MOVE_3 | register)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;

    /// Functions of eight instructions each, by their names.
    fn judged(functions: &[(&'static str, &[u32])]) -> Result<(), String> {
        let words = functions.iter().zip((0_u64..).step_by(32)).flat_map(|((_, code), start)| {
            let all = code.iter().copied().chain([NOP].into_iter().cycle()).take(8);
            (start..).step_by(4).zip(all).collect::<Vec<_>>()
        });
        let name = |at: u64| functions.get(at as usize / 32).map(|(name, _)| *name);
        judge(&words.collect(), name).map_err(|error| error.to_string())
    }

    #[test]
    fn p7_a13_only_the_stage_may_start_cpus() {
        let start_64 = [MOVE_3 | 8, upper_half(0xc400) | 8, CALLS[0]];
        let start_32 = [MOVE_3 | 8, NOP, upper_half(0x8400) | 8, CALLS[1]];
        let off = [0x5280_0100, upper_half(0x8400), CALLS[0]];
        let stage = ("$LT$stage..Host$GT$4send", start_64.as_slice());
        assert_eq!(judged(&[stage, ("power_off", &off), ("guest", &start_64[..2])]), Ok(()));
        let others = "these can call firmware to start a CPU, and are not the stage's: other";
        assert_eq!(judged(&[stage, ("other", &start_64)]), Err(others.to_owned()));
        assert_eq!(judged(&[stage, ("other", &start_32)]), Err(others.to_owned()));
        // Another register has the 3.
        assert_eq!(judged(&[stage, ("other", &[MOVE_3, upper_half(0x8400) | 8, CALLS[0]])]), Ok(()));
        let nothing = "no function of the stage calls firmware to start a CPU: nothing was looked at";
        assert_eq!(judged(&[("power_off", &off)]), Err(nothing.to_owned()));
    }
}
