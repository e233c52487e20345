#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::parsers::exits(data));
