//! The guest's device tree, written from the plan.
//!
//! Nodes and properties are those that QEMU writes for its `virt` machine, in the bindings of Linux's
//! Documentation/devicetree, less what the machine does not have. Every address and interrupt comes from the plan.

use crate::blob::{NoRoom, Writer};
use crate::placement::DEVICE_TREE_SIZE;
use crate::plan::MAX_FRAMES;
use crate::{DISTRIBUTOR, DeviceKind, MachinePlan, Row, Timers, Wire};
use abi::bundle::MAX_CMDLINE;
use abi::calls::arm;
use abi::enclave::COMPATIBLE;
use alloc::vec::Vec;
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};
use devices::POWER_BUTTON_PIN;
use devices::bus::MAX_LINES;
use units::{IntId, Ipa, Range, Trigger};

/// Our name in the tree.
const HYPERVISOR: &str = "undercroft,hypervisor";
/// The interrupt controller's handle. Zero is no handle.
const GIC: u32 = 1;
/// The handle of the peripherals' clock.
const CLOCK: u32 = 2;
/// The handles of the CPUs follow from here, and behind the last CPU's those of the devices, by their rows.
const FIRST_CPU: u32 = 16;

/// The clock that PL011, PL031 and PL061 are driven by, in hertz.
const PERIPHERAL_CLOCK: u32 = 24_000_000;
/// Linux's KEY_POWER.
const KEY_POWER: u32 = 116;

/// The GIC binding's interrupt types and flags.
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// What the tree's `/chosen` node tells the kernel.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo<'a> {
    /// The command line.
    pub bootargs: &'a str,
    /// Where the initrd is, if there is one.
    pub initrd: Option<Range<Ipa>>,
    /// Fresh random bytes for the kernel's generator.
    pub rng_seed: [u8; 32],
    /// A fresh random number that the kernel chooses its virtual address by.
    pub kaslr_seed: u64,
    /// The guest is told that VMware's guest ABI is answered, where systemd and others look for it.
    pub vmware: bool,
    /// The first-level caches of the CPUs, if they are known.
    pub caches: Option<Caches>,
}

/// First-level caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caches {
    /// For instructions.
    pub instruction: Cache,
    /// For data.
    pub data: Cache,
}

/// The shape of a cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cache {
    /// Bytes in all.
    pub size: u32,
    /// Sets.
    pub sets: u32,
    /// Bytes in a line.
    pub line: u32,
}

/// Why there can be no such tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TreeError {
    /// The command line is longer than [`MAX_CMDLINE`].
    #[error("the command line has {0} bytes; Linux takes at most {MAX_CMDLINE}")]
    BootargsTooLong(usize),
    /// The command line holds a zero byte.
    #[error("the command line holds a zero byte, at which the guest would cut it off")]
    BootargsWithZero,
    /// The heap is used up.
    #[error("the hypervisor has no memory left to write it; the VM can be started when there is some again")]
    NoMemory,
}

/// The tree of `plan` as a flattened blob, never longer than [`DEVICE_TREE_SIZE`].
///
/// # Errors
/// If the command line cannot be passed on, or there is no memory for the tree.
pub fn device_tree(plan: &MachinePlan, boot: &BootInfo<'_>) -> Result<Vec<u8>, TreeError> {
    if boot.bootargs.len() > MAX_CMDLINE {
        return Err(TreeError::BootargsTooLong(boot.bootargs.len()));
    }
    if boot.bootargs.contains('\0') {
        return Err(TreeError::BootargsWithZero);
    }
    let mut tree = Writer::new(DEVICE_TREE_SIZE as usize / 8);
    tree.node("", |root| {
        root.cells("interrupt-parent", [GIC]);
        root.flag("dma-coherent");
        root.text("model", "linux,dummy-virt");
        root.cells("#size-cells", [2]);
        root.cells("#address-cells", [2]);
        root.text("compatible", "linux,dummy-virt");
        write_chosen(root, plan, boot);
        write_cpus(root, plan, boot.caches);
        let ram = plan.ram();
        root.node(&name(format_args!("memory@{:x}", ram.start.0)), |memory| {
            memory.numbers("reg", [ram.start.0, ram.size]);
            memory.text("device_type", "memory");
        });
        // Whoever asks whether this is a virtual machine looks here. systemd takes the text up to the first zero: it says
        // "vmware" for that name, and "vm-other" for one that it does not know.
        root.node("hypervisor", |node| {
            let names: &[&str] = if boot.vmware { &["vmware", HYPERVISOR] } else { &[HYPERVISOR] };
            node.texts("compatible", names);
        });
        write_psci(root);
        write_timer(root, plan);
        write_gic(root, plan);
        root.node("apb-pclk", |clock| {
            clock.cells("phandle", [CLOCK]);
            clock.text("clock-output-names", "clk24mhz");
            clock.cells("clock-frequency", [PERIPHERAL_CLOCK]);
            clock.cells("#clock-cells", [0]);
            clock.text("compatible", "fixed-clock");
        });
        for (number, row) in (0..).zip(plan.rows()) {
            write_device(root, plan, row, FIRST_CPU + u32::from(plan.vcpus()) + number);
        }
    });
    tree.finish().map_err(|NoRoom| TreeError::NoMemory)
}

fn write_chosen(root: &mut Writer, plan: &MachinePlan, boot: &BootInfo<'_>) {
    root.node("chosen", |chosen| {
        if !boot.bootargs.is_empty() {
            chosen.text("bootargs", boot.bootargs);
        }
        if let Some(console) = plan.first(DeviceKind::Pl011) {
            chosen.text("stdout-path", &path(&device_name("pl011", console)));
        }
        if let Some(initrd) = boot.initrd {
            chosen.numbers("linux,initrd-start", [initrd.start.0]);
            chosen.numbers("linux,initrd-end", [initrd.end().0]);
        }
        chosen.property("rng-seed", &boot.rng_seed);
        chosen.numbers("kaslr-seed", [boot.kaslr_seed]);
    });
    root.node("aliases", |aliases| {
        if let Some(console) = plan.first(DeviceKind::Pl011) {
            aliases.text("serial0", &path(&device_name("pl011", console)));
        }
    });
}

fn write_cpus(root: &mut Writer, plan: &MachinePlan, caches: Option<Caches>) {
    root.node("cpus", |cpus| {
        cpus.cells("#size-cells", [0]);
        cpus.cells("#address-cells", [1]);
        cpus.node("cpu-map", |map| {
            map.node("socket0", |socket| {
                socket.node("cluster0", |cluster| {
                    for number in 0..u32::from(plan.vcpus()) {
                        cluster
                            .node(&name(format_args!("core{number}")), |core| core.cells("cpu", [FIRST_CPU + number]));
                    }
                });
            });
        });
        for number in 0..u32::from(plan.vcpus()) {
            cpus.node(&name(format_args!("cpu@{number:x}")), |cpu| {
                cpu.cells("phandle", [FIRST_CPU + number]);
                // A vCPU's affinity 0 is its number, and the other fields are zero.
                cpu.cells("reg", [number]);
                cpu.text("enable-method", "psci");
                cpu.text("compatible", "arm,armv8");
                cpu.text("device_type", "cpu");
                if let Some(Caches { instruction, data }) = caches {
                    cpu.cells("i-cache-size", [instruction.size]);
                    cpu.cells("i-cache-sets", [instruction.sets]);
                    cpu.cells("i-cache-line-size", [instruction.line]);
                    cpu.cells("d-cache-size", [data.size]);
                    cpu.cells("d-cache-sets", [data.sets]);
                    cpu.cells("d-cache-line-size", [data.line]);
                }
            });
        }
    });
}

/// The function numbers are for guests that know only version 0.1, in which they were free.
fn write_psci(root: &mut Writer) {
    root.node("psci", |psci| {
        psci.cells("cpu_on", [arm::CPU_ON_64]);
        psci.cells("cpu_off", [arm::CPU_OFF]);
        psci.cells("cpu_suspend", [arm::CPU_SUSPEND_64]);
        psci.text("method", "hvc");
        psci.texts("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    });
}

/// The counter's frequency stands here because the register that a guest reads it from, CNTFRQ_EL0, belongs to the host, or to
/// its firmware.
///
/// Where the virtual timer is left out the interrupts have names besides, by which Linux has taken them since 5.13. An older one
/// goes by their places, and finds none in the virtual timer's: so the one behind it, of EL2's timer, is left out as well, or it
/// would be taken for that.
///
/// A guest that is to use the memory-mapped timer is told of no other one: Linux takes its clock from the CPU where it finds both.
fn write_timer(root: &mut Writer, plan: &MachinePlan) {
    let timers = plan.timer_interrupts();
    let shown = match plan.timers() {
        Timers::Cpu => 4,
        Timers::Physical => 2,
        Timers::Memory => return,
    };
    root.node("timer", |timer| {
        let interrupts = [timers.secure_physical, timers.physical, timers.virtual_, timers.hypervisor_physical]
            .map(|interrupt| interrupt_cells(interrupt, Trigger::Level).map(u32::to_be_bytes));
        if plan.timers() == Timers::Physical {
            timer.texts("interrupt-names", &["sec-phys", "phys"]);
        }
        let shown = interrupts.get(..shown).unwrap_or(&interrupts);
        timer.property("interrupts", shown.as_flattened().as_flattened());
        timer.flag("always-on");
        if let Ok(frequency) = u32::try_from(plan.counter_frequency().0)
            && frequency != 0
        {
            timer.cells("clock-frequency", [frequency]);
        }
        timer.texts("compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
    });
}

fn write_gic(root: &mut Writer, plan: &MachinePlan) {
    root.node(&name(format_args!("intc@{:x}", DISTRIBUTOR.start.0)), |gic| {
        gic.cells("phandle", [GIC]);
        let (first, second) = (DISTRIBUTOR, plan.redistributors());
        gic.numbers("reg", [first.start.0, first.size, second.start.0, second.size]);
        gic.cells("#redistributor-regions", [1]);
        gic.text("compatible", "arm,gic-v3");
        gic.flag("ranges");
        gic.cells("#size-cells", [2]);
        gic.cells("#address-cells", [2]);
        gic.flag("interrupt-controller");
        gic.cells("#interrupt-cells", [3]);
    });
}

/// A device on the bus, whose handle, if it has one, is `handle`. Exhaustive, so that a new kind of device cannot be forgotten
/// here.
fn write_device(root: &mut Writer, plan: &MachinePlan, row: &Row, handle: u32) {
    match row.device {
        DeviceKind::Flash | DeviceKind::VacantVirtio => {}
        DeviceKind::Pl011 => root.node(&device_name("pl011", row), |uart| {
            uart.texts("clock-names", &["uartclk", "apb_pclk"]);
            uart.cells("clocks", [CLOCK, CLOCK]);
            write_place(uart, row);
            uart.texts("compatible", &["arm,pl011", "arm,primecell"]);
        }),
        DeviceKind::Pl031 => root.node(&device_name("pl031", row), |clock| {
            clock.text("clock-names", "apb_pclk");
            clock.cells("clocks", [CLOCK]);
            write_place(clock, row);
            clock.texts("compatible", &["arm,pl031", "arm,primecell"]);
        }),
        DeviceKind::Pl061 => write_gpio(root, plan, row, handle),
        // The binding wants the control frame first.
        DeviceKind::GenericWatchdog => root.node(&device_name("watchdog", row), |watchdog| {
            write_place(watchdog, row);
            watchdog.text("compatible", "arm,sbsa-gwdt");
        }),
        DeviceKind::Timer => write_memory_timer(root, row),
        // The binding (Linux's rng/microsoft,vmgenid.yaml) wants its interrupt to be an edge: nobody could take a level back.
        DeviceKind::Generation => root.node(&device_name("vmgenid", row), |generation| {
            write_place(generation, row);
            generation.text("compatible", "microsoft,vmgenid");
        }),
        // By Linux's ptp/amazon,vmclock.yaml.
        DeviceKind::ClockPage => root.node(&device_name("ptp", row), |page| {
            write_place(page, row);
            page.text("compatible", "amazon,vmclock");
        }),
        DeviceKind::Enclave => root.node(&device_name("enclave", row), |enclave| {
            write_place(enclave, row);
            enclave.text("compatible", COMPATIBLE);
        }),
        DeviceKind::Virtio(_) => root.node(&device_name("virtio_mmio", row), |transport| {
            transport.flag("dma-coherent");
            write_place(transport, row);
            transport.text("compatible", "virtio,mmio");
        }),
    }
}

/// The binding (Linux's timer/arm,arch_timer_mmio.yaml) has the control frame as the node's own place, and for each timer frame a node
/// within, whose size is one cell. The frequency is left to CNTFRQ in the frame, as it asks for.
fn write_memory_timer(root: &mut Writer, row: &Row) {
    root.node(&device_name("timer", row), |timer| {
        timer.flag("ranges");
        timer.cells("#size-cells", [1]);
        timer.cells("#address-cells", [2]);
        timer.numbers("reg", row.frames.first().map(|control| [control.start.0, control.size]).unwrap_or_default());
        timer.text("compatible", "arm,armv7-timer-mem");
        for (number, frame) in (0..).zip(row.frames.iter().skip(1)) {
            let Range { start: Ipa(start), size } = *frame;
            timer.node(&name(format_args!("frame@{start:x}")), |node| {
                node.cells("frame-number", [number]);
                write_interrupts(node, row);
                node.cells("reg", [(start >> 32) as u32, (start & 0xffff_ffff) as u32, size as u32]);
            });
        }
    });
}

fn write_gpio(root: &mut Writer, plan: &MachinePlan, row: &Row, handle: u32) {
    root.node(&device_name("pl061", row), |gpio| {
        gpio.cells("phandle", [handle]);
        gpio.text("clock-names", "apb_pclk");
        gpio.cells("clocks", [CLOCK]);
        write_place(gpio, row);
        gpio.flag("gpio-controller");
        gpio.cells("#gpio-cells", [2]);
        gpio.texts("compatible", &["arm,pl061", "arm,primecell"]);
    });
    // One power button is enough.
    if plan.first(DeviceKind::Pl061) != Some(row) {
        return;
    }
    root.node("gpio-keys", |keys| {
        keys.text("compatible", "gpio-keys");
        keys.node("poweroff", |button| {
            button.cells("gpios", [handle, POWER_BUTTON_PIN.into(), 0]);
            button.cells("linux,code", [KEY_POWER]);
            button.text("label", "GPIO Key Poweroff");
        });
    });
}

/// Registers and interrupts.
fn write_place(device: &mut Writer, row: &Row) {
    write_interrupts(device, row);
    let frames = row.frames.iter().take(MAX_FRAMES).map(|frame| [frame.start.0, frame.size].map(u64::to_be_bytes));
    let frames: ArrayVec<[[u8; 8]; 2], MAX_FRAMES> = frames.collect();
    device.property("reg", frames.as_flattened().as_flattened());
}

fn write_interrupts(device: &mut Writer, row: &Row) {
    let lines = row.lines.iter().take(MAX_LINES).map(|line| wire_cells(*line).map(u32::to_be_bytes));
    let lines: ArrayVec<[[u8; 4]; 3], MAX_LINES> = lines.collect();
    if !lines.is_empty() {
        device.property("interrupts", lines.as_flattened().as_flattened());
    }
}

/// A node's name, or the path to it.
type Name = ArrayString<32>;

/// A name that is put together. Not by `format!`: see [`crate::blob`] on memory.
fn name(text: fmt::Arguments<'_>) -> Name {
    let mut name = Name::new();
    // The longest is the console's path, of half the size.
    let _ = name.write_fmt(text);
    name
}

/// A device's name, `kind@address`, put together by hand: that takes a third of what formatting does, a dozen times a start.
fn device_name(kind: &str, row: &Row) -> Name {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let address = row.start().0;
    let digits = (67 - (address | 1).leading_zeros()) / 4;
    let mut name = Name::new();
    // There is room for all of it: see `name`.
    let _ = name.try_push_str(kind);
    let _ = name.try_push('@');
    for place in (0..digits).rev() {
        let digit = DIGITS.get((address >> (4 * place) & 0xf) as usize).copied().unwrap_or('0');
        let _ = name.try_push(digit);
    }
    name
}

/// The path to a node below the root.
fn path(node: &Name) -> Name {
    let mut path = Name::new();
    let _ = path.try_push('/');
    let _ = path.try_push_str(node);
    path
}

fn wire_cells(wire: Wire) -> [u32; 3] {
    interrupt_cells(wire.interrupt, wire.trigger)
}

fn interrupt_cells(interrupt: IntId, trigger: Trigger) -> [u32; 3] {
    let (kind, base) = if interrupt.is_private() { (PPI, IntId::PPI_BASE) } else { (SPI, IntId::SPI_BASE) };
    let flags = match trigger {
        Trigger::Edge => EDGE_RISING,
        Trigger::Level => LEVEL_HIGH,
    };
    [kind, interrupt.0 - base, flags]
}
