//! The host's first PCI bus: its configuration space, and the virtio devices on it.
//!
//! `core/pci` knows what is written where, over any block of registers; this file has the mapped one, and lets nobody else write to it:
//! a function answers at the addresses, and does DMA, that it is told there. Registers of functions are mapped when they are used,
//! which is after the start.

use ::pci::{BadFunction, BarPlaces, Function};
use drivers::virtio::{self, Unusable};
use platform::{InterruptLine, PciHost};

use crate::mmio::{Region, RegionError};
use crate::sysreg::dsb_sy;
use crate::virtio::{Device, Interrupt};

/// Interrupts that are not a CPU's own.
const SHARED: core::ops::Range<u32> = 32..1020;

/// The bus.
#[derive(Debug)]
pub struct Bus<'p> {
    host: &'p PciHost<'p>,
    configuration: Region,
    places: BarPlaces<'p>,
}

/// Why a function is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unplugged {
    /// By what it says of itself.
    Function(BadFunction),
    /// Its registers cannot be reached.
    Registers(RegionError),
    /// As a virtio device.
    Device(Unusable),
    /// The description does not say where its interrupt goes.
    Interrupt,
}

impl Unplugged {
    /// A sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Function(why) => why.sentence(),
            Self::Registers(why) => why.sentence(),
            Self::Device(why) => why.sentence(),
            Self::Interrupt => "the device tree's interrupt-map does not say where its interrupt goes",
        }
    }
}

impl<'p> Bus<'p> {
    /// The first bus of `host`. What is there raises no interrupt from now on, until it is used.
    ///
    /// # Errors
    /// If its configuration space is not where no memory is.
    pub fn open(host: &'p PciHost<'p>) -> Result<Self, RegionError> {
        let configuration = Region::open_later(host.configuration)?;
        let places = BarPlaces::new(&configuration, &host.windows);
        Ok(Self { host, configuration, places })
    }

    /// The number on the bus of the first virtio device of this kind (its device ID) from this one on.
    #[must_use]
    pub fn device_from(&self, kind: u32, first: u16) -> Option<u8> {
        ::pci::virtio_from(&self.configuration, kind as u16, first).map(|function| function.number())
    }

    /// The device with this number, which is of this kind: reset, with its interrupt, and without memory.
    ///
    /// # Errors
    /// Why it is not used.
    #[inline(never)]
    pub fn device(&mut self, kind: u32, number: u8) -> Result<(Device, Interrupt, InterruptLine), Unplugged> {
        let function = Function::new(&self.configuration, number).ok_or(Unplugged::Function(BadFunction::Header))?;
        let found = Self::plug(kind, self.host, &function, &mut self.places);
        if found.is_err() {
            function.close();
        }
        // What it was told has arrived before anybody uses it: its configuration and its registers are not one device for the CPU.
        dsb_sy();
        found
    }

    /// Lets the function with this number do nothing any more: whoever had it makes no use of it.
    pub fn close(&self, number: u8) {
        if let Some(function) = Function::new(&self.configuration, number) {
            function.close();
        }
    }

    fn plug(
        kind: u32,
        host: &PciHost<'_>,
        function: &Function<'_>,
        places: &mut BarPlaces<'_>,
    ) -> Result<(Device, Interrupt, InterruptLine), Unplugged> {
        let pin = function.pin().map_err(Unplugged::Function)?;
        let is_shared = |line: &InterruptLine| SHARED.contains(&line.interrupt.0);
        let line = host.interrupt(function.device(), pin).filter(is_shared).ok_or(Unplugged::Interrupt)?;
        let structures = function.open(places).map_err(Unplugged::Function)?;
        dsb_sy();
        let (device, interrupt) = Device::open_pci(kind, &structures).map_err(Unplugged::Registers)?;
        virtio::reset(&device).map_err(Unplugged::Device)?;
        // It has forgotten whatever firmware told it, so there is no memory that it knows.
        function.allow_dma();
        Ok((device, interrupt, line))
    }
}
