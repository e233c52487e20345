//! The tools by which tests make file systems and look at them afterwards: Debian's e2fsprogs, as they are.
//!
//! Most computers have them. The tests take these all the same, so that a scenario of a disk never depends on what a computer has.

use super::apt::Archive;
use super::own_architecture;
use super::program::{self, Starter};
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::process::Command;

const PROGRAMS: [&str; 3] = ["mke2fs", "e2fsck", "debugfs"];

/// Whether all of them are there.
pub(crate) fn are_there(tree: &Tree) -> bool {
    PROGRAMS.iter().all(|program| tree.store("bin").join(program).is_file())
}

/// Makes sure that they are.
pub(crate) fn provide(tree: &Tree) -> Result<()> {
    if are_there(tree) {
        return Ok(());
    }
    println!("e2fsprogs: unpacking Debian's");
    let archive = Archive::open(tree, "tools", own_architecture()?, &["trixie", "trixie-backports"])?;
    program::unpack(tree, "e2fsprogs", &archive.download_closure("trixie", &["e2fsprogs"])?)?;
    for program in PROGRAMS {
        let variable = "MKE2FS_CONFIG=\"$here/etc/mke2fs.conf\"";
        program::write_starter(
            tree,
            "e2fsprogs",
            &Starter { program, folder: "usr/sbin", libraries: "lib", variable, words: "" },
        )?;
        // It says its version on standard error.
        let said = Command::new(tree.store("bin").join(program)).arg("-V").output();
        let said = said.with_context(|| format!("the {program} just unpacked"))?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains(program), "the {program} just unpacked says {said:?}");
    }
    println!("e2fsprogs: {} are there", PROGRAMS.join(", "));
    Ok(())
}
