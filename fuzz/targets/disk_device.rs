//! The driver of the host's disks against any device. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::disk_device::device(data));
