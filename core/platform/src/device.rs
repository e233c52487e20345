//! The host's devices as one list: the code that maps registers, or connects interrupts, walks over it and knows no
//! device by name. A device is added to the list together with its driver; a device without a driver is not mapped.

use units::{Pa, Range};

use crate::{ConsoleKind, InterruptLine, Platform, VirtioWindow};

/// A block of registers that a driver of ours uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its registers.
    pub registers: Range<Pa>,
    /// The shared interrupt that is its own, if it has one.
    pub interrupt: Option<InterruptLine>,
}

/// What a device of the host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// The GIC's Distributor.
    Distributor,
    /// A region of the GIC's Redistributors.
    Redistributors,
    /// The UART to talk through.
    Console(ConsoleKind),
    /// A PL031 that knows the time of day.
    Clock,
}

impl Platform<'_> {
    /// The host's devices, but for those behind virtio's windows: nobody knows yet which are there.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        let silent = |kind| move |registers| Device { kind, registers, interrupt: None };
        let distributor = core::iter::once(self.gic.distributor).map(silent(DeviceKind::Distributor));
        let redistributors = self.gic.redistributors.iter().copied().map(silent(DeviceKind::Redistributors));
        let console = self.console.into_iter().map(|console| Device {
            kind: DeviceKind::Console(console.kind),
            registers: console.registers,
            interrupt: console.interrupt,
        });
        let clock = self.clock.into_iter().map(silent(DeviceKind::Clock));
        distributor.chain(redistributors).chain(console).chain(clock)
    }

    /// The windows of virtio devices, of those that see memory as the CPUs' caches do.
    pub fn virtio(&self) -> impl Iterator<Item = VirtioWindow> {
        let windows = self.windows.iter().flat_map(|row| row.windows());
        windows.map(|(registers, interrupt)| VirtioWindow { registers, interrupt })
    }

    /// Where registers of further devices may be found when they are looked for: there is no telling now, so they are not in
    /// [`Platform::device_memory`].
    pub fn later_devices(&self) -> impl Iterator<Item = Pa> {
        let pci = self.pci.iter().flatten();
        pci.flat_map(|pci| {
            core::iter::once(pci.configuration.start).chain(pci.windows.iter().map(|window| window.memory.start))
        })
    }

    /// The memory that the devices' registers are in, and virtio's windows, in whole pieces of `step` bytes (a power of two): each
    /// piece once, by rising addresses, and pieces that touch as one range. There may be any number of devices: the list is
    /// walked again for each range, so nothing has to be stored before there is memory to store it in.
    pub fn device_memory(&self, step: u64) -> impl Iterator<Item = Range<Pa>> {
        let mut from = Pa(0);
        core::iter::from_fn(move || {
            // A range that was given out holds all that begins in it or at its end, so what ends later begins later.
            let rest = || {
                let registers =
                    self.devices().map(|device| device.registers).chain(self.windows.iter().map(|row| row.registers));
                registers.map(|range| widened(range, step)).filter(|range| !range.is_empty() && range.end() > from)
            };
            let start = rest().map(|range| range.start).min()?;
            let mut end = start;
            while let Some(further) =
                rest().filter(|range| range.start <= end && range.end() > end).map(|range| range.end()).max()
            {
                end = further;
            }
            from = end;
            Some(Range { start, size: end.0 - start.0 })
        })
    }
}

fn widened(range: Range<Pa>, step: u64) -> Range<Pa> {
    let start = range.start.align_down(step);
    let end = range.end().align_up(step).unwrap_or(range.end());
    Range { start, size: end.0 - start.0 }
}
