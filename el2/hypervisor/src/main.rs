//! Undercroft: a type-1 hypervisor for 64-bit Arm.
//!
//! This crate wires the pure logic of `core/` to the hardware of `el2/hw`, and contains no unsafe code. It begins at
//! [`boot::main`] on the boot CPU, MMU off: describe the platform, check that it can be served, build EL2's own address
//! space, take the RAM under control, start the other CPUs, make the VMs that the bundle describes, and become the idle
//! thread. From then on everything happens in threads: one a vCPU ([`vcpu`]), one for the console ([`link`]).
#![no_std]
#![no_main]
#![deny(unsafe_code)]
#![expect(clippy::result_large_err, reason = "a refusal has its room with it, so that none has to be allocated")]

mod boot;
mod checks;
mod exit;
mod host;
mod link;
mod output;
mod sched;
mod vcpu;
mod vm;

hw::entry!(crate::boot::main, crate::exit::fast::on_exit);
