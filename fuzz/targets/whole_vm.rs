#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole_vm::play::play(data));
