//! The console and the entropy device under any driver. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio_device::mmio(data));
