//! A guest's disk on a host's, under any driver, with any outcomes. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::host_disk::guest(data));
