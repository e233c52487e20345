//! A VM's saved state, damaged anywhere. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::saved_vm::saved_vm(data));
