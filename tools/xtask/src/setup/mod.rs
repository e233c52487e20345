//! `cargo xtask setup`: makes a fresh Debian or Ubuntu machine ready, without root.
//!
//! Everything lands in the ignored folder `.undercroft` at the work tree's root, and removing that folder undoes it
//! all. Each part first checks whether there is anything to do, so a second run ends at once and needs no network.
//!
//! | part | what | where |
//! |---|---|---|
//! | QEMU | 11.1 or newer, unless PATH has one | `.undercroft/bin/qemu-system-aarch64` |
//! | core | for the bare-metal target, unless rustup has it | `.undercroft/rust-src` |
//! | guests | arm64 kernels and a static busybox | `.undercroft/images` |
//! | guest tools | Debian's open-vm-tools for arm64; with `--all` of two releases | `.undercroft/images/tools-*.cpio` |
//! | systemd | Debian's, of the same releases | `.undercroft/images/systemd-*.cpio` |
//! | load | with `--all`: the guest tools and stress-ng of the older release | `.undercroft/images/load-bookworm.cpio` |
//! | U-Boot | with `--all`: Debian's, as a guest | `.undercroft/images/u-boot.bin` |
//! | EDK2 | with `--all`: Debian's, the firmware of an emulated host that starts by UEFI | `.undercroft/images/QEMU_EFI.fd` |
//! | gdb | with `--all`: Debian's, for arm64 too | `.undercroft/bin/gdb-multiarch` |
//! | e2fsprogs | with `--all`: Debian's `mke2fs`, `e2fsck` and `debugfs` | `.undercroft/bin/mke2fs` and its like |
//! | cargo-deny | with `--all`, unless cargo has it: what looks through our dependencies | `.undercroft/cargo-deny` |
//! | initramfs | from busybox and `tests/system/guest` | `.undercroft/images/initramfs.cpio` |
//! | the demonstration's | the same, with the guest tools | `.undercroft/images/demo.cpio` |

mod apt;
mod debugger;
pub(crate) mod deny;
mod emulator;
mod file_systems;
pub(crate) mod guests;
mod program;
mod progress;
mod standard;
mod tools;

use crate::tree::Tree;
use anyhow::Result;

pub(crate) use standard::Standard;

/// How much is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What `run` needs.
    Demo,
    /// What `test` needs too: all kernels, the guest tools and systemd of both releases, and cargo-deny.
    All,
}

/// Does it all.
pub(crate) fn setup(tree: &Tree, extent: Extent) -> Result<()> {
    emulator::provide(tree)?;
    standard::provide(tree)?;
    guests::provide(tree, extent)?;
    if extent == Extent::All {
        debugger::provide(tree)?;
        file_systems::provide(tree)?;
        deny::provide(tree)?;
    }
    println!("ready.");
    Ok(())
}

/// Does it if anything of this extent is missing: what every other command begins with.
pub(crate) fn when_needed(tree: &Tree, extent: Extent) -> Result<()> {
    let ready = qemu::find_from(&[tree.path("")]).is_ok()
        && Standard::find(tree).is_ok()
        && guests::are_there(tree, extent)
        && (extent == Extent::Demo
            || (debugger::is_there(tree) && file_systems::are_there(tree) && deny::find(tree).is_some()));
    if ready {
        return Ok(());
    }
    let all = if extent == Extent::All { " --all" } else { "" };
    println!("this machine lacks something; fetching that first (cargo xtask setup{all})");
    setup(tree, extent)
}

/// Debian's name of the architecture of this machine.
fn own_architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => {
            anyhow::bail!("setup knows no Debian architecture for {other}; put QEMU {} on PATH yourself", qemu::MINIMUM)
        }
    }
}
