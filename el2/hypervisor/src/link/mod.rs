//! What leaves and arrives by the link: consoles, the log, the operator's requests and their answers.

mod arrivals;
pub mod carrier;
pub(crate) mod console;
mod dues;
pub(crate) mod last_words;
pub(crate) mod operator;
pub(crate) mod stats;
pub mod transfer;
