//! Links the hypervisor.

#[path = "../link.rs"]
mod link;

fn main() {
    link::link();
}
