//! The host's PL031 (DDI 0224): the time of day, in whole seconds.

use units::{Pa, Range};

use crate::mmio;

/// Register offsets (DDI 0224 table 3-1): data, load.
const DATA: u64 = 0;
const LOAD: u64 = 8;

/// Seconds since 1970, from the PL031 at `registers`, which are mapped.
#[must_use]
pub fn seconds(registers: Range<Pa>) -> u64 {
    u64::from(mmio::read32(registers.start.0 + DATA))
}

/// Sets the PL031 at `registers`, which are mapped, to `seconds` since 1970. Says whether it took them: the load register
/// reads as what was written to it, while the counter follows at its own next second.
#[must_use]
pub fn set(registers: Range<Pa>, seconds: u32) -> bool {
    let load = registers.start.0 + LOAD;
    mmio::write32(load, seconds);
    mmio::read32(load) == seconds
}
