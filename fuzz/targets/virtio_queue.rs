//! A virtqueue full of random descriptors. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio_device::queue(data));
