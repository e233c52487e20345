//! VMware's guest tools and systemd for Linux guests: Debian's own packages, unchanged, two archives a release; of one release
//! a third.
//!
//! An archive is appended to the initramfs, as drivers are. That of the tools has the programs that the scenarios run, the
//! plugins of the daemon that talk to the hypervisor, and Debian's power scripts; that of systemd has what is the first
//! process, and what it starts others with; that for load is the tools and `stress-ng`, of the older release, whose
//! `stress-ng` needs few libraries (a later one names all of Mesa). They have every library that one of them names: the closure
//! of DT_NEEDED (System V ABI, "Dynamic Section"), so that a library that a release needs and the list of packages below
//! lacks is an error here and not a riddle inside a guest. Nothing of the packages is changed; what a system's
//! administrator would write (`tools.conf`, `/etc/passwd`, units) is written by the guest's test itself.

use super::apt::Archive;
use crate::cpio;
use crate::tree::{Tree, replace};
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
    "libapparmor1",
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
            "stress-ng",
            "libbsd0",
            "libdrm2",
            "libegl1",
            "libexpat1",
            "libgbm1",
            "libgcc-s1",
            "libgles2",
            "libglvnd0",
            "libjpeg62-turbo",
            "libjudydebian1",
            "libmd0",
            "libsctp1",
            "libwayland-server0",
            "libxxhash0",
            "zlib1g",
        ],
    ),
    ("trixie", &["libglib2.0-0t64", "libtirpc3t64", "libssl3t64", "libatomic1", "zlib1g"]),
];

/// Where a package keeps its libraries, and where ours go.
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";
/// The daemon's plugins.
const PLUGINS: &str = "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc";
/// What of the tools is started or loaded by name.
const TOOLS: &[&str] = &[
    "usr/bin/systemd-detect-virt",
    "usr/bin/vmtoolsd",
    "usr/bin/vmware-checkvm",
    "usr/bin/vmware-rpctool",
    "usr/bin/vmware-toolbox-cmd",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libguestInfo.so",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libpowerOps.so",
    "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins/vmsvc/libtimeSync.so",
];

/// Of systemd, the same; of older releases the first process starts all others itself.
const SYSTEMD: &[&str] = &["usr/lib/systemd/systemd"];
const SYSTEMD_EXECUTOR: &str = "usr/lib/systemd/systemd-executor";

/// What makes load.
const STRESS: &str = "usr/bin/stress-ng";
/// The release that it is taken of.
const STRESS_RELEASE: &str = "bookworm";

/// The archives of a release.
fn archives(suite: &str) -> &'static [&'static str] {
    if suite == STRESS_RELEASE { &["tools", "systemd", "load"] } else { &["tools", "systemd"] }
}

/// Where an archive of a release is.
pub(super) fn archive(tree: &Tree, name: &str, suite: &str) -> PathBuf {
    tree.store(format!("images/{name}-{suite}.cpio"))
}

/// Whether a release's archives are there.
pub(super) fn are_there(tree: &Tree, suite: &str) -> bool {
    archives(suite).iter().all(|name| archive(tree, name, suite).is_file())
}

/// Fetches a release's packages and packs its archives.
pub(super) fn pack(tree: &Tree, packages: &Archive, suite: &str) -> Result<()> {
    let own = RELEASES.iter().find(|(release, _)| *release == suite).with_context(|| format!("no tools of {suite}"))?;
    let names: Vec<&str> = PACKAGES.iter().chain(own.1).copied().collect();
    let scratch = tree.store(format!("images/tools-{suite}.unpacking"));
    if scratch.exists() {
        fs::remove_dir_all(&scratch).context("removing what an earlier setup left")?;
    }
    for package in packages.download(&names)? {
        package.unpack(&scratch)?;
    }
    for name in archives(suite) {
        let packed = match *name {
            "tools" => pack_tools(&scratch, &[]),
            "load" => pack_tools(&scratch, &[STRESS]),
            _ => pack_systemd(&scratch),
        };
        let packed = packed.with_context(|| format!("packing the {name} of {suite}"))?;
        replace(&archive(tree, name, suite), &packed)?;
    }
    fs::remove_dir_all(&scratch).context("removing what is not needed")
}

/// Packs what is wanted of VMware's tools, and `more` programs, out of the unpacked packages in `folder`.
fn pack_tools(folder: &Path, more: &[&str]) -> Result<Vec<u8>> {
    let mut packed = base(folder, &["etc/vmware-tools", "usr/bin", "var", "var/log"])?;
    for below in ["usr/lib/aarch64-linux-gnu/open-vm-tools", "usr/lib/aarch64-linux-gnu/open-vm-tools/plugins", PLUGINS]
    {
        packed.directory(below);
    }
    add_programs(&mut packed, folder, &[TOOLS, more].concat())?;
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

/// Packs what is wanted of systemd.
fn pack_systemd(folder: &Path) -> Result<Vec<u8>> {
    let mut packed = base(folder, &["etc/systemd", "etc/systemd/system", "usr/lib/systemd"])?;
    let executor = unpacked(folder, SYSTEMD_EXECUTOR).is_file().then_some(SYSTEMD_EXECUTOR);
    let programs: Vec<&str> = SYSTEMD.iter().copied().chain(executor).collect();
    add_programs(&mut packed, folder, &programs)?;
    Ok(packed.finish())
}

/// An archive with the folders that every program needs, and what the release calls itself.
fn base(folder: &Path, more: &[&str]) -> Result<cpio::Archive> {
    let mut packed = cpio::Archive::default();
    for name in ["etc", "run", "sbin", "usr", "usr/lib", LIBRARIES].iter().chain(more) {
        packed.directory(name);
    }
    // The path of the dynamic linker in every program is below /lib.
    packed.symlink("lib", "usr/lib");
    packed.symlink("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu/ld-linux-aarch64.so.1");
    let release = fs::read(folder.join("usr/lib/os-release")).context("no usr/lib/os-release in the packages")?;
    packed.file("usr/lib/os-release", 0o644, &release);
    packed.symlink("etc/os-release", "../usr/lib/os-release");
    Ok(packed)
}

/// Where a file of the packages is: of older releases, some are not merged into /usr yet.
fn unpacked(folder: &Path, name: &str) -> PathBuf {
    let merged = folder.join(name);
    match name.strip_prefix("usr/") {
        Some(unmerged) if !merged.is_file() => folder.join(unmerged),
        _ => merged,
    }
}

/// Packs programs and plugins, and every library that they need.
fn add_programs(packed: &mut cpio::Archive, folder: &Path, roots: &[&str]) -> Result<()> {
    let libraries = find_libraries(folder)?;
    let mut wanted = BTreeSet::new();
    let mut to_read: Vec<(String, PathBuf)> = Vec::new();
    for &root in roots {
        let file = unpacked(folder, root);
        let content = fs::read(&file).with_context(|| format!("no {root} in the packages"))?;
        packed.file(root, 0o755, &content);
        to_read.push((root.to_owned(), file));
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
    Ok(())
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
    fn files_of_older_releases_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("lib/systemd");
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("systemd"), "x").expect("written");
        assert_eq!(unpacked(folder.path(), SYSTEMD[0]), place.join("systemd"));
        assert_eq!(unpacked(folder.path(), "usr/bin/vmtoolsd"), folder.path().join("bin/vmtoolsd"));
    }

    #[test]
    fn a_missing_library_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = std::env::current_exe().expect("this test's file");
        for root in TOOLS.iter().chain(["usr/lib/os-release"].iter()) {
            let place = folder.path().join(root);
            fs::create_dir_all(place.parent().expect("a folder")).expect("made");
            fs::copy(&own, place).expect("copied");
        }
        let error = pack_tools(folder.path(), &[]).expect_err("no libraries there");
        assert!(error.to_string().contains("which no package has"), "{error}");
    }
}
