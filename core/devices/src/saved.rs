//! The state of devices as values: taken out of one device and put into another, on this host or on another.
//!
//! Each device has such a type beside it (`SavedPl011` and so on), with a version of its own. It holds what the guest can see, or
//! what decides about what it will see; times are as the device has them, so the code that moves a VM between hosts gives it the
//! same time there. `save` and `restored` take the types apart by naming all of their fields: a field that is added and forgotten
//! does not compile.
//!
//! On the bus a device gives its state as bytes, in its own section ([`pack::Part`]), since the code that moves a machine's
//! devices does not know their types.
//!
//! The values may come from a file. A state that no guest could have reached is refused, so the models need not expect it.

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
