//! Limits on what one guest may make the hypervisor do, so that others do not pay for it: counts and rates, without
//! their own clock.
//!
//! * [`Pace`]: how often something may happen, with some at once.
//! * [`Ring`]: bytes that wait for the console's thread, and lines that are never torn.
//! * [`Reports`]: what the log says about one VM, at that VM's own pace, and how much was left out.
//! * [`Restarts`]: how soon a VM that resets itself again and again starts again.
//! * [`go`]: how much of endless work is done in one go.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod go;
mod pace;
mod reports;
mod restarts;
mod ring;

pub use go::go;
pub use pace::Pace;
pub use reports::Reports;
pub use restarts::{By, Restarts};
pub use ring::Ring;
