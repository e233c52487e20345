//! What the fuzzer runs: one function for each part of Undercroft that a guest or a file can feed.
//!
//! Each takes any bytes, plays them as what a hostile guest might do, and panics if a promise is broken: that nothing
//! panics, that nothing is lost or invented, that work is bounded. Those of the devices are also included by the property
//! tests of their crates, so the same checks run in every `cargo test`, on fewer inputs.

#![deny(unsafe_code)]

pub mod disk_device;
pub mod doors;
pub mod enclave_device;
pub mod host_disk;
pub mod input;
pub mod network;
pub mod parsers;
pub mod platform_devices;
pub mod rpc;
pub mod saved_vm;
pub mod snapshot_file;
pub mod virtio_device;
pub mod watchdogs;
