//! payloads
#![no_std]
