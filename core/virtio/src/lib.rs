//! The device side of virtio 1.3: virtqueues, the MMIO transport, and the devices that move bytes through them.
//!
//! The layers, lowest first:
//! * [`memory`]: the guest's memory, as every device sees it. Everything read through it is copied once and checked after.
//! * [`queue`]: the split virtqueue (section 2.7 of the specification), with indirect descriptors and event indices.
//! * [`chain`]: one buffer that the driver offered, as a list of checked segments with a read and a write cursor.
//! * [`device`]: what a kind of device has to say for itself.
//! * [`mmio`]: the registers of section 4.2: negotiation, queue set-up, notification, interrupt, reset.
//! * [`net`], [`block`], [`console`] and [`entropy`]: the devices of sections 5.1 to 5.4.
//! * [`saved`]: their state as values.
//!
//! The driver may be hostile. Its errors end in a [`queue::QueueError`]; the transport then sets DEVICE_NEEDS_RESET and
//! stops that device, which harms nobody but its own guest. A call does a bounded amount of work however fast other
//! CPUs of the guest refill the rings: see [`device::Progress`]. All memory is allocated when a device is made.
//!
//! Nothing here blocks or knows time: a write to QueueNotify comes back as [`mmio::Effect::Notify`], and the caller runs
//! [`mmio::Mmio::process`] at a moment that suits it, on the vCPU's thread or on a worker. On a machine's bus, where a
//! transport is a [`devices::Device`] like all others, that is at once.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod saved;

mod ring;
#[cfg(test)]
mod testing;

pub use block::{Block, Disk};
pub use chain::Chain;
pub use console::Console;
pub use device::{Device, Progress, VirtioKind};
pub use devices::AccessSize;
pub use devices::memory;
pub use entropy::Entropy;
pub use memory::{Fault, GuestMemory};
pub use mmio::{Effect, Mmio, TRANSPORTS, Vacant, WINDOW_SIZE};
pub use net::Net;
pub use queue::{Queue, QueueError};
