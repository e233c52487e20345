//! The UART: accesses, input, back-pressure. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::platform_devices::pl011(data));
