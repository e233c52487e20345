//! WFE with any words, while time passes and the VM is paused. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::watchdogs::words(data));
