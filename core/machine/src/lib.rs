//! The guest's machine, as one plan.
//!
//! A guest learns of its devices from a device tree, and meets them at addresses where stage 2 maps nothing. If both
//! were written down, they would drift apart one day; so [`MachinePlan`] alone says what is where,
//! the exit path looks addresses up in it, the bus has its devices in the order of its rows and their lines lead where it
//! says, and [`device_tree`] writes the tree from it.
//!
//! A device is one [`Row`]: its kind, its frames (1 to 4), its interrupt lines (at most 32). There may be any number of any kind; a plan
//! in which two of them would share an address or an interrupt is refused, and so is one with an interrupt that the GIC has not.
//!
//! The map is that of QEMU's `virt` machine, which existing kernels and guest firmware know:
//!
//! | address | device | interrupt |
//! |---|---|---|
//! | 0 | flash, two banks of 64 MiB: erased, read-only, not in the tree | |
//! | 0x0800_0000 | GICv3 Distributor | |
//! | 0x080A_0000 | GICv3 Redistributors, 128 KiB a vCPU | |
//! | 0x0900_0000 | PL011 UART | SPI 1 |
//! | 0x0901_0000 | PL031 real time clock | SPI 2 |
//! | 0x0903_0000 | PL061 GPIO, the power button on line 3 | SPI 7 |
//! | 0x090A_0000 | the vCPUs' records of stolen time, read-only | |
//! | 0x0910_0000, 0x0911_0000 | Generic Watchdog, where the site file asks for it: control frame, refresh frame | SPI 10 |
//! | 0x0912_0000, 0x0913_0000 | memory-mapped generic timer, where the guest is to use that: control frame, timer frame | SPI 12, 13 |
//! | 0x0914_0000 | generation identifier: changes when the machine continues from a saved state | SPI 14 |
//! | 0x0915_0000 | VMClock: a page of memory, read-only | SPI 15 |
//! | 0x0A00_0000 + n * 0x200 | virtio-mmio device n, up to 31; vacant ones say so | SPI 16 + n |
//! | 0x4000_0000 | RAM | |
//!
//! * [`plan`](MachinePlan): the map and the lookup.
//! * [`device_tree`]: the tree, written from the plan.
//! * [`image`]: what an arm64 Linux `Image` says about itself.
//! * [`placement`]: where kernel, tree and initrd go.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod blob;
pub mod image;
pub mod placement;
mod plan;
mod tree;

pub use plan::{
    CLOCK_PAGE, DISTRIBUTOR, DeviceKind, MAX_VIRTIO, MachineError, MachinePlan, RAM_BASE, REDISTRIBUTOR_SIZE, Row,
    STOLEN_TIME, Spec, TIMER_BASE, Target, TimerInterrupts, Timers, UART_BASE, Wire, redistributor,
};
pub use tree::{BootInfo, Cache, Caches, TreeError, device_tree};
pub use virtio::VirtioKind;

#[cfg(test)]
mod tests;
