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

/// Writes the script `.undercroft/bin/<program>` that starts the unpacked program by the unpacked loader. `libraries` is a folder of
/// its own for such, `words` stand before whatever it is called with; `$here` is where it was unpacked to.
pub(super) fn write_starter(tree: &Tree, name: &str, program: &str, libraries: &str, words: &str) -> Result<()> {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let loader = find_loader(&tree.store(name))?;
    let script = format!(
        "#!/bin/sh\n# Written by `cargo xtask setup`: {program} with the libraries that it was built for.\n\
         here=\"${{0%/*}}/../{name}\"\n\
         export PYTHONHOME=\"$here/usr\"   # gdb has a Python\n\
         exec \"$here/{}\" --library-path \"$here/usr/lib/{triplet}:$here/{libraries}\" \\\n    \
         \"$here/usr/bin/{program}\" {words} \"$@\"\n",
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
