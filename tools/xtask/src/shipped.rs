//! Checks the image that ships: it contains none of the checks that the other image has (`el2/checks`).
//!
//! The hooks of the run loop and of the interrupt path are a type's functions, which the shipped image's type leaves empty; so neither
//! their names may be left, nor the words of the command line that start them (all of `abi::check_arguments`), nor what of the
//! hypervisor's functions only checks call (`hooks.rs`).

use crate::hooks;
use crate::tree::Tree;
use abi::check_arguments;
use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};

/// What names of functions and data of the checks have in them: their crate, the module of `hw` that is theirs, and what is written in
/// assembly for them.
const NAMES: [&str; 5] =
    ["undercroft_checks", "selftest", "increment_through_held", "before_add_pair", "forced_add_pair"];

/// Checks the ELF file of the hypervisor that ships, beside that of the one with checks, in which the same must be found:
/// otherwise this has looked for the wrong things.
///
/// # Errors
/// Names what is there and should not be, or is not there and should.
pub(crate) fn check(tree: &Tree, shipped: &[u8], checks: &[u8]) -> Result<()> {
    // As a symbol has them, with their lengths; some are inlined where they are used.
    let own: Vec<String> = hooks::find(tree)?.names.iter().map(|name| format!("{}{name}", name.len())).collect();
    let (found, sought) = (traces(shipped, &own)?, traces(checks, &own)?);
    ensure!(found.is_empty(), "the image that ships has something of the checks in it: {}", found.join(", "));
    let is_sought = |name: &str| sought.iter().any(|found| found.contains(name));
    let missing: Vec<&str> =
        NAMES.into_iter().chain(check_arguments::words()).filter(|name| !is_sought(name)).collect();
    ensure!(missing.is_empty(), "not found in the image with checks, so looked for in vain: {}", missing.join(", "));
    ensure!(
        own.iter().filter(|name| is_sought(name)).count() > 5,
        "of the hypervisor's functions for checks nearly none is found in the image with checks: {}",
        own.join(", ")
    );
    Ok(())
}

/// Everything of the checks that is in a program; `own` is what of the hypervisor's crates is theirs.
fn traces(elf: &[u8], own: &[String]) -> Result<Vec<String>> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf).context("no 64-bit ELF file")?;
    let mut found = Vec::new();
    for symbol in file.symbols() {
        let name = symbol.name()?;
        let is_ours = ["2hw", "10undercroft"].iter().any(|crate_| name.contains(crate_));
        if NAMES.iter().any(|part| name.contains(part)) || is_ours && own.iter().any(|part| name.contains(part)) {
            found.push(format!("the symbol {name}"));
        }
    }
    for section in file.sections().filter(|section| matches!(section.name(), Ok(".rodata" | ".data" | ".text"))) {
        let bytes = section.data()?;
        for text in check_arguments::words() {
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(format!("the text {text:?} in {}", section.name()?));
            }
        }
    }
    found.sort();
    Ok(found)
}
