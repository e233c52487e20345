//! `core` and `alloc` for the bare-metal targets: compiled by rustup, or the sources to compile them from.
//!
//! A toolchain that rustup manages gets the target in a second. Where rustup can't reach its server, or isn't there at
//! all, Debian's package `rust-src` of exactly the compiler's version holds the same sources, and cargo builds them
//! (`-Zbuild-std`) as part of our build. Cargo allows that flag, and another place for the sources, only to nightly
//! compilers and to its own tests; `RUSTC_BOOTSTRAP` and the variable below are the doors that it leaves open.

use super::apt::Archive;
use super::own_architecture;
use crate::tree::{TARGET, Tree, UEFI_TARGET, output};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Set to any value: use Debian's sources even where rustup has the target. For testing that path.
const FORCE: &str = "UNDERCROFT_BUILD_STD";

/// What is built for bare metal, and for UEFI.
const TARGETS: [&str; 2] = [TARGET, UEFI_TARGET];

/// Where `core` comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standard {
    /// The toolchain has it compiled.
    Compiled,
    /// The sources are below this folder (`.../library`).
    Sources(PathBuf),
}

impl Standard {
    /// Finds it.
    ///
    /// # Errors
    /// It isn't there: `setup` has not run.
    pub(crate) fn find(tree: &Tree) -> Result<Standard> {
        let sysroot = PathBuf::from(output(tree.command("rustc").args(["--print", "sysroot"]))?.trim());
        let forced = std::env::var_os(FORCE).is_some();
        let is_there = |target: &str| sysroot.join("lib/rustlib").join(target).join("lib").is_dir();
        if !forced && TARGETS.into_iter().all(is_there) {
            return Ok(Standard::Compiled);
        }
        let component = sysroot.join("lib/rustlib/src/rust/library");
        let unpacked = tree.store("rust-src").join(release(tree)?).join("library");
        let found = [component, unpacked].into_iter().find(|library| library.join("Cargo.lock").is_file());
        found
            .map(Standard::Sources)
            .with_context(|| format!("no core for {}; run `cargo xtask setup`", TARGETS.join(" and ")))
    }

    /// Adds to a cargo command what builds for one of the targets need.
    pub(crate) fn apply(&self, cargo: &mut Command, target: &str) {
        cargo.args(["--target", target]);
        self.add_sources(cargo);
    }

    /// Adds only what building core from its sources needs, to a command that has the target from elsewhere.
    pub(crate) fn add_sources(&self, cargo: &mut Command) {
        if let Standard::Sources(library) = self {
            cargo.args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
            cargo.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
        }
    }
}

/// Makes sure that [`Standard::find`] finds it.
pub(crate) fn provide(tree: &Tree) -> Result<()> {
    let forced = std::env::var_os(FORCE).is_some();
    if !forced && Standard::find(tree).is_err() {
        println!("core: asking rustup for {}", TARGETS.join(" and "));
        // Where rustup is missing or has no way out, the packages below do as well.
        drop(tree.command("rustup").args(["target", "add"]).args(TARGETS).output());
    }
    if Standard::find(tree).is_err() {
        unpack_sources(tree)?;
    }
    match Standard::find(tree)? {
        Standard::Compiled => println!("core: the toolchain has it for {}", TARGETS.join(" and ")),
        Standard::Sources(library) => println!("core: will be built from {}", library.display()),
    }
    Ok(())
}

/// Unpacks Debian's sources of the compiler's own version.
fn unpack_sources(tree: &Tree) -> Result<()> {
    let release = release(tree)?;
    println!("core: rustup can't provide it; unpacking Debian's sources of Rust {release}");
    let archive = Archive::open(tree, "tools", own_architecture()?, &["trixie", "trixie-backports"])?;
    let Some(version) = archive.version("rust-src", &format!("{release}+"))? else {
        bail!(
            "Debian has no rust-src {release} any more. Either run `rustup target add {TARGET} {UEFI_TARGET}` on a machine with access, \
             or install a Rust whose sources Debian has, with its compiler and cargo: `apt-cache madison rust-src` lists \
             backports' versions (packages rustc, cargo, rust-src), bookworm-security has the set rustc-web, cargo-web, \
             rust-web-src; then put its version into rust-toolchain.toml"
        );
    };
    let [package] = &archive.download(&[&format!("rust-src={version}")])?[..] else {
        bail!("rust-src {version} is not one package file");
    };
    let folder = tree.store("rust-src");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing old sources")?;
    }
    package.unpack_some(&folder.join("packed"), "./usr/src/rustc-*/library/*")?;
    let library = folder.join(format!("packed/usr/src/rustc-{release}"));
    fs::rename(&library, folder.join(&release)).with_context(|| format!("no {} in the package", library.display()))?;
    fs::remove_dir_all(folder.join("packed")).context("removing what is not needed")
}

/// The compiler's version as a package would call it: `1.95.0`.
fn release(tree: &Tree) -> Result<String> {
    let text = output(tree.command("rustc").arg("-vV"))?;
    let release = text.lines().find_map(|line| line.strip_prefix("release: "));
    Ok(release.context("rustc -vV names no release")?.to_owned())
}
