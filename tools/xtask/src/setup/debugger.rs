//! gdb for arm64, for the tests of what CONTRIBUTING and the manual tell to do with it.

use super::apt::Archive;
use super::own_architecture;
use super::program::{self, Starter};
use crate::tree::{self, Tree};
use anyhow::{Context, Result, ensure};
use std::process::Command;

const PROGRAM: &str = "gdb-multiarch";

/// Whether the one that was unpacked is there. One that is installed is not asked: its version is not known.
pub(crate) fn is_there(tree: &Tree) -> bool {
    tree.store("bin").join(PROGRAM).is_file()
}

/// Makes sure that there is one.
pub(crate) fn provide(tree: &Tree) -> Result<()> {
    if is_there(tree) {
        return Ok(());
    }
    println!("gdb: unpacking Debian's");
    let archive = Archive::open(tree, "tools", own_architecture()?, &["trixie", "trixie-backports"])?;
    program::unpack(tree, "gdb", &archive.download_closure("trixie", &[PROGRAM])?)?;
    let words = "-data-directory \"$here/usr/share/gdb\"";
    let (folder, libraries) = ("usr/bin", "usr/lib");
    let variable = "PYTHONHOME=\"$here/usr\"";
    program::write_starter(tree, "gdb", &Starter { program: PROGRAM, folder, libraries, variable, words })?;
    let said =
        tree::output(Command::new(tree.store("bin").join(PROGRAM)).args(["-nx", "-batch", "-ex", "show version"]));
    let said = said.context("the gdb just unpacked")?;
    ensure!(said.contains("GNU gdb"), "the gdb just unpacked says {said:?}");
    println!("gdb: {}", said.lines().next().unwrap_or_default());
    Ok(())
}
