//! devices
fn main() {}
