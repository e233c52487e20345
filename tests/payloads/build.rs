//! Links every payload as a static position-independent executable at address 0, by `payload.ld`.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=payload.ld");
    println!("cargo::rustc-link-arg-bins=-T{folder}/payload.ld");
    // The code is relative to the program counter anyway; `-pie` makes the linker note the few absolute pointers in tables of constants,
    // and `notext` lets it do so in read-only data, which the entry code patches before the MMU is on.
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-znorelro", "--build-id=none", "--gc-sections"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
