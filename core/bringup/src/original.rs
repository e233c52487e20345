//! By which protocol a CPU waits that firmware has left where it is.

use platform::{BootMethod, Conduit};
use units::Pa;

use crate::acpi::{Gicc, Oem};
use crate::mailbox;

/// An original protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartProtocol {
    /// PSCI's CPU_ON.
    Psci(Conduit),
    /// It waits at this mailbox already: there is nothing to convert.
    Parking(Pa),
    /// It waits for an address to be written here, and does not know what a number is.
    SpinTable(Pa),
    /// A way of this machine's own: the number of its row among those that the caller knows.
    Custom(usize),
    /// Nobody knows. It stays where it is, and is not offered to anybody.
    Unknown,
}

/// A machine whose firmware has a start protocol of its own, which no field of a table tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownPlatform {
    /// OEM ID and OEM table ID of its MADT.
    pub oem: Oem,
}

/// The protocol by which the CPU `gicc` waits. `psci` is what the FADT says; `oem` is the MADT's.
///
/// PSCI goes before the parking protocol, as in Linux: a firmware with both offers the same CPUs by either.
#[must_use]
pub fn of_acpi(psci: Option<Conduit>, gicc: &Gicc, oem: Oem, known: &[KnownPlatform]) -> StartProtocol {
    match (psci, gicc.parking()) {
        (Some(conduit), _) => StartProtocol::Psci(conduit),
        (None, Some(address)) => StartProtocol::Parking(address),
        (None, None) => {
            known.iter().position(|platform| platform.oem == oem).map_or(StartProtocol::Unknown, StartProtocol::Custom)
        }
    }
}

/// The protocol by which a CPU waits of which a device tree says `boot`; `psci` is what it says of that.
#[must_use]
pub fn of_tree(boot: BootMethod, psci: Option<Conduit>) -> StartProtocol {
    match (boot, psci) {
        (BootMethod::Psci, Some(conduit)) => StartProtocol::Psci(conduit),
        (BootMethod::SpinTable(address), _) => StartProtocol::SpinTable(address),
        // Its address word is one, for its number stands there. What else of a mailbox may be there is not believed: it gets ours.
        (BootMethod::Mailbox(page), _) => StartProtocol::SpinTable(Pa(page.0 + mailbox::ADDRESS as u64)),
        (BootMethod::Psci, None) | (BootMethod::Unknown, _) => StartProtocol::Unknown,
    }
}
