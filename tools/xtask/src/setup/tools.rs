//! VMware's guest tools for Linux guests: Debian's own packages, unchanged, one archive a release.
//!
//! The archive is appended to the initramfs, as drivers are. It has the programs that the scenarios run, the plugins of
//! the daemon that talk to the hypervisor, Debian's power scripts, and every library that one of them names: the closure
//! of DT_NEEDED (System V ABI, "Dynamic Section"), so that a library that a release needs and the list of packages below
//! lacks is an error here and not a riddle inside a guest. Nothing of the packages is changed; what a system's
//! administrator would write (`tools.conf`, `/etc/passwd`) is written by the guest's test itself.

use super::apt::Archive;
use crate::cpio;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Packages whose name is the same in every release.
const PACKAGES: &[&str] = &[
    "open-vm-tools",
    "systemd",
    "libsystemd-shared",
    "base-files",
    "libacl1",
    "libaudit1",
    "libblkid1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libcrypt1",
    "libffi8",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libmount1",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libzstd1",
];

/// The releases, and the packages that only one of them has.
const RELEASES: [(&str, &[&str]); 2] = [
    (
        "bookworm",
        &[
            "libglib2.0-0",
            "libtirpc3",
            "libssl3",
            "libgcrypt20",
            "libgpg-error0",
            "libip4tc2",
            "libkmod2",
            "liblz4-1",
            "liblzma5",
        ],
    ),
    ("trixie", &["libglib2.0-0t64", "libtirpc3t64", "libssl3t64", "libatomic1", "zlib1g"]),
];

/// Where a package keeps its libraries, and where ours go.
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";
/// The daemon's plugins.
const PLUGINS: &str = "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc";
/// What is started or loaded by name.
const ROOTS: [&str; 8] = [
    "usr/bin/systemd-detect-virt",
    "usr/bin/vmtoolsd",
    "usr/bin/vmware-checkvm",
    "usr/bin/vmware-rpctool",
    "usr/bin/vmware-toolbox-cmd",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libguestInfo.so",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libpowerOps.so",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libtimeSync.so",
];

/// Where a release's archive is.
pub(super) fn archive(tree: &Tree, suite: &str) -> PathBuf {
    tree.store(format!("images/tools-{suite}.cpio"))
}

/// Fetches a release's packages and packs its archive.
pub(super) fn pack(tree: &Tree, packages: &Archive, suite: &str) -> Result<()> {
    let own = RELEASES.iter().find(|(release, _)| *release == suite).with_context(|| format!("no tools of {suite}"))?;
    let names: Vec<&str> = PACKAGES.iter().chain(own.1).copied().collect();
    let place = archive(tree, suite);
    let scratch = place.with_extension("unpacking");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).context("removing what an earlier setup left")?;
    }
    for package in packages.download(&names)? {
        package.unpack(&scratch)?;
    }
    let packed = pack_folder(&scratch).with_context(|| format!("packing the tools of {suite}"))?;
    fs::write(&place, packed).with_context(|| format!("writing {}", place.display()))?;
    fs::remove_dir_all(&scratch).context("removing what is not needed")
}

/// Packs what is wanted of the unpacked packages in `folder`.
fn pack_folder(folder: &Path) -> Result<Vec<u8>> {
    let libraries = find_libraries(folder)?;
    let mut packed = cpio::Archive::default();
    for name in ["etc", "etc/vmware-tools", "run", "sbin", "usr", "usr/bin", "usr/lib", LIBRARIES, "var", "var/log"] {
        packed.directory(name);
    }
    packed.directory("usr/lib/aarch64-linux-gnu/open-vm-tools");
    packed.directory("usr/lib/aarch64-linux-gnu/open-vm-tools/plugins");
    packed.directory(PLUGINS);
    // The path of the dynamic linker in every program is below /lib.
    packed.symlink("lib", "usr/lib");
    packed.symlink("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu/ld-linux-aarch64.so.1");
    // What the release calls itself, which the tools report.
    let release = fs::read(folder.join("usr/lib/os-release")).context("no usr/lib/os-release in the packages")?;
    packed.file("usr/lib/os-release", 0o644, &release);
    packed.symlink("etc/os-release", "../usr/lib/os-release");
    let mut wanted = BTreeSet::new();
    let mut to_read: Vec<(String, PathBuf)> = Vec::new();
    for root in ROOTS {
        let content = fs::read(folder.join(root)).with_context(|| format!("no {root} in the packages"))?;
        packed.file(root, 0o755, &content);
        to_read.push((root.to_owned(), folder.join(root)));
    }
    while let Some((name, file)) = to_read.pop() {
        for library in needed(&fs::read(&file)?).with_context(|| format!("reading {name}"))? {
            if wanted.insert(library.clone()) {
                let Some(file) = libraries.get(&library) else { bail!("{name} needs {library}, which no package has") };
                to_read.push((library, file.clone()));
            }
        }
    }
    for name in wanted {
        if let Some(file) = libraries.get(&name) {
            packed.file(&format!("{LIBRARIES}/{name}"), 0o755, &fs::read(file)?);
        }
    }
    let mut settings: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder.join("etc/vmware-tools")).context("etc/vmware-tools")? {
        settings.push(entry?.path());
    }
    settings.sort();
    for file in settings.iter().filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mode = if name.ends_with("-vm-default") { 0o755 } else { 0o644 };
        packed.file(&format!("etc/vmware-tools/{name}"), mode, &fs::read(file)?);
    }
    Ok(packed.finish())
}

/// The shared libraries in the packages, by the name that programs call them by.
fn find_libraries(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    // Of older releases, some packages are not merged into /usr yet.
    let below =
        [LIBRARIES, "usr/lib/aarch64-linux-gnu/systemd", "lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu/systemd"];
    for place in below.map(|below| folder.join(below)) {
        let Ok(entries) = fs::read_dir(&place) else { continue };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Links that stay inside their folder are followed when the library is read.
            if name.contains(".so") && path.is_file() {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

/// The libraries that an ELF file names.
fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(bytes)?;
    let mut names = Vec::new();
    for library in file.import_libraries()? {
        names.push(String::from_utf8_lossy(library?.name()).into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_program_needs() {
        // This test itself is a program with libraries.
        let own = std::env::current_exe().and_then(fs::read).expect("this test's file");
        let names = needed(&own).expect("an ELF file");
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(needed(b"no program").is_err());
    }

    #[test]
    fn a_missing_library_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = std::env::current_exe().expect("this test's file");
        for root in ROOTS.into_iter().chain(["usr/lib/os-release"]) {
            let place = folder.path().join(root);
            fs::create_dir_all(place.parent().expect("a folder")).expect("made");
            fs::copy(&own, place).expect("copied");
        }
        let error = pack_folder(folder.path()).expect_err("no libraries there");
        assert!(error.to_string().contains("which no package has"), "{error}");
    }
}
