//! The machine that all of it runs on: what is known of it, its memory, its time, and what every other room may use.

pub(crate) mod entropy;
mod facts;
pub(crate) mod memory;
pub(crate) mod speculation;
pub(crate) mod text;
pub(crate) mod wall_clock;

pub(crate) use facts::{get, init, init_cpu, milliseconds, probe_wfe, ticks, wfe_traps};
