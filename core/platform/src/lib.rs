//! The host, described once.
//!
//! Firmware describes a machine by a device tree, or by ACPI tables. Nothing else in the hypervisor needs to know
//! which: one reader for each kind writes the same [`Platform`], and everything later reads that.
//!
//! * [`Platform::from_device_tree`] reads a flattened device tree (Devicetree Specification 0.4, chapter 5).
//! * A reader of ACPI tables will write the same structure.
//!
//! A description comes from the firmware, which we trust more than a guest; but it may be truncated or plainly wrong, and
//! a hypervisor that panics before its console works is a black screen. So whatever the bytes are, the answer is a
//! platform or an error that says what is missing. It is read once, at start, on one CPU, without a heap and in few
//! instructions.
#![no_std]
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use units::{CpuId, Hz, IntId, Pa, Range, Trigger};

mod device;
mod devicetree;
mod pci;
mod redistributors;

use devicetree::WindowRow;

pub use device::{Device, DeviceKind};
pub use devicetree::{HEADER_SIZE, MAX_DEVICE_TREE_SIZE, device_tree_size};
pub use pci::{BadPciHost, MAX_PCI_WINDOWS, PciHost, PciWindow};

/// How many CPUs are used; further ones stay off.
pub const MAX_CPUS: usize = 64;
/// How many ranges of memory are used; further ones are left alone.
pub const MAX_MEMORY_RANGES: usize = 32;
/// How many reserved ranges there may be: 64 of the description, and two for what we keep at the start. More are an error: memory that is
/// somebody else's must not be forgotten.
pub const MAX_RESERVED_RANGES: usize = 66;
/// How many regions of Redistributors there may be.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 8;

/// How many rows windows of virtio devices may stand in, one beside the other. QEMU's `virt` has one row.
pub const MAX_WINDOW_ROWS: usize = 4;

/// The host.
#[derive(Clone, Debug)]
pub struct Platform<'t> {
    /// What the machine calls itself; may be empty.
    pub model: &'t str,
    /// The CPUs that may be used, numbered in this order. See [`Platform::put_first`].
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How many more CPUs the machine has than [`MAX_CPUS`].
    pub cpus_left_out: usize,
    /// Its RAM, sorted; touching ranges are merged.
    pub memory: ArrayVec<Range<Pa>, MAX_MEMORY_RANGES>,
    /// What of it (or elsewhere) is not to be used: the firmware's, the description itself, the initrd. In no order; may
    /// overlap.
    pub reserved: ArrayVec<Range<Pa>, MAX_RESERVED_RANGES>,
    /// The interrupt controller.
    pub gic: Gicv3,
    /// The UART to talk through, if one is found.
    pub console: Option<Console>,
    /// The registers of a PL031 that knows the time of day.
    pub clock: Option<Range<Pa>>,
    /// See [`Platform::virtio`]. Rows of them: a list of all would be too large for the stack on which we boot.
    windows: ArrayVec<WindowRow, MAX_WINDOW_ROWS>,
    /// The first PCI host whose devices see memory as the CPUs' caches do, or why it cannot be used.
    pub pci: Option<Result<PciHost<'t>, BadPciHost>>,
    /// How to call the firmware to switch CPUs on, if it offers that.
    pub psci: Option<Psci>,
    /// The architected timers' interrupts.
    pub timer: Timer,
    /// Where the initial ramdisk is, if there is one.
    pub initrd: Option<Range<Pa>>,
    /// The command line; may be empty.
    pub bootargs: &'t str,
    /// Random bytes from the boot loader, if it gave any.
    pub seed: Option<&'t [u8]>,
}

/// A CPU of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Our number for it: its index in [`Platform::cpus`].
    pub id: CpuId,
    /// Its affinity fields, as they stand in `MPIDR_EL1` (all other bits are zero).
    pub mpidr: u64,
    /// How it is started.
    pub boot: BootMethod,
}

/// How a CPU is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootMethod {
    /// By PSCI's `CPU_ON`.
    Psci,
    /// It waits for a 64-bit entry address to be written here.
    SpinTable(Pa),
    /// It waits at this mailbox of ours, to which it was brought (`core/bringup`).
    Mailbox(Pa),
    /// The description does not say, or not in a way we know. The boot CPU may well be such a one.
    Unknown,
}

/// A GICv3 or GICv4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gicv3 {
    /// The Distributor's registers.
    pub distributor: Range<Pa>,
    /// The regions of Redistributors; a Redistributor finds its CPU by GICR_TYPER.
    pub redistributors: ArrayVec<Range<Pa>, MAX_REDISTRIBUTOR_REGIONS>,
    /// Bytes from one Redistributor to the next; `None` if GICR_TYPER.VLPIS says it: 0x2_0000, or 0x4_0000 with VLPIS.
    pub stride: Option<u64>,
    /// The first Interrupt Translation Service, if there is one.
    pub its: Option<Range<Pa>>,
    /// The maintenance interrupt of the virtual CPU interface.
    pub maintenance: InterruptLine,
}

/// A device's line to the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptLine {
    /// Which interrupt it is.
    pub interrupt: IntId,
    /// What of it is an interrupt; `None` where the description does not say, and what the controller has from reset must do.
    pub trigger: Option<Trigger>,
}

/// A UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Console {
    /// What it is.
    pub kind: ConsoleKind,
    /// Its registers.
    pub registers: Range<Pa>,
    /// Its interrupt; without one it has to be polled.
    pub interrupt: Option<InterruptLine>,
}

/// Where a virtio device may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioWindow {
    /// Its registers.
    pub registers: Range<Pa>,
    /// Its interrupt.
    pub interrupt: InterruptLine,
}

/// A kind of UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleKind {
    /// Arm's PL011.
    Pl011,
    /// The generic UART of the Server Base System Architecture: a PL011 without the registers that set it up.
    Sbsa,
    /// A 16550.
    Ns16550 {
        /// Register n is at offset `n << register_shift`.
        register_shift: u8,
        /// How many bytes wide the accesses have to be: 1, 2 or 4.
        register_width: u8,
    },
}

/// The firmware's power interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    /// The instruction that calls it.
    pub conduit: Conduit,
    /// The version that is promised; PSCI_VERSION says it exactly, from 0.2 on.
    pub version: PsciVersion,
    /// The function number of `CPU_ON`. Fixed from version 0.2 on.
    pub cpu_on: u32,
}

/// An instruction that calls firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// Secure Monitor Call.
    Smc,
    /// Hypervisor Call: we run under somebody else's hypervisor.
    Hvc,
}

/// A version of PSCI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PsciVersion {
    /// 0.1: function numbers come from the description.
    V0_1,
    /// 0.2.
    V0_2,
    /// 1.0 or later.
    V1_0,
}

/// The architected timers' interrupts (PPIs), and their frequency if the description has to say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timer {
    /// EL1 physical timer.
    pub physical: InterruptLine,
    /// EL1 virtual timer.
    pub virtual_: InterruptLine,
    /// EL2 physical timer.
    pub hypervisor_physical: InterruptLine,
    /// EL2 virtual timer, if it has one (FEAT_VHE).
    pub hypervisor_virtual: Option<InterruptLine>,
    /// The counter's frequency where firmware left CNTFRQ_EL0 unset.
    pub frequency: Option<Hz>,
}

/// Why a description is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlatformError {
    /// Not a device tree, or a broken one.
    #[error("the device tree is malformed: {0}")]
    Malformed(&'static str),
    /// A version that cannot be read.
    #[error("the device tree has version {0}; 17 or compatible with it is needed")]
    Version(u32),
    /// No CPU.
    #[error("the firmware describes no CPU")]
    NoCpus,
    /// No memory.
    #[error("the firmware describes no memory")]
    NoMemory,
    /// No interrupt controller.
    #[error("the firmware describes no GICv3, which this hypervisor needs")]
    NoGicv3,
    /// An older GIC.
    #[error("the interrupt controller is older than GICv3, which this hypervisor needs")]
    OldGic,
    /// A distance that cannot be.
    #[error("the GIC's redistributor-stride is {0:#x}; it must be a multiple of 0x10000, and 0x20000 at least")]
    RedistributorStride(u64),
    /// The GIC cannot serve a hypervisor.
    #[error("the GIC has no maintenance interrupt: its CPU interface cannot serve guests")]
    NoMaintenanceInterrupt,
    /// No timer.
    #[error("the firmware does not describe the architected timers of EL1 and EL2")]
    NoTimer,
    /// More reserved ranges than there is room for.
    #[error("the firmware reserves more than 64 ranges of memory, which is all there is room for")]
    TooManyReservedRanges,
}

impl Platform<'_> {
    /// Makes the CPU with these affinity fields number 0, as the one that booted; the others keep their order. Other bits
    /// of `mpidr` than the affinity fields are ignored. Says whether there is such a CPU.
    pub fn put_first(&mut self, mpidr: u64) -> bool {
        let Some(place) = self.cpus.iter().position(|cpu| cpu.mpidr == mpidr & Cpu::AFFINITY_MASK) else {
            return false;
        };
        if let Some(front) = self.cpus.get_mut(..=place) {
            front.rotate_right(1);
            for (cpu, number) in front.iter_mut().zip(0..) {
                cpu.id = CpuId(number);
            }
        }
        true
    }
}

impl Cpu {
    /// The affinity fields of `MPIDR_EL1`: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0.
    pub const AFFINITY_MASK: u64 = 0xff_00ff_ffff;
}
