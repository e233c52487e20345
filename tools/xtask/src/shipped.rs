//! Checks the image that ships: it contains none of the checks that the other image has (`el2/checks`).
//!
//! The hooks of the run loop and of the interrupt path are a type's functions, which the shipped image's type leaves empty; so
//! neither their names may be left, nor the words of the command line that start them.

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};

/// What names of functions and data of the checks have in them.
const NAMES: [&str; 9] = [
    "undercroft_checks",
    "selftest",
    "crash_test",
    "disturbance",
    "increment_through_held",
    "before_add_pair",
    "forced_add_pair",
    "nudge_self",
    "TAKES_NOTHING",
];
/// What the checks' texts have in them.
const TEXTS: [&str; 6] = ["selftest", "crash-", "percpu", "wander", "tdcc=", "vectors="];

/// Checks the ELF file of the hypervisor that ships, beside that of the one with checks, in which the same must be found:
/// otherwise this has looked for the wrong things.
///
/// # Errors
/// Names what is there and should not be, or is not there and should.
pub(crate) fn check(shipped: &[u8], checks: &[u8]) -> Result<()> {
    let (found, sought) = (traces(shipped)?, traces(checks)?);
    ensure!(found.is_empty(), "the image that ships has something of the checks in it: {}", found.join(", "));
    let missing: Vec<&str> =
        NAMES.iter().chain(&TEXTS).copied().filter(|name| !sought.iter().any(|found| found.contains(name))).collect();
    ensure!(missing.is_empty(), "not found in the image with checks, so looked for in vain: {}", missing.join(", "));
    Ok(())
}

/// Everything of the checks that is in a program.
fn traces(elf: &[u8]) -> Result<Vec<String>> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf).context("no 64-bit ELF file")?;
    let mut found = Vec::new();
    for symbol in file.symbols() {
        let name = symbol.name()?;
        if NAMES.iter().any(|part| name.contains(part)) {
            found.push(format!("the symbol {name}"));
        }
    }
    for section in file.sections().filter(|section| matches!(section.name(), Ok(".rodata" | ".data" | ".text"))) {
        let bytes = section.data()?;
        for text in TEXTS {
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(format!("the text {text:?} in {}", section.name()?));
            }
        }
    }
    found.sort();
    Ok(found)
}
