//! QEMU, new enough.
//!
//! Stable Debian and Ubuntu have older ones, so the package from Debian's backports is unpacked into a folder together
//! with every library that it needs (`program.rs`).

use super::apt::Archive;
use super::own_architecture;
use super::program::{self, Starter};
use crate::tree::Tree;
use anyhow::{Context, Result};

/// Makes sure that [`qemu::find`] finds one.
pub(crate) fn provide(tree: &Tree) -> Result<()> {
    if let Ok(found) = qemu::find_from(&[tree.path("")]) {
        println!("QEMU: {} is version {}", found.program.display(), found.version);
        return Ok(());
    }
    println!("QEMU: none that is {} or newer here; unpacking Debian's", qemu::MINIMUM);
    let archive = Archive::open(tree, "tools", own_architecture()?, &["trixie", "trixie-backports"])?;
    let packages = archive.download_closure("trixie-backports", &["qemu-system-arm"])?;
    program::unpack(tree, "qemu", &packages)?;
    let own = format!("usr/lib/{}-linux-gnu/pulseaudio", std::env::consts::ARCH);
    let starter = Starter {
        program: "qemu-system-aarch64",
        folder: "usr/bin",
        libraries: &own,
        variable: "PYTHONHOME=\"$here/usr\"",
        words: "-L \"$here/usr/share/qemu\"",
    };
    program::write_starter(tree, "qemu", &starter)?;
    let found = qemu::find_from(&[tree.path("")]).context("the QEMU just unpacked")?;
    println!("QEMU: {} is version {}", found.program.display(), found.version);
    Ok(())
}
