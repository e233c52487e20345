//! A program of Debian's for this machine, unpacked into a folder together with every library that it needs, the C library and its
//! dynamic loader included. Started through that loader, it runs on machines whose own C library is older.

use super::apt::Package;
use crate::tree::Tree;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Unpacks `packages` into `.undercroft/<name>`, and nothing that was there stays.
pub(super) fn unpack(tree: &Tree, name: &str, packages: &[Package]) -> Result<()> {
    let folder = tree.store(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing an old {}", folder.display()))?;
    }
    println!("  unpacking them");
    for package in packages {
        package.unpack(&folder)?;
    }
    for unneeded in ["doc", "man", "locale", "icons", "lintian", "bash-completion"] {
        // What is not there needs no removing.
        drop(fs::remove_dir_all(folder.join("usr/share").join(unneeded)));
    }
    Ok(())
}

/// How a program is started that was unpacked.
pub(super) struct Starter<'a> {
    /// Its name.
    pub(super) program: &'a str,
    /// Where it is in what was unpacked.
    pub(super) folder: &'a str,
    /// A folder of its own for libraries there.
    pub(super) libraries: &'a str,
    /// A variable that it needs, as `NAME=value`. `$here` is where it was unpacked to, here and in `words`.
    pub(super) variable: &'a str,
    /// What stands before whatever it is called with.
    pub(super) words: &'a str,
}

/// Writes the script `.undercroft/bin/<program>` that starts a program of `.undercroft/<name>` by the loader that was unpacked with it.
pub(super) fn write_starter(tree: &Tree, name: &str, starter: &Starter<'_>) -> Result<()> {
    let Starter { program, folder, libraries, variable, words } = starter;
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let loader = find_loader(&tree.store(name))?;
    let script = format!(
        "#!/bin/sh\n# Written by `cargo xtask setup`: {program} with the libraries that it was built for.\n\
         here=\"${{0%/*}}/../{name}\"\n\
         export {variable}\n\
         exec \"$here/{}\" --library-path \"$here/usr/lib/{triplet}:$here/{libraries}\" \\\n    \
         \"$here/{folder}/{program}\" {words} \"$@\"\n",
        loader.display()
    );
    let path = tree.store("bin").join(program);
    fs::create_dir_all(tree.store("bin"))?;
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", path.display()))
}

/// The dynamic loader in an unpacked tree, relative to it.
fn find_loader(folder: &Path) -> Result<PathBuf> {
    let (folders, name) = match std::env::consts::ARCH {
        "aarch64" => (["usr/lib", "lib"], "ld-linux-aarch64.so.1"),
        _ => (["usr/lib64", "lib64"], "ld-linux-x86-64.so.2"),
    };
    let mut places = folders.iter().map(|below| Path::new(below).join(name));
    places.find(|place| folder.join(place).exists()).with_context(|| format!("no {name} among its packages"))
}
