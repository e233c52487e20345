//! hw
#![no_std]
