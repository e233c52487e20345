//! A saved VM as a file or as a stream of pieces, damaged anywhere. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::snapshot_file::snapshot_file(data));
