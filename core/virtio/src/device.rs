//! What a kind of device has to say for itself; the transport does the rest.

use devices::Outside;
use devices::saved::Unfit;
use pack::Damaged;

use crate::memory::GuestMemory;
use crate::queue::{Queue, QueueError};

/// A kind of virtio device that there is: what has no device here cannot be planned. The value is its device ID (section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum VirtioKind {
    /// Network card.
    Net = 1,
    /// Disk.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
}

impl VirtioKind {
    /// The device ID, as the transport's DeviceID register shows it.
    #[must_use]
    pub const fn device_id(self) -> u32 {
        self as u32
    }

    /// Its name, for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "virtio-net",
            Self::Block => "virtio-blk",
            Self::Console => "virtio-console",
            Self::Entropy => "virtio-rng",
        }
    }
}

/// Why a device stopped working on a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// There is nothing to do until the driver notifies again, or until something arrives from outside.
    Idle,
    /// This call's share of work is done and there may be more: call again soon, without being notified.
    More,
    /// The outside has to move first (take output); call again when it has.
    Blocked,
}

impl Progress {
    /// The more urgent of the two.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::More, _) | (_, Self::More) => Self::More,
            (Self::Blocked, _) | (_, Self::Blocked) => Self::Blocked,
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}

/// A device of one kind.
pub trait Device {
    /// Its kind.
    fn kind(&self) -> VirtioKind;

    /// The feature bits of this kind (bits 0 to 23 and 50 up) that it offers. The transport adds its own.
    fn features(&self) -> u64;

    /// The largest size of each queue; every one a power of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space as it is now, without trailing padding. Reads behind it are zero.
    fn config(&self) -> &[u8];

    /// The driver writes `bytes` at `offset` of the configuration space.
    fn config_write(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The driver has set DRIVER_OK, having accepted `features`.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// The driver has reset the device: forget what it told you and drop any buffer held.
    fn reset(&mut self);

    /// The machine is off, and what the device had in the memory that a VM has beside the guest's has gone.
    fn forget(&mut self) {}

    /// The driver has taken queue number `index` from the device: drop any buffer of it that is held.
    fn let_go(&mut self, index: usize);

    /// Moves bytes between what waits in the device and the outside, as many as either has room for. Returns how many still
    /// wait to get out. Called after every piece of work.
    fn exchange(&mut self, outside: &dyn Outside) -> usize;

    /// What it has beside the transport's state.
    type Saved: pack::Part;

    /// Takes that out.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn save(&self) -> Result<Self::Saved, Damaged>;

    /// Puts such a state in. It takes no memory.
    ///
    /// # Errors
    /// If no device of this kind can be in that state; nothing has changed then.
    fn restore(&mut self, saved: &Self::Saved) -> Result<(), Unfit>;

    /// Whether its configuration space is another one than that of which the driver in this state knows, and has to hear.
    fn has_another_config(&self, saved: &Self::Saved) -> bool {
        let _ = saved;
        false
    }

    /// Works on queue number `index`, at most a bounded amount. `queues` are all queues of the device, of which only
    /// those that are [ready](Queue::is_ready) give buffers. The transport looks after interrupts.
    ///
    /// # Errors
    /// If the driver broke a queue. The transport stops the device then.
    fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &M,
    ) -> Result<Progress, QueueError>;
}
