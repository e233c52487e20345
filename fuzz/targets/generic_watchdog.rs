//! The Generic Watchdog's registers, and time. The checks are in the library.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::watchdogs::device(data));
