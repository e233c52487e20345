//! Syndromes, calls by HVC and SMC, the guest's own tables. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::parsers::exits(data));
