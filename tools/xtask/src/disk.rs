//! The disk of payloads, whose contents they know: 64 sectors of words, each of them the multiple of a constant
//! (`tests/payloads/src/bin/virtio/disk.rs`).

use abi::bundle::{Disk, Disks, SECTOR};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// How many sectors there are.
const SECTORS: u64 = 64;
/// What each word is a multiple of.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Its serial number.
const SERIAL: &str = "payload-1.disk_A";

/// Where the disk of a payload is.
pub(crate) fn beside(payload: &Path) -> PathBuf {
    payload.with_extension("disk")
}

/// Writes it.
pub(crate) fn write(file: &Path) -> Result<()> {
    let words = (1..=SECTORS * SECTOR / 8).map(|number| number.wrapping_mul(FACTOR).to_le_bytes());
    fs::write(file, words.collect::<Vec<_>>().concat()).with_context(|| format!("writing {}", file.display()))
}

/// It as a VM's only one.
pub(crate) fn of(file: &Path) -> Disks<String, PathBuf> {
    Disks::of([Disk::of_image(file.to_path_buf(), SERIAL.to_owned())]).unwrap_or_default()
}
