//! Device trees of hosts: the emulator's own, with a change made to it.

use anyhow::{Context, Result};
use qemu::Machine;
use std::path::Path;

/// Writes the device tree that the emulator has for `machine` to `file`, after `change`, which keeps its length.
///
/// # Errors
/// If there is none, or the change cannot be made.
pub fn write(machine: &Machine, file: &Path, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut machine = machine.clone();
    machine.extra_args.extend(["-machine".to_owned(), format!("dumpdtb={}", file.display())]);
    machine.spawn()?.wait()?;
    let mut bytes = std::fs::read(file).context("the device tree")?;
    change(&mut bytes)?;
    // The emulator writes a tree with 1 MiB of room behind it (Devicetree Specification 5.2: offsets and sizes of structure
    // and strings are words 2, 9, 3 and 8), and would double that.
    let word = |bytes: &[u8], number: usize| {
        let word = bytes.get(4 * number..4 * number + 4).and_then(|word| word.try_into().ok());
        word.map(|word| u32::from_be_bytes(word) as usize).context("no header")
    };
    let ends = [word(&bytes, 2)? + word(&bytes, 9)?, word(&bytes, 3)? + word(&bytes, 8)?];
    bytes.truncate(ends.into_iter().max().unwrap_or(0));
    let size = (bytes.len() as u32).to_be_bytes();
    bytes.splice(4..8, size);
    std::fs::write(file, bytes)?;
    Ok(())
}

/// The bytes of the tree that are `old`, which stand there once, become `new`.
///
/// # Errors
/// If there are none.
pub fn replace(tree: &mut [u8], old: &[u8], new: &[u8]) -> Result<()> {
    let place = tree.windows(old.len()).position(|window| window == old).context("not in the device tree")?;
    let bytes = tree.get_mut(place..place + new.len()).context("the tree ends")?;
    bytes.copy_from_slice(new);
    Ok(())
}
