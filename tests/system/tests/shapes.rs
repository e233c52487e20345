//! shapes
fn main() {}
