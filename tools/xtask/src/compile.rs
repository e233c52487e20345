//! `cargo xtask build`: everything that runs on bare metal.
//!
//! | what | from | to |
//! |---|---|---|
//! | the hypervisor | `el2/hypervisor` | `target/undercroft.img` |
//! | the hypervisor with checks of itself | `el2/checks` | `target/undercroft-checks.img` |
//! | the loader for UEFI firmware | `boot/efi` | `target/BOOTAA64.EFI` |
//! | the payloads | `tests/payloads` | `target/payloads/<name>.img` |
//! | the tools for Linux guests | `guest/tools` | `target/guest/<name>`, and the initramfs |
//! | the Linux benchmark, and what watches Linux's clocks | `tests/linux` | the initramfs |

use crate::image;
use crate::setup::{Standard, guests};
use crate::tree::{TARGET, Tree, UEFI_TARGET, copy, replace, words};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package names of what is built for bare metal, and never for the machine that it is built on.
pub(crate) const BARE_METAL: [&str; 9] = [
    "undercroft",
    "undercroft-checks",
    "hw",
    "stage",
    "payload-rt",
    "payloads",
    "linux-programs",
    "guest",
    "guest-tools",
];

/// The package that is built for UEFI.
pub(crate) const FOR_UEFI: &str = "undercroft-efi";

/// A flat image and its name.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The binary's name.
    pub(crate) name: String,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Where the image of the hypervisor with checks of itself is.
pub(crate) fn checks_image(tree: &Tree) -> PathBuf {
    tree.target("undercroft-checks.img")
}

/// Where the hypervisor's image is.
pub(crate) fn hypervisor_image(tree: &Tree) -> PathBuf {
    tree.target("undercroft.img")
}

/// Builds it all.
pub(crate) fn build(tree: &Tree) -> Result<()> {
    hypervisors(tree)?;
    loader(tree)?;
    payloads(tree)?;
    guest_tools(tree)?;
    linux_programs(tree)
}

/// Builds the hypervisor that ships.
pub(crate) fn hypervisor(tree: &Tree) -> Result<()> {
    flatten(&program(tree, "undercroft")?, &hypervisor_image(tree))
}

/// Builds the hypervisor that ships, and the one with checks of itself: at the same time, since each is linked for ten seconds.
pub(crate) fn hypervisors(tree: &Tree) -> Result<()> {
    for (name, elf) in binaries(tree, &["undercroft", "undercroft-checks"])? {
        flatten(&elf, &tree.target(format!("{name}.img")))?;
    }
    Ok(())
}

/// Builds the loader for UEFI firmware.
pub(crate) fn loader(tree: &Tree) -> Result<()> {
    let built = built_for(tree, UEFI_TARGET, &[FOR_UEFI])?.into_iter().next();
    let (_, program) = built.with_context(|| format!("the package {FOR_UEFI} has no binary"))?;
    let place = tree.target("BOOTAA64.EFI");
    copy(&program, &place)?;
    println!("{}: {} bytes", place.display(), fs::metadata(&place)?.len());
    Ok(())
}

fn flatten(elf: &Path, image: &Path) -> Result<()> {
    let bytes = write_flat(elf, image)?;
    println!("{}: {bytes} bytes", image.display());
    Ok(())
}

/// The ELF file of the hypervisor that ships, as it was linked.
pub(crate) fn hypervisor_elf(tree: &Tree) -> Result<Vec<u8>> {
    read_program(tree, "undercroft")
}

/// The ELF file of the hypervisor with checks of itself.
pub(crate) fn checks_elf(tree: &Tree) -> Result<Vec<u8>> {
    read_program(tree, "undercroft-checks")
}

fn read_program(tree: &Tree, package: &str) -> Result<Vec<u8>> {
    let elf = program(tree, package)?;
    fs::read(&elf).with_context(|| format!("reading {}", elf.display()))
}

/// Builds the one program of a package.
fn program(tree: &Tree, package: &str) -> Result<PathBuf> {
    let built = binaries(tree, &[package])?.into_iter().next();
    Ok(built.with_context(|| format!("the package {package} has no binary"))?.1)
}

/// Builds the payloads, in the order of their names.
pub(crate) fn payloads(tree: &Tree) -> Result<Vec<Image>> {
    fs::create_dir_all(tree.target("payloads"))?;
    let mut images = Vec::new();
    for (name, elf) in binaries(tree, &["payloads"])? {
        let path = tree.target(format!("payloads/{name}.img"));
        write_flat(&elf, &path)?;
        images.push(Image { name, path });
    }
    images.sort_by(|left, right| left.name.cmp(&right.name));
    let names: Vec<&str> = images.iter().map(|image| &*image.name).collect();
    println!("{}: {}", tree.target("payloads").display(), names.join(" "));
    Ok(images)
}

/// Builds the command-line tools for Linux guests: static programs, which need nothing else there.
fn guest_tools(tree: &Tree) -> Result<()> {
    fs::create_dir_all(tree.target("guest"))?;
    for (name, elf) in binaries(tree, &["guest-tools"])? {
        let tool = tree.target("guest").join(&name);
        copy(&elf, &tool)?;
        // The test guests have it from here, whichever target folder it was built in.
        copy(&elf, &tree.store("images").join(&name)).context("no .undercroft/images; run `cargo xtask setup`")?;
        println!("{}: {} bytes", tool.display(), fs::metadata(&tool)?.len());
    }
    Ok(())
}

/// Builds what measures and watches inside Linux guests, and packs the initramfs with it.
pub(crate) fn linux_programs(tree: &Tree) -> Result<()> {
    for (name, elf) in binaries(tree, &["linux-programs"])? {
        copy(&elf, &tree.store("images").join(name)).context("no .undercroft/images; run `cargo xtask setup`")?;
    }
    guests::pack_initramfs(tree)
}

/// Builds croft for this machine, and gives the program.
pub(crate) fn croft(tree: &Tree) -> Result<PathBuf> {
    let mut cargo = tree.cargo();
    cargo.args(["build", "--bins", "--message-format=json-render-diagnostics", "-p", "croft"]);
    let built = executables(&mut cargo)?.into_iter().next();
    Ok(built.context("the package croft has no binary")?.1)
}

/// Builds the programs of a package's tests, and gives their names and files.
pub(crate) fn test_programs(tree: &Tree, package: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = tree.cargo();
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics", "-p", package]);
    executables(&mut cargo)
}

/// Builds packages for the bare-metal target and gives their binaries.
fn binaries(tree: &Tree, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    built_for(tree, TARGET, packages)
}

fn built_for(tree: &Tree, target: &str, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = tree.cargo();
    cargo.args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"]);
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    Standard::find(tree)?.apply(&mut cargo, target);
    executables(&mut cargo)
}

/// Runs a build that prints JSON, and gives the programs that it made.
fn executables(cargo: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let output = cargo.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "{} failed", words(cargo));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(lines.lines().filter_map(executable).collect())
}

/// The name and the file in cargo's message about a binary.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let file = message.get("executable")?.as_str()?;
    Some((message.get("target")?.get("name")?.as_str()?.to_owned(), file.into()))
}

/// Converts a linked program, and gives its size as an image.
fn write_flat(elf: &Path, place: &Path) -> Result<usize> {
    let image = image::flatten(&fs::read(elf)?).with_context(|| format!("converting {}", elf.display()))?;
    replace(place, &image)?;
    Ok(image.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"hello"},"executable":"/t/hello"}"#;
        assert_eq!(executable(line), Some(("hello".into(), "/t/hello".into())));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":null}"#), None);
        assert_eq!(executable("warning: something"), None);
    }
}
