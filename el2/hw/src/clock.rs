//! The host's real-time clock, a PL031.

use drivers::Pl031;
use units::{Pa, Range};

use crate::mmio::{Region, RegionError};

/// A handle of the host's real-time clock.
pub type Clock = Pl031<Region>;

/// The PL031 whose registers are at `range`.
///
/// # Errors
/// When there can be none.
pub fn open(range: Range<Pa>) -> Result<Clock, RegionError> {
    Ok(Pl031::new(Region::open(range)?)?)
}
