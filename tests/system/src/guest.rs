//! The guests: Debian's kernels with the test initramfs, and bare-metal payloads.

use crate::place;
use anyhow::{Context, Result};
use croft::site::Vm;
use std::path::{Path, PathBuf};

/// The kernel that a scenario takes when any will do: small, and the one that `setup` always fetches.
pub const USUAL: &str = "linux-6.12-cloud";
/// All kernels.
pub const KERNELS: [&str; 5] = ["linux-6.1-cloud", "linux-6.1", "linux-6.12-cloud", "linux-6.12", "linux-6.12-16k"];
/// The kernel whose drivers `setup` fetches too.
pub const WITH_DRIVERS: &str = "linux-6.12";
/// The kernel that finds VMClock.
pub const NEWEST: &str = "linux-7-cloud";
/// Memory of a Linux guest that has nothing special to do.
pub const MEMORY: u64 = 256 << 20;

/// What the init says first, behind the kernel's release.
pub fn online(vcpus: u8) -> String {
    format!(" {vcpus} cpus online")
}

/// A Linux guest. `words` go onto its kernel's command line: `uc.test=...` for what it is to do, nothing for a shell.
///
/// # Errors
/// If its files are not there.
pub fn linux(name: &str, kernel: &str, vcpus: u8, words: &str) -> Result<Vm> {
    let mut vm = Vm::new(name, place::kernel(kernel)?, MEMORY);
    vm.vcpus = vcpus;
    vm.initrd = Some(place::initramfs()?);
    vm.cmdline = format!("console=ttyAMA0 {words}").trim().to_owned();
    Ok(vm)
}

/// A Linux guest with the drivers of its virtio devices and its power button. Its initial ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_with_drivers(name: &str, vcpus: u8, words: &str, folder: &Path) -> Result<Vm> {
    kernel_with_drivers(name, WITH_DRIVERS, vcpus, words, folder)
}

/// As [`linux_with_drivers`], with this kernel, for which `setup` fetches drivers too.
///
/// # Errors
/// If its files are not there.
pub fn kernel_with_drivers(name: &str, kernel: &str, vcpus: u8, words: &str, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, kernel, vcpus, words)?;
    add_archives(&mut vm, &[place::modules(kernel)?], folder)?;
    Ok(vm)
}

/// A Linux guest with the driver of virtio's disks, and ext4. Its initial ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_with_disks(name: &str, vcpus: u8, words: &str, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, USUAL, vcpus, words)?;
    add_archives(&mut vm, &[place::disk_modules(USUAL)?], folder)?;
    Ok(vm)
}

/// A Linux guest with the driver of virtio's network devices. Its initial ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_with_networks(name: &str, vcpus: u8, words: &str, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, USUAL, vcpus, words)?;
    add_archives(&mut vm, &[place::net_modules(USUAL)?], folder)?;
    Ok(vm)
}

/// A Linux guest with drivers and a release's systemd, which its test `uc.test=systemd` makes its first process. Its initial
/// ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_with_systemd(name: &str, kernel: &str, release: &str, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, kernel, 1, "quiet uc.test=systemd")?;
    vm.memory = 384 << 20;
    add_archives(&mut vm, &[place::modules(kernel)?, place::systemd(release)?], folder)?;
    Ok(vm)
}

/// A Linux guest with VMware's guest tools of a release of Debian's, a network device that needs no hardware, and more
/// memory for both. Its initial ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_with_tools(name: &str, kernel: &str, release: &str, vcpus: u8, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, kernel, vcpus, "quiet")?;
    vm.memory = 384 << 20;
    add_archives(&mut vm, &[place::modules(kernel)?, place::tools(release)?], folder)?;
    Ok(vm)
}

/// A Linux guest with what makes load: VMware's guest tools and stress-ng of a release, a network device as in
/// [`linux_with_tools`]. Its initial ramdisk is made in `folder`.
///
/// # Errors
/// If its files are not there.
pub fn linux_under_load(name: &str, kernel: &str, vcpus: u8, words: &str, folder: &Path) -> Result<Vm> {
    let mut vm = linux(name, kernel, vcpus, words)?;
    vm.memory = 256 << 20;
    add_archives(&mut vm, &[place::modules(kernel)?, place::load()?], folder)?;
    Ok(vm)
}

/// Appends archives to a guest's initial ramdisk: Linux unpacks one after the other.
fn add_archives(vm: &mut Vm, archives: &[PathBuf], folder: &Path) -> Result<()> {
    let mut bytes = std::fs::read(place::initramfs()?)?;
    for archive in archives {
        bytes.extend(std::fs::read(archive)?);
    }
    let file = folder.join(format!("{}.cpio", vm.name));
    std::fs::write(&file, bytes)?;
    vm.initrd = Some(file);
    Ok(())
}

/// A bare-metal payload as an ELF executable for address `base`, written to `folder`. The linker made it for address 0; but
/// it runs anywhere, so its headers are all that has to be changed.
///
/// # Errors
/// Skips if it is not there.
pub fn payload_at(name: &str, payload: &str, base: u64, folder: &Path) -> Result<Vm> {
    let mut elf = std::fs::read(place::payload_elf(payload)?)?;
    let count = elf.get(56..58).context("the payload's header")?.try_into().map(u16::from_le_bytes)?;
    let mut add = |at: usize| {
        let field = elf.get_mut(at..at + 8).context("the payload's headers")?;
        let value = u64::from_le_bytes(field.try_into()?) + base;
        field.copy_from_slice(&value.to_le_bytes());
        anyhow::Ok(())
    };
    // e_entry; then p_vaddr and p_paddr of each program header (System V ABI, "ELF Header", "Program Header").
    add(24)?;
    for header in 0..usize::from(count) {
        add(64 + 56 * header + 16)?;
        add(64 + 56 * header + 24)?;
    }
    let file = folder.join(format!("{name}.elf"));
    std::fs::write(&file, elf)?;
    let mut vm = Vm::new(name, file, 64 << 20);
    vm.vcpus = 1;
    Ok(vm)
}

/// What [`place_of`] prints last.
pub const PLACE_KEPT: &str = "payload: 1 passed, 0 failed, 0 skipped\r\n";

/// A VM like this one whose guest ends at once: on another host, the place for it.
///
/// # Errors
/// If it is not there.
pub fn place_of(vm: Vm) -> Result<Vm> {
    Ok(Vm { kernel: place::payload("hello")?, initrd: None, cmdline: String::new(), ..vm })
}

/// A bare-metal payload as a guest.
///
/// # Errors
/// If it is not there.
pub fn payload(name: &str, payload: &str, vcpus: u8, words: &str) -> Result<Vm> {
    let mut vm = Vm::new(name, place::payload(payload)?, 64 << 20);
    vm.vcpus = vcpus;
    vm.cmdline = words.to_owned();
    Ok(vm)
}
