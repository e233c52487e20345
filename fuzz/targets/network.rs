//! Network devices on a switch under any drivers. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::network::network(data));
