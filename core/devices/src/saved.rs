//! Devices as values: what is taken out of one and put into another one, on this host or on another.
//!
//! Each device has such a type beside it (`SavedPl011` and so on), with a version of its own. It holds what the guest can see,
//! or what decides about what it will see; times are as the device has them, so whoever moves a VM between hosts gives it
//! the same time there. `save` and `restored` take the types apart by naming all of their fields: a field that is added and
//! forgotten does not compile.
//!
//! On the bus a device takes its state out as bytes, a section of its own ([`pack::Part`]), since whoever moves a machine's
//! devices does not know what they are.
//!
//! The values may come from a file. What no guest could have brought about is refused, so that the models need not expect
//! it.

/// Why a state cannot be put into a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a device's state is damaged: {0}")]
pub struct Unfit(pub &'static str);

impl From<Unfit> for pack::Damaged {
    fn from(Unfit(what): Unfit) -> Self {
        Self::Impossible(what)
    }
}

#[cfg(test)]
mod tests;
