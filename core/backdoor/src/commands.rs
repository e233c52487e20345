//! The commands of VMware's low port (W2\[15:0\]): their numbers and who may use them.
//!
//! Only commands that an arm64 client uses, or whose answer one understands, are here. All others answer with
//! [`NO_COMMAND`] in W0, as an x86 port without a device does.

use crate::service::Level;

/// W0 of a command that does not exist, or not for the caller.
pub const NO_COMMAND: u64 = 0xffff_ffff;

/// CPU speed in MHz.
pub const GET_MHZ: u16 = 1;
/// Version of this interface.
pub const GET_VERSION: u16 = 10;
/// Removable devices; we have none.
pub const GET_DEVICE: u16 = 11;
/// Connects removable devices.
pub const TOGGLE_DEVICE: u16 = 12;
/// Options of the tools.
pub const GET_OPTIONS: u16 = 13;
/// Version of the virtual hardware.
pub const GET_HARDWARE_VERSION: u16 = 17;
/// The VM's UUID.
pub const GET_UUID: u16 = 19;
/// Memory size.
pub const GET_MEMORY: u16 = 20;
/// UTC in 32 bits.
pub const GET_TIME: u16 = 23;
/// The clock was stepped: stop slewing.
pub const STOP_CATCH_UP: u16 = 24;
/// RPC channels ([`crate::channel`]).
pub const MESSAGE: u16 = 30;
/// UTC in 64 bits.
pub const GET_TIME_FULL: u16 = 46;
/// The same, and how far interrupts lag.
pub const GET_TIME_FULL_WITH_LAG: u16 = 55;
/// Statistics that a display driver offers; noted by nobody.
pub const DISPLAY_STATISTICS: u16 = 85;

/// W0 of [`GET_VERSION`]: the only version that clients accept.
pub const VERSION: u64 = 6;
/// W2 of [`GET_VERSION`]: the product, a server.
pub const PRODUCT: u64 = 2;
/// W0 of [`GET_HARDWARE_VERSION`].
pub const HARDWARE_VERSION: u64 = 20;
/// Bit of W0 of [`GET_OPTIONS`]: time is to be synchronised.
pub const OPTION_TIME_SYNC: u64 = 0x400;
/// W2 of the time commands: microseconds that a guest may lag.
pub const TOLERATED_LAG: u64 = 1_000_000;

/// The least level that `command` is for. What names physical pages is for kernels alone.
#[must_use]
pub const fn least_level(command: u16) -> Level {
    match command {
        DISPLAY_STATISTICS => Level::Kernel,
        _ => Level::User,
    }
}

/// Commands that are allowed or refused together. GET_VERSION is in none: it is always answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// RPC channels.
    Rpc,
    /// What time it is.
    Time,
    /// What the machine is made of.
    Hardware,
    /// Our own calls.
    Own,
}

/// Groups, a bit each in the order of [`Group`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups(pub u8);

impl Groups {
    /// All of them.
    pub const ALL: Self = Self(15);

    /// Whether `group` is one of them.
    #[must_use]
    pub const fn has(self, group: Group) -> bool {
        self.0 >> group as u8 & 1 != 0
    }
}

/// The group of `command`.
#[must_use]
pub const fn group(command: u16) -> Option<Group> {
    match command {
        GET_VERSION => None,
        MESSAGE => Some(Group::Rpc),
        GET_TIME | GET_TIME_FULL | GET_TIME_FULL_WITH_LAG | STOP_CATCH_UP => Some(Group::Time),
        _ => Some(Group::Hardware),
    }
}
