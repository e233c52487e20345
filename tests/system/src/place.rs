//! Where kernels, initial ramdisk and payloads are.

use anyhow::{Result, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The project's folder.
pub fn project() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), |own| project().join(own))
}

/// This file, if it is there. If not, that is a failure: it could be had.
fn found(path: PathBuf, maker: &str) -> Result<PathBuf> {
    ensure!(path.is_file(), "no {}; run `cargo xtask {maker}`", path.display());
    Ok(path)
}

/// A kernel of Debian's, by the name of its folder.
///
/// # Errors
/// If it is not there.
pub fn kernel(name: &str) -> Result<PathBuf> {
    found(project().join(".undercroft/images").join(name).join("Image"), "setup --all")
}

/// The modules of a kernel of Debian's, as an archive.
///
/// # Errors
/// If it is not there.
pub fn modules(name: &str) -> Result<PathBuf> {
    found(project().join(".undercroft/images").join(name).join("modules.cpio"), "setup --all")
}

/// The modules by which a kernel of Debian's has disks, as an archive.
///
/// # Errors
/// If it is not there.
pub fn disk_modules(name: &str) -> Result<PathBuf> {
    found(project().join(".undercroft/images").join(name).join("disks.cpio"), "setup --all")
}

/// The modules by which a kernel of Debian's has networks, as an archive.
///
/// # Errors
/// If it is not there.
pub fn net_modules(name: &str) -> Result<PathBuf> {
    found(project().join(".undercroft/images").join(name).join("net.cpio"), "setup --all")
}

/// UEFI firmware for the emulated host.
///
/// # Errors
/// If it is not there.
pub fn firmware() -> Result<PathBuf> {
    found(project().join(".undercroft/images/QEMU_EFI.fd"), "setup --all")
}

/// The initial ramdisk of all test guests.
///
/// # Errors
/// If it is not there.
pub fn initramfs() -> Result<PathBuf> {
    found(project().join(".undercroft/images/initramfs.cpio"), "setup")
}

/// VMware's guest tools of a release of Debian's, as an archive.
///
/// # Errors
/// If it is not there.
pub fn tools(release: &str) -> Result<PathBuf> {
    found(project().join(format!(".undercroft/images/tools-{release}.cpio")), "setup --all")
}

/// VMware's guest tools and stress-ng of a release of Debian's, as an archive.
///
/// # Errors
/// If it is not there.
pub fn load() -> Result<PathBuf> {
    found(project().join(".undercroft/images/load-bookworm.cpio"), "setup --all")
}

/// systemd of a release of Debian's, as an archive.
///
/// # Errors
/// If it is not there.
pub fn systemd(release: &str) -> Result<PathBuf> {
    found(project().join(format!(".undercroft/images/systemd-{release}.cpio")), "setup --all")
}

/// Debian's U-Boot for QEMU's `virt`, a raw binary that runs at any page.
///
/// # Errors
/// Skips if it is not there.
pub fn boot_loader() -> Result<PathBuf> {
    found(project().join(".undercroft/images/u-boot.bin"), "setup --all")
}

/// A PATH on which `gdb-multiarch` is the one that was fetched.
///
/// # Errors
/// If it is not there.
pub fn path_with_debugger() -> Result<OsString> {
    let folder = found(project().join(".undercroft/bin/gdb-multiarch"), "setup --all")?.with_file_name("");
    let others = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&others)))?)
}

/// A bare-metal payload.
///
/// # Errors
/// If it is not there.
pub fn payload(name: &str) -> Result<PathBuf> {
    found(target().join("payloads").join(format!("{name}.img")), "build")
}

/// A bare-metal payload as the linker wrote it: an ELF file, linked to address 0.
///
/// # Errors
/// Skips if it is not there.
pub fn payload_elf(name: &str) -> Result<PathBuf> {
    found(target().join("aarch64-unknown-none-softfloat/release").join(name), "build")
}

/// The hypervisor.
///
/// # Errors
/// If it is not there.
pub fn hypervisor() -> Result<PathBuf> {
    found(target().join("undercroft.img"), "build")
}

/// The hypervisor with checks of itself.
///
/// # Errors
/// If it is not there.
pub fn checks() -> Result<PathBuf> {
    found(target().join("undercroft-checks.img"), "build")
}

/// The hypervisor with checks of itself as an ELF file, which has its symbols.
///
/// # Errors
/// If it is not there.
pub fn checks_symbols() -> Result<PathBuf> {
    found(target().join("aarch64-unknown-none-softfloat/release/undercroft-checks"), "build")
}
