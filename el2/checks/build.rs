//! Links as the hypervisor that ships is linked, by the same script.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=../hypervisor/image.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{folder}/../hypervisor/image.ld");
        for argument in [
            "-pie",
            "--no-dynamic-linker",
            "-z",
            "notext",
            "--pack-dyn-relocs=relr",
            "--build-id=none",
            "--hash-style=gnu",
        ] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
