//! A whole VM, twice: exits with any syndrome, what the guest writes, time, the outside. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole_vm::play::play(data));
