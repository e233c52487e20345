//! The VMware guest ABI for arm64: calls that any process of a guest can make, without a driver.
//!
//! A guest puts its request into X0 to X7 and executes `MRS XZR, MDCCSR_EL0` (from EL0 or EL1) or `HVC #0x86` (from
//! EL1). That is what open-vm-tools, Linux' vmwgfx and NetBSD's vmt do; the register layout is the published mapping of
//! x86 port accesses to arm64 registers. Here is everything about it that needs no hardware:
//!
//! * [`encoding`]: which register contents are a call at all, and which port it goes to.
//! * [`commands`]: the groups of the commands, and the least level that each may be used from; their numbers are in
//!   [`abi::calls::vmware::command`].
//! * [`channel`]: the RPC channels: messages in both directions, in words of four bytes or whole.
//! * [`rpci`]: what a guest can ask with a message. [`guestinfo`]: the values that it leaves and finds.
//! * [`tclo`]: what the host asks of the tools' daemon, and what is known about it. [`limits`]: how much of all that.
//! * [`service`]: one VM's whole service; [`Service::call`] is the entry.
//! * [`own`]: our own calls, on a port beside VMware's.
//!
//! Two rules that real clients need: only the low 32 bits of the input registers count (the rest is stack garbage), but
//! for addresses and the length of a bulk transfer; and no register changes but the documented results.
//!
//! Nothing here panics on what a guest does. What a guest may consume is bounded by [`Limits`]; beyond it, it gets an
//! error and has harmed itself alone.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod channel;
pub mod commands;
pub mod encoding;
pub mod guestinfo;
pub mod limits;
pub mod own;
pub mod rpci;
pub mod saved;
pub mod service;
pub mod tclo;
#[cfg(test)]
mod tests;

pub use encoding::{Access, Door, Form, PortDirection, Size, decode};
pub use limits::{Limits, LogRate};
pub use service::{
    BufferError, Config, ExceptionLevel, Host, Outcome, Service, Shutdown, State, WallTime, WatchdogCall, Whose,
};
