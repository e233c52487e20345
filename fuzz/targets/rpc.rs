//! The RPC channels, with clients that may send anything. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::rpc::clients(data));
