//! The guest's device tree, written from the plan.

use crate::MachinePlan;
use alloc::vec::Vec;
use units::{Ipa, Range};

/// What the tree's `/chosen` node tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo<'a> {
    /// The command line.
    pub bootargs: &'a str,
    /// Where the initrd is, if there is one.
    pub initrd: Option<Range<Ipa>>,
    /// Fresh random bytes for the kernel's generator.
    pub rng_seed: [u8; 32],
    /// A fresh random number that the kernel chooses its virtual address by.
    pub kaslr_seed: u64,
}

/// The tree of `plan` as a flattened blob.
#[must_use]
pub fn device_tree(_plan: &MachinePlan, _boot: &BootInfo<'_>) -> Vec<u8> {
    Vec::new()
}
