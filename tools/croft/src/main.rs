//! croft
fn main() {}
