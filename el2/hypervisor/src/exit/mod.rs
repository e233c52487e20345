//! What a guest's exit leads to: the short path ([`fast`]), which needs no more than the registers, and the long one
//! ([`dispatch`]), which decodes the syndrome and hands it to the part of the machine that it concerns.

pub mod checks;
pub(crate) mod dispatch;
pub(crate) mod doors;
pub mod fast;
pub mod interrupts;
pub(crate) mod mmio;
pub(crate) mod run;
pub(crate) mod stage1;
