//! QEMU, new enough.
//!
//! Stable Debian and Ubuntu have older ones, so the package from Debian's backports is unpacked into a folder together
//! with every library that it needs, the C library and its dynamic loader included. Started through that loader, it
//! runs on machines whose own C library is older.

use super::apt::Archive;
use super::own_architecture;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Makes sure that [`qemu::find`] finds one.
pub(crate) fn provide(tree: &Tree) -> Result<()> {
    if let Ok(found) = qemu::find_from(&[tree.path("")]) {
        println!("QEMU: {} is version {}", found.program.display(), found.version);
        return Ok(());
    }
    println!("QEMU: none that is {} or newer here; unpacking Debian's", qemu::MINIMUM);
    let archive = Archive::open(tree, "tools", own_architecture()?, &["trixie", "trixie-backports"])?;
    let packages = archive.download_closure("trixie-backports", &["qemu-system-arm"])?;
    let folder = tree.store("qemu");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing an old QEMU")?;
    }
    println!("  unpacking them");
    for package in &packages {
        package.unpack(&folder)?;
    }
    for unneeded in ["doc", "man", "locale", "icons", "lintian", "bash-completion"] {
        // What is not there needs no removing.
        drop(fs::remove_dir_all(folder.join("usr/share").join(unneeded)));
    }
    write_starter(tree, &folder)?;
    let found = qemu::find_from(&[tree.path("")]).context("the QEMU just unpacked")?;
    println!("QEMU: {} is version {}", found.program.display(), found.version);
    Ok(())
}

/// Writes the script that starts the unpacked program by the unpacked loader.
fn write_starter(tree: &Tree, folder: &Path) -> Result<()> {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let loader = find_loader(folder)?;
    let script = format!(
        "#!/bin/sh\n# Written by `cargo xtask setup`: QEMU with the libraries that it was built for.\n\
         here=\"${{0%/*}}/../qemu\"\n\
         exec \"$here/{}\" --library-path \"$here/usr/lib/{triplet}:$here/usr/lib/{triplet}/pulseaudio\" \\\n    \
         \"$here/usr/bin/qemu-system-aarch64\" -L \"$here/usr/share/qemu\" \"$@\"\n",
        loader.display()
    );
    let path = tree.store("bin/qemu-system-aarch64");
    fs::create_dir_all(tree.store("bin"))?;
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("making QEMU's script executable")
}

/// The dynamic loader in an unpacked tree, relative to it.
fn find_loader(folder: &Path) -> Result<PathBuf> {
    let (folders, name) = match std::env::consts::ARCH {
        "aarch64" => (["usr/lib", "lib"], "ld-linux-aarch64.so.1"),
        _ => (["usr/lib64", "lib64"], "ld-linux-x86-64.so.2"),
    };
    let mut places = folders.iter().map(|below| Path::new(below).join(name));
    places.find(|place| folder.join(place).exists()).with_context(|| format!("no {name} among QEMU's packages"))
}
