//! Links the checks as the hypervisor is linked.

#[path = "../link.rs"]
mod link;

fn main() {
    link::link();
}
