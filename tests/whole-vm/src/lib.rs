//! A whole VM on the host: every part of `core/` that makes one, put together as the hypervisor does it, over a fake machine.
//!
//! In `el2/hypervisor` the parts have locks around them, threads that run them and registers below them. Here they are fields of
//! one value, [`WholeVm`], which receives events one after the other: an exit with any syndrome ([`WholeVm::exit`]), time that
//! passes, requests of the operator and input of the consoles. All that `core/` decides is the real thing: life, what an exit
//! leads to, accesses to devices, the bus with every device of the machine's plan, calls, watchdogs, the interrupt controller, the clock, saved
//! states. What is fake is what `el2/hw` would be ([`hardware`]): registers, memory, which appears block by block as a guest's
//! does, and the guest's stage 1, which maps everything where it is.
//!
//! It promises two things, and [`play`] checks both for any input:
//!
//! * Nothing that a guest does panics, and the work of one exit is bounded ([`hardware::Work`]).
//! * A paused VM can be taken out and put into a new one: it gives the same value back, and continues as if nothing had happened.
//!   Two VMs play the same input, and at random points one of them is moved. Saved as a file with its memory, and restored in a
//!   new VM, it is the same file again ([`file`]).
#![forbid(unsafe_code)]

mod calls;
mod exits;
pub mod file;
pub mod hardware;
mod life;
pub mod play;
mod saved;
mod whole;

pub use exits::Done;
pub use vm::exits::Cause;
pub use whole::{TWINS, VcpuState, WholeVm};
