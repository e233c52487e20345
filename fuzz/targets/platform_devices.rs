#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::platform_devices::rest(data));
