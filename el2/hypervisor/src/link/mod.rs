//! What leaves by the UART and comes in by it: consoles, the log, the operator's questions and their answers.

mod arrivals;
pub mod carrier;
pub(crate) mod console;
mod dues;
pub(crate) mod operator;
pub(crate) mod stats;
pub mod transfer;
