//! Calls through the debug channel, with any registers. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::doors::calls(data));
