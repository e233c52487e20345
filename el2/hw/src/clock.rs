//! The host's PL031 (DDI 0224): the time of day, read once.

use units::{Pa, Range};

use crate::mmio;

const DATA: u64 = 0;

/// Seconds since 1970, from the PL031 at `registers`, which are mapped.
#[must_use]
pub fn seconds(registers: Range<Pa>) -> u64 {
    u64::from(mmio::read32(registers.start.0 + DATA))
}
