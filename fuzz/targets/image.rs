//! The header of an arm64 `Image`. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::parsers::image(data));
