//! Undercroft: a type-1 hypervisor for 64-bit Arm.
//!
//! This crate wires the pure logic of `core/` to the hardware of `el2/hw`, and contains no unsafe code. It begins at
//! [`boot::main`] on the boot CPU, MMU off: describe the platform, check that it can be served, build EL2's own address
//! space, take the RAM under control, start the other CPUs, make the VMs that the bundle describes, and become the idle
//! thread. From then on everything happens in threads: one for each vCPU ([`vcpu`]), one for the consoles and one for
//! what arrives by the link's port ([`link`]), one for watchdogs ([`vm`]).
//!
//! It is a library, from which two images are built: the one that ships (`main.rs`), and one that also contains checks
//! of it (`el2/checks`), by way of [`exit::checks::Checks`].
//!
//! # The rooms
//!
//! Each part has a room, a folder. A room may use only those below it in this list: `cargo xtask lint` enforces that.
//! Where one has to call a room above, it is given the means at the start ([`sched::Occupant`], [`vm::MakeVcpu`],
//! [`output::set_reader`]).
//!
//! 1. `boot`: from the first Rust instruction to the idle loop
//! 2. `link`: consoles and the log to the UART, and what the operator asks
//! 3. `exit`: a vCPU's thread, what exits lead to, the host's interrupts
//! 4. `vcpu`: a vCPU's registers, list registers and timers
//! 5. `vm`: a VM's life, memory, devices and watchdogs
//! 6. `output`: what waits to leave by the UART
//! 7. `sched`: threads on CPUs
//! 8. `host`: the machine below
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    rustdoc::private_intra_doc_links,
    reason = "whoever reads this works on it, and has the private parts before them"
)]
#![expect(clippy::result_large_err, reason = "a refusal has its room with it, so that none has to be allocated")]

pub mod boot;
pub mod exit;
pub mod host;
pub mod link;
mod output;
pub mod sched;
pub mod vcpu;
pub mod vm;
