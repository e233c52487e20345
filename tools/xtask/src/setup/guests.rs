//! What guests run: Debian's own arm64 kernels, unchanged, and an initramfs around Debian's static busybox.
//!
//! A kernel's package is fetched without its dependencies, and only `vmlinuz` is taken out of it: the kernels print to
//! the PL011 and unpack an initramfs without any module. What Debian calls `vmlinuz` on arm64 is the plain `Image`.
//! From some kernels drivers are taken too, as an archive that can be appended to the initramfs (Linux unpacks one
//! archive after the other); VMware's guest tools ([`tools`]) are another such archive.

use super::Extent;
use super::apt::{Archive, Package};
use super::tools;
use crate::cpio;
use crate::tree::{Tree, replace};
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
    /// Modules that are taken along, in no order: they don't need each other.
    modules: &'static [&'static str],
    /// As well, in an archive of their own, for guests that have disks: others boot without these.
    disk_modules: &'static [&'static str],
    /// And for guests that have networks.
    net_modules: &'static [&'static str],
}

/// The drivers of virtio, its entropy device, the power button, and the Generic Watchdog.
const DRIVERS: &[&str] = &["virtio_mmio", "virtio-rng", "gpio_keys", "evdev", "sbsa_gwdt"];

/// A network device that needs no hardware: something for tools to report an address of.
const DUMMY_NETWORK: &[&str] = &["dummy"];

/// Virtio's disks, for a kernel that has its rings, and a file system, in itself.
const DISKS: &[&str] = &["virtio_mmio", "virtio_blk"];

/// Virtio's network devices, for such a kernel, and what their driver needs, in the order of their names.
const NETS: &[&str] = &["failover", "net_failover", "virtio_mmio", "virtio_net"];

/// All the kernels. That of the backports is the first of Debian's that finds VMClock in a device tree (from Linux 7.0 on).
pub(crate) const KERNELS: [Kernel; 6] = [
    Kernel {
        disk_modules: DISKS,
        net_modules: NETS,
        ..kernel("linux-6.12-cloud", "trixie", "linux-image-cloud-arm64", Extent::Demo, DUMMY_NETWORK)
    },
    kernel("linux-6.12", "trixie", "linux-image-arm64", Extent::All, DRIVERS),
    kernel("linux-6.12-16k", "trixie", "linux-image-arm64-16k", Extent::All, &[]),
    kernel("linux-6.1-cloud", "bookworm", "linux-image-cloud-arm64", Extent::All, DUMMY_NETWORK),
    kernel("linux-6.1", "bookworm", "linux-image-arm64", Extent::All, DRIVERS),
    kernel("linux-7-cloud", "trixie-backports", "linux-image-cloud-arm64", Extent::All, &[]),
];

const fn kernel(
    name: &'static str,
    suite: &'static str,
    package: &'static str,
    extent: Extent,
    modules: &'static [&'static str],
) -> Kernel {
    Kernel { name, suite, package, extent, modules, disk_modules: &[], net_modules: &[] }
}

/// Where the initramfs is.
pub(crate) fn initramfs(tree: &Tree) -> PathBuf {
    tree.store("images/initramfs.cpio")
}

/// Where a kernel is.
pub(crate) fn image(tree: &Tree, name: &str) -> PathBuf {
    tree.store("images").join(name).join("Image")
}

/// Where the demonstration's initramfs is: with VMware's guest tools, and the drivers of its kernel.
fn demonstration(tree: &Tree) -> PathBuf {
    tree.store("images/demo.cpio")
}

/// The kernel and the release of the demonstration.
const DEMONSTRATION: (&str, &str) = ("linux-6.12-cloud", "trixie");

/// Whether the initramfs, and all kernels and tools of this extent, are there.
pub(crate) fn are_there(tree: &Tree, extent: Extent) -> bool {
    let mut kernels = KERNELS.iter().filter(|kernel| extent == Extent::All || kernel.extent == extent);
    let mut releases = SUITES.iter().filter(|suite| needs_tools(suite, extent));
    initramfs(tree).is_file()
        && demonstration(tree).is_file()
        && (extent != Extent::All || (boot_loader(tree).is_file() && firmware(tree).is_file()))
        && kernels.all(|kernel| is_there(tree, kernel))
        && releases.all(|suite| tools::are_there(tree, suite))
}

/// Where U-Boot is, a guest that is not Linux and knows QEMU's `virt` by heart.
fn boot_loader(tree: &Tree) -> PathBuf {
    tree.store("images/u-boot.bin")
}

/// Where EDK2 is, UEFI firmware for the emulated host.
fn firmware(tree: &Tree) -> PathBuf {
    tree.store("images/QEMU_EFI.fd")
}

/// Debian's releases that guests come from, and what else has kernels.
const SUITES: [&str; 2] = ["trixie", "bookworm"];
const KERNEL_SUITES: [&str; 3] = ["trixie", "bookworm", "trixie-backports"];

/// Whether the tools of a release belong to this extent.
fn needs_tools(suite: &str, extent: Extent) -> bool {
    extent == Extent::All || suite == DEMONSTRATION.1
}

/// Where a kernel's modules are.
fn modules(tree: &Tree, name: &str) -> PathBuf {
    tree.store("images").join(name).join("modules.cpio")
}

/// Makes sure that kernels, busybox and the initramfs are there.
pub(crate) fn provide(tree: &Tree, extent: Extent) -> Result<()> {
    let busybox = tree.store("images/busybox");
    for suite in KERNEL_SUITES {
        let wanted = |kernel: &&Kernel| kernel.suite == suite && (extent == Extent::All || kernel.extent == extent);
        let (there, missing): (Vec<&Kernel>, Vec<&Kernel>) =
            KERNELS.iter().filter(wanted).partition(|kernel| is_there(tree, kernel));
        for kernel in there {
            println!("guests: {} is there", kernel.name);
        }
        let needs_busybox = suite == "trixie" && !busybox.is_file();
        let needs_tools = SUITES.contains(&suite) && needs_tools(suite, extent) && !tools::are_there(tree, suite);
        let needs_boot_loader = suite == "trixie" && extent == Extent::All && !boot_loader(tree).is_file();
        let needs_firmware = suite == "trixie" && extent == Extent::All && !firmware(tree).is_file();
        if missing.is_empty() && !needs_busybox && !needs_tools && !needs_boot_loader && !needs_firmware {
            continue;
        }
        println!("guests: fetching what is missing from {suite}");
        let archive = Archive::open(tree, &format!("guests-{suite}"), "arm64", &[suite])?;
        if needs_busybox {
            unpack_file(&fetch(&archive, "busybox-static")?, "./usr/bin/busybox", &busybox)?;
        }
        if needs_boot_loader {
            println!("  U-Boot");
            let package = fetch(&archive, "u-boot-qemu")?;
            unpack_file(&package, "./usr/lib/u-boot/qemu_arm64/u-boot.bin", &boot_loader(tree))?;
        }
        if needs_firmware {
            println!("  UEFI firmware");
            let package = fetch(&archive, "qemu-efi-aarch64")?;
            unpack_file(&package, "./usr/share/qemu-efi-aarch64/QEMU_EFI.fd", &firmware(tree))?;
        }
        for kernel in missing {
            let packages = archive.kernel(kernel.package)?;
            let image = image(tree, kernel.name);
            println!("  {} is {}", kernel.name, packages.image);
            let package = fetch(&archive, &packages.image)?;
            // It lies in /boot, or, from Linux 7 on, beside its modules.
            unpack_file(&package, "*/vmlinuz*", &image)?;
            check_image(&image)?;
            let package = if packages.modules == packages.image || archives(tree, kernel).next().is_none() {
                package
            } else {
                fetch(&archive, &packages.modules)?
            };
            for (names, place) in archives(tree, kernel) {
                pack_modules(&package, names, &place)?;
            }
        }
        if needs_tools {
            println!("  VMware's guest tools and systemd of {suite}");
            tools::pack(tree, &archive, suite)?;
        }
    }
    pack_initramfs(tree)?;
    println!("guests: {} is packed", initramfs(tree).display());
    Ok(())
}

fn is_there(tree: &Tree, kernel: &Kernel) -> bool {
    image(tree, kernel.name).is_file() && archives(tree, kernel).all(|(names, place)| has_modules(names, &place))
}

/// The archives of a kernel's modules: which are in it, and where it is.
fn archives(tree: &Tree, kernel: &Kernel) -> impl Iterator<Item = (&'static [&'static str], PathBuf)> {
    let beside = |name| modules(tree, kernel.name).with_file_name(name);
    let all = [
        (kernel.modules, modules(tree, kernel.name)),
        (kernel.disk_modules, beside("disks.cpio")),
        (kernel.net_modules, beside("net.cpio")),
    ];
    all.into_iter().filter(|(names, _)| !names.is_empty())
}

/// Whether an archive of modules is there with all of them: an older setup may have wanted fewer.
fn has_modules(names: &[&str], place: &Path) -> bool {
    let Ok(archive) = fs::read(place) else { return false };
    let holds = |file: String| archive.windows(file.len()).any(|window| window == file.as_bytes());
    names.iter().all(|name| holds(format!("modules/{name}.ko")))
}

/// Takes modules out of a kernel's package and makes an archive of them, in `/modules`.
fn pack_modules(package: &Package, names: &[&str], place: &Path) -> Result<()> {
    let mut packed = cpio::Archive::default();
    packed.directory("modules");
    for name in names {
        let file = place.with_file_name("module");
        unpack_file(package, &format!("*/{name}.ko*"), &file)?;
        let content = fs::read(&file)?;
        // The name says to the kernel how the module is packed.
        let end = if content.starts_with(b"\xfd7zXZ") { ".xz" } else { "" };
        packed.file(&format!("modules/{name}.ko{end}"), 0o644, &content);
        fs::remove_file(&file)?;
    }
    replace(place, &packed.finish())
}

fn fetch(archive: &Archive, name: &str) -> Result<Package> {
    archive.download(&[name])?.into_iter().next().with_context(|| format!("no file for {name}"))
}

/// Takes the one file that matches `pattern` out of a package.
fn unpack_file(package: &Package, pattern: &str, place: &Path) -> Result<()> {
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

/// Packs the initramfs: busybox, `tests/system/guest`, and the benchmark program, the one that watches clocks, and the tools for
/// guests if they have been built.
pub(crate) fn pack_initramfs(tree: &Tree) -> Result<()> {
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "tests"] {
        archive.directory(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &fs::read(tree.store("images/busybox")).context("busybox; run setup")?);
    archive.symlink("bin/sh", "busybox");
    for script in ["init", "system"] {
        archive.file(script, 0o755, &fs::read(tree.path("tests/system/guest").join(script))?);
    }
    let mut scripts: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(tree.path("tests/system/guest/tests")).context("tests/system/guest/tests")? {
        scripts.push(entry?.path());
    }
    scripts.sort();
    for script in scripts {
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("tests/{name}"), 0o755, &fs::read(&script)?);
    }
    for program in ["linux-bench", "linux-clocks", "uc-info", "uc-watchdog"] {
        let built = tree.store("images").join(program);
        if built.is_file() {
            archive.file(&format!("bin/{program}"), 0o755, &fs::read(built)?);
        }
    }
    let packed = archive.finish();
    replace(&initramfs(tree), &packed)?;
    pack_demonstration(tree, packed)
}

/// Appends what the demonstration has beside the tests' initramfs; Linux unpacks one archive after the other.
fn pack_demonstration(tree: &Tree, mut packed: Vec<u8>) -> Result<()> {
    let (kernel, release) = DEMONSTRATION;
    for archive in [modules(tree, kernel), tools::archive(tree, "tools", release)] {
        packed.extend(fs::read(&archive).with_context(|| format!("{}; run setup", archive.display()))?);
    }
    replace(&demonstration(tree), &packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files that an extent wants, with what they need to hold.
    fn files(tree: &Tree, extent: Extent) -> Vec<(PathBuf, String)> {
        let mut files = vec![(initramfs(tree), String::new()), (demonstration(tree), String::new())];
        for kernel in KERNELS.iter().filter(|kernel| extent == Extent::All || kernel.extent == extent) {
            files.push((image(tree, kernel.name), String::new()));
            let modules = archives(tree, kernel);
            files.extend(
                modules.map(|(names, place)| (place, names.iter().map(|name| format!("modules/{name}.ko ")).collect())),
            );
        }
        let releases: &[(&str, &[&str])] = match extent {
            Extent::Demo => &[("trixie", &["tools", "systemd"])],
            Extent::All => &[("trixie", &["tools", "systemd"]), ("bookworm", &["tools", "systemd", "load"])],
        };
        for (suite, names) in releases {
            files.extend(names.iter().map(|name| (tools::archive(tree, name, suite), String::new())));
        }
        if extent == Extent::All {
            files.push((tree.store("images/u-boot.bin"), String::new()));
            files.push((tree.store("images/QEMU_EFI.fd"), String::new()));
        }
        files
    }

    fn write(files: &[(PathBuf, String)]) {
        for (place, content) in files {
            fs::create_dir_all(place.parent().expect("a folder")).expect("made");
            fs::write(place, content).expect("written");
        }
    }

    /// What one of them lacks is fetched, whichever it is: else the tests that need it are skipped, and all is green.
    #[test]
    fn each_archive_is_missed() {
        for extent in [Extent::Demo, Extent::All] {
            let folder = tempfile::tempdir().expect("a folder");
            let tree = Tree::at(folder.path().to_path_buf());
            let wanted = files(&tree, extent);
            assert!(!are_there(&tree, extent), "nothing is there");
            write(&wanted);
            assert!(are_there(&tree, extent), "{extent:?} wants more than {wanted:?}");
            for (place, content) in &wanted {
                fs::remove_file(place).expect("removed");
                assert!(!are_there(&tree, extent), "{extent:?} does not miss {}", place.display());
                // As an older setup made it, with fewer modules.
                if content.contains(".ko") {
                    fs::write(place, content.replacen("modules/", "", 1)).expect("written");
                    assert!(!are_there(&tree, extent), "{extent:?} does not miss a module in {}", place.display());
                }
                fs::write(place, content).expect("written");
            }
            assert_eq!(are_there(&tree, Extent::All), extent == Extent::All);
        }
    }
}
