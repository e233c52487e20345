//! The virtio devices of the host: behind windows of registers, and on its first PCI bus, which is opened once for all that is on it.
//! They are looked for when somebody wants one of a kind.

use core::fmt;

use drivers::virtio::{Transport as _, probe, register};
use hw::pci::Bus;
use hw::sync::PreemptLock;
use hw::virtio::{Device, Interrupt};
use platform::{BadPciHost, InterruptLine, PciHost, Platform, VirtioWindow};
use spin::Once;
use units::Pa;

/// Where they may be.
static PLATFORM: Once<&Platform<'_>> = Once::new();
/// The bus, if there is one and it can be used.
static BUS: Once<Option<PreemptLock<Bus<'static>>>> = Once::new();

/// Where a virtio device is.
#[derive(Clone, Copy)]
pub(crate) enum Address {
    /// Behind registers here.
    Registers(Pa),
    /// On the host's first PCI bus, by its number there.
    Pci(u8),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Registers(at) => write!(out, "{:#x}", at.0),
            Self::Pci(number) => write!(out, "PCI {:02x}.{}", number >> 3, number & 7),
        }
    }
}

/// A device that was found, without memory.
pub(crate) struct Found {
    /// Where.
    pub(crate) address: Address,
    /// It.
    pub(crate) device: Device,
    /// To take its interrupt back.
    pub(crate) interrupt: Interrupt,
    /// That interrupt.
    pub(crate) line: InterruptLine,
}

/// What becomes of a device that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is used, and so may others be.
    AndMore,
    /// It is used, and no other is looked for.
    Enough,
    /// It is not used.
    None,
}

/// They may be behind one of this platform's windows, or on its bus.
pub(crate) fn look_behind(platform: &'static Platform<'static>) {
    PLATFORM.call_once(|| platform);
}

/// Whether there may be any.
pub(crate) fn may_be() -> bool {
    windows().next().is_some() || pci().is_some()
}

fn windows() -> impl Iterator<Item = VirtioWindow> {
    PLATFORM.get().into_iter().flat_map(|platform| platform.virtio())
}

fn pci() -> Option<&'static Result<PciHost<'static>, BadPciHost>> {
    PLATFORM.get()?.pci.as_ref()
}

/// The bus. When it is opened, what is on it is silenced: so it is opened once.
fn bus() -> Option<&'static PreemptLock<Bus<'static>>> {
    let open = || {
        let host = match pci()? {
            Ok(host) => host,
            Err(error) => {
                log::warn!("the host's PCI is not used: {error}");
                return None;
            }
        };
        Bus::open(host)
            .inspect_err(|error| log::warn!("the host's PCI is not used: {}", error.sentence()))
            .ok()
            .map(PreemptLock::new)
    };
    BUS.call_once(open).as_ref()
}

/// Hands all devices of a kind (its device ID, and its name for the log) to `adopt`, those behind windows first, in the order of the
/// platform's description and of their numbers on the bus, until it has enough.
pub(crate) fn find(kind: u32, name: &str, adopt: &mut dyn FnMut(Found) -> Use) {
    find_each(kind, name, adopt, &mut || ());
}

/// As [`find`], for whoever counts them: `missed` hears of each that is of that kind and cannot be used, in its turn.
#[inline(never)]
pub(crate) fn find_each(kind: u32, name: &str, adopt: &mut dyn FnMut(Found) -> Use, missed: &mut dyn FnMut()) {
    for window in windows() {
        let address = Address::Registers(window.registers.start);
        let not_used = |why: &str| log::warn!("the virtio device at {address} is not used: {why}");
        let (device, interrupt) = match Device::open(window.registers) {
            Ok(opened) => opened,
            Err(error) => {
                not_used(error.sentence());
                continue;
            }
        };
        match probe(&device) {
            Ok(Some(found)) if found == kind => {
                let found = Found { address, device, interrupt, line: window.interrupt };
                if adopt(found) == Use::Enough {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                not_used(error.sentence());
                // Which kind it is stands where it always stood.
                if device.read(register::DEVICE_ID) == kind {
                    missed();
                }
            }
        }
    }
    let Some(bus) = bus() else { return };
    let mut first = 0;
    loop {
        let Some(number) = bus.lock().device_from(kind, first) else { return };
        first = u16::from(number) + 1;
        let address = Address::Pci(number);
        let opened = bus.lock().device(kind, number);
        match opened {
            Ok((device, interrupt, line)) => match adopt(Found { address, device, interrupt, line }) {
                Use::Enough => return,
                Use::AndMore => {}
                Use::None => bus.lock().close(number),
            },
            Err(error) => {
                log::warn!("the {name} at {address} is not used: {}", error.sentence());
                missed();
            }
        }
    }
}
