//! Paravirtualized time (DEN0057): how a guest finds the record of the time that was stolen from a vCPU.
//!
//! The scheduler's side writes the record itself (16 bytes: revision, attributes, nanoseconds). Here is its discovery,
//! in two calls (is it there, and at which address), and where in the record the time is.

use abi::calls::arm::{PV_TIME_FEATURES, PV_TIME_ST};

use crate::{Facts, NOT_SUPPORTED, SUCCESS};

/// Bytes from one vCPU's record to the next. Revision and attributes (version 1.0: both 0) are the first 8 of them.
pub const RECORD_SIZE: u64 = 64;
/// Where in a record the stolen time is, a 64-bit word.
pub const STOLEN_OFFSET: u64 = 8;

/// The owner field of these functions: standard hypervisor services.
pub(crate) const OWNER: u32 = 5;

/// The answer to one of these functions; `NOT_SUPPORTED` throughout when the vCPU has no record.
pub(crate) fn answer(function: u32, arguments: [u64; 3], facts: &Facts) -> u64 {
    let Some(record) = facts.stolen_time else { return NOT_SUPPORTED };
    match function {
        PV_TIME_FEATURES => match arguments[0] as u32 {
            PV_TIME_FEATURES | PV_TIME_ST => SUCCESS,
            _ => NOT_SUPPORTED,
        },
        PV_TIME_ST => record.0,
        _ => NOT_SUPPORTED,
    }
}
