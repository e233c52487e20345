//! Links a static program at an ordinary user address, with segments aligned for every page size that arm64 kernels have.

fn main() {
    for argument in ["--image-base=0x400000", "-zmax-page-size=65536", "-no-pie", "--build-id=none"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
