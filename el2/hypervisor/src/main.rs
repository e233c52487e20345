//! The image that ships: the hypervisor, and nothing else.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

hw::entry!(undercroft::boot::main::<undercroft::exit::checks::Nothing>, undercroft::exit::fast::on_exit);
