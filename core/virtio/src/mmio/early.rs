//! Notifications that come too early, and a warning about them.
//!
//! A driver must not notify before it has set DRIVER_OK (section 3.1.1), and a device must not look at its queues before that. So
//! a driver that breaks the order of initialisation would wait for ever for its first buffer, and nothing in the guest would say
//! why. The device works on: it looks at what was notified too early when DRIVER_OK is set.

/// Why nothing comes of a notification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Early {
    /// Status has no FEATURES_OK.
    #[error(
        "the driver notifies queue {queue}, but Status is {status:#x}, without FEATURES_OK (8), and nothing is done until \
         it has that and DRIVER_OK (4): a driver writes the features it accepts, VIRTIO_F_VERSION_1 among them, sets \
         FEATURES_OK, sees that it stays, sets its queues up, and then sets DRIVER_OK"
    )]
    Features {
        /// The queue.
        queue: u32,
        /// Status.
        status: u32,
    },
    /// Status has no DRIVER_OK.
    #[error(
        "the driver notifies queue {queue}, but Status is {status:#x}, without DRIVER_OK (4), and nothing is done until it \
         has that: a driver sets DRIVER_OK when its queues are set up, and notifies after that"
    )]
    Driver {
        /// The queue.
        queue: u32,
        /// Status.
        status: u32,
    },
    /// The queue is not there, or was not made ready.
    #[error("the driver notifies queue {queue}, which {}", missing(*.exists))]
    Queue {
        /// The queue.
        queue: u32,
        /// The device has it.
        exists: bool,
    },
}

const fn missing(exists: bool) -> &'static str {
    if exists { "it has not made ready (QueueReady)" } else { "this device does not have" }
}
