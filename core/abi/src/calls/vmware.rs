//! VMware's guest ABI, as its arm64 clients speak it: ports, commands, and the numbers of its RPC channels. The register
//! layout is the published mapping of x86 port accesses to arm64 registers.

/// W0 of every call to VMware's ports, "VMXh".
pub const MAGIC: u32 = 0x564d_5868;
/// The port of calls that carry everything in registers.
pub const PORT_LOW: u16 = 0x5658;
/// The port of calls that move a buffer.
pub const PORT_HIGH: u16 = 0x5659;
/// What Linux' vmwgfx before 6.11 makes of [`PORT_HIGH`] when it sends: it sets flag bits in the port.
pub const PORT_HIGH_WITH_FLAGS: u16 = 0x565b;

/// W2\[15:0\] of a call to [`PORT_LOW`].
pub mod command {
    /// CPU speed in MHz.
    pub const GET_MHZ: u16 = 1;
    /// Version of this interface.
    pub const GET_VERSION: u16 = 10;
    /// Removable devices; we have none.
    pub const GET_DEVICE: u16 = 11;
    /// Connects removable devices.
    pub const TOGGLE_DEVICE: u16 = 12;
    /// Options of the tools.
    pub const GET_OPTIONS: u16 = 13;
    /// Version of the virtual hardware.
    pub const GET_HARDWARE_VERSION: u16 = 17;
    /// The VM's UUID.
    pub const GET_UUID: u16 = 19;
    /// Memory size.
    pub const GET_MEMORY: u16 = 20;
    /// UTC in 32 bits.
    pub const GET_TIME: u16 = 23;
    /// The clock was stepped: stop slewing.
    pub const STOP_CATCH_UP: u16 = 24;
    /// RPC channels ([`super::channel`]).
    pub const MESSAGE: u16 = 30;
    /// UTC in 64 bits.
    pub const GET_TIME_FULL: u16 = 46;
    /// The same, and how far interrupts lag.
    pub const GET_TIME_FULL_WITH_LAG: u16 = 55;
    /// Statistics that a display driver offers; noted by nobody.
    pub const DISPLAY_STATISTICS: u16 = 85;
}

/// W0 of [`command::GET_VERSION`]: the only version that clients accept.
pub const VERSION: u64 = 6;
/// W2 of [`command::GET_VERSION`]: the product, a server.
pub const PRODUCT: u64 = 2;
/// W0 of [`command::GET_HARDWARE_VERSION`].
pub const HARDWARE_VERSION: u64 = 20;
/// Bit of W0 of [`command::GET_OPTIONS`]: time is to be synchronised.
pub const OPTION_TIME_SYNC: u64 = 0x400;
/// W2 of the time commands: microseconds that a guest may lag.
pub const TOLERATED_LAG: u64 = 1_000_000;

/// The tools' daemon polls about ten times a second. One that has not for so many milliseconds, in which its guest could run, is taken
/// for gone, by the hypervisor and by whoever shows it.
pub const DAEMON_IS_LOST: u64 = 10_000;

/// RPC channels.
pub mod channel {
    /// "RPCI": the guest asks.
    pub const RPCI: u32 = 0x4943_5052;
    /// "TCLO": the host asks, when the guest polls.
    pub const TCLO: u32 = 0x4f4c_4354;
    /// In the protocol of [`step::OPEN`]: give the channel cookies.
    pub const WITH_COOKIES: u32 = 0x8000_0000;

    /// W2\[31:16\] of [`super::command::MESSAGE`]: what is to be done.
    pub mod step {
        /// Opens a channel: W1 is the protocol.
        pub const OPEN: u16 = 0;
        /// Announces a message of so many bytes.
        pub const SEND_SIZE: u16 = 1;
        /// Sends four bytes of it.
        pub const SEND_PAYLOAD: u16 = 2;
        /// How long is the message that waits?
        pub const RECEIVE_SIZE: u16 = 3;
        /// Takes four bytes of it.
        pub const RECEIVE_PAYLOAD: u16 = 4;
        /// The message has arrived.
        pub const RECEIVE_STATUS: u16 = 5;
        /// Closes the channel.
        pub const CLOSE: u16 = 6;
    }

    /// Status bits, W2\[31:16\], and W1\[31:16\] of bulk transfers.
    pub mod status {
        /// It worked.
        pub const SUCCESS: u64 = 0x01;
        /// There is a message to receive.
        pub const DO_RECEIVE: u64 = 0x02;
        /// There is no such channel.
        pub const CLOSED: u64 = 0x04;
        /// Begin this message again.
        pub const CHECKPOINT: u64 = 0x10;
        /// The payload may be transferred as a whole.
        pub const BULK: u64 = 0x80;
    }
}
