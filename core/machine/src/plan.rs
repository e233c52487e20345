//! The plan: what the guest's physical address space holds, and the lookup for an address that stage 2 does not map.

use arrayvec::{ArrayString, ArrayVec};
use units::{BLOCK_SIZE, Hz, IntId, Ipa, MAX_VCPUS, Range};

/// Where RAM begins.
pub const RAM_BASE: Ipa = Ipa(0x4000_0000);
/// How many virtio devices a machine can have: as many transports as QEMU's `virt` machine.
pub const MAX_VIRTIO: usize = 32;
/// How many regions a plan can hold.
pub const MAX_REGIONS: usize = MAX_VIRTIO + 7;
/// The longest name of a machine, in bytes.
const MAX_NAME: usize = 64;

/// The page with the vCPUs' records of stolen time (DEN0057), which is memory that the guest can only read. No device tree
/// names it: the guest asks for it.
pub const STOLEN_TIME: Ipa = Ipa(0x090a_0000);

/// The end of the flash banks, which begin at 0: two of 64 MiB each.
const FLASH_END: Ipa = Ipa(0x0800_0000);
const DISTRIBUTOR: Ipa = Ipa(0x0800_0000);
const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
const REDISTRIBUTORS: Ipa = Ipa(0x080a_0000);
const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const PL011: Ipa = Ipa(UART_BASE);
/// Where the UART is, for those who cannot wait for the plan: the short path of an exit.
pub const UART_BASE: u64 = 0x0900_0000;
const PL031: Ipa = Ipa(0x0901_0000);
const PL061: Ipa = Ipa(0x0903_0000);
/// The watchdog's frames, in pages of their own whatever the guest's page size is. QEMU's machine has no such device, and
/// nothing else there.
const WATCHDOG_CONTROL: Ipa = Ipa(0x0910_0000);
const WATCHDOG_REFRESH: Ipa = Ipa(0x0911_0000);
const PERIPHERAL_SIZE: u64 = 0x1000;
const VIRTIO: Ipa = Ipa(0x0a00_0000);
const VIRTIO_SIZE: u64 = 0x200;
const VIRTIO_FIRST_SPI: u32 = 16;

/// What the owner of a VM asks for.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The VM's name, for messages.
    pub name: &'a str,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// How many bits a guest's physical address has: what the host's stage 2 offers.
    pub ipa_bits: u32,
    /// The virtio devices, in the order of their transports.
    pub virtio: &'a [VirtioKind],
    /// Whether it has the Generic Watchdog of Arm's Base System Architecture.
    pub watchdog: bool,
    /// The frequency of the guest's counter.
    pub counter_frequency: Hz,
}

/// Why there can be no such machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MachineError {
    /// The name is empty or too long.
    #[error("the name has {0} bytes; it needs 1 to 64")]
    Name(usize),
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs asked for; a VM has 1 to 8")]
    Vcpus(u8),
    /// RAM is empty or no whole number of 2 MiB blocks.
    #[error("{0:#x} bytes of memory asked for; memory is a multiple of 2 MiB, and at least that")]
    MemorySize(u64),
    /// RAM goes beyond the address space that stage 2 offers.
    #[error("{memory:#x} bytes of memory from 1 GiB on do not fit into this host's {bits}-bit guest addresses")]
    MemoryTooLarge {
        /// What was asked for, in bytes.
        memory: u64,
        /// What the host has.
        bits: u32,
    },
    /// Too many virtio devices.
    #[error("{0} virtio devices asked for; a VM has at most 32")]
    Virtio(usize),
}

/// A kind of virtio device. The value is its device ID (virtio 1.3, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum VirtioKind {
    /// Network card.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Socket device.
    Socket = 19,
}

impl VirtioKind {
    /// The device ID, as the transport's DeviceID register shows it.
    #[must_use]
    pub const fn device_id(self) -> u32 {
        self as u32
    }
}

/// Which device answers at an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// The banks of flash memory: erased, and nothing can be written to them. No region, and not in the tree.
    Flash,
    /// The GIC's Distributor.
    Distributor,
    /// The Redistributors of all vCPUs, 0x2_0000 bytes each.
    Redistributors,
    /// The UART.
    Pl011,
    /// The real time clock.
    Pl031,
    /// The GPIO controller with the power button.
    Pl061,
    /// The Generic Watchdog's control frame.
    WatchdogControl,
    /// Its refresh frame.
    WatchdogRefresh,
    /// The virtio-mmio transport with this number, counted from 0 to [`MAX_VIRTIO`] less one. Those from
    /// [`MachinePlan::virtio`]'s length on are vacant.
    Virtio(u8),
}

/// How a device's interrupt is signalled, as the device tree says it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trigger {
    /// Each rising edge makes the interrupt pending.
    EdgeRising,
    /// The interrupt is pending while the line is high.
    LevelHigh,
}

/// A device's place in the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The guest addresses it answers at.
    pub range: Range<Ipa>,
    /// What it is.
    pub device: DeviceKind,
    /// Its interrupt, if it has one.
    pub interrupt: Option<IntId>,
    /// How that is signalled.
    pub trigger: Trigger,
}

/// The architected timers' interrupts: the PPIs that the Server Base System Architecture recommends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerInterrupts {
    /// EL1 physical timer as seen from Secure state: there is none, but the tree's binding has a place for it.
    pub secure_physical: IntId,
    /// EL1 physical timer.
    pub physical: IntId,
    /// EL1 virtual timer.
    pub virtual_: IntId,
    /// EL2 physical timer: there is none for a guest, but the tree's binding has a place for it.
    pub hypervisor_physical: IntId,
}

impl TimerInterrupts {
    /// The same on every machine.
    pub const ARCHITECTED: Self = Self {
        secure_physical: IntId::ppi(13),
        physical: IntId::ppi(14),
        virtual_: IntId::ppi(11),
        hypervisor_physical: IntId::ppi(10),
    };
}

/// One VM's machine.
#[derive(Clone, Debug)]
pub struct MachinePlan {
    name: ArrayString<MAX_NAME>,
    vcpus: u8,
    ram: Range<Ipa>,
    virtio: ArrayVec<VirtioKind, MAX_VIRTIO>,
    counter_frequency: Hz,
    redistributors_size: u64,
    regions: ArrayVec<Region, MAX_REGIONS>,
}

impl MachinePlan {
    /// The machine for `spec`.
    ///
    /// # Errors
    /// What `spec` asks for and cannot be had.
    pub fn new(spec: Spec<'_>) -> Result<Self, MachineError> {
        let name = ArrayString::from(spec.name).map_err(|_| MachineError::Name(spec.name.len()))?;
        if name.is_empty() {
            return Err(MachineError::Name(0));
        }
        if spec.vcpus == 0 || usize::from(spec.vcpus) > MAX_VCPUS {
            return Err(MachineError::Vcpus(spec.vcpus));
        }
        if spec.memory_bytes == 0 || !spec.memory_bytes.is_multiple_of(BLOCK_SIZE) {
            return Err(MachineError::MemorySize(spec.memory_bytes));
        }
        let too_large = MachineError::MemoryTooLarge { memory: spec.memory_bytes, bits: spec.ipa_bits };
        let ram = Range::new(RAM_BASE, spec.memory_bytes).ok_or(too_large)?;
        let limit = 1_u64.checked_shl(spec.ipa_bits).unwrap_or(u64::MAX);
        if ram.end() > Ipa(limit) {
            return Err(too_large);
        }
        let mut virtio = ArrayVec::new();
        virtio.try_extend_from_slice(spec.virtio).map_err(|_| MachineError::Virtio(spec.virtio.len()))?;
        let mut plan = Self {
            name,
            vcpus: spec.vcpus,
            ram,
            virtio,
            counter_frequency: spec.counter_frequency,
            redistributors_size: u64::from(spec.vcpus) * REDISTRIBUTOR_SIZE,
            regions: ArrayVec::new(),
        };
        plan.lay_out(spec.watchdog);
        Ok(plan)
    }

    /// Writes the list of regions, in the order of their addresses.
    fn lay_out(&mut self, watchdog: bool) {
        use DeviceKind::{Distributor, Pl011, Pl031, Pl061, Redistributors, Virtio, WatchdogControl, WatchdogRefresh};
        let level = |start, size, device, spi| (start, size, device, spi, Trigger::LevelHigh);
        let fixed = [
            level(DISTRIBUTOR, DISTRIBUTOR_SIZE, Distributor, None),
            level(REDISTRIBUTORS, self.redistributors_size, Redistributors, None),
            level(PL011, PERIPHERAL_SIZE, Pl011, Some(1)),
            level(PL031, PERIPHERAL_SIZE, Pl031, Some(2)),
            level(PL061, PERIPHERAL_SIZE, Pl061, Some(7)),
        ];
        let watchdog = watchdog.then_some([
            level(WATCHDOG_CONTROL, PERIPHERAL_SIZE, WatchdogControl, Some(10)),
            level(WATCHDOG_REFRESH, PERIPHERAL_SIZE, WatchdogRefresh, None),
        ]);
        let transports = (0..self.virtio.len() as u32).map(|number| {
            let start = Ipa(VIRTIO.0 + u64::from(number) * VIRTIO_SIZE);
            (start, VIRTIO_SIZE, Virtio(number as u8), Some(VIRTIO_FIRST_SPI + number), Trigger::EdgeRising)
        });
        self.regions = fixed
            .into_iter()
            .chain(watchdog.into_iter().flatten())
            .chain(transports)
            .map(|(start, size, device, spi, trigger)| Region {
                range: Range { start, size },
                device,
                interrupt: spi.map(IntId::spi),
                trigger,
            })
            .collect();
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many virtual CPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Its memory.
    #[must_use]
    pub fn ram(&self) -> Range<Ipa> {
        self.ram
    }

    /// Its virtio devices; the index is the number of the transport.
    #[must_use]
    pub fn virtio(&self) -> &[VirtioKind] {
        &self.virtio
    }

    /// The frequency of its counter.
    #[must_use]
    pub fn counter_frequency(&self) -> Hz {
        self.counter_frequency
    }

    /// Its timers' interrupts.
    #[must_use]
    pub fn timer_interrupts(&self) -> TimerInterrupts {
        TimerInterrupts::ARCHITECTED
    }

    /// All devices, sorted by address; no two overlap. Vacant transports and flash are none.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region of `device`.
    #[must_use]
    pub fn region(&self, device: DeviceKind) -> Option<&Region> {
        self.regions.iter().find(|region| region.device == device)
    }

    /// The device that answers at `ipa`, and how far behind its first address that is.
    ///
    /// On the path of every emulated access: the GIC is found in four instructions, the rest by binary search. All of
    /// QEMU's 32 virtio transports answer, with a device or without: there are drivers that look into each of them, and
    /// end at the first abort. So do its flash banks: boot loaders look for their settings there.
    #[inline]
    #[must_use]
    pub fn find(&self, ipa: Ipa) -> Option<(DeviceKind, u64)> {
        let in_distributor = ipa.0.wrapping_sub(DISTRIBUTOR.0);
        if in_distributor < DISTRIBUTOR_SIZE {
            return Some((DeviceKind::Distributor, in_distributor));
        }
        let in_redistributors = ipa.0.wrapping_sub(REDISTRIBUTORS.0);
        if in_redistributors < self.redistributors_size {
            return Some((DeviceKind::Redistributors, in_redistributors));
        }
        let in_transports = ipa.0.wrapping_sub(VIRTIO.0);
        if in_transports < MAX_VIRTIO as u64 * VIRTIO_SIZE {
            return Some((DeviceKind::Virtio((in_transports / VIRTIO_SIZE) as u8), in_transports % VIRTIO_SIZE));
        }
        if ipa < FLASH_END {
            return Some((DeviceKind::Flash, ipa.0));
        }
        self.search(ipa)
    }

    /// The binary search.
    fn search(&self, ipa: Ipa) -> Option<(DeviceKind, u64)> {
        let behind = self.regions.partition_point(|region| region.range.start <= ipa);
        let region = self.regions.get(behind.checked_sub(1)?)?;
        let offset = ipa.0 - region.range.start.0;
        (offset < region.range.size).then_some((region.device, offset))
    }
}
