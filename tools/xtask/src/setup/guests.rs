//! What guests run: Debian's own arm64 kernels, unchanged, and an initramfs around Debian's static busybox.
//!
//! A kernel's package is fetched without what it depends on, and only `vmlinuz` is taken out of it: the kernels print to
//! the PL011 and unpack an initramfs without any module. What Debian calls `vmlinuz` on arm64 is the plain `Image`.

use super::Extent;
use super::apt::Archive;
use crate::cpio;
use crate::tree::Tree;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A kernel that guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its folder in `.undercroft/images`.
    pub(crate) name: &'static str,
    suite: &'static str,
    package: &'static str,
    extent: Extent,
}

/// All the kernels.
pub(crate) const KERNELS: [Kernel; 5] = [
    Kernel { name: "linux-6.12-cloud", suite: "trixie", package: "linux-image-cloud-arm64", extent: Extent::Demo },
    Kernel { name: "linux-6.12", suite: "trixie", package: "linux-image-arm64", extent: Extent::All },
    Kernel { name: "linux-6.12-16k", suite: "trixie", package: "linux-image-arm64-16k", extent: Extent::All },
    Kernel { name: "linux-6.1-cloud", suite: "bookworm", package: "linux-image-cloud-arm64", extent: Extent::All },
    Kernel { name: "linux-6.1", suite: "bookworm", package: "linux-image-arm64", extent: Extent::All },
];

/// Where the initramfs is.
pub(crate) fn initramfs(tree: &Tree) -> PathBuf {
    tree.store("images/initramfs.cpio")
}

/// Where a kernel is.
pub(crate) fn image(tree: &Tree, name: &str) -> PathBuf {
    tree.store("images").join(name).join("Image")
}

/// Whether the initramfs and all kernels of this extent are there.
pub(crate) fn are_there(tree: &Tree, extent: Extent) -> bool {
    let mut wanted = KERNELS.iter().filter(|kernel| extent == Extent::All || kernel.extent == extent);
    initramfs(tree).is_file() && wanted.all(|kernel| image(tree, kernel.name).is_file())
}

/// Makes sure that kernels, busybox and the initramfs are there.
pub(crate) fn provide(tree: &Tree, extent: Extent) -> Result<()> {
    let busybox = tree.store("images/busybox");
    for suite in ["trixie", "bookworm"] {
        let wanted = |kernel: &&Kernel| kernel.suite == suite && (extent == Extent::All || kernel.extent == extent);
        let (there, missing): (Vec<&Kernel>, Vec<&Kernel>) =
            KERNELS.iter().filter(wanted).partition(|kernel| image(tree, kernel.name).is_file());
        for kernel in there {
            println!("guests: {} is there", kernel.name);
        }
        let needs_busybox = suite == "trixie" && !busybox.is_file();
        if missing.is_empty() && !needs_busybox {
            continue;
        }
        println!("guests: fetching what is missing from {suite}");
        let archive = Archive::open(tree, &format!("guests-{suite}"), "arm64", &[suite])?;
        if needs_busybox {
            unpack_file(&archive, "busybox-static", "./usr/bin/busybox", &busybox)?;
        }
        for kernel in missing {
            let package = archive.stands_for(kernel.package, "linux-image-")?;
            let image = image(tree, kernel.name);
            println!("  {} is {package}", kernel.name);
            unpack_file(&archive, &package, "./boot/vmlinuz-*", &image)?;
            check_image(&image)?;
        }
    }
    pack_initramfs(tree)?;
    println!("guests: {} is packed", initramfs(tree).display());
    Ok(())
}

/// Takes the one file that matches `pattern` out of a package.
fn unpack_file(archive: &Archive, package: &str, pattern: &str, place: &Path) -> Result<()> {
    let packages = archive.download(&[package])?;
    let package = packages.first().with_context(|| format!("no file for {package}"))?;
    let scratch = place.with_extension("unpacking");
    package.unpack_some(&scratch, pattern)?;
    let mut found = scratch.clone();
    while found.is_dir() {
        let mut inside = fs::read_dir(&found)?;
        found = inside.next().context("nothing was unpacked")??.path();
    }
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::rename(&found, place).with_context(|| format!("moving {} to {}", found.display(), place.display()))?;
    fs::remove_dir_all(&scratch).context("removing what is not needed")
}

/// An arm64 `Image` has the bytes `ARM\x64` at offset 56 (Linux, "Booting AArch64 Linux", section 4).
fn check_image(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let magic = bytes.get(56..60);
    ensure!(
        magic == Some(b"ARM\x64"),
        "{} is no arm64 Image; a compressed kernel must be unpacked first",
        path.display()
    );
    Ok(())
}

/// Packs the initramfs: busybox, `tests/system/guest`, and the benchmark program if it has been built.
pub(crate) fn pack_initramfs(tree: &Tree) -> Result<()> {
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "tests"] {
        archive.directory(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &fs::read(tree.store("images/busybox")).context("busybox; run setup")?);
    archive.symlink("bin/sh", "busybox");
    archive.file("init", 0o755, &fs::read(tree.path("tests/system/guest/init"))?);
    let mut scripts: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(tree.path("tests/system/guest/tests")).context("tests/system/guest/tests")? {
        scripts.push(entry?.path());
    }
    scripts.sort();
    for script in scripts {
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("tests/{name}"), 0o755, &fs::read(&script)?);
    }
    let bench = tree.store("images/linux-bench");
    if bench.is_file() {
        archive.file("bin/linux-bench", 0o755, &fs::read(bench)?);
    }
    fs::write(initramfs(tree), archive.finish()).context("writing the initramfs")
}
