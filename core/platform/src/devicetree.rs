//! The reader of flattened device trees.

use crate::{Platform, PlatformError};
use units::Pa;

/// How many bytes at the start of a blob [`device_tree_size`] needs.
pub const HEADER_SIZE: usize = 8;
/// The largest blob that is read, in bytes.
pub const MAX_DEVICE_TREE_SIZE: usize = 2 << 20;

/// The length of the blob that begins with these bytes, if it is a device tree and not larger than
/// [`MAX_DEVICE_TREE_SIZE`]. For whoever has only an address, and must know how much to map.
#[must_use]
pub fn device_tree_size(header: [u8; HEADER_SIZE]) -> Option<usize> {
    let [m0, m1, m2, m3, s0, s1, s2, s3] = header;
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    ([m0, m1, m2, m3] == [0xd0, 0x0d, 0xfe, 0xed] && size <= MAX_DEVICE_TREE_SIZE).then_some(size)
}

impl<'t> Platform<'t> {
    /// Reads the flattened device tree `blob`, which lies at the physical address `location`. `blob` has the length that
    /// [`device_tree_size`] said; the platform's strings point into it.
    ///
    /// # Errors
    /// If it is malformed, or something is missing without which there can be no hypervisor.
    pub fn from_device_tree(_blob: &'t [u8], _location: Pa) -> Result<Self, PlatformError> {
        Err(PlatformError::NoCpus)
    }
}
