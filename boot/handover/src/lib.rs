//! What a boot loader hands to the hypervisor, and in which form: all of a loader that is no matter of its firmware.
//!
//! The hypervisor is an arm64 `Image`, and wants what Linux wants (Linux, "Booting AArch64 Linux"): to lie at a multiple of 2 MiB with
//! room behind it, and a device tree that says where the machine's memory is, what of it is not to be used, where the bundle is
//! (`linux,initrd-start`) and what the command line says. A loader finds the parts, and this crate says what they are to become:
//!
//! * [`request`]: what whoever starts the loader has written: which files, and the hypervisor's command line.
//! * [`image`]: how much memory an image takes, or why it is none.
//! * [`memory`]: firmware's map of memory in few ranges, what is RAM and what of it stays firmware's.
//! * [`tree`]: firmware's device tree with all that in it.
//!
//! It is tested on the host, as `core` is; it may allocate, for firmware has a heap.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod image;
pub mod memory;
pub mod request;
pub mod tree;
