//! The enclave device: commands, and registers. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::enclave_device::commands(data);
    fuzz::enclave_device::registers(data);
});
