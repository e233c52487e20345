//! What the values of Arm's system registers mean; no register is touched here.
//!
//! The privileged layer reads raw numbers and writes raw numbers. Everything between, the tables of the Arm
//! Architecture Reference Manual (DDI 0487) that a hypervisor needs, is pure arithmetic and lives here, where a test
//! can reach it:
//!
//! * [`exit`]: why a guest came back: ESR_EL2, FAR_EL2 and HPFAR_EL2 as a typed [`exit::Exit`].
//! * [`inject`]: taking an exception to EL1 as the hardware would have done.
//! * [`id`]: which features a guest is shown. [`requirements`]: which ones the hypervisor itself cannot do without.
//! * [`sysreg`]: what to do with a trapped system register that is not an identification register.
//! * [`controls`]: the traps and enables of EL2 while a guest runs. They and the feature list are two halves of one
//!   decision: what is not shown is trapped where the architecture gives a trap.
//! * [`debug`]: what becomes of each debug register.
//! * [`speculation`]: what a CPU needs against attacks on its predictors.
//! * [`table_walk`]: at which level a guest's own table walk left its memory.
//! * [`translation`]: with which rights an address of a guest is translated. [`retry`]: when it has tried often enough.
//! * [`registers`]: those that are switched with a vCPU, in tables. [`saved`]: all of a vCPU's as a value.
//! * [`pstate`]: the processor state as SPSR_EL2 holds it. [`reset`]: registers of a vCPU that starts.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod controls;
pub mod debug;
pub mod encoding;
pub mod exit;
pub mod id;
pub mod inject;
pub mod pstate;
pub mod registers;
pub mod requirements;
pub mod reset;
pub mod retry;
pub mod saved;
pub mod speculation;
pub mod sysreg;
pub mod table_walk;
pub mod translation;

pub use encoding::SysregEncoding;
pub use units::Direction;
