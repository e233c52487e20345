//! The contracts that cross a boundary of Undercroft, each written down once for both of its sides.
//!
//! * [`bundle`]: the file that `croft bundle` makes and the hypervisor reads in place (`docs/formats/bundle.md`).
//! * [`link`]: the framed byte stream between the hypervisor and `croft` (`docs/formats/link.md`).
//! * [`host_arguments`]: what the hypervisor's own kernel command line may say.
//! * [`calls`]: what a guest puts into its registers to call without a driver: ports, commands and their answers.
//! * [`wfe`]: the words of the WFE channel.
//! * [`enclave`]: registers, commands and completions of the enclave device.
//! * [`watchdog`]: what a watchdog does, and why a request to one is refused, by number and by name.
//! * [`crc32c`]: the checksum of bundle and link. The hypervisor computes it with the CPU's instruction and passes that
//!   function in; [`crc32c::compute`] is the portable one.
//!
//! Whatever arrives through one of these is untrusted: every reader here checks bytes before it uses them, and none
//! panics on any input.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bundle;
pub mod calls;
pub mod check_arguments;
pub mod crc32c;
pub mod enclave;
pub mod host_arguments;
pub mod link;
pub mod watchdog;
pub mod wfe;

pub use crc32c::Crc32c;
pub use host_arguments::HostArguments;
