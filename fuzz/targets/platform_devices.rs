//! The PL031, the PL061 and the memory-mapped timer. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::platform_devices::rest(data));
