//! isolation
fn main() {}
