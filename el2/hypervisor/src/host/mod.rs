//! The machine that all of it runs on: what is known of it, its memory, its time, and what every other room may use.

pub(crate) mod entropy;
mod facts;
pub mod memory;
pub(crate) mod speculation;
pub mod text;
pub(crate) mod virtio;
pub(crate) mod wall_clock;

pub use facts::{Host, get, ticks};
pub(crate) use facts::{frequency, guests_cpu};
pub(crate) use facts::{
    init, init_cpu, init_deactivation, is_alike, milliseconds, probe_group_0, probe_wfe, tells_of_group_0,
    traps_deactivation, wfe_traps,
};
